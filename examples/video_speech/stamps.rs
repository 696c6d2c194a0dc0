//! Stamps and the words spoken for them: pictures with sound files beside them.
//!
//! The layout is that of `tuxpaint-stamps-default`: beside `crow.png` lie its description as it was recorded in several
//! languages, `crow_desc.ogg`, `crow_desc_fr.ogg`, also as `.wav`. Sounds without `_desc` are no speech (an animal's cry),
//! and drawings that are SVG alone are left out. Stamps that share a recording, to the bit, are one *subject*: no speech
//! tells them apart. Of the recordings of every subject a quarter, at least one, is kept for the test, the same for all
//! seeds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use image::{RgbImage, imageops};
use rayon::prelude::*;

use crate::random::Draws;
use crate::speech::{Sound, Spectrum};
use crate::{Failure, failure};

/// Rows and columns of a picture.
pub(crate) const SIZE: usize = 32;
/// Where the package has its stamps.
const PLACE: &str = "usr/share/tuxpaint/stamps";
/// Of a subject: one for the test, and two that differ.
const FEWEST: usize = 3;

/// What one or several stamps show, and how it is called.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The name of its first stamp: the path without extension.
    pub(crate) name: String,
    /// `[SIZE, SIZE, 3]`, over white.
    pub(crate) pictures: Vec<Vec<u8>>,
    pub(crate) recordings: Vec<Spectrum>,
    /// Recordings that are kept for the test.
    pub(crate) kept: Vec<Spectrum>,
}

/// The files of a stamp.
struct Files {
    picture: PathBuf,
    sounds: Vec<PathBuf>,
}

/// The stamp of a recorded description: what is before `_desc` and a language.
fn described(sound: &Path) -> Option<&str> {
    let extension = sound.extension()?;
    let (stamp, language) = sound.file_stem()?.to_str()?.rsplit_once("_desc")?;
    let is_speech = language.is_empty() || language.starts_with('_');
    ((extension == "ogg" || extension == "wav") && is_speech).then_some(stamp)
}

/// All stamps below a folder that have descriptions, in the order of their paths.
fn find(folder: &Path) -> Result<Vec<Files>, Failure> {
    let (mut folders, mut pictures) = (vec![folder.to_path_buf()], BTreeMap::new());
    let mut sounds: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        let unreadable = |error| failure(format!("{}: {error}", folder.display()));
        for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "png") {
                pictures.insert(path.with_extension(""), path);
            } else if let Some(stamp) = described(&path) {
                sounds.entry(folder.join(stamp)).or_default().push(path);
            }
        }
    }
    let (no_picture, no_sound) = (pictures.is_empty(), sounds.is_empty());
    let stamps: Vec<_> = pictures
        .into_iter()
        .filter_map(|(stamp, picture)| {
            let mut sounds = sounds.remove(&stamp)?;
            sounds.sort();
            Some(Files { picture, sounds })
        })
        .collect();
    let lack = match (no_picture, no_sound) {
        (true, _) => "no stamp (`NAME.png`)",
        (_, true) => "no recorded description (`NAME_desc.ogg`, `NAME_desc_LANGUAGE.ogg` or `.wav`)",
        _ if stamps.is_empty() => "no stamp with a recorded description of its name beside it",
        _ => return Ok(stamps),
    };
    let folder = folder.display();
    Err(failure(format!("--speech {folder}: {lack}, expected an unpacked package tuxpaint-stamps-default")))
}

