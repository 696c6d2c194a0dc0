//! What outlives a step, on a device: rows pushed into a ring, and centers of classes. Launches of `kernels/bank.cu`.

use consonance_cpu::Error as Bad;

use super::abi::{self, CENTERS_STATUS, TILE_THREADS};
use super::executor::launch;
use super::rows::{check_length, check_sides};
use super::{Bytes, Error, Executor, Matrix, Memory, Result, Words};

const FAMILY: &str = "bank";
const THREADS: u32 = TILE_THREADS as u32;

/// The memory of a ring, written by [`push`].
#[derive(Debug, Clone, Copy)]
pub struct Ring<'a> {
    /// `[capacity, D]`, dense.
    pub keys: Matrix<'a>,
    /// `u32` `[capacity]`.
    pub labels: Words<'a>,
    /// `u32` `[capacity]`.
    pub ids: Words<'a>,
    /// `u8` `[capacity]`.
    pub credible: Bytes<'a>,
}

/// What is pushed.
#[derive(Debug, Clone, Copy)]
pub struct Entries<'a> {
    /// `[B, D]`, of any dtype, at most as many rows as the ring has slots.
    pub rows: Matrix<'a>,
    /// `u32` `[B]`.
    pub labels: Words<'a>,
    /// `u32` `[B]`; `u32::MAX` for all when absent.
    pub ids: Option<Words<'a>>,
    /// `u8` `[B]`: 1 is written where it is not 0; 1 for all when absent.
    pub credible: Option<Bytes<'a>>,
}

/// Writes rows into the slots `start`, `start` + 1, … mod capacity of a ring, embeddings rounded to its dtype; returns
/// without waiting for the device. Rows are not looked at.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes and lengths, a ring that is not dense, more rows than slots and a start
/// beyond the ring; [`Error::NoKernel`] and [`Error::Launch`].
///
/// # Safety
/// The memory of `ring` may be written, and is used by nothing else until the push has run.
pub unsafe fn push(
    executor: &dyn Executor,
    ring: &Ring<'_>,
    start: usize,
    entries: &Entries<'_>,
) -> Result<()> {
    const OP: &str = "bank";
    let (capacity, dim, rows) = (ring.keys.rows(), ring.keys.cols(), entries.rows.rows());
    // Each side alone: their dtypes may differ.
    check_sides(OP, ["bank"; 2], &ring.keys, &ring.keys)?;
    check_sides(OP, ["embeddings"; 2], &entries.rows, &entries.rows)?;
    if entries.rows.cols() != dim {
        let expected = format!("[rows, {dim}], the bank's dimension");
        return Err(Bad::shape(OP, "embeddings", &[rows, entries.rows.cols()], expected).into());
    }
    if ring.keys.stride() != dim && capacity > 1 {
        let got = [capacity, dim, ring.keys.stride()];
        return Err(Bad::shape(OP, "bank", &got, "dense rows").into());
    }
    if rows > capacity {
        let expected = format!("at most {capacity} rows, the slots of the ring");
        return Err(Bad::shape(OP, "embeddings", &[rows, dim], expected).into());
    }
    if start >= capacity {
        return Err(Bad::range(OP, "head", start, format!("a slot in 0..{capacity}")).into());
    }
    for (argument, got) in [("labels", ring.labels.len()), ("ids", ring.ids.len())] {
        check_length(OP, argument, got, capacity, "slot")?;
    }
    check_length(OP, "credible", ring.credible.len(), capacity, "slot")?;
    check_length(OP, "labels", entries.labels.len(), rows, "row")?;
    if let Some(ids) = entries.ids {
        check_length(OP, "ids", ids.len(), rows, "row")?;
    }
    if let Some(credible) = entries.credible {
        check_length(OP, "credible", credible.len(), rows, "row")?;
    }
    let params = abi::BankPush {
        rows: entries.rows.address(),
        row_labels: entries.labels.address(),
        row_ids: entries.ids.map_or(0, |ids| ids.address()),
        row_credible: entries.credible.map_or(0, |credible| credible.address()),
        row_stride: entries.rows.stride() as u64,
        keys: ring.keys.address(),
        labels: ring.labels.address(),
        ids: ring.ids.address(),
        credible: ring.credible.address(),
        start: start as u32,
        row_count: rows as u32,
        capacity: capacity as u32,
        dim: dim as u32,
        row_type: abi::storage_type(entries.rows.dtype()),
        reserved: 0,
    };
    let entry = format!("bank_push_{}", ring.keys.dtype().suffix());
    let grid = [rows.div_ceil(TILE_THREADS / 32) as u64, 1, 1];
    // SAFETY: all arrays have an element for every row or slot, as was checked; no two rows share a slot, and the caller
    // lets the ring be written.
    unsafe { launch(executor, (OP, FAMILY, &entry), grid, (THREADS, 0), &params) }
}

