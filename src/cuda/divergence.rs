//! Divergences of two distributions over the same keys on a device: launches of `kernels/divergence.cu`.

use std::f32::consts::LOG2_E;

use consonance_cpu::Error as Bad;
use consonance_cpu::divergence::{Direction, scales};

use super::abi::{self, DIVERGENCE_PARTIAL_BYTES, DIVERGENCE_STATUS, MANY_ROWS, TILE_KEYS, TILE_THREADS};
use super::contrast::plan::{Shape, splits};
use super::executor::launch;
use super::rows::{check_length, check_sides};
use super::scratch::Scratch;
use super::{Error, Executor, Matrix, Memory, Result, Words};

const OP: &str = "divergence";
/// `TileNames` of divergence.cuh, of rows and of columns.
const NAMES_BYTES: usize = 2 * 2 * TILE_KEYS * size_of::<u32>();
/// `DivergenceGradient::Shared`: names, and four numbers of every query.
const GRADIENT_BYTES: usize = NAMES_BYTES + 4 * TILE_KEYS * size_of::<f32>();
const WARPS: usize = TILE_THREADS / 32;

/// Embeddings of one side, and what divides their inner products.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// `[B, D]`.
    pub queries: Matrix<'a>,
    /// `[N, D]`, of the same dtype.
    pub keys: Matrix<'a>,
    /// τ.
    pub temperature: f32,
}

/// The pairs that neither side compares.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exclusions<'a> {
    /// `[⌈N / 32⌉]`, one bit a row, as [`super::neighbors::pack_bits`] makes them: a key whose bit is not set is not compared.
    pub valid: Option<Words<'a>>,
    /// `u32` `[B]` and `[N]`: pairs of equal id are not compared.
    pub same_id: Option<(Words<'a>, Words<'a>)>,
    /// Query i does not meet key i.
    pub diagonal: bool,
}

/// Student, teacher and which of their pairs are compared.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Receives gradients.
    pub student: Side<'a>,
    /// A constant of the same dtype, with as many queries and keys; its dimension may be another.
    pub teacher: Side<'a>,
    /// T, what divides the scores of both sides once more.
    pub softening: f32,
    /// Which divergence.
    pub direction: Direction,
    /// The pairs that are not compared.
    pub excluded: Exclusions<'a>,
    /// `f32` `[B]`: [`Losses::teacher_log_sum_exp`] of an earlier pass over the same teacher, which saves its maxima.
    pub teacher_log_sum_exp: Option<Words<'a>>,
}

/// What the forward pass found, `f32` in the memory of the device.
#[derive(Debug)]
pub struct Losses {
    /// L_i `[B]`; 0 for rows that do not count.
    pub per_row: Memory,
    /// ln Σ_j e^{s_ij/T} `[B]`; −∞ for rows without a key, which do not count.
    pub log_sum_exp: Memory,
    /// The same of the teacher's scores.
    pub teacher_log_sum_exp: Memory,
    /// ∂L_i/∂x_i `[B, D]` of each row's own divergence, when it was asked for.
    pub query_gradients: Option<Memory>,
    mean: Memory,
    bound: Memory,
    status: Memory,
}

impl Losses {
    /// Waits for the forward pass and says whether the rows were good, and the teacher's statistics its own.
    ///
    /// Without this call nothing waits, and what is not good gives results that are none.
    ///
    /// # Errors
    /// [`Error::Row`] for a row that is not finite or so large that a score or a sum leaves `f32`, [`Error::Argument`] for
    /// statistics of another teacher, each with its first row, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; DIVERGENCE_STATUS];
        executor.download(OP, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        let [queries, keys, teacher_queries, teacher_keys, statistics, results] = words;
        for (argument, row) in [
            ("queries", queries),
            ("keys", keys),
            ("teacher_queries", teacher_queries),
            ("teacher_keys", teacher_keys),
        ] {
            if row != u32::MAX {
                return Err(Error::Row { op: OP, argument, row: row as usize, cosine: false });
            }
        }
        if statistics != u32::MAX {
            let expected = "of these teacher queries and keys, exclusions, temperature and softening";
            return Err(
                Bad::range(OP, "statistics", format!("not that of row {statistics}"), expected).into()
            );
        }
        if results != u32::MAX {
            return Err(Error::Row { op: OP, argument: "queries", row: results as usize, cosine: false });
        }
        Ok(())
    }
}

