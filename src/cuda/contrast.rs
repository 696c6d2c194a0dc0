//! The contrastive loss on a device: plans and launches of `kernels/contrast.cu`.

mod check;

use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::{AffinityMap, Normalizer, Options};

use super::abi::{
    self, CONTRAST_STATUS, GRADIENT_DIMS, MANY_ROWS, ROW_PARTIAL_BYTES, TILE_KEYS, TILE_THREADS,
};
use super::executor::launch;
use super::rows::check_length;
use super::scratch::Scratch;
use super::{DType, Error, Executor, Matrix, Memory, Result, Words};
use check::{check, check_losses};

const OP: &str = "contrast";
const FAMILY: &str = "contrast";
const THREADS: u32 = TILE_THREADS as u32;
/// Keys of one split at least, and splits at most: a row's result does not depend on the batch or the device.
const SPLIT_TILES: usize = 16;
const MOST_SPLITS: usize = 8;

/// Which keys are the positives of a query.
#[derive(Debug, Clone, Copy)]
pub enum Rule<'a> {
    /// Keys of the query's label: `u32` `[B]` and `[N]`.
    Labels {
        /// Of the queries.
        queries: Words<'a>,
        /// Of the keys.
        keys: Words<'a>,
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

/// Old embeddings whose cosine weighs a pair.
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
    /// Not supported by the kernels: refused.
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
    /// The form of the loss; [`consonance_cpu::contrast::OtherPositives::LeftOut`] and
    /// [`consonance_cpu::contrast::Products::F32`] are refused.
    pub options: Options,
}

/// What the forward pass found, `f32` in the memory of the device.
#[derive(Debug)]
pub struct Losses {
    /// L_i `[B]`; 0 for rows that do not count.
    pub per_row: Memory,
    /// ln of the row's denominator `[B]`; −∞ when it is empty.
    pub log_sum_exp: Memory,
    /// 1/n_i `[B]`, what a positive's weight is multiplied by to be its target; 0 for rows that do not count.
    pub inverse_normalizer: Memory,
    mass: Memory,
    status: Memory,
}

