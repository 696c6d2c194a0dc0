//! How far a divergence of two distributions over the same keys and its gradients may be from the definition in f64.
//!
//! u = 2⁻²⁴, the rounding of f32; of each side σ = |x_i| max|y_j| / (τ T), the teacher's with a prime; K tiles of 64 keys (or
//! queries); Δ_j = b_j − a_j, the difference of both sides' scores. The bound is that of the kernels; the sums of the CPU
//! backend (docs/divergence.md) are shorter where it says nothing else.
//!
//! * Score, absolute: three products of two bfloat16 parts leave out 3.1 · 2⁻¹⁶ of |x||y| (kernels/include/bound.cuh; only
//!   f32), the tensor core's sum errs by (D + 16) 2⁻²² of it; 1/(τ T) with log₂e and the product round by 8 u together:
//!   ε_s = σ (3.1 · 2⁻¹⁶ + 4 (D + 16) u + 8 u).
//! * Exponential, relative: the difference to the maximum rounds by 2 u σ, 2^x by 4 u: ε_e = ε_s + 2 u σ + 4 u.
//! * Their sum, relative: 16 terms, and at each of K tiles, 8 splits and 5 joins one sum and one factor 2^(old − new), whose
//!   exponents grow to 2σ in all: ε_r = 4 u σ + 7 (K + 13) u for the factors, ε_Z = ε_e + ε_r + 16 u.
//! * lse, absolute, at most σ + ln N: ε_l = ε_Z + 4 u (|lse| + σ + ln N + 1).
//! * The mean difference, weighed by w = q (forward) or p (reverse) of the side that weighs: with S = Σ w |Δ| and
//!   ε_Δ = ε_s + ε_s' + 2 u (σ + σ') it errs by ε_M = S (2 ε_Z + 8 u) + ε_Δ.
//! * Divergence: T² (ε_M + ε_l + ε_l' + 6 u (|lse| + |lse'|)) + 6 u L.
//! * p, relative: from the keys' pass 2^(b − lse), on the CPU e^b over its sum: ε_p = ε_s + ε_l + ε_r + 4 u (|lse| + σ) + 6 u σ + 12 u.
//! * A coefficient before it is rounded, forward p − q: ε_c = p (ε_p + 4 u) + q (ε_p' + 4 u), of size z = p + q. Reverse p (Δ − M):
//!   ε_c = p ((ε_p + 8 u) |Δ − M| + ε_Δ + ε_M + 4 u (|Δ| + |M|)), of size z = p (|Δ| + |M|).
//! * Rounded to 16 bits: δ = 2⁻⁸ (bf16) or 2⁻¹¹ (f16) of what was computed; f32 leaves out 3.1 · 2⁻¹⁶: ε_c (1 + δ) + δ |c|. In units in
//!   which the largest coefficient that a row can have, 1 or 2 max|Δ|, is 2¹³ at least, what is subnormal in f16 loses
//!   2⁻²⁵ · 2⁻¹³ of that.
//! * Σ c y: in a tile 8 groups of up to 3 products, each with 10 errors of 2⁻²³ of what is there, is 480 u; one sum a tile and
//!   split and the last factors K + 12 u: below (600 + 8 K) u Σ z |y|. The CPU backend sums p y and q y (p Δ y and M p y) apart, 512 keys
//!   at a time: that is why sizes stand for the coefficients.

use consonance::cuda::DType;
use consonance_cpu::divergence::Direction;
use consonance_reference::divergence as reference;

use super::ensure;
use crate::backend::{Backend, DivergenceCase, DivergenceFound};
use crate::data;
use crate::stored::Stored;

const U: f64 = 1.0 / 16_777_216.0;
const SPLIT: f64 = 3.1 / 65_536.0;

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// One side in f64.
struct Wide {
    queries: Vec<f64>,
    keys: Vec<f64>,
    dim: usize,
    temperature: f64,
}

impl Wide {
    fn new((queries, keys): &(Stored, Stored), temperature: f32) -> Self {
        let (dim, temperature) = (queries.cols(), f64::from(temperature));
        Self { queries: queries.wide(), keys: keys.wide(), dim, temperature }
    }

    fn side(&self) -> reference::Side<'_> {
        let Self { queries, keys, dim, temperature } = self;
        reference::Side { queries, keys, dim: *dim, temperature: *temperature }
    }

    fn query(&self, i: usize) -> &[f64] {
        &self.queries[i * self.dim..][..self.dim]
    }

    fn key(&self, j: usize) -> &[f64] {
        &self.keys[j * self.dim..][..self.dim]
    }

    /// The softened score.
    fn score(&self, i: usize, j: usize, softening: f64) -> f64 {
        let products = self.query(i).iter().zip(self.key(j)).map(|(x, y)| x * y);
        products.sum::<f64>() / (self.temperature * softening)
    }
}

