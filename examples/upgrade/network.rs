//! The embedding network: a small residual network whose whole backbone is one differentiable Candle op.
//!
//! All weights live in one flat variable, so that the optimizer, the checkpoint and Candle's graph each see a single
//! tensor. The op keeps what its backward pass needs; the losses on top are ordinary Candle.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape as TensorShape, Tensor, Var};
use consonance_cpu::tile;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::layers::{self, Moments, Plane, Shape};
use crate::random::Draws;

/// The share of a new batch in the running statistics.
const MOMENTUM: f32 = 0.1;
/// Rows of a batch that one task of the last layer takes.
const HEAD_ROWS: usize = 32;

/// The size of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Architecture {
    /// Channels of the first stage; the later ones have twice and four times as many.
    pub(crate) width: usize,
    /// Stages: each halves the resolution at its end, except the last.
    pub(crate) stages: usize,
    /// The embedding's dimension.
    pub(crate) dim: usize,
    /// Whether 2 × 2 pixels become one with four times the channels before the first convolution.
    pub(crate) fold: bool,
    /// The last plane is averaged over grid × grid cells.
    pub(crate) grid: usize,
    /// A residual block in the stages with their bit set.
    pub(crate) residual: u32,
}

/// One convolution with its normalization.
#[derive(Debug, Clone, Copy)]
struct Unit {
    input: usize,
    output: usize,
    pool: bool,
    /// The plane that is added before the ReLU.
    skip: Option<usize>,
    weights: usize,
    gain: usize,
    bias: usize,
    running: usize,
}

impl Unit {
    fn weights_len(&self) -> usize {
        9 * self.input * self.output
    }
}

/// Where everything lies in the flat vectors.
#[derive(Debug)]
struct Plan {
    architecture: Architecture,
    height: usize,
    width: usize,
    units: Vec<Unit>,
    features: usize,
    head: usize,
    head_running: usize,
    parameters: usize,
    running: usize,
}

impl Plan {
    fn new(architecture: &Architecture, height: usize, width: usize) -> Self {
        let mut units: Vec<Unit> = Vec::new();
        let (mut parameters, mut running) = (0, 0);
        let mut push =
            |units: &mut Vec<Unit>, input: usize, output: usize, pool: bool, skip: Option<usize>| {
                let weights = parameters;
                let gain = weights + 9 * input * output;
                units.push(Unit { input, output, pool, skip, weights, gain, bias: gain + output, running });
                parameters = gain + 2 * output;
                running += 2 * output;
            };
        let mut channels = if architecture.fold { 12 } else { 3 };
        for stage in 0..architecture.stages {
            let output = architecture.width << stage;
            push(&mut units, channels, output, stage + 1 < architecture.stages, None);
            channels = output;
            if architecture.residual >> stage & 1 == 1 {
                let skip = units.len();
                push(&mut units, channels, channels, false, None);
                push(&mut units, channels, channels, false, Some(skip));
            }
        }
        let features = architecture.grid * architecture.grid * channels;
        Self {
            architecture: architecture.clone(),
            height,
            width,
            units,
            features,
            head: parameters,
            head_running: running,
            parameters: parameters + features * architecture.dim,
            running: running + 2 * architecture.dim,
        }
    }

    fn input_shape(&self, images: usize) -> Shape {
        match self.architecture.fold {
            true => Shape { images, height: self.height / 2, width: self.width / 2, channels: 12 },
            false => Shape { images, height: self.height, width: self.width, channels: 3 },
        }
    }

