//! What the credibility of labeled rows must fulfil.

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_cpu::credibility::{Credibility, Limit, Rule, Scale};
use consonance_reference::soft_assignment::nearest;

use super::credibility_bound::{Scored, truth};
use super::soft_bound::{Row, U};
use super::{Check, Outcome, ensure};
use crate::backend::{Backend, CredibilityCase};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("credibility: integers against the definition", integers),
    ("credibility: real inputs within the bound", reals),
    ("credibility: sub-clusters", sub_clusters),
    ("credibility: the curve of planted label noise", noise),
    ("credibility: the published rule", published),
    ("credibility: classes of one row, and one class", few),
    ("credibility: rows in another order", another_order),
    ("credibility: bad rows and refusals", refusals),
];

fn describe(case: &CredibilityCase) -> String {
    format!(
        "{:?} {:?} {:?} [{}, {}], left out {}, nearest {:?}",
        case.geometry,
        case.scale,
        case.points.dtype(),
        case.points.rows(),
        case.points.cols(),
        case.leave_one_out,
        case.nearest
    )
}

#[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
fn print_ratio(backend: &dyn Backend, what: &str, ratio: f64) {
    println!("{}: {what}: error / bound {ratio:.3}", backend.name());
}

/// Labels of which each has `sizes[c]` rows, in a mixed order, with gaps and not from 0.
fn labels_of(sizes: &[usize], seed: u64) -> Vec<u32> {
    let mut labels: Vec<u32> =
        sizes.iter().enumerate().flat_map(|(c, size)| vec![3 + 1000 * c as u32; *size]).collect();
    let keys = data::labels(labels.len(), u32::MAX, seed);
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|i| keys[*i]);
    labels = order.iter().map(|i| labels[*i]).collect();
    labels
}

/// What integers decide alone: the comparison of distances.
fn compares_as_defined(backend: &dyn Backend, case: &CredibilityCase) -> Result<Credibility, String> {
    let what = describe(case);
    let found = backend.credibility(case)?;
    let truth = truth(case);
    for i in 0..case.labels.len() {
        let got = (found.closer[i] as usize, found.predicted[i], found.margin[i]);
        let expected = (truth.closer[i], truth.predicted[i], truth.margin[i] as f32);
        ensure!(got.0 == expected.0, "{what}: row {i}: {} nearer, expected {}", got.0, expected.0);
        ensure!(got.1 == expected.1, "{what}: row {i}: predicted {}, expected {}", got.1, expected.1);
        // Both roots are rounded, and their difference.
        let slack = 2.0 * U * (truth.margin[i].abs() + 2.0 * (case.points.cols() as f64).sqrt() * 8.0);
        ensure!(
            (f64::from(got.2) - truth.margin[i]).abs() <= slack || got.2 == expected.2,
            "{what}: row {i}: margin {}, expected {}",
            got.2,
            expected.2
        );
    }
    Ok(found)
}

/// Classes whose means are exact: 1, 2, 4 or 8 rows, or 2 where one is left out, so that the other one is the mean.
fn integers(backend: &dyn Backend) -> Outcome {
    for (turn, dtype) in DType::ALL.into_iter().enumerate() {
        for (left_out, sizes) in [(true, &[2][..]), (false, &[1, 2, 4, 8])] {
            for (seed, (classes, dim)) in (0..).zip([(4, 3), (30, 6), (70, 20), (1025, 2)]) {
                // More centroids than one split has: once, with few rows.
                if classes > 1000 && (left_out || turn != 0) {
                    continue;
                }
                let size = |c: usize| if classes > 1000 { 1 } else { sizes[c % sizes.len()] };
                let labels = labels_of(&(0..classes).map(size).collect::<Vec<_>>(), seed);
                let values = data::integers(labels.len(), dim, seed + 1);
                let mut case = CredibilityCase::new(Stored::new(dtype, &values, dim), labels);
                case.geometry = Geometry::Euclidean;
                case.leave_one_out = left_out;
                case.scale =
                    if turn == 0 { Scale::Gaussian { sigma: 1.0 } } else { Scale::Exponential { rate: 2.0 } };
                compares_as_defined(backend, &case)?;
                if classes < 1000 {
                    case.nearest = Some(3);
                    compares_as_defined(backend, &case)?;
                }
            }
        }
    }
    // Rows behind padding, at addresses of no alignment.
    for (dim, stride, offset) in [(7, 9, 3), (40, 41, 1)] {
        for dtype in DType::ALL {
            let labels = labels_of(&[2; 20], 5);
            let values = data::integers(labels.len(), dim, 6);
            let points = Stored::padded(dtype, &values, dim, stride, offset);
            let case = CredibilityCase {
                geometry: Geometry::Euclidean,
                scale: Scale::Exponential { rate: 1.0 },
                ..CredibilityCase::new(points, labels)
            };
            compares_as_defined(backend, &case)?;
        }
    }
    Ok(())
}

