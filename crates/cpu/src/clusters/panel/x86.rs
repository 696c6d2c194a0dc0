//! AVX-512 and AVX2 kernels.

use std::arch::x86_64::{
    __m512, _CMP_EQ_OQ, _CMP_GE_OQ, _mm_add_pd, _mm_add_sd, _mm_cvtsd_f64, _mm_unpackhi_pd, _mm256_add_pd,
    _mm256_castpd256_pd128, _mm256_cmp_ps, _mm256_extractf128_pd, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_movemask_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_pd, _mm512_add_ps, _mm512_castpd_ps,
    _mm512_castpd512_pd256, _mm512_castps_pd, _mm512_castps512_ps256, _mm512_cmp_ps_mask, _mm512_cvtps_pd,
    _mm512_extractf64x4_pd, _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_ps,
    _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_pd, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps,
    _mm512_reduce_max_ps, _mm512_set1_ps, _mm512_setzero_pd, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_sub_pd, _mm512_unpackhi_pd, _mm512_unpacklo_pd,
};

use super::{BLOCK, Candidate, Kernel, LANES, LD, Tops, scores_inline};
use crate::clusters::points::squared_distances_inline;

/// 12 rows × 32 centroids: 24 of the 32 registers hold sums.
static AVX512: Kernel = Kernel {
    name: "avx512",
    rows: 12,
    keys: 32,
    least: 24,
    packed: false,
    sums: sums_avx512,
    scan: scan_avx512::<1>,
    scan_two: scan_avx512::<2>,
    scan_known: scan_avx512::<0>,
    scores: scores_avx512,
    distances: distances_avx512,
};

/// 6 rows × 16 centroids: 12 of the 16 registers hold sums.
static AVX2: Kernel = Kernel {
    name: "avx2",
    rows: 6,
    keys: 16,
    least: 24,
    packed: false,
    sums: sums_avx2,
    scan: scan_avx2::<1>,
    scan_two: scan_avx2::<2>,
    scan_known: scan_avx2::<0>,
    scores: scores_avx2,
    distances: distances_avx2,
};

/// The kernels whose instructions this machine has, the fastest first.
pub(super) fn available() -> impl Iterator<Item = &'static Kernel> {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma");
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    [avx512.then_some(&AVX512), avx2.then_some(&AVX2)].into_iter().flatten()
}

/// # Safety
/// The machine has AVX-512F; `x` holds 12 rows of `dim` elements `ld` apart, `panels` `dim` elements for each of
/// `start`, which are a multiple of 32, and `out` 12 rows of that many elements [`LD`] apart.
#[target_feature(enable = "avx512f,fma")]
unsafe fn sums_avx512(dim: usize, (x, ld): (&[f32], usize), panels: &[f32], start: &[f32], out: &mut [f32]) {
    for (p, (start, panel)) in start.chunks_exact(32).zip(panels.chunks_exact(32 * dim)).enumerate() {
        let (mut x, mut c) = (x.as_ptr(), panel.as_ptr());
        // SAFETY: a chunk of 32 starts.
        let mut sums =
            unsafe { [[_mm512_loadu_ps(start.as_ptr()), _mm512_loadu_ps(start.as_ptr().add(16))]; 12] };
        for _ in 0..dim {
            // SAFETY: step `d < dim` reads element `d` of each of the 12 rows and elements `32 d .. 32 d + 32`
            // of the panel, inside both by the caller's contract; the pointers end at most one past the end.
            unsafe {
                let (left, right) = (_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(i * ld));
                    sums[0] = _mm512_fmadd_ps(x, left, sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, right, sums[1]);
                }
                (x, c) = (x.add(1), c.add(32));
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[i * LD + 32 * p..][..32];
            // SAFETY: 32 elements.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), sums[1]);
            }
        }
    }
}

/// # Safety
/// The machine has AVX2 and FMA; `x` holds 6 rows of `dim` elements `ld` apart, `panels` `dim` elements for each
/// of `start`, which are a multiple of 16, and `out` 6 rows of that many elements [`LD`] apart.
#[target_feature(enable = "avx2,fma")]
unsafe fn sums_avx2(dim: usize, (x, ld): (&[f32], usize), panels: &[f32], start: &[f32], out: &mut [f32]) {
    for (p, (start, panel)) in start.chunks_exact(16).zip(panels.chunks_exact(16 * dim)).enumerate() {
        let (mut x, mut c) = (x.as_ptr(), panel.as_ptr());
        // SAFETY: a chunk of 16 starts.
        let mut sums =
            unsafe { [[_mm256_loadu_ps(start.as_ptr()), _mm256_loadu_ps(start.as_ptr().add(8))]; 6] };
        for _ in 0..dim {
            // SAFETY: step `d < dim` reads element `d` of each of the 6 rows and elements `16 d .. 16 d + 16` of
            // the panel, inside both by the caller's contract; the pointers end at most one past the end.
            unsafe {
                let (left, right) = (_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(8)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(i * ld));
                    sums[0] = _mm256_fmadd_ps(x, left, sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, right, sums[1]);
                }
                (x, c) = (x.add(1), c.add(16));
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[i * LD + 16 * p..][..16];
            // SAFETY: 16 elements.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
            }
        }
    }
}

