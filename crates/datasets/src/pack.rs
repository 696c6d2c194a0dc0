//! The file format of a packed image set: labels as JSON, pixels losslessly compressed, one SHA-256 over all.
//!
//! | bytes        | content                                                                    |
//! |--------------|----------------------------------------------------------------------------|
//! | 0 .. 8       | [`MAGIC`]                                                                  |
//! | 8 .. 12      | [`VERSION`], u32, little endian                                            |
//! | 12 .. 16     | length H of the header, u32, little endian                                 |
//! | 16 .. 24     | length P of the pixel stream, u64, little endian                           |
//! | 24 .. 56     | SHA-256 of bytes 0 .. 24 followed by bytes 56 .. end                       |
//! | 56 .. 56+H   | [`Header`] as JSON, UTF-8                                                  |
//! | .. 56+H+P    | a zlib stream of the filtered pixels, image after image, in header order   |
//!
//! **Filter.** An image is stored as three planes of height × width bytes: green, red − green, blue − green
//! (wrapping), which leaves nothing of the last two where the drawing is black and white. Every plane holds the
//! differences from the Paeth predictor of PNG (left, above, above left; 0 outside the image).

use std::path::Path;

use miniz_oxide::{
    deflate::compress_to_vec_zlib,
    inflate::{TINFLStatus, decompress_to_vec_zlib_with_limit},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The first eight bytes of a pack. The first is not ASCII and the last is a line feed, so that a transfer as
/// text does not go unnoticed.
pub const MAGIC: [u8; 8] = *b"\x89CNSPAK\n";

/// The version of the format that this crate writes and reads.
pub const VERSION: u32 = 1;

const PREFIX: usize = 24;
const BODY: usize = 56;
/// Largest admissible volume of unpacked pixels: far above every real set, far below exhausting the memory.
const MOST_PIXEL_BYTES: usize = 1 << 31;

/// One drawing style.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Style {
    /// Short name.
    pub name: String,
    /// The style family it belongs to, an index into [`Header::families`].
    pub family: u32,
    /// The package it was taken from, with its version.
    pub source: String,
    /// Who drew it.
    pub author: String,
    /// SPDX identifier of its license.
    pub license: String,
}

/// One emoji.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedIdentity {
    /// Code points in lower-case hexadecimal, joined by `-`, without `fe0f`.
    pub code: String,
    /// The English label of the CLDR.
    pub label: String,
}

/// One image's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 2]", into = "[u32; 2]")]
pub struct PackedImage {
    /// Index into [`Header::identities`].
    pub identity: u32,
    /// Index into [`Header::styles`].
    pub style: u32,
}

impl From<[u32; 2]> for PackedImage {
    fn from([identity, style]: [u32; 2]) -> Self {
        Self { identity, style }
    }
}

impl From<PackedImage> for [u32; 2] {
    fn from(image: PackedImage) -> Self {
        [image.identity, image.style]
    }
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The set's name.
    pub name: String,
    /// Height of every image.
    pub height: usize,
    /// Width of every image.
    pub width: usize,
    /// Names of the style families.
    pub families: Vec<String>,
    /// The drawing styles.
    pub styles: Vec<Style>,
    /// The identities.
    pub identities: Vec<PackedIdentity>,
    /// One entry per image.
    pub images: Vec<PackedImage>,
}

/// A whole pack in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// The labels.
    pub header: Header,
    /// RGB, 8 bit, image × height × width × 3.
    pub pixels: Vec<u8>,
}

