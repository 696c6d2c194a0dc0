//! One pass over rows × centroids that keeps a softmax per row and no matrix.
//!
//! For each row: lse = ln Σ_k e^{s_k} and the entropy H = ln Z − S₁/Z with Z = Σ e^{s−m}, S₁ = Σ (s−m) e^{s−m}
//! about the running maximum m; the m nearest centroids; and, for the credibility filter, how the distance to
//! the own class compares with the others.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    clusters::points::{Points, squared_distance_inline},
    simd, tile,
};

/// Centroids of one tile. The grid starts at centroid 0, so a row's bits depend on nothing else.
const COLUMNS: usize = 256;
/// The narrowest tile: wide enough that the product's bits do not depend on the number of rows.
const NARROWEST: usize = 80;
/// Below this many centroids all distances are taken from the differences.
const FEW: usize = 32;
/// Rows of a tile; short tiles are padded so that the product takes the same path.
const ROWS: usize = 128;
const PADDED_ROWS: usize = 16;
/// A squared distance below this share of ‖x‖² + ‖c‖² is recomputed from the differences.
const CANCELS: f32 = 1.0 / 64.0;
const LANES: usize = 16;

/// How distances to centroids become scores: s_k = −rate_k·d or −rate_k·d².
#[derive(Debug, Clone, PartialEq)]
pub struct Rates {
    /// One positive rate per centroid.
    pub rates: Vec<f32>,
    /// Whether the score falls with the squared distance.
    pub squared: bool,
}

/// Centroids, padded for the products.
#[derive(Debug)]
pub(crate) struct Grid {
    pub(crate) k: usize,
    d: usize,
    data: Vec<f32>,
    /// ‖c‖²; +∞ for padding, whose scores become −∞.
    norms: Vec<f32>,
    rates: Vec<f32>,
    squared: bool,
}

impl Grid {
    /// `centroids` is `[k, d]`.
    pub(crate) fn new(centroids: &[f32], d: usize, affinity: Rates) -> Self {
        let k = centroids.len() / d;
        let rest = k % COLUMNS;
        let last = if rest == 0 { 0 } else { rest.next_multiple_of(LANES).max(NARROWEST) };
        let padded = k - rest + last;
        let mut data = centroids.to_vec();
        data.resize(padded * d, 0.0);
        let mut norms: Vec<f32> = centroids.chunks_exact(d).map(|c| simd::squared_norm(c) as f32).collect();
        norms.resize(padded, f32::INFINITY);
        let mut rates = affinity.rates;
        rates.resize(padded, 1.0);
        Self { k, d, data, norms, rates, squared: affinity.squared }
    }

    pub(crate) fn row(&self, k: usize) -> &[f32] {
        &self.data[k * self.d..(k + 1) * self.d]
    }

    /// The products of a tile of rows with the centroids from `first` on, where distances come from them.
    fn products(
        &self,
        (x, ld): (&[f32], usize),
        rows: usize,
        first: usize,
        columns: usize,
        scores: &mut Vec<f32>,
    ) {
        let d = self.d;
        scores.clear();
        scores.resize(rows * columns, 0.0);
        if self.k >= FEW {
            tile::scores((rows, columns, d), (x, ld), (&self.data[first * d..], d), (scores, columns));
        }
    }

    /// Turns the products of a row of squared norm `norm` into squared distances; a whole number of lanes.
    #[inline(always)]
    fn squares_inline(&self, x: &[f32], norm: f32, first: usize, scores: &mut [f32]) {
        let norms = &self.norms[first..first + scores.len()];
        if self.k >= FEW {
            let mut cancels = [0u32; LANES];
            for (s, n) in scores.chunks_exact_mut(LANES).zip(norms.chunks_exact(LANES)) {
                for l in 0..LANES {
                    let sum = norm + n[l];
                    let squared = (-2.0f32).mul_add(s[l], sum).max(0.0);
                    cancels[l] |= u32::from(squared < CANCELS * sum);
                    s[l] = squared;
                }
            }
            if cancels.iter().any(|c| *c != 0) {
                for (j, s) in scores.iter_mut().enumerate() {
                    if *s < CANCELS * (norm + norms[j]) && first + j < self.k {
                        *s = squared_distance_inline(x, self.row(first + j)) as f32;
                    }
                }
            }
        } else {
            for (j, s) in scores.iter_mut().enumerate() {
                *s = if first + j < self.k {
                    squared_distance_inline(x, self.row(first + j)) as f32
                } else {
                    f32::INFINITY
                };
            }
        }
    }

