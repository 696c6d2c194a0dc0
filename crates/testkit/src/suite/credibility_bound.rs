//! How far credibility may be from the definition in f64.
//!
//! Bounds are those of soft_bound.rs. A scale that is estimated is a median of variances of distances that err by e₀ each: 1/σ by
//! 4 e₀ / σ + 8 u of itself, 1/v by 8 e₀ √v / v + 8 u, and so does a score. ln of the odds between two sums errs by both
//! their bounds; suspicion = ln(1 + odds) and p = 1 / (1 + odds) by no more.

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_cpu::credibility::Scale;
use consonance_reference::credibility::{self as reference, Scale as Defined};
use consonance_reference::soft_assignment::{Affinity, log_sum_exp};

use super::soft_bound::{Metric, Row, U, compared, norm};
use crate::backend::CredibilityCase;

fn defined(scale: Scale) -> Defined {
    match scale {
        Scale::SharedDeviation => Defined::SharedDeviation,
        Scale::SharedVariance => Defined::SharedVariance,
        Scale::ClassVariance { floor } => Defined::ClassVariance(floor),
        Scale::Exponential { rate } => Defined::Exponential(rate),
        Scale::Gaussian { sigma } => Defined::Gaussian(sigma),
        _ => panic!("a scale without a definition"),
    }
}

pub(super) fn truth(case: &CredibilityCase) -> reference::Credibility {
    let groups = case.clusters.as_ref().map_or(&case.labels, |(assignment, _)| assignment);
    reference::of_groups(
        (&case.points.wide(), case.points.cols()),
        &case.labels,
        groups,
        case.geometry == Geometry::Spherical,
        case.leave_one_out,
        defined(case.scale),
        case.nearest,
    )
}

/// The rows of a case with the errors of their scores.
pub(super) struct Scored {
    pub(super) rows: Vec<Row>,
    pub(super) truth: reference::Credibility,
    /// Of the centroids.
    pub(super) labels: Vec<u32>,
}

impl Scored {
    /// Scores come from the definition; their errors from distances d = |s| / rate of a distance to a mean of rows.
    pub(super) fn new(case: &CredibilityCase) -> Self {
        let truth = truth(case);
        let (dim, dtype) = (case.points.cols(), case.points.dtype());
        let points = compared(case.points.wide(), dim, case.geometry);
        let largest = points.chunks_exact(dim).map(norm).fold(0.0, f64::max);
        let groups = case.clusters.as_ref().map_or(&case.labels, |(assignment, _)| assignment);
        let mut numbers = groups.clone();
        numbers.sort_unstable();
        numbers.dedup();
        let labels = numbers
            .iter()
            .map(|g| case.labels[groups.iter().position(|other| other == g).unwrap_or(0)])
            .collect();
        // f32 centroids for points of any type.
        let metric = Metric::new(dtype, DType::F32, dim);
        let rates = rates(case, &truth);
        let noise = 2.0 * U * 2.0 * largest;
        let squares = matches!(case.scale, Scale::Gaussian { .. });
        let rows = points
            .chunks_exact(dim)
            .zip(&truth.scores)
            .map(|(x, scores)| {
                let squared: Vec<f64> = scores
                    .iter()
                    .zip(&rates)
                    .map(|(s, rate)| if squares { -s / rate } else { (s / rate).powi(2) })
                    .collect();
                let norms = vec![norm(x) + largest; scores.len()];
                let affinity = if squares {
                    Affinity::ScaledGaussian(rates.iter().map(|rate| (0.5 / rate).sqrt()).collect())
                } else {
                    Affinity::Scaled(rates.iter().map(|rate| 1.0 / rate).collect())
                };
                let mut row = Row::new(&squared, &norms, &affinity, metric);
                for ((error, s), rate) in row.errors.iter_mut().zip(scores).zip(&rates) {
                    let scale = match case.scale {
                        Scale::SharedDeviation => 4.0 * noise * rate,
                        Scale::SharedVariance | Scale::ClassVariance { .. } => 8.0 * noise * rate.sqrt(),
                        _ => 0.0,
                    };
                    if s.is_finite() {
                        *error += s.abs() * (scale + 8.0 * U);
                    } else {
                        *error = 0.0;
                    }
                }
                row.scores.clone_from(scores);
                row
            })
            .collect();
        Self { rows, truth, labels }
    }

    /// The scores of a row's own class, or of the others.
    fn part(&self, i: usize, label: u32, own: bool) -> Row {
        let row = &self.rows[i];
        let scores = row
            .scores
            .iter()
            .zip(&self.labels)
            .map(|(s, l)| if (*l == label) == own { *s } else { f64::NEG_INFINITY });
        Row { scores: scores.collect(), errors: row.errors.clone() }
    }

    pub(super) fn odds_bound(&self, i: usize, label: u32) -> f64 {
        let (own, others) = (self.part(i, label, true), self.part(i, label, false));
        let of =
            |row: &Row| if log_sum_exp(&row.scores).is_finite() { row.bounds().log_sum_exp } else { 0.0 };
        of(&own) + of(&others) + 8.0 * U
    }
}

/// The rate of every centroid: of a score −rate d or −rate d², by two scores of some rows.
fn rates(case: &CredibilityCase, truth: &reference::Credibility) -> Vec<f64> {
    match case.scale {
        Scale::Exponential { rate } => vec![rate; truth.scores[0].len()],
        Scale::Gaussian { sigma } => vec![0.5 / (sigma * sigma); truth.scores[0].len()],
        _ => {
            // Another scale leaves the distances alone: s = −d at rate 1.
            let at_one = reference::of_groups(
                (&case.points.wide(), case.points.cols()),
                &case.labels,
                case.clusters.as_ref().map_or(&case.labels, |(assignment, _)| assignment),
                case.geometry == Geometry::Spherical,
                case.leave_one_out,
                Defined::Exponential(1.0),
                None,
            );
            let (n, k) = (truth.scores.len(), truth.scores[0].len());
            (0..k)
                .map(|k| {
                    let i = (0..n)
                        .find(|i| at_one.scores[*i][k].is_finite() && at_one.scores[*i][k] < 0.0)
                        .unwrap_or(0);
                    truth.scores[i][k] / at_one.scores[i][k]
                })
                .collect()
        }
    }
}
