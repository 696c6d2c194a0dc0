//! The trait of all methods, what it is called with, and the choice by name.

use std::collections::HashMap;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensors::{check_labels, check_rows};
use crate::{
    AdvBct, AdvBctConfig, Bct, BctConfig, CosineClassifier, HotRefresh, HotRefreshConfig, L2, L2Config,
};
use crate::{Lce, LceConfig, MixBct, MixBctConfig, NeighborhoodConsensus, NeighborhoodConsensusConfig};
use crate::{UniBct, UniBctConfig};

/// Named tensors that a method carries from step to step, for saving and resuming.
pub type State = HashMap<String, Tensor>;

/// One batch as the methods see it.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// New embeddings `[B, D]`, f32, rows of unit norm, tracked by autograd.
    pub new: &'a Tensor,
    /// Old embeddings `[B, Do]` of the same images, f32, rows of unit norm, constants.
    pub old: &'a Tensor,
    /// Classes of the images in the new training set `[B]`, u32.
    pub labels: &'a Tensor,
    /// Rows of the images in the [`OldBank`] `[B]`, u32.
    pub indices: &'a Tensor,
    /// The share of the training that is done, 0 to 1.
    pub progress: f64,
    /// The epoch, from 0.
    pub epoch: usize,
    /// The number of epochs of the whole training.
    pub epochs: usize,
}

impl Batch<'_> {
    /// Checks shapes and types once for all methods, and returns `[B, D, Do]`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the tensor that does not fit.
    pub fn check(&self, method: &'static str) -> Result<[usize; 3]> {
        let (rows, new) = check_rows(method, "new", self.new)?;
        let (old_rows, old) = check_rows(method, "old", self.old)?;
        if old_rows != rows {
            let expected = format!("one row for each of {rows} rows of `new`");
            return Err(Error::argument(method, "old", format!("{old_rows} rows"), expected));
        }
        for (argument, tensor) in [("labels", self.labels), ("indices", self.indices)] {
            check_labels(method, argument, tensor, rows)?;
        }
        Ok([rows, new, old])
    }
}

/// What a method adds to the loss of the new model.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The scalar to add, weights included; the gradient arrives at `new`, at the classifier where the method says
    /// so, and at the method's own variables.
    pub total: Tensor,
    /// The unweighted value of every term by name, for the log.
    pub parts: Vec<(&'static str, f64)>,
}

impl Terms {
    /// Adds `weight · value` over scalar terms.
    ///
    /// # Errors
    /// [`Error::Argument`] when a term is not finite, so that NaN does not spread into the model.
    pub fn weighted(method: &'static str, terms: Vec<(&'static str, f64, Tensor)>) -> Result<Self> {
        let mut total: Option<Tensor> = None;
        let mut parts = Vec::with_capacity(terms.len());
        for (name, weight, value) in terms {
            let number = f64::from(value.detach().to_dtype(DType::F32)?.to_scalar::<f32>()?);
            if !number.is_finite() {
                return Err(Error::argument(
                    method,
                    name,
                    number,
                    "a finite loss; check the embeddings for NaN",
                ));
            }
            parts.push((name, number));
            let term = (value * weight)?;
            total = Some(match total {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let total = match total {
            Some(total) => total,
            None => Tensor::zeros((), DType::F32, &candle_core::Device::Cpu)?,
        };
        Ok(Self { total, parts })
    }

    /// No term at all: a zero without gradient.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn none() -> Result<Self> {
        Self::weighted("", Vec::new())
    }
}

/// The stored embeddings that new ones are to stay comparable with.
#[derive(Debug, Clone, Copy)]
pub struct OldBank<'a> {
    /// Old embeddings of the new training images `[N, Do]`, f32, rows of unit norm.
    pub embeddings: &'a Tensor,
    /// Their classes `[N]`, u32.
    pub labels: &'a Tensor,
    /// The number of classes of the new training set.
    pub classes: usize,
    /// The dimension D of the new embeddings.
    pub dimension: usize,
    /// The seed of everything that the method draws.
    pub seed: u64,
}

