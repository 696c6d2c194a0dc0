//! What sub-clusters must fulfil.
//!
//! On integer rows every backend finds what the CPU backend finds, bit for bit: sums are exact in any order, and scores and
//! distances are summed in one order everywhere. Only the statistics of a cluster, sums of n rounded numbers of one sign in
//! f64, may be added up in another order: they differ by 2 n 2⁻⁵³ of themselves, and by one rounding to f32. Sizes are such that
//! classes fit on chip and do not, with sums that are taken along and sums by the order of the clusters.

use consonance::cuda::DType;
use consonance_cpu::clusters::philox::Draws;
use consonance_cpu::clusters::{Geometry, SubClusters};
use consonance_reference::clusters as reference;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, ClustersCase, ClustersStart, Cpu};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("clusters: starts", starts),
    ("clusters: classes far from the origin", far),
    ("clusters: the tolerance", tolerance),
    ("clusters: empty clusters", empty),
    ("clusters: integers", integers),
    ("clusters: refused", refused),
    ("clusters: integers that are streamed", streamed),
    ("clusters: more clusters than are fused", many),
    ("clusters: other classes", others),
    ("clusters: on chip and streamed", both_ways),
    ("clusters: inertia of real rows", inertia),
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Whether two sums of so many numbers agree but for their order, and a rounding to f32 unless they are f64.
fn close(got: f64, expected: f64, terms: usize, rounded: bool) -> bool {
    let rounding = if rounded { f64::from(f32::EPSILON) } else { 0.0 };
    (got - expected).abs() <= expected.abs() * (rounding + 2.0 * terms as f64 * f64::EPSILON / 2.0)
}

fn same(what: &str, n: usize, got: &SubClusters, expected: &SubClusters) -> Outcome {
    ensure!((&got.labels, &got.offsets) == (&expected.labels, &expected.offsets), "{what}: classes");
    ensure!(got.iterations == expected.iterations, "{what}: {:?} rounds", got.iterations);
    let differ = got.assignment.iter().zip(&expected.assignment).position(|(got, expected)| got != expected);
    if let Some(row) = differ {
        let (got, expected) = (got.assignment[row], expected.assignment[row]);
        return Err(format!("{what}: row {row} is in {got}, not in {expected}"));
    }
    ensure!(got.sizes == expected.sizes, "{what}: sizes {:?}, not {:?}", got.sizes, expected.sizes);
    ensure!(bits(&got.centroids) == bits(&expected.centroids), "{what}: centroids");
    ensure!(bits(&got.margin) == bits(&expected.margin), "{what}: margins");
    for (name, got, expected) in [
        ("spread", &got.spread, &expected.spread),
        ("mean distance", &got.mean_distance, &expected.mean_distance),
    ] {
        for (cluster, (got, expected)) in got.iter().zip(expected).enumerate() {
            let is_close = close((*got).into(), (*expected).into(), n, true);
            ensure!(is_close, "{what}: {name} of cluster {cluster} is {got:e}, not {expected:e}");
        }
    }
    for (got, expected) in got.inertia.iter().zip(&expected.inertia) {
        ensure!(close(*got, *expected, n, false), "{what}: inertia {got:e}, not {expected:e}");
    }
    Ok(())
}

/// Compares a backend with the CPU backend.
fn as_on_the_cpu(backend: &dyn Backend, what: &str, case: &ClustersCase) -> Outcome {
    same(what, case.points.rows(), &backend.clusters(case)?, &Cpu.clusters(case)?)
}

/// Labels of classes of these sizes, with gaps, interleaved.
fn labels_of(sizes: &[usize]) -> Vec<u32> {
    let mut left = sizes.to_vec();
    let mut labels = Vec::new();
    while left.iter().any(|left| *left > 0) {
        for (class, left) in left.iter_mut().enumerate().rev() {
            if *left > 0 {
                *left -= 1;
                labels.push(7 + 1000 * class as u32);
            }
        }
    }
    labels
}

