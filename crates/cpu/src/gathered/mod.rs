//! Losses of queries against the bank rows that each of them lists, and the momentum update of such rows: memory banks.
//!
//! Query i lists K columns; column c holds the bank row j(i, c), or nothing. With s_ic = ⟨x_i, y_j(i,c)⟩/τ_i, positives P(i)
//! among the columns with weights w_ic, n_i = |P(i)| or Σ_P w_ic, a_ic = w_ic/n_i and A_i = Σ_c a_ic:
//!
//! * [`contrast()`]: L_i = A_i lse_i − Σ_c a_ic s_ic with lse_i = ln Σ_c e^{s_ic}, ∂L_i/∂x_i = (A_i O_i − T_i)/τ_i,
//!   O_i = Σ_c p_ic y_j, T_i = Σ_c a_ic y_j;
//! * [`divergence()`]: L_i = T² KL(softmax(t_i/T) ‖ softmax(s_i/T)) for a teacher's scores t in the same columns,
//!   ∂L_i/∂x_i = T (Σ_c p_ic y_j − Σ_c q_ic y_j)/τ.
//!
//! One pass over the listed rows: a tile of [`TILE`] rows is read once, multiplied with the query and added to both
//! sums, the softmax with a running maximum. A row is the work of one thread, so its bits depend on neither the batch nor
//! the threads; nothing of the size B × K × D is written.

mod divergence;
mod rows;
mod update;

pub use divergence::{Divergence, divergence};
pub use rows::contrast;
pub use update::{RowsMut, update_rows, without_direction};

use rayon::prelude::*;

use crate::contrast::Normalizer;
use crate::{Error, Result, Rows, simd};

/// A column that holds nothing.
pub const PADDING: u32 = u32::MAX;

/// Listed rows that are in memory at once.
pub const TILE: usize = 64;

/// Which columns are positives.
#[derive(Debug, Clone, Copy)]
pub enum Positives<'a> {
    /// The first columns, as many as this, with weight 1; at least 1 and at most K.
    First(usize),
    /// `[B, K]`: a column is a positive where its weight is above 0. Finite and at least 0.
    Weights(&'a [f32]),
}

/// Queries, bank, lists, temperatures and positives of one loss.
#[derive(Debug, Clone, Copy)]
pub struct Contrast<'a> {
    /// `[B, D]`.
    pub queries: Rows<'a>,
    /// `[N, D]`.
    pub bank: Rows<'a>,
    /// `[B, K]`: rows of the bank, or [`PADDING`]; an index may repeat.
    pub indices: &'a [u32],
    /// K, the columns of every query.
    pub columns: usize,
    /// One temperature for all, or one a query.
    pub temperatures: &'a [f32],
    /// Which columns are positives.
    pub positives: Positives<'a>,
    /// What divides their weights.
    pub normalizer: Normalizer,
}

/// What a loss found, a number or a row of the gradient for each query.
#[derive(Debug, Clone, Default)]
pub struct Forward {
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f32>,
    /// ln Σ_c e^{s_ic}, of a divergence of s_ic/T; −∞ without a column.
    pub log_sum_exp: Vec<f32>,
    /// Which rows count: those with a positive, of a divergence those with a column.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i, `[B, D]`; empty unless asked for.
    pub query_gradients: Vec<f32>,
    /// ∂L_i/∂τ_i, `[B]`; empty unless asked for, and of divergences.
    pub temperature_gradients: Vec<f32>,
}

impl Forward {
    /// The number of counted rows.
    pub fn anchors(&self) -> usize {
        self.counted.iter().filter(|c| **c).count()
    }
}

/// What one row found; its gradient lies in the output.
struct Row {
    loss: f32,
    log_sum_exp: f32,
    counted: bool,
    temperature_gradient: f32,
    /// The bank row of the first score that is not finite, and whether it is the teacher's.
    bad: Option<(bool, u32)>,
}

/// The softmax of a row so far: Σ e^{s} = `sum` · e^`largest`, Σ e^{s} y = `weighted` · e^`largest`.
struct Running {
    largest: f32,
    sum: f64,
    weighted: Vec<f32>,
    /// Σ e^{s − largest} y of one tile.
    tile: Vec<f32>,
}

impl Running {
    fn new(width: usize) -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0, weighted: vec![0.0; width], tile: vec![0.0; width] }
    }

    fn clear(&mut self) {
        (self.largest, self.sum) = (f32::NEG_INFINITY, 0.0);
        self.weighted.fill(0.0);
    }

    /// Takes the scores of a tile, of which none is −∞, and turns them into e^{s − largest}; the result is what older sums
    /// are multiplied by.
    #[inline(always)]
    fn take(&mut self, scores: &mut [f32]) -> f32 {
        let next = scores.iter().fold(self.largest, |a, b| a.max(*b));
        let factor = simd::exp_inline(self.largest - next);
        let mut sum = 0.0;
        for score in scores {
            *score = simd::exp_inline(*score - next);
            sum += *score;
        }
        self.sum = self.sum * f64::from(factor) + f64::from(sum);
        self.largest = next;
        factor
    }

    /// `weighted = weighted · factor + Σ weight · row` over the rows of a tile.
    #[inline(always)]
    fn add(&mut self, rows: &[f32], weights: &[f32], factor: f32) {
        self.tile.fill(0.0);
        for (row, weight) in rows.chunks_exact(self.tile.len()).zip(weights) {
            if *weight != 0.0 {
                simd::axpy_inline(*weight, row, &mut self.tile);
            }
        }
        for (sum, tile) in self.weighted.iter_mut().zip(&self.tile) {
            *sum = sum.mul_add(factor, *tile);
        }
    }

    fn log_sum_exp(&self) -> f64 {
        if self.sum > 0.0 { f64::from(self.largest) + self.sum.ln() } else { f64::NEG_INFINITY }
    }
}

