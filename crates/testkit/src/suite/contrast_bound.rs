//! How far a contrastive loss and its gradients may be from the definition in f64.
//!
//! u = 2⁻²⁴, the rounding of f32; σ = |x_i| max|y_j| / τ_i + max|ln u_j|; K tiles of 64 keys (or queries); n = |P(i)|.
//! The bound is that of the kernels; sums of the CPU backend (docs/contrast.md) are shorter where it says nothing else.
//!
//! * Score, absolute: three products of two bfloat16 parts leave out 3.1 · 2⁻¹⁶ of |x||y| (kernels/include/bound.cuh; only
//!   f32), the tensor core's sum errs by (D + 16) 2⁻²² of it; log₂e, 1/τ, their product, log₂ u and the fused product
//!   round by 8 u together: ε_s = σ (3.1 · 2⁻¹⁶ + 4 (D + 16) u + 8 u).
//! * Exponential, relative: the difference to the maximum rounds by 2 u σ, 2^x by 4 u: ε_e = ε_s + 2 u σ + 4 u.
//! * Their sum, relative: 16 terms, and at each of K tiles, 8 splits and 3 joins one sum and one factor 2^(old − new), whose
//!   exponents grow to 2σ in all: ε_Z = ε_e + 4 u σ + (16 + 7 (K + 11)) u.
//! * lse, absolute, at most σ + ln N: ε_l = ε_Z + 4 u (|lse| + σ + ln N + 1).
//! * Σ w, relative: ε_w = (n + 12) u. Σ w s: ε_s + (n + K + 16) u σ for each weight.
//! * Loss: A (ε_l + ε_w |lse| + ε_s + (n + K + 16) u σ + 6 u (|lse| + σ)).
//! * p, relative: ε_p = ε_s + ε_l + 4 u (|lse| + σ) + 4 u. A coefficient c = A p − a, before it is rounded:
//!   ε_c = A p (ε_p + ε_w + 8 u) + a (ε_w + 10 u).
//! * Rounded to 16 bits: δ = 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of |c|; f32 leaves out 3.1 · 2⁻¹⁶. In units in which the largest
//!   coefficient that a row can have is 2¹³ at least, what is subnormal in f16 loses 2⁻²⁵ · 2⁻¹³ of that.
//! * Σ c y: in a tile 8 groups of up to 3 products, each with 10 errors of 2⁻²³ of what is there, is 480 u; one sum a tile and
//!   split and the division K + 12 u. The CPU backend sums A p y and a y apart, split products in (531 + 49 K / 8) u:
//!   both are below (600 + 8 K) u of Σ (A p + a)|y|.
//! * ∂L/∂τ: Σ_j of ε_c |s| + |c| ε_s + (16 K + 12) u |c||s| on the kernels; ⟨x, ∂L/∂x⟩/τ on the CPU, with D u more.

use consonance::cuda::DType;
use consonance_reference::contrast as reference;

use super::contrast::describe;
use super::ensure;
use crate::backend::{Backend, ContrastCase, ContrastFound};
use crate::data;

const U: f64 = 1.0 / 16_777_216.0;
const SPLIT: f64 = 3.1 / 65_536.0;

/// The definition's results of a case, and what their bounds are made of.
pub(super) struct Truth<'a> {
    case: &'a ContrastCase,
    pairs: reference::Pairs,
    queries: Vec<f64>,
    keys: Vec<f64>,
    temperatures: Vec<f64>,
    forward: Option<reference::Contrast>,
}

/// The bounds of a row, and of each of its coefficients before rounding with A p + a beside.
struct RowBound {
    score: f64,
    lse: f64,
    loss: f64,
    mass: f64,
    coefficients: Vec<(f64, f64)>,
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

impl<'a> Truth<'a> {
    pub(super) fn shape(case: &ContrastCase) -> [usize; 3] {
        [case.queries.rows(), case.keys.rows(), case.queries.cols()]
    }

    fn new(case: &'a ContrastCase) -> Self {
        let temperatures = (0..case.queries.rows()).map(|i| case.temperature(i)).collect();
        let (pairs, queries, keys) = (case.pairs(), case.queries.wide(), case.keys.wide());
        let mut truth = Self { case, pairs, queries, keys, temperatures, forward: None };
        truth.forward = Some(truth.problem().forward());
        truth
    }

    fn problem(&self) -> reference::Problem<'_> {
        reference::Problem {
            queries: &self.queries,
            keys: &self.keys,
            dim: self.case.queries.cols(),
            temperatures: &self.temperatures,
            pairs: &self.pairs,
            normalizer: match self.case.normalizer {
                consonance_cpu::contrast::Normalizer::Count => reference::Normalizer::Count,
                consonance_cpu::contrast::Normalizer::WeightSum => reference::Normalizer::WeightSum,
            },
            other_positives: reference::OtherPositives::InDenominator,
        }
    }

