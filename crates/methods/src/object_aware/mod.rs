//! Object-aware contrastive learning (Mo, Kang, Sohn, Li, Shin, "Object-aware Contrastive Learning for Debiased Scene
//! Representation", NeurIPS 2021).
//!
//! [`ContraCam`] finds the objects of images by what sets them apart from the other images of a batch, without labels. With A the
//! activations `[K, h, w]` of the last convolution and g the normalized projection of their means GAP(A):
//!
//! ```text
//! s_i  = ln e^{⟨g_i, g_i⁽⁰⁾⟩} / Σ_{r ≤ t} Σ_{k ≠ i} e^{⟨g_i, g_k⁽ʳ⁾⟩}        in round t; only g_i carries gradient
//! α_k  = max(0, ∂s/∂GAP_k)/(hw)                                         Grad-CAM keeps negative ones
//! CAM  = (x − min)/(max − min + 1e-20) of x = bicubic(max(0, Σ_k α_k A^k))
//! M_t  = max(M_{t−1}, CAM_t),   image_{t+1} = image (1 − M_t) + c̄ M_t       c̄: the mean color of the batch
//! ```
//!
//! As the score reads A by its means alone, ∂s/∂A^k_xy is ∂s/∂GAP_k/(hw) at every pixel: one backward pass through the projector
//! gives the map, and none through the convolutions. In round 0 the query is its own key, so that the positive has no gradient
//! along the sphere and the map comes from the negatives.
//!
//! Masks become boxes ([`boxes`]) for random crops that hold an object ([`ObjectAwareCrop`]), or tell what to paste onto the
//! background of another image ([`BackgroundMixup`]); the contrast that is trained stays what it is.
//!
//! The public code departs from the formula twice, and once more in the rectangles of mixup; [`ContraCamCompat`] and
//! [`BackgroundMixupConfig::short_rectangles`] reproduce it. The dense CRF, which the authors run over masks before boxes are
//! taken, is left out.

mod boxes;
mod crop;
mod mixup;

use candle_core::{DType, Tensor, Var};
use consonance::{ContrastOptions, OtherPositives, Pairs, Temperature, cam, contrast, masked_blend};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensors::{check_rows, unit_rows};

pub use boxes::{BoxesConfig, RelativeBox, boxes};
pub use crop::{CropWindow, ObjectAwareCrop, ObjectAwareCropConfig};
pub use mixup::{BackgroundMixup, BackgroundMixupConfig, MixupPlan};

const METHOD: &str = "contracam";

/// Where the public code departs from the formula; nowhere by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContraCamCompat {
    /// The positive terms are summed over the batch before the logarithm: ln Σ_j e^{⟨g_j, g_j⁽⁰⁾⟩} is every image's. In round 0 the
    /// gradients are equal; later an image's positive counts b times its share of the sum.
    pub batch_positives: bool,
    /// Keys of the image itself are multiplied by 0 before the exponential, so that each adds 1 to the denominator.
    pub counted_own_keys: bool,
}

/// The channels of a map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CamWeights {
    /// Those of positive weight: ContraCAM.
    #[default]
    Positive,
    /// All: Grad-CAM (Selvaraju et al., ICCV 2017), the baseline.
    Signed,
}

/// Settings of [`ContraCam`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContraCamConfig {
    /// T, at least 1: 10 for boxes, 1 for the masks of mixup, as published.
    pub rounds: usize,
    /// The channels of a map.
    pub weights: CamWeights,
    /// Departures of the public code.
    pub compat: ContraCamCompat,
}

impl Default for ContraCamConfig {
    fn default() -> Self {
        Self { rounds: 10, weights: CamWeights::default(), compat: ContraCamCompat::default() }
    }
}

impl ContraCamConfig {
    /// The published settings of masks for [`BackgroundMixup`]: one round.
    pub fn masks() -> Self {
        Self { rounds: 1, ..Self::default() }
    }

    /// Grad-CAM of the same score: one round, all channels.
    pub fn grad_cam() -> Self {
        Self { weights: CamWeights::Signed, ..Self::masks() }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        if self.rounds == 0 {
            return Err(Error::argument(METHOD, "rounds", 0, "at least 1"));
        }
        Ok(())
    }
}

/// Contrastive class activation maps. It has no state.
#[derive(Debug, Clone, Copy)]
pub struct ContraCam {
    config: ContraCamConfig,
}

