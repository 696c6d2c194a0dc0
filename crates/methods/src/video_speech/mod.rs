//! Contrast of video and speech with affinity-aware self-paced learning (Jiao, Cai, Alsharid, Drukker, Papageorghiou, Noble,
//! "Self-supervised Contrastive Video-Speech Representation Learning for Ultrasound", MICCAI 2020).
//!
//! v_i embeds a clip and s_i the speech over it, both of unit norm; pair i is positive, everything else negative. Speech of
//! the *same* scan at another time may well fit the clip: such a negative counts with a weight u_ij that falls with its
//! affinity a_ij to the positive, and it is admitted at a pace ρ that grows with the training.
//!
//! ```text
//! a_ij = e^{−|t_i − t_j|/κ}  or  ½(1 + cos(s_i, s_j))  in one scan, 0 between scans
//! ρ(e) = ρ₀ + (1 − ρ₀) · min(1, e/E)
//! u_ij = 1[a_ij ≤ ρ]  or  max(0, 1 − a_ij/ρ)
//! softmax: L_i = −ln e^{⟨v_i,s_i⟩/τ}/(e^{⟨v_i,s_i⟩/τ} + Σ_j u_ij e^{⟨v_i,s_j⟩/τ}), and the same from speech to video
//! margin:  L_i = |v_i − s_i|² + Σ_j u_ij max(0, m − |v_i − s_j|)² / Σ_j u_ij
//! w_i  = 1,  or  1[L_i < λ],  or  max(0, 1 − L_i/λ)   with  λ(e) = λ₀ gᵉ
//! L    = (1/N) Σ_i w_i L_i + order · L_order
//! ```
//!
//! **What is a reconstruction.** The paper's abstract names the parts: contrast of synchronized and other pairs, hard
//! negatives from the same scan, affinity-aware self-paced selection, prediction of the frames' order. The formulas above
//! and every default below are this crate's; so each is a setting. The sample weights w are the closed forms of self-paced
//! learning (Kumar, Packer, Koller, NIPS 2010; Jiang et al., AAAI 2015).

mod order;

use std::ops::Range;

use candle_core::{DType, Tensor};
use consonance::{Admission, Closeness, ContrastOptions, Pairs, Temperature, contrast, contrast_symmetric};
use serde::{Deserialize, Serialize};

use crate::Terms;
use crate::error::{Error, Result, not_negative, positive};
use crate::margins;
use crate::tensors::{check_labels, check_rows, unit_rows};

pub use order::{OrderConfig, OrderHead};

const METHOD: &str = "video speech";

/// The form of the contrast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VideoSpeechForm {
    /// Softmax over the pairs.
    Softmax {
        /// τ.
        temperature: f64,
        /// Whether speech looks for its clip, too; both directions are summed.
        symmetric: bool,
    },
    /// Distances below a margin.
    Margin {
        /// m.
        margin: f64,
    },
}

/// The affinity of pairs of one scan.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum PairAffinity {
    /// None: all negatives count alike.
    Uniform,
    /// e^{−|t_i − t_j|/κ}.
    Time {
        /// κ, in the unit of the times.
        scale: f64,
    },
    /// ½(1 + cos(s_i, s_j)) of the speech embeddings, constants here.
    Speech,
}

/// How an affinity becomes a weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairAdmission {
    /// 1 where a ≤ ρ, else 0.
    Hard,
    /// max(0, 1 − a/ρ).
    #[default]
    Soft,
}

/// The weights of whole pairs by their loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SampleWeights {
    /// All 1.
    Uniform,
    /// 1 where L_i < λ, else 0.
    Hard {
        /// λ₀.
        limit: f64,
        /// g, by which λ grows every epoch.
        growth: f64,
    },
    /// max(0, 1 − L_i/λ).
    Linear {
        /// λ₀.
        limit: f64,
        /// g, by which λ grows every epoch.
        growth: f64,
    },
}

impl SampleWeights {
    /// w_i of the losses at an epoch.
    fn weights(self, losses: &[f64], epoch: f64) -> Vec<f64> {
        let at = |limit: f64, growth: f64| limit * growth.powf(epoch);
        let weight = |loss: f64| match self {
            Self::Uniform => 1.0,
            Self::Hard { limit, growth } => f64::from(u8::from(loss < at(limit, growth))),
            Self::Linear { limit, growth } => (1.0 - loss / at(limit, growth)).max(0.0),
        };
        losses.iter().map(|loss| weight(*loss)).collect()
    }
}

