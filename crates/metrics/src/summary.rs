//! Mean and spread over seeds.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The mean of a value over several runs, and how far the runs lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation (n − 1 in the denominator); `None` for a single run.
    pub spread: Option<f64>,
    /// The number of runs.
    pub runs: usize,
}

impl Summary {
    /// The summary of one value per run.
    ///
    /// # Errors
    /// [`Error::Empty`] without values, [`Error::Range`] for a value that is not finite, or so large that the sum of the
    /// squares overflows.
    pub fn of(values: &[f64]) -> Result<Self> {
        const OP: &str = "summary";
        if values.is_empty() {
            return Err(Error::Empty { op: OP, argument: "values" });
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::range(OP, format!("values[{index}]"), values[index], "a finite number"));
        }
        let runs = values.len();
        // Around the first value, so that equal values have a mean of exactly that value and a spread of exactly 0.
        let shift = values[0];
        let mean = shift + values.iter().map(|v| v - shift).sum::<f64>() / runs as f64;
        let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        if !(mean.is_finite() && squares.is_finite()) {
            return Err(Error::range(OP, "values", "too large to average", "magnitudes below 1e150"));
        }
        let spread = (runs > 1).then(|| (squares / (runs - 1) as f64).sqrt());
        Ok(Self { mean, spread, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let summary = Summary::of(&[1.0, 2.0, 4.0, 5.0]).unwrap();
        // Squared distances from 3: 4 + 1 + 1 + 4, over 3.
        assert_eq!(summary, Summary { mean: 3.0, spread: Some((10.0f64 / 3.0).sqrt()), runs: 4 });
        assert_eq!(Summary::of(&[0.1]).unwrap(), Summary { mean: 0.1, spread: None, runs: 1 });
        assert_eq!(Summary::of(&[0.1; 3]).unwrap(), Summary { mean: 0.1, spread: Some(0.0), runs: 3 });
    }

    #[test]
    fn bad_values_are_named() {
        assert!(matches!(Summary::of(&[]), Err(Error::Empty { .. })));
        assert!(Summary::of(&[0.0, f64::NAN]).unwrap_err().to_string().contains("`values[1]` is NaN"));
        assert!(Summary::of(&[f64::MAX, -f64::MAX]).is_err());
    }
}
