//! Both directions of a loss whose pairs are one tile: three products in all, where two losses take six.
//!
//! The products of x and y serve both directions, the second as columns. In the backward pass one matrix of coefficients
//! is that of both, c_ij = (g_i/τ)(A_i p_ij − a_ij) + (h_j/τ)(A'_j p'_ij − a'_ij), and gives the gradients of both sides:
//! Σ_j c_ij y_j and Σ_i c_ij x_i. Losses have the bits of two losses.

use super::columns::{Buffers, Pass};
use super::plan::Plan;
use super::rows::{self, Inner};
use super::targets::{Scratch, load_block};
use super::{Forward, GRAIN, Problem, Products, TILE, columns, stride};
use crate::parallel::each_chunk;
use crate::tile;

/// The problem of x against y, and that of y against x with the pairs transposed.
#[derive(Debug, Clone, Copy)]
pub struct Symmetric<'a> {
    /// Rows of x.
    pub rows: (&'a Problem<'a>, &'a Plan),
    /// Rows of y.
    pub columns: (&'a Problem<'a>, &'a Plan),
}

/// Both directions' results, without gradients of embeddings and temperatures.
#[derive(Debug, Clone)]
pub struct SymmetricForward {
    /// Rows of x.
    pub rows: Forward,
    /// Rows of y.
    pub columns: Forward,
}

/// Side of the blocks in which matrices are transposed: both of its matrices' lines stay in the first-level cache.
const BLOCK: usize = 16;

/// `out[c, r] += x[r, c]` for `rows` × `cols` numbers: rows of `x` are `from` apart, those of `out` `to`.
fn add_transposed(x: &[f32], (rows, cols): (usize, usize), from: usize, (out, to): (&mut [f32], usize)) {
    for (at, out) in out.chunks_mut(BLOCK * to).enumerate() {
        let first = at * BLOCK;
        for start in (0..rows).step_by(BLOCK) {
            let width = BLOCK.min(rows - start);
            for (c, out) in out.chunks_mut(to).take(cols.saturating_sub(first)).enumerate() {
                let column = x[start * from + first + c..].iter().step_by(from);
                out[start..start + width].iter_mut().zip(column).for_each(|(out, x)| *out += x);
            }
        }
    }
}

/// Whether `b` and `n` rows of `dim` dimensions may have a way shorter than two losses, before anything is read.
#[must_use]
pub fn may_be_short(b: usize, n: usize, dim: usize, products: Products) -> bool {
    b.max(n) <= TILE && !products.splits(dim)
}

impl Symmetric<'_> {
    fn sides(&self) -> (usize, usize) {
        (self.rows.0.queries.rows(), self.columns.0.queries.rows())
    }

    /// Whether there is a way shorter than two losses: at most 512 rows on both sides, all valid and of one weight in the
    /// denominators, whose products are `f32`, and positives that are visited one by one.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let (b, n) = self.sides();
        let simple = |(problem, plan): (&Problem<'_>, &Plan)| {
            // What is not valid has no products as a key, but has a log-sum-exp of its own as a query.
            plan.split.is_none() && !plan.has_moments(problem) && plan.bias.is_none()
        };
        b.max(n) <= TILE && simple(self.rows) && simple(self.columns)
    }

    /// Every row's loss of both directions, where [`Symmetric::is_short`].
    #[must_use]
    pub fn forward(&self) -> SymmetricForward {
        let (b, n) = self.sides();
        let of_rows = rows::forward(self.rows.0, self.rows.1, false, Inner::Kept);
        let mut given = vec![0.0; n * stride(b)];
        add_transposed(&of_rows.products, (b, n), stride(n), (&mut given, stride(b)));
        let mut of_columns = rows::forward(self.columns.0, self.columns.1, false, Inner::Given(&given));
        of_columns.products = given;
        SymmetricForward { rows: of_rows, columns: of_columns }
    }

    /// The gradients of Σ_i `of_rows[i]` · L_i + Σ_j `of_columns[j]` · L'_j for x `[B, D]` and y `[N, D]`.
    ///
    /// # Panics
    /// When there is not one upstream gradient a row.
    #[must_use]
    pub fn gradients(&self, found: &SymmetricForward, of_rows: &[f32], of_columns: &[f32]) -> [Vec<f32>; 2] {
        let (b, n) = self.sides();
        assert_eq!((of_rows.len(), of_columns.len()), (b, n), "contrast: one upstream gradient a row");
        let (problem, plan) = self.rows;
        let padded = b.next_multiple_of(GRAIN);
        let (pairs, width, d) = ((padded, columns(n)), plan.width, problem.queries.cols());
        let mut of_both = found.rows.products.clone();
        let mut of_column = found.columns.products.clone();
        coefficients(self.rows, &found.rows, of_rows, &mut of_both);
        coefficients(self.columns, &found.columns, of_columns, &mut of_column);
        add_transposed(&of_column, (n, b), stride(b), (&mut of_both, stride(n)));
        of_both.resize(padded * stride(n), 0.0);

        let mut scratch = Scratch::new(0, n);
        let tile = scratch.tile(problem, plan, 0);
        let (y, ldy) = (tile.keys, tile.stride);
        let x = load_block(&problem.queries, 0..b, padded, width);
        // Rows of a share: bits do not depend on it.
        let share = |rows: usize| rows.div_ceil(rayon::current_num_threads()).next_multiple_of(GRAIN);
        let (of_x, of_y) = (share(pairs.0), share(pairs.1));
        let mut out = [vec![0.0f32; pairs.0 * width], vec![0.0f32; pairs.1 * width]];
        let [out_x, out_y] = &mut out;
        each_chunk(
            out_x,
            of_x * width,
            || (),
            |(), at, out| {
                let shape = (out.len() / width, pairs.1, width);
                tile::accumulate(
                    shape,
                    (&of_both[at * of_x * stride(n)..], stride(n)),
                    (y, ldy),
                    (out, width),
                );
            },
        );
        each_chunk(
            out_y,
            of_y * width,
            || (),
            |(), at, out| {
                let shape = (pairs.0, out.len() / width, width);
                tile::accumulate_transposed(
                    shape,
                    (&of_both[at * of_y..], stride(n)),
                    x.view(),
                    (out, width),
                );
            },
        );
        let [of_x, of_y] = out;
        let narrow = |rows: usize, mut x: Vec<f32>| -> Vec<f32> {
            if width == d {
                x.truncate(rows * d);
                return x;
            }
            x.chunks_exact(width).take(rows).flat_map(|row| &row[..d]).copied().collect()
        };
        [narrow(b, of_x), narrow(n, of_y)]
    }
}

/// Products into `upstream[i]`/τ_i · c_ij, in place.
fn coefficients(
    (problem, plan): (&Problem<'_>, &Plan),
    forward: &Forward,
    upstream: &[f32],
    products: &mut [f32],
) {
    let n = problem.keys.rows();
    let weights: Vec<f32> = upstream.iter().zip(&plan.inverse_temperature).map(|(g, t)| g * t).collect();
    let pass = Pass { problem, plan, forward, moments: None, weights: &weights };
    let mut scratch = Scratch::new(0, n);
    let tile = scratch.tile(problem, plan, 0);
    let (bias, columns) = (tile.bias, tile.columns);
    each_chunk(products, GRAIN * stride(n), Buffers::default, |buffers, part, products| {
        for (at, scores) in products.chunks_exact_mut(stride(n)).enumerate() {
            let (row, scores) = (part * GRAIN + at, &mut scores[..columns]);
            match weights[row] == 0.0 || !forward.counted[row] {
                true => scores.fill(0.0),
                false => pass.coefficients(row, weights[row], 0..n, (scores, bias), buffers),
            }
        }
    });
}
