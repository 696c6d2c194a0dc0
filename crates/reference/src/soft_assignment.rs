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
}
