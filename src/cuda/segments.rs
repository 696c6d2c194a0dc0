//! Rows in the order of their labels, on the device: `kernels/segments.cu`.

use super::abi::{self, SORT_DIGITS, SORT_ITEMS, TILE_THREADS};
use super::executor::launch;
use super::scratch::Scratch;
use super::{Executor, Memory, Result, Words};

const OP: &str = "segments";
const FAMILY: &str = "segments";

/// Row numbers in the order of their labels, equal labels in the order of their numbers.
#[derive(Debug)]
pub struct Order {
    numbers: Memory,
    len: usize,
}

impl Order {
    /// The device's address of the `u32` numbers.
    pub fn address(&self) -> u64 {
        self.numbers.address()
    }

    /// The numbers.
    pub fn words(&self) -> Words<'_> {
        // SAFETY: the memory was allocated for `len` numbers and lives as long as `self`.
        unsafe { Words::from_address(self.numbers.address(), self.len) }
    }

    /// The memory of the numbers.
    pub fn memory(&self) -> &Memory {
        &self.numbers
    }
}

/// Sorts the numbers `0..labels.len()` by their labels; returns without waiting for the device.
///
/// Scratch: 4 bytes a label, and 1 KiB for every 2048.
///
/// # Errors
/// [`super::Error::Argument`] for 2³² − 1 labels or more, and those of allocation and launch.
pub fn sort(executor: &dyn Executor, labels: Words<'_>) -> Result<Order> {
    let len = labels.len();
    if len >= u32::MAX as usize {
        return Err(consonance_cpu::Error::range(OP, "labels", len, "fewer than 2^32 - 1").into());
    }
    let blocks = len.div_ceil(SORT_ITEMS);
    let numbers = executor.allocate(OP, len * size_of::<u32>())?;
    let mut layout = Scratch::new();
    let (other, counts) =
        (layout.take(len * size_of::<u32>()), layout.take(SORT_DIGITS * blocks * size_of::<u32>()));
    let scratch = executor.scratch(OP, layout.bytes())?;
    let targets = [scratch.address() + other, numbers.address()];
    let mut from = 0;
    for (pass, shift) in [0, 8, 16, 24].into_iter().enumerate() {
        let params = abi::SegmentsSort {
            labels: labels.address(),
            from,
            to: targets[pass % 2],
            counts: scratch.address() + counts,
            count: len as u32,
            shift,
            blocks: blocks as u32,
            reserved: 0,
        };
        let shared = (SORT_DIGITS * size_of::<u32>()) as u32;
        for (entry, grid) in
            [("segments_count", blocks), ("segments_scan", blocks.min(1)), ("segments_scatter", blocks)]
        {
            // SAFETY: all arrays have an element for every label, the counts one for every digit and block; the
            // two lists of numbers take turns.
            unsafe {
                let grid = [grid as u64, 1, 1];
                launch(executor, (OP, FAMILY, entry), grid, (TILE_THREADS as u32, shared), &params)?;
            }
        }
        from = params.to;
    }
    Ok(Order { numbers, len })
}
