//! The ROC curve of a detector, as of the credibility filter against planted label noise.

use crate::{Error, Result};

/// What a detector does at one threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OperatingPoint {
    /// The share of the negatives that are flagged (false alarms).
    pub false_alarms: f64,
    /// The share of the positives that are flagged (hits).
    pub hits: f64,
    /// Items with a score of at least this are flagged; `None` where nothing is.
    pub threshold: Option<f64>,
}

/// The receiver operating characteristic of a score that should be high on the positives (Fawcett, Pattern Recognition
/// Letters 2006): one point per distinct score, so that equal scores are flagged together, and (0, 0) before them.
#[derive(Clone, Debug, PartialEq)]
pub struct Roc {
    points: Vec<OperatingPoint>,
    area: f64,
}

impl Roc {
    /// The curve of `scores`, of which `positive` says which should be high.
    ///
    /// # Errors
    /// [`Error::Length`] if the two differ in length, [`Error::Range`] for a NaN score (infinities are scores like others),
    /// [`Error::Undefined`] without positives or without negatives.
    pub fn new(scores: &[f64], positive: &[bool]) -> Result<Self> {
        if positive.len() != scores.len() {
            return Err(Error::Length {
                op: "ROC",
                argument: "positive".into(),
                got: positive.len(),
                expected: format!("{}, the length of `scores`", scores.len()),
            });
        }
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::range("ROC", format!("scores[{index}]"), "NaN", "a number"));
        }
        let positives = positive.iter().filter(|p| **p).count();
        let negatives = positive.len() - positives;
        if positives == 0 || negatives == 0 {
            let reason =
                format!("{positives} positives and {negatives} negatives, and it needs some of both");
            return Err(Error::undefined("ROC", reason));
        }
        let mut items: Vec<(f64, bool)> = scores.iter().copied().zip(positive.iter().copied()).collect();
        items.sort_by(|a, b| b.0.total_cmp(&a.0));

        let mut points = vec![OperatingPoint { false_alarms: 0.0, hits: 0.0, threshold: None }];
        let (mut hits, mut alarms, mut doubled_pairs) = (0u64, 0u64, 0u128);
        // Not `==` on bits: −0 and +0 are one score.
        for group in items.chunk_by(|a, b| a.0 == b.0) {
            let new_hits = group.iter().filter(|item| item.1).count() as u64;
            let new_alarms = group.len() as u64 - new_hits;
            // Twice the pairs (positive, negative) in the right order, those of equal score counted half: an exact integer.
            doubled_pairs += u128::from(new_alarms) * u128::from(2 * hits + new_hits);
            hits += new_hits;
            alarms += new_alarms;
            points.push(OperatingPoint {
                false_alarms: alarms as f64 / negatives as f64,
                hits: hits as f64 / positives as f64,
                threshold: Some(group[0].0),
            });
        }
        let area = doubled_pairs as f64 / (2.0 * positives as f64 * negatives as f64);
        Ok(Self { points, area })
    }

    /// The points, from nothing flagged to everything flagged.
    pub fn points(&self) -> &[OperatingPoint] {
        &self.points
    }

    /// The area under the curve: the probability that a positive scores higher than a negative, ties counted half.
    pub fn area(&self) -> f64 {
        self.area
    }

    /// The best threshold at which at most the share `false_alarms` of the negatives is flagged. It is a point of the curve,
    /// not an interpolation, so a detector can be run at it.
    ///
    /// # Errors
    /// [`Error::Range`] if `false_alarms` is not in 0 to 1.
    pub fn at_false_alarms(&self, false_alarms: f64) -> Result<OperatingPoint> {
        if !(0.0..=1.0).contains(&false_alarms) {
            return Err(Error::range("ROC", "false_alarms", false_alarms, "a share from 0 to 1"));
        }
        // Both coordinates grow along the curve, and the first point has no false alarm.
        let beyond = self.points.partition_point(|point| point.false_alarms <= false_alarms);
        Ok(self.points[beyond.max(1) - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curve_by_hand() {
        // Order: 0.9 +, 0.8 −, then 0.5 with one of each (a diagonal step), 0.1 −, 0.0 +, −0.5 −.
        let scores = [0.5, 0.9, 0.8, 0.5, 0.1, 0.0, -0.5];
        let positive = [true, true, false, false, false, true, false];
        let roc = Roc::new(&scores, &positive).unwrap();
        let points: Vec<_> = roc.points().iter().map(|p| (p.false_alarms, p.hits)).collect();
        let third = |n: f64| n / 3.0;
        let expected = [
            (0.0, 0.0),
            (0.0, third(1.0)),
            (0.25, third(1.0)),
            (0.5, third(2.0)),
            (0.75, third(2.0)),
            (0.75, 1.0),
            (1.0, 1.0),
        ];
        assert_eq!(points, expected);
        // Ordered pairs: 0.9 beats all 4; 0.5 beats 0.1 and −0.5 and ties with 0.5; 0.0 beats −0.5: 4 + 2.5 + 1 of 12.
        assert_eq!(roc.area(), 7.5 / 12.0);
        let point = roc.at_false_alarms(0.6).unwrap();
        assert_eq!((point.false_alarms, point.hits, point.threshold), (0.5, 2.0 / 3.0, Some(0.5)));
        assert_eq!(roc.at_false_alarms(1.0).unwrap().threshold, Some(-0.5));
        assert_eq!(roc.at_false_alarms(0.0).unwrap().hits, 1.0 / 3.0);
    }

    #[test]
    fn extremes() {
        let perfect = Roc::new(&[f64::INFINITY, 1.0, f64::NEG_INFINITY], &[true, true, false]).unwrap();
        assert_eq!((perfect.area(), perfect.at_false_alarms(0.0).unwrap().hits), (1.0, 1.0));
        let wrong = Roc::new(&[0.0, 1.0], &[true, false]).unwrap();
        assert_eq!(wrong.area(), 0.0);
        assert_eq!(wrong.at_false_alarms(0.5).unwrap().threshold, None);
        // All equal, signed zeros included: chance, in one diagonal step.
        let blind = Roc::new(&[0.0, -0.0, 0.0], &[true, false, false]).unwrap();
        assert_eq!((blind.area(), blind.points().len()), (0.5, 2));
    }

    #[test]
    fn bad_input_is_named() {
        assert!(
            Roc::new(&[0.5, f64::NAN], &[true, false])
                .unwrap_err()
                .to_string()
                .contains("`scores[1]` is NaN")
        );
        assert!(matches!(Roc::new(&[0.5], &[true, false]), Err(Error::Length { .. })));
        assert!(matches!(Roc::new(&[0.5], &[true]), Err(Error::Undefined { .. })));
        assert!(matches!(Roc::new(&[], &[]), Err(Error::Undefined { .. })));
        let roc = Roc::new(&[0.5, 0.1], &[true, false]).unwrap();
        assert!(roc.at_false_alarms(f64::NAN).is_err() && roc.at_false_alarms(1.1).is_err());
    }
}
