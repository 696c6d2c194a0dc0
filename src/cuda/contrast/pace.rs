//! The negatives of a query's own group: launches of `kernels/contrast_pace.cu`.

use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::Admission;

use super::check::check_rows_beside;
use super::{OP, Problem};
use crate::cuda::abi::{self, PACE_SHARED_BYTES, TARGET_DIMS, TILE_THREADS};
use crate::cuda::executor::launch;
use crate::cuda::rows::check_length;
use crate::cuda::{Executor, Matrix, Order, Result, Words};

/// How close a negative of the query's group is to being a positive: an affinity in [0, 1].
#[derive(Debug, Clone, Copy)]
pub enum Closeness<'a> {
    /// e^{−|t_i − t_j|/scale}.
    Times {
        /// `f32` `[B]`, finite.
        queries: Words<'a>,
        /// `f32` `[N]`, finite.
        keys: Words<'a>,
        /// Finite and above 0.
        scale: f32,
    },
    /// ½(1 + cos) of features of any norm but zero, and of dtypes of their own.
    Features {
        /// `[B, Df]`.
        queries: Matrix<'a>,
        /// `[N, Df]`.
        keys: Matrix<'a>,
    },
}

/// Weights of the negatives of the query's own group; other negatives, and positives, count fully.
#[derive(Debug, Clone, Copy)]
pub struct Pace<'a> {
    /// `u32` `[B]` and `[N]`.
    pub groups: (Words<'a>, Words<'a>),
    /// The rows of both sides in the order of their groups, by [`crate::cuda::segments::sort`].
    pub orders: (&'a Order, &'a Order),
    /// The affinity inside a group.
    pub closeness: Closeness<'a>,
    /// ρ, above 0 and at most 1.
    pub pace: f32,
    /// From affinity to weight.
    pub admission: Admission,
}

pub(super) fn check(pace: &Pace<'_>, b: usize, n: usize) -> Result<()> {
    check_length(OP, "query_groups", pace.groups.0.len(), b, "query")?;
    check_length(OP, "key_groups", pace.groups.1.len(), n, "key")?;
    check_length(OP, "query_group_order", pace.orders.0.words().len(), b, "query")?;
    check_length(OP, "key_group_order", pace.orders.1.words().len(), n, "key")?;
    if !(pace.pace > 0.0 && pace.pace <= 1.0) {
        return Err(Bad::range(OP, "pace", pace.pace, "above 0 and at most 1").into());
    }
    match &pace.closeness {
        Closeness::Times { queries, keys, scale } => {
            check_length(OP, "query_times", queries.len(), b, "query")?;
            check_length(OP, "key_times", keys.len(), n, "key")?;
            match scale.is_finite() && *scale > 0.0 {
                true => Ok(()),
                false => Err(Bad::range(OP, "time scale", scale, "finite and above 0").into()),
            }
        }
        Closeness::Features { queries, keys } => {
            check_rows_beside([("query_features", queries, b), ("key_features", keys, n)])
        }
    }
}

/// Sums over every query's own pairs, as the last split of `params`, and checks of what weighs them.
pub(super) fn rows(executor: &dyn Executor, problem: &Problem<'_>, params: &abi::Contrast) -> Result<()> {
    let Some(pace) = &problem.pairs.pace else { return Ok(()) };
    let params = with_contrast(pace, params);
    let (b, n) = (problem.queries.rows(), problem.keys.rows());
    let parts = if params.contrast.query_gradient != 0 { parts(problem) } else { 1 };
    let entry = format!("rows_{}", problem.queries.dtype().suffix());
    // SAFETY: groups, orders, times and features have a place for every row, and the problem was checked; the partial
    // results have room for one more split.
    unsafe {
        run(executor, "check", [(b + n).div_ceil(TILE_THREADS / 32), 1, 1], 0, &params)?;
        run(executor, &entry, [b, parts, 1], PACE_SHARED_BYTES, &params)
    }
}

/// Adds the gradient of these pairs to that of the keys.
pub(super) fn keys(executor: &dyn Executor, problem: &Problem<'_>, params: &abi::Contrast) -> Result<()> {
    let Some(pace) = &problem.pairs.pace else { return Ok(()) };
    let entry = format!("keys_{}", problem.queries.dtype().suffix());
    let grid = [problem.keys.rows(), parts(problem), 1];
    // SAFETY: as above; every key has its place in the gradient.
    unsafe { run(executor, &entry, grid, PACE_SHARED_BYTES, &with_contrast(pace, params)) }
}

fn parts(problem: &Problem<'_>) -> usize {
    problem.queries.cols().div_ceil(TARGET_DIMS)
}

fn with_contrast(pace: &Pace<'_>, contrast: &abi::Contrast) -> abi::ContrastPace {
    let all = abi::ContrastPace {
        contrast: *contrast,
        query_order: pace.orders.0.address(),
        key_order: pace.orders.1.address(),
        pace: pace.pace.to_bits(),
        is_soft: u32::from(pace.admission == Admission::Soft),
        ..abi::ContrastPace::default()
    };
    match &pace.closeness {
        Closeness::Times { queries, keys, scale } => abi::ContrastPace {
            closeness: abi::CLOSENESS_TIMES as u32,
            query_closeness: queries.address(),
            key_closeness: keys.address(),
            time_scale: scale.to_bits(),
            ..all
        },
        Closeness::Features { queries, keys } => abi::ContrastPace {
            closeness: abi::CLOSENESS_FEATURES as u32,
            query_closeness: queries.address(),
            key_closeness: keys.address(),
            query_stride: queries.stride() as u64,
            key_stride: keys.stride() as u64,
            query_type: abi::storage_type(queries.dtype()),
            key_type: abi::storage_type(keys.dtype()),
            feature_dim: queries.cols() as u32,
            ..all
        },
    }
}

/// # Safety
/// As [`launch`].
unsafe fn run(
    executor: &dyn Executor,
    step: &str,
    grid: [usize; 3],
    shared: usize,
    params: &abi::ContrastPace,
) -> Result<()> {
    let (entry, grid) = (format!("contrast_pace_{step}"), grid.map(|blocks| blocks as u64));
    let launched = (OP, "contrast_pace", &*entry);
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, launched, grid, (TILE_THREADS as u32, shared as u32), params) }
}
