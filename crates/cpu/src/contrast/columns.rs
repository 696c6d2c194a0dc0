//! The column pass: the keys' gradient, one owner per tile of keys.
//!
//! ∂/∂y_j Σ_i g_i L_i = Σ_i (g_i/τ_i) c_ij x_i with c_ij = mass_i p_ij − a_ij (times q_ij when the positives are left
//! out): the tile of coefficients is built with the targets already subtracted, in f32, and one product adds it.

use std::ops::Range;

use crate::parallel::each_chunk;
use crate::simd;
use crate::tile::{
    self,
    split::{Packed, Source, Unit},
};

use super::exponentials::exponentials;
use super::moments::QueryMoments;
use super::plan::Plan;
use super::positives::softplus_and_sigmoid;
use super::targets::{Loaded, Scratch, load_block, range};
use super::{Forward, GRAIN, Problem, STEP, TILE, stride};

/// Rows of a step of `queries` queries, the last ones filled up with zeros.
fn step(queries: usize) -> usize {
    queries.next_multiple_of(GRAIN).min(STEP)
}

pub(super) fn key_gradients(problem: &Problem<'_>, plan: &Plan, forward: &Forward, g: &[f32]) -> Vec<f32> {
    let (n, d) = (problem.keys.rows(), problem.keys.cols());
    let mut out = vec![0.0f32; n * d];
    let moments = plan.has_moments(problem).then(|| {
        let weight = |i: usize| g[i] * plan.inverse_temperature[i] * forward.inverse_normalizer[i];
        QueryMoments::new(problem, plan, &(0..g.len()).map(weight).collect::<Vec<f32>>())
    });
    let unit = |i: usize| plan.split.as_ref().map_or(1.0, |split| 1.0 / split.queries[i]);
    let weights: Vec<f32> = (0..g.len()).map(|i| g[i] * plan.inverse_temperature[i] * unit(i)).collect();
    each_chunk(
        &mut out,
        TILE * d,
        || Scratch::new(step(g.len()), n),
        |scratch, t, out| {
            if !plan.occupied[t] {
                return;
            }
            let pass = Pass { problem, plan, forward, moments: moments.as_ref(), weights: &weights };
            pass.tile_gradients(t, scratch, out);
        },
    );
    out
}

/// What every tile reads.
pub(super) struct Pass<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) plan: &'a Plan,
    pub(super) forward: &'a Forward,
    pub(super) moments: Option<&'a QueryMoments>,
    /// g_i/τ_i, in the units of the products' queries.
    pub(super) weights: &'a [f32],
}

/// What the coefficients of a row need while they are computed.
#[derive(Default)]
pub(super) struct Buffers {
    subtracted: Vec<(usize, f32)>,
    old_query: Vec<f32>,
    old_key: Vec<f32>,
}

