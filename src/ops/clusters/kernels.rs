//! Sub-clusters by kernels.

use candle_core::{DType, Tensor};
use consonance_cpu::clusters::Options;

use super::{OP, SubClusters};
use crate::Result;
use crate::cuda::{Memory, clusters};
use crate::ops::place::Place;

/// The sub-clusters of points that are where `place` says; labels are those of the host.
pub(super) fn sub_clusters(
    place: &Place,
    points: &Tensor,
    labels: Option<&[u32]>,
    options: &Options<'_>,
) -> Result<SubClusters> {
    let placed = place.matrix(OP, "points", points)?;
    let matrix = placed.matrix();
    let (n, d) = (matrix.rows(), matrix.cols());
    let found = clusters::sub_clusters(place.executor(), &matrix, labels, options)?;
    let k = found.offsets.last().copied().unwrap_or(0);
    let vector = |memory: Memory, dtype, len| -> Result<Tensor> {
        Ok(place.tensor(OP, memory, dtype, (len, 1))?.squeeze(1)?)
    };
    Ok(SubClusters {
        centroids: place.tensor(OP, found.centroids, DType::F32, (k, d))?,
        sizes: vector(found.sizes, DType::U32, k)?,
        spread: vector(found.spread, DType::F32, k)?,
        mean_distance: vector(found.mean_distance, DType::F32, k)?,
        assignment: vector(found.assignment, DType::U32, n)?,
        margin: vector(found.margin, DType::F32, n)?,
        labels: found.labels,
        offsets: found.offsets,
        inertia: found.inertia,
        iterations: found.iterations,
    })
}
