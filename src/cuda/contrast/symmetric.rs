//! Both directions of a contrastive loss (CLIP) from one pass over the scores: launches of
//! `kernels/contrast_symmetric.cu`.

use consonance_cpu::Error as Bad;

use super::check::{check, check_losses};
use super::plan::{Shape, both_splits, params};
use super::{Losses, OP, Problem, Rule, checks, run};
use crate::cuda::abi::{self, CHECKED_ROWS, ROW_PARTIAL_BYTES, TARGET_SHARED_BYTES, TILE_KEYS, TILE_THREADS};
use crate::cuda::executor::launch;
use crate::cuda::rows::check_length;
use crate::cuda::scratch::Scratch;
use crate::cuda::{Executor, Memory, Result, Words};

/// Two sides and both directions of their loss.
#[derive(Debug, Clone, Copy)]
pub struct Symmetric<'a> {
    /// X `[B, D]` against Y `[N, D]`.
    pub rows: Problem<'a>,
    /// Y against X, the same rows, with the pairs transposed: its anchors are those of the rows' keys that may be
    /// positives, its keys are all valid.
    pub columns: Problem<'a>,
}

/// What the forward pass found.
#[derive(Debug)]
pub struct SymmetricLosses {
    /// Of X against Y, without gradients.
    pub rows: Losses,
    /// Of Y against X.
    pub columns: Losses,
    /// ∂L_i/∂τ of both directions, `f32` `[B]` and `[N]`, when they were asked for.
    pub temperatures: Option<[Memory; 2]>,
}

impl SymmetricLosses {
    /// As [`Losses::check`], of both directions.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        self.rows.check(executor)?;
        self.columns.check(executor)
    }
}

/// Whose gradient is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymmetricSide {
    /// X, the queries of the rows' direction.
    X,
    /// Y, its keys.
    Y,
}

/// Checks what both directions have in common.
fn check_both(problem: &Symmetric<'_>) -> Result<()> {
    let Symmetric { rows, columns } = problem;
    check(rows)?;
    check(columns)?;
    let shape = |rows: &crate::cuda::Matrix<'_>| [rows.rows(), rows.cols()];
    for (argument, ours, theirs) in
        [("queries", &columns.queries, &rows.keys), ("keys", &columns.keys, &rows.queries)]
    {
        if shape(ours) != shape(theirs) {
            let expected = format!("{:?}, the other side of the other direction", shape(theirs));
            return Err(Bad::shape(OP, argument, &shape(ours), expected).into());
        }
        if ours.dtype() != theirs.dtype() {
            let expected = format!("{:?}, the dtype of the other direction", theirs.dtype());
            return Err(Bad::range(OP, argument, format!("{:?}", ours.dtype()), expected).into());
        }
    }
    for direction in [rows, columns] {
        let count = direction.temperatures.len();
        if count != 1 {
            let expected = "[1]: the symmetric form has one temperature";
            return Err(Bad::shape(OP, "temperature", &[count], expected).into());
        }
        if let Some(weights) = direction.pairs.denominator_weights {
            let expected = "none in the symmetric form: they belong to one side";
            return Err(Bad::shape(OP, "denominator_weights", &[weights.len()], expected).into());
        }
        if matches!(direction.pairs.rule, Rule::All) {
            let expected = "a rule other than `all`, whose two directions are losses of their own";
            return Err(Bad::range(OP, "pairs", "all", expected).into());
        }
    }
    Ok(())
}

