//! Augmentation of video clips: crop, resampling, flip, color jitter, grayscale, blur and solarization, with one set of
//! parameters for all frames of a clip.

mod color;
mod parameters;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::simd::dispatch;
use crate::{Elements, Result, Rows};

use color::{Row, clipped};
pub use parameters::{
    ClipParameters, ColorJitter, ColorStep, CropBox, Frames, MAX_BLUR_RADIUS, MAX_SIDE, Options, bad_pixels,
    blur_weights, check,
};

const OP: &str = "augment_clips";
/// Partial sums of a mean: a fixed number, so that the order of a sum does not depend on the machine.
const LANES: usize = 16;

/// Augmented clips `[B, T, 3, H, W]` in the storage of the clips that came in.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

/// Augments clips `[B, T·3·H·W]`, whose rows are clips `[T, 3, H, W]` of `frames` with values in [0, 1], to frames of the
/// options' size: every frame of clip i by `parameters[i]`. Computed in `f32` (means of channels in `f64`) and rounded once.
///
/// A clip gives the same bits alone and in a batch, for any number of threads. Needs a clip that comes out in `f32` for every
/// thread.
///
/// # Errors
/// [`crate::Error::Empty`] and [`crate::Error::Shape`] for shapes that disagree, [`crate::Error::Range`] for parameters out of
/// range and for the first clip with a pixel that is NaN or outside [0, 1].
pub fn augment(
    clips: &Rows<'_>,
    frames: Frames,
    parameters: &[ClipParameters],
    options: &Options,
) -> Result<Pixels> {
    check((clips.rows(), clips.cols()), frames, parameters, options)?;
    if let Some(clip) = (0..clips.rows()).into_par_iter().find_first(|clip| !is_valid(clips, *clip, frames)) {
        return Err(bad_pixels(clip));
    }
    Ok(match clips.elements() {
        Elements::F32(_) => Pixels::F32(run(clips, frames, parameters, options)),
        Elements::F16(_) => Pixels::F16(run(clips, frames, parameters, options)),
        Elements::Bf16(_) => Pixels::Bf16(run(clips, frames, parameters, options)),
    })
}

/// A storage type.
trait Storage: Copy + Default + Send + Sync {
    /// Rounds values, to the nearest with ties to even.
    fn store(to: &mut [Self], values: &[f32]);
}

impl Storage for f32 {
    fn store(to: &mut [Self], values: &[f32]) {
        to.copy_from_slice(values);
    }
}

impl Storage for f16 {
    fn store(to: &mut [Self], values: &[f32]) {
        to.convert_from_f32_slice(values);
    }
}

impl Storage for bf16 {
    fn store(to: &mut [Self], values: &[f32]) {
        // Pixels are numbers in [0, 1], so that adding half a unit never meets NaN: a loop that becomes vectors.
        for (to, x) in to.iter_mut().zip(values) {
            let bits = x.to_bits();
            *to = Self::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16);
        }
    }
}

/// A frame `[3, H, W]`: in place when it is stored in f32, else in the buffer.
fn frame<'a>(
    clips: &Rows<'a>,
    (clip, t): (usize, usize),
    frames: Frames,
    buffer: &'a mut Vec<f32>,
) -> &'a [f32] {
    let start = clip * clips.stride() + t * frames.frame();
    let range = start..start + frames.frame();
    buffer.resize(frames.frame(), 0.0);
    match clips.elements() {
        Elements::F32(x) => return &x[range],
        Elements::F16(x) => x[range].convert_to_f32_slice(buffer),
        Elements::Bf16(x) => {
            for (to, x) in buffer.iter_mut().zip(&x[range]) {
                *to = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        }
    }
    buffer
}

fn is_valid(clips: &Rows<'_>, clip: usize, frames: Frames) -> bool {
    (0..frames.count).into_par_iter().all(|t| {
        let mut buffer = Vec::new();
        let values = frame(clips, (clip, t), frames, &mut buffer);
        dispatch(
            #[inline(always)]
            || values.iter().fold(true, |valid, x| valid & (*x >= 0.0) & (*x <= 1.0)),
        )
    })
}

