//! Folders laid out like Market-1501, and the own layouts of VeRi-776 and MSMT17.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use image::{ImageError, ImageReader, imageops::FilterType};
use rayon::prelude::*;

use crate::{Dataset, Error, Identity, Item, Result, Role, Split, order_key};

const MARKET: [&str; 3] = ["bounding_box_train", "query", "bounding_box_test"];
const VERI: [&str; 3] = ["image_train", "image_query", "image_test"];
const MSMT_LISTS: [&[&str]; 3] =
    [&["list_train.txt", "list_val.txt"], &["list_query.txt"], &["list_gallery.txt"]];
const MSMT_FOLDERS: [[&str; 2]; 3] =
    [["train", "mask_train_v2"], ["test", "mask_test_v2"], ["test", "mask_test_v2"]];
const EXPECTED: &str = "the layout of Market-1501: `bounding_box_train`, `query`, `bounding_box_test`";
const MARKET_NAME: &str = "`ID_cCAM` and anything after it, as in `0002_c1s1_000451_03.jpg`";
const MSMT_NAME: &str = "`ID_NUMBER_CAM_` and anything after it, as in `0000_000_01_0303morning_0015_0.jpg`";
const LARGEST_SIDE: usize = 4096;

/// How to read a folder of images.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct MarketOptions<'a> {
    /// Height to which every image is resized, 1 to 4096.
    pub height: usize,
    /// Width to which every image is resized, 1 to 4096.
    pub width: usize,
    /// Whether the gallery keeps its junk images (identity −1), marked [`Role::Junk`]. Off by default, for they
    /// count neither for nor against.
    pub keep_junk: bool,
    /// Called with the number of images read and of all images after each one, from any thread.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
}

impl MarketOptions<'_> {
    /// Images of `height` × `width`, no junk, no report of progress.
    pub fn new(height: usize, width: usize) -> Self {
        Self { height, width, keep_junk: false, progress: &|_, _| () }
    }
}

/// Reads a data set laid out like Market-1501: [`market_layout_with`] with the default options.
///
/// # Errors
/// As [`market_layout_with`].
pub fn market_layout(dir: &Path, height: usize, width: usize) -> Result<Dataset> {
    market_layout_with(dir, &MarketOptions::new(height, width))
}

/// Reads a data set laid out like Market-1501.
///
/// The folders are `bounding_box_train`, `query` and `bounding_box_test`; VeRi-776's own names `image_train`,
/// `image_query` and `image_test`, and MSMT17's lists `list_train.txt`, `list_val.txt`, `list_query.txt` and
/// `list_gallery.txt` over `train` and `test` (or `mask_train_v2` and `mask_test_v2`) work as they are. File names
/// begin `ID_cCAM` (in MSMT17's own layout `ID_NUMBER_CAM_`); every `.jpg`, `.jpeg` and `.png` is read, other files
/// are passed over. Images become 8-bit RGB of the given size by a triangle filter (antialiased when they shrink);
/// transparency is dropped. Files are read in the order of their names, on all threads of rayon.
///
/// Identity −1 is junk: left out everywhere, but kept in the gallery on demand. Identity 0 in the gallery is a
/// distractor ([`Role::Distractor`]) unless a query has it too, and an identity like any other in training.
/// Training and test identities are numbered apart, even if their names agree.
///
/// # Errors
/// [`Error::Argument`] for a size of 0 or above 4096, or images that do not fit the memory;
/// [`Error::MissingFolder`], [`Error::EmptyFolder`], [`Error::Name`], [`Error::Image`] and [`Error::Io`] name the
/// folder or file.
pub fn market_layout_with(dir: &Path, options: &MarketOptions<'_>) -> Result<Dataset> {
    for (argument, side) in [("height", options.height), ("width", options.width)] {
        if !(1..=LARGEST_SIDE).contains(&side) {
            return Err(Error::Argument {
                function: "market_layout",
                argument,
                got: side.to_string(),
                expected: format!("1 to {LARGEST_SIDE} pixels"),
            });
        }
    }
    let [train, query, gallery] = sources(dir)?;
    let train = train.parse(false)?;
    let query = query.parse(false)?;
    let gallery = gallery.parse(options.keep_junk)?;

    let mut numbering = Numbering::default();
    numbering.identities([&train]);
    let train_identities = numbering.names.len();
    numbering.identities([&query, &gallery]);
    let camera_numbers = [&train, &query, &gallery].into_iter().flatten().map(|photo| photo.camera);
    let mut cameras: Vec<u32> = camera_numbers.collect::<HashSet<_>>().into_iter().collect();
    cameras.sort_unstable();
    let queried: HashSet<i64> = query.iter().map(|photo| photo.identity).collect();

    let total = train.len() + query.len() + gallery.len();
    let done = AtomicUsize::new(0);
    let step = || (options.progress)(done.fetch_add(1, Ordering::Relaxed) + 1, total);
    let load = |photos: Vec<Photo>, test: bool| {
        let items = photos.iter().map(|photo| {
            let camera = cameras.partition_point(|&camera| camera < photo.camera) as u32;
            let role = match photo.identity {
                ..0 => Role::Junk,
                0 if test && !queried.contains(&0) => Role::Distractor,
                _ => Role::Known,
            };
            Item { identity: numbering.of[&(test, photo.identity)], camera, style: camera, role }
        });
        let items = items.collect();
        let pixels = read_all(&photos, options, &step)?;
        Ok(Split::new(items, pixels, options.height, options.width))
    };
    let (train, query, gallery) = (load(train, false)?, load(query, true)?, load(gallery, true)?);
    let cameras: Vec<String> = cameras.iter().map(u32::to_string).collect();
    let set = Dataset {
        name: dir.file_name().map_or_else(|| "market".into(), |name| name.to_string_lossy().into_owned()),
        height: options.height,
        width: options.width,
        train,
        query,
        gallery,
        identities: numbering.names.into_iter().map(|name| Identity { label: name.clone(), name }).collect(),
        train_identities,
        styles: cameras.clone(),
        cameras,
        digest: String::new(),
    };
    Ok(set.with_digest())
}

