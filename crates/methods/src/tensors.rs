//! Small tensor functions that several methods share.

use candle_core::{D, DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::method::State;

/// Squared norms below this count as zero: 1e-12 in the norm, far below what f32 rows of unit scale resolve. The
/// clamp keeps the gradient of the root finite.
const SMALLEST_SQUARE: f64 = 1e-24;

/// Euclidean norms of the rows, `[rows]`; the gradient at a zero row is 0.
pub(crate) fn row_norms(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum(D::Minus1)?;
    Ok(squares.maximum(SMALLEST_SQUARE)?.sqrt()?)
}

/// Rows scaled to unit norm; a zero row stays zero.
pub(crate) fn unit_rows(x: &Tensor) -> Result<Tensor> {
    let norms = row_norms(x)?.unsqueeze(D::Minus1)?;
    Ok(x.broadcast_div(&norms)?)
}

/// Checks a matrix of finite f32 rows, and returns its shape.
pub(crate) fn check_rows(
    method: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<(usize, usize)> {
    let shape = match (tensor.dims(), tensor.dtype()) {
        (&[rows, cols], DType::F32) if rows > 0 && cols > 0 => (rows, cols),
        (dims, dtype) => {
            let got = format!("{dims:?} of {dtype:?}");
            return Err(Error::argument(method, argument, got, "a matrix of F32 with at least one row"));
        }
    };
    // Rows of unit norm cannot overflow a sum; NaN and infinities stay in it.
    if !tensor.detach().sum_all()?.to_scalar::<f32>()?.is_finite() {
        return Err(Error::argument(method, argument, "not finite", "finite rows of unit norm"));
    }
    Ok(shape)
}

/// Checks a vector of u32 labels, one a row.
pub(crate) fn check_labels(
    method: &'static str,
    argument: &'static str,
    labels: &Tensor,
    rows: usize,
) -> Result<()> {
    if labels.dims() == [rows] && labels.dtype() == DType::U32 {
        return Ok(());
    }
    let got = format!("{:?} of {:?}", labels.dims(), labels.dtype());
    Err(Error::argument(method, argument, got, format!("[{rows}] of U32")))
}

/// A scalar zero: the value of a term that no row contributes to.
pub(crate) fn zero(device: &Device) -> Result<Tensor> {
    Ok(Tensor::zeros((), DType::F32, device)?)
}

/// ln Σ e^x over the last dimension, shifted by the maximum.
pub(crate) fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    // The shift is a constant: its gradient cancels, and detaching it saves the scatter of the maximum.
    let shift = x.detach().max_keepdim(D::Minus1)?;
    let sums = x.broadcast_sub(&shift)?.exp()?.sum(D::Minus1)?;
    Ok((sums.log()? + shift.squeeze(D::Minus1)?)?)
}

/// An entry of a saved state, checked against the shape and type that it is to replace.
pub(crate) fn entry<'a>(
    method: &'static str,
    state: &'a State,
    name: &str,
    dims: &[usize],
    dtype: DType,
) -> Result<&'a Tensor> {
    let error = |reason: String| Error::State { method, entry: name.to_owned(), reason };
    let tensor = state.get(name).ok_or_else(|| error("is missing".to_owned()))?;
    if tensor.dims() != dims || tensor.dtype() != dtype {
        let (got, have) = (tensor.dims(), tensor.dtype());
        return Err(error(format!("is {got:?} of {have:?}, expected {dims:?} of {dtype:?}")));
    }
    Ok(tensor)
}

/// A counter as a state entry: two u32 words, exact.
pub(crate) fn counter(value: u64, device: &Device) -> Result<Tensor> {
    let words = [(value & 0xffff_ffff) as u32, (value >> 32) as u32];
    Ok(Tensor::new(&words, device)?)
}

/// The counter of [`counter`].
pub(crate) fn read_counter(tensor: &Tensor) -> Result<u64> {
    let words = tensor.to_vec1::<u32>()?;
    let word = |i: usize| u64::from(words.get(i).copied().unwrap_or(0));
    Ok(word(0) | (word(1) << 32))
}

/// A counter-based generator: the n-th number depends on the seed and n alone (SplitMix64).
pub(crate) fn mix_bits(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A uniform number in `[0, 1)` of the counter-based generator.
pub(crate) fn uniform(seed: u64, n: u64) -> f64 {
    (mix_bits(seed, n) >> 11) as f64 / (1u64 << 53) as f64
}

/// A standard normal number of the counter-based generator (Box-Muller).
pub(crate) fn normal(seed: u64, n: u64) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(seed, 2 * n)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(seed, 2 * n + 1)).cos()
}
