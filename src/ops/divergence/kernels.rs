//! Divergences by kernels, and their gradients.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::{Direction, DivergenceOptions, OP};
use crate::cuda::divergence::{self as kernels, Exclusions, Losses, Problem, Side};
use crate::cuda::neighbors::pack_bits;
use crate::cuda::{Memory, Words};
use crate::ops::place::{Place, PlacedMatrix, PlacedVector};
use crate::{Error, Result};

/// A problem whose arrays are where kernels read them.
struct Placed {
    student: (PlacedMatrix, PlacedMatrix),
    teacher: (PlacedMatrix, PlacedMatrix),
    temperatures: [f32; 2],
    softening: f32,
    direction: Direction,
    /// One bit a key, and the keys.
    valid: Option<(Memory, usize)>,
    same_id: Option<(PlacedVector, PlacedVector)>,
    diagonal: bool,
    known: Option<PlacedVector>,
}

impl Placed {
    fn new(
        place: &Place,
        student: (&Tensor, &Tensor),
        teacher: (&Tensor, &Tensor),
        options: &DivergenceOptions,
    ) -> Result<Self> {
        let sides = |names: [&'static str; 2], (queries, keys): (&Tensor, &Tensor)| {
            Ok::<_, Error>((place.matrix(OP, names[0], queries)?, place.matrix(OP, names[1], keys)?))
        };
        let student = sides(["queries", "keys"], student)?;
        let (b, n) = (student.0.matrix().rows(), student.1.matrix().rows());
        let valid = options.valid.as_ref().map(|mask| {
            let mask = place.mask(OP, "valid", mask, n)?;
            Ok::<_, Error>((pack_bits(place.executor(), mask.bytes())?, n))
        });
        let same_id = options.same_id.as_ref().map(|(queries, keys)| {
            let ids = (place.labels(OP, "query_ids", queries, b)?, place.labels(OP, "key_ids", keys, n)?);
            Ok::<_, Error>(ids)
        });
        let known = options.statistics.as_ref();
        let known = known.map(|known| place.floats(OP, "statistics", known.log_sum_exp(), b));
        Ok(Self {
            teacher: sides(["teacher_queries", "teacher_keys"], teacher)?,
            student,
            temperatures: [options.temperature as f32, options.teacher_temperature as f32],
            softening: options.softening as f32,
            direction: options.direction,
            valid: valid.transpose()?,
            same_id: same_id.transpose()?,
            diagonal: options.ignore_diagonal,
            known: known.transpose()?,
        })
    }

    /// The problem as the wrappers of the kernels take it.
    fn problem(&self) -> Result<Problem<'_>> {
        fn side(of: &(PlacedMatrix, PlacedMatrix), temperature: f32) -> Side<'_> {
            Side { queries: of.0.matrix(), keys: of.1.matrix(), temperature }
        }
        let valid = self.valid.as_ref().map(|(memory, n)| Words::new(OP, "valid", memory, n.div_ceil(32)));
        Ok(Problem {
            student: side(&self.student, self.temperatures[0]),
            teacher: side(&self.teacher, self.temperatures[1]),
            softening: self.softening,
            direction: self.direction,
            excluded: Exclusions {
                valid: valid.transpose()?,
                same_id: self.same_id.as_ref().map(|(queries, keys)| (queries.words(), keys.words())),
                diagonal: self.diagonal,
            },
            teacher_log_sum_exp: self.known.as_ref().map(PlacedVector::words),
        })
    }
}

/// Divergences that kernels computed, with what their gradients need.
pub(super) struct ByKernels {
    place: Place,
    /// Memory of a device is not shared between threads, but the ops of a graph are.
    state: Mutex<(Placed, Losses)>,
    /// ∂L_i/∂x_i `[B, D]`, when it was asked for.
    gradient: Option<Tensor>,
    /// `[B]`: L_i, and the logarithms of both sides' sums.
    pub(super) per_row: Tensor,
    pub(super) log_sum_exp: Tensor,
    pub(super) of_teacher: Tensor,
    /// The number of rows that count.
    pub(super) anchors: usize,
}

impl ByKernels {
    /// Computes the divergences; waits for the device once, for errors and the number of anchors.
    pub(super) fn new(
        place: Place,
        student: (&Tensor, &Tensor),
        teacher: (&Tensor, &Tensor),
        options: &DivergenceOptions,
        gradients: bool,
    ) -> Result<Self> {
        let placed = Placed::new(&place, student, teacher, options)?;
        let (b, d) = (placed.student.0.matrix().rows(), placed.student.0.matrix().cols());
        let executor = place.executor();
        let mut losses = kernels::losses(executor, &placed.problem()?, gradients)?;
        losses.check(executor)?;
        let read = |memory: &Memory| -> Result<Vec<f32>> {
            let mut values = vec![0f32; b];
            executor.download(OP, memory, bytemuck::cast_slice_mut(&mut values))?;
            Ok(values)
        };
        let log_sum_exp = read(&losses.log_sum_exp)?;
        let anchors = log_sum_exp.iter().filter(|lse| **lse > f32::NEG_INFINITY).count();
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, b, student.0.device());
        let per_row = tensor(read(&losses.per_row)?)?;
        let of_teacher = tensor(read(&losses.teacher_log_sum_exp)?)?;
        let log_sum_exp = tensor(log_sum_exp)?;
        let gradient = losses.query_gradients.take();
        let gradient = gradient.map(|found| place.tensor(OP, found, DType::F32, (b, d))).transpose()?;
        let state = Mutex::new((placed, losses));
        Ok(Self { place, state, gradient, per_row, log_sum_exp, of_teacher, anchors })
    }

    /// The gradient of Σ g_i L_i for the queries, of their type.
    pub(super) fn query_gradient(&self, g: &Tensor, queries: &Tensor) -> Result<Tensor> {
        let missing = || candle_core::Error::Msg(format!("{OP}: no gradient was asked for"));
        let gradient = self.gradient.as_ref().ok_or_else(missing)?;
        Ok(gradient.broadcast_mul(&g.unsqueeze(1)?)?.to_dtype(queries.dtype())?)
    }

    /// The same for the keys, of their type.
    pub(super) fn key_gradient(&self, g: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let upstream = self.place.vector(OP, g.clone())?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (placed, losses) = &*state;
        let problem = placed.problem()?;
        let found = kernels::key_gradients(self.place.executor(), &problem, losses, upstream.words())?;
        let shape = (problem.student.keys.rows(), problem.student.keys.cols());
        Ok(self.place.tensor(OP, found, DType::F32, shape)?.to_dtype(keys.dtype())?)
    }
}
