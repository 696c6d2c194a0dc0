//! Recorded speech: from sound files to log-mel spectra.
//!
//! A recording is mixed to one channel and cut into windows of 25 ms (Hann) every 12.5 ms; the power spectrum of each, a
//! transform of 2,048 samples, is summed by triangles over 32 bands that are equally wide on the mel scale, 2595 log₁₀(1 +
//! f/700), from 60 to 8,000 Hz. Its logarithm is cut off 60 dB below the loudest value, windows more than 40 dB below the
//! loudest one are taken away from both ends; then every band is centered, and the whole scaled to deviation 1. Rates of
//! samples may differ: bands are in Hz.

use std::f32::consts::TAU;
use std::io::Cursor;
use std::path::Path;

use crate::random::Draws;
use crate::{Failure, failure};

/// Bands of a spectrum, and columns of a picture of it.
pub(crate) const BANDS: usize = 32;
const WINDOW_SECONDS: f32 = 0.025;
const HOP_SECONDS: f32 = 0.0125;
const TRANSFORM: usize = 2048;
const LOWEST: f32 = 60.0;
const HIGHEST: f32 = 8000.0;
/// In powers: 60 and 40 dB.
const FLOOR: f32 = 1e-6;
const SILENCE: f32 = 1e-4;

/// One channel of sound.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sound {
    /// Samples a second.
    pub(crate) rate: u32,
    /// In [−1, 1] as a rule.
    pub(crate) samples: Vec<f32>,
}

impl Sound {
    /// The mean of interleaved channels.
    fn mixed(rate: u32, channels: usize, samples: &[f32]) -> Self {
        let mean = |frame: &[f32]| frame.iter().sum::<f32>() / channels as f32;
        Self { rate, samples: samples.chunks_exact(channels.max(1)).map(mean).collect() }
    }

    /// Decodes the bytes of a file, Ogg Vorbis or WAV by the extension of its path, which errors name.
    pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<Self, Failure> {
        let is_ogg = path.extension().is_some_and(|extension| extension == "ogg");
        let sound = if is_ogg { vorbis(bytes) } else { wav(bytes) };
        sound.map_err(|reason| failure(format!("{}: unreadable sound: {reason}", path.display())))
    }
}

fn vorbis(bytes: &[u8]) -> Result<Sound, Failure> {
    use lewton::inside_ogg::OggStreamReader;
    use lewton::samples::InterleavedSamples;
    let mut reader = OggStreamReader::new(Cursor::new(bytes))?;
    let (rate, channels) = (reader.ident_hdr.audio_sample_rate, usize::from(reader.ident_hdr.audio_channels));
    let mut samples = Vec::new();
    while let Some(packet) = reader.read_dec_packet_generic::<InterleavedSamples<f32>>()? {
        samples.extend(packet.samples);
    }
    Ok(Sound::mixed(rate, channels, &samples))
}

fn wav(bytes: &[u8]) -> Result<Sound, Failure> {
    let reader = hound::WavReader::new(Cursor::new(bytes))?;
    let spec = reader.spec();
    let samples: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.into_samples::<f32>().collect::<Result<_, _>>()?,
        hound::SampleFormat::Int => {
            let scale = 1.0 / (1u64 << (spec.bits_per_sample - 1)) as f32;
            let scaled = |sample: Result<i32, _>| sample.map(|sample| sample as f32 * scale);
            reader.into_samples::<i32>().map(scaled).collect::<Result<_, _>>()?
        }
    };
    Ok(Sound::mixed(spec.sample_rate, usize::from(spec.channels), &samples))
}

/// A spectrum over time: windows of [`BANDS`] values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spectrum {
    values: Vec<f32>,
}

fn mel(hertz: f32) -> f32 {
    2595.0 * (1.0 + hertz / 700.0).log10()
}

/// For every band, its first bin of the transform and the weights from there on.
fn bands(rate: u32) -> Vec<(usize, Vec<f32>)> {
    let (low, width) = (mel(LOWEST), (mel(HIGHEST) - mel(LOWEST)) / (BANDS + 1) as f32);
    let bin = rate as f32 / TRANSFORM as f32;
    (0..BANDS)
        .map(|band| {
            let weight = |at: usize| {
                let place = (mel(at as f32 * bin) - low) / width - band as f32;
                (1.0 - (place - 1.0).abs()).max(0.0)
            };
            let first = (1..TRANSFORM / 2).find(|at| weight(*at) > 0.0).unwrap_or(TRANSFORM / 2);
            (first, (first..TRANSFORM / 2).map(weight).take_while(|weight| *weight > 0.0).collect())
        })
        .collect()
}

