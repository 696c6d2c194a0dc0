//! The weighted multi-positive contrastive loss as a differentiable Candle op.

mod alone;
pub(super) mod data;
mod kernels;
mod lists;
mod pairs;
mod symmetric;
mod together;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Shape, Tensor};
use consonance_cpu::{Gradients, Rows, contrast as cpu};

pub use consonance_cpu::contrast::{
    Admission, AffinityMap, Normalizer, Options as ContrastOptions, OtherPositives, Products,
};
pub use pairs::{Closeness, Pairs};

use crate::cuda::contrast::SymmetricSide;
use crate::ops::place::Place;
use crate::ops::view::{Matrix, check_cpu};
use crate::{Error, Result};
use data::Data;
use kernels::ByKernels;
use symmetric::BothWays;
use together::Together;

const OP: &str = "contrast";

/// What divides the inner products.
#[derive(Debug, Clone)]
pub enum Temperature {
    /// A constant, finite and above 0.
    Fixed(f64),
    /// A tensor `[]`, `[1]` or `[B]` of `f32`, finite and above 0; its gradient arrives.
    Learned(Tensor),
}

/// The result of [`contrast`].
#[derive(Debug, Clone)]
pub struct Contrast {
    /// Scalar `f32`: the mean of `per_row` over the counted anchors, 0 when there is none. Differentiable.
    pub loss: Tensor,
    /// `[B]` `f32`: L_i; 0 for rows that do not count. Differentiable.
    pub per_row: Tensor,
    /// `[B]` `f32`, detached: ln of the row's denominator, without its positives when they are left out; −∞ when
    /// the denominator is empty.
    pub log_sum_exp: Tensor,
    /// The number of counted rows: those with a positive (for [`Normalizer::WeightSum`]: of positive weight) and,
    /// when positives belong to it, a denominator.
    pub anchors: usize,
}

/// The weighted multi-positive contrastive loss of `queries` `[B, D]` against `keys` `[N, D]` (`f32`, `f16` or
/// `bf16`, statistics in `f32` or wider), without any `B × N` matrix.
///
/// With s_ij = ⟨x_i, y_j⟩/τ_i, the positives P(i) and weights w_ij of `pairs`, a_ij = w_ij/|P(i)| (or w_ij/Σ_P w_ij)
/// and denominator weights u_j (u_ij with [`Pairs::pace`]):
///
/// * [`OtherPositives::InDenominator`]: L_i = Σ_j a_ij (lse_i − s_ij), lse_i = ln Σ_k u_k e^{s_ik}. This is SupCon
///   (Khosla et al. 2020, eq. 2) with labels, InfoNCE with the diagonal, and the neighborhood loss of Wu et al. 2022
///   with old embeddings' affinities.
/// * [`OtherPositives::LeftOut`]: L_i = Σ_j a_ij ln(1 + Z_i e^{−s_ij}), Z_i = Σ_{k ∉ P(i)} u_k e^{s_ik}: positives do
///   not compete with each other. A row with no non-positive has loss 0.
///
/// Gradients arrive at `queries`, at `keys` when they are tracked (one more pass, in the backward) and at a learned
/// temperature. Embeddings are used as they are: normalize them before where cosines are meant. A row without a
/// positive adds zero and is not counted. The bits of a row depend neither on the other rows nor on the threads.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`], [`Error::Device`] for tensors of the wrong kind; [`Error::Argument`] for empty
/// queries or keys, shapes that disagree, temperatures that are not finite and above 0, weights that are negative,
/// indices out of range or listed twice, embeddings that are not finite, and old embeddings of norm zero.
pub fn contrast(
    queries: &Tensor,
    keys: &Tensor,
    temperature: &Temperature,
    pairs: &Pairs,
    options: &ContrastOptions,
) -> Result<Contrast> {
    rows_of("queries", queries)?;
    rows_of("keys", keys)?;
    one_way(queries, keys, temperature, pairs, options)
}

