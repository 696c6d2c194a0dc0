//! How far a soft assignment may be from the definition in f64, and soft centroids and credibility with it.
//!
//! u = 2⁻²⁴; |x|, |c| norms of the rows as they are compared (1 for directions). A backend's squared distance comes from the product
//! where d² ≥ ¼ (|x|² + |c|²) on the kernels, 1/64 on the CPU, and from the differences elsewhere.
//!
//! * Product, of |x||c| ≤ ½ (|x|² + |c|²): bfloat16 parts leave out 3.1 · 2⁻¹⁶ (f32 points; split centroids less), the tensor
//!   core's sum of D' products (of split centroids twice D rounded up to 64) errs by (D' + 16) 2⁻²² (kernels/include/bound.cuh); the
//!   norms, the scales and the fused sum by 8 u of |x|² + |c|². Relative to d² on the kernels four times the sum of these, on the CPU
//!   64 (D + 8) u: ρ is the larger.
//! * Differences: (D + 8) u of d², which is less. Rounding of the rows as they are compared (a scale, a product; a centroid
//!   that is a mean): e₀ = 2 u (|x| + |c|) of d.
//! * d errs by e = ½ ρ d + e₀, the score by δ_k = rate (e) or rate (2 d e + e²), and 4 u |s_k|. The exponent of e^(s − m) rounds by
//!   3 u |s_k − m| and 2^x by 4 u, in δ_k as well.
//! * Sums: 16 terms, and at each of K / 64 tiles, 8 splits and 5 joins one sum and one factor, whose exponents grow to the range R
//!   of the scores in all: ε = 16 u + 7 (K / 64 + 13) u + 4 u R.
//! * lse lies between those of s ± δ; ε and 4 u (|lse| + ln K + 1) more: ε_l.
//! * H: |∂H/∂s_k| = p_k |ln p_k + H|: twice Σ of that times δ_k, for the second order, and (2 ε + 8 u)(1 + H + ln K).
//! * p: p (δ_k + ε_l + ε + 8 u).

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_reference::clusters::{squared_distance, unit_rows};
use consonance_reference::soft_assignment::{self as reference, Affinity};

use crate::backend::SoftCase;

pub(super) const U: f64 = 1.0 / 16_777_216.0;

pub(super) fn norm(x: &[f64]) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The rows as they are compared.
pub(super) fn compared(rows: Vec<f64>, dim: usize, geometry: Geometry) -> Vec<f64> {
    if geometry == Geometry::Spherical { unit_rows(&rows, dim) } else { rows }
}

/// The error of squared distances: a share ρ of d² and what a distance loses besides, for each unit of |x| + |c|.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    rho: f64,
}

impl Metric {
    pub(super) fn new(points: DType, centroids: DType, dim: usize) -> Self {
        let left_out = if points == centroids && points != DType::F32 { 0.0 } else { 3.1 / 65_536.0 };
        let terms = (2 * dim.next_multiple_of(64) + 16) as f64;
        let kernels = 4.0 * (left_out + 4.0 * terms * U + 8.0 * U);
        Self { rho: kernels.max(64.0 * (dim + 8) as f64 * U) }
    }

    /// Of a distance between rows of these norms.
    pub(super) fn distance(self, d: f64, norms: f64) -> f64 {
        0.5 * self.rho * d + 2.0 * U * norms
    }
}

/// The scores of one row with the error of each; −∞ is out.
pub(super) struct Row {
    pub(super) scores: Vec<f64>,
    pub(super) errors: Vec<f64>,
}

pub(super) struct Bounds {
    pub(super) log_sum_exp: f64,
    pub(super) entropy: f64,
    pub(super) sums: f64,
}

