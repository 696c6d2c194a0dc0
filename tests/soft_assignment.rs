//! Soft assignment: the op against the definition in f64, within bounds that follow from its arithmetic.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    Error, Geometry, SoftAffinity, SoftAssignment, SoftAssignmentOptions, soft_assignment, soft_centroids,
};
use consonance_reference::{
    clusters::{squared_distance, unit_rows},
    soft_assignment::{self as reference, Affinity},
};
use consonance_testkit::{
    data::{self, widen},
    threads::on_1_2_8_threads,
};
use proptest::prelude::*;

const U: f64 = 1.0 / 16_777_216.0;

fn matrix(x: &[f32], d: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / d, d), &Device::Cpu).unwrap()
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn integers(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(s: &SoftAssignment) -> Vec<u32> {
    let mut out = integers(&s.best);
    for t in [&s.log_sum_exp, &s.entropy, &s.best_probability] {
        out.extend(floats(t).iter().map(|x| x.to_bits()));
    }
    if let Some((indices, probabilities)) = &s.nearest {
        out.extend(integers(indices));
        out.extend(floats(probabilities).iter().map(|x| x.to_bits()));
    }
    out
}

fn affinities(kind: usize, k: usize) -> (SoftAffinity, Affinity) {
    let scales: Vec<f64> = (0..k).map(|j| 0.25 + 0.125 * (j % 9) as f64).collect();
    match kind {
        0 => (SoftAffinity::Exponential { rate: 4.0 }, Affinity::Exponential(4.0)),
        1 => (SoftAffinity::Gaussian { sigma: 0.25 }, Affinity::Gaussian(0.25)),
        2 => (SoftAffinity::Scaled(scales.clone()), Affinity::Scaled(scales)),
        _ => (SoftAffinity::ScaledGaussian(scales.clone()), Affinity::ScaledGaussian(scales)),
    }
}

/// Compares with the definition; returns the worst ratio to the bound.
///
/// A squared distance is the rounded difference form, or the product form where it exceeds 1/64 of
/// ‖x‖² + ‖c‖²: there its relative error is at most 64·(D + 8)·u. The square root halves it, so a score is off by
/// δ = ρ·max|s| with ρ = 64·(D + 8)·u + 8u (unit rows, scales and products are rounded too). Then |δ lse| ≤ δ,
/// |δH| ≤ Σ p |ln p + H| · 2δ ≤ 4δH, and the sums of a tile add 32u, of which the entropy sees 1 + ln K times.
fn compare(
    x: &[f64],
    c: &[f64],
    d: usize,
    affinity: &Affinity,
    m: Option<usize>,
    got: &SoftAssignment,
) -> f64 {
    let k = c.len() / d;
    let (lse, entropy) = (floats(&got.log_sum_exp), floats(&got.entropy));
    let (best, top) = (integers(&got.best), floats(&got.best_probability));
    let rho = 64.0 * (d as f64 + 8.0) * U + 8.0 * U;
    let mut worst = 0.0f64;
    for (i, x) in x.chunks(d).enumerate() {
        let squared: Vec<f64> = c.chunks(d).map(|c| squared_distance(x, c)).collect();
        let mut all: Vec<f64> = squared.iter().enumerate().map(|(j, s)| affinity.score(j, *s)).collect();
        if let (Some(m), Some((indices, probabilities))) = (m, &got.nearest) {
            let m = m.min(k);
            let (indices, probabilities) = (integers(indices), floats(probabilities));
            let indices = &indices[i * m..(i + 1) * m];
            // The listed are the nearest, up to the error of the products that ranked them.
            let limit = reference::nearest(&squared, m)[m - 1].1;
            let slack = 8.0 * (d as f64 + 8.0) * U * 4.0 * squared.iter().copied().fold(1.0, f64::max);
            let mut seen = indices.to_vec();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), m);
            for j in indices {
                worst = worst.max((squared[*j as usize] - limit) / slack);
            }
            for (j, s) in all.iter_mut().enumerate() {
                if !indices.contains(&(j as u32)) {
                    *s = f64::NEG_INFINITY;
                }
            }
            let total = reference::log_sum_exp(&all);
            for (j, p) in indices.iter().zip(&probabilities[i * m..(i + 1) * m]) {
                let (s, p) = (all[*j as usize], f64::from(*p));
                let bound = 2.0 * rho * s.abs().max(total.abs()) + 64.0 * U;
                worst = worst.max((p - (s - total).exp()).abs() / bound);
            }
        }
        let size = all.iter().filter(|s| s.is_finite()).fold(0.0, |a: f64, s| a.max(s.abs()));
        let delta = rho * size;
        let h = reference::entropy(&all);
        let total = reference::log_sum_exp(&all);
        let rounding = 64.0 * U * (1.0 + (k as f64).ln());
        worst = worst.max((f64::from(lse[i]) - total).abs() / (delta + rounding + U * total.abs()));
        worst = worst.max((f64::from(entropy[i]) - h).abs() / (4.0 * delta * h + rounding));
        let largest = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        worst = worst.max((largest - all[best[i] as usize]) / (2.0 * delta + 1e-300));
        let p = (all[best[i] as usize] - total).exp();
        worst = worst.max((f64::from(top[i]) - p).abs() / (2.0 * delta + rounding));
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_agrees_with_the_definition(
        n in prop::sample::select(vec![1usize, 2, 13, 127, 129, 257]),
        k in prop::sample::select(vec![1usize, 2, 31, 32, 33, 255, 256, 257, 300, 521]),
        d in prop::sample::select(vec![1usize, 3, 16, 33]),
        kind in 0usize..4,
        m in prop::sample::select(vec![0usize, 1, 3, 20, 1000]),
        unit in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let (x, c) = (data::normal(n, d, seed), data::normal(k, d, seed + 1));
        let (affinity, truth) = affinities(kind, k);
        let geometry = if unit { Geometry::Spherical } else { Geometry::Euclidean };
        let mut options = SoftAssignmentOptions::new(affinity).with_geometry(geometry);
        options.nearest = (m > 0).then_some(m);
        let got = soft_assignment(&matrix(&x, d), &matrix(&c, d), &options).unwrap();
        let (x, c) = (widen(&x), widen(&c));
        let (x, c) = if unit { (unit_rows(&x, d), unit_rows(&c, d)) } else { (x, c) };
        let ratio = compare(&x, &c, d, &truth, options.nearest, &got);
        prop_assert!(ratio <= 1.0, "ratio {}", ratio);
    }
}

