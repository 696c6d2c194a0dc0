//! Sums over all keys at once, when the weights are linear in the keys' old embeddings.
//!
//! With w_ij = ½(1 + ⟨ô_i, ô_j⟩) on every eligible key, Σ_j w_ij y_j = ½(Σ_j y_j + ô_iᵀ Σ_j ô_j y_jᵀ): one Do × D matrix
//! of the keys replaces a second B × N product. With l_j = [ô_j, 1] it is one matrix Σ_j l_j y_jᵀ, and the row's
//! coefficients are ½[ô_i, 1]; without affinity l_j = [1] and the coefficient is 1.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Rows, tile};

use super::plan::Plan;
use super::targets::{load_block, range};
use super::{Problem, SIDE, SPLIT, TILE, columns};

/// Σ_j l_j y_jᵀ and Σ_j l_j over the eligible keys.
pub(super) struct Moments {
    left: usize,
    matrix: Vec<f32>,
    sums: Vec<f64>,
    /// The number of eligible keys.
    pub(super) count: usize,
}

/// The length of l_j, padded for the products.
fn left_width(problem: &Problem<'_>) -> usize {
    (problem.pairs.affinity.map_or(0, |a| a.keys.cols()) + 1).next_multiple_of(SIDE)
}

/// Writes `scale` · [ô, 1] for row `row` of the old embeddings; only the 1 without affinity.
fn left_row(old: Option<(&Rows<'_>, &[f32])>, row: usize, scale: f32, out: &mut [f32]) {
    out.fill(0.0);
    let cols = old.map_or(0, |(rows, _)| rows.cols());
    if let Some((rows, inverse_norms)) = old {
        rows.load_row(row, &mut out[..cols]);
        out[..cols].iter_mut().for_each(|o| *o *= inverse_norms[row] * scale);
    }
    out[cols] = scale;
}

fn old_queries<'a>(problem: &'a Problem<'_>, plan: &'a Plan) -> Option<(&'a Rows<'a>, &'a [f32])> {
    Some((&problem.pairs.affinity.as_ref()?.queries, &plan.inverse_norms.as_ref()?.0[..]))
}

fn old_keys<'a>(problem: &'a Problem<'_>, plan: &'a Plan) -> Option<(&'a Rows<'a>, &'a [f32])> {
    Some((&problem.pairs.affinity.as_ref()?.keys, &plan.inverse_norms.as_ref()?.1[..]))
}

/// Σ_r l_r y_rᵀ over all rows of `right`, where `left(r, l)` writes l_r: tiles count from row 0, splits of
/// [`SPLIT`] tiles merge in order.
fn outer_sums(
    right: &Rows<'_>,
    left_width: usize,
    width: usize,
    left: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let tiles = right.rows().div_ceil(TILE);
    let split = |at: usize| {
        let mut sum = vec![0.0f32; left_width * width];
        let mut l = vec![0.0f32; columns(right.rows()) * left_width];
        for t in at * SPLIT..((at + 1) * SPLIT).min(tiles) {
            let rows = range(t, right.rows());
            let padded = columns(rows.len());
            l.fill(0.0);
            for (row, l) in rows.clone().zip(l.chunks_exact_mut(left_width)) {
                left(row, l);
            }
            let block = load_block(right, rows, padded, width);
            let shape = (padded, left_width, width);
            tile::accumulate_transposed(shape, (&l, left_width), block.view(), (&mut sum, width));
        }
        sum
    };
    let splits = tiles.div_ceil(SPLIT);
    let mut total = vec![0.0f32; left_width * width];
    for first in (0..splits).step_by(rayon::current_num_threads()) {
        let last = (first + rayon::current_num_threads()).min(splits);
        let parts: Vec<Vec<f32>> = (first..last).into_par_iter().map(split).collect();
        for part in parts {
            total.iter_mut().zip(&part).for_each(|(t, p)| *t += p);
        }
    }
    total
}

