//! Sub-clusters, and how each backend finds them.

use consonance::cuda::{Executor, Result, clusters as cuda};
use consonance_cpu::Rows;
use consonance_cpu::clusters::{self as cpu, Count, Geometry, Options, Start, SubClusters};

use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Where the iterations of a case start.
#[derive(Debug, Clone)]
pub enum ClustersStart {
    /// k-means++ from a seed.
    PlusPlus(u64),
    /// Random rows from a seed.
    Random(u64),
    /// `[K, D]`.
    Given(Vec<f32>),
}

/// k-means inside every class.
#[derive(Debug, Clone)]
pub struct ClustersCase {
    /// `[N, D]`.
    pub points: Stored,
    /// `[N]`; one class over everything when absent.
    pub labels: Option<Vec<u32>>,
    /// The distance.
    pub geometry: Geometry,
    /// Clusters of each class, or one number for all.
    pub counts: Vec<usize>,
    /// The start.
    pub start: ClustersStart,
    /// Rounds at most.
    pub max_iterations: usize,
    /// What centroids may move.
    pub tolerance: f64,
}

impl ClustersCase {
    /// Euclidean, k-means++, as many rounds as it takes.
    pub fn new(points: Stored, labels: Option<Vec<u32>>, clusters: usize) -> Self {
        Self {
            points,
            labels,
            geometry: Geometry::Euclidean,
            counts: vec![clusters],
            start: ClustersStart::PlusPlus(7),
            max_iterations: 50,
            tolerance: 0.0,
        }
    }

    fn with_options<R>(
        &self,
        f: impl FnOnce(Option<&[u32]>, &Options<'_>) -> R,
    ) -> std::result::Result<R, String> {
        let start = match &self.start {
            ClustersStart::PlusPlus(seed) => Start::PlusPlus { seed: *seed },
            ClustersStart::Random(seed) => Start::Random { seed: *seed },
            ClustersStart::Given(values) => {
                let (d, values) = (self.points.cols(), &values[..]);
                let rows = Rows::new(OP, "start", values, values.len() / d, d);
                Start::Given(rows.map_err(|error| error.to_string())?)
            }
        };
        let count = match &self.counts[..] {
            [count] => Count::Fixed(*count),
            list => Count::PerClass(list),
        };
        let options = Options {
            geometry: self.geometry,
            count,
            start,
            max_iterations: self.max_iterations,
            tolerance: self.tolerance,
        };
        Ok(f(self.labels.as_deref(), &options))
    }
}

impl Cpu {
    pub(super) fn clustered(case: &ClustersCase) -> std::result::Result<SubClusters, String> {
        case.with_options(|labels, options| {
            let found = case.points.with_rows(|points| cpu::sub_clusters(points?, labels, options));
            found.map_err(|error| error.to_string())
        })?
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn clustered(&self, case: &ClustersCase) -> std::result::Result<SubClusters, String> {
        case.with_options(|labels, options| {
            self.clusters_of(&case.points, labels, options).map_err(|error| error.to_string())
        })?
    }

    fn clusters_of(
        &self,
        points: &Stored,
        labels: Option<&[u32]>,
        options: &Options<'_>,
    ) -> Result<SubClusters> {
        let memory = self.executor().upload(OP, &points.bytes())?;
        let found = cuda::sub_clusters(self.executor(), &self.matrix(points, &memory)?, labels, options)?;
        let (n, dim) = (points.rows(), points.cols());
        let k = found.offsets.last().copied().unwrap_or(0);
        Ok(SubClusters {
            dim,
            centroids: self.words(&found.centroids, k * dim)?,
            sizes: self.words(&found.sizes, k)?,
            spread: self.words(&found.spread, k)?,
            mean_distance: self.words(&found.mean_distance, k)?,
            assignment: self.words(&found.assignment, n)?,
            margin: self.words(&found.margin, n)?,
            labels: found.labels,
            offsets: found.offsets,
            inertia: found.inertia,
            iterations: found.iterations,
        })
    }
}
