//! The divergence of a student's distribution over keys from its teacher's, as a differentiable Candle op.

mod kernels;
mod options;

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};
use consonance_cpu::{Gradients, Rows, divergence as cpu};

use super::place::Place;
use super::view::{Matrix, labels, mask, weights};
use crate::{Error, Result};
use kernels::ByKernels;

pub use consonance_cpu::divergence::Direction;
pub use options::{DivergenceOptions, TeacherStatistics};

const OP: &str = "divergence";

/// The result of [`divergence`].
#[derive(Debug, Clone)]
pub struct Divergence {
    /// Scalar `f32`: the mean of `per_row` over the counted rows, 0 when there is none. Differentiable.
    pub loss: Tensor,
    /// `[B]` `f32`: L_i; 0 for rows that do not count. Differentiable.
    pub per_row: Tensor,
    /// `[B]` `f32`, detached: ln Σ_j e^{s_ij/T} of the student; −∞ without a key.
    pub log_sum_exp: Tensor,
    /// The same of the teacher: for later calls, when it is frozen.
    pub teacher: TeacherStatistics,
    /// The number of counted rows: those that compare a key.
    pub anchors: usize,
}

/// The divergence of a student's distribution over the keys from its teacher's distribution over the same keys, without
/// any `B × N` matrix.
///
/// - `student`: queries `[B, D]` and keys `[N, D]`; `teacher`: queries `[B, D']` and keys `[N, D']`, whose rows belong to
///   the same samples. `f32`, `f16` or `bf16` (on a GPU all alike), statistics in `f32` or wider.
///
/// With s_ij = ⟨x_i, y_j⟩/τ of the student, t_ij = ⟨u_i, v_j⟩/τ' of the teacher, p_i = softmax(s_i/T) and
/// q_i = softmax(t_i/T) over the keys that row i compares:
///
/// * [`Direction::Forward`]: L_i = T² KL(q_i ‖ p_i), ∂L_i/∂s_ij = T (p_ij − q_ij): the soft losses of mutual contrastive
///   learning (Yang et al., AAAI 2022; T = 3 there), and distillation as Hinton, Vinyals and Dean (2015) have it;
/// * [`Direction::Reverse`]: L_i = T² KL(p_i ‖ q_i), ∂L_i/∂s_ij = T p_ij (ln p_ij − ln q_ij − KL(p_i ‖ q_i)).
///
/// T² keeps the size of the gradient when T changes. Gradients arrive at the student's queries, and at its keys when they
/// are tracked (one more pass, in the backward). **The teacher is a constant by definition**: its tensors may be
/// tracked, and no gradient goes there. Embeddings are used as they are. A row that compares no key adds zero and is not
/// counted. The bits of a row depend neither on the other rows nor on the threads. There is no second derivative.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use consonance::{DivergenceOptions, divergence};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cpu = Device::Cpu;
/// let student = Var::new(&[[1f32, 0.], [0., 1.], [0.6, 0.8]], &cpu)?;
/// let teacher = Tensor::new(&[[1f32, 0., 0.], [0.8, 0.6, 0.], [0., 0., 1.]], &cpu)?;
/// // How the student sees the batch, as the teacher does: each sample among the others.
/// let options = DivergenceOptions::new(0.1).softening(3.0).ignore_diagonal();
/// let found = divergence((&student, &student), (&teacher, &teacher), &options)?;
/// assert!(found.loss.backward()?.get(&student).is_some());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`], [`Error::Device`] for tensors of the wrong kind; [`Error::Argument`] for empty
/// queries or keys, shapes that disagree, a teacher that has not the student's rows, temperatures or a softening that are
/// not finite and above 0, embeddings that are not finite or so large that a sum leaves `f32`
/// ([`Error::Kernel`] on a GPU), and statistics of another teacher.
pub fn divergence(
    student: (&Tensor, &Tensor),
    teacher: (&Tensor, &Tensor),
    options: &DivergenceOptions,
) -> Result<Divergence> {
    let (queries, keys) = student;
    let teacher = (teacher.0.detach(), teacher.1.detach());
    let teacher = (&teacher.0, &teacher.1);
    let op = match Place::of(OP, "queries", queries)? {
        Some(place) => {
            let gradients = queries.track_op();
            Loss::Kernels(Box::new(ByKernels::new(place, student, teacher, options, gradients)?))
        }
        None => Loss::Cpu(Box::new(OnCpu::new(student, teacher, options)?)),
    };
    let (log_sum_exp, of_teacher, anchors) = match &op {
        Loss::Cpu(loss) => {
            let of_rows = |values: &[f32]| Tensor::new(values, queries.device());
            let forward = &loss.forward;
            (of_rows(&forward.log_sum_exp)?, of_rows(&forward.teacher_log_sum_exp)?, forward.anchors())
        }
        Loss::Kernels(loss) => (loss.log_sum_exp.clone(), loss.of_teacher.clone(), loss.anchors),
    };
    let per_row = queries.apply_op2(keys, op)?;
    let loss = (per_row.sum_all()? * (1.0 / anchors.max(1) as f64))?;
    Ok(Divergence { loss, per_row, log_sum_exp, teacher: TeacherStatistics::new(&of_teacher)?, anchors })
}

/// The op: its result and all that the backward pass needs were computed before it is applied, so that errors keep
/// their type and a query's gradient costs no second call.
enum Loss {
    Cpu(Box<OnCpu>),
    Kernels(Box<ByKernels>),
}

