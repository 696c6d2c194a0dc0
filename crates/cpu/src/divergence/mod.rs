//! The divergence of a student's distribution over the keys from its teacher's, forward and backward in tiles.
//!
//! With scores s_ij = ⟨x_i, y_j⟩/τ of the student and t_ij = ⟨u_i, v_j⟩/τ' of the teacher over the same keys, b = s/T,
//! a = t/T, p_i = softmax(b_i) and q_i = softmax(a_i) over the keys that row i compares:
//!
//! * [`Direction::Forward`]: L_i = T² KL(q_i ‖ p_i) = T² (Σ_j q_ij (a_ij − b_ij) − lse a_i + lse b_i),
//!   ∂L_i/∂s_ij = T (p_ij − q_ij);
//! * [`Direction::Reverse`]: L_i = T² KL(p_i ‖ q_i) = T² (M_i − lse b_i + lse a_i), M_i = Σ_j p_ij (b_ij − a_ij),
//!   ∂L_i/∂s_ij = T p_ij (b_ij − a_ij − M_i).
//!
//! One pass over tiles of keys computes the scores of both sides once, both softmaxes with running maxima, the mean
//! difference, and two sums of the student's keys whose difference is the queries' gradient. The keys' gradient is a
//! second pass with one owner per key. The teacher is a constant.

mod columns;
mod plan;
mod rows;

pub use plan::{Plan, scales};

use crate::{Error, Gradients, Result, Rows};

const OP: &str = "divergence";

/// Which divergence of teacher and student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// KL(teacher ‖ student): the student covers what its teacher holds probable.
    #[default]
    Forward,
    /// KL(student ‖ teacher): the student keeps away from what its teacher holds improbable.
    Reverse,
}

/// Embeddings of one side, and what divides their inner products.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// `[B, D]`.
    pub queries: Rows<'a>,
    /// `[N, D]`.
    pub keys: Rows<'a>,
    /// τ.
    pub temperature: f32,
}

/// The pairs that neither side compares.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exclusions<'a> {
    /// `[N]`: keys that are compared at all.
    pub valid: Option<&'a [bool]>,
    /// `[B]` and `[N]`: pairs of equal id are not compared.
    pub same_id: Option<(&'a [u32], &'a [u32])>,
    /// Query i does not meet key i.
    pub diagonal: bool,
}

/// Student, teacher and which of their pairs are compared.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Receives gradients.
    pub student: Side<'a>,
    /// A constant, with as many queries and keys; its dimension may be another.
    pub teacher: Side<'a>,
    /// T, what divides the scores of both sides once more.
    pub softening: f32,
    /// Which divergence.
    pub direction: Direction,
    /// The pairs that are not compared.
    pub excluded: Exclusions<'a>,
    /// `[B]`: [`Forward::teacher_log_sum_exp`] of an earlier pass over the same teacher, which saves its maxima.
    pub teacher_log_sum_exp: Option<&'a [f32]>,
}

/// What the forward pass found, a number or a row of the gradient for each query.
#[derive(Debug, Clone, Default)]
pub struct Forward {
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f32>,
    /// ln Σ_j e^{s_ij/T}; −∞ without a key.
    pub log_sum_exp: Vec<f32>,
    /// The same of the teacher's scores.
    pub teacher_log_sum_exp: Vec<f32>,
    /// Which rows count: those with a key.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i, `[B, D]`; empty unless asked for.
    pub query_gradients: Vec<f32>,
    /// M_i of the reverse direction.
    mean: Vec<f32>,
    /// For few queries and one tile of keys: rows of coefficients of the only tile, as far apart as scores.
    coefficients: Vec<f32>,
}

impl Forward {
    /// The number of counted rows.
    #[must_use]
    pub fn anchors(&self) -> usize {
        self.counted.iter().filter(|c| **c).count()
    }
}

/// Computes every row's divergence and, where `gradients` asks for the queries', ∂L_i/∂x_i in the same pass.
///
/// Extra memory is O(B·D + N + tiles). The bits of a row do not depend on the other rows or the threads.
///
/// # Errors
/// [`Error::Range`] for rows so large that a sum leaves `f32`, and for `teacher_log_sum_exp` of another teacher;
/// [`Plan::new`] has checked the rest.
pub fn forward(problem: &Problem<'_>, plan: &Plan, gradients: Gradients) -> Result<Forward> {
    rows::forward(problem, plan, gradients)
}

/// The gradient of Σ_i `row_gradients[i]` · L_i for the student's keys, `[N, D]`: every key row has one owner.
///
/// # Errors
/// [`Error::Shape`] when `row_gradients` has not one entry a query.
pub fn key_gradients(
    problem: &Problem<'_>,
    plan: &Plan,
    forward: &Forward,
    row_gradients: &[f32],
) -> Result<Vec<f32>> {
    let b = problem.student.queries.rows();
    if row_gradients.len() != b || forward.mean.len() != b {
        let expected = format!("[{b}], one a query");
        return Err(Error::shape(OP, "row_gradients", &[row_gradients.len()], expected));
    }
    Ok(columns::key_gradients(problem, plan, forward, row_gradients))
}