/// Computes the losses of both directions, and with `temperatures` their gradients for the temperature, from one product
/// of 2·B·N·D operations; returns without waiting for the device.
///
/// Scratch: 4 bytes a row of either side, and 12 for each split of the other, of which there are at most 16.
///
/// # Errors
/// As [`super::losses`] of each direction; and for directions whose sides are not each other's, that have denominator
/// weights or more than one temperature, and for [`Rule::All`].
pub fn symmetric_losses(
    executor: &dyn Executor,
    problem: &Symmetric<'_>,
    temperatures: bool,
) -> Result<SymmetricLosses> {
    check_both(problem)?;
    let (b, n) = (problem.rows.queries.rows(), problem.rows.keys.rows());
    let floats = |count: usize| executor.allocate(OP, count * size_of::<f32>());
    let found = SymmetricLosses {
        rows: Losses::allocate(executor, &problem.rows, false)?,
        columns: Losses::allocate(executor, &problem.columns, false)?,
        temperatures: if temperatures { Some([floats(b)?, floats(n)?]) } else { None },
    };
    let (of_queries, of_keys) = (both_splits(b), both_splits(n));
    let mut layout = Scratch::new();
    let places = [
        b * of_keys * ROW_PARTIAL_BYTES,
        n * of_queries * ROW_PARTIAL_BYTES,
        b * size_of::<f32>(),
        n * size_of::<f32>(),
    ];
    let places = places.map(|bytes| layout.take(bytes));
    let scratch = executor.scratch(OP, layout.bytes())?;
    let [row_partials, column_partials, query_norms, key_norms] =
        places.map(|offset| scratch.address() + offset);
    let gradient = |which: usize| found.temperatures.as_ref().map_or(0, |both| both[which].address());
    let rows = abi::Contrast {
        partials: row_partials,
        splits: of_keys as u32,
        query_norms,
        key_norms,
        temperature_gradient: gradient(0),
        positives_within: 1,
        ..params(&problem.rows, &found.rows)
    };
    let columns = abi::Contrast {
        partials: column_partials,
        splits: of_queries as u32,
        temperature_gradient: gradient(1),
        positives_within: 1,
        ..params(&problem.columns, &found.columns)
    };
    let both = abi::ContrastSymmetric {
        pairs: rows,
        key_partials: column_partials,
        query_splits: of_queries as u32,
        ..abi::ContrastSymmetric::default()
    };
    let dtype = problem.rows.queries.dtype();
    for (direction, params) in [(&problem.rows, &rows), (&problem.columns, &columns)] {
        for (step, grid, threads, shared) in checks(direction) {
            // SAFETY: the problem was checked, so every array has the length that its counts say; there is a norm for
            // every row.
            unsafe { run(executor, &step, grid, (threads, shared), params)? };
        }
    }
    let suffix = dtype.suffix();
    let shared = Shape::both_sums_shared_bytes(dtype);
    // SAFETY: as above; every query has a partial sum for each split of the keys, and every key for each of the queries.
    unsafe {
        run_both(executor, &format!("sums_{suffix}"), [of_queries, of_keys], (TILE_THREADS, shared), &both)?;
    }
    for (count, params) in [(b, &rows), (n, &columns)] {
        let step = format!("targets_{suffix}");
        // SAFETY: as above; outputs have a number for every query of the direction.
        unsafe { run(executor, &step, [count, 1, 1], (TILE_THREADS, TARGET_SHARED_BYTES), params)? };
    }
    Ok(found)
}

/// Computes the gradient of Σ_i `upstream[0][i]` · L_i + Σ_j `upstream[1][j]` · L'_j, the losses of the rows and of the
/// columns, for one side, `f32` `[B, D]` or `[N, D]`; returns without waiting for the device. Every row has one owner.
///
/// # Errors
/// As [`symmetric_losses`], and when `upstream` has not one number for each row of both sides.
pub fn symmetric_gradient(
    executor: &dyn Executor,
    problem: &Symmetric<'_>,
    losses: &SymmetricLosses,
    upstream: [Words<'_>; 2],
    side: SymmetricSide,
) -> Result<Memory> {
    check_both(problem)?;
    let rows = (&problem.rows, &losses.rows, upstream[0]);
    let columns = (&problem.columns, &losses.columns, upstream[1]);
    for (problem, losses, upstream) in [rows, columns] {
        check_losses(problem, losses)?;
        check_length(OP, "row_gradients", upstream.len(), problem.queries.rows(), "row")?;
    }
    // The owners are the keys of their direction.
    let (streamed, owned) = if side == SymmetricSide::Y { (rows, columns) } else { (columns, rows) };
    let (b, n, d) = (streamed.0.queries.rows(), streamed.0.keys.rows(), streamed.0.keys.cols());
    let found = executor.allocate(OP, n * d * size_of::<f32>())?;
    let largest = executor.upload(OP, &[0xff; size_of::<u32>()])?;
    let params = abi::ContrastSymmetric {
        pairs: abi::Contrast {
            upstream: streamed.2.address(),
            key_gradient: found.address(),
            ..params(streamed.0, streamed.1)
        },
        key_upstream: owned.2.address(),
        key_log_sum_exp: owned.1.log_sum_exp.address(),
        key_mass: owned.1.mass.address(),
        key_inverse_normalizer: owned.1.inverse_normalizer.address(),
        query_valid: owned.0.pairs.valid.map_or(0, |valid| valid.address()),
        largest: largest.address(),
        ..abi::ContrastSymmetric::default()
    };
    let shape = Shape::new(problem.rows.queries.dtype(), d);
    let entry = format!("gradient_{}_{}", problem.rows.queries.dtype().suffix(), shape.groups);
    let warps = (b + n).div_ceil(CHECKED_ROWS);
    let shared = shape.both_gradient_shared_bytes();
    // SAFETY: as for the losses; upstream has a number for every row of both sides, the output a row for every owner.
    unsafe {
        run_both(executor, "largest", [warps.div_ceil(TILE_THREADS / 32), 1], (TILE_THREADS, 0), &params)?;
        let grid = [n.div_ceil(TILE_KEYS), shape.parts];
        run_both(executor, &entry, grid, (shape.threads, shared), &params)?;
    }
    Ok(found)
}

/// # Safety
/// As [`launch`].
unsafe fn run_both(
    executor: &dyn Executor,
    step: &str,
    [width, height]: [usize; 2],
    (threads, shared): (usize, usize),
    params: &abi::ContrastSymmetric,
) -> Result<()> {
    let entry = format!("contrast_symmetric_{step}");
    let launched = (OP, "contrast_symmetric", &*entry);
    // SAFETY: passed on to the caller.
    unsafe {
        launch(executor, launched, [width as u64, height as u64, 1], (threads as u32, shared as u32), params)
    }
}