/// σ, ε_s, ε_Z, ε_l, |lse| and ε_p of one row and side.
struct Errors {
    size: f64,
    score: f64,
    sum: f64,
    log: f64,
    lse: f64,
    probability: f64,
}

/// The bound of a coefficient before it is rounded, its value, and z.
#[derive(Clone, Copy, Default)]
struct Coefficient {
    error: f64,
    value: f64,
    size: f64,
}

/// The bounds of a row, and what no coefficient exceeds.
struct RowBound {
    loss: f64,
    logs: [f64; 2],
    coefficients: Vec<Coefficient>,
    largest: f64,
}

struct Truth<'a> {
    case: &'a DivergenceCase,
    student: Wide,
    teacher: Wide,
    compared: Vec<bool>,
}

impl<'a> Truth<'a> {
    fn new(case: &'a DivergenceCase) -> Self {
        let (b, n) = (case.student.0.rows(), case.student.1.rows());
        let compared = |i: usize, j: usize| {
            case.valid.as_ref().is_none_or(|valid| valid[j])
                && case.ids.as_ref().is_none_or(|(queries, keys)| queries[i] != keys[j])
                && !(case.diagonal && i == j)
        };
        Self {
            case,
            student: Wide::new(&case.student, case.temperatures[0]),
            teacher: Wide::new(&case.teacher, case.temperatures[1]),
            compared: (0..b * n).map(|at| compared(at / n, at % n)).collect(),
        }
    }

    fn softening(&self) -> f64 {
        f64::from(self.case.softening)
    }

    fn problem(&self) -> reference::Problem<'_> {
        reference::Problem {
            student: self.student.side(),
            teacher: self.teacher.side(),
            softening: self.softening(),
            direction: match self.case.direction {
                Direction::Forward => reference::Direction::Forward,
                Direction::Reverse => reference::Direction::Reverse,
            },
            compared: self.compared.clone(),
        }
    }

    fn errors(&self, side: &Wide, i: usize, lse: f64) -> Errors {
        let n = self.case.student.1.rows();
        let compared = (0..n).filter(|j| self.compared[i * n + j]);
        let largest = compared.map(|j| norm(side.key(j))).fold(0.0, f64::max);
        let size = norm(side.query(i)) * largest / (side.temperature * self.softening());
        let tiles = n.div_ceil(64) as f64;
        let split = if self.case.student.1.dtype() == DType::F32 { SPLIT } else { 0.0 };
        let score = size * (split + 4.0 * (side.dim + 16) as f64 * U + 8.0 * U);
        let rescaled = 4.0 * U * size + 7.0 * (tiles + 13.0) * U;
        let sum = score + 2.0 * U * size + 4.0 * U + rescaled + 16.0 * U;
        let lse = if lse.is_finite() { lse.abs() } else { 0.0 };
        let log = sum + 4.0 * U * (lse + size + (n as f64).ln() + 1.0);
        let probability = score + log + rescaled + 4.0 * U * (lse + size) + 6.0 * U * size + 12.0 * U;
        Errors { size, score, sum, log, lse, probability }
    }

    fn row(&self, forward: &reference::Divergences, i: usize) -> RowBound {
        let (n, softening) = (self.case.student.1.rows(), self.softening());
        let lse = [forward.log_sum_exp[i], forward.teacher_log_sum_exp[i]];
        let (own, other) = (self.errors(&self.student, i, lse[0]), self.errors(&self.teacher, i, lse[1]));
        let reverse = self.case.direction == Direction::Reverse;
        let of_difference = own.score + other.score + 2.0 * U * (own.size + other.size);
        // p, q and Δ of every pair that is compared.
        let pairs: Vec<Option<[f64; 3]>> = (0..n)
            .map(|j| {
                self.compared[i * n + j].then(|| {
                    let [b, a] = [&self.student, &self.teacher].map(|side| side.score(i, j, softening));
                    [(b - lse[0]).exp(), (a - lse[1]).exp(), b - a]
                })
            })
            .collect();
        let weighed = |f: fn(f64) -> f64| -> f64 {
            pairs.iter().flatten().map(|[p, q, d]| if reverse { p * f(*d) } else { q * f(*d) }).sum()
        };
        let (mean, absolute) = (weighed(|d| d), weighed(f64::abs));
        let weighing = if reverse { &own } else { &other };
        let of_mean = absolute * (2.0 * weighing.sum + 8.0 * U) + of_difference;
        let coefficients = pairs.iter().map(|pair| {
            let Some([p, q, d]) = *pair else { return Coefficient::default() };
            if reverse {
                let error = p
                    * ((own.probability + 8.0 * U) * (d - mean).abs()
                        + of_difference
                        + of_mean
                        + 4.0 * U * (d.abs() + mean.abs()));
                return Coefficient { error, value: p * (d - mean), size: p * (d.abs() + mean.abs()) };
            }
            let error = p * (own.probability + 4.0 * U) + q * (other.probability + 4.0 * U);
            Coefficient { error, value: p - q, size: p + q }
        });
        let widest = pairs.iter().flatten().map(|[_, _, d]| d.abs()).fold(0.0, f64::max);
        RowBound {
            loss: softening * softening * (of_mean + own.log + other.log + 6.0 * U * (own.lse + other.lse))
                + 6.0 * U * forward.per_row[i].abs(),
            logs: [own.log, other.log],
            coefficients: coefficients.collect(),
            largest: if !forward.counted[i] {
                0.0
            } else if reverse {
                2.0 * (widest + of_difference)
            } else {
                1.0
            },
        }
    }
}

