//! The credibility filter: the op against the definition, each defect of the published port shown to be absent,
//! and planted label noise found.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    ClusterCount, Credibility, CredibilityOptions, Error, Geometry, Limit, Rule, Scale, SubClustersOptions,
    credibility, sub_clusters,
};
use consonance_reference::credibility as reference;
use consonance_testkit::{
    data::{self, widen},
    threads::on_1_2_8_threads,
};
use proptest::prelude::*;
use rand::Rng;

const U: f64 = 1.0 / 16_777_216.0;

fn matrix(x: &[f32], d: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / d, d), &Device::Cpu).unwrap()
}

fn vector(x: &[u32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap()
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec1().unwrap()
}

fn integers(t: &Tensor) -> Vec<u32> {
    t.to_vec1().unwrap()
}

fn mask(c: &Credibility) -> Vec<u8> {
    c.credible.to_vec1().unwrap()
}

fn bits(c: &Credibility) -> Vec<u32> {
    let mut out: Vec<u32> = mask(c).iter().map(|m| u32::from(*m)).collect();
    for t in [&c.entropy, &c.own_probability, &c.suspicion, &c.margin] {
        out.extend(floats(t).iter().map(|x| x.to_bits()));
    }
    out.extend(integers(&c.closer));
    out.extend(integers(&c.predicted));
    out
}

fn directions(degrees: &[f32]) -> Tensor {
    let x: Vec<f32> = degrees.iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect();
    matrix(&x, 2)
}

/// Three classes whose mean directions are 0°, 90° and 180°, by pairs about them.
const ANGLES: [f32; 13] = [5.0, -5.0, 40.0, -40.0, 45.0, -45.0, 90.0, 130.0, 50.0, 180.0, 180.0, 0.0, 90.0];
const CLASSES: [u32; 13] = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0, 1];

fn golden_options() -> CredibilityOptions {
    CredibilityOptions::new()
        .with_leave_one_out(false)
        .with_scale(Scale::Exponential { rate: 4.0 })
        .with_rule(Rule::Entropy(Limit::Share(0.5)))
}

