//! Self-test against cross-test, one mark or pair of bars per method.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{Axis, Chart, GRID, INK, Key, Look, QUIET, axes, dashed, failed, frame, svg, text_style};
use crate::error::check_metric;
use crate::{Error, Result, Summary};

const SELF: RGBColor = RGBColor(86, 180, 233);
const CROSS: RGBColor = RGBColor(0, 114, 178);

/// The two results of a method that the plots compare.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfCross {
    /// The method.
    pub name: String,
    /// M(φ_n, φ_n), over seeds.
    pub self_test: Summary,
    /// M(φ_n, φ_o), over seeds; `None` for the old model itself.
    pub cross_test: Option<Summary>,
}

fn check(op: &'static str, rows: &[SelfCross], old: Option<f64>) -> Result<()> {
    if rows.is_empty() {
        return Err(Error::Empty { op, argument: "rows" });
    }
    if let Some(old) = old {
        check_metric(op, "old", old)?;
    }
    for (number, row) in rows.iter().enumerate() {
        for (name, summary) in [("self_test", Some(row.self_test)), ("cross_test", row.cross_test)] {
            let Some(summary) = summary else { continue };
            check_metric(op, format!("rows[{number}].{name}.mean"), summary.mean)?;
            check_metric(op, format!("rows[{number}].{name}.spread"), summary.spread.unwrap_or(0.0))?;
        }
    }
    Ok(())
}

fn top(summary: &Summary) -> f64 {
    summary.mean + summary.spread.unwrap_or(0.0)
}

/// Horizontal bars: for every method the self-test and the cross-test with whiskers of one standard deviation, and the
/// old system as a dashed line.
///
/// # Errors
/// [`Error::Empty`] without rows, [`Error::Range`] for a value that is no metric value.
pub fn self_cross_bars(title: &str, metric: &str, rows: &[SelfCross], old: Option<f64>) -> Result<String> {
    check("bar plot", rows, old)?;
    let mut legend = vec![
        (Key::Patch(CROSS, 1.0), "new query, old gallery".into()),
        (Key::Patch(SELF, 0.75), "self-test".into()),
    ];
    if old.is_some() {
        legend.push((Key::Dashed(INK), "old system".into()));
    }
    let tops = rows.iter().flat_map(|row| [Some(row.self_test), row.cross_test]).flatten();
    let high = tops.map(|summary| top(&summary)).chain(old).fold(0.0, f64::max);
    let x = Axis { title: metric.into(), low: 0.0, high: if high > 0.0 { 1.12 * high } else { 1.0 } };
    let height = 56 + 90 + 46 * rows.len() as u32;
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let names = ((longest as f64 * 7.4) as u32 + 16).clamp(60, 360);
    svg((960, height), |sheet| {
        let area = frame(sheet, title, &legend)?;
        let mut chart = ChartBuilder::on(&area)
            .margin_left(10)
            .margin_right(20)
            .margin_bottom(10)
            .margin_top(6)
            .x_label_area_size(50)
            .y_label_area_size(names)
            .build_cartesian_2d(x.low..x.high, 0.0..rows.len() as f64)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .max_light_lines(0)
            .bold_line_style(GRID)
            .axis_style(QUIET)
            .x_labels(6)
            .y_labels(0)
            .x_label_formatter(&|value| x.label(*value))
            .label_style(("sans-serif", 16).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 18).into_font().color(&INK))
            .x_desc(x.title.as_str())
            .draw()
            .map_err(failed)?;
        for (number, row) in rows.iter().enumerate() {
            // The first method stands at the top.
            let middle = (rows.len() - number) as f64 - 0.5;
            let name_at = chart.backend_coord(&(0.0, middle));
            let style = text_style(13, INK).pos(Pos::new(HPos::Right, VPos::Center));
            sheet.draw(&Text::new(row.name.clone(), (name_at.0 - 8, name_at.1), style)).map_err(failed)?;
            if let Some(cross) = &row.cross_test {
                bar(&mut chart, cross, (middle + 0.02, middle + 0.36), CROSS.filled())?;
                bar(&mut chart, &row.self_test, (middle - 0.36, middle - 0.02), SELF.mix(0.75).filled())?;
            } else {
                bar(&mut chart, &row.self_test, (middle - 0.17, middle + 0.17), SELF.mix(0.75).filled())?;
            }
        }
        if let Some(old) = old {
            dashed(&mut chart, (old, 0.0), (old, rows.len() as f64), INK)?;
        }
        Ok(())
    })
}