/// Rows near few places, so that the rounds end soon.
fn blobs(n: usize, d: usize, places: usize, seed: u64) -> Vec<f32> {
    let (mut x, at) = (data::integers(n, d, seed), data::integers(places, d, seed + 1));
    for (row, x) in x.chunks_exact_mut(d).enumerate() {
        x.iter_mut().zip(&at[row * 7 % places * d..]).for_each(|(x, at)| *x += 4.0 * at);
    }
    x
}

/// Axes with signs, whose norms are exact: what is on the sphere is exact as well.
fn axes(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; n * d];
    for (x, label) in x.chunks_exact_mut(d).zip(data::labels(n, 4 * d as u32, seed)) {
        let axis = label as usize % d;
        x[axis] = if (label as usize / d).is_multiple_of(2) { 2.0 } else { -4.0 };
        // Two axes: a norm that is not a power of two, as the CPU rounds it.
        x[(axis + 1) % d] += if label as usize / d > 1 { 2.0 } else { 0.0 };
    }
    x
}

fn integers(backend: &dyn Backend) -> Outcome {
    let sizes = [1, 2, 13, 31, 32, 33, 67, 15, 16, 17];
    for (turn, (d, k)) in (0..).zip([(1, 1), (2, 2), (3, 4), (8, 5), (17, 3), (33, 9), (40, 20)]) {
        let labels = labels_of(&sizes);
        let n = labels.len();
        for (which, geometry) in [Geometry::Euclidean, Geometry::Spherical].into_iter().enumerate() {
            let dtype = DType::ALL[(turn as usize + which) % 3];
            let values = match geometry {
                Geometry::Spherical => axes(n, d, turn),
                _ => data::integers(n, d, turn),
            };
            // Rows of views lie further apart, and need not be aligned.
            let points = Stored::padded(dtype, &values, d, d + turn as usize % 3, turn as usize % 2);
            let mut case = ClustersCase { geometry, ..ClustersCase::new(points, Some(labels.clone()), k) };
            if turn % 2 == 1 {
                case.counts = (1..=sizes.len()).collect();
                case.start = ClustersStart::Random(turn);
            }
            as_on_the_cpu(backend, &format!("{dtype:?} {geometry:?} [{n}, {d}] into {k}"), &case)?;
        }
    }
    Ok(())
}

/// Classes of whole chunks, one row more and one less, beside classes on chip.
fn streamed(backend: &dyn Backend) -> Outcome {
    for (turn, (sizes, d, k)) in
        (0..).zip([(vec![767, 20, 768, 769], 40, 3), (vec![1031], 33, 6), (vec![520], 48, 1)])
    {
        let labels = labels_of(&sizes);
        let n = labels.len();
        let (first, second) = (DType::ALL[turn as usize % 3], DType::ALL[(turn as usize + 1) % 3]);
        for (dtype, geometry) in [(first, Geometry::Euclidean), (second, Geometry::Spherical)] {
            // Rows of 16 bits are longer, so that they do not fit on chip either.
            let d = if dtype == DType::F32 { d } else { 2 * d };
            let values = match geometry {
                Geometry::Spherical => axes(n, d, turn),
                _ => blobs(n, d, 5, turn),
            };
            let points = Stored::padded(dtype, &values, d, d + 2 * turn as usize, turn as usize % 2);
            let case = ClustersCase {
                geometry,
                max_iterations: 3,
                ..ClustersCase::new(points, Some(labels.clone()), k)
            };
            as_on_the_cpu(backend, &format!("{dtype:?} {geometry:?} {sizes:?} of {d} into {k}"), &case)?;
        }
    }
    Ok(())
}

/// One class over everything, beside classes that are fused.
fn many(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let d = if dtype == DType::F32 { 24 } else { 48 };
        let points = |n, seed| Stored::new(dtype, &blobs(n, d, 30, seed), d);
        let labels = labels_of(&[900, 900, 30]);
        let mut case = ClustersCase::new(points(labels.len(), 4), Some(labels), 1);
        case.counts = vec![65, 64, 2];
        (case.start, case.max_iterations) = (ClustersStart::Random(3), 2);
        as_on_the_cpu(backend, &format!("{dtype:?}: classes into 65, 64 and 2"), &case)?;
    }
    Ok(())
}

