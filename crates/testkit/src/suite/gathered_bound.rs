//! How far a loss over lists and its gradients may be from the definition in f64.
//!
//! u = 2⁻²⁴, the rounding of f32; for one row σ = |x| max|y| / τ (of a divergence / (τ T), for each side) over the rows it
//! lists; K columns; tiles of at least R rows, where R is half of what fits into 16 KiB, at least 1 and at most 32; t = ⌈K/R⌉
//! + 8 tiles and splits. The CPU backend has tiles of 64 rows and sums of tiles in f64: shorter sums than these.
//!
//! * Score, absolute: a chain of at most D fused products and 8 joins of lanes and parts, log₂e, 1/τ, 1/T and two products:
//!   ε_s = (D + 16) u σ.
//! * Exponential, relative: the difference to the maximum rounds by 2 u σ, 2^x by 4 u: ε_e = ε_s + 2 u σ + 4 u.
//! * A sum with a running maximum, relative to the sum of its terms' sizes: at each tile and split one product and one sum, and
//!   a factor 2^(old − new) with 4 u and rounded exponents that grow to 2 σ in all; 64 terms in a tile, 5 joins of lanes:
//!   ε_Z = ε_e + 2 u σ + (70 + 7 t) u.
//! * lse, absolute, at most σ + ln K: ε_l = ε_Z + 4 u (|lse| + σ + ln K + 1).
//! * Contrast. Σ w, relative: ε_w = (t + 20) u; Σ w s: ε_s + (t + 20) u σ for each weight. Loss:
//!   A (ε_l + ε_w |lse| + ε_s + (t + 20) u σ + 6 u (|lse| + σ)).
//!   ∂L/∂x, each component: Σ_c (A p_c (2 ε_Z + ε_w + 12 u) + a_c (ε_w + 76 u)) |y_c| / τ: both sums have a tile's 64 terms.
//!   ∂L/∂τ: Σ_d |x_d| times that, and (D + 8) u |x_d| |∂L/∂x_d| more, over τ.
//! * Divergence, with Δ_c = |t_c − s_c|/T, both sides' σ and ε, q the teacher's softmax: Σ q Δ is a sum with a running maximum
//!   whose terms err by ε_s + ε_s' + u (σ + σ'), so L errs by
//!   T² (Σ q Δ (2 ε_Z' + 8 u) + ε_s + ε_s' + 2 u (σ + σ') + ε_l + ε_l' + 6 u (|lse| + |lse'|)).
//!   ∂L/∂x: T Σ_c (p_c (2 ε_Z + 12 u) + q_c (2 ε_Z' + 12 u)) |y_c| / τ.
//! * Exponentials below 2⁻¹²⁶ of the largest are 0: K 2⁻¹²⁶ of max|y|, far below u of any sum above.

use consonance_reference::contrast as reference;
use consonance_reference::gathered::{Lists, Losses, PADDING};

use super::ensure;
use crate::backend::{Backend, GatheredCase, GatheredFound, GatheredLoss, GatheredPositives};
use crate::data;

const U: f64 = 1.0 / 16_777_216.0;

/// Sides of a case in f64.
struct Wide {
    queries: Vec<f64>,
    bank: Vec<f64>,
    dim: usize,
}

impl Wide {
    fn lists<'a>(&'a self, case: &'a GatheredCase, temperatures: &'a [f64]) -> Lists<'a> {
        let (queries, bank, dim) = (&self.queries[..], &self.bank[..], self.dim);
        Lists { queries, bank, dim, indices: &case.indices, columns: case.columns, temperatures }
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// σ, ε_s, ε_Z and ε_l of one row and side, whose scores are divided by `softening` once more; and its probabilities.
struct Errors {
    size: f64,
    score: f64,
    sum: f64,
    log: f64,
    log_sum_exp: f64,
    probabilities: Vec<f64>,
}