/// Settings of [`VideoSpeech`]; all defaults are choices of this crate, as the paper's are not public.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VideoSpeechConfig {
    /// The contrast; softmax with τ = 0.1 in both directions.
    pub form: VideoSpeechForm,
    /// The affinity; of times with κ = 1.
    pub affinity: PairAffinity,
    /// From affinity to weight.
    pub admission: PairAdmission,
    /// ρ₀ in (0, 1]; 0.2.
    pub pace_start: f64,
    /// E, the epochs until every negative is admitted; 10. 0: from the start.
    pub pace_epochs: f64,
    /// The weights of whole pairs.
    pub samples: SampleWeights,
    /// The weight of the order prediction.
    pub order: f64,
}

impl Default for VideoSpeechConfig {
    fn default() -> Self {
        Self {
            form: VideoSpeechForm::Softmax { temperature: 0.1, symmetric: true },
            affinity: PairAffinity::Time { scale: 1.0 },
            admission: PairAdmission::Soft,
            pace_start: 0.2,
            pace_epochs: 10.0,
            samples: SampleWeights::Uniform,
            order: 1.0,
        }
    }
}

impl VideoSpeechConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        match self.form {
            VideoSpeechForm::Softmax { temperature, .. } => positive(METHOD, "temperature", temperature)?,
            VideoSpeechForm::Margin { margin } => positive(METHOD, "margin", margin)?,
        }
        if let PairAffinity::Time { scale } = self.affinity {
            positive(METHOD, "scale", scale)?;
        }
        if !(self.pace_start > 0.0 && self.pace_start <= 1.0) {
            return Err(Error::argument(METHOD, "pace_start", self.pace_start, "above 0 and at most 1"));
        }
        not_negative(METHOD, "pace_epochs", self.pace_epochs)?;
        if let SampleWeights::Hard { limit, growth } | SampleWeights::Linear { limit, growth } = self.samples
        {
            positive(METHOD, "limit", limit)?;
            positive(METHOD, "growth", growth)?;
        }
        not_negative(METHOD, "order", self.order)
    }

    /// ρ at an epoch, counted from 0 and not necessarily whole.
    pub fn pace(&self, epoch: f64) -> f64 {
        let share = if self.pace_epochs > 0.0 { (epoch / self.pace_epochs).clamp(0.0, 1.0) } else { 1.0 };
        self.pace_start + (1.0 - self.pace_start) * share
    }
}

/// A batch of synchronized pairs.
#[derive(Debug, Clone, Copy)]
pub struct VideoSpeechBatch<'a> {
    /// Clips `[N, D]`, f32, rows of unit norm, tracked.
    pub video: &'a Tensor,
    /// Their speech `[N, D]`, f32, rows of unit norm, tracked.
    pub speech: &'a Tensor,
    /// The scan of every pair `[N]`, u32.
    pub scans: &'a Tensor,
    /// When in its scan it was recorded `[N]`, f32.
    pub times: &'a Tensor,
    /// The epoch, from 0, not necessarily whole.
    pub epoch: f64,
}

/// Video-speech contrast with affinity-aware self-paced learning. It has no state.
#[derive(Debug, Clone)]
pub struct VideoSpeech {
    config: VideoSpeechConfig,
}

impl VideoSpeech {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: VideoSpeechConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// The terms of a batch, and of the loss of an [`OrderHead`] where one is given. Gradients arrive at both embeddings.
    ///
    /// # Errors
    /// [`Error::Argument`] for fewer than two pairs, shapes that disagree, rows or times that are not finite, an order
    /// loss that is no scalar, and an epoch that is no number from 0; those of the operations.
    pub fn terms(&self, batch: &VideoSpeechBatch<'_>, order: Option<&Tensor>) -> Result<Terms> {
        self.check(batch)?;
        let contrast = match self.config.form {
            VideoSpeechForm::Softmax { temperature, symmetric } => {
                self.softmax(batch, temperature, symmetric)?
            }
            VideoSpeechForm::Margin { margin } => self.margin(batch, margin)?,
        };
        let mut terms = vec![("contrast", 1.0, contrast)];
        if let Some(order) = order {
            if order.rank() != 0 {
                let got = format!("{:?}", order.dims());
                return Err(Error::argument(METHOD, "order", got, "a scalar"));
            }
            terms.push(("order", self.config.order, order.clone()));
        }
        Terms::weighted(METHOD, terms)
    }

    fn check(&self, batch: &VideoSpeechBatch<'_>) -> Result<()> {
        let (rows, dimension) = check_rows(METHOD, "video", batch.video)?;
        let speech = check_rows(METHOD, "speech", batch.speech)?;
        if speech != (rows, dimension) {
            let expected = format!("{:?}, as the video", (rows, dimension));
            return Err(Error::argument(METHOD, "speech", format!("{speech:?}"), expected));
        }
        if rows < 2 {
            return Err(Error::argument(
                METHOD,
                "video",
                "a single pair",
                "two or more: one has no negatives",
            ));
        }
        check_labels(METHOD, "scans", batch.scans, rows)?;
        if batch.times.dims() != [rows] || batch.times.dtype() != DType::F32 {
            let got = format!("{:?} of {:?}", batch.times.dims(), batch.times.dtype());
            return Err(Error::argument(METHOD, "times", got, format!("[{rows}] of F32")));
        }
        if let Some(time) = batch.times.to_vec1::<f32>()?.into_iter().find(|t| !t.is_finite()) {
            return Err(Error::argument(METHOD, "times", time, "finite times"));
        }
        not_negative(METHOD, "epoch", batch.epoch)
    }