/// A picture over white, as large as fits, in the middle.
fn picture(path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |error| failure(format!("{}: unreadable picture: {error}", path.display()));
    let drawing = image::open(path).map_err(unreadable)?.to_rgba8();
    let over = |channel: u8, alpha: u8| {
        ((u32::from(channel) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
    };
    let white = RgbImage::from_fn(drawing.width(), drawing.height(), |x, y| {
        let [r, g, b, a] = drawing.get_pixel(x, y).0;
        image::Rgb([over(r, a), over(g, a), over(b, a)])
    });
    let scale = SIZE as f32 / white.width().max(white.height()) as f32;
    let scaled = |side: u32| ((side as f32 * scale).round() as u32).clamp(1, SIZE as u32);
    let small = imageops::resize(
        &white,
        scaled(white.width()),
        scaled(white.height()),
        imageops::FilterType::Triangle,
    );
    let mut frame = RgbImage::from_pixel(SIZE as u32, SIZE as u32, image::Rgb([255; 3]));
    let middle = |side: u32| i64::from((SIZE as u32 - side) / 2);
    imageops::replace(&mut frame, &small, middle(small.width()), middle(small.height()));
    Ok(frame.into_raw())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| failure(format!("{}: {error}", path.display())))
}

fn spectrum(path: &Path) -> Result<Spectrum, Failure> {
    let sound = Sound::decode(path, &read(path)?)?;
    Spectrum::of(&sound).map_err(|reason| failure(format!("{}: unreadable sound: {reason}", path.display())))
}

/// The first of the stamps that are known to be one subject with this one.
fn root(of: &mut [usize], mut at: usize) -> usize {
    while of[at] != at {
        of[at] = of[of[at]];
        at = of[at];
    }
    at
}

/// Loads a share of the subjects with at least three different recordings, in an order that depends on their names alone.
///
/// # Errors
/// For a folder that is none or has no stamp, no recorded description or none that belong together; for files that cannot
/// be read, with their path; for a share outside (0, 1]; and for fewer subjects than `fewest`.
pub(crate) fn load(folder: &Path, share: f64, fewest: usize) -> Result<Vec<Subject>, Failure> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(failure(format!("--share: got {share}, expected more than 0, at most 1")));
    }
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(failure(format!("--speech {folder}: no such folder; expected an unpacked package")));
    }
    let inside = folder.join(PLACE);
    let top = if inside.is_dir() { &inside } else { folder };
    let stamps = find(top)?;
    // What sounds alike to the bit has one number.
    let numbers = stamps
        .par_iter()
        .map(|stamp| {
            let number = |path: &PathBuf| {
                let mut hasher = DefaultHasher::new();
                read(path)?.hash(&mut hasher);
                Ok(hasher.finish())
            };
            stamp.sounds.iter().map(number).collect::<Result<Vec<_>, Failure>>()
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut subject_of: Vec<usize> = (0..stamps.len()).collect();
    let mut first = HashMap::new();
    for (at, numbers) in numbers.iter().enumerate() {
        for number in numbers {
            let other = *first.entry(*number).or_insert(at);
            let (a, b) = (root(&mut subject_of, at), root(&mut subject_of, other));
            subject_of[a.max(b)] = a.min(b);
        }
    }
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..stamps.len() {
        members.entry(root(&mut subject_of, at)).or_default().push(at);
    }
    let name = |at: usize| {
        let path = stamps[at].picture.with_extension("");
        path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned()
    };
    let mut plans: Vec<(u64, String, Vec<&PathBuf>, Vec<&PathBuf>)> = Vec::new();
    for (at, members) in members {
        let mut heard = BTreeSet::new();
        let files = members.iter().flat_map(|at| stamps[*at].sounds.iter().zip(&numbers[*at]));
        let sounds: Vec<_> =
            files.filter(|(_, number)| heard.insert(**number)).map(|(path, _)| path).collect();
        if sounds.len() >= FEWEST {
            let name = name(at);
            let key: Vec<u64> = name.bytes().map(u64::from).collect();
            let pictures = members.iter().map(|at| &stamps[*at].picture).collect();
            plans.push((Draws::new(&key).bits(), name, pictures, sounds));
        }
    }
    plans.sort();
    let found = plans.len();
    plans.truncate((share * found as f64).round() as usize);
    if plans.len() < fewest {
        return Err(failure(format!(
            "--speech {}: {} of {found} subjects with at least {FEWEST} different recordings used (--share {share}), expected \
             at least {fewest}",
            folder.display(),
            plans.len()
        )));
    }
    let subject = |(key, name, pictures, sounds): (u64, String, Vec<&PathBuf>, Vec<&PathBuf>)| {
        let mut recordings =
            sounds.into_iter().map(|path| spectrum(path)).collect::<Result<Vec<_>, Failure>>()?;
        let (mut draws, count) = (Draws::new(&[key]), (recordings.len() / 4).max(1));
        let kept = (0..count).map(|_| recordings.remove(draws.below(recordings.len()))).collect();
        let pictures = pictures.into_iter().map(|path| picture(path)).collect::<Result<_, _>>()?;
        Ok(Subject { name, pictures, recordings, kept })
    };
    plans.into_par_iter().map(subject).collect()
}