impl Pack {
    /// The file's bytes. The same pack gives the same bytes, whatever the machine: the compressor is written in
    /// Rust, runs on one thread, and its version is pinned.
    ///
    /// # Errors
    /// [`Error::Argument`] if the pixels do not fit the header, or a label is out of range.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.header.check(self.pixels.len()).map_err(|reason| Error::Argument {
            function: "Pack::to_bytes",
            argument: "pack",
            got: reason,
            expected: "labels in range and one image of pixels for each".into(),
        })?;
        let header = serde_json::to_vec(&self.header).map_err(|e| Error::Argument {
            function: "Pack::to_bytes",
            argument: "header",
            got: e.to_string(),
            expected: "a header that JSON can hold".into(),
        })?;
        let size = self.header.height * self.header.width;
        let mut planes = vec![0; self.pixels.len()];
        for (image, out) in self.pixels.chunks_exact(3 * size).zip(planes.chunks_exact_mut(3 * size)) {
            filter(image, out, self.header.width);
        }
        let stream = compress_to_vec_zlib(&planes, 10);

        let mut bytes = Vec::with_capacity(BODY + header.len() + stream.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend((stream.len() as u64).to_le_bytes());
        let digest =
            Sha256::new().chain_update(&bytes).chain_update(&header).chain_update(&stream).finalize();
        bytes.extend(digest);
        bytes.extend(header);
        bytes.extend(stream);
        Ok(bytes)
    }

    /// Reads a pack from a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Pack`] if it is foreign, truncated, damaged or of
    /// another version.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Self::from_bytes(&bytes).map_err(|reason| Error::pack(path, reason))
    }

    /// Reads a pack from its bytes; the error says what does not fit.
    ///
    /// # Errors
    /// The reason, for a message that names the file.
    pub fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        if !bytes.starts_with(&MAGIC) {
            let hint =
                if bytes.starts_with(b"version https://git-lfs") { " (a Git LFS pointer)" } else { "" };
            return Err(format!("it does not begin with the pack's signature{hint}"));
        }
        if bytes.len() < BODY {
            return Err(format!("it ends after {} bytes, within the preamble of {BODY}", bytes.len()));
        }
        let version = little_endian(&bytes[8..12]);
        if version != u64::from(VERSION) {
            return Err(format!("it is of version {version}, expected version {VERSION}"));
        }
        let (header_bytes, stream_bytes) = (little_endian(&bytes[12..16]), little_endian(&bytes[16..24]));
        let expected = (BODY as u64).saturating_add(header_bytes).saturating_add(stream_bytes);
        if bytes.len() as u64 != expected {
            return Err(format!(
                "it has {} bytes, expected {expected}; it was cut or appended to",
                bytes.len()
            ));
        }
        let digest = Sha256::new().chain_update(&bytes[..PREFIX]).chain_update(&bytes[BODY..]).finalize();
        if digest[..] != bytes[PREFIX..BODY] {
            return Err("its SHA-256 does not match its content; it was damaged".into());
        }

        let (header, stream) = bytes[BODY..].split_at(header_bytes as usize);
        let header: Header = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
        let volume = header.volume().ok_or("its header asks for an absurd number of pixels")?;
        // One byte of room, so that a stream that is too long is told from one of the right length.
        let planes = decompress_to_vec_zlib_with_limit(stream, volume + 1).map_err(|e| match e.status {
            TINFLStatus::HasMoreOutput => "its pixels are more than the header says".to_owned(),
            _ => format!("its pixels do not decompress: {e}"),
        })?;
        header.check(planes.len())?;
        let mut pixels = vec![0; planes.len()];
        let image_bytes = 3 * header.height * header.width;
        for (plane, out) in planes.chunks_exact(image_bytes).zip(pixels.chunks_exact_mut(image_bytes)) {
            unfilter(plane, out, header.width);
        }
        Ok(Self { header, pixels })
    }
}

impl Header {
    /// Bytes of all images, if that is a sane number.
    fn volume(&self) -> Option<usize> {
        self.height
            .checked_mul(self.width)?
            .checked_mul(3)?
            .checked_mul(self.images.len())
            .filter(|&volume| volume <= MOST_PIXEL_BYTES)
    }

    fn check(&self, pixel_bytes: usize) -> std::result::Result<(), String> {
        if self.height == 0 || self.width == 0 {
            return Err(format!("its images are {} x {} pixels", self.height, self.width));
        }
        if self.volume() != Some(pixel_bytes) {
            return Err(format!(
                "it holds {pixel_bytes} bytes of pixels, expected {} images of {} x {} x 3",
                self.images.len(),
                self.height,
                self.width
            ));
        }
        if let Some(style) = self.styles.iter().find(|style| style.family as usize >= self.families.len()) {
            return Err(format!(
                "style `{}` has family {} of {}",
                style.name,
                style.family,
                self.families.len()
            ));
        }
        let in_range = |image: &PackedImage| {
            (image.identity as usize) < self.identities.len() && (image.style as usize) < self.styles.len()
        };
        match self.images.iter().position(|image| !in_range(image)) {
            Some(at) => Err(format!("image {at} has an identity or a style out of range")),
            None => Ok(()),
        }
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// RGB to filtered planes.
fn filter(image: &[u8], out: &mut [u8], width: usize) {
    let size = image.len() / 3;
    let mut plane = vec![0; size];
    for (channel, out) in out.chunks_exact_mut(size).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(image.chunks_exact(3)) {
            *value = match channel {
                0 => pixel[1],
                1 => pixel[0].wrapping_sub(pixel[1]),
                _ => pixel[2].wrapping_sub(pixel[1]),
            };
        }
        for (at, value) in out.iter_mut().enumerate() {
            *value = plane[at].wrapping_sub(prediction(&plane, at, width));
        }
    }
}

/// Filtered planes to RGB.
fn unfilter(filtered: &[u8], out: &mut [u8], width: usize) {
    let size = filtered.len() / 3;
    let mut planes = vec![0; filtered.len()];
    for (plane, filtered) in planes.chunks_exact_mut(size).zip(filtered.chunks_exact(size)) {
        for at in 0..size {
            plane[at] = filtered[at].wrapping_add(prediction(plane, at, width));
        }
    }
    for (at, pixel) in out.chunks_exact_mut(3).enumerate() {
        let green = planes[at];
        pixel.copy_from_slice(&[
            planes[size + at].wrapping_add(green),
            green,
            planes[2 * size + at].wrapping_add(green),
        ]);
    }
}

/// The Paeth predictor (PNG specification, filter type 4) from the values before `at`.
fn prediction(plane: &[u8], at: usize, width: usize) -> u8 {
    let (inside, below) = (!at.is_multiple_of(width), at >= width);
    let left = if inside { plane[at - 1] } else { 0 };
    let above = if below { plane[at - width] } else { 0 };
    let corner = if inside && below { plane[at - width - 1] } else { 0 };
    let estimate = i16::from(left) + i16::from(above) - i16::from(corner);
    let distance = |value: u8| (estimate - i16::from(value)).abs();
    if distance(left) <= distance(above) && distance(left) <= distance(corner) {
        left
    } else if distance(above) <= distance(corner) {
        above
    } else {
        corner
    }
}
