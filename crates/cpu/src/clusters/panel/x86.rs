//! AVX-512 and AVX2 kernels.

use std::arch::x86_64::{
    __m128, __m512, _CMP_EQ_OQ, _CMP_GE_OQ, _mm_add_ps, _mm_castpd_ps, _mm_castps_pd, _mm_loadu_ps,
    _mm_shuffle_ps, _mm_storeu_ps, _mm_unpackhi_pd, _mm_unpacklo_pd, _mm256_add_ps, _mm256_castpd_ps,
    _mm256_castps256_ps128, _mm256_cmp_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_movemask_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_castps_pd, _mm512_castps512_ps256,
    _mm512_cmp_ps_mask, _mm512_extractf64x4_pd, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_ps,
    _mm512_mask3_fmadd_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_reduce_max_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{BLOCK, Candidate, Kernel, LANES, LD, Tops, scores_inline};

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
fn scores_avx2(x: [&[f32]; 2], c: &[f32], start: &[f32], out: [&mut [f32]; 2]) {
    scores_inline(x, c, start, out);
}

/// Four centroids at a time with both rows: eight chains of additions instead of one.
///
/// # Safety
/// The machine has AVX-512F; both rows have one length and `c` as many rows of it as `start` and both of `out`
/// have elements.
#[target_feature(enable = "avx512f,fma")]
pub(in crate::clusters) unsafe fn scores_avx512(
    x: [&[f32]; 2],
    c: &[f32],
    start: &[f32],
    mut out: [&mut [f32]; 2],
) {
    let d = x[0].len();
    let fours = start.len() / 4 * 4;
    for k in (0..fours).step_by(4) {
        let mut lanes = [[_mm512_setzero_ps(); 4]; 2];
        // The mask is all ones but in the last step.
        for at in (0..d).step_by(LANES) {
            let mask = if d - at >= LANES { u16::MAX } else { (1 << (d - at)) - 1 };
            // SAFETY: lanes below `d - at` lie inside the rows and the four centroids by the caller's contract;
            // the others are not read.
            let c: [_; 4] = std::array::from_fn(|j| unsafe {
                _mm512_maskz_loadu_ps(mask, c.as_ptr().add((k + j) * d + at))
            });
            for (lanes, x) in lanes.iter_mut().zip(x) {
                // SAFETY: as above.
                let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)) };
                for (lanes, c) in lanes.iter_mut().zip(c) {
                    *lanes = _mm512_mask3_fmadd_ps(x, c, *lanes, mask);
                }
            }
        }
        for (lanes, out) in lanes.into_iter().zip(&mut out) {
            let (start, out) = (&start[k..k + 4], &mut out[k..k + 4]);
            let sums = fold_4(lanes);
            // SAFETY: four elements each.
            unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(sums, _mm_loadu_ps(start.as_ptr()))) };
        }
    }
    let [first, second] = out;
    let out = [&mut first[fours..], &mut second[fours..]];
    scores_inline(x, &c[fours * d..], &start[fours..], out);
}

/// The sums of four times 16 lanes by the tree of `crate::simd`: halves are added until one is left.
#[target_feature(enable = "avx512f,fma")]
fn fold_4(lanes: [__m512; 4]) -> __m128 {
    let quarter = |lanes: __m512| {
        let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), upper);
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
    };
    let [a, b, c, d] = lanes.map(|lanes| _mm_castps_pd(quarter(lanes)));
    let half = |a, b| _mm_add_ps(_mm_castpd_ps(_mm_unpacklo_pd(a, b)), _mm_castpd_ps(_mm_unpackhi_pd(a, b)));
    let (ab, cd) = (half(a, b), half(c, d));
    _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd))
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
