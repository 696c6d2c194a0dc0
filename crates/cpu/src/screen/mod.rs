//! Screening: which pairs of a query panel and a key panel can reach a threshold.
//!
//! A family that searches needs the exact scores of very few pairs, and for all others only the proof that they
//! do not matter. A [`Kernel`] multiplies packed panels with the fastest instructions of the machine, compares
//! the sums in registers with one threshold a query, and reports a bit a pair; the matrix of scores is never
//! stored, not even by tiles. Its sums carry a rounding error for which [`Margin`] has a bound, so the family
//! lowers its thresholds by the bound and computes the scores of the few survivors by [`Kernel::dot`], whose
//! order of summation is fixed by the code. What comes out is then the same bits for every kernel, shape,
//! tile, thread and machine.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod margin;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;
use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};

pub(crate) use margin::{Margin, Size};

/// The most rows of a panel.
const MAX_ROWS: usize = 32;

/// A pair that reaches its threshold: the query's place in its panel, the key's in the keys of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) query: u16,
    pub(crate) key: u16,
}

/// `(dim, queries, keys, start, thresholds, hits)`, see [`Kernel`].
type Screen =
    unsafe fn(dim: usize, q: &[f32], k: &[f32], start: &[f32], thresholds: &[f32], hits: &mut Vec<Hit>);

/// One set of functions compiled for one instruction set.
pub(crate) struct Kernel {
    /// The instruction set.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests say which kernel differs"))]
    pub(crate) name: &'static str,
    /// Queries of a panel.
    pub(crate) queries: usize,
    /// Keys of a panel.
    pub(crate) keys: usize,
    /// Elements of a packed row, for a dimension.
    packed: fn(dim: usize) -> usize,
    pack_queries: unsafe fn(dim: usize, rows: &[&[f32]], panel: &mut [f32]),
    pack_keys: unsafe fn(dim: usize, rows: &[&[f32]], panel: &mut [f32]),
    arm: unsafe fn(),
    disarm: unsafe fn(),
    screen: Screen,
    /// ‖x − x̃‖² where x̃ is what packing keeps of a row; `None` when it keeps everything.
    residual: Option<unsafe fn(&[f32]) -> f64>,
    /// What an operation can lose to underflow.
    pub(crate) underflow: f64,
    dot: unsafe fn(&[f32], &[f32]) -> f32,
    squared_distance: unsafe fn(&[f32], &[f32]) -> f32,
    squared_norm: unsafe fn(&[f32]) -> f64,
    scale: unsafe fn(f64, &mut [f32]),
}

/// A thread that is ready to call [`Kernel::screen`]: some kernels keep state in the core's registers meanwhile.
pub(crate) struct Armed {
    kernel: &'static Kernel,
    /// The state belongs to the thread.
    stays: PhantomData<*const ()>,
}

impl Drop for Armed {
    fn drop(&mut self) {
        // SAFETY: `Kernel::arm` has run on this thread, as `Armed` cannot be sent.
        unsafe { (self.kernel.disarm)() }
    }
}

