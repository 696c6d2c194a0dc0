//! Exact neighbors on a device: plans and launches of `kernels/neighbors.cu`.

use consonance_cpu::neighbors::{MAX_K, Metric};

use super::abi::{self, FEW_ROWS, MANY_ROWS, MAX_PASS, RING, TILE_KEYS, TILE_THREADS};
use super::executor::launch;
use super::scratch::Scratch;
use super::{Bytes, DType, Executor, Limits, Matrix, Memory, Order, Result, Words};

const OP: &str = "neighbors";
const FAMILY: &str = "neighbors";
const THREADS: u32 = TILE_THREADS as u32;
/// Bytes of an entry: a score and an index.
const ENTRY: usize = 8;
/// Scratch that the lists of one block of queries, the rows of one tile, may take.
const LIST_BYTES: usize = 1 << 20;

/// What to search and what to leave out.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// `[B, D]`.
    pub queries: Matrix<'a>,
    /// `[N, D]`, of the same dtype.
    pub bank: Matrix<'a>,
    /// Neighbors of each query, `1..=1024`.
    pub k: usize,
    /// How rows are compared.
    pub metric: Metric,
    /// Labels of the queries and of the keys, with both in the order of their labels: only keys of the query's own
    /// label are found, at the cost of scoring only those.
    pub labels: Option<Classes<'a>>,
    /// Ids of the queries and of the keys: a key of the query's own id is left out.
    pub ids: Option<(Words<'a>, Words<'a>)>,
    /// One bit a key, key `j` in bit `j % 32` of word `j / 32`: only keys whose bit is set are found.
    pub allow: Option<Words<'a>>,
}

/// Labels of both sides and the rows in their order, from [`super::segments::sort`].
#[derive(Debug, Clone, Copy)]
pub struct Classes<'a> {
    /// Labels of the queries, by number.
    pub query_labels: Words<'a>,
    /// Labels of the keys, by number.
    pub key_labels: Words<'a>,
    /// The queries in the order of their labels.
    pub query_order: &'a Order,
    /// The keys in the order of their labels.
    pub key_order: &'a Order,
}

/// The neighbors of every query, nearest first, in the memory of the device.
#[derive(Debug)]
pub struct Found {
    /// Scores `[B, k]`, `f32`; the worst score where there is no neighbor.
    pub scores: Memory,
    /// Key numbers `[B, k]`, `u32`; [`consonance_cpu::neighbors::NONE`] where there is no neighbor.
    pub indices: Memory,
    status: Memory,
    metric: Metric,
}

impl Found {
    /// Waits for the search and says whether all rows could be compared.
    ///
    /// Without this call nothing waits, and a row that is not finite, too large, or of norm zero with the cosine,
    /// has no neighbors and is none.
    ///
    /// # Errors
    /// [`super::Error::Row`] with the first offending row, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        super::rows::check_status(executor, OP, ["queries", "bank"], self.metric, &self.status)
    }
}

/// How one pass is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Queries of a tile in the ranking kernel.
    rows: usize,
    /// Candidates of a list.
    capacity: usize,
    /// Splits of the keys.
    splits: usize,
    /// Candidates of a list, and splits, in the exact kernel.
    exact_capacity: usize,
    exact_splits: usize,
}

impl Plan {
    /// The plan for finding the next `wanted` neighbors.
    ///
    /// Lists hold more candidates than wanted, so that the last bound falls below the score of the last neighbor
    /// and proves it: by what rounding to bfloat16 costs for f32, by far less for 16-bit storage. The number of
    /// splits fills the device; the result does not depend on it.
    fn new(dtype: DType, queries: usize, keys: usize, wanted: usize, limits: Limits) -> Self {
        let reserve = if dtype == DType::F32 { 4 } else { 2 };
        let capacity = (reserve * wanted).next_power_of_two().clamp(2 * RING, abi::MAX_CAPACITY);
        let exact_capacity = wanted.next_multiple_of(RING);
        let rows = if queries <= MANY_ROWS { FEW_ROWS } else { MANY_ROWS };
        let blocks = 2 * limits.multiprocessors as usize;
        let splits = |rows: usize, lists: usize, capacity: usize| {
            let wanted = blocks.div_ceil(queries.div_ceil(rows).max(1));
            let tiles = keys.div_ceil(TILE_KEYS);
            let fitting = LIST_BYTES / (rows.min(queries.max(1)) * lists * capacity * ENTRY);
            wanted.min(tiles).min(fitting).max(1)
        };
        Self {
            rows,
            capacity,
            splits: splits(rows, lists_of_block(rows), capacity),
            exact_capacity,
            exact_splits: splits(MANY_ROWS, 1, exact_capacity),
        }
    }

