//! Rows of a matrix on the CPU, changed in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor};
use consonance_cpu::Rows;
use consonance_cpu::gathered::RowsMut;

use super::view;
use crate::{Error, Result};

/// Checks a float matrix that is written in place: contiguous, and no argument of a gradient.
///
/// # Errors
/// [`Error::NotDifferentiable`], [`Error::Rank`], [`Error::DType`] and [`Error::Argument`].
pub(super) fn check_target(op: &'static str, argument: &'static str, target: &Tensor) -> Result<()> {
    if target.track_op() {
        let reason = "it is written in place, behind the back of the graph";
        return Err(Error::NotDifferentiable { op, argument, reason });
    }
    view::matrix(op, argument, target)?;
    if !target.is_contiguous() {
        let expected = "contiguous rows: those of another layout could not be written in place";
        return Err(consonance_cpu::Error::shape(op, argument, target.dims(), expected).into());
    }
    Ok(())
}

/// Calls `change` with the elements of a contiguous matrix, their number of rows, and other rows to read, both on the CPU.
///
/// # Errors
/// Those of `change`; on its errors Candle's storage is left as `change` leaves it.
pub(super) fn change_rows(
    op: &'static str,
    (argument, target): (&'static str, &Tensor),
    rows: &Tensor,
    change: impl Fn(RowsMut<'_>, usize, &Rows<'_>) -> consonance_cpu::Result<()>,
) -> Result<()> {
    view::check_cpu(op, argument, target)?;
    view::check_cpu(op, "rows", rows)?;
    let op = Change { op, argument, change, refused: RefCell::default() };
    // A copy, so that the rows may be some of the target's.
    let outcome = target.inplace_op2(&rows.force_contiguous()?, &op);
    match op.refused.take() {
        Some(error) => Err(error),
        None => Ok(outcome?),
    }
}

struct Change<F> {
    op: &'static str,
    argument: &'static str,
    change: F,
    /// The backend's error: Candle's result keeps only its text.
    refused: RefCell<Option<Error>>,
}

impl<F: Fn(RowsMut<'_>, usize, &Rows<'_>) -> consonance_cpu::Result<()>> Change<F> {
    fn run(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        let (n, dim) = layout.shape().dims2()?;
        let range = layout.start_offset()..layout.start_offset() + n * dim;
        let got = candle_core::backend::BackendStorage::dtype(target);
        let elements = match target {
            CpuStorage::F32(x) => x.get_mut(range).map(RowsMut::F32),
            CpuStorage::F16(x) => x.get_mut(range).map(RowsMut::F16),
            CpuStorage::BF16(x) => x.get_mut(range).map(RowsMut::Bf16),
            _ => None,
        };
        let Some(elements) = elements else {
            let (op, argument) = (self.op, self.argument);
            return Err(Error::DType { op, argument, got, expected: "f32, f16 or bf16" });
        };
        let rows = view::rows(self.op, "rows", rows, rows_layout)?;
        Ok((self.change)(elements, n, &rows)?)
    }
}

impl<F: Fn(RowsMut<'_>, usize, &Rows<'_>) -> consonance_cpu::Result<()>> InplaceOp2 for Change<F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        self.run(target, layout, rows, rows_layout).map_err(|error| {
            self.refused.replace(Some(error));
            candle_core::Error::Msg(format!("{}: refused", self.op))
        })
    }
}

/// Rows to read as constants in the type of what is written.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`] and those of Candle.
pub(super) fn rows_for(op: &'static str, rows: &Tensor, dtype: DType) -> Result<Tensor> {
    let (rows, _) = view::matrix(op, "rows", rows)?;
    Ok(rows.detach().to_dtype(dtype)?)
}
