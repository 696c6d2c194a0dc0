//! The passes of a small convolutional network over slices, forward and backward, on matrix products.
//!
//! Candle's convolutions on the CPU copy every neighborhood and run their elementwise chains on one thread. Here
//! an image keeps a zero column after each row and a zero row after its last, so that the three pixels under
//! one row of a 3 × 3 kernel lie side by side in memory: a convolution is then three plain matrix products whose
//! left operand is the activations themselves, read with overlapping rows, and nothing is copied.
//!
//! Work is cut into groups of whole images that do not depend on the number of threads, and partial sums merge
//! in the order of the groups: the same inputs give the same bits on any number of threads.

use consonance_cpu::{simd, tile};
use rayon::prelude::*;

/// Pixels that one matrix product works on, about: enough to pay for packing the weights, few enough for the cache.
const GROUP_PIXELS: usize = 640;

/// The size of a batch of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) images: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Shape {
    /// Stored pixels of one image: its own, one zero column, one zero row.
    fn stored(&self) -> usize {
        (self.height + 1) * (self.width + 1)
    }

    /// Zero pixels in front of the first image and behind the last.
    fn margin(&self) -> usize {
        self.width + 2
    }

    /// Images that one task takes.
    fn group(&self) -> usize {
        (GROUP_PIXELS / self.stored()).max(1)
    }

    /// Numbers that one task takes.
    fn group_len(&self) -> usize {
        self.group() * self.stored() * self.channels
    }

    /// The same images with other channels.
    pub(crate) fn with_channels(self, channels: usize) -> Self {
        Self { channels, ..self }
    }

    /// The same images at half the resolution.
    pub(crate) fn halved(self) -> Self {
        Self { height: self.height / 2, width: self.width / 2, ..self }
    }

    /// Pixels that are no padding, over all images.
    fn pixels(&self) -> usize {
        self.images * self.height * self.width
    }
}

/// A batch of images, channels last, padded as the module's head says.
#[derive(Debug, Clone)]
pub(crate) struct Plane {
    pub(crate) shape: Shape,
    data: Vec<f32>,
}

impl Plane {
    pub(crate) fn zeros(shape: Shape) -> Self {
        let pixels = shape.images * shape.stored() + 2 * shape.margin();
        Self { shape, data: vec![0.0; pixels * shape.channels] }
    }

    /// From dense `[images, height, width, channels]`.
    pub(crate) fn from_dense(shape: Shape, dense: &[f32]) -> Self {
        let mut plane = Self::zeros(shape);
        let row = shape.width * shape.channels;
        let image = shape.height * row;
        plane.groups_mut().enumerate().for_each(|(g, group)| {
            for (i, stored) in group.chunks_exact_mut(shape.stored() * shape.channels).enumerate() {
                let source = &dense[(g * shape.group() + i) * image..][..image];
                for (to, from) in
                    stored.chunks_exact_mut((shape.width + 1) * shape.channels).zip(source.chunks_exact(row))
                {
                    to[..row].copy_from_slice(from);
                }
            }
        });
        plane
    }

    fn body(&self) -> &[f32] {
        let margin = self.shape.margin() * self.shape.channels;
        &self.data[margin..self.data.len() - margin]
    }

    fn groups(&self) -> impl IndexedParallelIterator<Item = &[f32]> {
        self.body().par_chunks(self.shape.group_len())
    }

    fn groups_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [f32]> {
        let margin = self.shape.margin() * self.shape.channels;
        let (end, len) = (self.data.len() - margin, self.shape.group_len());
        self.data[margin..end].par_chunks_mut(len)
    }

    /// `self += other`.
    pub(crate) fn add(&mut self, other: &Self) {
        self.groups_mut().zip(other.groups()).for_each(|(a, b)| {
            simd::dispatch(
                #[inline(always)]
                || a.iter_mut().zip(b).for_each(|(a, b)| *a += b),
            );
        });
    }
}

/// Calls `f` with the range of every image row that is no padding, in elements from the group's start.
#[inline(always)]
fn for_rows(shape: Shape, len: usize, mut f: impl FnMut(std::ops::Range<usize>)) {
    let (pitch, image) = ((shape.width + 1) * shape.channels, shape.stored() * shape.channels);
    for i in 0..len / image {
        for y in 0..shape.height {
            let start = i * image + y * pitch;
            f(start..start + shape.width * shape.channels);
        }
    }
}

