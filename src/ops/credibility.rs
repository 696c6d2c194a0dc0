//! Which labeled embeddings deserve belief.

use candle_core::{DType, Device, Tensor};
use consonance_cpu::{
    clusters::Geometry,
    credibility::{self as backend, Centers, Rule, Scale},
};

use super::{
    clusters::{SubClusters, refuse_tracked},
    place::Place,
    view::{self, Matrix},
};
use crate::{Result, cuda};

const OP: &str = "credibility";

/// The choices of [`credibility`].
#[derive(Debug, Clone)]
#[must_use]
pub struct CredibilityOptions {
    /// Sub-clusters of the same rows and labels whose means serve as centroids; class means when `None`.
    pub sub_clusters: Option<SubClusters>,
    /// Rows and means as they are, or both as directions (the default).
    pub geometry: Geometry,
    /// Leaves a row out of the centroid that it belongs to (the default).
    pub leave_one_out: bool,
    /// How distances become scores; by default −d/σ with one σ for all.
    pub scale: Scale,
    /// The entropy over the m nearest centroids only, or over all (the default).
    pub nearest: Option<usize>,
    /// Which rows are believed; by default those with −ln p_own ≤ 0.9 ln C.
    pub rule: Rule,
    /// Also refuses rows whose most probable centroid belongs to another class (off).
    pub reject_other_class: bool,
}

impl Default for CredibilityOptions {
    fn default() -> Self {
        Self::from_backend(backend::Options::default())
    }
}

impl CredibilityOptions {
    /// The defaults, which found planted label noise best in the measurements of docs/clusters.md.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rule as published for neighborhood consensus (Wu et al., AAAI 2022): plain class means, each class's
    /// variance as its scale with the median as the floor, H ≤ ½ ln K.
    pub fn published() -> Self {
        Self::from_backend(backend::Options::published())
    }

    fn from_backend(options: backend::Options<'_>) -> Self {
        Self {
            sub_clusters: None,
            geometry: options.geometry,
            leave_one_out: options.leave_one_out,
            scale: options.scale,
            nearest: options.nearest,
            rule: options.rule,
            reject_other_class: options.reject_other_class,
        }
    }

    /// Takes the means of sub-clusters in place of class means.
    pub fn with_sub_clusters(mut self, clusters: &SubClusters) -> Self {
        self.sub_clusters = Some(clusters.clone());
        self
    }

    /// Sets the distance.
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// Leaves a row out of its own centroid, or not.
    pub fn with_leave_one_out(mut self, leave_one_out: bool) -> Self {
        self.leave_one_out = leave_one_out;
        self
    }

    /// Sets the scale.
    pub fn with_scale(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }

    /// Takes the entropy over the m nearest centroids.
    pub fn with_nearest(mut self, nearest: usize) -> Self {
        self.nearest = Some(nearest);
        self
    }

    /// Sets the rule.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Refuses rows whose most probable centroid belongs to another class, or not.
    pub fn with_reject_other_class(mut self, reject: bool) -> Self {
        self.reject_other_class = reject;
        self
    }
}

/// What is known of each of `N` rows.
#[derive(Debug, Clone)]
pub struct Credibility {
    /// u8 `[N]`: 1 where the row is believed.
    pub credible: Tensor,
    /// f32 `[N]`: H in nats, over all centroids or the m nearest.
    pub entropy: Tensor,
    /// f32 `[N]`: p of the row's own class.
    pub own_probability: Tensor,
    /// f32 `[N]`: −ln of that; ranks rows, the least credible highest.
    pub suspicion: Tensor,
    /// f32 `[N]`: the distance to the nearest own centroid less that to the nearest other one.
    pub margin: Tensor,
    /// u32 `[N]`: how many centroids of other classes are nearer than the own ones.
    pub closer: Tensor,
    /// u32 `[N]`: the label of the class of the most probable centroid.
    pub predicted: Tensor,
    /// The limit that H was compared with, when the rule has one.
    pub entropy_limit: Option<f64>,
    /// The limit that `suspicion` was compared with, when the rule has one.
    pub suspicion_limit: Option<f64>,
}

