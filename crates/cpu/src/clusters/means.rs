//! Sums and means of rows in f64.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    points::{Points, TILE, squared_length_inline},
    segments::counting_sort,
};
use crate::simd;

/// From this many elements on, the clusters of a class are summed in parallel.
const PARALLEL: usize = 128 * 1024;
/// Rows of one partial sum of the class's mean.
const BLOCK: usize = 4096;
/// Columns that are summed at a time: their sums stay in registers while the rows go by.
const COLUMNS: usize = 32;
/// The direction of unit rows that cancel is made of rounding, 2⁻²⁴ a row: below this length a row there is none.
const CANCELED: f64 = 1.0 / (1u64 << 30) as f64;

/// The cluster of a row before the first round.
pub(crate) const UNASSIGNED: u32 = u32::MAX;

/// A row that changed hands, and where it was before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) row: u32,
    pub(crate) from: u32,
}

/// The sums of the clusters' rows, brought from one assignment to the next.
///
/// Every cluster has one owner, which takes out the rows that left and adds those that came, both in the order of
/// the changes. When most rows changed hands, or twice as many as there are since the last time, the sums are taken
/// anew in the order of the rows: at most 5 N additions stand behind a sum, and no round costs more than
/// all rows.
#[derive(Default)]
pub(crate) struct Sums {
    d: usize,
    /// `[k, d]`.
    sums: Vec<f64>,
    pub(crate) sizes: Vec<u32>,
    /// Changes since the sums were taken anew.
    since: usize,
}

impl Sums {
    /// Makes room for `k` clusters of dimension `d`, all without rows. The first changes set the sums.
    pub(crate) fn reset(&mut self, k: usize, d: usize) {
        (self.d, self.since) = (d, 0);
        self.sums.resize(k * d, 0.0);
        self.sizes.clear();
        self.sizes.resize(k, 0);
    }

    /// Counts the rows of every cluster after these changes.
    pub(crate) fn count(&mut self, assignment: &[u32], changes: &[Change]) {
        for change in changes {
            self.sizes[assignment[change.row as usize] as usize] += 1;
            if change.from != UNASSIGNED {
                self.sizes[change.from as usize] -= 1;
            }
        }
    }

    /// Follows the changes that led to `assignment`.
    pub(crate) fn update(&mut self, points: &Points<'_>, assignment: &[u32], changes: &[Change]) {
        let k = self.sizes.len();
        self.since += changes.len();
        let first = changes.first().is_some_and(|change| change.from == UNASSIGNED);
        if first || 2 * changes.len() > assignment.len() || self.since > 2 * assignment.len() {
            self.since = 0;
            if self.serial(assignment.len()) {
                self.sums.fill(0.0);
                self.move_rows::<false>(points, (0..).zip(assignment.iter().copied()));
                return;
            }
            let (offsets, order) = counting_sort(assignment, k);
            self.each(|buffer, cluster, sum| {
                sum.fill(0.0);
                add::<false>(points, &order[offsets[cluster]..offsets[cluster + 1]], buffer, sum);
            });
            return;
        }
        if self.serial(2 * changes.len()) {
            self.move_rows::<true>(points, changes.iter().map(|change| (change.row, change.from)));
            let came = changes.iter().map(|change| (change.row, assignment[change.row as usize]));
            self.move_rows::<false>(points, came);
            return;
        }
        // The changes by the cluster that a row leaves, and by the one that it comes to.
        let grouped = |key: &dyn Fn(&Change) -> u32| {
            let keys: Vec<u32> = changes.iter().map(key).collect();
            let (offsets, mut order) = counting_sort(&keys, k);
            order.iter_mut().for_each(|at| *at = changes[*at as usize].row);
            (offsets, order)
        };
        let (left_at, left) = grouped(&|change| change.from);
        let (came_at, came) = grouped(&|change| assignment[change.row as usize]);
        self.each(|buffer, cluster, sum| {
            add::<true>(points, &left[left_at[cluster]..left_at[cluster + 1]], buffer, sum);
            add::<false>(points, &came[came_at[cluster]..came_at[cluster + 1]], buffer, sum);
        });
    }

    fn serial(&self, rows: usize) -> bool {
        rows * self.d < PARALLEL
    }

