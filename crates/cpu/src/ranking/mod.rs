//! Retrieval measures by counting: average precision and CMC without sorting and without the query × gallery
//! matrix.
//!
//! The rank of a relevant item is one more than the number of items before it in the order (score, then smaller
//! index). Tiles of products are compared with the scores of a query's relevant items, widened by a bound of the
//! rounding error; the few items inside a bound are scored again in the order of summation that decides. Ranks
//! are therefore exact for these scores and do not depend on tiles, threads or the other queries.

mod count;
mod elsewhere;
mod roles;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::scoring::{self, Bad, Metric, Scorer};
use crate::screen::Kernel;
use crate::{Error, Result, Rows};
use count::{Counter, Place};
use roles::Roles;

pub use elsewhere::{Counts, Relevant};

/// The label of junk items, which are taken out of every list: what label −1 means in the layout of Market-1501.
pub const JUNK: u32 = u32::MAX;
const OP: &str = "ranking";

/// The definitions of average precision in use. They differ by up to a few points: say which one.
///
/// With R relevant items at the ranks ρ₁ < … < ρ_R:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ApVariant {
    /// (1/R) Σ m/ρₘ: the mean over the relevant items of the precision at their rank, as re-identification does
    /// (Market-1501: Zheng et al., ICCV 2015).
    #[default]
    ReId,
    /// (1/min(R, k)) Σ_{ρₘ ≤ k} m/ρₘ (mAP@100 of Google Landmarks v2: Weyand et al., CVPR 2020).
    AtK {
        /// The length of the list that counts.
        k: usize,
    },
    /// (1/2R) Σ ((m − 1)/(ρₘ − 1) + m/ρₘ), the first fraction 1 for ρₘ = 1 (revisited Oxford and Paris: Radenović
    /// et al., CVPR 2018).
    Trapezoid,
    /// (1/R) Σ of the precision among all items that score no worse, so that items of one score enter together
    /// (scikit-learn's `average_precision_score`).
    StepTies,
}

/// What is searched and what counts.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How rows are compared.
    pub metric: Metric,
    /// The definition of average precision.
    pub variant: ApVariant,
    /// Labels of the queries. A query labeled [`JUNK`] has no relevant item.
    pub query_labels: &'a [u32],
    /// Labels of the gallery. An item labeled [`JUNK`] is in no list.
    pub gallery_labels: &'a [u32],
    /// Cameras of the queries and of the gallery: an item of the query's label and camera is not in its list.
    pub cameras: Option<(&'a [u32], &'a [u32])>,
    /// Ids of the queries and of the gallery: an item of the query's id is not in its list. Leaves out the query
    /// itself where one set is both.
    pub ids: Option<(&'a [u32], &'a [u32])>,
    /// A label whose items are in every list and never relevant: 0 in Market-1501.
    pub distractor: Option<u32>,
    /// Whether to return the rank of every relevant item.
    pub keep_ranks: bool,
}

impl<'a> Options<'a> {
    /// Inner products, [`ApVariant::ReId`], nothing left out.
    pub fn new(query_labels: &'a [u32], gallery_labels: &'a [u32]) -> Self {
        Self {
            metric: Metric::default(),
            variant: ApVariant::default(),
            query_labels,
            gallery_labels,
            cameras: None,
            ids: None,
            distractor: None,
            keep_ranks: false,
        }
    }

