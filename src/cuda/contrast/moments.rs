//! Sums over all keys at once: launches of `kernels/contrast_moments.cu`.

use consonance_cpu::contrast::{AffinityMap, OtherPositives};

use super::plan::splits;
use super::{Losses, OP, Problem, Rule};
use crate::cuda::abi::{self, MOMENT_APPLIED, MOMENT_COLS, MOMENT_ROWS, TILE_THREADS};
use crate::cuda::executor::launch;
use crate::cuda::{Executor, Matrix, Result, Words};

/// Old dimensions whose rows fit into shared memory, a block's at once.
const MOST_OLD_DIMS: usize = 96 * 1024 / (MOMENT_APPLIED * size_of::<f32>()) - 1;
/// `SumShared` of contrast_moments.cu.
const SUM_SHARED_BYTES: usize = 32 * (MOMENT_ROWS + MOMENT_COLS) * size_of::<f32>();

/// Whether every query has the same positives with weights ½(1 + cos) or 1, so that moments replace all sums over
/// them.
pub(super) fn replace_positives(problem: &Problem<'_>) -> bool {
    let pairs = &problem.pairs;
    let linear = |a: &super::Affinity<'_>| a.map == AffinityMap::Half && a.queries.cols() <= MOST_OLD_DIMS;
    matches!(pairs.rule, Rule::All)
        && pairs.same_id.is_none()
        && problem.options.other_positives == OtherPositives::InDenominator
        && pairs.affinity.as_ref().is_none_or(linear)
}

/// Rows and columns of the moments.
fn shape(problem: &Problem<'_>) -> [usize; 2] {
    [problem.pairs.affinity.map_or(0, |a| a.queries.cols()) + 1, problem.queries.cols() + 1]
}

/// Bytes of the moments of `rows` rows, once a split and in all.
pub(super) fn room(problem: &Problem<'_>, rows: usize, needed: bool) -> [usize; 2] {
    let [height, width] = shape(problem);
    let bytes = if needed { height * width * size_of::<f32>() } else { 0 };
    [splits(rows) * bytes, bytes]
}

/// Where the number of rows is, behind the start of the moments.
pub(super) fn count_offset(problem: &Problem<'_>) -> u64 {
    let [height, width] = shape(problem);
    ((height * width - 1) * size_of::<f32>()) as u64
}

/// One side's old embeddings, with the address of their inverse norms.
type Old<'a> = Option<(Matrix<'a>, u64)>;

fn sides<'a>(problem: &Problem<'a>, losses: &Losses) -> (Old<'a>, Old<'a>) {
    match (problem.pairs.affinity, &losses.old_inverses) {
        (Some(affinity), Some((queries, keys))) => {
            (Some((affinity.queries, queries.address())), Some((affinity.keys, keys.address())))
        }
        _ => (None, None),
    }
}

fn with_old(params: abi::ContrastMoments, old: &Old<'_>) -> abi::ContrastMoments {
    let Some((rows, inverses)) = old else { return params };
    abi::ContrastMoments {
        old: rows.address(),
        old_stride: rows.stride() as u64,
        old_inverses: *inverses,
        old_dim: rows.cols() as u32,
        old_type: abi::storage_type(rows.dtype()),
        ..params
    }
}

/// The keys' moments, and what they are for every query: Σ_j w_ij y_j and Σ_j w_ij, `f32` `[B, D + 1]`. Addresses are of
/// the moments once a split, in all, and of the result.
pub(super) fn of_keys(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    losses: &Losses,
    [partials, moments, targets]: [u64; 3],
) -> Result<()> {
    let (old_queries, old_keys) = sides(problem, losses);
    let address = |words: Option<Words<'_>>| words.map_or(0, |words| words.address());
    let width = shape(problem)[1] as u32;
    let side = abi::ContrastMoments {
        valid: address(problem.pairs.valid),
        credible: address(problem.pairs.credible),
        partials,
        moments,
        ..abi::ContrastMoments::default()
    };
    sum(executor, problem, &problem.keys, with_old(side, &old_keys))?;
    let side = abi::ContrastMoments {
        moments,
        applied: targets,
        applied_stride: width,
        applied_dim: width,
        ..abi::ContrastMoments::default()
    };
    apply(executor, problem, problem.queries.rows(), with_old(side, &old_queries))
}

/// The queries' moments with these weights (`f32` `[B]`), subtracted from the keys' gradient. Addresses as above.
pub(super) fn of_queries(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    losses: &Losses,
    weights: u64,
    [partials, moments, gradient]: [u64; 3],
) -> Result<()> {
    let (old_queries, old_keys) = sides(problem, losses);
    let address = |words: Option<Words<'_>>| words.map_or(0, |words| words.address());
    let side = abi::ContrastMoments { weights, partials, moments, ..abi::ContrastMoments::default() };
    sum(executor, problem, &problem.queries, with_old(side, &old_queries))?;
    let dim = problem.keys.cols() as u32;
    let side = abi::ContrastMoments {
        valid: address(problem.pairs.valid),
        credible: address(problem.pairs.credible),
        moments,
        applied: gradient,
        applied_stride: dim,
        applied_dim: dim,
        subtracts: 1,
        ..abi::ContrastMoments::default()
    };
    apply(executor, problem, problem.keys.rows(), with_old(side, &old_keys))
}

fn sum(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    rows: &Matrix<'_>,
    side: abi::ContrastMoments,
) -> Result<()> {
    let [height, width] = shape(problem);
    let splits = splits(rows.rows());
    let params = abi::ContrastMoments {
        rows: rows.address(),
        stride: rows.stride() as u64,
        row_count: rows.rows() as u32,
        dim: rows.cols() as u32,
        splits: splits as u32,
        ..side
    };
    let entry = format!("sum_{}", rows.dtype().suffix());
    let grid = [height.div_ceil(MOMENT_ROWS), width.div_ceil(MOMENT_COLS), splits];
    // SAFETY: there is room for the moments once a split and once more; rows, masks, old rows and their norms have as
    // many rows as the matrix.
    unsafe {
        run(executor, &entry, grid, SUM_SHARED_BYTES, &params)?;
        run(executor, "join", [(height * width).div_ceil(TILE_THREADS), 1, 1], 0, &params)
    }
}

fn apply(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    rows: usize,
    side: abi::ContrastMoments,
) -> Result<()> {
    let [height, width] = shape(problem);
    let params = abi::ContrastMoments { row_count: rows as u32, dim: (width - 1) as u32, ..side };
    let shared = MOMENT_APPLIED * height * size_of::<f32>();
    // SAFETY: the moments were summed for these dimensions, and the result has a row for every row.
    unsafe { run(executor, "apply", [rows.div_ceil(MOMENT_APPLIED), 1, 1], shared, &params) }
}

/// # Safety
/// As [`launch`].
unsafe fn run(
    executor: &dyn Executor,
    step: &str,
    grid: [usize; 3],
    shared: usize,
    params: &abi::ContrastMoments,
) -> Result<()> {
    let (entry, grid) = (format!("contrast_moments_{step}"), grid.map(|blocks| blocks as u64));
    let launched = (OP, "contrast_moments", &*entry);
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, launched, grid, (TILE_THREADS as u32, shared as u32), params) }
}
