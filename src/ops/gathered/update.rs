//! The momentum update of bank rows, in place.

use candle_core::Tensor;
use consonance_cpu::gathered as cpu;

use crate::Result;
use crate::ops::place::Place;
use crate::ops::{in_place, view};

const OP: &str = "update_rows";

/// Moves rows of a memory bank towards new embeddings, in place: bank row `indices[b]` becomes z/|z|, z = m · bank row +
/// (1 − m) · `rows[b]`, computed in `f32` and rounded once to the bank's type. Call it after the loss. The rows of a
/// [`Bank`](crate::Bank) are moved by [`Bank::update`](crate::Bank::update).
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
/// [`crate::Error::NotDifferentiable`] when the bank is tracked; [`crate::Error::Rank`], [`crate::Error::DType`], [`crate::Error::Device`];
/// [`crate::Error::Argument`] for shapes that disagree, a bank that is not contiguous, indices beyond the bank, a momentum outside
/// `0..=1`, rows that are not finite ([`crate::Error::Kernel`] on a GPU), and sums without a direction. On an error the bank is
/// unchanged.
pub fn update_rows(bank: &Tensor, indices: &Tensor, rows: &Tensor, momentum: f64) -> Result<()> {
    in_place::check_target(OP, "bank", bank)?;
    let rows = in_place::rows_for(OP, rows, bank.dtype())?;
    let (count, momentum) = (rows.dims()[0], momentum as f32);
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
            place.write_back(OP, &placed.keep, bank)
        }
        None => {
            let indices = view::labels(OP, "indices", indices, count)?;
            in_place::change_rows(OP, ("bank", bank), &rows, |bank, n, rows| {
                cpu::update_rows(bank, n, &indices, rows, momentum)
            })
        }
    }
}