    /// Dense `[images, height, width, 3]` into the first plane.
    fn input(&self, images: &[f32], count: usize) -> Plane {
        let shape = self.input_shape(count);
        if !self.architecture.fold {
            return Plane::from_dense(shape, images);
        }
        let (row, mut folded) = (self.width * 3, vec![0.0; images.len()]);
        folded.par_chunks_mut(shape.width * 12).enumerate().for_each(|(y, to)| {
            // Rows of folded pixels run through the images without a gap, and so do pairs of rows.
            let from = &images[2 * y * row..][..2 * row];
            for (x, to) in to.chunks_exact_mut(12).enumerate() {
                to[..6].copy_from_slice(&from[6 * x..][..6]);
                to[6..].copy_from_slice(&from[row + 6 * x..][..6]);
            }
        });
        Plane::from_dense(shape, &folded)
    }
}

/// What the backward pass needs.
struct Tape {
    /// The input and every unit's output.
    planes: Vec<Plane>,
    /// Every convolution's output.
    raw: Vec<Plane>,
    moments: Vec<Moments>,
    features: Vec<f32>,
    head: Vec<f32>,
    head_moments: Moments,
}

/// The network with its weights and running statistics.
pub(crate) struct Network {
    plan: Arc<Plan>,
    parameters: Var,
    /// Running mean and variance of every channel.
    running: Mutex<Vec<f32>>,
}

impl Network {
    /// A network with He-normal weights drawn from `seed`.
    pub(crate) fn new(architecture: &Architecture, height: usize, width: usize, seed: u64) -> Result<Self> {
        let plan = Plan::new(architecture, height, width);
        let mut weights = vec![0.0; plan.parameters];
        let mut draws = Draws::new(&[seed, 0x6e65_7477]);
        let mut running = vec![0.0; plan.running];
        for unit in &plan.units {
            let deviation = (2.0 / (9 * unit.input) as f32).sqrt();
            weights[unit.weights..][..unit.weights_len()].fill_with(|| deviation * draws.normal());
            // A residual block starts as the identity: its sum starts with the skip alone.
            weights[unit.gain..][..unit.output].fill(if unit.skip.is_some() { 0.0 } else { 1.0 });
            running[unit.running + unit.output..][..unit.output].fill(1.0);
        }
        let deviation = (1.0 / plan.features as f32).sqrt();
        weights[plan.head..].fill_with(|| deviation * draws.normal());
        running[plan.head_running + architecture.dim..].fill(1.0);
        let parameters = Var::from_vec(weights, plan.parameters, &Device::Cpu)?;
        Ok(Self { plan: Arc::new(plan), parameters, running: Mutex::new(running) })
    }

    /// The same weights and statistics for images of another size; `dense` leaves the last halving out, so that the last plane has
    /// twice the resolution. No weight depends on either.
    #[allow(dead_code, reason = "of other examples")]
    pub(crate) fn resized(&self, height: usize, width: usize, dense: bool) -> Result<Self> {
        let mut plan = Plan::new(&self.plan.architecture, height, width);
        if let Some(unit) = plan.units.iter_mut().rev().find(|unit| dense && unit.pool) {
            unit.pool = false;
        }
        let parameters = Var::from_tensor(&self.parameters.as_detached_tensor().copy()?)?;
        Ok(Self { plan: Arc::new(plan), parameters, running: Mutex::new(self.running()) })
    }

    /// The flat variable of all weights.
    pub(crate) fn parameters(&self) -> &Var {
        &self.parameters
    }

    /// The embedding's dimension.
    pub(crate) fn dim(&self) -> usize {
        self.plan.architecture.dim
    }

    /// The running statistics, for a checkpoint.
    pub(crate) fn running(&self) -> Vec<f32> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes running statistics back from a checkpoint.
    pub(crate) fn set_running(&self, values: Vec<f32>) -> Result<()> {
        if values.len() != self.plan.running {
            candle_core::bail!(
                "running statistics: got {} numbers, expected {}",
                values.len(),
                self.plan.running
            )
        }
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = values;
        Ok(())
    }

