//! The loader of stamps and recordings, on generated files.

// A test that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::f32::consts::TAU;
use std::path::Path;

use image::{Rgba, RgbaImage};

use crate::speech::{BANDS, Sound, Spectrum};
use crate::stamps::{self, SIZE, Subject};

/// Two tones, one after the other, a fifth of a second each.
fn tones(rate: u32, hertz: [f32; 2]) -> Vec<f32> {
    let length = rate as usize / 5;
    let tone = |hertz: f32| (0..length).map(move |at| 0.5 * (TAU * hertz * at as f32 / rate as f32).sin());
    hertz.into_iter().flat_map(tone).collect()
}

fn write_wav(path: &Path, rate: u32, samples: &[f32]) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    samples.iter().for_each(|x| writer.write_sample((x * 32767.0) as i16).unwrap());
    writer.finalize().unwrap();
}

fn write_png(path: &Path, (width, height): (u32, u32), color: [u8; 4]) {
    RgbaImage::from_pixel(width, height, Rgba(color)).save(path).unwrap();
}

/// A stamp with descriptions in some languages; `voice` tells recordings apart.
fn stamp(folder: &Path, name: &str, languages: &[&str], voice: f32) {
    std::fs::create_dir_all(folder).unwrap();
    write_png(&folder.join(format!("{name}.png")), (8, 8), [10, 20, 30, 255]);
    for (at, language) in languages.iter().enumerate() {
        let sound = tones(8000, [voice, voice + 100.0 * (at + 1) as f32]);
        write_wav(&folder.join(format!("{name}_desc{language}.wav")), 8000, &sound);
    }
}

fn message(folder: &Path, share: f64, fewest: usize) -> String {
    stamps::load(folder, share, fewest).unwrap_err().to_string()
}

#[test]
fn wav_files_of_all_widths_are_mixed_to_one_channel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    for (bits, format) in [(8, hound::SampleFormat::Int), (16, hound::SampleFormat::Int)]
        .into_iter()
        .chain([(24, hound::SampleFormat::Int), (32, hound::SampleFormat::Float)])
    {
        let spec =
            hound::WavSpec { channels: 2, sample_rate: 8000, bits_per_sample: bits, sample_format: format };
        let mut writer = hound::WavWriter::create(&path, spec).unwrap();
        // Left ½ and −½, right ¼ and 0.
        for x in [0.5f32, 0.25, -0.5, 0.0] {
            match format {
                hound::SampleFormat::Float => writer.write_sample(x).unwrap(),
                hound::SampleFormat::Int => {
                    writer.write_sample((x * (1 << (bits - 1)) as f32) as i32).unwrap();
                }
            }
        }
        writer.finalize().unwrap();
        let sound = Sound::decode(&path, &std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(sound, Sound { rate: 8000, samples: vec![0.375, -0.25] }, "{bits} bits");
    }
}

/// The band that is loudest in a column of a picture.
fn loudest(picture: &[f32], column: usize) -> usize {
    let value = |band: usize| picture[(column * BANDS + band) * 3];
    (0..BANDS).max_by(|a, b| value(*a).total_cmp(&value(*b))).unwrap()
}

#[test]
fn tones_are_in_their_bands_at_any_rate() {
    let mel = |hertz: f32| 2595.0 * (1.0f32 + hertz / 700.0).log10();
    let width = (mel(8000.0) - mel(60.0)) / (BANDS + 1) as f32;
    // The nearest center.
    let band = |hertz: f32| ((mel(hertz) - mel(60.0)) / width - 1.0).round() as usize;
    for rate in [8000, 11_127, 22_050, 44_100, 48_000] {
        let sound = Sound { rate, samples: tones(rate, [440.0, 2500.0]) };
        let picture = Spectrum::of(&sound).unwrap().picture(0.0, 1.0);
        assert_eq!(picture.len(), BANDS * BANDS * 3);
        for column in [3, 8, 12] {
            assert_eq!(loudest(&picture, column), band(440.0), "{rate} Hz");
            assert_eq!(loudest(&picture, BANDS - 1 - column), band(2500.0), "{rate} Hz");
        }
    }
}

#[test]
fn spectra_do_not_depend_on_loudness_or_on_silence_around() {
    let samples = tones(16_000, [300.0, 900.0]);
    let plain = Spectrum::of(&Sound { rate: 16_000, samples: samples.clone() }).unwrap();
    let quiet = samples.iter().map(|x| 0.25 * x).collect();
    assert_eq!(Spectrum::of(&Sound { rate: 16_000, samples: quiet }).unwrap(), plain);
    let silence = vec![0.0; 16_000];
    let padded = [silence.clone(), samples, silence].concat();
    let padded = Spectrum::of(&Sound { rate: 16_000, samples: padded }).unwrap();
    // Windows that reach over an end are new: two of 25 ms at either.
    assert!((plain.len()..=plain.len() + 4).contains(&padded.len()), "{} {}", plain.len(), padded.len());
}

