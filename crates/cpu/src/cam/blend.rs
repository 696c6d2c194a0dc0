//! Two images mixed by a mask.

use rayon::prelude::*;

use super::{bad_mask, is_mask};
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
    let (Other::Colors(others) | Other::Images(others)) = other;
    let color = matches!(other, Other::Colors(_));
    let pixels = mask.cols();
    let mut out = vec![0.0f32; shape.0 * shape.1];
    let bad = out
        .par_chunks_exact_mut(shape.1)
        .enumerate()
        .map_init(
            || [images, others, mask].map(Wide::new),
            |[of_x, of_y, of_m], (image, out)| {
                let x = of_x.row(images, image);
                let y = of_y.row(others, if others.rows() == 1 { 0 } else { image });
                let m = of_m.row(mask, image);
                // An image at a time, while it is in the cache.
                let wrong = [!simd::all_finite(x), !simd::all_finite(y), !is_mask(m)];
                if let Some(which) = wrong.iter().position(|wrong| *wrong) {
                    return Some((which, image));
                }
                let planes = out.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels));
                for (channel, (out, x)) in (0..channels).zip(planes) {
                    match color {
                        true => blend(out, x, m, |_| y[channel]),
                        false => {
                            let y = &y[channel * pixels..][..pixels];
                            blend(out, x, m, |at| y[at]);
                        }
                    }
                }
                None
            },
        )
        .flatten()
        .min();
    match bad {
        Some((0, row)) => Err(Error::NotFinite { op: OP, argument: "images", row }),
        Some((1, row)) => Err(Error::NotFinite { op: OP, argument: "other", row }),
        Some((_, image)) => Err(bad_mask(OP, image)),
        None => Ok(out),
    }
}

/// A row in `f32`: where it lies, or converted into a buffer.
struct Wide(Vec<f32>);

impl Wide {
    fn new(rows: &Rows<'_>) -> Self {
        Self(if rows.as_f32().is_some() { Vec::new() } else { vec![0.0; rows.cols()] })
    }

    fn row<'a>(&'a mut self, rows: &Rows<'a>, row: usize) -> &'a [f32] {
        match rows.as_f32() {
            Some(all) => &all[row * rows.stride()..][..rows.cols()],
            None => {
                rows.load_row(row, &mut self.0);
                &self.0
            }
        }
    }
}

fn blend(out: &mut [f32], x: &[f32], mask: &[f32], other: impl Fn(usize) -> f32) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (at, ((out, x), m)) in out.iter_mut().zip(x).zip(mask).enumerate() {
                *out = other(at).mul_add(*m, *x * (1.0 - m));
            }
        },
    );
}