/// One image that is to be read.
struct Photo {
    path: PathBuf,
    identity: i64,
    name: String,
    camera: u32,
}

/// Where the images of one split are.
struct Source {
    /// The folder or the list, for messages.
    origin: PathBuf,
    files: Vec<PathBuf>,
    msmt: bool,
}

impl Source {
    /// Reads identities and cameras out of the file names, and drops junk.
    fn parse(self, keep_junk: bool) -> Result<Vec<Photo>> {
        let mut photos = Vec::with_capacity(self.files.len());
        for path in self.files {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let labels = if self.msmt { msmt_name(&stem) } else { market_name(&stem) };
            let Some((name, identity, camera)) = labels else {
                let expected = if self.msmt { MSMT_NAME } else { MARKET_NAME };
                return Err(Error::Name { path, expected });
            };
            if identity >= 0 || keep_junk {
                photos.push(Photo { name, identity, camera, path });
            }
        }
        if photos.is_empty() {
            let expected =
                format!("jpg or png images with names {}", if self.msmt { MSMT_NAME } else { MARKET_NAME });
            return Err(Error::EmptyFolder { path: self.origin, expected });
        }
        Ok(photos)
    }
}

/// Identity numbers: training before test, each in the order of [`order_key`].
#[derive(Default)]
struct Numbering {
    names: Vec<String>,
    of: HashMap<(bool, i64), u32>,
}

impl Numbering {
    /// Numbers the identities of these images next; the first call is for training.
    fn identities<const N: usize>(&mut self, photos: [&Vec<Photo>; N]) {
        let test = !self.names.is_empty();
        let mut seen = HashSet::new();
        let mut new: Vec<(&str, i64)> = photos
            .into_iter()
            .flatten()
            .filter(|photo| seen.insert(photo.identity))
            .map(|photo| (photo.name.as_str(), photo.identity))
            .collect();
        new.sort_by_cached_key(|(name, _)| order_key(name));
        for (name, identity) in new {
            self.of.insert((test, identity), self.names.len() as u32);
            self.names.push(name.to_owned());
        }
    }
}

/// `0002_c1s1_000451_03` → ("0002", 2, 1).
fn market_name(stem: &str) -> Option<(String, i64, u32)> {
    let (name, rest) = stem.split_once("_c")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((name.to_owned(), identity_number(name)?, digits.parse().ok()?))
}

