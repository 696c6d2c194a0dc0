//! Margin losses of all pairs, a tile at a time: nothing of the size queries × keys is kept, in the graph either.

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use crate::error::Result;

/// Queries of one tile of [`distances`].
const ROWS: usize = 64;

/// Keys of one tile of [`hinge`].
const KEYS: usize = 512;

/// A scalar of this value whose gradients are the given ones.
fn with_gradients(value: &Tensor, gradients: [(&Tensor, Tensor); 2]) -> Result<Tensor> {
    let mut total = value.clone();
    for (x, gradient) in gradients {
        let along = (x * gradient.to_dtype(x.dtype())?)?.sum_all()?;
        // Its value cancels to the bit; what stays is the gradient.
        total = (total + (&along - along.detach())?)?;
    }
    Ok(total)
}

/// Σ_i g_i L_i, L_i = d_ii² + Σ_j u_ij max(0, m − d_ij)² / Σ_j u_ij, with Euclidean distances d_ij of `x` and `y` `[B, D]`.
///
/// `weights(rows)` gives u `[rows, B]` f64, with 0 on the diagonal; `of_rows` gives the g_i from all L_i. A row without any
/// weight has its first term alone. In f64: d² is a difference.
pub(crate) fn distances(
    x: &Tensor,
    y: &Tensor,
    margin: f64,
    weights: impl Fn(Range<usize>) -> Result<Tensor>,
    of_rows: impl FnOnce(&[f64]) -> Vec<f64>,
) -> Result<Tensor> {
    let b = x.dim(0)?;
    let (u, v) = (x.detach().to_dtype(DType::F64)?, y.detach().to_dtype(DType::F64)?);
    let squares = |x: &Tensor| x.sqr()?.sum_keepdim(1);
    let (of_u, of_v) = (squares(&u)?, squares(&v)?.t()?);
    // d, u/Σu and the hinges of a tile.
    let tile = |rows: &Range<usize>| -> Result<(Tensor, Tensor)> {
        let part = u.narrow(0, rows.start, rows.len())?;
        let products = part.matmul(&v.t()?)?;
        let norms = of_u.narrow(0, rows.start, rows.len())?.broadcast_add(&of_v)?;
        let d = (norms - (products * 2.0)?)?.maximum(0.0)?.sqrt()?;
        let weights = weights(rows.clone())?;
        let sums = weights.sum_keepdim(1)?;
        let shares = weights.broadcast_div(&sums.eq(0.0)?.to_dtype(DType::F64)?.add(&sums)?)?;
        Ok((d, shares))
    };
    let tiles = || (0..b).step_by(ROWS).map(|at| at..(at + ROWS).min(b));
    let own = (&u - &v)?;
    let mut losses = squares(&own)?.squeeze(1)?.to_vec1::<f64>()?;
    for rows in tiles() {
        let (d, shares) = tile(&rows)?;
        let hinges = (margin - d)?.relu()?.sqr()?;
        let sums = (hinges * shares)?.sum(D::Minus1)?.to_vec1::<f64>()?;
        losses[rows].iter_mut().zip(sums).for_each(|(loss, sum)| *loss += sum);
    }
    let g = of_rows(&losses);
    let value: f64 = g.iter().zip(&losses).map(|(g, loss)| g * loss).sum();
    let value = Tensor::new(value as f32, x.device())?;
    if !(x.track_op() || y.track_op()) {
        return Ok(value);
    }
    let g = Tensor::new(g, x.device())?.unsqueeze(1)?;
    let first = own.broadcast_mul(&(&g * 2.0)?)?;
    let (mut of_x, mut of_y) = (Vec::new(), first.neg()?);
    for rows in tiles() {
        let (d, shares) = tile(&rows)?;
        let (start, count) = (rows.start, rows.len());
        // ∂L_i/∂d_ij = −2 u (m − d) / Σu along (x − y)/d; a pair of distance 0 has no direction.
        let slopes = ((margin - &d)?.relu()? / d.maximum(1e-30)?)?;
        let c = ((slopes * shares)? * 2.0)?.broadcast_mul(&g.narrow(0, start, count)?)?;
        let part = u.narrow(0, start, count)?;
        let toward = (c.matmul(&v)? - part.broadcast_mul(&c.sum_keepdim(1)?)?)?;
        of_x.push((first.narrow(0, start, count)? + toward)?);
        let back = (c.t()?.matmul(&part)? - v.broadcast_mul(&c.sum_keepdim(0)?.t()?)?)?;
        of_y = (of_y + back)?;
    }
    with_gradients(&value, [(x, Tensor::cat(&of_x, 0)?), (y, of_y)])
}

/// mean_i Σ_j max(0, m − ⟨q_i, k⁺_i⟩ + ⟨q_i, k_j⟩) over the keys `[N, D]` for which `bias` `[N]` is 0 and not −∞; queries and
/// positives are `[B, D]`, gradients arrive at the queries.
pub(crate) fn hinge(
    queries: &Tensor,
    positives: &Tensor,
    keys: &Tensor,
    bias: &Tensor,
    margin: f64,
) -> Result<Tensor> {
    let (b, n) = (queries.dim(0)?, keys.dim(0)?);
    let (q, own) = (queries.detach(), positives.detach());
    let shift = (margin - (&q * &own)?.sum_keepdim(1)?)?;
    let mut sums = vec![0.0f64; b];
    let mut gradient: Option<Tensor> = None;
    for start in (0..n).step_by(KEYS) {
        let count = KEYS.min(n - start);
        let part = keys.narrow(0, start, count)?;
        let bias = bias.narrow(0, start, count)?.unsqueeze(0)?;
        let hinges = q.matmul(&part.t()?)?.broadcast_add(&shift)?.broadcast_add(&bias)?.relu()?;
        let of_tile = hinges.sum(1)?.to_vec1::<f32>()?;
        sums.iter_mut().zip(of_tile).for_each(|(sum, tile)| *sum += f64::from(tile));
        if queries.track_op() {
            let active = hinges.gt(0.0)?.to_dtype(DType::F32)?;
            let toward = (active.matmul(&part)? - own.broadcast_mul(&active.sum_keepdim(1)?)?)?;
            gradient = Some(match gradient {
                Some(sum) => (sum + toward)?,
                None => toward,
            });
        }
    }
    let value = Tensor::new((sums.iter().sum::<f64>() / b as f64) as f32, queries.device())?;
    match gradient {
        None => Ok(value),
        Some(gradient) => {
            let gradient = (gradient * (1.0 / b as f64))?;
            let nothing = positives.detach();
            with_gradients(&value, [(queries, gradient), (&nothing, nothing.zeros_like()?)])
        }
    }
}