impl Kernel {
    /// The fastest kernel of this machine.
    pub(crate) fn best() -> &'static Self {
        static BEST: LazyLock<&'static Kernel> =
            LazyLock::new(|| Kernel::all().into_iter().next().unwrap_or(&portable::KERNEL));
        *BEST
    }

    /// The fastest kernel of this machine that multiplies the rows as they are.
    pub(crate) fn full_precision() -> &'static Self {
        static FULL: LazyLock<&'static Kernel> = LazyLock::new(|| {
            Kernel::all().into_iter().find(|kernel| kernel.residual.is_none()).unwrap_or(&portable::KERNEL)
        });
        *FULL
    }

    /// The kernel of the tile matrix unit, when this machine has one: other families' products on it read what this
    /// kernel packs.
    pub(crate) fn tiles() -> Option<&'static Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return amx::available();
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        return None;
    }

    /// All kernels that this machine can run, the fastest first.
    pub(crate) fn all() -> Vec<&'static Self> {
        let mut all = Vec::new();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        all.extend(amx::available());
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::available());
        all.push(&portable::KERNEL);
        all
    }

    /// Elements of a packed query panel.
    pub(crate) fn query_panel(&self, dim: usize) -> usize {
        (self.packed)(dim) * self.queries
    }

    /// Elements of a packed key panel.
    pub(crate) fn key_panel(&self, dim: usize) -> usize {
        (self.packed)(dim) * self.keys
    }

    /// Packs up to [`Kernel::queries`] rows; missing rows become zeros.
    pub(crate) fn pack_queries<'a>(
        &self,
        dim: usize,
        rows: impl Iterator<Item = &'a [f32]>,
        panel: &mut [f32],
    ) {
        let panel = &mut panel[..self.query_panel(dim)];
        let (rows, count) = collect(dim, rows.take(self.queries));
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        unsafe { (self.pack_queries)(dim, &rows[..count], panel) }
    }

    /// Packs up to [`Kernel::keys`] rows; missing rows become zeros.
    pub(crate) fn pack_keys<'a>(&self, dim: usize, rows: impl Iterator<Item = &'a [f32]>, panel: &mut [f32]) {
        let panel = &mut panel[..self.key_panel(dim)];
        let (rows, count) = collect(dim, rows.take(self.keys));
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        unsafe { (self.pack_keys)(dim, &rows[..count], panel) }
    }

    /// Makes this thread ready to screen.
    pub(crate) fn arm(&'static self) -> Armed {
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        unsafe { (self.arm)() }
        Armed { kernel: self, stays: PhantomData }
    }

    /// Appends the pairs of a query panel and some key panels with `start[key] + ⟨query, key⟩ ≥
    /// thresholds[query]`. There are `start.len() / self.keys` key panels, at most 65,536 keys.
    #[inline]
    pub(crate) fn screen(
        armed: &Armed,
        dim: usize,
        (q, thresholds): (&[f32], &[f32]),
        (k, start): (&[f32], &[f32]),
        hits: &mut Vec<Hit>,
    ) {
        let kernel = armed.kernel;
        let panels = start.len() / kernel.keys;
        assert!(panels * kernel.keys <= 1 << 16, "screen: too many keys");
        assert!(q.len() >= kernel.query_panel(dim), "screen: query panel too short");
        assert!(k.len() >= panels * kernel.key_panel(dim), "screen: key panels too short");
        assert!(thresholds.len() >= kernel.queries, "screen: thresholds too short");
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`), `armed` says that
        // this thread is ready, and the assertions above are the lengths that it reads.
        unsafe { (kernel.screen)(dim, q, k, start, thresholds, hits) }
    }

    /// ‖x − x̃‖² where x̃ is what packing keeps of a row.
    pub(crate) fn residual(&self, x: &[f32]) -> f64 {
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`).
        self.residual.map_or(0.0, |residual| unsafe { residual(x) })
    }

    /// ⟨a, b⟩ of two slices of one length: the bits of [`crate::simd::dot`].
    #[inline]
    pub(crate) fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: a kernel is only handed out when this machine has its instructions.
        unsafe { (self.dot)(a, b) }
    }

    /// ‖a − b‖² of two slices of one length, summed from the differences: never negative.
    #[inline]
    pub(crate) fn squared_distance(&self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: a kernel is only handed out when this machine has its instructions.
        unsafe { (self.squared_distance)(a, b) }
    }

    /// ‖x‖² in f64, the bits of [`crate::simd::squared_norm`].
    #[inline]
    pub(crate) fn squared_norm(&self, x: &[f32]) -> f64 {
        // SAFETY: a kernel is only handed out when this machine has its instructions.
        unsafe { (self.squared_norm)(x) }
    }

    /// `x *= alpha`, the product in f64 and rounded once.
    #[inline]
    pub(crate) fn scale(&self, alpha: f64, x: &mut [f32]) {
        // SAFETY: a kernel is only handed out when this machine has its instructions.
        unsafe { (self.scale)(alpha, x) }
    }
}

fn collect<'a>(dim: usize, rows: impl Iterator<Item = &'a [f32]>) -> ([&'a [f32]; MAX_ROWS], usize) {
    const BLANK: &[f32] = &[];
    let mut sources = [BLANK; MAX_ROWS];
    let mut count = 0;
    for (source, row) in sources.iter_mut().zip(rows) {
        *source = &row[..dim];
        count += 1;
    }
    (sources, count)
}

/// Packs `f32` rows side by side: `panel[d * WIDTH + r] = rows[r][d]`.
fn interleave<const WIDTH: usize>(dim: usize, rows: &[&[f32]], panel: &mut [f32]) {
    if rows.len() < WIDTH {
        panel.fill(0.0);
    }
    // Blocks of 16 dimensions keep the lines of the panel in the cache while the rows go by.
    for (block, panel) in panel.chunks_mut(16 * WIDTH).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let row = &row[16 * block..dim.min(16 * block + 16)];
            for (out, value) in panel.chunks_exact_mut(WIDTH).zip(row) {
                out[r] = *value;
            }
        }
    }
}

/// Appends the set bits of one query's mask.
#[inline(always)]
fn push(hits: &mut Vec<Hit>, query: usize, first_key: usize, mut mask: u32) {
    while mask != 0 {
        hits.push(Hit { query: query as u16, key: (first_key + mask.trailing_zeros() as usize) as u16 });
        mask &= mask - 1;
    }
}

/// 64 bytes at a multiple of 64: panels start on a cache line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of `f32` that starts on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line::zeroed(); len.div_ceil(16)])
    }

    /// Grows to at least `len` elements, the new ones 0.
    #[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code, reason = "for tiles"))]
    pub(crate) fn reserve(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() * 16 < len {
            self.0.resize(len.div_ceil(16), Line::zeroed());
        }
        self.as_mut_slice()
    }

    /// The elements.
    pub(crate) fn as_slice(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// The elements, to write.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