fn run<S: Storage>(
    clips: &Rows<'_>,
    frames: Frames,
    parameters: &[ClipParameters],
    options: &Options,
) -> Vec<S> {
    let size = options.frames(frames.count);
    let mut out = vec![S::default(); clips.rows() * size.elements()];
    out.par_chunks_mut(size.elements()).zip(parameters).enumerate().for_each(|(clip, (out, parameters))| {
        let radius = options.blur_radius;
        One { clips, clip, frames, size, parameters, radius }.run(out);
    });
    out
}

/// One clip.
struct One<'a> {
    clips: &'a Rows<'a>,
    clip: usize,
    frames: Frames,
    size: Frames,
    parameters: &'a ClipParameters,
    radius: usize,
}

impl One<'_> {
    fn run<S: Storage>(&self, out: &mut [S]) {
        let frame_len = self.size.frame();
        let mut values = vec![0.0f32; self.size.elements()];
        // What comes before the contrast, which needs the mean of all that is before it, and what comes from there on.
        let jitter = self.parameters.jitter;
        let order = jitter.as_ref().map_or(&[][..], |jitter| &jitter.order);
        let contrast = order.iter().position(|step| *step == ColorStep::Contrast).unwrap_or(order.len());
        let (before, after) = order.split_at(contrast);
        let factor = |step: ColorStep| jitter.map_or(1.0, |jitter| jitter.factor(step));
        let rows = Sources::new(self.parameters.crop.height, self.size.height, false);
        let columns = Sources::new(self.parameters.crop.width, self.size.width, self.parameters.flip);
        let sums: Vec<[f64; 3]> = values
            .par_chunks_mut(frame_len)
            .enumerate()
            .map_init(Vec::new, |buffer, (t, values)| {
                let from = frame(self.clips, (self.clip, t), self.frames, buffer);
                dispatch(
                    #[inline(always)]
                    || {
                        self.resample(from, (&rows, &columns), values);
                        self.each_row(
                            values,
                            #[inline(always)]
                            |row: &mut Row<'_>| {
                                for step in before {
                                    color::step(row, *step, factor(*step), [0.0; 3]);
                                }
                            },
                        );
                        match after {
                            [] => [0.0; 3],
                            _ => sums(values, self.size.plane()),
                        }
                    },
                )
            })
            .collect();
        let mut pivots = [0.0; 3];
        for (c, pivot) in pivots.iter_mut().enumerate() {
            let pixels = (self.size.count * self.size.plane()) as f64;
            *pivot = (sums.iter().map(|of_frame| of_frame[c]).sum::<f64>() / pixels) as f32;
        }
        let weights = self.parameters.blur.map(|sigma| blur_weights(sigma, self.radius));
        values.par_chunks_mut(frame_len).zip(out.par_chunks_mut(frame_len)).for_each_init(
            Vec::new,
            |buffer, (values, out)| {
                dispatch(
                    #[inline(always)]
                    || {
                        self.each_row(
                            values,
                            #[inline(always)]
                            |row: &mut Row<'_>| {
                                for step in after {
                                    color::step(row, *step, factor(*step), pivots);
                                }
                                if self.parameters.grayscale {
                                    color::grayscale(row);
                                }
                            },
                        );
                        if let Some(weights) = &weights {
                            blur(values, self.size, weights, buffer);
                        }
                        if let Some(threshold) = self.parameters.solarize {
                            values.iter_mut().for_each(|x| *x = if *x >= threshold { 1.0 - *x } else { *x });
                        }
                    },
                );
                S::store(out, values);
            },
        );
    }

    /// The crop of a frame by bilinear resampling, down first.
    #[inline(always)]
    fn resample(&self, from: &[f32], (rows, columns): (&Sources, &Sources), to: &mut [f32]) {
        let (width, plane) = (self.frames.width, self.frames.plane());
        let crop = self.parameters.crop;
        let mut blended = vec![0.0f32; crop.width];
        for (c, to) in to.chunks_exact_mut(self.size.plane()).enumerate() {
            let row = |y: u32| {
                let start = c * plane + (crop.top + y as usize) * width + crop.left;
                &from[start..start + crop.width]
            };
            for (source, to) in rows.0.iter().zip(to.chunks_exact_mut(self.size.width)) {
                let (above, below) = (row(source.first), row(source.second));
                for ((blended, a), b) in blended.iter_mut().zip(above).zip(below) {
                    *blended = source.share.mul_add(b - a, *a);
                }
                for (source, to) in columns.0.iter().zip(to) {
                    let (a, b) = (blended[source.first as usize], blended[source.second as usize]);
                    *to = clipped(source.share.mul_add(b - a, a));
                }
            }
        }
    }

    #[inline(always)]
    fn each_row(&self, values: &mut [f32], change: impl Fn(&mut Row<'_>)) {
        let (plane, width) = (self.size.plane(), self.size.width);
        let (r, rest) = values.split_at_mut(plane);
        let (g, b) = rest.split_at_mut(plane);
        let rows = r.chunks_exact_mut(width).zip(g.chunks_exact_mut(width)).zip(b.chunks_exact_mut(width));
        for ((r, g), b) in rows {
            change(&mut [r, g, b]);
        }
    }
}

