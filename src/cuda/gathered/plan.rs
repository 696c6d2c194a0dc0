//! How a pass over listed rows is cut into blocks, tiles and groups of lanes.

use crate::cuda::DType;
use crate::cuda::abi::{self, GATHERED_ROWS, GATHERED_TILE_BYTES, NARROW_DIMS, TILE_THREADS, WIDE_DIMS};

/// Columns of one split at least, and splits at most: a row's result does not depend on the batch or the device.
const SPLIT_COLUMNS: usize = 2048;
const MOST_SPLITS: usize = 8;
/// Bytes of a chunk.
const CHUNK: usize = 16;
/// Dimensions of a row, of a divergence those of both sides, as shared memory allows.
pub(super) const MOST_DIMS: usize = TILE_THREADS * WIDE_DIMS;

/// How one pass runs. All of it follows from the dimensions, the dtype and the number of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Columns of a tile: a power of two.
    pub(super) tile_rows: usize,
    /// Parts of a row, so that every group of lanes has work.
    pub(super) parts: usize,
    /// Lanes that share a part of a row.
    pub(super) lanes: usize,
    /// Splits of the columns.
    pub(super) splits: usize,
    /// Whether threads sum `WIDE_DIMS` dimensions.
    pub(super) wide: bool,
    /// Shared memory of a block: the stages, and for each side a query in f32 and the products of two tiles.
    pub(super) shared_bytes: u32,
}

impl Plan {
    pub(super) fn new(dtype: DType, dim: usize, teacher_dim: Option<usize>, columns: usize) -> Self {
        let chunks = |dim: usize| (dim * dtype.bytes()).div_ceil(CHUNK);
        let (own, teacher) = (chunks(dim), teacher_dim.map_or(0, chunks));
        let row_bytes = (own + teacher) * CHUNK;
        let fitting = (GATHERED_TILE_BYTES / row_bytes).max(1);
        let tile_rows = (1 << fitting.ilog2()).min(GATHERED_ROWS);
        // Four lanes at least, so that there are no more groups than rows.
        let lanes = own.max(teacher).next_power_of_two().clamp(4, 32);
        let parts = (TILE_THREADS / lanes).div_ceil(tile_rows);
        let numbers = |chunks: usize| (2 * GATHERED_ROWS + chunks * CHUNK / dtype.bytes()) * size_of::<f32>();
        let of_teacher = teacher_dim.map_or(0, |dim| numbers(chunks(dim)));
        let shared = abi::STAGES * tile_rows * row_bytes + numbers(own) + of_teacher;
        Self {
            tile_rows,
            parts,
            lanes,
            splits: columns.div_ceil(SPLIT_COLUMNS).clamp(1, MOST_SPLITS),
            wide: dim > TILE_THREADS * NARROW_DIMS,
            shared_bytes: shared as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_fits_into_the_smallest_device_and_gives_every_group_the_same_work() {
        let dims = [1, 3, 8, 16, 63, 64, 65, 128, 129, 512, 513, 1000, 1025, 2048, 3000, MOST_DIMS];
        for dtype in DType::ALL {
            for dim in dims {
                let teachers = dims.into_iter().filter(|other| dim + other <= MOST_DIMS).map(Some);
                for teacher in teachers.chain([None]) {
                    let plan = Plan::new(dtype, dim, teacher, 100);
                    // 99 KiB for one block on sm_86 and sm_89.
                    assert!(plan.shared_bytes <= 99 * 1024, "{plan:?}");
                    let (groups, tasks) = (TILE_THREADS / plan.lanes, plan.tile_rows * plan.parts);
                    assert!(plan.tile_rows.is_power_of_two() && tasks.is_multiple_of(groups), "{plan:?}");
                    assert!(tasks <= GATHERED_ROWS, "{plan:?}: products of a tile have so much room");
                    assert_eq!(plan.wide, dim > 512);
                }
            }
        }
    }

    #[test]
    fn splits_depend_on_the_columns_alone() {
        for (columns, expected) in [(1, 1), (2048, 1), (2049, 2), (8194, 5), (50_000, 8)] {
            assert_eq!(Plan::new(DType::BF16, 128, None, columns).splits, expected);
        }
    }

    #[test]
    fn usual_rows_fill_a_tile() {
        let plan = Plan::new(DType::BF16, 128, None, 8194);
        assert_eq!((plan.tile_rows, plan.parts, plan.lanes), (32, 1, 16));
        let plan = Plan::new(DType::F32, 2048, None, 8194);
        assert_eq!((plan.tile_rows, plan.parts, plan.lanes), (2, 2, 32));
        let plan = Plan::new(DType::F32, 2048, Some(2048), 8194);
        assert_eq!((plan.tile_rows, plan.parts, plan.lanes), (1, 4, 32));
    }
}
