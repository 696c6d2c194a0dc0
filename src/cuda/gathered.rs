//! Losses over lists of bank rows on a device, and the update of such rows: plans and launches of `kernels/gathered.cu`
//! and `kernels/gathered_update.cu`.

mod plan;
mod update;

use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::Normalizer;

use super::abi::{self, GATHERED_PARTIAL_BYTES, GATHERED_STATUS, TILE_THREADS};
use super::executor::launch;
use super::rows::{check_length, check_sides};
use super::scratch::Scratch;
use super::{Error, Executor, Matrix, Memory, Result, Words};
use plan::{MOST_DIMS, Plan};

pub use update::{Update, update_rows};

const FAMILY: &str = "gathered";
const THREADS: u32 = TILE_THREADS as u32;

/// Queries and the bank rows that they list.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a> {
    /// `[B, D]`.
    pub queries: Matrix<'a>,
    /// `[N, D]`, of the same dtype.
    pub bank: Matrix<'a>,
    /// `u32` `[B, K]`: rows of the bank; [`consonance_cpu::gathered::PADDING`] is none, an index may repeat.
    pub indices: Words<'a>,
    /// `f32`: one for all, or one a query.
    pub temperatures: Words<'a>,
}

/// Which columns are positives.
#[derive(Debug, Clone, Copy)]
pub enum Positives<'a> {
    /// The first columns, as many as this, with weight 1.
    First(usize),
    /// `f32` `[B, K]`: a column is a positive where its weight is above 0.
    Weights(Words<'a>),
}

/// The teacher of a divergence, in the same columns.
#[derive(Debug, Clone, Copy)]
pub struct Teacher<'a> {
    /// `[B, D']`, of the dtype of the student's.
    pub queries: Matrix<'a>,
    /// `[N, D']`.
    pub bank: Matrix<'a>,
    /// T, what divides the scores of both sides once more.
    pub softening: f32,
}

/// What the rows are compared by.
#[derive(Debug, Clone, Copy)]
pub enum Loss<'a> {
    /// L_i = A_i lse_i − Σ_c a_ic s_ic over the columns of row i.
    Contrast {
        /// Which columns are positives.
        positives: Positives<'a>,
        /// What divides their weights.
        normalizer: Normalizer,
    },
    /// L_i = T² KL(softmax(t_i/T) ‖ softmax(s_i/T)) with a teacher's scores t.
    Divergence(Teacher<'a>),
}

impl Loss<'_> {
    fn op(&self) -> &'static str {
        match self {
            Self::Contrast { .. } => "gathered_contrast",
            Self::Divergence(_) => "gathered_divergence",
        }
    }
}

/// What was found, `f32` in the memory of the device.
#[derive(Debug)]
pub struct Losses {
    /// L_i `[B]`; 0 for rows that do not count.
    pub per_row: Memory,
    /// ln of the row's denominator `[B]`, of a divergence the student's; −∞ when the row lists nothing.
    pub log_sum_exp: Memory,
    /// 1/n_i `[B]`, of a divergence 1; 0 for rows that do not count.
    pub inverse_normalizer: Memory,
    /// ∂L_i/∂x_i `[B, D]` of each row's own loss, and ∂L_i/∂τ_i `[B]`, which a divergence leaves unwritten.
    pub gradients: Option<(Memory, Memory)>,
    status: Memory,
    op: &'static str,
}

impl Losses {
    /// Waits for the pass and says how many rows count, when queries, listed rows, temperatures, weights and indices were
    /// good.
    ///
    /// Without this call nothing waits, and what is not good gives results that are none.
    ///
    /// # Errors
    /// [`Error::Row`] for a query or a listed row that is not finite or so large that a score or a sum leaves `f32`,
    /// [`Error::Argument`] for temperatures, weights and indices out of range, each with its first row, and errors of the
    /// driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<usize> {
        let op = self.op;
        let mut words = [0u32; GATHERED_STATUS];
        executor.download(op, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        let [queries, bank, teacher_queries, teacher_bank, temperature, weights, indices, results, counted] =
            words;
        for (argument, row, expected) in [
            ("indices", indices, "rows of the bank, or u32::MAX for padding"),
            ("weights", weights, "finite and at least 0"),
            ("temperature", temperature, "finite and above 0, as its inverse"),
        ] {
            if row != u32::MAX {
                return Err(Bad::range(op, argument, format!("out of range at row {row}"), expected).into());
            }
        }
        for (argument, row) in [
            ("queries", queries),
            ("teacher_queries", teacher_queries),
            ("bank", bank),
            ("teacher_bank", teacher_bank),
            ("queries", results),
        ] {
            if row != u32::MAX {
                return Err(Error::Row { op, argument, row: row as usize, cosine: false });
            }
        }
        Ok(counted as usize)
    }
}

