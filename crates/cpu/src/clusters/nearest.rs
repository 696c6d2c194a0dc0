//! The nearest and second nearest centroid of every row of a tile, by the score ⟨x, c⟩ − ‖c‖²/2.

use crate::{clusters::points::squared_norm_inline, simd, tile};

/// Below this many centroids, products of single rows beat the blocked product.
const FEW: usize = 32;
/// Centroids of one blocked product.
const COLUMNS: usize = 256;
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

/// Centroids as the products read them: padded to whole lanes by zeros that can never win.
#[derive(Debug)]
pub(crate) struct Centers {
    k: usize,
    d: usize,
    data: Vec<f32>,
    /// ‖c‖²/2, or 0 on the sphere where all are equal; +∞ for padding.
    half: Vec<f32>,
    unit: bool,
}

impl Centers {
    pub(crate) fn new(k: usize, d: usize, unit: bool) -> Self {
        let padded = k.next_multiple_of(LANES);
        Self { k, d, data: vec![0.0; padded * d], half: vec![f32::INFINITY; padded], unit }
    }

    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.data[k * self.d..(k + 1) * self.d]
    }

    pub(crate) fn rows(&self) -> &[f32] {
        &self.data[..self.k * self.d]
    }

    /// Replaces one centroid.
    pub(crate) fn set(&mut self, k: usize, c: &[f32]) {
        self.data[k * self.d..(k + 1) * self.d].copy_from_slice(c);
        self.half[k] = if self.unit {
            0.0
        } else {
            simd::dispatch(
                #[inline(always)]
                || (0.5 * squared_norm_inline(c)) as f32,
            )
        };
    }

    /// The best centroids of `n` rows that lie `ld` apart, into `best[..n]`.
    ///
    /// With `TWO` false the second best is not looked for. `scores` is scratch.
    pub(crate) fn nearest<const TWO: bool>(
        &self,
        (x, ld): (&[f32], usize),
        n: usize,
        scores: &mut Vec<f32>,
        best: &mut Vec<Best>,
    ) {
        best.clear();
        best.resize(n, Best::NONE);
        if self.k < FEW {
            simd::dispatch(
                #[inline(always)]
                || {
                    for (i, best) in best.iter_mut().enumerate() {
                        self.few(&x[i * ld..i * ld + self.d], best);
                    }
                },
            );
            return;
        }
        for first in (0..self.half.len()).step_by(COLUMNS) {
            let columns = COLUMNS.min(self.half.len() - first);
            scores.resize(n * columns, 0.0);
            tile::scores(
                (n, columns, self.d),
                (x, ld),
                (&self.data[first * self.d..], self.d),
                (scores, columns),
            );
            let half = &self.half[first..first + columns];
            simd::dispatch(
                #[inline(always)]
                || {
                    for (scores, best) in scores.chunks_exact(columns).zip(best.iter_mut()) {
                        scan_inline::<TWO>(scores, half, first as u32, best);
                    }
                },
            );
        }
    }

    /// Four centroids at a time share the loads of the row.
    #[inline(always)]
    fn few(&self, x: &[f32], best: &mut Best) {
        let d = self.d;
        let mut k = 0;
        while k + 4 <= self.k {
            let c = &self.data[k * d..(k + 4) * d];
            let s = four_dots_inline(x, [&c[..d], &c[d..2 * d], &c[2 * d..3 * d], &c[3 * d..]]);
            for (l, s) in s.iter().enumerate() {
                best.offer((k + l) as u32, s - self.half[k + l]);
            }
            k += 4;
        }
        for k in k..self.k {
            best.offer(k as u32, simd::dot_inline(x, self.row(k)) - self.half[k]);
        }
    }
}

/// Four products, each summed exactly as [`simd::dot_inline`] sums one.
#[inline(always)]
fn four_dots_inline(x: &[f32], c: [&[f32]; 4]) -> [f32; 4] {
    let mut lanes = [[0.0f32; LANES]; 4];
    let d = x.len();
    let c = c.map(|c| &c[..d]);
    let whole = d - d % LANES;
    let mut j = 0;
    while j < whole {
        let xs = &x[j..j + LANES];
        for q in 0..4 {
            let cs = &c[q][j..j + LANES];
            for l in 0..LANES {
                lanes[q][l] = xs[l].mul_add(cs[l], lanes[q][l]);
            }
        }
        j += LANES;
    }
    for j in whole..d {
        for q in 0..4 {
            lanes[q][j - whole] = x[j].mul_add(c[q][j], lanes[q][j - whole]);
        }
    }
    lanes.map(fold)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Merges the scores of the centroids `first..` into the best so far.
#[inline(always)]
fn scan_inline<const TWO: bool>(scores: &[f32], half: &[f32], first: u32, best: &mut Best) {
    let mut top = [f32::NEG_INFINITY; LANES];
    let mut second = [f32::NEG_INFINITY; LANES];
    let (mut top_at, mut second_at) = ([0u32; LANES], [0u32; LANES]);
    for (block, (s, h)) in scores.chunks_exact(LANES).zip(half.chunks_exact(LANES)).enumerate() {
        let block = block as u32;
        for l in 0..LANES {
            let v = s[l] - h[l];
            let wins = v > top[l];
            if TWO {
                let runs_up = v > second[l];
                let (old, old_at) = (top[l], top_at[l]);
                second_at[l] = if wins {
                    old_at
                } else if runs_up {
                    block
                } else {
                    second_at[l]
                };
                second[l] = if wins {
                    old
                } else if runs_up {
                    v
                } else {
                    second[l]
                };
            }
            top_at[l] = if wins { block } else { top_at[l] };
            top[l] = if wins { v } else { top[l] };
        }
    }
    let index = |block: u32, l: usize| first + block * LANES as u32 + l as u32;
    let mut here = Best::NONE;
    here.index = u32::MAX;
    here.second = u32::MAX;
    for l in 0..LANES {
        offer_in_any_order(&mut here, index(top_at[l], l), top[l]);
        if TWO {
            offer_in_any_order(&mut here, index(second_at[l], l), second[l]);
        }
    }
    best.offer(here.index, here.score);
    if TWO {
        best.offer(here.second, here.second_score);
    }
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
            let mut centers = Centers::new(k, d, false);
            for j in 0..k {
                centers.set(j, &c[j * d..(j + 1) * d]);
            }
            let (mut scores, mut two, mut one) = (Vec::new(), Vec::new(), Vec::new());
            centers.nearest::<true>((&x, d), n, &mut scores, &mut two);
            centers.nearest::<false>((&x, d), n, &mut scores, &mut one);
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
