//! The nearest and second nearest centroid of every row of a tile, by the score ⟨x, c⟩ − ‖c‖²/2.

use super::panel::{Kernel, Lanes};
use crate::simd;

/// Below this many centroids, products of single rows beat panels.
const FEW: usize = 24;
const LANES: usize = 16;

/// The two best centroids of a row under the total order (score descending, index ascending).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    pub(crate) index: u32,
    pub(crate) score: f32,
    /// Meaningful when `second_score` is finite, that is with two centroids or more.
    pub(crate) second: u32,
    pub(crate) second_score: f32,
}

impl Best {
    const NONE: Self =
        Self { index: 0, score: f32::NEG_INFINITY, second: 0, second_score: f32::NEG_INFINITY };

    /// Takes in a candidate that comes after all earlier ones, so that a tie keeps the smaller index.
    #[inline(always)]
    fn offer(&mut self, index: u32, score: f32) {
        if score > self.score {
            (self.second, self.second_score) = (self.index, self.score);
            (self.index, self.score) = (index, score);
        } else if score > self.second_score {
            (self.second, self.second_score) = (index, score);
        }
    }
}

/// Centroids as the products read them: panels of a few, padded by zeros that can never win.
pub(crate) struct Centers {
    kernel: &'static Kernel,
    k: usize,
    d: usize,
    /// `[k, d]`.
    data: Vec<f32>,
    /// `[panel][d][centroid of the panel]`; empty for few centroids.
    panels: Vec<f32>,
    /// −‖c‖²/2, or 0 on the sphere where all are equal; −∞ for padding.
    start: Vec<f32>,
    unit: bool,
}

/// What a thread keeps between tiles.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lanes: Vec<Lanes>,
    second: Vec<Lanes>,
    tail: Vec<f32>,
    pub(crate) best: Vec<Best>,
}

impl Centers {
    pub(crate) fn new(k: usize, d: usize, unit: bool) -> Self {
        Self::with_kernel(Kernel::best(), k, d, unit)
    }

    fn with_kernel(kernel: &'static Kernel, k: usize, d: usize, unit: bool) -> Self {
        let padded = k.next_multiple_of(kernel.keys);
        let panels = if k < FEW { Vec::new() } else { vec![0.0; padded * d] };
        Self { kernel, k, d, data: vec![0.0; k * d], panels, start: vec![f32::NEG_INFINITY; padded], unit }
    }

    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.data[k * self.d..(k + 1) * self.d]
    }

    pub(crate) fn rows(&self) -> &[f32] {
        &self.data
    }

    /// Replaces one centroid.
    pub(crate) fn set(&mut self, k: usize, c: &[f32]) {
        self.data[k * self.d..(k + 1) * self.d].copy_from_slice(c);
        self.start[k] = if self.unit { 0.0 } else { (-0.5 * simd::squared_norm(c)) as f32 };
        if !self.panels.is_empty() {
            let keys = self.kernel.keys;
            let panel = &mut self.panels[k / keys * keys * self.d..];
            for (j, c) in c.iter().enumerate() {
                panel[j * keys + k % keys] = *c;
            }
        }
    }

    /// The best centroids of `n` rows that lie `ld` apart, into `scratch.best`.
    ///
    /// With `TWO` false the second best is not looked for.
    pub(crate) fn nearest<const TWO: bool>(&self, x: (&[f32], usize), n: usize, scratch: &mut Scratch) {
        scratch.best.clear();
        if self.k < FEW {
            scratch.best.resize(n, Best::NONE);
            simd::dispatch(
                #[inline(always)]
                || {
                    for (i, best) in scratch.best.iter_mut().enumerate() {
                        self.few(&x.0[i * x.1..i * x.1 + self.d], best);
                    }
                },
            );
            return;
        }
        let (rows, keys, d) = (self.kernel.rows, self.kernel.keys, self.d);
        let groups = n.div_ceil(rows);
        scratch.lanes.clear();
        scratch.lanes.resize(groups, Lanes::EMPTY);
        scratch.second.clear();
        // One that is never touched stands for all when no second best is wanted.
        scratch.second.resize(if TWO { groups } else { 1 }, Lanes::EMPTY);
        if !n.is_multiple_of(rows) {
            scratch.tail.clear();
            scratch.tail.resize(rows * d, 0.0);
            for (i, tail) in (n - n % rows..n).zip(scratch.tail.chunks_exact_mut(d)) {
                tail.copy_from_slice(&x.0[i * x.1..i * x.1 + d]);
            }
        }
        for (p, (panel, start)) in
            self.panels.chunks_exact(keys * d).zip(self.start.chunks_exact(keys)).enumerate()
        {
            for (g, lanes) in scratch.lanes.iter_mut().enumerate() {
                let x =
                    if (g + 1) * rows <= n { (&x.0[g * rows * x.1..], x.1) } else { (&scratch.tail[..], d) };
                let second = &mut scratch.second[if TWO { g } else { 0 }];
                self.kernel.multiply::<TWO>(d, x, (panel, start), (p * keys) as u32, (lanes, second));
            }
        }
        simd::dispatch(
            #[inline(always)]
            || {
                for i in 0..n {
                    let (g, row) = (i / rows, i % rows);
                    let best = if TWO {
                        fold_two(&scratch.lanes[g], &scratch.second[g], row)
                    } else {
                        fold_one_inline(&scratch.lanes[g], row)
                    };
                    scratch.best.push(best);
                }
            },
        );
    }

    #[inline(always)]
    fn few(&self, x: &[f32], best: &mut Best) {
        for (k, c) in self.data.chunks_exact(self.d).enumerate() {
            best.offer(k as u32, simd::dot_inline(x, c) + self.start[k]);
        }
    }
}