/// The bits of the sums that reach a threshold, 16 sums to a number: first all of them, then the few that are
/// set, so that the first loop has no branch.
#[target_feature(enable = "avx512f,fma")]
pub(in crate::clusters) fn scan_avx512<const BESTS: u8>(
    width: usize,
    sums: &[f32],
    (tops, slack): (&mut [Tops], &[f32]),
    (row, key): (u32, u32),
    found: &mut Vec<Candidate>,
) {
    let load = |sums: &[f32]| {
        let sums = &sums[..LANES];
        // SAFETY: 16 elements.
        unsafe { _mm512_loadu_ps(sums.as_ptr()) }
    };
    for (i, (tops, slack)) in tops.iter_mut().zip(slack).enumerate() {
        let sums = &sums[i * LD..i * LD + width];
        let mut best = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
        let mut second = best;
        for pair in sums.chunks(2 * LANES).filter(|_| BESTS > 0) {
            for (v, sums) in pair.chunks_exact(LANES).enumerate() {
                let sums = load(sums);
                if BESTS == 2 {
                    second[v] = _mm512_max_ps(second[v], _mm512_min_ps(best[v], sums));
                }
                best[v] = _mm512_max_ps(best[v], sums);
            }
        }
        let both = _mm512_max_ps(best[0], best[1]);
        let top = _mm512_reduce_max_ps(both);
        if BESTS == 2 {
            // Every lane but one that has the top counts with its best, that one with its second.
            let lower = _mm512_min_ps(best[0], best[1]);
            let lower = _mm512_max_ps(lower, _mm512_max_ps(second[0], second[1]));
            let tops_at = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(both, _mm512_set1_ps(top));
            let one = tops_at & tops_at.wrapping_neg();
            tops.offer(top);
            tops.offer(_mm512_reduce_max_ps(_mm512_mask_mov_ps(both, one, lower)));
        } else if BESTS == 1 && top > tops.best {
            tops.best = top;
        }
        let threshold = _mm512_set1_ps(tops.threshold(BESTS == 2, *slack));
        let mut words = [0u64; BLOCK / 64];
        for (word, sums) in words.iter_mut().zip(sums.chunks(64)) {
            for (c, sums) in sums.chunks_exact(LANES).enumerate() {
                *word |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(load(sums), threshold)) << (16 * c);
            }
        }
        for (w, mut word) in words.into_iter().enumerate() {
            while word != 0 {
                let at = 64 * w + word.trailing_zeros() as usize;
                found.push(Candidate { row: row + i as u32, key: key + at as u32, sum: sums[at] });
                word &= word - 1;
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn scores_avx2(x: (&[f32], usize), shape: (usize, usize), c: &[f32], start: &[f32], out: &mut [f32]) {
    scores_inline(x, shape, c, start, out);
}

/// Four rows and four centroids at a time: 16 of the 32 registers hold sums. The last row and the last centroid stand
/// for those that are missing.
///
/// # Safety
/// The machine has AVX-512F.
#[target_feature(enable = "avx512f,fma")]
pub(in crate::clusters) fn scores_avx512(
    (x, ld): (&[f32], usize),
    (n, d): (usize, usize),
    c: &[f32],
    start: &[f32],
    out: &mut [f32],
) {
    let k = start.len();
    for first in (0..n).step_by(4) {
        // Closures given to functions of the standard library would not be compiled into this loop.
        let row = |i: usize| &x[(first + i).min(n - 1) * ld..][..d];
        let rows = [row(0), row(1), row(2), row(3)];
        for key in (0..k).step_by(4) {
            let center = |j: usize| &c[(key + j).min(k - 1) * d..][..d];
            let centers = [center(0), center(1), center(2), center(3)];
            let mut lanes = [[_mm512_setzero_ps(); 4]; 4];
            // The mask is all ones but in the last step.
            for at in (0..d).step_by(LANES) {
                let mask = if d - at >= LANES { u16::MAX } else { (1 << (d - at)) - 1 };
                // SAFETY: lanes below `d - at` lie inside the rows and centroids, slices of `d` elements; the others
                // are not read.
                let load = |x: &[f32]| unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) };
                let c = [load(centers[0]), load(centers[1]), load(centers[2]), load(centers[3])];
                for i in 0..4 {
                    let x = load(rows[i]);
                    for j in 0..4 {
                        lanes[i][j] = _mm512_mask3_fmadd_ps(x, c[j], lanes[i][j], mask);
                    }
                }
            }
            let mut sums = [0.0f32; LANES];
            // SAFETY: 16 elements.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), fold_16(lanes)) };
            let out = out[key * LANES..].chunks_exact_mut(LANES);
            for ((sums, start), out) in sums.chunks_exact(4).zip(&start[key..]).zip(out) {
                out[first..first + 4].iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + start);
            }
        }
    }
}