impl OldBank<'_> {
    /// Checks shapes, types and labels, and returns `([N, Do], labels)`.
    ///
    /// # Errors
    /// [`Error::Argument`] naming what does not fit: an empty bank, a label outside `0..classes`, rows that are not
    /// finite.
    pub fn check(&self, method: &'static str) -> Result<([usize; 2], Vec<u32>)> {
        let got = || format!("{:?} of {:?}", self.embeddings.dims(), self.embeddings.dtype());
        let (rows, cols) = match (self.embeddings.dims(), self.embeddings.dtype()) {
            (&[rows, cols], DType::F32) if rows > 0 && cols > 0 => (rows, cols),
            _ => {
                let expected = "a matrix of F32 with at least one row";
                return Err(Error::argument(method, "embeddings", got(), expected));
            }
        };
        if self.labels.dims() != [rows] || self.labels.dtype() != DType::U32 {
            let got = format!("{:?} of {:?}", self.labels.dims(), self.labels.dtype());
            return Err(Error::argument(method, "labels", got, format!("[{rows}] of U32")));
        }
        if self.dimension == 0 {
            return Err(Error::argument(method, "dimension", 0, "the dimension of the new embeddings"));
        }
        let labels = self.labels.to_vec1::<u32>()?;
        if let Some(label) = labels.iter().find(|label| **label as usize >= self.classes) {
            return Err(Error::argument(method, "labels", label, format!("labels in 0..{}", self.classes)));
        }
        let sums = self.embeddings.detach().sum(1)?.to_vec1::<f32>()?;
        if let Some(row) = sums.iter().position(|x| !x.is_finite()) {
            let got = format!("not finite in row {row}");
            return Err(Error::argument(method, "embeddings", got, "finite numbers"));
        }
        Ok(([rows, cols], labels))
    }
}

/// A way to train a new model whose embeddings can be compared with old ones.
///
/// The trainer calls, in this order: [`start_epoch`](Self::start_epoch) before each epoch (with the current
/// embeddings of the training images where [`wants_embeddings`](Self::wants_embeddings) says so); then on each batch
/// [`mix`](Self::mix), whose result goes into the classifier's loss, and [`terms`](Self::terms), whose total is added
/// to `classification_weight · L_new`; the optimizer steps [`variables`](Self::variables) with the model.
pub trait CompatibleMethod: Send + std::fmt::Debug {
    /// The name in tables and on the command line.
    fn name(&self) -> &'static str;

    /// The method's terms on one batch.
    ///
    /// # Errors
    /// [`Error::Argument`] for tensors that do not fit, and the errors of the operations.
    fn terms(&mut self, batch: &Batch<'_>, classifier: &CosineClassifier) -> Result<Terms>;

    /// The features that the classifier's loss is taken of: `new` itself, unless the method mixes old ones in.
    ///
    /// # Errors
    /// As [`terms`](Self::terms).
    fn mix(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        Ok(batch.new.clone())
    }

    /// The weight of the loss that trains the new model alone: 1, unless the method replaces that loss.
    fn classification_weight(&self) -> f64 {
        1.0
    }

    /// Variables of the method that the optimizer steps together with the model.
    fn variables(&self) -> Vec<Var> {
        Vec::new()
    }

    /// Whether [`start_epoch`](Self::start_epoch) of this epoch needs the new embeddings of all training images.
    fn wants_embeddings(&self, epoch: usize, epochs: usize) -> bool {
        let _ = (epoch, epochs);
        false
    }

    /// Called before each epoch; `embeddings` are the current new embeddings `[N, D]` of the training images, unit
    /// norm, in the order of the [`OldBank`], where the method wants them.
    ///
    /// # Errors
    /// As [`terms`](Self::terms).
    fn start_epoch(&mut self, epoch: usize, epochs: usize, embeddings: Option<&Tensor>) -> Result<()> {
        let _ = (epoch, epochs, embeddings);
        Ok(())
    }

    /// What must be saved so that a resumed run continues with the same numbers.
    ///
    /// # Errors
    /// Those of Candle.
    fn state(&self) -> Result<State> {
        Ok(State::new())
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`Error::State`] when an entry is missing or does not fit this configuration.
    fn restore(&mut self, state: &State) -> Result<()> {
        let _ = state;
        Ok(())
    }
}

/// A method by name with its settings: what a command line or a file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MethodConfig {
    /// [`NeighborhoodConsensus`].
    NeighborhoodConsensus(NeighborhoodConsensusConfig),
    /// [`Bct`].
    Bct(BctConfig),
    /// [`L2`].
    L2(L2Config),
    /// [`HotRefresh`].
    HotRefresh(HotRefreshConfig),
    /// [`UniBct`].
    UniBct(UniBctConfig),
    /// [`Lce`].
    Lce(LceConfig),
    /// [`AdvBct`].
    AdvBct(AdvBctConfig),
    /// [`MixBct`].
    MixBct(MixBctConfig),
}

