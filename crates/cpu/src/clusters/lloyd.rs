//! Lloyd's iterations on one class: assign, relocate empty clusters, average, until nothing moves.

use rayon::prelude::*;

use super::{
    means::{Change, Sums, UNASSIGNED},
    nearest::{Best, Centers, RowSize, Scratch},
    points::{Points, TILE, squared_distance_inline},
};
use crate::simd;

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

/// What is known of every row.
struct Assigned {
    cluster: Vec<u32>,
    /// The second nearest centroid, when there are few; else only after the last assignment.
    second: Vec<u32>,
    /// Filled by the first assignment; empty when there are few centroids, which do not need it.
    sizes: Vec<RowSize>,
    fresh: bool,
}

/// Runs from `start` (`[k, d]`, in the coordinates of `points`, that is after its shift).
pub(crate) fn lloyd(points: &Points<'_>, start: Vec<f64>, unit: bool, stop: Stop, variance: f64) -> Outcome {
    let (n, d) = (points.len(), points.dim());
    let k = start.len() / d;
    let mut exact = start;
    let mut centers = Centers::new(k, d, unit);
    centers.set(&exact);
    let few = centers.few();
    let mut assigned = Assigned {
        cluster: vec![UNASSIGNED; n],
        second: if few { vec![0; n] } else { Vec::new() },
        sizes: if few { Vec::new() } else { vec![[0.0; 2]; n] },
        fresh: true,
    };
    let mut sums = Sums::new(k, d);
    let mut before = Vec::new();
    let mut iterations = 0;
    // Whether the assignment is that to the centroids as they are, and says which is second.
    let mut settled = false;
    while iterations < stop.iterations {
        let mut changes = assign::<false>(points, &centers, &mut assigned);
        if changes.is_empty() {
            settled = few;
            break;
        }
        iterations += 1;
        sums.count(&assigned.cluster, &changes);
        if sums.sizes.contains(&0) {
            relocate(points, &centers, &mut assigned.cluster, &mut sums.sizes, &mut changes);
        }
        sums.update(points, &assigned.cluster, &changes);
        before.clear();
        before.extend_from_slice(centers.rows());
        sums.average(unit, &mut exact);
        centers.set(&exact);
        if squared_movement(&before, centers.rows(), d) <= stop.tolerance * variance {
            break;
        }
    }
    if !settled {
        assigned.second.resize(n, 0);
        assign::<true>(points, &centers, &mut assigned);
    }
    finish(points, &centers, &exact, assigned, iterations as u32)
}

/// Σ ‖b − a‖² over the rows of two matrices.
fn squared_movement(a: &[f32], b: &[f32], d: usize) -> f64 {
    simd::dispatch(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for (a, b) in a.chunks_exact(d).zip(b.chunks_exact(d)) {
                sum += squared_distance_inline(a, b);
            }
            sum
        },
    )
}

/// Gives every row its nearest centroid; with `TWO`, or few centroids, also finds the second. Returns the rows that
/// changed hands, in their order.
fn assign<const TWO: bool>(points: &Points<'_>, centers: &Centers, assigned: &mut Assigned) -> Vec<Change> {
    let Assigned { cluster, second, sizes, fresh } = assigned;
    let fresh = std::mem::replace(fresh, false);
    let tiles: Vec<Tile<'_>> = {
        // Both may be empty: then every tile has an empty part.
        let mut seconds = second.as_mut_slice();
        let mut sizes = sizes.as_mut_slice();
        let mut tiles = Vec::with_capacity(cluster.len().div_ceil(TILE));
        for (t, cluster) in cluster.chunks_mut(TILE).enumerate() {
            let (second, rest) = seconds.split_at_mut(TILE.min(seconds.len()));
            seconds = rest;
            let (size, rest) = sizes.split_at_mut(TILE.min(sizes.len()));
            sizes = rest;
            tiles.push(Tile { first: t * TILE, cluster, second, sizes: size, fresh });
        }
        tiles
    };
    if tiles.len() == 1 {
        let one = tiles
            .into_iter()
            .next()
            .map(|tile| tile.assign::<TWO>(points, centers, &mut Vec::new(), &mut Scratch::default()));
        return one.unwrap_or_default();
    }
    let changes: Vec<Vec<Change>> = tiles
        .into_par_iter()
        .map_init(
            || (Vec::new(), Scratch::default()),
            |(buffer, scratch), tile| tile.assign::<TWO>(points, centers, buffer, scratch),
        )
        .collect();
    changes.concat()
}