/// Computes every row's loss and, with `gradients`, those of the queries and temperatures, in one pass over the listed
/// rows; returns without waiting for the device.
///
/// Scratch: for a query and each of at most 8 splits of its columns 24 bytes, and with gradients 8 D more.
///
/// # Errors
/// [`Error::Argument`] for disagreeing shapes, dtypes or lengths, empty sides, lists without columns, more than 4,096
/// dimensions (of a divergence those of both sides together); [`Error::OutOfMemory`], [`Error::NoKernel`] and
/// [`Error::Launch`].
pub fn losses(
    executor: &dyn Executor,
    lists: &Lists<'_>,
    loss: &Loss<'_>,
    gradients: bool,
) -> Result<Losses> {
    let op = loss.op();
    let columns = check(lists, loss)?;
    let (b, dim, dtype) = (lists.queries.rows(), lists.queries.cols(), lists.queries.dtype());
    let teacher = match loss {
        Loss::Divergence(teacher) => Some(teacher),
        Loss::Contrast { .. } => None,
    };
    let plan = Plan::new(dtype, dim, teacher.map(|teacher| teacher.queries.cols()), columns);
    let row = || executor.allocate(op, b * size_of::<f32>());
    let mut status = [u32::MAX; GATHERED_STATUS];
    status[GATHERED_STATUS - 1] = 0;
    let found = Losses {
        per_row: row()?,
        log_sum_exp: row()?,
        inverse_normalizer: row()?,
        gradients: match gradients {
            true => Some((executor.allocate(op, b * dim * size_of::<f32>())?, row()?)),
            false => None,
        },
        status: executor.upload(op, bytemuck::cast_slice(&status))?,
        op,
    };
    let mut layout = Scratch::new();
    let partials = layout.take(b * plan.splits * GATHERED_PARTIAL_BYTES);
    let sums = if gradients { layout.take(b * plan.splits * 2 * dim * size_of::<f32>()) } else { 0 };
    let scratch = executor.scratch(op, layout.bytes())?;
    let params = abi::Gathered {
        partials: scratch.address() + partials,
        partial_gradients: if gradients { scratch.address() + sums } else { 0 },
        ..params(lists, loss, &plan, columns, &found)
    };
    let suffix = dtype.suffix();
    let (name, join) = match teacher {
        None => ("contrast", format!("gathered_losses_{suffix}")),
        Some(_) => ("divergence", "gathered_divergences".to_owned()),
    };
    let wide = if plan.wide { "wide_" } else { "" };
    let pass = format!("gathered_{name}_{wide}{suffix}");
    let (grid, warps) = ([b as u64, plan.splits as u64, 1], TILE_THREADS / 32 * size_of::<f32>());
    // SAFETY: sides, lists and lengths were checked, so every array has the length that its counts say; a query has a
    // partial result and two sums for every split, and outputs have a number or a row for every query.
    unsafe {
        launch(executor, (op, FAMILY, &pass), grid, (THREADS, plan.shared_bytes), &params)?;
        launch(executor, (op, FAMILY, &join), [b as u64, 1, 1], (THREADS, warps as u32), &params)?;
    }
    Ok(found)
}

fn params(lists: &Lists<'_>, loss: &Loss<'_>, plan: &Plan, columns: usize, found: &Losses) -> abi::Gathered {
    let gradients = found.gradients.as_ref().map_or((0, 0), |(x, tau)| (x.address(), tau.address()));
    let all = abi::Gathered {
        queries: lists.queries.address(),
        bank: lists.bank.address(),
        query_stride: lists.queries.stride() as u64,
        bank_stride: lists.bank.stride() as u64,
        indices: lists.indices.address(),
        temperatures: lists.temperatures.address(),
        losses: found.per_row.address(),
        log_sum_exp: found.log_sum_exp.address(),
        inverse_normalizer: found.inverse_normalizer.address(),
        query_gradient: gradients.0,
        temperature_gradient: gradients.1,
        status: found.status.address(),
        query_count: lists.queries.rows() as u32,
        bank_count: lists.bank.rows() as u32,
        columns: columns as u32,
        dim: lists.queries.cols() as u32,
        own_temperatures: u32::from(lists.temperatures.len() != 1),
        splits: plan.splits as u32,
        tile_rows: plan.tile_rows as u32,
        parts: plan.parts as u32,
        lanes: plan.lanes as u32,
        ..abi::Gathered::default()
    };
    match loss {
        Loss::Contrast { positives, normalizer } => {
            let (weights, positives) = match positives {
                Positives::First(count) => (0, *count as u32),
                Positives::Weights(weights) => (weights.address(), 0),
            };
            let by_weight = u32::from(*normalizer == Normalizer::WeightSum);
            abi::Gathered { weights, positives, by_weight, ..all }
        }
        Loss::Divergence(teacher) => abi::Gathered {
            teacher_queries: teacher.queries.address(),
            teacher_bank: teacher.bank.address(),
            teacher_query_stride: teacher.queries.stride() as u64,
            teacher_bank_stride: teacher.bank.stride() as u64,
            teacher_dim: teacher.queries.cols() as u32,
            softening: teacher.softening.to_bits(),
            ..all
        },
    }
}

