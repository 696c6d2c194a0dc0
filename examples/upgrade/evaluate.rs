//! Retrieval on the test identities: mAP, CMC@1, and the value while the gallery is refreshed.

use candle_core::{Device, Tensor};
use consonance::{RankingOptions, ranking};
use consonance_datasets::{Dataset, Split};
use consonance_metrics::RefreshCurve;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::network::Network;
use crate::random::Draws;
use crate::trainer::embed;

/// Steps of a hot-refresh curve.
const REFRESH_STEPS: usize = 10;

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

/// Searches every query in the gallery, as re-identification does: items of the query's own identity and camera are in no
/// list, and queries without a match are skipped.
pub(crate) fn search(data: &Dataset, query: &Tensor, gallery: &Tensor) -> Result<Score, Failure> {
    let cameras = |split: &Split| Tensor::new(split.cameras(), &Device::Cpu);
    let options = RankingOptions::new(&labels(&data.query)?, &labels(&data.gallery)?)
        .exclude_same_camera(&cameras(&data.query)?, &cameras(&data.gallery)?);
    let found = ranking(query, gallery, &options)?;
    Ok(Score { map: found.mean_average_precision(), first: found.cmc(1) })
}

fn flat(x: &Tensor) -> Result<Vec<f32>, Failure> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// New queries while a growing part of the old gallery, in random order, is replaced by new embeddings.
pub(crate) fn refresh(
    data: &Dataset,
    new: &Embedded,
    old: &Tensor,
    seed: u64,
) -> Result<RefreshCurve, Failure> {
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
    Ok(Tensor::new(split.identities(), &Device::Cpu)?)
}