    /// s at squared distance `squared`.
    #[inline(always)]
    pub(crate) fn score(&self, k: usize, squared: f32) -> f32 {
        score_inline(self.rates[k], self.squared, squared)
    }
}

/// A score that cannot overflow: only a centroid that is out of the softmax, at distance +∞, has −∞.
#[inline(always)]
fn score_inline(rate: f32, use_square: bool, squared: f32) -> f32 {
    let s = -rate * if use_square { squared } else { squared.sqrt() };
    if squared == f32::INFINITY { f32::NEG_INFINITY } else { s.max(f32::MIN) }
}

/// Distances of a row that take the place of what the grid says, and the columns of the row's own class.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    pub(crate) columns: Range<usize>,
    /// Squared distances for `columns`; +∞ takes a centroid out.
    pub(crate) squared: Vec<f32>,
}

/// The statistics of one row.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) log_sum_exp: f64,
    pub(crate) entropy: f64,
    /// The centroid of the largest score, ties to the smaller index, and that score.
    pub(crate) best: u32,
    pub(crate) best_score: f32,
    /// Centroids outside the own class that are nearer than every own one.
    pub(crate) closer: u32,
    /// The smallest squared distance outside the own class.
    pub(crate) other: f32,
    /// The nearest centroids by (squared distance, index) ascending, when asked for.
    pub(crate) nearest: Vec<(f32, u32)>,
}

/// A softmax that grows block by block.
#[derive(Debug, Clone, Copy)]
struct Online {
    top: f64,
    z: f64,
    s1: f64,
}

impl Online {
    const EMPTY: Self = Self { top: f64::NEG_INFINITY, z: 0.0, s1: 0.0 };

    fn merge(&mut self, other: Self) {
        if other.top == f64::NEG_INFINITY {
            return;
        }
        if self.top == f64::NEG_INFINITY {
            *self = other;
            return;
        }
        let top = self.top.max(other.top);
        let moved = |o: &Self| {
            let shift = o.top - top;
            let factor = shift.exp();
            (factor * o.z, factor * (o.s1 + shift * o.z))
        };
        let ((za, sa), (zb, sb)) = (moved(self), moved(&other));
        *self = Self { top, z: za + zb, s1: sa + sb };
    }

    fn log_sum_exp(&self) -> f64 {
        self.top + self.z.ln()
    }

    fn entropy(&self) -> f64 {
        (self.z.ln() - self.s1 / self.z).max(0.0)
    }
}

/// The softmax of finite scores, in f64.
pub(crate) fn log_sum_exp_and_entropy(scores: &[f32]) -> (f64, f64) {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all = Online { top: f64::from(top), z: 0.0, s1: 0.0 };
    for s in scores.iter().filter(|s| **s > f32::NEG_INFINITY) {
        let t = f64::from(*s) - all.top;
        all.z += t.exp();
        all.s1 += t * t.exp();
    }
    (all.log_sum_exp(), all.entropy())
}

