//! Products of `f32` matrices by the tile matrix unit: each number is split into two of bfloat16.
//!
//! With hi = bf16(x) and lo = bf16(x − hi), ⟨x, y⟩ ≈ ⟨lo_x, hi_y⟩ + ⟨hi_x, hi_y⟩ + ⟨hi_x, lo_y⟩, summed in `f32` (Henry,
//! Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
//! Computations", arXiv:1904.06376). What is left out is at most 2⁻¹⁵‖x‖‖y‖, as docs/contrast.md derives. The order
//! of every sum is that of the steps of 32 along the shared dimension, whatever the shape of a call.

mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use kernel::{Left, multiply};

pub(crate) use kernel::Terms;
pub(crate) use pack::Source;

use crate::amx::{self, Armed};
use crate::screen::Aligned;

/// Rows and columns of a product, and the shared dimension of one step.
pub(crate) const SIDE: usize = 32;

/// `f32` in the place of 32 bfloat16.
const LINE: usize = 16;

/// `f32` in the place of one part of one step of a panel.
const GROUP: usize = SIDE * LINE;

/// Panels that are packed before the left operand's rows go by: they stay in the second-level cache.
const PANELS: usize = 4;

/// Columns of a left operand's rows beyond what they hold: rows a power of two apart would share few sets of the cache.
const GAP: usize = 2 * LINE;

/// Whether this machine can: tiles of bfloat16, and the vectors that pack them.
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
        && amx::available()
}

/// Split rows: the left operand of [`Unit::scores`].
#[derive(Debug, Default)]
pub(crate) struct Packed {
    data: Aligned,
    stride: usize,
    rows: usize,
    cols: usize,
    parts: usize,
}

impl Packed {
    fn left(&self) -> Left<'_> {
        Left { data: self.data.as_slice(), stride: self.stride, rows: self.rows, parts: self.parts }
    }

    /// Sets the shape, with room for it.
    fn reset(&mut self, (rows, cols): (usize, usize), parts: usize) {
        let steps = cols.div_ceil(SIDE);
        (self.rows, self.cols, self.parts) = (rows.next_multiple_of(SIDE), cols, parts);
        self.stride = steps * parts * LINE + GAP;
        self.data.reserve(self.rows * self.stride);
    }
}

/// Buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    panels: Aligned,
    transposed: Packed,
}

/// A thread that may multiply.
pub(crate) struct Unit {
    armed: Armed,
}

impl Unit {
    /// Makes this thread ready, when the machine can.
    pub(crate) fn new() -> Option<Self> {
        if !available() {
            return None;
        }
        Armed::new().map(|armed| Self { armed })
    }

    /// Splits rows, `source.rows()` filled up to `rows`.
    pub(crate) fn pack(&self, terms: Terms, source: Source<'_>, rows: usize, out: &mut Packed) {
        out.reset((rows, source.cols()), terms.parts().0);
        let (stride, rows) = (out.stride, out.rows);
        let data = out.data.as_mut_slice();
        // SAFETY: [`Unit::new`] has found the instructions.
        unsafe {
            match terms.parts().0 {
                1 => pack::rows::<1>(source, rows, data, stride),
                2 => pack::rows::<2>(source, rows, data, stride),
                _ => pack::rows::<3>(source, rows, data, stride),
            }
        }
    }

    /// `out[i, j] = ⟨x_i, y_j⟩` for the rows of `x` and `keys` rows of `y`, a multiple of 32.
    pub(crate) fn scores(
        &self,
        terms: Terms,
        x: &Packed,
        (y, keys): (Source<'_>, usize),
        (out, ldo): (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        assert_eq!(x.cols, y.cols(), "split scores: dimensions");
        let steps = x.cols.div_ceil(SIDE);
        let size = steps * GROUP * terms.parts().1;
        let panels = buffers.panels.reserve(PANELS * size);
        for first in (0..keys).step_by(PANELS * SIDE) {
            let count = PANELS.min((keys - first) / SIDE);
            for (at, panel) in panels.chunks_exact_mut(size).take(count).enumerate() {
                // SAFETY: [`Unit::new`] has found the instructions.
                unsafe {
                    match terms.parts().1 {
                        1 => pack::across::<1>(y, first + at * SIDE, panel),
                        2 => pack::across::<2>(y, first + at * SIDE, panel),
                        _ => pack::across::<3>(y, first + at * SIDE, panel),
                    }
                }
            }
            multiply(&self.armed, terms, steps, x.left(), (panels, count), (&mut out[first..], ldo), false);
        }
    }

    /// Splits `row`, whose length is a multiple of 32, in its place: the left operand of [`Unit::accumulate`].
    #[inline]
    pub(crate) fn split(&self, row: &mut [f32]) {
        // SAFETY: [`Unit::new`] has found the instructions.
        unsafe { pack::in_place(row) }
    }

    /// `out[i, :] += Σ_j p[i, j] · y_j` over `keys` rows of `y`, a multiple of 32: `p` are `rows` rows that
    /// [`Unit::split`] has split, `out` has room for `y`'s columns filled up to a multiple of 32.
    pub(crate) fn accumulate(
        &self,
        terms: Terms,
        (p, ldp, rows): (&[f32], usize, usize),
        (y, keys): (Source<'_>, usize),
        (out, ldo): (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        let (steps, left) = (keys / SIDE, Left { data: p, stride: ldp, rows, parts: 2 });
        self.sums(terms, left, (y, steps), (out, ldo), &mut buffers.panels);
    }

    /// `out[d, j] += Σ_i x[i, d] · p[i, j]`, `rows` rows of both, a multiple of 32: `out` has as many rows as `x` has
    /// columns, filled up to a multiple of 32.
    pub(crate) fn accumulate_transposed(
        &self,
        rows: usize,
        x: Source<'_>,
        p: Source<'_>,
        (out, ldo): (&mut [f32], usize),
        buffers: &mut Buffers,
    ) {
        let (steps, Buffers { panels, transposed }) = (rows / SIDE, buffers);
        transposed.reset((x.cols(), rows), 2);
        let stride = transposed.stride;
        // SAFETY: [`Unit::new`] has found the instructions.
        unsafe { pack::transposed::<2>(x, steps, transposed.data.as_mut_slice(), stride) };
        self.sums(Terms::Three, transposed.left(), (p, steps), (out, ldo), panels);
    }

    /// `out += left · right` over `steps` steps of 32 rows of `right`.
    fn sums(
        &self,
        terms: Terms,
        left: Left<'_>,
        (right, steps): (Source<'_>, usize),
        (out, ldo): (&mut [f32], usize),
        panels: &mut Aligned,
    ) {
        let size = steps * GROUP * terms.parts().1;
        let panels = panels.reserve(PANELS * size);
        for first in (0..right.cols()).step_by(PANELS * SIDE) {
            let count = PANELS.min((right.cols() - first).div_ceil(SIDE));
            let panels = &mut panels[..count * size];
            // SAFETY: [`Unit::new`] has found the instructions.
            unsafe {
                match terms.parts().1 {
                    1 => pack::along::<1>(right, first, steps, panels),
                    _ => pack::along::<2>(right, first, steps, panels),
                }
            }
            multiply(&self.armed, terms, steps, left, (panels, count), (&mut out[first..], ldo), true);
        }
    }
}
