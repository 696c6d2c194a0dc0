//! UniBCT: prototypes refined over each class's graph (Zhang et al., IJCAI 2022).
//!
//! BCT's class means suffer from outliers among the old embeddings. Here a class's old embeddings F_o are smoothed
//! along the similarities of its *new* embeddings F_n first: with `E = softmax_rows(F_n F_nᵀ/τ)`, its diagonal left
//! out, `F' = (1 − μ)(I − μE)⁻¹ F_o`, and the prototype is the mean row of F'. μ = 0.9, τ = 0.05. The compatible loss
//! is the margin softmax of the new embeddings against these frozen prototypes, with the classifier's own scale and
//! margin.
//!
//! The mean row is vᵀF_o with `(I − μEᵀ)v = (1 − μ)/n · 1`: one right-hand side a class in place of one a dimension.
//! E is row-stochastic, so the fixed-point iteration contracts by μ in the 1-norm.
//!
//! In the public re-implementation the prototypes are made at epochs 10 and 20 of 35 and the loss is off before; both
//! scale here with the length of the training. With [`UniBctStart::ClassMeans`] plain class means serve until the
//! first refinement, as in AdvBCT's comparison.

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classes::Kept;
use crate::classifier::margin_softmax;
use crate::error::{Error, Result, not_negative, positive};
use crate::match_dimensions;
use crate::tensors::{entry, zero};
use crate::{
    Batch, ClassMeans, CompatibleMethod, CosineClassifier, DimensionMatch, Margin, OldBank, State, Terms,
};

const METHOD: &str = "uni-bct";
/// The iteration stops when the 1-norm of a step is below this: far under what f32 prototypes resolve.
const SMALLEST_STEP: f64 = 1e-12;

/// What happens before the first refinement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UniBctStart {
    /// No compatible loss.
    #[default]
    Off,
    /// Plain class means.
    ClassMeans,
}

/// Settings of [`UniBct`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniBctConfig {
    /// The weight of the compatible loss.
    pub weight: f64,
    /// μ.
    pub smoothing: f64,
    /// τ of the graph.
    pub temperature: f64,
    /// When prototypes are refined, as shares of the training.
    pub refine_at: Vec<f64>,
    /// What happens before.
    pub start: UniBctStart,
    /// The scale of the cosines; the classifier's own when absent.
    pub scale: Option<f64>,
    /// The margin; the classifier's own when absent.
    pub margin: Option<Margin>,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for UniBctConfig {
    fn default() -> Self {
        Self {
            weight: 1.0,
            smoothing: 0.9,
            temperature: 0.05,
            refine_at: vec![10.0 / 35.0, 20.0 / 35.0],
            start: UniBctStart::Off,
            scale: None,
            margin: None,
            dimensions: DimensionMatch::ZeroPad,
        }
    }
}

impl UniBctConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "weight", self.weight)?;
        positive(METHOD, "temperature", self.temperature)?;
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::argument(METHOD, "smoothing", self.smoothing, "a number in 0..1"));
        }
        if let Some(bad) = self.refine_at.iter().find(|at| !(0.0..1.0).contains(*at)) {
            return Err(Error::argument(METHOD, "refine_at", bad, "shares of the training in 0..1"));
        }
        if self.refine_at.is_empty() && self.start == UniBctStart::Off {
            return Err(Error::argument(
                METHOD,
                "refine_at",
                "empty",
                "a share, or class means from the start",
            ));
        }
        self.scale.map_or(Ok(()), |scale| positive(METHOD, "scale", scale))?;
        self.margin.map_or(Ok(()), |margin| margin.validate(METHOD))
    }
}

/// Margin softmax against prototypes refined over class graphs.
#[derive(Debug, Clone)]
pub struct UniBct {
    config: UniBctConfig,
    embeddings: Tensor,
    /// Rows of the bank of every class that has one.
    members: Vec<Vec<usize>>,
    slots: Vec<u32>,
    prototypes: Tensor,
    active: bool,
}

impl UniBct {
    /// Takes the bank; the prototypes are its class means until they are refined.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit.
    pub fn new(config: UniBctConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let means = ClassMeans::new(METHOD, bank)?;
        let mut members = vec![Vec::new(); means.len()];
        for (row, label) in bank.labels.to_vec1::<u32>()?.into_iter().enumerate() {
            if let Some(slot) = means.slot(label) {
                members[slot].push(row);
            }
        }
        Ok(Self {
            active: config.start == UniBctStart::ClassMeans,
            config,
            embeddings: bank.embeddings.detach(),
            members,
            slots: means.slots().to_vec(),
            prototypes: means.tensor(true, bank.embeddings.device())?,
        })
    }

    /// The prototypes `[classes with old embeddings, Do]`.
    pub fn prototypes(&self) -> &Tensor {
        &self.prototypes
    }

