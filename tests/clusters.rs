//! Sub-clusters: the op against the definition, exactly on integers and by certificates on real inputs.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    ClusterCount, ClusterStart, Error, Geometry, SubClusters, SubClustersOptions, sub_clusters,
};
use consonance_cpu::clusters::philox::Draws;
use consonance_reference::clusters as reference;
use consonance_testkit::{
    data::{self, widen},
    threads::on_1_2_8_threads,
};
use proptest::prelude::*;

fn matrix(x: &[f32], d: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / d, d), &Device::Cpu).unwrap()
}

fn vector(x: &[u32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap()
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(t: &Tensor) -> Vec<u32> {
    t.to_vec1().unwrap()
}

fn euclidean(k: usize) -> SubClustersOptions {
    SubClustersOptions::new().with_geometry(Geometry::Euclidean).with_count(ClusterCount::Fixed(k))
}

/// Every bit of a result, so that two can be compared.
fn bits(c: &SubClusters) -> Vec<u64> {
    let mut out: Vec<u64> = c.labels.iter().map(|l| u64::from(*l)).collect();
    out.extend(c.offsets.iter().map(|o| *o as u64));
    out.extend(c.inertia.iter().map(|x| x.to_bits()));
    out.extend(c.iterations.iter().map(|x| u64::from(*x)));
    for t in [&c.centroids, &c.spread, &c.mean_distance, &c.margin] {
        out.extend(floats(t).iter().map(|x| u64::from(x.to_bits())));
    }
    for t in [&c.sizes, &c.assignment] {
        out.extend(integers(t).iter().map(|x| u64::from(*x)));
    }
    out
}

/// Checks a result against its own centroids in f64: every row is with its nearest centroid of its class up to
/// the error bound of the f32 products, and all statistics follow. Returns the worst ratio to a bound.
fn certify(x: &[f32], d: usize, labels: &[u32], unit: bool, found: &SubClusters) -> f64 {
    let x = if unit { reference::unit_rows(&widen(x), d) } else { widen(x) };
    let centroids = widen(&floats(&found.centroids));
    let (assignment, sizes) = (integers(&found.assignment), integers(&found.sizes));
    let (spread, mean_distance) = (floats(&found.spread), floats(&found.mean_distance));
    let margin = floats(&found.margin);
    let classes = reference::classes(labels);
    assert_eq!(found.labels, classes.iter().map(|(label, _)| *label).collect::<Vec<_>>());
    assert_eq!(found.offsets.len(), classes.len() + 1);
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut worst = 0.0f64;
    for (class, (_, rows)) in classes.iter().enumerate() {
        let own = found.offsets[class]..found.offsets[class + 1];
        let clusters = &centroids[own.start * d..own.end * d];
        let largest = clusters.chunks(d).map(norm).fold(0.0, f64::max);
        let mut sums = vec![(0usize, 0.0, 0.0); own.len()];
        let mut inertia = 0.0;
        for row in rows {
            let x = &x[row * d..(row + 1) * d];
            let mut far: Vec<f64> = clusters.chunks(d).map(|c| reference::squared_distance(x, c)).collect();
            let mine = assignment[*row] as usize - own.start;
            let least = far.iter().copied().fold(f64::INFINITY, f64::min);
            // Two scores, each off by at most (D + 2) u of the sum of its terms' magnitudes (products, half the
            // norm), twice that in squared distance; u = 2⁻²⁴, and rows, norms and centroids rounded once more.
            let u = 2f64.powi(-24);
            let size = norm(x) * largest + largest * largest + norm(x) * norm(x);
            let bound = 4.0 * (d as f64 + 6.0) * u * size;
            worst = worst.max((far[mine] - least) / bound);
            let s = std::mem::replace(&mut far[mine], f64::INFINITY);
            let second = far.iter().copied().fold(f64::INFINITY, f64::min);
            if second.is_finite() {
                worst = worst.max((f64::from(margin[*row]) - (second - s)).abs() / bound);
            } else {
                assert_eq!(margin[*row], f32::INFINITY);
            }
            sums[mine].0 += 1;
            sums[mine].1 += s;
            sums[mine].2 += s.sqrt();
            inertia += s;
        }
        // Rows (on the sphere) and centroids are rounded to f32: each lies within 4u of its norm of the f64 one,
        // so a distance s is off by δ and s² by 2sδ + δ²; the result is rounded once more.
        let u = 2f64.powi(-24);
        let delta = 4.0 * u * largest.max(f64::from(u8::from(unit)));
        let square = |s2: f64| 2.0 * s2.sqrt() * delta + delta * delta + u * s2;
        let inertia_bound =
            2.0 * delta * (inertia * rows.len() as f64).sqrt() + rows.len() as f64 * delta * delta;
        worst =
            worst.max((found.inertia[class] - inertia).abs() / (inertia_bound + 1e-12 * inertia + 1e-300));
        for (k, (count, squares, distances)) in sums.iter().enumerate() {
            let n = (*count).max(1) as f64;
            assert_eq!(sizes[own.start + k] as usize, *count);
            let (squares, distances) = (squares / n, distances / n);
            let got = (f64::from(spread[own.start + k]), f64::from(mean_distance[own.start + k]));
            worst = worst.max((got.0 - squares).abs() / (square(squares) + 1e-300));
            worst = worst.max((got.1 - distances).abs() / (delta + u * distances + 1e-300));
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn ragged_classes_of_any_shape_agree_with_the_definition(
        n in prop::sample::select(vec![1usize, 2, 13, 64, 127, 257, 521]),
        d in prop::sample::select(vec![1usize, 3, 16, 33]),
        classes in 1u32..9,
        k in prop::sample::select(vec![1usize, 2, 5, 31, 40]),
        unit in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let x = data::normal(n, d, seed);
        let labels: Vec<u32> = data::labels(n, classes, seed + 1).iter().map(|l| l * 1_000_003 + 5).collect();
        let geometry = if unit { Geometry::Spherical } else { Geometry::Euclidean };
        let options = euclidean(k).with_geometry(geometry).with_max_iterations(6)
            .with_start(ClusterStart::PlusPlus { seed });
        let found = sub_clusters(&matrix(&x, d), Some(&vector(&labels)), &options).unwrap();
        for (class, (_, rows)) in reference::classes(&labels).iter().enumerate() {
            prop_assert_eq!(found.offsets[class + 1] - found.offsets[class], k.min(rows.len()));
        }
        let ratio = certify(&x, d, &labels, unit, &found);
        prop_assert!(ratio <= 1.0, "ratio {}", ratio);
    }
}

#[test]
fn integer_rows_are_assigned_and_averaged_bit_for_bit() {
    for (n, d, k) in [(1, 1, 1), (50, 4, 3), (300, 3, 7), (521, 8, 40), (700, 2, 300), (1000, 5, 600)] {
        let x = data::integers(n, d, 11);
        let start = data::integers(k, d, 12);
        let run = |iterations| {
            let options = euclidean(k)
                .with_start(ClusterStart::Given(matrix(&start, d)))
                .with_max_iterations(iterations);
            let got = sub_clusters(&matrix(&x, d), None, &options).unwrap();
            (got, reference::lloyd(&widen(&x), d, &widen(&start), iterations, false))
        };
        let (got, truth) = run(0);
        let assignment: Vec<usize> = integers(&got.assignment).iter().map(|a| *a as usize).collect();
        assert_eq!(assignment, truth.assignment, "{n} x {d} into {k}");
        let sizes: Vec<usize> = integers(&got.sizes).iter().map(|a| *a as usize).collect();
        assert_eq!(sizes, truth.sizes);
        assert_eq!(got.inertia[0].to_bits(), truth.inertia.to_bits());
        let margin: Vec<f64> = widen(&floats(&got.margin));
        assert_eq!(margin, truth.margin);
        // After one round the centroids are exact sums over exact counts, rounded once.
        let (got, truth) = run(1);
        let centroids: Vec<f32> = truth.centroids.iter().map(|c| *c as f32).collect();
        assert_eq!(floats(&got.centroids), centroids, "{n} x {d} into {k}");
    }
}

#[test]
fn integer_rows_in_classes_start_from_the_rows_that_the_definition_chooses() {
    let (n, d, k, seed) = (400, 6, 5, 99);
    let (x, labels) = (data::integers(n, d, 1), data::labels(n, 7, 2));
    let options = euclidean(k).with_max_iterations(0).with_start(ClusterStart::PlusPlus { seed });
    let found = sub_clusters(&matrix(&x, d), Some(&vector(&labels)), &options).unwrap();
    let mut truth = Vec::new();
    for (label, rows) in reference::classes(&labels) {
        let own: Vec<f64> = rows.iter().flat_map(|r| widen(&x[r * d..(r + 1) * d])).collect();
        let draws = Draws::new(seed, label);
        let uniforms: Vec<f64> = (0..k as u32).map(|step| draws.uniform(step, 0)).collect();
        for chosen in reference::plus_plus(&own, d, &uniforms) {
            truth.extend(own[chosen * d..(chosen + 1) * d].iter().map(|v| *v as f32));
        }
    }
    assert_eq!(floats(&found.centroids), truth);
}

#[test]
fn inertia_is_that_of_the_f64_reference_at_the_same_start() {
    for (n, d, k, unit, offset) in [
        (900, 16, 12, false, 0.0),
        (900, 16, 12, true, 0.0),
        (700, 8, 50, false, 0.0),
        (3000, 40, 30, false, 0.0),
        (3000, 40, 30, true, 0.0),
        (2000, 48, 300, false, 0.0),
        (2000, 48, 64, false, 1e3),
        (500, 8, 6, false, 1e3),
    ] {
        let mut x = data::normal(n, d, 5);
        for (i, row) in x.chunks_mut(d).enumerate() {
            row[i % d] += 4.0;
            row.iter_mut().for_each(|v| *v += offset);
        }
        let start = x[..k * d].to_vec();
        let geometry = if unit { Geometry::Spherical } else { Geometry::Euclidean };
        let options = euclidean(k)
            .with_geometry(geometry)
            .with_start(ClusterStart::Given(matrix(&start, d)))
            .with_max_iterations(10);
        let found = sub_clusters(&matrix(&x, d), None, &options).unwrap();
        let truth = reference::lloyd(&widen(&x), d, &widen(&start), 10, unit);
        let relative = (found.inertia[0] - truth.inertia).abs() / truth.inertia;
        println!("inertia, {n} x {d} into {k}, offset {offset}: relative difference {relative:.1e}");
        assert!(relative < 1e-6, "{relative:e}");
    }
}

#[test]
fn more_rounds_never_raise_the_inertia() {
    for geometry in [Geometry::Euclidean, Geometry::Spherical] {
        let (x, labels) = (matrix(&data::normal(2000, 12, 3), 12), vector(&data::labels(2000, 4, 4)));
        let mut before = vec![f64::INFINITY; 4];
        for rounds in 0..12 {
            let options = euclidean(9).with_geometry(geometry).with_max_iterations(rounds);
            let now = sub_clusters(&x, Some(&labels), &options).unwrap().inertia;
            for (now, before) in now.iter().zip(&before) {
                assert!(*now <= before * (1.0 + 1e-6), "round {rounds}: {now} after {before}");
            }
            before = now;
        }
    }
}

#[test]
fn the_same_bits_on_1_2_and_8_threads() {
    // The larger one is summed by several owners, and its 300 centroids take two blocks of sums.
    for (n, d, counts) in [(3000, 20, [6, 70, 3]), (5000, 64, [12, 40, 300])] {
        let (x, labels) = (matrix(&data::normal(n, d, 8), d), vector(&data::labels(n, 9, 9)));
        for (labels, k) in [(Some(&labels), counts[0]), (None, counts[1]), (None, counts[2])] {
            for geometry in [Geometry::Euclidean, Geometry::Spherical] {
                let options = euclidean(k).with_geometry(geometry);
                let [one, two, eight] =
                    on_1_2_8_threads(|| bits(&sub_clusters(&x, labels, &options).unwrap()));
                assert_eq!(one, two);
                assert_eq!(one, eight);
            }
        }
    }
}

#[test]
fn other_classes_and_their_order_leave_a_class_alone() {
    let (n, d) = (900, 10);
    let (x, labels) = (data::normal(n, d, 8), data::labels(n, 6, 9));
    let options = SubClustersOptions::new();
    let all = sub_clusters(&matrix(&x, d), Some(&vector(&labels)), &options).unwrap();
    // Class 4 alone, then all classes with their rows interleaved otherwise: first those of class 4.
    let rows: Vec<usize> = (0..n).filter(|i| labels[*i] == 4).collect();
    let rest: Vec<usize> = (0..n).rev().filter(|i| labels[*i] != 4).collect();
    let reordered: Vec<usize> = rows.iter().chain(&rest).copied().collect();
    for order in [&rows, &reordered] {
        let part: Vec<f32> = order.iter().flat_map(|r| x[r * d..(r + 1) * d].to_vec()).collect();
        let part_labels: Vec<u32> = order.iter().map(|r| labels[*r]).collect();
        let some = sub_clusters(&matrix(&part, d), Some(&vector(&part_labels)), &options).unwrap();
        let class = some.labels.iter().position(|l| *l == 4).unwrap();
        let (a, b) = (all.offsets[4]..all.offsets[5], some.offsets[class]..some.offsets[class + 1]);
        assert_eq!(
            floats(&all.centroids)[a.start * d..a.end * d],
            floats(&some.centroids)[b.start * d..b.end * d]
        );
        assert_eq!(all.inertia[4].to_bits(), some.inertia[class].to_bits());
        let (whole, some) = (integers(&all.assignment), integers(&some.assignment));
        for (i, row) in order.iter().enumerate().filter(|(_, row)| labels[**row] == 4) {
            assert_eq!(whole[*row] as usize - a.start, some[i] as usize - b.start);
        }
    }
}

#[test]
fn views_and_half_precision_give_the_bits_of_their_plain_copies() {
    let wide = matrix(&data::normal(90, 40, 1), 40);
    let labels = vector(&data::labels(60, 4, 2));
    let options = SubClustersOptions::new();
    let plain = |x: &Tensor| {
        let copy =
            Tensor::from_vec(floats(&x.to_dtype(DType::F32).unwrap()), x.dims(), &Device::Cpu).unwrap();
        bits(&sub_clusters(&copy, Some(&labels), &options).unwrap())
    };
    let views = [
        wide.narrow(0, 7, 60).unwrap(),
        wide.narrow(0, 30, 60).unwrap().narrow(1, 3, 17).unwrap(),
        matrix(&data::normal(33, 60, 3), 60).t().unwrap(),
    ];
    for view in views {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let view = view.to_dtype(dtype).unwrap();
            assert_eq!(bits(&sub_clusters(&view, Some(&labels), &options).unwrap()), plain(&view));
        }
        assert_eq!(bits(&sub_clusters(&view, Some(&labels), &options).unwrap()), plain(&view));
    }
}

#[test]
fn empty_clusters_take_the_farthest_rows_and_duplicates_leave_empty_ones() {
    let x = matrix(&[0.0, 1.0, 2.0, 3.0, 9.0, 10.0], 1);
    let start = matrix(&[1.0, 100.0, 200.0], 1);
    let options = euclidean(3).with_start(ClusterStart::Given(start)).with_max_iterations(1);
    let found = sub_clusters(&x, None, &options).unwrap();
    // The two farthest rows from 1, 10 and 9, found clusters of their own.
    assert_eq!(floats(&found.centroids), [1.5, 10.0, 9.0]);
    assert_eq!(integers(&found.sizes), [4, 1, 1]);

    let same = matrix(&[5.0; 12], 3);
    for start in [ClusterStart::PlusPlus { seed: 3 }, ClusterStart::Random { seed: 3 }] {
        let found = sub_clusters(&same, None, &euclidean(3).with_start(start)).unwrap();
        assert_eq!(integers(&found.sizes), [4, 0, 0]);
        assert_eq!(floats(&found.spread), [0.0; 3]);
        assert_eq!(found.inertia, [0.0]);
    }
}

#[test]
fn counts_follow_the_rule_the_list_and_the_class_size() {
    let labels: Vec<u32> = (0..100).map(|i| if i < 98 { 3 } else { i - 90 }).collect();
    let x = matrix(&data::normal(100, 4, 1), 4);
    let run =
        |count| sub_clusters(&x, Some(&vector(&labels)), &euclidean(1).with_count(count)).unwrap().offsets;
    assert_eq!(run(ClusterCount::SquareRoot { max: 8 }), [0, 7, 8, 9]);
    assert_eq!(run(ClusterCount::SquareRoot { max: 4 }), [0, 4, 5, 6]);
    assert_eq!(run(ClusterCount::PerClass(vec![2, 1, 9])), [0, 2, 3, 4]);
    assert_eq!(run(ClusterCount::Fixed(200)), [0, 98, 99, 100]);
}

#[test]
fn bad_input_gets_an_error_that_names_it() {
    let x = matrix(&data::normal(10, 4, 1), 4);
    let labels = vector(&data::labels(10, 3, 2));
    let fails = |x: &Tensor, labels: Option<&Tensor>, options: &SubClustersOptions, words: &str| {
        let message = sub_clusters(x, labels, options).unwrap_err().to_string();
        assert!(message.starts_with("sub_clusters: ") && message.contains(words), "{message}");
    };
    let given = |t: Tensor| euclidean(2).with_start(ClusterStart::Given(t));
    fails(&x, None, &euclidean(0), "`count` is 0");
    fails(
        &x,
        Some(&labels),
        &euclidean(1).with_count(ClusterCount::PerClass(vec![1])),
        "`count` has shape [1]",
    );
    fails(&x, Some(&labels), &euclidean(1).with_count(ClusterCount::PerClass(vec![1, 0, 2])), "`count` is 0");
    fails(&x, Some(&labels.narrow(0, 0, 9).unwrap()), &euclidean(2), "`labels` has shape [9]");
    fails(&x.narrow(0, 0, 0).unwrap(), None, &euclidean(2), "`points` is empty");
    fails(&x.narrow(1, 0, 0).unwrap(), None, &euclidean(2), "`points` has shape [10, 0]");
    fails(&x.flatten_all().unwrap(), None, &euclidean(2), "`points` has 1 dimensions");
    fails(&x.to_dtype(DType::F64).unwrap(), None, &euclidean(2), "`points` has dtype F64");
    fails(&x, None, &euclidean(2).with_tolerance(f64::NAN), "`tolerance` is NaN");
    fails(&x, None, &given(x.narrow(0, 0, 3).unwrap()), "`start` has shape [3, 4]");
    fails(&x, None, &given((x.narrow(0, 0, 2).unwrap() / 0.0).unwrap()), "`start` row 0 is not finite");
    let with = |row: usize, value: f32| {
        let mut values = data::normal(10, 4, 1);
        values[row * 4..(row + 1) * 4].fill(value);
        matrix(&values, 4)
    };
    fails(&with(6, f32::NAN), None, &euclidean(2), "`points` row 6 is not finite");
    // Of several bad rows the first is named, whichever class comes first.
    let mut two = data::normal(10, 4, 1);
    two[8 * 4] = f32::INFINITY;
    two[5 * 4 + 3] = f32::NAN;
    let order = vector(&[0, 0, 0, 0, 0, 7, 0, 0, 3, 0]);
    fails(&matrix(&two, 4), Some(&order), &euclidean(2), "`points` row 5 is not finite");
    fails(&with(6, 1e30), None, &euclidean(2), "a row (6) of squared norm 4");
    fails(&with(3, 0.0), None, &SubClustersOptions::new(), "`points` row 3 has norm zero");
    let tracked = Var::from_tensor(&x).unwrap();
    let error = sub_clusters(tracked.as_tensor(), None, &euclidean(2)).unwrap_err();
    assert!(matches!(error, Error::NotDifferentiable { argument: "points", .. }), "{error}");
    assert!(sub_clusters(&tracked.detach(), None, &euclidean(2)).is_ok());
}
