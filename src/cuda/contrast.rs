//! The contrastive loss on a device: launches of `kernels/contrast.cu`.

mod check;
mod moments;
mod pace;
pub(super) mod plan;
mod symmetric;

use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::{AffinityMap, Options};

use super::abi::{
    self, CHECKED_ROWS, CONTRAST_STATUS, MANY_ROWS, TARGET_DIMS, TARGET_SHARED_BYTES, TILE_KEYS, TILE_THREADS,
};
use super::executor::launch;
use super::rows::check_length;
use super::scratch::Scratch;
use super::{Error, Executor, Matrix, Memory, Order, Result, Words};
use check::{check, check_losses};
pub use pace::{Closeness, Pace};
use plan::{Buffers, params};
pub(super) use plan::{Shape, splits};
pub use symmetric::{Symmetric, SymmetricLosses, SymmetricSide, symmetric_gradient, symmetric_losses};

const OP: &str = "contrast";

/// Which keys are the positives of a query.
#[derive(Debug, Clone, Copy)]
pub enum Rule<'a> {
    /// Keys of the query's label: `u32` `[B]` and `[N]`.
    Labels {
        /// Of the queries.
        queries: Words<'a>,
        /// Of the keys.
        keys: Words<'a>,
        /// The keys in the order of these labels, by [`super::segments::sort`].
        key_order: &'a Order,
    },
    /// Key i is the positive of query i; more keys than queries are allowed.
    Diagonal,
    /// Query i's positives are `indices[offsets[i]..offsets[i + 1]]`, ascending without repeats.
    Lists {
        /// `u32` `[B + 1]`, ascending from 0.
        offsets: Words<'a>,
        /// `u32` key numbers.
        indices: Words<'a>,
        /// `f32`, one an index; all 1 when absent.
        weights: Option<Words<'a>>,
        /// Whether a list may end in `u32::MAX`, which stands for no key.
        padded: bool,
    },
    /// Keys whose set of bits shares at least `min_overlap` bits with the query's.
    Bits {
        /// `u32` `[B, words]`.
        queries: Words<'a>,
        /// `u32` `[N, words]`.
        keys: Words<'a>,
        /// Words of one set.
        words: usize,
        /// At least 1.
        min_overlap: u32,
    },
    /// Every key.
    All,
}

/// Old embeddings whose cosine weighs a pair; of any norm but zero, and of dtypes of their own.
#[derive(Debug, Clone, Copy)]
pub struct Affinity<'a> {
    /// `[B, Do]`.
    pub queries: Matrix<'a>,
    /// `[N, Do]`.
    pub keys: Matrix<'a>,
    /// From cosine to weight.
    pub map: AffinityMap,
}

/// Who is whose positive, and who is in whose denominator. Masks have one bit a row, as
/// [`super::neighbors::pack_bits`] makes them.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Which keys are positives.
    pub rule: Rule<'a>,
    /// Weights of the positives, beside the lists' own.
    pub affinity: Option<Affinity<'a>>,
    /// `[⌈B / 32⌉]`: a query whose bit is not set is no anchor.
    pub anchors: Option<Words<'a>>,
    /// `[⌈N / 32⌉]`: a key whose bit is not set is in no numerator and no denominator.
    pub valid: Option<Words<'a>>,
    /// `[⌈N / 32⌉]`: a key whose bit is not set is nobody's positive.
    pub credible: Option<Words<'a>>,
    /// `f32` `[N]`, at least 0.
    pub denominator_weights: Option<Words<'a>>,
    /// `u32` `[B]` and `[N]`: pairs of equal id are in no numerator and no denominator.
    pub same_id: Option<(Words<'a>, Words<'a>)>,
    /// `u32` `[B]` and `[N]`: keys of the row's label that are not its positives leave its denominator.
    pub left_out_labels: Option<(Words<'a>, Words<'a>)>,
    /// Weights of the negatives of the query's own group.
    pub pace: Option<Pace<'a>>,
}

impl<'a> Pairs<'a> {
    /// Pairs of one rule and no option.
    pub fn new(rule: Rule<'a>) -> Self {
        Self {
            rule,
            affinity: None,
            anchors: None,
            valid: None,
            credible: None,
            denominator_weights: None,
            same_id: None,
            left_out_labels: None,
            pace: None,
        }
    }
}

/// Queries, keys, temperatures, pairs and options of one loss.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[B, D]`.
    pub queries: Matrix<'a>,
    /// `[N, D]`, of the same dtype.
    pub keys: Matrix<'a>,
    /// `f32`: one for all, or one a query.
    pub temperatures: Words<'a>,
    /// Who is whose positive, and who is in whose denominator.
    pub pairs: Pairs<'a>,
    /// The form of the loss; [`consonance_cpu::contrast::Products::F32`] is refused.
    pub options: Options,
}

