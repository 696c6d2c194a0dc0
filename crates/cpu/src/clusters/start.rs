//! Where Lloyd's iterations start: k-means++, random rows, or what the caller gives.

use rayon::prelude::*;

use super::{
    philox::Draws,
    points::{Points, TILE, squared_distance_inline},
};
use crate::simd;

/// k-means++ (Arthur and Vassilvitskii, SODA 2007): the first row uniformly, every next one with probability
/// proportional to its squared distance from the nearest one chosen.
///
/// Returns `k` distinct positions inside the class. Step `t` uses the draw (step `t`, draw 0); the running sum
/// goes over the rows in order, in f64. When all rows left coincide with chosen ones, the first row not yet
/// chosen is taken.
pub(crate) fn plus_plus(points: &Points<'_>, k: usize, draws: &Draws) -> Vec<usize> {
    let n = points.len();
    let mut chosen = Vec::with_capacity(k);
    // The squared distance to the nearest chosen row; -1 marks a chosen row.
    let mut nearest = vec![f64::INFINITY; n];
    let mut center = Vec::new();
    for step in 0..k.min(n) {
        let u = draws.uniform(step as u32, 0);
        let next = if step == 0 { ((u * n as f64) as usize).min(n - 1) } else { weighted(&nearest, u) };
        chosen.push(next);
        nearest[next] = -1.0;
        if step + 1 < k {
            center.clear();
            center.extend_from_slice(points.row(next, &mut Vec::new()));
            update(points, &center, &mut nearest);
        }
    }
    chosen
}

/// The row at which the running sum of the weights passes `u` times their total.
fn weighted(weights: &[f64], u: f64) -> usize {
    let total: f64 = weights.iter().map(|w| w.max(0.0)).sum();
    let target = u * total;
    let mut running = 0.0;
    let mut last = None;
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        running += w;
        last = Some(i);
        if running > target {
            break;
        }
    }
    last.or_else(|| weights.iter().position(|w| *w >= 0.0)).unwrap_or(0)
}

fn update(points: &Points<'_>, center: &[f32], nearest: &mut [f64]) {
    nearest.par_chunks_mut(TILE).enumerate().for_each_init(Vec::new, |buffer, (t, nearest)| {
        let first = t * TILE;
        let (x, ld) = points.tile(first..first + nearest.len(), buffer);
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, nearest) in nearest.iter_mut().enumerate().filter(|(_, w)| **w >= 0.0) {
                    let row = &x[i * ld..i * ld + center.len()];
                    *nearest = nearest.min(squared_distance_inline(row, center));
                }
            },
        );
    });
}

/// `k` distinct rows, all sets equally likely: the rows with the smallest draws (step 0, draw = position).
pub(crate) fn random(n: usize, k: usize, draws: &Draws) -> Vec<usize> {
    let mut keys: Vec<(f64, usize)> = (0..n).map(|i| (draws.uniform(0, i as u64), i)).collect();
    keys.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    keys.truncate(k);
    keys.into_iter().map(|(_, i)| i).collect()
}
