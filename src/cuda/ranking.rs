//! Retrieval measures on a device: plans and launches of `kernels/ranking.cu`.

use consonance_cpu::ranking::{Counts, Options, Ranking, Relevant};

use super::abi::{self, MANY_ROWS, TILE_KEYS, TILE_THREADS};
use super::executor::launch;
use super::{Executor, Matrix, Memory, Result, rows};

const OP: &str = "ranking";
const FAMILY: &str = "ranking";
const THREADS: u32 = TILE_THREADS as u32;
/// Shared memory of the counting kernel: two stages.
const COUNT_SHARED_BYTES: u32 = (2 * (MANY_ROWS + TILE_KEYS) * abi::SLAB_BYTES) as u32;

/// Ranks `gallery` `[N, D]` for every row of `queries` `[B, D]`, both of one dtype, and measures the lists.
///
/// Labels, cameras and ids are those of the host; the result is numbers, so this waits for the device. Ranks are
/// exact for the deciding scores (`kernels/include/score.cuh`). Memory of the device: 8 bytes a row and 28 bytes for
/// every pair of a query and an item that is relevant to it.
///
/// # Errors
/// [`super::Error::Argument`] for disagreeing shapes, dtypes or lengths and empty sides, [`super::Error::Row`] for
/// rows that cannot be compared (junk is not looked at), and those of allocation and launch.
pub fn ranking(
    executor: &dyn Executor,
    queries: &Matrix<'_>,
    gallery: &Matrix<'_>,
    options: &Options<'_>,
) -> Result<Ranking> {
    rows::check_sides(OP, ["queries", "gallery"], queries, gallery)?;
    options.check(queries.rows(), gallery.rows())?;
    let relevant = Relevant::new(options);
    let words = |words: &[u32]| executor.upload(OP, bytemuck::cast_slice(words));
    let ids = options.ids.map(|(q, g)| Ok::<_, super::Error>((words(q)?, words(g)?))).transpose()?;
    let arrays = Arrays {
        query_labels: words(options.query_labels)?,
        item_labels: words(options.gallery_labels)?,
        ids,
        offsets: executor.upload(OP, bytemuck::cast_slice(&relevant.offsets))?,
        items: words(&relevant.items)?,
        unsorted: executor.allocate(OP, relevant.items.len() * 8)?,
        entries: executor.allocate(OP, relevant.items.len() * 8)?,
        between: executor.allocate(OP, relevant.items.len() * 4)?,
        ties: executor.allocate(OP, relevant.items.len() * 4)?,
        status: executor.upload(OP, &[0xff; 8])?,
    };
    let tiles = queries.rows().div_ceil(MANY_ROWS);
    let splits = (2 * executor.limits().multiprocessors as usize)
        .div_ceil(tiles)
        .min(gallery.rows().div_ceil(TILE_KEYS))
        .max(1);
    let params = arrays.params(queries, gallery, options, splits as u32);
    let warps = TILE_THREADS / 32;
    let suffix = queries.dtype().suffix();
    for (step, grid, shared) in [
        ("check", [(queries.rows() + gallery.rows()).div_ceil(warps), 1], 0),
        ("relevant", [queries.rows(), 1], 0),
        ("count", [tiles, splits], COUNT_SHARED_BYTES),
    ] {
        let (entry, [x, y]) = (format!("ranking_{step}_{suffix}"), grid.map(|blocks| blocks as u64));
        // SAFETY: lengths were checked; offsets are those of `items`, and every array of the relevant items is as
        // long as that.
        unsafe { launch(executor, (OP, FAMILY, &entry), [x, y, 1], (THREADS, shared), &params)? };
    }
    rows::check_status(executor, OP, ["queries", "gallery"], options.metric, &arrays.status)?;
    let (mut entries, mut between, mut ties) = (
        vec![0u64; relevant.items.len()],
        vec![0u32; relevant.items.len()],
        vec![0u32; relevant.items.len()],
    );
    executor.download(OP, &arrays.entries, bytemuck::cast_slice_mut(&mut entries))?;
    executor.download(OP, &arrays.between, bytemuck::cast_slice_mut(&mut between))?;
    executor.download(OP, &arrays.ties, bytemuck::cast_slice_mut(&mut ties))?;
    let counts = Counts { entries: &entries, between: &between, ties: &ties };
    Ok(Ranking::from_counts(&relevant, &counts, options))
}

/// What the kernels read and write beside the rows.
struct Arrays {
    query_labels: Memory,
    item_labels: Memory,
    ids: Option<(Memory, Memory)>,
    offsets: Memory,
    items: Memory,
    unsorted: Memory,
    entries: Memory,
    between: Memory,
    ties: Memory,
    status: Memory,
}

impl Arrays {
    fn params(
        &self,
        queries: &Matrix<'_>,
        gallery: &Matrix<'_>,
        options: &Options<'_>,
        splits: u32,
    ) -> abi::RankingCount {
        let ids = self.ids.as_ref().map_or((0, 0), |(q, g)| (q.address(), g.address()));
        abi::RankingCount {
            pairs: abi::Pairs {
                queries: queries.address(),
                keys: gallery.address(),
                query_stride: queries.stride() as u64,
                key_stride: gallery.stride() as u64,
                row_limit: queries.rows() as u32,
                keys_in_all: gallery.rows() as u32,
                dim: gallery.cols() as u32,
                metric: abi::metric(options.metric),
                ..abi::Pairs::default()
            },
            query_labels: self.query_labels.address(),
            item_labels: self.item_labels.address(),
            query_ids: ids.0,
            item_ids: ids.1,
            offsets: self.offsets.address(),
            items: self.items.address(),
            unsorted: self.unsorted.address(),
            entries: self.entries.address(),
            between: self.between.address(),
            ties: self.ties.address(),
            status: self.status.address(),
            splits,
            reserved: 0,
        }
    }
}