    /// Adds rows to the sums of clusters, or takes them out, in this order.
    fn move_rows<const OUT: bool>(&mut self, points: &Points<'_>, rows: impl Iterator<Item = (u32, u32)>) {
        let (d, mut buffer) = (self.d, Vec::new());
        let dense = points.dense();
        simd::dispatch(
            #[inline(always)]
            || {
                for (row, cluster) in rows {
                    let x = match dense {
                        Some((x, ld)) => &x[row as usize * ld..][..d],
                        None => points.row(row as usize, &mut buffer),
                    };
                    let sum = &mut self.sums[cluster as usize * d..(cluster as usize + 1) * d];
                    for (s, x) in sum.iter_mut().zip(x) {
                        let x = f64::from(*x);
                        *s += if OUT { -x } else { x };
                    }
                }
            },
        );
    }

    /// `own` for every cluster, in parallel.
    fn each(&mut self, own: impl Fn(&mut Vec<f32>, usize, &mut [f64]) + Sync) {
        let sums = self.sums.par_chunks_exact_mut(self.d).enumerate();
        sums.for_each_init(Vec::new, |buffer, (c, sum)| own(buffer, c, sum));
    }

    /// The mean of every cluster, or its direction on the sphere; a cluster without rows, or whose rows cancel on
    /// the sphere, stays where it is.
    pub(crate) fn average(&self, unit: bool, centroids: &mut [f64]) {
        simd::dispatch(
            #[inline(always)]
            || {
                let clusters = self.sums.chunks_exact(self.d).zip(&self.sizes);
                for ((sum, size), out) in clusters.zip(centroids.chunks_exact_mut(self.d)) {
                    if *size == 0 {
                        continue;
                    }
                    let size = f64::from(*size);
                    let length = if unit { squared_length_inline(sum).sqrt() } else { size };
                    if !unit || length > size * CANCELED {
                        out.iter_mut().zip(sum).for_each(|(c, s)| *c = s / length);
                    }
                }
            },
        );
    }
}

/// Adds rows to a sum, or takes them out, in their order.
fn add<const OUT: bool>(points: &Points<'_>, rows: &[u32], buffer: &mut Vec<f32>, sum: &mut [f64]) {
    if rows.is_empty() {
        return;
    }
    simd::dispatch(
        #[inline(always)]
        || match points.dense() {
            Some((x, ld)) => {
                add_inline::<OUT>(sum, rows.len(), |i, columns| {
                    let at = rows[i] as usize * ld;
                    &x[at + columns.start..at + columns.end]
                });
            }
            None => {
                for i in rows {
                    let row = points.row(*i as usize, buffer);
                    add_inline::<OUT>(sum, 1, |_, columns| &row[columns]);
                }
            }
        },
    );
}

/// Adds `n` rows to a sum, column block by column block; `part` gives some columns of a row.
#[inline(always)]
fn add_inline<'x, const OUT: bool>(
    sum: &mut [f64],
    n: usize,
    part: impl Fn(usize, Range<usize>) -> &'x [f32],
) {
    let d = sum.len();
    let whole = d / COLUMNS * COLUMNS;
    for (b, sum) in sum[..whole].chunks_exact_mut(COLUMNS).enumerate() {
        let mut lanes = [0.0f64; COLUMNS];
        lanes.copy_from_slice(sum);
        for i in 0..n {
            let x = part(i, b * COLUMNS..(b + 1) * COLUMNS);
            for l in 0..COLUMNS {
                let x = f64::from(x[l]);
                lanes[l] += if OUT { -x } else { x };
            }
        }
        sum.copy_from_slice(&lanes);
    }
    if whole < d {
        for i in 0..n {
            for (s, x) in sum[whole..].iter_mut().zip(part(i, whole..d)) {
                let x = f64::from(*x);
                *s += if OUT { -x } else { x };
            }
        }
    }
}

/// The mean of the rows and the mean of their squared norms, summed in f64 by blocks in the order of the rows.
pub(crate) fn moments(points: &Points<'_>) -> (Vec<f64>, f64) {
    let (n, d) = (points.len(), points.dim());
    let part = |rows: Range<usize>| {
        let (mut sum, mut squares) = (vec![0.0f64; d], 0.0);
        let mut buffer = Vec::new();
        for first in rows.clone().step_by(TILE) {
            let range = first..rows.end.min(first + TILE);
            let count = range.len();
            let (x, ld) = points.tile(range, &mut buffer);
            simd::dispatch(
                #[inline(always)]
                || squares += moments_inline(&mut sum, (x, ld), count),
            );
        }
        (sum, squares)
    };
    let range = |b: usize| b * BLOCK..n.min((b + 1) * BLOCK);
    let (mut mean, mut square) = if n <= BLOCK {
        part(0..n)
    } else {
        let parts: Vec<_> = (0..n.div_ceil(BLOCK)).into_par_iter().map(|b| part(range(b))).collect();
        let mut all = (vec![0.0f64; d], 0.0);
        for (sum, squares) in parts {
            all.0.iter_mut().zip(&sum).for_each(|(m, s)| *m += s);
            all.1 += squares;
        }
        all
    };
    mean.iter_mut().for_each(|m| *m /= n as f64);
    square /= n as f64;
    (mean, square)
}