/// Where a pixel comes from: two neighbors and the share of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Source {
    first: u32,
    second: u32,
    share: f32,
}

/// The sources of all pixels along one side.
struct Sources(Vec<Source>);

impl Sources {
    /// `size` pixels over the length of `from`, in their order or the other way round. Places are quotients of integers, so
    /// that only the division of a share rounds.
    fn new(from: usize, size: usize, reversed: bool) -> Self {
        let source = |at: usize| {
            let at = if reversed { size - 1 - at } else { at };
            let place = ((2 * at + 1) * from).saturating_sub(size);
            let first = (place / (2 * size)).min(from - 1);
            Source {
                first: first as u32,
                second: (first + 1).min(from - 1) as u32,
                share: (place % (2 * size)) as f32 / (2 * size) as f32,
            }
        };
        Self((0..size).map(source).collect())
    }
}

/// The sums of the three planes of a frame.
#[inline(always)]
fn sums(values: &[f32], plane: usize) -> [f64; 3] {
    let mut out = [0.0; 3];
    for (plane, out) in values.chunks_exact(plane).zip(&mut out) {
        let mut lanes = [0.0f64; LANES];
        let chunks = plane.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        lanes.iter_mut().zip(rest).for_each(|(sum, x)| *sum += f64::from(*x));
        *out = lanes.iter().sum();
    }
    out
}

#[inline(always)]
fn scaled(to: &mut [f32], from: &[f32], factor: f32) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = factor * x;
    }
}

/// A separable blur of a frame `[3, H, W]` in place, black beyond its edges.
#[inline(always)]
fn blur(values: &mut [f32], frames: Frames, weights: &[f32], buffer: &mut Vec<f32>) {
    let (radius, width, height) = (weights.len() - 1, frames.width, frames.height);
    let padded = width + 2 * radius;
    // A row between zeros, then a plane of rows that are blurred along themselves.
    buffer.clear();
    buffer.resize(padded + frames.plane(), 0.0);
    let (line, along) = buffer.split_at_mut(padded);
    for plane in values.chunks_exact_mut(frames.plane()) {
        for (row, to) in plane.chunks_exact(width).zip(along.chunks_exact_mut(width)) {
            line[radius..radius + width].copy_from_slice(row);
            scaled(to, row, weights[0]);
            for (k, weight) in weights.iter().enumerate().skip(1) {
                let (left, right) = (&line[radius - k..][..width], &line[radius + k..][..width]);
                for ((to, a), b) in to.iter_mut().zip(left).zip(right) {
                    *to = weight.mul_add(a + b, *to);
                }
            }
        }
        for (y, to) in plane.chunks_exact_mut(width).enumerate() {
            scaled(to, &along[y * width..][..width], weights[0]);
            for (k, weight) in weights.iter().enumerate().skip(1) {
                let neighbors = [y.checked_sub(k), Some(y + k).filter(|y| *y < height)];
                for from in neighbors.into_iter().flatten() {
                    for (to, x) in to.iter_mut().zip(&along[from * width..][..width]) {
                        *to = weight.mul_add(*x, *to);
                    }
                }
            }
            for x in to {
                *x = clipped(*x);
            }
        }
    }
}
