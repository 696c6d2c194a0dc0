//! What soft updates of centroids must fulfil.

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_reference::soft_assignment::{self as reference, Affinity};

use super::soft_bound::{Row, Truth, U, norm};
use super::{Outcome, ensure, soft_assignment};
use crate::backend::{Backend, SoftCase};
use crate::data;
use crate::stored::Stored;

/// Of a weight r_ik, relative: ε_k = 2 (δ_k + ε_l) + 12 u and its rounding to the points' type, 2⁻⁹ or 2⁻¹², to which f16 adds
/// 2⁻³⁸ of the largest; f32 leaves out 2⁻¹⁶. Sums are of 480 u in a tile, N / 64 tiles and 8 splits, and leave out 3.1 · 2⁻¹⁶ of
/// f32. A mean moves by Σ ε r |x − μ| / Σ r of the weights and by the rest of Σ r |x| / Σ r; the direction of S by twice the
/// errors of S over |S|.
fn moves_within_bound(backend: &dyn Backend, case: &SoftCase) -> Outcome {
    let what = format!("soft_centroids {}", soft_assignment::describe(case));
    let found = backend.soft_centroids(case)?;
    soft_assignment::within_bound(backend, case, &found.assignment)?;
    let truth = Truth::new(case);
    let (n, k, dim) = (case.points.rows(), case.centroids.rows(), truth.dim);
    let unit = case.geometry == Geometry::Spherical;
    let (moved, mass) = reference::soft_centroids(&truth.points, &truth.centroids, dim, &case.affinity, unit);
    let (rounding, left_out) = match case.points.dtype() {
        DType::F32 => (1.0 / 65_536.0, 3.1 / 65_536.0),
        DType::F16 => (1.0 / 4096.0, 0.0),
        DType::BF16 => (1.0 / 512.0, 0.0),
    };
    let sums = left_out + (480.0 + n as f64 / 64.0 + 24.0) * U;
    let bounds: Vec<_> = truth.rows.iter().map(Row::bounds).collect();
    let mut worst: f64 = 0.0;
    for c in 0..k {
        let mean = &moved[c * dim..(c + 1) * dim];
        let (mut of_mass, mut of_sum, mut size) = (U * mass[c], 0.0, 0.0);
        for (i, row) in truth.rows.iter().enumerate() {
            let x = &truth.points[i * dim..(i + 1) * dim];
            let r = (row.scores[c] - row.log_sum_exp()).exp();
            let weight = 2.0 * (row.errors[c] + bounds[i].log_sum_exp) + 12.0 * U;
            let off: Vec<f64> = x.iter().zip(mean).map(|(x, m)| x - m).collect();
            let far = if unit { norm(x) } else { norm(&off) };
            of_mass += r * (weight + (n as f64 / 64.0 + 24.0) * U);
            of_sum += (r * (weight + rounding) + 2f64.powi(-38)) * far;
            size += r * norm(x);
        }
        let error = of_sum + sums * size;
        let bound = if unit {
            // |S| = Σ r ⟨x, direction⟩.
            let along: f64 = (0..n)
                .map(|i| {
                    let x = &truth.points[i * dim..(i + 1) * dim];
                    let r = (truth.rows[i].scores[c] - truth.rows[i].log_sum_exp()).exp();
                    r * x.iter().zip(mean).map(|(x, m)| x * m).sum::<f64>()
                })
                .sum();
            2.0 * error / along + (dim as f64 + 8.0) * U
        } else {
            2.0 * error / mass[c] + 4.0 * U * norm(mean)
        };
        let got = &found.centroids[c * dim..(c + 1) * dim];
        let off: Vec<f64> = got.iter().zip(mean).map(|(g, m)| f64::from(*g) - m).collect();
        for (of, ratio) in
            [("centroid", norm(&off) / bound), ("mass", (f64::from(found.mass[c]) - mass[c]).abs() / of_mass)]
        {
            ensure!(ratio <= 1.0, "{what}: {of} {c}: {ratio:.2} bounds");
            worst = worst.max(ratio);
        }
    }
    soft_assignment::print_ratio(backend, &what, worst);
    Ok(())
}

pub(super) fn within_bound(backend: &dyn Backend) -> Outcome {
    // Dimensions of one, two and four groups, and of two parts; more points than one split has.
    for (seed, shape) in
        (0..).zip([[9, 3, 24], [130, 70, 40], [70, 5, 150], [40, 9, 300], [40, 4, 600], [1100, 3, 8]])
    {
        for (turn, dtype) in DType::ALL.into_iter().enumerate() {
            for geometry in [Geometry::Euclidean, Geometry::Spherical] {
                // Splits are joined alike for all types.
                if shape[0] > 1000 && turn != usize::from(geometry == Geometry::Spherical) {
                    continue;
                }
                let other = if seed % 2 == 0 { dtype } else { DType::ALL[(turn + 1) % 3] };
                let mut case =
                    soft_assignment::real_case([dtype, other], shape, geometry, turn % 2, seed + 20);
                if geometry == Geometry::Euclidean {
                    // Wide enough for several centroids to share a point.
                    let width = (shape[2] as f64).sqrt();
                    case.affinity = if turn % 2 == 0 {
                        Affinity::Exponential(2.0 / width)
                    } else {
                        Affinity::Gaussian(width)
                    };
                }
                moves_within_bound(backend, &case)?;
            }
        }
    }
    // Far from the origin a rounded weight must not move the mean by its share of the offset.
    for dtype in DType::ALL {
        let (n, k, dim) = (70, 4, 16);
        let far = |rows, seed| {
            data::integers(rows, dim, seed).iter().map(|v| 32.0 + 0.25 * v).collect::<Vec<f32>>()
        };
        let case = SoftCase {
            points: Stored::new(dtype, &far(n, 1), dim),
            centroids: Stored::new(dtype, &far(k, 2), dim),
            geometry: Geometry::Euclidean,
            affinity: Affinity::Gaussian(1.5),
            nearest: None,
        };
        moves_within_bound(backend, &case)?;
    }
    Ok(())
}

/// Centroids that no point reaches in f32, and those whose points have no common direction, keep their place.
pub(super) fn staying(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let case = SoftCase {
            points: Stored::new(dtype, &[1.0, 0.0, 1.0, 0.5], 2),
            centroids: Stored::new(dtype, &[1.0, 0.0, 64.0, 64.0], 2),
            geometry: Geometry::Euclidean,
            affinity: Affinity::Exponential(8.0),
            nearest: None,
        };
        let found = backend.soft_centroids(&case)?;
        ensure!(
            found.centroids == [1.0, 0.25, 64.0, 64.0] && found.mass == [2.0, 0.0],
            "{dtype:?}: {found:?}"
        );
        let case = SoftCase {
            points: Stored::new(dtype, &[0.0, 1.0, 0.0, -1.0], 2),
            centroids: Stored::new(dtype, &[1.0, 0.0], 2),
            geometry: Geometry::Spherical,
            ..case
        };
        let found = backend.soft_centroids(&case)?;
        ensure!(found.centroids == [1.0, 0.0] && found.mass == [2.0], "{dtype:?}: {found:?}");
    }
    Ok(())
}