    /// Embeddings `[B, D]`, not normalized, of dense images `[B, height, width, 3]`, with batch statistics; gradients
    /// reach [`Network::parameters`].
    pub(crate) fn forward(&self, images: Vec<f32>) -> Result<Tensor> {
        let tape = Arc::new(Mutex::new(None));
        let op = Backbone { plan: self.plan.clone(), images, tape: tape.clone() };
        let out = self.parameters.as_tensor().apply_op1(op)?;
        if let Some(tape) = tape.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            self.track(tape);
        }
        Ok(out)
    }

    fn track(&self, tape: &Tape) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let places = self.plan.units.iter().map(|u| u.running).chain([self.plan.head_running]);
        for (place, moments) in places.zip(tape.moments.iter().chain([&tape.head_moments])) {
            let now = moments.mean.iter().chain(&moments.variance);
            for (r, now) in running[place..].iter_mut().zip(now) {
                *r += MOMENTUM * (now - *r);
            }
        }
    }

    /// Embeddings as [`Network::forward`] gives them, but with the running statistics and without gradients: an image's
    /// embedding does not depend on the rest of the batch.
    pub(crate) fn embed(&self, images: Vec<f32>) -> Result<Vec<f32>> {
        let running = self.running();
        let parameters = self.parameters.as_tensor().to_vec1::<f32>()?;
        Ok(run(&self.plan, &parameters, &images, Some(&running)).1)
    }

    /// The last plane `[B, channels, height, width]`, square, with the running statistics and without gradients.
    #[allow(dead_code, reason = "of other examples")]
    pub(crate) fn activations(&self, images: &[f32]) -> Result<Tensor> {
        let running = self.running();
        let parameters = self.parameters.as_tensor().to_vec1::<f32>()?;
        let (planes, _, _) = convolved(&self.plan, &parameters, images, Some(&running));
        let plane = &planes[self.plan.units.len()];
        let Shape { images, height, width, channels } = plane.shape;
        // Cells of one pixel.
        let dense = Tensor::from_vec(
            layers::cell_means(plane, height),
            (images, height, width, channels),
            &Device::Cpu,
        )?;
        dense.permute((0, 3, 1, 2))?.contiguous()
    }

    /// The last layer over features `[B, features]` with the running statistics; gradients reach the features.
    #[allow(dead_code, reason = "of other examples")]
    pub(crate) fn head(&self, features: &Tensor) -> Result<Tensor> {
        let (plan, dim) = (&self.plan, self.plan.architecture.dim);
        let weights = self.parameters.as_detached_tensor().narrow(0, plan.head, plan.features * dim)?;
        let moments = moments_at(&self.running(), plan.head_running, dim);
        let scale: Vec<f32> = moments.variance.iter().map(|v| inverse(*v)).collect();
        let (mean, scale) = (Tensor::new(moments.mean, &Device::Cpu)?, Tensor::new(scale, &Device::Cpu)?);
        let head = features.matmul(&weights.reshape((plan.features, dim))?)?;
        head.broadcast_sub(&mean)?.broadcast_mul(&scale)
    }
}

fn moments_at(running: &[f32], place: usize, channels: usize) -> Moments {
    let (mean, variance) = (&running[place..][..channels], &running[place + channels..][..channels]);
    Moments { mean: mean.to_vec(), variance: variance.to_vec() }
}

/// The input and every unit's output; and, without `running` statistics, every convolution's output and its moments.
fn convolved(
    plan: &Plan,
    parameters: &[f32],
    images: &[f32],
    running: Option<&[f32]>,
) -> (Vec<Plane>, Vec<Plane>, Vec<Moments>) {
    let count = images.len() / (plan.height * plan.width * 3);
    let mut planes = vec![plan.input(images, count)];
    let (mut raws, mut all_moments) = (Vec::new(), Vec::new());
    for (u, unit) in plan.units.iter().enumerate() {
        let raw =
            layers::convolve(&planes[u], &parameters[unit.weights..][..unit.weights_len()], unit.output);
        let moments = match running {
            Some(running) => moments_at(running, unit.running, unit.output),
            None => Moments::of(&raw),
        };
        let affine = (&parameters[unit.gain..][..unit.output], &parameters[unit.bias..][..unit.output]);
        let y = layers::activate(&raw, &moments, affine, unit.skip.map(|s| &planes[s]), unit.pool);
        planes.push(y);
        if running.is_none() {
            raws.push(raw);
            all_moments.push(moments);
        }
    }
    (planes, raws, all_moments)
}

