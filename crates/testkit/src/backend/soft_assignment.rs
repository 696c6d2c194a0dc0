//! Soft assignments, soft updates of centroids, and how each backend makes them.

use consonance::cuda::soft_assignment as cuda;
use consonance::cuda::{Executor, Result};
use consonance_cpu::clusters::Geometry;
use consonance_cpu::soft_assignment as cpu;
use consonance_reference::soft_assignment::Affinity;

use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Points, centroids, and how distances become probabilities.
#[derive(Debug, Clone)]
pub struct SoftCase {
    /// `[N, D]`.
    pub points: Stored,
    /// `[K, D]`.
    pub centroids: Stored,
    /// As they are, or unit rows.
    pub geometry: Geometry,
    /// The scores.
    pub affinity: Affinity,
    /// The m nearest, or all.
    pub nearest: Option<usize>,
}

impl SoftCase {
    /// The options as the backends take them.
    pub fn options(&self) -> cpu::Options<'_> {
        let affinity = match &self.affinity {
            Affinity::Exponential(rate) => cpu::Affinity::Exponential { rate: *rate },
            Affinity::Scaled(scales) => cpu::Affinity::Scaled(scales),
            Affinity::Gaussian(sigma) => cpu::Affinity::Gaussian { sigma: *sigma },
            Affinity::ScaledGaussian(sigmas) => cpu::Affinity::ScaledGaussian(sigmas),
        };
        cpu::Options { geometry: self.geometry, affinity, nearest: self.nearest }
    }
}

impl Cpu {
    pub(super) fn soft_assignment_of(case: &SoftCase) -> std::result::Result<cpu::SoftAssignment, String> {
        let found = case.points.with_rows(|points| {
            case.centroids.with_rows(|centroids| cpu::soft_assignment(points?, centroids?, &case.options()))
        });
        found.map_err(|error| error.to_string())
    }

    pub(super) fn soft_centroids_of(case: &SoftCase) -> std::result::Result<cpu::SoftCentroids, String> {
        let found = case.points.with_rows(|points| {
            case.centroids.with_rows(|centroids| cpu::soft_centroids(points?, centroids?, &case.options()))
        });
        found.map_err(|error| error.to_string())
    }
}

impl<E: Executor> OnDevice<E> {
    fn assignment(&self, found: &cuda::Found, n: usize) -> Result<cpu::SoftAssignment> {
        found.check(self.executor())?;
        let (indices, probabilities) = match &found.nearest {
            Some((indices, probabilities)) => {
                (self.words(indices, n * found.width)?, self.words(probabilities, n * found.width)?)
            }
            None => (Vec::new(), Vec::new()),
        };
        Ok(cpu::SoftAssignment {
            log_sum_exp: self.words(&found.log_sum_exp, n)?,
            entropy: self.words(&found.entropy, n)?,
            best: self.words(&found.best, n)?,
            best_probability: self.words(&found.best_probability, n)?,
            width: found.width,
            indices,
            probabilities,
        })
    }

    pub(super) fn soft_assignment_of(&self, case: &SoftCase) -> Result<cpu::SoftAssignment> {
        let points = self.executor().upload(OP, &case.points.bytes())?;
        let centroids = self.executor().upload(OP, &case.centroids.bytes())?;
        let (points, centroids) =
            (self.matrix(&case.points, &points)?, self.matrix(&case.centroids, &centroids)?);
        let found = cuda::soft_assignment(self.executor(), &points, &centroids, &case.options())?;
        self.assignment(&found, points.rows())
    }

    pub(super) fn soft_centroids_of(&self, case: &SoftCase) -> Result<cpu::SoftCentroids> {
        let points = self.executor().upload(OP, &case.points.bytes())?;
        let centroids = self.executor().upload(OP, &case.centroids.bytes())?;
        let (points, centroids) =
            (self.matrix(&case.points, &points)?, self.matrix(&case.centroids, &centroids)?);
        let moved = cuda::soft_centroids(self.executor(), &points, &centroids, &case.options())?;
        let k = centroids.rows();
        Ok(cpu::SoftCentroids {
            centroids: self.words(&moved.centroids, k * centroids.cols())?,
            mass: self.words(&moved.mass, k)?,
            assignment: self.assignment(&moved.assignment, points.rows())?,
        })
    }
}
