//! Distillation of the classifiers' logits inside a cohort.

use candle_core::{D, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::{METHOD, check_embeddings, total};
use crate::Terms;
use crate::error::{Result, not_negative, positive};

/// Who learns from the cohort's mean logits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogitStudents {
    /// Both networks of a cohort of two; of a larger one, the last network alone: what the public code does.
    #[default]
    Published,
    /// Every network.
    All,
}

/// Settings of [`logit_distillation`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogitDistillation {
    /// The weight of the term.
    pub weight: f64,
    /// T; 3 as published.
    pub softening: f64,
    /// Who learns.
    pub students: LogitStudents,
}

impl Default for LogitDistillation {
    fn default() -> Self {
        Self { weight: 1.0, softening: 3.0, students: LogitStudents::Published }
    }
}

/// The optional logit distillation of mutual contrastive learning: Σ_a T² mean_i KL(softmax(m_i/T) ‖ softmax(l_a,i/T)) over
/// the students a, where m is the mean of all networks' logits l and a constant.
///
/// `logits` `[B, C]` f32 of every network, tracked. One term, `logits`.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for a cohort of other than 2 to 4 networks, settings out of range, shapes
/// that disagree, and logits that are not finite.
pub fn logit_distillation(logits: &[Tensor], config: &LogitDistillation) -> Result<Terms> {
    not_negative(METHOD, "weight", config.weight)?;
    positive(METHOD, "softening", config.softening)?;
    check_embeddings("logits", logits)?;
    let t = config.softening;
    let mean = (Tensor::stack(logits, 0)?.detach().mean(0)? / t)?;
    let teacher = log_softmax(&mean, D::Minus1)?;
    let share = teacher.exp()?;
    let first = match config.students {
        LogitStudents::Published if logits.len() > 2 => logits.len() - 1,
        _ => 0,
    };
    let terms = logits[first..].iter().map(|student| {
        let student = log_softmax(&(student / t)?, D::Minus1)?;
        Ok(((&share * (&teacher - student)?)?.sum(D::Minus1)?.mean_all()? * (t * t))?)
    });
    Terms::weighted(METHOD, vec![("logits", config.weight, total(terms)?)])
}
