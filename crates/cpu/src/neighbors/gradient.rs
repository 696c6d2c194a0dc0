//! The gradients of the scores, the neighbors held fixed.

use rayon::prelude::*;

use super::{Metric, NONE, OP};
use crate::screen::Kernel;
use crate::{Error, Result, Rows, simd};

/// The gradients of Σ upstream · score: with respect to the queries `[B, D]`, and to the bank `[N, D]` when
/// `bank_gradient` is set.
///
/// `indices` are the `[B, k]` that [`super::neighbors`] has returned and `upstream` the gradient of its scores;
/// places without a neighbor take no part. Inner product: ∂s/∂x = y. Cosine: ∂s/∂x = (ŷ − s·x̂)/‖x‖. Squared L2:
/// ∂s/∂x = 2(x − y). Work O(B·k·D); every row of a result is summed by one thread in the order of the places.
///
/// # Errors
/// [`Error::Shape`] when the lengths disagree, [`Error::Range`] for an index outside the bank.
pub fn gradients(
    queries: &Rows<'_>,
    bank: &Rows<'_>,
    metric: Metric,
    (indices, upstream): (&[u32], &[f32]),
    bank_gradient: bool,
) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let (rows, dim) = (queries.rows(), queries.cols());
    if rows == 0 || dim == 0 || indices.len() % rows != 0 || indices.len() < rows {
        return Err(Error::shape(OP, "indices", &[indices.len()], format!("[{rows}, k]")));
    }
    if upstream.len() != indices.len() {
        return Err(Error::shape(OP, "upstream", &[upstream.len()], format!("[{}]", indices.len())));
    }
    if bank.cols() != dim {
        return Err(Error::shape(OP, "bank", &[bank.rows(), bank.cols()], format!("[N, {dim}]")));
    }
    if let Some(index) = indices.iter().find(|index| **index != NONE && **index as usize >= bank.rows()) {
        return Err(Error::range(OP, "indices", index, format!("indices below {}", bank.rows())));
    }
    let k = indices.len() / rows;
    let pairs = Pairs { metric, kernel: Kernel::best() };
    let mut dq = vec![0.0f32; rows * dim];
    dq.par_chunks_mut(dim).enumerate().for_each_init(
        || (vec![0.0f32; dim], vec![0.0f32; dim]),
        |(x, y), (i, out)| {
            queries.load_row(i, x);
            for (index, g) in indices[i * k..][..k].iter().zip(&upstream[i * k..]) {
                if *index != NONE {
                    bank.load_row(*index as usize, y);
                    pairs.add(*g, x, y, out);
                }
            }
        },
    );
    if !bank_gradient {
        return Ok((dq, None));
    }
    // The places of every key, in order: each key's row has one owner and one order of summation.
    let mut places: Vec<(u32, usize)> = indices
        .iter()
        .zip(0..)
        .filter(|(index, _)| **index != NONE)
        .map(|(index, place)| (*index, place))
        .collect();
    places.sort_unstable();
    let mut dk = vec![0.0f32; bank.rows() * dim];
    dk.par_chunks_mut(dim).enumerate().for_each_init(
        || (vec![0.0f32; dim], vec![0.0f32; dim]),
        |(x, y), (j, out)| {
            let first = places.partition_point(|(key, _)| (*key as usize) < j);
            let mine = places[first..].iter().take_while(|(key, _)| *key as usize == j);
            for (n, (_, place)) in mine.enumerate() {
                if n == 0 {
                    bank.load_row(j, y);
                }
                queries.load_row(place / k, x);
                pairs.add(upstream[*place], y, x, out);
            }
        },
    );
    Ok((dq, Some(dk)))
}

struct Pairs {
    metric: Metric,
    kernel: &'static Kernel,
}

impl Pairs {
    /// `out += g · ∂s(x, y)/∂x`.
    fn add(&self, g: f32, x: &[f32], y: &[f32], out: &mut [f32]) {
        match self.metric {
            Metric::InnerProduct => simd::axpy(g, y, out),
            Metric::SquaredL2 => {
                for (out, (x, y)) in out.iter_mut().zip(x.iter().zip(y)) {
                    *out += 2.0 * g * (x - y);
                }
            }
            Metric::Cosine => {
                let (xx, yy) = (self.kernel.squared_norm(x), self.kernel.squared_norm(y));
                let xy = simd::wide_dot(x, y);
                let of_y = f64::from(g) / (xx.sqrt() * yy.sqrt());
                let of_x = -of_y * xy / xx;
                for (out, (x, y)) in out.iter_mut().zip(x.iter().zip(y)) {
                    *out += (of_y * f64::from(*y) + of_x * f64::from(*x)) as f32;
                }
            }
        }
    }
}
