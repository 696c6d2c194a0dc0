//! MixBCT (Liang et al., 2023): one loss on a mixture of new and old embeddings.
//!
//! In every batch a share α = 0.3 of the new embeddings is replaced by the stored *old* embeddings of the same images,
//! and the classification loss is taken of the mixture: the classifier must serve both spaces, and draws them
//! together. Old rows are constants; of them only the classifier learns. Only credible old embeddings are mixed in:
//! in every class the T = 90 % nearest to the class mean. No term is added.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, fraction};
use crate::tensors::{counter, entry, mix_bits, read_counter};
use crate::{Batch, ClassMeans, CompatibleMethod, CosineClassifier, OldBank, State, Terms, fit};

const METHOD: &str = "mix-bct";

/// Settings of [`MixBct`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixBctConfig {
    /// α, the share of a batch that is replaced.
    pub share: f64,
    /// T, the share of every class that is credible.
    pub credible: f64,
}

impl Default for MixBctConfig {
    fn default() -> Self {
        Self { share: 0.3, credible: 0.9 }
    }
}

impl MixBctConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        fraction(METHOD, "share", self.share)?;
        fraction(METHOD, "credible", self.credible)
    }
}

/// Classification of a mixture of new and old embeddings.
#[derive(Debug, Clone)]
pub struct MixBct {
    config: MixBctConfig,
    credible: Vec<bool>,
    dimension: usize,
    seed: u64,
    step: u64,
}

impl MixBct {
    /// Finds the credible old embeddings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit.
    pub fn new(config: MixBctConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let means = ClassMeans::new(METHOD, bank)?;
        let labels = bank.labels.to_vec1::<u32>()?;
        let mut classes: Vec<Vec<(f64, usize)>> = vec![Vec::new(); means.len()];
        for (row, x) in bank.embeddings.detach().to_vec2::<f32>()?.iter().enumerate() {
            if let Some(slot) = means.slot(labels[row]) {
                let square: f64 =
                    x.iter().zip(means.mean(slot)).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum();
                classes[slot].push((square, row));
            }
        }
        let mut credible = vec![false; labels.len()];
        for class in &mut classes {
            class.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            // At least one row stays, or a small class would never be mixed in.
            let keep = ((class.len() as f64 * config.credible).round() as usize).clamp(1, class.len());
            class[..keep].iter().for_each(|(_, row)| credible[*row] = true);
        }
        if config.credible == 0.0 {
            credible.fill(false);
        }
        Ok(Self { config, credible, dimension: bank.dimension, seed: bank.seed, step: 0 })
    }

    /// Which rows of the bank are credible.
    pub fn credible(&self) -> &[bool] {
        &self.credible
    }
}

impl CompatibleMethod for MixBct {
    fn name(&self) -> &'static str {
        METHOD
    }

    /// Replaces `round(α·B)` rows, drawn among the credible ones of the batch; fewer when fewer are credible.
    fn mix(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        let [rows, new, _] = batch.check(METHOD)?;
        if new != self.dimension {
            let expected = format!("of dimension {}, as the bank says", self.dimension);
            return Err(Error::argument(METHOD, "new", format!("of dimension {new}"), expected));
        }
        let mut candidates = Vec::new();
        for (row, index) in batch.indices.to_vec1::<u32>()?.into_iter().enumerate() {
            match self.credible.get(index as usize) {
                Some(true) => candidates.push(row),
                Some(false) => {}
                None => {
                    let expected = format!("rows of the bank in 0..{}", self.credible.len());
                    return Err(Error::argument(METHOD, "indices", index, expected));
                }
            }
        }
        let draw = mix_bits(self.seed, self.step);
        self.step += 1;
        candidates.sort_by_key(|row| (mix_bits(draw, *row as u64), *row));
        let mut mask = vec![0u8; rows];
        let count = (rows as f64 * self.config.share).round() as usize;
        candidates.iter().take(count).for_each(|row| mask[*row] = 1);
        let mask = Tensor::from_vec(mask, (rows, 1), batch.new.device())?.broadcast_as((rows, new))?;
        let old = fit(&batch.old.detach(), new)?;
        Ok(mask.contiguous()?.where_cond(&old, batch.new)?)
    }

    fn terms(&mut self, batch: &Batch<'_>, _: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        Terms::none()
    }

    fn state(&self) -> Result<State> {
        Ok(State::from([("step".to_owned(), counter(self.step, &candle_core::Device::Cpu)?)]))
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.step = read_counter(entry(METHOD, state, "step", &[2], DType::U32)?)?;
        Ok(())
    }
}
