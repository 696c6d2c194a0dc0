//! Random affine and colour changes of training images.
//!
//! What an image becomes depends only on (seed, epoch, index), not on threads, batches or a restart.

use consonance_datasets::Split;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::random::Draws;

/// How far images are changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Augmentation {
    /// Largest rotation, in degrees.
    pub(crate) rotation: f32,
    /// Sizes between 1/(1 + zoom) and 1 + zoom.
    pub(crate) zoom: f32,
    /// Largest shear.
    pub(crate) shear: f32,
    /// Largest shift as a share of the image's size.
    pub(crate) shift: f32,
    /// Brightness, contrast and the gain of every colour change by up to this share.
    pub(crate) color: f32,
    /// How often an image loses its colours.
    pub(crate) gray: f32,
    /// How often an image becomes its negative.
    pub(crate) invert: f32,
    /// How often the colours change places.
    pub(crate) permute: f32,
    /// How often a rectangle is painted over.
    pub(crate) erase: f32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Self {
            rotation: 10.0,
            zoom: 0.15,
            shear: 0.1,
            shift: 0.1,
            color: 0.4,
            gray: 0.1,
            invert: 0.0,
            permute: 0.1,
            erase: 0.0,
        }
    }
}

/// A byte as the network sees it.
fn level(byte: u8) -> f32 {
    (f32::from(byte) - 127.5) / 64.0
}

/// Images as they are, dense `[indices, height, width, 3]`.
pub(crate) fn plain(split: &Split, indices: &[usize]) -> Vec<f32> {
    indices.iter().flat_map(|&i| split.image(i).iter().map(|b| level(*b))).collect()
}

/// Changed images, dense `[indices, height, width, 3]`; `key` is the run's seed and the epoch.
pub(crate) fn augmented(
    split: &Split,
    (height, width): (usize, usize),
    indices: &[usize],
    key: [u64; 2],
    how: &Augmentation,
) -> Vec<f32> {
    let len = height * width * 3;
    let mut out = vec![0.0; indices.len() * len];
    out.par_chunks_mut(len).zip(indices).for_each(|(out, &index)| {
        let mut draws = Draws::new(&[key[0], key[1], index as u64]);
        warp(split.image(index), (height, width), how, &mut draws, out);
        recolor(how, &mut draws, out);
        erase((height, width), how, &mut draws, out);
    });
    out
}

/// A random affine map, bilinear, the border repeated.
fn warp(
    image: &[u8],
    (height, width): (usize, usize),
    how: &Augmentation,
    draws: &mut Draws,
    out: &mut [f32],
) {
    let turn = how.rotation.to_radians();
    let angle = draws.within(-turn, turn);
    let log_zoom = (1.0 + how.zoom).ln();
    let (zoom_x, zoom_y) = {
        let common = draws.within(-log_zoom, log_zoom);
        let apart = 0.3 * draws.within(-log_zoom, log_zoom);
        ((common + apart).exp(), (common - apart).exp())
    };
    let shear = draws.within(-how.shear, how.shear);
    let shift_x = draws.within(-how.shift, how.shift) * width as f32;
    let shift_y = draws.within(-how.shift, how.shift) * height as f32;
    let (sin, cos) = angle.sin_cos();
    let matrix = [cos * zoom_x, (shear * cos - sin) * zoom_x, sin * zoom_y, (shear * sin + cos) * zoom_y];
    let (center_x, center_y) = (0.5 * (width as f32 - 1.0), 0.5 * (height as f32 - 1.0));
    for y in 0..height {
        for x in 0..width {
            let (dx, dy) = (x as f32 - center_x, y as f32 - center_y);
            let u = (matrix[0] * dx + matrix[1] * dy + center_x + shift_x).clamp(0.0, width as f32 - 1.0);
            let v = (matrix[2] * dx + matrix[3] * dy + center_y + shift_y).clamp(0.0, height as f32 - 1.0);
            let (left, top) = (u as usize, v as usize);
            let (right, bottom) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
            let (fu, fv) = (u - left as f32, v - top as f32);
            let at = |y: usize, x: usize, c: usize| level(image[(y * width + x) * 3 + c]);
            for c in 0..3 {
                let above = (at(top, right, c) - at(top, left, c)) * fu + at(top, left, c);
                let below = (at(bottom, right, c) - at(bottom, left, c)) * fu + at(bottom, left, c);
                out[(y * width + x) * 3 + c] = (below - above) * fv + above;
            }
        }
    }
}

/// Random gains and offsets of the colours, sometimes gray, negative or exchanged.
fn recolor(how: &Augmentation, draws: &mut Draws, out: &mut [f32]) {
    let mut order = [0, 1, 2];
    if draws.unit() < how.permute {
        draws.permutation(3).into_iter().zip(&mut order).for_each(|(from, to)| *to = from);
    }
    let gray = draws.unit() < how.gray;
    let sign = if draws.unit() < how.invert { -1.0 } else { 1.0 };
    let contrast = sign * (1.0 + draws.within(-how.color, how.color));
    let brightness = draws.within(-how.color, how.color);
    let gain: [f32; 3] =
        std::array::from_fn(|_| contrast * (1.0 + 0.5 * draws.within(-how.color, how.color)));
    let offset: [f32; 3] = std::array::from_fn(|_| brightness + 0.5 * draws.within(-how.color, how.color));
    for pixel in out.chunks_exact_mut(3) {
        let mut p = [pixel[order[0]], pixel[order[1]], pixel[order[2]]];
        if gray {
            p = [0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]; 3];
        }
        for c in 0..3 {
            pixel[c] = p[c] * gain[c] + offset[c];
        }
    }
}

/// Sometimes paints one rectangle over in one colour (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020).
fn erase((height, width): (usize, usize), how: &Augmentation, draws: &mut Draws, out: &mut [f32]) {
    if draws.unit() >= how.erase {
        return;
    }
    let side = |draws: &mut Draws, full: usize| ((draws.within(0.15, 0.45) * full as f32) as usize).max(1);
    let (h, w) = (side(draws, height), side(draws, width));
    let (top, left) = (draws.below(height - h + 1), draws.below(width - w + 1));
    let color: [f32; 3] = std::array::from_fn(|_| draws.within(-2.0, 2.0));
    for y in top..top + h {
        for pixel in out[(y * width + left) * 3..][..w * 3].chunks_exact_mut(3) {
            pixel.copy_from_slice(&color);
        }
    }
}