/// `out[r, :] += Σ_l c[r, l] · matrix[l, :]`, at most [`tile::MAX_DEPTH`] terms of the sum at a time.
fn apply(rows: usize, left_width: usize, width: usize, c: &[f32], matrix: &[f32], out: &mut [f32]) {
    for l in (0..left_width).step_by(tile::MAX_DEPTH) {
        let depth = (left_width - l).min(tile::MAX_DEPTH);
        let shape = (rows, depth, width);
        tile::accumulate(shape, (&c[l..], left_width), (&matrix[l * width..], width), (&mut *out, width));
    }
}

impl Moments {
    pub(super) fn new(problem: &Problem<'_>, plan: &Plan) -> Self {
        let (n, left) = (problem.keys.rows(), left_width(problem));
        let old = old_keys(problem, plan);
        let key = |j: usize, l: &mut [f32]| {
            if plan.can_be_positive(j) {
                left_row(old, j, 1.0, l);
            }
        };
        let matrix = outer_sums(&problem.keys, left, plan.width, key);
        let mut sums = vec![0.0f64; left];
        let mut l = vec![0.0f32; left];
        for j in (0..n).filter(|j| plan.can_be_positive(*j)) {
            left_row(old, j, 1.0, &mut l);
            sums.iter_mut().zip(&l).for_each(|(s, l)| *s += f64::from(*l));
        }
        Self { left, matrix, sums, count: (0..n).filter(|j| plan.can_be_positive(*j)).count() }
    }

    /// Σ_j w_ij y_j of a block of queries, `[padded, width]`, and Σ_j w_ij.
    pub(super) fn block(
        &self,
        problem: &Problem<'_>,
        plan: &Plan,
        rows: Range<usize>,
        padded: usize,
    ) -> (Vec<f32>, Vec<f64>) {
        let old = old_queries(problem, plan);
        let scale = if old.is_some() { 0.5 } else { 1.0 };
        let mut c = vec![0.0f32; padded * self.left];
        for (row, c) in rows.zip(c.chunks_exact_mut(self.left)) {
            left_row(old, row, scale, c);
        }
        let mut targets = vec![0.0f32; padded * plan.width];
        apply(padded, self.left, plan.width, &c, &self.matrix, &mut targets);
        let weight =
            |c: &[f32]| c.iter().zip(&self.sums).map(|(c, s)| f64::from(*c) * s).sum::<f64>().max(0.0);
        (targets, c.chunks_exact(self.left).map(weight).collect())
    }
}

/// The queries' side for the keys' gradient: Σ_i c_i l_i x_iᵀ with c_i the weight of row i's targets.
pub(super) struct QueryMoments {
    left: usize,
    matrix: Vec<f32>,
}

impl QueryMoments {
    pub(super) fn new(problem: &Problem<'_>, plan: &Plan, weights: &[f32]) -> Self {
        let (left, old) = (left_width(problem), old_queries(problem, plan));
        let row = |i: usize, l: &mut [f32]| left_row(old, i, weights[i], l);
        Self { left, matrix: outer_sums(&problem.queries, left, plan.width, row) }
    }

    /// Subtracts Σ_i c_i w_ij x_i from the gradients of the keys of a tile, a row for each of its columns.
    pub(super) fn subtract(
        &self,
        problem: &Problem<'_>,
        plan: &Plan,
        keys: Range<usize>,
        gradient: &mut [f32],
    ) {
        let old = old_keys(problem, plan);
        let scale = if old.is_some() { -0.5 } else { -1.0 };
        let columns = columns(keys.len());
        let mut c = vec![0.0f32; columns * self.left];
        for (j, c) in keys.zip(c.chunks_exact_mut(self.left)).filter(|(j, _)| plan.can_be_positive(*j)) {
            left_row(old, j, scale, c);
        }
        apply(columns, self.left, plan.width, &c, &self.matrix, gradient);
    }
}