/// The symmetric (CLIP) form: the mean of [`contrast`] of `x` `[B, D]` against `y` `[N, D]` and of `y` against `x`
/// with the pairs transposed, in O(B + N) memory.
///
/// `per_row` and `log_sum_exp` are `[B + N]`, the rows of `x` first; `anchors` is the number of counted rows of both.
/// A `y` that is not valid or not credible is no anchor on its own side either. A learned temperature is one for
/// all. On a GPU one pass over the scores serves both directions, and one more for the gradient of each side; with
/// [`Pairs::all`] they are two losses. So they are on the CPU, but for at most 512 rows on each side (all valid, products in `f32`),
/// whose scores are computed once.
///
/// # Errors
/// As [`contrast`]; also for a temperature a row, for denominator weights (they belong to one side), and for diagonal
/// pairs when B ≠ N.
pub fn contrast_symmetric(
    x: &Tensor,
    y: &Tensor,
    temperature: &Temperature,
    pairs: &Pairs,
    options: &ContrastOptions,
) -> Result<Contrast> {
    let (b, n) = (rows_of("x", x)?, rows_of("y", y)?);
    if let Temperature::Learned(t) = temperature
        && t.elem_count() != 1
    {
        let expected = "[] or [1]: the symmetric form has one temperature";
        return Err(consonance_cpu::Error::shape(OP, "temperature", t.dims(), expected).into());
    }
    let transposed = pairs.transposed(b, n)?;
    let sides = [readable(x)?, readable(y)?];
    let divisor = temperature.tensor(x.device())?;
    let (tensors, pairs_of) = ([&sides[0], &sides[1], &divisor], [pairs, &transposed]);
    match Place::of(OP, "x", x)? {
        Some(place) if pairs.has_one_pass() => {
            let found = BothWays::new(place, tensors, pairs_of, options)?;
            let rows = (found.log_sum_exp.clone(), found.anchors);
            return both_ways(tensors, Loss::BothWays(Box::new(found)), rows);
        }
        None => {
            if let Some(found) = Together::new(tensors, pairs_of, options)? {
                let rows = (Tensor::new(found.log_sum_exp(), x.device())?, found.anchors());
                return both_ways(tensors, Loss::Together(Box::new(found)), rows);
            }
        }
        Some(_) => {}
    }
    let rows = one_way(x, y, temperature, pairs, options)?;
    let columns = one_way(y, x, temperature, &transposed, options)?;
    Ok(Contrast {
        loss: ((rows.loss + columns.loss)? * 0.5)?,
        per_row: Tensor::cat(&[rows.per_row, columns.per_row], 0)?,
        log_sum_exp: Tensor::cat(&[rows.log_sum_exp, columns.log_sum_exp], 0)?,
        anchors: rows.anchors + columns.anchors,
    })
}

/// The mean of both directions, which `op` computes, from its rows' log-sum-exps and the counted rows of both.
fn both_ways(
    [x, y, temperature]: [&Tensor; 3],
    op: Loss,
    (log_sum_exp, [of_x, of_y]): (Tensor, [usize; 2]),
) -> Result<Contrast> {
    let per_row = x.apply_op3(y, temperature, op)?;
    let (b, n) = (x.dims()[0], y.dims()[0]);
    let mean = |first: usize, rows: usize, anchors: usize| {
        per_row.narrow(0, first, rows)?.sum_all()? * (1.0 / anchors.max(1) as f64)
    };
    let loss = ((mean(0, b, of_x)? + mean(b, n, of_y)?)? * 0.5)?;
    Ok(Contrast { loss, per_row, log_sum_exp, anchors: of_x + of_y })
}

fn rows_of(argument: &'static str, tensor: &Tensor) -> Result<usize> {
    match tensor.dims() {
        [rows, _] => Ok(*rows),
        dims => {
            Err(Error::Rank { op: OP, argument, got: dims.len(), expected: "a matrix [rows, dimension]" })
        }
    }
}

