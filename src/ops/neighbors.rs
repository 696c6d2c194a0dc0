//! Exact nearest neighbors of a batch in a bank.

mod kernels;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor};
use consonance_cpu::neighbors as cpu;

use super::place::Place;
use super::view::{self, Matrix};
use crate::{Error, Result};

pub use cpu::{MAX_K, Metric};

const OP: &str = "neighbors";

/// The index of a place for which there is no neighbor: `u32::MAX`.
pub const NO_NEIGHBOR: u32 = cpu::NONE;

/// What [`neighbors`] searches and what it leaves out.
#[derive(Debug, Clone)]
pub struct NeighborsOptions {
    k: usize,
    metric: Metric,
    labels: Option<(Tensor, Tensor)>,
    ids: Option<(Tensor, Tensor)>,
    allow: Option<Tensor>,
    check_rows: bool,
}

impl NeighborsOptions {
    /// The `k` nearest keys by inner product, among all keys; `k` is in `1..=1024`.
    ///
    /// `k` may exceed the number of keys: the places without a neighbor hold the index [`NO_NEIGHBOR`] and the
    /// score −∞ (+∞ for squared L2).
    pub fn new(k: usize) -> Self {
        Self { k, metric: Metric::default(), labels: None, ids: None, allow: None, check_rows: true }
    }

    /// Compares rows by `metric`.
    #[must_use]
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Finds only keys of the query's own label, and pays only for these: `query_labels` `[B]` and `key_labels`
    /// `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn same_label(mut self, query_labels: &Tensor, key_labels: &Tensor) -> Self {
        self.labels = Some((query_labels.clone(), key_labels.clone()));
        self
    }

    /// Leaves out the keys that have the query's own id: `query_ids` `[B]` and `key_ids` `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn exclude_same_id(mut self, query_ids: &Tensor, key_ids: &Tensor) -> Self {
        self.ids = Some((query_ids.clone(), key_ids.clone()));
        self
    }

    /// Whether a search on a GPU waits for its end and reports rows that cannot be compared, as it does at first.
    ///
    /// Without, nothing waits for the device, and such a row has no neighbors and is none. On the CPU rows are
    /// always checked.
    #[must_use]
    pub fn check_rows(mut self, check: bool) -> Self {
        self.check_rows = check;
        self
    }

    /// Finds only keys whose mask is not 0: `mask` `[N]`, `u8`. Slots that are masked out may hold anything.
    #[must_use]
    pub fn allow(mut self, mask: &Tensor) -> Self {
        self.allow = Some(mask.clone());
        self
    }
}

/// The neighbors of every query, nearest first.
#[derive(Debug, Clone)]
pub struct Neighbors {
    /// Scores `[B, k]`, `f32`. Gradients flow from here to the queries and to the bank.
    pub scores: Tensor,
    /// Row numbers in the bank `[B, k]`, `u32`.
    pub indices: Tensor,
}

/// The `k` nearest rows of `bank` `[N, D]` for every row of `queries` `[B, D]`, without the `[B, N]` matrix.
///
/// Both are `f32`, `f16` or `bf16`, also one so and one so (on a GPU both alike), in any layout: offset views and
/// views of columns are read in place, others are copied. The scores are `f32` sums over the stored values; the neighbors are exact
/// for these scores, of equal scores the smaller index comes first, and the bits depend neither on the number of
/// threads nor on the other queries. Rows that `same_label` or `allow` leave out are not looked at.
///
/// The scores are differentiable with respect to both inputs, the choice of the neighbors held fixed: for the
/// inner product ∂s/∂x = y, for the cosine (ŷ − s·x̂)/‖x‖, for squared L2 2(x − y). An input that is not tracked
/// costs nothing in the backward pass. There is no second derivative.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`] and [`Error::Device`] for a wrong kind of tensor; [`Error::Argument`] for
/// disagreeing shapes, `k` outside `1..=1024`, an empty batch or bank, rows that are not finite, rows of norm
/// zero with the cosine, and rows so large that a score could overflow ([`Error::Kernel`] on a GPU, which also
/// tells of a missing device, kernel or memory).
pub fn neighbors(queries: &Tensor, bank: &Tensor, options: &NeighborsOptions) -> Result<Neighbors> {
    let place = Place::of(OP, "queries", queries)?;
    let found = match &place {
        Some(place) => kernels::search(place, queries, bank, options)?,
        None => on_cpu(queries, bank, options)?,
    };
    let tracked = (queries.track_op(), bank.track_op());
    if tracked == (false, false) {
        return Ok(found);
    }
    let (indices, metric) = (found.indices.clone(), options.metric);
    let op = Scores { found, metric, tracked, place };
    Ok(Neighbors { scores: queries.apply_op2(bank, op)?, indices })
}

