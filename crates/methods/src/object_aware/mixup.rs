//! Objects on the backgrounds of other images.

use std::collections::VecDeque;

use candle_core::{DType, Tensor};
use consonance::{Backgrounds, BackgroundsOptions, backgrounds, masked_blend};
use serde::{Deserialize, Serialize};

use super::{check_images, check_masks};
use crate::error::{Error, Result, fraction};
use crate::method::State;
use crate::tensors::{counter, entry, mix_bits, read_counter, uniform};

const METHOD: &str = "background mixup";

/// Settings of [`BackgroundMixup`], the published ones by default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackgroundMixupConfig {
    /// How often an image gets another background; 0.4.
    pub probability: f64,
    /// From which number of its mask on a pixel belongs to the object; 0.2.
    pub threshold: f64,
    /// Backgrounds that outlive their batch, first in, first out; 50.
    pub capacity: usize,
    /// Whether rectangles lose their last row and column, as in the public code; no.
    pub short_rectangles: bool,
}

impl Default for BackgroundMixupConfig {
    fn default() -> Self {
        Self { probability: 0.4, threshold: 0.2, capacity: 50, short_rectangles: false }
    }
}

impl BackgroundMixupConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        fraction(METHOD, "probability", self.probability)?;
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err(Error::argument(METHOD, "threshold", self.threshold, "above 0 and at most 1"));
        }
        Ok(())
    }
}

/// What is mixed with what.
#[derive(Debug, Clone, PartialEq)]
pub struct MixupPlan {
    /// Whether an image gets another background, `[b]`.
    pub mixed: Vec<bool>,
    /// π: whose background, `[b]`.
    pub partners: Vec<u32>,
    /// Which of the kept backgrounds where the partner has none, as a share of their number in [0, 1), `[b]`.
    pub kept: Vec<f64>,
}

/// Background mixup: x' = M ⊙ x + (1 − M) ⊙ b(x_π), where b covers the object of an image by its surroundings
/// ([`consonance::backgrounds`]).
///
/// An image without a background of its own stays as it is (its mask says nothing of its object), and so does one whose partner
/// has none as long as no background is kept. The first view of a pair is mixed, with the mask moved as the view is.
#[derive(Debug, Clone)]
pub struct BackgroundMixup {
    config: BackgroundMixupConfig,
    seed: u64,
    step: u64,
    /// `[C, H, W]` each, the oldest first.
    kept: VecDeque<Tensor>,
}

