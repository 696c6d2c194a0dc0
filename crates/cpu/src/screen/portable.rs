//! The kernel for every machine: plain loops over arrays that compilers turn into vectors.

use super::{Hit, Kernel, interleave, push};
use crate::simd::{dot_inline, scale_f64_inline, squared_distance_inline, squared_norm_inline};

const QUERIES: usize = 4;
const KEYS: usize = 16;

pub(super) static KERNEL: Kernel = Kernel {
    name: "portable",
    queries: QUERIES,
    keys: KEYS,
    packed: |dim| dim,
    pack_queries: interleave::<QUERIES>,
    pack_keys: interleave::<KEYS>,
    arm: || {},
    disarm: || {},
    screen,
    residual: None,
    underflow: 0.0,
    dot: dot_inline,
    squared_distance: squared_distance_inline,
    squared_norm: squared_norm_inline,
    scale: scale_f64_inline,
};

fn screen(dim: usize, q: &[f32], k: &[f32], start: &[f32], thresholds: &[f32], hits: &mut Vec<Hit>) {
    for (panel, (k, start)) in k.chunks_exact(dim * KEYS).zip(start.chunks_exact(KEYS)).enumerate() {
        let mut sums = [[0.0f32; KEYS]; QUERIES];
        for sums in &mut sums {
            sums.copy_from_slice(start);
        }
        for (q, k) in q.chunks_exact(QUERIES).zip(k.chunks_exact(KEYS)) {
            for (sums, q) in sums.iter_mut().zip(q) {
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum += q * k;
                }
            }
        }
        for (query, (sums, threshold)) in sums.iter().zip(thresholds).enumerate() {
            let mask = (0u32..).zip(sums).fold(0, |mask, (j, s)| mask | u32::from(s >= threshold) << j);
            push(hits, query, panel * KEYS, mask);
        }
    }
}
