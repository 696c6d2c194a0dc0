//! Soft assignment of a row to centroids: p_k ∝ e^{s_k}, with s_k a falling function of the distance d_k.

/// The score of a centroid at distance d.
#[derive(Debug, Clone, PartialEq)]
pub enum Affinity {
    /// s = −rate·d.
    Exponential(f64),
    /// s_k = −d/scale_k.
    Scaled(Vec<f64>),
    /// s = −d²/(2σ²).
    Gaussian(f64),
    /// s_k = −d²/(2σ_k²).
    ScaledGaussian(Vec<f64>),
}

impl Affinity {
    /// s of centroid `k` at squared distance `squared`.
    #[must_use]
    pub fn score(&self, k: usize, squared: f64) -> f64 {
        match self {
            Self::Exponential(rate) => -rate * squared.sqrt(),
            Self::Scaled(scale) => -squared.sqrt() / scale[k],
            Self::Gaussian(sigma) => -squared / (2.0 * sigma * sigma),
            Self::ScaledGaussian(sigma) => -squared / (2.0 * sigma[k] * sigma[k]),
        }
    }
}

/// ln Σ e^{s}; −∞ for nothing.
#[must_use]
pub fn log_sum_exp(scores: &[f64]) -> f64 {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln()
}

/// H = −Σ p ln p of the softmax of `scores`, from log-probabilities; an excluded score of −∞ adds nothing.
#[must_use]
pub fn entropy(scores: &[f64]) -> f64 {
    let lse = log_sum_exp(scores);
    -scores.iter().filter(|s| s.is_finite()).map(|s| (s - lse).exp() * (s - lse)).sum::<f64>()
}

/// The `m` smallest squared distances as (position, value), ascending, ties by position.
#[must_use]
pub fn nearest(squared: &[f64], m: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<(usize, f64)> = squared.iter().copied().enumerate().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
    order.truncate(m);
    order
}

/// The soft update: c_k = Σ_i r_ik x_i / Σ_i r_ik with r_ik = e^{s_ik − lse_i}, of unit rows the direction of the sum (the
/// means in expectation maximization: Dempster, Laird, Rubin 1977; on the sphere Banerjee et al. 2005). Also Σ_i r_ik.
#[must_use]
pub fn soft_centroids(
    x: &[f64],
    centroids: &[f64],
    d: usize,
    affinity: &Affinity,
    unit: bool,
) -> (Vec<f64>, Vec<f64>) {
    let k = centroids.len() / d;
    let (mut sums, mut mass) = (vec![0.0; k * d], vec![0.0; k]);
    for row in x.chunks_exact(d) {
        let scores: Vec<f64> = centroids
            .chunks_exact(d)
            .enumerate()
            .map(|(k, c)| affinity.score(k, crate::clusters::squared_distance(row, c)))
            .collect();
        let lse = log_sum_exp(&scores);
        for (k, score) in scores.iter().enumerate() {
            let r = (score - lse).exp();
            mass[k] += r;
            for (sum, x) in sums[k * d..(k + 1) * d].iter_mut().zip(row) {
                *sum += r * x;
            }
        }
    }
    for (sum, mass) in sums.chunks_exact_mut(d).zip(&mass) {
        let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
        let divisor = if unit { norm } else { *mass };
        sum.iter_mut().for_each(|s| *s /= divisor);
    }
    (sums, mass)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unit vectors by angle, centroids at 0°, 90°, 180°, p ∝ exp(−4d): the values of methods 1.6.
    #[test]
    fn golden_entropies() {
        let at = |degrees: f64| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let centroids = [0.0, 90.0, 180.0].map(at);
        for (angle, golden) in
            [(5.0, 0.042464), (90.0, 0.046213), (40.0, 0.674178), (45.0, 0.728043), (130.0, 0.681526)]
        {
            let x = at(angle);
            let affinity = Affinity::Exponential(4.0);
            let scores: Vec<f64> = centroids
                .iter()
                .enumerate()
                .map(|(k, c)| affinity.score(k, crate::clusters::squared_distance(&x, c)))
                .collect();
            let h = entropy(&scores);
            assert!((h - golden).abs() < 5e-7, "{angle}: {h} against {golden}");
            assert_eq!(h <= 0.5 * 3f64.ln(), golden < 0.5);
        }
    }

    #[test]
    fn entropy_lies_between_zero_and_ln_k() {
        assert!((entropy(&[3.0; 7]) - 7f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[0.0, -1e6]), 0.0);
        assert!((entropy(&[0.5, 0.5, f64::NEG_INFINITY]) - 2f64.ln()).abs() < 1e-12);
    }

    /// The update is the gradient step to the maximum of the likelihood's lower bound: Σ_i ∂lse_i/∂c_k of a Gaussian affinity is
    /// Σ_i r_ik (x_i − c_k)/σ², whose zero at fixed r the moved centroid is; here by finite differences.
    #[test]
    fn the_soft_update_follows_the_gradient_of_the_likelihood() {
        let x = [0.3, -0.2, 1.1, 0.4, -0.7, 0.9, 0.2, 0.1];
        let c = [0.0, 0.1, 0.8, 0.5, -0.5, 0.5];
        let (sigma, d) = (0.6, 2);
        let affinity = Affinity::Gaussian(sigma);
        let likelihood = |c: &[f64]| -> f64 {
            x.chunks_exact(d)
                .map(|x| {
                    let scores: Vec<f64> = c
                        .chunks_exact(d)
                        .map(|c| affinity.score(0, crate::clusters::squared_distance(x, c)))
                        .collect();
                    log_sum_exp(&scores)
                })
                .sum()
        };
        let (moved, mass) = soft_centroids(&x, &c, d, &affinity, false);
        assert!((mass.iter().sum::<f64>() - 4.0).abs() < 1e-12);
        for at in 0..c.len() {
            let (mut above, mut below) = (c, c);
            above[at] += 1e-5;
            below[at] -= 1e-5;
            let slope = (likelihood(&above) - likelihood(&below)) / 2e-5;
            let step = mass[at / d] * (moved[at] - c[at]) / (sigma * sigma);
            assert!((slope - step).abs() < 1e-8, "{at}: {slope} against {step}");
        }
    }
}
