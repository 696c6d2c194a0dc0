//! What soft assignments and soft updates of centroids must fulfil.

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_cpu::soft_assignment::SoftAssignment;
use consonance_reference::soft_assignment::{self as reference, Affinity};

use super::soft_bound::{Row, Truth, norm};
use super::{Check, Outcome, ensure, soft_centroids};
use crate::backend::{Backend, SoftCase};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("soft_assignment: integers against the definition", integers),
    ("soft_assignment: real inputs within the bound", reals),
    ("soft_assignment: the entropies of methods 1.6", golden),
    ("soft_assignment: points on their centroids", cancellation),
    ("soft_assignment: scores that underflow", steep),
    ("soft_assignment: rows stand alone", rows_stand_alone),
    ("soft_assignment: bad rows and refusals", refusals),
    ("soft_centroids: within the bound", soft_centroids::within_bound),
    ("soft_centroids: centroids that stay", soft_centroids::staying),
];

pub(super) fn describe(case: &SoftCase) -> String {
    let (n, k, dim) = (case.points.rows(), case.centroids.rows(), case.points.cols());
    let affinity = match &case.affinity {
        Affinity::Exponential(rate) => format!("rate {rate}"),
        Affinity::Gaussian(sigma) => format!("sigma {sigma}"),
        Affinity::Scaled(_) => "scaled".to_owned(),
        Affinity::ScaledGaussian(_) => "scaled Gaussian".to_owned(),
    };
    let (x, c) = (case.points.dtype(), case.centroids.dtype());
    format!(
        "{:?} {affinity} {x:?} [{n}, {dim}] to {c:?} [{k}, {dim}], nearest {:?}",
        case.geometry, case.nearest
    )
}

#[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
pub(super) fn print_ratio(backend: &dyn Backend, what: &str, ratio: f64) {
    println!("{}: {what}: error / bound {ratio:.3}", backend.name());
}

fn integer_case(types: [DType; 2], [n, k, dim]: [usize; 3], affinity: Affinity, seed: u64) -> SoftCase {
    SoftCase {
        points: Stored::new(types[0], &data::integers(n, dim, seed), dim),
        centroids: Stored::new(types[1], &data::integers(k, dim, seed + 1), dim),
        geometry: Geometry::Euclidean,
        affinity,
        nearest: None,
    }
}

/// Scales that are powers of two, so that scores of integers tie exactly where they tie; others in every tile of 64
/// centroids.
fn scales(k: usize) -> Vec<f64> {
    (0..k).map(|k| [1.0, 0.5, 2.0, 4.0][(k + k / 64) % 4]).collect()
}

/// The most probable centroid, ties to the smaller index, of f32 scores of exact squared distances.
fn best_of(squared: &[f64], affinity: &Affinity) -> u32 {
    let score = |k: usize| affinity.score(k, 1.0) as f32;
    let squares = matches!(affinity, Affinity::Gaussian(_) | Affinity::ScaledGaussian(_));
    let scores = squared
        .iter()
        .enumerate()
        .map(|(k, s)| score(k) * if squares { *s as f32 } else { (*s as f32).sqrt() });
    let best = scores
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (k, s)| if s > best.1 { (k, s) } else { best });
    best.0 as u32
}

fn equals_definition(backend: &dyn Backend, case: &SoftCase) -> Outcome {
    let what = describe(case);
    let found = backend.soft_assignment(case)?;
    let truth = Truth::new(case);
    for (i, squared) in truth.squared.iter().enumerate() {
        let mut counted = squared.clone();
        if let Some(m) = case.nearest {
            let m = m.min(squared.len());
            ensure!(found.width == m, "{what}: width {}", found.width);
            let near: Vec<u32> = reference::nearest(squared, m).iter().map(|(k, _)| *k as u32).collect();
            let listed = &found.indices[i * m..(i + 1) * m];
            ensure!(listed == near, "{what}: row {i}: nearest {listed:?}, expected {near:?}");
            for (k, s) in counted.iter_mut().enumerate() {
                *s = if near.contains(&(k as u32)) { *s } else { f64::INFINITY };
            }
        }
        let best = best_of(&counted, &case.affinity);
        ensure!(found.best[i] == best, "{what}: row {i}: best {}, expected {best}", found.best[i]);
        if squared.len() == 1 {
            let score = case.affinity.score(0, 1.0) as f32
                * if matches!(case.affinity, Affinity::Gaussian(_)) {
                    squared[0] as f32
                } else {
                    (squared[0] as f32).sqrt()
                };
            let got = (found.log_sum_exp[i], found.entropy[i], found.best_probability[i]);
            ensure!(got == (score, 0.0, 1.0), "{what}: row {i}: {got:?} of one centroid, expected {score}");
        }
    }
    within_bound(backend, case, &found)
}