    /// Lists of a row after ranking.
    fn lists_of_row(&self) -> usize {
        self.splits * lists_of_block(self.rows)
    }

    /// Lists of a row after refining, which has tiles of many rows.
    fn refined_lists_of_row(&self) -> usize {
        self.splits.min(LIST_BYTES / (MANY_ROWS * self.capacity * ENTRY)).max(1)
    }

    /// Entries of a row in the lists of all steps.
    fn entries_of_row(&self) -> usize {
        let exact = self.exact_splits * self.exact_capacity;
        (self.lists_of_row().max(self.refined_lists_of_row()) * self.capacity).max(exact)
    }
}

/// Lists of a row that one block of the ranking kernel keeps.
fn lists_of_block(rows: usize) -> usize {
    if rows == FEW_ROWS { TILE_THREADS / 32 } else { 1 }
}

/// Shared memory of the ranking kernels: `Ranker::Shared` behind the stages of the stream.
fn rank_shared_bytes(rows: usize) -> u32 {
    let rings = TILE_THREADS / 32 * 16 * RING * ENTRY;
    let of_rows = 4 * (TILE_KEYS + rows) * size_of::<f32>();
    (abi::STAGES * (rows + TILE_KEYS) * abi::SLAB_BYTES + rings + of_rows) as u32
}

/// Shared memory of the exact kernel: two stages and a ring for every row.
const EXACT_SHARED_BYTES: u32 =
    (2 * (MANY_ROWS + TILE_KEYS) * abi::SLAB_BYTES + MANY_ROWS * RING * ENTRY) as u32;

/// The `k` nearest keys of every query; returns without waiting for the device.
///
/// Exact for the deciding scores (`kernels/include/score.cuh`): `f32`, one chain of fused multiply-adds in the order
/// of the dimensions. Scratch: at most 1 MiB of lists for every block of queries, and 12 bytes a query.
///
/// # Errors
/// [`super::Error::Argument`] for disagreeing shapes, dtypes or lengths, `k` outside `1..=1024` and empty sides;
/// [`super::Error::OutOfMemory`], [`super::Error::NoKernel`] and [`super::Error::Launch`].
pub fn neighbors(executor: &dyn Executor, search: &Search<'_>) -> Result<Found> {
    check(search)?;
    let (b, n, k) = (search.queries.rows(), search.bank.rows(), search.k);
    let found = Found {
        scores: executor.allocate(OP, b * k * size_of::<f32>())?,
        indices: executor.allocate(OP, b * k * size_of::<u32>())?,
        status: executor.upload(OP, &[0xff; 8])?,
        metric: search.metric,
    };
    let dtype = search.bank.dtype();
    let passes: Vec<(usize, Plan)> = (0..k)
        .step_by(MAX_PASS)
        .map(|from| (from, Plan::new(dtype, b, n, (k - from).min(MAX_PASS), executor.limits())))
        .collect();
    let entries = passes.iter().map(|(_, plan)| plan.entries_of_row()).max().unwrap_or_default();
    let mut layout = Scratch::new();
    let buffers = Buffers {
        lists: layout.take(b * entries * ENTRY),
        unproven: layout.take(b * size_of::<u32>()),
        left: [layout.take(b * size_of::<u32>()), layout.take(b * size_of::<u32>())],
        left_count: [layout.take(size_of::<u32>()), layout.take(size_of::<u32>())],
    };
    let scratch = executor.scratch(OP, layout.bytes())?;
    let run = Run { executor, search, found: &found, scratch: scratch.address(), buffers };
    for (from, plan) in passes {
        run.pass(from, (k - from).min(MAX_PASS), &plan)?;
    }
    Ok(found)
}

/// Offsets into the scratch memory.
struct Buffers {
    lists: u64,
    unproven: u64,
    left: [u64; 2],
    left_count: [u64; 2],
}

/// One search under way.
struct Run<'a> {
    executor: &'a dyn Executor,
    search: &'a Search<'a>,
    found: &'a Found,
    scratch: u64,
    buffers: Buffers,
}