/// Walks all rows of `points`; `own` gives a row's own columns and `take` receives each row's statistics, in
/// tiles, results in the order of the rows. `nearest` is the number of nearest centroids to keep.
pub(crate) fn sweep<R: Send>(
    points: &Points<'_>,
    grid: &Grid,
    nearest: usize,
    own: impl Fn(usize, &[f32]) -> Own + Sync,
    take: impl Fn(usize, &[f32], Own, Found) -> R + Sync,
) -> Vec<R> {
    let n = points.len();
    let tiles: Vec<Vec<R>> = (0..n.div_ceil(ROWS))
        .into_par_iter()
        .map_init(Scratch::default, |scratch, t| {
            let rows = t * ROWS..n.min((t + 1) * ROWS);
            one_tile(points, grid, nearest, rows, scratch, &own, &take)
        })
        .collect();
    tiles.into_iter().flatten().collect()
}

#[derive(Debug, Default)]
struct Scratch {
    buffer: Vec<f32>,
    scores: Vec<f32>,
}

fn one_tile<R>(
    points: &Points<'_>,
    grid: &Grid,
    nearest: usize,
    rows: Range<usize>,
    scratch: &mut Scratch,
    own: &impl Fn(usize, &[f32]) -> Own,
    take: &impl Fn(usize, &[f32], Own, Found) -> R,
) -> Vec<R> {
    let (d, count) = (grid.d, rows.len());
    let (buffer, mut padded) = (&mut scratch.buffer, Vec::new());
    let (x, ld) = padded_tile(points, rows.clone(), (buffer, &mut padded));
    let row = |i: usize| &x[i * ld..i * ld + d];
    let norm = |i: usize| simd::squared_norm(row(i)) as f32;
    let mut states: Vec<State> =
        (0..count).map(|i| State::new(norm(i), nearest, own(rows.start + i, row(i)))).collect();
    let product_rows = count.max(PADDED_ROWS);
    for first in (0..grid.norms.len()).step_by(COLUMNS) {
        let columns = COLUMNS.min(grid.norms.len() - first);
        grid.products((x, ld), product_rows, first, columns, &mut scratch.scores);
        for (i, state) in states.iter_mut().enumerate() {
            let scores = &mut scratch.scores[i * columns..(i + 1) * columns];
            simd::dispatch(
                #[inline(always)]
                || state.block_inline(grid, row(i), first, scores),
            );
        }
    }
    states
        .into_iter()
        .enumerate()
        .map(|(i, state)| {
            let (own, found) = state.finish(grid, row(i));
            take(rows.start + i, row(i), own, found)
        })
        .collect()
}

/// A tile of rows, short ones padded so that products take the same path.
fn padded_tile<'a>(
    points: &'a Points<'_>,
    rows: Range<usize>,
    (buffer, padded): (&'a mut Vec<f32>, &'a mut Vec<f32>),
) -> (&'a [f32], usize) {
    let (d, count) = (points.dim(), rows.len());
    let (x, ld) = points.tile(rows, buffer);
    if count >= PADDED_ROWS {
        return (x, ld);
    }
    padded.clear();
    padded.resize(PADDED_ROWS * d, 0.0);
    for i in 0..count {
        padded[i * d..(i + 1) * d].copy_from_slice(&x[i * ld..i * ld + d]);
    }
    (padded, d)
}

/// Parts of the rows whose weighed sums are taken apart, at most.
const MOST_PARTS: usize = 8;

