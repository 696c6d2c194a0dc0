//! The sparse part: sums over a row's positives.

use std::collections::HashMap;
use std::ops::Range;

use crate::simd;

use super::moments::Moments;
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

/// What the rows of all blocks share: moments of the keys, where they replace the sums over positives.
pub(super) struct Targets {
    gradients: bool,
    moments: Option<Moments>,
}

impl Targets {
    pub(super) fn new(problem: &Problem<'_>, plan: &Plan, gradients: bool) -> Self {
        Self { gradients, moments: plan.has_moments(problem).then(|| Moments::new(problem, plan)) }
    }

    /// A visitor of the rows of one block, padded to `padded` rows.
    pub(super) fn visitor<'a>(
        &'a self,
        problem: &'a Problem<'a>,
        plan: &'a Plan,
        rows: Range<usize>,
        padded: usize,
    ) -> Visitor<'a> {
        let ready = self.moments.as_ref().map(|moments| {
            let (targets, weights) = moments.block(problem, plan, rows.clone(), padded);
            Ready { first: rows.start, targets, weights, count: moments.count }
        });
        Visitor {
            problem,
            plan,
            gradients: self.gradients,
            ready,
            classes: HashMap::new(),
            sum: Sum::new(problem.queries.cols()),
            old_query: Vec::new(),
        }
    }
}

/// Sums of a block's rows that moments gave.
struct Ready {
    first: usize,
    targets: Vec<f32>,
    weights: Vec<f64>,
    count: usize,
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
    ready: Option<Ready>,
    /// Σ y and count of the classes that rows of this block asked for, where all rows of a class share them.
    classes: HashMap<u32, (u64, Vec<f32>)>,
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

/// Sums over one row's positives, beside Σ w y.
#[derive(Default)]
struct Scalars {
    count: u64,
    weights: f64,
    /// Σ w q and Σ w ln(1 + Z e^{−s}), when the positives are left out.
    mass: f64,
    loss: f64,
}

impl Visitor<'_> {
    /// Σ w y (times q when the positives are left out) of the row visited last; not yet normalized.
    pub(super) fn target(&self) -> &[f32] {
        &self.sum.total
    }

    /// Visits the positives of `row`, whose embedding is `x` and whose log-sum-exp over its denominator is `lse`.
    pub(super) fn row(&mut self, row: usize, x: &[f32], lse: f64) -> Row {
        let (problem, plan) = (self.problem, self.plan);
        let left_out = plan.positives_left_out;
        self.sum.clear();
        let sums = match (&self.ready, plan.shared_class(problem, row)) {
            (Some(ready), _) => {
                let at = row - ready.first;
                self.sum.total.copy_from_slice(&ready.targets[at * plan.width..][..x.len()]);
                Scalars { count: ready.count as u64, weights: ready.weights[at], ..Scalars::default() }
            }
            (None, Some(class)) => {
                if !self.classes.contains_key(&class) {
                    let sums = self.walk(row, x, lse);
                    self.classes.insert(class, (sums.count, self.sum.total.clone()));
                }
                let (count, total) = &self.classes[&class];
                self.sum.total.copy_from_slice(total);
                Scalars { count: *count, weights: *count as f64, ..Scalars::default() }
            }
            (None, None) => self.walk(row, x, lse),
        };
        let anchor = problem.pairs.anchors.is_none_or(|a| a[row]);
        let normalizer = match problem.options.normalizer {
            _ if sums.count == 0 || !anchor => 0.0,
            Normalizer::Count => sums.count as f64,
            Normalizer::WeightSum => sums.weights,
        };
        let counted = normalizer > 0.0 && (left_out || lse > f64::NEG_INFINITY);
        let log_sum_exp = lse as f32;
        if !counted {
            return Row { log_sum_exp, ..Row::default() };
        }
        let (mass, loss) = if left_out {
            (sums.mass, sums.loss)
        } else {
            let along = simd::wide_dot(x, &self.sum.total);
            (sums.weights, sums.weights * lse - along * f64::from(plan.inverse_temperature[row]))
        };
        Row {
            loss: (loss / normalizer) as f32,
            log_sum_exp,
            counted,
            mass: (mass / normalizer) as f32,
            inverse_normalizer: (1.0 / normalizer) as f32,
            temperature_gradient: 0.0,
        }
    }

    /// Walks the row's positives one by one.
    fn walk(&mut self, row: usize, x: &[f32], lse: f64) -> Scalars {
        let Self { problem, plan, gradients, sum, old_query, .. } = self;
        let (problem, plan) = (*problem, *plan);
        let left_out = plan.positives_left_out;
        if let Some(a) = &problem.pairs.affinity {
            old_query.resize(a.queries.cols(), 0.0);
            a.queries.load_row(row, old_query);
        }
        let scale = plan.inverse_temperature[row];
        let mut sums = Scalars::default();
        let (mut old_key, mut key) = (Vec::new(), Vec::new());
        plan.each_positive(problem, row, 0..problem.keys.rows(), |j, base| {
            let w = plan.weight(problem, old_query, row, j, base, &mut old_key);
            sums.count += 1;
            sums.weights += f64::from(w);
            let y = view_row(&problem.keys, j, &mut key);
            if left_out {
                let score = f64::from(simd::dot(x, y) * scale);
                let (softplus, q) = softplus_and_sigmoid(lse - score);
                sums.loss += f64::from(w) * softplus;
                sums.mass += f64::from(w) * q;
                if *gradients {
                    sum.add((f64::from(w) * q) as f32, y);
                }
            } else {
                sum.add(w, y);
            }
        });
        sum.flush();
        sums
    }
}