impl Losses {
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
        for (argument, row) in ["queries", "keys"].into_iter().zip(words) {
            if row != u32::MAX {
                return Err(Error::Row { op: OP, argument, row: row as usize, cosine: false });
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

/// Splits of the keys: a function of their number alone, so that a row has the same bits in any batch.
fn splits(keys: usize) -> usize {
    keys.div_ceil(TILE_KEYS).div_ceil(SPLIT_TILES).clamp(1, MOST_SPLITS)
}

/// Blocks for the dimensions of a gradient.
fn parts(dim: usize) -> usize {
    dim.div_ceil(GRADIENT_DIMS)
}

const STREAM_BYTES: usize = abi::STAGES * (MANY_ROWS + TILE_KEYS) * abi::SLAB_BYTES;
/// `ColumnFacts` of softmax.cuh.
const FACTS_BYTES: usize = 5 * TILE_KEYS * size_of::<u32>();
/// `RowSums::Shared` behind the stages of the stream.
const ROWS_SHARED_BYTES: u32 = (STREAM_BYTES + FACTS_BYTES + TILE_KEYS * size_of::<f32>()) as u32;

/// `Gradient::Shared` behind the stages of the stream and the slabs of a part.
fn gradient_shared_bytes(dtype: DType) -> u32 {
    let slabs = TILE_KEYS * GRADIENT_DIMS * dtype.bytes();
    (STREAM_BYTES + slabs + FACTS_BYTES + 4 * TILE_KEYS * size_of::<f32>()) as u32
}

/// Offsets of the scratch memory of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffers {
    partials: u64,
    gradients: u64,
    temperatures: u64,
    bytes: usize,
}

impl Buffers {
    fn rows(queries: usize, splits: usize) -> Self {
        let mut layout = Scratch::new();
        let partials = layout.take(queries * splits * ROW_PARTIAL_BYTES);
        Self { partials, gradients: 0, temperatures: 0, bytes: layout.bytes() }
    }

    fn queries(queries: usize, dim: usize, splits: usize) -> Self {
        let mut layout = Scratch::new();
        let gradients = layout.take(queries * dim * splits * size_of::<f32>());
        let temperatures = layout.take(queries * splits * size_of::<f32>());
        Self { partials: 0, gradients, temperatures, bytes: layout.bytes() }
    }
}

/// Computes every row's loss; returns without waiting for the device.
///
/// Scratch: 20 bytes a query and split of the keys, of which there are at most 8.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes, dtypes or lengths, empty sides, and the forms that the kernels do not
/// have; [`Error::OutOfMemory`], [`Error::NoKernel`] and [`Error::Launch`].
pub fn losses(executor: &dyn Executor, problem: &Problem<'_>) -> Result<Losses> {
    check(problem)?;
    let (b, n) = (problem.queries.rows(), problem.keys.rows());
    let row = || executor.allocate(OP, b * size_of::<f32>());
    let found = Losses {
        per_row: row()?,
        log_sum_exp: row()?,
        inverse_normalizer: row()?,
        mass: row()?,
        status: executor.upload(OP, &[0xff; CONTRAST_STATUS * size_of::<u32>()])?,
    };
    let buffers = Buffers::rows(b, splits(n));
    let scratch = executor.scratch(OP, buffers.bytes)?;
    let params = abi::Contrast { partials: scratch.address() + buffers.partials, ..params(problem, &found) };
    let suffix = problem.queries.dtype().suffix();
    for (step, grid, shared) in [
        (format!("check_{suffix}"), [(b + n).div_ceil(TILE_THREADS / 32), 1], 0),
        (format!("rows_{suffix}"), [b.div_ceil(MANY_ROWS), splits(n)], ROWS_SHARED_BYTES),
        ("losses".to_owned(), [b.div_ceil(TILE_THREADS), 1], 0),
    ] {
        // SAFETY: the problem was checked, so every array has the length that its counts say; a row has a partial
        // result for every split, and outputs have a number for every query.
        unsafe { run(executor, &step, [grid[0], grid[1], 1], shared, &params)? };
    }
    Ok(found)
}

/// Computes ∂L_i/∂x_i and ∂L_i/∂τ_i of a problem whose `losses` these are; returns without waiting for the device.
///
/// Scratch: the gradient once for every split of the keys, of which there are at most 8.
///
/// # Errors
/// As [`losses()`].
pub fn query_gradients(
    executor: &dyn Executor,
    problem: &Problem<'_>,
    losses: &Losses,
) -> Result<QueryGradients> {
    check(problem)?;
    check_losses(problem, losses)?;
    let (b, n, d) = (problem.queries.rows(), problem.keys.rows(), problem.queries.cols());
    let found = QueryGradients {
        queries: executor.allocate(OP, b * d * size_of::<f32>())?,
        temperatures: executor.allocate(OP, b * size_of::<f32>())?,
    };
    let buffers = Buffers::queries(b, d, splits(n));
    let scratch = executor.scratch(OP, buffers.bytes)?;
    let params = abi::Contrast {
        query_gradient: found.queries.address(),
        temperature_gradient: found.temperatures.address(),
        partial_gradients: scratch.address() + buffers.gradients,
        partial_temperatures: scratch.address() + buffers.temperatures,
        ..params(problem, losses)
    };
    let dtype = problem.queries.dtype();
    let tiles = [b.div_ceil(MANY_ROWS), splits(n), parts(d)];
    let entry = format!("queries_{}", dtype.suffix());
    // SAFETY: as for the losses, whose arrays have a number for every query; the scratch has a gradient and a number
    // of every query for each split.
    unsafe {
        run(executor, &entry, tiles, gradient_shared_bytes(dtype), &params)?;
        run(executor, "join_queries", [b, 1, 1], 0, &params)?;
    }
    Ok(found)
}

/// Computes the gradient of Σ_i `upstream[i]` · L_i for the keys, `f32` `[N, D]`, of a problem whose `losses` these
/// are; returns without waiting for the device. Every key has one owner.
///
/// Scratch: 4 bytes a query.
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
    let mut layout = Scratch::new();
    let (weights, unit) = (layout.take(b * size_of::<f32>()), layout.take(size_of::<f32>()));
    let scratch = executor.scratch(OP, layout.bytes())?;
    let params = abi::Contrast {
        upstream: upstream.address(),
        key_gradient: found.address(),
        row_weights: scratch.address() + weights,
        row_unit: scratch.address() + unit,
        ..params(problem, losses)
    };
    let dtype = problem.queries.dtype();
    let warps = TILE_THREADS / 32 * size_of::<f32>();
    let entry = format!("keys_{}", dtype.suffix());
    // SAFETY: as for the losses; upstream and weights have a number for every query, the output a row for every key.
    unsafe {
        run(executor, "weigh", [1; 3], warps as u32, &params)?;
        run(executor, &entry, [n.div_ceil(TILE_KEYS), parts(d), 1], gradient_shared_bytes(dtype), &params)?;
    }
    Ok(found)
}

/// # Safety
/// As [`launch`].
unsafe fn run(
    executor: &dyn Executor,
    step: &str,
    grid: [usize; 3],
    shared: u32,
    params: &abi::Contrast,
) -> Result<()> {
    let (entry, grid) = (format!("contrast_{step}"), grid.map(|blocks| blocks as u64));
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, (OP, FAMILY, &entry), grid, (THREADS, shared), params) }
}