fn within_bound(backend: &dyn Backend, case: &CredibilityCase) -> Outcome {
    let what = describe(case);
    let found = backend.credibility(case)?;
    let scored = Scored::new(case);
    let truth = &scored.truth;
    let mut worst: f64 = 0.0;
    for (i, label) in case.labels.iter().enumerate() {
        let row = &scored.rows[i];
        let entropy = match case.nearest {
            Some(m) if m < row.scores.len() => {
                let far: Vec<f64> = row.scores.iter().map(|s| -s).collect();
                let near: Vec<usize> = nearest(&far, m).iter().map(|(k, _)| *k).collect();
                let only = Row {
                    scores: (0..far.len())
                        .map(|k| if near.contains(&k) { row.scores[k] } else { f64::NEG_INFINITY })
                        .collect(),
                    errors: row.errors.clone(),
                };
                // The list may end in another of two centroids that are about equally far.
                only.bounds().entropy + row.bounds().entropy
            }
            _ => row.bounds().entropy,
        };
        let odds = scored.odds_bound(i, *label);
        let p = (-truth.suspicion[i]).exp();
        for (of, got, expected, bound) in [
            ("entropy", found.entropy[i], truth.entropy[i], entropy),
            ("suspicion", found.suspicion[i], truth.suspicion[i], odds + 8.0 * U * truth.suspicion[i]),
            ("own probability", found.own_probability[i], p, p * (odds + 16.0 * U) + 1e-37),
        ] {
            let ratio = (f64::from(got) - expected).abs() / bound;
            ensure!(ratio <= 1.0, "{what}: row {i}: {of} {got}, expected {expected}: {ratio:.2} bounds");
            worst = worst.max(ratio);
        }
        let best = scored.labels.iter().zip(row.scores.iter().zip(&row.errors));
        let top = best.clone().map(|(_, (s, e))| s - e).fold(f64::NEG_INFINITY, f64::max);
        let reached = best.filter(|(l, _)| **l == found.predicted[i]).any(|(_, (s, e))| s + e >= top);
        ensure!(reached, "{what}: row {i}: predicted {}", found.predicted[i]);
        let believed = found.entropy_limit.is_none_or(|limit| found.entropy[i] <= limit as f32)
            && found.suspicion_limit.is_none_or(|limit| found.suspicion[i] <= limit as f32)
            && (!case.reject_other_class || found.predicted[i] == *label);
        ensure!((found.credible[i] == 1) == believed, "{what}: row {i}: credible {}", found.credible[i]);
    }
    print_ratio(backend, &what, worst);
    Ok(())
}

/// Rows of classes around centers, some of them shared.
fn classes(dtype: DType, sizes: &[usize], dim: usize, spread: f32, seed: u64) -> CredibilityCase {
    let labels = labels_of(sizes, seed);
    let centers = data::unit(sizes.len(), dim, seed + 1);
    let noise = data::normal(labels.len(), dim, seed + 2);
    let values: Vec<f32> = labels
        .iter()
        .enumerate()
        .flat_map(|(i, label)| {
            let center = &centers[(*label as usize - 3) / 1000 * dim..];
            let noise = &noise[i * dim..];
            (0..dim).map(|d| center[d] + spread * noise[d]).collect::<Vec<f32>>()
        })
        .collect();
    CredibilityCase::new(Stored::new(dtype, &values, dim), labels)
}

