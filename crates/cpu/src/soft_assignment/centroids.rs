//! The soft update of centroids: means by responsibilities.

use super::{OP as ASSIGNMENT, Options, SoftAssignment, assigned, collected, with_grid};
use crate::{Error, Result, Rows, clusters::Geometry, sweep::weighed_sums};

/// A sum of directions that is shorter than this share of its weights has no direction: it is rounding.
const LEAST_DIRECTION: f64 = 1.0 / (1u64 << 20) as f64;

/// Centroids after a soft update.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftCentroids {
    /// `[K, D]`; unit rows on the sphere.
    pub centroids: Vec<f32>,
    /// Σ_i r_ik, `[K]`.
    pub mass: Vec<f32>,
    /// The assignment whose responsibilities moved them.
    pub assignment: SoftAssignment,
}

/// Every centroid moves to the mean of all points, weighed by their responsibilities: c_k ← Σ_i r_ik x_i / Σ_i r_ik with
/// r_ik = e^{s_ik − lse_i}; on the sphere to the direction of Σ_i r_ik x_i/‖x_i‖.
///
/// With a Gaussian affinity that is the step of the means in expectation maximization for a mixture of equal weights and
/// fixed widths (Dempster, Laird, Rubin 1977; "soft k-means", MacKay 2003), on the sphere for one of von Mises–Fisher
/// distributions of one concentration 1/σ² (Banerjee, Dhillon, Ghosh, Sra 2005). A centroid of mass 0, or whose points have no
/// common direction, stays where it is. Memory beyond inputs and outputs: O(N + K·D).
///
/// # Errors
/// As [`super::soft_assignment`]; [`Error::Range`] when only the nearest centroids are to count.
pub fn soft_centroids(points: Rows<'_>, centroids: Rows<'_>, options: &Options<'_>) -> Result<SoftCentroids> {
    refuse_nearest(options)?;
    let d = points.cols();
    with_grid(points, centroids, options, |points, grid| {
        let rows = assigned(points, grid, 0);
        let lse: Vec<f64> = rows.iter().map(|row| row.0).collect();
        let (sums, mass) = weighed_sums(points, grid, &lse);
        let mut centroids = Vec::with_capacity(sums.len());
        for (k, (sum, mass)) in sums.chunks_exact(d).zip(&mass).enumerate() {
            let divisor = match options.geometry {
                Geometry::Euclidean => *mass,
                Geometry::Spherical => sum.iter().map(|s| s * s).sum::<f64>().sqrt(),
            };
            if divisor > LEAST_DIRECTION * mass {
                centroids.extend(sum.iter().map(|s| (s / divisor) as f32));
            } else {
                centroids.extend_from_slice(grid.row(k));
            }
        }
        SoftCentroids {
            centroids,
            mass: mass.iter().map(|m| *m as f32).collect(),
            assignment: collected(0, rows),
        }
    })
}

/// A centroid does not know which points count it among their nearest.
///
/// # Errors
/// [`Error::Range`] when only the nearest centroids are to count.
pub fn refuse_nearest(options: &Options<'_>) -> Result<()> {
    match options.nearest {
        None => Ok(()),
        Some(m) => {
            let expected =
                format!("none: a soft update is over all centroids, as is `{ASSIGNMENT}` without it");
            Err(Error::range("soft_centroids", "nearest", m, expected))
        }
    }
}