/// Computes every row's divergence in one pass over the keys and, with `gradients`, ∂L_i/∂x_i in another; returns
/// without waiting for the device.
///
/// Scratch: 24 bytes a query and split of the keys, of which there are at most 8; with gradients those of the queries
/// once a split where there are several.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes, dtypes or lengths, empty sides, temperatures and softenings that are not
/// finite and above 0; [`Error::OutOfMemory`], [`Error::NoKernel`] and [`Error::Launch`].
pub fn losses(executor: &dyn Executor, problem: &Problem<'_>, gradients: bool) -> Result<Losses> {
    let scales = check(problem)?;
    let Side { queries, keys, .. } = &problem.student;
    let (b, n, d, dtype) = (queries.rows(), keys.rows(), queries.cols(), queries.dtype());
    let floats = |count: usize| executor.allocate(OP, count * size_of::<f32>());
    let found = Losses {
        per_row: floats(b)?,
        log_sum_exp: floats(b)?,
        teacher_log_sum_exp: floats(b)?,
        query_gradients: if gradients { Some(floats(b * d)?) } else { None },
        mean: floats(b)?,
        bound: floats(b)?,
        status: executor.upload(OP, &[0xff; DIVERGENCE_STATUS * size_of::<u32>()])?,
    };
    let splits = splits(n);
    let mut layout = Scratch::new();
    let partials = layout.take(b * splits * DIVERGENCE_PARTIAL_BYTES);
    let sums = layout.take(if gradients && splits > 1 { b * d * splits * size_of::<f32>() } else { 0 });
    let scratch = executor.scratch(OP, layout.bytes())?;
    let gradient = found.query_gradients.as_ref().map_or(0, Memory::address);
    let params = abi::Divergence {
        partials: scratch.address() + partials,
        // One split is the sum itself.
        partial_gradients: if splits > 1 { scratch.address() + sums } else { gradient },
        query_gradient: gradient,
        ..params(problem, scales, &found)
    };
    let (suffix, shape, one) = (dtype.suffix(), Shape::new(dtype, d), Shape::new(dtype, 1));
    let tiles = b.div_ceil(MANY_ROWS);
    let gradient_bytes = shape.sweep_bytes() + GRADIENT_BYTES;
    // SAFETY: the problem was checked, so every array has the length that its counts say; a row has a partial result and
    // a partial gradient for every split, and outputs have a number or a row for every query.
    unsafe {
        let of_rows = [(2 * (b + n)).div_ceil(WARPS), 1, 1];
        run(executor, &format!("check_{suffix}"), of_rows, (TILE_THREADS, 0), &params)?;
        let shared = one.ring_bytes() + NAMES_BYTES;
        run(executor, &format!("rows_{suffix}"), [tiles, splits, 1], (TILE_THREADS, shared), &params)?;
        run(executor, "join", [b.div_ceil(TILE_THREADS), 1, 1], (TILE_THREADS, 0), &params)?;
        if gradients {
            let entry = format!("queries_{suffix}_{}", shape.groups);
            let grid = [tiles, splits, shape.parts];
            run(executor, &entry, grid, (shape.threads, gradient_bytes), &params)?;
            if splits > 1 {
                run(executor, "sum", [(b * d).div_ceil(TILE_THREADS), 1, 1], (TILE_THREADS, 0), &params)?;
            }
        }
    }
    Ok(found)
}

