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

/// Where the numbers of one class go.
pub(crate) struct Output<'a> {
    /// `[k, d]`, in the caller's coordinates.
    pub(crate) centroids: &'a mut [f32],
    pub(crate) sizes: &'a mut [u32],
    pub(crate) spread: &'a mut [f32],
    pub(crate) mean_distance: &'a mut [f32],
    /// Counted from the first cluster of the class.
    pub(crate) assignment: &'a mut [u32],
    pub(crate) margin: &'a mut [f32],
    pub(crate) inertia: &'a mut f64,
    pub(crate) iterations: &'a mut u32,
}

/// What a thread keeps from class to class, so that small classes do not spend their time on allocations.
#[derive(Default)]
pub(crate) struct Workspace {
    /// `[k, d]`: on entry the start, in the coordinates of the points, that is after their shift.
    pub(crate) exact: Vec<f64>,
    centers: Centers,
    /// The centroids of the round before.
    before: Vec<f32>,
    /// The second nearest centroid of every row, when there are few; else only after the last assignment.
    second: Vec<u32>,
    /// Filled by the first assignment; empty when there are few centroids, which do not need it.
    row_sizes: Vec<RowSize>,
    changes: Vec<Change>,
    sums: Sums,
    /// Squared distances of the rows.
    squared: Vec<f64>,
    tile: TileSpace,
}

/// What a thread keeps from tile to tile.
#[derive(Default)]
struct TileSpace {
    rows: Vec<f32>,
    scratch: Scratch,
}

/// Runs from the start in `space`.
pub(crate) fn lloyd(
    points: &Points<'_>,
    space: &mut Workspace,
    unit: bool,
    stop: Stop,
    variance: f64,
    out: &mut Output<'_>,
) {
    let (n, d) = (points.len(), points.dim());
    let k = out.sizes.len();
    space.centers.reset(k, d, unit);
    space.centers.set(&space.exact);
    space.sums.reset(k, d);
    let few = space.centers.few();
    out.assignment.fill(UNASSIGNED);
    space.second.clear();
    space.second.resize(if few { n } else { 0 }, 0);
    space.row_sizes.clear();
    space.row_sizes.resize(if few { 0 } else { n }, [0.0; 2]);
    let mut iterations = 0;
    // Whether the assignment is that to the centroids as they are, and says which is second.
    let mut settled = false;
    while iterations < stop.iterations {
        assign::<false>(points, space, out.assignment, iterations == 0);
        let Workspace { exact, centers, before, changes, sums, .. } = &mut *space;
        if changes.is_empty() {
            settled = few;
            break;
        }
        iterations += 1;
        sums.count(out.assignment, changes);
        if sums.sizes.contains(&0) {
            relocate(points, centers, out.assignment, &mut sums.sizes, changes);
        }
        sums.update(points, out.assignment, changes);
        before.clear();
        before.extend_from_slice(centers.rows());
        sums.average(unit, exact);
        centers.set(exact);
        if squared_movement(before, centers.rows(), d) <= stop.tolerance * variance {
            break;
        }
    }
    if !settled {
        space.second.resize(n, 0);
        assign::<true>(points, space, out.assignment, iterations == 0);
    }
    *out.iterations = iterations as u32;
    finish(points, space, out);
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

/// Gives every row its nearest centroid; with `TWO`, or few centroids, also finds the second. `space.changes` are then
/// the rows that changed hands, in their order; `fresh` says that nothing is known of the rows.
fn assign<const TWO: bool>(points: &Points<'_>, space: &mut Workspace, cluster: &mut [u32], fresh: bool) {
    let Workspace { centers, second, row_sizes: sizes, changes, tile: own, .. } = space;
    changes.clear();
    if cluster.len() <= TILE {
        let tile = Tile { first: 0, cluster, second, sizes, fresh };
        tile.assign::<TWO>(points, centers, own, changes);
        return;
    }
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
    let parts: Vec<Vec<Change>> = tiles
        .into_par_iter()
        .map_init(TileSpace::default, |space, tile| {
            let mut changes = Vec::new();
            tile.assign::<TWO>(points, centers, space, &mut changes);
            changes
        })
        .collect();
    parts.iter().for_each(|part| changes.extend_from_slice(part));
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
        TileSpace { rows, scratch }: &mut TileSpace,
        changes: &mut Vec<Change>,
    ) {
        let n = self.cluster.len();
        let x = points.tile(self.first..self.first + n, rows);
        if self.fresh {
            centers.measure(x, self.sizes);
        }
        let before = (!self.fresh).then_some(&*self.cluster);
        centers.nearest::<TWO>(x, n, self.sizes, before, scratch);
        for (second, best) in self.second.iter_mut().zip(&scratch.best) {
            *second = best.second;
        }
        for (i, (cluster, Best { index, .. })) in self.cluster.iter_mut().zip(&scratch.best).enumerate() {
            if *cluster != *index {
                changes.push(Change { row: (self.first + i) as u32, from: *cluster });
                *cluster = *index;
            }
        }
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
fn finish(points: &Points<'_>, space: &mut Workspace, out: &mut Output<'_>) {
    let (n, d) = (points.len(), points.dim());
    let k = out.sizes.len();
    let Workspace { exact, centers, second, squared, tile, .. } = space;
    let back = |j: usize| points.shift.as_ref().map_or(0.0, |shift| f64::from(shift[j]));
    for (out, exact) in out.centroids.chunks_exact_mut(d).zip(exact.chunks_exact(d)) {
        out.iter_mut().zip(exact).enumerate().for_each(|(j, (out, c))| *out = (c + back(j)) as f32);
    }
    // From here on the centroids as rows are compared with them, widened once instead of row by row.
    exact.iter_mut().zip(centers.rows()).for_each(|(wide, c)| *wide = f64::from(*c));
    let kernel = centers.kernel();
    let center = |k: u32| &exact[k as usize * d..(k as usize + 1) * d];
    let (assignment, second) = (&*out.assignment, &*second);
    squared.clear();
    squared.resize(n, 0.0);
    out.margin.fill(f32::INFINITY);
    let measure = |buffer: &mut Vec<f32>, t: usize, squared: &mut [f64], margin: &mut [f32]| {
        let first = t * TILE;
        let (x, ld) = points.tile(first..first + squared.len(), buffer);
        for (i, (squared, margin)) in squared.iter_mut().zip(margin).enumerate() {
            let row = &x[i * ld..i * ld + d];
            // With one centroid both are the same.
            let two = [center(assignment[first + i]), center(second[first + i])];
            let [own, other] = kernel.distances(row, two);
            *squared = own;
            if k > 1 {
                *margin = (other - own).max(0.0) as f32;
            }
        }
    };
    if n <= TILE {
        measure(&mut tile.rows, 0, squared, out.margin);
    } else {
        squared
            .par_chunks_mut(TILE)
            .zip(out.margin.par_chunks_mut(TILE))
            .enumerate()
            .for_each_init(Vec::new, |buffer, (t, (squared, margin))| measure(buffer, t, squared, margin));
    }
    let mut totals = vec![[0.0f64; 2]; k];
    let mut inertia = 0.0;
    for (a, squared) in assignment.iter().zip(squared) {
        let a = *a as usize;
        out.sizes[a] += 1;
        totals[a][0] += *squared;
        totals[a][1] += squared.sqrt();
        inertia += *squared;
    }
    for (c, [squares, roots]) in totals.into_iter().enumerate() {
        let size = f64::from(out.sizes[c].max(1));
        (out.spread[c], out.mean_distance[c]) = ((squares / size) as f32, (roots / size) as f32);
    }
    *out.inertia = inertia;
}