/// An update of centers under way.
#[derive(Debug)]
pub struct CentersUpdate {
    status: Memory,
}

impl CentersUpdate {
    /// Waits for the update and says whether it was made: on an error the centers are as they were.
    ///
    /// # Errors
    /// [`Error::Argument`] for the first position whose label has no center, [`Error::Row`] for a row that is not finite,
    /// [`Error::Argument`] for a class whose new center is not finite or has no direction, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; CENTERS_STATUS];
        executor.download(CENTERS, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        let [labels, rows, centers] = words;
        if labels != u32::MAX {
            let got = format!("out of range at position {labels}");
            return Err(Bad::range(CENTERS, "labels", got, "classes of the centers, or u32::MAX").into());
        }
        if rows != u32::MAX {
            return Err(Error::Row { op: CENTERS, argument: "rows", row: rows as usize, cosine: false });
        }
        if centers != u32::MAX {
            return Err(consonance_cpu::bank::bad_center(centers as usize).into());
        }
        Ok(())
    }
}

const CENTERS: &str = "update_centers";

/// Moves the center of every class that `labels` `[B]` names towards the mean of its `rows` `[B, D]`: m · center + (1 − m) ·
/// mean, divided by its norm when `normalize` is set; returns without waiting for the device. `u32::MAX` is skipped.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes and dtypes, empty sides and a momentum outside `0..=1`;
/// [`Error::OutOfMemory`], [`Error::NoKernel`] and [`Error::Launch`].
///
/// # Safety
/// The memory of `centers` may be written, and is used by nothing else until the update has run.
pub unsafe fn update_centers(
    executor: &dyn Executor,
    centers: &Matrix<'_>,
    labels: Words<'_>,
    rows: &Matrix<'_>,
    (momentum, normalize): (f32, bool),
) -> Result<CentersUpdate> {
    check_sides(CENTERS, ["rows", "centers"], rows, centers)?;
    check_length(CENTERS, "labels", labels.len(), rows.rows(), "row")?;
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Bad::range(CENTERS, "momentum", momentum, "0..=1").into());
    }
    let status = executor.upload(CENTERS, &[0xff; CENTERS_STATUS * size_of::<u32>()])?;
    let entry = format!("bank_centers_{}", centers.dtype().suffix());
    for write in [0, 1] {
        let params = abi::BankCenters {
            centers: centers.address(),
            rows: rows.address(),
            center_stride: centers.stride() as u64,
            row_stride: rows.stride() as u64,
            labels: labels.address(),
            status: status.address(),
            center_count: centers.rows() as u32,
            row_count: rows.rows() as u32,
            dim: centers.cols() as u32,
            old_share: momentum.to_bits(),
            new_share: (1.0 - momentum).to_bits(),
            normalize: u32::from(normalize),
            write,
            reserved: 0,
        };
        let grid = [rows.rows() as u64, 1, 1];
        let shared = centers_shared_bytes(centers.cols());
        // SAFETY: both sides and the labels were checked, the kernel skips labels without a center, and the caller lets it
        // write centers.
        unsafe { launch(executor, (CENTERS, FAMILY, &entry), grid, (THREADS, shared), &params)? };
    }
    Ok(CentersUpdate { status })
}

/// Shared memory of `bank_centers_*`: two words a warp and a row in `f32`.
fn centers_shared_bytes(dim: usize) -> u32 {
    let row = dim.min(u32::MAX as usize / 8) * size_of::<f32>();
    (TILE_THREADS / 32 * 2 * size_of::<u32>() + row) as u32
}
