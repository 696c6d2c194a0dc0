//! How far a contrastive loss and its gradients may be from the definition in f64.
//!
//! u = 2⁻²⁴, the rounding of f32; σ = |x_i| max|y_j| / τ_i + max|ln u_j| + max|ln u_ij|; K tiles of 64 keys (or queries); n = |P(i)|; n_i the
//! normalizer. The bound is that of the kernels; sums of the CPU backend (docs/contrast.md) are shorter where it says
//! nothing else.
//!
//! * Score, absolute: three products of two bfloat16 parts leave out 3.1 · 2⁻¹⁶ of |x||y| (kernels/include/bound.cuh; only
//!   f32), the tensor core's sum errs by (D + 16) 2⁻²² of it; log₂e, 1/τ, their product, log₂ u and the fused product
//!   round by 8 u together: ε_s = σ (3.1 · 2⁻¹⁶ + 4 (D + 16) u + 8 u). Scores of positives are sums in f32 and err less.
//! * Exponential, relative: the difference to the maximum rounds by 2 u σ, 2^x by 4 u: ε_e = ε_s + 2 u σ + 4 u.
//!   Where scores are bounded beforehand (kernels/include/bounded.cuh) that difference is s − 33: 23 u more, and no factors
//!   2^(old − new), whose 4 u σ + 7 (K + 13) u below are above it.
//! * Their sum, relative: 16 terms, and at each of K tiles, 8 splits and 5 joins one sum and one factor 2^(old − new), whose
//!   exponents grow to 2σ in all: ε_r = 4 u σ + 7 (K + 13) u for the factors, ε_Z = ε_e + ε_r + 16 u.
//!   Negatives with weights of their own are summed one by one: K is larger by their number.
//! * lse, absolute, at most σ + ln N: ε_l = ε_Z + 4 u (|lse| + σ + ln N + 1).
//! * A weight, absolute: ½ (1 + cos) of a cosine that errs by (Do + 16) u; e^((cos − 1)/θ) by that over θ and 4 u more: ω, 0
//!   without affinity. From moments (all keys are positives) Σ w y and Σ w have sums of 32 and N / 32 terms, splits, and
//!   Do + 1 products: ε_T = (600 + N / 32 + 2 Do) u of Σ|y| and of n, which is at most that for each pair.
//! * A and 1/n_i: ε_A = ω n / n_i + (n + 12) u A, and relative ε_n = (n + 12) u + ω n / Σ w where n_i = Σ w, else 2 u.
//! * Loss: A (ε_l + ε_s + (n + K + 16) u σ + 6 u (|lse| + σ)) + (ε_A + A ε_n) (|lse| + σ). Left out, as softplus has slope at most 1
//!   and is at most |lse| + σ + 1: A (ε_l + ε_s + 8 u) + (ε_A + A ε_n) (|lse| + σ + 1) + (n + 20) u L.
//! * p, relative: from the keys' pass 2^(s − lse), from the queries' e^s over its sum: ε_p = ε_s + ε_l + ε_r + 4 u (|lse| + σ) + 6 u σ +
//!   12 u. A coefficient c = A p − a, before it is rounded: ε_c = A p (ε_p + 8 u) + p (ε_A + A ε_n) + a (ε_n + 10 u) + ω / n_i.
//!   Left out, q = σ(lse − s) errs by ε_q = (ε_l + ε_s) / 4 + 10 u: a q of a positive by a (ε_q + q ε_n) + q ω / n_i, their sum A' by
//!   A (ε_q + (n + 20) u + ε_n) + ω n / n_i, and the others are A' p.
//! * Rounded to 16 bits: δ = 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of |c|, with moments of A p; f32 leaves out 3.1 · 2⁻¹⁶. In units in which the
//!   largest coefficient that a row can have is 2¹³ at least, what is subnormal in f16 loses 2⁻²⁵ · 2⁻¹³ of that.
//! * Σ c y: in a tile 8 groups of up to 3 products, each with 10 errors of 2⁻²³ of what is there, is 480 u; one sum a tile and
//!   split and the division K + 12 u; positives one by one n u. The CPU backend sums A p y and a y apart, split products in
//!   (531 + 49 K / 8) u: both are below (600 + 8 K + n) u of Σ (A p + a)|y|. With moments ε_T / n_i of each |y| more.
//! * ∂L/∂τ: Σ_j of ε_c |s| + |c| ε_s + (16 K + 12 + n) u |c||s| on the kernels; ⟨x, ∂L/∂x⟩/τ on the CPU, with D u more.

