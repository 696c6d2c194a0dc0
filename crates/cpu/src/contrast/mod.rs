//! The weighted multi-positive contrastive loss, forward and backward in tiles.
//!
//! With s_ij = ⟨x_i, y_j⟩/τ_i, positives P(i) of weights w_ij, n_i = |P(i)| or Σ_P w_ij, a_ij = w_ij/n_i and
//! A_i = Σ_j a_ij, the row's loss is A_i·lse_i − Σ_j a_ij s_ij ([`OtherPositives::InDenominator`]; SupCon of
//! Khosla et al. 2020, eq. 2, with weights as in Wu et al. 2022) or Σ_j a_ij ln(1 + Z_i e^{−s_ij}) with Z_i over
//! the non-positives ([`OtherPositives::LeftOut`]).
//!
//! The dense part is a plain masked softmax over the keys, whatever the positives are: one pass over tiles of
//! keys computes lse_i and O_i = Σ_j p_ij y_j together, two matrix products in all. The positives enter only
//! through T_i = Σ_j a_ij y_j, as L_i = A_i lse_i − ⟨x_i, T_i⟩/τ_i and ∂L_i/∂x_i = (A_i O_i − T_i)/τ_i, and are
//! listed through an index of the keys, never by comparing B × N labels. The keys' gradient is a second pass
//! with one owner per key.

mod columns;
pub(crate) mod exponentials;
pub(crate) mod index;
mod moments;
mod pace;
mod pairs;
mod plan;
mod positives;
mod rows;
mod symmetric;
pub(crate) mod targets;

pub use pace::{Admission, Closeness, Pace};
pub use pairs::{Affinity, AffinityMap, Normalizer, Options, OtherPositives, Pairs, Products, Rule};
pub use plan::Plan;
pub(crate) use plan::view_row;
pub use symmetric::{Symmetric, SymmetricForward, may_be_short};

use crate::{Gradients, Result, Rows};

pub(crate) const OP: &str = "contrast";

/// Keys of one tile. Tiles count from key 0, so that a row's sums are the same in any batch; a shared dimension
/// of at most 512 is one block of `gemm`'s sums whatever the other sides are.
pub(crate) const TILE: usize = 512;

/// Columns of a tile that holds `keys` keys: [`TILE`], or fewer where the last tile is short. Further columns would be
/// zero rows of bias −∞ and leave every bit as it is: exponentials of 0 in sums that only grow, 0 · 0 at the end of
/// sums of products.
pub(crate) fn columns(keys: usize) -> usize {
    keys.max(crate::tile::MIN_COLS).next_multiple_of(GRAIN).min(TILE)
}

/// The distance of rows of scores against `keys` keys in tiles: a power of two would let them share few sets of the cache.
pub(crate) fn stride(keys: usize) -> usize {
    columns(keys) + GRAIN
}

/// What the columns of a tile and the queries of a step are a multiple of: the step of split products, two vectors.
pub(crate) const GRAIN: usize = 32;

/// Rows of a block and dimensions are padded to this many: fewer take another path of `gemm`, with other bits.
pub(crate) const SIDE: usize = 16;

/// Queries of one step of the column pass: a fixed grid from query 0, so that the order of every sum is the same for any
/// threads.
pub(crate) const STEP: usize = 256;

/// Tiles of one split: partial results of splits merge in the order of the keys, whoever computed them.
pub(crate) const SPLIT: usize = 16;

/// Queries, keys, temperatures, pairs and options of one loss.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[B, D]`.
    pub queries: Rows<'a>,
    /// `[N, D]`.
    pub keys: Rows<'a>,
    /// One temperature for all, or one a query.
    pub temperatures: &'a [f32],
    /// Who is whose positive, and who is in whose denominator.
    pub pairs: Pairs<'a>,
    /// The form of the loss.
    pub options: Options,
}

/// What the forward pass found, a number or a row of the gradient for each query.
#[derive(Debug, Clone, Default)]
pub struct Forward {
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f32>,
    /// ln of the row's denominator (without its positives when they are left out); −∞ when empty.
    pub log_sum_exp: Vec<f32>,
    /// Which rows count: those with a positive normalizer and, with positives in it, a denominator.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i, `[B, D]`; empty unless asked for.
    pub query_gradients: Vec<f32>,
    /// ∂L_i/∂τ_i, `[B]`; empty unless asked for.
    pub temperature_gradients: Vec<f32>,
    /// The weight of the softmax in ∂L_i/∂s_ij: A_i, or Σ_j a_ij q_ij when the positives are left out.
    mass: Vec<f32>,
    /// 1/n_i; 0 for rows that do not count.
    inverse_normalizer: Vec<f32>,
    /// Products that were kept, in rows [`stride`] apart.
    products: Vec<f32>,
}

impl Forward {
    /// The number of counted rows.
    pub fn anchors(&self) -> usize {
        self.counted.iter().filter(|c| **c).count()
    }
}

/// Computes every row's loss and, where `gradients` asks for the queries', ∂L_i/∂x_i and ∂L_i/∂τ_i in the same pass.
///
/// Extra memory is O(B·D + N + tiles). The bits of a row do not depend on the other rows or the threads.
///
/// # Errors
/// None beyond those of [`Plan::new`], which has checked the problem; the signature leaves room.
pub fn forward(problem: &Problem<'_>, plan: &Plan, gradients: Gradients) -> Result<Forward> {
    let keeps = gradients.keys && plan.keeps_products(problem);
    let inner = if keeps { rows::Inner::Kept } else { rows::Inner::Computed };
    Ok(rows::forward(problem, plan, gradients.queries, inner))
}

/// The gradient of Σ_i `row_gradients[i]` · L_i for the keys, `[N, D]`: every key row has one owner.
///
/// # Errors
/// [`crate::Error::Shape`] when `row_gradients` has not one entry a query.
pub fn key_gradients(
    problem: &Problem<'_>,
    plan: &Plan,
    forward: &Forward,
    row_gradients: &[f32],
) -> Result<Vec<f32>> {
    if row_gradients.len() != problem.queries.rows() || forward.mass.len() != problem.queries.rows() {
        return Err(crate::Error::shape(
            OP,
            "row_gradients",
            &[row_gradients.len()],
            format!("[{}], one a query", problem.queries.rows()),
        ));
    }
    Ok(columns::key_gradients(problem, plan, forward, row_gradients))
}
