//! AdamW over a list of variables, with its whole state at hand for a checkpoint.

use candle_core::{DType, Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019) with a one-cycle rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    /// The largest rate.
    pub(crate) rate: f64,
    /// Decoupled weight decay.
    pub(crate) weight_decay: f64,
    /// Decay of the mean gradient.
    pub(crate) beta1: f64,
    /// Decay of the mean squared gradient.
    pub(crate) beta2: f64,
    /// The share of the run in which the rate rises.
    pub(crate) warm_up: f64,
    /// Gradients are scaled down to this norm, over all variables.
    pub(crate) clip: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { rate: 1.6e-2, weight_decay: 0.05, beta1: 0.9, beta2: 0.99, warm_up: 0.15, clip: 5.0 }
    }
}

impl Schedule {
    /// The rate at `progress` in [0, 1]: up in a line, down in half a cosine.
    pub(crate) fn rate_at(&self, progress: f64) -> f64 {
        if progress < self.warm_up {
            return self.rate * (0.04 + 0.96 * progress / self.warm_up);
        }
        let left = (progress - self.warm_up) / (1.0 - self.warm_up);
        self.rate * 0.5 * (1.0 + (std::f64::consts::PI * left).cos()).max(2e-3)
    }
}

/// A variable with its two moving means.
struct Slot {
    name: String,
    var: Var,
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// The optimizer: variables by name, their state, and the number of steps so far.
pub(crate) struct AdamW {
    schedule: Schedule,
    slots: Vec<Slot>,
    steps: usize,
}

impl AdamW {
    pub(crate) fn new(schedule: Schedule, variables: Vec<(String, Var)>) -> Self {
        let slots = variables.into_iter().map(|(name, var)| {
            let n = var.elem_count();
            Slot { name, var, mean: vec![0.0; n], square: vec![0.0; n] }
        });
        Self { schedule, slots: slots.collect(), steps: 0 }
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// One step; returns the norm of the gradient before clipping. A variable without gradient stays as it is.
    pub(crate) fn step(&mut self, grads: &GradStore, progress: f64) -> Result<f64> {
        self.steps += 1;
        let mut taken = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            taken.push(match grads.get(slot.var.as_tensor()) {
                Some(g) => Some(g.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?),
                None => None,
            });
        }
        let norm = taken.iter().flatten().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            candle_core::bail!("step {}: the gradient is not finite; lower the learning rate", self.steps)
        }
        let clip = if norm > self.schedule.clip { self.schedule.clip / norm } else { 1.0 } as f32;
        let s = &self.schedule;
        let rate = s.rate_at(progress);
        let decay = (1.0 - rate * s.weight_decay) as f32;
        let step = (rate / (1.0 - s.beta1.powi(self.steps as i32))) as f32;
        let root = (1.0 / (1.0 - s.beta2.powi(self.steps as i32))) as f32;
        let (b1, b2) = (s.beta1 as f32, s.beta2 as f32);
        for (slot, grad) in self.slots.iter_mut().zip(taken) {
            let Some(grad) = grad else { continue };
            let tensor = slot.var.as_tensor();
            let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
            values
                .par_iter_mut()
                .with_min_len(8192)
                .zip(&mut slot.mean)
                .zip(&mut slot.square)
                .zip(&grad)
                .for_each(|(((value, mean), square), grad)| {
                    let g = grad * clip;
                    *mean = b1 * *mean + (1.0 - b1) * g;
                    *square = b2 * *square + (1.0 - b2) * g * g;
                    *value = *value * decay - step * *mean / ((*square * root).sqrt() + 1e-8);
                });
            slot.var.set(&Tensor::from_vec(values, tensor.dims(), tensor.device())?)?;
        }
        Ok(norm)
    }

    /// Every variable and its moving means, by name.
    pub(crate) fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut out = Vec::with_capacity(3 * self.slots.len());
        for slot in &self.slots {
            let (dims, device) = (slot.var.dims(), slot.var.device());
            out.push((format!("{}.value", slot.name), slot.var.as_tensor().copy()?));
            out.push((format!("{}.mean", slot.name), Tensor::from_slice(&slot.mean, dims, device)?));
            out.push((format!("{}.square", slot.name), Tensor::from_slice(&slot.square, dims, device)?));
        }
        Ok(out)
    }

    /// Takes back what [`AdamW::state`] gave.
    pub(crate) fn restore(&mut self, steps: usize, get: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            slot.var.set(&get(&format!("{}.value", slot.name))?)?;
            slot.mean = get(&format!("{}.mean", slot.name))?.flatten_all()?.to_vec1()?;
            slot.square = get(&format!("{}.square", slot.name))?.flatten_all()?.to_vec1()?;
        }
        self.steps = steps;
        Ok(())
    }
}