/// Adds `n` rows to a sum, and returns the sum of their squared elements. Most often the rows come from memory here: they
/// are read in the order in which they lie there.
#[inline(always)]
fn moments_inline(sum: &mut [f64], (x, ld): (&[f32], usize), n: usize) -> f64 {
    let d = sum.len();
    let whole = d / COLUMNS * COLUMNS;
    let mut squares = [0.0f64; COLUMNS];
    for i in 0..n {
        let x = &x[i * ld..i * ld + d];
        for (sum, x) in sum[..whole].chunks_exact_mut(COLUMNS).zip(x.chunks_exact(COLUMNS)) {
            // Aside, so that the sums can be seen not to overlap the row.
            let mut lanes = [0.0f64; COLUMNS];
            for l in 0..COLUMNS {
                let x = f64::from(x[l]);
                lanes[l] = sum[l] + x;
                squares[l] = x.mul_add(x, squares[l]);
            }
            sum.copy_from_slice(&lanes);
        }
        for ((sum, x), square) in sum[whole..].iter_mut().zip(&x[whole..]).zip(&mut squares) {
            let x = f64::from(*x);
            *sum += x;
            *square = x.mul_add(x, *square);
        }
    }
    squares.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rows;
    use consonance_testkit::data;

    /// Thirty rounds of changes, few and many: sums of integers are exact, those of real rows keep the bound of 5 N
    /// additions; one thread and several owners give the same bits.
    #[test]
    fn sums_that_follow_the_changes_stay_those_of_the_rows() {
        for (n, d, k) in [(60, 5, 3), (700, 33, 7), (5000, 64, 40)] {
            for integers in [true, false] {
                let x = if integers { data::integers(n, d, 1) } else { data::normal(n, d, 1) };
                let rows = Rows::new("test", "x", &x[..], n, d).unwrap();
                let members: Vec<u32> = (0..n as u32).collect();
                let mut points = Points::new(&rows, &members, None);
                points.settle(None);
                let mut assignment = data::labels(n, k as u32, 2);
                let mut sums = Sums::default();
                sums.reset(k, d);
                let first: Vec<Change> = (0..n as u32).map(|row| Change { row, from: UNASSIGNED }).collect();
                sums.count(&assignment, &first);
                sums.update(&points, &assignment, &first);
                let mut worst = 0.0f64;
                for round in 0..30 {
                    let every = [2, 3, 7, 50][round % 4];
                    let mut changes = Vec::new();
                    for row in (round % every..n).step_by(every) {
                        changes.push(Change { row: row as u32, from: assignment[row] });
                        assignment[row] = (assignment[row] + 1 + (row % (k - 1)) as u32) % k as u32;
                    }
                    sums.count(&assignment, &changes);
                    sums.update(&points, &assignment, &changes);
                    let mut truth = vec![0.0f64; k * d];
                    let mut sizes = vec![0u32; k];
                    for (x, a) in x.chunks(d).zip(&assignment) {
                        let own = &mut truth[*a as usize * d..(*a as usize + 1) * d];
                        own.iter_mut().zip(x).for_each(|(s, x)| *s += f64::from(*x));
                        sizes[*a as usize] += 1;
                    }
                    assert_eq!(sums.sizes, sizes);
                    // No partial sum exceeds that of all magnitudes, 5 n of them.
                    let most = 5.0 * n as f64 * x.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
                    let bound = 5.0 * n as f64 * 2f64.powi(-53) * most;
                    for (s, t) in sums.sums.iter().zip(&truth) {
                        worst = worst.max((s - t).abs() / bound);
                    }
                }
                println!("sums, {n} x {d} into {k}: error / bound {worst:.1e}");
                assert!(worst <= if integers { 0.0 } else { 1.0 });
            }
        }
    }
}
