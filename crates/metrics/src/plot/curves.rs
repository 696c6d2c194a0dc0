//! Curves of several methods in one plot.

use plotters::prelude::*;

use super::chart::{Axis, Key, Look, QUIET, axes, dashed, failed, frame, svg};
use crate::error::check_metric;
use crate::{Error, RefreshCurve, Result, Roc};

const SIZE: (u32, u32) = (960, 540);

/// The hot-refresh curves of several methods: the metric over the share of the gallery that has been re-embedded.
///
/// `metric` names the metric on the axis, as "mAP". `old` is M(φ_o, φ_o), the system before the upgrade, drawn as a dashed
/// line: a curve that starts above it is a compatible upgrade.
///
/// # Errors
/// [`Error::Empty`] without curves, [`Error::Range`] if `old` is no metric value.
pub fn refresh_curves(
    title: &str,
    metric: &str,
    curves: &[(&str, &RefreshCurve)],
    old: Option<f64>,
) -> Result<String> {
    const OP: &str = "hot-refresh plot";
    if curves.is_empty() {
        return Err(Error::Empty { op: OP, argument: "curves" });
    }
    if let Some(old) = old {
        check_metric(OP, "old", old)?;
    }
    let mut legend: Vec<_> = curves
        .iter()
        .enumerate()
        .map(|(number, (name, _))| (Key::Line(Look::of(number)), (*name).to_owned()))
        .collect();
    if old.is_some() {
        legend.push((Key::Dashed(QUIET), "old system".into()));
    }
    let values = curves.iter().flat_map(|(_, curve)| curve.points()).map(|point| point.1).chain(old);
    let y = Axis::around(metric, values);
    svg(SIZE, |sheet| {
        let area = frame(sheet, title, &legend)?;
        let mut chart = axes(&area, &Axis::unit("share of the gallery that is re-embedded"), &y)?;
        if let Some(old) = old {
            dashed(&mut chart, (0.0, old), (1.0, old), QUIET)?;
        }
        for (number, (_, curve)) in curves.iter().enumerate() {
            let look = Look::of(number);
            let line = LineSeries::new(curve.points().iter().copied(), look.color.stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
            // A finely sampled curve needs no mark at every point.
            let stride = curve.points().len().div_ceil(24);
            let marks = curve.points().iter().step_by(stride).map(|point| look.mark(*point, 4));
            chart.draw_series(marks).map_err(failed)?;
        }
        Ok(())
    })
}

/// The ROC curves of several detectors, with the area under each in the legend and the diagonal of chance.
///
/// With `false_alarms`, a share from 0 to 1, the operating point of each detector at that budget is marked, and its hits
/// are in the legend.
///
/// # Errors
/// [`Error::Empty`] without curves, [`Error::Range`] if `false_alarms` is not in 0 to 1.
pub fn roc_curves(title: &str, curves: &[(&str, &Roc)], false_alarms: Option<f64>) -> Result<String> {
    if curves.is_empty() {
        return Err(Error::Empty { op: "ROC plot", argument: "curves" });
    }
    let mut legend = Vec::new();
    let mut marked = Vec::new();
    for (number, (name, roc)) in curves.iter().enumerate() {
        let look = Look::of(number);
        legend.push((Key::Line(look), format!("{name}: area {:.3}", roc.area())));
        if let Some(budget) = false_alarms {
            let point = roc.at_false_alarms(budget)?;
            let text =
                format!("{:.1} % hits at {:.1} % alarms", 100.0 * point.hits, 100.0 * point.false_alarms);
            legend.push((Key::Mark(look), text));
            marked.push((look, (point.false_alarms, point.hits)));
        }
    }
    legend.push((Key::Dashed(QUIET), "chance".into()));
    svg(SIZE, |sheet| {
        let area = frame(sheet, title, &legend)?;
        let (x, y) = (
            Axis::unit("false alarms (share of the negatives)"),
            Axis::unit("hits (share of the positives)"),
        );
        let mut chart = axes(&area, &x, &y)?;
        dashed(&mut chart, (0.0, 0.0), (1.0, 1.0), QUIET)?;
        for (number, (_, roc)) in curves.iter().enumerate() {
            let line = LineSeries::new(thin(roc), Look::of(number).color.stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
        }
        chart.draw_series(marked.iter().map(|(look, point)| look.mark(*point, 6))).map_err(failed)?;
        Ok(())
    })
}

/// The points of the curve that a plot can tell apart: a curve of 100,000 scores would make an SVG of megabytes.
fn thin(roc: &Roc) -> Vec<(f64, f64)> {
    const STEP: f64 = 1.0 / 2048.0;
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut previous = (0.0, 0.0);
    for point in roc.points() {
        let point = (point.false_alarms, point.hits);
        match kept.last() {
            Some(last) if point.0 - last.0 < STEP && point.1 - last.1 < STEP => {}
            Some(last) => {
                // A jump starts where the curve really was, not where the last point was kept.
                if previous != *last {
                    kept.push(previous);
                }
                kept.push(point);
            }
            None => kept.push(point),
        }
        previous = point;
    }
    kept.push(previous);
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(start: f64, end: f64) -> RefreshCurve {
        let points = (0..=10).map(|i| f64::from(i) / 10.0);
        RefreshCurve::new(points.map(|f| (f, start + (end - start) * f.powf(1.3))).collect()).unwrap()
    }

    #[test]
    fn refresh_plot_names_everything() {
        let (a, b) = (curve(0.309, 0.407), curve(0.243, 0.362));
        let curves = [("NeighborhoodConsensus", &a), ("Procrustes <&>", &b)];
        let svg = refresh_curves("Hot refresh", "mAP", &curves, Some(0.277)).unwrap();
        for text in ["Hot refresh", "mAP", "NeighborhoodConsensus", "Procrustes &lt;&amp;&gt;", "old system"]
        {
            assert!(svg.contains(text), "{text}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg, refresh_curves("Hot refresh", "mAP", &curves, Some(0.277)).unwrap());
    }

    #[test]
    fn refresh_plot_of_a_flat_curve() {
        for level in [0.0, 0.5, 100.0] {
            let flat = RefreshCurve::new(vec![(0.0, level), (1.0, level)]).unwrap();
            refresh_curves("", "", &[("flat", &flat)], None).unwrap();
            assert!(refresh_curves("", "", &[("flat", &flat)], Some(f64::NAN)).is_err());
        }
        assert!(matches!(refresh_curves("", "", &[], None), Err(Error::Empty { .. })));
    }

    #[test]
    fn roc_plot_marks_the_operating_point_and_stays_small() {
        let scores: Vec<f64> =
            (0..100_000u32).map(|i| f64::from(i.wrapping_mul(2_654_435_761) >> 8)).collect();
        let positive: Vec<bool> =
            scores.iter().enumerate().map(|(i, s)| s / 16_777_216.0 > 0.5 || i % 3 == 0).collect();
        let roc = Roc::new(&scores, &positive).unwrap();
        let svg = roc_curves("Planted label noise", &[("credibility", &roc)], Some(0.1)).unwrap();
        assert!(svg.contains("alarms") && svg.contains("chance") && svg.len() < 100_000, "{}", svg.len());
        assert!(roc_curves("", &[("a", &roc)], Some(2.0)).is_err());
        assert!(matches!(roc_curves("", &[], None), Err(Error::Empty { .. })));
    }

    #[test]
    fn thinning_keeps_corners() {
        let roc = Roc::new(&[3.0, 2.0, 1.0], &[true, false, true]).unwrap();
        assert_eq!(thin(&roc), [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]);
    }
}