pub(super) fn describe(case: &DivergenceCase) -> String {
    let [b, n, dim, width] =
        [case.student.0.rows(), case.student.1.rows(), case.student.0.cols(), case.teacher.0.cols()];
    let (dtype, direction) = (case.student.1.dtype(), case.direction);
    let known = if case.known.is_some() { ", known" } else { "" };
    format!("{dtype:?} [{b}, {dim}] against [{n}, {dim}], {direction:?} from {width} dimensions{known}")
}

/// Compares everything with the definition and prints the largest share of a bound that an error takes.
pub(super) fn check_values(backend: &dyn Backend, case: &DivergenceCase) -> Result<DivergenceFound, String> {
    let found = backend.divergence(case)?;
    let truth = Truth::new(case);
    let what = describe(case);
    let (b, n, dim) = (case.student.0.rows(), case.student.1.rows(), case.student.0.cols());
    let forward = truth.problem().forward();
    let (of_queries, _) = truth.problem().gradients(&vec![1.0; b]);
    let upstream = data::widen(&case.upstream);
    let (_, of_keys) = truth.problem().gradients(&upstream);
    ensure!(found.counted == forward.counted, "{what}: counted rows are {:?}", found.counted);

    let rows: Vec<RowBound> = (0..b).map(|i| truth.row(&forward, i)).collect();
    let rounded = match case.student.1.dtype() {
        DType::F32 => SPLIT,
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
    };
    let vanishing = 2f64.powi(-38);
    let outer = truth.softening() / truth.student.temperature;
    let largest = (0..b).map(|i| upstream[i].abs() * outer * rows[i].largest).fold(0.0, f64::max);
    // The bound on what a coefficient is multiplied with and summed as, over so many tiles.
    let used = |i: usize, j: usize, tiles: usize| {
        let Coefficient { error, value, size } = rows[i].coefficients[j];
        error * (1.0 + rounded) + value.abs() * rounded + size * (600 + 8 * tiles) as f64 * U
    };
    let (mut queries, mut keys) = (vec![0.0; b * dim], vec![0.0; n * dim]);
    for i in 0..b {
        for j in (0..n).filter(|j| truth.compared[i * n + j]) {
            let of_query = outer * (used(i, j, n.div_ceil(64)) + rows[i].largest * vanishing);
            let of_key = upstream[i].abs() * outer * used(i, j, b.div_ceil(64)) + largest * vanishing;
            let (x, y) = (truth.student.query(i), truth.student.key(j));
            for d in 0..dim {
                queries[i * dim + d] += of_query * y[d].abs();
                keys[j * dim + d] += of_key * x[d].abs();
            }
        }
    }
    let pick = |of: fn(&RowBound) -> f64| rows.iter().map(of).collect::<Vec<f64>>();
    let mut worst = 0.0f64;
    for (name, got, expected, bounds) in [
        ("loss", &found.per_row, &forward.per_row, &pick(|row| row.loss)),
        ("log-sum-exp", &found.log_sum_exp, &forward.log_sum_exp, &pick(|row| row.logs[0])),
        (
            "log-sum-exp of the teacher",
            &found.teacher_log_sum_exp,
            &forward.teacher_log_sum_exp,
            &pick(|row| row.logs[1]),
        ),
        ("gradient of the queries", &found.queries, &of_queries, &queries),
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
