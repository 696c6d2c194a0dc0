//! Losses of queries against the bank rows that each of them lists, and the momentum update of such rows: memory banks.

mod kernels;
mod update;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor};
use consonance_cpu::gathered as cpu;

use super::contrast::{Contrast, Normalizer, Temperature};
use super::place::Place;
use super::view::{self, Matrix};
use crate::{Error, Result};

pub use update::update_rows;

/// Which columns of the lists are positives.
#[derive(Debug, Clone)]
pub enum GatheredPositives {
    /// The first columns, as many as this, with weight 1: a list begins with its positives.
    First(usize),
    /// `[B, K]` floats, finite and at least 0: a column is a positive where its weight is above 0. Constants.
    Weights(Tensor),
}

/// The result of [`gathered_divergence`].
#[derive(Debug, Clone)]
pub struct GatheredDivergence {
    /// Scalar `f32`: the mean of `per_row` over the counted rows, 0 when there is none. Differentiable.
    pub loss: Tensor,
    /// `[B]` `f32`: L_i; 0 for rows that do not count. Differentiable.
    pub per_row: Tensor,
    /// The number of counted rows: those that list anything.
    pub anchors: usize,
}

/// The contrastive loss of every query against the bank rows that it lists, without a copy of these rows.
///
/// - `queries` `[B, D]` and `bank` `[N, D]`: `f32`, `f16` or `bf16` (on a GPU both alike), statistics in `f32` or wider;
/// - `indices` `[B, K]`, `u32` or `i64`: rows of the bank. [`NO_NEIGHBOR`](crate::NO_NEIGHBOR), `u32::MAX`, is padding, and
///   an index may repeat, as negatives drawn with replacement do: it counts as often as it is listed.
///
/// With s_ic = ⟨x_i, y_j⟩/τ_i for the bank row j in column c, positives P(i) of weights w_ic, n_i = |P(i)| or Σ_P w_ic, and
/// a_ic = w_ic/n_i: L_i = Σ_c a_ic (lse_i − s_ic), lse_i = ln Σ_c e^{s_ic}, as [`contrast`](crate::contrast) over the
/// listed rows alone. With the query's own row or one of its class in the first column this is the loss of memory banks
/// (Wu et al. 2018; Yang et al. 2022).
///
/// Gradients arrive at `queries` and at a learned temperature, from the same pass. **The bank is a constant**: its rows are
/// moved by [`update_rows`]. Embeddings are used as they are. A row without a positive adds zero and is not counted. The
/// bits of a row depend neither on the other rows nor on the threads. There is no second derivative.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use consonance::{GatheredPositives, Normalizer, Temperature, gathered_contrast, update_rows};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cpu = Device::Cpu;
/// let bank = Tensor::new(&[[1f32, 0.], [0., 1.], [0.6, 0.8]], &cpu)?;
/// let query = Var::new(&[[0.8f32, 0.6]], &cpu)?;
/// let lists = Tensor::new(&[[0u32, 1, 2, 2]], &cpu)?; // itself, then negatives
/// let loss = gathered_contrast(
///     &query, &bank, &lists, &Temperature::Fixed(0.07), &GatheredPositives::First(1), Normalizer::Count,
/// )?;
/// assert!(loss.loss.backward()?.get(&query).is_some());
/// update_rows(&bank, &Tensor::new(&[0u32], &cpu)?, query.as_tensor(), 0.5)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotDifferentiable`] when the bank or the weights are tracked; [`Error::Rank`], [`Error::DType`],
/// [`Error::Device`] for tensors of the wrong kind; [`Error::Argument`] for empty queries, lists or bank, shapes that
/// disagree, indices beyond the bank, temperatures that are not finite and above 0, weights below 0, no first columns or
/// more than K, and queries and listed rows that are not finite or so large that a sum leaves `f32` ([`Error::Kernel`] on a
/// GPU, where rows have at most 4,096 dimensions). Rows that nobody lists are not looked at.
pub fn gathered_contrast(
    queries: &Tensor,
    bank: &Tensor,
    indices: &Tensor,
    temperature: &Temperature,
    positives: &GatheredPositives,
    normalizer: Normalizer,
) -> Result<Contrast> {
    const OP: &str = "gathered_contrast";
    refuse_tracked(OP, "bank", bank)?;
    if let GatheredPositives::Weights(weights) = positives {
        refuse_tracked(OP, "weights", weights)?;
        if weights.dims() != indices.dims() {
            let expected = format!("{:?}, as the indices", indices.dims());
            return Err(consonance_cpu::Error::shape(OP, "weights", weights.dims(), expected).into());
        }
    }
    let temperature = temperature_tensor(OP, temperature, queries.device())?;
    let (b, columns) = list_shape(OP, queries, indices)?;
    let gradients = queries.track_op() || temperature.track_op();
    let found = match Place::of(OP, "queries", queries)? {
        Some(place) => {
            let sides = (queries, bank, indices);
            kernels::contrast(&place, sides, &temperature, positives, normalizer, gradients)?
        }
        None => {
            let (left, right) = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "bank", bank)?);
            let indices = view::labels(OP, "indices", &indices.flatten_all()?, b * columns)?;
            let temperatures = temperature.detach().flatten_all()?.to_vec1::<f32>()?;
            let weights = match positives {
                GatheredPositives::Weights(w) => {
                    view::weights(OP, "weights", &w.flatten_all()?, b * columns)?
                }
                GatheredPositives::First(_) => Vec::new(),
            };
            let (left, right) = (left.lock(), right.lock());
            let problem = cpu::Contrast {
                queries: left.rows()?,
                bank: right.rows()?,
                indices: &indices,
                columns,
                temperatures: &temperatures,
                positives: match positives {
                    GatheredPositives::First(count) => cpu::Positives::First(*count),
                    GatheredPositives::Weights(_) => cpu::Positives::Weights(&weights),
                },
                normalizer,
            };
            Found::on_cpu(cpu::contrast(&problem, gradients)?, queries)?
        }
    };
    let (anchors, log_sum_exp) = (found.anchors, found.log_sum_exp.clone());
    let per_row = found.differentiable(OP, queries, &temperature)?;
    let loss = mean(&per_row, anchors)?;
    Ok(Contrast { loss, per_row, log_sum_exp, anchors })
}

