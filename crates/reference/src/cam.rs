//! Class activation maps (Zhou, Khosla, Lapedriza, Oliva, Torralba, CVPR 2016; Selvaraju et al., "Grad-CAM", ICCV 2017; Mo, Kang,
//! Sohn, Li, Shin, "Object-aware Contrastive Learning for Debiased Scene Representation", NeurIPS 2021), what is cut out by
//! them, and the background that is left.
//!
//! All arrays are dense: activations `[K, h, w]`, maps `[H, W]`, images `[C, H, W]`, of one image each.

/// a of Keys' cubic convolution: −0.75, as PyTorch's `bicubic`.
pub const CUBIC: f64 = -0.75;
/// What keeps the norm of a constant map from 0/0: the public code's.
pub const SMALLEST_RANGE: f64 = 1e-20;

/// The weight of every channel: g/(hw), g = ∂s/∂GAP_k, and 0 instead of negative ones unless they are kept (Grad-CAM).
pub fn weights(gradients: &[f64], pixels: usize, keep_negative: bool) -> Vec<f64> {
    let kept = |g: f64| if keep_negative { g } else { g.max(0.0) };
    gradients.iter().map(|g| kept(*g) / pixels as f64).collect()
}

/// max(0, Σ_k α_k A^k), `[h, w]`.
pub fn weighted_sum(activations: &[f64], weights: &[f64], pixels: usize) -> Vec<f64> {
    let at =
        |pixel: usize| weights.iter().zip(activations.chunks_exact(pixels)).map(|(w, a)| w * a[pixel]).sum();
    (0..pixels).map(|pixel| f64::max(at(pixel), 0.0)).collect()
}

/// Where an output pixel lies among `input` pixels that are stretched over `output` ones, pixels being squares and not
/// points (`align_corners=False`): the pixel at or before it, and the distance to that in pixels.
fn position(at: usize, input: usize, output: usize) -> (isize, f64) {
    let x = (at as f64 + 0.5) * input as f64 / output as f64 - 0.5;
    (x.floor() as isize, x - x.floor())
}

/// Keys' kernel at a distance.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    match x {
        x if x <= 1.0 => ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((x - 5.0) * x + 8.0) * x * CUBIC - 4.0 * CUBIC,
        _ => 0.0,
    }
}

/// One output of a line by cubic convolution; beyond its ends a line goes on with its last value. The weights sum to 1, so
/// that this is the value before it and weighed differences to it: a constant line stays what it is to the last bit.
fn interpolate(line: impl Fn(usize) -> f64, input: usize, at: usize, output: usize) -> f64 {
    let (first, t) = position(at, input, output);
    let tap = |i: isize| line((first + i).clamp(0, input as isize - 1) as usize);
    let middle = tap(0);
    middle
        + cubic(1.0 + t) * (tap(-1) - middle)
        + cubic(1.0 - t) * (tap(1) - middle)
        + cubic(2.0 - t) * (tap(2) - middle)
}

/// A map `[h, w]` stretched to `[H, W]`: along the rows, then along the columns.
pub fn resize(map: &[f64], (h, w): (usize, usize), (height, width): (usize, usize)) -> Vec<f64> {
    let wide: Vec<f64> =
        (0..h).flat_map(|y| (0..width).map(move |x| interpolate(|i| map[y * w + i], w, x, width))).collect();
    (0..height)
        .flat_map(|y| {
            let wide = &wide;
            (0..width).map(move |x| interpolate(|i| wide[i * width + x], h, y, height))
        })
        .collect()
}

/// (x − min)/(max − min + 1e-20).
pub fn normalize(map: &[f64]) -> Vec<f64> {
    let least = map.iter().copied().fold(f64::INFINITY, f64::min);
    let most = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    map.iter().map(|x| (x - least) / (most - least + SMALLEST_RANGE)).collect()
}