/// What a round says of its images.
#[derive(Debug, Clone)]
pub struct Scored {
    /// g, f32 `[b, D]`, of unit norm, a constant: keys of this round and of later ones.
    pub projections: Tensor,
    /// s, f32 `[b]`, a constant.
    pub scores: Tensor,
    /// ∂s/∂GAP, f32 `[b, K]`.
    pub gradients: Tensor,
}

/// The masks of a batch.
#[derive(Debug, Clone)]
pub struct ObjectMasks {
    /// M_T, f32 `[b, H, W]` in [0, 1].
    pub masks: Tensor,
    /// What every round was made of.
    pub rounds: Vec<Scored>,
}

impl ContraCam {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: ContraCamConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// s `[b]` of projections `[b, D]` (f32, unit norm) against the projections of all rounds so far, `keys` `[r b, D]`, those of
    /// round 0 first; a round's own projections are the last. The gradient of Σ_i s_i arrives at `projections`.
    ///
    /// # Errors
    /// [`Error::Argument`] for fewer than two images, keys that are no whole rounds of the batch, and rows that are not finite;
    /// those of the operations.
    pub fn score(&self, projections: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (b, dimension) = check_rows(METHOD, "projections", projections)?;
        let of_keys = check_rows(METHOD, "keys", keys)?;
        if b < 2 {
            let expected = "two or more: one image has no negatives";
            return Err(Error::argument(METHOD, "projections", "a single image", expected));
        }
        if of_keys.1 != dimension || !of_keys.0.is_multiple_of(b) {
            let expected = format!("[rounds * {b}, {dimension}], a row for every image in every round");
            return Err(Error::argument(METHOD, "keys", format!("{of_keys:?}"), expected));
        }
        let (keys, rounds, device) = (keys.detach(), of_keys.0 / b, projections.device());
        let images = Tensor::arange(0, b as u32, device)?;
        let images_of_keys = Tensor::cat(&vec![&images; rounds], 0)?;
        // The positive is key i of query i, in round 0; the image's keys of later rounds are nothing to it.
        let pairs = Pairs::diagonal().leave_out_same_label(&images, &images_of_keys);
        let options = ContrastOptions { other_positives: OtherPositives::LeftOut, ..Default::default() };
        let found = contrast(projections, &keys, &Temperature::Fixed(1.0), &pairs, &options)?;

        // L = ln(1 + Z e^{−p}) with p = ⟨g, g⁽⁰⁾⟩ and Z the sum over the negatives, so that ∂ ln Z = ∂L/σ + ∂p, σ = 1 − e^{−L}.
        let own = (projections * keys.narrow(0, 0, b)?)?.sum(1)?;
        let (p, log_z) = (own.detach(), found.log_sum_exp);
        let of_loss = ((&p - &log_z)?.exp()? + 1.0)?;
        let compat = self.config.compat;
        let (positive, weight) = match compat.batch_positives {
            true => {
                let shares = p.exp()?;
                let sum = shares.sum_all()?;
                (sum.log()?.broadcast_as(p.shape())?, (shares.broadcast_div(&sum)? * b as f64)?)
            }
            false => (p.clone(), p.ones_like()?),
        };
        let (denominator, share) = match compat.counted_own_keys {
            true => {
                let z = log_z.exp()?;
                let sum = (&z + rounds as f64)?;
                (sum.log()?, (z / sum)?)
            }
            false => (log_z.clone(), log_z.ones_like()?),
        };
        // Σ (weight p − share ln Z) has the gradient of the score; its value is put in the place of its own.
        let log_z = ((found.per_row * of_loss)? + &own)?;
        let carrier = ((own * weight)? - (log_z * share)?)?;
        let value = (positive - denominator)?;
        // The difference is 0, so that the value is not rounded again.
        Ok(((&carrier - carrier.detach())? + value)?)
    }