/// The tensor itself when its rows can be read in place, else a contiguous copy that passes gradients on.
fn readable(tensor: &Tensor) -> Result<Tensor> {
    let in_place = matches!((tensor.dims(), tensor.stride()), (&[_, d], &[row, 1]) if row >= d);
    Ok(if in_place { tensor.clone() } else { tensor.contiguous()? })
}

/// The loss of queries against keys, wherever they are.
fn one_way(
    queries: &Tensor,
    keys: &Tensor,
    temperature: &Temperature,
    pairs: &Pairs,
    options: &ContrastOptions,
) -> Result<Contrast> {
    let (queries, keys) = (readable(queries)?, readable(keys)?);
    let place = Place::of(OP, "queries", &queries)?;
    let temperature = temperature.tensor(queries.device())?;
    let tensors = [&queries, &keys, &temperature];
    let (op, log_sum_exp, anchors) = match place {
        Some(place) => {
            let gradients = queries.track_op() || temperature.track_op();
            let loss = ByKernels::new(place, tensors, pairs, options, gradients)?;
            let rows = (loss.log_sum_exp.clone(), loss.anchors);
            (Loss::Kernels(Box::new(loss)), rows.0, rows.1)
        }
        None => {
            let loss = OnCpu::new(tensors, pairs, options)?;
            let log_sum_exp = Tensor::new(&loss.forward.log_sum_exp[..], queries.device())?;
            let anchors = loss.forward.anchors();
            (Loss::Cpu(Box::new(loss)), log_sum_exp, anchors)
        }
    };
    let per_row = queries.apply_op3(&keys, &temperature, op)?;
    let loss = (per_row.sum_all()? * (1.0 / anchors.max(1) as f64))?;
    Ok(Contrast { loss, per_row, log_sum_exp, anchors })
}

impl Temperature {
    fn tensor(&self, device: &Device) -> Result<Tensor> {
        match self {
            Self::Fixed(t) => Ok(Tensor::new(&[*t as f32], device)?),
            Self::Learned(t) => learned(t),
        }
    }
}

fn learned(temperature: &Tensor) -> Result<Tensor> {
    match (temperature.rank(), temperature.dtype()) {
        (0 | 1, DType::F32) => Ok(temperature.clone()),
        (0 | 1, got) => Err(Error::DType { op: OP, argument: "temperature", got, expected: "f32" }),
        (got, _) => Err(Error::Rank { op: OP, argument: "temperature", got, expected: "[], [1] or [B]" }),
    }
}

/// The op: its result and all that the backward pass needs were computed before it is applied, so that errors keep
/// their type and a query's gradient costs no second pass over the keys.
enum Loss {
    Cpu(Box<OnCpu>),
    Kernels(Box<ByKernels>),
    BothWays(Box<BothWays>),
    Together(Box<Together>),
}

impl CustomOp3 for Loss {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let per_row = match self {
            Self::Cpu(loss) => loss.forward.per_row.clone(),
            Self::Kernels(loss) => loss.per_row.to_vec1::<f32>()?,
            Self::BothWays(loss) => loss.per_row.to_vec1::<f32>()?,
            Self::Together(loss) => loss.per_row(),
        };
        let shape = Shape::from(per_row.len());
        Ok((CpuStorage::F32(per_row), shape))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        match self {
            Self::Kernels(loss) => crate::ops::place::cuda_storage(&loss.per_row),
            Self::BothWays(loss) => crate::ops::place::cuda_storage(&loss.per_row),
            Self::Cpu(_) | Self::Together(_) => {
                candle_core::bail!("contrast: computed on the CPU for tensors of a CUDA device")
            }
        }
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        temperature: &Tensor,
        _: &Tensor,
        row_gradients: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = row_gradients.detach().to_dtype(DType::F32)?.contiguous()?;
        let of = |argument: &Tensor, gradient: &dyn Fn() -> Result<Tensor>| {
            argument.track_op().then(gradient).transpose()
        };
        Ok(match self {
            Self::Cpu(loss) => (
                of(queries, &|| loss.query_gradient(&g, queries))?,
                of(keys, &|| loss.key_gradient(&g, queries, keys))?,
                of(temperature, &|| loss.temperature_gradient(&g, temperature))?,
            ),
            Self::Kernels(loss) => (
                of(queries, &|| loss.query_gradient(&g, queries))?,
                of(keys, &|| loss.key_gradient(&g, keys))?,
                of(temperature, &|| loss.temperature_gradient(&g, temperature))?,
            ),
            Self::BothWays(loss) => (
                of(queries, &|| loss.gradient(&g, SymmetricSide::X, queries))?,
                of(keys, &|| loss.gradient(&g, SymmetricSide::Y, keys))?,
                of(temperature, &|| loss.temperature_gradient(&g, temperature))?,
            ),
            Self::Together(loss) => loss.gradients(&g, [queries, keys, temperature])?.into(),
        })
    }
}

