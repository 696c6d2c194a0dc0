//! Exact nearest neighbors: the `k` best keys of every query, without the query × key matrix.
//!
//! A screening kernel (see `screen`) multiplies panels of queries and keys and compares the sums, in registers,
//! with the worst score that each query's list still admits, lowered by a bound of the rounding error. The few
//! survivors are scored in a fixed order of summation and enter the list under the total order (score, then
//! smaller index). The neighbors are therefore exact for these scores, and neither they nor their bits depend on
//! the kernel, the tiles, the number of threads or the other rows.

mod gradient;
mod list;
mod order;
mod search;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::scoring::{self, Bad, Scorer};
use crate::screen::Kernel;
use crate::{Error, Result, Rows};
use order::Classes;
use search::Search;

pub use crate::scoring::Metric;
pub use gradient::gradients;

/// The largest `k`.
pub const MAX_K: usize = 1024;
/// The index of a place for which there is no neighbor.
pub const NONE: u32 = u32::MAX;
const OP: &str = "neighbors";

/// What to search and what to leave out.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// Neighbors of each query, `1..=1024`. Where fewer keys are admissible, the rest is [`NONE`] and
    /// [`Metric::worst`].
    pub k: usize,
    /// How rows are compared.
    pub metric: Metric,
    /// Labels of the queries and of the keys: only keys of the query's own label are found, at the cost of
    /// scoring only those.
    pub labels: Option<(&'a [u32], &'a [u32])>,
    /// Ids of the queries and of the keys: a key of the query's own id is left out.
    pub ids: Option<(&'a [u32], &'a [u32])>,
    /// One bit a key, key `j` in bit `j % 64` of word `j / 64`: only keys whose bit is set are found.
    pub allow: Option<&'a [u64]>,
}

/// The neighbors of every query, nearest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbors {
    /// Places of each query.
    pub k: usize,
    /// Scores `[queries, k]`.
    pub scores: Vec<f32>,
    /// Key numbers `[queries, k]`.
    pub indices: Vec<u32>,
}

/// The `k` nearest keys of every query, of equal scores the smaller index first.
///
/// `queries` is `[B, D]` and `bank` is `[N, D]`, stored as `f32`, `f16` or `bf16`, also one so and one so. Scores
/// are `f32` sums over the rows converted to `f32`. Only keys that can be found are looked at: slots that the
/// labels or bits leave out may hold anything. Extra memory: O(B·k + N) for the orders and lists, and a tile for
/// every thread.
///
/// # Errors
/// [`Error::Empty`] for no query, no key or dimension 0; [`Error::Shape`] when dimensions or the lengths of
/// labels, ids or bits disagree; [`Error::Range`] for `k` outside `1..=1024`, more than 2³² − 2 keys, or rows so
/// large that a score could overflow; [`Error::NotFinite`]; [`Error::ZeroNorm`] with the cosine.
pub fn neighbors(queries: &Rows<'_>, bank: &Rows<'_>, options: &Options<'_>) -> Result<Neighbors> {
    with_kernel(Kernel::best(), queries, bank, options)
}

fn with_kernel(
    kernel: &'static Kernel,
    queries: &Rows<'_>,
    bank: &Rows<'_>,
    options: &Options<'_>,
) -> Result<Neighbors> {
    check(queries, bank, options)?;
    let (k, metric) = (options.k, options.metric);
    let keys = options.allow.map(|bits| order::allowed(bits, bank.rows()));
    let classes = options.labels.map(|(q, k)| Classes::new(q, k, keys.as_deref()));
    let (query_order, key_order) = match &classes {
        Some(classes) => (Some(classes.queries.as_slice()), Some(classes.keys.as_slice())),
        None => (None, keys.as_deref()),
    };
    let search = Search {
        scorer: Scorer::new(kernel, metric, bank.cols()),
        k,
        queries: *queries,
        bank: *bank,
        query_order,
        key_order,
        ids: options.ids,
    };
    let whole = [(0..queries.rows(), 0..key_order.map_or(bank.rows(), <[u32]>::len))];
    let blocks: Vec<_> = match &classes {
        Some(classes) => classes.ranges.iter(),
        None => whole.iter(),
    }
    .flat_map(|(queries, keys)| search.blocks(queries.clone(), keys.clone()))
    .collect();
    let found: std::result::Result<Vec<_>, Bad> = blocks.par_iter().map(|block| search.run(block)).collect();
    let found = match found {
        Ok(found) => found,
        Err(Bad) => return Err(diagnose(&search, options)),
    };
    let places = queries.rows() * k;
    let (mut scores, mut indices) = (vec![metric.worst(); places], vec![NONE; places]);
    for (block, entries) in blocks.iter().zip(found) {
        for (position, entries) in block.queries.clone().zip(entries.chunks_exact(k)) {
            let first = search.query(position) * k;
            for (place, entry) in (first..).zip(entries).take_while(|(_, entry)| **entry != 0) {
                (scores[place], indices[place]) = scoring::score_and_index(metric, *entry);
            }
        }
    }
    Ok(Neighbors { k, scores, indices })
}

fn check(queries: &Rows<'_>, bank: &Rows<'_>, options: &Options<'_>) -> Result<()> {
    if !(1..=MAX_K).contains(&options.k) {
        return Err(Error::range(OP, "k", options.k, format!("1..={MAX_K}")));
    }
    for (argument, rows) in [("queries", queries), ("bank", bank)] {
        if rows.rows() == 0 {
            return Err(Error::Empty { op: OP, argument });
        }
        if rows.cols() == 0 {
            return Err(Error::shape(OP, argument, &[rows.rows(), 0], "at least one dimension"));
        }
    }
    if queries.cols() != bank.cols() {
        let expected = format!("[N, {}], the dimension of `queries`", queries.cols());
        return Err(Error::shape(OP, "bank", &[bank.rows(), bank.cols()], expected));
    }
    if bank.rows() >= NONE as usize {
        return Err(Error::range(OP, "bank", bank.rows(), "fewer than 2^32 - 1 rows"));
    }
    let length = |argument, got: usize, expected: usize, of: &str| match got == expected {
        true => Ok(()),
        false => Err(Error::shape(OP, argument, &[got], format!("[{expected}], one for each {of}"))),
    };
    if let Some((q, k)) = options.labels {
        length("query_labels", q.len(), queries.rows(), "query")?;
        length("key_labels", k.len(), bank.rows(), "key")?;
    }
    if let Some((q, k)) = options.ids {
        length("query_ids", q.len(), queries.rows(), "query")?;
        length("key_ids", k.len(), bank.rows(), "key")?;
    }
    if let Some(bits) = options.allow {
        length("allow", bits.len(), bank.rows().div_ceil(64), "64 keys")?;
    }
    scoring::check_rows(OP, "queries", queries, options.metric)
}

/// Finds the first key, by its number, for which the search gave up.
fn diagnose(search: &Search<'_>, options: &Options<'_>) -> Error {
    let mut keys: Vec<usize> = match search.key_order {
        Some(order) => order.iter().map(|key| *key as usize).collect(),
        None => (0..search.bank.rows()).collect(),
    };
    keys.sort_unstable();
    scoring::diagnose(OP, "bank", &search.bank, keys.into_iter(), options.metric)
}