/// How candidates are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Rank,
    Refine,
    Exact,
}

impl Run<'_> {
    /// Finds the neighbors `found..found + wanted` of all queries.
    fn pass(&self, found: usize, wanted: usize, plan: &Plan) -> Result<()> {
        let mut steps = vec![Step::Rank];
        if self.search.bank.dtype() == DType::F32 {
            steps.push(Step::Refine);
        }
        steps.push(Step::Exact);
        let mut rows = (self.search.labels.map_or(0, |classes| classes.query_order.address()), 0);
        for (turn, step) in steps.iter().enumerate() {
            let pairs = self.pairs(rows);
            self.candidates(*step, &pairs, found, plan)?;
            self.finish(*step, &pairs, (found, wanted), plan)?;
            if turn + 1 < steps.len() {
                let left = (self.at(self.buffers.left[turn % 2]), self.at(self.buffers.left_count[turn % 2]));
                self.unproven(&pairs, left)?;
                rows = left;
            }
        }
        Ok(())
    }

    fn at(&self, offset: u64) -> u64 {
        self.scratch + offset
    }

    /// What every kernel reads; `rows` are the queries of this launch and how many they are.
    fn pairs(&self, rows: (u64, u64)) -> abi::Pairs {
        let search = self.search;
        abi::Pairs {
            queries: search.queries.address(),
            keys: search.bank.address(),
            rows: rows.0,
            row_count: rows.1,
            key_order: search.labels.map_or(0, |classes| classes.key_order.address()),
            query_labels: search.labels.map_or(0, |classes| classes.query_labels.address()),
            key_labels: search.labels.map_or(0, |classes| classes.key_labels.address()),
            query_ids: search.ids.map_or(0, |(queries, _)| queries.address()),
            key_ids: search.ids.map_or(0, |(_, keys)| keys.address()),
            allow: search.allow.map_or(0, |bits| bits.address()),
            query_stride: search.queries.stride() as u64,
            key_stride: search.bank.stride() as u64,
            row_limit: search.queries.rows() as u32,
            keys_in_all: search.bank.rows() as u32,
            dim: search.bank.cols() as u32,
            metric: abi::metric(search.metric),
        }
    }

    fn candidates(&self, step: Step, pairs: &abi::Pairs, found: usize, plan: &Plan) -> Result<()> {
        let suffix = self.search.bank.dtype().suffix();
        let (entry, rows, splits, capacity, shared) = match step {
            Step::Rank => {
                let name = if plan.rows == FEW_ROWS { "few" } else { "many" };
                let shared = rank_shared_bytes(plan.rows);
                (format!("neighbors_rank_{name}_{suffix}"), plan.rows, plan.splits, plan.capacity, shared)
            }
            Step::Refine => {
                let splits = plan.refined_lists_of_row();
                let shared = rank_shared_bytes(MANY_ROWS);
                (format!("neighbors_refine_{suffix}"), MANY_ROWS, splits, plan.capacity, shared)
            }
            Step::Exact => {
                let (splits, capacity) = (plan.exact_splits, plan.exact_capacity);
                (format!("neighbors_exact_{suffix}"), MANY_ROWS, splits, capacity, EXACT_SHARED_BYTES)
            }
        };
        let params = abi::NeighborsRank {
            pairs: *pairs,
            scores: self.found.scores.address(),
            indices: self.found.indices.address(),
            lists: self.at(self.buffers.lists),
            status: self.found.status.address(),
            k: self.search.k as u32,
            found: found as u32,
            capacity: capacity as u32,
            splits: splits as u32,
        };
        let grid = [pairs.row_limit.div_ceil(rows as u32).into(), splits as u64, 1];
        // SAFETY: the search was checked, so every array has the length that its counts say; `lists` has room for
        // `entries_of_row` entries of every row, and a split writes `capacity` entries of its lists.
        unsafe { launch(self.executor, (OP, FAMILY, &entry), grid, (THREADS, shared), &params) }
    }

    fn finish(
        &self,
        step: Step,
        pairs: &abi::Pairs,
        (found, wanted): (usize, usize),
        plan: &Plan,
    ) -> Result<()> {
        let (capacity, lists_of_row) = match step {
            Step::Rank => (plan.capacity, plan.lists_of_row()),
            Step::Refine => (plan.capacity, plan.refined_lists_of_row()),
            Step::Exact => (plan.exact_capacity, plan.exact_splits),
        };
        let params = abi::NeighborsFinish {
            pairs: *pairs,
            scores: self.found.scores.address(),
            indices: self.found.indices.address(),
            lists: self.at(self.buffers.lists),
            unproven: self.at(self.buffers.unproven),
            k: self.search.k as u32,
            found: found as u32,
            wanted: wanted as u32,
            capacity: capacity as u32,
            lists_of_row: lists_of_row as u32,
            exact: u32::from(step == Step::Exact),
        };
        let entry = format!("neighbors_finish_{}", self.search.bank.dtype().suffix());
        let shared = (TILE_THREADS / 32 + 1) * capacity * ENTRY;
        let grid = [pairs.row_limit.into(), 1, 1];
        // SAFETY: as for the candidates; outputs have k places of every query, and found + wanted ≤ k.
        unsafe { launch(self.executor, (OP, FAMILY, &entry), grid, (THREADS, shared as u32), &params) }
    }

    fn unproven(&self, pairs: &abi::Pairs, (left, left_count): (u64, u64)) -> Result<()> {
        let params = abi::NeighborsUnproven {
            unproven: self.at(self.buffers.unproven),
            rows: pairs.rows,
            row_count: pairs.row_count,
            left,
            left_count,
            row_limit: pairs.row_limit,
            reserved: 0,
        };
        let shared = (TILE_THREADS / 32 * size_of::<u32>()) as u32;
        // SAFETY: `left` has room for all rows, and is not the list of rows that is read.
        unsafe {
            launch(self.executor, (OP, FAMILY, "neighbors_unproven"), [1; 3], (THREADS, shared), &params)
        }
    }
}