/// The loss by the CPU backend.
struct OnCpu {
    data: Data,
    options: ContrastOptions,
    temperatures: Vec<f32>,
    plan: cpu::Plan,
    forward: cpu::Forward,
}

impl OnCpu {
    fn new(
        [queries, keys, temperature]: [&Tensor; 3],
        pairs: &Pairs,
        options: &ContrastOptions,
    ) -> Result<Self> {
        let gradients =
            Gradients { queries: queries.track_op() || temperature.track_op(), keys: keys.track_op() };
        let data = Data::read(pairs, queries.dims()[0], keys.dims()[0])?;
        let views = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "keys", keys)?);
        check_cpu(OP, "temperature", temperature)?;
        let temperatures = temperature.detach().flatten_all()?.to_vec1::<f32>()?;
        let (plan, mut forward) = {
            let (queries, keys) = (views.0.lock(), views.1.lock());
            data.with_problem(queries.rows()?, keys.rows()?, &temperatures, options, |problem| {
                let plan = cpu::Plan::new(problem)?;
                let forward = cpu::forward(problem, &plan, gradients)?;
                Ok((plan, forward))
            })?
        };
        if !queries.track_op() {
            forward.query_gradients = Vec::new();
        }
        Ok(Self { data, options: *options, temperatures, plan, forward })
    }

    fn query_gradient(&self, g: &Tensor, queries: &Tensor) -> Result<Tensor> {
        let (g, d) = (g.to_vec1::<f32>()?, queries.dims()[1]);
        let mut out = Vec::with_capacity(g.len() * d);
        for (g, row) in g.iter().zip(self.forward.query_gradients.chunks_exact(d)) {
            out.extend(row.iter().map(|x| g * x));
        }
        Ok(Tensor::from_vec(out, queries.shape(), queries.device())?.to_dtype(queries.dtype())?)
    }

    fn key_gradient(&self, g: &Tensor, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let views = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "keys", keys)?);
        let guards = (views.0.lock(), views.1.lock());
        let problem: (Rows<'_>, Rows<'_>) = (guards.0.rows()?, guards.1.rows()?);
        let g = g.to_vec1::<f32>()?;
        let gradient =
            self.data.with_problem(problem.0, problem.1, &self.temperatures, &self.options, |problem| {
                Ok(cpu::key_gradients(problem, &self.plan, &self.forward, &g)?)
            })?;
        Ok(Tensor::from_vec(gradient, keys.shape(), keys.device())?.to_dtype(keys.dtype())?)
    }

    fn temperature_gradient(&self, g: &Tensor, temperature: &Tensor) -> Result<Tensor> {
        let g = g.to_vec1::<f32>()?;
        let rows = g.iter().zip(&self.forward.temperature_gradients);
        let out: Vec<f32> = match temperature.elem_count() {
            1 => vec![rows.map(|(g, t)| f64::from(*g) * f64::from(*t)).sum::<f64>() as f32],
            _ => rows.map(|(g, t)| g * t).collect(),
        };
        Ok(Tensor::from_vec(out, temperature.shape(), temperature.device())?)
    }
}
