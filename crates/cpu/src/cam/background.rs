//! Images whose object is covered by a tiling of their background.

use rayon::prelude::*;

use super::{bad_mask, is_mask};
use crate::{Error, Result, Rows};

const OP: &str = "backgrounds";

/// Images without their object.
#[derive(Debug, Clone, PartialEq)]
pub struct Backgrounds {
    /// `[B, C·H·W]`; the image as it was where none was found.
    pub images: Vec<f32>,
    /// `[B, 4]`: the first row and column of the rectangle around the object, and the row and column behind it; 0 where the
    /// mask nowhere reaches the threshold.
    pub rectangles: Vec<u32>,
    /// `[B]`: 1 where there is a rectangle and something beside it.
    pub found: Vec<u8>,
}

/// The channels of images `[B, C·H·W]`, whose shapes are checked on the way against the mask `[B, H·W]` and its size.
///
/// # Errors
/// [`Error::Empty`], [`Error::Shape`] and [`Error::Range`].
pub fn check_backgrounds(
    images: (usize, usize),
    mask: (usize, usize),
    [height, width]: [usize; 2],
    threshold: f32,
) -> Result<usize> {
    let (count, elements) = images;
    if count == 0 || elements == 0 {
        return Err(Error::Empty { op: OP, argument: "images" });
    }
    let pixels = height.checked_mul(width).filter(|pixels| *pixels <= i32::MAX as usize);
    if pixels.is_none_or(|pixels| mask != (count, pixels) || pixels == 0 || !elements.is_multiple_of(pixels))
    {
        let expected = format!("[{count}, {height}, {width}] of images [{count}, C, {height}, {width}]");
        return Err(Error::shape(OP, "mask", &[mask.0, mask.1], expected));
    }
    if !(threshold > 0.0 && threshold <= 1.0) {
        return Err(Error::range(OP, "threshold", threshold, "above 0 and at most 1"));
    }
    Ok(elements / mask.1)
}

type Rectangle = [usize; 4];

/// The bounding rectangle of a mask; `short`: without its last row and column.
fn rectangle(mask: &[f32], width: usize, threshold: f32, short: bool) -> Rectangle {
    let (mut top, mut left, mut bottom, mut right) = (usize::MAX, usize::MAX, 0, 0);
    for (y, line) in mask.chunks_exact(width).enumerate() {
        let inside = |m: &f32| *m >= threshold;
        let (Some(first), Some(last)) = (line.iter().position(inside), line.iter().rposition(inside)) else {
            continue;
        };
        (top, left, bottom, right) = (top.min(y), left.min(first), y + 1, right.max(last + 1));
    }
    if short {
        (bottom, right) = (bottom.saturating_sub(1), right.saturating_sub(1));
    }
    if top >= bottom || left >= right { [0; 4] } else { [top, left, bottom, right] }
}

fn area([top, left, bottom, right]: Rectangle) -> usize {
    (bottom - top) * (right - left)
}

/// The largest strip beside a rectangle, the first of above, left, right and below.
fn strip(hole: Rectangle, [height, width]: [usize; 2]) -> Rectangle {
    let [top, left, bottom, right] = hole;
    if area(hole) == 0 {
        return hole;
    }
    let strips =
        [[0, 0, top, width], [0, 0, height, left], [0, right, height, width], [bottom, 0, height, width]];
    strips.into_iter().fold([0; 4], |best, strip| if area(strip) > area(best) { strip } else { best })
}

/// Covers the bounding rectangle of {m ≥ `threshold`} of every image by its background: of the strips above, left of, right of
/// and below the rectangle the largest (the first of equal ones), tiled over the image from its upper left corner. `short`
/// leaves the rectangle's last row and column out, as the public code of Mo et al. (2021) does.
///
/// `images` is `[B, C·H·W]`, `mask` `[B, H·W]`, `size` H and W.
///
/// # Errors
/// [`Error::Shape`], [`Error::Empty`] and [`Error::Range`] for shapes that disagree, a threshold outside `(0, 1]` and a mask outside
/// `0..=1`; [`Error::NotFinite`] for images.
pub fn backgrounds(
    images: &Rows<'_>,
    mask: &Rows<'_>,
    size: [usize; 2],
    threshold: f32,
    short: bool,
) -> Result<Backgrounds> {
    let shape = (images.rows(), images.cols());
    check_backgrounds(shape, (mask.rows(), mask.cols()), size, threshold)?;
    images.check_finite(OP, "images")?;
    let (pixels, width) = (mask.cols(), size[1]);
    let mut out = Backgrounds {
        images: vec![0.0; shape.0 * shape.1],
        rectangles: vec![0; 4 * shape.0],
        found: vec![0; shape.0],
    };
    let bad = out
        .images
        .par_chunks_exact_mut(shape.1)
        .zip(out.rectangles.par_chunks_exact_mut(4))
        .zip(out.found.par_iter_mut())
        .enumerate()
        .map_init(
            || vec![0.0f32; pixels],
            |plane, (image, ((out, corners), found))| {
                mask.load_row(image, plane);
                if !is_mask(plane) {
                    return Some(image);
                }
                let hole = rectangle(plane, width, threshold, short);
                let from = strip(hole, size);
                corners.iter_mut().zip(hole).for_each(|(to, corner)| *to = corner as u32);
                *found = u8::from(area(from) > 0);
                images.load_row(image, out);
                if *found == 1 {
                    for channel in out.chunks_exact_mut(pixels) {
                        plane.copy_from_slice(channel);
                        cover(channel, plane, hole, from, width);
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

fn cover(to: &mut [f32], from: &[f32], hole: Rectangle, strip: Rectangle, width: usize) {
    for y in hole[0]..hole[2] {
        let v = strip[0] + y % (strip[2] - strip[0]);
        for x in hole[1]..hole[3] {
            to[y * width + x] = from[v * width + strip[1] + x % (strip[3] - strip[1])];
        }
    }
}
