//! Credibility of labeled rows, and how each backend finds it.

use consonance::cuda::credibility as cuda;
use consonance::cuda::{Executor, Result};
use consonance_cpu::clusters::Geometry;
use consonance_cpu::credibility::{self as cpu, Centers, Credibility, Rule, Scale};

use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Labeled rows, and what makes them credible.
#[derive(Debug, Clone)]
pub struct CredibilityCase {
    /// `[N, D]`.
    pub points: Stored,
    /// `[N]`.
    pub labels: Vec<u32>,
    /// Sub-clusters of the rows, and where those of each class start.
    pub clusters: Option<(Vec<u32>, Vec<usize>)>,
    /// As they are, or directions.
    pub geometry: Geometry,
    /// Whether a row is left out of its own centroid.
    pub leave_one_out: bool,
    /// How distances become scores.
    pub scale: Scale,
    /// The entropy over the m nearest, or over all.
    pub nearest: Option<usize>,
    /// Which rows are believed.
    pub rule: Rule,
    /// Whether the most probable centroid must be of the row's class.
    pub reject_other_class: bool,
}

impl CredibilityCase {
    /// The default options.
    pub fn new(points: Stored, labels: Vec<u32>) -> Self {
        let cpu::Options { geometry, leave_one_out, scale, nearest, rule, reject_other_class, .. } =
            cpu::Options::default();
        Self {
            points,
            labels,
            clusters: None,
            geometry,
            leave_one_out,
            scale,
            nearest,
            rule,
            reject_other_class,
        }
    }

    /// The options as the backends take them.
    pub fn options(&self) -> cpu::Options<'_> {
        cpu::Options {
            centers: match &self.clusters {
                Some((assignment, offsets)) => Centers::SubClusters { assignment, offsets },
                None => Centers::Classes,
            },
            geometry: self.geometry,
            leave_one_out: self.leave_one_out,
            scale: self.scale,
            nearest: self.nearest,
            rule: self.rule,
            reject_other_class: self.reject_other_class,
        }
    }
}

impl Cpu {
    pub(super) fn credibility_of(case: &CredibilityCase) -> std::result::Result<Credibility, String> {
        let found = case.points.with_rows(|points| cpu::credibility(points?, &case.labels, &case.options()));
        found.map_err(|error| error.to_string())
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn credibility_of(&self, case: &CredibilityCase) -> Result<Credibility> {
        let memory = self.executor().upload(OP, &case.points.bytes())?;
        let points = self.matrix(&case.points, &memory)?;
        let found = cuda::credibility(self.executor(), &points, &case.labels, &case.options())?;
        let n = points.rows();
        Ok(Credibility {
            credible: self.words(&found.credible, n)?,
            entropy: self.words(&found.entropy, n)?,
            own_probability: self.words(&found.own_probability, n)?,
            suspicion: self.words(&found.suspicion, n)?,
            margin: self.words(&found.margin, n)?,
            closer: self.words(&found.closer, n)?,
            predicted: self.words(&found.predicted, n)?,
            entropy_limit: found.limits.entropy,
            suspicion_limit: found.limits.suspicion,
        })
    }
}
