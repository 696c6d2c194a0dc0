//! Augmentation of video clips with one set of parameters for all frames of a clip, one pixel after another.
//!
//! The operations and their order are those of the published training of CVRL (Qian, Meng, Gong, Yang, Wang, Belongie, Cui,
//! "Spatiotemporal Contrastive Video Representation Learning", CVPR 2021, section 3.3 and its public code): crop and
//! bilinear resampling, flip, the four steps of the color jitter in any order, each clipped to [0, 1], grayscale, Gaussian
//! blur, solarization.

/// The shape of a clip's frames: channels are always red, green, blue.
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
    /// Elements of a clip `[T, 3, H, W]`.
    pub fn elements(&self) -> usize {
        self.count * 3 * self.height * self.width
    }

    fn at(&self, [t, c, y, x]: [usize; 4]) -> usize {
        ((t * 3 + c) * self.height + y) * self.width + x
    }
}

/// One step of a color jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// x ← f x.
    Brightness(f64),
    /// x ← m + f (x − m), m the mean of the channel over the whole clip.
    Contrast(f64),
    /// The saturation of hue, saturation and value times f, at most 1.
    Saturation(f64),
    /// The hue moved by so many turns.
    Hue(f64),
}

/// What is done to a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Augmentation {
    /// Top, left, height, width of the box that is kept.
    pub crop: [usize; 4],
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// The color jitter, in this order.
    pub steps: Vec<Step>,
    /// Whether only the luma 0.2989 R + 0.587 G + 0.114 B stays.
    pub grayscale: bool,
    /// σ of the blur, in pixels.
    pub blur: Option<f64>,
    /// Values from here on become 1 − x.
    pub solarize: Option<f64>,
}

/// A clip `[T, 3, H, W]` of `frames`, augmented to frames of `height` × `width`; the blur reaches `radius` pixels.
pub fn augment(
    clip: &[f64],
    frames: Frames,
    augmentation: &Augmentation,
    (height, width): (usize, usize),
    radius: usize,
) -> Vec<f64> {
    let out = Frames { height, width, ..frames };
    let [top, left, crop_height, crop_width] = augmentation.crop;
    let mut values = vec![0.0; out.elements()];
    for t in 0..frames.count {
        for c in 0..3 {
            for y in 0..height {
                for x in 0..width {
                    let column = if augmentation.flip { width - 1 - x } else { x };
                    let pixel = |y: usize, x: usize| clip[frames.at([t, c, top + y, left + x])];
                    let (y0, y1, down) = source(y, crop_height, height);
                    let (x0, x1, right) = source(column, crop_width, width);
                    values[out.at([t, c, y, x])] = (1.0 - down)
                        * ((1.0 - right) * pixel(y0, x0) + right * pixel(y0, x1))
                        + down * ((1.0 - right) * pixel(y1, x0) + right * pixel(y1, x1));
                }
            }
        }
    }
    for step in &augmentation.steps {
        jitter(&mut values, out, *step);
    }
    if augmentation.grayscale {
        each_pixel(&mut values, out, |[r, g, b]| [0.2989 * r + 0.587 * g + 0.114 * b; 3]);
    }
    if let Some(sigma) = augmentation.blur {
        values = blur(&values, out, &blur_weights(sigma, radius));
    }
    if let Some(threshold) = augmentation.solarize {
        values.iter_mut().for_each(|x| *x = if *x >= threshold { 1.0 - *x } else { *x });
    }
    values
}

/// Where pixel `at` of `size` lies among `from` pixels, both covering the same length: its two neighbors and the share of
/// the second. Beyond the outermost centers it is the outermost pixel.
pub fn source(at: usize, from: usize, size: usize) -> (usize, usize, f64) {
    let place = ((at as f64 + 0.5) * from as f64 / size as f64 - 0.5).clamp(0.0, (from - 1) as f64);
    let first = place.floor() as usize;
    (first, (first + 1).min(from - 1), place - first as f64)
}

/// w_k ∝ e^{−k²/2σ²} for |k| ≤ radius, which sum to 1; those of k = 0, 1, …
pub fn blur_weights(sigma: f64, radius: usize) -> Vec<f64> {
    let weights: Vec<f64> = (0..=radius).map(|k| (-((k * k) as f64) / (2.0 * sigma * sigma)).exp()).collect();
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter().map(|w| w / sum).collect()
}