use consonance::cuda::DType;
use consonance_cpu::contrast::{AffinityMap, Normalizer, OtherPositives};
use consonance_reference::contrast as reference;

use super::contrast::describe;
use super::ensure;
use crate::backend::{Backend, ContrastCase, ContrastFound, ContrastRule};
use crate::data;

const U: f64 = 1.0 / 16_777_216.0;
const SPLIT: f64 = 3.1 / 65_536.0;
/// What is subnormal in f16 loses, of the largest coefficient.
const VANISHING: f64 = 1.0 / (1u64 << 38) as f64;

/// The definition's results of a case, and what their bounds are made of.
pub(super) struct Truth<'a> {
    case: &'a ContrastCase,
    pairs: reference::Pairs,
    queries: Vec<f64>,
    keys: Vec<f64>,
    temperatures: Vec<f64>,
    forward: Option<reference::Contrast>,
}

/// The bounds of a row.
struct RowBound {
    score: f64,
    lse: f64,
    loss: f64,
    mass: f64,
    coefficients: Vec<Coefficient>,
}

/// The bound of a coefficient before it is rounded, A p + a, and what is rounded to 16 bits.
#[derive(Clone, Copy, Default)]
struct Coefficient {
    error: f64,
    size: f64,
    rounded: f64,
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
                Normalizer::Count => reference::Normalizer::Count,
                Normalizer::WeightSum => reference::Normalizer::WeightSum,
            },
            other_positives: match self.case.other_positives {
                OtherPositives::InDenominator => reference::OtherPositives::InDenominator,
                OtherPositives::LeftOut => reference::OtherPositives::LeftOut,
            },
        }
    }

    fn row(&self, forward: &reference::Contrast, i: usize) -> RowBound {
        let [_, n, dim] = Self::shape(self.case);
        let x = &self.queries[i * dim..][..dim];
        let valid = |j: &usize| self.case.valid.as_ref().is_none_or(|valid| valid[*j]);
        let largest = (0..n).filter(valid).map(|j| norm(&self.keys[j * dim..][..dim])).fold(0.0, f64::max);
        let bias = |u: &f32| if *u > 0.0 { f64::from(*u).ln().abs() } else { 0.0 };
        let bias = self.case.denominator_weights.iter().flatten().map(bias).fold(0.0, f64::max);
        let (paced, of_pace) = self.pace(i);
        let size = norm(x) * largest / self.temperatures[i] + bias + of_pace;
        let (tiles, keys) = (n.div_ceil(64) as f64, n as f64);
        let joins = tiles + 13.0 + paced;
        let split = if self.case.keys.dtype() == DType::F32 { SPLIT } else { 0.0 };
        let score = size * (split + 4.0 * (dim + 16) as f64 * U + 8.0 * U);
        let lse = forward.log_sum_exp[i];
        let lse = if lse.is_finite() { lse.abs() } else { 0.0 };
        let sum = score + 6.0 * U * size + (20.0 + 7.0 * joins) * U;
        let of_lse = sum + 4.0 * U * (lse + size + keys.ln() + 1.0);

        let at = |j: usize| i * n + j;
        let positives: Vec<usize> = (0..n).filter(|j| self.pairs.positive[at(*j)]).collect();
        let count = positives.len() as f64;
        let total: f64 = positives.iter().map(|j| self.pairs.weight[at(*j)]).sum();
        let by_sum = self.case.normalizer == Normalizer::WeightSum;
        let normalizer = if by_sum { total } else { count };
        if !forward.counted[i] {
            let coefficients = vec![Coefficient::default(); n];
            return RowBound { score, lse: of_lse, loss: 0.0, mass: 0.0, coefficients };
        }
        let all_mass = total / normalizer;
        let weight = self.weight_error();
        let by_moments = self.by_moments();
        let moments = if by_moments { self.moment_error(n) } else { 0.0 };
        let of_mass = (weight + moments) * count / normalizer + (count + 12.0) * U * all_mass;
        let of_normalizer =
            if by_sum { (count + 12.0) * U + (weight + moments) * count / total } else { 2.0 * U };
        let of_sums = of_mass + all_mass * of_normalizer;
        let rescaled = 4.0 * U * size + 7.0 * joins * U;
        let of_p = score + of_lse + rescaled + 4.0 * U * (lse + size) + 6.0 * U * size + 20.0 * U;
        let of_q = (of_lse + score) / 4.0 + 10.0 * U;
        let left_out = self.case.other_positives == OtherPositives::LeftOut;
        let target =
            |j: usize| if self.pairs.positive[at(j)] { self.pairs.weight[at(j)] / normalizer } else { 0.0 };
        let (mass, of_dense, loss) = if left_out {
            let mass = -(0..n)
                .filter(|j| self.pairs.positive[at(*j)])
                .map(|j| forward.coefficients[at(j)])
                .sum::<f64>();
            let error = all_mass * (of_q + (count + 20.0) * U + of_normalizer) + weight * count / normalizer;
            let loss = all_mass * (of_lse + score + 8.0 * U)
                + of_sums * (lse + size + 1.0)
                + (count + 20.0) * U * forward.per_row[i];
            (mass, error, loss)
        } else {
            let own = of_lse + score + (count + tiles + 16.0) * U * size + 6.0 * U * (lse + size);
            (all_mass, of_sums, all_mass * own + of_sums * (lse + size))
        };
        let coefficients = (0..n).map(|j| {
            let (a, c, positive) = (target(j), forward.coefficients[at(j)], self.pairs.positive[at(j)]);
            let of_weight = if positive { (weight + moments) / normalizer } else { 0.0 };
            if left_out && positive {
                // −a q: nothing of it is rounded with the queries, and all of it with the keys.
                let error = a * of_q + c.abs() * (of_normalizer + 10.0 * U) + of_weight;
                return Coefficient { error, size: c.abs(), rounded: c.abs() };
            }
            // A p is what the coefficient and the target make together.
            let dense = if left_out { c } else { c + a }.max(0.0);
            let p = if mass > 0.0 { dense / mass } else { 0.0 };
            let error = dense * of_p + p * of_dense + a * (of_normalizer + 10.0 * U) + of_weight;
            Coefficient { error, size: dense + a, rounded: if by_moments { dense } else { c.abs() } }
        });
        RowBound { score, lse: of_lse, loss, mass, coefficients: coefficients.collect() }
    }

    /// The negatives of row i's own group, and the largest |ln u| of their own weights.
    fn pace(&self, i: usize) -> (f64, f64) {
        let Some(pace) = &self.case.pace else { return (0.0, 0.0) };
        let [_, n, _] = Self::shape(self.case);
        let of_group = (0..n).filter(|j| pace.queries[i] == pace.keys[*j] && !self.pairs.positive[i * n + j]);
        of_group
            .map(|j| pace.weight(i, j))
            .filter(|weight| *weight > 0.0)
            .fold((0.0, 0.0), |(count, widest): (f64, f64), weight| {
                (count + 1.0, widest.max(weight.ln().abs()))
            })
    }

    /// How far a weight is from the definition: ω.
    fn weight_error(&self) -> f64 {
        let Some((old, _, map)) = &self.case.affinity else { return 0.0 };
        let cosine = (old.cols() + 16) as f64 * U;
        match map {
            AffinityMap::Half => cosine,
            AffinityMap::Exp { temperature } => cosine / f64::from(*temperature) + 4.0 * U,
        }
    }

    /// Whether sums over positives may come from moments of all keys.
    fn by_moments(&self) -> bool {
        matches!(self.case.rule, ContrastRule::All)
            && self.case.ids.is_none()
            && self.case.other_positives == OtherPositives::InDenominator
            && self.case.affinity.as_ref().is_none_or(|(_, _, map)| *map == AffinityMap::Half)
    }

    /// What moments of so many rows may be off, of each row's own share: ε_T.
    fn moment_error(&self, rows: usize) -> f64 {
        let old = self.case.affinity.as_ref().map_or(0, |(old, ..)| old.cols());
        (600.0 + rows as f64 / 32.0 + 2.0 * old as f64) * U
    }
}