fn reals(backend: &dyn Backend) -> Outcome {
    let scales = [
        Scale::SharedDeviation,
        Scale::SharedVariance,
        Scale::ClassVariance { floor: None },
        Scale::Exponential { rate: 6.0 },
        Scale::Gaussian { sigma: 0.6 },
    ];
    let limits = Rule::Both { entropy: Limit::Share(0.5), own: Limit::Nats(1.0) };
    for (turn, scale) in scales.into_iter().enumerate() {
        for (which, dtype) in DType::ALL.into_iter().enumerate() {
            let sizes: Vec<usize> = (0..[12, 70][which % 2]).map(|c| 3 + c % 5).collect();
            let mut case = classes(dtype, &sizes, [20, 33, 72][which], 0.12, (turn * 3 + which) as u64);
            case.scale = scale;
            case.geometry = [Geometry::Spherical, Geometry::Euclidean][(turn + which) % 2];
            case.leave_one_out = turn != 2;
            case.rule = limits;
            case.reject_other_class = turn % 2 == 0;
            within_bound(backend, &case)?;
            if turn % 3 == which || turn == 0 {
                case.nearest = Some(4);
                within_bound(backend, &case)?;
            }
            if turn == 0 {
                case.nearest = Some(1000);
                within_bound(backend, &case)?;
            }
        }
    }
    Ok(())
}

/// Two centroids for every other class, one of them of a single row somewhere; some numbers of clusters are not used.
fn sub_clusters(backend: &dyn Backend) -> Outcome {
    for (turn, dtype) in DType::ALL.into_iter().enumerate() {
        let mut case = classes(dtype, &[5, 6, 4, 7, 1, 2, 6, 5], 24, 0.15, 40 + turn as u64);
        let mut sorted = case.labels.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let offsets: Vec<usize> = (0..=sorted.len()).map(|c| 3 * c).collect();
        let mut seen = vec![0usize; sorted.len()];
        let assignment = case
            .labels
            .iter()
            .map(|label| {
                let c = sorted.binary_search(label).unwrap_or(0);
                seen[c] += 1;
                // The first row of a class alone, the rest of odd classes in one cluster, of even ones in two.
                let cluster = match seen[c] {
                    1 if c % 2 == 0 => 0,
                    turn if c % 2 == 0 => 1 + turn % 2,
                    _ => 1,
                };
                (offsets[c] + cluster) as u32
            })
            .collect();
        case.clusters = Some((assignment, offsets));
        case.scale = Scale::Exponential { rate: 5.0 };
        for left_out in [true, false] {
            case.leave_one_out = left_out;
            case.nearest = None;
            within_bound(backend, &case)?;
            for nearest in [1, 4] {
                case.nearest = Some(nearest);
                within_bound(backend, &case)?;
            }
        }
    }
    Ok(())
}

/// The shares of the planted rows whose score exceeds that of all but 1, 5, 10 and 20 % of the clean rows.
fn curve(scores: &[f64], planted: &[bool]) -> Vec<f64> {
    let of = |kind: bool| -> Vec<f64> {
        let mut kept: Vec<f64> =
            scores.iter().zip(planted).filter(|(_, p)| **p == kind).map(|(s, _)| *s).collect();
        kept.sort_by(|a, b| b.total_cmp(a));
        kept
    };
    let (bad, clean) = (of(true), of(false));
    [0.01, 0.05, 0.1, 0.2]
        .map(|alarms| {
            let threshold = clean[(alarms * clean.len() as f64) as usize];
            bad.iter().filter(|s| **s > threshold).count() as f64 / bad.len() as f64
        })
        .to_vec()
}