/// Runs the network; with `running` statistics nothing is kept.
fn run(plan: &Plan, parameters: &[f32], images: &[f32], running: Option<&[f32]>) -> (Option<Tape>, Vec<f32>) {
    let count = images.len() / (plan.height * plan.width * 3);
    let (planes, raws, all_moments) = convolved(plan, parameters, images, running);
    let (dim, grid) = (plan.architecture.dim, plan.architecture.grid);
    let features = layers::cell_means(&planes[plan.units.len()], grid);
    let mut head = vec![0.0; count * dim];
    let weights = &parameters[plan.head..];
    head.par_chunks_mut(HEAD_ROWS * dim).zip(features.par_chunks(HEAD_ROWS * plan.features)).for_each(
        |(out, x)| {
            tile::accumulate(
                (out.len() / dim, plan.features, dim),
                (x, plan.features),
                (weights, dim),
                (out, dim),
            );
        },
    );
    let head_moments = match running {
        Some(running) => moments_at(running, plan.head_running, dim),
        None => column_moments(&head, dim),
    };
    let out = normalized(&head, &head_moments);
    let tape = running.is_none().then_some(Tape {
        planes,
        raw: raws,
        moments: all_moments,
        features,
        head,
        head_moments,
    });
    (tape, out)
}

fn column_moments(rows: &[f32], dim: usize) -> Moments {
    let n = (rows.len() / dim).max(1) as f64;
    let mut mean = vec![0.0f64; dim];
    let mut variance = vec![0.0f64; dim];
    for row in rows.chunks_exact(dim) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x) / n);
    }
    for row in rows.chunks_exact(dim) {
        variance.iter_mut().zip(row).zip(&mean).for_each(|((v, x), m)| *v += (f64::from(*x) - m).powi(2) / n);
    }
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
    Moments { mean: narrow(mean), variance: narrow(variance) }
}

fn inverse(variance: f32) -> f32 {
    1.0 / (variance + 1e-5).sqrt()
}

fn normalized(rows: &[f32], moments: &Moments) -> Vec<f32> {
    let dim = moments.mean.len();
    let mut out = rows.to_vec();
    for row in out.chunks_exact_mut(dim) {
        for ((x, m), v) in row.iter_mut().zip(&moments.mean).zip(&moments.variance) {
            *x = (*x - m) * inverse(*v);
        }
    }
    out
}

/// The gradient through [`normalized`] with batch statistics.
fn normalized_grad(rows: &[f32], moments: &Moments, grad: &[f32]) -> Vec<f32> {
    let dim = moments.mean.len();
    let n = (rows.len() / dim).max(1) as f64;
    let (mut sum, mut product) = (vec![0.0f64; dim], vec![0.0f64; dim]);
    let centered = |x: f32, d: usize| (x - moments.mean[d]) * inverse(moments.variance[d]);
    for (row, grad) in rows.chunks_exact(dim).zip(grad.chunks_exact(dim)) {
        for d in 0..dim {
            sum[d] += f64::from(grad[d]) / n;
            product[d] += f64::from(grad[d] * centered(row[d], d)) / n;
        }
    }
    let mut out = grad.to_vec();
    for (out, row) in out.chunks_exact_mut(dim).zip(rows.chunks_exact(dim)) {
        for d in 0..dim {
            let through = out[d] - sum[d] as f32 - centered(row[d], d) * product[d] as f32;
            out[d] = inverse(moments.variance[d]) * through;
        }
    }
    out
}

