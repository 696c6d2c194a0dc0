//! The momentum update of bank rows, in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor};
use consonance_cpu::gathered::{self as cpu, RowsMut};

use crate::ops::place::Place;
use crate::ops::view;
use crate::{Error, Result};

const OP: &str = "update_rows";

/// Moves rows of a memory bank towards new embeddings, in place: bank row `indices[b]` becomes z/|z|, z = m · bank row +
/// (1 − m) · `rows[b]`, computed in `f32` and rounded once to the bank's type. Call it after the loss.
///
/// - `bank` `[N, D]`: `f32`, `f16` or `bf16`, contiguous; all tensors that share its memory change with it;
/// - `indices` `[B]`, `u32` or `i64`: [`NO_NEIGHBOR`](crate::NO_NEIGHBOR), `u32::MAX`, is skipped. Positions of one index are
///   applied one after the other, in their order, on every device;
/// - `rows` `[B, D]`: converted to the bank's type; constants here;
/// - `momentum` m in `0..=1`: 0.5 in Wu et al. 2018 and Yang et al. 2022.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// # fn main() -> consonance::Result<()> {
/// let bank = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let new = Tensor::new(&[[0f32, 1.]], &Device::Cpu)?;
/// consonance::update_rows(&bank, &Tensor::new(&[0u32], &Device::Cpu)?, &new, 0.5)?;
/// let half = 0.5f32.sqrt();
/// assert_eq!(bank.to_vec2::<f32>()?, [[half, half], [0., 1.]]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotDifferentiable`] when the bank is tracked; [`Error::Rank`], [`Error::DType`], [`Error::Device`];
/// [`Error::Argument`] for shapes that disagree, a bank that is not contiguous, indices beyond the bank, a momentum outside
/// `0..=1`, rows that are not finite ([`Error::Kernel`] on a GPU), and sums without a direction. On an error the bank is
/// unchanged.
pub fn update_rows(bank: &Tensor, indices: &Tensor, rows: &Tensor, momentum: f64) -> Result<()> {
    super::refuse_tracked(OP, "bank", bank)?;
    let (matrix, _) = view::matrix(OP, "bank", bank)?;
    if !bank.is_contiguous() {
        let expected = "contiguous rows: those of another layout could not be written in place";
        return Err(consonance_cpu::Error::shape(OP, "bank", matrix.dims(), expected).into());
    }
    let (rows, _) = view::matrix(OP, "rows", rows)?;
    let rows = rows.detach().to_dtype(bank.dtype())?;
    let count = rows.dims()[0];
    let momentum = momentum as f32;
    match Place::of(OP, "bank", bank)? {
        Some(place) => {
            let (placed, rows) = (place.matrix(OP, "bank", bank)?, place.matrix(OP, "rows", &rows)?);
            let indices = place.labels(OP, "indices", indices, count)?;
            let (executor, words) = (place.executor(), indices.words());
            // SAFETY: the memory is the bank's own, contiguous and read in place, or a copy for this call.
            let update = unsafe {
                crate::cuda::gathered::update_rows(
                    executor,
                    &placed.matrix(),
                    words,
                    &rows.matrix(),
                    momentum,
                )?
            };
            update.check(executor)?;
            place.write_back(OP, &placed, bank)
        }
        None => {
            view::check_cpu(OP, "bank", bank)?;
            view::check_cpu(OP, "rows", &rows)?;
            let indices = view::labels(OP, "indices", indices, count)?;
            let op = Update { indices, momentum, refused: RefCell::default() };
            // A copy, so that the rows may be some of the bank's.
            let outcome = bank.inplace_op2(&rows.force_contiguous()?, &op);
            match op.refused.take() {
                Some(error) => Err(error),
                None => Ok(outcome?),
            }
        }
    }
}

struct Update {
    indices: Vec<u32>,
    momentum: f32,
    /// The backend's error: Candle's result keeps only its text.
    refused: RefCell<Option<Error>>,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        bank: &mut CpuStorage,
        layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (n, dim) = layout.shape().dims2()?;
        let range = layout.start_offset()..layout.start_offset() + n * dim;
        let outcome = match bank {
            CpuStorage::F32(x) => x.get_mut(range).map(RowsMut::F32),
            CpuStorage::F16(x) => x.get_mut(range).map(RowsMut::F16),
            CpuStorage::BF16(x) => x.get_mut(range).map(RowsMut::Bf16),
            _ => None,
        };
        let run = || -> Result<()> {
            let Some(bank) = outcome else {
                return Err(Error::DType {
                    op: OP,
                    argument: "bank",
                    got: DType::U8,
                    expected: "a float type",
                });
            };
            let rows = view::rows(OP, "rows", rows, rows_layout)?;
            Ok(cpu::update_rows(bank, n, &self.indices, &rows, self.momentum)?)
        };
        run().map_err(|error| {
            self.refused.replace(Some(error));
            candle_core::Error::Msg(format!("{OP}: refused"))
        })
    }
}
