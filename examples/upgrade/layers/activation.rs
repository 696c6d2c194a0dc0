//! Batch normalization, skip connection, ReLU and pooling in one pass over a plane, forward and backward.

use consonance_cpu::simd;
use rayon::prelude::*;

use super::{Plane, Shape, for_rows};

/// Mean and variance of every channel over the pixels that are no padding.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// What is added to a variance before its root.
const EPSILON: f32 = 1e-5;

impl Moments {
    pub(crate) fn of(plane: &Plane) -> Self {
        let (shape, c) = (plane.shape, plane.shape.channels);
        let partial: Vec<Vec<f32>> = plane
            .groups()
            .map(|group| {
                let mut sums = vec![0.0; 2 * c];
                simd::dispatch(
                    #[inline(always)]
                    || {
                        let (sum, square) = sums.split_at_mut(c);
                        for pixel in group.chunks_exact(c) {
                            for ((s, q), x) in sum.iter_mut().zip(square.iter_mut()).zip(pixel) {
                                *s += x;
                                *q = x.mul_add(*x, *q);
                            }
                        }
                    },
                );
                sums
            })
            .collect();
        let mut sums = vec![0.0f64; 2 * c];
        for p in partial {
            sums.iter_mut().zip(p).for_each(|(s, p)| *s += f64::from(p));
        }
        let n = shape.pixels().max(1) as f64;
        let mean: Vec<f64> = sums[..c].iter().map(|s| s / n).collect();
        let variance = sums[c..].iter().zip(&mean).map(|(q, m)| (q / n - m * m).max(0.0) as f32).collect();
        Self { mean: mean.into_iter().map(|m| m as f32).collect(), variance }
    }

    fn inverse_deviation(&self) -> Vec<f32> {
        self.variance.iter().map(|v| 1.0 / (v + EPSILON).sqrt()).collect()
    }

    /// Normalization and gain as one multiplication and one addition a number.
    fn affine(&self, gain: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let scale: Vec<f32> = self.inverse_deviation().iter().zip(gain).map(|(d, g)| d * g).collect();
        let shift = self.mean.iter().zip(&scale).zip(bias).map(|((m, s), b)| b - m * s).collect();
        (scale, shift)
    }
}

