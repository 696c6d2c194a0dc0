//! Products of a few rows with a block of centroids, and which of them can be the largest of a row.
//!
//! A kernel writes the sums −‖c‖²/2 + ⟨x, c⟩ of a group of rows with up to [`BLOCK`] centroids into a buffer that
//! stays in the first-level cache, and scans it twice: for the largest sum of each row, and for all sums that come
//! so near to it that rounding could change the order. The sums of one kernel are not those of another; what is
//! decided from them is (see [`super::nearest`]).

use std::sync::LazyLock;

use crate::screen::{self, Armed};
use crate::simd::dot_inline;

/// Centroids whose sums are held at a time: whole panels of every kernel.
pub(crate) const BLOCK: usize = 256;
/// The distance between the sums of two rows: not a power of two, so that rows do not share cache sets.
pub(crate) const LD: usize = BLOCK + 16;
/// The most rows of a group.
pub(crate) const MAX_ROWS: usize = 32;
const LANES: usize = 16;

/// The largest sums of a row so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tops {
    pub(crate) best: f32,
    /// Only kept when the second best is asked for.
    pub(crate) second: f32,
}

impl Tops {
    pub(crate) const NONE: Self = Self { best: f32::NEG_INFINITY, second: f32::NEG_INFINITY };

    #[inline(always)]
    fn offer(&mut self, sum: f32) {
        let lower = if sum < self.best { sum } else { self.best };
        self.second = if lower > self.second { lower } else { self.second };
        self.best = if sum > self.best { sum } else { self.best };
    }

    /// What a sum has to reach.
    #[inline(always)]
    pub(crate) fn threshold(self, two: bool, slack: f32) -> f32 {
        (if two { self.second } else { self.best }) - slack
    }
}

/// A pair that may matter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// Counted from the first row of the tile.
    pub(crate) row: u32,
    pub(crate) key: u32,
    pub(crate) sum: f32,
}

/// `dim`; rows and the distance between them; whole panels; a start per centroid; `[MAX_ROWS][LD]` sums.
pub(super) type Sums =
    unsafe fn(dim: usize, x: (&[f32], usize), panels: &[f32], start: &[f32], sums: &mut [f32]);

/// The number of centroids; the sums; a state and a slack for each row; the numbers of the first row and the first
/// centroid; where to put what is found.
pub(super) type Scan =
    unsafe fn(usize, &[f32], (&mut [Tops], &[f32]), (u32, u32), found: &mut Vec<Candidate>);

/// Two rows of one length; centroids; their starts; their scores with each row.
pub(super) type Scores = unsafe fn([&[f32]; 2], &[f32], start: &[f32], [&mut [f32]; 2]);

/// One set of functions compiled for one instruction set.
pub(crate) struct Kernel {
    /// The instruction set.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests say which kernel differs"))]
    pub(crate) name: &'static str,
    /// Rows of a group.
    pub(crate) rows: usize,
    /// Centroids of a panel.
    pub(crate) keys: usize,
    /// From this many centroids on, panels beat products of single rows.
    pub(crate) least: usize,
    /// Rows and centroids are packed by the screening kernel of the tile unit, rows as its keys and centroids as its
    /// queries. Otherwise rows are read in place, and a panel is `[dim][keys]`.
    pub(super) packed: bool,
    pub(super) sums: Sums,
    pub(super) scan: Scan,
    pub(super) scan_two: Scan,
    pub(super) scan_known: Scan,
    pub(super) scores: Scores,
}

