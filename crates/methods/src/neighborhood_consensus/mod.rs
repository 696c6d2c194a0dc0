//! Neighborhood consensus (Wu et al., AAAI 2022): several old embeddings teach each new one.
//!
//! `L = L_new + α·L_emb + β·L_disc`. With old embeddings k_j of the keys, o_i of the anchor's own image, z_i its new
//! embedding and P(i) its teachers (old embeddings of its class, or of its sub-cluster or neighborhood):
//!
//! - weights `w_ij = ½(1 + ⟨o_i, k_j⟩)` estimate the sub-clusters of the old space: a teacher in another sub-cluster,
//!   or an outlier, counts less;
//! - `L_emb` is the weighted multi-positive contrast of z_i against all keys, see [`consonance::contrast`];
//! - `L_disc` does the same with class scores of the *new* classifier for new and old embeddings (a dual soft
//!   contrastive loss), see [`consonance::discrimination_raw`] and its siblings;
//! - old embeddings of low credibility are dropped, see [`consonance::credibility`].
//!
//! The gradient arrives at the new embeddings and, through `L_disc`, at the classifier. The published formulas are of
//! a queue of the last 8,192 old embeddings; since they never change, the whole bank may serve.

mod config;
mod teachers;

use candle_core::Tensor;
use consonance::{
    Bank, ContrastOptions, DiscriminationOptions, Entries, Normalizer, OtherPositives, Temperature,
};

pub use config::{
    CredibilityConfig, CredibilityRule, CredibilityScope, Discrimination, Keys, NeighborhoodConsensusConfig,
    Normalization, OtherTeachers, Positives, Weights,
};
use teachers::Teachers;

use crate::error::{Error, Result};
use crate::tensors::{counter, entry, read_counter, zero};
use crate::{Batch, CompatibleMethod, CosineClassifier, DimensionMatch, OldBank, State, Terms, fit};

const METHOD: &str = "neighborhood-consensus";

/// Neighborhood consensus over a bank of old embeddings.
#[derive(Debug)]
pub struct NeighborhoodConsensus {
    config: NeighborhoodConsensusConfig,
    teachers: Teachers,
    queue: Option<Bank>,
    dimension: usize,
}

impl NeighborhoodConsensus {
    /// Estimates neighborhoods, sub-clusters and credibility in the old embeddings, once.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit, [`Error::Operation`] from the
    /// operations.
    pub fn new(config: NeighborhoodConsensusConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let ([_, old], _) = bank.check(METHOD)?;
        let queue = match config.keys {
            Keys::Whole => None,
            Keys::Queue { length } => {
                Some(Bank::new(length, old, bank.embeddings.dtype(), bank.embeddings.device())?)
            }
        };
        let teachers = Teachers::new(&config, bank)?;
        Ok(Self { config, teachers, queue, dimension: bank.dimension })
    }

    /// Replaces the credibility of the bank's rows by a mask `[N]`, u8, of the caller's own making.
    ///
    /// # Errors
    /// [`Error::Argument`] for another length or type, or when the method was built without the filter.
    pub fn set_credible(&mut self, credible: &Tensor) -> Result<()> {
        self.teachers.set_credible(&self.config, credible)
    }

    /// Which rows of the bank may teach `[N]`, u8: all without the filter.
    pub fn credible(&self) -> &Tensor {
        self.teachers.credible()
    }

    /// The settings.
    pub fn config(&self) -> &NeighborhoodConsensusConfig {
        &self.config
    }

    fn options(&self) -> ContrastOptions {
        ContrastOptions {
            normalizer: match self.config.normalization {
                Normalization::Count => Normalizer::Count,
                Normalization::WeightSum => Normalizer::WeightSum,
            },
            other_positives: match self.config.other_teachers {
                OtherTeachers::InDenominator => OtherPositives::InDenominator,
                OtherTeachers::LeftOut => OtherPositives::LeftOut,
            },
            ..ContrastOptions::default()
        }
    }

