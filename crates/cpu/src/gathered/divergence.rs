//! The divergence of two softmaxes over the same lists of bank rows.

use super::{
    Forward, PADDING, Row, Running, TILE, check_indices, check_sides, check_temperature, each_row, least_bad,
    lesser, load, scores,
};
use crate::{Error, Result, Rows, simd};

const OP: &str = "gathered_divergence";

/// Student, teacher and their lists.
#[derive(Debug, Clone, Copy)]
pub struct Divergence<'a> {
    /// `[B, D]`.
    pub queries: Rows<'a>,
    /// `[N, D]`.
    pub bank: Rows<'a>,
    /// `[B, D']`: the teacher, a constant.
    pub teacher_queries: Rows<'a>,
    /// `[N, D']`.
    pub teacher_bank: Rows<'a>,
    /// `[B, K]`: rows of both banks, or [`PADDING`]; an index may repeat.
    pub indices: &'a [u32],
    /// K, the columns of every query.
    pub columns: usize,
    /// τ, what inner products of both sides are divided by.
    pub temperature: f32,
    /// T, what divides the scores once more before both softmaxes.
    pub softening: f32,
}

fn check(problem: &Divergence<'_>) -> Result<()> {
    let Divergence { queries, bank, teacher_queries, teacher_bank, indices, columns, .. } = problem;
    check_sides(OP, ["queries", "bank"], queries, bank)?;
    check_sides(OP, ["teacher_queries", "teacher_bank"], teacher_queries, teacher_bank)?;
    for (argument, got, expected) in
        [("teacher_queries", teacher_queries, queries.rows()), ("teacher_bank", teacher_bank, bank.rows())]
    {
        if got.rows() != expected {
            let expected = format!("{expected} rows, as the student's: both have the same columns");
            return Err(Error::shape(OP, argument, &[got.rows(), got.cols()], expected));
        }
    }
    check_temperature(OP, "temperature", &[problem.temperature])?;
    check_temperature(OP, "softening", &[problem.softening])?;
    check_indices(OP, indices, (queries.rows(), *columns), bank.rows())
}

/// What a thread holds for a row.
struct Scratch {
    x: Vec<f32>,
    of_teacher: Vec<f32>,
    listed: Vec<u32>,
    rows: Vec<f32>,
    teacher_rows: Vec<f32>,
    scores: Vec<f32>,
    differences: Vec<f32>,
    teacher_scores: Vec<f32>,
    softmax: Running,
    /// The teacher's softmax, over the student's rows.
    teacher: Running,
}

/// Computes every row's divergence T² KL(softmax(t_i/T) ‖ softmax(s_i/T)) and, with `gradients`, its gradient for the
/// student's query in the same pass.
///
/// Memory and bits as those of [`super::contrast()`].
///
/// # Errors
/// As [`super::contrast()`], also for a teacher that has not the student's rows, and `softening` out of range.
pub fn divergence(problem: &Divergence<'_>, gradients: bool) -> Result<Forward> {
    check(problem)?;
    let (b, dim) = (problem.queries.rows(), problem.queries.cols());
    let width = problem.teacher_queries.cols();
    let scratch = || Scratch {
        x: vec![0.0; dim],
        of_teacher: vec![0.0; width],
        listed: Vec::with_capacity(TILE),
        rows: vec![0.0; TILE * dim],
        teacher_rows: vec![0.0; TILE * width],
        scores: Vec::with_capacity(TILE),
        differences: Vec::with_capacity(TILE),
        teacher_scores: Vec::with_capacity(TILE),
        softmax: Running::new(dim),
        teacher: Running::new(dim),
    };
    let mut found =
        each_row((OP, ["bank", "teacher_bank"]), (b, dim), gradients, scratch, |i, scratch, gradient| {
            row(problem, i, scratch, gradient)
        })?;
    found.temperature_gradients = Vec::new();
    Ok(found)
}

fn row(problem: &Divergence<'_>, i: usize, s: &mut Scratch, gradient: &mut [f32]) -> Row {
    let (columns, softening) = (problem.columns, problem.softening);
    let scale = problem.temperature.recip() / softening;
    problem.queries.load_row(i, &mut s.x);
    problem.teacher_queries.load_row(i, &mut s.of_teacher);
    s.softmax.clear();
    s.teacher.clear();
    // Σ e^{t − largest} (t − s), as the teacher's softmax is.
    let mut along = 0.0f64;
    let mut bad = None;
    for indices in problem.indices[i * columns..][..columns].chunks(TILE) {
        s.listed.clear();
        s.listed.extend(indices.iter().filter(|index| **index != PADDING));
        if s.listed.is_empty() {
            continue;
        }
        load(&problem.bank, &s.listed, &mut s.rows);
        load(&problem.teacher_bank, &s.listed, &mut s.teacher_rows);
        simd::dispatch(
            #[inline(always)]
            || {
                let count = s.listed.len();
                scores(&s.x, &s.rows, count, scale, &mut s.scores);
                scores(&s.of_teacher, &s.teacher_rows, count, scale, &mut s.teacher_scores);
                bad = lesser(bad, least_bad(&s.scores, &s.listed, false));
                bad = lesser(bad, least_bad(&s.teacher_scores, &s.listed, true));
                s.differences.clear();
                s.differences.extend(s.teacher_scores.iter().zip(&s.scores).map(|(t, s)| t - s));
                let factor = s.softmax.take(&mut s.scores);
                let of_teacher = s.teacher.take(&mut s.teacher_scores);
                let tile = s.teacher_scores.iter().zip(&s.differences);
                let tile: f64 = tile.map(|(e, d)| f64::from(*e) * f64::from(*d)).sum();
                along = along * f64::from(of_teacher) + tile;
                if !gradient.is_empty() {
                    s.softmax.add(&s.rows, &s.scores, factor);
                    s.teacher.add(&s.rows, &s.teacher_scores, of_teacher);
                }
            },
        );
    }
    let counted = s.softmax.sum > 0.0;
    let (of_student, of_teacher) = (s.softmax.log_sum_exp(), s.teacher.log_sum_exp());
    let softening = f64::from(softening);
    let mut loss = 0.0;
    if counted {
        loss = softening * softening * (along / s.teacher.sum - (of_teacher - of_student));
        let outer = softening / f64::from(problem.temperature);
        for ((g, p), q) in gradient.iter_mut().zip(&s.softmax.weighted).zip(&s.teacher.weighted) {
            *g = ((f64::from(*p) / s.softmax.sum - f64::from(*q) / s.teacher.sum) * outer) as f32;
        }
    }
    Row { loss: loss as f32, log_sum_exp: of_student as f32, counted, temperature_gradient: 0.0, bad }
}