/// No rounds: the centroids are the rows that the definition chooses.
fn starts(backend: &dyn Backend) -> Outcome {
    for (sizes, d) in [(vec![40, 300, 3], 6), (vec![700, 50], 40)] {
        let labels = labels_of(&sizes);
        let x = data::integers(labels.len(), d, 1);
        let mut case = ClustersCase::new(Stored::new(DType::F32, &x, d), Some(labels.clone()), 5);
        case.max_iterations = 0;
        let found = backend.clusters(&case)?;
        let mut expected = Vec::new();
        for (label, rows) in reference::classes(&labels) {
            let own: Vec<f64> = rows.iter().flat_map(|r| data::widen(&x[r * d..(r + 1) * d])).collect();
            let draws = Draws::new(7, label);
            let steps = 0..rows.len().min(5) as u32;
            let uniforms: Vec<f64> = steps.map(|step| draws.uniform(step, 0)).collect();
            for chosen in reference::plus_plus(&own, d, &uniforms) {
                expected.extend(own[chosen * d..(chosen + 1) * d].iter().map(|v| *v as f32));
            }
        }
        ensure!(found.centroids == expected, "classes of {sizes:?}: k-means++ chose other rows");
        as_on_the_cpu(backend, &format!("no rounds, {sizes:?}"), &case)?;
    }
    // All rows are alike but the first: further rows have weight 0, and those that were chosen are not chosen again.
    for (n, d) in [(7, 3), (700, 40)] {
        let mut values = vec![5.0; n * d];
        values[..d].fill(9.0);
        let mut case = ClustersCase::new(Stored::new(DType::F32, &values, d), None, 4);
        case.max_iterations = 1;
        as_on_the_cpu(backend, &format!("{n} rows at two places"), &case)?;
    }
    Ok(())
}

/// Starts far away, so that most clusters have no row.
fn empty(backend: &dyn Backend) -> Outcome {
    for (n, d, k) in [(20, 3, 6), (300, 2, 40), (700, 32, 5), (700, 32, 66)] {
        for geometry in [Geometry::Euclidean, Geometry::Spherical] {
            if k > 10 && geometry == Geometry::Spherical {
                continue;
            }
            let mut start = data::integers(k, d, 5);
            start.iter_mut().skip(d).for_each(|v| *v += 100.0);
            let values = match geometry {
                Geometry::Spherical => axes(n, d, 6),
                _ => data::integers(n, d, 6),
            };
            let case = ClustersCase {
                geometry,
                start: ClustersStart::Given(start),
                max_iterations: 2,
                ..ClustersCase::new(Stored::new(DType::F32, &values, d), None, k)
            };
            as_on_the_cpu(backend, &format!("{geometry:?}, {k} starts far from {n} rows"), &case)?;
        }
    }
    // Rows that coincide with their centroid stay, and clusters stay empty.
    for (n, d) in [(20, 3), (700, 40)] {
        let mut few = vec![1.0; n * d];
        few[d..2 * d].fill(2.0);
        let start = [1.0f32, 9.0, 9.0, 9.0].into_iter().flat_map(|v| std::iter::repeat_n(v, d)).collect();
        let points = Stored::new(DType::F32, &few, d);
        let case = ClustersCase {
            start: ClustersStart::Given(start),
            max_iterations: 5,
            ..ClustersCase::new(points, None, 4)
        };
        as_on_the_cpu(backend, &format!("two places of {n} rows for four clusters"), &case)?;
    }
    Ok(())
}

fn far(backend: &dyn Backend) -> Outcome {
    for (n, d) in [(90, 7), (800, 40)] {
        let values: Vec<f32> = blobs(n, d, 3, 2).iter().map(|v| v + 1000.0).collect();
        let mut case = ClustersCase::new(Stored::new(DType::F32, &values, d), None, 3);
        case.max_iterations = 5;
        as_on_the_cpu(backend, &format!("{n} rows far from the origin"), &case)?;
        case.start = ClustersStart::Given(values[..3 * d].to_vec());
        as_on_the_cpu(backend, &format!("{n} rows far from the origin, given"), &case)?;
    }
    Ok(())
}