impl Row {
    /// From squared distances; `norms` is |x| + |c| of each.
    pub(super) fn new(squared: &[f64], norms: &[f64], affinity: &Affinity, metric: Metric) -> Self {
        let scores: Vec<f64> = squared.iter().enumerate().map(|(k, s)| affinity.score(k, *s)).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let errors = squared
            .iter()
            .zip(norms)
            .zip(&scores)
            .enumerate()
            .map(|(k, ((squared, norms), s))| {
                let e = metric.distance(squared.sqrt(), *norms);
                let rate = -affinity.score(k, 1.0);
                let falls_with_square =
                    matches!(affinity, Affinity::Gaussian(_) | Affinity::ScaledGaussian(_));
                let moved = if falls_with_square { 2.0 * squared.sqrt() * e + e * e } else { e };
                rate * moved + 4.0 * U * s.abs() + 3.0 * U * (top - s) + 4.0 * U
            })
            .collect();
        Self { scores, errors }
    }

    pub(super) fn log_sum_exp(&self) -> f64 {
        reference::log_sum_exp(&self.scores)
    }

    pub(super) fn entropy(&self) -> f64 {
        reference::entropy(&self.scores)
    }

    pub(super) fn bounds(&self) -> Bounds {
        let k = self.scores.iter().filter(|s| s.is_finite()).count() as f64;
        let moved = |sign: f64| -> f64 {
            let moved: Vec<f64> = self.scores.iter().zip(&self.errors).map(|(s, e)| s + sign * e).collect();
            (reference::log_sum_exp(&moved) - self.log_sum_exp()).abs()
        };
        let finite = || self.scores.iter().copied().filter(|s| s.is_finite());
        let range = finite().fold(f64::NEG_INFINITY, f64::max) - finite().fold(f64::INFINITY, f64::min);
        let sums = 16.0 * U + 7.0 * (k / 64.0 + 13.0) * U + 4.0 * U * range;
        let (lse, h) = (self.log_sum_exp(), self.entropy());
        let slope: f64 = self
            .scores
            .iter()
            .zip(&self.errors)
            .filter(|(s, _)| s.is_finite())
            .map(|(s, e)| (s - lse).exp() * ((s - lse) + h).abs() * e)
            .sum();
        Bounds {
            log_sum_exp: moved(1.0).max(moved(-1.0)) + sums + 4.0 * U * (lse.abs() + k.ln() + 1.0),
            entropy: 2.0 * slope + (2.0 * sums + 8.0 * U) * (1.0 + h + k.ln()),
            sums,
        }
    }

    /// The bound of a centroid's probability.
    pub(super) fn probability(&self, k: usize, bounds: &Bounds) -> f64 {
        let p = (self.scores[k] - self.log_sum_exp()).exp();
        p * (self.errors[k] + bounds.log_sum_exp + bounds.sums + 8.0 * U)
    }
}

/// Every row of a case against the definition, over all centroids.
pub(super) struct Truth {
    pub(super) points: Vec<f64>,
    pub(super) centroids: Vec<f64>,
    pub(super) dim: usize,
    pub(super) squared: Vec<Vec<f64>>,
    pub(super) rows: Vec<Row>,
    pub(super) metric: Metric,
}

impl Truth {
    pub(super) fn new(case: &SoftCase) -> Self {
        let dim = case.points.cols();
        let points = compared(case.points.wide(), dim, case.geometry);
        let centroids = compared(case.centroids.wide(), dim, case.geometry);
        let metric = Metric::new(case.points.dtype(), case.centroids.dtype(), dim);
        let squared: Vec<Vec<f64>> = points
            .chunks_exact(dim)
            .map(|x| centroids.chunks_exact(dim).map(|c| squared_distance(x, c)).collect())
            .collect();
        let rows = points
            .chunks_exact(dim)
            .zip(&squared)
            .map(|(x, squared)| {
                let norms: Vec<f64> = centroids.chunks_exact(dim).map(|c| norm(x) + norm(c)).collect();
                Row::new(squared, &norms, &case.affinity, metric)
            })
            .collect();
        Self { points, centroids, dim, squared, rows, metric }
    }

    /// Row `i` with only the listed centroids.
    pub(super) fn only(&self, i: usize, listed: &[u32]) -> Row {
        let row = &self.rows[i];
        let keep = |k: usize| listed.contains(&(k as u32));
        Row {
            scores: (0..row.scores.len())
                .map(|k| if keep(k) { row.scores[k] } else { f64::NEG_INFINITY })
                .collect(),
            errors: row.errors.clone(),
        }
    }
}
