//! What all plots share: the sheet with its title and legend, the axes, and the look of a series.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::{Drawable, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters_backend::{BackendCoord, DrawingErrorKind};

use crate::{Error, Result};

pub(super) type Sheet<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The height of the line with the title, and the gap to the edges, in pixels.
const TITLE: i32 = 56;
const EDGE: i32 = 20;
/// The distance of two legend lines.
const LINE: i32 = 26;

pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const QUIET: RGBColor = RGBColor(115, 115, 115);
pub(super) const GRID: RGBColor = RGBColor(228, 228, 228);

const COLORS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(136, 34, 85),
    RGBColor(51, 34, 136),
    RGBColor(153, 153, 51),
];

/// Errors of the drawing library, which are all about the backend: drawing to memory has none to expect.
pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::Plot(error.to_string())
}

/// The look of a series, by its number.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) color: RGBColor,
    shape: usize,
}

impl Look {
    pub(super) fn of(series: usize) -> Self {
        // The shape changes with every series too: ten colors and four shapes repeat only after 20.
        Self { color: COLORS[series % COLORS.len()], shape: series % 4 }
    }

    /// The series' mark at a point of any coordinate system, `size` pixels in radius.
    pub(super) fn mark<C>(self, at: C, size: i32) -> Mark<C> {
        Mark { at, look: self, size }
    }
}

/// The mark of a series at one point. The shapes are drawn with about the same area.
pub(super) struct Mark<C> {
    at: C,
    look: Look,
    size: i32,
}

impl<'a, C: 'a> PointCollection<'a, C> for &'a Mark<C> {
    type Point = &'a C;
    type IntoIter = std::iter::Once<&'a C>;

    fn point_iter(self) -> Self::IntoIter {
        std::iter::once(&self.at)
    }
}

impl<C, DB: DrawingBackend> Drawable<DB> for Mark<C> {
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        mut points: I,
        backend: &mut DB,
        _: (u32, u32),
    ) -> std::result::Result<(), DrawingErrorKind<DB::ErrorType>> {
        let Some((x, y)) = points.next() else { return Ok(()) };
        let color = &self.look.color;
        let (half, reach) = ((f64::from(self.size) * 0.9).round() as i32, self.size + 1);
        match self.look.shape {
            0 => backend.draw_circle((x, y), self.size as u32, color, true),
            1 => backend.draw_rect((x - half, y - half), (x + half, y + half), color, true),
            2 => backend.fill_polygon([(x, y - reach), (x + reach, y + half), (x - reach, y + half)], color),
            _ => {
                let tip = reach + 1;
                backend.fill_polygon([(x, y - tip), (x + tip, y), (x, y + tip), (x - tip, y)], color)
            }
        }
    }
}

/// A line of the legend.
pub(super) enum Key {
    /// A line with the series' mark on it.
    Line(Look),
    /// The mark alone.
    Mark(Look),
    /// A dashed line, as of a reference value.
    Dashed(RGBColor),
    /// A filled patch.
    Patch(RGBColor, f64),
}