#[test]
fn golden_entropies_of_three_directions() {
    let at = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
    let x: Vec<f32> = [5.0, 90.0, 40.0, 45.0, 130.0].iter().flat_map(|a| at(*a)).collect();
    let c: Vec<f32> = [0.0, 90.0, 180.0].iter().flat_map(|a| at(*a)).collect();
    let options = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 4.0 });
    let got = soft_assignment(&matrix(&x, 2), &matrix(&c, 2), &options).unwrap();
    let golden = [0.042464, 0.046213, 0.674178, 0.728043, 0.681526];
    for (h, golden) in floats(&got.entropy).iter().zip(golden) {
        assert!((f64::from(*h) - golden).abs() < 1e-6, "{h} against {golden}");
    }
}

#[test]
fn a_row_alone_has_the_bits_it_has_in_the_batch_and_threads_change_nothing() {
    let (n, d) = (300, 24);
    let x = matrix(&data::normal(n, d, 1), d);
    for (k, m) in [(7, None), (90, None), (600, Some(5))] {
        let c = matrix(&data::normal(k, d, 2), d);
        let mut options = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 2.0 });
        options.nearest = m;
        let [whole, two, eight] = on_1_2_8_threads(|| bits(&soft_assignment(&x, &c, &options).unwrap()));
        assert_eq!(whole, two);
        assert_eq!(whole, eight);
        let whole = soft_assignment(&x, &c, &options).unwrap();
        for row in [0, 1, 127, 128, 250, 299] {
            let alone = soft_assignment(&x.narrow(0, row, 1).unwrap(), &c, &options).unwrap();
            for (a, b) in [(&alone.entropy, &whole.entropy), (&alone.log_sum_exp, &whole.log_sum_exp)] {
                assert_eq!(floats(a)[0].to_bits(), floats(b)[row].to_bits(), "row {row} of {k} centroids");
            }
        }
    }
}

#[test]
fn views_and_half_precision_give_the_bits_of_their_plain_copies() {
    let x = matrix(&data::normal(60, 50, 1), 50);
    let options = SoftAssignmentOptions::new(SoftAffinity::Gaussian { sigma: 0.5 }).with_nearest(4);
    let centroids = matrix(&data::normal(80, 60, 2), 60);
    let views = [
        (x.narrow(0, 9, 40).unwrap().narrow(1, 5, 12).unwrap(), centroids.narrow(1, 9, 12).unwrap()),
        (x.t().unwrap(), centroids.clone()),
    ];
    for (x, c) in views {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (x, c) = (x.to_dtype(dtype).unwrap(), c.to_dtype(dtype).unwrap());
            let plain = |t: &Tensor| Tensor::from_vec(floats(t), t.dims(), &Device::Cpu).unwrap();
            let copied = soft_assignment(&plain(&x), &plain(&c), &options).unwrap();
            assert_eq!(bits(&soft_assignment(&x, &c, &options).unwrap()), bits(&copied));
        }
        let copied =
            soft_assignment(&x.force_contiguous().unwrap(), &c.force_contiguous().unwrap(), &options);
        assert_eq!(bits(&soft_assignment(&x, &c, &options).unwrap()), bits(&copied.unwrap()));
    }
}