/// Computes the gradient of Σ_i `upstream[i]` · L_i for the student's keys, `f32` `[N, D]`, of a problem whose `losses`
/// these are; returns without waiting for the device. Every key has one owner.
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
    let scales = check(problem)?;
    let Side { queries, keys, .. } = &problem.student;
    let (b, n, d, dtype) = (queries.rows(), keys.rows(), queries.cols(), queries.dtype());
    check_length(OP, "losses", losses.mean.bytes() / size_of::<f32>(), b, "query")?;
    check_length(OP, "row_gradients", upstream.len(), b, "query")?;
    let found = executor.allocate(OP, n * d * size_of::<f32>())?;
    let mut layout = Scratch::new();
    let (weights, unit) = (layout.take(b * size_of::<f32>()), layout.take(size_of::<f32>()));
    let scratch = executor.scratch(OP, layout.bytes())?;
    let params = abi::Divergence {
        upstream: upstream.address(),
        row_weights: scratch.address() + weights,
        row_unit: scratch.address() + unit,
        key_gradient: found.address(),
        ..params(problem, scales, losses)
    };
    let shape = Shape::new(dtype, d);
    let entry = format!("keys_{}_{}", dtype.suffix(), shape.groups);
    let grid = [n.div_ceil(TILE_KEYS), shape.parts, 1];
    // SAFETY: as for the losses; upstream and weights have a number for every query, the output a row for every key.
    unsafe {
        run(executor, "weigh", [1; 3], (TILE_THREADS, WARPS * size_of::<f32>()), &params)?;
        run(executor, &entry, grid, (shape.threads, shape.sweep_bytes() + GRADIENT_BYTES), &params)?;
    }
    Ok(found)
}

/// What every kernel reads.
fn params(problem: &Problem<'_>, scales: [f32; 2], losses: &Losses) -> abi::Divergence {
    let Problem { student, teacher, softening, excluded, .. } = problem;
    let address = |words: Option<Words<'_>>| words.map_or(0, |words| words.address());
    let ids = excluded.same_id.map_or((0, 0), |(q, k)| (q.address(), k.address()));
    abi::Divergence {
        queries: student.queries.address(),
        keys: student.keys.address(),
        teacher_queries: teacher.queries.address(),
        teacher_keys: teacher.keys.address(),
        query_stride: student.queries.stride() as u64,
        key_stride: student.keys.stride() as u64,
        teacher_query_stride: teacher.queries.stride() as u64,
        teacher_key_stride: teacher.keys.stride() as u64,
        valid: address(excluded.valid),
        query_ids: ids.0,
        key_ids: ids.1,
        known: address(problem.teacher_log_sum_exp),
        losses: losses.per_row.address(),
        log_sum_exp: losses.log_sum_exp.address(),
        teacher_log_sum_exp: losses.teacher_log_sum_exp.address(),
        mean: losses.mean.address(),
        bound: losses.bound.address(),
        status: losses.status.address(),
        query_count: student.queries.rows() as u32,
        key_count: student.keys.rows() as u32,
        dim: student.queries.cols() as u32,
        teacher_dim: teacher.queries.cols() as u32,
        splits: splits(student.keys.rows()) as u32,
        reverse: u32::from(problem.direction == Direction::Reverse),
        ignore_diagonal: u32::from(excluded.diagonal),
        scale: (scales[0] * LOG2_E).to_bits(),
        teacher_scale: (scales[1] * LOG2_E).to_bits(),
        outer: (softening / student.temperature).to_bits(),
        squared: (softening * softening).to_bits(),
        ..abi::Divergence::default()
    }
}