impl CustomOp2 for Loss {
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
        let per_row = match self {
            Self::Cpu(loss) => loss.forward.per_row.clone(),
            Self::Kernels(loss) => loss.per_row.to_vec1::<f32>()?,
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
    ) -> candle_core::Result<(candle_core::CudaStorage, Shape)> {
        match self {
            Self::Kernels(loss) => super::place::cuda_storage(&loss.per_row),
            Self::Cpu(_) => candle_core::bail!("{OP}: computed on the CPU for tensors of a CUDA device"),
        }
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        _: &Tensor,
        row_gradients: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let g = row_gradients.detach().to_dtype(DType::F32)?.contiguous()?;
        let for_queries = queries.track_op().then(|| match self {
            Self::Cpu(loss) => loss.query_gradient(&g, queries),
            Self::Kernels(loss) => loss.query_gradient(&g, queries),
        });
        let for_keys = keys.track_op().then(|| match self {
            Self::Cpu(loss) => loss.key_gradient(&g, queries, keys),
            Self::Kernels(loss) => loss.key_gradient(&g, keys),
        });
        Ok((for_queries.transpose()?, for_keys.transpose()?))
    }
}

/// What the backend reads beside the student's tensors: O(B + N) numbers; the teacher stays where it is.
struct Data {
    teacher: (Matrix, Matrix),
    temperatures: [f32; 2],
    softening: f32,
    direction: Direction,
    valid: Option<Vec<bool>>,
    same_id: Option<(Vec<u32>, Vec<u32>)>,
    diagonal: bool,
    known: Option<Vec<f32>>,
}

impl Data {
    fn read(
        teacher: (&Tensor, &Tensor),
        options: &DivergenceOptions,
        (b, n): (usize, usize),
    ) -> Result<Self> {
        let same_id = options.same_id.as_ref().map(|(queries, keys)| {
            let ids = (labels(OP, "query_ids", queries, b)?, labels(OP, "key_ids", keys, n)?);
            Ok::<_, Error>(ids)
        });
        let known = options.statistics.as_ref();
        Ok(Self {
            teacher: (
                Matrix::new(OP, "teacher_queries", teacher.0)?,
                Matrix::new(OP, "teacher_keys", teacher.1)?,
            ),
            temperatures: [options.temperature as f32, options.teacher_temperature as f32],
            softening: options.softening as f32,
            direction: options.direction,
            valid: options.valid.as_ref().map(|valid| mask(OP, "valid", valid, n)).transpose()?,
            same_id: same_id.transpose()?,
            diagonal: options.ignore_diagonal,
            known: known.map(|known| weights(OP, "statistics", known.log_sum_exp(), b)).transpose()?,
        })
    }

    /// Calls `f` with the problem that this makes of a student.
    fn with_problem<R>(
        &self,
        queries: Rows<'_>,
        keys: Rows<'_>,
        f: impl FnOnce(&cpu::Problem<'_>) -> Result<R>,
    ) -> Result<R> {
        let guards = (self.teacher.0.lock(), self.teacher.1.lock());
        let [temperature, of_teacher] = self.temperatures;
        f(&cpu::Problem {
            student: cpu::Side { queries, keys, temperature },
            teacher: cpu::Side { queries: guards.0.rows()?, keys: guards.1.rows()?, temperature: of_teacher },
            softening: self.softening,
            direction: self.direction,
            excluded: cpu::Exclusions {
                valid: self.valid.as_deref(),
                same_id: self.same_id.as_ref().map(|(queries, keys)| (&queries[..], &keys[..])),
                diagonal: self.diagonal,
            },
            teacher_log_sum_exp: self.known.as_deref(),
        })
    }
}

/// The loss by the CPU backend.
struct OnCpu {
    data: Data,
    plan: cpu::Plan,
    forward: cpu::Forward,
}

impl OnCpu {
    fn new(
        (queries, keys): (&Tensor, &Tensor),
        teacher: (&Tensor, &Tensor),
        options: &DivergenceOptions,
    ) -> Result<Self> {
        let views = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "keys", keys)?);
        let data = Data::read(teacher, options, (views.0.rows(), views.1.rows()))?;
        let (plan, forward) = {
            let (left, right) = (views.0.lock(), views.1.lock());
            data.with_problem(left.rows()?, right.rows()?, |problem| {
                let plan = cpu::Plan::new(problem)?;
                let gradients = Gradients { queries: queries.track_op(), keys: keys.track_op() };
                let forward = cpu::forward(problem, &plan, gradients)?;
                Ok((plan, forward))
            })?
        };
        Ok(Self { data, plan, forward })
    }

    fn query_gradient(&self, g: &Tensor, queries: &Tensor) -> Result<Tensor> {
        let gradient = Tensor::from_slice(&self.forward.query_gradients, queries.shape(), queries.device())?;
        Ok(gradient.broadcast_mul(&g.unsqueeze(1)?)?.to_dtype(queries.dtype())?)
    }

    fn key_gradient(&self, g: &Tensor, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let views = (Matrix::new(OP, "queries", queries)?, Matrix::new(OP, "keys", keys)?);
        let guards = (views.0.lock(), views.1.lock());
        let g = g.to_vec1::<f32>()?;
        let gradient = self.data.with_problem(guards.0.rows()?, guards.1.rows()?, |problem| {
            Ok(cpu::key_gradients(problem, &self.plan, &self.forward, &g)?)
        })?;
        Ok(Tensor::from_vec(gradient, keys.shape(), keys.device())?.to_dtype(keys.dtype())?)
    }
}
