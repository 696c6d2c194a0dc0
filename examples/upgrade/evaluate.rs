//! Retrieval on the test identities: mAP, CMC@1, and the value while the gallery is refreshed.

use candle_core::Tensor;
use consonance_datasets::{Dataset, Split};
use consonance_metrics::RefreshCurve;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::network::Network;
use crate::random::Draws;
use crate::trainer::embed;

/// Steps of a hot-refresh curve.
const REFRESH_STEPS: usize = 10;
/// Queries whose scores are at hand at once.
const ROWS: usize = 64;

/// What one model makes of the test images, unit norm.
#[derive(Debug, Clone)]
pub(crate) struct Embedded {
    /// `[queries, D]`
    pub(crate) query: Tensor,
    /// `[gallery, D]`
    pub(crate) gallery: Tensor,
}

impl Embedded {
    /// Embeds the test images; once where queries and gallery are the same.
    pub(crate) fn new(network: &Network, data: &Dataset) -> Result<Self, Failure> {
        let query = embed(network, &data.query)?;
        let gallery = if data.query_is_gallery() { query.clone() } else { embed(network, &data.gallery)? };
        Ok(Self { query, gallery })
    }

    /// Both through a map of rows.
    pub(crate) fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor, Failure>) -> Result<Self, Failure> {
        Ok(Self { query: f(&self.query)?, gallery: f(&self.gallery)? })
    }
}

/// The two numbers of a test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Score {
    /// Mean average precision as in re-identification: precision at the rank of every match.
    pub(crate) map: f64,
    /// The share of the queries whose first answer is right.
    pub(crate) first: f64,
}

/// Searches every query in the gallery; items of the query's own identity and camera are left out, and queries without a
/// match are skipped. At equal scores wrong items come first, so that a collapsed model cannot look good.
pub(crate) fn search(data: &Dataset, query: &Tensor, gallery: &Tensor) -> Result<Score, Failure> {
    let (items, keys) = (data.query.items(), data.gallery.items());
    let (n, dim) = gallery.dims2()?;
    let (queries, gallery) = (flat(query)?, flat(gallery)?);
    let per_query: Vec<(f64, f64)> = queries
        .par_chunks(ROWS * dim)
        .enumerate()
        .flat_map_iter(|(block, queries)| {
            let rows = queries.len() / dim;
            let mut scores = vec![0.0; rows * n];
            consonance_cpu::tile::scores((rows, n, dim), (queries, dim), (&gallery, dim), (&mut scores, n));
            let one = |r: usize| {
                let (item, scores) = (&items[block * ROWS + r], &scores[r * n..][..n]);
                let own = |j: usize| keys[j].identity == item.identity;
                let mut hits: Vec<f32> =
                    (0..n).filter(|&j| own(j) && keys[j].camera != item.camera).map(|j| scores[j]).collect();
                hits.sort_by(|a, b| b.total_cmp(a));
                // Wrong items above each hit but below the one before.
                let mut wrong = vec![0usize; hits.len() + 1];
                for j in (0..n).filter(|&j| !own(j)) {
                    wrong[hits.partition_point(|hit| *hit > scores[j])] += 1;
                }
                let mut above = 0;
                let precision = hits.iter().enumerate().map(|(k, _)| {
                    above += wrong[k];
                    (k + 1) as f64 / (k + 1 + above) as f64
                });
                let precision = precision.sum::<f64>() / hits.len() as f64;
                (!hits.is_empty()).then_some((precision, f64::from(u8::from(wrong[0] == 0))))
            };
            (0..rows).filter_map(one).collect::<Vec<_>>()
        })
        .collect();
    let count = per_query.len().max(1) as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| per_query.iter().map(f).sum::<f64>() / count;
    Ok(Score { map: mean(|q| q.0), first: mean(|q| q.1) })
}

fn flat(x: &Tensor) -> Result<Vec<f32>, Failure> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// New queries while a growing part of the old gallery, in random order, is replaced by new embeddings.
pub(crate) fn refresh(data: &Dataset, new: &Embedded, old: &Tensor, seed: u64) -> Result<RefreshCurve, Failure> {
    let dim = old.dim(1)?;
    let order = Draws::new(&[seed, 0x7265_6672]).permutation(data.gallery.len());
    let (fresh, mut mixed) = (flat(&new.gallery)?, flat(old)?);
    let mut points = Vec::with_capacity(REFRESH_STEPS + 1);
    let mut done = 0;
    for step in 0..=REFRESH_STEPS {
        let until = order.len() * step / REFRESH_STEPS;
        for &i in &order[done..until] {
            mixed[i * dim..][..dim].copy_from_slice(&fresh[i * dim..][..dim]);
        }
        done = until;
        let gallery = Tensor::from_slice(&mixed, (order.len(), dim), old.device())?;
        points.push((step as f64 / REFRESH_STEPS as f64, search(data, &new.query, &gallery)?.map));
    }
    Ok(RefreshCurve::new(points)?)
}

/// Class labels of a split `[n]`, u32.
pub(crate) fn labels(split: &Split) -> Result<Tensor, Failure> {
    Ok(Tensor::new(split.identities(), &candle_core::Device::Cpu)?)
}
