//! AdvBCT: adversarial and boundary-aware compatible training (Pan et al., CVPR 2023).
//!
//! `L = L_new + a·(E − e + 1)/E·L_adv + b·L_p2s` in epoch e of E, counted from 1, with a = b = 1.
//!
//! - `L_adv`: a discriminator (D → 100, batch normalization, ReLU, → 2, log-softmax) tells new embeddings (class 0)
//!   from old ones (class 1); the new ones pass a gradient reversal of coefficient γ = 2/(1 + e^{−10p}) − 1, with p the
//!   share of the training that is done. New and old batches are normalized each by its own statistics, as in the
//!   published code, and the two losses are added.
//! - `L_p2s`: with the mean c_y of a class's normalized old embeddings (not normalized again) and the largest distance
//!   r_max from it after 1.5·IQR outliers are removed (for 4 embeddings or more), the elastic radius
//!   δ_y = |r_max − t|·σ(θ_y), θ_y learned, gives r = r_max + δ below the threshold t and r_max − δ above it; the loss
//!   is the mean of max(0, ‖f_n − c_y‖ − r) over the *violating* samples. t = 1 (landmarks), 0.4 (faces). Classes of
//!   a single old embedding have no radius and add nothing.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::classes::{Kept, NO_SLOT};
use crate::error::{Error, Result, not_negative};
use crate::match_dimensions;
use crate::tensors::{entry, log_sum_exp, row_norms, uniform, zero};
use crate::{Batch, ClassMeans, CompatibleMethod, CosineClassifier, DimensionMatch, OldBank, State, Terms};

const METHOD: &str = "adv-bct";
const HIDDEN: usize = 100;
/// ε of the discriminator's batch normalization.
const EPSILON: f64 = 1e-5;

/// Settings of [`AdvBct`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdvBctConfig {
    /// a.
    pub adversarial: f64,
    /// b.
    pub boundary: f64,
    /// t.
    pub threshold: f64,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for AdvBctConfig {
    fn default() -> Self {
        Self { adversarial: 1.0, boundary: 1.0, threshold: 1.0, dimensions: DimensionMatch::ZeroPad }
    }
}

impl AdvBctConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "adversarial", self.adversarial)?;
        not_negative(METHOD, "boundary", self.boundary)?;
        not_negative(METHOD, "threshold", self.threshold)
    }
}

/// Identity forward, −γ times the gradient backward (Ganin and Lempitsky, 2015).
struct Reversal {
    coefficient: f64,
}

