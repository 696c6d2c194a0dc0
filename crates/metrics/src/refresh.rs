//! The hot-refresh curve: what users see while the gallery is re-embedded.

use serde::{Deserialize, Serialize};

use crate::error::{check_metric, finite};
use crate::{Error, Result};

/// The retrieval metric as a function of the fraction of the gallery that has been re-embedded by the new model, queries by
/// the new model throughout (RACT, Zhang et al., ICLR 2022). It starts at the cross-test M(φ_n, φ_o), fraction 0, and ends
/// at the self-test M(φ_n, φ_n), fraction 1; between two points it is read as a straight line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(f64, f64)>", into = "Vec<(f64, f64)>")]
pub struct RefreshCurve {
    points: Vec<(f64, f64)>,
}

/// A fall of the curve from one point to a later one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RefreshDrop {
    /// The fraction at which it starts.
    pub from: f64,
    /// The fraction at which it ends.
    pub to: f64,
    /// By how much the metric falls, above 0.
    pub depth: f64,
}

impl TryFrom<Vec<(f64, f64)>> for RefreshCurve {
    type Error = Error;

    fn try_from(points: Vec<(f64, f64)>) -> Result<Self> {
        Self::new(points)
    }
}

impl From<RefreshCurve> for Vec<(f64, f64)> {
    fn from(curve: RefreshCurve) -> Self {
        curve.points
    }
}

impl RefreshCurve {
    /// The curve through `points`, each a (refreshed fraction, metric).
    ///
    /// # Errors
    /// [`Error::Length`] for fewer than two points, [`Error::Range`] if the fractions do not start at exactly 0, grow
    /// strictly and end at exactly 1, or a metric is not in 0 to 100 (NaN included).
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self> {
        const OP: &str = "hot-refresh curve";
        if points.len() < 2 {
            return Err(Error::Length {
                op: OP,
                argument: "points".into(),
                got: points.len(),
                expected: "at least 2, the fractions 0 and 1".into(),
            });
        }
        let last = points.len() - 1;
        let mut previous = f64::NEG_INFINITY;
        for (index, &(fraction, metric)) in points.iter().enumerate() {
            let expected = match index {
                0 => "0 for the first point",
                i if i == last => "1 for the last point",
                _ => "a fraction below 1 and above that of the point before",
            };
            let fits = match index {
                0 => fraction == 0.0,
                i if i == last => fraction == 1.0,
                _ => fraction < 1.0 && fraction > previous,
            };
            if !fits {
                return Err(Error::range(OP, format!("points[{index}].0"), fraction, expected));
            }
            check_metric(OP, format!("points[{index}].1"), metric)?;
            previous = fraction;
        }
        Ok(Self { points })
    }

    /// The mean of several curves over the same fractions, as of several seeds.
    ///
    /// # Errors
    /// [`Error::Empty`] without curves, [`Error::Length`] or [`Error::Range`] if the fractions differ.
    pub fn mean(curves: &[Self]) -> Result<Self> {
        const OP: &str = "mean hot-refresh curve";
        let first = curves.first().ok_or(Error::Empty { op: OP, argument: "curves" })?;
        let mut points: Vec<_> = first.points.iter().map(|(fraction, _)| (*fraction, 0.0)).collect();
        for (number, curve) in curves.iter().enumerate() {
            if curve.points.len() != points.len() {
                return Err(Error::Length {
                    op: OP,
                    argument: format!("curves[{number}]"),
                    got: curve.points.len(),
                    expected: format!("{}, as of the first curve", points.len()),
                });
            }
            for (index, (sum, point)) in points.iter_mut().zip(&curve.points).enumerate() {
                if sum.0 != point.0 {
                    let argument = format!("curves[{number}] points[{index}].0");
                    return Err(Error::range(OP, argument, point.0, "the fraction of the first curve"));
                }
                sum.1 += point.1;
            }
        }
        // The rounding of the sum could lift a mean of 100s above 100.
        points.iter_mut().for_each(|point| point.1 = (point.1 / curves.len() as f64).min(100.0));
        Ok(Self { points })
    }

    /// The points, each a (refreshed fraction, metric), by growing fraction from 0 to 1.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// M(φ_n, φ_o), the value before anything is refreshed.
    pub fn start(&self) -> f64 {
        self.points[0].1
    }

    /// M(φ_n, φ_n), the value when everything is refreshed.
    pub fn end(&self) -> f64 {
        self.points[self.points.len() - 1].1
    }

    /// The area under the curve by the trapezoidal rule: the mean metric over a refresh at constant speed.
    pub fn area(&self) -> f64 {
        self.points.windows(2).map(|w| (w[1].0 - w[0].0) * (w[0].1 + w[1].1) / 2.0).sum()
    }

    /// The normalized area (AUC − M_old) / (M_new − M_old), with M_old = `old` = M(φ_o, φ_o) and M_new the end of the curve.
    ///
    /// 1 is the full gain from the first moment on, ½ a gain that grows evenly from the old system's value, and below 0 the
    /// refresh is, on average, worse than not upgrading.
    ///
    /// # Errors
    /// [`Error::Undefined`] if the refreshed system is not better than the old one; [`Error::Range`] if `old` is no metric value.
    pub fn normalized_area(&self, old: f64) -> Result<f64> {
        const OP: &str = "normalized refresh area";
        check_metric(OP, "old", old)?;
        if self.end() <= old {
            let reason =
                format!("the refreshed system ({}) is not better than the old one ({old})", self.end());
            return Err(Error::undefined(OP, reason));
        }
        finite(OP, (self.area() - old) / (self.end() - old))
    }

