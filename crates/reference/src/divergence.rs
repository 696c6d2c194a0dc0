//! Divergence of two contrastive distributions over the same keys: how far a student's view of the keys is from its
//! teacher's (Yang, An, Cai, Xu, "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022, the
//! soft losses).
//!
//! With scores s_ij of the student and t_ij of the teacher, a temperature T, p = softmax(s_i/T) and q = softmax(t_i/T):
//!
//! * forward: L_i = T² · KL(q ‖ p),  ∂L_i/∂s_ij = T (p_j − q_j);
//! * reverse: L_i = T² · KL(p ‖ q),  ∂L_i/∂s_ij = T p_j (ln p_j − ln q_j − KL(p ‖ q)).
//!
//! The teacher is a constant. The factor T² keeps the size of the gradient when T changes (Hinton, Vinyals, Dean,
//! "Distilling the Knowledge in a Neural Network", 2015). The reverse direction seeks the modes of the teacher (Gu, Dong,
//! Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024).
//!
//! From embeddings the scores are s_ij = ⟨x_i, y_j⟩/τ of the student and t_ij = ⟨u_i, v_j⟩/τ' of the teacher, whose
//! dimension may be another: [`Problem`].

use crate::soft_assignment::log_sum_exp;

/// The divergence of one row, and its gradient for the student's scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// T² · KL(teacher ‖ student), in nats times T².
    pub value: f64,
    /// ∂/∂x_j, one a key.
    pub gradient: Vec<f64>,
}

/// Which of the two distributions the logarithm is averaged over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// KL(teacher ‖ student).
    Forward,
    /// KL(student ‖ teacher).
    Reverse,
}

/// The divergence of a student's scores from a teacher's over the same keys. A key that is not compared has −∞ in
/// both rows, and gradient 0; a row without any key has divergence 0.
///
/// # Panics
/// When the rows differ in length or in their excluded keys: the reference is for tests.
#[must_use]
pub fn divergence(student: &[f64], teacher: &[f64], temperature: f64) -> Divergence {
    directed(student, teacher, temperature, Direction::Forward)
}

/// [`divergence`], in a direction.
///
/// # Panics
/// As [`divergence`].
#[must_use]
pub fn directed(student: &[f64], teacher: &[f64], temperature: f64, direction: Direction) -> Divergence {
    assert_eq!(student.len(), teacher.len(), "one score a key on both sides");
    let softened = |scores: &[f64]| scores.iter().map(|s| s / temperature).collect::<Vec<f64>>();
    let (x, y) = (softened(student), softened(teacher));
    let (of_x, of_y) = (log_sum_exp(&x), log_sum_exp(&y));
    // ln p and ln q of every key that is compared.
    let logs: Vec<Option<(f64, f64)>> = x
        .iter()
        .zip(&y)
        .map(|(x, y)| {
            let compared = *x > f64::NEG_INFINITY;
            assert_eq!(compared, *y > f64::NEG_INFINITY, "the same keys are excluded on both sides");
            compared.then(|| (x - of_x, y - of_y))
        })
        .collect();
    let kl: f64 = logs
        .iter()
        .flatten()
        .map(|(p, q)| match direction {
            Direction::Forward => q.exp() * (q - p),
            Direction::Reverse => p.exp() * (p - q),
        })
        .sum();
    let gradient = |(p, q): (f64, f64)| match direction {
        Direction::Forward => p.exp() - q.exp(),
        Direction::Reverse => p.exp() * (p - q - kl),
    };
    Divergence {
        value: temperature * temperature * kl,
        gradient: logs.iter().map(|log| log.map_or(0.0, |log| temperature * gradient(log))).collect(),
    }
}

/// One side: queries, keys and what divides their inner products.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// `[queries, dim]`.
    pub queries: &'a [f64],
    /// `[keys, dim]`.
    pub keys: &'a [f64],
    /// The embeddings' dimension on this side.
    pub dim: usize,
    /// τ of this side.
    pub temperature: f64,
}

impl Side<'_> {
    fn score(&self, i: usize, j: usize) -> f64 {
        let (x, y) = (&self.queries[i * self.dim..][..self.dim], &self.keys[j * self.dim..][..self.dim]);
        x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() / self.temperature
    }
}

/// Two sides over the same queries and keys.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    /// Receives gradients.
    pub student: Side<'a>,
    /// A constant.
    pub teacher: Side<'a>,
    /// T, what divides the scores of both sides once more.
    pub softening: f64,
    /// Which divergence.
    pub direction: Direction,
    /// `[queries, keys]`: whether the pair is compared.
    pub compared: Vec<bool>,
}