#[test]
fn steep_scores_stay_finite() {
    let (x, c) = (matrix(&data::normal(40, 8, 1), 8), matrix(&data::normal(300, 8, 2), 8));
    for affinity in [SoftAffinity::Exponential { rate: 1e38 }, SoftAffinity::Gaussian { sigma: 1e-18 }] {
        for geometry in [Geometry::Euclidean, Geometry::Spherical] {
            let options = SoftAssignmentOptions::new(affinity.clone()).with_geometry(geometry);
            for options in [options.clone(), options.with_nearest(3)] {
                let got = soft_assignment(&x, &c, &options).unwrap();
                let entropy = floats(&got.entropy);
                assert!(entropy.iter().all(|h| (0.0..=300f32.ln() + 1e-4).contains(h)), "{entropy:?}");
                assert!(floats(&got.log_sum_exp).iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn bad_input_gets_an_error_that_names_it() {
    let (x, c) = (matrix(&data::normal(10, 4, 1), 4), matrix(&data::normal(5, 4, 2), 4));
    let fails = |x: &Tensor, c: &Tensor, options: &SoftAssignmentOptions, words: &str| {
        let message = soft_assignment(x, c, options).unwrap_err().to_string();
        assert!(message.starts_with("soft_assignment: ") && message.contains(words), "{message}");
    };
    let rate = |rate| SoftAssignmentOptions::new(SoftAffinity::Exponential { rate });
    fails(&x, &c, &rate(0.0), "`rate` is 0");
    fails(&x, &c, &rate(f64::NAN), "`rate` is NaN");
    fails(&x, &c, &rate(1e300), "`rate` is");
    fails(&x, &c, &rate(1.0).with_nearest(0), "`nearest` is 0");
    fails(&x, &c, &SoftAssignmentOptions::new(SoftAffinity::Scaled(vec![1.0; 4])), "`scales` has shape [4]");
    let bad = SoftAffinity::ScaledGaussian(vec![1.0, 1.0, -1.0, 1.0, 1.0]);
    fails(&x, &c, &SoftAssignmentOptions::new(bad), "`scales` is -1");
    fails(&x, &c.narrow(1, 0, 3).unwrap(), &rate(1.0), "`centroids` has shape [5, 3]");
    fails(&x.narrow(0, 0, 0).unwrap(), &c, &rate(1.0), "`points` is empty");
    fails(&x, &c.narrow(0, 0, 0).unwrap(), &rate(1.0), "`centroids` is empty");
    fails(&x, &c.zeros_like().unwrap(), &rate(1.0), "`centroids` row 0 has norm zero");
    fails(&(&x / 0.0).unwrap(), &c, &rate(1.0), "`points` row 0 is not finite");
    let tracked = Var::from_tensor(&c).unwrap();
    let error = soft_assignment(&x, tracked.as_tensor(), &rate(1.0)).unwrap_err();
    assert!(matches!(error, Error::NotDifferentiable { argument: "centroids", .. }), "{error}");
}

/// Six parts of the rows, more than one tile of centroids; the definition is that of the suite in `crates/testkit`.
#[test]
fn a_soft_update_has_the_same_bits_for_any_number_of_threads() {
    let (x, c) = (matrix(&data::normal(700, 12, 1), 12), matrix(&data::normal(300, 12, 2), 12));
    let options = SoftAssignmentOptions::new(SoftAffinity::Gaussian { sigma: 0.5 });
    let [one, two, eight] = on_1_2_8_threads(|| {
        let moved = soft_centroids(&x, &c, &options).unwrap();
        [floats(&moved.centroids), floats(&moved.mass)]
            .concat()
            .iter()
            .map(|v| v.to_bits())
            .collect::<Vec<_>>()
    });
    assert_eq!(one, two);
    assert_eq!(one, eight);
    let moved = soft_centroids(&x, &c, &options).unwrap();
    assert_eq!(bits(&moved.assignment), bits(&soft_assignment(&x, &c, &options).unwrap()));
    // All points are shared out.
    let mass: f64 = floats(&moved.mass).iter().map(|m| f64::from(*m)).sum();
    assert!((mass - 700.0).abs() < 700.0 * 64.0 * U, "{mass}");
    let error = soft_centroids(&x, &c, &options.with_nearest(3)).unwrap_err().to_string();
    assert!(error.starts_with("soft_centroids: `nearest` is 3"), "{error}");
}