fn each_pixel(values: &mut [f64], frames: Frames, change: impl Fn([f64; 3]) -> [f64; 3]) {
    for t in 0..frames.count {
        for y in 0..frames.height {
            for x in 0..frames.width {
                let places = [0, 1, 2].map(|c| frames.at([t, c, y, x]));
                for (place, value) in places.into_iter().zip(change(places.map(|place| values[place]))) {
                    values[place] = value;
                }
            }
        }
    }
}

fn jitter(values: &mut [f64], frames: Frames, step: Step) {
    let clip = |x: f64| x.clamp(0.0, 1.0);
    match step {
        Step::Brightness(f) => each_pixel(values, frames, |rgb| rgb.map(|x| clip(f * x))),
        Step::Contrast(f) => {
            let pixels = (frames.count * frames.height * frames.width) as f64;
            let mut means = [0.0; 3];
            for t in 0..frames.count {
                for (c, mean) in means.iter_mut().enumerate() {
                    let first = frames.at([t, c, 0, 0]);
                    *mean += values[first..first + frames.height * frames.width].iter().sum::<f64>() / pixels;
                }
            }
            each_pixel(values, frames, |rgb| [0, 1, 2].map(|c| clip(means[c] + f * (rgb[c] - means[c]))));
        }
        Step::Saturation(f) => each_pixel(values, frames, |rgb| {
            let [h, s, v] = hsv(rgb);
            rgb_of([h, clip(f * s), v]).map(clip)
        }),
        Step::Hue(turns) => each_pixel(values, frames, |rgb| {
            let [h, s, v] = hsv(rgb);
            rgb_of([(h + turns).rem_euclid(1.0), s, v]).map(clip)
        }),
    }
}

