//! Products of a few rows with a block of centroids, and which of them can be the largest of a row.
//!
//! A kernel writes the sums −‖c‖²/2 + ⟨x, c⟩ of a group of rows with up to [`BLOCK`] centroids into a buffer that
//! stays in the first-level cache, and scans it twice: for the largest sum of each row, and for all sums that come
//! so near to it that rounding could change the order. The sums of one kernel are not those of another; what is
//! decided from them is (see [`super::nearest`]).

use std::sync::LazyLock;

use super::points::squared_distances_inline;
use crate::screen::{self, Armed};
use crate::simd::dot_inline;

/// Centroids whose sums are held at a time: whole panels of every kernel.
pub(crate) const BLOCK: usize = 256;
/// The distance between the sums of two rows: not a power of two, so that rows do not share cache sets.
pub(crate) const LD: usize = BLOCK + 16;
/// The most rows of a group.
pub(crate) const MAX_ROWS: usize = 32;
/// Rows whose scores lie side by side, and lanes of a vector.
pub(crate) const LANES: usize = 16;

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

/// Rows and the distance between them; their number, up to [`LANES`], and dimension; centroids; their starts; the
/// scores, those of one centroid with all rows side by side: `[start.len()][LANES]`.
pub(super) type Scores =
    unsafe fn((&[f32], usize), (usize, usize), c: &[f32], start: &[f32], out: &mut [f32]);

/// A row; two centroids; their squared distances.
pub(super) type Distances = unsafe fn(&[f32], [&[f64]; 2]) -> [f64; 2];

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
    pub(super) distances: Distances,
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

    /// The scores that decide, of `n` rows of dimension `d`, up to [`LANES`] of them `ld` apart, with all centroids
    /// `c`: ⟨x, c⟩ with the bits of [`crate::simd::dot_inline`], plus the start. `out` is `[start.len()][LANES]`.
    #[inline]
    pub(crate) fn scores(
        &self,
        (x, ld): (&[f32], usize),
        (n, d): (usize, usize),
        c: &[f32],
        start: &[f32],
        out: &mut [f32],
    ) {
        assert!((1..=LANES).contains(&n) && !start.is_empty(), "scores: too many rows, or none");
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        unsafe { (self.scores)((x, ld), (n, d), c, start, out) }
    }

    /// ‖x − c‖² for two centroids, with the bits of [`super::points::squared_distance_inline`].
    #[inline]
    pub(crate) fn distances(&self, x: &[f32], centers: [&[f64]; 2]) -> [f64; 2] {
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        unsafe { (self.distances)(x, centers) }
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
    distances: squared_distances_inline,
};

#[inline(always)]
fn scores_inline(
    (x, ld): (&[f32], usize),
    (n, d): (usize, usize),
    c: &[f32],
    start: &[f32],
    out: &mut [f32],
) {
    for (i, x) in x.chunks(ld).take(n).enumerate() {
        for ((c, start), out) in c.chunks_exact(d).zip(start).zip(out.chunks_exact_mut(LANES)) {
            out[i] = dot_inline(&x[..d], c) + start;
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
pub(super) mod x86;
