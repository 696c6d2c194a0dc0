//! The sparse part: sums over a row's positives.

use crate::simd;

use super::plan::{Plan, view_row};
use super::{Normalizer, Problem};

/// Positives summed plainly before they join the row's sum: keeps the rounding of long sums small.
const RUN: usize = 64;

/// One row's result.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) loss: f32,
    pub(super) log_sum_exp: f32,
    pub(super) counted: bool,
    pub(super) mass: f32,
    pub(super) inverse_normalizer: f32,
    pub(super) temperature_gradient: f32,
}

/// What the rows share: nothing but whether gradients are wanted.
pub(super) struct Targets {
    gradients: bool,
}

impl Targets {
    pub(super) fn new(_problem: &Problem<'_>, _plan: &Plan, gradients: bool) -> Self {
        Self { gradients }
    }

    pub(super) fn visitor<'a>(&'a self, problem: &'a Problem<'a>, plan: &'a Plan) -> Visitor<'a> {
        let d = problem.queries.cols();
        Visitor { problem, plan, gradients: self.gradients, sum: Sum::new(d), old_query: Vec::new() }
    }
}

/// Σ w y over positives, in runs.
struct Sum {
    total: Vec<f32>,
    run: Vec<f32>,
    in_run: usize,
}

impl Sum {
    fn new(d: usize) -> Self {
        Self { total: vec![0.0; d], run: vec![0.0; d], in_run: 0 }
    }

    fn clear(&mut self) {
        self.total.fill(0.0);
        self.run.fill(0.0);
        self.in_run = 0;
    }

    fn add(&mut self, weight: f32, key: &[f32]) {
        simd::axpy(weight, key, &mut self.run);
        self.in_run += 1;
        if self.in_run == RUN {
            self.flush();
        }
    }

    fn flush(&mut self) {
        simd::axpy(1.0, &self.run, &mut self.total);
        self.run.fill(0.0);
        self.in_run = 0;
    }
}

/// Walks rows' positives with its own buffers.
pub(super) struct Visitor<'a> {
    problem: &'a Problem<'a>,
    plan: &'a Plan,
    gradients: bool,
    sum: Sum,
    old_query: Vec<f32>,
}

/// ln(1 + e^m) and σ(m).
pub(super) fn softplus_and_sigmoid(m: f64) -> (f64, f64) {
    let e = (-m.abs()).exp();
    let softplus = m.max(0.0) + e.ln_1p();
    let sigmoid = if m >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
    (softplus, sigmoid)
}

impl Visitor<'_> {
    /// Σ w y (times q when the positives are left out) of the row visited last; not yet normalized.
    pub(super) fn target(&self) -> &[f32] {
        &self.sum.total
    }

    /// Visits the positives of `row`, whose embedding is `x` and whose log-sum-exp over its denominator is `lse`.
    pub(super) fn row(&mut self, row: usize, x: &[f32], lse: f64) -> Row {
        let Self { problem, plan, gradients, sum, old_query } = self;
        let (problem, plan) = (*problem, *plan);
        let left_out = plan.positives_left_out;
        sum.clear();
        if let Some(a) = &problem.pairs.affinity {
            old_query.resize(a.queries.cols(), 0.0);
            a.queries.load_row(row, old_query);
        }
        let scale = plan.inverse_temperature[row];
        let (mut count, mut weights, mut mass, mut loss) = (0u64, 0.0f64, 0.0f64, 0.0f64);
        let (mut old_key, mut key) = (Vec::new(), Vec::new());
        plan.each_positive(problem, row, 0..problem.keys.rows(), |j, base| {
            let w = plan.weight(problem, old_query, row, j, base, &mut old_key);
            count += 1;
            weights += f64::from(w);
            let y = view_row(&problem.keys, j, &mut key);
            if left_out {
                let score = f64::from(simd::dot(x, y) * scale);
                let (softplus, q) = softplus_and_sigmoid(lse - score);
                loss += f64::from(w) * softplus;
                mass += f64::from(w) * q;
                if *gradients {
                    sum.add((f64::from(w) * q) as f32, y);
                }
            } else {
                sum.add(w, y);
            }
        });
        sum.flush();
        let normalizer = match problem.options.normalizer {
            Normalizer::Count => count as f64,
            Normalizer::WeightSum => weights,
        };
        let counted = normalizer > 0.0 && (left_out || lse > f64::NEG_INFINITY);
        let log_sum_exp = lse as f32;
        if !counted {
            return Row { log_sum_exp, ..Row::default() };
        }
        if !left_out {
            let along: f64 = x.iter().zip(&sum.total).map(|(x, t)| f64::from(*x) * f64::from(*t)).sum();
            mass = weights;
            loss = weights * lse - along * f64::from(scale);
        }
        Row {
            loss: (loss / normalizer) as f32,
            log_sum_exp,
            counted,
            mass: (mass / normalizer) as f32,
            inverse_normalizer: (1.0 / normalizer) as f32,
            temperature_gradient: 0.0,
        }
    }
}
