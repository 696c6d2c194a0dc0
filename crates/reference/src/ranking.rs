//! Retrieval measures from sorted lists.

use crate::neighbors::{Metric, nearer, score};

/// What an item is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Should be found.
    Relevant,
    /// Should not be found.
    Irrelevant,
    /// Taken out of the list before ranks are counted.
    Ignored,
}

/// One query's list without the ignored items, best first: (index, score, relevant). Equal scores go by the
/// smaller index.
pub fn ranked_list(
    query: &[f64],
    gallery: &[f64],
    metric: Metric,
    role: impl Fn(usize) -> Role,
) -> Vec<(usize, f64, bool)> {
    let mut list = Vec::new();
    for (j, item) in gallery.chunks_exact(query.len()).enumerate() {
        match role(j) {
            Role::Ignored => {}
            role => list.push((j, score(metric, query, item), role == Role::Relevant)),
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
    list
}

/// The ranks of the relevant items, from 1.
pub fn ranks(list: &[(usize, f64, bool)]) -> Vec<usize> {
    (1..).zip(list).filter(|(_, item)| item.2).map(|(rank, _)| rank).collect()
}

/// Mean over the relevant items of the precision at their rank (Market-1501 protocol: Zheng et al., ICCV 2015).
pub fn average_precision(list: &[(usize, f64, bool)]) -> f64 {
    let ranks = ranks(list);
    let sum: f64 = ranks.iter().enumerate().map(|(m, rank)| (m + 1) as f64 / *rank as f64).sum();
    sum / ranks.len() as f64
}

/// Average precision at `k` with the denominator min(relevant, k) (Google Landmarks v2: Weyand et al., CVPR 2020).
pub fn average_precision_at(list: &[(usize, f64, bool)], k: usize) -> f64 {
    let ranks = ranks(list);
    let mut sum = 0.0;
    for (m, rank) in ranks.iter().enumerate() {
        if *rank <= k {
            sum += (m + 1) as f64 / *rank as f64;
        }
    }
    sum / ranks.len().min(k) as f64
}

/// The area by trapezoids (revisited Oxford and Paris: Radenović et al., CVPR 2018, `compute_ap`).
pub fn average_precision_trapezoid(list: &[(usize, f64, bool)]) -> f64 {
    let ranks = ranks(list);
    let step = 1.0 / ranks.len() as f64;
    let mut area = 0.0;
    for (m, rank) in ranks.iter().enumerate() {
        let before = *rank - 1;
        let left = if before == 0 { 1.0 } else { m as f64 / before as f64 };
        let right = (m + 1) as f64 / *rank as f64;
        area += (left + right) * step / 2.0;
    }
    area
}

/// The step-wise sum over distinct scores (scikit-learn, `average_precision_score`): AP = Σ (Rₙ − Rₙ₋₁) Pₙ, items
/// of one score entering together.
pub fn average_precision_steps(list: &[(usize, f64, bool)]) -> f64 {
    let relevant = list.iter().filter(|item| item.2).count() as f64;
    let (mut found, mut area, mut at) = (0.0, 0.0, 0);
    while at < list.len() {
        let mut end = at;
        let mut new = 0.0;
        while end < list.len() && list[end].1 == list[at].1 {
            new += f64::from(u8::from(list[end].2));
            end += 1;
        }
        found += new;
        area += new / relevant * (found / end as f64);
        at = end;
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores and relevance, already in order.
    fn list(items: &[(f64, bool)]) -> Vec<(usize, f64, bool)> {
        items.iter().enumerate().map(|(j, (s, r))| (j, *s, *r)).collect()
    }

    #[test]
    fn the_variants_have_their_published_values() {
        // Hits at ranks 1, 3 and 6.
        let l = list(&[(0.9, true), (0.8, false), (0.7, true), (0.6, false), (0.5, false), (0.4, true)]);
        assert!((average_precision(&l) - (1.0 + 2.0 / 3.0 + 3.0 / 6.0) / 3.0).abs() < 1e-15);
        assert!((average_precision_at(&l, 3) - (1.0 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
        assert!((average_precision_at(&l, 2) - 1.0 / 2.0).abs() < 1e-15);
        let trapezoid = ((1.0 + 1.0) + (1.0 / 2.0 + 2.0 / 3.0) + (2.0 / 5.0 + 3.0 / 6.0)) / 6.0;
        assert!((average_precision_trapezoid(&l) - trapezoid).abs() < 1e-15);
        assert!((average_precision_steps(&l) - average_precision(&l)).abs() < 1e-15);
        // The example of scikit-learn's documentation: y = [0, 0, 1, 1], scores [0.1, 0.4, 0.35, 0.8].
        let l = list(&[(0.8, true), (0.4, false), (0.35, true), (0.1, false)]);
        assert!((average_precision_steps(&l) - 0.833_333_333_333_333_3).abs() < 1e-15);
        // All of one score: the precision of the whole list.
        let l = list(&[(0.5, true), (0.5, false), (0.5, false), (0.5, true)]);
        assert!((average_precision_steps(&l) - 0.5).abs() < 1e-15);
    }
}
