//! The symmetric form by kernels: both directions from one pass over the scores.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};

use super::kernels::{Placed, counted};
use super::pairs::Pairs;
use super::{ContrastOptions, OP};
use crate::Result;
use crate::cuda::contrast::{
    Symmetric, SymmetricLosses, SymmetricSide, symmetric_gradient, symmetric_losses,
};
use crate::ops::place::Place;

/// Both directions of a loss that kernels computed, with what the gradients need.
pub(super) struct BothWays {
    place: Place,
    /// Memory of a device is not shared between threads, but the ops of a graph are.
    state: Mutex<([Placed; 2], SymmetricLosses)>,
    /// ∂L_i/∂τ `[B + N]`, when it was asked for.
    temperatures: Option<Tensor>,
    /// `[B + N]`: L_i and ln of the denominators, of x first.
    pub(super) per_row: Tensor,
    pub(super) log_sum_exp: Tensor,
    /// The numbers of rows that count.
    pub(super) anchors: [usize; 2],
}

impl BothWays {
    /// Computes the losses; waits for the device once, for errors and the numbers of anchors.
    pub(super) fn new(
        place: Place,
        [x, y, temperature]: [&Tensor; 3],
        [pairs, transposed]: [&Pairs; 2],
        options: &ContrastOptions,
    ) -> Result<Self> {
        let rows = Placed::new(&place, [x, y, temperature], pairs, options)?;
        let columns = Placed::new(&place, [y, x, temperature], transposed, options)?;
        let executor = place.executor();
        let problem = Symmetric { rows: rows.problem()?, columns: columns.problem()? };
        let mut losses = symmetric_losses(executor, &problem, temperature.track_op())?;
        losses.check(executor)?;
        let mut values = [Vec::new(), Vec::new()];
        for (losses, rows) in [(&losses.rows, x.dims()[0]), (&losses.columns, y.dims()[0])] {
            for (memory, values) in [&losses.per_row, &losses.log_sum_exp].into_iter().zip(&mut values) {
                let mut own = vec![0f32; rows];
                executor.download(OP, memory, bytemuck::cast_slice_mut(&mut own))?;
                values.extend(own);
            }
        }
        let anchors =
            [counted(executor, &losses.rows, x.dims()[0])?, counted(executor, &losses.columns, y.dims()[0])?];
        let temperatures = losses.temperatures.take().map(|[of_x, of_y]| {
            let tensor = |memory, rows: usize| place.tensor(OP, memory, DType::F32, (rows, 1));
            Ok::<_, crate::Error>(
                Tensor::cat(&[tensor(of_x, x.dims()[0])?, tensor(of_y, y.dims()[0])?], 0)?.flatten_all()?,
            )
        });
        let [per_row, log_sum_exp] = values.map(|values| {
            let len = values.len();
            Tensor::from_vec(values, len, x.device())
        });
        Ok(Self {
            temperatures: temperatures.transpose()?,
            per_row: per_row?,
            log_sum_exp: log_sum_exp?,
            anchors,
            state: Mutex::new(([rows, columns], losses)),
            place,
        })
    }

    /// The gradient of Σ g_i L_i over the rows of both sides for one of them, of its type.
    pub(super) fn gradient(&self, g: &Tensor, side: SymmetricSide, of: &Tensor) -> Result<Tensor> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ([rows, columns], losses) = &*state;
        let problem = Symmetric { rows: rows.problem()?, columns: columns.problem()? };
        let (b, n) = (problem.rows.queries.rows(), problem.columns.queries.rows());
        let upstream = |first, rows| self.place.vector(OP, g.narrow(0, first, rows)?.contiguous()?);
        let (of_rows, of_columns) = (upstream(0, b)?, upstream(b, n)?);
        let upstream = [of_rows.words(), of_columns.words()];
        let found = symmetric_gradient(self.place.executor(), &problem, losses, upstream, side)?;
        let shape = (of.dims()[0], of.dims()[1]);
        Ok(self.place.tensor(OP, found, DType::F32, shape)?.to_dtype(of.dtype())?)
    }

    /// The same for the temperature, of its shape.
    pub(super) fn temperature_gradient(&self, g: &Tensor, temperature: &Tensor) -> Result<Tensor> {
        let missing = || candle_core::Error::Msg("contrast: no gradient was asked for".to_owned());
        let gradient = self.temperatures.as_ref().ok_or_else(missing)?;
        Ok((gradient * g)?.sum_all()?.reshape(temperature.shape())?)
    }
}
