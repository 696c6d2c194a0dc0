//! What is done to a clip, and whether it can be.

use super::OP;
use crate::{Error, Result};

/// The largest reach of a blur, in pixels: what the tiles of the kernels have room for.
pub const MAX_BLUR_RADIUS: usize = 24;
/// The largest height and width of frames, so that places of pixels are exact 32-bit integers.
pub const MAX_SIDE: usize = 16_384;

/// The box of a frame that is kept, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// A step of a color jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorStep {
    /// x ← f x.
    Brightness,
    /// x ← m + f (x − m), m the mean of the channel over the whole clip.
    Contrast,
    /// The saturation (of hue, saturation, value) times f, at most 1.
    Saturation,
    /// The hue moved by so many turns.
    Hue,
}

/// Four steps, each followed by clipping to [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ColorJitter {
    /// f of [`ColorStep::Brightness`], finite and at least 0.
    pub brightness: f32,
    /// f of [`ColorStep::Contrast`], finite and at least 0.
    pub contrast: f32,
    /// f of [`ColorStep::Saturation`], finite and at least 0.
    pub saturation: f32,
    /// Turns of [`ColorStep::Hue`], in −½..=½.
    pub hue: f32,
    /// All four steps in the order in which they are taken.
    pub order: [ColorStep; 4],
}

impl ColorJitter {
    /// The number of a step.
    pub fn factor(&self, step: ColorStep) -> f32 {
        match step {
            ColorStep::Brightness => self.brightness,
            ColorStep::Contrast => self.contrast,
            ColorStep::Saturation => self.saturation,
            ColorStep::Hue => self.hue,
        }
    }
}

/// What is done to all frames of a clip, in this order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipParameters {
    /// The box that is resampled to the frames that come out.
    pub crop: CropBox,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// The color jitter.
    pub jitter: Option<ColorJitter>,
    /// Whether all channels become the luma 0.2989 R + 0.587 G + 0.114 B.
    pub grayscale: bool,
    /// σ of a Gaussian blur of each frame in pixels that come out, above 0; frames are black beyond their edges.
    pub blur: Option<f32>,
    /// Values from this one of [0, 1] on become 1 − x.
    pub solarize: Option<f32>,
}

impl ClipParameters {
    /// The whole frame of `height` × `width` and nothing else: only its size changes.
    pub fn plain(height: usize, width: usize) -> Self {
        Self {
            crop: CropBox { top: 0, left: 0, height, width },
            flip: false,
            jitter: None,
            grayscale: false,
            blur: None,
            solarize: None,
        }
    }

    fn check(&self, clip: usize, (height, width): (usize, usize)) -> Result<()> {
        let refuse = |what: String, expected: String| {
            Err(Error::range(OP, "parameters", format!("clip {clip} with {what}"), expected))
        };
        let crop = self.crop;
        let fits = |start: usize, length: usize, all: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        if !fits(crop.top, crop.height, height) || !fits(crop.left, crop.width, width) {
            return refuse(format!("{crop:?}"), format!("a box within frames of {height} x {width} pixels"));
        }
        if let Some(jitter) = &self.jitter {
            for (name, factor) in [
                ("brightness", jitter.brightness),
                ("contrast", jitter.contrast),
                ("saturation", jitter.saturation),
            ] {
                if !(factor >= 0.0 && factor.is_finite()) {
                    return refuse(format!("{name} {factor}"), "a finite factor, 0 or above".to_owned());
                }
            }
            if !(-0.5..=0.5).contains(&jitter.hue) {
                return refuse(format!("hue {}", jitter.hue), "turns in -0.5..=0.5".to_owned());
            }
            let all = [ColorStep::Brightness, ColorStep::Contrast, ColorStep::Saturation, ColorStep::Hue];
            if all.iter().any(|step| !jitter.order.contains(step)) {
                return refuse(format!("order {:?}", jitter.order), "each step once".to_owned());
            }
        }
        if let Some(sigma) = self.blur
            && !(sigma > 0.0 && sigma.is_finite())
        {
            return refuse(format!("blur {sigma}"), "a finite standard deviation above 0".to_owned());
        }
        if let Some(threshold) = self.solarize
            && !(0.0..=1.0).contains(&threshold)
        {
            return refuse(format!("solarize {threshold}"), "a threshold in 0..=1".to_owned());
        }
        Ok(())
    }
}