impl Pass<'_> {
    /// Products of query `row` and `keys` into `weight` · c_ij, in place.
    pub(super) fn coefficients(
        &self,
        row: usize,
        weight: f32,
        keys: Range<usize>,
        (scores, bias): (&mut [f32], Option<&[f32]>),
        Buffers { subtracted, old_query, old_key }: &mut Buffers,
    ) {
        let Self { problem, plan, forward, moments, .. } = *self;
        let (scale, lse) = (plan.scale[row], forward.log_sum_exp[row]);
        if let Some(a) = &problem.pairs.affinity {
            old_query.resize(a.queries.cols(), 0.0);
            a.queries.load_row(row, old_query);
        }
        subtracted.clear();
        let sparse = if moments.is_some() { keys.end..keys.end } else { keys.clone() };
        plan.each_positive(problem, row, sparse, |j, base| {
            let w = plan.weight(problem, old_query, row, j, base, old_key);
            let mut a = weight * forward.inverse_normalizer[row] * w;
            if plan.positives_left_out {
                let score = scores[j - keys.start] * scale;
                a *= softplus_and_sigmoid(f64::from(lse) - f64::from(score)).1 as f32;
            }
            subtracted.push((j - keys.start, a));
        });
        plan.mask(problem, row, keys, scores);
        if lse > f32::NEG_INFINITY {
            let mass = weight * forward.mass[row];
            simd::dispatch(
                #[inline(always)]
                || {
                    exponentials(scores, bias, scale, lse);
                    scores.iter_mut().for_each(|p| *p *= mass);
                },
            );
        } else {
            scores.fill(0.0);
        }
        subtracted.iter().for_each(|(j, a)| scores[*j] -= a);
    }

    fn tile_gradients(&self, t: usize, scratch: &mut Scratch, out: &mut [f32]) {
        let Self { problem, plan, forward, moments, weights } = *self;
        let (b, d, width) = (problem.queries.rows(), problem.keys.cols(), plan.width);
        let keys = range(t, problem.keys.rows());
        let unit = plan.split.as_ref().zip(Unit::new());
        let stride = stride(problem.keys.rows());
        let (mut packed, mut x, mut plain) = (Packed::default(), Vec::new(), Loaded::default());
        let mut buffers = Buffers::default();
        let tile = scratch.tile(problem, plan, t);
        let (source, columns) = (tile.source(), tile.columns);
        let mut gradient = vec![0.0f32; columns * width];
        // With split products: the gradient with a row a dimension.
        let mut transposed = vec![0.0f32; if unit.is_some() { plan.sums * columns } else { 0 }];
        for first in (0..b).step_by(STEP) {
            let rows = first..(first + STEP).min(b);
            let padded = step(rows.len());
            let scores = (&mut *tile.scores, stride);
            if !forward.products.is_empty() {
                tile.scores[..forward.products.len()].copy_from_slice(&forward.products);
                if unit.is_none() {
                    plain = load_block(&problem.queries, rows, padded, width);
                }
            } else if let Some((split, unit)) = &unit {
                let queries = split.queries(&problem.queries, rows, &mut x);
                unit.pack(split.scores, queries, padded, &mut packed);
                unit.scores(split.scores, &packed, (source, columns), scores, tile.buffers);
            } else {
                plain = load_block(&problem.queries, rows, padded, width);
                tile::scores((padded, columns, width), plain.view(), (tile.keys, tile.stride), scores);
            }
            for (r, scores) in tile.scores.chunks_exact_mut(stride).take(padded).enumerate() {
                let scores = &mut scores[..columns];
                let row = first + r;
                let weight = weights.get(row).map_or(0.0, |weight| *weight);
                if weight == 0.0 || !forward.counted[row] {
                    scores.fill(0.0);
                    continue;
                }
                self.coefficients(row, weight, keys.clone(), (scores, tile.bias), &mut buffers);
            }
            if let Some((split, unit)) = &unit {
                let rows = first..(first + STEP).min(b);
                let queries = split.queries(&problem.queries, rows, &mut x);
                let coefficients = Source::new(tile.scores, stride, (padded, columns), &[1.0; STEP]);
                let out = (&mut transposed[..], columns);
                unit.accumulate_transposed(padded, queries, coefficients, out, tile.buffers);
            } else {
                let shape = (padded, columns, width);
                tile::accumulate_transposed(
                    shape,
                    (tile.scores, stride),
                    plain.view(),
                    (&mut gradient, width),
                );
            }
        }
        for (j, gradient) in gradient.chunks_exact_mut(width).enumerate().filter(|_| unit.is_some()) {
            let column = transposed[j..].iter().step_by(columns);
            gradient[..d].iter_mut().zip(column).for_each(|(gradient, sum)| *gradient = *sum);
        }
        if let Some(moments) = moments {
            moments.subtract(problem, plan, keys, &mut gradient);
        }
        for (out, gradient) in out.chunks_exact_mut(d).zip(gradient.chunks_exact(width)) {
            out.copy_from_slice(&gradient[..d]);
        }
    }
}
