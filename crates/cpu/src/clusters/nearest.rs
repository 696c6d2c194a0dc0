//! The nearest and second nearest centroid of every row of a tile.
//!
//! What decides is the score −‖c‖²/2 + ⟨x, c⟩, the product in the order of [`crate::simd::dot`], and the smaller
//! index among equal scores: a pure function of the row and the centroids. A kernel multiplies all pairs in an order
//! and a precision of its own; [`Margin`] bounds how far its sums lie from the scores. Let E be the bound for a row.
//! The best score is at least the score of the largest sum, so its sum is at least that sum less 2E; likewise for
//! the second. The pairs within 2E are found, and where more than one is left, scored. So every kernel, and the plain
//! loop for few centroids, gives the same bits.

use super::panel::{BLOCK, Candidate, Kernel, LANES, LD, MAX_ROWS, Tops};
use crate::screen::{Aligned, Margin, Size};
use crate::simd;

/// No kernel wants panels for more centroids than this.
const FEW: usize = 24;

/// The two best centroids of a row under the total order (score descending, index ascending).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    pub(crate) index: u32,
    score: f32,
    /// Meaningful when `second_score` is finite: when asked for, with two centroids or more.
    pub(crate) second: u32,
    second_score: f32,
}

impl Best {
    const NONE: Self =
        Self { index: 0, score: f32::NEG_INFINITY, second: 0, second_score: f32::NEG_INFINITY };

    /// Takes in a candidate, in any order.
    #[inline(always)]
    fn offer_in_any_order(&mut self, index: u32, score: f32) {
        if score > self.score || (score == self.score && index < self.index) {
            (self.second, self.second_score) = (self.index, self.score);
            (self.index, self.score) = (index, score);
        } else if score > self.second_score || (score == self.second_score && index < self.second) {
            (self.second, self.second_score) = (index, score);
        }
    }
}

/// Upper bounds of the norm of a row and of what packing takes away from it.
pub(crate) type RowSize = [f32; 2];

/// Centroids as the products read them: panels of a few, padded by zeros that can never win.
pub(crate) struct Centers {
    kernel: &'static Kernel,
    k: usize,
    d: usize,
    /// `[k, d]`.
    data: Vec<f32>,
    /// Panel after panel, as the kernel wants them; empty for few centroids.
    panels: Aligned,
    /// −‖c‖²/2, or 0 on the sphere where all are equal; −∞ for padding.
    start: Vec<f32>,
    unit: bool,
    margin: Margin,
    /// 2E = ‖x‖ s₀ + ‖x − x̃‖ s₁ + s₂.
    slack: [f32; 3],
}

/// What a thread keeps between tiles.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Rows as the kernel packs them, or the last few rows of a tile.
    rows: Aligned,
    sums: Aligned,
    tops: Vec<Tops>,
    slack: Vec<f32>,
    found: Vec<Candidate>,
    /// How many candidates each row has.
    count: Vec<u32>,
    pub(crate) best: Vec<Best>,
}

impl Default for Centers {
    fn default() -> Self {
        Self::with_kernel(Kernel::best())
    }
}

impl Centers {
    pub(crate) fn with_kernel(kernel: &'static Kernel) -> Self {
        Self {
            kernel,
            k: 0,
            d: 0,
            data: Vec::new(),
            panels: Aligned::default(),
            start: Vec::new(),
            unit: false,
            margin: Margin::new(0, 0.0),
            slack: [0.0; 3],
        }
    }

    /// Makes room for `k` centroids of dimension `d`, which [`Centers::set`] then sets.
    pub(crate) fn reset(&mut self, k: usize, d: usize, unit: bool) {
        (self.k, self.d, self.unit) = (k, d, unit);
        let kernel = self.kernel;
        let padded = k.next_multiple_of(kernel.keys);
        let panels = if self.few() { 0 } else { padded / kernel.keys * kernel.panel(d) };
        self.panels = Aligned::zeros(panels);
        self.data.resize(k * d, 0.0);
        self.start.clear();
        self.start.resize(padded, f32::NEG_INFINITY);
        self.margin = Margin::new(d, kernel.packing().map_or(0.0, |packing| packing.underflow));
    }

