//! Two images mixed by a mask.

use rayon::prelude::*;

use super::bad_mask;
use crate::{Error, Result, Rows, simd};

const OP: &str = "masked_blend";

/// What shows where the mask is 1.
#[derive(Debug, Clone, Copy)]
pub enum Other<'a> {
    /// `[B, C]`, or `[1, C]` for all images: one color.
    Colors(Rows<'a>),
    /// `[B, C·H·W]`.
    Images(Rows<'a>),
}

impl Other<'_> {
    fn shape(&self) -> (bool, (usize, usize)) {
        match self {
            Self::Colors(rows) => (true, (rows.rows(), rows.cols())),
            Self::Images(rows) => (false, (rows.rows(), rows.cols())),
        }
    }
}

/// The channels of images, whose shapes are checked on the way: `[B, C·H·W]`, the other side (a color or images) and the mask
/// `[B, H·W]`.
///
/// # Errors
/// [`Error::Empty`] and [`Error::Shape`].
pub fn check_blend(
    images: (usize, usize),
    (is_color, other): (bool, (usize, usize)),
    mask: (usize, usize),
) -> Result<usize> {
    let (count, elements) = images;
    if count == 0 || elements == 0 {
        return Err(Error::Empty { op: OP, argument: "images" });
    }
    let pixels = mask.1;
    if mask.0 != count || pixels == 0 || !elements.is_multiple_of(pixels) {
        let expected = format!("[{count}, H, W] of images [{count}, C, H, W]");
        return Err(Error::shape(OP, "mask", &[mask.0, mask.1], expected));
    }
    let channels = elements / pixels;
    let fits = match is_color {
        true => other == (count, channels) || other == (1, channels),
        false => other == images,
    };
    if !fits {
        let expected = format!(
            "[{channels}] or [{count}, {channels}], a color, or {count} images of {elements} numbers"
        );
        return Err(Error::shape(OP, "other", &[other.0, other.1], expected));
    }
    Ok(channels)
}

/// `[B, C·H·W]`: x (1 − m) + y m of every pixel, in `f32`; where m is 0 or 1 that is x or y to the bit.
///
/// `images` x is `[B, C·H·W]`, `other` y a color or images, `mask` m `[B, H·W]`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Empty`] for shapes that disagree; [`Error::NotFinite`] naming the first image that is not finite;
/// [`Error::Range`] for a mask outside `0..=1`.
pub fn masked_blend(images: &Rows<'_>, other: &Other<'_>, mask: &Rows<'_>) -> Result<Vec<f32>> {
    let shape = (images.rows(), images.cols());
    let channels = check_blend(shape, other.shape(), (mask.rows(), mask.cols()))?;
    images.check_finite(OP, "images")?;
    let (Other::Colors(others) | Other::Images(others)) = other;
    others.check_finite(OP, "other")?;
    let pixels = mask.cols();
    let mut out = vec![0.0f32; shape.0 * shape.1];
    let bad = out
        .par_chunks_exact_mut(shape.1)
        .enumerate()
        .map_init(
            || (vec![0.0f32; pixels], vec![0.0f32; others.cols()]),
            |(m, y), (image, out)| {
                mask.load_row(image, m);
                if !m.iter().all(|m| (0.0..=1.0).contains(m)) {
                    return Some(image);
                }
                images.load_row(image, out);
                let row = if others.rows() == 1 { 0 } else { image };
                let color = matches!(other, Other::Colors(_));
                let y = match others.as_f32() {
                    Some(all) => &all[row * others.stride()..][..others.cols()],
                    None => {
                        others.load_row(row, y);
                        &*y
                    }
                };
                for (channel, out) in (0..channels).zip(out.chunks_exact_mut(pixels)) {
                    match color {
                        true => blend(out, m, |_| y[channel]),
                        false => blend(out, m, |at| y[channel * pixels..][at]),
                    }
                }
                None
            },
        )
        .flatten()
        .min();
    match bad {
        Some(image) => Err(bad_mask(OP, image)),
        None => Ok(out),
    }
}

fn blend(out: &mut [f32], mask: &[f32], other: impl Fn(usize) -> f32) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (at, (x, m)) in out.iter_mut().zip(mask).enumerate() {
                *x = other(at).mul_add(*m, *x * (1.0 - m));
            }
        },
    );
}
