//! Lloyd's iterations on one class: assign, relocate empty clusters, average, until nothing moves.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    nearest::{Centers, Scratch},
    points::{Points, TILE, squared_distance_inline},
    segments::counting_sort,
};
use crate::simd;

/// From this many elements on, the clusters of a class are averaged in parallel.
const PARALLEL: usize = 128 * 1024;
/// Rows of one partial sum of the class's mean.
const BLOCK: usize = 4096;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) iterations: usize,
    pub(crate) tolerance: f64,
}

/// What Lloyd's iterations found in one class.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// `[k, d]`, in the caller's coordinates.
    pub(crate) centroids: Vec<f32>,
    pub(crate) sizes: Vec<u32>,
    pub(crate) spread: Vec<f32>,
    pub(crate) mean_distance: Vec<f32>,
    pub(crate) assignment: Vec<u32>,
    pub(crate) margin: Vec<f32>,
    pub(crate) inertia: f64,
    pub(crate) iterations: u32,
}

/// The mean of the rows, summed in f64 by blocks in the order of the rows.
pub(crate) fn mean(points: &Points<'_>) -> Vec<f64> {
    let (n, d) = (points.len(), points.dim());
    let part = |rows: Range<usize>| {
        let mut sum = vec![0.0f64; d];
        let mut buffer = Vec::new();
        for first in rows.clone().step_by(TILE) {
            let range = first..rows.end.min(first + TILE);
            let count = range.len();
            let (x, ld) = points.tile(range, &mut buffer);
            simd::dispatch(
                #[inline(always)]
                || {
                    for i in 0..count {
                        sum.iter_mut().zip(&x[i * ld..i * ld + d]).for_each(|(s, x)| *s += f64::from(*x));
                    }
                },
            );
        }
        sum
    };
    let blocks = n.div_ceil(BLOCK);
    let range = |b: usize| b * BLOCK..n.min((b + 1) * BLOCK);
    let parts: Vec<_> = (0..blocks).into_par_iter().map(|b| part(range(b))).collect();
    let mut mean = vec![0.0f64; d];
    for sum in parts {
        mean.iter_mut().zip(&sum).for_each(|(m, s)| *m += s);
    }
    mean.iter_mut().for_each(|m| *m /= n as f64);
    mean
}

/// Runs from `start` (`[k, d]`, in the coordinates of `points`, that is after its shift).
pub(crate) fn lloyd(points: &Points<'_>, start: &[f64], unit: bool, stop: Stop, variance: f64) -> Outcome {
    let (n, d) = (points.len(), points.dim());
    let k = start.len() / d;
    let mut exact = start.to_vec();
    let mut centers = Centers::new(k, d, unit);
    let mut row = vec![0.0f32; d];
    let publish = |exact: &[f64], centers: &mut Centers, row: &mut [f32]| {
        for (j, c) in exact.chunks_exact(d).enumerate() {
            row.iter_mut().zip(c).for_each(|(r, c)| *r = *c as f32);
            centers.set(j, row);
        }
    };
    publish(&exact, &mut centers, &mut row);

    let mut assignment = vec![u32::MAX; n];
    let mut iterations = 0;
    while iterations < stop.iterations {
        let changed = assign(points, &centers, &mut assignment);
        if !changed {
            break;
        }
        iterations += 1;
        let (mut offsets, mut order) = counting_sort(&assignment, k);
        if offsets.windows(2).any(|w| w[0] == w[1]) && relocate(points, &centers, &mut assignment, &offsets) {
            (offsets, order) = counting_sort(&assignment, k);
        }
        let before = centers.rows().to_vec();
        average(points, &offsets, &order, unit, &mut exact);
        publish(&exact, &mut centers, &mut row);
        let moved: f64 = simd::dispatch(
            #[inline(always)]
            || {
                before
                    .chunks_exact(d)
                    .zip(centers.rows().chunks_exact(d))
                    .map(
                        #[inline(always)]
                        |(a, b)| squared_distance_inline(a, b),
                    )
                    .sum()
            },
        );
        if moved <= stop.tolerance * variance {
            break;
        }
    }
    finish(points, &centers, &exact, iterations as u32)
}

/// Gives every row its nearest centroid; says whether any row changed hands.
fn assign(points: &Points<'_>, centers: &Centers, assignment: &mut [u32]) -> bool {
    assignment
        .par_chunks_mut(TILE)
        .enumerate()
        .map_init(
            || (Vec::new(), Scratch::default()),
            |(buffer, scratch), (t, assignment)| {
                let first = t * TILE;
                let tile = points.tile(first..first + assignment.len(), buffer);
                centers.nearest::<false>(tile, assignment.len(), scratch);
                let mut changed = false;
                for (a, best) in assignment.iter_mut().zip(&scratch.best) {
                    changed |= *a != best.index;
                    *a = best.index;
                }
                changed
            },
        )
        .reduce(|| false, |a, b| a | b)
}