/// Σ_i r_ik x_i `[K, D]` and Σ_i r_ik `[K]` with r_ik = e^{s_ik − lse_i}. Products and sums of a tile of rows are f32, sums over
/// tiles f64; parts of the rows, counted by their number alone, are added in their order.
pub(crate) fn weighed_sums(points: &Points<'_>, grid: &Grid, lse: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = points.len();
    let each = n.div_ceil(MOST_PARTS).next_multiple_of(ROWS);
    let parts: Vec<(Vec<f64>, Vec<f64>)> = (0..n.div_ceil(each))
        .into_par_iter()
        .map(|part| {
            let mut all = (vec![0.0f64; grid.k * grid.d], vec![0.0f64; grid.k]);
            let (mut scratch, mut added) = (Scratch::default(), Vec::new());
            let end = n.min((part + 1) * each);
            for first in (part * each..end).step_by(ROWS) {
                let rows = first..end.min(first + ROWS);
                add_tile(points, grid, (rows.clone(), &lse[rows]), (&mut scratch, &mut added), &mut all);
            }
            all
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut whole = parts.next().unwrap_or_default();
    for (sums, mass) in parts {
        whole.0.iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        whole.1.iter_mut().zip(mass).for_each(|(a, b)| *a += b);
    }
    whole
}

fn add_tile(
    points: &Points<'_>,
    grid: &Grid,
    (rows, lse): (Range<usize>, &[f64]),
    (scratch, added): (&mut Scratch, &mut Vec<f32>),
    (sums, mass): &mut (Vec<f64>, Vec<f64>),
) {
    let (d, count) = (grid.d, rows.len());
    let mut padded = Vec::new();
    let (x, ld) = padded_tile(points, rows, (&mut scratch.buffer, &mut padded));
    let product_rows = count.max(PADDED_ROWS);
    for first in (0..grid.norms.len()).step_by(COLUMNS) {
        let columns = COLUMNS.min(grid.norms.len() - first);
        grid.products((x, ld), product_rows, first, columns, &mut scratch.scores);
        // What pads the tile has no weight.
        scratch.scores[count * columns..].fill(0.0);
        for (i, lse) in lse.iter().enumerate() {
            let (row, weights) =
                (&x[i * ld..i * ld + d], &mut scratch.scores[i * columns..(i + 1) * columns]);
            simd::dispatch(
                #[inline(always)]
                || {
                    grid.squares_inline(row, simd::squared_norm_inline(row) as f32, first, weights);
                    for (j, weight) in weights.iter_mut().enumerate() {
                        let score = score_inline(grid.rates[first + j], grid.squared, *weight);
                        *weight = simd::exp_inline(((f64::from(score) - lse) as f32).max(-200.0));
                    }
                },
            );
        }
        let shown = columns.min(grid.k - first);
        for i in 0..count {
            let weights = &scratch.scores[i * columns..i * columns + shown];
            mass[first..first + shown].iter_mut().zip(weights).for_each(|(m, w)| *m += f64::from(*w));
        }
        added.clear();
        added.resize(columns * d, 0.0);
        tile::accumulate_transposed(
            (product_rows, columns, d),
            (&scratch.scores, columns),
            (x, ld),
            (added, d),
        );
        let to = &mut sums[first * d..(first + shown) * d];
        to.iter_mut().zip(added.iter()).for_each(|(sum, value)| *sum += f64::from(*value));
    }
}

/// A row on its way over the tiles of centroids.
#[derive(Debug)]
struct State {
    norm: f32,
    own: Own,
    own_nearest: f32,
    online: Online,
    best: u32,
    best_score: f32,
    closer: u32,
    other: f32,
    keep: usize,
    nearest: Vec<(f32, u32)>,
}

impl State {
    fn new(norm: f32, keep: usize, own: Own) -> Self {
        Self {
            norm,
            own_nearest: own.squared.iter().copied().fold(f32::INFINITY, f32::min),
            own,
            online: Online::EMPTY,
            best: 0,
            best_score: f32::NEG_INFINITY,
            closer: 0,
            other: f32::INFINITY,
            keep,
            nearest: Vec::with_capacity(keep + 1),
        }
    }

    /// Turns the products ⟨x, c⟩ of the centroids `first..` into squared distances, then scores, and takes them
    /// in. `scores` is a whole number of lanes.
    #[inline(always)]
    fn block_inline(&mut self, grid: &Grid, x: &[f32], first: usize, scores: &mut [f32]) {
        grid.squares_inline(x, self.norm, first, scores);
        if !self.own.columns.is_empty() {
            self.compare_inline(first, scores);
        }
        if self.keep > 0 {
            self.keep_nearest_inline(first, scores);
        }
        self.softmax_inline(grid, first, scores);
    }

    /// Puts the own distances in place; counts the others that are nearer.
    #[inline(always)]
    fn compare_inline(&mut self, first: usize, scores: &mut [f32]) {
        let own = self.own.columns.start.max(first)..self.own.columns.end.min(first + scores.len());
        for k in own.clone() {
            scores[k - first] = f32::INFINITY;
        }
        let mut least = [f32::INFINITY; LANES];
        let mut closer = [0u32; LANES];
        for s in scores.chunks_exact(LANES) {
            for l in 0..LANES {
                closer[l] += u32::from(s[l] < self.own_nearest);
                least[l] = if s[l] < least[l] { s[l] } else { least[l] };
            }
        }
        self.closer += closer.iter().sum::<u32>();
        self.other = least.iter().copied().fold(self.other, f32::min);
        for k in own {
            scores[k - first] = self.own.squared[k - self.own.columns.start];
        }
    }

    /// Keeps the smallest distances, ascending; a tie keeps the smaller index because it came first.
    #[inline(always)]
    fn keep_nearest_inline(&mut self, first: usize, scores: &[f32]) {
        let mut limit = match self.nearest.last() {
            Some(last) if self.nearest.len() == self.keep => last.0,
            _ => f32::INFINITY,
        };
        for (block, s) in scores.chunks_exact(LANES).enumerate() {
            let mut any = 0u32;
            s.iter().for_each(|s| any |= u32::from(*s < limit));
            if any == 0 {
                continue;
            }
            for (l, s) in s.iter().enumerate() {
                if *s < limit {
                    let at = self.nearest.partition_point(|(other, _)| *other <= *s);
                    self.nearest.insert(at, (*s, (first + block * LANES + l) as u32));
                    self.nearest.truncate(self.keep);
                    if self.nearest.len() == self.keep {
                        limit = self.nearest[self.keep - 1].0;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn softmax_inline(&mut self, grid: &Grid, first: usize, scores: &mut [f32]) {
        let rates = &grid.rates[first..first + scores.len()];
        let mut tops = [f32::NEG_INFINITY; LANES];
        for (s, r) in scores.chunks_exact_mut(LANES).zip(rates.chunks_exact(LANES)) {
            for l in 0..LANES {
                s[l] = score_inline(r[l], grid.squared, s[l]);
                tops[l] = if s[l] > tops[l] { s[l] } else { tops[l] };
            }
        }
        let top = tops.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if top == f32::NEG_INFINITY {
            return;
        }
        if top > self.best_score {
            self.best_score = top;
            self.best = (first + scores.iter().position(|s| *s == top).unwrap_or(0)) as u32;
        }
        let (mut z, mut s1) = ([0.0f32; LANES], [0.0f32; LANES]);
        for s in scores.chunks_exact(LANES) {
            for l in 0..LANES {
                // An excluded centroid has s = −∞: its exponential is 0, and 0·(−∞) must not become NaN.
                let t = (s[l] - top).max(-200.0);
                let e = simd::exp_inline(t);
                z[l] += e;
                s1[l] = t.mul_add(e, s1[l]);
            }
        }
        let sum = |lanes: [f32; LANES]| lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
        self.online.merge(Online { top: f64::from(top), z: sum(z), s1: sum(s1) });
    }

    fn finish(mut self, grid: &Grid, x: &[f32]) -> (Own, Found) {
        // The products rank the nearest; their distances come from the differences.
        let own = &self.own;
        for (squared, k) in &mut self.nearest {
            let k = *k as usize;
            if !own.columns.contains(&k) && squared.is_finite() {
                *squared = squared_distance_inline(x, grid.row(k)) as f32;
            }
        }
        self.nearest.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let found = Found {
            log_sum_exp: self.online.log_sum_exp(),
            entropy: self.online.entropy(),
            best: self.best,
            best_score: self.best_score,
            closer: self.closer,
            other: self.other,
            nearest: self.nearest,
        };
        (self.own, found)
    }
}