fn errors(lists: &Lists<'_>, i: usize, softening: f64, all_dims: usize) -> Errors {
    let x = &lists.queries[i * lists.dim..][..lists.dim];
    let listed = lists.listed(i);
    let largest = listed.iter().map(|c| norm(lists.row(i, *c))).fold(0.0, f64::max);
    let size = norm(x) * largest / (lists.temperatures[i] * softening);
    let score = (lists.dim + 16) as f64 * U * size;
    let sum = score + 4.0 * U * size + 4.0 * U + (70.0 + 7.0 * tiles(lists.columns, all_dims)) * U;
    let scores: Vec<f64> = listed.iter().map(|c| lists.score(i, *c) / softening).collect();
    let log_sum_exp = consonance_reference::soft_assignment::log_sum_exp(&scores);
    let finite = if listed.is_empty() { 0.0 } else { log_sum_exp.abs() };
    let log = sum + 4.0 * U * (finite + size + (lists.columns as f64).ln() + 1.0);
    let probabilities = scores.iter().map(|s| (s - log_sum_exp).exp()).collect();
    Errors { size, score, sum, log, log_sum_exp: finite, probabilities }
}

/// t: tiles of half of what fits, and splits.
fn tiles(columns: usize, all_dims: usize) -> f64 {
    let rows = (16_384 / (8 * (all_dims + 8))).clamp(1, 32);
    (columns.div_ceil(rows) + 8) as f64
}

/// The bounds of a row: of its loss, its log-sum-exp, its gradient's components and ∂L/∂τ.
struct RowBound {
    loss: f64,
    log: f64,
    queries: Vec<f64>,
    temperature: f64,
}

fn contrast_bound(
    lists: &Lists<'_>,
    i: usize,
    (weights, by_weight): (&[f64], bool),
    truth: &Losses,
) -> RowBound {
    let errors = errors(lists, i, 1.0, lists.dim);
    let (dim, tau) = (lists.dim, lists.temperatures[i]);
    let listed = lists.listed(i);
    let weight: Vec<f64> = listed.iter().map(|c| weights[i * lists.columns + c]).collect();
    let total: f64 = weight.iter().sum();
    let count = weight.iter().filter(|w| **w > 0.0).count() as f64;
    let normalizer = if by_weight { total } else { count };
    let mut bound = RowBound { loss: 0.0, log: errors.log, queries: vec![0.0; dim], temperature: 0.0 };
    if !truth.counted[i] {
        return bound;
    }
    let mass = total / normalizer;
    let steps = (tiles(lists.columns, dim) + 20.0) * U;
    bound.loss = mass
        * (errors.log
            + steps * errors.log_sum_exp
            + errors.score
            + steps * errors.size
            + 6.0 * U * (errors.log_sum_exp + errors.size));
    for ((c, p), w) in listed.iter().zip(&errors.probabilities).zip(&weight) {
        let a = w / normalizer;
        let coefficient = mass * p * (2.0 * errors.sum + steps + 12.0 * U) + a * (steps + 76.0 * U);
        for (bound, y) in bound.queries.iter_mut().zip(lists.row(i, *c)) {
            *bound += coefficient * y.abs() / tau;
        }
    }
    let x = &lists.queries[i * dim..][..dim];
    let gradient = &truth.queries[i * dim..][..dim];
    for ((x, g), b) in x.iter().zip(gradient).zip(&bound.queries) {
        bound.temperature += x.abs() * (b + (dim + 8) as f64 * U * g.abs()) / tau;
    }
    bound
}

fn divergence_bound(lists: &Lists<'_>, teacher: &Lists<'_>, i: usize, softening: f64) -> RowBound {
    let dims = lists.dim + teacher.dim;
    let (own, other) = (errors(lists, i, softening, dims), errors(teacher, i, softening, dims));
    let mut bound = RowBound { loss: 0.0, log: own.log, queries: vec![0.0; lists.dim], temperature: 0.0 };
    let mut along = 0.0;
    for ((c, p), q) in lists.listed(i).iter().zip(&own.probabilities).zip(&other.probabilities) {
        along += q * (teacher.score(i, *c) - lists.score(i, *c)).abs() / softening;
        let coefficient = p * (2.0 * own.sum + 12.0 * U) + q * (2.0 * other.sum + 12.0 * U);
        for (bound, y) in bound.queries.iter_mut().zip(lists.row(i, *c)) {
            *bound += softening * coefficient * y.abs() / lists.temperatures[i];
        }
    }
    bound.loss = softening
        * softening
        * (along * (2.0 * other.sum + 8.0 * U)
            + own.score
            + other.score
            + 2.0 * U * (own.size + other.size)
            + own.log
            + other.log
            + 6.0 * U * (own.log_sum_exp + other.log_sum_exp));
    bound
}

