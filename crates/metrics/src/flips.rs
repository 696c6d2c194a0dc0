//! Negative flips: what the upgrade breaks.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which queries were right before and after an upgrade, counted (PCT, Yan et al., CVPR 2021).
///
/// "Right" is any yes-or-no result of a query, as a hit at rank 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegativeFlips {
    /// Right before, right after.
    pub kept: u64,
    /// Right before, wrong after: the negative flips.
    pub lost: u64,
    /// Wrong before, right after: the positive flips.
    pub won: u64,
    /// Wrong before, wrong after.
    pub missed: u64,
}

impl NegativeFlips {
    /// Counts the queries; `old_right[i]` and `new_right[i]` belong to the same query.
    ///
    /// # Errors
    /// [`Error::Empty`] without queries, [`Error::Length`] if the two lists differ in length.
    pub fn count(old_right: &[bool], new_right: &[bool]) -> Result<Self> {
        const OP: &str = "negative flips";
        if old_right.is_empty() {
            return Err(Error::Empty { op: OP, argument: "old_right" });
        }
        if new_right.len() != old_right.len() {
            return Err(Error::Length {
                op: OP,
                argument: "new_right".into(),
                got: new_right.len(),
                expected: format!("{}, the length of `old_right`", old_right.len()),
            });
        }
        let mut flips = Self { kept: 0, lost: 0, won: 0, missed: 0 };
        for (old, new) in old_right.iter().zip(new_right) {
            *match (old, new) {
                (true, true) => &mut flips.kept,
                (true, false) => &mut flips.lost,
                (false, true) => &mut flips.won,
                (false, false) => &mut flips.missed,
            } += 1;
        }
        Ok(flips)
    }

    /// N, the number of queries.
    pub fn queries(&self) -> u64 {
        self.kept + self.lost + self.won + self.missed
    }

    /// The negative flip rate, NFR = #(right before and wrong after) / N.
    ///
    /// # Errors
    /// [`Error::Undefined`] without queries (possible only for a hand-made value).
    pub fn rate(&self) -> Result<f64> {
        match self.queries() {
            0 => Err(Error::undefined("NFR", "there are no queries")),
            queries => Ok(self.lost as f64 / queries as f64),
        }
    }

    /// The relative negative flip rate (PCT, equation 11), NFR_rel = NFR / ((1 − ER_old) · ER_new) with the error rates ER of
    /// the two models: 1 is what two independent models would show, 0 is an upgrade that breaks nothing.
    ///
    /// # Errors
    /// [`Error::Undefined`] if the old model is never right or the new one never wrong: there is nothing that could flip.
    pub fn relative_rate(&self) -> Result<f64> {
        let (right_before, wrong_after) = (self.kept + self.lost, self.lost + self.missed);
        if right_before == 0 || wrong_after == 0 {
            return Err(Error::undefined(
                "relative NFR",
                "the old model is never right or the new model never wrong, so nothing can flip",
            ));
        }
        // NFR / ((right_before / N) · (wrong_after / N)), with one rounding less.
        Ok(self.lost as f64 / right_before as f64 * (self.queries() as f64 / wrong_after as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn flips_by_hand() {
        let old = [true, true, true, true, false, false, false, false];
        let new = [true, true, true, false, true, true, false, false];
        let flips = NegativeFlips::count(&old, &new).unwrap();
        assert_eq!(flips, NegativeFlips { kept: 3, lost: 1, won: 2, missed: 2 });
        assert_eq!(flips.rate().unwrap(), 0.125);
        // ER_old = 4/8, ER_new = 3/8: (1/8) / (4/8 · 3/8) = 2/3.
        assert_abs_diff_eq!(flips.relative_rate().unwrap(), 2.0 / 3.0, epsilon = 4.0 * f64::EPSILON);
    }

    /// Table 2 of PCT, ILSVRC12: ER_old 30.24, ER_new 30.29, NFR 6.44 and relative NFR 30.48 percent, and the FD-LM row with
    /// 30.47, 2.35 and 11.06. As counts of 10,000 queries. The bound is the printed rounding of ±0.005 points: NFR's divided by
    /// 0.211, those of 1 − ER_old and ER_new as shares of them times the result, and the result's own.
    #[test]
    fn reproduces_the_published_table() {
        for (new_errors, lost, relative) in [(3029, 644, 30.48), (3047, 235, 11.06)] {
            let old_right = 10_000 - 3024;
            let missed = new_errors - lost;
            let flips = NegativeFlips { kept: old_right - lost, lost, won: 3024 - missed, missed };
            assert_eq!(flips.queries(), 10_000);
            assert_abs_diff_eq!(
                100.0 * flips.relative_rate().unwrap(),
                relative,
                epsilon = 0.005 / 0.211 + 0.005 * 30.5 / 69.7 + 0.005 * 30.5 / 30.2 + 0.005
            );
        }
    }

    #[test]
    fn degenerate_counts_are_errors() {
        assert!(matches!(NegativeFlips::count(&[], &[]), Err(Error::Empty { .. })));
        let message = NegativeFlips::count(&[true], &[true, false]).unwrap_err().to_string();
        assert!(message.contains("`new_right` has length 2, expected 1"), "{message}");
        let perfect = NegativeFlips::count(&[true, false], &[true, true]).unwrap();
        assert_eq!(perfect.rate().unwrap(), 0.0);
        assert!(perfect.relative_rate().is_err());
        assert!(NegativeFlips::count(&[false], &[false]).unwrap().relative_rate().is_err());
        assert!(NegativeFlips { kept: 0, lost: 0, won: 0, missed: 0 }.rate().is_err());
    }
}