/// Checks all that the host knows, and gives the columns of a list.
fn check(lists: &Lists<'_>, loss: &Loss<'_>) -> Result<usize> {
    let op = loss.op();
    let Lists { queries, bank, indices, temperatures } = lists;
    check_sides(op, ["queries", "bank"], queries, bank)?;
    let b = queries.rows();
    let columns = indices.len() / b;
    if columns == 0 || indices.len() % b != 0 {
        let expected = format!("[{b}, K], at least one column for every query");
        return Err(Bad::shape(op, "indices", &[indices.len()], expected).into());
    }
    if columns > i32::MAX as usize {
        return Err(Bad::range(op, "indices", columns, "fewer than 2^31 columns").into());
    }
    if temperatures.len() != 1 && temperatures.len() != b {
        let expected = format!("[1] or [{b}], one a query");
        return Err(Bad::shape(op, "temperature", &[temperatures.len()], expected).into());
    }
    let mut dims = queries.cols();
    match loss {
        Loss::Contrast { positives: Positives::First(count), .. } => {
            if *count == 0 || *count > columns {
                let expected = format!("1..={columns}, the columns of a list");
                return Err(Bad::range(op, "positives", count, expected).into());
            }
        }
        Loss::Contrast { positives: Positives::Weights(weights), .. } => {
            check_length(op, "weights", weights.len(), indices.len(), "index")?;
        }
        Loss::Divergence(teacher) => {
            check_sides(op, ["teacher_queries", "teacher_bank"], &teacher.queries, &teacher.bank)?;
            for (argument, got, own) in
                [("teacher_queries", &teacher.queries, queries), ("teacher_bank", &teacher.bank, bank)]
            {
                if got.rows() != own.rows() {
                    let expected =
                        format!("{} rows, as the student's: both have the same columns", own.rows());
                    return Err(Bad::shape(op, argument, &[got.rows(), got.cols()], expected).into());
                }
            }
            if teacher.queries.dtype() != queries.dtype() {
                let expected = format!("{:?}, as the student's; convert one of them", queries.dtype());
                let got = format!("{:?}", teacher.queries.dtype());
                return Err(Bad::range(op, "teacher_queries", got, expected).into());
            }
            let softening = teacher.softening;
            if !(softening > 0.0 && softening.is_finite() && softening.recip().is_finite()) {
                let expected = "finite and above 0, as its inverse";
                return Err(Bad::range(op, "softening", softening, expected).into());
            }
            dims += teacher.queries.cols();
        }
    }
    if dims > MOST_DIMS {
        let expected = format!(
            "at most {MOST_DIMS} dimensions on a GPU, of both sides together; move the tensors to the CPU"
        );
        return Err(Bad::range(op, "queries", dims, expected).into());
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::DType;

    #[test]
    fn what_the_kernels_cannot_do_is_refused_by_name() {
        // SAFETY: nothing is read or launched, only checked.
        let rows = |rows, dim| unsafe { Matrix::from_address(256, DType::F32, [rows, dim, dim]) };
        // SAFETY: as above.
        let words = |len| unsafe { Words::from_address(256, len) };
        let lists = |dim, indices, temperatures| Lists {
            queries: rows(4, dim),
            bank: rows(9, dim),
            indices: words(indices),
            temperatures: words(temperatures),
        };
        let first =
            |count| Loss::Contrast { positives: Positives::First(count), normalizer: Normalizer::Count };
        assert_eq!(check(&lists(8, 12, 4), &first(3)).unwrap(), 3);
        let teacher = |dim, softening| {
            Loss::Divergence(Teacher { queries: rows(4, dim), bank: rows(9, dim), softening })
        };
        assert!(check(&lists(2048, 12, 1), &teacher(2048, 3.0)).is_ok());
        for (lists, loss, name) in [
            (lists(4097, 12, 1), first(1), "`queries` is 4097"),
            (lists(2048, 12, 1), teacher(2049, 3.0), "`queries` is 4097"),
            (lists(8, 13, 1), first(1), "`indices`"),
            (lists(8, 12, 3), first(1), "`temperature`"),
            (lists(8, 12, 1), first(4), "`positives`"),
            (lists(8, 12, 1), teacher(8, 0.0), "`softening`"),
        ] {
            let text = check(&lists, &loss).unwrap_err().to_string();
            assert!(text.contains(name), "{text}");
        }
    }
}
