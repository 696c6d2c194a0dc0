//! Sub-clusters of every class at once, and soft assignment to centroids.

mod kernels;

use candle_core::{Device, Tensor};
use consonance_cpu::clusters::{self, Count, Geometry, Options, Start};

use super::place::Place;
use super::view::{self, Matrix};
use crate::{Error, Result};

const OP: &str = "sub_clusters";

/// How many clusters a class gets; a class with fewer rows gets as many clusters as rows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ClusterCount {
    /// The same number for every class.
    Fixed(usize),
    /// One number per class, classes by ascending label.
    PerClass(Vec<usize>),
    /// clip(round(√(n/2)), 1, `max`) for a class of n rows.
    SquareRoot {
        /// The upper limit; 8 by custom.
        max: usize,
    },
}

/// Where the iterations start.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ClusterStart {
    /// k-means++ (Arthur and Vassilvitskii 2007) from the seed.
    PlusPlus {
        /// The key of the counter-based generator.
        seed: u64,
    },
    /// Distinct rows of the class, all sets equally likely.
    Random {
        /// The key of the counter-based generator.
        seed: u64,
    },
    /// These centroids, `[Σ K_c, D]`, class by class by ascending label.
    Given(Tensor),
}

/// The choices of [`sub_clusters`].
#[derive(Debug, Clone)]
#[must_use]
pub struct SubClustersOptions {
    /// Euclidean, or cosine on unit rows (the default).
    pub geometry: Geometry,
    /// The number of clusters of a class; by default the rule with at most 8.
    pub count: ClusterCount,
    /// The start; by default k-means++ with seed 0.
    pub start: ClusterStart,
    /// At most this many rounds of assigning and averaging (50); 0 only assigns to the start.
    pub max_iterations: usize,
    /// A class also stops when the squared movement of its centroids, summed, is at most this share of the mean
    /// squared distance of its rows from their mean (0: only when no row changes hands).
    pub tolerance: f64,
}

impl Default for SubClustersOptions {
    fn default() -> Self {
        Self {
            geometry: Geometry::Spherical,
            count: ClusterCount::SquareRoot { max: 8 },
            start: ClusterStart::PlusPlus { seed: 0 },
            max_iterations: 50,
            tolerance: 0.0,
        }
    }
}

impl SubClustersOptions {
    /// The defaults: spherical, the square-root rule with at most 8, k-means++ with seed 0, 50 iterations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the distance.
    pub fn with_geometry(mut self, geometry: Geometry) -> Self {
        self.geometry = geometry;
        self
    }

    /// Sets the number of clusters.
    pub fn with_count(mut self, count: ClusterCount) -> Self {
        self.count = count;
        self
    }

    /// Sets the start.
    pub fn with_start(mut self, start: ClusterStart) -> Self {
        self.start = start;
        self
    }

    /// Sets the largest number of rounds.
    pub fn with_max_iterations(mut self, max_iterations: usize) -> Self {
        self.max_iterations = max_iterations;
        self
    }

    /// Sets the tolerance.
    pub fn with_tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }
}

/// The sub-clusters of every class. Cluster ids are global: class `c` owns `offsets[c]..offsets[c + 1]`.
#[derive(Debug, Clone)]
pub struct SubClusters {
    /// f32 `[K, D]`; unit rows on the sphere.
    pub centroids: Tensor,
    /// u32 `[K]`: rows of each cluster.
    pub sizes: Tensor,
    /// f32 `[K]`: the mean of ‖x − c‖² over the rows of each cluster.
    pub spread: Tensor,
    /// f32 `[K]`: the mean of ‖x − c‖ over the rows of each cluster.
    pub mean_distance: Tensor,
    /// u32 `[N]`: the cluster of every row, ties to the smaller id.
    pub assignment: Tensor,
    /// f32 `[N]`: ‖x − c'‖² − ‖x − c‖² for the second nearest centroid of the class; +∞ with one cluster.
    pub margin: Tensor,
    /// The distinct labels, ascending; `[0]` without labels.
    pub labels: Vec<u32>,
    /// Where the clusters of each class start, one entry more than labels.
    pub offsets: Vec<usize>,
    /// Σ ‖x − c‖² of each class.
    pub inertia: Vec<f64>,
    /// The rounds that each class took.
    pub iterations: Vec<u32>,
}