/// Puts the zeros back where a product left the sums of padding.
fn clear_padding(shape: Shape, group: &mut [f32]) {
    let row = (shape.width + 1) * shape.channels;
    for image in group.chunks_exact_mut(shape.stored() * shape.channels) {
        for line in image[..shape.height * row].chunks_exact_mut(row) {
            line[shape.width * shape.channels..].fill(0.0);
        }
        image[shape.height * row..].fill(0.0);
    }
}

/// A 3 × 3 convolution, stride 1, zero padding: `weights` is `[3, 3 · in, out]` (kernel row; kernel column and input
/// channel; output channel).
pub(crate) fn convolve(input: &Plane, weights: &[f32], out_channels: usize) -> Plane {
    let (shape, cin) = (input.shape, input.shape.channels);
    let mut out = Plane::zeros(shape.with_channels(out_channels));
    let (pitch, group) = (shape.width + 1, shape.group() * shape.stored());
    out.groups_mut().enumerate().for_each(|(g, out)| {
        let pixels = out.len() / out_channels;
        for ky in 0..3 {
            // The pixel left of and (1 - ky) rows above the group's first; the margin makes it exist.
            let first = shape.margin() + g * group + ky * pitch - pitch - 1;
            tile::accumulate(
                (pixels, 3 * cin, out_channels),
                (&input.data[first * cin..], cin),
                (&weights[ky * 3 * cin * out_channels..], out_channels),
                (out, out_channels),
            );
        }
        clear_padding(shape.with_channels(out_channels), out);
    });
    out
}

/// The weights of the convolution that carries the gradient back to the input: kernel turned by half a turn, channels
/// exchanged.
pub(crate) fn turned(weights: &[f32], cin: usize, cout: usize) -> Vec<f32> {
    let mut out = vec![0.0; weights.len()];
    for tap in 0..9 {
        let from = &weights[(8 - tap) * cin * cout..][..cin * cout];
        let to = &mut out[tap * cin * cout..][..cin * cout];
        for ci in 0..cin {
            for co in 0..cout {
                to[co * cin + ci] = from[ci * cout + co];
            }
        }
    }
    out
}

/// The gradient of [`convolve`] with respect to its weights, `[3, 3 · in, out]`; `grad` has zeros in its padding.
pub(crate) fn convolve_weights_grad(input: &Plane, grad: &Plane) -> Vec<f32> {
    let (shape, cin, cout) = (input.shape, input.shape.channels, grad.shape.channels);
    let (pitch, group) = (shape.width + 1, shape.group() * shape.stored());
    let partial: Vec<Vec<f32>> = grad
        .groups()
        .enumerate()
        .map(|(g, grad)| {
            let mut out = vec![0.0; 9 * cin * cout];
            for (ky, out) in out.chunks_exact_mut(3 * cin * cout).enumerate() {
                let first = shape.margin() + g * group + ky * pitch - pitch - 1;
                tile::accumulate_transposed(
                    (grad.len() / cout, 3 * cin, cout),
                    (&input.data[first * cin..], cin),
                    (grad, cout),
                    (out, cout),
                );
            }
            out
        })
        .collect();
    merged(partial)
}

/// The sum of equally long vectors, in their order.
fn merged(partial: Vec<Vec<f32>>) -> Vec<f32> {
    let mut partial = partial.into_iter();
    let mut sum = partial.next().unwrap_or_default();
    for p in partial {
        simd::axpy(1.0, &p, &mut sum);
    }
    sum
}

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

