//! Soft centroids on a device: launches of `kernels/soft_centroids.cu`.

use consonance_cpu::clusters::Geometry;
use consonance_cpu::soft_assignment::{Options, refuse_nearest};

use super::{Found, Sides, assigned, check};
use crate::cuda::abi::{self, MANY_ROWS, TILE_KEYS, TILE_THREADS};
use crate::cuda::contrast::{Shape, splits};
use crate::cuda::executor::launch;
use crate::cuda::scratch::Scratch;
use crate::cuda::{Executor, Matrix, Memory, Result};

const OP: &str = "soft_centroids";
const FAMILY: &str = "soft_centroids";

/// Centroids after a soft update, in the memory of the device.
#[derive(Debug)]
pub struct Moved {
    /// `f32` `[K, D]`.
    pub centroids: Memory,
    /// Σ_i r_ik, `f32` `[K]`.
    pub mass: Memory,
    /// The assignment whose responsibilities moved them.
    pub assignment: Found,
}

/// With `Responsibilities::Shared` behind the sweep.
fn shared_bytes(shape: Shape) -> usize {
    let centroids = MANY_ROWS * 3;
    let points = TILE_KEYS * 4;
    let exchange = 2 * shape.groups * MANY_ROWS;
    let parts = 2 * 2 * shape.groups * TILE_THREADS;
    // The first point, and up to a multiple of 8 bytes.
    shape.sweep_bytes() + (centroids + points + exchange + parts + 2) * size_of::<f32>()
}

/// Every centroid moves to the mean of all points, or to their mean direction, weighed by their responsibilities
/// r_ik = e^{s_ik − lse_i}; one without mass or direction stays. Returns without waiting for the device.
///
/// `points` is `[N, D]`, `centroids` `[K, D]`. Scratch: that of [`super::soft_assignment()`], and the centroids once for each split
/// of the points, of which there are at most 8.
///
/// # Errors
/// As [`super::soft_assignment()`], and [`crate::cuda::Error::Argument`] when only the nearest centroids are to count.
pub fn soft_centroids(
    executor: &dyn Executor,
    points: &Matrix<'_>,
    centroids: &Matrix<'_>,
    options: &Options<'_>,
) -> Result<Moved> {
    refuse_nearest(options)?;
    check(points, centroids, options)?;
    let rates = options.rates(centroids.rows())?;
    let (sides, status) = Sides::new(executor, OP, points, centroids, options.geometry)?;
    let largest_scale = status.largest_scale();
    let rates_of = executor.upload(OP, bytemuck::cast_slice(&rates.rates))?;
    let assignment = assigned(executor, &sides, status, (&rates_of, rates.squared), 0)?;
    let (n, k, d) = (points.rows(), centroids.rows(), points.cols());
    let moved = Moved {
        centroids: executor.allocate(OP, k * d * size_of::<f32>())?,
        mass: executor.allocate(OP, k * size_of::<f32>())?,
        assignment,
    };
    let splits = splits(n);
    let mut layout = Scratch::new();
    let sums = layout.take(splits * k * d * size_of::<f32>());
    let masses = layout.take(splits * k * 2 * size_of::<f32>());
    let scratch = executor.scratch(OP, layout.bytes())?;
    let params = abi::SoftCentroids {
        soft: abi::SoftAssignment {
            rates: rates_of.address(),
            log_sum_exp: moved.assignment.log_sum_exp.address(),
            squared: u32::from(rates.squared),
            ..sides.params()
        },
        sums: scratch.address() + sums,
        masses: scratch.address() + masses,
        largest_scale,
        moved: moved.centroids.address(),
        mass: moved.mass.address(),
        splits: splits as u32,
        unit: u32::from(options.geometry == Geometry::Spherical),
    };
    let shape = Shape::new(points.dtype(), d);
    let entry = format!("soft_centroids_rows_{}_{}", points.dtype().suffix(), shape.groups);
    // SAFETY: shapes were checked; sums and masses have a row for every split and centroid, outputs one for every centroid.
    unsafe {
        let grid = [k.div_ceil(MANY_ROWS) as u64, splits as u64, shape.parts as u64];
        let block = (shape.threads as u32, shared_bytes(shape) as u32);
        launch(executor, (OP, FAMILY, &entry), grid, block, &params)?;
        let block = (TILE_THREADS as u32, (TILE_THREADS / 32 * size_of::<f32>()) as u32);
        launch(executor, (OP, FAMILY, "soft_centroids_join"), [k as u64, 1, 1], block, &params)?;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::DType;

    #[test]
    fn shared_memory_fits_into_the_smallest_device() {
        for dtype in DType::ALL {
            for dim in [1, 128, 129, 256, 512, 1000, 5000] {
                // 99 KiB for one block on sm_86 and sm_89.
                assert!(shared_bytes(Shape::new(dtype, dim)) <= 99 * 1024, "{dtype:?} {dim}");
            }
        }
    }
}