/// An axis: its title and its range.
pub(super) struct Axis {
    pub(super) title: String,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Axis {
    /// The range that holds all `values` with some air, and never goes below 0. Values are finite.
    pub(super) fn around(title: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        let air = match high - low {
            span if span > 0.0 => 0.08 * span,
            // One value only: a range around it that shows it in the middle.
            _ if high > 0.0 => 0.1 * high,
            _ => 0.1,
        };
        Self { title: title.into(), low: (low - air).max(0.0), high: high + air }
    }

    /// The range 0 to 1.
    pub(super) fn unit(title: impl Into<String>) -> Self {
        Self { title: title.into(), low: 0.0, high: 1.0 }
    }

    pub(super) fn label(&self, value: f64) -> String {
        // About six labels: enough decimals to tell them apart.
        let decimals = (1.0 - (self.high - self.low).log10().floor()).clamp(0.0, 12.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
    }
}

/// Draws an SVG of `size` pixels.
pub(super) fn svg(size: (u32, u32), draw: impl FnOnce(&Sheet<'_>) -> Result<()>) -> Result<String> {
    let mut text = String::new();
    {
        let sheet = SVGBackend::with_string(&mut text, size).into_drawing_area();
        sheet.fill(&WHITE).map_err(failed)?;
        draw(&sheet)?;
        sheet.present().map_err(failed)?;
    }
    Ok(text)
}

/// Text of `size` pixels, anchored at its left, vertically in the middle.
pub(super) fn text_style(size: u32, color: RGBColor) -> TextStyle<'static> {
    // The backend takes the size for the height of a line, and the letters for 1 / 1.24 of it.
    let style = ("sans-serif", f64::from(size) * 1.24).into_text_style(&(1, 1));
    TextStyle { color: color.to_backend_color(), ..style }.pos(Pos::new(HPos::Left, VPos::Center))
}

/// Writes the title, draws the legend at the right, and returns the rest of the sheet.
pub(super) fn frame<'a>(sheet: &Sheet<'a>, title: &str, legend: &[(Key, String)]) -> Result<Sheet<'a>> {
    let (width, _) = sheet.dim_in_pixel();
    let bold = text_style(18, INK);
    let bold = TextStyle { font: bold.font.style(FontStyle::Bold), ..bold };
    sheet.draw(&Text::new(title.to_owned(), (EDGE, EDGE + 10), bold)).map_err(failed)?;
    let (_, below) = sheet.split_vertically(TITLE);
    // A letter of a sans-serif font is about half as wide as high; the marks take 52 pixels.
    let longest = legend.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
    let side = ((longest as f64 * 7.4) as i32 + 60).clamp(0, width as i32 / 2);
    let (left, right) = below.split_horizontally(width as i32 - side - EDGE / 2);
    for (number, (key, name)) in legend.iter().enumerate() {
        let y = 24 + number as i32 * LINE;
        match key {
            Key::Line(look) => {
                let line = PathElement::new(vec![(4, y), (36, y)], look.color.stroke_width(2));
                right.draw(&line).map_err(failed)?;
                right.draw(&look.mark((20, y), 4)).map_err(failed)?;
            }
            Key::Mark(look) => right.draw(&look.mark((20, y), 6)).map_err(failed)?,
            Key::Dashed(color) => {
                for x in [4, 16, 28] {
                    let line = PathElement::new(vec![(x, y), (x + 8, y)], color.stroke_width(2));
                    right.draw(&line).map_err(failed)?;
                }
            }
            Key::Patch(color, opacity) => {
                let patch = Rectangle::new([(4, y - 7), (36, y + 7)], color.mix(*opacity).filled());
                right.draw(&patch).map_err(failed)?;
            }
        }
        right.draw(&Text::new(name.clone(), (46, y), text_style(13, INK))).map_err(failed)?;
    }
    Ok(left)
}

/// Axes with grid lines and titles.
pub(super) fn axes<'a, 'b>(area: &'a Sheet<'b>, x: &Axis, y: &Axis) -> Result<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(area)
        .margin_left(EDGE / 2)
        .margin_right(EDGE)
        .margin_bottom(EDGE / 2)
        .margin_top(6)
        .x_label_area_size(50)
        .y_label_area_size(64)
        .build_cartesian_2d(x.low..x.high, y.low..y.high)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(QUIET)
        .x_labels(6)
        .y_labels(8)
        .x_label_formatter(&|value| x.label(*value))
        .y_label_formatter(&|value| y.label(*value))
        .label_style(("sans-serif", 16).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 18).into_font().color(&INK))
        .x_desc(x.title.as_str())
        .y_desc(y.title.as_str())
        .draw()
        .map_err(failed)?;
    Ok(chart)
}

/// A dashed straight line across the chart.
pub(super) fn dashed(
    chart: &mut Chart<'_, '_>,
    from: (f64, f64),
    to: (f64, f64),
    color: RGBColor,
) -> Result<()> {
    let line = DashedLineSeries::new([from, to], 7, 5, color.stroke_width(2));
    chart.draw_series(line).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_a_range_and_distinct_labels() {
        let axis = Axis::around("x", [0.25, 0.5]);
        assert!(axis.low < 0.25 && axis.low > 0.2 && axis.high > 0.5 && axis.high < 0.55);
        assert_eq!((axis.label(0.3), axis.label(0.35)), ("0.3".into(), "0.35".into()));
        for lone in [0.0, 0.5, 100.0] {
            let axis = Axis::around("x", [lone]);
            assert!(axis.low <= lone && axis.high > lone && axis.low >= 0.0);
        }
        let percent = Axis { title: String::new(), low: 0.0, high: 80.0 };
        assert_eq!((percent.label(20.0), percent.label(0.0)), ("20".into(), "0".into()));
        let narrow = Axis { title: String::new(), low: 0.301, high: 0.306 };
        assert_ne!(narrow.label(0.302), narrow.label(0.303));
    }
}