/// What is known of the rows of a tile.
struct Tile<'a> {
    first: usize,
    cluster: &'a mut [u32],
    second: &'a mut [u32],
    sizes: &'a mut [RowSize],
    fresh: bool,
}

impl Tile<'_> {
    fn assign<const TWO: bool>(
        self,
        points: &Points<'_>,
        centers: &Centers,
        buffer: &mut Vec<f32>,
        scratch: &mut Scratch,
    ) -> Vec<Change> {
        let n = self.cluster.len();
        let x = points.tile(self.first..self.first + n, buffer);
        if self.fresh {
            centers.measure(x, self.sizes);
        }
        let before = (!self.fresh).then_some(&*self.cluster);
        centers.nearest::<TWO>(x, n, self.sizes, before, scratch);
        for (second, best) in self.second.iter_mut().zip(&scratch.best) {
            *second = best.second;
        }
        let mut changes = Vec::new();
        for (i, (cluster, Best { index, .. })) in self.cluster.iter_mut().zip(&scratch.best).enumerate() {
            if *cluster != *index {
                changes.push(Change { row: (self.first + i) as u32, from: *cluster });
                *cluster = *index;
            }
        }
        changes
    }
}

/// Gives every empty cluster, in order, the row farthest from its own centroid (distance descending, index
/// ascending) among clusters that keep another row; rows that coincide with their centroid stay. Rows that had not
/// changed hands before are added to the changes.
///
/// The rule is scikit-learn's; it makes no difference in which order threads run.
fn relocate(
    points: &Points<'_>,
    centers: &Centers,
    assignment: &mut [u32],
    sizes: &mut [u32],
    changes: &mut Vec<Change>,
) {
    let mut far: Vec<(f64, u32)> = points
        .for_tiles(|range, buffer| {
            let rows = range.clone();
            let (x, ld) = points.tile(range, buffer);
            let d = points.dim();
            simd::dispatch(
                #[inline(always)]
                || {
                    let mut far = Vec::with_capacity(rows.len());
                    for i in rows.clone() {
                        let at = (i - rows.start) * ld;
                        let c = centers.row(assignment[i] as usize);
                        far.push((squared_distance_inline(&x[at..at + d], c), i as u32));
                    }
                    far
                },
            )
        })
        .concat();
    far.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut candidates = far.into_iter().filter(|(far, _)| *far > 0.0);
    // The changes so far are in the order of their rows.
    let known = changes.len();
    for cluster in 0..sizes.len() {
        if sizes[cluster] > 0 {
            continue;
        }
        let taken = candidates.by_ref().find(|(_, i)| sizes[assignment[*i as usize] as usize] > 1);
        let Some((_, row)) = taken else { break };
        let own = &mut assignment[row as usize];
        sizes[*own as usize] -= 1;
        sizes[cluster] = 1;
        if changes[..known].binary_search_by_key(&row, |change| change.row).is_err() {
            changes.push(Change { row, from: *own });
        }
        *own = cluster as u32;
    }
}

/// The statistics of the returned centroids, in difference form.
fn finish(
    points: &Points<'_>,
    centers: &Centers,
    exact: &[f64],
    assigned: Assigned,
    iterations: u32,
) -> Outcome {
    let (n, d) = (points.len(), points.dim());
    let k = exact.len() / d;
    let Assigned { cluster: assignment, second, .. } = assigned;
    let mut squared = vec![0.0f64; n];
    let mut margin = vec![f32::INFINITY; n];
    let measure = |buffer: &mut Vec<f32>, t: usize, squared: &mut [f64], margin: &mut [f32]| {
        let first = t * TILE;
        let (x, ld) = points.tile(first..first + squared.len(), buffer);
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, (squared, margin)) in squared.iter_mut().zip(margin).enumerate() {
                    let row = &x[i * ld..i * ld + d];
                    *squared = squared_distance_inline(row, centers.row(assignment[first + i] as usize));
                    if k > 1 {
                        let other = squared_distance_inline(row, centers.row(second[first + i] as usize));
                        *margin = (other - *squared).max(0.0) as f32;
                    }
                }
            },
        );
    };
    if n <= TILE {
        measure(&mut Vec::new(), 0, &mut squared, &mut margin);
    } else {
        squared
            .par_chunks_mut(TILE)
            .zip(margin.par_chunks_mut(TILE))
            .enumerate()
            .for_each_init(Vec::new, |buffer, (t, (squared, margin))| measure(buffer, t, squared, margin));
    }
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