    /// s and ∂s/∂GAP of the means of activations `pooled` `[b, K]` (f32), by one backward pass through `project`, which maps them
    /// to `[b, D]`; its rows are scaled to unit norm here. `earlier` has the projections of the rounds before.
    ///
    /// # Errors
    /// As [`ContraCam::score`]; [`Error::Argument`] for a projection that does not depend on `pooled`, and what `project` says.
    pub fn scored(
        &self,
        pooled: &Tensor,
        earlier: &[Tensor],
        project: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Scored> {
        let (b, channels) = check_rows(METHOD, "pooled", pooled)?;
        let variable = Var::from_tensor(&pooled.detach())?;
        let projected = project(variable.as_tensor())?;
        let got = check_rows(METHOD, "project", &projected)?;
        if got.0 != b {
            let expected = format!("[{b}, D], a row for every image");
            return Err(Error::argument(METHOD, "project", format!("{got:?}"), expected));
        }
        let projected = unit_rows(&projected)?;
        let projections = projected.detach();
        let keys: Vec<&Tensor> = earlier.iter().chain([&projections]).collect();
        let scores = self.score(&projected, &Tensor::cat(&keys, 0)?)?;
        let gradients = scores.sum_all()?.backward()?;
        let Some(gradients) = gradients.get(variable.as_tensor()) else {
            let got = format!("no function of its {channels} numbers that gradients go through");
            return Err(Error::argument(METHOD, "project", got, "a differentiable projection"));
        };
        Ok(Scored { projections, scores: scores.detach(), gradients: gradients.detach() })
    }

    /// The masks of `images` `[b, C, H, W]` in T rounds. `encode` maps images to the activations `[b, K, h, w]` of the last
    /// convolution (of any float type), and `project` the means of these, f32 `[b, K]`, to projections `[b, D]`.
    ///
    /// # Errors
    /// As [`ContraCam::scored`]; [`Error::Argument`] for images that are not finite and activations of another number of images;
    /// what `encode` says.
    pub fn masks(
        &self,
        images: &Tensor,
        encode: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
        project: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<ObjectMasks> {
        let images = images.detach();
        let (b, height, width) = check_images(METHOD, "images", &images)?;
        let color = images.to_dtype(DType::F32)?.mean((0, 2, 3))?;
        let (mut rounds, mut masks): (Vec<Scored>, Option<Tensor>) = (Vec::new(), None);
        let mut earlier = Vec::new();
        for _ in 0..self.config.rounds {
            let activations = match &masks {
                None => encode(&images)?,
                Some(masks) => encode(&masked_blend(&images, &color, masks)?)?,
            };
            let activations = activations.detach();
            if activations.rank() != 4 || activations.dims()[0] != b {
                let (got, expected) = (format!("{:?}", activations.dims()), format!("[{b}, K, h, w]"));
                return Err(Error::argument(METHOD, "encode", got, expected));
            }
            let pooled = activations.to_dtype(DType::F32)?.mean((2, 3))?;
            let scored = self.scored(&pooled, &earlier, &project)?;
            let signed = self.config.weights == CamWeights::Signed;
            let map = cam(&activations, &scored.gradients, (height, width), signed)?;
            earlier.push(scored.projections.clone());
            rounds.push(scored);
            masks = Some(match masks {
                None => map,
                Some(masks) => masks.maximum(&map)?,
            });
        }
        let masks = masks.ok_or_else(|| Error::argument(METHOD, "rounds", 0, "at least 1"))?;
        Ok(ObjectMasks { masks, rounds })
    }
}

/// Checks finite images `[b, C, H, W]`, and returns b, H and W.
fn check_images(
    method: &'static str,
    argument: &'static str,
    images: &Tensor,
) -> Result<(usize, usize, usize)> {
    let dims = match *images.dims() {
        [b, c, h, w] if b * c * h * w > 0 => (b, h, w),
        _ => {
            let got = format!("{:?}", images.dims());
            return Err(Error::argument(method, argument, got, "[b, C, H, W], all above 0"));
        }
    };
    // Pixels cannot overflow a sum; NaN and infinities stay in it.
    if !images.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Err(Error::argument(method, argument, "not finite", "finite images"));
    }
    Ok(dims)
}

/// Checks masks `[b, H, W]` of numbers in `0..=1`, and returns their shape.
fn check_masks(
    method: &'static str,
    argument: &'static str,
    masks: &Tensor,
) -> Result<(usize, usize, usize)> {
    let dims = match *masks.dims() {
        [b, h, w] if b * h * w > 0 => (b, h, w),
        _ => {
            let got = format!("{:?}", masks.dims());
            return Err(Error::argument(method, argument, got, "[b, H, W], all above 0"));
        }
    };
    let masks = masks.detach().to_dtype(DType::F32)?;
    // Of the sum NaN is left, which neither end need show.
    for value in [masks.min_all()?, masks.max_all()?, masks.mean_all()?] {
        let value = value.to_scalar::<f32>()?;
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::argument(method, argument, value, "numbers in 0..=1"));
        }
    }
    Ok(dims)
}
