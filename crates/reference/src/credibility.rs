//! How credible each labeled row is among the centroids of all classes, by the definition (methods 1.6: Wu et
//! al., AAAI 2022, repaired), with the row left out of its own centroid if so chosen.

use crate::{
    clusters::{classes, squared_distance, unit_rows},
    soft_assignment::{entropy, log_sum_exp, nearest},
};

/// How distances become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// −d/σ, σ the median over classes of the deviation of own distances.
    SharedDeviation,
    /// −d/v, v the median over classes of their variance.
    SharedVariance,
    /// −d/max(v_k, floor); the floor is the median of v when `None`.
    ClassVariance(Option<f64>),
    /// −rate·d.
    Exponential(f64),
    /// −d²/(2σ²).
    Gaussian(f64),
}

/// What is known of each row.
#[derive(Debug, Clone, PartialEq)]
pub struct Credibility {
    /// H over all centroids, or over the m nearest.
    pub entropy: Vec<f64>,
    /// −ln p of the own class.
    pub suspicion: Vec<f64>,
    /// d to the own centroid less d to the nearest other one.
    pub margin: Vec<f64>,
    /// Other centroids nearer than the own one.
    pub closer: Vec<usize>,
    /// The label of the most probable class.
    pub predicted: Vec<u32>,
    /// The scores of every row over the classes by ascending label.
    pub scores: Vec<Vec<f64>>,
}

fn mean(rows: &[usize], x: &[f64], d: usize, unit: bool) -> Vec<f64> {
    let mut sum = vec![0.0; d];
    for row in rows {
        sum.iter_mut().zip(&x[row * d..(row + 1) * d]).for_each(|(s, x)| *s += x);
    }
    let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
    let divisor = if unit { norm } else { rows.len() as f64 };
    sum.iter().map(|s| if divisor > 0.0 { s / divisor } else { 0.0 }).collect()
}

fn variance(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { 0.5 * (values[n / 2 - 1] + values[n / 2]) }
}

/// Class centroids; `m` nearest for the entropy, or all. Some class must have two rows of different distance
/// when the scale is to be estimated.
#[must_use]
pub fn credibility(
    x: &[f64],
    d: usize,
    labels: &[u32],
    unit: bool,
    leave_one_out: bool,
    scale: Scale,
    m: Option<usize>,
) -> Credibility {
    of_groups((x, d), labels, labels, unit, leave_one_out, scale, m)
}

/// The same with several centroids a class: the means of the rows of each group. A group has rows of one class, and numbers
/// of groups ascend with the labels of their classes. A row alone in its group is compared with the others of its class.
#[must_use]
pub fn of_groups(
    (x, d): (&[f64], usize),
    labels: &[u32],
    group_of: &[u32],
    unit: bool,
    leave_one_out: bool,
    scale: Scale,
    m: Option<usize>,
) -> Credibility {
    let x = if unit { unit_rows(x, d) } else { x.to_vec() };
    let classes = classes(group_of);
    let k = classes.len();
    let label_of: Vec<u32> = classes.iter().map(|(_, rows)| labels[rows[0]]).collect();
    let centroids: Vec<Vec<f64>> = classes.iter().map(|(_, rows)| mean(rows, &x, d, unit)).collect();
    let own = |i: usize| classes.iter().position(|(group, _)| *group == group_of[i]).unwrap_or(0);
    let squared: Vec<Vec<f64>> = (0..labels.len())
        .map(|i| {
            let row = &x[i * d..(i + 1) * d];
            let mut far: Vec<f64> = centroids.iter().map(|c| squared_distance(row, c)).collect();
            let others: Vec<usize> = classes[own(i)].1.iter().copied().filter(|j| *j != i).collect();
            if leave_one_out && !others.is_empty() {
                far[own(i)] = squared_distance(row, &mean(&others, &x, d, unit));
            }
            if leave_one_out && others.is_empty() && label_of.iter().filter(|l| **l == labels[i]).count() > 1
            {
                far[own(i)] = f64::INFINITY;
            }
            far
        })
        .collect();
    let spread: Vec<Option<f64>> = classes
        .iter()
        .enumerate()
        .map(|(c, (_, rows))| {
            let far: Vec<f64> = rows.iter().map(|i| squared[*i][c].sqrt()).collect();
            (rows.len() > 1).then(|| variance(&far))
        })
        .collect();
    let shared = || median(spread.iter().flatten().copied().collect());
    let score: Box<dyn Fn(usize, f64) -> f64> = match scale {
        Scale::SharedDeviation => {
            let sigma = shared().sqrt();
            Box::new(move |_, s| -s.sqrt() / sigma)
        }
        Scale::SharedVariance => {
            let v = shared();
            Box::new(move |_, s| -s.sqrt() / v)
        }
        Scale::ClassVariance(floor) => {
            let floor = floor.unwrap_or_else(shared);
            let v: Vec<f64> = spread.iter().map(|v| v.unwrap_or(0.0).max(floor)).collect();
            Box::new(move |k, s| -s.sqrt() / v[k])
        }
        Scale::Exponential(rate) => Box::new(move |_, s| -rate * s.sqrt()),
        Scale::Gaussian(sigma) => Box::new(move |_, s| -s / (2.0 * sigma * sigma)),
    };
    let mut out = Credibility {
        entropy: Vec::new(),
        suspicion: Vec::new(),
        margin: Vec::new(),
        closer: Vec::new(),
        predicted: Vec::new(),
        scores: Vec::new(),
    };
    for (i, far) in squared.iter().enumerate() {
        let is_own = |k: usize| label_of[k] == labels[i];
        let scores: Vec<f64> = far.iter().enumerate().map(|(k, s)| score(k, *s)).collect();
        let near: Vec<f64> = nearest(far, m.unwrap_or(k)).iter().map(|(k, _)| scores[*k]).collect();
        out.entropy.push(entropy(&near));
        let of_own: Vec<f64> = (0..k).filter(|k| is_own(*k)).map(|k| scores[k]).collect();
        out.suspicion.push(log_sum_exp(&scores) - log_sum_exp(&of_own));
        let nearest_own = (0..k).filter(|k| is_own(*k)).map(|k| far[k]).fold(f64::INFINITY, f64::min);
        let others = || (0..k).filter(|j| !is_own(*j)).map(|j| far[j]);
        out.margin.push(nearest_own.sqrt() - others().fold(f64::INFINITY, f64::min).sqrt());
        out.closer.push(others().filter(|s| *s < nearest_own).count());
        let best = (0..k).fold(0, |best, j| if scores[j] > scores[best] { j } else { best });
        out.predicted.push(label_of[best]);
        out.scores.push(scores);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_foreign_class_is_suspect_though_its_entropy_is_small() {
        let x = [1.0, 0.0, 1.0, 0.1, 1.0, -0.1, 0.0, 1.0, 0.1, 1.0, -0.1, 1.0];
        let labels = [1, 1, 2, 2, 2, 2];
        let found = credibility(&x, 2, &labels, true, true, Scale::Exponential(4.0), None);
        let worst = (0..6).max_by(|a, b| found.suspicion[*a].total_cmp(&found.suspicion[*b]));
        assert_eq!(worst, Some(2));
        assert!(found.entropy[2] < 0.5 * 2f64.ln());
        assert_eq!(found.predicted, [1, 1, 1, 2, 2, 2]);
    }
}