/// Gives every empty cluster, in order, the row farthest from its own centroid (distance descending, index
/// ascending) among clusters that keep another row; rows that coincide with their centroid stay. Says whether
/// any row moved.
///
/// The rule is scikit-learn's; it makes no difference in which order threads run.
fn relocate(points: &Points<'_>, centers: &Centers, assignment: &mut [u32], offsets: &[usize]) -> bool {
    let mut sizes: Vec<usize> = offsets.windows(2).map(|w| w[1] - w[0]).collect();
    let mut far: Vec<(f64, u32)> = points
        .for_tiles(|range, buffer| {
            let rows = range.clone();
            let (x, ld) = points.tile(range, buffer);
            let d = points.dim();
            rows.clone()
                .map(|i| {
                    let at = (i - rows.start) * ld;
                    let c = centers.row(assignment[i] as usize);
                    let far = simd::dispatch(
                        #[inline(always)]
                        || squared_distance_inline(&x[at..at + d], c),
                    );
                    (far, i as u32)
                })
                .collect::<Vec<_>>()
        })
        .concat();
    far.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut candidates = far.into_iter().filter(|(far, _)| *far > 0.0);
    let mut moved = false;
    for cluster in 0..sizes.len() {
        if sizes[cluster] > 0 {
            continue;
        }
        let taken = candidates.by_ref().find(|(_, i)| sizes[assignment[*i as usize] as usize] > 1);
        let Some((_, i)) = taken else { break };
        sizes[assignment[i as usize] as usize] -= 1;
        assignment[i as usize] = cluster as u32;
        sizes[cluster] = 1;
        moved = true;
    }
    moved
}

/// The mean of every cluster (its direction on the sphere) in f64, each summed by one owner in the order of the
/// rows; a cluster without rows, or whose rows cancel on the sphere, stays where it is.
fn average(points: &Points<'_>, offsets: &[usize], order: &[u32], unit: bool, centroids: &mut [f64]) {
    let d = points.dim();
    let own = |sum: &mut Vec<f64>, buffer: &mut Vec<f32>, cluster: usize, out: &mut [f64]| {
        let members = &order[offsets[cluster]..offsets[cluster + 1]];
        if members.is_empty() {
            return;
        }
        sum.clear();
        sum.resize(d, 0.0);
        simd::dispatch(
            #[inline(always)]
            || {
                for i in members {
                    let row = points.row(*i as usize, buffer);
                    sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
                }
            },
        );
        let divisor = if unit { sum.iter().map(|s| s * s).sum::<f64>().sqrt() } else { members.len() as f64 };
        if divisor > 0.0 {
            out.iter_mut().zip(sum.iter()).for_each(|(c, s)| *c = s / divisor);
        }
    };
    if points.len() * d < PARALLEL {
        let (mut sum, mut buffer) = (Vec::new(), Vec::new());
        for (cluster, out) in centroids.chunks_exact_mut(d).enumerate() {
            own(&mut sum, &mut buffer, cluster, out);
        }
    } else {
        centroids.par_chunks_exact_mut(d).enumerate().for_each_init(
            || (Vec::new(), Vec::new()),
            |(sum, buffer), (cluster, out)| {
                own(sum, buffer, cluster, out);
            },
        );
    }
}

/// The last assignment, to the centroids that are returned, and the statistics in difference form.
fn finish(points: &Points<'_>, centers: &Centers, exact: &[f64], iterations: u32) -> Outcome {
    let (n, d) = (points.len(), points.dim());
    let k = exact.len() / d;
    let mut assignment = vec![0u32; n];
    let mut squared = vec![0.0f64; n];
    let mut margin = vec![0.0f32; n];
    assignment
        .par_chunks_mut(TILE)
        .zip(squared.par_chunks_mut(TILE))
        .zip(margin.par_chunks_mut(TILE))
        .enumerate()
        .for_each_init(
            || (Vec::new(), Scratch::default()),
            |(buffer, scratch), (t, ((assignment, squared), margin))| {
                let first = t * TILE;
                let count = assignment.len();
                let (x, ld) = points.tile(first..first + count, buffer);
                centers.nearest::<true>((x, ld), count, scratch);
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for (i, best) in scratch.best.iter().enumerate() {
                            let row = &x[i * ld..i * ld + d];
                            assignment[i] = best.index;
                            squared[i] = squared_distance_inline(row, centers.row(best.index as usize));
                            margin[i] = if best.second_score == f32::NEG_INFINITY {
                                f32::INFINITY
                            } else {
                                let second = centers.row(best.second as usize);
                                (squared_distance_inline(row, second) - squared[i]).max(0.0) as f32
                            };
                        }
                    },
                );
            },
        );
    let mut sizes = vec![0u32; k];
    let (mut spread, mut mean_distance) = (vec![0.0f64; k], vec![0.0f64; k]);
    let mut inertia = 0.0;
    for (a, s) in assignment.iter().zip(&squared) {
        let a = *a as usize;
        sizes[a] += 1;
        spread[a] += s;
        mean_distance[a] += s.sqrt();
        inertia += s;
    }
    let per_row = |sums: &[f64]| {
        sums.iter().zip(&sizes).map(|(s, n)| (s / f64::from((*n).max(1))) as f32).collect::<Vec<f32>>()
    };
    let back = |j: usize| points.shift.as_ref().map_or(0.0, |shift| f64::from(shift[j % d]));
    Outcome {
        centroids: exact.iter().enumerate().map(|(j, c)| (c + back(j)) as f32).collect(),
        spread: per_row(&spread),
        mean_distance: per_row(&mean_distance),
        sizes,
        assignment,
        margin,
        inertia,
        iterations,
    }
}