/// The map of one image, in [0, 1], from its activations `[K, h, w]` and ∂s/∂GAP `[K]`.
pub fn cam(
    activations: &[f64],
    gradients: &[f64],
    from: (usize, usize),
    to: (usize, usize),
    keep_negative: bool,
) -> Vec<f64> {
    let weights = weights(gradients, from.0 * from.1, keep_negative);
    normalize(&resize(&weighted_sum(activations, &weights, from.0 * from.1), from, to))
}

/// x (1 − m) + y m of every pixel; `other` has a number a channel (a color) or one a pixel.
pub fn masked_blend(image: &[f64], other: &[f64], mask: &[f64]) -> Vec<f64> {
    let channels = image.len() / mask.len();
    let y = |at: usize| if other.len() == channels { other[at / mask.len()] } else { other[at] };
    let blend = |(at, x): (usize, &f64)| x * (1.0 - mask[at % mask.len()]) + y(at) * mask[at % mask.len()];
    image.iter().enumerate().map(blend).collect()
}

/// Pixels of an image: rows `top..bottom`, columns `left..right`; empty when there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rectangle {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Behind the last row.
    pub bottom: usize,
    /// Behind the last column.
    pub right: usize,
}

/// The bounding rectangle of the pixels whose mask is at least `threshold`. With `short` the last row and column are left
/// out, as in the public code of Mo et al.
pub fn rectangle(mask: &[f64], width: usize, threshold: f64, short: bool) -> Rectangle {
    let inside: Vec<(usize, usize)> = mask
        .iter()
        .enumerate()
        .filter(|(_, m)| **m >= threshold)
        .map(|(at, _)| (at / width, at % width))
        .collect();
    let rows = || inside.iter().map(|(y, _)| *y);
    let cols = || inside.iter().map(|(_, x)| *x);
    let (Some(top), Some(bottom), Some(left), Some(right)) =
        (rows().min(), rows().max(), cols().min(), cols().max())
    else {
        return Rectangle::default();
    };
    let behind = usize::from(!short);
    let found = Rectangle { top, left, bottom: bottom + behind, right: right + behind };
    if found.top == found.bottom || found.left == found.right { Rectangle::default() } else { found }
}

/// The largest of the strips above, left of, right of and below a rectangle, the first of equal ones; empty when there is
/// none, or no rectangle.
pub fn strip(rectangle: Rectangle, (height, width): (usize, usize)) -> Rectangle {
    if rectangle == Rectangle::default() {
        return rectangle;
    }
    let Rectangle { top, left, bottom, right } = rectangle;
    let mut best = Rectangle::default();
    let area = |r: &Rectangle| (r.bottom - r.top) * (r.right - r.left);
    for strip in [
        Rectangle { top: 0, left: 0, bottom: top, right: width },
        Rectangle { top: 0, left: 0, bottom: height, right: left },
        Rectangle { top: 0, left: right, bottom: height, right: width },
        Rectangle { top: bottom, left: 0, bottom: height, right: width },
    ] {
        if area(&strip) > area(&best) {
            best = strip;
        }
    }
    best
}