/// The simulation of docs/clusters.md with 60 classes: six rows each from six styles, one label in ten replaced. The
/// shares found are those of the definition, but for pairs whose suspicions differ by less than their bounds.
fn noise(backend: &dyn Backend) -> Outcome {
    let (classes, dim) = (60usize, 64);
    for dtype in DType::ALL {
        let centers = data::unit(classes, dim, 1);
        let styles = data::unit(6, dim, 2);
        let noise = data::normal(classes * 6, dim, 3);
        let values: Vec<f32> = (0..classes * 6)
            .flat_map(|i| {
                let (class, style) = (i / 6, i % 6);
                let spread = 0.12 * 2.6f32.powf(style as f32 / 5.0);
                let row = (0..dim).map(|d| {
                    centers[class * dim + d] + 1.2 * styles[style * dim + d] + spread * noise[i * dim + d]
                });
                row.collect::<Vec<f32>>()
            })
            .collect();
        let planted: Vec<bool> = data::labels(classes * 6, 10, 4).iter().map(|v| *v == 0).collect();
        let other = data::labels(classes * 6, classes as u32 - 1, 5);
        let labels: Vec<u32> = (0..classes * 6)
            .map(|i| {
                let class = (i / 6) as u32;
                if planted[i] { (class + 1 + other[i]) % classes as u32 } else { class }
            })
            .collect();
        let case = CredibilityCase::new(Stored::new(dtype, &values, dim), labels);
        within_bound(backend, &case)?;
        let found = backend.credibility(&case)?;
        let scored = Scored::new(&case);
        let got: Vec<f64> = found.suspicion.iter().map(|s| f64::from(*s)).collect();
        let exact = &scored.truth.suspicion;
        let moved = |sign: f64| -> Vec<f64> {
            let error = |i: usize| scored.odds_bound(i, case.labels[i]) + 8.0 * U * exact[i];
            // The least favorable: planted rows one way, clean rows the other.
            (0..exact.len())
                .map(|i| exact[i] + sign * error(i) * if planted[i] { 1.0 } else { -1.0 })
                .collect()
        };
        let (curve_found, least, most) =
            (curve(&got, &planted), curve(&moved(-1.0), &planted), curve(&moved(1.0), &planted));
        for ((share, least), most) in curve_found.iter().zip(&least).zip(&most) {
            ensure!(
                least <= share && share <= most,
                "{dtype:?}: shares {curve_found:?}, between {least} and {most} expected"
            );
        }
        // Mislabeled rows that no limit refuses are refused for their class.
        let refusing = CredibilityCase {
            rule: Rule::OwnProbability(Limit::Nats(1000.0)),
            reject_other_class: true,
            ..case.clone()
        };
        within_bound(backend, &refusing)?;
        print_curve(backend, dtype, &curve_found, &curve(exact, &planted));
        ensure!(curve_found[2] >= 0.5, "{dtype:?}: found {curve_found:?} of planted noise");
        // What is refused at the default limit is what the definition refuses, but within the bound of the limit.
        let limit = found.suspicion_limit.unwrap_or(f64::NAN);
        for (i, exact) in exact.iter().enumerate() {
            let clear = (exact - limit).abs() > scored.odds_bound(i, case.labels[i]) + 8.0 * U * exact;
            ensure!(
                !clear || (found.credible[i] == 1) == (*exact <= limit),
                "{dtype:?}: row {i} at {exact}, limit {limit}"
            );
        }
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the curve is to be seen")]
fn print_curve(backend: &dyn Backend, dtype: DType, found: &[f64], exact: &[f64]) {
    println!(
        "{}: {dtype:?}: planted rows found at 1, 5, 10, 20 % false alarms: {found:.3?}, by the definition {exact:.3?}",
        backend.name()
    );
}

/// Plain means, H ≤ ½ ln K, as published; a rate at which every exponential underflows is finite and keeps all (defect c).
fn published(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut case = classes(dtype, &[6; 20], 16, 0.1, 60);
        case.geometry = Geometry::Euclidean;
        case.leave_one_out = false;
        case.scale = Scale::ClassVariance { floor: None };
        case.rule = Rule::Entropy(Limit::Share(0.5));
        within_bound(backend, &case)?;
        let found = backend.credibility(&case)?;
        // Over all K outcomes, not one (defects a and b): the limit is that of 20.
        ensure!(found.entropy_limit == Some(0.5 * 20f64.ln()), "{:?}", found.entropy_limit);
        // One that is loose, so that some rows lie between classes.
        case.scale = Scale::Exponential { rate: 1.0 };
        let found = backend.credibility(&case)?;
        ensure!(
            found.entropy.iter().any(|h| f64::from(*h) > 1.0 / std::f64::consts::E),
            "no entropy above 1/e"
        );
        case.scale = Scale::Exponential { rate: 1e6 };
        let found = backend.credibility(&case)?;
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        ensure!(finite(&found.entropy) && finite(&found.suspicion), "{found:?}");
    }
    Ok(())
}

/// A row alone in its class keeps its own position (defect g), the last class is whole (d, e), and a single class has nobody
/// to be suspected for.
fn few(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut case = classes(dtype, &[1, 4, 3, 1, 5, 1], 12, 0.1, 70);
        within_bound(backend, &case)?;
        case.scale = Scale::ClassVariance { floor: None };
        case.geometry = Geometry::Euclidean;
        within_bound(backend, &case)?;
        let single = CredibilityCase {
            labels: vec![7; case.labels.len()],
            rule: Rule::OwnProbability(Limit::Nats(0.0)),
            ..case.clone()
        };
        let found = backend.credibility(&single)?;
        ensure!(found.credible.iter().all(|c| *c == 1), "one class: {:?}", found.credible);
        ensure!(
            found.suspicion.iter().all(|s| *s == 0.0) && found.own_probability.iter().all(|p| *p == 1.0),
            "{found:?}"
        );
        ensure!(
            found.margin.iter().all(|m| *m == f32::NEG_INFINITY) && found.closer.iter().all(|c| *c == 0),
            "{found:?}"
        );
        // Two rows a class: their left-out distances are equal, so that there is no deviation and a fallback is taken.
        let twins = classes(dtype, &[2; 9], 12, 0.1, 71);
        let found = backend.credibility(&twins)?;
        ensure!(found.entropy.iter().all(|h| h.is_finite() && *h >= 0.0), "{found:?}");
    }
    Ok(())
}