/// The bounds of a case, and the definition's results.
pub(super) struct Bounds<'a> {
    pub(super) truth: Truth<'a>,
    pub(super) forward: reference::Contrast,
    rows: Vec<RowBound>,
    upstream: Vec<f64>,
}

impl<'a> Bounds<'a> {
    pub(super) fn new(case: &'a ContrastCase) -> Result<Self, String> {
        let mut truth = Truth::new(case);
        let Some(forward) = truth.forward.take() else { return Err("no definition".to_owned()) };
        let rows = (0..case.queries.rows()).map(|i| truth.row(&forward, i)).collect();
        Ok(Self { truth, forward, rows, upstream: data::widen(&case.upstream) })
    }

    /// Of every loss and every lse.
    pub(super) fn of_rows(&self) -> [Vec<f64>; 2] {
        [self.rows.iter().map(|row| row.loss).collect(), self.rows.iter().map(|row| row.lse).collect()]
    }

    /// The gradients of Σ g L.
    pub(super) fn gradients(&self, upstream: &[f64]) -> reference::Gradients {
        self.truth.problem().gradients(upstream)
    }

    /// The gradients of Σ upstream · L.
    pub(super) fn all_gradients(&self) -> reference::Gradients {
        self.gradients(&self.upstream)
    }

    fn rounded(&self) -> f64 {
        match self.truth.case.keys.dtype() {
            DType::F32 => SPLIT,
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
        }
    }