/// A tolerance that stops some classes early.
fn tolerance(backend: &dyn Backend) -> Outcome {
    for geometry in [Geometry::Euclidean, Geometry::Spherical] {
        for (sizes, d) in [(vec![60, 90, 30], 5), (vec![700, 40], 40)] {
            let labels = labels_of(&sizes);
            let values = match geometry {
                Geometry::Spherical => axes(labels.len(), d, 3),
                _ => data::integers(labels.len(), d, 3),
            };
            let mut case = ClustersCase::new(Stored::new(DType::F32, &values, d), Some(labels), 4);
            (case.geometry, case.max_iterations) = (geometry, 9);
            let slow = Cpu.clusters(&case)?.iterations;
            case.tolerance = 0.3;
            let fast = Cpu.clusters(&case)?.iterations;
            ensure!(fast.iter().sum::<u32>() < slow.iter().sum::<u32>(), "the tolerance stops nothing");
            as_on_the_cpu(backend, &format!("{geometry:?}, a tolerance, {sizes:?}"), &case)?;
        }
    }
    Ok(())
}

/// At the start of the definition, whose trajectory in f64 the rounds follow: within 10⁻⁶ of its inertia.
fn inertia(backend: &dyn Backend) -> Outcome {
    for (n, d, k) in [(150, 16, 6), (640, 40, 5), (700, 32, 66)] {
        for geometry in [Geometry::Euclidean, Geometry::Spherical] {
            let mut x = data::normal(n, d, 5);
            for (row, x) in x.chunks_exact_mut(d).enumerate() {
                x[row % d] += 4.0;
            }
            let case = ClustersCase {
                geometry,
                start: ClustersStart::Given(x[..k * d].to_vec()),
                max_iterations: 3,
                ..ClustersCase::new(Stored::new(DType::F32, &x, d), None, k)
            };
            let found = backend.clusters(&case)?;
            let (wide, unit) = (data::widen(&x), geometry == Geometry::Spherical);
            let truth = reference::lloyd(&wide, d, &wide[..k * d], case.max_iterations, unit);
            let error = (found.inertia[0] - truth.inertia).abs() / truth.inertia;
            ensure!(error <= 1e-6, "{geometry:?} [{n}, {d}] into {k}: inertia is off by {error:e}");
        }
    }
    Ok(())
}

/// A class alone, and among others that come in another order: the same bits.
fn others(backend: &dyn Backend) -> Outcome {
    for (sizes, d) in [(vec![40, 70, 30], 9), (vec![30, 700, 600], 40)] {
        let labels = labels_of(&sizes);
        let n = labels.len();
        let x = Stored::new(DType::F32, &data::normal(n, d, 8), d);
        let case = |rows: &[usize]| ClustersCase {
            max_iterations: 4,
            ..ClustersCase::new(x.select(rows), Some(rows.iter().map(|row| labels[*row]).collect()), 4)
        };
        let every: Vec<usize> = (0..n).collect();
        let all = backend.clusters(&case(&every))?;
        let own: Vec<usize> = (0..n).filter(|row| labels[*row] == 1007).collect();
        let mut first = own.clone();
        first.extend((0..n).rev().filter(|row| labels[*row] != 1007));
        for order in [own, first] {
            let some = backend.clusters(&case(&order))?;
            let at = some.labels.iter().position(|label| *label == 1007).unwrap_or_default();
            let (a, b) = (all.offsets[1]..all.offsets[2], some.offsets[at]..some.offsets[at + 1]);
            let of = |found: &SubClusters, own: &std::ops::Range<usize>| {
                let mut numbers = bits(&found.centroids[own.start * d..own.end * d]);
                numbers.extend(bits(&found.spread[own.clone()]));
                numbers.extend(bits(&found.mean_distance[own.clone()]));
                numbers.extend(&found.sizes[own.clone()]);
                numbers
            };
            ensure!(of(&all, &a) == of(&some, &b), "{sizes:?}: another class changed the clusters");
            ensure!(all.inertia[1].to_bits() == some.inertia[at].to_bits(), "{sizes:?}: inertia");
            for (place, row) in order.iter().enumerate().filter(|(_, row)| labels[**row] == 1007) {
                let (whole, part) =
                    (all.assignment[*row] as usize - a.start, some.assignment[place] as usize - b.start);
                let margins = all.margin[*row].to_bits() == some.margin[place].to_bits();
                ensure!(whole == part && margins, "{sizes:?}: row {row} is elsewhere");
            }
        }
    }
    Ok(())
}