/// Divergences and the gradients of each row's own.
#[derive(Debug, Clone, Default)]
pub struct Divergences {
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f64>,
    /// ln Σ_j e^{s_ij/T}; −∞ without a key.
    pub log_sum_exp: Vec<f64>,
    /// The same of the teacher's scores.
    pub teacher_log_sum_exp: Vec<f64>,
    /// Which rows count: those with a key.
    pub counted: Vec<bool>,
    /// ∂L_i/∂s_ij, `[queries, keys]`; 0 where the pair is not compared.
    pub coefficients: Vec<f64>,
}

impl Problem<'_> {
    /// Number of queries and of keys.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.student.queries.len() / self.student.dim, self.student.keys.len() / self.student.dim)
    }

    /// Every row's divergence.
    #[must_use]
    pub fn forward(&self) -> Divergences {
        let (b, n) = self.shape();
        let mut out = Divergences::default();
        for i in 0..b {
            let scores = |of: &Side<'_>| -> Vec<f64> {
                let score = |j| if self.compared[i * n + j] { of.score(i, j) } else { f64::NEG_INFINITY };
                (0..n).map(score).collect()
            };
            let (student, teacher) = (scores(&self.student), scores(&self.teacher));
            let found = directed(&student, &teacher, self.softening, self.direction);
            let lse = |scores: &[f64]| {
                log_sum_exp(&scores.iter().map(|s| s / self.softening).collect::<Vec<f64>>())
            };
            out.per_row.push(found.value);
            out.log_sum_exp.push(lse(&student));
            out.teacher_log_sum_exp.push(lse(&teacher));
            out.counted.push(self.compared[i * n..][..n].contains(&true));
            out.coefficients.extend(found.gradient);
        }
        out
    }

    /// The gradients of Σ_i `row_gradients[i]` · L_i for the student's queries and keys.
    #[must_use]
    pub fn gradients(&self, row_gradients: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (b, n) = self.shape();
        let Side { queries, keys, dim, temperature } = self.student;
        let coefficients = self.forward().coefficients;
        let (mut of_queries, mut of_keys) = (vec![0.0; b * dim], vec![0.0; n * dim]);
        for i in 0..b {
            for j in 0..n {
                let c = row_gradients[i] * coefficients[i * n + j] / temperature;
                for d in 0..dim {
                    of_queries[i * dim + d] += c * keys[j * dim + d];
                    of_keys[j * dim + d] += c * queries[i * dim + d];
                }
            }
        }
        (of_queries, of_keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// The values of methods 3.
    #[test]
    fn golden_values() {
        let got = divergence(&[2.0, 0.5, -1.0], &[1.0, 1.5, -0.5], 3.0);
        assert_abs_diff_eq!(got.value, 0.416_355_380, epsilon = 5e-10);
        for (got, golden) in got.gradient.iter().zip([0.443_358_958, -0.349_653_272, -0.093_705_686]) {
            assert_abs_diff_eq!(*got, golden, epsilon = 5e-10);
        }
    }

    /// By hand: p = (1, 1)/2 and q = (3, 1)/4, so KL(p ‖ q) = ½ ln(2/3) + ½ ln 2 = ½ ln(4/3), and a gradient of
    /// ½ (ln(2/3) − ½ ln(4/3)) = −¼ ln 3 for the first key.
    #[test]
    fn reverse_divergences_have_their_golden_values() {
        let got = directed(&[0.7, 0.7], &[3f64.ln(), 0.0], 1.0, Direction::Reverse);
        assert_abs_diff_eq!(got.value, 0.5 * (4.0f64 / 3.0).ln(), epsilon = 1e-12);
        assert_abs_diff_eq!(got.gradient[0], -0.25 * 3f64.ln(), epsilon = 1e-12);
        assert_abs_diff_eq!(got.gradient[1], 0.25 * 3f64.ln(), epsilon = 1e-12);
    }

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let (x, y) = ([0.3, -1.2, 4.0, 0.0, 2.5], [1.0, 0.2, -0.7, 3.0, 2.4]);
        for (temperature, direction) in
            [0.5, 1.0, 3.0].into_iter().flat_map(|t| [(t, Direction::Forward), (t, Direction::Reverse)])
        {
            let got = directed(&x, &y, temperature, direction);
            let h = 1e-5;
            for j in 0..x.len() {
                let at = |shift: f64| {
                    let mut x = x;
                    x[j] += shift;
                    directed(&x, &y, temperature, direction).value
                };
                let difference = (at(h) - at(-h)) / (2.0 * h);
                assert_abs_diff_eq!(got.gradient[j], difference, epsilon = 1e-8);
            }
        }
    }

    fn rows(rows: usize, dim: usize, seed: f64) -> Vec<f64> {
        (0..rows * dim).map(|at| ((at as f64 + 1.0) * seed).sin()).collect()
    }

    /// Sides of other dimensions and temperatures; the second query meets only the last key.
    fn problem<'a>(
        x: &'a [f64],
        y: &'a [f64],
        u: &'a [f64],
        v: &'a [f64],
        direction: Direction,
    ) -> Problem<'a> {
        let mut compared = vec![true; 3 * 4];
        compared[2] = false;
        compared[4..7].fill(false);
        Problem {
            student: Side { queries: x, keys: y, dim: 2, temperature: 0.3 },
            teacher: Side { queries: u, keys: v, dim: 3, temperature: 0.7 },
            softening: 2.0,
            direction,
            compared,
        }
    }

    #[test]
    fn gradients_for_embeddings_agree_with_central_differences() {
        let (x, y, u, v) = (rows(3, 2, 1.3), rows(4, 2, 2.1), rows(3, 3, 0.7), rows(4, 3, 1.9));
        let weights = [0.5, 2.0, -1.5];
        for direction in [Direction::Forward, Direction::Reverse] {
            let loss = |x: &[f64], y: &[f64]| -> f64 {
                let found = problem(x, y, &u, &v, direction).forward();
                found.per_row.iter().zip(&weights).map(|(loss, weight)| loss * weight).sum()
            };
            let (of_x, of_y) = problem(&x, &y, &u, &v, direction).gradients(&weights);
            let h = 1e-5;
            let moved = |of: &[f64], at: usize, by: f64| {
                let mut of = of.to_vec();
                of[at] += by;
                of
            };
            for (at, found) in of_x.iter().enumerate() {
                let difference = loss(&moved(&x, at, h), &y) - loss(&moved(&x, at, -h), &y);
                assert_abs_diff_eq!(*found, difference / (2.0 * h), epsilon = 1e-7);
            }
            for (at, found) in of_y.iter().enumerate() {
                let difference = loss(&x, &moved(&y, at, h)) - loss(&x, &moved(&y, at, -h));
                assert_abs_diff_eq!(*found, difference / (2.0 * h), epsilon = 1e-7);
            }
        }
    }

    #[test]
    fn rows_of_a_problem_are_those_of_scores() {
        let (x, y, u, v) = (rows(3, 2, 1.3), rows(4, 2, 2.1), rows(3, 3, 0.7), rows(4, 3, 1.9));
        let mut problem = problem(&x, &y, &u, &v, Direction::Forward);
        problem.compared[8..].fill(false);
        let found = problem.forward();
        assert_eq!(found.counted, [true, true, false]);
        let (s, t): (Vec<f64>, Vec<f64>) =
            [0, 1, 3].map(|j| (problem.student.score(0, j), problem.teacher.score(0, j))).into_iter().unzip();
        assert_abs_diff_eq!(found.per_row[0], divergence(&s, &t, 2.0).value, epsilon = 1e-12);
        // One key is one distribution; none is nothing.
        assert_eq!(found.per_row[1..], [0.0, 0.0]);
        assert_eq!(found.log_sum_exp[2], f64::NEG_INFINITY);
        assert_abs_diff_eq!(found.teacher_log_sum_exp[1], problem.teacher.score(1, 3) / 2.0, epsilon = 1e-12);
    }

    #[test]
    fn equal_rows_do_not_diverge_and_excluded_keys_do_not_count() {
        let x = [0.3, -1.2, 4.0];
        let same = divergence(&x, &x, 2.0);
        assert_eq!(same.value, 0.0);
        assert!(same.gradient.iter().all(|g| *g == 0.0));
        let y = [1.0, 0.2, -0.7];
        let without = divergence(&x, &y, 2.0);
        let none = f64::NEG_INFINITY;
        let with = divergence(&[none, x[0], x[1], none, x[2]], &[none, y[0], y[1], none, y[2]], 2.0);
        assert_eq!(with.value, without.value);
        assert_eq!(with.gradient[1..3], without.gradient[..2]);
        assert_eq!((with.gradient[0], with.gradient[3]), (0.0, 0.0));
        assert_eq!(divergence(&[none], &[none], 2.0).value, 0.0);
    }
}