    /// Whether single products take the place of panels: they give the second best for nothing.
    pub(crate) fn few(&self) -> bool {
        self.k < self.kernel.least
    }

    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.data[k * self.d..(k + 1) * self.d]
    }

    pub(crate) fn rows(&self) -> &[f32] {
        &self.data
    }

    /// The kernel of this machine.
    pub(crate) fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Replaces all centroids, rounded from f64.
    pub(crate) fn set(&mut self, exact: &[f64]) {
        let d = self.d;
        let mut largest = Size::default();
        let packing = if self.few() { None } else { self.kernel.packing() };
        simd::dispatch(
            #[inline(always)]
            || {
                for (k, (row, exact)) in self.data.chunks_exact_mut(d).zip(exact.chunks_exact(d)).enumerate()
                {
                    row.iter_mut().zip(exact).for_each(|(row, exact)| *row = *exact as f32);
                    let squared = simd::squared_norm_inline(row);
                    self.start[k] = if self.unit { 0.0 } else { (-0.5 * squared) as f32 };
                    let residual = packing.map_or(0.0, |packing| packing.residual(row));
                    largest = largest.max(Size::new(squared, residual));
                }
            },
        );
        if self.few() {
            return;
        }
        let start = if self.unit { 0.0 } else { 0.5 * largest.norm * largest.norm };
        self.slack = self.margin.slopes(largest, start).map(|slope| up(2.0 * slope));
        let (keys, panel) = (self.kernel.keys, self.kernel.panel(d));
        let panels = self.panels.as_mut_slice().chunks_exact_mut(panel);
        for (rows, panel) in self.data.chunks(keys * d).zip(panels) {
            match packing {
                Some(packing) => packing.pack_queries(d, rows.chunks_exact(d), panel),
                None => {
                    for (k, row) in rows.chunks_exact(d).enumerate() {
                        row.iter().zip(panel.chunks_exact_mut(keys)).for_each(|(c, panel)| panel[k] = *c);
                    }
                }
            }
        }
    }

    /// What [`Centers::nearest`] needs to know of `sizes.len()` rows, the same in every round; nothing for few
    /// centroids.
    pub(crate) fn measure(&self, (x, ld): (&[f32], usize), sizes: &mut [RowSize]) {
        if self.few() {
            return;
        }
        let packing = self.kernel.packing();
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, size) in sizes.iter_mut().enumerate() {
                    let row = &x[i * ld..i * ld + self.d];
                    let residual = packing.map_or(0.0, |packing| packing.residual(row));
                    let exact = Size::new(simd::squared_norm_inline(row), residual);
                    *size = [up(exact.norm), up(exact.residual)];
                }
            },
        );
    }

    /// The best centroids of `n` rows that lie `ld` apart, into `scratch.best`; `sizes` come from
    /// [`Centers::measure`]. `before` are centroids that are likely to be near: those of the last round.
    ///
    /// With `TWO` false the second best is looked for only when there are few centroids.
    pub(crate) fn nearest<const TWO: bool>(
        &self,
        (x, ld): (&[f32], usize),
        n: usize,
        sizes: &[RowSize],
        before: Option<&[u32]>,
        scratch: &mut Scratch,
    ) {
        let d = self.d;
        scratch.best.clear();
        scratch.best.resize(n, Best::NONE);
        if self.few() {
            self.score_all((x, ld), scratch);
            return;
        }
        scratch.tops.clear();
        scratch.tops.resize(n, Tops::NONE);
        scratch.slack.clear();
        scratch.slack.extend(sizes.iter().map(|[norm, residual]| {
            // Each of the three roundings may lose half a unit of the sum.
            (norm * self.slack[0] + residual * self.slack[1] + self.slack[2]) * (1.0 + 4.0 * f32::EPSILON)
        }));
        scratch.found.clear();
        if scratch.sums.as_slice().is_empty() {
            scratch.sums = Aligned::zeros(MAX_ROWS * LD);
        }
        let (group, keys, panel) = (self.kernel.rows, self.kernel.keys, self.kernel.panel(d));
        let groups = n.div_ceil(group);
        self.load((x, ld), n, &mut scratch.rows);
        let loaded = scratch.rows.as_slice();
        // With one block the sum of the centroid of the last round stands in the buffer: no sum of the best centroid
        // is smaller by more than the slack, so the largest sum need not be looked for.
        let before = before.filter(|_| !TWO && self.start.len() <= BLOCK);
        let ready = self.kernel.ready();
        for (b, start) in self.start.chunks(BLOCK).enumerate() {
            let panels = &self.panels.as_slice()[b * BLOCK / keys * panel..];
            for g in 0..groups {
                let rows = g * group..n.min((g + 1) * group);
                let source = if self.kernel.packed {
                    (&loaded[g * panel..], d)
                } else if rows.len() == group {
                    (&x[rows.start * ld..], ld)
                } else {
                    (loaded, d)
                };
                let sums = scratch.sums.as_mut_slice();
                ready.sums(d, source, panels, start, sums);
                if let Some(before) = before {
                    let own = scratch.tops[rows.clone()].iter_mut().zip(&before[rows.clone()]);
                    own.enumerate().for_each(|(i, (tops, own))| tops.best = sums[i * LD + *own as usize]);
                }
                let state = (&mut scratch.tops[rows.clone()], &scratch.slack[rows.clone()]);
                let first = (rows.start as u32, (b * BLOCK) as u32);
                ready.scan::<TWO>((start.len(), before.is_some()), sums, state, first, &mut scratch.found);
            }
        }
        drop(ready);
        self.decide::<TWO>((x, ld), scratch);
    }

    /// Packs the rows, or copies those of the last group when it is not full.
    fn load(&self, (x, ld): (&[f32], usize), n: usize, out: &mut Aligned) {
        let (d, group) = (self.d, self.kernel.rows);
        let row = |i: usize| &x[i * ld..i * ld + d];
        let rest = n % group;
        let panel = self.kernel.panel(d);
        let needed = match self.kernel.packed {
            true => n.div_ceil(group) * panel,
            false if rest > 0 => group * d,
            false => 0,
        };
        if out.as_slice().len() < needed {
            *out = Aligned::zeros(needed);
        }
        let out = &mut out.as_mut_slice()[..needed];
        match self.kernel.packing() {
            Some(packing) => {
                for (g, out) in out.chunks_exact_mut(panel).enumerate() {
                    packing.pack_keys(d, (g * group..n.min((g + 1) * group)).map(row), out);
                }
            }
            // What an earlier tile left in the missing rows is finite, and its sums are not looked at.
            None => {
                (n - rest..n).zip(out.chunks_exact_mut(d)).for_each(|(i, out)| out.copy_from_slice(row(i)))
            }
        }
    }

    /// Keeps the candidates that reach the last threshold of their row, and scores them where there are several.
    fn decide<const TWO: bool>(&self, (x, ld): (&[f32], usize), scratch: &mut Scratch) {
        let Scratch { tops, slack, found, count, best, .. } = scratch;
        count.clear();
        count.resize(tops.len(), 0);
        if !TWO {
            // The tops may have been those of the last round's centroids.
            for pair in found.iter() {
                let best = &mut tops[pair.row as usize].best;
                *best = if pair.sum > *best { pair.sum } else { *best };
            }
        }
        found.retain(|pair| {
            let row = pair.row as usize;
            let stays = pair.sum >= tops[row].threshold(TWO, slack[row]);
            if stays {
                count[row] += 1;
                best[row].index = pair.key;
            }
            stays
        });
        simd::dispatch(
            #[inline(always)]
            || {
                for pair in found.iter() {
                    let row = pair.row as usize;
                    if TWO || count[row] > 1 {
                        let x = &x[row * ld..row * ld + self.d];
                        let key = pair.key as usize;
                        let c = &self.data[key * self.d..(key + 1) * self.d];
                        best[row].offer_in_any_order(pair.key, simd::dot_inline(x, c) + self.start[key]);
                    }
                }
            },
        );
    }

    /// Scores all pairs, a few rows at a time, and keeps the two best of each row.
    fn score_all(&self, (x, ld): (&[f32], usize), scratch: &mut Scratch) {
        let mut scores = [0.0f32; FEW * LANES];
        let scores = &mut scores[..self.k * LANES];
        for (group, best) in scratch.best.chunks_mut(LANES).enumerate() {
            let x = (&x[group * LANES * ld..], ld);
            self.kernel.scores(x, (best.len(), self.d), &self.data, &self.start[..self.k], scores);
            simd::dispatch(
                #[inline(always)]
                || two_best(scores, best),
            );
        }
    }
}

