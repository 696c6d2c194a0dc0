//! k-means inside every class, by its definition.
//!
//! Lloyd's algorithm: give every row its nearest centroid, ties to the smaller index; give every empty cluster
//! the row farthest from its own centroid; move every centroid to the mean of its rows. On the sphere rows and
//! centroids are unit vectors (spherical k-means, Dhillon and Modha 2001). Starts by k-means++ (Arthur and
//! Vassilvitskii 2007).

/// What Lloyd's algorithm found.
#[derive(Debug, Clone, PartialEq)]
pub struct Lloyd {
    /// `[k, d]`.
    pub centroids: Vec<f64>,
    /// The nearest centroid of every row.
    pub assignment: Vec<usize>,
    /// Rows of each cluster.
    pub sizes: Vec<usize>,
    /// Mean squared distance of each cluster's rows from its centroid, 0 without rows.
    pub spread: Vec<f64>,
    /// Mean distance of each cluster's rows from its centroid, 0 without rows.
    pub mean_distance: Vec<f64>,
    /// Squared distance to the second nearest centroid less that to the nearest; infinite with one centroid.
    pub margin: Vec<f64>,
    /// The sum of squared distances.
    pub inertia: f64,
}

/// clip(round(√(n/2)), 1, max).
#[must_use]
pub fn cluster_count(n: usize, max: usize) -> usize {
    ((n as f64 / 2.0).sqrt().round() as usize).clamp(1, max)
}

/// ‖a − b‖².
#[must_use]
pub fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// x/‖x‖ of every row; a row of norm zero stays.
#[must_use]
pub fn unit_rows(x: &[f64], d: usize) -> Vec<f64> {
    let mut out = x.to_vec();
    for row in out.chunks_mut(d) {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v /= norm);
        }
    }
    out
}

/// The distances of one row to all centroids.
fn squared_distances(x: &[f64], centroids: &[f64]) -> Vec<f64> {
    centroids.chunks(x.len()).map(|c| squared_distance(x, c)).collect()
}

/// The first position of the smallest value.
fn argmin(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v < values[best] {
            best = i;
        }
    }
    best
}

/// Moves the farthest rows (distance descending, index ascending) into empty clusters, in order; a row moves
/// only away from a cluster that keeps another row, and only when it differs from its centroid.
fn relocate(x: &[f64], d: usize, centroids: &[f64], assignment: &mut [usize]) {
    let k = centroids.len() / d;
    let mut sizes = vec![0usize; k];
    assignment.iter().for_each(|a| sizes[*a] += 1);
    let far: Vec<f64> = x
        .chunks(d)
        .zip(assignment.iter())
        .map(|(x, a)| squared_distance(x, &centroids[a * d..(a + 1) * d]))
        .collect();
    let mut order: Vec<usize> = (0..far.len()).filter(|i| far[*i] > 0.0).collect();
    order.sort_by(|a, b| far[*b].total_cmp(&far[*a]).then(a.cmp(b)));
    let mut order = order.into_iter();
    for cluster in 0..k {
        if sizes[cluster] == 0 {
            let Some(row) = order.find(|i| sizes[assignment[*i]] > 1) else { return };
            sizes[assignment[row]] -= 1;
            assignment[row] = cluster;
            sizes[cluster] = 1;
        }
    }
}

/// At most `iterations` rounds from `start` `[k, d]`, then a last assignment; stops when no row changes hands.
///
/// With `unit`, rows and start are normalized and centroids are mean directions.
#[must_use]
pub fn lloyd(x: &[f64], d: usize, start: &[f64], iterations: usize, unit: bool) -> Lloyd {
    let x = if unit { unit_rows(x, d) } else { x.to_vec() };
    let mut centroids = if unit { unit_rows(start, d) } else { start.to_vec() };
    let k = centroids.len() / d;
    let mut assignment = vec![usize::MAX; x.len() / d];
    for _ in 0..iterations {
        let before = assignment.clone();
        for (a, x) in assignment.iter_mut().zip(x.chunks(d)) {
            *a = argmin(&squared_distances(x, &centroids));
        }
        if assignment == before {
            break;
        }
        relocate(&x, d, &centroids, &mut assignment);
        for cluster in 0..k {
            let mut sum = vec![0.0; d];
            let mut count = 0.0;
            for (x, _) in x.chunks(d).zip(&assignment).filter(|(_, a)| **a == cluster) {
                sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
                count += 1.0;
            }
            let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
            let divisor = if unit { norm } else { count };
            if divisor > 0.0 {
                let c = &mut centroids[cluster * d..(cluster + 1) * d];
                c.iter_mut().zip(sum).for_each(|(c, s)| *c = s / divisor);
            }
        }
    }
    statistics(&x, d, centroids)
}