/// The definition, as a message names a case.
fn describe(case: &GatheredCase) -> String {
    let what = match &case.loss {
        GatheredLoss::Contrast(GatheredPositives::First(count), normalizer) => {
            format!("first {count}, {normalizer:?}")
        }
        GatheredLoss::Contrast(GatheredPositives::Weights(_), normalizer) => {
            format!("weights, {normalizer:?}")
        }
        GatheredLoss::Divergence(teacher, _, softening) => {
            format!("divergence of {} dimensions, T {softening}", teacher.cols())
        }
    };
    let [b, n, dim] = [case.queries.rows(), case.bank.rows(), case.bank.cols()];
    format!("{:?} [{b}, {dim}] against {} of [{n}, {dim}], {what}", case.bank.dtype(), case.columns)
}

/// Compares everything with the definition and prints the largest share of a bound that an error takes.
pub(super) fn check_values(backend: &dyn Backend, case: &GatheredCase) -> Result<GatheredFound, String> {
    let found = backend.gathered(case, true)?;
    let what = describe(case);
    let (b, dim) = (case.queries.rows(), case.queries.cols());
    let own = Wide { queries: case.queries.wide(), bank: case.bank.wide(), dim };
    let temperature =
        |i: usize| f64::from(case.temperatures[if case.temperatures.len() == 1 { 0 } else { i }]);
    let temperatures: Vec<f64> = (0..b).map(temperature).collect();
    let lists = own.lists(case, &temperatures);
    let (truth, bounds): (Losses, Vec<RowBound>) = match &case.loss {
        GatheredLoss::Contrast(positives, normalizer) => {
            let weights = match positives {
                GatheredPositives::Weights(weights) => data::widen(weights),
                GatheredPositives::First(count) => {
                    (0..b * case.columns).map(|at| f64::from(u8::from(at % case.columns < *count))).collect()
                }
            };
            let by_weight = *normalizer == consonance_cpu::contrast::Normalizer::WeightSum;
            let normalizer = match by_weight {
                true => reference::Normalizer::WeightSum,
                false => reference::Normalizer::Count,
            };
            let truth = lists.contrast(&weights, normalizer);
            let bounds = (0..b).map(|i| contrast_bound(&lists, i, (&weights, by_weight), &truth)).collect();
            (truth, bounds)
        }
        GatheredLoss::Divergence(queries, bank, softening) => {
            let other = Wide { queries: queries.wide(), bank: bank.wide(), dim: queries.cols() };
            let teacher = other.lists(case, &temperatures);
            let softening = f64::from(*softening);
            let bounds = (0..b).map(|i| divergence_bound(&lists, &teacher, i, softening)).collect();
            let truth = Losses { temperatures: Vec::new(), ..lists.divergence(&teacher, softening) };
            (truth, bounds)
        }
    };
    ensure!(found.counted == truth.counted, "{what}: counted rows are {:?}", found.counted);
    let counted = truth.counted.iter().filter(|counted| **counted).count();
    ensure!(found.anchors == counted, "{what}: {} rows count, expected {counted}", found.anchors);
    let pick = |of: fn(&RowBound) -> f64| bounds.iter().map(of).collect::<Vec<f64>>();
    let of_queries: Vec<f64> = bounds.iter().flat_map(|row| row.queries.iter().copied()).collect();
    let mut worst = 0.0f64;
    for (name, got, expected, bounds) in [
        ("loss", &found.per_row, &truth.per_row, &pick(|row| row.loss)),
        ("log-sum-exp", &found.log_sum_exp, &truth.log_sum_exp, &pick(|row| row.log)),
        ("gradient of the queries", &found.queries, &truth.queries, &of_queries),
        (
            "gradient of the temperatures",
            &found.temperatures,
            &truth.temperatures,
            &pick(|row| row.temperature),
        ),
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
    let plain = backend.gathered(case, false)?;
    let same = |a: &[f32], b: &[f32]| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
    ensure!(
        same(&plain.per_row, &found.per_row)
            && same(&plain.log_sum_exp, &found.log_sum_exp)
            && plain.queries.is_empty(),
        "{what}: other bits without gradients"
    );
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        println!("{}: {what}: error / bound {worst:.3}", backend.name());
    }
    Ok(found)
}

/// Whether a column of a case holds something.
pub(super) fn is_listed(case: &GatheredCase, at: usize) -> bool {
    case.indices[at] != PADDING
}