/// The divergence of a student's view of the bank rows that it lists from its teacher's view of the same rows.
///
/// - `student`: queries `[B, D]` and bank `[N, D]`; `teacher`: queries `[B, D']` and bank `[N, D']`, whose rows belong to
///   the same samples. `f32`, `f16` or `bf16` (on a GPU all alike);
/// - `indices` `[B, K]`: as for [`gathered_contrast`], of both banks;
/// - `temperature` τ divides the inner products of both sides, `softening` T the scores once more.
///
/// With s_ic = ⟨x_i, y_j⟩/τ of the student and t_ic of the teacher: L_i = T² KL(softmax(t_i/T) ‖ softmax(s_i/T)), with
/// ∂L_i/∂s_ic = T (softmax(s_i/T)_c − softmax(t_i/T)_c): the soft losses of mutual contrastive learning (Yang et al. 2022; T
/// = 3 there). T² keeps the size of the gradient when T changes.
///
/// Gradients arrive at the student's queries. **The student's bank is a constant, and the teacher is one by definition**:
/// its tensors may be tracked, and no gradient goes there. A row that lists nothing adds zero and is not counted.
///
/// # Errors
/// As [`gathered_contrast`], also for a teacher that has not the student's rows, and temperatures or softenings that are
/// not finite and above 0. On a GPU the dimensions of both sides together are at most 4,096.
pub fn gathered_divergence(
    student: (&Tensor, &Tensor),
    teacher: (&Tensor, &Tensor),
    indices: &Tensor,
    temperature: f64,
    softening: f64,
) -> Result<GatheredDivergence> {
    const OP: &str = "gathered_divergence";
    let (queries, bank) = student;
    refuse_tracked(OP, "bank", bank)?;
    let teacher = (&teacher.0.detach(), &teacher.1.detach());
    let (b, columns) = list_shape(OP, queries, indices)?;
    let gradients = queries.track_op();
    let factors = (temperature as f32, softening as f32);
    let found = match Place::of(OP, "queries", queries)? {
        Some(place) => kernels::divergence(&place, student, teacher, indices, factors, gradients)?,
        None => {
            let matrices = [
                Matrix::new(OP, "queries", queries)?,
                Matrix::new(OP, "bank", bank)?,
                Matrix::new(OP, "teacher_queries", teacher.0)?,
                Matrix::new(OP, "teacher_bank", teacher.1)?,
            ];
            let indices = view::labels(OP, "indices", &indices.flatten_all()?, b * columns)?;
            let [queries_rows, bank_rows, teacher_rows, teacher_bank] = matrices.each_ref().map(Matrix::lock);
            let problem = cpu::Divergence {
                queries: queries_rows.rows()?,
                bank: bank_rows.rows()?,
                teacher_queries: teacher_rows.rows()?,
                teacher_bank: teacher_bank.rows()?,
                indices: &indices,
                columns,
                temperature: factors.0,
                softening: factors.1,
            };
            Found::on_cpu(cpu::divergence(&problem, gradients)?, queries)?
        }
    };
    let anchors = found.anchors;
    let constant = Tensor::new(&[factors.0], queries.device())?;
    let per_row = found.differentiable(OP, queries, &constant)?;
    Ok(GatheredDivergence { loss: mean(&per_row, anchors)?, per_row, anchors })
}