/// Labels in another order and of other values give the rows the same results (defect f): bit for bit, as each class is added
/// in the order of its rows, which stays.
fn another_order(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let case = classes(dtype, &[4, 5, 3, 6, 2], 20, 0.15, 80);
        let all = backend.credibility(&case)?;
        let mut order: Vec<usize> = (0..case.labels.len()).collect();
        order.sort_by_key(|i| case.labels[*i]);
        let sorted = CredibilityCase {
            points: case.points.select(&order),
            labels: order.iter().map(|i| case.labels[*i] / 1000).collect(),
            ..case.clone()
        };
        let found = backend.credibility(&sorted)?;
        for (at, i) in order.iter().enumerate() {
            let bits = |found: &Credibility, i: usize| {
                let floats =
                    [found.entropy[i], found.own_probability[i], found.suspicion[i], found.margin[i]];
                (floats.map(f32::to_bits), found.closer[i], found.credible[i])
            };
            ensure!(bits(&found, at) == bits(&all, *i), "{dtype:?}: row {i} differs in another order");
            ensure!(found.predicted[at] == all.predicted[*i] / 1000, "{dtype:?}: row {i}: predicted");
        }
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let good = || classes(DType::F32, &[3, 4, 2], 6, 0.1, 90);
    let mut bad: Vec<(CredibilityCase, &[&str])> = Vec::new();
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut case = good();
        case.points.set_row(6, value);
        case.points.set_row(4, value);
        bad.push((case, &["points", "4"]));
    }
    let mut zero = good();
    zero.points.set_row(8, 0.0);
    bad.push((zero, &["points", "8", "norm zero"]));
    bad.push((CredibilityCase { labels: vec![1; 8], ..good() }, &["`labels`"]));
    bad.push((CredibilityCase { nearest: Some(0), ..good() }, &["`nearest`"]));
    bad.push((CredibilityCase { scale: Scale::Exponential { rate: -1.0 }, ..good() }, &["`scale.rate`"]));
    bad.push((
        CredibilityCase { rule: Rule::Entropy(Limit::Share(f64::NAN)), ..good() },
        &["`rule.entropy`"],
    ));
    bad.push((CredibilityCase { clusters: Some((vec![0; 9], vec![0, 1, 2])), ..good() }, &["`offsets`"]));
    bad.push((
        CredibilityCase { clusters: Some((vec![5; 9], vec![0, 1, 2, 3])), ..good() },
        &["`assignment`"],
    ));
    bad.push((
        CredibilityCase { points: Stored::new(DType::F32, &[], 4), labels: vec![], ..good() },
        &["`points`"],
    ));
    for (case, parts) in bad {
        match backend.credibility(&case) {
            Ok(_) => return Err(format!("{}: accepted, but {parts:?} is wrong", describe(&case))),
            Err(text) => {
                ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}")
            }
        }
    }
    Ok(())
}