fn check(search: &Search<'_>) -> Result<()> {
    use consonance_cpu::Error as Bad;
    let (queries, bank) = (&search.queries, &search.bank);
    if !(1..=MAX_K).contains(&search.k) {
        return Err(Bad::range(OP, "k", search.k, format!("1..={MAX_K}")).into());
    }
    super::rows::check_sides(OP, ["queries", "bank"], queries, bank)?;
    let lengths = |names: [&'static str; 2], (q, k): (Words<'_>, Words<'_>)| {
        super::rows::check_length(OP, names[0], q.len(), queries.rows(), "query")?;
        super::rows::check_length(OP, names[1], k.len(), bank.rows(), "key")
    };
    if let Some(classes) = search.labels {
        lengths(["query_labels", "key_labels"], (classes.query_labels, classes.key_labels))?;
        lengths(["query_order", "key_order"], (classes.query_order.words(), classes.key_order.words()))?;
    }
    if let Some(ids) = search.ids {
        lengths(["query_ids", "key_ids"], ids)?;
    }
    match search.allow {
        Some(bits) => super::rows::check_length(OP, "allow", bits.len(), bank.rows().div_ceil(32), "32 keys"),
        None => Ok(()),
    }
}

/// A bit a key from a byte a key, of which 0 means no: the form of [`Search::allow`].
///
/// # Errors
/// [`super::Error::Argument`] for no or too many keys, and those of allocation and launch.
pub fn pack_bits(executor: &dyn Executor, mask: Bytes<'_>) -> Result<Memory> {
    let keys = mask.len();
    if keys == 0 || keys >= u32::MAX as usize {
        return Err(consonance_cpu::Error::range(OP, "allow", keys, "1..2^32 - 1 keys").into());
    }
    let bits = executor.allocate(OP, keys.div_ceil(32) * size_of::<u32>())?;
    let params =
        abi::NeighborsBits { mask: mask.address(), bits: bits.address(), count: keys as u32, reserved: 0 };
    let grid = [keys.div_ceil(TILE_THREADS) as u64, 1, 1];
    // SAFETY: the mask has `keys` bytes and the output a bit for each, rounded up to words.
    unsafe { launch(executor, (OP, FAMILY, "neighbors_bits"), grid, (THREADS, 0), &params)? };
    Ok(bits)
}