fn refuse_tracked(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.track_op() {
        let reason = "it is a constant of this loss, to which no gradient goes";
        return Err(Error::NotDifferentiable { op, argument, reason });
    }
    Ok(())
}

/// The rows and columns of lists for these queries.
fn list_shape(op: &'static str, queries: &Tensor, indices: &Tensor) -> Result<(usize, usize)> {
    let &[b, _] = queries.dims() else {
        let expected = "a matrix [rows, dimension]";
        return Err(Error::Rank { op, argument: "queries", got: queries.rank(), expected });
    };
    let &[rows, columns] = indices.dims() else {
        return Err(Error::Rank { op, argument: "indices", got: indices.rank(), expected: "[B, K]" });
    };
    if rows != b {
        let expected = format!("[{b}, K], one list a query");
        return Err(consonance_cpu::Error::shape(op, "indices", indices.dims(), expected).into());
    }
    Ok((b, columns))
}

fn temperature_tensor(op: &'static str, temperature: &Temperature, device: &Device) -> Result<Tensor> {
    let tensor = match temperature {
        Temperature::Fixed(t) => return Ok(Tensor::new(&[*t as f32], device)?),
        Temperature::Learned(tensor) => tensor,
    };
    match (tensor.rank(), tensor.dtype()) {
        (0 | 1, DType::F32) => Ok(tensor.clone()),
        (0 | 1, got) => Err(Error::DType { op, argument: "temperature", got, expected: "f32" }),
        (got, _) => Err(Error::Rank { op, argument: "temperature", got, expected: "[], [1] or [B]" }),
    }
}

fn mean(per_row: &Tensor, anchors: usize) -> Result<Tensor> {
    Ok((per_row.sum_all()? * (1.0 / anchors.max(1) as f64))?)
}

/// What a pass found, untracked, where the queries are.
struct Found {
    /// `[B]`.
    per_row: Tensor,
    /// `[B]`.
    log_sum_exp: Tensor,
    anchors: usize,
    /// `[B, D]` and, of a contrast, `[B]`.
    gradients: Option<(Tensor, Option<Tensor>)>,
}

impl Found {
    fn on_cpu(found: cpu::Forward, queries: &Tensor) -> Result<Self> {
        let (b, anchors) = (found.per_row.len(), found.anchors());
        let gradients = match found.query_gradients.is_empty() {
            true => None,
            false => {
                let of_temperatures = match found.temperature_gradients.is_empty() {
                    true => None,
                    false => Some(Tensor::from_vec(found.temperature_gradients, b, &Device::Cpu)?),
                };
                let of_queries = Tensor::from_vec(found.query_gradients, queries.shape(), &Device::Cpu)?;
                Some((of_queries, of_temperatures))
            }
        };
        Ok(Self {
            per_row: Tensor::from_vec(found.per_row, b, &Device::Cpu)?,
            log_sum_exp: Tensor::from_vec(found.log_sum_exp, b, &Device::Cpu)?,
            anchors,
            gradients,
        })
    }

    /// The losses of the rows, in the graph when a gradient is asked for.
    fn differentiable(self, name: &'static str, queries: &Tensor, temperature: &Tensor) -> Result<Tensor> {
        match self.gradients {
            None => Ok(self.per_row),
            Some(gradients) => {
                let op = Loss { name, per_row: self.per_row, gradients };
                Ok(queries.apply_op2(temperature, op)?)
            }
        }
    }
}

/// The op: its result and each row's own gradients were computed before it is applied.
struct Loss {
    name: &'static str,
    per_row: Tensor,
    gradients: (Tensor, Option<Tensor>),
}

impl CustomOp2 for Loss {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.per_row.to_vec1::<f32>()?), self.per_row.shape().clone()))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        super::place::cuda_storage(&self.per_row)
    }

    fn bwd(
        &self,
        queries: &Tensor,
        temperature: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let upstream = upstream.to_dtype(DType::F32)?;
        let for_queries = match queries.track_op() {
            true => {
                let sum = self.gradients.0.broadcast_mul(&upstream.unsqueeze(1)?)?;
                Some(sum.to_dtype(queries.dtype())?)
            }
            false => None,
        };
        let for_temperature = match &self.gradients.1 {
            Some(of_rows) if temperature.track_op() => {
                let of_rows = (of_rows * &upstream)?;
                // One temperature for all takes the sum of the rows.
                let sum = match temperature.elem_count() {
                    1 => of_rows.to_dtype(DType::F64)?.sum_all()?.to_dtype(DType::F32)?,
                    _ => of_rows,
                };
                Some(sum.reshape(temperature.shape())?)
            }
            _ => None,
        };
        Ok((for_queries, for_temperature))
    }
}