/// What the forward pass found, `f32` in the memory of the device.
#[derive(Debug)]
pub struct Losses {
    /// L_i `[B]`; 0 for rows that do not count.
    pub per_row: Memory,
    /// ln of the row's denominator `[B]`, without its positives when they are left out; −∞ when it is empty.
    pub log_sum_exp: Memory,
    /// 1/n_i `[B]`, what a positive's weight is multiplied by to be its target; 0 for rows that do not count.
    pub inverse_normalizer: Memory,
    /// When they were asked for.
    pub gradients: Option<QueryGradients>,
    mass: Memory,
    /// 1/‖o‖ of old queries and keys.
    old_inverses: Option<(Memory, Memory)>,
    status: Memory,
    /// What of the queries and the keys makes them close, and whether by a cosine.
    closeness: (&'static str, &'static str, bool),
}

impl Losses {
    fn allocate(executor: &dyn Executor, problem: &Problem<'_>, gradients: bool) -> Result<Self> {
        let (b, n, d) = (problem.queries.rows(), problem.keys.rows(), problem.queries.cols());
        let floats = |count: usize| executor.allocate(OP, count * size_of::<f32>());
        let old_inverses = problem.pairs.affinity.map(|_| Ok::<_, Error>((floats(b)?, floats(n)?)));
        Ok(Self {
            per_row: floats(b)?,
            log_sum_exp: floats(b)?,
            inverse_normalizer: floats(b)?,
            gradients: match gradients {
                true => Some(QueryGradients { queries: floats(b * d)?, temperatures: floats(b)? }),
                false => None,
            },
            mass: floats(b)?,
            old_inverses: old_inverses.transpose()?,
            status: executor.upload(OP, &[0xff; CONTRAST_STATUS * size_of::<u32>()])?,
            closeness: match problem.pairs.pace.map(|pace| pace.closeness) {
                Some(Closeness::Features { .. }) => ("query_features", "key_features", true),
                _ => ("query_times", "key_times", false),
            },
        })
    }

    /// Waits for the forward pass and says whether rows, temperatures, weights and lists were good.
    ///
    /// Without this call nothing waits, and what is not good gives results that are none.
    ///
    /// # Errors
    /// [`Error::Row`] for a row that is not finite or too large, [`Error::Argument`] for temperatures,
    /// weights and lists out of range, each with its first place, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; CONTRAST_STATUS];
        executor.download(OP, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        for (argument, word, cosine) in [
            ("queries", 0, false),
            ("keys", 1, false),
            ("old_queries", 5, true),
            ("old_keys", 6, true),
            (self.closeness.0, 10, self.closeness.2),
            (self.closeness.1, 11, self.closeness.2),
        ] {
            if words[word] != u32::MAX {
                return Err(Error::Row { op: OP, argument, row: words[word] as usize, cosine });
            }
        }
        let rest = [
            ("temperature", "finite and above 0, as its inverse"),
            ("denominator_weights", "finite and at least 0"),
            (
                "indices",
                "ascending lists of key numbers without repeats, within the offsets, with finite weights",
            ),
        ];
        for ((argument, expected), place) in rest.into_iter().zip(&words[2..]) {
            if *place != u32::MAX {
                return Err(Bad::range(OP, argument, format!("out of range at {place}"), expected).into());
            }
        }
        Ok(())
    }
}

/// Gradients of the rows' own losses, `f32` in the memory of the device.
#[derive(Debug)]
pub struct QueryGradients {
    /// ∂L_i/∂x_i, `[B, D]`.
    pub queries: Memory,
    /// ∂L_i/∂τ_i, `[B]`; the gradient of a shared temperature is their sum.
    pub temperatures: Memory,
}

