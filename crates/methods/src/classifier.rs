//! The cosine softmax classifier with an additive margin: the loss that trains a model alone.

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, not_negative, positive};
use crate::tensors::{log_sum_exp, normal, unit_rows};

const METHOD: &str = "cosine classifier";

/// A margin that the target class must keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Margin {
    /// Plain normalized softmax.
    #[default]
    None,
    /// Additive cosine margin (CosFace, AM-Softmax): cos θ − m.
    Cosine(f64),
    /// Additive angular margin (ArcFace): cos(θ + m), continued by cos θ − m sin m where θ + m passes π.
    Angular(f64),
}

impl Margin {
    /// Checks the range: 0 ≤ m, below π/2 for an angle.
    ///
    /// # Errors
    /// [`Error::Argument`] otherwise.
    pub fn validate(self, method: &'static str) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Cosine(m) => not_negative(method, "margin", m),
            Self::Angular(m) if (0.0..std::f64::consts::FRAC_PI_2).contains(&m) => Ok(()),
            Self::Angular(m) => Err(Error::argument(method, "margin", m, "an angle in 0..π/2")),
        }
    }

    /// The margin applied to the cosines of the target classes.
    fn apply(self, cosine: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::None => cosine.clone(),
            Self::Cosine(m) => (cosine - m)?,
            Self::Angular(m) => {
                // Rounding can push a cosine past ±1, and the derivative of the sine is unbounded there: the
                // square under the root is clamped, so that it passes no gradient at the ends.
                let sine = (cosine.sqr()?.neg()? + 1.0)?.maximum(1e-12)?.sqrt()?;
                let shifted = ((cosine * m.cos())? - (sine * m.sin())?)?;
                let continued = (cosine - m * m.sin())?;
                cosine.detach().gt(-m.cos())?.where_cond(&shifted, &continued)?
            }
        })
    }
}

/// Margin softmax cross-entropy of every row `[B]`: features `[B, D]` and prototypes `[C, D]` are normalized here;
/// `labels` `[B]` are u32 below C.
///
/// `L_i = ln(e^{s·φ(cos θ_y)} + Σ_{c≠y} e^{s·cos θ_c}) − s·φ(cos θ_y)` with the margin φ. Gradients arrive at both
/// matrices where they are tracked.
pub(crate) fn margin_softmax(
    features: &Tensor,
    prototypes: &Tensor,
    labels: &Tensor,
    scale: f64,
    margin: Margin,
) -> Result<Tensor> {
    let cosines = unit_rows(features)?.matmul(&unit_rows(prototypes)?.t()?)?;
    let (rows, classes) = cosines.dims2()?;
    let labels = labels.unsqueeze(1)?;
    let target = cosines.gather(&labels, 1)?;
    let moved = margin.apply(&target)?;
    let logits = match margin {
        Margin::None => (cosines * scale)?,
        _ => {
            // A choice by mask: Candle's `scatter_add` has no right backward.
            let all = Tensor::arange(0, classes as u32, cosines.device())?.unsqueeze(0)?;
            let own = labels.broadcast_eq(&all)?;
            (own.where_cond(&moved.broadcast_as((rows, classes))?, &cosines)? * scale)?
        }
    };
    Ok((log_sum_exp(&logits)? - (moved.squeeze(1)? * scale)?)?)
}

/// Settings of a [`CosineClassifier`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosineClassifierConfig {
    /// The scale s of the cosines.
    pub scale: f64,
    /// The margin of the target class.
    pub margin: Margin,
}

impl Default for CosineClassifierConfig {
    fn default() -> Self {
        Self { scale: 30.0, margin: Margin::Cosine(0.1) }
    }
}

impl CosineClassifierConfig {
    /// ArcFace as published: s = 64, m = 0.5 (Deng et al., CVPR 2019).
    #[must_use]
    pub fn arcface() -> Self {
        Self { scale: 64.0, margin: Margin::Angular(0.5) }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        positive(METHOD, "scale", self.scale)?;
        self.margin.validate(METHOD)
    }
}