    /// The bound on what a coefficient is multiplied with and summed as, over so many tiles.
    fn used(&self, i: usize, j: usize, tiles: usize) -> f64 {
        let [_, n, _] = Truth::shape(self.truth.case);
        let Coefficient { error, size, rounded: of } = self.rows[i].coefficients[j];
        error + of * self.rounded() + size * (600 + 8 * tiles + n) as f64 * U
    }

    /// Whether a coefficient is not zero by a mask, which stays so.
    fn is_open(&self, i: usize, j: usize) -> bool {
        self.rows[i].coefficients[j].size > 0.0
    }

    fn weight(&self, i: usize) -> f64 {
        self.upstream[i].abs() / self.truth.temperatures[i]
    }

    /// The largest coefficient of any row.
    pub(super) fn largest(&self) -> f64 {
        (0..self.rows.len()).map(|i| self.weight(i) * self.rows[i].mass).fold(0.0, f64::max)
    }

    /// Of a coefficient of Σ upstream · L in units in which the largest of all is `largest`, over so many tiles.
    pub(super) fn of_pair(&self, i: usize, j: usize, tiles: usize, largest: f64) -> f64 {
        let vanishing = if self.is_open(i, j) { largest * VANISHING } else { 0.0 };
        self.weight(i) * self.used(i, j, tiles) + vanishing
    }

    /// Of ∂L_i/∂x_i, ∂L_i/∂τ_i and the gradient of Σ upstream · L for the keys.
    fn of_gradients(&self) -> [Vec<f64>; 3] {
        let [b, n, dim] = Truth::shape(self.truth.case);
        let (mut queries, mut keys) = (vec![0.0; b * dim], vec![0.0; n * dim]);
        let largest = self.largest();
        for i in 0..b {
            let (tau, x) = (self.truth.temperatures[i], &self.truth.queries[i * dim..][..dim]);
            for j in 0..n {
                let y = &self.truth.keys[j * dim..][..dim];
                let vanishing = if self.is_open(i, j) { self.rows[i].mass * VANISHING } else { 0.0 };
                let of_query = self.used(i, j, n.div_ceil(64)) + vanishing;
                let of_key = self.of_pair(i, j, b.div_ceil(64), largest);
                for d in 0..dim {
                    queries[i * dim + d] += of_query * y[d].abs() / tau;
                    keys[j * dim + d] += of_key * x[d].abs();
                }
            }
        }
        [queries, self.of_temperatures(), keys]
    }

    pub(super) fn of_temperatures(&self) -> Vec<f64> {
        let [b, n, dim] = Truth::shape(self.truth.case);
        let of_row = |i: usize| {
            let (tau, x) = (self.truth.temperatures[i], &self.truth.queries[i * dim..][..dim]);
            let of_pair = |j: usize| {
                let y = &self.truth.keys[j * dim..][..dim];
                let score = if self.is_open(i, j) { norm(x) * norm(y) / tau } else { 0.0 };
                let Coefficient { error, size, .. } = self.rows[i].coefficients[j];
                let steps = (600 + 24 * n.div_ceil(64) + dim + n) as f64;
                (error * score + size * (self.rows[i].score + steps * U * score)) / tau
            };
            (0..n).map(of_pair).sum()
        };
        (0..b).map(of_row).collect()
    }
}

/// A name, what was found, what is expected, and how far it may be.
pub(super) type Compared<'a> = (&'a str, &'a [f32], &'a [f64], &'a [f64]);

