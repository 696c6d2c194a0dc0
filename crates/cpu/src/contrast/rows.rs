//! The row pass: every row's log-sum-exp and softmax-weighted key in one sweep over the tiles.

use std::ops::Range;

use rayon::prelude::*;

use crate::parallel::each;
use crate::simd;
use crate::tile::{
    self,
    split::{Packed, SIDE as SPLIT_SIDE, Unit},
};

use super::exponentials::{exponential, exponentials, largest};
use super::plan::{Plan, view_row};
use super::positives::{Row, Targets};
use super::targets::{Loaded, Scratch, load_block, range};
use super::{Forward, Problem, SIDE, SPLIT, stride};

/// Rows of one block at most: what keeps the products efficient and the scores inside the second-level cache.
const BLOCK: usize = 256;

/// What a sweep over some tiles knows of a block's rows: Z = `sum` · e^`max`, Σ e^{s} y = `weighted` · e^`max`.
struct Partial {
    max: Vec<f32>,
    sum: Vec<f64>,
    weighted: Vec<f32>,
    /// The products of all pairs of the block, where they stay.
    kept: Vec<f32>,
}

impl Partial {
    fn new(rows: usize, plain: &[bool], weighted: usize) -> Self {
        let start = |r: usize| if plain.get(r).is_none_or(|p| *p) { 0.0 } else { f32::NEG_INFINITY };
        Self {
            max: (0..rows).map(start).collect(),
            sum: vec![0.0; rows],
            weighted: vec![0.0; weighted],
            kept: Vec::new(),
        }
    }

    /// Moves row `r` to a larger maximum.
    fn rescale(&mut self, r: usize, max: f32, width: usize) {
        let factor = exponential(self.max[r] - max);
        self.sum[r] *= f64::from(factor);
        if let Some(row) = self.weighted.get_mut(r * width..(r + 1) * width) {
            simd::scale(factor, row);
        }
        self.max[r] = max;
    }

    /// Adds the tiles after these.
    fn merge(&mut self, mut other: Self, width: usize) {
        for r in 0..self.sum.len() {
            if other.sum[r] == 0.0 {
                continue;
            }
            match self.max[r].total_cmp(&other.max[r]) {
                std::cmp::Ordering::Less => self.rescale(r, other.max[r], width),
                std::cmp::Ordering::Greater => other.rescale(r, self.max[r], width),
                std::cmp::Ordering::Equal => {}
            }
            self.sum[r] += other.sum[r];
            if !self.weighted.is_empty() {
                simd::axpy(
                    1.0,
                    &other.weighted[r * width..][..width],
                    &mut self.weighted[r * width..][..width],
                );
            }
        }
    }
}

/// The products of queries and keys: computed tile by tile, computed and kept, or given; the latter two where all keys are
/// one tile, in rows [`stride`] apart.
#[derive(Clone, Copy)]
pub(super) enum Inner<'a> {
    Computed,
    Kept,
    Given(&'a [f32]),
}

/// A block of queries in memory.
struct Block<'a> {
    rows: Range<usize>,
    padded: usize,
    /// For plain products.
    x: Loaded<'a>,
    /// For split products.
    packed: Packed,
}

impl<'a> Block<'a> {
    fn new(problem: &Problem<'a>, plan: &Plan, rows: Range<usize>) -> Self {
        let queries = &problem.queries;
        let (Some(split), Some(unit)) = (&plan.split, Unit::new()) else {
            let padded = rows.len().next_multiple_of(SIDE);
            let x = load_block(queries, rows.clone(), padded, plan.width);
            return Self { x, packed: Packed::default(), padded, rows };
        };
        let padded = rows.len().next_multiple_of(SPLIT_SIDE);
        let (mut packed, mut buffer) = (Packed::default(), Vec::new());
        unit.pack(split.scores, split.queries(queries, rows.clone(), &mut buffer), padded, &mut packed);
        Self { x: Loaded::default(), packed, padded, rows }
    }
}