/// `0000_000_01_0303morning_0015_0` → ("0000", 0, 1).
fn msmt_name(stem: &str) -> Option<(String, i64, u32)> {
    let mut parts = stem.split('_');
    let (name, _, camera) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    Some((name.to_owned(), identity_number(name)?, camera.parse().ok()?))
}

/// Digits, or −1.
fn identity_number(name: &str) -> Option<i64> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
    if plain || name == "-1" { name.parse().ok() } else { None }
}

/// The images of the three splits, in whichever layout the folder has.
fn sources(dir: &Path) -> Result<[Source; 3]> {
    if !dir.is_dir() {
        return Err(Error::MissingFolder { path: dir.to_path_buf(), expected: EXPECTED.into() });
    }
    if MSMT_LISTS[0].iter().any(|list| dir.join(list).is_file()) {
        return Ok([msmt_list(dir, 0)?, msmt_list(dir, 1)?, msmt_list(dir, 2)?]);
    }
    let veri = VERI.iter().any(|folder| dir.join(folder).is_dir());
    let names = if veri { VERI } else { MARKET };
    Ok([folder(&dir.join(names[0]))?, folder(&dir.join(names[1]))?, folder(&dir.join(names[2]))?])
}

fn folder(path: &Path) -> Result<Source> {
    if !path.is_dir() {
        return Err(Error::MissingFolder { path: path.to_path_buf(), expected: EXPECTED.into() });
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        let entry = entry.map_err(|e| Error::io(path, e))?;
        // `._name.jpg` is what macOS leaves beside a file in an archive.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && is_image(&entry.path()) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(Source { origin: path.to_path_buf(), files, msmt: false })
}

/// One split of MSMT17: lists of `0000/0000_000_01_0303morning_0015_0.jpg 0`, relative to a folder.
fn msmt_list(dir: &Path, split: usize) -> Result<Source> {
    let folders = MSMT_FOLDERS[split].map(|folder| dir.join(folder));
    let Some(folder) = folders.iter().find(|folder| folder.is_dir()) else {
        let [path, other] = folders;
        let expected = format!("MSMT17's images here or in `{}`", other.display());
        return Err(Error::MissingFolder { path, expected });
    };
    let mut files = Vec::new();
    // Only `list_val.txt` may be missing: it is the first list of no split.
    for (at, list) in MSMT_LISTS[split].iter().enumerate() {
        let path = dir.join(list);
        if at > 0 && !path.is_file() {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        files.extend(
            text.lines().filter_map(|line| line.split_whitespace().next()).map(|name| folder.join(name)),
        );
    }
    files.sort_unstable();
    Ok(Source { origin: dir.join(MSMT_LISTS[split][0]), files, msmt: true })
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

fn read_all(photos: &[Photo], options: &MarketOptions<'_>, step: &(dyn Fn() + Sync)) -> Result<Vec<u8>> {
    let image_bytes = options.height * options.width * 3;
    let mut pixels = Vec::new();
    let volume = image_bytes.saturating_mul(photos.len());
    pixels.try_reserve_exact(volume).map_err(|e| Error::Argument {
        function: "market_layout",
        argument: "height and width",
        got: format!("{} x {} ({} images, {volume} bytes: {e})", options.height, options.width, photos.len()),
        expected: "a size at which all images fit the memory".into(),
    })?;
    pixels.resize(volume, 0);
    pixels.par_chunks_exact_mut(image_bytes).zip(photos).try_for_each(|(out, photo)| {
        read(&photo.path, options, out)?;
        step();
        Ok(())
    })?;
    Ok(pixels)
}

fn read(path: &Path, options: &MarketOptions<'_>, out: &mut [u8]) -> Result<()> {
    let failed = |error| match error {
        ImageError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::io(path, source)
        }
        source => Error::Image { path: path.to_path_buf(), source },
    };
    let reader =
        ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| Error::io(path, e))?;
    let image = reader.decode().map_err(failed)?.into_rgb8();
    let (width, height) = (options.width as u32, options.height as u32);
    if image.dimensions() == (width, height) {
        out.copy_from_slice(&image);
    } else {
        out.copy_from_slice(&image::imageops::resize(&image, width, height, FilterType::Triangle));
    }
    Ok(())
}
