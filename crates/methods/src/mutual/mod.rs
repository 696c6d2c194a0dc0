//! Mutual contrastive learning (Yang, An, Cai, Xu, "Mutual Contrastive Learning for Visual Representation Learning", AAAI
//! 2022): a cohort of networks that learn from each other's embeddings.
//!
//! Network a gives the embedding v_a,i of image i, and S^{ab}_ij = ⟨v_a,i, v_b,j⟩/τ. With the positives J(i) of anchor i,
//!
//! ```text
//! ℓ(S)      = mean_i −(1/|J(i)|) Σ_{j∈J(i)} (S_ij − ln Σ_k e^{S_ik})
//! KL(x, y)  = T² · mean_i KL(softmax(y_i/T) ‖ softmax(x_i/T)),  y a constant
//! L_VCL     = Σ_a ℓ(S^{aa})                      L_softVCL = Σ_{a≠b} KL(S^{aa}, S^{bb})
//! L_ICL     = Σ_{a≠b} ℓ(S^{ab})                  L_softICL = Σ_{a≠b} KL(S^{ab}, S^{ba})
//! L         = α L_VCL + β L_ICL + γ L_softVCL + λ L_softICL
//! ```
//!
//! are added to each network's own classification loss. Three stores hold the S^{ab}_ij's other side: the batch
//! ([`MutualBatch`]), a memory bank with a row for every image ([`MutualBank`]), and a queue of momentum keys
//! ([`MutualQueue`]). An anchor without a positive adds nothing and is not counted.

mod bank;
mod batch;
mod lists;
mod logits;
mod queue;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::Terms;
use crate::error::{Error, Result, not_negative, positive};
use crate::tensors::check_rows;

pub use bank::MutualBank;
pub use batch::MutualBatch;
pub use lists::IndexLists;
pub use logits::{LogitDistillation, LogitStudents, logit_distillation};
pub use queue::MutualQueue;

pub(super) const METHOD: &str = "mutual contrast";

/// Settings of mutual contrastive learning; the default is that of the batch version.
///
/// | | [`default`](Self::default) | [`memory_bank`](Self::memory_bank) | [`momentum_queue`](Self::momentum_queue) |
/// |---|---:|---:|---:|
/// | `vcl` α, `icl` β | 0.1 | 0.1 | 1 |
/// | `soft_vcl` γ, `soft_icl` λ | 1 | 1 | 1 |
/// | `temperature` τ | 0.1 | 0.07 | 0.07 |
/// | `softening` T | 3 | 3 | 3 |
///
/// Source: the public code of the paper's authors (CIFAR-100, ImageNet, and MoCo respectively).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MutualContrastConfig {
    /// α, of every network's own contrast. A term of weight 0 is not computed.
    pub vcl: f64,
    /// β, of the contrast between networks.
    pub icl: f64,
    /// γ, of the divergence between the networks' own contrasts.
    pub soft_vcl: f64,
    /// λ, of the divergence between the two directions of the contrast between networks.
    pub soft_icl: f64,
    /// τ.
    pub temperature: f64,
    /// T, which softens both sides of a divergence.
    pub softening: f64,
}

impl Default for MutualContrastConfig {
    fn default() -> Self {
        Self { vcl: 0.1, icl: 0.1, soft_vcl: 1.0, soft_icl: 1.0, temperature: 0.1, softening: 3.0 }
    }
}

impl MutualContrastConfig {
    /// The settings of the memory bank version.
    #[must_use]
    pub fn memory_bank() -> Self {
        Self { temperature: 0.07, ..Self::default() }
    }

    /// The settings of the self-supervised version with momentum queues.
    #[must_use]
    pub fn momentum_queue() -> Self {
        Self { vcl: 1.0, icl: 1.0, temperature: 0.07, ..Self::default() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (name, weight) in
            [("vcl", self.vcl), ("icl", self.icl), ("soft_vcl", self.soft_vcl), ("soft_icl", self.soft_icl)]
        {
            not_negative(METHOD, name, weight)?;
        }
        positive(METHOD, "temperature", self.temperature)?;
        positive(METHOD, "softening", self.softening)
    }
}

/// Checks the size of a cohort.
fn check_cohort(argument: &'static str, networks: usize) -> Result<()> {
    match networks {
        2..=4 => Ok(()),
        n => Err(Error::argument(METHOD, argument, format!("a cohort of {n}"), "2 to 4 networks")),
    }
}

/// Checks the embeddings `[B, D]` of a cohort, and returns `(B, D)`.
fn check_embeddings(argument: &'static str, embeddings: &[Tensor]) -> Result<(usize, usize)> {
    check_cohort(argument, embeddings.len())?;
    let first = check_rows(METHOD, argument, &embeddings[0])?;
    for other in &embeddings[1..] {
        let got = check_rows(METHOD, argument, other)?;
        if got != first {
            let expected = format!("{first:?} of every network");
            return Err(Error::argument(METHOD, argument, format!("{got:?}"), expected));
        }
    }
    Ok(first)
}

/// The scores S^{ab} of a store: what the losses are made of.
trait Scores {
    /// ℓ(S^{ab}).
    fn contrast(&self, a: usize, b: usize) -> Result<Tensor>;

    /// ℓ(S^{ab}) + ℓ(S^{ba}).
    fn both(&self, a: usize, b: usize) -> Result<Tensor> {
        Ok((self.contrast(a, b)? + self.contrast(b, a)?)?)
    }

    /// KL(S^{student}, S^{teacher}).
    fn divergence(&self, student: (usize, usize), teacher: (usize, usize)) -> Result<Tensor>;

    /// The four losses of a cohort; those of weight 0 are not computed.
    fn terms(&self, config: &MutualContrastConfig, networks: usize) -> Result<Terms> {
        let ordered =
            || (0..networks).flat_map(|a| (0..networks).filter(move |b| *b != a).map(move |b| (a, b)));
        let mut terms = Vec::new();
        let mut add = |name, weight, values: &mut dyn Iterator<Item = Result<Tensor>>| -> Result<()> {
            if weight != 0.0 {
                terms.push((name, weight, total(values)?));
            }
            Ok(())
        };
        add("vcl", config.vcl, &mut (0..networks).map(|a| self.contrast(a, a)))?;
        add("icl", config.icl, &mut ordered().filter(|(a, b)| a < b).map(|(a, b)| self.both(a, b)))?;
        let own = &mut ordered().map(|(a, b)| self.divergence((a, a), (b, b)));
        add("soft_vcl", config.soft_vcl, own)?;
        let between = &mut ordered().map(|(a, b)| self.divergence((a, b), (b, a)));
        add("soft_icl", config.soft_icl, between)?;
        Terms::weighted(METHOD, terms)
    }
}

/// The sum of scalars.
fn total(values: impl Iterator<Item = Result<Tensor>>) -> Result<Tensor> {
    let values = values.collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&values, 0)?.sum_all()?)
}
