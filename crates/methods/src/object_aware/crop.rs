//! Random crops that hold an object.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::boxes::RelativeBox;
use crate::error::{Error, Result};
use crate::tensors::uniform;

const METHOD: &str = "object-aware crop";
/// Windows that are tried before the largest one in the middle is taken, as in torchvision.
const ATTEMPTS: u64 = 10;
/// Numbers of the generator that a draw may use.
const NUMBERS: u64 = 4 * ATTEMPTS + 1;

/// Settings of [`ObjectAwareCrop`], the published ones by default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectAwareCropConfig {
    /// Height and width of a crop in pixels; 224.
    pub size: usize,
    /// The share of the box that a window covers, least and most; 0.08 and 1.
    pub scale: (f64, f64),
    /// Its width by its height, least and most; 3/4 and 4/3.
    pub ratio: (f64, f64),
}

impl Default for ObjectAwareCropConfig {
    fn default() -> Self {
        Self { size: 224, scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

impl ObjectAwareCropConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        if self.size == 0 {
            return Err(Error::argument(METHOD, "size", 0, "at least 1"));
        }
        let ordered = |(least, most): (f64, f64)| least > 0.0 && least <= most && most.is_finite();
        if !ordered(self.scale) || self.scale.1 > 1.0 {
            let got = format!("{:?}", self.scale);
            return Err(Error::argument(METHOD, "scale", got, "0 < least <= most <= 1"));
        }
        if !ordered(self.ratio) {
            return Err(Error::argument(METHOD, "ratio", format!("{:?}", self.ratio), "0 < least <= most"));
        }
        Ok(())
    }
}

/// Pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropWindow {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// The usual random resized crop, inside a box that is drawn from those of the image; inside the whole image when it has none. Both
/// views of a positive pair are drawn so, each with a box of its own.
#[derive(Debug, Clone, Copy)]
pub struct ObjectAwareCrop {
    config: ObjectAwareCropConfig,
}

impl ObjectAwareCrop {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: ObjectAwareCropConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// Draw number `draw` of the windows of an image of `size` H, W with these boxes: it depends on these numbers and the seed
    /// alone.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty image and boxes that do not lie in it.
    pub fn draw(
        &self,
        boxes: &[RelativeBox],
        size: (usize, usize),
        seed: u64,
        draw: u64,
    ) -> Result<CropWindow> {
        if size.0 == 0 || size.1 == 0 {
            return Err(Error::argument(METHOD, "size", format!("{size:?}"), "an image with pixels"));
        }
        boxes.iter().try_for_each(RelativeBox::validate)?;
        let number = |at: u64| uniform(seed, draw.wrapping_mul(NUMBERS).wrapping_add(at));
        let whole = RelativeBox { top: 0.0, left: 0.0, bottom: 1.0, right: 1.0 };
        let chosen = boxes.get((number(0) * boxes.len() as f64) as usize).unwrap_or(&whole);
        let side = |from: f64, to: f64, size: usize| {
            let first = ((from * size as f64).floor() as usize).min(size - 1);
            (first, ((to * size as f64).ceil() as usize).clamp(first + 1, size) - first)
        };
        let (top, height) = side(chosen.top, chosen.bottom, size.0);
        let (left, width) = side(chosen.left, chosen.right, size.1);
        let window = self.window((height, width), |at| number(1 + at));
        Ok(CropWindow { top: top + window.top, left: left + window.left, ..window })
    }

    /// A random resized crop of an image of this size.
    fn window(&self, (height, width): (usize, usize), number: impl Fn(u64) -> f64) -> CropWindow {
        let between = |(least, most): (f64, f64), share: f64| least + (most - least) * share;
        let ratios = (self.config.ratio.0.ln(), self.config.ratio.1.ln());
        for attempt in 0..ATTEMPTS {
            let number = |at: u64| number(4 * attempt + at);
            let area = (height * width) as f64 * between(self.config.scale, number(0));
            let ratio = between(ratios, number(1)).exp();
            let (h, w) = ((area / ratio).sqrt().round() as usize, (area * ratio).sqrt().round() as usize);
            if (1..=height).contains(&h) && (1..=width).contains(&w) {
                let place = |share: f64, room: usize| (share * (room + 1) as f64) as usize;
                let (top, left) = (place(number(2), height - h), place(number(3), width - w));
                return CropWindow { top, left, height: h, width: w };
            }
        }
        // The largest window in the middle whose ratio is allowed.
        let own = width as f64 / height as f64;
        let (h, w) = match own {
            own if own < self.config.ratio.0 => {
                (((width as f64 / self.config.ratio.0).round() as usize).clamp(1, height), width)
            }
            own if own > self.config.ratio.1 => {
                (height, ((height as f64 * self.config.ratio.1).round() as usize).clamp(1, width))
            }
            _ => (height, width),
        };
        CropWindow { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
    }

    /// A window of an image `[C, H, W]`, stretched to `[C, size, size]` by bilinear interpolation (pixels are squares; without
    /// smoothing where it shrinks).
    ///
    /// # Errors
    /// [`Error::Argument`] for a window that is not inside the image.
    pub fn crop(&self, image: &Tensor, window: CropWindow) -> Result<Tensor> {
        let &[_, height, width] = image.dims() else {
            return Err(Error::argument(METHOD, "image", format!("{:?}", image.dims()), "[C, H, W]"));
        };
        let inside = |first: usize, count: usize, size: usize| {
            count > 0 && first.checked_add(count).is_some_and(|end| end <= size)
        };
        if !inside(window.top, window.height, height) || !inside(window.left, window.width, width) {
            let expected = format!("a window of an image of {height} x {width} pixels");
            return Err(Error::argument(METHOD, "window", format!("{window:?}"), expected));
        }
        let part = image.narrow(1, window.top, window.height)?.narrow(2, window.left, window.width)?;
        let size = self.config.size;
        let part = part.contiguous()?.unsqueeze(0)?.upsample_bilinear2d(size, size, false)?;
        Ok(part.squeeze(0)?)
    }
}