/// Compares numbers with the definition's and gives the largest share of a bound that an error takes.
pub(super) fn worst_share(what: &str, all: &[Compared<'_>]) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for (name, got, expected, bounds) in all {
        ensure!(got.len() == expected.len(), "{what}: {name} has {} elements", got.len());
        for (at, ((got, expected), bound)) in got.iter().zip(*expected).zip(*bounds).enumerate() {
            if f64::from(*got) == *expected {
                continue;
            }
            let ratio = (f64::from(*got) - expected).abs() / bound;
            ensure!(ratio <= 1.0, "{what}: {name} {at}: {got}, expected {expected}: {ratio:.2} bounds");
            worst = worst.max(ratio);
        }
    }
    Ok(worst)
}

/// Compares everything with the definition and prints the largest share of a bound that an error takes.
pub(super) fn check_values(backend: &dyn Backend, case: &ContrastCase) -> Result<ContrastFound, String> {
    let found = backend.contrast(case)?;
    let what = describe(case);
    let bounds = Bounds::new(case)?;
    let forward = &bounds.forward;
    ensure!(found.counted == forward.counted, "{what}: counted rows are {:?}", found.counted);
    let gradients = bounds.gradients(&vec![1.0; case.queries.rows()]);
    let of_keys = bounds.all_gradients().keys;
    let [loss, lse] = bounds.of_rows();
    let [queries, temperatures, keys] = bounds.of_gradients();
    let all: [Compared<'_>; 5] = [
        ("loss", &found.per_row, &forward.per_row, &loss),
        ("log-sum-exp", &found.log_sum_exp, &forward.log_sum_exp, &lse),
        ("gradient of the queries", &found.queries, &gradients.queries, &queries),
        ("gradient of the temperatures", &found.temperatures, &gradients.temperatures, &temperatures),
        ("gradient of the keys", &found.keys, &of_keys, &keys),
    ];
    let worst = worst_share(&what, &all)?;
    print_share(backend, &what, worst);
    Ok(found)
}

#[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
pub(super) fn print_share(backend: &dyn Backend, what: &str, worst: f64) {
    println!("{}: {what}: error / bound {worst:.3}", backend.name());
}

/// How far the losses and gradients of two backends may be apart, for f32 rows of norm at most 1, denominator weights of
/// at most 1 and A ≤ 1, by the bound above: of a row's loss, and of each component of its query's gradient.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    /// Of L_i.
    pub loss: f64,
    /// Of ∂L_i/∂x_i.
    pub gradient: f64,
}

/// The bound of both backends together, for `keys` keys, all of them positives, and old embeddings of `old_dim`
/// dimensions or none.
pub fn between_backends(
    [keys, dim, old_dim]: [usize; 3],
    temperature: f64,
    map: Option<AffinityMap>,
) -> Between {
    let (n, tiles, size) = (keys as f64, keys.div_ceil(64) as f64, 1.0 / temperature);
    let score = size * (SPLIT + 4.0 * (dim + 16) as f64 * U + 8.0 * U);
    let lse = size + n.ln();
    let sum = score + 6.0 * U * size + (20.0 + 7.0 * (tiles + 13.0)) * U;
    let of_lse = sum + 4.0 * U * (2.0 * lse + 1.0);
    let cosine = (old_dim + 16) as f64 * U;
    let weight = match map {
        None => 0.0,
        Some(AffinityMap::Half) => cosine + (600.0 + n / 32.0 + 2.0 * old_dim as f64) * U,
        Some(AffinityMap::Exp { temperature }) => cosine / f64::from(temperature) + 4.0 * U,
    };
    // Weights divided by their sum: 2 ω n / Σ w, where Σ w is a half of n at the least for these maps in the tests.
    let of_weights = 4.0 * weight + 2.0 * (n + 12.0) * U;
    let loss =
        of_lse + score + (n + tiles + 20.0) * U * (size + lse + 1.0) + 2.0 * of_weights * (lse + size + 1.0);
    let of_p = 2.0 * score
        + of_lse
        + (4.0 * size + 7.0 * (tiles + 13.0) + 4.0 * (lse + size) + 6.0 * size + 30.0) * U;
    let coefficients = of_p + of_lse + 2.0 * of_weights + 2.0 * SPLIT + 2.0 * (600.0 + 8.0 * tiles + n) * U;
    Between { loss: 2.0 * loss, gradient: 2.0 * 2.0 * coefficients / temperature }
}
