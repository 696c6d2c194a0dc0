//! BCT: backward-compatible training by an influence loss (Shen et al., CVPR 2020).
//!
//! `L = L(w_n, φ_n) + λ·L(w_o, φ_n)`: beside its own classifier the new model is trained with the *old*, frozen
//! classifier. Where the old classifier is not at hand, or its classes are others, its rows are synthesized as the
//! mean old embedding of every class of the new training set (section 3.3 of the paper).

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::classes::{Kept, NO_SLOT};
use crate::classifier::margin_softmax;
use crate::error::{Error, Result, not_negative, positive};
use crate::tensors::{log_sum_exp, unit_rows, zero};
use crate::{Batch, ClassMeans, CompatibleMethod, CosineClassifier, DimensionMatch, Margin, OldBank, Terms};
use crate::{fit, match_dimensions};

const METHOD: &str = "bct";

/// What the old classifier is asked to say of the new embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BctTargets {
    /// The image's own class: the influence loss of the paper.
    #[default]
    Labels,
    /// What it says of the image's old embedding: the variant for classes that the old classifier does not know
    /// (learning without forgetting).
    Distilled,
}

/// Settings of [`Bct`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BctConfig {
    /// λ of the influence loss; 1 in the paper.
    pub weight: f64,
    /// The scale of the cosines to the old rows; the new classifier's own when absent.
    pub scale: Option<f64>,
    /// The margin of the target class; none in the paper.
    pub margin: Margin,
    /// The target of the old classifier.
    pub targets: BctTargets,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for BctConfig {
    fn default() -> Self {
        Self {
            weight: 1.0,
            scale: None,
            margin: Margin::None,
            targets: BctTargets::Labels,
            dimensions: DimensionMatch::ZeroPad,
        }
    }
}

impl BctConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "weight", self.weight)?;
        self.scale.map_or(Ok(()), |scale| positive(METHOD, "scale", scale))?;
        self.margin.validate(METHOD)
    }
}

/// Backward-compatible training with the old classifier or with class means in its place.
#[derive(Debug, Clone)]
pub struct Bct {
    config: BctConfig,
    rows: Tensor,
    slots: Vec<u32>,
}

impl Bct {
    /// The pseudo-classifier: mean old embeddings of every class.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit.
    pub fn new(config: BctConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let means = ClassMeans::new(METHOD, bank)?;
        let rows = means.tensor(true, bank.embeddings.device())?;
        Ok(Self { config, rows, slots: means.slots().to_vec() })
    }

    /// The old model's own classifier `[Co, Do]`; `old_class[c]` is the old class of new class c, or `None` where the
    /// class is new: such images contribute nothing, as in the paper.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range, other than a matrix, or an old class outside `0..Co`.
    pub fn with_classifier(config: BctConfig, weight: &Tensor, old_class: &[Option<u32>]) -> Result<Self> {
        config.validate()?;
        let &[classes, _] = weight.dims() else {
            let got = format!("{:?}", weight.dims());
            return Err(Error::argument(METHOD, "weight", got, "a matrix [old classes, dimension]"));
        };
        if let Some(class) = old_class.iter().flatten().find(|c| **c as usize >= classes) {
            return Err(Error::argument(METHOD, "old_class", class, format!("classes in 0..{classes}")));
        }
        let slots = old_class.iter().map(|c| c.unwrap_or(NO_SLOT)).collect();
        Ok(Self { config, rows: unit_rows(&weight.detach())?, slots })
    }
}

impl CompatibleMethod for Bct {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, classifier: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        let scale = self.config.scale.unwrap_or(classifier.config().scale);
        let influence = match Kept::new(METHOD, batch.labels, &self.slots)? {
            None => zero(batch.new.device())?,
            Some(kept) => {
                let (new, rows) = match_dimensions(batch.new, &self.rows, self.config.dimensions)?;
                let new = kept.select(&new)?;
                match self.config.targets {
                    BctTargets::Labels => {
                        margin_softmax(&new, &rows, &kept.slots, scale, self.config.margin)?.mean_all()?
                    }
                    BctTargets::Distilled => {
                        let old = kept.select(&fit(&batch.old.detach(), rows.dim(1)?)?)?;
                        let say = |x: &Tensor| -> Result<Tensor> {
                            let scores = (unit_rows(x)?.matmul(&unit_rows(&rows)?.t()?)? * scale)?;
                            Ok(scores.broadcast_sub(&log_sum_exp(&scores)?.unsqueeze(1)?)?)
                        };
                        (say(&old)?.exp()? * say(&new)?)?.sum(1)?.mean_all()?.neg()?
                    }
                }
            }
        };
        Terms::weighted(METHOD, vec![("influence", self.config.weight, influence)])
    }
}