/// The neighbors by the CPU backend, untracked.
fn on_cpu(queries: &Tensor, bank: &Tensor, options: &NeighborsOptions) -> Result<Neighbors> {
    let (left, right) = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "bank", bank)?);
    let (b, n) = (left.rows(), right.rows());
    let pair = |tensors: &Option<(Tensor, Tensor)>, names: (&'static str, &'static str)| match tensors {
        Some((q, k)) => {
            Ok::<_, Error>(Some((view::labels(OP, names.0, q, b)?, view::labels(OP, names.1, k, n)?)))
        }
        None => Ok(None),
    };
    let labels = pair(&options.labels, ("query_labels", "key_labels"))?;
    let ids = pair(&options.ids, ("query_ids", "key_ids"))?;
    let allow = match &options.allow {
        Some(mask) => Some(bits(&view::mask(OP, "allow", mask, n)?)),
        None => None,
    };
    let (left, right) = (left.lock(), right.lock());
    let options = cpu::Options {
        k: options.k,
        metric: options.metric,
        labels: labels.as_ref().map(|(q, k)| (q.as_slice(), k.as_slice())),
        ids: ids.as_ref().map(|(q, k)| (q.as_slice(), k.as_slice())),
        allow: allow.as_deref(),
    };
    let found = cpu::neighbors(&left.rows()?, &right.rows()?, &options)?;
    let shape = (b, options.k);
    Ok(Neighbors {
        scores: Tensor::from_vec(found.scores, shape, &Device::Cpu)?,
        indices: Tensor::from_vec(found.indices, shape, &Device::Cpu)?,
    })
}

fn bits(mask: &[bool]) -> Vec<u64> {
    mask.chunks(64)
        .map(|chunk| chunk.iter().enumerate().fold(0, |word, (bit, on)| word | u64::from(*on) << bit))
        .collect()
}

/// The scores as an op of their inputs: computed before, handed over in the forward pass.
struct Scores {
    found: Neighbors,
    metric: Metric,
    tracked: (bool, bool),
    place: Option<Place>,
}

impl Scores {
    fn gradients_on_cpu(&self, queries: &Tensor, bank: &Tensor, upstream: &Tensor) -> Result<Gradients> {
        let upstream = upstream.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let indices = self.found.indices.flatten_all()?.to_vec1::<u32>()?;
        let (left, right) = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "bank", bank)?);
        let (dq, dk) = {
            let (left, right) = (left.lock(), right.lock());
            let pairs = (indices.as_slice(), upstream.as_slice());
            cpu::gradients(&left.rows()?, &right.rows()?, self.metric, pairs, self.tracked.1)?
        };
        let tensor = |gradient: Vec<f32>, of: &Tensor| -> Result<Tensor> {
            Ok(Tensor::from_vec(gradient, of.shape(), &Device::Cpu)?.to_dtype(of.dtype())?)
        };
        let dq = if self.tracked.0 { Some(tensor(dq, queries)?) } else { None };
        Ok((dq, dk.map(|dk| tensor(dk, bank)).transpose()?))
    }
}

type Gradients = (Option<Tensor>, Option<Tensor>);

impl CustomOp2 for Scores {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let scores = self.found.scores.flatten_all()?.to_vec1::<f32>()?;
        Ok((CpuStorage::F32(scores), self.found.scores.shape().clone()))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        super::place::cuda_storage(&self.found.scores)
    }

    fn bwd(
        &self,
        queries: &Tensor,
        bank: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Gradients> {
        let gradients = match &self.place {
            Some(place) => {
                let indices = &self.found.indices;
                kernels::gradients(place, (queries, bank), self.metric, indices, upstream, self.tracked)
            }
            None => self.gradients_on_cpu(queries, bank, upstream),
        };
        Ok(gradients?)
    }
}
