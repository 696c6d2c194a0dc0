//! Losses over a list of bank rows for every query, and the momentum update of such rows: memory banks (Wu, Xiong, Yu,
//! Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018; Yang, An, Cai, Xu, "Mutual
//! Contrastive Learning for Visual Representation Learning", AAAI 2022, section 3.4 and its code).
//!
//! Query i lists K columns; column c holds the bank row j(i, c), or nothing. With s_ic = ⟨x_i, y_j(i,c)⟩/τ_i the losses are
//! those of [`crate::contrast`] and [`crate::divergence`] of one query against the rows it lists: columns are the keys.
//! An index that repeats is as many keys. The bank is a constant.
//!
//! After the loss, bank row j moves towards the new embedding v of its sample: y_j ← z/|z|, z = m y_j + (1 − m) v.

use crate::contrast::{Normalizer, OtherPositives, Pairs, Problem};
use crate::divergence::divergence;

/// A column that holds nothing.
pub const PADDING: u32 = u32::MAX;

/// Queries and what they list.
#[derive(Debug, Clone, Copy)]
pub struct Lists<'a> {
    /// `[queries, dim]`.
    pub queries: &'a [f64],
    /// `[rows, dim]`.
    pub bank: &'a [f64],
    /// The embeddings' dimension.
    pub dim: usize,
    /// `[queries, columns]` of bank rows, or [`PADDING`].
    pub indices: &'a [u32],
    /// Columns of every query.
    pub columns: usize,
    /// One temperature a query.
    pub temperatures: &'a [f64],
}

/// Losses and the gradients of each row's own loss.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f64>,
    /// ln Σ_c e^{s_ic} (of a divergence: of s_ic/T); −∞ without a column.
    pub log_sum_exp: Vec<f64>,
    /// Which rows count.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i, `[queries, dim]`.
    pub queries: Vec<f64>,
    /// ∂L_i/∂τ_i.
    pub temperatures: Vec<f64>,
    /// ∂L_i/∂s_ic, `[queries, columns]`; 0 for padding.
    pub coefficients: Vec<f64>,
}

impl Lists<'_> {
    /// Number of queries.
    pub fn rows(&self) -> usize {
        self.temperatures.len()
    }

    /// The columns of query `i` that hold something.
    pub fn listed(&self, i: usize) -> Vec<usize> {
        (0..self.columns).filter(|c| self.indices[i * self.columns + c] != PADDING).collect()
    }

    /// The bank row in a column.
    pub fn row(&self, i: usize, column: usize) -> &[f64] {
        &self.bank[self.indices[i * self.columns + column] as usize * self.dim..][..self.dim]
    }

    fn query(&self, i: usize) -> &[f64] {
        &self.queries[i * self.dim..][..self.dim]
    }

    /// s_ic.
    pub fn score(&self, i: usize, column: usize) -> f64 {
        let products = self.query(i).iter().zip(self.row(i, column)).map(|(x, y)| x * y);
        products.sum::<f64>() / self.temperatures[i]
    }

    /// The contrastive losses. `weights` `[queries, columns]`: a column is a positive where its weight is above 0.
    pub fn contrast(&self, weights: &[f64], normalizer: Normalizer) -> Losses {
        let mut out = Losses::default();
        for i in 0..self.rows() {
            let listed = self.listed(i);
            let keys: Vec<f64> = listed.iter().flat_map(|c| self.row(i, *c)).copied().collect();
            let weight = |k: usize| weights[i * self.columns + listed[k]];
            let pairs = Pairs::new(1, listed.len(), |_, k| weight(k) > 0.0).weighted(|_, k| weight(k));
            let problem = Problem {
                queries: self.query(i),
                keys: &keys,
                dim: self.dim,
                temperatures: &self.temperatures[i..=i],
                pairs: &pairs,
                normalizer,
                other_positives: OtherPositives::InDenominator,
            };
            let (forward, gradients) = (problem.forward(), problem.gradients(&[1.0]));
            out.per_row.extend(forward.per_row);
            out.log_sum_exp.extend(forward.log_sum_exp);
            out.counted.extend(forward.counted);
            out.queries.extend(gradients.queries);
            out.temperatures.extend(gradients.temperatures);
            self.add_coefficients(&mut out, &listed, &forward.coefficients);
        }
        out
    }

    /// T² KL(softmax(t_i/T) ‖ softmax(s_i/T)), where t are the scores of a `teacher` with the same indices and columns.
    /// Gradients are those of the student's queries; none is given for temperatures.
    pub fn divergence(&self, teacher: &Lists<'_>, softening: f64) -> Losses {
        let mut out = Losses::default();
        for i in 0..self.rows() {
            let listed = self.listed(i);
            let scores = |of: &Lists<'_>| listed.iter().map(|c| of.score(i, *c)).collect::<Vec<f64>>();
            let (student, teacher) = (scores(self), scores(teacher));
            let found = divergence(&student, &teacher, softening);
            let softened: Vec<f64> = student.iter().map(|s| s / softening).collect();
            out.per_row.push(found.value);
            out.log_sum_exp.push(crate::soft_assignment::log_sum_exp(&softened));
            out.counted.push(!listed.is_empty());
            let mut gradient = vec![0.0; self.dim];
            for (c, g) in listed.iter().zip(&found.gradient) {
                for (out, y) in gradient.iter_mut().zip(self.row(i, *c)) {
                    *out += g * y / self.temperatures[i];
                }
            }
            out.queries.extend(gradient);
            self.add_coefficients(&mut out, &listed, &found.gradient);
        }
        out
    }

    fn add_coefficients(&self, out: &mut Losses, listed: &[usize], coefficients: &[f64]) {
        let start = out.coefficients.len();
        out.coefficients.resize(start + self.columns, 0.0);
        for (c, coefficient) in listed.iter().zip(coefficients) {
            out.coefficients[start + c] = *coefficient;
        }
    }
}

