//! Screening: which pairs of a query panel and a key panel can reach a threshold.
//!
//! A family that searches needs the exact scores of very few pairs, and for all others only the proof that they
//! do not matter. A [`Kernel`] multiplies packed panels with the fastest instructions of the machine, compares
//! the sums in registers with one threshold a query, and reports a bit a pair; the matrix of scores is never
//! stored, not even by tiles. Its sums carry a rounding error for which [`Margin`] has a bound, so the family
//! lowers its thresholds by the bound and computes the scores of the few survivors by [`Kernel::dot`], whose
//! order of summation is fixed by the code. What comes out is then the same bits for every kernel, shape,
//! tile, thread and machine.

mod margin;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::LazyLock;

use bytemuck::{Pod, Zeroable};

pub(crate) use margin::{Margin, Size};

/// The most keys of a panel: one bit each of a `u32`.
pub(crate) const MAX_KEYS: usize = 32;
/// The most queries of a panel.
pub(crate) const MAX_QUERIES: usize = 16;

/// One set of functions compiled for one instruction set.
pub(crate) struct Kernel {
    /// The instruction set.
    pub(crate) name: &'static str,
    /// Queries of a panel, at most [`MAX_QUERIES`].
    pub(crate) queries: usize,
    /// Keys of a panel, at most [`MAX_KEYS`].
    pub(crate) keys: usize,
    /// Sets bit `j` of `masks[i]` where `start[j] + ⟨q_i, k_j⟩ ≥ thresholds[i]`; says whether any bit is set.
    screen: unsafe fn(
        dim: usize,
        q: &[f32],
        k: &[f32],
        start: &[f32],
        thresholds: &[f32],
        masks: &mut [u32],
    ) -> bool,
    dot: unsafe fn(&[f32], &[f32]) -> f32,
    squared_distance: unsafe fn(&[f32], &[f32]) -> f32,
    squared_norm: unsafe fn(&[f32]) -> f64,
    scale: unsafe fn(f64, &mut [f32]),
}

impl Kernel {
    /// The fastest kernel of this machine.
    pub(crate) fn best() -> &'static Self {
        static BEST: LazyLock<&'static Kernel> =
            LazyLock::new(|| Kernel::all().into_iter().next().unwrap_or(&portable::KERNEL));
        *BEST
    }

    /// All kernels that this machine can run, the fastest first.
    pub(crate) fn all() -> Vec<&'static Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        all.extend(x86::available());
        all.push(&portable::KERNEL);
        all
    }

    /// Elements of a packed query panel.
    pub(crate) fn query_panel(&self, dim: usize) -> usize {
        dim * self.queries
    }

    /// Elements of a packed key panel.
    pub(crate) fn key_panel(&self, dim: usize) -> usize {
        dim * self.keys
    }

    /// Packs up to [`Kernel::queries`] rows; missing rows become zeros.
    pub(crate) fn pack_queries<'a>(
        &self,
        dim: usize,
        rows: impl Iterator<Item = &'a [f32]>,
        panel: &mut [f32],
    ) {
        pack(dim, self.queries, rows, panel);
    }

    /// Packs up to [`Kernel::keys`] rows; missing rows become zeros.
    pub(crate) fn pack_keys<'a>(&self, dim: usize, rows: impl Iterator<Item = &'a [f32]>, panel: &mut [f32]) {
        pack(dim, self.keys, rows, panel);
    }

    /// Sets bit `j` of `masks[i]` where `start[j] + ⟨q_i, k_j⟩ ≥ thresholds[i]`; says whether any bit is set.
    ///
    /// `masks` is written only when it says so.
    #[inline]
    pub(crate) fn screen(
        &self,
        dim: usize,
        q: &[f32],
        k: &[f32],
        start: &[f32],
        thresholds: &[f32],
        masks: &mut [u32; MAX_QUERIES],
    ) -> bool {
        assert!(
            q.len() >= self.query_panel(dim) && k.len() >= self.key_panel(dim),
            "screen: panel too short"
        );
        assert!(start.len() >= self.keys && thresholds.len() >= self.queries, "screen: bounds too short");
        // SAFETY: a kernel is only handed out when this machine has its instructions (`all`), and the
        // assertions above are the lengths that it reads; `masks` holds `MAX_QUERIES >= self.queries`.
        unsafe { (self.screen)(dim, q, k, start, thresholds, masks) }
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

/// `panel[d * width + r] = rows[r][d]`.
fn pack<'a>(dim: usize, width: usize, rows: impl Iterator<Item = &'a [f32]>, panel: &mut [f32]) {
    const BLANK: &[f32] = &[];
    let mut sources = [BLANK; MAX_KEYS];
    let mut count = 0;
    for row in rows.take(width) {
        sources[count] = &row[..dim];
        count += 1;
    }
    let panel = &mut panel[..dim * width];
    if count < width {
        panel.fill(0.0);
    }
    // Blocks of 16 dimensions keep the lines of the panel in the cache while the rows go by.
    for from in (0..dim).step_by(16) {
        let to = dim.min(from + 16);
        for (r, source) in sources[..count].iter().enumerate() {
            for (d, value) in source[from..to].iter().enumerate() {
                panel[(from + d) * width + r] = *value;
            }
        }
    }
}

/// 64 bytes at a multiple of 64: panels start on a cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A buffer of `f32` that starts on a cache line.
#[derive(Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line::zeroed(); len.div_ceil(16)])
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
