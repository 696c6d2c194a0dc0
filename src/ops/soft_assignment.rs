//! Soft assignment of points to centroids, with its entropy.

use candle_core::{Device, Tensor};
use consonance_cpu::{
    clusters::Geometry,
    soft_assignment::{self as backend, Affinity},
};

use super::{clusters::refuse_tracked, view::Matrix};
use crate::Result;

const OP: &str = "soft_assignment";

/// The score s_k of a centroid at distance d_k; probabilities are p_k ∝ e^{s_k}.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SoftAffinity {
    /// s = −rate·d.
    Exponential {
        /// β > 0.
        rate: f64,
    },
    /// s_k = −d/scale_k, one scale per centroid.
    Scaled(Vec<f64>),
    /// s = −d²/(2σ²); on unit rows the softmax of cos/τ with τ = σ².
    Gaussian {
        /// σ > 0.
        sigma: f64,
    },
    /// s_k = −d²/(2σ_k²), one σ per centroid: a mixture of Gaussians.
    ScaledGaussian(Vec<f64>),
}

/// The choices of [`soft_assignment`].
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct SoftAssignmentOptions {
    /// Euclidean, or unit rows and centroids (the default).
    pub geometry: Geometry,
    /// The scores.
    pub affinity: SoftAffinity,
    /// Only the m nearest centroids of each row count (all when m exceeds their number), or all.
    pub nearest: Option<usize>,
}

impl SoftAssignmentOptions {
    /// Spherical, over all centroids.
    pub fn new(affinity: SoftAffinity) -> Self {
        Self { geometry: Geometry::Spherical, affinity, nearest: None }
    }

    /// Sets the distance.
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// Lets only the m nearest centroids of each row count.
    pub fn with_nearest(mut self, nearest: usize) -> Self {
        self.nearest = Some(nearest);
        self
    }
}

/// Soft assignment of `N` points to `K` centroids.
#[derive(Debug, Clone)]
pub struct SoftAssignment {
    /// f32 `[N]`: ln Σ_k e^{s_k}.
    pub log_sum_exp: Tensor,
    /// f32 `[N]`: H = −Σ p ln p, in nats.
    pub entropy: Tensor,
    /// u32 `[N]`: the most probable centroid, ties to the smaller index.
    pub best: Tensor,
    /// f32 `[N]`: its probability.
    pub best_probability: Tensor,
    /// With the m nearest: u32 `[N, m]` centroids by (distance, index) ascending, and f32 `[N, m]` their
    /// probabilities.
    pub nearest: Option<(Tensor, Tensor)>,
}

/// p_ik ∝ e^{s_ik} over all centroids, or over the m nearest, with its entropy.
///
/// - `points`: f32, f16 or bf16 `[N, D]`; `centroids`: f32, f16 or bf16 `[K, D]`; on the CPU, any strides.
///
/// Streams the centroids (running maximum, H = ln Z − S₁/Z): no N × K memory. The results are constants.
///
/// # Errors
/// [`crate::Error::NotDifferentiable`] when an input is tracked; [`crate::Error::DType`],
/// [`crate::Error::Device`], [`crate::Error::Rank`]; [`crate::Error::Argument`] for empty inputs, shapes that do
/// not fit, rates, scales or an m that are not positive, rows that are not finite, and rows of norm zero on the
/// sphere.
pub fn soft_assignment(
    points: &Tensor,
    centroids: &Tensor,
    options: &SoftAssignmentOptions,
) -> Result<SoftAssignment> {
    refuse_tracked(OP, "points", points)?;
    refuse_tracked(OP, "centroids", centroids)?;
    let points = Matrix::new(OP, "points", points)?;
    let centroids = Matrix::new(OP, "centroids", centroids)?;
    let affinity = match &options.affinity {
        SoftAffinity::Exponential { rate } => Affinity::Exponential { rate: *rate },
        SoftAffinity::Scaled(scales) => Affinity::Scaled(scales),
        SoftAffinity::Gaussian { sigma } => Affinity::Gaussian { sigma: *sigma },
        SoftAffinity::ScaledGaussian(sigmas) => Affinity::ScaledGaussian(sigmas),
    };
    let found = backend::soft_assignment(
        points.lock().rows()?,
        centroids.lock().rows()?,
        &backend::Options { geometry: options.geometry, affinity, nearest: options.nearest },
    )?;
    let (n, m, device) = (points.rows(), found.width, &Device::Cpu);
    let nearest = match m {
        0 => None,
        _ => Some((
            Tensor::from_vec(found.indices, (n, m), device)?,
            Tensor::from_vec(found.probabilities, (n, m), device)?,
        )),
    };
    Ok(SoftAssignment {
        log_sum_exp: Tensor::from_vec(found.log_sum_exp, n, device)?,
        entropy: Tensor::from_vec(found.entropy, n, device)?,
        best: Tensor::from_vec(found.best, n, device)?,
        best_probability: Tensor::from_vec(found.best_probability, n, device)?,
        nearest,
    })
}