    fn push(&mut self, batch: &Batch<'_>) -> Result<()> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let credible = self.teachers.credible().index_select(batch.indices, 0)?;
        queue.push_entries(&Entries {
            embeddings: batch.old,
            labels: batch.labels,
            ids: Some(batch.indices),
            credible: Some(&credible),
        })?;
        Ok(())
    }
}

/// New embeddings and keys in one space.
fn common(new: &Tensor, old: &Tensor, how: DimensionMatch) -> Result<(Tensor, Tensor)> {
    crate::match_dimensions(new, old, how)
}

impl CompatibleMethod for NeighborhoodConsensus {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, classifier: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        self.teachers.check_indices(batch)?;
        self.push(batch)?;
        let keys = self.teachers.keys(self.queue.as_ref())?;
        let pairs = self.teachers.pairs(&self.config, batch, &keys)?;
        let options = self.options();
        let (new, old) = common(batch.new, &keys.embeddings, self.config.dimensions)?;
        let temperature = Temperature::Fixed(self.config.temperature);
        let embedding = consonance::contrast(&new, &old, &temperature, &pairs, &options)?.loss;
        let mut terms = vec![("embedding", self.config.alpha, embedding)];
        if self.config.discrimination != Discrimination::None && self.config.beta > 0.0 {
            let weight = classifier.weight();
            if weight.dim(1)? != self.dimension {
                let expected = format!("a classifier of dimension {}", self.dimension);
                return Err(Error::argument(METHOD, "classifier", weight.dim(1)?, expected));
            }
            let old = fit(&keys.embeddings, self.dimension)?;
            let tau = Temperature::Fixed(self.config.score_temperature);
            let scores = DiscriminationOptions { contrast: options, ..DiscriminationOptions::default() };
            let scale = classifier.config().scale;
            let loss = match self.config.discrimination {
                Discrimination::Raw { cosine } => {
                    let scores = DiscriminationOptions { cosine, ..scores };
                    consonance::discrimination_raw(batch.new, &old, weight, &tau, &pairs, &scores)?.loss
                }
                Discrimination::Soft { softening } => {
                    let scores = DiscriminationOptions { scale: scale / softening, ..scores };
                    consonance::discrimination_soft(batch.new, &old, weight, &tau, &pairs, &scores)?.loss
                }
                Discrimination::Kl { softening } => {
                    let scores = DiscriminationOptions { scale: scale / softening, ..scores };
                    consonance::discrimination_kl(batch.new, &old, weight, &pairs, &scores)?.loss
                }
                Discrimination::None => zero(batch.new.device())?,
            };
            terms.push(("discrimination", self.config.beta, loss));
        }
        Terms::weighted(METHOD, terms)
    }

    fn state(&self) -> Result<State> {
        let Some(queue) = self.queue.as_ref().filter(|queue| !queue.is_empty()) else {
            return Ok(State::new());
        };
        let ids = queue.ids().narrow(0, 0, queue.len())?.force_contiguous()?;
        let head = counter(queue.head() as u64, ids.device())?;
        Ok(State::from([("queue.ids".to_owned(), ids), ("queue.head".to_owned(), head)]))
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let mut fresh = Bank::new(queue.capacity(), queue.dim(), queue.dtype(), queue.keys().device())?;
        let Some(ids) = state.get("queue.ids") else {
            self.queue = Some(fresh);
            return Ok(());
        };
        let error = |reason: String| Error::State { method: METHOD, entry: "queue.ids".to_owned(), reason };
        let len = ids.elem_count();
        if len == 0 || len > queue.capacity() {
            return Err(error(format!("holds {len} rows, expected 1 to {}", queue.capacity())));
        }
        let ids = entry(METHOD, state, "queue.ids", &[len], candle_core::DType::U32)?;
        let head = read_counter(entry(METHOD, state, "queue.head", &[2], candle_core::DType::U32)?)?;
        self.teachers.check_rows(ids).map_err(|e| error(format!("names a row that is not there: {e}")))?;
        self.teachers.refill(&mut fresh, ids)?;
        let head = usize::try_from(head).map_err(|e| error(e.to_string()))?;
        fresh.seek(head).map_err(|e| error(e.to_string()))?;
        self.queue = Some(fresh);
        Ok(())
    }
}
