//! A push by kernels: one launch for embeddings, labels, ids and credibility.

use candle_core::Tensor;

use super::{Bank, Entries, OP};
use crate::Result;
use crate::cuda::bank::{Entries as Placed, Ring, push as launch};
use crate::ops::place::Place;

/// Writes entries, at most as many as there are slots, from slot `start` on. All tensors are where the bank is.
pub(super) fn push(place: &Place, bank: &Bank, start: usize, entries: &Entries<'_>) -> Result<()> {
    let keys = place.matrix(OP, "bank", &bank.keys)?;
    let [labels, ids, credible] =
        [&bank.labels, &bank.ids, &bank.credible].map(|target| place.target(OP, target));
    let (labels, ids, credible) = (labels?, ids?, credible?);
    let rows = place.matrix(OP, "embeddings", entries.embeddings)?;
    let vector = |tensor: &Tensor| place.vector(OP, tensor.clone());
    let of_rows = (
        vector(entries.labels)?,
        entries.ids.map(vector).transpose()?,
        entries.credible.map(vector).transpose()?,
    );
    let ring =
        Ring { keys: keys.matrix(), labels: labels.words(), ids: ids.words(), credible: credible.bytes() };
    let placed = Placed {
        rows: rows.matrix(),
        labels: of_rows.0.words(),
        ids: of_rows.1.as_ref().map(|ids| ids.words()),
        credible: of_rows.2.as_ref().map(|credible| credible.bytes()),
    };
    // SAFETY: the memory is that of the bank's own contiguous tensors, placed without a copy, or copies for this call.
    unsafe { launch(place.executor(), &ring, start, &placed)? };
    for (keep, target) in [
        (&keys.keep, &bank.keys),
        (&labels.keep, &bank.labels),
        (&ids.keep, &bank.ids),
        (&credible.keep, &bank.credible),
    ] {
        place.write_back(OP, keep, target)?;
    }
    Ok(())
}
