//! Products of a few rows with a panel of centroids that keep only the best of each row, in registers.
//!
//! A score starts from −‖c‖²/2 and adds x_d·c_d in the order of d, so its bits depend on the row, the centroid and
//! whether the machine fuses, never on the tile. The scores are not stored: each lane of a row keeps the best
//! one that it has seen.

use std::sync::LazyLock;

/// The most rows of a group.
pub(crate) const MAX_ROWS: usize = 12;
/// The most lanes of a vector.
pub(crate) const MAX_LANES: usize = 16;

/// One score of each lane of each row of a group, and the centroid that has it.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(crate) struct Lanes {
    pub(crate) score: [[f32; MAX_LANES]; MAX_ROWS],
    pub(crate) at: [[u32; MAX_LANES]; MAX_ROWS],
}

impl Lanes {
    pub(crate) const EMPTY: Self =
        Self { score: [[f32::NEG_INFINITY; MAX_LANES]; MAX_ROWS], at: [[u32::MAX; MAX_LANES]; MAX_ROWS] };
}

/// `rows` rows `ld` apart, `dim` elements each; a panel `[dim][keys]`; `keys` start values; the number of the
/// panel's first centroid; the best and the second best so far.
type Multiply =
    unsafe fn(dim: usize, x: (&[f32], usize), panel: &[f32], start: &[f32], u32, &mut Lanes, &mut Lanes);

/// One set of functions compiled for one instruction set.
pub(crate) struct Kernel {
    /// Rows of a group.
    pub(crate) rows: usize,
    /// Centroids of a panel: two vectors.
    pub(crate) keys: usize,
    best: Multiply,
    two_best: Multiply,
}