impl Spectrum {
    /// The spectrum of a sound; errors say what is wrong with it.
    pub(crate) fn of(sound: &Sound) -> Result<Self, Failure> {
        let length = (WINDOW_SECONDS * sound.rate as f32) as usize;
        let hop = (HOP_SECONDS * sound.rate as f32) as usize;
        if hop == 0 || length > TRANSFORM {
            return Err(failure(format!("{} samples a second, expected 80 to 81,920", sound.rate)));
        }
        if sound.samples.len() < length {
            let got = sound.samples.len();
            return Err(failure(format!(
                "{got} samples, expected at least the {length} of one window of 25 ms"
            )));
        }
        let bands = bands(sound.rate);
        let hann = |at: usize| 0.5 - 0.5 * (TAU * at as f32 / length as f32).cos();
        let window: Vec<f32> = (0..length).map(hann).collect();
        let mut values = Vec::new();
        for from in (0..=sound.samples.len() - length).step_by(hop) {
            let mut buffer = [0f32; TRANSFORM];
            for ((to, sample), weight) in buffer.iter_mut().zip(&sound.samples[from..]).zip(&window) {
                *to = sample * weight;
            }
            let bins = microfft::real::rfft_2048(&mut buffer);
            values.extend(bands.iter().map(|(first, weights)| {
                weights.iter().zip(&bins[*first..]).map(|(weight, bin)| weight * bin.norm_sqr()).sum::<f32>()
            }));
        }
        let loudest = values.iter().fold(0f32, |a, b| if b.is_finite() { a.max(*b) } else { f32::NAN });
        if loudest.is_nan() || loudest <= f32::MIN_POSITIVE {
            return Err(failure("silence, or numbers that are not finite"));
        }
        let power: Vec<f32> = values.chunks_exact(BANDS).map(|window| window.iter().sum()).collect();
        let limit = SILENCE * power.iter().fold(0f32, |a, b| a.max(*b));
        let heard = |power: &f32| *power >= limit;
        let first = power.iter().position(heard).unwrap_or(0);
        let last = power.iter().rposition(heard).unwrap_or(power.len() - 1);
        let log = |power: &f32| (power / loudest).max(FLOOR).ln();
        let mut values: Vec<f32> = values[first * BANDS..(last + 1) * BANDS].iter().map(log).collect();
        center(&mut values);
        standardize(&mut values);
        Ok(Self { values })
    }

    /// Windows.
    pub(crate) fn len(&self) -> usize {
        self.values.len() / BANDS
    }

    /// A picture `[BANDS (columns: time), BANDS, 3]` of the part from `start` to `end`, shares of the length: the spectrum,
    /// and its first and second differences over time.
    pub(crate) fn picture(&self, start: f32, end: f32) -> Vec<f32> {
        let length = self.len() as f32;
        let place = |column: usize| (start + (end - start) * column as f32 / BANDS as f32) * length;
        let mut columns = Vec::with_capacity(BANDS * BANDS);
        for column in 0..BANDS {
            let from = (place(column) as usize).min(self.len() - 1);
            let to = (place(column + 1) as usize).clamp(from + 1, self.len());
            for band in 0..BANDS {
                let sum: f32 = (from..to).map(|window| self.values[window * BANDS + band]).sum();
                columns.push(sum / (to - from) as f32);
            }
        }
        let differences = |x: &[f32]| -> Vec<f32> {
            let last = x.len() / BANDS - 1;
            let at = |column: usize, band: usize| x[column.min(last) * BANDS + band];
            let one = |i: usize| at(i / BANDS + 1, i % BANDS) - at((i / BANDS).saturating_sub(1), i % BANDS);
            (0..x.len()).map(one).collect()
        };
        let first = differences(&columns);
        let second = differences(&first);
        columns.iter().zip(&first).zip(&second).flat_map(|((a, b), c)| [*a, *b, *c]).collect()
    }

    /// A picture for training: up to a tenth missing at either end, and noise.
    pub(crate) fn augmented(&self, draws: &mut Draws) -> Vec<f32> {
        let mut picture = self.picture(draws.within(0.0, 0.1), draws.within(0.9, 1.0));
        picture.iter_mut().for_each(|x| *x += 0.1 * draws.normal());
        picture
    }
}

/// Every band to mean 0: what a voice, a room and a microphone color all along goes.
fn center(values: &mut [f32]) {
    let windows = (values.len() / BANDS) as f32;
    for band in 0..BANDS {
        let mean = values[band..].iter().step_by(BANDS).sum::<f32>() / windows;
        values[band..].iter_mut().step_by(BANDS).for_each(|x| *x -= mean);
    }
}

/// To mean 0 and deviation 1; to 0 if all values are alike.
fn standardize(values: &mut [f32]) {
    let n = values.len() as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / variance.max(1e-6).sqrt();
    values.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) * scale) as f32);
}
