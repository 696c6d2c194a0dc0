//! The momentum update of bank rows.

use consonance_cpu::Error as Bad;
use consonance_cpu::gathered::without_direction;

use crate::cuda::abi::{self, TILE_THREADS, UPDATE_STATUS};
use crate::cuda::executor::launch;
use crate::cuda::rows::{check_length, check_sides};
use crate::cuda::{Error, Executor, Matrix, Memory, Result, Words};

use super::THREADS;

const OP: &str = "update_rows";
const FAMILY: &str = "gathered_update";

/// An update under way.
#[derive(Debug)]
pub struct Update {
    status: Memory,
}

impl Update {
    /// Waits for the update and says whether it was made: on an error the bank is as it was.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first position whose index is beyond the bank or whose sum is zero,
    /// [`Error::Row`] for a row that is not finite or too large, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; UPDATE_STATUS];
        executor.download(OP, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        let [indices, rows, directions, bank] = words;
        if indices != u32::MAX {
            let expected = "rows of the bank, or u32::MAX for padding";
            let got = format!("out of range at position {indices}");
            return Err(Bad::range(OP, "indices", got, expected).into());
        }
        for (argument, row) in [("rows", rows), ("bank", bank)] {
            if row != u32::MAX {
                return Err(Error::Row { op: OP, argument, row: row as usize, cosine: false });
            }
        }
        if directions != u32::MAX {
            return Err(without_direction(directions as usize).into());
        }
        Ok(())
    }
}

/// Writes norm(m · bank row + (1 − m) · row) to bank row `indices[b]` for every position b of `rows` `[B, D]`, positions
/// of one index one after the other; returns without waiting for the device. Padding
/// ([`consonance_cpu::gathered::PADDING`]) is skipped.
///
/// Nothing but this call uses the memory of `bank` `[N, D]`, of the same dtype, until the update has run.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes and dtypes, empty sides and a momentum outside `0..=1`;
/// [`Error::OutOfMemory`], [`Error::NoKernel`] and [`Error::Launch`].
///
/// # Safety
/// The memory of `bank` may be written.
pub unsafe fn update_rows(
    executor: &dyn Executor,
    bank: &Matrix<'_>,
    indices: Words<'_>,
    rows: &Matrix<'_>,
    momentum: f32,
) -> Result<Update> {
    check_sides(OP, ["rows", "bank"], rows, bank)?;
    check_length(OP, "indices", indices.len(), rows.rows(), "row")?;
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Bad::range(OP, "momentum", momentum, "0..=1").into());
    }
    let status = executor.upload(OP, &[0xff; UPDATE_STATUS * size_of::<u32>()])?;
    let entry = format!("gathered_update_{}", bank.dtype().suffix());
    let shared = update_shared_bytes(bank);
    for write in [0, 1] {
        let params = abi::GatheredUpdate {
            bank: bank.address(),
            rows: rows.address(),
            bank_stride: bank.stride() as u64,
            row_stride: rows.stride() as u64,
            indices: indices.address(),
            status: status.address(),
            bank_count: bank.rows() as u32,
            row_count: rows.rows() as u32,
            dim: bank.cols() as u32,
            old_share: momentum.to_bits(),
            new_share: (1.0 - momentum).to_bits(),
            write,
        };
        // SAFETY: both sides and the indices were checked, the kernel skips indices beyond the bank, and the caller lets
        // it write there.
        unsafe {
            launch(executor, (OP, FAMILY, &entry), [rows.rows() as u64, 1, 1], (THREADS, shared), &params)?;
        }
    }
    Ok(Update { status })
}

/// Shared memory of the kernel: two words a warp and a row.
fn update_shared_bytes(bank: &Matrix<'_>) -> u32 {
    let row = (bank.cols() * bank.dtype().bytes()).min(u32::MAX as usize / 2);
    (TILE_THREADS / 32 * 2 * size_of::<u32>() + row) as u32
}