impl CustomOp1 for Reversal {
    fn name(&self) -> &'static str {
        "gradient-reversal"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let CpuStorage::F32(values) = storage else {
            return Err(candle_core::Error::Msg("gradient-reversal: `x` is no f32 tensor".to_owned()).bt());
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::RequiresContiguous { op: "gradient-reversal" }.bt());
        };
        Ok((CpuStorage::F32(values[start..end].to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if arg.track_op() { Ok(Some((grad * -self.coefficient)?)) } else { Ok(None) }
    }
}

/// The discriminator of new and old embeddings.
#[derive(Debug, Clone)]
struct Discriminator {
    names: [&'static str; 6],
    variables: [Var; 6],
}

impl Discriminator {
    fn new(dimension: usize, seed: u64, device: &candle_core::Device) -> Result<Self> {
        // Uniform in ±1/√fan-in, the published code's default for linear layers.
        let mut drawn = 0u64;
        let mut draw = |shape: &[usize], fan_in: usize| -> Result<Var> {
            let limit = 1.0 / (fan_in as f64).sqrt();
            let count: usize = shape.iter().product();
            let values: Vec<f32> =
                (0..count as u64).map(|i| ((2.0 * uniform(seed, drawn + i) - 1.0) * limit) as f32).collect();
            drawn += count as u64;
            Ok(Var::from_tensor(&Tensor::from_vec(values, shape, device)?)?)
        };
        let constant = |value: f32| -> Result<Var> {
            Ok(Var::from_tensor(&Tensor::full(value, HIDDEN, device)?.contiguous()?)?)
        };
        let variables = [
            draw(&[HIDDEN, dimension], dimension)?,
            draw(&[HIDDEN], dimension)?,
            constant(1.0)?,
            constant(0.0)?,
            draw(&[2, HIDDEN], HIDDEN)?,
            draw(&[2], HIDDEN)?,
        ];
        let names =
            ["first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight", "second.bias"];
        Ok(Self { names, variables })
    }

    /// −ln p(side) averaged over the rows `[B, D]`.
    fn loss(&self, x: &Tensor, side: usize) -> Result<Tensor> {
        let [w1, b1, scale, shift, w2, b2] = &self.variables;
        let hidden = x.matmul(&w1.t()?)?.broadcast_add(b1)?;
        let centered = hidden.broadcast_sub(&hidden.mean_keepdim(0)?)?;
        let variance = centered.sqr()?.mean_keepdim(0)?;
        let normal = centered.broadcast_div(&(variance + EPSILON)?.sqrt()?)?;
        let hidden = normal.broadcast_mul(scale)?.broadcast_add(shift)?.relu()?;
        let scores = hidden.matmul(&w2.t()?)?.broadcast_add(b2)?;
        Ok((log_sum_exp(&scores)? - scores.narrow(1, side, 1)?.squeeze(1)?)?.mean_all()?)
    }
}

/// Adversarial alignment and elastic boundaries.
#[derive(Debug, Clone)]
pub struct AdvBct {
    config: AdvBctConfig,
    discriminator: Discriminator,
    elastic: Var,
    centers: Tensor,
    slots: Vec<u32>,
    /// r_max of every slot.
    radii: Tensor,
    /// The class of every slot.
    classes: Tensor,
}

/// The largest distance after those beyond 1.5 interquartile ranges are removed.
fn largest_radius(distances: &mut [f64]) -> f64 {
    distances.sort_by(f64::total_cmp);
    let n = distances.len();
    if n < 4 {
        return distances.last().copied().unwrap_or(0.0);
    }
    // Quartiles by linear interpolation between order statistics.
    let quantile = |q: f64| {
        let at = q * (n - 1) as f64;
        let low = at.floor() as usize;
        let high = (low + 1).min(n - 1);
        distances[low] + (distances[high] - distances[low]) * (at - low as f64)
    };
    let (low, high) = (quantile(0.25), quantile(0.75));
    let (least, most) = (low - 1.5 * (high - low), high + 1.5 * (high - low));
    distances.iter().rev().find(|d| (least..=most).contains(*d)).copied().unwrap_or(high)
}

impl AdvBct {
    /// Computes centers and radii of the old classes, and draws the discriminator.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and for a bank that does not fit.
    pub fn new(config: AdvBctConfig, bank: &OldBank<'_>) -> Result<Self> {
        config.validate()?;
        let means = ClassMeans::new(METHOD, bank)?;
        let device = bank.embeddings.device();
        let mut distances = vec![Vec::new(); means.len()];
        let labels = bank.labels.to_vec1::<u32>()?;
        for (row, label) in bank.embeddings.detach().to_vec2::<f32>()?.iter().zip(labels) {
            if let Some(slot) = means.slot(label) {
                let square: f64 =
                    row.iter().zip(means.mean(slot)).map(|(x, m)| (f64::from(*x) - m).powi(2)).sum();
                distances[slot].push(square.sqrt());
            }
        }
        let radii: Vec<f32> = distances.iter_mut().map(|d| largest_radius(d) as f32).collect();
        let counts = means.counts();
        let slots = means
            .slots()
            .iter()
            .map(|slot| if *slot != NO_SLOT && counts[*slot as usize] > 1 { *slot } else { NO_SLOT })
            .collect();
        let dimension = match config.dimensions {
            DimensionMatch::ZeroPad => bank.dimension.max(bank.embeddings.dim(1)?),
            DimensionMatch::Truncate => bank.dimension.min(bank.embeddings.dim(1)?),
        };
        let elastic: Vec<f32> =
            (0..bank.classes as u64).map(|c| (2.0 * uniform(bank.seed ^ 0xb0, c) - 1.0) as f32).collect();
        Ok(Self {
            config,
            discriminator: Discriminator::new(dimension, bank.seed ^ 0xad, device)?,
            elastic: Var::from_tensor(&Tensor::new(elastic, device)?)?,
            centers: means.tensor(false, device)?,
            slots,
            radii: Tensor::new(radii, device)?,
            classes: Tensor::new(means.classes(), device)?,
        })
    }

    /// r_max of every class that has old embeddings, by ascending class.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn radii(&self) -> Result<Vec<f32>> {
        Ok(self.radii.to_vec1()?)
    }

    fn boundary(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let Some(kept) = Kept::new(METHOD, batch.labels, &self.slots)? else {
            return zero(batch.new.device());
        };
        let new = kept.select(batch.new)?;
        // Centers are inside the sphere: padded or cut as they are, never normalized.
        let (new, _) = match_dimensions(&new, &self.centers, self.config.dimensions)?;
        let cols = new.dim(1)?;
        let own = self.centers.dim(1)?;
        let centers = match own < cols {
            true => self.centers.pad_with_zeros(D::Minus1, 0, cols - own)?,
            false => self.centers.narrow(D::Minus1, 0, cols)?.contiguous()?,
        };
        let distance = row_norms(&(new - centers.index_select(&kept.slots, 0)?)?)?;
        let largest = self.radii.index_select(&kept.slots, 0)?;
        let theta = self.elastic.as_tensor().index_select(&self.classes.index_select(&kept.slots, 0)?, 0)?;
        let gate = (theta.neg()?.exp()? + 1.0)?.recip()?;
        // |r_max − t|·σ(θ) towards t from either side.
        let radius = (((&largest - self.config.threshold)?.neg()? * gate)? + &largest)?;
        let excess = (distance - radius)?.relu()?;
        let violating = excess.detach().gt(0.0)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
        Ok((excess.sum_all()? * (1.0 / f64::from(violating).max(1.0)))?)
    }
}

impl CompatibleMethod for AdvBct {
    fn name(&self) -> &'static str {
        METHOD
    }

    fn terms(&mut self, batch: &Batch<'_>, _: &CosineClassifier) -> Result<Terms> {
        batch.check(METHOD)?;
        if !(0.0..=1.0).contains(&batch.progress) || batch.epoch >= batch.epochs {
            let got = format!("{} in epoch {} of {}", batch.progress, batch.epoch, batch.epochs);
            return Err(Error::argument(METHOD, "progress", got, "a share in 0..=1 of a training under way"));
        }
        let (new, old) = match_dimensions(batch.new, &batch.old.detach(), self.config.dimensions)?;
        let coefficient = 2.0 / (1.0 + (-10.0 * batch.progress).exp()) - 1.0;
        let reversed = new.contiguous()?.apply_op1(Reversal { coefficient })?;
        let adversarial = (self.discriminator.loss(&reversed, 0)? + self.discriminator.loss(&old, 1)?)?;
        let fading = (batch.epochs - batch.epoch) as f64 / batch.epochs as f64;
        Terms::weighted(
            METHOD,
            vec![
                ("adversarial", self.config.adversarial * fading, adversarial),
                ("boundary", self.config.boundary, self.boundary(batch)?),
            ],
        )
    }

    fn variables(&self) -> Vec<Var> {
        self.discriminator.variables.iter().chain([&self.elastic]).cloned().collect()
    }

    fn state(&self) -> Result<State> {
        let named = self.discriminator.names.iter().zip(&self.discriminator.variables);
        let mut state = State::new();
        for (name, var) in named.chain([(&"elastic", &self.elastic)]) {
            // A copy: the optimizer writes into the variable's own memory.
            state.insert((*name).to_owned(), var.as_detached_tensor().force_contiguous()?);
        }
        Ok(state)
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let named = self.discriminator.names.iter().zip(&self.discriminator.variables);
        let all: Vec<_> = named.chain([(&"elastic", &self.elastic)]).collect();
        for (name, var) in &all {
            entry(METHOD, state, name, var.dims(), DType::F32)?;
        }
        for (name, var) in all {
            var.set(entry(METHOD, state, name, var.dims(), DType::F32)?)?;
        }
        Ok(())
    }
}
