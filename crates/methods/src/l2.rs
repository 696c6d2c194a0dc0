//! L2 regression of the new embedding onto the old one.
//!
//! Three published forms: MixBCT's baseline adds `10 · mean_i ‖f_n,i − f_o,i‖₂` (the norm, not its square) to the
//! classification loss, and its weakened form subtracts a threshold of 0.2 first; openBCT's baseline is the mean
//! squared error *alone*, without a classification loss.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Result, not_negative};
use crate::tensors::row_norms;
use crate::{Batch, CompatibleMethod, CosineClassifier, DimensionMatch, OldBank, Terms, match_dimensions};

const METHOD: &str = "l2";

/// The distance that is made small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum L2Form {
    /// `mean_i max(0, ‖f_n,i − f_o,i‖₂ − threshold)`.
    Norm {
        /// Distances below it cost nothing: 0, or 0.2 in the weakened form.
        threshold: f64,
    },
    /// The mean of `(f_n − f_o)²` over rows and coordinates.
    MeanSquared,
}

/// Settings of [`L2`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L2Config {
    /// The distance.
    pub form: L2Form,
    /// The weight of the term.
    pub weight: f64,
    /// Whether the new model keeps its classification loss.
    pub classification: bool,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for L2Config {
    /// MixBCT's baseline.
    fn default() -> Self {
        Self {
            form: L2Form::Norm { threshold: 0.0 },
            weight: 10.0,
            classification: true,
            dimensions: DimensionMatch::ZeroPad,
        }
    }
}

impl L2Config {
    /// MixBCT's weakened baseline: distances below 0.2 cost nothing.
    #[must_use]
    pub fn weakened() -> Self {
        Self { form: L2Form::Norm { threshold: 0.2 }, ..Self::default() }
    }

    /// openBCT's baseline: the mean squared error alone, longer embeddings truncated.
    #[must_use]
    pub fn open_bct() -> Self {
        Self {
            form: L2Form::MeanSquared,
            weight: 1.0,
            classification: false,
            dimensions: DimensionMatch::Truncate,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "weight", self.weight)?;
        match self.form {
            L2Form::Norm { threshold } => not_negative(METHOD, "threshold", threshold),
            L2Form::MeanSquared => Ok(()),
        }
    }
}

/// L2 regression onto the old embeddings.
#[derive(Debug, Clone)]
pub struct L2 {
    config: L2Config,
}

impl L2 {
    /// Takes the settings; of the bank only its soundness matters.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for settings out of range and for a bank that does not fit.
    pub fn new(config: L2Config, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        bank.check(METHOD)?;
        Ok(Self { config })
    }
}

impl CompatibleMethod for L2 {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn classification_weight(&self) -> f64 {
        if self.config.classification { 1.0 } else { 0.0 }
    }

    fn terms(&mut self, batch: &Batch<'_>, _: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        let (new, old) = match_dimensions(batch.new, &batch.old.detach(), self.config.dimensions)?;
        let difference: Tensor = (new - old)?;
        let distance = match self.config.form {
            L2Form::Norm { threshold } => (row_norms(&difference)? - threshold)?.relu()?.mean_all()?,
            L2Form::MeanSquared => difference.sqr()?.mean(D::Minus1)?.mean_all()?,
        };
        Terms::weighted(METHOD, vec![("distance", self.config.weight, distance)])
    }
}