/// Rows of 16 bits fit on chip where those of 32 do not: the same numbers give the same bits, all of them.
fn both_ways(backend: &dyn Backend) -> Outcome {
    for (n, d, k, offset, geometry) in [
        (769, 40, 5, 0.0, Geometry::Spherical),
        (769, 40, 5, 30.0, Geometry::Euclidean),
        (600, 48, 66, 0.0, Geometry::Euclidean),
    ] {
        let values: Vec<f32> = data::normal(n, d, 4).iter().map(|v| v + offset).collect();
        let short = Stored::new(DType::F16, &values, d);
        let values: Vec<f32> = (0..n).flat_map(|row| short.row(row).to_vec()).collect();
        let long = Stored::new(DType::F32, &values, d);
        let mut case = ClustersCase::new(short, None, k);
        (case.geometry, case.max_iterations) = (geometry, 3);
        if k > 10 {
            case.start = ClustersStart::Random(1);
        }
        let on_chip = backend.clusters(&case)?;
        let streamed = backend.clusters(&ClustersCase { points: long, ..case })?;
        let what = format!("{geometry:?} [{n}, {d}] into {k}");
        same(&what, n, &streamed, &on_chip)?;
        let all = |found: &SubClusters| (bits(&found.spread), bits(&found.mean_distance));
        ensure!(all(&streamed) == all(&on_chip), "{what}: statistics differ");
        let inertia = |found: &SubClusters| found.inertia[0].to_bits();
        ensure!(inertia(&streamed) == inertia(&on_chip), "{what}: inertia differs");
    }
    Ok(())
}

fn refused(backend: &dyn Backend) -> Outcome {
    for (n, d) in [(50, 8), (700, 40)] {
        let labels = labels_of(&[n - 3, 3]);
        let points = Stored::new(DType::F32, &data::integers(n, d, 1), d);
        let good = ClustersCase {
            geometry: Geometry::Spherical,
            max_iterations: 2,
            ..ClustersCase::new(points, Some(labels), 3)
        };
        let row = |value: f32| {
            let mut case = good.clone();
            case.points.set_row(33, value);
            case
        };
        let with = |change: &dyn Fn(&mut ClustersCase)| {
            let mut case = good.clone();
            change(&mut case);
            case
        };
        let mut large = row(1e19);
        large.geometry = Geometry::Euclidean;
        for (case, parts) in [
            (row(f32::NAN), ["points", "33"]),
            (row(f32::INFINITY), ["points", "33"]),
            (row(0.0), ["points", "33"]),
            (large, ["points", "33"]),
            (with(&|case| case.counts = vec![0]), ["`count`", "0"]),
            (with(&|case| case.counts = vec![1; 3]), ["`count`", "3"]),
            (with(&|case| case.tolerance = f64::NAN), ["`tolerance`", "NaN"]),
            (with(&|case| case.labels = Some(vec![1; 5])), ["`labels`", "5"]),
            (with(&|case| case.start = ClustersStart::Given(vec![1.0; d])), ["`start`", "1"]),
            (with(&|case| case.start = ClustersStart::Given(vec![0.0; 6 * d])), ["`start`", "zero"]),
            (with(&|case| case.points = Stored::new(DType::F32, &[], d)), ["`points`", "empty"]),
        ] {
            match backend.clusters(&case) {
                Ok(_) => return Err(format!("no error that names {parts:?}")),
                Err(text) => {
                    let named = parts.iter().chain(&["sub_clusters"]).all(|part| text.contains(part));
                    ensure!(named, "`{text}` does not name {parts:?}");
                }
            }
        }
        // A good call after the bad ones.
        as_on_the_cpu(backend, "after errors", &good)?;
    }
    Ok(())
}