/// What every kernel reads.
fn params(problem: &Problem<'_>, losses: &Losses) -> abi::Contrast {
    let Problem { queries, keys, temperatures, pairs, options } = problem;
    let address = |words: Option<Words<'_>>| words.map_or(0, |words| words.address());
    let sides =
        |sides: Option<(Words<'_>, Words<'_>)>| sides.map_or((0, 0), |(q, k)| (q.address(), k.address()));
    let (same_id, left_out) = (sides(pairs.same_id), sides(pairs.left_out_labels));
    let all = abi::Contrast {
        queries: queries.address(),
        keys: keys.address(),
        query_stride: queries.stride() as u64,
        key_stride: keys.stride() as u64,
        temperatures: temperatures.address(),
        anchors: address(pairs.anchors),
        valid: address(pairs.valid),
        credible: address(pairs.credible),
        denominator_weights: address(pairs.denominator_weights),
        query_ids: same_id.0,
        key_ids: same_id.1,
        left_out_queries: left_out.0,
        left_out_keys: left_out.1,
        losses: losses.per_row.address(),
        log_sum_exp: losses.log_sum_exp.address(),
        mass: losses.mass.address(),
        inverse_normalizer: losses.inverse_normalizer.address(),
        status: losses.status.address(),
        query_count: queries.rows() as u32,
        key_count: keys.rows() as u32,
        dim: queries.cols() as u32,
        own_temperatures: u32::from(temperatures.len() != 1),
        by_weight: u32::from(options.normalizer == Normalizer::WeightSum),
        splits: splits(keys.rows()) as u32,
        ..abi::Contrast::default()
    };
    match pairs.rule {
        Rule::Labels { queries, keys } => abi::Contrast {
            rule: abi::RULE_LABELS as u32,
            query_labels: queries.address(),
            key_labels: keys.address(),
            ..all
        },
        Rule::Diagonal => abi::Contrast { rule: abi::RULE_DIAGONAL as u32, ..all },
        Rule::Lists { offsets, indices, weights } => abi::Contrast {
            rule: abi::RULE_LISTS as u32,
            offsets: offsets.address(),
            indices: indices.address(),
            weights: address(weights),
            listed: indices.len() as u32,
            ..all
        },
        Rule::Bits { queries, keys, words, min_overlap } => abi::Contrast {
            rule: abi::RULE_BITS as u32,
            query_sets: queries.address(),
            key_sets: keys.address(),
            words: words as u32,
            least_overlap: min_overlap,
            ..all
        },
        Rule::All => abi::Contrast { rule: abi::RULE_ALL as u32, ..all },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_grows_with_the_queries_alone() {
        let many = Buffers::queries(64, 96, splits(100_000_000));
        assert_eq!(splits(100_000_000), MOST_SPLITS);
        assert!(many.bytes <= 64 * 97 * 4 * MOST_SPLITS + 512, "{many:?}");
        assert_eq!(many, Buffers::queries(64, 96, splits(10_000)));
        assert!(Buffers::rows(1000, MOST_SPLITS).bytes <= 1000 * 160 + 256);
    }

    #[test]
    fn splits_depend_on_the_keys_and_none_is_empty() {
        for (keys, expected) in [(1, 1), (1024, 1), (1025, 2), (4096, 4), (1 << 20, MOST_SPLITS)] {
            assert_eq!(splits(keys), expected);
            assert!(keys.div_ceil(TILE_KEYS) >= expected);
        }
    }

    #[test]
    fn shared_memory_fits_into_the_smallest_device() {
        // 99 KiB for one block on sm_86 and sm_89.
        for dtype in DType::ALL {
            assert!(gradient_shared_bytes(dtype).max(ROWS_SHARED_BYTES) <= 99 * 1024);
        }
    }
}