/// The best of all lanes of a row: the largest score, and the smallest index that has it.
#[inline(always)]
fn fold_one_inline(lanes: &Lanes, row: usize) -> Best {
    let (score, at) = (&lanes.score[row], &lanes.at[row]);
    let mut tops = *score;
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            tops[l] = if tops[l + width] > tops[l] { tops[l + width] } else { tops[l] };
        }
        width /= 2;
    }
    let mut indices = [u32::MAX; LANES];
    for l in 0..LANES {
        // All ones where the score is not the largest: such a lane loses every comparison of indices.
        indices[l] = at[l] | u32::from(score[l] < tops[0]).wrapping_neg();
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            indices[l] = indices[l].min(indices[l + width]);
        }
        width /= 2;
    }
    Best { index: indices[0], score: tops[0], ..Best::NONE }
}

/// The two best of all lanes of a row.
fn fold_two(lanes: &Lanes, second: &Lanes, row: usize) -> Best {
    let mut best = Best { index: u32::MAX, second: u32::MAX, ..Best::NONE };
    for lanes in [lanes, second] {
        for (at, score) in lanes.at[row].iter().zip(&lanes.score[row]) {
            offer_in_any_order(&mut best, *at, *score);
        }
    }
    best
}

#[inline(always)]
fn offer_in_any_order(best: &mut Best, index: u32, score: f32) {
    if score > best.score || (score == best.score && index < best.index) {
        (best.second, best.second_score) = (best.index, best.score);
        (best.index, best.score) = (index, score);
    } else if score > best.second_score || (score == best.second_score && index < best.second) {
        (best.second, best.second_score) = (index, score);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consonance_testkit::data;

    /// Integer inputs: every score is exact, so the two best are bit for bit those of a plain loop, ties too.
    #[test]
    fn the_two_best_of_integer_rows_are_exact_with_ties_to_the_smaller_index() {
        for (k, d) in [(1, 3), (2, 1), (3, 17), (31, 5), (32, 5), (33, 8), (256, 4), (300, 20), (700, 3)] {
            let n = 37;
            let (x, c) = (data::integers(n, d, 1), data::integers(k, d, 2));
            for kernel in Kernel::all() {
                let mut centers = Centers::with_kernel(kernel, k, d, false);
                for j in 0..k {
                    centers.set(j, &c[j * d..(j + 1) * d]);
                }
                let (mut first, mut other) = (Scratch::default(), Scratch::default());
                centers.nearest::<true>((&x, d), n, &mut first);
                centers.nearest::<false>((&x, d), n, &mut other);
                let (two, one) = (&first.best, &other.best);
                for i in 0..n {
                    let row = &x[i * d..(i + 1) * d];
                    let mut order: Vec<(f32, u32)> = (0..k)
                        .map(|j| {
                            let c = &c[j * d..(j + 1) * d];
                            let dot: f32 = row.iter().zip(c).map(|(a, b)| a * b).sum();
                            (dot - 0.5 * c.iter().map(|v| v * v).sum::<f32>(), j as u32)
                        })
                        .collect();
                    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                    assert_eq!((two[i].score, two[i].index), order[0], "k {k}, d {d}, row {i}");
                    assert_eq!((one[i].score, one[i].index), order[0], "k {k}, d {d}, row {i}");
                    match order.get(1) {
                        Some(second) => assert_eq!((two[i].second_score, two[i].second), *second),
                        None => assert_eq!(two[i].second_score, f32::NEG_INFINITY),
                    }
                }
            }
        }
    }
}
