//! Hot-Refresh: regression-alleviating compatible training (Zhang et al., ICLR 2022), the contrastive form.
//!
//! With S = {k : y_k ≠ y_i} in the batch,
//! `L_i = −ln e^{⟨n_i, o_i⟩/τ} / (e^{⟨n_i, o_i⟩/τ} + Σ_{k∈S} e^{⟨n_i, o_k⟩/τ} + Σ_{k∈S} e^{⟨n_i, n_k⟩/τ})`:
//! the new embedding n_i finds its own old one o_i among the old *and the new* embeddings of other classes. The
//! new-to-new negatives are what alleviates negative flips while a gallery is refreshed; without them this is plain
//! contrast. τ = 0.01 and weight 1 as in OpenCompatible (`contra_ract`). Its optional mining keeps the k hardest
//! negatives of each kind (k = 10 there).

use candle_core::{D, Tensor};
use consonance::{ContrastOptions, Pairs, Temperature};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, not_negative, positive};
use crate::tensors::log_sum_exp;
use crate::{Batch, CompatibleMethod, CosineClassifier, DimensionMatch, OldBank, Terms, match_dimensions};

const METHOD: &str = "hot-refresh";

/// Settings of [`HotRefresh`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HotRefreshConfig {
    /// The weight of the term.
    pub weight: f64,
    /// τ.
    pub temperature: f64,
    /// Whether new embeddings of other classes are negatives too: `contra_ract`, else `contra`.
    pub new_negatives: bool,
    /// Only the k hardest negatives of each kind; all when absent.
    pub hardest: Option<usize>,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for HotRefreshConfig {
    fn default() -> Self {
        Self {
            weight: 1.0,
            temperature: 0.01,
            new_negatives: true,
            hardest: None,
            dimensions: DimensionMatch::ZeroPad,
        }
    }
}

impl HotRefreshConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "weight", self.weight)?;
        positive(METHOD, "temperature", self.temperature)?;
        match self.hardest {
            Some(0) => Err(Error::argument(METHOD, "hardest", 0, "at least one negative")),
            _ => Ok(()),
        }
    }
}

/// Hot-Refresh contrastive training.
#[derive(Debug, Clone)]
pub struct HotRefresh {
    config: HotRefreshConfig,
}

impl HotRefresh {
    /// Takes the settings; of the bank only its soundness matters.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit.
    pub fn new(config: HotRefreshConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        bank.check(METHOD)?;
        Ok(Self { config })
    }

    /// The mean over the batch with all negatives, in tiles.
    fn all(&self, new: &Tensor, old: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (keys, key_labels) = match self.config.new_negatives {
            true => (Tensor::cat(&[old, new], 0)?, Tensor::cat(&[labels, labels], 0)?),
            false => (old.clone(), labels.clone()),
        };
        let pairs = Pairs::diagonal().leave_out_same_label(labels, &key_labels);
        let temperature = Temperature::Fixed(self.config.temperature);
        Ok(consonance::contrast(new, &keys, &temperature, &pairs, &ContrastOptions::default())?.loss)
    }

    /// The mean over the batch with the k hardest negatives of each kind; a B × B matrix of the batch is scored.
    fn hardest(&self, new: &Tensor, old: &Tensor, labels: &Tensor, k: usize) -> Result<Tensor> {
        let rows = new.dim(0)?;
        let same = labels.unsqueeze(1)?.broadcast_eq(&labels.unsqueeze(0)?)?;
        let nowhere = Tensor::full(f32::NEG_INFINITY, (rows, rows), new.device())?;
        let score = |keys: &Tensor| -> Result<Tensor> {
            Ok((new.matmul(&keys.t()?)? * (1.0 / self.config.temperature))?)
        };
        let own = ((new * old)?.sum_keepdim(1)? * (1.0 / self.config.temperature))?;
        let mine = |keys: &Tensor| -> Result<Tensor> {
            let scores = score(keys)?;
            let masked = same.where_cond(&nowhere, &scores.detach())?;
            let order =
                masked.contiguous()?.arg_sort_last_dim(false)?.narrow(1, 0, k.min(rows))?.contiguous()?;
            let keep = same.gather(&order, D::Minus1)?;
            let hard = scores.gather(&order, D::Minus1)?;
            Ok(keep.where_cond(&nowhere.narrow(1, 0, k.min(rows))?.contiguous()?, &hard)?)
        };
        let mut columns = vec![own.clone(), mine(old)?];
        if self.config.new_negatives {
            columns.push(mine(new)?);
        }
        let all = Tensor::cat(&columns, 1)?;
        Ok((log_sum_exp(&all)? - own.squeeze(1)?)?.mean_all()?)
    }
}

impl CompatibleMethod for HotRefresh {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, _: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        let (new, old) = match_dimensions(batch.new, &batch.old.detach(), self.config.dimensions)?;
        let loss = match self.config.hardest {
            None => self.all(&new, &old, batch.labels)?,
            Some(k) => self.hardest(&new, &old, batch.labels, k)?,
        };
        Terms::weighted(METHOD, vec![("contrast", self.config.weight, loss)])
    }
}