/// A thread that is ready to call a kernel.
pub(crate) struct Ready {
    kernel: &'static Kernel,
    packing: Option<&'static screen::Kernel>,
    _armed: Option<Armed>,
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
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        all.extend(super::amx::available());
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::available());
        all.push(&PORTABLE);
        all
    }

    /// How rows and centroids are packed, when they are.
    pub(crate) fn packing(&self) -> Option<&'static screen::Kernel> {
        if self.packed { screen::Kernel::tiles() } else { None }
    }

    /// Elements of a panel of centroids, or of packed rows.
    pub(crate) fn panel(&self, dim: usize) -> usize {
        self.packing().map_or(dim * self.keys, |packing| packing.query_panel(dim))
    }

    /// The scores that decide, of two rows with all centroids `c`: ⟨x, c⟩ with the bits of
    /// [`crate::simd::dot_inline`], plus the start.
    #[inline]
    pub(crate) fn scores(&self, x: [&[f32]; 2], c: &[f32], start: &[f32], out: [&mut [f32]; 2]) {
        let (d, k) = (x[0].len(), start.len());
        assert!(d > 0 && x[1].len() == d && c.len() == k * d, "scores: lengths differ");
        assert!(out[0].len() == k && out[1].len() == k, "scores: no room");
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`), and the assertions
        // above are the lengths that it reads and writes.
        unsafe { (self.scores)(x, c, start, out) }
    }

    /// Makes this thread ready.
    pub(crate) fn ready(&'static self) -> Ready {
        let packing = self.packing();
        Ready { kernel: self, packing, _armed: packing.map(screen::Kernel::arm) }
    }
}

impl Ready {
    /// The sums of a group of rows with up to [`BLOCK`] centroids.
    pub(crate) fn sums(
        &self,
        dim: usize,
        x: (&[f32], usize),
        panels: &[f32],
        start: &[f32],
        sums: &mut [f32],
    ) {
        let kernel = self.kernel;
        let (rows, panel) = match self.packing {
            Some(packing) => (packing.key_panel(dim), packing.query_panel(dim)),
            None => ((kernel.rows - 1) * x.1 + dim, dim * kernel.keys),
        };
        assert!(x.0.len() >= rows, "panel: rows too short");
        assert!(start.len() <= BLOCK && start.len().is_multiple_of(kernel.keys), "panel: not whole panels");
        assert!(panels.len() >= start.len() / kernel.keys * panel, "panel: panels too short");
        assert!(sums.len() >= MAX_ROWS * LD, "panel: no room for the sums");
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`), this thread is armed
        // when the kernel packs, and the assertions above are the lengths that it reads and writes.
        unsafe { (kernel.sums)(dim, x, panels, start, sums) }
    }

    /// Takes `width` sums of each of `tops.len()` rows into `tops`, and appends those that come within `slack` of
    /// the best so far, or of the second best with `TWO`. With `known` the tops stay as they are: one of the sums
    /// is that good, and the best of what is found is the best of all.
    pub(crate) fn scan<const TWO: bool>(
        &self,
        (width, known): (usize, bool),
        sums: &[f32],
        (tops, slack): (&mut [Tops], &[f32]),
        first: (u32, u32),
        found: &mut Vec<Candidate>,
    ) {
        let kernel = self.kernel;
        let run = match (TWO, known) {
            (true, _) => kernel.scan_two,
            (false, false) => kernel.scan,
            (false, true) => kernel.scan_known,
        };
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`); lengths are checked.
        unsafe { run(width, sums, (tops, slack), first, found) }
    }
}

/// A [`Scan`] for this number of bests, 0 when they are known; `$mask` says which of 16 sums reach a threshold.
macro_rules! scan {
    ($(#[$attribute:meta])* $name:ident, $mask:expr) => {
        $(#[$attribute])*
        pub(crate) fn $name<const BESTS: u8>(
            width: usize,
            sums: &[f32],
            (tops, slack): (&mut [Tops], &[f32]),
            (row, key): (u32, u32),
            found: &mut Vec<Candidate>,
        ) {
            for (i, (tops, slack)) in tops.iter_mut().zip(slack).enumerate() {
                let sums = &sums[i * LD..i * LD + width];
                $crate::clusters::panel::largest::<BESTS>(sums, tops);
                let threshold = tops.threshold(BESTS == 2, *slack);
                for (c, sums) in sums.chunks_exact(LANES).enumerate() {
                    let mut mask: u32 = $mask(sums, threshold);
                    while mask != 0 {
                        let at = LANES * c + mask.trailing_zeros() as usize;
                        let sum = sums[at % LANES];
                        found.push(Candidate { row: row + i as u32, key: key + at as u32, sum });
                        mask &= mask - 1;
                    }
                }
            }
        }
    };
}

#[inline(always)]
fn largest<const BESTS: u8>(sums: &[f32], tops: &mut Tops) {
    if BESTS == 0 {
        return;
    }
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut second = [f32::NEG_INFINITY; LANES];
    for sums in sums.chunks_exact(LANES) {
        for l in 0..LANES {
            if BESTS == 2 {
                let lower = if sums[l] < best[l] { sums[l] } else { best[l] };
                second[l] = if lower > second[l] { lower } else { second[l] };
            }
            best[l] = if sums[l] > best[l] { sums[l] } else { best[l] };
        }
    }
    if BESTS == 2 {
        best.iter().chain(&second).for_each(|sum| tops.offer(*sum));
    } else {
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                best[l] = if best[l + width] > best[l] { best[l + width] } else { best[l] };
            }
            width /= 2;
        }
        tops.best = if best[0] > tops.best { best[0] } else { tops.best };
    }
}

static PORTABLE: Kernel = Kernel {
    name: "portable",
    rows: 4,
    keys: 16,
    least: 24,
    packed: false,
    sums: portable,
    scan: scan_portable::<1>,
    scan_two: scan_portable::<2>,
    scan_known: scan_portable::<0>,
    scores: scores_inline,
};

#[inline(always)]
fn scores_inline(x: [&[f32]; 2], c: &[f32], start: &[f32], out: [&mut [f32]; 2]) {
    for (x, out) in x.into_iter().zip(out) {
        for ((c, start), out) in c.chunks_exact(x.len()).zip(start).zip(out) {
            *out = dot_inline(x, c) + start;
        }
    }
}

fn portable(dim: usize, (x, ld): (&[f32], usize), panels: &[f32], start: &[f32], out: &mut [f32]) {
    for (p, (panel, start)) in panels.chunks_exact(16 * dim).zip(start.chunks_exact(16)).enumerate() {
        let mut sums = [[0.0f32; 16]; 4];
        sums.iter_mut().for_each(|sums| sums.copy_from_slice(start));
        for (d, c) in panel.chunks_exact(16).enumerate() {
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = x[i * ld + d];
                sums.iter_mut().zip(c).for_each(|(sum, c)| *sum += x * c);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            out[i * LD + 16 * p..][..16].copy_from_slice(sums);
        }
    }
}

scan!(scan_portable, |sums: &[f32], threshold: f32| {
    sums.iter().rev().fold(0u32, |mask, sum| mask << 1 | u32::from(*sum >= threshold))
});

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
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
    unsafe fn sums_avx512(
        dim: usize,
        (x, ld): (&[f32], usize),
        panels: &[f32],
        start: &[f32],
        out: &mut [f32],
    ) {
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
    unsafe fn sums_avx2(
        dim: usize,
        (x, ld): (&[f32], usize),
        panels: &[f32],
        start: &[f32],
        out: &mut [f32],
    ) {
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
        let half =
            |a, b| _mm_add_ps(_mm_castpd_ps(_mm_unpacklo_pd(a, b)), _mm_castpd_ps(_mm_unpackhi_pd(a, b)));
        let (ab, cd) = (half(a, b), half(c, d));
        _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd))
    }

    scan!(
        #[target_feature(enable = "avx2,fma")]
        scan_avx2,
        |sums: &[f32], threshold: f32| {
            let sums = &sums[..16];
            // SAFETY: 16 elements.
            let (low, high) =
                unsafe { (_mm256_loadu_ps(sums.as_ptr()), _mm256_loadu_ps(sums.as_ptr().add(8))) };
            let threshold = _mm256_set1_ps(threshold);
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(low, threshold)).cast_unsigned();
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(high, threshold)).cast_unsigned();
            low | high << 8
        }
    );
}