impl Kernel {
    /// The fastest kernel of this machine.
    pub(crate) fn best() -> &'static Self {
        static BEST: LazyLock<&'static Kernel> =
            LazyLock::new(|| Kernel::all().first().copied().unwrap_or(&PORTABLE));
        *BEST
    }

    /// All kernels that this machine can run, the fastest first.
    pub(crate) fn all() -> Vec<&'static Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::available());
        all.push(&PORTABLE);
        all
    }

    /// Merges the centroids `first..` of one panel `(products, starts)` into the best of a group of rows; with
    /// `TWO` also into the second best, which is left alone without. Centroids come in ascending order, so a tie
    /// keeps the smaller one.
    pub(crate) fn multiply<const TWO: bool>(
        &self,
        dim: usize,
        x: (&[f32], usize),
        (panel, start): (&[f32], &[f32]),
        first: u32,
        (top, second): (&mut Lanes, &mut Lanes),
    ) {
        assert!(x.0.len() >= (self.rows - 1) * x.1 + dim, "panel: rows too short");
        assert!(panel.len() >= self.keys * dim && start.len() >= self.keys, "panel: panel too short");
        let run = if TWO { self.two_best } else { self.best };
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`), and the assertions
        // above are the lengths that it reads.
        unsafe { run(dim, x, panel, start, first, top, second) }
    }
}

static PORTABLE: Kernel = Kernel { rows: 4, keys: 16, best: portable::<false>, two_best: portable::<true> };

fn portable<const TWO: bool>(
    dim: usize,
    (x, ld): (&[f32], usize),
    panel: &[f32],
    start: &[f32],
    first: u32,
    best: &mut Lanes,
    runner_up: &mut Lanes,
) {
    let mut sums = [[0.0f32; 16]; 4];
    sums.iter_mut().for_each(|sums| sums.copy_from_slice(&start[..16]));
    for (d, c) in panel.chunks_exact(16).take(dim).enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = x[i * ld + d];
            sums.iter_mut().zip(c).for_each(|(sum, c)| *sum += x * c);
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (j, v) in sums.iter().enumerate() {
            let (l, at) = (j % 8, first + j as u32);
            if *v > best.score[i][l] {
                if TWO {
                    (runner_up.score[i][l], runner_up.at[i][l]) = (best.score[i][l], best.at[i][l]);
                }
                (best.score[i][l], best.at[i][l]) = (*v, at);
            } else if TWO && *v > runner_up.score[i][l] {
                (runner_up.score[i][l], runner_up.at[i][l]) = (*v, at);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _CMP_GT_OQ, _mm256_add_epi32, _mm256_blendv_ps, _mm256_castps_si256, _mm256_castsi256_ps,
        _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_epi32,
        _mm256_set1_ps, _mm256_setr_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_add_epi32,
        _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_epi32, _mm512_loadu_ps, _mm512_mask_mov_epi32,
        _mm512_mask_mov_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_storeu_epi32,
        _mm512_storeu_ps,
    };

    use super::{Kernel, Lanes};

    /// 12 rows × 32 centroids: 24 of the 32 registers hold sums.
    static AVX512: Kernel =
        Kernel { rows: 12, keys: 32, best: best_avx512::<false>, two_best: best_avx512::<true> };

    /// 6 rows × 16 centroids: 12 of the 16 registers hold sums.
    static AVX2: Kernel = Kernel { rows: 6, keys: 16, best: best_avx2::<false>, two_best: best_avx2::<true> };

    /// The kernels whose instructions this machine has, the fastest first.
    pub(super) fn available() -> impl Iterator<Item = &'static Kernel> {
        let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma");
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        [avx512.then_some(&AVX512), avx2.then_some(&AVX2)].into_iter().flatten()
    }

    /// # Safety
    /// The machine has AVX-512F; `x` holds 12 rows of `dim` elements `ld` apart, `panel` `32 * dim` elements,
    /// `start` 32.
    #[target_feature(enable = "avx512f,fma")]
    unsafe fn best_avx512<const TWO: bool>(
        dim: usize,
        (x, ld): (&[f32], usize),
        panel: &[f32],
        start: &[f32],
        first: u32,
        best: &mut Lanes,
        runner_up: &mut Lanes,
    ) {
        let (mut x, mut c) = (x.as_ptr(), panel.as_ptr());
        // SAFETY: the caller's contract: 32 starts.
        let mut sums =
            unsafe { [[_mm512_loadu_ps(start.as_ptr()), _mm512_loadu_ps(start.as_ptr().add(16))]; 12] };
        for _ in 0..dim {
            // SAFETY: step `d < dim` reads element `d` of each of the 12 rows and elements `32 d .. 32 d + 32` of
            // the panel, inside both by the caller's contract; the pointers end at most one past the end.
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
        let ids = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let left = _mm512_add_epi32(ids, _mm512_set1_epi32(first.cast_signed()));
        let at = [left, _mm512_add_epi32(left, _mm512_set1_epi32(16))];
        for (i, sums) in sums.iter().enumerate() {
            // SAFETY: each array holds 16 lanes for each of 12 rows.
            unsafe {
                let mut top = _mm512_loadu_ps(best.score[i].as_ptr());
                let mut top_at = _mm512_loadu_epi32(best.at[i].as_ptr().cast());
                let mut second = _mm512_loadu_ps(runner_up.score[i].as_ptr());
                let mut second_at = _mm512_loadu_epi32(runner_up.at[i].as_ptr().cast());
                for (v, at) in sums.iter().zip(at) {
                    let wins = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(*v, top);
                    if TWO {
                        let runs_up = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(*v, second);
                        second = _mm512_mask_mov_ps(second, runs_up, *v);
                        second_at = _mm512_mask_mov_epi32(second_at, runs_up, at);
                        second = _mm512_mask_mov_ps(second, wins, top);
                        second_at = _mm512_mask_mov_epi32(second_at, wins, top_at);
                    }
                    top = _mm512_mask_mov_ps(top, wins, *v);
                    top_at = _mm512_mask_mov_epi32(top_at, wins, at);
                }
                _mm512_storeu_ps(best.score[i].as_mut_ptr(), top);
                _mm512_storeu_epi32(best.at[i].as_mut_ptr().cast(), top_at);
                if TWO {
                    _mm512_storeu_ps(runner_up.score[i].as_mut_ptr(), second);
                    _mm512_storeu_epi32(runner_up.at[i].as_mut_ptr().cast(), second_at);
                }
            }
        }
    }

    /// # Safety
    /// The machine has AVX2 and FMA; `x` holds 6 rows of `dim` elements `ld` apart, `panel` `16 * dim` elements,
    /// `start` 16.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn best_avx2<const TWO: bool>(
        dim: usize,
        (x, ld): (&[f32], usize),
        panel: &[f32],
        start: &[f32],
        first: u32,
        best: &mut Lanes,
        runner_up: &mut Lanes,
    ) {
        let (mut x, mut c) = (x.as_ptr(), panel.as_ptr());
        // SAFETY: the caller's contract: 16 starts.
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
        let left = _mm256_add_epi32(
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
            _mm256_set1_epi32(first.cast_signed()),
        );
        let at = [left, _mm256_add_epi32(left, _mm256_set1_epi32(8))];
        for (i, sums) in sums.iter().enumerate() {
            // SAFETY: each array holds 16 lanes, of which this uses 8, for each of 12 rows.
            unsafe {
                let mut top = _mm256_loadu_ps(best.score[i].as_ptr());
                let mut top_at = _mm256_castsi256_ps(_mm256_loadu_si256(best.at[i].as_ptr().cast()));
                let mut second = _mm256_loadu_ps(runner_up.score[i].as_ptr());
                let mut second_at = _mm256_castsi256_ps(_mm256_loadu_si256(runner_up.at[i].as_ptr().cast()));
                for (v, at) in sums.iter().zip(at) {
                    let at = _mm256_castsi256_ps(at);
                    let wins = _mm256_cmp_ps::<_CMP_GT_OQ>(*v, top);
                    if TWO {
                        let runs_up = _mm256_cmp_ps::<_CMP_GT_OQ>(*v, second);
                        second = _mm256_blendv_ps(second, *v, runs_up);
                        second_at = _mm256_blendv_ps(second_at, at, runs_up);
                        second = _mm256_blendv_ps(second, top, wins);
                        second_at = _mm256_blendv_ps(second_at, top_at, wins);
                    }
                    top = _mm256_blendv_ps(top, *v, wins);
                    top_at = _mm256_blendv_ps(top_at, at, wins);
                }
                _mm256_storeu_ps(best.score[i].as_mut_ptr(), top);
                _mm256_storeu_si256(best.at[i].as_mut_ptr().cast(), _mm256_castps_si256(top_at));
                if TWO {
                    _mm256_storeu_ps(runner_up.score[i].as_mut_ptr(), second);
                    _mm256_storeu_si256(runner_up.at[i].as_mut_ptr().cast(), _mm256_castps_si256(second_at));
                }
            }
        }
    }
}