/// The sums of 16 times 16 lanes by the tree of `crate::simd`: halves are added until one is left. The input
/// `lanes[i][j]` becomes element 4 j + i.
#[target_feature(enable = "avx512f,fma")]
fn fold_16(lanes: [[__m512; 4]; 4]) -> __m512 {
    // Every step adds the halves of what is left of two registers, into one.
    let eight = |a, b| {
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    };
    let four = |a, b| {
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    let two = |a, b| {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    };
    let one = |a, b| {
        let low = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
    };
    // Each quarter holds four lanes of one centroid.
    let quarters = |[a, b, c, d]: [__m512; 4]| four(eight(a, b), eight(c, d));
    let [a, b, c, d] = lanes;
    one(two(quarters(a), quarters(b)), two(quarters(c), quarters(d)))
}

#[target_feature(enable = "avx2,fma")]
fn distances_avx2(x: &[f32], centers: [&[f64]; 2]) -> [f64; 2] {
    squared_distances_inline(x, centers)
}

/// Lanes 0 to 7 of each sum in one register, 8 to 15 in another.
///
/// # Safety
/// The machine has AVX-512F.
#[target_feature(enable = "avx512f,fma")]
pub(in crate::clusters) fn distances_avx512(x: &[f32], centers: [&[f64]; 2]) -> [f64; 2] {
    let d = x.len();
    let (a, b) = (&centers[0][..d], &centers[1][..d]);
    let mut lanes = [[_mm512_setzero_pd(); 2]; 2];
    for step in (0..d).step_by(LANES) {
        for (half, lanes) in lanes.iter_mut().enumerate() {
            // The mask is all ones but at the end; the lanes that it leaves out add 0.
            let at = step + half * (LANES / 2);
            let mask = if at + LANES / 2 <= d { u8::MAX } else { (1 << d.saturating_sub(at)) - 1 };
            // SAFETY: lanes below `d - at` lie inside the row and the centroids, slices of `d` elements; the others
            // are not read, and pointers beyond the end are only computed.
            let (x, a, b) = unsafe {
                let x = _mm512_maskz_loadu_ps(u16::from(mask), x.as_ptr().wrapping_add(at));
                let a = _mm512_maskz_loadu_pd(mask, a.as_ptr().wrapping_add(at));
                (x, a, _mm512_maskz_loadu_pd(mask, b.as_ptr().wrapping_add(at)))
            };
            let x = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
            let (to_a, to_b) = (_mm512_sub_pd(x, a), _mm512_sub_pd(x, b));
            lanes[0] = _mm512_fmadd_pd(to_a, to_a, lanes[0]);
            lanes[1] = _mm512_fmadd_pd(to_b, to_b, lanes[1]);
        }
    }
    let fold = |low, high| {
        let eight = _mm512_add_pd(low, high);
        let four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd::<1>(eight));
        let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
        _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
    };
    [fold(lanes[0][0], lanes[1][0]), fold(lanes[0][1], lanes[1][1])]
}

scan!(
    #[target_feature(enable = "avx2,fma")]
    scan_avx2,
    |sums: &[f32], threshold: f32| {
        let sums = &sums[..16];
        // SAFETY: 16 elements.
        let (low, high) = unsafe { (_mm256_loadu_ps(sums.as_ptr()), _mm256_loadu_ps(sums.as_ptr().add(8))) };
        let threshold = _mm256_set1_ps(threshold);
        let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(low, threshold)).cast_unsigned();
        let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(high, threshold)).cast_unsigned();
        low | high << 8
    }
);