/// Gradients of the scores with respect to one side, the neighbors held fixed.
///
/// `upstream` `[B, k]` `f32` is the gradient of the scores, `indices` `[B, k]` the neighbors. Returns `[B, D]` for the
/// queries and `[N, D]` for the bank, `f32`.
///
/// # Errors
/// [`super::Error::Argument`] for disagreeing shapes, and those of allocation and launch.
pub fn gradient(
    executor: &dyn Executor,
    (queries, bank): (&Matrix<'_>, &Matrix<'_>),
    metric: Metric,
    k: usize,
    (upstream, indices): (Words<'_>, Words<'_>),
    side: Side,
) -> Result<Memory> {
    super::rows::check_sides(OP, ["queries", "bank"], queries, bank)?;
    if !(1..=MAX_K).contains(&k) {
        return Err(consonance_cpu::Error::range(OP, "k", k, format!("1..={MAX_K}")).into());
    }
    super::rows::check_length(OP, "upstream", upstream.len(), queries.rows() * k, "neighbor")?;
    super::rows::check_length(OP, "indices", indices.len(), queries.rows() * k, "neighbor")?;
    let (name, rows, blocks, shared) = match side {
        Side::Queries => ("queries", queries.rows(), queries.rows(), k * 2 * size_of::<f32>()),
        Side::Bank => ("keys", bank.rows(), bank.rows().div_ceil(abi::OWNED_KEYS), TILE_THREADS * 8 + 16),
    };
    let gradient = executor.allocate(OP, rows * bank.cols() * size_of::<f32>())?;
    let params = abi::NeighborsGradient {
        queries: queries.address(),
        keys: bank.address(),
        upstream: upstream.address(),
        indices: indices.address(),
        gradient: gradient.address(),
        query_stride: queries.stride() as u64,
        key_stride: bank.stride() as u64,
        query_count: queries.rows() as u32,
        key_count: bank.rows() as u32,
        dim: bank.cols() as u32,
        metric: abi::metric(metric),
        k: k as u32,
        reserved: 0,
    };
    let entry = format!("neighbors_gradient_{name}_{}", bank.dtype().suffix());
    // SAFETY: the sides and lengths were checked, and the output has a row for every row of its side.
    unsafe {
        let kernel = (OP, "neighbors_gradient", entry.as_str());
        launch(executor, kernel, [blocks as u64, 1, 1], (THREADS, shared as u32), &params)?;
    }
    Ok(gradient)
}

/// A side of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The queries.
    Queries,
    /// The bank.
    Bank,
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Limits = Limits { multiprocessors: 132, shared_bytes: 232_448, grid: 2_147_483_647 };

    #[test]
    fn scratch_stays_within_a_mebibyte_for_each_block_of_queries() {
        for dtype in DType::ALL {
            for queries in [1, 15, 16, 64, 65, 1000, 65_536] {
                for keys in [1, 64, 65, 100_000, 10_000_000] {
                    for wanted in [1, 10, 33, 64, 128] {
                        let plan = Plan::new(dtype, queries, keys, wanted, H200);
                        for (rows, entries) in [
                            (plan.rows, plan.lists_of_row() * plan.capacity),
                            (MANY_ROWS, plan.refined_lists_of_row() * plan.capacity),
                            (MANY_ROWS, plan.exact_splits * plan.exact_capacity),
                        ] {
                            assert!(queries.min(rows) * entries * ENTRY <= LIST_BYTES, "{plan:?}");
                            assert!(entries <= plan.entries_of_row(), "{plan:?}");
                        }
                        assert!(plan.capacity >= 2 * wanted && plan.exact_capacity >= wanted, "{plan:?}");
                        assert!(
                            plan.capacity <= abi::MAX_CAPACITY && plan.capacity.is_multiple_of(RING),
                            "{plan:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_blocks_fill_the_device_when_there_are_keys_enough() {
        let plan = Plan::new(DType::BF16, 8192, 1_000_000, 10, H200);
        assert_eq!((plan.rows, plan.splits), (MANY_ROWS, 3));
        let plan = Plan::new(DType::BF16, 1, 1_000_000, 10, H200);
        assert_eq!((plan.rows, plan.splits), (FEW_ROWS, 264));
        let plan = Plan::new(DType::BF16, 64, 1_000_000, 10, H200);
        assert_eq!((plan.rows, plan.splits), (FEW_ROWS, 32));
        assert_eq!(Plan::new(DType::F32, 1, 64, 1, H200).splits, 1);
    }

    #[test]
    fn shared_memory_fits_into_the_smallest_device() {
        // 99 KiB for one block on sm_86 and sm_89.
        assert!(rank_shared_bytes(MANY_ROWS).max(EXACT_SHARED_BYTES) <= 99 * 1024);
    }
}