/// `f32::max` is a call where the instruction alone would do; no number here is NaN.
#[inline(always)]
fn maximum(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn affine(x: &[f32], channel: usize, scale: &[f32], shift: &[f32]) -> f32 {
    x[channel].mul_add(scale[channel], shift[channel])
}

/// Batch normalization with `gain` and `bias`, then a skip connection if any, ReLU, and 2 × 2 maximum pooling if asked.
pub(crate) fn activate(
    x: &Plane,
    moments: &Moments,
    (gain, bias): (&[f32], &[f32]),
    skip: Option<&Plane>,
    pool: bool,
) -> Plane {
    let (scale, shift) = moments.affine(gain, bias);
    let (shape, c) = (x.shape, x.shape.channels);
    let (scale, shift) = (&scale[..c], &shift[..c]);
    let mut y = Plane::zeros(if pool { shape.halved() } else { shape });
    let y_shape = y.shape;
    // Pooled planes have other groups than their sources: address whole images instead.
    let margin = y_shape.margin() * c;
    let (end, image, source) = (y.data.len() - margin, y_shape.stored() * c, shape.stored() * c);
    let per_task = shape.group();
    let body = x.body();
    y.data[margin..end].par_chunks_mut(per_task * image).enumerate().for_each(|(g, y)| {
        let x = &body[g * per_task * source..][..y.len() / image * source];
        let skip = skip.map(|s| &s.body()[g * per_task * source..][..x.len()]);
        simd::dispatch(
            #[inline(always)]
            || {
                // Every closure has the attribute: one that is not inlined would be compiled for the baseline.
                if pool {
                    for_windows(
                        shape,
                        x.len(),
                        #[inline(always)]
                        |corners, to| {
                            let [a, b, p, q] = corners.map(
                                #[inline(always)]
                                |at| &x[at..][..c],
                            );
                            let y = &mut y[to..][..c];
                            for (ch, y) in y.iter_mut().enumerate() {
                                let top = maximum(affine(a, ch, scale, shift), affine(b, ch, scale, shift));
                                let bottom =
                                    maximum(affine(p, ch, scale, shift), affine(q, ch, scale, shift));
                                *y = maximum(maximum(top, bottom), 0.0);
                            }
                        },
                    );
                } else {
                    for_rows(
                        shape,
                        x.len(),
                        #[inline(always)]
                        |row| {
                            let pixels =
                                x[row.clone()].chunks_exact(c).zip(y[row.clone()].chunks_exact_mut(c));
                            for (p, (x, y)) in pixels.enumerate() {
                                match skip {
                                    Some(skip) => {
                                        let skip = &skip[row.start + p * c..][..c];
                                        for (ch, (y, skip)) in y.iter_mut().zip(skip).enumerate() {
                                            *y = maximum(affine(x, ch, scale, shift) + skip, 0.0);
                                        }
                                    }
                                    None => {
                                        for (ch, y) in y.iter_mut().enumerate() {
                                            *y = maximum(affine(x, ch, scale, shift), 0.0);
                                        }
                                    }
                                }
                            }
                        },
                    );
                }
            },
        );
    });
    y
}

/// Calls `f` with the four corners of every 2 × 2 window and where its maximum goes, in elements.
#[inline(always)]
fn for_windows(shape: Shape, len: usize, mut f: impl FnMut([usize; 4], usize)) {
    let (half, c) = (shape.halved(), shape.channels);
    for i in 0..len / (shape.stored() * c) {
        for y in 0..half.height {
            for x in 0..half.width {
                let from = (i * shape.stored() + 2 * y * (shape.width + 1) + 2 * x) * c;
                let below = from + (shape.width + 1) * c;
                f([from, from + c, below, below + c], (i * half.stored() + y * (half.width + 1) + x) * c);
            }
        }
    }
}

/// What [`activate`] sends back.
pub(crate) struct ActivateGrad {
    /// For the convolution's output, zeros in the padding.
    pub(crate) input: Plane,
    /// For the skip connection: the gradient behind the ReLU.
    pub(crate) skip: Option<Plane>,
    pub(crate) gain: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// The backward pass of [`activate`]: `y` is what it returned, `grad` the gradient of that.
pub(crate) fn activate_grad(
    (x, y, grad): (&Plane, &Plane, &Plane),
    moments: &Moments,
    (gain, bias): (&[f32], &[f32]),
    skip: bool,
    pool: bool,
) -> ActivateGrad {
    let (scale, shift) = moments.affine(gain, bias);
    let inverse = moments.inverse_deviation();
    let (shape, c) = (x.shape, x.shape.channels);
    let (scale, shift, mean, inverse) = (&scale[..c], &shift[..c], &moments.mean[..c], &inverse[..c]);
    let mut g_plane = Plane::zeros(shape);
    let (per_task, image) = (shape.group(), y.shape.stored() * c);

    // First pass: through the maximum and the ReLU, and the two sums of every channel.
    let partial: Vec<Vec<f32>> = g_plane
        .groups_mut()
        .zip(x.groups())
        .enumerate()
        .map(|(task, (g, x))| {
            let images = x.len() / (shape.stored() * c);
            let at = task * per_task * image;
            let (dy, y) = (&grad.body()[at..][..images * image], &y.body()[at..][..images * image]);
            let mut sums = vec![0.0; 2 * c];
            simd::dispatch(
                #[inline(always)]
                || {
                    if pool {
                        for_windows(
                            shape,
                            x.len(),
                            #[inline(always)]
                            |corners, from| {
                                let [a, b, p, q] = corners.map(
                                    #[inline(always)]
                                    |at| &x[at..][..c],
                                );
                                let dy = &dy[from..][..c];
                                let lines = &mut g[corners[0]..corners[3] + c];
                                let (above, below) = lines.split_at_mut(corners[2] - corners[0]);
                                let (above, below) = (&mut above[..2 * c], &mut below[..2 * c]);
                                for ch in 0..c {
                                    let z = [
                                        affine(a, ch, scale, shift),
                                        affine(b, ch, scale, shift),
                                        affine(p, ch, scale, shift),
                                        affine(q, ch, scale, shift),
                                    ];
                                    let best = maximum(maximum(z[0], z[1]), maximum(z[2], z[3]));
                                    let mut left = if best > 0.0 { dy[ch] } else { 0.0 };
                                    let mut take = |z: f32| {
                                        let share = if z == best { left } else { 0.0 };
                                        left -= share;
                                        share
                                    };
                                    above[ch] = take(z[0]);
                                    above[c + ch] = take(z[1]);
                                    below[ch] = take(z[2]);
                                    below[c + ch] = take(z[3]);
                                }
                            },
                        );
                    } else {
                        for ((g, d), y) in g.iter_mut().zip(dy).zip(y) {
                            *g = if *y > 0.0 { *d } else { 0.0 };
                        }
                    }
                    let (sum, product) = sums.split_at_mut(c);
                    for (g, x) in g.chunks_exact(c).zip(x.chunks_exact(c)) {
                        for ch in 0..c {
                            sum[ch] += g[ch];
                            product[ch] = (g[ch] * inverse[ch]).mul_add(x[ch] - mean[ch], product[ch]);
                        }
                    }
                },
            );
            sums
        })
        .collect();
    let mut sums = vec![0.0f64; 2 * c];
    for p in partial {
        sums.iter_mut().zip(p).for_each(|(s, p)| *s += f64::from(p));
    }
    let skip = skip.then(|| g_plane.clone());

    // Second pass: through the batch statistics.
    let n = shape.pixels().max(1) as f64;
    let offset: Vec<f32> = sums[..c].iter().map(|s| (s / n) as f32).collect();
    let slope: Vec<f32> = sums[c..].iter().zip(inverse).map(|(s, i)| (s / n) as f32 * i).collect();
    let (offset, slope) = (&offset[..c], &slope[..c]);
    g_plane.groups_mut().zip(x.groups()).for_each(|(g, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for_rows(
                    shape,
                    x.len(),
                    #[inline(always)]
                    |row| {
                        for (g, x) in g[row.clone()].chunks_exact_mut(c).zip(x[row].chunks_exact(c)) {
                            for ch in 0..c {
                                g[ch] = scale[ch] * (g[ch] - offset[ch] - (x[ch] - mean[ch]) * slope[ch]);
                            }
                        }
                    },
                );
            },
        );
    });
    let narrow = |s: &[f64]| s.iter().map(|s| *s as f32).collect();
    ActivateGrad { input: g_plane, skip, gain: narrow(&sums[c..]), bias: narrow(&sums[..c]) }
}
