//! Whatever numbers come in, a metric is an error or a finite number, and never a panic.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use consonance_metrics::plot::{SelfCross, refresh_curves, roc_curves, self_cross_bars, self_cross_scatter};
use consonance_metrics::{
    Cell, Column, CompatibilityMatrix, NegativeFlips, RefreshCurve, Report, Result, Roc, Summary, Upgrade,
    p_comp, p_one, p_up,
};
use proptest::prelude::*;

/// Metric values, values just outside, and everything else that is an f64.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => 0.0..=1.0f64,
        2 => 0.0..=100.0f64,
        2 => Just(0.0),
        1 => Just(1.0),
        1 => Just(f64::from_bits(1)),
        1 => any::<f64>(),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ]
}

fn finite_or_error(value: &Result<f64>) -> bool {
    value.as_ref().map_or(true, |v| v.is_finite())
}

fn share_or_error(value: &Result<f64>) -> bool {
    value.as_ref().map_or(true, |v| (0.0..=1.0).contains(v))
}

proptest! {
    #[test]
    fn upgrades(values in prop::collection::vec((number(), number(), number(), number()), 0..4)) {
        // Not through the checked constructor: the fields are public, so the functions must check too.
        let sets: Vec<_> =
            values.iter().map(|&(old, paragon, new, cross)| Upgrade { old, paragon, new, cross }).collect();
        for set in &sets {
            prop_assert!(finite_or_error(&set.update_gain()));
            prop_assert!(finite_or_error(&set.absolute_gain()));
            prop_assert!(finite_or_error(&set.self_change()));
        }
        prop_assert!(share_or_error(&p_up(&sets)) && share_or_error(&p_comp(&sets)) && share_or_error(&p_one(&sets)));
        // P_1 exists exactly where both of its parts do, and lies below the harmonic mean of the means: it is concave.
        let parts = p_up(&sets).ok().zip(p_comp(&sets).ok());
        prop_assert_eq!(parts.is_some(), p_one(&sets).is_ok());
        if let (Some((up, comp)), Ok(one)) = (parts, p_one(&sets)) {
            prop_assert!(one <= 2.0 * up * comp / (up + comp).max(f64::MIN_POSITIVE) + 8.0 * f64::EPSILON);
        }
    }

    #[test]
    fn matrices(models in 0usize..5, values in prop::collection::vec(number(), 15)) {
        let mut values = values.into_iter();
        let triangle = (1..=models).map(|n| values.by_ref().take(n).collect()).collect();
        if let Ok(matrix) = CompatibilityMatrix::new(triangle) {
            let (loose, strict) = (matrix.average_compatibility(), matrix.average_compatibility_strict());
            prop_assert!(share_or_error(&loose) && share_or_error(&strict));
            if let (Ok(loose), Ok(strict)) = (loose, strict) {
                prop_assert!(strict <= loose);
            }
            prop_assert!(finite_or_error(&matrix.backward_compatibility()));
            prop_assert!(finite_or_error(&matrix.forward_compatibility()));
            prop_assert!(finite_or_error(&Ok(matrix.average_multimodel_accuracy())));
            prop_assert!(finite_or_error(&matrix.average_multimodel_accuracy_nonzero()));
            prop_assert!(matrix.average_accuracy().map_or(true, |steps| steps.iter().all(|step| step.is_finite())));
        }
    }

    #[test]
    fn curves(values in prop::collection::vec(number(), 0..6), old in number()) {
        let last = values.len().max(2) - 1;
        let points = values.iter().enumerate().map(|(i, value)| (i as f64 / last as f64, *value)).collect();
        if let Ok(curve) = RefreshCurve::new(points) {
            prop_assert!(curve.area().is_finite() && finite_or_error(&curve.normalized_area(old)));
            prop_assert_eq!(curve.is_non_decreasing(0.0), curve.points().is_sorted_by(|a, b| a.1 <= b.1));
            let mean = RefreshCurve::mean(&[curve.clone(), curve.clone()]);
            prop_assert_eq!(mean.map(|mean| mean.area()).ok(), Some(curve.area()));
            let plot = refresh_curves("t", "m", &[("c", &curve)], Some(old));
            prop_assert!(plot.map_or(!(0.0..=100.0).contains(&old), |svg| !svg.contains("NaN")));
        }
    }

    #[test]
    fn detectors(items in prop::collection::vec((number(), any::<bool>()), 0..30), budget in number()) {
        let (scores, positive): (Vec<_>, Vec<_>) = items.iter().copied().unzip();
        if let Ok(roc) = Roc::new(&scores, &positive) {
            prop_assert!((0.0..=1.0).contains(&roc.area()));
            // The trapezoids under the points have the area that the pairs count.
            let trapezoids = roc.points().windows(2).map(|w| (w[1].false_alarms - w[0].false_alarms) * (w[0].hits + w[1].hits) / 2.0);
            prop_assert!((trapezoids.sum::<f64>() - roc.area()).abs() <= 64.0 * f64::EPSILON);
            if let Ok(point) = roc.at_false_alarms(budget) {
                prop_assert!(point.false_alarms <= budget);
            }
            prop_assert_eq!(roc_curves("t", &[("c", &roc)], Some(budget)).is_ok(), (0.0..=1.0).contains(&budget));
        }
        let flips = NegativeFlips::count(&positive, &positive.iter().rev().copied().collect::<Vec<_>>());
        if let Ok(flips) = flips {
            prop_assert!(share_or_error(&flips.rate()) && finite_or_error(&flips.relative_rate()));
        }
    }

    #[test]
    fn tables_and_comparisons(values in prop::collection::vec(number(), 0..4), other in number()) {
        if let (Ok(own), Ok(cross)) = (Summary::of(&values), Summary::of(&[other])) {
            prop_assert!(own.mean.is_finite() && own.spread.is_none_or(f64::is_finite));
            let mut report = Report::new("t", "method", [Column::new("x").percent()]);
            report.push("m", [Cell::from(own)]).unwrap();
            let text = report.to_markdown() + &report.to_csv().unwrap() + &report.to_terminal();
            prop_assert!(!text.contains("NaN"));
            let rows = [SelfCross { name: "m".into(), self_test: own, cross_test: Some(cross) }];
            for svg in [self_cross_bars("t", "m", &rows, None), self_cross_scatter("t", "m", &rows, None)] {
                prop_assert!(svg.map_or(true, |svg| !svg.contains("NaN") && !svg.contains("inf")));
            }
        }
    }
}