/// Compares with the definition in f64. The bounds are those of `tests/soft_assignment.rs`, with the score's
/// relative error ρ grown by that of an estimated scale: own distances are off by at most 8u, a deviation σ by
/// as much, so s by |s|·8u/σ, a variance by twice that; 1/σ is at most max|s| because the largest distance
/// exceeds 1.
fn compare(got: &Credibility, truth: &reference::Credibility, d: usize, estimated: bool) -> f64 {
    let (entropy, suspicion, margin) = (floats(&got.entropy), floats(&got.suspicion), floats(&got.margin));
    let own = floats(&got.own_probability);
    let mut worst = 0.0f64;
    for i in 0..entropy.len() {
        let scores = &truth.scores[i];
        let size = scores.iter().fold(0.0f64, |a, s| a.max(s.abs()));
        let mut rho = 64.0 * (d as f64 + 8.0) * U + 8.0 * U;
        if estimated {
            rho += 16.0 * U * size.max(1.0);
        }
        let delta = rho * size;
        let rounding = 64.0 * U * (1.0 + (scores.len() as f64).ln());
        let (h, sus) = (truth.entropy[i], truth.suspicion[i]);
        worst = worst.max((f64::from(entropy[i]) - h).abs() / (4.0 * delta * h + rounding));
        worst = worst.max((f64::from(suspicion[i]) - sus).abs() / (2.0 * delta + rounding + U * sus));
        worst = worst.max((f64::from(own[i]) - (-sus).exp()).abs() / (2.0 * delta + rounding));
        if truth.margin[i].is_finite() {
            // Distances of at most 2 on the sphere.
            worst = worst
                .max((f64::from(margin[i]) - truth.margin[i]).abs() / (4.0 * 64.0 * (d as f64 + 8.0) * U));
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_shape_agrees_with_the_definition(
        n in prop::sample::select(vec![2usize, 13, 127, 129, 400]),
        classes in prop::sample::select(vec![1u32, 2, 5, 40, 300]),
        d in prop::sample::select(vec![2usize, 3, 16, 33]),
        loo in any::<bool>(),
        m in prop::sample::select(vec![0usize, 1, 4, 500]),
        gauss in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let (x, labels) = (data::normal(n, d, seed), data::labels(n, classes, seed + 1));
        let (scale, truth) = if gauss {
            (Scale::Gaussian { sigma: 0.5 }, reference::Scale::Gaussian(0.5))
        } else {
            (Scale::Exponential { rate: 3.0 }, reference::Scale::Exponential(3.0))
        };
        let mut options = CredibilityOptions::new().with_scale(scale).with_leave_one_out(loo);
        options.nearest = (m > 0).then_some(m);
        let got = credibility(&matrix(&x, d), &vector(&labels), &options).unwrap();
        let truth = reference::credibility(&widen(&x), d, &labels, true, loo, truth, options.nearest);
        // With the m nearest a tie up to rounding may choose another centroid: only the own statistics then.
        let ratio = compare(&got, &truth, d, false);
        prop_assert!(ratio <= 1.0, "ratio {}", ratio);
    }
}

#[test]
fn estimated_scales_agree_with_the_definition() {
    let (n, d) = (600, 16);
    let (x, labels) = (data::normal(n, d, 4), data::labels(n, 40, 5));
    for (scale, truth) in [
        (Scale::SharedDeviation, reference::Scale::SharedDeviation),
        (Scale::SharedVariance, reference::Scale::SharedVariance),
        (Scale::ClassVariance { floor: None }, reference::Scale::ClassVariance(None)),
        (Scale::ClassVariance { floor: Some(0.02) }, reference::Scale::ClassVariance(Some(0.02))),
    ] {
        for loo in [false, true] {
            let options = CredibilityOptions::new().with_scale(scale).with_leave_one_out(loo);
            let got = credibility(&matrix(&x, d), &vector(&labels), &options).unwrap();
            let truth = reference::credibility(&widen(&x), d, &labels, true, loo, truth, None);
            let ratio = compare(&got, &truth, d, true);
            println!("{scale:?}, leave-one-out {loo}: worst ratio to the bound {ratio:.3}");
            assert!(ratio <= 1.0, "{scale:?}: {ratio}");
            assert_eq!(integers(&got.predicted), truth.predicted);
            let closer: Vec<u32> = truth.closer.iter().map(|c| *c as u32).collect();
            assert_eq!(integers(&got.closer), closer);
        }
    }
}

#[test]
fn golden_values_of_three_directions() {
    let got = credibility(&directions(&ANGLES), &vector(&CLASSES), &golden_options()).unwrap();
    let entropy = floats(&got.entropy);
    for (row, golden) in [(0, 0.042464), (6, 0.046213), (2, 0.674178), (4, 0.728043), (7, 0.681526)] {
        assert!((f64::from(entropy[row]) - golden).abs() < 1e-6, "{} against {golden}", entropy[row]);
    }
    // −40° and −45° lie far from 90°, unlike 40° and 45°.
    assert_eq!(mask(&got), [1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1]);
    assert!((got.entropy_limit.unwrap() - 0.549306).abs() < 1e-6);
}

#[test]
fn defect_a_the_distribution_is_over_all_centroids_and_some_entropy_exceeds_what_one_column_could_give() {
    let got = credibility(&directions(&ANGLES), &vector(&CLASSES), &golden_options()).unwrap();
    // One column alone gives H = −p ln p ≤ 1/e, below ½ ln K for every K ≥ 3.
    assert!(floats(&got.entropy).iter().any(|h| *h > 1.0 / std::f32::consts::E));
    assert!(mask(&got).contains(&0));
}

#[test]
fn defect_b_the_threshold_counts_the_outcomes_of_the_distribution() {
    let (x, labels) = (matrix(&data::normal(200, 8, 1), 8), vector(&data::labels(200, 30, 2)));
    let options = golden_options();
    let all = credibility(&x, &labels, &options).unwrap();
    let near = credibility(&x, &labels, &options.with_nearest(4)).unwrap();
    assert_eq!(all.entropy_limit, Some(0.5 * 30f64.ln()));
    assert_eq!(near.entropy_limit, Some(0.5 * 4f64.ln()));
    for found in [all, near] {
        let limit = found.entropy_limit.unwrap();
        let truth: Vec<u8> =
            floats(&found.entropy).iter().map(|h| u8::from(f64::from(*h) <= limit)).collect();
        assert_eq!(mask(&found), truth);
        assert!(floats(&found.entropy).iter().all(|h| f64::from(*h) <= 2.0 * limit + 1e-5));
    }
}

#[test]
fn defect_c_scores_far_below_the_underflow_of_exp_keep_their_entropy() {
    // d/scale of several thousands: exp(−d/scale) is 0 in f32 and f64 alike.
    let x = directions(&[0.0, 0.0, 90.0, 90.0, 45.0]);
    let labels = vector(&[0, 0, 1, 1, 1]);
    let options = golden_options().with_scale(Scale::Exponential { rate: 1e4 }).with_leave_one_out(true);
    let found = credibility(&x, &labels, &options).unwrap();
    // The last row lies half way between 0° and the mean of the others of its class, 90°: two equal outcomes.
    let h = floats(&found.entropy)[4];
    assert!((h - 2f32.ln()).abs() < 1e-2, "{h}");
    assert_eq!(mask(&found)[4], 0);
    assert!(floats(&found.suspicion).iter().all(|s| s.is_finite()));
}

#[test]
fn defect_d_the_last_class_and_its_last_row_are_complete() {
    let (n, d) = (120, 6);
    let (x, labels) = (data::normal(n, d, 1), data::labels(n, 7, 2));
    let reversed: Vec<u32> = labels.iter().map(|l| 6 - l).collect();
    let a = credibility(&matrix(&x, d), &vector(&labels), &CredibilityOptions::published()).unwrap();
    let b = credibility(&matrix(&x, d), &vector(&reversed), &CredibilityOptions::published()).unwrap();
    assert_eq!(mask(&a).len(), n);
    // Whether a class is the last or the first makes no difference, up to the order of the columns' sum.
    for (h, g) in floats(&a.entropy).iter().zip(floats(&b.entropy)) {
        assert!((h - g).abs() <= 64.0 * U as f32 * (1.0 + 7f32.ln()), "{h} against {g}");
    }
    assert_eq!(mask(&a), mask(&b));
}

#[test]
fn defect_e_a_last_row_alone_in_its_class_changes_no_other_row_s_own_centroid() {
    let d = 6;
    let x = data::normal(31, d, 3);
    let mut labels = data::labels(30, 3, 4);
    labels.push(9);
    let found = credibility(&matrix(&x, d), &vector(&labels), &golden_options()).unwrap();
    assert_eq!(mask(&found).len(), 31);
    let truth =
        reference::credibility(&widen(&x), d, &labels, true, false, reference::Scale::Exponential(4.0), None);
    assert!(compare(&found, &truth, d, false) <= 1.0);
    // The single row is its own centroid.
    assert_eq!(integers(&found.predicted)[30], 9);
}

#[test]
fn defect_f_labels_may_come_unsorted_with_gaps_and_start_anywhere() {
    let (n, d) = (150, 5);
    let (x, labels) = (data::normal(n, d, 5), data::labels(n, 6, 6));
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|i| labels[*i]);
    let sorted_x: Vec<f32> = order.iter().flat_map(|i| x[i * d..(i + 1) * d].to_vec()).collect();
    let sorted_labels: Vec<u32> = order.iter().map(|i| labels[*i]).collect();
    let gaps: Vec<u32> = labels.iter().map(|l| 17 + l * 600_000_000).collect();
    for options in [CredibilityOptions::new(), CredibilityOptions::published()] {
        let sorted = credibility(&matrix(&sorted_x, d), &vector(&sorted_labels), &options).unwrap();
        let mixed = credibility(&matrix(&x, d), &vector(&gaps), &options).unwrap();
        for (a, b) in [(&sorted.entropy, &mixed.entropy), (&sorted.suspicion, &mixed.suspicion)] {
            let (a, b) = (floats(a), floats(b));
            assert!(order.iter().enumerate().all(|(s, i)| a[s].to_bits() == b[*i].to_bits()));
        }
        let renamed: Vec<u32> = integers(&sorted.predicted).iter().map(|l| 17 + l * 600_000_000).collect();
        let predicted = integers(&mixed.predicted);
        assert!(order.iter().enumerate().all(|(s, i)| renamed[s] == predicted[*i]));
    }
}

#[test]
fn defect_g_classes_of_one_row_or_of_equal_rows_have_a_sound_scale() {
    let x = directions(&[0.0, 3.0, 9.0, 60.0, 120.0, 120.0, 200.0]);
    for labels in [vec![0, 0, 0, 1, 2, 2, 3], (0..7).collect(), vec![5; 7], vec![0, 0, 1, 1, 2, 2, 3]] {
        for scale in [Scale::SharedDeviation, Scale::SharedVariance, Scale::ClassVariance { floor: None }] {
            for loo in [false, true] {
                let options = CredibilityOptions::new().with_scale(scale).with_leave_one_out(loo);
                let found = credibility(&x, &vector(&labels), &options).unwrap();
                let k = labels.iter().collect::<std::collections::BTreeSet<_>>().len() as f32;
                assert!(floats(&found.entropy).iter().all(|h| (0.0..=k.ln() + 1e-5).contains(h)));
                assert!(floats(&found.suspicion).iter().all(|s| s.is_finite() && *s >= 0.0));
                assert!(floats(&found.own_probability).iter().all(|p| (0.0..=1.0).contains(p)));
            }
        }
    }
}

#[test]
fn defect_h_the_mask_comes_back_row_by_row_as_the_losses_take_it() {
    let found = credibility(&directions(&ANGLES), &vector(&CLASSES), &golden_options()).unwrap();
    assert_eq!((found.credible.dtype(), found.credible.dims()), (DType::U8, &[13usize][..]));
    let dropped: Vec<f32> =
        ANGLES.iter().zip(mask(&found)).filter(|(_, kept)| *kept == 0).map(|(a, _)| *a).collect();
    assert_eq!(dropped, [40.0, 45.0, 130.0, 50.0]);
}

/// Classes of a few rows from a few styles, one row in ten under another class's label.
fn planted(seed: u64, classes: usize, noise: f32) -> (Vec<f32>, Vec<u32>, Vec<bool>) {
    let (d, styles) = (32, 6);
    let (centers, style) = (data::normal(classes, d, seed), data::normal(styles, d, seed + 1));
    let mut x = data::normal(classes * styles, d, seed + 2);
    let mut rng = data::generator(seed + 3);
    let (mut labels, mut wrong) = (Vec::new(), Vec::new());
    for (i, row) in x.chunks_mut(d).enumerate() {
        let (c, s) = (i / styles, i % styles);
        let level = noise * (0.6 + 0.2 * s as f32);
        for (j, v) in row.iter_mut().enumerate() {
            *v = *v * level + centers[c * d + j] + 0.7 * style[s * d + j];
        }
        let bad = rng.random_range(0..10) == 0;
        let shift = if bad { rng.random_range(1..classes) } else { 0 };
        labels.push(((c + shift) % classes) as u32);
        wrong.push(bad);
    }
    (x, labels, wrong)
}

/// The share of planted rows above the score that 10 % of the clean rows exceed.
fn found_at_ten_percent(score: &[f32], wrong: &[bool]) -> f64 {
    let mut clean: Vec<f32> = score.iter().zip(wrong).filter(|(_, w)| !**w).map(|(s, _)| *s).collect();
    clean.sort_by(|a, b| b.total_cmp(a));
    let limit = clean[clean.len() / 10];
    let found = score.iter().zip(wrong).filter(|(s, w)| **w && **s > limit).count();
    found as f64 / wrong.iter().filter(|w| **w).count() as f64
}

#[test]
fn planted_label_noise_is_found_by_suspicion_and_not_by_entropy() {
    for (seed, classes, noise) in [(1, 300, 0.6), (2, 300, 0.8), (3, 40, 0.6)] {
        let (x, labels, wrong) = planted(seed, classes, noise);
        let found = credibility(&matrix(&x, 32), &vector(&labels), &CredibilityOptions::new()).unwrap();
        let by_suspicion = found_at_ten_percent(&floats(&found.suspicion), &wrong);
        let by_entropy = found_at_ten_percent(&floats(&found.entropy), &wrong);
        let mask = mask(&found);
        let share = |of: bool| {
            let rows: Vec<u8> = mask.iter().zip(&wrong).filter(|(_, w)| **w == of).map(|(m, _)| *m).collect();
            rows.iter().filter(|m| **m == 0).count() as f64 / rows.len() as f64
        };
        println!(
            "{classes} classes, noise {noise}: at 10 % false alarms suspicion finds {by_suspicion:.3}, entropy \
             {by_entropy:.3}; the default rule drops {:.3} of the planted and {:.3} of the clean rows",
            share(true),
            share(false)
        );
        assert!(by_suspicion >= 0.8, "{by_suspicion}");
        assert!(by_entropy < 0.5, "{by_entropy}");
        assert!(share(true) >= 0.7 && share(false) <= 0.1);
    }
}

#[test]
fn sub_clusters_serve_as_centroids_and_an_outlier_cannot_vouch_for_itself() {
    // Class 0 has two separate sub-clusters; its last row sits among class 1.
    let x = directions(&[0.0, 2.0, 4.0, 100.0, 102.0, 104.0, 210.0, 200.0, 202.0, 204.0]);
    let labels = vector(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    let options = SubClustersOptions::new().with_count(ClusterCount::PerClass(vec![3, 1]));
    let clusters = sub_clusters(&x, Some(&labels), &options).unwrap();
    let options = CredibilityOptions::new()
        .with_sub_clusters(&clusters)
        .with_scale(Scale::Exponential { rate: 10.0 })
        .with_rule(Rule::OwnProbability(Limit::Nats(1.0)));
    let found = credibility(&x, &labels, &options).unwrap();
    assert_eq!(mask(&found), [1, 1, 1, 1, 1, 1, 0, 1, 1, 1]);
    assert_eq!(integers(&found.predicted), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
}

#[test]
fn rules_and_the_argmax_condition_combine() {
    let (x, labels) = (matrix(&data::normal(300, 6, 1), 6), data::labels(300, 12, 2));
    let l = vector(&labels);
    let run = |rule, reject| {
        let options = CredibilityOptions::new().with_rule(rule).with_reject_other_class(reject);
        credibility(&x, &l, &options).unwrap()
    };
    let entropy = run(Rule::Entropy(Limit::Share(0.8)), false);
    let own = run(Rule::OwnProbability(Limit::Share(0.8)), false);
    let both = run(Rule::Both { entropy: Limit::Share(0.8), own: Limit::Share(0.8) }, false);
    let reject = run(Rule::OwnProbability(Limit::Share(0.8)), true);
    let predicted = integers(&own.predicted);
    for i in 0..300 {
        let (e, o) = (mask(&entropy)[i], mask(&own)[i]);
        assert_eq!(mask(&both)[i], e & o);
        assert_eq!(mask(&reject)[i], o & u8::from(predicted[i] == labels[i]));
    }
}

#[test]
fn threads_views_and_half_precision_change_no_bit() {
    let wide = matrix(&data::normal(400, 30, 1), 30);
    let labels = vector(&data::labels(300, 50, 2));
    let options = CredibilityOptions::new().with_nearest(6);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let view = wide.narrow(0, 50, 300).unwrap().narrow(1, 7, 20).unwrap().to_dtype(dtype).unwrap();
        let copy = view.to_dtype(DType::F32).unwrap().t().unwrap().force_contiguous().unwrap();
        let truth = bits(&credibility(&copy.t().unwrap(), &labels, &options).unwrap());
        for got in on_1_2_8_threads(|| bits(&credibility(&view, &labels, &options).unwrap())) {
            assert_eq!(got, truth);
        }
    }
    let view = wide.narrow(0, 50, 300).unwrap().narrow(1, 7, 20).unwrap();
    let copy = view.force_contiguous().unwrap();
    assert_eq!(
        bits(&credibility(&view, &labels, &options).unwrap()),
        bits(&credibility(&copy, &labels, &options).unwrap())
    );
}

#[test]
fn bad_input_gets_an_error_that_names_it() {
    let (x, labels) = (matrix(&data::normal(10, 4, 1), 4), vector(&data::labels(10, 3, 2)));
    let fails = |x: &Tensor, labels: &Tensor, options: &CredibilityOptions, words: &str| {
        let message = credibility(x, labels, options).unwrap_err().to_string();
        assert!(message.starts_with("credibility: ") && message.contains(words), "{message}");
    };
    let new = CredibilityOptions::new;
    fails(&x.narrow(0, 0, 0).unwrap(), &labels.narrow(0, 0, 0).unwrap(), &new(), "`points` is empty");
    fails(&x, &labels.narrow(0, 0, 4).unwrap(), &new(), "`labels` has shape [4]");
    fails(&x.narrow(1, 0, 0).unwrap(), &labels, &new(), "`points` has shape [10, 0]");
    fails(&x.zeros_like().unwrap(), &labels, &new(), "`points` row 0 has norm zero");
    fails(&(&x / 0.0).unwrap(), &labels, &new(), "`points` row 0 is not finite");
    fails(&x, &labels, &new().with_nearest(0), "`nearest` is 0");
    fails(&x, &labels, &new().with_scale(Scale::Exponential { rate: -1.0 }), "`scale.rate` is -1");
    fails(&x, &labels, &new().with_scale(Scale::Gaussian { sigma: f64::INFINITY }), "`scale.sigma` is inf");
    fails(&x, &labels, &new().with_rule(Rule::Entropy(Limit::Nats(f64::NAN))), "`rule.entropy` is NaN");
    fails(&x, &labels, &new().with_rule(Rule::OwnProbability(Limit::Share(-0.5))), "`rule.own` is -0.5");
    let one = sub_clusters(&x, None, &SubClustersOptions::new().with_geometry(Geometry::Euclidean)).unwrap();
    fails(&x, &labels, &new().with_sub_clusters(&one), "`offsets` has shape [2]");
    let mut mixed = sub_clusters(&x, Some(&labels), &SubClustersOptions::new()).unwrap();
    mixed.assignment = Tensor::zeros(10, DType::U32, &Device::Cpu).unwrap();
    fails(&x, &labels, &new().with_sub_clusters(&mixed), "`assignment` is 0 at row");
    let tracked = Var::from_tensor(&x).unwrap();
    let error = credibility(tracked.as_tensor(), &labels, &new()).unwrap_err();
    assert!(matches!(error, Error::NotDifferentiable { argument: "points", .. }), "{error}");
}
