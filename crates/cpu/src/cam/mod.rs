//! Class activation maps, and what is made with them: images blended by a mask, and backgrounds without the object.
//!
//! An image is one task, so its bits depend neither on the threads nor on the other images.

mod background;
mod blend;
mod resize;

use rayon::prelude::*;

use crate::{Error, Result, Rows, simd};
use resize::{Axis, horizontal, vertical};

pub use background::{Backgrounds, backgrounds, check_backgrounds};
pub use blend::{Other, check_blend, masked_blend};

const OP: &str = "cam";

/// What keeps the norm of a constant map from 0/0: the public code's.
pub const SMALLEST_RANGE: f32 = 1e-20;
/// Above this a channel sum could overflow on its way to a map: 2¹²⁰.
pub const LARGEST_SUM: f32 = 1.329_228e36;

/// How activations become a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// h and w of the activations.
    pub from: [usize; 2],
    /// H and W of the map.
    pub to: [usize; 2],
    /// Whether channels of negative weight count (Grad-CAM), or are left out (ContraCAM).
    pub keep_negative: bool,
}

impl Options {
    /// The channels of activations, whose shapes are checked on the way.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Shape`] and [`Error::Range`].
    pub fn check(&self, activations: (usize, usize), gradients: (usize, usize)) -> Result<usize> {
        let (images, elements) = activations;
        if images == 0 {
            return Err(Error::Empty { op: OP, argument: "activations" });
        }
        for (argument, [height, width]) in [("activations", self.from), ("size", self.to)] {
            let pixels = height.checked_mul(width).filter(|pixels| *pixels <= i32::MAX as usize);
            if height == 0 || width == 0 || pixels.is_none() {
                let got = format!("{height} x {width}");
                return Err(Error::range(OP, argument, got, "at least one pixel and fewer than 2^31"));
            }
        }
        let pixels = self.from[0] * self.from[1];
        if elements == 0 || !elements.is_multiple_of(pixels) {
            let expected = format!("[{images}, channels, {}, {}]", self.from[0], self.from[1]);
            return Err(Error::shape(OP, "activations", &[images, elements], expected));
        }
        let channels = elements / pixels;
        if gradients != (images, channels) {
            let expected = format!("[{images}, {channels}], a number for each channel of each image");
            return Err(Error::shape(OP, "gradients", &[gradients.0, gradients.1], expected));
        }
        Ok(channels)
    }
}

/// The error of a mask with numbers that are no share.
pub fn bad_mask(op: &'static str, image: usize) -> Error {
    Error::range(op, "mask", format!("outside 0..=1 in image {image}"), "numbers in 0..=1")
}

/// Whether all numbers are in `0..=1`.
fn is_mask(values: &[f32]) -> bool {
    simd::dispatch(
        #[inline(always)]
        // Without an early end, so that it is vectors.
        || values.iter().fold(true, |all, m| all & (*m >= 0.0) & (*m <= 1.0)),
    )
}

/// The maps `[B, H, W]` of images in [0, 1]: with α_k = g_k/(hw), negative ones 0 unless they are kept, the sum
/// max(0, Σ_k α_k A^k) (whose factor 1/(hw) is applied once) is stretched by bicubic interpolation (a = −0.75, pixels are squares, lines go on with their last
/// value) and becomes (x − min)/(max − min + 1e-20). A constant map becomes 0.
///
/// `activations` A is `[B, K·h·w]`, `gradients` g = ∂s/∂GAP `[B, K]`. The sum is taken in `f32` in the order of the channels.
///
/// # Errors
/// [`Error::Shape`], [`Error::Empty`] and [`Error::Range`] for shapes that disagree; [`Error::NotFinite`] naming the image whose
/// gradients or activations are not finite (or so large that a sum exceeds 2¹²⁰).
pub fn cam(activations: &Rows<'_>, gradients: &Rows<'_>, options: &Options) -> Result<Vec<f32>> {
    let channels =
        options.check((activations.rows(), activations.cols()), (gradients.rows(), gradients.cols()))?;
    gradients.check_finite(OP, "gradients")?;
    let ([h, w], [height, width]) = (options.from, options.to);
    let (columns, rows) = (Axis::new(w, width), Axis::new(h, height));
    let mut out = vec![0.0f32; activations.rows() * height * width];
    let bad = out
        .par_chunks_exact_mut(height * width)
        .enumerate()
        .map_init(
            || Scratch::new(activations, channels, h * w, h * width),
            |scratch, (image, map)| {
                if !scratch.sum(activations, gradients, image, options.keep_negative) {
                    return Some(image);
                }
                horizontal(&scratch.sums, &columns, &mut scratch.wide);
                let (least, most) = vertical(&scratch.wide, &rows, map);
                let range = most - least + SMALLEST_RANGE;
                simd::dispatch(
                    #[inline(always)]
                    || map.iter_mut().for_each(|x| *x = (*x - least) / range),
                );
                None
            },
        )
        .flatten()
        .min();
    match bad {
        Some(row) => Err(Error::NotFinite { op: OP, argument: "activations", row }),
        None => Ok(out),
    }
}

/// What a thread works in.
struct Scratch {
    /// Activations of an image in `f32`; empty when they are.
    values: Vec<f32>,
    weights: Vec<f32>,
    /// `[h, w]`.
    sums: Vec<f32>,
    /// `[h, W]`.
    wide: Vec<f32>,
}

impl Scratch {
    fn new(activations: &Rows<'_>, channels: usize, pixels: usize, wide: usize) -> Self {
        let values = if activations.as_f32().is_some() { 0 } else { activations.cols() };
        Self {
            values: vec![0.0; values],
            weights: vec![0.0; channels],
            sums: vec![0.0; pixels],
            wide: vec![0.0; wide],
        }
    }

    /// max(0, Σ_k α_k A^k); says whether the sums are finite and small enough.
    fn sum(
        &mut self,
        activations: &Rows<'_>,
        gradients: &Rows<'_>,
        image: usize,
        keep_negative: bool,
    ) -> bool {
        let pixels = self.sums.len();
        gradients.load_row(image, &mut self.weights);
        if !keep_negative {
            self.weights.iter_mut().for_each(|g| *g = g.max(0.0));
        }
        let values = match activations.as_f32() {
            Some(all) => &all[image * activations.stride()..][..activations.cols()],
            None => {
                activations.load_row(image, &mut self.values);
                &self.values
            }
        };
        let (weights, sums) = (&self.weights, &mut self.sums);
        sums.fill(0.0);
        simd::dispatch(
            #[inline(always)]
            || {
                for (weight, plane) in weights.iter().zip(values.chunks_exact(pixels)) {
                    simd::axpy_inline(*weight, plane, sums);
                }
            },
        );
        // NaN is not below the limit; 0 · ∞ is NaN, so that a weight of 0 hides nothing.
        let good = sums.iter().all(|sum| sum.abs() <= LARGEST_SUM);
        sums.iter_mut().for_each(|sum| *sum = sum.max(0.0) / pixels as f32);
        good
    }
}
