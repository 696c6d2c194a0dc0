//! AVX-512 and AVX2 kernels.

use std::arch::x86_64::{
    _CMP_GE_OQ, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_movemask_ps, _mm256_set1_ps,
    _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
};

use super::{Hit, Kernel, interleave, push};
use crate::simd::{dot_inline, scale_f64_inline, squared_distance_inline, squared_norm_inline};

/// 12 queries × 32 keys: 24 of the 32 registers hold sums.
static AVX512: Kernel = Kernel {
    name: "avx512",
    queries: 12,
    keys: 32,
    packed: |dim| dim,
    pack_queries: interleave::<12>,
    pack_keys: interleave::<32>,
    arm: || {},
    disarm: || {},
    screen: screen_avx512,
    residual: None,
    underflow: 0.0,
    dot: dot_avx512,
    squared_distance: squared_distance_avx512,
    squared_norm: squared_norm_avx512,
    scale: scale_avx512,
};

/// 6 queries × 16 keys: 12 of the 16 registers hold sums.
static AVX2: Kernel = Kernel {
    name: "avx2",
    queries: 6,
    keys: 16,
    packed: |dim| dim,
    pack_queries: interleave::<6>,
    pack_keys: interleave::<16>,
    arm: || {},
    disarm: || {},
    screen: screen_avx2,
    residual: None,
    underflow: 0.0,
    dot: dot_avx2,
    squared_distance: squared_distance_avx2,
    squared_norm: squared_norm_avx2,
    scale: scale_avx2,
};

/// The kernels whose instructions this machine has, the fastest first.
pub(super) fn available() -> impl Iterator<Item = &'static Kernel> {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    [avx512.then_some(&AVX512), avx2.then_some(&AVX2)].into_iter().flatten()
}

#[target_feature(enable = "avx512f,fma")]
fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    dot_inline(a, b)
}

#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    dot_inline(a, b)
}

#[target_feature(enable = "avx512f,fma")]
fn squared_distance_avx512(a: &[f32], b: &[f32]) -> f32 {
    squared_distance_inline(a, b)
}

#[target_feature(enable = "avx512f,fma")]
fn squared_norm_avx512(x: &[f32]) -> f64 {
    squared_norm_inline(x)
}

#[target_feature(enable = "avx512f,fma")]
fn scale_avx512(alpha: f64, x: &mut [f32]) {
    scale_f64_inline(alpha, x);
}

#[target_feature(enable = "avx2,fma")]
fn squared_distance_avx2(a: &[f32], b: &[f32]) -> f32 {
    squared_distance_inline(a, b)
}

#[target_feature(enable = "avx2,fma")]
fn squared_norm_avx2(x: &[f32]) -> f64 {
    squared_norm_inline(x)
}

#[target_feature(enable = "avx2,fma")]
fn scale_avx2(alpha: f64, x: &mut [f32]) {
    scale_f64_inline(alpha, x);
}

/// # Safety
/// The machine has AVX-512F; `q` holds `12 * dim` elements, `k` `start.len() * dim`, `thresholds` 12.
#[target_feature(enable = "avx512f,fma")]
unsafe fn screen_avx512(
    dim: usize,
    q: &[f32],
    k: &[f32],
    start: &[f32],
    thresholds: &[f32],
    hits: &mut Vec<Hit>,
) {
    for (panel, start) in start.chunks_exact(32).enumerate() {
        let (mut q, mut k) = (q.as_ptr(), k[panel * 32 * dim..].as_ptr());
        // SAFETY: a chunk of 32 starts.
        let mut sums =
            unsafe { [[_mm512_loadu_ps(start.as_ptr()), _mm512_loadu_ps(start.as_ptr().add(16))]; 12] };
        for _ in 0..dim {
            // SAFETY: step `d < dim` reads elements `12 d .. 12 d + 12` of `q` and `32 d .. 32 d + 32` of the
            // panel, inside both by the caller's contract; the pointers end at most one past the end.
            unsafe {
                let (left, right) = (_mm512_loadu_ps(k), _mm512_loadu_ps(k.add(16)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*q.add(i));
                    sums[0] = _mm512_fmadd_ps(x, left, sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, right, sums[1]);
                }
                (q, k) = (q.add(12), k.add(32));
            }
        }
        let mut masks = [0u32; 12];
        let mut any = 0;
        for ((sums, threshold), mask) in sums.iter().zip(thresholds).zip(&mut masks) {
            let threshold = _mm512_set1_ps(*threshold);
            let left = u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(sums[0], threshold));
            let right = u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(sums[1], threshold));
            *mask = left | right << 16;
            any |= *mask;
        }
        if any != 0 {
            masks.iter().enumerate().for_each(|(query, mask)| push(hits, query, panel * 32, *mask));
        }
    }
}

/// # Safety
/// The machine has AVX2 and FMA; `q` holds `6 * dim` elements, `k` `start.len() * dim`, `thresholds` 6.
#[target_feature(enable = "avx2,fma")]
unsafe fn screen_avx2(
    dim: usize,
    q: &[f32],
    k: &[f32],
    start: &[f32],
    thresholds: &[f32],
    hits: &mut Vec<Hit>,
) {
    for (panel, start) in start.chunks_exact(16).enumerate() {
        let (mut q, mut k) = (q.as_ptr(), k[panel * 16 * dim..].as_ptr());
        // SAFETY: a chunk of 16 starts.
        let mut sums =
            unsafe { [[_mm256_loadu_ps(start.as_ptr()), _mm256_loadu_ps(start.as_ptr().add(8))]; 6] };
        for _ in 0..dim {
            // SAFETY: step `d < dim` reads elements `6 d .. 6 d + 6` of `q` and `16 d .. 16 d + 16` of the panel,
            // inside both by the caller's contract; the pointers end at most one past the end.
            unsafe {
                let (left, right) = (_mm256_loadu_ps(k), _mm256_loadu_ps(k.add(8)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*q.add(i));
                    sums[0] = _mm256_fmadd_ps(x, left, sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, right, sums[1]);
                }
                (q, k) = (q.add(6), k.add(16));
            }
        }
        let mut masks = [0u32; 6];
        let mut any = 0;
        for ((sums, threshold), mask) in sums.iter().zip(thresholds).zip(&mut masks) {
            let threshold = _mm256_set1_ps(*threshold);
            let left = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(sums[0], threshold)).cast_unsigned();
            let right = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(sums[1], threshold)).cast_unsigned();
            *mask = left | right << 8;
            any |= *mask;
        }
        if any != 0 {
            masks.iter().enumerate().for_each(|(query, mask)| push(hits, query, panel * 16, *mask));
        }
    }
}