/// Checks all that the host knows of a problem, and gives what its inner products are multiplied by.
fn check(problem: &Problem<'_>) -> Result<[f32; 2]> {
    let Problem { student, teacher, softening, excluded, .. } = problem;
    check_sides(OP, ["queries", "keys"], &student.queries, &student.keys)?;
    check_sides(OP, ["teacher_queries", "teacher_keys"], &teacher.queries, &teacher.keys)?;
    for (argument, got, own) in [
        ("teacher_queries", &teacher.queries, &student.queries),
        ("teacher_keys", &teacher.keys, &student.keys),
    ] {
        if got.rows() != own.rows() {
            let expected = format!("{} rows, as the student's: both compare the same pairs", own.rows());
            return Err(Bad::shape(OP, argument, &[got.rows(), got.cols()], expected).into());
        }
    }
    if teacher.queries.dtype() != student.queries.dtype() {
        let expected = format!("{:?}, as the student's; convert one of them", student.queries.dtype());
        let got = format!("{:?}", teacher.queries.dtype());
        return Err(Bad::range(OP, "teacher_queries", got, expected).into());
    }
    let (b, n) = (student.queries.rows(), student.keys.rows());
    if let Some(valid) = excluded.valid {
        check_length(OP, "valid", valid.len(), n.div_ceil(32), "32 keys")?;
    }
    if let Some((queries, keys)) = excluded.same_id {
        check_length(OP, "query_ids", queries.len(), b, "query")?;
        check_length(OP, "key_ids", keys.len(), n, "key")?;
    }
    if let Some(known) = problem.teacher_log_sum_exp {
        check_length(OP, "statistics", known.len(), b, "query")?;
    }
    Ok(scales([student.temperature, teacher.temperature], *softening)?)
}

/// # Safety
/// As [`launch`].
unsafe fn run(
    executor: &dyn Executor,
    step: &str,
    grid: [usize; 3],
    (threads, shared): (usize, usize),
    params: &abi::Divergence,
) -> Result<()> {
    let (entry, grid) = (format!("divergence_{step}"), grid.map(|blocks| blocks as u64));
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, (OP, "divergence", &entry), grid, (threads as u32, shared as u32), params) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::DType;

    #[test]
    fn shared_memory_fits_into_the_smallest_device() {
        for dtype in DType::ALL {
            for dim in [1, 128, 129, 256, 257, 512, 1024, 5000] {
                // 99 KiB for one block on sm_86 and sm_89.
                assert!(Shape::new(dtype, dim).sweep_bytes() + GRADIENT_BYTES <= 99 * 1024);
            }
        }
    }

    #[test]
    fn what_the_kernels_cannot_do_is_refused_by_name() {
        // SAFETY: nothing is read or launched, only checked.
        let rows = |dtype, rows, dim| unsafe { Matrix::from_address(256, dtype, [rows, dim, dim]) };
        // SAFETY: as above.
        let words = |len| unsafe { Words::from_address(256, len) };
        let side = |dtype, b, n, dim| Side {
            queries: rows(dtype, b, dim),
            keys: rows(dtype, n, dim),
            temperature: 0.1,
        };
        let good = Problem {
            student: side(DType::F16, 4, 40, 8),
            teacher: side(DType::F16, 4, 40, 5),
            softening: 3.0,
            direction: Direction::Forward,
            excluded: Exclusions {
                valid: Some(words(2)),
                same_id: Some((words(4), words(40))),
                diagonal: true,
            },
            teacher_log_sum_exp: Some(words(4)),
        };
        assert!(check(&good).is_ok());
        let excluded = |excluded| Problem { excluded, ..good };
        for (problem, name) in [
            (Problem { student: Side { queries: rows(DType::F16, 4, 7), ..good.student }, ..good }, "`keys`"),
            (Problem { teacher: side(DType::F16, 3, 40, 5), ..good }, "`teacher_queries`"),
            (Problem { teacher: side(DType::F16, 4, 41, 5), ..good }, "`teacher_keys`"),
            (Problem { teacher: side(DType::F32, 4, 40, 5), ..good }, "`teacher_queries`"),
            (Problem { teacher: Side { temperature: 0.0, ..good.teacher }, ..good }, "`teacher_temperature`"),
            (Problem { softening: f32::NAN, ..good }, "`softening`"),
            (Problem { teacher_log_sum_exp: Some(words(5)), ..good }, "`statistics`"),
            (excluded(Exclusions { valid: Some(words(1)), ..good.excluded }), "`valid`"),
            (excluded(Exclusions { same_id: Some((words(4), words(4))), ..good.excluded }), "`key_ids`"),
        ] {
            let text = check(&problem).unwrap_err().to_string();
            assert!(text.starts_with("divergence") && text.contains(name), "{text}");
        }
    }
}