/// Hue in turns, saturation and value (Smith, "Color gamut transform pairs", SIGGRAPH 1978).
pub fn hsv([r, g, b]: [f64; 3]) -> [f64; 3] {
    let (value, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = value - least;
    if chroma == 0.0 {
        return [0.0, 0.0, value];
    }
    let sextant = if value == r {
        (g - b) / chroma
    } else if value == g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    [(sextant / 6.0).rem_euclid(1.0), chroma / value, value]
}

/// The inverse of [`hsv`].
pub fn rgb_of([h, s, v]: [f64; 3]) -> [f64; 3] {
    let (sextant, rest) = ((6.0 * h).floor(), (6.0 * h).fract());
    let (low, falling, rising) = (v * (1.0 - s), v * (1.0 - s * rest), v * (1.0 - s * (1.0 - rest)));
    match sextant as usize % 6 {
        0 => [v, rising, low],
        1 => [falling, v, low],
        2 => [low, v, rising],
        3 => [low, falling, v],
        4 => [rising, low, v],
        _ => [v, low, falling],
    }
}

/// Every frame is black beyond its edges.
fn blur(values: &[f64], frames: Frames, weights: &[f64]) -> Vec<f64> {
    let radius = weights.len() as isize - 1;
    let along = |values: &[f64], (down, right): (isize, isize)| -> Vec<f64> {
        let mut out = vec![0.0; values.len()];
        for t in 0..frames.count {
            for c in 0..3 {
                for y in 0..frames.height {
                    for x in 0..frames.width {
                        let mut sum = 0.0;
                        for k in -radius..=radius {
                            let (v, u) = (y as isize + k * down, x as isize + k * right);
                            let inside = (0..frames.height as isize).contains(&v)
                                && (0..frames.width as isize).contains(&u);
                            if inside {
                                let value = values[frames.at([t, c, v as usize, u as usize])];
                                sum += weights[k.unsigned_abs()] * value;
                            }
                        }
                        out[frames.at([t, c, y, x])] = sum;
                    }
                }
            }
        }
        out
    };
    along(&along(values, (0, 1)), (1, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    const PLAIN: Augmentation = Augmentation {
        crop: [0, 0, 2, 2],
        flip: false,
        steps: Vec::new(),
        grayscale: false,
        blur: None,
        solarize: None,
    };
    const FRAMES: Frames = Frames { count: 1, height: 2, width: 2 };

    fn close(got: &[f64], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert_abs_diff_eq!(*got, *expected, epsilon = 1e-12);
        }
    }

    /// The red plane of the clip below.
    fn red(augmentation: &Augmentation, size: (usize, usize)) -> Vec<f64> {
        let clip: Vec<f64> = [[0.0, 0.4, 0.8, 0.2], [0.5; 4], [1.0; 4]].concat();
        augment(&clip, FRAMES, augmentation, size, 1)[..size.0 * size.1].to_vec()
    }

    #[test]
    fn resampling_has_its_golden_values() {
        close(&red(&PLAIN, (2, 2)), &[0.0, 0.4, 0.8, 0.2]);
        close(&red(&Augmentation { flip: true, ..PLAIN }, (2, 2)), &[0.4, 0.0, 0.2, 0.8]);
        close(&red(&PLAIN, (1, 1)), &[0.35]);
        // Twice as wide: centers at −¼, ¼, ¾, 1¼ of the old columns.
        close(&red(&PLAIN, (2, 4)), &[0.0, 0.1, 0.3, 0.4, 0.8, 0.65, 0.35, 0.2]);
        close(&red(&Augmentation { crop: [1, 0, 1, 2], ..PLAIN }, (2, 1)), &[0.5, 0.5]);
    }

    #[test]
    fn colors_have_their_golden_values() {
        let one = |step: Step, rgb: [f64; 3]| {
            let mut values = rgb.to_vec();
            jitter(&mut values, Frames { count: 1, height: 1, width: 1 }, step);
            values
        };
        close(&one(Step::Brightness(1.5), [0.2, 0.5, 0.9]), &[0.3, 0.75, 1.0]);
        // The mean of one pixel is the pixel.
        close(&one(Step::Contrast(1.7), [0.2, 0.5, 0.9]), &[0.2, 0.5, 0.9]);
        // By Python's colorsys: hsv(0.8, 0.4, 0.2) = (1/18, 0.75, 0.8).
        close(&hsv([0.8, 0.4, 0.2]), &[1.0 / 18.0, 0.75, 0.8]);
        close(&one(Step::Saturation(0.5), [0.8, 0.4, 0.2]), &[0.8, 0.6, 0.5]);
        close(&one(Step::Saturation(1.8), [0.8, 0.4, 0.2]), &[0.8, 0.8 / 3.0, 0.0]);
        close(&one(Step::Hue(1.0 / 3.0), [0.8, 0.4, 0.2]), &[0.2, 0.8, 0.4]);
        close(&one(Step::Hue(-1.0 / 3.0), [0.8, 0.4, 0.2]), &[0.4, 0.2, 0.8]);
        close(&one(Step::Hue(0.5), [0.3; 3]), &[0.3; 3]);
        // Means 0.35: 0.35 + 2 (x − 0.35), clipped.
        let contrast = Augmentation { steps: vec![Step::Contrast(2.0)], ..PLAIN };
        close(&red(&contrast, (2, 2)), &[0.0, 0.45, 1.0, 0.05]);
        let gray = Augmentation { grayscale: true, ..PLAIN };
        close(&red(&gray, (2, 2))[..2], &[0.4075, 0.4075 + 0.4 * 0.2989]);
        let sun = Augmentation { solarize: Some(0.4), ..PLAIN };
        close(&red(&sun, (2, 2)), &[0.0, 0.6, 0.2, 0.2]);
    }

    #[test]
    fn hsv_and_rgb_are_inverse() {
        for n in 0..1000 {
            let rgb = [n % 10, n / 10 % 10, n / 100].map(|k| k as f64 / 9.0);
            close(&rgb_of(hsv(rgb)), &rgb);
        }
    }

    #[test]
    fn blurs_are_separable_gaussians_over_black() {
        let weights = blur_weights(2.0, 11);
        close(&[weights[0] + 2.0 * weights[1..].iter().sum::<f64>()], &[1.0]);
        // Far beyond the Gaussian's reach: its density, e^{−9/8}/(2 √2π).
        assert_abs_diff_eq!(weights[3], 0.064_758_797_832_945_87, epsilon = 1e-6);
        let w = blur_weights(1.0, 1);
        // A corner: everything beyond the frame is 0.
        let corner = w[0] * (w[1] * 0.4) + w[1] * (w[0] * 0.8 + w[1] * 0.2);
        close(&red(&Augmentation { blur: Some(1.0), ..PLAIN }, (2, 2))[..1], &[corner]);
    }
}