/// k-means inside every class of `points` at once.
///
/// - `points`: f32, f16 or bf16 `[N, D]`, any offset and strides, on the CPU or on a GPU, where the work is done then;
/// - `labels`: u32 or i64 `[N]` class labels in any order, gaps allowed, on any device; `None` for one class over everything.
///
/// Lloyd's algorithm with k-means++ starts, on rows as they are or on the sphere (spherical k-means, Dhillon and
/// Modha 2001). Empty clusters take the row farthest from its own centroid (distance descending, index
/// ascending). A class with more clusters than distinct rows may return clusters of size 0. The results are the
/// same bits for any number of threads, and a class's results do not depend on the other classes.
///
/// All results are constants: no gradient flows through them.
///
/// # Errors
/// [`Error::NotDifferentiable`] when `points` or a given start is tracked; [`Error::DType`], [`Error::Device`],
/// [`Error::Rank`]; [`Error::Argument`] for empty points, labels, counts or a start that do not fit, a count of
/// 0, a bad tolerance, rows that are not finite or too large, rows of norm zero on the sphere ([`Error::Kernel`] on a GPU,
/// as are errors of the device).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use consonance::{ClusterCount, SubClustersOptions, sub_clusters};
///
/// # fn main() -> consonance::Result<()> {
/// let points = Tensor::randn(0f32, 1., (100, 16), &Device::Cpu)?;
/// let labels = Tensor::new((0..100u32).map(|i| i % 5).collect::<Vec<_>>(), &Device::Cpu)?;
/// let options = SubClustersOptions::new().with_count(ClusterCount::Fixed(3));
/// let clusters = sub_clusters(&points, Some(&labels), &options)?;
/// assert_eq!(clusters.centroids.dims(), [15, 16]);
/// # Ok(())
/// # }
/// ```
pub fn sub_clusters(
    points: &Tensor,
    labels: Option<&Tensor>,
    options: &SubClustersOptions,
) -> Result<SubClusters> {
    refuse_tracked(OP, "points", points)?;
    let place = Place::of(OP, "points", points)?;
    let rows = view::matrix(OP, "points", points)?.0.dims()[0];
    let labels = match labels {
        Some(labels) => Some(view::labels(OP, "labels", &labels.to_device(&Device::Cpu)?, rows)?),
        None => None,
    };
    let (given, guard);
    let start = match &options.start {
        ClusterStart::PlusPlus { seed } => Start::PlusPlus { seed: *seed },
        ClusterStart::Random { seed } => Start::Random { seed: *seed },
        ClusterStart::Given(tensor) => {
            refuse_tracked(OP, "start", tensor)?;
            given = Matrix::new(OP, "start", &tensor.to_device(&Device::Cpu)?)?;
            guard = given.lock();
            Start::Given(guard.rows()?)
        }
    };
    let count = match &options.count {
        ClusterCount::Fixed(k) => Count::Fixed(*k),
        ClusterCount::PerClass(list) => Count::PerClass(list),
        ClusterCount::SquareRoot { max } => Count::SquareRoot { max: *max },
    };
    let options = Options {
        geometry: options.geometry,
        count,
        start,
        max_iterations: options.max_iterations,
        tolerance: options.tolerance,
    };
    match place {
        Some(place) => kernels::sub_clusters(&place, points, labels.as_deref(), &options),
        None => on_cpu(points, labels.as_deref(), &options),
    }
}

fn on_cpu(points: &Tensor, labels: Option<&[u32]>, options: &Options<'_>) -> Result<SubClusters> {
    let matrix = Matrix::new(OP, "points", points)?;
    let found = clusters::sub_clusters(matrix.lock().rows()?, labels, options)?;
    let device = &Device::Cpu;
    let (n, k) = (matrix.rows(), found.sizes.len());
    Ok(SubClusters {
        centroids: Tensor::from_vec(found.centroids, (k, found.dim), device)?,
        sizes: Tensor::from_vec(found.sizes, k, device)?,
        spread: Tensor::from_vec(found.spread, k, device)?,
        mean_distance: Tensor::from_vec(found.mean_distance, k, device)?,
        assignment: Tensor::from_vec(found.assignment, n, device)?,
        margin: Tensor::from_vec(found.margin, n, device)?,
        labels: found.labels,
        offsets: found.offsets,
        inertia: found.inertia,
        iterations: found.iterations,
    })
}

/// Statistics of the bank are constants: an argument that asks for a gradient is a mistake.
pub(crate) fn refuse_tracked(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.track_op() {
        let reason = "its result is a constant statistic of the bank";
        return Err(Error::NotDifferentiable { op, argument, reason });
    }
    Ok(())
}
