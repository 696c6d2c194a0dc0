//! LCE: learning compatible embeddings (Meng et al., ICCV 2021).
//!
//! `L = L_new + λ_a·L_align + λ_b·L_bound` with λ_a = 100 and λ_b = 1: with the normalized mean ĉ_k of a class's old
//! embeddings and its boundary `b_k = min_i ⟨f_o,i, ĉ_k⟩`, the new classifier's row ŵ_k is drawn to ĉ_k
//! (`L_align`, mean squared error over all classes and coordinates), and a new embedding is drawn inside the boundary
//! (`L_bound = mean_i max(0, b_y − ⟨f_n,i, ĉ_y⟩)`).
//!
//! The paper trains with ArcFace s = 16, m = 0.1 as L_new. For models of different dimensions it learns small
//! transforms between the spaces; as in the protocol of later comparisons (no transform, K = 0) the dimensions are
//! matched by padding or truncation here.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::classes::Kept;
use crate::error::{Result, not_negative};
use crate::tensors::{unit_rows, zero};
use crate::{Batch, ClassMeans, CompatibleMethod, CosineClassifier, DimensionMatch, OldBank, Terms};
use crate::{fit, match_dimensions};

const METHOD: &str = "lce";

/// Settings of [`Lce`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LceConfig {
    /// λ_a.
    pub alignment: f64,
    /// λ_b.
    pub boundary: f64,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for LceConfig {
    fn default() -> Self {
        Self { alignment: 100.0, boundary: 1.0, dimensions: DimensionMatch::ZeroPad }
    }
}

impl LceConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "alignment", self.alignment)?;
        not_negative(METHOD, "boundary", self.boundary)
    }
}

/// Alignment of the classifier and boundaries of old classes.
#[derive(Debug, Clone)]
pub struct Lce {
    config: LceConfig,
    centers: Tensor,
    classes: Tensor,
    slots: Vec<u32>,
    boundaries: Tensor,
}

impl Lce {
    /// Computes centers and boundaries of the old classes.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for settings out of range and for a bank that does not fit.
    pub fn new(config: LceConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let means = ClassMeans::new(METHOD, bank)?;
        let device = bank.embeddings.device();
        let centers = means.tensor(true, device)?;
        let unit = centers.to_vec2::<f32>()?;
        let mut boundaries = vec![1.0f64; means.len()];
        let labels = bank.labels.to_vec1::<u32>()?;
        for (row, label) in bank.embeddings.detach().to_vec2::<f32>()?.iter().zip(labels) {
            if let Some(slot) = means.slot(label) {
                let cosine: f64 =
                    row.iter().zip(&unit[slot]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                boundaries[slot] = boundaries[slot].min(cosine);
            }
        }
        let boundaries: Vec<f32> = boundaries.iter().map(|b| *b as f32).collect();
        Ok(Self {
            config,
            centers,
            classes: Tensor::new(means.classes(), device)?,
            slots: means.slots().to_vec(),
            boundaries: Tensor::new(boundaries, device)?,
        })
    }
}

impl CompatibleMethod for Lce {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, classifier: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        let rows = classifier.normalized_weight()?;
        let own = rows.index_select(&self.classes, 0)?;
        let align = (own - fit(&self.centers, rows.dim(1)?)?)?.sqr()?.mean_all()?;
        let bound = match Kept::new(METHOD, batch.labels, &self.slots)? {
            None => zero(batch.new.device())?,
            Some(kept) => {
                let (new, centers) = match_dimensions(batch.new, &self.centers, self.config.dimensions)?;
                let new = unit_rows(&kept.select(&new)?)?;
                let cosines = (new * centers.index_select(&kept.slots, 0)?)?.sum(D::Minus1)?;
                (self.boundaries.index_select(&kept.slots, 0)? - cosines)?.relu()?.mean_all()?
            }
        };
        let terms =
            vec![("alignment", self.config.alignment, align), ("boundary", self.config.boundary, bound)];
        Terms::weighted(METHOD, terms)
    }
}