/// Sizes around tiles of 64 rows and 64 centroids and slabs of 32 and 64 dimensions; more tiles than one split has.
fn integers(backend: &dyn Backend) -> Outcome {
    let shapes = [[1, 1, 1], [3, 7, 5], [64, 64, 32], [65, 63, 33], [17, 130, 72], [2, 1100, 3]];
    for (seed, shape) in (0..).zip(shapes) {
        for (turn, dtype) in DType::ALL.into_iter().enumerate() {
            let affinity = match (turn + seed as usize) % 4 {
                0 => Affinity::Exponential(0.5),
                1 => Affinity::Gaussian(2.0),
                2 => Affinity::Scaled(scales(shape[1])),
                _ => Affinity::ScaledGaussian(scales(shape[1])),
            };
            // Centroids in the points' type, or in another one.
            let other = if seed % 2 == 0 { dtype } else { DType::ALL[(turn + 1) % 3] };
            let mut case = integer_case([dtype, other], shape, affinity, 10 * seed);
            equals_definition(backend, &case)?;
            case.nearest = Some(5);
            equals_definition(backend, &case)?;
        }
    }
    // Rows behind padding, at addresses of no alignment, and at aligned ones.
    for (dim, stride, offset) in [(7, 9, 3), (24, 32, 8), (40, 41, 1)] {
        for dtype in DType::ALL {
            let mut case = integer_case([dtype, dtype], [18, 70, dim], Affinity::Exponential(1.0), 7);
            let pad = |rows: &Stored| {
                let values: Vec<f32> = (0..rows.rows()).flat_map(|i| rows.row(i).to_vec()).collect();
                Stored::padded(dtype, &values, dim, stride, offset)
            };
            (case.points, case.centroids) = (pad(&case.points), pad(&case.centroids));
            equals_definition(backend, &case)?;
        }
    }
    Ok(())
}

pub(super) fn within_bound(backend: &dyn Backend, case: &SoftCase, found: &SoftAssignment) -> Outcome {
    let what = describe(case);
    let truth = Truth::new(case);
    let mut worst: f64 = 0.0;
    for i in 0..case.points.rows() {
        let listed = &found.indices[i * found.width..(i + 1) * found.width];
        let selected;
        let row: &Row = if found.width > 0 {
            let limit = reference::nearest(&truth.squared[i], found.width)[found.width - 1].1;
            let mut last = (0.0, 0);
            for k in listed {
                let (k, squared) = (*k as usize, truth.squared[i][*k as usize]);
                let slack = |d: f64| {
                    let e = truth.metric.distance(
                        d,
                        norm(&truth.points[i * truth.dim..][..truth.dim])
                            + norm(&truth.centroids[k * truth.dim..][..truth.dim]),
                    );
                    2.0 * (2.0 * d * e + e * e)
                };
                ensure!(
                    squared <= limit + 2.0 * slack(squared.sqrt()),
                    "{what}: row {i}: {k} is not among the nearest"
                );
                ensure!(squared >= last.0 - 2.0 * slack(squared.sqrt()), "{what}: row {i}: {k} out of order");
                last = (squared, k);
            }
            selected = truth.only(i, listed);
            &selected
        } else {
            &truth.rows[i]
        };
        let bounds = row.bounds();
        let lse = row.log_sum_exp();
        let p = |k: usize| (row.scores[k] - lse).exp();
        let best = found.best[i] as usize;
        let top = row
            .scores
            .iter()
            .zip(&row.errors)
            .fold((f64::NEG_INFINITY, 0.0), |top, (s, e)| if *s > top.0 { (*s, *e) } else { top });
        let mut ratios = vec![
            ("lse", (f64::from(found.log_sum_exp[i]) - lse).abs() / bounds.log_sum_exp),
            ("entropy", (f64::from(found.entropy[i]) - row.entropy()).abs() / bounds.entropy),
            ("best", (top.0 - row.scores[best]) / (top.1 + row.errors[best])),
            (
                "its probability",
                (f64::from(found.best_probability[i]) - p(best)).abs() / row.probability(best, &bounds),
            ),
        ];
        for (k, got) in listed.iter().zip(&found.probabilities[i * found.width..]) {
            let k = *k as usize;
            // Below this f32 has no number.
            ratios.push((
                "probability",
                (f64::from(*got) - p(k)).abs() / (row.probability(k, &bounds) + 1e-37),
            ));
        }
        for (of, ratio) in ratios {
            ensure!(ratio <= 1.0, "{what}: row {i}: {of}: {ratio:.2} bounds");
            worst = worst.max(ratio);
        }
    }
    print_ratio(backend, &what, worst);
    Ok(())
}

