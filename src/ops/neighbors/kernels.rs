//! The search by kernels, and the gradients of its scores.

use candle_core::{DType, Tensor};

use super::{Metric, Neighbors, NeighborsOptions, OP};
use crate::Result;
use crate::cuda::neighbors::{Classes, Search, Side, gradient, neighbors, pack_bits};
use crate::cuda::{Matrix, Words, segments};
use crate::ops::place::Place;

/// The neighbors, untracked.
pub(super) fn search(
    place: &Place,
    queries: &Tensor,
    bank: &Tensor,
    options: &NeighborsOptions,
) -> Result<Neighbors> {
    let executor = place.executor();
    let (left, right) = (place.matrix(OP, "queries", queries)?, place.matrix(OP, "bank", bank)?);
    let (b, n, k) = (left.matrix().rows(), right.matrix().rows(), options.k);
    let pair = |tensors: &Option<(Tensor, Tensor)>, names: [&'static str; 2]| match tensors {
        Some((q, k)) => {
            let placed = (place.labels(OP, names[0], q, b)?, place.labels(OP, names[1], k, n)?);
            Ok::<_, crate::Error>(Some(placed))
        }
        None => Ok(None),
    };
    let labels = pair(&options.labels, ["query_labels", "key_labels"])?;
    let ids = pair(&options.ids, ["query_ids", "key_ids"])?;
    let orders = match &labels {
        Some((q, k)) => Some((segments::sort(executor, q.words())?, segments::sort(executor, k.words())?)),
        None => None,
    };
    let bits = match &options.allow {
        Some(mask) if n > 0 => Some(pack_bits(executor, place.mask(OP, "allow", mask, n)?.bytes())?),
        _ => None,
    };
    let search = Search {
        queries: left.matrix(),
        bank: right.matrix(),
        k,
        metric: options.metric,
        labels: labels.as_ref().zip(orders.as_ref()).map(|((q, k), (query_order, key_order))| Classes {
            query_labels: q.words(),
            key_labels: k.words(),
            query_order,
            key_order,
        }),
        ids: ids.as_ref().map(|(q, k)| (q.words(), k.words())),
        allow: bits.as_ref().map(|bits| Words::new(OP, "allow", bits, n.div_ceil(32))).transpose()?,
    };
    let found = neighbors(executor, &search)?;
    if options.check_rows {
        found.check(executor)?;
    }
    Ok(Neighbors {
        scores: place.tensor(OP, found.scores, DType::F32, (b, k))?,
        indices: place.tensor(OP, found.indices, DType::U32, (b, k))?,
    })
}

/// The gradients of Σ upstream · score with respect to the tracked sides, in the type of the side.
pub(super) fn gradients(
    place: &Place,
    (queries, bank): (&Tensor, &Tensor),
    metric: Metric,
    indices: &Tensor,
    upstream: &Tensor,
    tracked: (bool, bool),
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let executor = place.executor();
    let (left, right) = (place.matrix(OP, "queries", queries)?, place.matrix(OP, "bank", bank)?);
    let k = indices.dims()[1];
    let upstream = place.vector(OP, upstream.detach().to_dtype(DType::F32)?)?;
    let indices = place.vector(OP, indices.clone())?;
    let of = |side, of: &Tensor, rows: &Matrix<'_>| -> Result<Tensor> {
        let sides = (&left.matrix(), &right.matrix());
        let sum = gradient(executor, sides, metric, k, (upstream.words(), indices.words()), side)?;
        Ok(place.tensor(OP, sum, DType::F32, (rows.rows(), rows.cols()))?.to_dtype(of.dtype())?)
    };
    let dq = tracked.0.then(|| of(Side::Queries, queries, &left.matrix())).transpose()?;
    let dk = tracked.1.then(|| of(Side::Bank, bank, &right.matrix())).transpose()?;
    Ok((dq, dk))
}
