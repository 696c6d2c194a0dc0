//! Boxes around the objects of a mask.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::check_masks;
use crate::error::{Error, Result, fraction, not_negative};

const METHOD: &str = "boxes";

/// A box in relative coordinates: 0 is the upper or left edge of an image, 1 the lower or right one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeBox {
    /// The upper edge.
    pub top: f64,
    /// The left edge.
    pub left: f64,
    /// The lower edge.
    pub bottom: f64,
    /// The right edge.
    pub right: f64,
}

impl RelativeBox {
    /// Checks that the box lies in the image and has an inside.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the box.
    pub fn validate(&self) -> Result<()> {
        let inside = |from: f64, to: f64| 0.0 <= from && from < to && to <= 1.0;
        if inside(self.top, self.bottom) && inside(self.left, self.right) {
            return Ok(());
        }
        let expected = "edges with 0 <= top < bottom <= 1 and 0 <= left < right <= 1";
        Err(Error::argument(METHOD, "box", format!("{self:?}"), expected))
    }

    fn area(&self) -> f64 {
        (self.bottom - self.top) * (self.right - self.left)
    }

    /// The area that both boxes share, by that of either: intersection over union.
    pub fn iou(&self, other: &Self) -> f64 {
        let rows = (self.bottom.min(other.bottom) - self.top.max(other.top)).max(0.0);
        let columns = (self.right.min(other.right) - self.left.max(other.left)).max(0.0);
        let both = rows * columns;
        both / (self.area() + other.area() - both)
    }
}

/// Settings of [`boxes`], the published ones by default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxesConfig {
    /// A pixel belongs to an object from this share of the mask's maximum on; 0.5.
    pub threshold: f64,
    /// The share of the image that an object is larger than; 0.01.
    pub min_area: f64,
    /// By how much of its height or width a box grows on each side; 0.2.
    pub expand: f64,
}

impl Default for BoxesConfig {
    fn default() -> Self {
        Self { threshold: 0.5, min_area: 0.01, expand: 0.2 }
    }
}

impl BoxesConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err(Error::argument(METHOD, "threshold", self.threshold, "above 0 and at most 1"));
        }
        fraction(METHOD, "min_area", self.min_area)?;
        not_negative(METHOD, "expand", self.expand)
    }
}

/// The boxes of every mask of `masks` `[b, H, W]` in `0..=1`, from any device: around the connected components (4 neighbors) of the
/// pixels of at least `threshold` · max that are larger than `min_area`, each side moved outwards by `expand` times the height or
/// width and cut at the edges of the image. They come in the order of their first pixels; a mask of zeros has none.
///
/// # Errors
/// [`Error::Argument`] for settings out of range and masks outside `0..=1` or not of this shape.
pub fn boxes(masks: &Tensor, config: &BoxesConfig) -> Result<Vec<Vec<RelativeBox>>> {
    config.validate()?;
    let (b, height, width) = check_masks(METHOD, "masks", masks)?;
    let masks = masks.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let masks = masks.reshape((b, height * width))?.to_vec2::<f32>()?;
    Ok(masks.iter().map(|mask| of_mask(mask, (height, width), config)).collect())
}

fn of_mask(mask: &[f32], (height, width): (usize, usize), config: &BoxesConfig) -> Vec<RelativeBox> {
    let most = mask.iter().copied().fold(0.0f32, f32::max);
    if most == 0.0 {
        return Vec::new();
    }
    let limit = config.threshold as f32 * most;
    let mut left: Vec<bool> = mask.iter().map(|m| *m >= limit).collect();
    let mut found = Vec::new();
    for first in 0..mask.len() {
        if !left[first] {
            continue;
        }
        let component = take_component(&mut left, first, width);
        if (component.pixels as f64) > config.min_area * mask.len() as f64 {
            found.push(component.expanded(config.expand, (height, width)));
        }
    }
    found
}

/// Connected pixels, and the rectangle around them.
struct Component {
    pixels: usize,
    rows: (usize, usize),
    columns: (usize, usize),
}

impl Component {
    fn expanded(&self, share: f64, (height, width): (usize, usize)) -> RelativeBox {
        let side = |(first, last): (usize, usize), size: usize| {
            let (from, to) = (first as f64 / size as f64, (last + 1) as f64 / size as f64);
            let more = share * (to - from);
            ((from - more).max(0.0), (to + more).min(1.0))
        };
        let ((top, bottom), (left, right)) = (side(self.rows, height), side(self.columns, width));
        RelativeBox { top, left, bottom, right }
    }
}

/// Takes the pixels that are connected with `first` out of `left`: a flood over up to four neighbors a pixel. (`imageproc` labels
/// regions too, at the price of its own linear algebra and image types.)
fn take_component(left: &mut [bool], first: usize, width: usize) -> Component {
    let mut component = Component {
        pixels: 0,
        rows: (first / width, first / width),
        columns: (first % width, first % width),
    };
    let mut waiting = vec![first];
    left[first] = false;
    while let Some(at) = waiting.pop() {
        let (y, x) = (at / width, at % width);
        component.pixels += 1;
        component.rows = (component.rows.0.min(y), component.rows.1.max(y));
        component.columns = (component.columns.0.min(x), component.columns.1.max(x));
        let neighbors = [
            at.checked_sub(width),
            (x > 0).then(|| at - 1),
            (x + 1 < width).then(|| at + 1),
            Some(at + width).filter(|at| *at < left.len()),
        ];
        for next in neighbors.into_iter().flatten() {
            if std::mem::take(&mut left[next]) {
                waiting.push(next);
            }
        }
    }
    component
}
