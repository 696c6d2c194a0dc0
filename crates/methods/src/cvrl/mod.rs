//! Contrast of two clips of every video (Qian, Meng, Gong, Yang, Wang, Belongie, Cui, "Spatiotemporal Contrastive Video
//! Representation Learning", CVPR 2021, and its public code).
//!
//! h¹_i and h²_i embed two clips of video i, of unit norm. With S^{ab}_ij = ⟨h^a_i, h^b_j⟩/τ,
//!
//! ```text
//! L_a = mean_i −S¹²_ii + ln(Σ_j e^{S¹²_ij} + Σ_{j≠i} e^{S¹¹_ij})
//! L_b = mean_i −S²¹_ii + ln(Σ_j e^{S²¹_ij} + Σ_{j≠i} e^{S²²_ij})
//! L   = L_a + L_b
//! ```
//!
//! the normalized temperature-scaled cross-entropy over 2N − 1 candidates (Chen, Kornblith, Norouzi, Hinton, "A Simple Framework
//! for Contrastive Learning of Visual Representations", ICML 2020), as a sum of both panels. It is one `contrast` of the 2N rows
//! with themselves, so gradients arrive at both sides and no N × N matrix is kept.
//!
//! The two clips come from a [`ClipSampler`], whose intervals are short more often than long, and pass a [`ClipAugmentation`],
//! which draws its parameters once a clip: what differs from frame to frame is motion, and not the augmentation.

mod augmentation;
mod sampling;

use candle_core::Tensor;
use consonance::{ContrastOptions, Pairs, Temperature, contrast};
use serde::{Deserialize, Serialize};

use crate::Terms;
use crate::error::{Error, Result, positive};
use crate::tensors::check_rows;

pub use augmentation::{ClipAugmentation, ClipAugmentationConfig, ClipView, Consistency};
pub use sampling::{ClipSampler, ClipSamplerConfig, ClipStarts, IntervalDistribution};

const METHOD: &str = "cvrl";

/// Settings of [`Cvrl`]; the defaults are those of the paper's public code (`official/projects/video_ssl` of the TensorFlow
/// model garden).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CvrlConfig {
    /// τ; 0.1.
    pub temperature: f64,
    /// How two clips of a video are drawn.
    pub sampling: ClipSamplerConfig,
    /// How clips are augmented.
    pub augmentation: ClipAugmentationConfig,
}

impl Default for CvrlConfig {
    fn default() -> Self {
        let (sampling, augmentation) = (ClipSamplerConfig::default(), ClipAugmentationConfig::default());
        Self { temperature: 0.1, sampling, augmentation }
    }
}

impl CvrlConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        positive(METHOD, "temperature", self.temperature)?;
        self.sampling.validate()?;
        self.augmentation.validate()
    }
}

/// Contrastive video representation learning. It has no state.
#[derive(Debug, Clone)]
pub struct Cvrl {
    config: CvrlConfig,
    sampler: ClipSampler,
    augmentation: ClipAugmentation,
}

impl Cvrl {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: CvrlConfig) -> Result<Self> {
        config.validate()?;
        let sampler = ClipSampler::new(config.sampling)?;
        let augmentation = ClipAugmentation::new(config.augmentation)?;
        Ok(Self { config, sampler, augmentation })
    }

    /// Where clips begin.
    pub fn sampler(&self) -> &ClipSampler {
        &self.sampler
    }

    /// How clips are augmented.
    pub fn augmentation(&self) -> &ClipAugmentation {
        &self.augmentation
    }

    /// The terms `first` (L_a) and `second` (L_b) of the embeddings of both clips, each `[N, D]` f32 with rows of unit norm,
    /// tracked; row i of both is of video i. Gradients arrive at both. Embeddings of other devices are put behind one's own
    /// beforehand, with their gradient.
    ///
    /// # Errors
    /// [`Error::Argument`] for fewer than two videos, shapes that disagree and rows that are not finite; those of the operations.
    pub fn terms(&self, first: &Tensor, second: &Tensor) -> Result<Terms> {
        let (videos, dimension) = check_rows(METHOD, "first", first)?;
        let other = check_rows(METHOD, "second", second)?;
        if other != (videos, dimension) {
            let expected = format!("{:?}, as the first clips", (videos, dimension));
            return Err(Error::argument(METHOD, "second", format!("{other:?}"), expected));
        }
        if videos < 2 {
            let expected = "two or more: one has no negatives";
            return Err(Error::argument(METHOD, "first", "a single video", expected));
        }
        let rows = Tensor::cat(&[first, second], 0)?;
        let clips = Tensor::arange(0, 2 * videos as u32, rows.device())?;
        let video = Tensor::arange(0, videos as u32, rows.device())?;
        let video = Tensor::cat(&[&video, &video], 0)?;
        let pairs = Pairs::labels(&video, &video).ignore_same_id(&clips, &clips);
        let temperature = Temperature::Fixed(self.config.temperature);
        let losses = contrast(&rows, &rows, &temperature, &pairs, &ContrastOptions::default())?.per_row;
        let panel = |start: usize| losses.narrow(0, start, videos)?.mean_all();
        Terms::weighted(METHOD, vec![("first", 1.0, panel(0)?), ("second", 1.0, panel(videos)?)])
    }
}