fn certify(backend: &dyn Backend, case: &SoftCase) -> Outcome {
    let found = backend.soft_assignment(case)?;
    within_bound(backend, case, &found)
}

/// Scales that differ from centroid to centroid.
fn wide_scales(k: usize) -> Vec<f64> {
    (0..k).map(|k| 0.25 + 0.125 * (k % 9) as f64).collect()
}

pub(super) fn real_case(
    types: [DType; 2],
    [n, k, dim]: [usize; 3],
    geometry: Geometry,
    which: usize,
    seed: u64,
) -> SoftCase {
    SoftCase {
        points: Stored::new(types[0], &data::normal(n, dim, seed), dim),
        centroids: Stored::new(types[1], &data::normal(k, dim, seed + 50), dim),
        geometry,
        affinity: match which {
            0 => Affinity::Exponential(4.0),
            1 => Affinity::Gaussian(0.5),
            2 => Affinity::Scaled(wide_scales(k)),
            _ => Affinity::ScaledGaussian(wide_scales(k)),
        },
        nearest: None,
    }
}

fn reals(backend: &dyn Backend) -> Outcome {
    for (seed, shape) in (0..).zip([[5, 9, 24], [66, 130, 40], [3, 40, 200]]) {
        for (turn, dtype) in DType::ALL.into_iter().enumerate() {
            for geometry in [Geometry::Euclidean, Geometry::Spherical] {
                for which in 0..4 {
                    let other = if which % 2 == 0 { dtype } else { DType::ALL[(turn + 1) % 3] };
                    let mut case = real_case([dtype, other], shape, geometry, which, seed);
                    certify(backend, &case)?;
                    if which % 3 == 0 {
                        case.nearest = Some(if seed == 0 { 200 } else { 6 });
                        certify(backend, &case)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Unit vectors by angle, centroids at 0°, 90°, 180°, p ∝ exp(−4d); H and whether H ≤ ½ ln 3.
fn golden(backend: &dyn Backend) -> Outcome {
    let golden = [
        (5.0, 0.042464, true),
        (90.0, 0.046213, true),
        (40.0, 0.674178, false),
        (45.0, 0.728043, false),
        (130.0, 0.681526, false),
    ];
    let at = |degrees: f64| [degrees.to_radians().cos() as f32, degrees.to_radians().sin() as f32];
    let points: Vec<f32> = golden.iter().flat_map(|(angle, _, _)| at(*angle)).collect();
    // Directions of any length.
    for (geometry, length) in [(Geometry::Euclidean, 1.0), (Geometry::Spherical, 3.0)] {
        let points: Vec<f32> = points.iter().map(|v| length * v).collect();
        let case = SoftCase {
            points: Stored::new(DType::F32, &points, 2),
            centroids: Stored::new(DType::F32, &[0.0, 90.0, 180.0].map(at).concat(), 2),
            geometry,
            affinity: Affinity::Exponential(4.0),
            nearest: None,
        };
        let found = backend.soft_assignment(&case)?;
        let truth = Truth::new(&case);
        for (i, (angle, h, keeps)) in golden.into_iter().enumerate() {
            let got = f64::from(found.entropy[i]);
            // Six digits are given.
            let bound = 5e-7 + truth.rows[i].bounds().entropy;
            ensure!((got - h).abs() <= bound, "{angle}°: H {got}, expected {h}");
            ensure!((got <= 0.5 * 3f64.ln()) == keeps, "{angle}°: H {got}, kept: {keeps}");
        }
    }
    Ok(())
}

/// Points within a hair of their centroids, and far from the origin: there products alone would say nothing.
fn cancellation(backend: &dyn Backend) -> Outcome {
    let (n, k, dim) = (20, 70, 40);
    for dtype in DType::ALL {
        let step = match dtype {
            DType::F32 => 1.0 / 4096.0,
            _ => 0.25,
        };
        let offset = if dtype == DType::F32 { 64.0 } else { 8.0 };
        let centroids: Vec<f32> = data::integers(k, dim, 1).iter().map(|v| offset + step * v).collect();
        let noise = data::integers(n, dim, 2);
        let points: Vec<f32> =
            (0..n * dim).map(|at| centroids[at] + step * (noise[at] / 3.0).trunc()).collect();
        for affinity in [Affinity::Exponential(1.0 / f64::from(step)), Affinity::Gaussian(f64::from(step))] {
            let mut case = SoftCase {
                points: Stored::new(dtype, &points, dim),
                centroids: Stored::new(dtype, &centroids, dim),
                geometry: Geometry::Euclidean,
                affinity,
                nearest: None,
            };
            let found = backend.soft_assignment(&case)?;
            within_bound(backend, &case, &found)?;
            ensure!((0..n).all(|i| found.best[i] as usize == i), "{}: {:?}", describe(&case), found.best);
            case.nearest = Some(3);
            certify(backend, &case)?;
        }
    }
    Ok(())
}

/// Rates at which every e^s is 0 in f32, and one whose scores are beyond its range.
fn steep(backend: &dyn Backend) -> Outcome {
    for rate in [1e3, 1e6] {
        let case = SoftCase {
            affinity: Affinity::Exponential(rate),
            ..integer_case([DType::F32; 2], [5, 70, 6], Affinity::Exponential(1.0), 3)
        };
        equals_definition(backend, &case)?;
    }
    let case = integer_case([DType::F32; 2], [5, 70, 6], Affinity::Exponential(1e38), 4);
    let found = backend.soft_assignment(&case)?;
    let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
    ensure!(finite(&found.log_sum_exp) && finite(&found.entropy), "scores beyond f32: {found:?}");
    Ok(())
}

/// A row's results do not depend on the other rows, bit for bit.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for nearest in [None, Some(4)] {
            let mut case = real_case([dtype, DType::F32], [70, 90, 33], Geometry::Spherical, 2, 5);
            case.nearest = nearest;
            let all = backend.soft_assignment(&case)?;
            for rows in [vec![69], vec![3, 64, 5], (10..30).collect()] {
                let some = backend
                    .soft_assignment(&SoftCase { points: case.points.select(&rows), ..case.clone() })?;
                for (i, from) in rows.iter().enumerate() {
                    let bits = |found: &SoftAssignment, i: usize| {
                        let lists = i * found.width..(i + 1) * found.width;
                        let mut bits = vec![
                            found.best[i],
                            found.log_sum_exp[i].to_bits(),
                            found.entropy[i].to_bits(),
                            found.best_probability[i].to_bits(),
                        ];
                        bits.extend(&found.indices[lists.clone()]);
                        bits.extend(found.probabilities[lists].iter().map(|p| p.to_bits()));
                        bits
                    };
                    ensure!(
                        bits(&some, i) == bits(&all, *from),
                        "{}: row {from} differs among {} rows",
                        describe(&case),
                        rows.len()
                    );
                }
            }
        }
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let good = || integer_case([DType::F32; 2], [5, 70, 4], Affinity::Exponential(1.0), 1);
    let mut bad: Vec<(SoftCase, &[&str])> = Vec::new();
    for value in [f32::NAN, f32::INFINITY, 2e19] {
        let mut case = good();
        case.points.set_row(4, value);
        case.points.set_row(3, value);
        bad.push((case, &["points", "3"]));
        let mut case = good();
        case.centroids.set_row(66, value);
        bad.push((case, &["centroids", "66"]));
    }
    let mut zero = SoftCase { geometry: Geometry::Spherical, ..good() };
    for row in 0..70 {
        zero.centroids.set_row(row, 1.0);
    }
    (0..5).for_each(|row| zero.points.set_row(row, if row == 2 { 0.0 } else { 1.0 }));
    bad.push((zero, &["points", "2", "norm zero"]));
    bad.push((SoftCase { nearest: Some(0), ..good() }, &["`nearest`"]));
    bad.push((SoftCase { affinity: Affinity::Exponential(0.0), ..good() }, &["`rate`"]));
    bad.push((SoftCase { affinity: Affinity::Gaussian(f64::NAN), ..good() }, &["`sigma`"]));
    bad.push((SoftCase { affinity: Affinity::Scaled(vec![1.0; 69]), ..good() }, &["`scales`"]));
    bad.push((SoftCase { centroids: Stored::new(DType::F32, &[0.0; 9], 3), ..good() }, &["`centroids`"]));
    bad.push((SoftCase { points: Stored::new(DType::F32, &[], 4), ..good() }, &["`points`"]));
    for (case, parts) in bad {
        match backend.soft_assignment(&case) {
            Ok(_) => return Err(format!("{}: accepted, but {parts:?} is wrong", describe(&case))),
            Err(text) => {
                ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}")
            }
        }
    }
    match backend.soft_centroids(&SoftCase { nearest: Some(3), ..good() }) {
        Ok(_) => Err("soft_centroids took the nearest alone".to_owned()),
        Err(text) => {
            ensure!(text.contains("soft_centroids") && text.contains("`nearest`"), "`{text}`");
            Ok(())
        }
    }
}
