//! Maps and blends in Candle's own ops; bicubic interpolation, which Candle has not, as two products with matrices.

use candle_core::{Device, Result, Tensor};
use consonance_reference::cam::resize;
use consonance_testkit::data;

/// Standard normal numbers; those of `activations` are sparse as behind a ReLU.
pub(crate) fn normal(dims: &[usize], seed: u64) -> Result<Tensor> {
    Tensor::from_vec(data::normal(dims.iter().product(), 1, seed), dims, &Device::Cpu)
}

/// `[output, input]`: what every output pixel takes of every input pixel.
pub(crate) fn stretching(input: usize, output: usize) -> Result<Tensor> {
    let columns: Vec<Vec<f64>> = (0..input)
        .map(|at| {
            let line: Vec<f64> = (0..input).map(|i| f64::from(u8::from(i == at))).collect();
            resize(&line, (input, 1), (output, 1))
        })
        .collect();
    let values: Vec<f32> = (0..output).flat_map(|y| columns.iter().map(move |c| c[y] as f32)).collect();
    Tensor::from_vec(values, (output, input), &Device::Cpu)
}

/// `[B, H, W]` of activations `[B, K, h, w]`, with the matrices of both axes.
pub(crate) fn cam(activations: &Tensor, gradients: &Tensor, axes: (&Tensor, &Tensor)) -> Result<Tensor> {
    let (b, k, h, w) = activations.dims4()?;
    let weights = (gradients.relu()? / (h * w) as f64)?.reshape((b, k, 1, 1))?;
    let sums = activations.broadcast_mul(&weights)?.sum(1)?.relu()?;
    let wide = sums.broadcast_matmul(&axes.1.t()?.contiguous()?)?;
    let map = axes.0.broadcast_matmul(&wide)?;
    let flat = map.flatten_from(1)?;
    let (least, most) = (flat.min_keepdim(1)?, flat.max_keepdim(1)?);
    let range = ((&most - &least)? + 1e-20)?;
    flat.broadcast_sub(&least)?.broadcast_div(&range)?.reshape(map.shape())
}

/// x (1 − m) + y m for a color y `[C]`.
pub(crate) fn masked_blend(images: &Tensor, color: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mask = mask.unsqueeze(1)?;
    let color = color.reshape((1, color.elem_count(), 1, 1))?;
    images.broadcast_mul(&(1.0 - &mask)?)? + mask.broadcast_mul(&color)?
}