    /// Refines the prototypes with new embeddings `[N, D]` of the bank's images.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of rows, or rows that are not finite.
    pub fn refine(&mut self, new: &Tensor) -> Result<()> {
        let rows = self.embeddings.dim(0)?;
        if new.rank() != 2 || new.dim(0)? != rows || new.dtype() != DType::F32 {
            let got = format!("{:?} of {:?}", new.dims(), new.dtype());
            return Err(Error::argument(METHOD, "embeddings", got, format!("[{rows}, D] of F32")));
        }
        let new = new.detach().to_vec2::<f32>()?;
        if let Some(row) = new.iter().position(|x| x.iter().any(|v| !v.is_finite())) {
            let got = format!("not finite in row {row}");
            return Err(Error::argument(METHOD, "embeddings", got, "finite numbers"));
        }
        let old = self.embeddings.to_vec2::<f32>()?;
        let (mu, tau) = (self.config.smoothing, self.config.temperature);
        let d = self.embeddings.dim(1)?;
        let prototypes: Vec<f32> = self
            .members
            .par_iter()
            .flat_map_iter(|members| {
                let weights = class_weights(
                    &members.iter().map(|row| new[*row].as_slice()).collect::<Vec<_>>(),
                    mu,
                    tau,
                );
                let mut mean = vec![0.0f64; d];
                for (row, weight) in members.iter().zip(weights) {
                    mean.iter_mut().zip(&old[*row]).for_each(|(m, x)| *m += weight * f64::from(*x));
                }
                mean.into_iter().map(|x| x as f32)
            })
            .collect();
        self.prototypes = Tensor::from_vec(prototypes, (self.members.len(), d), self.embeddings.device())?;
        self.active = true;
        Ok(())
    }
}

/// v of `(I − μEᵀ)v = (1 − μ)/n · 1` for one class's new embeddings; sums to 1.
fn class_weights(new: &[&[f32]], mu: f64, tau: f64) -> Vec<f64> {
    let n = new.len();
    if n < 2 {
        // A lone row has no neighbor to be smoothed along.
        return vec![1.0; n];
    }
    let mut edges = vec![0.0f64; n * n];
    for (i, row) in edges.chunks_exact_mut(n).enumerate() {
        for (j, e) in row.iter_mut().enumerate() {
            let dot: f64 = new[i].iter().zip(new[j]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            *e = if i == j { f64::NEG_INFINITY } else { dot / tau };
        }
        let max = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        row.iter_mut().for_each(|e| *e = (*e - max).exp());
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|e| *e /= sum);
    }
    let base = (1.0 - mu) / n as f64;
    let mut v = vec![1.0 / n as f64; n];
    loop {
        let mut next = vec![base; n];
        for (row, weight) in edges.chunks_exact(n).zip(&v) {
            next.iter_mut().zip(row).for_each(|(x, e)| *x += mu * weight * e);
        }
        let step: f64 = next.iter().zip(&v).map(|(a, b)| (a - b).abs()).sum();
        v = next;
        // Contraction by μ < 1 makes the steps shrink to nothing, at the latest when rounding holds them.
        if step <= SMALLEST_STEP.max(4.0 * f64::EPSILON * n as f64) {
            return v;
        }
    }
}

impl CompatibleMethod for UniBct {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, classifier: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        let scale = self.config.scale.unwrap_or(classifier.config().scale);
        let margin = self.config.margin.unwrap_or(classifier.config().margin);
        let loss = match Kept::new(METHOD, batch.labels, &self.slots)? {
            Some(kept) if self.active => {
                let (new, rows) = match_dimensions(batch.new, &self.prototypes, self.config.dimensions)?;
                margin_softmax(&kept.select(&new)?, &rows, &kept.slots, scale, margin)?.mean_all()?
            }
            _ => zero(batch.new.device())?,
        };
        Terms::weighted(METHOD, vec![("prototypes", self.config.weight, loss)])
    }

    fn wants_embeddings(&self, epoch: usize, epochs: usize) -> bool {
        self.config.refine_at.iter().any(|at| (at * epochs as f64).round() as usize == epoch)
    }

    fn start_epoch(&mut self, epoch: usize, epochs: usize, embeddings: Option<&Tensor>) -> Result<()> {
        match (self.wants_embeddings(epoch, epochs), embeddings) {
            (false, _) => Ok(()),
            (true, Some(new)) => self.refine(new),
            (true, None) => {
                let expected = "the new embeddings of all training images at this epoch";
                Err(Error::argument(METHOD, "embeddings", "absent", expected))
            }
        }
    }

    fn state(&self) -> Result<State> {
        let active = Tensor::new(&[u8::from(self.active)], self.prototypes.device())?;
        Ok(State::from([("prototypes".to_owned(), self.prototypes.clone()), ("active".to_owned(), active)]))
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let prototypes = entry(METHOD, state, "prototypes", self.prototypes.dims(), DType::F32)?.clone();
        let active = entry(METHOD, state, "active", &[1], DType::U8)?.to_vec1::<u8>()?;
        self.prototypes = prototypes;
        self.active = active != [0];
        Ok(())
    }
}