/// Computes every row's loss and, with `gradients`, ∂L_i/∂x_i and ∂L_i/∂τ_i in the same pass over the keys; returns
/// without waiting for the device.
///
/// Scratch: 4 bytes a query, and 12 for each split of the keys, of which there are at most 8, and one more with
/// [`Pairs::pace`]; with gradients those of the queries once a split; where all keys are positives, of moments once a split and 4 (D + 1) bytes a query.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes, dtypes or lengths, empty sides, and the forms that the kernels do not
/// have; [`Error::OutOfMemory`], [`Error::NoKernel`] and [`Error::Launch`].
pub fn losses(executor: &dyn Executor, problem: &Problem<'_>, gradients: bool) -> Result<Losses> {
    check(problem)?;
    let (b, n, d) = (problem.queries.rows(), problem.keys.rows(), problem.queries.cols());
    let found = Losses::allocate(executor, problem, gradients)?;
    let by_moments = moments::replace_positives(problem);
    let buffers = Buffers::new(problem, gradients, by_moments);
    let scratch = executor.scratch(OP, buffers.bytes)?;
    let at = |offset: u64| scratch.address() + offset;
    let params = abi::Contrast {
        partials: at(buffers.partials),
        partial_gradients: at(buffers.gradients),
        query_norms: at(buffers.norms),
        targets: at(buffers.targets),
        target_count: at(buffers.moments) + moments::count_offset(problem),
        ..params(problem, &found)
    };
    let dtype = problem.queries.dtype();
    let suffix = dtype.suffix();
    let shape = Shape::new(dtype, d);
    let target_parts = if gradients { d.div_ceil(TARGET_DIMS) } else { 1 };
    let steps = [
        (
            format!("rows_{suffix}_{}", shape.groups),
            [b.div_ceil(MANY_ROWS), splits(n), if gradients { shape.parts } else { 1 }],
            shape.threads,
            shape.rows_shared_bytes(),
        ),
        (format!("targets_{suffix}"), [b, target_parts, 1], TILE_THREADS, TARGET_SHARED_BYTES),
    ];
    for (step, grid, threads, shared) in checks(problem).into_iter().chain(steps) {
        if step.starts_with("targets") {
            pace::rows(executor, problem, &params)?;
            if by_moments {
                let [partials, sums, targets] =
                    [buffers.moment_partials, buffers.moments, buffers.targets].map(at);
                moments::of_keys(executor, problem, &found, [partials, sums, targets])?;
            }
        }
        // SAFETY: the problem was checked, so every array has the length that its counts say; a row has a partial
        // result and a partial gradient for every split, and outputs have a number for every query.
        unsafe { run(executor, &step, grid, (threads, shared), &params)? };
    }
    Ok(found)
}

/// A kernel's name behind that of the family, its grid, threads and shared memory.
type Step = (String, [usize; 3], usize, usize);

/// What comes before all sums.
fn checks(problem: &Problem<'_>) -> Vec<Step> {
    let rows = problem.queries.rows() + problem.keys.rows();
    let old = ("old".to_owned(), [rows.div_ceil(TILE_THREADS / 32), 1, 1], TILE_THREADS, 0);
    let check = format!("check_{}", problem.queries.dtype().suffix());
    let check = (check, [rows.div_ceil(CHECKED_ROWS), 1, 1], TILE_THREADS, 0);
    problem.pairs.affinity.map(|_| old).into_iter().chain([check]).collect()
}

/// Computes the gradient of Σ_i `upstream[i]` · L_i for the keys, `f32` `[N, D]`, of a problem whose `losses` these
/// are; returns without waiting for the device. Every key has one owner.
///
/// Scratch: 8 bytes a query, and moments where all keys are positives.
///
/// # Errors
/// As [`losses()`], and when `upstream` has not one number a query.
pub fn key_gradients(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    losses: &Losses,
    upstream: Words<'_>,
) -> Result<Memory> {
    check(problem)?;
    check_losses(problem, losses)?;
    let (b, n, d) = (problem.queries.rows(), problem.keys.rows(), problem.queries.cols());
    check_length(OP, "row_gradients", upstream.len(), b, "query")?;
    let found = executor.allocate(OP, n * d * size_of::<f32>())?;
    let by_moments = moments::replace_positives(problem);
    let mut layout = Scratch::new();
    let weights = layout.take(b * size_of::<f32>());
    let moment_weights = layout.take(b * size_of::<f32>());
    let unit = layout.take(size_of::<f32>());
    let [partials, sums] =
        moments::room(problem, problem.queries.rows(), by_moments).map(|it| layout.take(it));
    let scratch = executor.scratch(OP, layout.bytes())?;
    let at = |offset: u64| scratch.address() + offset;
    let params = abi::Contrast {
        upstream: upstream.address(),
        key_gradient: found.address(),
        row_weights: at(weights),
        row_unit: at(unit),
        moment_weights: at(moment_weights),
        ..params(problem, losses)
    };
    let dtype = problem.queries.dtype();
    let shape = Shape::new(dtype, d);
    let warps = TILE_THREADS / 32 * size_of::<f32>();
    let entry = format!("keys_{}_{}", dtype.suffix(), shape.groups);
    // SAFETY: as for the losses; upstream and weights have a number for every query, the output a row for every key.
    unsafe {
        run(executor, "weigh", [1; 3], (TILE_THREADS, warps), &params)?;
        let grid = [n.div_ceil(TILE_KEYS), shape.parts, 1];
        run(executor, &entry, grid, (shape.threads, shape.keys_shared_bytes()), &params)?;
    }
    pace::keys(executor, problem, &params)?;
    if by_moments {
        let weights = params.moment_weights;
        moments::of_queries(executor, problem, losses, weights, [at(partials), at(sums), found.address()])?;
    }
    Ok(found)
}

/// # Safety
/// As [`launch`].
unsafe fn run(
    executor: &dyn Executor,
    step: &str,
    grid: [usize; 3],
    (threads, shared): (usize, usize),
    params: &abi::Contrast,
) -> Result<()> {
    let (entry, grid) = (format!("contrast_{step}"), grid.map(|blocks| blocks as u64));
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, (OP, "contrast", &entry), grid, (threads as u32, shared as u32), params) }
}
