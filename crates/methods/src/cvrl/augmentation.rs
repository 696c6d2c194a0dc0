//! What is drawn for the augmentation of a clip.

use candle_core::Tensor;
use consonance::{AugmentOptions, ClipParameters, ColorJitter, ColorStep, CropBox, augment_clips};
use serde::{Deserialize, Serialize};

use super::METHOD;
use crate::error::{Error, Result, fraction, positive};
use crate::tensors::{mix_bits, uniform};

/// Boxes are drawn so often before the whole frame is taken, as published (the default of TensorFlow).
const ATTEMPTS: u64 = 100;

/// Which of the two clips: they are blurred and solarized with different probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipView {
    /// The first one.
    First,
    /// The second one.
    Second,
}

/// For what parameters are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Once for all frames of a clip, as published.
    #[default]
    Clip,
    /// For each frame alone: the baseline, in which colors and boxes flicker.
    Frame,
}

/// Settings of a [`ClipAugmentation`]; the defaults are those of the paper's public code.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipAugmentationConfig {
    /// Height of the frames that come out; 224. A blur reaches ⌊⌊height/10⌋/2⌋ pixels, at most 24.
    pub height: usize,
    /// Width of the frames that come out; 224.
    pub width: usize,
    /// The least and the largest share of a frame's area in its box; 0.3 to 1.
    pub area: [f64; 2],
    /// The least and the largest width of a box over its height; 0.5 to 2.
    pub aspect: [f64; 2],
    /// The probability of a flip; ½.
    pub flip: f64,
    /// The probability of a color jitter; 0.8.
    pub jitter: f64,
    /// b: brightness is multiplied by max(0, 1 − b) to 1 + b; 0.8.
    pub brightness: f64,
    /// c: contrast is multiplied by 1 − c to 1 + c; 0.8.
    pub contrast: f64,
    /// s: saturation is multiplied by 1 − s to 1 + s; 0.8.
    pub saturation: f64,
    /// h: hues move by −h to h turns; 0.2.
    pub hue: f64,
    /// The probability of grayscale; 0.2.
    pub grayscale: f64,
    /// The probabilities of a blur of the first and of the second clip; 1 and 0.1.
    pub blur: [f64; 2],
    /// The least and the largest σ of a blur, in pixels; 0.1 to 2.
    pub blur_sigma: [f64; 2],
    /// The probabilities of a solarization of the first and of the second clip; 0 and 0.2.
    pub solarize: [f64; 2],
    /// From which value on pixels are solarized; ½.
    pub solarize_threshold: f64,
    /// Whether parameters are drawn for clips or for frames.
    pub consistency: Consistency,
}

impl Default for ClipAugmentationConfig {
    fn default() -> Self {
        Self {
            height: 224,
            width: 224,
            area: [0.3, 1.0],
            aspect: [0.5, 2.0],
            flip: 0.5,
            jitter: 0.8,
            brightness: 0.8,
            contrast: 0.8,
            saturation: 0.8,
            hue: 0.2,
            grayscale: 0.2,
            blur: [1.0, 0.1],
            blur_sigma: [0.1, 2.0],
            solarize: [0.0, 0.2],
            solarize_threshold: 0.5,
            consistency: Consistency::Clip,
        }
    }
}

impl ClipAugmentationConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (name, side) in [("height", self.height), ("width", self.width)] {
            if side == 0 {
                return Err(Error::argument(METHOD, name, side, "at least 1 pixel"));
            }
        }
        for (name, [least, largest]) in
            [("area", self.area), ("aspect", self.aspect), ("blur_sigma", self.blur_sigma)]
        {
            positive(METHOD, name, least)?;
            positive(METHOD, name, largest)?;
            if least > largest {
                let got = format!("{least} to {largest}");
                return Err(Error::argument(METHOD, name, got, "the least first, then the largest"));
            }
        }
        for (name, share) in [
            ("area", self.area[1]),
            ("flip", self.flip),
            ("jitter", self.jitter),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("grayscale", self.grayscale),
            ("blur", self.blur[0]),
            ("blur", self.blur[1]),
            ("solarize", self.solarize[0]),
            ("solarize", self.solarize[1]),
            ("solarize_threshold", self.solarize_threshold),
        ] {
            fraction(METHOD, name, share)?;
        }
        crate::error::not_negative(METHOD, "brightness", self.brightness)?;
        if !(0.0..=0.5).contains(&self.hue) {
            return Err(Error::argument(METHOD, "hue", self.hue, "turns in 0..=0.5"));
        }
        Ok(())
    }
}

/// Draws parameters for clips and augments them. What is drawn depends on the seed, the number of the clip, the view and, for
/// [`Consistency::Frame`], the frame.
#[derive(Debug, Clone)]
pub struct ClipAugmentation {
    config: ClipAugmentationConfig,
}