impl BackgroundMixup {
    /// Keeps no background yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: BackgroundMixupConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, seed, step: 0, kept: VecDeque::new() })
    }

    /// Backgrounds kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// The backgrounds of `images` `[b, C, H, W]` by their masks `[b, H, W]`.
    ///
    /// # Errors
    /// Those of [`consonance::backgrounds`].
    pub fn backgrounds(&self, images: &Tensor, masks: &Tensor) -> Result<Backgrounds> {
        let options = BackgroundsOptions::default().threshold(self.config.threshold);
        let options = if self.config.short_rectangles { options.short_rectangles() } else { options };
        Ok(backgrounds(&images.detach(), &masks.detach(), &options)?)
    }

    /// The next step's draw for a batch: each image with the configured probability, partners by a permutation.
    pub fn draw(&self, images: usize) -> MixupPlan {
        let seed = mix_bits(self.seed, self.step);
        let number = |of: u64, at: usize| uniform(seed, 3 * at as u64 + of);
        let mut partners: Vec<u32> = (0..images as u32).collect();
        for last in (1..images).rev() {
            partners.swap(last, (number(1, last) * (last + 1) as f64) as usize);
        }
        MixupPlan {
            mixed: (0..images).map(|at| number(0, at) < self.config.probability).collect(),
            partners,
            kept: (0..images).map(|at| number(2, at)).collect(),
        }
    }

    /// `views` `[b, C, H, W]` on other backgrounds by a draw of the next step, which this ends: the batch's backgrounds are kept, and
    /// the oldest leave. `masks` `[b, H, W]` are those of the views, `found` the backgrounds of the batch.
    ///
    /// # Errors
    /// As [`BackgroundMixup::apply`]; nothing is kept then.
    pub fn mix(&mut self, views: &Tensor, masks: &Tensor, found: &Backgrounds) -> Result<Tensor> {
        let plan = self.draw(views.dims().first().copied().unwrap_or(0));
        let mixed = self.apply(views, masks, found, &plan)?;
        let has_background = found.found.to_vec1::<u8>()?;
        for (at, _) in has_background.iter().enumerate().filter(|(_, found)| **found != 0) {
            // A copy: a view would keep the whole batch.
            self.kept.push_back(found.images.get(at)?.force_contiguous()?.copy()?);
        }
        while self.kept.len() > self.config.capacity {
            self.kept.pop_front();
        }
        self.step += 1;
        Ok(mixed)
    }

    /// `views` on other backgrounds by a plan; nothing changes here.
    ///
    /// # Errors
    /// [`Error::Argument`] for shapes that disagree, images that are not finite, masks outside `0..=1`, and partners and shares out
    /// of range.
    pub fn apply(
        &self,
        views: &Tensor,
        masks: &Tensor,
        found: &Backgrounds,
        plan: &MixupPlan,
    ) -> Result<Tensor> {
        let (b, height, width) = check_images(METHOD, "views", &views.detach())?;
        let of_masks = check_masks(METHOD, "masks", masks)?;
        if of_masks != (b, height, width) {
            let expected = format!("{:?}, as the views", (b, height, width));
            return Err(Error::argument(METHOD, "masks", format!("{of_masks:?}"), expected));
        }
        if found.images.dims() != views.dims() || found.found.dims() != [b] {
            let got = format!("{:?} and {:?}", found.images.dims(), found.found.dims());
            return Err(Error::argument(METHOD, "found", got, format!("{:?} and [{b}]", views.dims())));
        }
        if let Some(kept) = self.kept.front().filter(|kept| *kept.dims() != views.dims()[1..]) {
            let expected = format!("images of {:?}, as the backgrounds kept", kept.dims());
            return Err(Error::argument(METHOD, "views", format!("{:?}", views.dims()), expected));
        }
        check_plan(plan, b)?;
        let has_background = found.found.to_vec1::<u8>()?;
        let (views, masks) = (views.detach(), masks.detach().to_dtype(DType::F32)?);
        let all = masks.narrow(0, 0, 1)?.ones_like()?;
        let (mut others, mut shares) = (Vec::with_capacity(b), Vec::with_capacity(b));
        for at in 0..b {
            let partner = plan.partners[at] as usize;
            let kept = (plan.kept[at] * self.kept.len() as f64) as usize;
            let other = match plan.mixed[at] && has_background[at] != 0 {
                true if has_background[partner] != 0 => Some(found.images.narrow(0, partner, 1)?),
                true => self.kept.get(kept).map(|kept| kept.unsqueeze(0)).transpose()?,
                false => None,
            };
            // Where nothing is mixed the whole image is the object.
            shares.push(if other.is_some() { masks.narrow(0, at, 1)? } else { all.clone() });
            others.push(match other {
                Some(other) => other,
                None => views.narrow(0, at, 1)?,
            });
        }
        let others = Tensor::cat(&others, 0)?.to_dtype(views.dtype())?;
        Ok(masked_blend(&others, &views, &Tensor::cat(&shares, 0)?)?)
    }

    /// The backgrounds kept and the number of steps, to be saved.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn state(&self) -> Result<State> {
        let mut state = State::new();
        let device = self.kept.front().map_or(&candle_core::Device::Cpu, Tensor::device);
        state.insert("step".to_owned(), counter(self.step, device)?);
        if !self.kept.is_empty() {
            let kept: Vec<&Tensor> = self.kept.iter().collect();
            state.insert("kept".to_owned(), Tensor::stack(&kept, 0)?);
        }
        Ok(state)
    }

    /// Takes over what was saved.
    ///
    /// # Errors
    /// [`Error::State`] when an entry is missing or does not fit.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let step = read_counter(entry(METHOD, state, "step", &[2], DType::U32)?)?;
        let mut kept = VecDeque::new();
        if let Some(tensor) = state.get("kept") {
            let fits = tensor.rank() == 4 && tensor.dims()[0] <= self.config.capacity;
            if !fits {
                let reason = format!("is {:?}, expected at most {}", tensor.dims(), self.config.capacity);
                let reason = format!("{reason} images [C, H, W]");
                return Err(Error::State { method: METHOD, entry: "kept".to_owned(), reason });
            }
            for at in 0..tensor.dims()[0] {
                kept.push_back(tensor.get(at)?);
            }
        }
        (self.step, self.kept) = (step, kept);
        Ok(())
    }
}

fn check_plan(plan: &MixupPlan, images: usize) -> Result<()> {
    let lengths = [plan.mixed.len(), plan.partners.len(), plan.kept.len()];
    if lengths != [images; 3] {
        let expected = format!("{images} of each, as images");
        return Err(Error::argument(METHOD, "plan", format!("{lengths:?} entries"), expected));
    }
    if let Some(partner) = plan.partners.iter().find(|partner| **partner as usize >= images) {
        return Err(Error::argument(METHOD, "partners", partner, format!("indices in 0..{images}")));
    }
    if let Some(share) = plan.kept.iter().find(|share| !(0.0..1.0).contains(*share)) {
        return Err(Error::argument(METHOD, "kept", share, "shares in [0, 1)"));
    }
    Ok(())
}