/// The gradient of the whole network with respect to its flat weights.
fn run_grad(plan: &Plan, parameters: &[f32], tape: &Tape, grad: &[f32]) -> Vec<f32> {
    let (dim, features) = (plan.architecture.dim, plan.features);
    let mut out = vec![0.0; plan.parameters];
    let grad = normalized_grad(&tape.head, &tape.head_moments, grad);
    let rows = grad.len() / dim;
    tile::accumulate_transposed(
        (rows, features, dim),
        (&tape.features, features),
        (&grad, dim),
        (&mut out[plan.head..], dim),
    );
    let mut cells = vec![0.0; rows * features];
    let weights = &parameters[plan.head..];
    cells.par_chunks_mut(HEAD_ROWS * features).zip(grad.par_chunks(HEAD_ROWS * dim)).for_each(
        |(out, grad)| {
            tile::scores((grad.len() / dim, features, dim), (grad, dim), (weights, dim), (out, features));
        },
    );

    let last = plan.units.len();
    let mut grads: Vec<Option<Plane>> = vec![None; last + 1];
    grads[last] = Some(layers::cell_means_grad(tape.planes[last].shape, plan.architecture.grid, &cells));
    for (u, unit) in plan.units.iter().enumerate().rev() {
        let Some(grad) = grads[u + 1].take() else { continue };
        let affine = (&parameters[unit.gain..][..unit.output], &parameters[unit.bias..][..unit.output]);
        let back = layers::activate_grad(
            (&tape.raw[u], &tape.planes[u + 1], &grad),
            &tape.moments[u],
            affine,
            unit.skip.is_some(),
            unit.pool,
        );
        out[unit.gain..][..unit.output].copy_from_slice(&back.gain);
        out[unit.bias..][..unit.output].copy_from_slice(&back.bias);
        let weights = &parameters[unit.weights..][..unit.weights_len()];
        let grad_weights = layers::convolve_weights_grad(&tape.planes[u], &back.input);
        out[unit.weights..][..unit.weights_len()].copy_from_slice(&grad_weights);
        if let (Some(at), Some(skip)) = (unit.skip, back.skip) {
            accumulate(&mut grads[at], skip);
        }
        if u > 0 {
            let turned = layers::turned(weights, unit.input, unit.output);
            accumulate(&mut grads[u], layers::convolve(&back.input, &turned, unit.input));
        }
    }
    out
}

fn accumulate(sum: &mut Option<Plane>, plane: Plane) {
    match sum {
        Some(sum) => sum.add(&plane),
        None => *sum = Some(plane),
    }
}

/// The backbone as a Candle op of its flat weights; the images are constants.
struct Backbone {
    plan: Arc<Plan>,
    images: Vec<f32>,
    tape: Arc<Mutex<Option<Tape>>>,
}

impl CustomOp1 for Backbone {
    fn name(&self) -> &'static str {
        "backbone"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, TensorShape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(candle_core::Error::RequiresContiguous { op: "backbone" }.bt());
        };
        let parameters = &storage.as_slice::<f32>()?[start..end];
        let (tape, out) = run(&self.plan, parameters, &self.images, None);
        *self.tape.lock().unwrap_or_else(PoisonError::into_inner) = tape;
        let dim = self.plan.architecture.dim;
        let rows = out.len() / dim;
        Ok((CpuStorage::F32(out), TensorShape::from((rows, dim))))
    }

    fn bwd(&self, parameters: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tape) = tape.as_ref() else { candle_core::bail!("backbone: backward before forward") };
        let grad = grad.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let out = run_grad(&self.plan, &parameters.to_vec1::<f32>()?, tape, &grad);
        Ok(Some(Tensor::from_vec(out, self.plan.parameters, &Device::Cpu)?))
    }
}

#[cfg(test)]
#[path = "network/tests.rs"] // found from other examples, too
mod tests;
