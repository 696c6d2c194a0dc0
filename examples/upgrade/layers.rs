//! The passes of a small convolutional network over slices, forward and backward, on matrix products.
//!
//! Candle's convolutions on the CPU copy every neighborhood and run their elementwise chains on one thread. Here
//! an image keeps a zero column after each row and a zero row after its last, so that the three pixels under
//! one row of a 3 × 3 kernel lie side by side in memory: a convolution is then three plain matrix products whose
//! left operand is the activations themselves, read with overlapping rows, and nothing is copied.
//!
//! Work is cut into groups of whole images that do not depend on the number of threads, and partial sums merge
//! in the order of the groups: the same inputs give the same bits on any number of threads.

#[path = "layers/activation.rs"] // found from other examples, too
mod activation;

use consonance_cpu::{simd, tile};
use rayon::prelude::*;

pub(crate) use activation::{Moments, activate, activate_grad};

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