    fn row(&self, forward: &reference::Contrast, i: usize) -> RowBound {
        let [_, n, dim] = Self::shape(self.case);
        let x = &self.queries[i * dim..][..dim];
        let valid = |j: &usize| self.case.valid.as_ref().is_none_or(|valid| valid[*j]);
        let largest = (0..n).filter(valid).map(|j| norm(&self.keys[j * dim..][..dim])).fold(0.0, f64::max);
        let bias = |u: &f32| if *u > 0.0 { f64::from(*u).ln().abs() } else { 0.0 };
        let bias = self.case.denominator_weights.iter().flatten().map(bias).fold(0.0, f64::max);
        let size = norm(x) * largest / self.temperatures[i] + bias;
        let (tiles, keys) = (n.div_ceil(64) as f64, n as f64);
        let split = if self.case.keys.dtype() == DType::F32 { SPLIT } else { 0.0 };
        let score = size * (split + 4.0 * (dim + 16) as f64 * U + 8.0 * U);
        let lse = forward.log_sum_exp[i];
        let lse = if lse.is_finite() { lse.abs() } else { 0.0 };
        let sum = score + 6.0 * U * size + (20.0 + 7.0 * (tiles + 11.0)) * U;
        let of_lse = sum + 4.0 * U * (lse + size + keys.ln() + 1.0);

        let at = |j: usize| i * n + j;
        let positives: Vec<usize> = (0..n).filter(|j| self.pairs.positive[at(*j)]).collect();
        let count = positives.len() as f64;
        let total: f64 = positives.iter().map(|j| self.pairs.weight[at(*j)]).sum();
        let normalizer = match self.problem().normalizer {
            reference::Normalizer::Count => count,
            reference::Normalizer::WeightSum => total,
        };
        if !forward.counted[i] {
            return RowBound { score, lse: of_lse, loss: 0.0, mass: 0.0, coefficients: vec![(0.0, 0.0); n] };
        }
        let mass = total / normalizer;
        let weights = (count + 12.0) * U;
        let loss =
            of_lse + weights * lse + score + (count + tiles + 16.0) * U * size + 6.0 * U * (lse + size);
        let of_p = score + of_lse + 4.0 * U * (lse + size) + 4.0 * U;
        let coefficients = (0..n).map(|j| {
            let a = if self.pairs.positive[at(j)] { self.pairs.weight[at(j)] / normalizer } else { 0.0 };
            // A p is what the coefficient and the target make together.
            let p = (forward.coefficients[at(j)] + a).max(0.0);
            (p * (of_p + weights + 8.0 * U) + a * (weights + 10.0 * U), p + a)
        });
        RowBound { score, lse: of_lse, loss: mass * loss, mass, coefficients: coefficients.collect() }
    }
}

/// Compares everything with the definition and prints the largest share of a bound that an error takes.
pub(super) fn check_values(backend: &dyn Backend, case: &ContrastCase) -> Result<ContrastFound, String> {
    let found = backend.contrast(case)?;
    let truth = Truth::new(case);
    let what = describe(case);
    let [b, n, dim] = Truth::shape(case);
    let Some(forward) = &truth.forward else { return Err("no definition".to_owned()) };
    let gradients = truth.problem().gradients(&vec![1.0; b]);
    let upstream = data::widen(&case.upstream);
    let of_keys = truth.problem().gradients(&upstream).keys;
    ensure!(found.counted == forward.counted, "{what}: counted rows are {:?}", found.counted);

    let rows: Vec<RowBound> = (0..b).map(|i| truth.row(forward, i)).collect();
    let rounded = match case.keys.dtype() {
        DType::F32 => SPLIT,
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
    };
    let vanishing = 2f64.powi(-38);
    // The bound on what a coefficient is multiplied with and summed as, over so many tiles.
    let used = |i: usize, j: usize, tiles: usize| {
        let (error, size) = rows[i].coefficients[j];
        error + forward.coefficients[i * n + j].abs() * rounded + size * (600 + 8 * tiles) as f64 * U
    };
    let mut queries = vec![0.0; b * dim];
    let mut keys = vec![0.0; n * dim];
    let mut temperatures = vec![0.0; b];
    let weight = |i: usize| upstream[i].abs() / truth.temperatures[i];
    let largest = (0..b).map(|i| weight(i) * rows[i].mass).fold(0.0, f64::max);
    for i in 0..b {
        let (tau, x) = (truth.temperatures[i], &truth.queries[i * dim..][..dim]);
        for j in 0..n {
            let y = &truth.keys[j * dim..][..dim];
            // Coefficients that are zero by a mask stay so.
            let open = rows[i].coefficients[j].1 > 0.0;
            let of_query = used(i, j, n.div_ceil(64)) + if open { rows[i].mass * vanishing } else { 0.0 };
            let of_key =
                weight(i) * used(i, j, b.div_ceil(64)) + if open { largest * vanishing } else { 0.0 };
            for d in 0..dim {
                queries[i * dim + d] += of_query * y[d].abs() / tau;
                keys[j * dim + d] += of_key * x[d].abs();
            }
            let score = if open { norm(x) * norm(y) / tau } else { 0.0 };
            let (error, size) = rows[i].coefficients[j];
            let steps = (600 + 24 * n.div_ceil(64) + dim) as f64;
            temperatures[i] += (error * score + size * (rows[i].score + steps * U * score)) / tau;
        }
    }
    let pick = |of: fn(&RowBound) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
    let mut worst = 0.0f64;
    for (name, got, expected, bounds) in [
        ("loss", &found.per_row, &forward.per_row, &pick(|row| row.loss)),
        ("log-sum-exp", &found.log_sum_exp, &forward.log_sum_exp, &pick(|row| row.lse)),
        ("gradient of the queries", &found.queries, &gradients.queries, &queries),
        ("gradient of the temperatures", &found.temperatures, &gradients.temperatures, &temperatures),
        ("gradient of the keys", &found.keys, &of_keys, &keys),
    ] {
        ensure!(got.len() == expected.len(), "{what}: {name} has {} elements", got.len());
        for (at, ((got, expected), bound)) in got.iter().zip(expected).zip(bounds).enumerate() {
            if f64::from(*got) == *expected {
                continue;
            }
            let ratio = (f64::from(*got) - expected).abs() / bound;
            ensure!(ratio <= 1.0, "{what}: {name} {at}: {got}, expected {expected}: {ratio:.2} bounds");
            worst = worst.max(ratio);
        }
    }
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        println!("{}: {what}: error / bound {worst:.3}", backend.name());
    }
    Ok(found)
}