    fn admission(&self) -> Admission {
        match self.config.admission {
            PairAdmission::Hard => Admission::Hard,
            PairAdmission::Soft => Admission::Soft,
        }
    }

    fn softmax(&self, batch: &VideoSpeechBatch<'_>, temperature: f64, symmetric: bool) -> Result<Tensor> {
        let pace = self.config.pace(batch.epoch);
        let of_times =
            |scale: f64| Closeness::Times { queries: batch.times.clone(), keys: batch.times.clone(), scale };
        let closeness = match self.config.affinity {
            PairAffinity::Uniform => None,
            PairAffinity::Time { scale } => Some(of_times(scale)),
            PairAffinity::Speech => {
                let speech = batch.speech.detach();
                Some(Closeness::Features { queries: speech.clone(), keys: speech })
            }
        };
        let pairs = match closeness {
            None => Pairs::diagonal(),
            Some(closeness) => {
                Pairs::diagonal().pace((batch.scans, batch.scans), closeness, pace, self.admission())
            }
        };
        let (tau, options) = (Temperature::Fixed(temperature), ContrastOptions::default());
        let n = batch.video.dim(0)?;
        let losses = match symmetric {
            true => {
                let both = contrast_symmetric(batch.video, batch.speech, &tau, &pairs, &options)?.per_row;
                (both.narrow(0, 0, n)? + both.narrow(0, n, n)?)?
            }
            false => contrast(batch.video, batch.speech, &tau, &pairs, &options)?.per_row,
        };
        let values: Vec<f64> = losses.detach().to_vec1::<f32>()?.into_iter().map(f64::from).collect();
        let weights = self.config.samples.weights(&values, batch.epoch);
        let weights: Vec<f32> = weights.into_iter().map(|w| (w / n as f64) as f32).collect();
        Ok((losses * Tensor::new(weights, batch.video.device())?)?.sum_all()?)
    }

    fn margin(&self, batch: &VideoSpeechBatch<'_>, margin: f64) -> Result<Tensor> {
        let n = batch.video.dim(0)?;
        let weights = |rows: Range<usize>| self.weights(batch, rows);
        let of_rows = |losses: &[f64]| -> Vec<f64> {
            self.config.samples.weights(losses, batch.epoch).iter().map(|w| w / n as f64).collect()
        };
        margins::distances(batch.video, batch.speech, margin, weights, of_rows)
    }

    /// u of some rows against all columns, f64, 0 for the positive pair.
    fn weights(&self, batch: &VideoSpeechBatch<'_>, rows: Range<usize>) -> Result<Tensor> {
        let (start, count, n) = (rows.start, rows.len(), batch.video.dim(0)?);
        let device = batch.video.device();
        let pair = |x: &Tensor| -> Result<(Tensor, Tensor)> {
            Ok((x.narrow(0, start, count)?.unsqueeze(1)?, x.unsqueeze(0)?))
        };
        let one = Tensor::ones((count, n), DType::F64, device)?;
        let affinity = match self.config.affinity {
            PairAffinity::Uniform => None,
            PairAffinity::Time { scale } => {
                let (own, all) = pair(&batch.times.to_dtype(DType::F64)?)?;
                Some((own.broadcast_sub(&all)?.abs()? * (-1.0 / scale))?.exp()?)
            }
            PairAffinity::Speech => {
                let speech = unit_rows(&batch.speech.detach().to_dtype(DType::F64)?)?;
                let cosines = speech.narrow(0, start, count)?.matmul(&speech.t()?)?.clamp(-1.0, 1.0)?;
                Some(((cosines + 1.0)? * 0.5)?)
            }
        };
        let weights = match affinity {
            None => one,
            Some(affinity) => {
                let pace = self.config.pace(batch.epoch);
                let inside = match self.config.admission {
                    PairAdmission::Hard => affinity.le(pace)?.to_dtype(DType::F64)?,
                    PairAdmission::Soft => (1.0 - (affinity / pace)?)?.relu()?,
                };
                let (own, all) = pair(batch.scans)?;
                own.broadcast_eq(&all)?.where_cond(&inside, &one)?
            }
        };
        let (own, all) = pair(&Tensor::arange(0, n as u32, device)?)?;
        Ok(own.broadcast_eq(&all)?.where_cond(&weights.zeros_like()?, &weights)?)
    }
}
