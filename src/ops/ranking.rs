//! Retrieval measures of a batch of queries over a gallery.

use candle_core::{DType, Device, Tensor};
use consonance_cpu::neighbors::Metric;
use consonance_cpu::ranking as cpu;

use super::place::Place;
use super::view::{self, Matrix};
use crate::{Error, Result, cuda};

pub use cpu::{ApVariant, JUNK, Ranking};

const OP: &str = "ranking";

/// What [`ranking`] searches and what counts.
#[derive(Debug, Clone)]
pub struct RankingOptions {
    metric: Metric,
    variant: ApVariant,
    labels: (Tensor, Tensor),
    cameras: Option<(Tensor, Tensor)>,
    ids: Option<(Tensor, Tensor)>,
    distractor: Option<u32>,
    keep_ranks: bool,
}

impl RankingOptions {
    /// Inner products and [`ApVariant::ReId`]; an item is relevant when it has the query's label.
    ///
    /// `query_labels` `[B]` and `gallery_labels` `[N]` are `u32` or `i64`; an `i64` label −1 (or [`JUNK`]) marks
    /// junk: such items are in no list, such queries have no relevant item.
    pub fn new(query_labels: &Tensor, gallery_labels: &Tensor) -> Self {
        Self {
            metric: Metric::default(),
            variant: ApVariant::default(),
            labels: (query_labels.clone(), gallery_labels.clone()),
            cameras: None,
            ids: None,
            distractor: None,
            keep_ranks: false,
        }
    }

    /// Compares rows by `metric`.
    #[must_use]
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Measures average precision by `variant`.
    #[must_use]
    pub fn variant(mut self, variant: ApVariant) -> Self {
        self.variant = variant;
        self
    }

    /// Takes items of the query's own label and camera out of its list, as re-identification does:
    /// `query_cameras` `[B]` and `gallery_cameras` `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn exclude_same_camera(mut self, query_cameras: &Tensor, gallery_cameras: &Tensor) -> Self {
        self.cameras = Some((query_cameras.clone(), gallery_cameras.clone()));
        self
    }

    /// Takes items of the query's own id out of its list, for a set that is both queries and gallery:
    /// `query_ids` `[B]` and `gallery_ids` `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn exclude_same_id(mut self, query_ids: &Tensor, gallery_ids: &Tensor) -> Self {
        self.ids = Some((query_ids.clone(), gallery_ids.clone()));
        self
    }

    /// A label whose items are in every list and never relevant: 0 in the layout of Market-1501.
    #[must_use]
    pub fn distractor(mut self, label: u32) -> Self {
        self.distractor = Some(label);
        self
    }

    /// Keeps the rank of every relevant item in [`Ranking::ranks`].
    #[must_use]
    pub fn keep_ranks(mut self) -> Self {
        self.keep_ranks = true;
        self
    }
}

/// Ranks `gallery` `[N, D]` for every row of `queries` `[B, D]` and measures the lists, without the `[B, N]`
/// matrix and without sorting.
///
/// Both are `f32`, `f16` or `bf16`, also one so and one so, in any layout. Items of equal scores go by the smaller
/// index. A query without a relevant item is skipped and counted apart ([`Ranking::skipped`]). The measures are
/// numbers, not tensors: there is no gradient.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`] and [`Error::Device`] for a wrong kind of tensor; [`Error::Argument`] for
/// disagreeing shapes, labels outside −1..2³² − 1, an empty side, k = 0 in [`ApVariant::AtK`], rows that are not
/// finite (junk is not looked at), rows of norm zero with the cosine, and rows so large that a score could
/// overflow.
pub fn ranking(queries: &Tensor, gallery: &Tensor, options: &RankingOptions) -> Result<Ranking> {
    let place = Place::of(OP, "queries", queries)?;
    let rows = |argument, tensor| Ok::<_, Error>(view::matrix(OP, argument, tensor)?.0.dims()[0]);
    let (b, n) = (rows("queries", queries)?, rows("gallery", gallery)?);
    let query_labels = labels("query_labels", &options.labels.0, b)?;
    let gallery_labels = labels("gallery_labels", &options.labels.1, n)?;
    let pair = |tensors: &Option<(Tensor, Tensor)>, names: (&'static str, &'static str)| match tensors {
        Some((q, g)) => Ok::<_, Error>(Some((values(names.0, q, b)?, values(names.1, g, n)?))),
        None => Ok(None),
    };
    let cameras = pair(&options.cameras, ("query_cameras", "gallery_cameras"))?;
    let ids = pair(&options.ids, ("query_ids", "gallery_ids"))?;
    let options = cpu::Options {
        metric: options.metric,
        variant: options.variant,
        cameras: cameras.as_ref().map(|(q, g)| (q.as_slice(), g.as_slice())),
        ids: ids.as_ref().map(|(q, g)| (q.as_slice(), g.as_slice())),
        distractor: options.distractor,
        keep_ranks: options.keep_ranks,
        ..cpu::Options::new(&query_labels, &gallery_labels)
    };
    if let Some(place) = place {
        let (left, right) = (place.matrix(OP, "queries", queries)?, place.matrix(OP, "gallery", gallery)?);
        return Ok(cuda::ranking::ranking(place.executor(), &left.matrix(), &right.matrix(), &options)?);
    }
    let (left, right) = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "gallery", gallery)?);
    let (left, right) = (left.lock(), right.lock());
    Ok(cpu::ranking(&left.rows()?, &right.rows()?, &options)?)
}

/// Cameras or ids, from any device.
fn values(argument: &'static str, tensor: &Tensor, len: usize) -> Result<Vec<u32>> {
    view::labels(OP, argument, &tensor.to_device(&Device::Cpu)?, len)
}

/// Labels with −1 for junk.
fn labels(argument: &'static str, tensor: &Tensor, len: usize) -> Result<Vec<u32>> {
    let tensor = &tensor.to_device(&Device::Cpu)?;
    if tensor.dtype() != DType::I64 || tensor.rank() != 1 {
        return view::labels(OP, argument, tensor, len);
    }
    // −1 becomes u32::MAX, which is JUNK; everything else must be a label as it is.
    let junk = Tensor::new(i64::from(JUNK), tensor.device())?.broadcast_as(tensor.shape())?;
    let marked = tensor.eq(-1i64)?.where_cond(&junk, &tensor.detach())?;
    view::labels(OP, argument, &marked, len)
}
