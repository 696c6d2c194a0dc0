//! Exact nearest neighbors: all scores of a row, sorted.

/// How two rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// ⟨x, y⟩, larger is nearer.
    InnerProduct,
    /// ⟨x, y⟩ / (‖x‖‖y‖), larger is nearer.
    Cosine,
    /// ‖x − y‖², smaller is nearer.
    SquaredL2,
}

/// The score of one pair.
pub fn score(metric: Metric, x: &[f64], y: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    match metric {
        Metric::InnerProduct => dot(x, y),
        Metric::Cosine => dot(x, y) / (dot(x, x).sqrt() * dot(y, y).sqrt()),
        Metric::SquaredL2 => x.iter().zip(y).map(|(a, b)| (a - b) * (a - b)).sum(),
    }
}

/// Whether score `a` is nearer than score `b`.
pub fn nearer(metric: Metric, a: f64, b: f64) -> bool {
    if metric == Metric::SquaredL2 { a < b } else { a > b }
}

/// The `k` nearest allowed keys of every query as (index, score), nearest first, equal scores by the smaller
/// index; shorter than `k` where fewer keys are allowed.
pub fn neighbors(
    queries: &[f64],
    bank: &[f64],
    dim: usize,
    k: usize,
    metric: Metric,
    allowed: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<(usize, f64)>> {
    let mut lists = Vec::new();
    for (i, x) in queries.chunks_exact(dim).enumerate() {
        let mut list = Vec::new();
        for (j, y) in bank.chunks_exact(dim).enumerate() {
            if allowed(i, j) {
                list.push((j, score(metric, x, y)));
            }
        }
        list.sort_by(|a, b| {
            if nearer(metric, a.1, b.1) {
                std::cmp::Ordering::Less
            } else if nearer(metric, b.1, a.1) {
                std::cmp::Ordering::Greater
            } else {
                a.0.cmp(&b.0)
            }
        });
        list.truncate(k);
        lists.push(list);
    }
    lists
}

/// The gradients of Σ upstream · score with respect to the queries and to the bank, the neighbors held fixed.
///
/// Inner product: ∂s/∂x = y. Cosine: ∂s/∂x = (ŷ − s·x̂)/‖x‖. Squared L2: ∂s/∂x = 2(x − y). The bank's are the
/// same with the roles exchanged.
pub fn gradients(
    queries: &[f64],
    bank: &[f64],
    dim: usize,
    metric: Metric,
    pairs: &[(usize, usize, f64)],
) -> (Vec<f64>, Vec<f64>) {
    let (mut dq, mut dk) = (vec![0.0; queries.len()], vec![0.0; bank.len()]);
    for &(i, j, g) in pairs {
        let (x, y) = (&queries[i * dim..][..dim], &bank[j * dim..][..dim]);
        let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
        let (nx, ny, s) = (norm(x), norm(y), score(metric, x, y));
        for d in 0..dim {
            let (gx, gy) = match metric {
                Metric::InnerProduct => (y[d], x[d]),
                Metric::Cosine => ((y[d] / ny - s * x[d] / nx) / nx, (x[d] / nx - s * y[d] / ny) / ny),
                Metric::SquaredL2 => (2.0 * (x[d] - y[d]), 2.0 * (y[d] - x[d])),
            };
            dq[i * dim + d] += g * gx;
            dk[j * dim + d] += g * gy;
        }
    }
    (dq, dk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_go_to_the_smaller_index() {
        let bank = [1.0, 0.0, 2.0, 0.0, 1.0, 5.0, 2.0, 1.0];
        let found = neighbors(&[1.0, 0.0], &bank, 2, 3, Metric::InnerProduct, |_, _| true);
        assert_eq!(found, [vec![(1, 2.0), (3, 2.0), (0, 1.0)]]);
        let found = neighbors(&[1.0, 0.0], &bank, 2, 9, Metric::SquaredL2, |_, j| j != 0);
        assert_eq!(found, [vec![(1, 1.0), (3, 2.0), (2, 25.0)]]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let value = |k: usize| f64::from((k as u32).wrapping_mul(2_654_435_761) >> 16) / 32_768.0 - 1.0;
        let x: Vec<f64> = (0..6).map(value).collect();
        let y: Vec<f64> = (6..21).map(value).collect();
        let pairs = [(0, 1, 0.7), (1, 1, -1.3), (1, 4, 0.4)];
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2] {
            let total = |x: &[f64], y: &[f64]| {
                pairs
                    .iter()
                    .map(|&(i, j, g)| g * score(metric, &x[3 * i..][..3], &y[3 * j..][..3]))
                    .sum::<f64>()
            };
            let (dx, dy) = gradients(&x, &y, 3, metric, &pairs);
            let h = 1e-5;
            for (at, grad) in dx.iter().enumerate() {
                let (mut up, mut down) = (x.clone(), x.clone());
                (up[at], down[at]) = (up[at] + h, down[at] - h);
                assert!(((total(&up, &y) - total(&down, &y)) / (2.0 * h) - grad).abs() < 1e-8);
            }
            for (at, grad) in dy.iter().enumerate() {
                let (mut up, mut down) = (y.clone(), y.clone());
                (up[at], down[at]) = (up[at] + h, down[at] - h);
                assert!(((total(&x, &up) - total(&x, &down)) / (2.0 * h) - grad).abs() < 1e-8);
            }
        }
    }
}
