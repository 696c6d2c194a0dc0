//! The kernel for every machine: plain loops over arrays that compilers turn into vectors.

use super::Kernel;
use crate::simd::{dot_inline, scale_f64_inline, squared_distance_inline, squared_norm_inline};

const QUERIES: usize = 4;
const KEYS: usize = 16;

pub(super) static KERNEL: Kernel = Kernel {
    name: "portable",
    queries: QUERIES,
    keys: KEYS,
    screen,
    dot: dot_inline,
    squared_distance: squared_distance_inline,
    squared_norm: squared_norm_inline,
    scale: scale_f64_inline,
};

fn screen(dim: usize, q: &[f32], k: &[f32], start: &[f32], thresholds: &[f32], masks: &mut [u32]) -> bool {
    let mut sums = [[0.0f32; KEYS]; QUERIES];
    for sums in &mut sums {
        sums.copy_from_slice(&start[..KEYS]);
    }
    for (q, k) in q.chunks_exact(QUERIES).zip(k.chunks_exact(KEYS)).take(dim) {
        for (sums, q) in sums.iter_mut().zip(q) {
            for (sum, k) in sums.iter_mut().zip(k) {
                *sum += q * k;
            }
        }
    }
    let mut any = 0;
    for ((sums, threshold), mask) in sums.iter().zip(thresholds).zip(masks) {
        *mask = sums.iter().enumerate().fold(0, |mask, (j, s)| mask | u32::from(s >= threshold) << j);
        any |= *mask;
    }
    any != 0
}