fn bar(
    chart: &mut Chart<'_, '_>,
    summary: &Summary,
    (low, high): (f64, f64),
    style: ShapeStyle,
) -> Result<()> {
    chart.draw_series([Rectangle::new([(0.0, low), (summary.mean, high)], style)]).map_err(failed)?;
    if let Some(spread) = summary.spread {
        let middle = f64::midpoint(low, high);
        let (from, to) = ((summary.mean - spread).max(0.0), summary.mean + spread);
        whisker(chart, [(from, middle), (to, middle)])?;
    }
    Ok(())
}

fn whisker(chart: &mut Chart<'_, '_>, ends: [(f64, f64); 2]) -> Result<()> {
    let line = PathElement::new(ends.to_vec(), INK.mix(0.75).stroke_width(2));
    chart.draw_series([line]).map_err(failed)?;
    Ok(())
}

/// A scatter plot, the self-test to the right and the cross-test upwards, with whiskers of one standard deviation: the upper
/// right corner is best. The old system is a dashed line that a compatible method lies above. Rows without a cross-test are
/// left out.
///
/// # Errors
/// [`Error::Empty`] without a row that has a cross-test, [`Error::Range`] for a value that is no metric value.
pub fn self_cross_scatter(title: &str, metric: &str, rows: &[SelfCross], old: Option<f64>) -> Result<String> {
    const OP: &str = "scatter plot";
    check(OP, rows, old)?;
    let points: Vec<_> =
        rows.iter().filter_map(|row| Some((row.name.as_str(), row.self_test, row.cross_test?))).collect();
    if points.is_empty() {
        return Err(Error::Empty { op: OP, argument: "rows with a cross-test" });
    }
    let mut legend: Vec<_> = points
        .iter()
        .enumerate()
        .map(|(number, (name, ..))| (Key::Mark(Look::of(number)), (*name).to_owned()))
        .collect();
    if old.is_some() {
        legend.push((Key::Dashed(QUIET), "old system".into()));
    }
    let ends = |summary: &Summary| [(2.0 * summary.mean - top(summary)).max(0.0), top(summary)];
    let x = Axis::around(format!("self-test {metric}"), points.iter().flat_map(|point| ends(&point.1)));
    let cross = points.iter().flat_map(|point| ends(&point.2)).chain(old);
    let y = Axis::around(format!("{metric}, new query on the old gallery"), cross);
    svg((960, 540), |sheet| {
        let area = frame(sheet, title, &legend)?;
        let mut chart = axes(&area, &x, &y)?;
        if let Some(old) = old {
            dashed(&mut chart, (x.low, old), (x.high, old), QUIET)?;
        }
        for (number, (_, own, cross)) in points.iter().enumerate() {
            let look = Look::of(number);
            let at = (own.mean, cross.mean);
            let [[left, right], [below, above]] = [ends(own), ends(cross)];
            let thin = look.color.mix(0.6).stroke_width(2);
            let across = PathElement::new(vec![(left, at.1), (right, at.1)], thin);
            let along = PathElement::new(vec![(at.0, below), (at.0, above)], thin);
            chart.draw_series([across, along]).map_err(failed)?;
            chart.draw_series([look.mark(at, 6)]).map_err(failed)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<SelfCross> {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        vec![
            SelfCross { name: "old".into(), self_test: of(&[0.277]), cross_test: None },
            SelfCross {
                name: "BCT".into(),
                self_test: of(&[0.39, 0.41]),
                cross_test: Some(of(&[0.29, 0.3])),
            },
            SelfCross { name: "L2".into(), self_test: of(&[0.36]), cross_test: Some(of(&[0.0])) },
        ]
    }

    #[test]
    fn plots_name_everything() {
        let bars = self_cross_bars("Upgrade", "mAP", &rows(), Some(0.277)).unwrap();
        let scatter = self_cross_scatter("Upgrade", "mAP", &rows(), Some(0.277)).unwrap();
        for text in ["Upgrade", "mAP", "BCT", "L2", "old system"] {
            assert!(bars.contains(text) && scatter.contains(text), "{text}");
        }
    }

    #[test]
    fn degenerate_rows() {
        let zero = Summary::of(&[0.0]).unwrap();
        let dead = SelfCross { name: "dead".into(), self_test: zero, cross_test: Some(zero) };
        self_cross_bars("", "", std::slice::from_ref(&dead), None).unwrap();
        self_cross_scatter("", "", &[dead], None).unwrap();
        assert!(matches!(self_cross_bars("", "", &[], None), Err(Error::Empty { .. })));
        assert!(matches!(self_cross_scatter("", "", &rows()[..1], None), Err(Error::Empty { .. })));
        let mut bad = rows();
        bad[2].self_test.mean = f64::NAN;
        let message = self_cross_bars("", "", &bad, None).unwrap_err().to_string();
        assert!(message.contains("`rows[2].self_test.mean` is NaN"), "{message}");
    }
}