/// ⟨x, y⟩ · scale for the first `count` rows y. Loops, not adaptors: what is called has to be inlined.
#[inline(always)]
fn scores(x: &[f32], rows: &[f32], count: usize, scale: f32, out: &mut Vec<f32>) {
    out.clear();
    for y in rows.chunks_exact(x.len()).take(count) {
        out.push(simd::dot_inline(x, y) * scale);
    }
}

/// The least of the rows whose score is not finite.
fn least_bad(scores: &[f32], listed: &[u32], teacher: bool) -> Option<(bool, u32)> {
    let bad = scores.iter().zip(listed).filter(|(score, _)| !score.is_finite());
    bad.map(|(_, row)| (teacher, *row)).min()
}

/// The lesser of two that may be there.
fn lesser(a: Option<(bool, u32)>, b: Option<(bool, u32)>) -> Option<(bool, u32)> {
    a.into_iter().chain(b).min()
}

/// Loads listed rows one behind the other.
fn load(bank: &Rows<'_>, listed: &[u32], out: &mut [f32]) {
    for (index, out) in listed.iter().zip(out.chunks_exact_mut(bank.cols())) {
        bank.load_row(*index as usize, out);
    }
}

/// Checks two sides that lists connect.
fn check_sides(
    op: &'static str,
    names: [&'static str; 2],
    queries: &Rows<'_>,
    bank: &Rows<'_>,
) -> Result<()> {
    for (argument, rows) in [(names[0], queries), (names[1], bank)] {
        if rows.rows() == 0 {
            return Err(Error::Empty { op, argument });
        }
    }
    if queries.cols() == 0 {
        return Err(Error::shape(op, names[0], &[queries.rows(), 0], "at least one dimension"));
    }
    if queries.cols() != bank.cols() {
        let expected = format!("[N, {}], the dimension of `{}`", queries.cols(), names[0]);
        return Err(Error::shape(op, names[1], &[bank.rows(), bank.cols()], expected));
    }
    queries.check_finite(op, names[0])
}

/// Checks lists of `columns` rows of a bank for each of `queries`.
fn check_indices(
    op: &'static str,
    indices: &[u32],
    (queries, columns): (usize, usize),
    bank: usize,
) -> Result<()> {
    if columns == 0 || queries.checked_mul(columns) != Some(indices.len()) {
        let expected = format!("[{queries}, {columns}], at least one column for every query");
        return Err(Error::shape(op, "indices", &[indices.len()], expected));
    }
    let bad = indices.par_iter().position_first(|index| *index != PADDING && *index as usize >= bank);
    match bad {
        Some(at) => {
            let expected = format!("below {bank}, the rows of the bank, or {PADDING} for padding");
            Err(Error::range(op, "indices", format!("{} at row {}", indices[at], at / columns), expected))
        }
        None => Ok(()),
    }
}

/// Checks a temperature that divides scores.
fn check_temperature(op: &'static str, argument: &'static str, values: &[f32]) -> Result<()> {
    match values.iter().position(|t| !(*t > 0.0 && t.is_finite() && t.recip().is_finite())) {
        Some(at) => {
            let got = format!("{} at {at}", values[at]);
            Err(Error::range(op, argument, got, "finite and above 0, as its inverse"))
        }
        None => Ok(()),
    }
}

/// Runs `row(i, scratch, gradient)` for every query in parallel and gathers what they found. A gradient is `dim` wide,
/// or empty when none is asked for.
fn each_row<S>(
    (op, names): (&'static str, [&'static str; 2]),
    (rows, dim): (usize, usize),
    gradients: bool,
    scratch: impl Fn() -> S + Sync + Send,
    row: impl Fn(usize, &mut S, &mut [f32]) -> Row + Sync + Send,
) -> Result<Forward> {
    let mut out = Forward::default();
    let found: Vec<Row> = if gradients {
        out.query_gradients = vec![0.0; rows * dim];
        let each = out.query_gradients.par_chunks_mut(dim).enumerate();
        each.map_init(&scratch, |scratch, (i, gradient)| row(i, scratch, gradient)).collect()
    } else {
        (0..rows).into_par_iter().map_init(&scratch, |scratch, i| row(i, scratch, &mut [])).collect()
    };
    // The least row, of the student's bank first, whatever thread has met it.
    if let Some((teacher, row)) = found.iter().filter_map(|row| row.bad).min() {
        let argument = names[usize::from(teacher)];
        return Err(Error::NotFinite { op, argument, row: row as usize });
    }
    for (i, row) in found.iter().enumerate() {
        let gradient = out.query_gradients.get(i * dim..(i + 1) * dim).unwrap_or_default();
        if !(row.loss.is_finite() && simd::all_finite(gradient)) {
            let got = format!("so large that sums of row {i} leave f32");
            return Err(Error::range(op, "queries", got, "rows of smaller norm; scale the embeddings"));
        }
        out.per_row.push(row.loss);
        out.log_sum_exp.push(row.log_sum_exp);
        out.counted.push(row.counted);
        if gradients {
            out.temperature_gradients.push(row.temperature_gradient);
        }
    }
    Ok(out)
}