/// Batch normalization with `gain` and `bias`, then a skip connection if any, ReLU, and 2 × 2 maximum pooling if asked.
pub(crate) fn activate(
    x: &Plane,
    moments: &Moments,
    (gain, bias): (&[f32], &[f32]),
    skip: Option<&Plane>,
    pool: bool,
) -> Plane {
    let (scale, shift) = moments.affine(gain, bias);
    let (scale, shift) = (scale.as_slice(), shift.as_slice());
    let (shape, c) = (x.shape, x.shape.channels);
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
                if pool {
                    for_windows(shape, x.len(), |corners, to| {
                        for ch in 0..c {
                            let mut best = 0.0f32;
                            for at in corners {
                                best = best.max(x[at + ch].mul_add(scale[ch], shift[ch]));
                            }
                            y[to + ch] = best;
                        }
                    });
                } else {
                    for_rows(shape, x.len(), |row| {
                        let pixels = x[row.clone()].chunks_exact(c).zip(y[row.clone()].chunks_exact_mut(c));
                        for (p, (x, y)) in pixels.enumerate() {
                            for ch in 0..c {
                                y[ch] = x[ch].mul_add(scale[ch], shift[ch]);
                            }
                            if let Some(skip) = skip {
                                let skip = &skip[row.start + p * c..][..c];
                                for ch in 0..c {
                                    y[ch] += skip[ch];
                                }
                            }
                            for y in y.iter_mut() {
                                *y = y.max(0.0);
                            }
                        }
                    });
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
    let (scale, shift) = (scale.as_slice(), shift.as_slice());
    let inverse = moments.inverse_deviation();
    let (mean, inverse) = (moments.mean.as_slice(), inverse.as_slice());
    let (shape, c) = (x.shape, x.shape.channels);
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
                        for_windows(shape, x.len(), |corners, from| {
                            for ch in 0..c {
                                let value = |k: usize| x[corners[k] + ch].mul_add(scale[ch], shift[ch]);
                                let z = [value(0), value(1), value(2), value(3)];
                                let best = z[0].max(z[1]).max(z[2]).max(z[3]);
                                let mut left = if best > 0.0 { dy[from + ch] } else { 0.0 };
                                for k in 0..4 {
                                    let share = if z[k] == best { left } else { 0.0 };
                                    g[corners[k] + ch] = share;
                                    left -= share;
                                }
                            }
                        });
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
    let (offset, slope) = (offset.as_slice(), slope.as_slice());
    g_plane.groups_mut().zip(x.groups()).for_each(|(g, x)| {
        simd::dispatch(
            #[inline(always)]
            || {
                for_rows(shape, x.len(), |row| {
                    for (g, x) in g[row.clone()].chunks_exact_mut(c).zip(x[row].chunks_exact(c)) {
                        for ch in 0..c {
                            g[ch] = scale[ch] * (g[ch] - offset[ch] - (x[ch] - mean[ch]) * slope[ch]);
                        }
                    }
                });
            },
        );
    });
    let narrow = |s: &[f64]| s.iter().map(|s| *s as f32).collect();
    ActivateGrad { input: g_plane, skip, gain: narrow(&sums[c..]), bias: narrow(&sums[..c]) }
}

/// Means over the cells of a `grid × grid` division of every image: `[images, grid · grid · channels]`.
pub(crate) fn cell_means(plane: &Plane, grid: usize) -> Vec<f32> {
    let (shape, c) = (plane.shape, plane.shape.channels);
    let mut out = vec![0.0; shape.images * grid * grid * c];
    let weight = (grid * grid) as f32 / (shape.height * shape.width) as f32;
    out.par_chunks_mut(grid * grid * c).zip(plane.body().par_chunks(shape.stored() * c)).for_each(
        |(out, image)| {
            for_cells(shape, grid, |pixel, cell| {
                simd::axpy(weight, &image[pixel * c..][..c], &mut out[cell * c..][..c]);
            });
        },
    );
    out
}

/// The backward pass of [`cell_means`].
pub(crate) fn cell_means_grad(shape: Shape, grid: usize, grad: &[f32]) -> Plane {
    let c = shape.channels;
    let mut out = Plane::zeros(shape);
    let weight = (grid * grid) as f32 / (shape.height * shape.width) as f32;
    let margin = shape.margin() * c;
    let end = out.data.len() - margin;
    out.data[margin..end].par_chunks_mut(shape.stored() * c).zip(grad.par_chunks(grid * grid * c)).for_each(
        |(image, grad)| {
            for_cells(shape, grid, |pixel, cell| {
                simd::axpy(weight, &grad[cell * c..][..c], &mut image[pixel * c..][..c]);
            });
        },
    );
    out
}

/// Calls `f` with every pixel of an image and its cell.
fn for_cells(shape: Shape, grid: usize, mut f: impl FnMut(usize, usize)) {
    for y in 0..shape.height {
        for x in 0..shape.width {
            f(y * (shape.width + 1) + x, (y * grid / shape.height) * grid + x * grid / shape.width);
        }
    }
}