impl ClipAugmentation {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: ClipAugmentationConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The parameters of a clip whose frames have `height` × `width` pixels. Parameters of frame t alone come from the numbers
    /// of a further key; those of a whole clip are of `frame` 0.
    ///
    /// # Errors
    /// [`Error::Argument`] for frames without pixels.
    pub fn draw(
        &self,
        view: ClipView,
        (height, width): (usize, usize),
        seed: u64,
        (clip, frame): (u64, u64),
    ) -> Result<ClipParameters> {
        if height == 0 || width == 0 {
            let got = format!("frames of {height} x {width} pixels");
            return Err(Error::argument(METHOD, "clips", got, "at least one pixel"));
        }
        let config = &self.config;
        let view = match view {
            ClipView::First => 0,
            ClipView::Second => 1,
        };
        let key = mix_bits(mix_bits(seed, clip), 2 * frame + view as u64);
        let happens = |at: u64, probability: f64| uniform(key, at) < probability;
        let within = |at: u64, [low, high]: [f64; 2]| (low + (high - low) * uniform(key, at)) as f32;
        let around = |at: u64, reach: f64| within(at, [(1.0 - reach).max(0.0), 1.0 + reach]);
        let mut order = [ColorStep::Brightness, ColorStep::Contrast, ColorStep::Saturation, ColorStep::Hue];
        for last in 1..4 {
            order.swap(last, (uniform(key, 8 + last as u64) * (last + 1) as f64) as usize);
        }
        let jitter = ColorJitter {
            brightness: around(2, config.brightness),
            contrast: around(3, config.contrast),
            saturation: around(4, config.saturation),
            hue: within(5, [-config.hue, config.hue]),
            order,
        };
        Ok(ClipParameters {
            crop: self.draw_box((height, width), key),
            flip: happens(0, config.flip),
            jitter: happens(1, config.jitter).then_some(jitter),
            grayscale: happens(6, config.grayscale),
            blur: happens(7, config.blur[view]).then(|| within(8, config.blur_sigma)),
            solarize: happens(12, config.solarize[view]).then_some(config.solarize_threshold as f32),
        })
    }

    /// A box as `sample_distorted_bounding_box` of TensorFlow draws it: an aspect, then a height that gives an area within the
    /// limits, uniform both.
    fn draw_box(&self, (height, width): (usize, usize), key: u64) -> CropBox {
        let (h, w) = (height as f64, width as f64);
        let [least, largest] = self.config.area.map(|share| share * h * w);
        for attempt in 0..ATTEMPTS {
            let draw = |at: u64| uniform(key, 16 + 4 * attempt + at);
            let [low, high] = self.config.aspect;
            let aspect = low + (high - low) * draw(0);
            let highest = (largest / aspect).sqrt().round().min(((w + 0.499_999) / aspect).floor()).min(h);
            let lowest = (least / aspect).sqrt().round().min(highest);
            let rows = lowest + (draw(1) * (highest - lowest + 1.0)).floor();
            let columns = (rows * aspect).round();
            let area = rows * columns;
            if rows < 1.0 || columns < 1.0 || columns > w || area < least || area > largest {
                continue;
            }
            let place = |at: u64, room: f64| (draw(at) * (room + 1.0)) as usize;
            return CropBox {
                top: place(2, h - rows),
                left: place(3, w - columns),
                height: rows as usize,
                width: columns as usize,
            };
        }
        CropBox { top: 0, left: 0, height, width }
    }

    /// Augments clips `[B, T, 3, H, W]` in [0, 1] to `[B, T, 3, height, width]`; clip i has the number `first + i`.
    ///
    /// # Errors
    /// [`Error::Argument`] for other than five dimensions, and those of [`augment_clips`].
    pub fn augment(&self, view: ClipView, clips: &Tensor, seed: u64, first: u64) -> Result<Tensor> {
        let &[count, frames, channels, height, width] = clips.dims() else {
            let got = format!("{:?}", clips.dims());
            return Err(Error::argument(METHOD, "clips", got, "[clips, frames, 3, height, width]"));
        };
        let options = AugmentOptions::new(self.config.height, self.config.width);
        let draw = |clip: usize, frame: usize| {
            self.draw(view, (height, width), seed, (first + clip as u64, frame as u64))
        };
        match self.config.consistency {
            Consistency::Clip => {
                let parameters = (0..count).map(|clip| draw(clip, 0)).collect::<Result<Vec<_>>>()?;
                Ok(augment_clips(clips, &parameters, &options)?)
            }
            Consistency::Frame => {
                let all = (0..count).flat_map(|clip| (0..frames).map(move |frame| (clip, frame)));
                let parameters = all.map(|(clip, frame)| draw(clip, frame)).collect::<Result<Vec<_>>>()?;
                let alone = clips.reshape((count * frames, 1, channels, height, width))?;
                let out = augment_clips(&alone, &parameters, &options)?;
                Ok(out.reshape((count, frames, channels, self.config.height, self.config.width))?)
            }
        }
    }

    /// Both views of a batch of videos, of which `first_clips` and `second_clips` are a clip each.
    ///
    /// # Errors
    /// [`Error::Argument`] for clips of different numbers or lengths, and as [`augment`](Self::augment).
    pub fn views(
        &self,
        first_clips: &Tensor,
        second_clips: &Tensor,
        seed: u64,
        first: u64,
    ) -> Result<[Tensor; 2]> {
        if first_clips.dims() != second_clips.dims() {
            let expected = format!("{:?}, as the first clips", first_clips.dims());
            return Err(Error::argument(
                METHOD,
                "second_clips",
                format!("{:?}", second_clips.dims()),
                expected,
            ));
        }
        Ok([
            self.augment(ClipView::First, first_clips, seed, first)?,
            self.augment(ClipView::Second, second_clips, seed, first)?,
        ])
    }
}