/// The shape of the frames of a clip `[T, 3, H, W]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    /// T.
    pub count: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
}

impl Frames {
    /// Elements of a clip.
    pub fn elements(&self) -> usize {
        self.count * self.frame()
    }

    /// Elements of a frame.
    pub fn frame(&self) -> usize {
        3 * self.plane()
    }

    /// Pixels of a frame.
    pub fn plane(&self) -> usize {
        self.height * self.width
    }
}

/// What all clips of a call share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// H of the frames that come out.
    pub height: usize,
    /// W of the frames that come out.
    pub width: usize,
    /// How far a blur reaches to each side, in pixels: at most [`MAX_BLUR_RADIUS`].
    pub blur_radius: usize,
}

impl Options {
    /// Frames of this size; a blur reaches ⌊⌊height/10⌋/2⌋ pixels, at most [`MAX_BLUR_RADIUS`], as published for CVRL.
    pub fn new(height: usize, width: usize) -> Self {
        Self { height, width, blur_radius: (height / 10 / 2).min(MAX_BLUR_RADIUS) }
    }

    /// The frames that come out of `count`.
    pub fn frames(&self, count: usize) -> Frames {
        Frames { count, height: self.height, width: self.width }
    }
}

/// The weights of a blur: w_k ∝ e^{−k²/2σ²} for |k| ≤ `radius`, which sum to 1, computed in `f64`; those of k = 0, 1, ….
pub fn blur_weights(sigma: f32, radius: usize) -> Vec<f32> {
    let sigma = f64::from(sigma);
    let weight = |k: usize| (-0.5 * (k as f64 / sigma).powi(2)).exp();
    let sum = 1.0 + 2.0 * (1..=radius).map(weight).sum::<f64>();
    (0..=radius).map(|k| (weight(k) / sum) as f32).collect()
}

/// Checks clips `[clips, elements]` of `frames` against their parameters, without looking at pixels.
///
/// # Errors
/// [`Error::Empty`], [`Error::Shape`] and [`Error::Range`].
pub fn check(
    (clips, elements): (usize, usize),
    frames: Frames,
    parameters: &[ClipParameters],
    options: &Options,
) -> Result<()> {
    if clips == 0 {
        return Err(Error::Empty { op: OP, argument: "clips" });
    }
    for (argument, sides) in
        [("clips", [frames.height, frames.width]), ("size", [options.height, options.width])]
    {
        if sides.iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(Error::shape(OP, argument, &sides, format!("sides of 1 to {MAX_SIDE} pixels")));
        }
    }
    if frames.count == 0 || frames.count.checked_mul(frames.frame()) != Some(elements) {
        let got = [clips, frames.count, 3, frames.height, frames.width];
        return Err(Error::shape(
            OP,
            "clips",
            &got,
            format!("one or more frames, {elements} elements a clip"),
        ));
    }
    if options.blur_radius > MAX_BLUR_RADIUS {
        return Err(Error::range(
            OP,
            "blur_radius",
            options.blur_radius,
            format!("at most {MAX_BLUR_RADIUS} pixels"),
        ));
    }
    if parameters.len() != clips {
        let expected = format!("[{clips}], one for each clip");
        return Err(Error::shape(OP, "parameters", &[parameters.len()], expected));
    }
    let size = (frames.height, frames.width);
    parameters.iter().zip(0..).try_for_each(|(parameters, clip)| parameters.check(clip, size))
}

/// The error of a clip whose pixels are not all in [0, 1].
pub fn bad_pixels(clip: usize) -> Error {
    let got = format!("clip {clip}, of which a pixel is NaN or outside");
    Error::range(OP, "clips", got, "pixels in 0..=1; scale bytes by 1/255 first")
}