/// The two best of the scores of a few rows, `[k][LANES]`: every centroid is compared with the best so far, all rows at
/// once, so that nothing branches. Of equal scores the first is the best, and the next the second.
#[inline(always)]
fn two_best(scores: &[f32], out: &mut [Best]) {
    let (mut best, mut second) = ([f32::NEG_INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (mut at, mut second_at) = ([0u32; LANES], [0u32; LANES]);
    for (key, scores) in (0u32..).zip(scores.chunks_exact(LANES)) {
        for l in 0..LANES {
            let first = scores[l] > best[l];
            let (lower, lower_at) = if first { (best[l], at[l]) } else { (scores[l], key) };
            let beats = first | (lower > second[l]);
            second[l] = if beats { lower } else { second[l] };
            second_at[l] = if beats { lower_at } else { second_at[l] };
            best[l] = if first { scores[l] } else { best[l] };
            at[l] = if first { key } else { at[l] };
        }
    }
    for (l, out) in out.iter_mut().enumerate() {
        *out = Best { index: at[l], score: best[l], second: second_at[l], second_score: second[l] };
    }
}

/// Rounds up to an `f32`.
fn up(x: f64) -> f32 {
    (x * (1.0 + 2.0 * f64::from(f32::EPSILON))) as f32 + f32::MIN_POSITIVE
}

#[cfg(test)]
mod tests {
    use super::{super::points::squared_distance_inline, *};
    use consonance_testkit::data;

    /// The two best centroids of every row, for a kernel, with and without a hint of the last round's.
    fn found(kernel: &'static Kernel, x: &[f32], c: &[f32], d: usize, hint: bool) -> Vec<(u32, u32)> {
        let (n, k) = (x.len() / d, c.len() / d);
        let mut centers = Centers::with_kernel(kernel);
        centers.reset(k, d, false);
        centers.set(&data::widen(c));
        let mut sizes = vec![[0.0; 2]; n];
        centers.measure((x, d), &mut sizes);
        let (mut scratch, mut two) = (Scratch::default(), Scratch::default());
        let before: Vec<u32> = (0..n).map(|i| (i * 7 % k) as u32).collect();
        centers.nearest::<false>((x, d), n, &sizes, hint.then_some(&before), &mut scratch);
        centers.nearest::<true>((x, d), n, &sizes, None, &mut two);
        let pairs = scratch.best.iter().zip(&two.best);
        pairs
            .map(|(one, two)| {
                assert_eq!(one.index, two.index, "{}: one best and two", kernel.name);
                (two.index, two.second)
            })
            .collect()
    }

    /// The definition: all scores, sorted.
    fn plain(x: &[f32], c: &[f32], d: usize) -> Vec<(u32, u32)> {
        let score = |x: &[f32], c: &[f32]| simd::dot(x, c) + (-0.5 * simd::squared_norm(c)) as f32;
        x.chunks(d)
            .map(|x| {
                let mut order: Vec<(f32, u32)> =
                    (0..).zip(c.chunks(d)).map(|(j, c)| (score(x, c), j)).collect();
                order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
                (order[0].1, order.get(1).map_or(0, |second| second.1))
            })
            .collect()
    }

    fn all_kernels_agree(x: &[f32], c: &[f32], d: usize, what: &str) {
        let truth = plain(x, c, d);
        for kernel in Kernel::all() {
            for hint in [false, true] {
                let (name, k) = (kernel.name, c.len() / d);
                assert_eq!(
                    found(kernel, x, c, d, hint),
                    truth,
                    "{what}, {name}, {k} centroids, dimension {d}"
                );
            }
        }
    }

    const SHAPES: [(usize, usize); 14] = [
        (1, 3),
        (2, 1),
        (3, 17),
        (8, 33),
        (23, 16),
        (24, 128),
        (31, 5),
        (33, 8),
        (40, 130),
        (256, 4),
        (257, 31),
        (300, 20),
        (520, 64),
        (700, 3),
    ];

    /// Integers: scores are exact and tie by the hundreds.
    #[test]
    fn every_kernel_finds_the_two_best_of_integer_rows_ties_to_the_smaller_index() {
        for (k, d) in SHAPES {
            all_kernels_agree(&data::integers(37, d, 1), &data::integers(k, d, 2), d, "integers");
        }
    }

    #[test]
    fn every_kernel_finds_the_two_best_of_real_rows() {
        for (k, d) in SHAPES {
            for (scale, offset) in [(1.0, 0.0), (1e-3, 30.0), (1e-19, 0.0), (1e17, 0.0)] {
                let map = |x: Vec<f32>| -> Vec<f32> { x.into_iter().map(|v| v * scale + offset).collect() };
                let (x, c) = (map(data::normal(69, d, 3)), map(data::normal(k, d, 4)));
                all_kernels_agree(&x, &c, d, "normal rows");
            }
        }
    }

    /// Centroids that differ by units in the last place, and exact copies, which bfloat16 cannot tell apart; rows
    /// among the centroids.
    #[test]
    fn every_kernel_tells_close_centroids_apart_and_breaks_forced_ties_alike() {
        for (k, d) in SHAPES.into_iter().filter(|(k, _)| *k > 1) {
            let mut c = data::normal(k, d, 5);
            for j in 1..k {
                let (before, own) = c.split_at_mut(j * d);
                let twin = &before[(j - 1) * d..];
                match j % 4 {
                    1 => own[..d].copy_from_slice(twin),
                    2 => own[..d].iter_mut().zip(twin).for_each(|(c, t)| *c = t * (1.0 + f32::EPSILON)),
                    _ => {}
                }
            }
            let mut x = data::normal(45, d, 6);
            x.chunks_mut(d).zip(c.chunks(d)).step_by(2).for_each(|(x, c)| x.copy_from_slice(c));
            all_kernels_agree(&x, &c, d, "twins");
        }
    }

    #[test]
    fn every_kernel_gives_the_bits_of_the_plain_distances() {
        for d in [1, 7, 8, 9, 15, 16, 17, 24, 100, 128, 131] {
            let (x, c) = (data::normal(20, d, 8), data::normal(2, d, 9));
            let wide = data::widen(&c);
            for kernel in Kernel::all() {
                for x in x.chunks(d) {
                    let found = kernel.distances(x, [&wide[..d], &wide[d..]]);
                    let plain = [&c[..d], &c[d..]].map(|c| squared_distance_inline(x, c));
                    assert_eq!(found.map(f64::to_bits), plain.map(f64::to_bits), "{}, {d}", kernel.name);
                }
            }
        }
    }

    /// Rows that are all alike, and centroids too: every pair comes within the slack.
    #[test]
    fn equal_rows_and_equal_centroids_all_go_to_the_first() {
        for (k, d) in SHAPES {
            let row = data::normal(1, d, 7);
            all_kernels_agree(&row.repeat(40), &row.repeat(k), d, "copies");
        }
    }
}
