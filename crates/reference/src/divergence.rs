//! Divergence of two contrastive distributions over the same keys: how far a student's view of the keys is from its
//! teacher's (Yang, An, Cai, Xu, "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022, the
//! soft losses).
//!
//! With scores x_ij of the student and y_ij of the teacher and a temperature T,
//!
//! L_i = T² · KL(softmax(y_i/T) ‖ softmax(x_i/T)),  ∂L_i/∂x_ij = T (softmax(x_i/T)_j − softmax(y_i/T)_j).
//!
//! The teacher is a constant. The factor T² keeps the size of the gradient when T changes (Hinton, Vinyals, Dean,
//! "Distilling the Knowledge in a Neural Network", 2015).

use crate::soft_assignment::log_sum_exp;

/// The divergence of one row, and its gradient for the student's scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// T² · KL(teacher ‖ student), in nats times T².
    pub value: f64,
    /// ∂/∂x_j, one a key.
    pub gradient: Vec<f64>,
}

/// The divergence of a student's scores from a teacher's over the same keys. A key that is not compared has −∞ in
/// both rows, and gradient 0; a row without any key has divergence 0.
///
/// # Panics
/// When the rows differ in length or in their excluded keys: the reference is for tests.
#[must_use]
pub fn divergence(student: &[f64], teacher: &[f64], temperature: f64) -> Divergence {
    assert_eq!(student.len(), teacher.len(), "one score a key on both sides");
    let softened = |scores: &[f64]| scores.iter().map(|s| s / temperature).collect::<Vec<f64>>();
    let (x, y) = (softened(student), softened(teacher));
    let (of_x, of_y) = (log_sum_exp(&x), log_sum_exp(&y));
    let mut value = 0.0;
    let gradient = x
        .iter()
        .zip(&y)
        .map(|(x, y)| {
            let compared = *x > f64::NEG_INFINITY;
            assert_eq!(compared, *y > f64::NEG_INFINITY, "the same keys are excluded on both sides");
            if !compared {
                return 0.0;
            }
            let (log_p, log_q) = (x - of_x, y - of_y);
            value += log_q.exp() * (log_q - log_p);
            temperature * (log_p.exp() - log_q.exp())
        })
        .collect();
    Divergence { value: temperature * temperature * value, gradient }
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

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let (x, y) = ([0.3, -1.2, 4.0, 0.0, 2.5], [1.0, 0.2, -0.7, 3.0, 2.4]);
        for temperature in [0.5, 1.0, 3.0] {
            let got = divergence(&x, &y, temperature);
            let h = 1e-5;
            for j in 0..x.len() {
                let at = |shift: f64| {
                    let mut x = x;
                    x[j] += shift;
                    divergence(&x, &y, temperature).value
                };
                let difference = (at(h) - at(-h)) / (2.0 * h);
                assert_abs_diff_eq!(got.gradient[j], difference, epsilon = 1e-8);
            }
        }
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