#[test]
fn sounds_without_speech_are_errors() {
    for (rate, samples, part) in [
        (8000, vec![0.5; 100], "100 samples, expected at least the 200 of one window"),
        (8000, vec![0.0; 4000], "silence"),
        (8000, vec![f32::NAN; 4000], "not finite"),
        (96_000, vec![0.5; 96_000], "96000 samples a second"),
        (0, vec![0.5; 4000], "0 samples a second"),
    ] {
        let error = Spectrum::of(&Sound { rate, samples }).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn stamps_have_their_pictures_and_recordings() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("usr/share/tuxpaint/stamps/animals");
    stamp(&inside, "crow", &["", "_fr", "_pt_BR", "_ru"], 300.0);
    stamp(&inside.join("birds"), "owl", &["_es", "_fr", "_ro"], 400.0);
    // Too few recordings; a mirrored picture; a cry; a description of nothing.
    stamp(&inside, "ant", &["_fr", "_es"], 500.0);
    write_png(&inside.join("crow_mirror.png"), (8, 8), [0, 0, 0, 255]);
    write_wav(&inside.join("crow.wav"), 8000, &tones(8000, [900.0, 300.0]));
    write_wav(&inside.join("bat_desc.wav"), 8000, &tones(8000, [900.0, 300.0]));
    let subjects = stamps::load(folder.path(), 1.0, 2).unwrap();
    let mut found: Vec<_> = subjects
        .iter()
        .map(|Subject { name, pictures, recordings, kept }| {
            (&name[..], pictures.len(), recordings.len(), kept.len())
        })
        .collect();
    found.sort();
    assert_eq!(found, [("animals/birds/owl", 1, 2, 1), ("animals/crow", 1, 3, 1)]);
    for subject in &subjects {
        let mut all: Vec<_> = subject.recordings.iter().chain(&subject.kept).collect();
        while let Some(one) = all.pop() {
            assert!(!all.contains(&one), "{}: a recording twice", subject.name);
        }
    }
    // The folder of the stamps itself, and again: the same.
    let again = stamps::load(inside.parent().unwrap(), 1.0, 2).unwrap();
    let kept = |subjects: &[Subject]| -> Vec<_> {
        subjects.iter().map(|subject| (subject.name.clone(), subject.kept.clone())).collect()
    };
    assert_eq!(kept(&subjects), kept(&again));
    assert_eq!(stamps::load(folder.path(), 0.5, 1).unwrap().len(), 1);
}

#[test]
fn stamps_that_share_a_recording_are_one_subject() {
    let folder = tempfile::tempdir().unwrap();
    stamp(folder.path(), "a", &["_ca", "_fr", "_ro"], 300.0);
    stamp(folder.path(), "b", &["_ca", "_fr", "_ro"], 450.0);
    stamp(folder.path(), "c", &["_ca", "_fr", "_ro"], 610.0);
    std::fs::copy(folder.path().join("a_desc_fr.wav"), folder.path().join("c_desc_ru.wav")).unwrap();
    let mut subjects = stamps::load(folder.path(), 1.0, 2).unwrap();
    subjects.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |subject: &Subject| (subject.pictures.len(), subject.recordings.len() + subject.kept.len());
    assert_eq!((of(&subjects[0]), of(&subjects[1]), subjects.len()), ((2, 6), (1, 3), 2));
}

#[test]
fn pictures_lie_over_white_in_the_middle() {
    let folder = tempfile::tempdir().unwrap();
    stamp(folder.path(), "a", &["_ca", "_fr", "_ro"], 300.0);
    // Twice as wide as high, half transparent black.
    write_png(&folder.path().join("a.png"), (128, 64), [0, 0, 0, 128]);
    let picture = &stamps::load(folder.path(), 1.0, 1).unwrap()[0].pictures[0];
    for (row, expected) in [(0, 255), (7, 255), (8, 127), (23, 127), (24, 255), (31, 255)] {
        for x in &picture[row * SIZE * 3..(row + 1) * SIZE * 3] {
            assert_eq!(*x, expected, "row {row}");
        }
    }
}

#[test]
fn what_cannot_be_used_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let none = message(&path.join("none"), 1.0, 1);
    assert!(none.contains("none: no such folder") && none.contains("--speech"), "{none}");
    assert!(message(path, 1.0, 1).contains("no stamp (`NAME.png`)"));
    write_png(&path.join("a.png"), (8, 8), [0; 4]);
    assert!(message(path, 1.0, 1).contains("no recorded description"));
    write_wav(&path.join("b_desc_fr.wav"), 8000, &tones(8000, [300.0, 400.0]));
    assert!(message(path, 1.0, 1).contains("beside it"));

    stamp(path, "a", &["_ca", "_fr", "_ro"], 300.0);
    let few = message(path, 1.0, 24);
    assert!(few.contains("1 of 1 subjects") && few.contains("expected at least 24"), "{few}");
    assert!(message(path, 0.1, 1).contains("0 of 1 subjects"));
    for share in [f64::NAN, -1.0, 0.0, 1.5] {
        assert!(message(path, share, 1).contains("--share"), "{share}");
    }
    assert_eq!(stamps::load(path, 1.0, 1).unwrap().len(), 1);

    for (name, bytes) in
        [("a_desc_es.ogg", &b"OggS, and no more"[..]), ("a_desc_es.ogg", b""), ("a_desc_es.wav", b"RIFF")]
    {
        std::fs::write(path.join(name), bytes).unwrap();
        let error = message(path, 1.0, 1);
        assert!(error.contains(name) && error.contains("unreadable sound"), "{error}");
        std::fs::remove_file(path.join(name)).unwrap();
    }
    write_wav(&path.join("a_desc_es.wav"), 8000, &[0.0; 4000]);
    let silent = message(path, 1.0, 1);
    assert!(silent.contains("a_desc_es.wav: unreadable sound: silence"), "{silent}");
    std::fs::remove_file(path.join("a_desc_es.wav")).unwrap();
    std::fs::write(path.join("a.png"), b"no picture").unwrap();
    let picture = message(path, 1.0, 1);
    assert!(picture.contains("a.png: unreadable picture"), "{picture}");
}