/// The credibility of every labeled row among the centroids of all classes.
///
/// - `points`: f32, f16 or bf16 `[N, D]`, any strides, on the CPU or, by kernels, on a CUDA device;
/// - `labels`: u32 or i64 `[N]`, in any order, gaps allowed, on any device: they are read on the host.
///
/// p_ik ∝ e^{s_ik} over all centroids, H_i its entropy, and −ln p of the own class as `suspicion`, with the row
/// left out of its own centroid. Entropy finds rows between classes; only the own probability finds a row that
/// sits squarely in a wrong class, as label noise does. Streams the centroids: O(N + K·D) memory. The results are
/// constants, on the device of the points; on a CUDA device the m nearest are at most 1,024.
///
/// # Errors
/// [`crate::Error::NotDifferentiable`] when `points` is tracked; [`crate::Error::DType`],
/// [`crate::Error::Device`], [`crate::Error::Rank`]; [`crate::Error::Argument`] for empty points, labels or
/// sub-clusters that do not fit, scales or limits out of range, rows that are not finite, and rows of norm zero
/// with directions.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use consonance::{CredibilityOptions, credibility};
///
/// # fn main() -> consonance::Result<()> {
/// let points = Tensor::new(&[[1f32, 0.1], [1., 0.], [1., -0.1], [0., 1.], [0.1, 1.], [-0.1, 1.]], &Device::Cpu)?;
/// let labels = Tensor::new(&[7u32, 7, 9, 9, 9, 9], &Device::Cpu)?; // the third row is mislabeled
/// let found = credibility(&points, &labels, &CredibilityOptions::new())?;
/// assert_eq!(found.credible.to_vec1::<u8>()?, [1, 1, 0, 1, 1, 1]);
/// # Ok(())
/// # }
/// ```
pub fn credibility(points: &Tensor, labels: &Tensor, options: &CredibilityOptions) -> Result<Credibility> {
    refuse_tracked(OP, "points", points)?;
    let place = Place::of(OP, "points", points)?;
    let n = view::matrix(OP, "points", points)?.0.dims()[0];
    let host = |argument, tensor: &Tensor| view::labels(OP, argument, &tensor.to_device(&Device::Cpu)?, n);
    let labels = host("labels", labels)?;
    let assignment = match &options.sub_clusters {
        Some(clusters) => Some(host("assignment", &clusters.assignment)?),
        None => None,
    };
    let centers = match (&options.sub_clusters, &assignment) {
        (Some(clusters), Some(assignment)) => Centers::SubClusters { assignment, offsets: &clusters.offsets },
        _ => Centers::Classes,
    };
    let options = backend::Options {
        centers,
        geometry: options.geometry,
        leave_one_out: options.leave_one_out,
        scale: options.scale,
        nearest: options.nearest,
        rule: options.rule,
        reject_other_class: options.reject_other_class,
    };
    if let Some(place) = place {
        let points = place.matrix(OP, "points", points)?;
        let found = cuda::credibility::credibility(place.executor(), &points.matrix(), &labels, &options)?;
        return Ok(Credibility {
            credible: place.list(OP, found.credible, DType::U8, n)?,
            entropy: place.list(OP, found.entropy, DType::F32, n)?,
            own_probability: place.list(OP, found.own_probability, DType::F32, n)?,
            suspicion: place.list(OP, found.suspicion, DType::F32, n)?,
            margin: place.list(OP, found.margin, DType::F32, n)?,
            closer: place.list(OP, found.closer, DType::U32, n)?,
            predicted: place.list(OP, found.predicted, DType::U32, n)?,
            entropy_limit: found.limits.entropy,
            suspicion_limit: found.limits.suspicion,
        });
    }
    let matrix = Matrix::new(OP, "points", points)?;
    let found = backend::credibility(matrix.lock().rows()?, &labels, &options)?;
    let device = &Device::Cpu;
    Ok(Credibility {
        credible: Tensor::from_vec(found.credible, n, device)?,
        entropy: Tensor::from_vec(found.entropy, n, device)?,
        own_probability: Tensor::from_vec(found.own_probability, n, device)?,
        suspicion: Tensor::from_vec(found.suspicion, n, device)?,
        margin: Tensor::from_vec(found.margin, n, device)?,
        closer: Tensor::from_vec(found.closer, n, device)?,
        predicted: Tensor::from_vec(found.predicted, n, device)?,
        entropy_limit: found.entropy_limit,
        suspicion_limit: found.suspicion_limit,
    })
}
