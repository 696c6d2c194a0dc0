//! The batch version: the images of a batch are each other's keys.

use candle_core::Tensor;
use consonance::{
    ContrastOptions, DivergenceOptions, Pairs, Temperature, contrast, contrast_symmetric, divergence,
};

use super::{METHOD, MutualContrastConfig, Scores, check_cohort, check_embeddings};
use crate::Terms;
use crate::error::{Error, Result};
use crate::tensors::check_labels;

/// Mutual contrastive learning inside a batch: J(i) are the other images of i's class, and every image but i itself is in
/// its denominators, in other networks, too. The soft losses compare all B columns. Published with two images a class in
/// every batch of 128, and 128 dimensions. Gradients arrive at both sides of every score.
#[derive(Debug, Clone)]
pub struct MutualBatch {
    config: MutualContrastConfig,
    networks: usize,
}

impl MutualBatch {
    /// Takes the settings for a cohort of `networks`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort of other than 2 to 4 networks, and settings out of range.
    pub fn new(config: MutualContrastConfig, networks: usize) -> Result<Self> {
        config.validate()?;
        check_cohort("networks", networks)?;
        Ok(Self { config, networks })
    }

    /// The terms of a batch: `embeddings` `[B, D]` f32 of every network, of unit norm, tracked; `labels` `[B]` u32.
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort of another size, shapes that disagree and rows that are not finite.
    pub fn terms(&self, embeddings: &[Tensor], labels: &Tensor) -> Result<Terms> {
        let (rows, _) = check_embeddings("embeddings", embeddings)?;
        if embeddings.len() != self.networks {
            let got = format!("a cohort of {}", embeddings.len());
            return Err(Error::argument(METHOD, "embeddings", got, format!("one of {}", self.networks)));
        }
        check_labels(METHOD, "labels", labels, rows)?;
        let ids = Tensor::arange(0, rows as u32, labels.device())?;
        let store = Batch {
            embeddings,
            pairs: Pairs::labels(labels, labels).ignore_same_id(&ids, &ids),
            temperature: Temperature::Fixed(self.config.temperature),
            soft: DivergenceOptions::new(self.config.temperature).softening(self.config.softening),
        };
        store.terms(&self.config, self.networks)
    }
}

struct Batch<'a> {
    embeddings: &'a [Tensor],
    pairs: Pairs,
    temperature: Temperature,
    soft: DivergenceOptions,
}

impl Scores for Batch<'_> {
    fn contrast(&self, a: usize, b: usize) -> Result<Tensor> {
        let (x, y) = (&self.embeddings[a], &self.embeddings[b]);
        Ok(contrast(x, y, &self.temperature, &self.pairs, &ContrastOptions::default())?.loss)
    }

    fn both(&self, a: usize, b: usize) -> Result<Tensor> {
        let (x, y) = (&self.embeddings[a], &self.embeddings[b]);
        let mean = contrast_symmetric(x, y, &self.temperature, &self.pairs, &ContrastOptions::default())?;
        Ok((mean.loss * 2.0)?)
    }

    fn divergence(&self, student: (usize, usize), teacher: (usize, usize)) -> Result<Tensor> {
        let v = self.embeddings;
        let sides = ((&v[student.0], &v[student.1]), (&v[teacher.0], &v[teacher.1]));
        Ok(divergence(sides.0, sides.1, &self.soft)?.loss)
    }
}
