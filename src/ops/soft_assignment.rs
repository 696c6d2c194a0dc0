//! Soft assignment of points to centroids, with its entropy, and the soft update of centroids.

use candle_core::{DType, Device, Tensor};
use consonance_cpu::{
    clusters::Geometry,
    soft_assignment::{self as backend, Affinity},
};

use super::{clusters::refuse_tracked, place::Place, view::Matrix};
use crate::{Result, cuda::soft_assignment as cuda};

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

    fn backend(&self) -> backend::Options<'_> {
        let affinity = match &self.affinity {
            SoftAffinity::Exponential { rate } => Affinity::Exponential { rate: *rate },
            SoftAffinity::Scaled(scales) => Affinity::Scaled(scales),
            SoftAffinity::Gaussian { sigma } => Affinity::Gaussian { sigma: *sigma },
            SoftAffinity::ScaledGaussian(sigmas) => Affinity::ScaledGaussian(sigmas),
        };
        backend::Options { geometry: self.geometry, affinity, nearest: self.nearest }
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
/// - `points`: f32, f16 or bf16 `[N, D]`; `centroids`: f32, f16 or bf16 `[K, D]`, also of another type; any strides; on the CPU
///   or, by kernels, on a CUDA device.
///
/// Streams the centroids (running maximum, H = ln Z − S₁/Z): no N × K memory. The results are constants, on the device of the
/// points. On a CUDA device m is at most 1,024.
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
    if let Some(place) = Place::of(OP, "points", points)? {
        let (points, centroids) =
            (place.matrix(OP, "points", points)?, place.matrix(OP, "centroids", centroids)?);
        let n = points.matrix().rows();
        let found = cuda::soft_assignment(
            place.executor(),
            &points.matrix(),
            &centroids.matrix(),
            &options.backend(),
        )?;
        return on_device(&place, OP, found, n);
    }
    let points = Matrix::new(OP, "points", points)?;
    let centroids = Matrix::new(OP, "centroids", centroids)?;
    let found =
        backend::soft_assignment(points.lock().rows()?, centroids.lock().rows()?, &options.backend())?;
    on_cpu(found)
}

fn on_cpu(found: backend::SoftAssignment) -> Result<SoftAssignment> {
    let (n, m, device) = (found.best.len(), found.width, &Device::Cpu);
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

fn on_device(place: &Place, op: &'static str, found: cuda::Found, n: usize) -> Result<SoftAssignment> {
    found.check(place.executor())?;
    let width = found.width;
    let nearest = match found.nearest {
        Some((indices, probabilities)) => Some((
            place.tensor(op, indices, DType::U32, (n, width))?,
            place.tensor(op, probabilities, DType::F32, (n, width))?,
        )),
        None => None,
    };
    Ok(SoftAssignment {
        log_sum_exp: place.list(op, found.log_sum_exp, DType::F32, n)?,
        entropy: place.list(op, found.entropy, DType::F32, n)?,
        best: place.list(op, found.best, DType::U32, n)?,
        best_probability: place.list(op, found.best_probability, DType::F32, n)?,
        nearest,
    })
}

/// Centroids after a soft update.
#[derive(Debug, Clone)]
pub struct SoftCentroids {
    /// f32 `[K, D]`; unit rows on the sphere.
    pub centroids: Tensor,
    /// f32 `[K]`: Σ_i r_ik.
    pub mass: Tensor,
    /// The assignment whose responsibilities moved them.
    pub assignment: SoftAssignment,
}

/// Every centroid moves to the mean of all points, weighed by their responsibilities r_ik = e^{s_ik − lse_i}; on the sphere to
/// the direction of Σ_i r_ik x_i/‖x_i‖. One of mass 0, or whose points have no common direction, stays.
///
/// - `points`: f32, f16 or bf16 `[N, D]`; `centroids`: f32, f16 or bf16 `[K, D]`, also of another type; any strides; on the CPU
///   or, by kernels, on a CUDA device.
///
/// With a Gaussian affinity that is the step of the means in expectation maximization for a mixture of equal weights and
/// fixed widths (Dempster, Laird, Rubin 1977; "soft k-means", MacKay 2003), on the sphere for one of von Mises–Fisher
/// distributions (Banerjee, Dhillon, Ghosh, Sra 2005). No N × K memory. The results are constants.
///
/// # Errors
/// As [`soft_assignment`]; also when only the nearest centroids are to count.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use consonance::{Geometry, SoftAffinity, SoftAssignmentOptions, soft_centroids};
///
/// # fn main() -> consonance::Result<()> {
/// let points = Tensor::new(&[[0f32, 0.], [1., 0.], [8., 8.], [9., 8.]], &Device::Cpu)?;
/// let start = Tensor::new(&[[1f32, 1.], [7., 7.]], &Device::Cpu)?;
/// let options = SoftAssignmentOptions::new(SoftAffinity::Gaussian { sigma: 0.5 }).with_geometry(Geometry::Euclidean);
/// let moved = soft_centroids(&points, &start, &options)?;
/// assert_eq!(moved.centroids.to_vec2::<f32>()?, [[0.5, 0.], [8.5, 8.]]);
/// # Ok(())
/// # }
/// ```
pub fn soft_centroids(
    points: &Tensor,
    centroids: &Tensor,
    options: &SoftAssignmentOptions,
) -> Result<SoftCentroids> {
    const OP: &str = "soft_centroids";
    refuse_tracked(OP, "points", points)?;
    refuse_tracked(OP, "centroids", centroids)?;
    if let Some(place) = Place::of(OP, "points", points)? {
        let (points, centroids) =
            (place.matrix(OP, "points", points)?, place.matrix(OP, "centroids", centroids)?);
        let (points, centroids) = (points.matrix(), centroids.matrix());
        let moved = cuda::soft_centroids(place.executor(), &points, &centroids, &options.backend())?;
        return Ok(SoftCentroids {
            assignment: on_device(&place, OP, moved.assignment, points.rows())?,
            centroids: place.tensor(OP, moved.centroids, DType::F32, (centroids.rows(), centroids.cols()))?,
            mass: place.list(OP, moved.mass, DType::F32, centroids.rows())?,
        });
    }
    let points = Matrix::new(OP, "points", points)?;
    let centroids = Matrix::new(OP, "centroids", centroids)?;
    let moved = backend::soft_centroids(points.lock().rows()?, centroids.lock().rows()?, &options.backend())?;
    let k = moved.mass.len();
    let d = moved.centroids.len() / k;
    Ok(SoftCentroids {
        centroids: Tensor::from_vec(moved.centroids, (k, d), &Device::Cpu)?,
        mass: Tensor::from_vec(moved.mass, k, &Device::Cpu)?,
        assignment: on_cpu(moved.assignment)?,
    })
}
