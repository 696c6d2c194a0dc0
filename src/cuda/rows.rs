//! What every family checks of its rows.

use consonance_cpu::Error as Bad;
use consonance_cpu::neighbors::Metric;

use super::{Error, Executor, Matrix, Memory, Result};

/// Checks two sides that are compared with each other.
pub(super) fn check_sides(
    op: &'static str,
    names: [&'static str; 2],
    left: &Matrix<'_>,
    right: &Matrix<'_>,
) -> Result<()> {
    for (argument, rows) in [(names[0], left), (names[1], right)] {
        if rows.rows() == 0 {
            return Err(Bad::Empty { op, argument }.into());
        }
        if rows.cols() == 0 {
            return Err(Bad::shape(op, argument, &[rows.rows(), 0], "at least one dimension").into());
        }
        if rows.rows() >= u32::MAX as usize || rows.cols() > i32::MAX as usize {
            let got = format!("{:?}", [rows.rows(), rows.cols()]);
            return Err(Bad::range(op, argument, got, "fewer than 2^32 - 1 rows and 2^31 dimensions").into());
        }
        if !rows.address().is_multiple_of(rows.dtype().bytes() as u64) {
            let got = format!("{:#x}", rows.address());
            return Err(Bad::range(op, argument, got, "an address aligned to its elements").into());
        }
    }
    if left.cols() != right.cols() {
        let expected = format!("[N, {}], the dimension of `{}`", left.cols(), names[0]);
        return Err(Bad::shape(op, names[1], &[right.rows(), right.cols()], expected).into());
    }
    if left.dtype() != right.dtype() {
        let expected = format!("{:?}, the dtype of `{}`; convert one of them", left.dtype(), names[0]);
        return Err(Bad::range(op, names[1], format!("{:?}", right.dtype()), expected).into());
    }
    Ok(())
}

/// Checks the length of an array that has an element for each of something.
pub(super) fn check_length(
    op: &'static str,
    argument: &'static str,
    got: usize,
    expected: usize,
    of: &str,
) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Bad::shape(op, argument, &[got], format!("[{expected}], one for each {of}")).into())
}

/// Waits for a status that kernels write, two words with the least bad row of each side.
pub(super) fn check_status(
    executor: &dyn Executor,
    op: &'static str,
    names: [&'static str; 2],
    metric: Metric,
    status: &Memory,
) -> Result<()> {
    let mut bytes = [0; 8];
    executor.download(op, status, &mut bytes)?;
    let [queries, keys]: [u32; 2] = bytemuck::cast(bytes);
    for (argument, row) in [(names[0], queries), (names[1], keys)] {
        if row != u32::MAX {
            return Err(Error::Row { op, argument, row: row as usize, cosine: metric == Metric::Cosine });
        }
    }
    Ok(())
}
