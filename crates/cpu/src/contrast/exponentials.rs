//! Scores of a tile into exponentials, a row at a time, with sums in a fixed order.

use crate::simd::{self, exp_inline};

pub(crate) const LANES: usize = 16;

#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], with: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = with(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `row[j] = e^(row[j]·scale + bias[j] − shift)`; returns the sum. The length is a multiple of 16.
///
/// A bias of 0 gives the bits of no bias.
#[inline(always)]
pub(super) fn exponentials(row: &mut [f32], bias: Option<&[f32]>, scale: f32, shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    match bias {
        None => {
            for row in row.chunks_exact_mut(LANES) {
                for l in 0..LANES {
                    let e = exp_inline(row[l] * scale - shift);
                    row[l] = e;
                    lanes[l] += e;
                }
            }
        }
        Some(bias) => {
            for (row, bias) in row.chunks_exact_mut(LANES).zip(bias.chunks_exact(LANES)) {
                for l in 0..LANES {
                    let e = exp_inline(row[l].mul_add(scale, bias[l]) - shift);
                    row[l] = e;
                    lanes[l] += e;
                }
            }
        }
    }
    fold(lanes, |a, b| a + b)
}

/// The largest `row[j]·scale + bias[j]`.
#[inline(always)]
pub(crate) fn largest(row: &[f32], bias: Option<&[f32]>, scale: f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    match bias {
        None => {
            for row in row.chunks_exact(LANES) {
                for l in 0..LANES {
                    lanes[l] = lanes[l].max(row[l] * scale);
                }
            }
        }
        Some(bias) => {
            for (row, bias) in row.chunks_exact(LANES).zip(bias.chunks_exact(LANES)) {
                for l in 0..LANES {
                    lanes[l] = lanes[l].max(row[l].mul_add(scale, bias[l]));
                }
            }
        }
    }
    fold(lanes, f32::max)
}

/// e^x behind one dispatch, with the bits of the tiles' exponentials.
pub(crate) fn exponential(x: f32) -> f32 {
    simd::dispatch(
        #[inline(always)]
        || exp_inline(x),
    )
}