/// A classifier by cosines: scores `s · cos(v, w_c)`, trained by cross-entropy with a margin on the target.
#[derive(Debug, Clone)]
pub struct CosineClassifier {
    weight: Var,
    config: CosineClassifierConfig,
}

impl CosineClassifier {
    /// A classifier `[classes, dimension]` with rows drawn from the normal distribution by `seed`.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range or an empty shape.
    pub fn new(
        classes: usize,
        dimension: usize,
        config: CosineClassifierConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        if classes == 0 || dimension == 0 {
            let got = format!("{classes} x {dimension}");
            return Err(Error::argument(METHOD, "shape", got, "at least one class and one dimension"));
        }
        let scale = 1.0 / (dimension as f64).sqrt();
        let values: Vec<f32> =
            (0..(classes * dimension) as u64).map(|i| (normal(seed, i) * scale) as f32).collect();
        Self::from_weight(&Tensor::from_vec(values, (classes, dimension), device)?, config)
    }

    /// A classifier with given rows `[C, D]`, f32.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range or other than a matrix of f32.
    pub fn from_weight(weight: &Tensor, config: CosineClassifierConfig) -> Result<Self> {
        config.validate()?;
        if weight.rank() != 2 || weight.dtype() != DType::F32 || weight.elem_count() == 0 {
            let got = format!("{:?} of {:?}", weight.dims(), weight.dtype());
            return Err(Error::argument(METHOD, "weight", got, "a matrix [classes, dimension] of F32"));
        }
        Ok(Self { weight: Var::from_tensor(weight)?, config })
    }

    /// A classifier over a variable that someone else keeps, for instance a `VarMap`.
    ///
    /// # Errors
    /// As [`from_weight`](Self::from_weight).
    pub fn from_var(weight: Var, config: CosineClassifierConfig) -> Result<Self> {
        let checked = Self::from_weight(weight.as_tensor(), config)?;
        Ok(Self { weight, config: checked.config })
    }

    /// The settings.
    pub fn config(&self) -> &CosineClassifierConfig {
        &self.config
    }

    /// The rows `[C, D]`, tracked, not normalized.
    pub fn weight(&self) -> &Tensor {
        self.weight.as_tensor()
    }

    /// The variables for the optimizer.
    pub fn variables(&self) -> Vec<Var> {
        vec![self.weight.clone()]
    }

    /// The rows of unit norm `[C, D]`, tracked.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn normalized_weight(&self) -> Result<Tensor> {
        unit_rows(self.weight())
    }

    /// Scores without margin `[B, C]`: `s · cos(v, w_c)` of rows `[B, D]`.
    ///
    /// # Errors
    /// Those of Candle, for a dimension that does not fit.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        let cosines = unit_rows(features)?.matmul(&self.normalized_weight()?.t()?)?;
        Ok((cosines * self.config.scale)?)
    }

    /// The mean margin softmax cross-entropy of features `[B, D]` and labels `[B]` (u32): a scalar.
    ///
    /// # Errors
    /// [`Error::Argument`] for shapes that do not fit or a label outside `0..C`.
    pub fn loss(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(self.losses(features, labels)?.mean_all()?)
    }

    /// The loss of every row `[B]`; see [`loss`](Self::loss).
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    pub fn losses(&self, features: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let (classes, dimension) = self.weight().dims2()?;
        let rows = match features.dims() {
            &[rows, cols] if rows > 0 && cols == dimension => rows,
            dims => {
                let expected = format!("[rows, {dimension}] with at least one row");
                return Err(Error::argument(METHOD, "features", format!("{dims:?}"), expected));
            }
        };
        if labels.dims() != [rows] || labels.dtype() != DType::U32 {
            let got = format!("{:?} of {:?}", labels.dims(), labels.dtype());
            return Err(Error::argument(METHOD, "labels", got, format!("[{rows}] of U32")));
        }
        let largest = labels.max(0)?.to_scalar::<u32>()?;
        if largest as usize >= classes {
            return Err(Error::argument(METHOD, "labels", largest, format!("labels in 0..{classes}")));
        }
        margin_softmax(features, self.weight(), labels, self.config.scale, self.config.margin)
    }
}