/// The assignment to `centroids` and what follows from it.
fn statistics(x: &[f64], d: usize, centroids: Vec<f64>) -> Lloyd {
    let k = centroids.len() / d;
    let mut out = Lloyd {
        centroids,
        assignment: Vec::new(),
        sizes: vec![0; k],
        spread: vec![0.0; k],
        mean_distance: vec![0.0; k],
        margin: Vec::new(),
        inertia: 0.0,
    };
    for x in x.chunks(d) {
        let mut far = squared_distances(x, &out.centroids);
        let nearest = argmin(&far);
        let s = std::mem::replace(&mut far[nearest], f64::INFINITY);
        let second = far.iter().copied().fold(f64::INFINITY, f64::min);
        out.assignment.push(nearest);
        out.margin.push(second - s);
        out.sizes[nearest] += 1;
        out.spread[nearest] += s;
        out.mean_distance[nearest] += s.sqrt();
        out.inertia += s;
    }
    for ((spread, mean), n) in out.spread.iter_mut().zip(&mut out.mean_distance).zip(&out.sizes) {
        *spread /= (*n).max(1) as f64;
        *mean /= (*n).max(1) as f64;
    }
    out
}

/// The positions that k-means++ chooses, given one uniform number in [0, 1) per step.
#[must_use]
pub fn plus_plus(x: &[f64], d: usize, uniforms: &[f64]) -> Vec<usize> {
    let n = x.len() / d;
    let mut chosen: Vec<usize> = Vec::new();
    for u in uniforms {
        let weight = |i: usize| -> f64 {
            let far = |c: &usize| squared_distance(&x[i * d..(i + 1) * d], &x[c * d..(c + 1) * d]);
            if chosen.contains(&i) { 0.0 } else { chosen.iter().map(far).fold(f64::INFINITY, f64::min) }
        };
        let weights: Vec<f64> = if chosen.is_empty() { vec![1.0; n] } else { (0..n).map(weight).collect() };
        let total: f64 = weights.iter().sum();
        let mut running = 0.0;
        let next = if chosen.is_empty() {
            ((u * n as f64) as usize).min(n - 1)
        } else if total > 0.0 {
            let mut next = 0;
            for i in (0..n).filter(|i| weights[*i] > 0.0) {
                next = i;
                running += weights[i];
                if running > u * total {
                    break;
                }
            }
            next
        } else {
            (0..n).find(|i| !chosen.contains(i)).unwrap_or(0)
        };
        chosen.push(next);
    }
    chosen
}

/// The classes of `labels` by ascending label, with their rows in order.
#[must_use]
pub fn classes(labels: &[u32]) -> Vec<(u32, Vec<usize>)> {
    let mut distinct = labels.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    distinct
        .into_iter()
        .map(|label| (label, (0..labels.len()).filter(|i| labels[*i] == label).collect()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pairs_on_a_line_find_their_means() {
        let out = lloyd(&[0.0, 1.0, 10.0, 12.0], 1, &[0.0, 1.0], 10, false);
        assert_eq!(out.centroids, [0.5, 11.0]);
        assert_eq!(out.assignment, [0, 0, 1, 1]);
        assert_eq!(out.spread, [0.25, 1.0]);
        assert_eq!(out.inertia, 2.5);
        assert_eq!(out.margin[0], 121.0 - 0.25);
    }

    #[test]
    fn the_rule_of_the_number_of_clusters() {
        let counts: Vec<usize> = [0, 1, 2, 4, 5, 8, 50, 112, 113, 5000].map(|n| cluster_count(n, 8)).to_vec();
        assert_eq!(counts, [1, 1, 1, 1, 2, 2, 5, 7, 8, 8]);
    }

    #[test]
    fn an_empty_cluster_takes_the_farthest_row() {
        let out = lloyd(&[0.0, 1.0, 2.0, 9.0], 1, &[1.0, 100.0], 1, false);
        assert_eq!(out.sizes, [3, 1]);
        assert_eq!(out.centroids, [1.0, 9.0]);
    }

    #[test]
    fn plus_plus_never_takes_a_row_twice() {
        let x = [1.0, 1.0, 1.0, 5.0];
        let chosen = plus_plus(&x, 1, &[0.0, 0.3, 0.9, 0.9]);
        assert_eq!(chosen, [0, 3, 1, 2]);
    }
}