    /// Whether the metric never falls by more than `tolerance` below an earlier value: users see no regression while the
    /// gallery is refreshed. A tolerance of 0 asks for a non-decreasing curve; a NaN tolerance is met by no curve.
    pub fn is_non_decreasing(&self, tolerance: f64) -> bool {
        match self.largest_drop() {
            None => tolerance >= 0.0,
            Some(drop) => drop.depth <= tolerance,
        }
    }

    /// The deepest fall from any point to a later one, or `None` for a non-decreasing curve. Of equal falls it is the first.
    pub fn largest_drop(&self) -> Option<RefreshDrop> {
        let mut peak = self.points[0];
        let mut largest: Option<RefreshDrop> = None;
        for &(fraction, metric) in &self.points[1..] {
            let depth = peak.1 - metric;
            if depth > largest.map_or(0.0, |drop| drop.depth) {
                largest = Some(RefreshDrop { from: peak.0, to: fraction, depth });
            }
            if metric >= peak.1 {
                peak = (fraction, metric);
            }
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_by_hand() {
        let curve = RefreshCurve::new(vec![(0.0, 0.25), (0.5, 0.375), (0.75, 0.5), (1.0, 0.5)]).unwrap();
        // ½ · 0.3125 + ¼ · 0.4375 + ¼ · 0.5
        assert_eq!(curve.area(), 0.390625);
        assert_eq!((curve.start(), curve.end()), (0.25, 0.5));
        // (0.390625 − 0.25) / 0.25
        assert_eq!(curve.normalized_area(0.25).unwrap(), 0.5625);
        let line = RefreshCurve::new(vec![(0.0, 0.25), (1.0, 0.5)]).unwrap();
        assert_eq!(line.normalized_area(0.25).unwrap(), 0.5);
        let step = RefreshCurve::new(vec![(0.0, 0.5), (1.0, 0.5)]).unwrap();
        assert_eq!(step.normalized_area(0.25).unwrap(), 1.0);
    }

    #[test]
    fn regressions_are_found() {
        let good = RefreshCurve::new(vec![(0.0, 0.25), (0.5, 0.25), (1.0, 0.5)]).unwrap();
        assert!(good.is_non_decreasing(0.0) && good.largest_drop().is_none());
        assert!(!good.is_non_decreasing(f64::NAN));
        // It falls in two steps, 0.5 → 0.375 → 0.25, and a little later: the whole fall counts.
        let points = vec![(0.0, 0.5), (0.25, 0.375), (0.5, 0.25), (0.75, 0.5), (0.875, 0.4375), (1.0, 0.75)];
        let dip = RefreshCurve::new(points).unwrap();
        assert_eq!(dip.largest_drop(), Some(RefreshDrop { from: 0.0, to: 0.5, depth: 0.25 }));
        assert!(!dip.is_non_decreasing(0.125) && dip.is_non_decreasing(0.25));
        assert!(!dip.is_non_decreasing(f64::NAN));
    }

    #[test]
    fn mean_of_seeds() {
        let a = RefreshCurve::new(vec![(0.0, 0.25), (0.5, 0.5), (1.0, 0.5)]).unwrap();
        let b = RefreshCurve::new(vec![(0.0, 0.75), (0.5, 0.5), (1.0, 1.0)]).unwrap();
        assert_eq!(
            RefreshCurve::mean(&[a.clone(), b]).unwrap().points(),
            [(0.0, 0.5), (0.5, 0.5), (1.0, 0.75)]
        );
        let other = RefreshCurve::new(vec![(0.0, 0.75), (0.25, 0.5), (1.0, 1.0)]).unwrap();
        let short = RefreshCurve::new(vec![(0.0, 0.75), (1.0, 1.0)]).unwrap();
        assert!(matches!(RefreshCurve::mean(&[a.clone(), other]), Err(Error::Range { .. })));
        assert!(matches!(RefreshCurve::mean(&[a, short]), Err(Error::Length { .. })));
        assert!(matches!(RefreshCurve::mean(&[]), Err(Error::Empty { .. })));
    }

    #[test]
    fn bad_curves_are_named() {
        let error = |points: &[(f64, f64)]| RefreshCurve::new(points.to_vec()).unwrap_err().to_string();
        assert!(error(&[(0.0, 0.5)]).contains("at least 2"));
        assert!(error(&[(0.1, 0.5), (1.0, 0.5)]).contains("`points[0].0` is 0.1"));
        assert!(error(&[(0.0, 0.5), (0.9, 0.5)]).contains("1 for the last point"));
        assert!(error(&[(0.0, 0.5), (0.0, 0.5), (1.0, 0.5)]).contains("`points[1].0`"));
        assert!(error(&[(0.0, 0.5), (f64::NAN, 0.5), (1.0, 0.5)]).contains("`points[1].0` is NaN"));
        assert!(error(&[(0.0, 0.5), (1.0, f64::NAN)]).contains("`points[1].1` is NaN"));
        let flat = RefreshCurve::new(vec![(0.0, 0.25), (1.0, 0.25)]).unwrap();
        assert!(matches!(flat.normalized_area(0.25), Err(Error::Undefined { .. })));
        assert!(matches!(flat.normalized_area(f64::NAN), Err(Error::Range { .. })));
    }
}