    /// Checks the lengths of labels, cameras and ids for so many queries and items, and the variant.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Range`].
    pub fn check(&self, queries: usize, gallery: usize) -> Result<()> {
        if self.variant == (ApVariant::AtK { k: 0 }) {
            return Err(Error::range(OP, "k", 0, "at least 1"));
        }
        let pairs = [
            ("query_labels", "gallery_labels", Some((self.query_labels, self.gallery_labels))),
            ("query_cameras", "gallery_cameras", self.cameras),
            ("query_ids", "gallery_ids", self.ids),
        ];
        for (left, right, values) in pairs {
            let Some((q, g)) = values else { continue };
            for (argument, got, expected) in [(left, q.len(), queries), (right, g.len(), gallery)] {
                if got != expected {
                    return Err(Error::shape(
                        OP,
                        argument,
                        &[got],
                        format!("[{expected}], one for each row"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// What [`ranking`] found of every query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ranking {
    /// Average precision; `None` for a query without a relevant item.
    pub average_precision: Vec<Option<f64>>,
    /// The rank of the first relevant item, from 1; `None` for a query without one.
    pub first_hit: Vec<Option<u64>>,
    /// Relevant items of each query.
    pub relevant: Vec<u64>,
    /// The ranks of the relevant items, ascending; empty unless they were asked for.
    pub ranks: Vec<Vec<u64>>,
}

impl Ranking {
    /// Queries that have a relevant item. The others count nowhere.
    pub fn counted(&self) -> usize {
        self.first_hit.iter().flatten().count()
    }

    /// Queries without a relevant item.
    pub fn skipped(&self) -> usize {
        self.first_hit.len() - self.counted()
    }

    /// The mean of the average precisions over the counted queries; 0 if there is none.
    pub fn mean_average_precision(&self) -> f64 {
        let sum: f64 = self.average_precision.iter().flatten().sum();
        sum / self.counted().max(1) as f64
    }

    /// The share of the counted queries with a relevant item among the first `k`; 0 if there is none.
    pub fn cmc(&self, k: usize) -> f64 {
        let hits = self.first_hit.iter().flatten().filter(|rank| **rank <= k as u64).count();
        hits as f64 / self.counted().max(1) as f64
    }

    /// [`Ranking::cmc`] at 1, 2, …, `most`.
    pub fn cmc_curve(&self, most: usize) -> Vec<f64> {
        let mut first = vec![0usize; most];
        for rank in self.first_hit.iter().flatten() {
            if let Some(count) = usize::try_from(*rank - 1).ok().and_then(|at| first.get_mut(at)) {
                *count += 1;
            }
        }
        let counted = self.counted().max(1) as f64;
        first
            .iter()
            .scan(0, |hits, new| {
                *hits += new;
                Some(*hits as f64 / counted)
            })
            .collect()
    }

    fn push(&mut self, row: Row, options: &Options<'_>) {
        self.average_precision.push(row.average_precision);
        self.first_hit.push(row.first_hit);
        self.relevant.push(row.relevant);
        if options.keep_ranks {
            self.ranks.push(row.ranks);
        }
    }

    /// Whether each query's first item is relevant; `None` for a query without a relevant item. Two models' lists
    /// give the negative flips: queries right before and wrong after.
    pub fn top1(&self) -> Vec<Option<bool>> {
        self.first_hit.iter().map(|rank| rank.map(|rank| rank == 1)).collect()
    }
}

/// Ranks the gallery for every query and measures the lists.
///
/// `queries` is `[B, D]` and `gallery` `[N, D]`, `f32`, `f16` or `bf16`. An item is relevant to a query when it has
/// the query's label, is no distractor and is in its list at all; items of equal scores go by the smaller index.
/// A query without a relevant item is skipped and counted apart. Time: one matrix product, plus comparisons in
/// proportion to the relevant items of a query. Extra memory: O(N + B), a tile for every thread, and the relevant
/// items of one block of queries for every thread.
///
/// # Errors
/// [`Error::Empty`] for no query or no item; [`Error::Shape`] when dimensions or the lengths of labels, cameras or
/// ids disagree; [`Error::Range`] for [`ApVariant::AtK`] with k = 0, for 2³² − 1 items or more, or rows so large
/// that a score could overflow; [`Error::NotFinite`] (junk items are not looked at); [`Error::ZeroNorm`] with the
/// cosine.
pub fn ranking(queries: &Rows<'_>, gallery: &Rows<'_>, options: &Options<'_>) -> Result<Ranking> {
    check(queries, gallery, options)?;
    let roles = Roles::new(options);
    let counter = Counter {
        scorer: Scorer::new(Kernel::full_precision(), options.metric, gallery.cols()),
        queries: *queries,
        gallery: *gallery,
        roles: &roles,
    };
    let starts: Vec<usize> = (0..queries.rows()).step_by(count::BLOCK).collect();
    let blocks: std::result::Result<Vec<_>, Bad> = starts
        .into_par_iter()
        .map(|from| {
            let places = counter.block(from..queries.rows().min(from + count::BLOCK))?;
            Ok(places.iter().map(|places| Row::new(places, options)).collect::<Vec<_>>())
        })
        .collect();
    let Ok(blocks) = blocks else {
        let candidates = (0..gallery.rows()).filter(|j| options.gallery_labels[*j] != JUNK);
        return Err(scoring::diagnose(OP, "gallery", gallery, candidates, options.metric));
    };
    let mut ranking = Ranking::default();
    for row in blocks.into_iter().flatten() {
        ranking.push(row, options);
    }
    Ok(ranking)
}

/// The measures of one query.
struct Row {
    average_precision: Option<f64>,
    first_hit: Option<u64>,
    relevant: u64,
    ranks: Vec<u64>,
}

impl Row {
    fn new(places: &[Place], options: &Options<'_>) -> Self {
        Self {
            average_precision: average_precision(places, options.variant),
            first_hit: places.first().map(Place::rank),
            relevant: places.len() as u64,
            ranks: if options.keep_ranks { places.iter().map(Place::rank).collect() } else { Vec::new() },
        }
    }
}

/// The average precision of a list whose relevant items have these places, best first.
fn average_precision(places: &[Place], variant: ApVariant) -> Option<f64> {
    if places.is_empty() {
        return None;
    }
    let found = (1..).zip(places).map(|(m, place)| (f64::from(m), place.rank() as f64));
    Some(match variant {
        ApVariant::ReId => found.map(|(m, rank)| m / rank).sum::<f64>() / places.len() as f64,
        ApVariant::AtK { k } => {
            let sum: f64 = found.take_while(|(_, rank)| *rank <= k as f64).map(|(m, rank)| m / rank).sum();
            sum / places.len().min(k) as f64
        }
        ApVariant::Trapezoid => {
            let before = |m: f64, rank: f64| if rank == 1.0 { 1.0 } else { (m - 1.0) / (rank - 1.0) };
            found.map(|(m, rank)| before(m, rank) + m / rank).sum::<f64>() / (2.0 * places.len() as f64)
        }
        ApVariant::StepTies => {
            let (mut sum, mut through) = (0.0, 0);
            for group in places.chunk_by(Place::ties_with) {
                through += group.len();
                sum += group.len() as f64 * through as f64 / group[0].no_worse() as f64;
            }
            sum / places.len() as f64
        }
    })
}

fn check(queries: &Rows<'_>, gallery: &Rows<'_>, options: &Options<'_>) -> Result<()> {
    for (argument, rows) in [("queries", queries), ("gallery", gallery)] {
        if rows.rows() == 0 {
            return Err(Error::Empty { op: OP, argument });
        }
        if rows.cols() == 0 {
            return Err(Error::shape(OP, argument, &[rows.rows(), 0], "at least one dimension"));
        }
    }
    if queries.cols() != gallery.cols() {
        let expected = format!("[N, {}], the dimension of `queries`", queries.cols());
        return Err(Error::shape(OP, "gallery", &[gallery.rows(), gallery.cols()], expected));
    }
    if gallery.rows() >= u32::MAX as usize || queries.rows() >= u32::MAX as usize {
        return Err(Error::range(OP, "gallery", gallery.rows(), "fewer than 2^32 - 1 rows on either side"));
    }
    options.check(queries.rows(), gallery.rows())?;
    scoring::check_rows(OP, "queries", queries, options.metric)
}