/// An image whose rectangle shows its background: the strip, tiled over the image from its upper left corner. `None` when
/// there is no rectangle or no strip.
pub fn background(
    image: &[f64],
    mask: &[f64],
    size: (usize, usize),
    threshold: f64,
    short: bool,
) -> Option<Vec<f64>> {
    let (height, width) = size;
    let hole = rectangle(mask, width, threshold, short);
    let strip = strip(hole, size);
    if strip == Rectangle::default() {
        return None;
    }
    let mut out = image.to_vec();
    for channel in out.chunks_exact_mut(height * width) {
        let from = channel.to_vec();
        for y in hole.top..hole.bottom {
            for x in hole.left..hole.right {
                let v = strip.top + y % (strip.bottom - strip.top);
                let u = strip.left + x % (strip.right - strip.left);
                channel[y * width + x] = from[v * width + u];
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// PyTorch 2.13's `interpolate([0, 1, 2, 4], size=8, mode="bicubic", align_corners=False)` along one axis.
    #[test]
    fn lines_have_the_values_of_pytorch() {
        let line = [0.0, 1.0, 2.0, 4.0];
        let golden =
            [-0.10546875, 0.19140625, 0.66796875, 1.26171875, 1.59765625, 2.55859375, 3.58203125, 4.2109375];
        for (at, expected) in golden.into_iter().enumerate() {
            assert_abs_diff_eq!(interpolate(|i| line[i], 4, at, 8), expected, epsilon = 1e-12);
        }
        // Rows and columns may be exchanged, and a constant stays what it is.
        let map = [0.5, 1.0, -2.0, 0.25, 3.0, 7.0];
        let turned = [0.5, 0.25, 1.0, 3.0, -2.0, 7.0];
        let (a, b) = (resize(&map, (2, 3), (5, 4)), resize(&turned, (3, 2), (4, 5)));
        for y in 0..5 {
            for x in 0..4 {
                assert_abs_diff_eq!(a[y * 4 + x], b[x * 5 + y], epsilon = 1e-12);
            }
        }
        assert!(resize(&[0.1; 6], (2, 3), (5, 7)).iter().all(|x| *x == 0.1));
    }

    #[test]
    fn maps_have_their_golden_values() {
        // Two channels over 1 x 2 pixels; the second has a negative weight.
        let (activations, gradients) = ([1.0, 3.0, 1.0, 0.0], [4.0, -8.0]);
        assert_eq!(weights(&gradients, 2, false), [2.0, 0.0]);
        assert_eq!(weights(&gradients, 2, true), [2.0, -4.0]);
        assert_eq!(weighted_sum(&activations, &[2.0, 0.0], 2), [2.0, 6.0]);
        assert_eq!(weighted_sum(&activations, &[2.0, -4.0], 2), [0.0, 6.0]);
        assert_eq!(cam(&activations, &gradients, (1, 2), (1, 2), false), [0.0, 1.0]);
        assert_eq!(cam(&activations, &[-1.0, -1.0], (1, 2), (3, 3), false), [0.0; 9]);
        assert_eq!(cam(&[0.7], &[1.0], (1, 1), (2, 2), false), [0.0; 4]);
    }

    #[test]
    fn blends_have_their_golden_values() {
        let (image, mask) = ([1.0, 2.0, 3.0, 4.0], [0.0, 0.25]);
        assert_eq!(masked_blend(&image, &[8.0, 0.0], &mask), [1.0, 3.5, 3.0, 3.0]);
        assert_eq!(masked_blend(&image, &[0.0, 6.0, 0.0, 8.0], &mask), [1.0, 3.0, 3.0, 5.0]);
    }

    #[test]
    fn backgrounds_are_tiles_of_the_largest_strip() {
        // 4 x 5 pixels, the object in rows 1-2, columns 1-2: above and below 5 pixels, left 4, right 8.
        let mut mask = [0.0; 20];
        (mask[6], mask[12]) = (1.0, 0.2);
        let found = rectangle(&mask, 5, 0.2, false);
        assert_eq!(found, Rectangle { top: 1, left: 1, bottom: 3, right: 3 });
        assert_eq!(strip(found, (4, 5)), Rectangle { top: 0, left: 3, bottom: 4, right: 5 });
        let image: Vec<f64> = (0..20).map(f64::from).collect();
        let out = background(&image, &mask, (4, 5), 0.2, false).unwrap();
        let mut expected = image.clone();
        (expected[6], expected[7], expected[11], expected[12]) = (9.0, 8.0, 14.0, 13.0);
        assert_eq!(out, expected);
        // One row and column short, as in the public code: one pixel, below which there is most room.
        let short = rectangle(&mask, 5, 0.2, true);
        assert_eq!(short, Rectangle { top: 1, left: 1, bottom: 2, right: 2 });
        assert_eq!(strip(short, (4, 5)), Rectangle { top: 0, left: 2, bottom: 4, right: 5 });
        assert_eq!(background(&image, &[1.0; 20], (4, 5), 0.2, false), None);
        assert_eq!(background(&image, &[0.1; 20], (4, 5), 0.2, false), None);
    }
}