impl MethodConfig {
    /// The names that [`MethodConfig::by_name`] knows.
    pub const NAMES: &'static [&'static str] =
        &["neighborhood-consensus", "bct", "l2", "hot-refresh", "uni-bct", "lce", "adv-bct", "mix-bct"];

    /// The default settings of a method.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name.
    pub fn by_name(name: &str) -> Result<Self> {
        Ok(match name {
            "neighborhood-consensus" => Self::NeighborhoodConsensus(NeighborhoodConsensusConfig::default()),
            "bct" => Self::Bct(BctConfig::default()),
            "l2" => Self::L2(L2Config::default()),
            "hot-refresh" => Self::HotRefresh(HotRefreshConfig::default()),
            "uni-bct" => Self::UniBct(UniBctConfig::default()),
            "lce" => Self::Lce(LceConfig::default()),
            "adv-bct" => Self::AdvBct(AdvBctConfig::default()),
            "mix-bct" => Self::MixBct(MixBctConfig::default()),
            _ => {
                let expected = format!("one of {}", Self::NAMES.join(", "));
                return Err(Error::argument("methods", "name", name, expected));
            }
        })
    }

    /// The name of the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NeighborhoodConsensus(_) => "neighborhood-consensus",
            Self::Bct(_) => "bct",
            Self::L2(_) => "l2",
            Self::HotRefresh(_) => "hot-refresh",
            Self::UniBct(_) => "uni-bct",
            Self::Lce(_) => "lce",
            Self::AdvBct(_) => "adv-bct",
            Self::MixBct(_) => "mix-bct",
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::NeighborhoodConsensus(config) => config.validate(),
            Self::Bct(config) => config.validate(),
            Self::L2(config) => config.validate(),
            Self::HotRefresh(config) => config.validate(),
            Self::UniBct(config) => config.validate(),
            Self::Lce(config) => config.validate(),
            Self::AdvBct(config) => config.validate(),
            Self::MixBct(config) => config.validate(),
        }
    }
}

/// Builds a method over the old embeddings of the training images.
///
/// # Errors
/// [`Error::Argument`] for settings out of range and for a bank that does not fit.
pub fn build(config: &MethodConfig, bank: &OldBank<'_>) -> Result<Box<dyn CompatibleMethod>> {
    Ok(match config {
        MethodConfig::NeighborhoodConsensus(config) => {
            Box::new(NeighborhoodConsensus::new(config.clone(), bank)?)
        }
        MethodConfig::Bct(config) => Box::new(Bct::new(config.clone(), bank)?),
        MethodConfig::L2(config) => Box::new(L2::new(config.clone(), bank)?),
        MethodConfig::HotRefresh(config) => Box::new(HotRefresh::new(config.clone(), bank)?),
        MethodConfig::UniBct(config) => Box::new(UniBct::new(config.clone(), bank)?),
        MethodConfig::Lce(config) => Box::new(Lce::new(config.clone(), bank)?),
        MethodConfig::AdvBct(config) => Box::new(AdvBct::new(config.clone(), bank)?),
        MethodConfig::MixBct(config) => Box::new(MixBct::new(config.clone(), bank)?),
    })
}