/// Moves bank rows: for every position b in order, y ← z/|z| with z = m y + (1 − m) v_b and y the bank row `indices[b]`;
/// padding is skipped. An index that repeats is updated as often.
pub fn update_rows(bank: &mut [f64], dim: usize, indices: &[u32], rows: &[f64], momentum: f64) {
    for (index, v) in indices.iter().zip(rows.chunks_exact(dim)) {
        if *index == PADDING {
            continue;
        }
        let y = &mut bank[*index as usize * dim..][..dim];
        for (y, v) in y.iter_mut().zip(v) {
            *y = momentum * *y + (1.0 - momentum) * v;
        }
        let norm = y.iter().map(|y| y * y).sum::<f64>().sqrt();
        y.iter_mut().for_each(|y| *y /= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    fn directions(degrees: &[f64]) -> Vec<f64> {
        degrees.iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect()
    }

    fn lists<'a>(
        queries: &'a [f64],
        bank: &'a [f64],
        indices: &'a [u32],
        temperatures: &'a [f64],
    ) -> Lists<'a> {
        let columns = indices.len() / temperatures.len();
        Lists { queries, bank, dim: 2, indices, columns, temperatures }
    }

    /// Every row listed once is the loss over the whole bank, whose golden value `contrast` has.
    #[test]
    fn a_list_of_the_whole_bank_has_the_golden_value_of_the_loss_over_it() {
        let (z, bank) = (directions(&[10.0, 100.0]), directions(&[0.0, 90.0, 30.0, 200.0]));
        // The second query's list is in another order, with padding between.
        let indices = [0, 1, 2, 3, PADDING, 3, PADDING, 1, 0, 2];
        let weights = [1.0, 0.0, 1.0, 0.0, 9.0, 1.0, 9.0, 1.0, 0.0, 0.0];
        let found = lists(&z, &bank, &indices, &[0.1, 0.1]).contrast(&weights, Normalizer::Count);
        let mean = (found.per_row[0] + found.per_row[1]) / 2.0;
        assert_abs_diff_eq!(mean, 3.256_236_292, epsilon = 1e-8);
        assert_abs_diff_eq!(found.log_sum_exp[0], 10.341_061_637, epsilon = 1e-8);
        assert_abs_diff_eq!(found.log_sum_exp[1], 9.849_710_692, epsilon = 1e-8);
        assert_eq!(found.coefficients[4], 0.0);
    }

    /// By hand: scores 1, 0 and 0 again, one positive: L = ln(e + 2) − 1, ∂L/∂s = (e, 1, 1)/(e + 2) − (1, 0, 0).
    #[test]
    fn a_repeated_index_counts_as_often_as_it_is_listed() {
        let (z, bank) = (directions(&[0.0]), directions(&[0.0, 90.0]));
        let found = lists(&z, &bank, &[0, 1, 1], &[1.0]).contrast(&[1.0, 0.0, 0.0], Normalizer::Count);
        let sum = 1f64.exp() + 2.0;
        assert_abs_diff_eq!(found.per_row[0], sum.ln() - 1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(found.queries[0], 1f64.exp() / sum - 1.0, epsilon = 1e-12);
        assert_abs_diff_eq!(found.queries[1], 2.0 / sum, epsilon = 1e-12);
    }

    /// The scores of the golden values of `divergence`, from lists.
    #[test]
    fn divergences_have_their_golden_values() {
        let (x, y) = ([1.0, 0.0], [1.0, 0.0]);
        let student = [-1.0, 0.0, 2.0, 0.0, 0.5, 0.0];
        let teacher = [-0.5, 0.0, 1.0, 0.0, 1.5, 0.0];
        let indices = [1, PADDING, 2, 0];
        let of = |bank| lists(&x, bank, &indices, &[1.0]);
        let found = of(&student).divergence(&Lists { queries: &y, ..of(&teacher) }, 3.0);
        assert_abs_diff_eq!(found.per_row[0], 0.416_355_380, epsilon = 5e-10);
        let golden = [0.443_358_958, 0.0, -0.349_653_272, -0.093_705_686];
        for (got, golden) in found.coefficients.iter().zip(golden) {
            assert_abs_diff_eq!(*got, golden, epsilon = 5e-10);
        }
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let bank = directions(&[0.0, 25.0, 70.0, 110.0, 200.0]);
        let other = directions(&[5.0, 60.0, 30.0, 170.0, 250.0]);
        let (x, t) = (directions(&[20.0, 95.0]), directions(&[33.0, 80.0]));
        let indices = [0, 2, 2, 4, PADDING, 3, 1, 3, 0, 1];
        let weights = [1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 2.0, 0.0, 0.25, 0.0];
        let (tau, h) = ([0.3, 0.7], 1e-5);
        for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
            let loss = |x: &[f64], tau: &[f64]| {
                lists(x, &bank, &indices, tau).contrast(&weights, normalizer).per_row.iter().sum::<f64>()
            };
            let found = lists(&x, &bank, &indices, &tau).contrast(&weights, normalizer);
            for d in 0..4 {
                let at = |shift: f64| {
                    let mut x = x.clone();
                    x[d] += shift;
                    loss(&x, &tau)
                };
                assert_abs_diff_eq!(found.queries[d], (at(h) - at(-h)) / (2.0 * h), epsilon = 1e-7);
            }
            for i in 0..2 {
                let at = |shift: f64| {
                    let mut tau = tau;
                    tau[i] += shift;
                    loss(&x, &tau)
                };
                assert_abs_diff_eq!(found.temperatures[i], (at(h) - at(-h)) / (2.0 * h), epsilon = 1e-7);
            }
        }
        let teacher = Lists { queries: &t, ..lists(&x, &other, &indices, &tau) };
        let divergences = |x: &[f64]| lists(x, &bank, &indices, &tau).divergence(&teacher, 2.0);
        let found = divergences(&x);
        for d in 0..4 {
            let at = |shift: f64| {
                let mut x = x.clone();
                x[d] += shift;
                divergences(&x).per_row.iter().sum::<f64>()
            };
            assert_abs_diff_eq!(found.queries[d], (at(h) - at(-h)) / (2.0 * h), epsilon = 1e-7);
        }
    }

    #[test]
    fn rows_without_a_positive_or_a_column_do_not_count() {
        let (z, bank) = (directions(&[0.0, 10.0]), directions(&[0.0, 90.0]));
        let indices = [PADDING, PADDING, 0, 1];
        let problem = lists(&z, &bank, &indices, &[1.0, 1.0]);
        let found = problem.contrast(&[1.0, 1.0, 0.0, 0.0], Normalizer::Count);
        assert_eq!((found.counted, found.per_row), (vec![false; 2], vec![0.0; 2]));
        assert_eq!(found.log_sum_exp[0], f64::NEG_INFINITY);
        let found = problem.divergence(&problem, 3.0);
        assert_eq!((found.counted, found.per_row), (vec![false, true], vec![0.0; 2]));
    }

    /// By hand: half of (1, 0) and (0, 1) is (1, 1)/√2 again; three quarters of (0.6, 0.8) and a quarter of (0, 2).
    #[test]
    fn updates_have_their_golden_values() {
        let mut bank = vec![1.0, 0.0, 0.6, 0.8, 5.0, 5.0];
        update_rows(&mut bank, 2, &[0, PADDING], &[0.0, 1.0, 7.0, 7.0], 0.5);
        update_rows(&mut bank, 2, &[1], &[0.0, 2.0], 0.75);
        let half = 0.5f64.sqrt();
        let norm = (0.45f64 * 0.45 + 1.1 * 1.1).sqrt();
        for (got, expected) in bank.iter().zip([half, half, 0.45 / norm, 1.1 / norm, 5.0, 5.0]) {
            assert_abs_diff_eq!(*got, expected, epsilon = 1e-12);
        }
    }
}