fn sweep(
    problem: &Problem<'_>,
    plan: &Plan,
    block: &Block<'_>,
    tiles: Range<usize>,
    (gradients, inner): (bool, Inner<'_>),
    scratch: &mut Scratch,
) -> Partial {
    let (width, rows) = (plan.sums, block.rows.len());
    let first = block.rows.start;
    let unit = plan.split.as_ref().zip(Unit::new());
    let weighted = if gradients { block.padded * width } else { 0 };
    let mut partial = Partial::new(rows, &plan.plain[block.rows.clone()], weighted);
    let stride = stride(problem.keys.rows());
    for t in tiles.filter(|t| plan.live[*t]) {
        let keys = range(t, problem.keys.rows());
        let tile = scratch.tile(problem, plan, t);
        let (source, columns) = (tile.source(), tile.columns);
        let scores = (&mut *tile.scores, stride);
        if let Inner::Given(given) = inner {
            scores.0[..rows * stride].copy_from_slice(&given[first * stride..][..rows * stride]);
        } else if let Some((split, unit)) = &unit {
            unit.scores(split.scores, &block.packed, (source, columns), scores, tile.buffers);
        } else {
            let shape = (block.padded, columns, width);
            tile::scores(shape, block.x.view(), (tile.keys, tile.stride), scores);
        }
        if matches!(inner, Inner::Kept) {
            partial.kept.extend_from_slice(&tile.scores[..rows * stride]);
        }
        if plan.masks_rows() {
            for (r, scores) in tile.scores.chunks_exact_mut(stride).take(rows).enumerate() {
                plan.mask(problem, first + r, keys.clone(), &mut scores[..columns]);
            }
        }
        simd::dispatch(
            #[inline(always)]
            || {
                for (r, scores) in tile.scores.chunks_exact_mut(stride).take(rows).enumerate() {
                    let (scores, scale) = (&mut scores[..columns], plan.scale[first + r]);
                    if !plan.plain[first + r] {
                        let max = largest(scores, tile.bias, scale);
                        if max > partial.max[r] {
                            partial.rescale(r, max, width);
                        } else if partial.max[r] == f32::NEG_INFINITY {
                            scores.fill(0.0);
                            continue;
                        }
                    }
                    let sum = exponentials(scores, tile.bias, scale, partial.max[r]);
                    partial.sum[r] += f64::from(sum);
                }
            },
        );
        if gradients {
            let out = (&mut partial.weighted[..], width);
            if let Some((split, unit)) = &unit {
                let rows = tile.scores.chunks_exact_mut(stride).take(block.padded);
                rows.for_each(|row| unit.split(&mut row[..columns]));
                let p = (&*tile.scores, stride, block.padded);
                unit.accumulate(split.sums, p, (source, columns), out, tile.buffers);
            } else {
                let shape = (block.padded, columns, width);
                tile::accumulate(shape, (tile.scores, stride), (tile.keys, tile.stride), out);
            }
        }
    }
    partial
}

/// Rows of a block: enough blocks for the threads, none larger than [`BLOCK`]. Bits do not depend on it.
fn block_rows(queries: usize) -> usize {
    queries.div_ceil(rayon::current_num_threads()).next_multiple_of(SIDE).clamp(SIDE, BLOCK)
}

pub(super) fn forward(problem: &Problem<'_>, plan: &Plan, gradients: bool, inner: Inner<'_>) -> Forward {
    let (b, d, width) = (problem.queries.rows(), problem.queries.cols(), plan.sums);
    let size = block_rows(b);
    let blocks = b.div_ceil(size);
    let splits = plan.tiles().div_ceil(SPLIT);
    // Fewer blocks than threads: several splits of one block run at once, and merge in order.
    let wave = rayon::current_num_threads().div_ceil(blocks).clamp(1, splits);
    let targets = Targets::new(problem, plan, gradients);
    let done: Vec<(Vec<Row>, [Vec<f32>; 2])> = each(blocks, |at| {
        let rows = at * size..((at + 1) * size).min(b);
        let block = Block::new(problem, plan, rows);
        let padded = block.padded;
        let tiles = |split: usize| split * SPLIT..((split + 1) * SPLIT).min(plan.tiles());
        let mut total = if wave == 1 {
            let mut scratch = Scratch::new(padded, problem.keys.rows());
            let mut total = sweep(problem, plan, &block, tiles(0), (gradients, inner), &mut scratch);
            for split in 1..splits {
                total.merge(
                    sweep(problem, plan, &block, tiles(split), (gradients, inner), &mut scratch),
                    width,
                );
            }
            total
        } else {
            let mut total: Option<Partial> = None;
            for first in (0..splits).step_by(wave) {
                let partials: Vec<Partial> = (first..(first + wave).min(splits))
                    .into_par_iter()
                    .map_init(
                        || Scratch::new(padded, problem.keys.rows()),
                        |scratch, split| {
                            sweep(problem, plan, &block, tiles(split), (gradients, inner), scratch)
                        },
                    )
                    .collect();
                for partial in partials {
                    match &mut total {
                        Some(total) => total.merge(partial, width),
                        None => total = Some(partial),
                    }
                }
            }
            total.unwrap_or_else(|| Partial::new(block.rows.len(), &[], 0))
        };
        let (rows, query_gradients) = finish(problem, plan, &targets, &block, &total, gradients);
        (rows, [query_gradients, std::mem::take(&mut total.kept)])
    });

    let mut out = Forward::default();
    if gradients {
        out.query_gradients.reserve_exact(b * d);
        out.temperature_gradients.reserve_exact(b);
    }
    for (rows, [query_gradients, kept]) in done {
        for row in rows {
            out.per_row.push(row.loss);
            out.log_sum_exp.push(row.log_sum_exp);
            out.counted.push(row.counted);
            out.mass.push(row.mass);
            out.inverse_normalizer.push(row.inverse_normalizer);
            if gradients {
                out.temperature_gradients.push(row.temperature_gradient);
            }
        }
        out.query_gradients.extend_from_slice(&query_gradients);
        out.products.extend_from_slice(&kept);
    }
    out
}

/// From the dense sums to losses and gradients, row by row.
fn finish(
    problem: &Problem<'_>,
    plan: &Plan,
    targets: &Targets,
    block: &Block<'_>,
    total: &Partial,
    gradients: bool,
) -> (Vec<Row>, Vec<f32>) {
    let (d, width) = (problem.queries.cols(), plan.sums);
    // Split products have summed the keys times a power of two.
    let unit = plan.split.as_ref().map_or(1.0, |split| 1.0 / f64::from(split.keys));
    let mut buffer = Vec::new();
    let mut gradient = vec![0.0f32; if gradients { block.rows.len() * d } else { 0 }];
    let mut visitor = targets.visitor(problem, plan, block.rows.clone(), block.padded);
    let rows = block
        .rows
        .clone()
        .enumerate()
        .map(|(r, row)| {
            let x = view_row(&problem.queries, row, &mut buffer);
            let mut out = visitor.row(row, x, f64::from(total.max[r]) + total.sum[r].ln());
            if gradients && out.counted {
                // Σ e^{s − max} y, times mass / Z, minus the targets.
                let softmax = f64::from(out.mass) / total.sum[r] * unit;
                let softmax = if total.sum[r] > 0.0 { softmax } else { 0.0 };
                let (weighted, target) = (&total.weighted[r * width..][..d], visitor.target());
                let scale = plan.inverse_temperature[row];
                let gradient = &mut gradient[r * d..][..d];
                let along = simd::dispatch(
                    #[inline(always)]
                    || {
                        for (gradient, (weighted, target)) in
                            gradient.iter_mut().zip(weighted.iter().zip(target))
                        {
                            let mean = (softmax * f64::from(*weighted)) as f32;
                            *gradient = (mean - out.inverse_normalizer * target) * scale;
                        }
                        simd::wide_dot_inline(gradient, x)
                    },
                );
                // s is proportional to 1/τ: ∂L/∂τ = −Σ_j c_ij s_ij/τ = −⟨x, ∂L/∂x⟩/τ.
                out.temperature_gradient = (-along * f64::from(scale)) as f32;
            }
            out
        })
        .collect();
    (rows, gradient)
}
