//! What a search must fulfil.

use consonance::cuda::DType;
use consonance_cpu::neighbors::{Metric, NONE, Neighbors};
use consonance_reference::neighbors as reference;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, NeighborsCase};
use crate::stored::Stored;
use crate::{data, gradient};

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("neighbors: integers, bit for bit", integers),
    ("neighbors: restricted pairs", restricted),
    ("neighbors: equal keys", equal_keys),
    ("neighbors: more than a pass", passes),
    ("neighbors: certificates", certificates),
    ("neighbors: near ties", near_ties),
    ("neighbors: rows stand alone", rows_stand_alone),
    ("neighbors: rows that cannot be compared", bad_rows),
    ("neighbors: refused arguments", refusals),
    ("neighbors: gradients", gradients),
];

const METRICS: [Metric; 3] = [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2];
/// Half a unit in the last place of 1 in f32.
const UNIT: f64 = 1.0 / 16_777_216.0;

fn defined(metric: Metric) -> reference::Metric {
    match metric {
        Metric::InnerProduct => reference::Metric::InnerProduct,
        Metric::Cosine => reference::Metric::Cosine,
        Metric::SquaredL2 => reference::Metric::SquaredL2,
    }
}

/// The definition's neighbors of every query.
fn truth(case: &NeighborsCase) -> Vec<Vec<(usize, f64)>> {
    let (queries, bank) = (case.queries.wide(), case.bank.wide());
    let admits = |i, j| case.admits(i, j);
    reference::neighbors(&queries, &bank, case.bank.cols(), case.k, defined(case.metric), admits)
}

/// Compares with the definition, bit for bit.
fn equals_definition(backend: &dyn Backend, case: &NeighborsCase) -> Outcome {
    let found = backend.neighbors(case)?;
    for (i, truth) in truth(case).iter().enumerate() {
        let mut expected: Vec<_> = truth.iter().map(|(j, s)| (*j as u32, *s as f32)).collect();
        expected.resize(case.k, (NONE, case.metric.worst()));
        let got: Vec<_> = row(&found, i).collect();
        ensure!(got == expected, "{}: query {i}: {got:?}, expected {expected:?}", describe(case));
    }
    Ok(())
}

fn row(found: &Neighbors, i: usize) -> impl Iterator<Item = (u32, f32)> {
    let places = i * found.k..(i + 1) * found.k;
    found.indices[places.clone()].iter().copied().zip(found.scores[places].iter().copied())
}

fn describe(case: &NeighborsCase) -> String {
    let (b, n, dim, k) = (case.queries.rows(), case.bank.rows(), case.bank.cols(), case.k);
    let restricted = [
        (case.labels.is_some(), ", labels"),
        (case.ids.is_some(), ", ids"),
        (case.allow.is_some(), ", mask"),
    ];
    let restricted: String = restricted.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    format!("{:?} {:?} [{b}, {dim}] in [{n}, {dim}], k {k}{restricted}", case.metric, case.bank.dtype())
}

fn integer_case(dtype: DType, metric: Metric, [b, n, dim, k]: [usize; 4], seed: u64) -> NeighborsCase {
    let queries = Stored::new(dtype, &data::integers(b, dim, seed), dim);
    let bank = Stored::new(dtype, &data::integers(n, dim, seed + 1), dim);
    NeighborsCase::new(queries, bank, k, metric)
}

/// Sizes around tiles of 16 and 64 rows, 64 keys, and slabs of 32 and 64 dimensions; ties by the hundreds.
fn integers(backend: &dyn Backend) -> Outcome {
    let shapes =
        [[1, 1, 1, 1], [3, 7, 5, 9], [16, 64, 32, 8], [17, 65, 33, 5], [65, 63, 16, 10], [66, 200, 72, 12]];
    for (seed, shape) in (0..).zip(shapes) {
        for dtype in DType::ALL {
            for metric in [Metric::InnerProduct, Metric::SquaredL2] {
                equals_definition(backend, &integer_case(dtype, metric, shape, 10 * seed))?;
            }
        }
    }
    // Rows behind padding, at addresses of no alignment, and at aligned ones.
    for (dim, stride, offset) in [(7, 9, 3), (24, 32, 8), (40, 41, 1)] {
        for dtype in DType::ALL {
            let mut case = integer_case(dtype, Metric::InnerProduct, [18, 70, dim, 6], 7);
            let pad = |rows: &Stored| {
                let values: Vec<f32> = (0..rows.rows()).flat_map(|i| rows.row(i).to_vec()).collect();
                Stored::padded(dtype, &values, dim, stride, offset)
            };
            (case.queries, case.bank) = (pad(&case.queries), pad(&case.bank));
            equals_definition(backend, &case)?;
        }
    }
    Ok(())
}

fn restricted(backend: &dyn Backend) -> Outcome {
    for (turn, [b, n, dim, k]) in (0u64..).zip([[20, 150, 12, 6], [70, 90, 20, 4], [5, 64, 9, 64]]) {
        for which in 1..8u32 {
            let dtype = DType::ALL[(turn as usize + which as usize) % 3];
            let metric = [Metric::InnerProduct, Metric::SquaredL2][which as usize % 2];
            let mut case = integer_case(dtype, metric, [b, n, dim, k], 100 + turn);
            // Labels far apart, so that all digits of a sort count; some have no key, some no query.
            let spread = |label: u32| label.wrapping_mul(0x0102_0405);
            let labels =
                |rows, seed| -> Vec<u32> { data::labels(rows, 5, seed).into_iter().map(spread).collect() };
            if which & 1 != 0 {
                case.labels = Some((labels(b, turn + 1), labels(n, turn + 2)));
            }
            if which & 2 != 0 {
                case.ids = Some((data::labels(b, 9, turn + 3), data::labels(n, 9, turn + 4)));
            }
            if which & 4 != 0 {
                let mask: Vec<bool> = data::labels(n, 3, turn + 5).iter().map(|v| *v == 0).collect();
                // What is masked may hold anything.
                for key in (0..n).filter(|key| !mask[*key]) {
                    case.bank.set_row(key, if key % 2 == 0 { f32::NAN } else { f32::INFINITY });
                }
                case.allow = Some(mask);
            }
            equals_definition(backend, &case)?;
        }
    }
    let mut case = integer_case(DType::F32, Metric::InnerProduct, [3, 70, 8, 2], 1);
    case.allow = Some(vec![false; 70]);
    equals_definition(backend, &case)
}

/// Every key the same: the smaller index wins, k times.
fn equal_keys(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut case = integer_case(dtype, Metric::InnerProduct, [2, 1, 6, 20], 3);
        let copies = vec![0; 300];
        case.bank = case.bank.select(&copies);
        equals_definition(backend, &case)?;
        case.metric = Metric::SquaredL2;
        equals_definition(backend, &case)?;
    }
    Ok(())
}

/// More neighbors than one pass finds, also more than there are.
fn passes(backend: &dyn Backend) -> Outcome {
    for (dtype, metric, n, k) in [
        (DType::F32, Metric::InnerProduct, 300, 140),
        (DType::BF16, Metric::SquaredL2, 140, 280),
        (DType::F16, Metric::InnerProduct, 260, 257),
    ] {
        equals_definition(backend, &integer_case(dtype, metric, [2, n, 4, k], 21))?;
    }
    Ok(())
}

/// How far an f32 score may be from the exact one: the roundings of a sum of D products, in any order, relative to
/// the norms; a cosine divides by two norms that are such sums.
fn score_bound(case: &NeighborsCase, query: usize, key: usize) -> f64 {
    let (x, y) = (case.queries.row(query), case.bank.row(key));
    let norm = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let steps = (x.len() + 4) as f64;
    match case.metric {
        Metric::InnerProduct => steps * UNIT * norm(x) * norm(y),
        Metric::Cosine => 2.0 * (steps + 4.0) * UNIT,
        Metric::SquaredL2 => {
            steps * UNIT * x.iter().zip(y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        }
    }
}

/// Proves a result for real inputs: every score within its bound, in order, and no better key left out.
fn certify(backend: &dyn Backend, case: &NeighborsCase) -> Outcome {
    let found = backend.neighbors(case)?;
    let what = describe(case);
    let (queries, bank, dim) = (case.queries.wide(), case.bank.wide(), case.bank.cols());
    let mut worst: f64 = 0.0;
    for i in 0..case.queries.rows() {
        let exact = |j: usize| {
            let score =
                reference::score(defined(case.metric), &queries[i * dim..][..dim], &bank[j * dim..][..dim]);
            if case.metric == Metric::SquaredL2 { -score } else { score }
        };
        let sign = if case.metric == Metric::SquaredL2 { -1.0 } else { 1.0 };
        let places: Vec<(u32, f32)> = row(&found, i).collect();
        let mut taken = vec![false; case.bank.rows()];
        let mut last = (f64::INFINITY, 0.0);
        for (index, score) in &places {
            ensure!(*index != NONE, "{what}: query {i} has a place without a neighbor");
            let j = *index as usize;
            ensure!(!taken[j] && case.admits(i, j), "{what}: query {i}: key {j} twice, or not allowed");
            taken[j] = true;
            let (value, bound) = (exact(j), score_bound(case, i, j));
            let ratio = (sign * f64::from(*score) - value).abs() / bound;
            ensure!(
                ratio <= 1.0,
                "{what}: query {i}, key {j}: score {score}, exact {value}: {ratio:.2} bounds"
            );
            worst = worst.max(ratio);
            let ordered = sign * f64::from(*score);
            ensure!(ordered <= last.0, "{what}: query {i}: scores are not in order");
            last = (ordered, bound);
        }
        for j in (0..case.bank.rows()).filter(|j| !taken[*j] && case.admits(i, *j)) {
            let most = last.0 + score_bound(case, i, j);
            ensure!(exact(j) <= most, "{what}: query {i}: key {j} is nearer than the last neighbor");
        }
    }
    print_ratio(backend, &what, worst);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
fn print_ratio(backend: &dyn Backend, what: &str, ratio: f64) {
    println!("{}: {what}: error / bound {ratio:.3}", backend.name());
}

fn certificates(backend: &dyn Backend) -> Outcome {
    for (seed, [b, n, dim, k]) in (0..).zip([[5, 200, 24, 7], [66, 130, 100, 3], [3, 150, 300, 40]]) {
        for dtype in DType::ALL {
            for metric in METRICS {
                let queries = Stored::new(dtype, &data::normal(b, dim, seed), dim);
                let bank = Stored::new(dtype, &data::normal(n, dim, seed + 50), dim);
                certify(backend, &NeighborsCase::new(queries, bank, k, metric))?;
            }
        }
    }
    Ok(())
}

/// Keys that differ by less than a product of 16-bit numbers can tell: the proof must fail, and what replaces it hold.
fn near_ties(backend: &dyn Backend) -> Outcome {
    let (b, n, dim, k) = (4, 400, 40, 10);
    let center = data::unit(1, dim, 1);
    for (dtype, spread) in [(DType::F32, 1e-3), (DType::F32, 1e-6), (DType::BF16, 1e-2), (DType::F16, 1e-3)] {
        for metric in METRICS {
            let around = |rows, seed| -> Vec<f32> {
                let noise = data::normal(rows, dim, seed);
                noise.iter().enumerate().map(|(at, v)| center[at % dim] + spread * v).collect()
            };
            let queries = Stored::new(dtype, &around(b, 2), dim);
            let bank = Stored::new(dtype, &around(n, 3), dim);
            certify(backend, &NeighborsCase::new(queries, bank, k, metric))?;
        }
    }
    Ok(())
}

/// A query's neighbors do not depend on the other queries, bit for bit.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    let (b, n, dim, k) = (70, 150, 33, 9);
    for dtype in DType::ALL {
        let queries = Stored::new(dtype, &data::normal(b, dim, 5), dim);
        let bank = Stored::new(dtype, &data::normal(n, dim, 6), dim);
        let mut case = NeighborsCase::new(queries, bank, k, Metric::Cosine);
        case.labels = Some((data::labels(b, 3, 7), data::labels(n, 3, 8)));
        let all = backend.neighbors(&case)?;
        let reversed: Vec<usize> = (0..b).rev().collect();
        for rows in [vec![69], vec![3, 64, 5], (10..30).collect(), reversed] {
            let some = backend.neighbors(&case.select(&rows))?;
            for (i, from) in rows.iter().enumerate() {
                let same = row(&some, i)
                    .map(|(j, s)| (j, s.to_bits()))
                    .eq(row(&all, *from).map(|(j, s)| (j, s.to_bits())));
                ensure!(same, "{}: query {from} differs among {} queries", describe(&case), rows.len());
            }
        }
    }
    Ok(())
}

fn bad_rows(backend: &dyn Backend) -> Outcome {
    let case = |metric| integer_case(DType::F32, metric, [5, 80, 6, 3], 2);
    let expect = |case: &NeighborsCase, parts: &[&str]| match backend.neighbors(case) {
        Ok(_) => Err(format!("{}: no error that names {parts:?}", describe(case))),
        Err(text) => {
            ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
            Ok(())
        }
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut bad = case(Metric::InnerProduct);
        bad.bank.set_row(77, value);
        bad.bank.set_row(66, value);
        expect(&bad, &["neighbors", "bank", "66"])?;
        let mut bad = case(Metric::SquaredL2);
        bad.queries.set_row(4, value);
        expect(&bad, &["neighbors", "queries", "4"])?;
    }
    let mut zero = case(Metric::Cosine);
    zero.bank.set_row(70, 0.0);
    expect(&zero, &["bank", "70", "norm zero"])?;
    let mut large = case(Metric::SquaredL2);
    large.bank.set_row(3, 2e19);
    expect(&large, &["bank"])?;
    // Nobody looks at keys of a label that no query has.
    let mut unseen = case(Metric::InnerProduct);
    unseen.labels = Some((vec![1, 3, 1, 3, 1], (0..80).map(|j| j % 4).collect()));
    unseen.bank.set_row(2, f32::NAN);
    backend.neighbors(&unseen)?;
    unseen.bank.set_row(5, f32::NAN);
    expect(&unseen, &["bank", "5"])
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let case = integer_case(DType::F32, Metric::InnerProduct, [3, 10, 4, 2], 0);
    let bad = [
        (NeighborsCase { k: 0, ..case.clone() }, "`k`"),
        (NeighborsCase { k: 1025, ..case.clone() }, "`k`"),
        (NeighborsCase { bank: Stored::new(DType::F32, &[0.0; 9], 3), ..case.clone() }, "`bank`"),
        (NeighborsCase { bank: Stored::new(DType::F32, &[], 4), ..case.clone() }, "`bank`"),
        (NeighborsCase { queries: Stored::new(DType::F32, &[], 4), ..case.clone() }, "`queries`"),
        (NeighborsCase { ids: Some((vec![0; 2], vec![0; 10])), ..case.clone() }, "`query_ids`"),
        (NeighborsCase { ids: Some((vec![0; 3], vec![0; 11])), ..case.clone() }, "`key_ids`"),
        (NeighborsCase { labels: Some((vec![0; 3], vec![0; 9])), ..case.clone() }, "`key_labels`"),
    ];
    for (case, name) in bad {
        match backend.neighbors(&case) {
            Ok(_) => return Err(format!("{}: accepted, but {name} is wrong", describe(&case))),
            Err(text) => ensure!(text.contains(name), "`{text}` does not name {name}"),
        }
    }
    Ok(())
}

fn gradients(backend: &dyn Backend) -> Outcome {
    for (seed, [b, n, dim, k]) in (0..).zip([[3, 5, 7, 4], [30, 70, 33, 9], [4, 130, 150, 3]]) {
        for dtype in DType::ALL {
            for metric in METRICS {
                let queries = Stored::new(dtype, &data::normal(b, dim, seed + 70), dim);
                let bank = Stored::new(dtype, &data::normal(n, dim, seed + 80), dim);
                let case = NeighborsCase::new(queries, bank, k, metric);
                let what = describe(&case);
                let mut indices = data::labels(b * k, n as u32, seed);
                indices[1] = NONE;
                let upstream = data::normal(b, k, seed + 90);
                let (dq, dk) = backend.gradients(&case, &indices, &upstream)?;
                let pairs: Vec<(usize, usize, f64)> = indices
                    .iter()
                    .zip(&upstream)
                    .enumerate()
                    .filter(|(_, (j, _))| **j != NONE)
                    .map(|(at, (j, g))| (at / k, *j as usize, f64::from(*g)))
                    .collect();
                let (tq, tk) = reference::gradients(
                    &case.queries.wide(),
                    &case.bank.wide(),
                    dim,
                    defined(metric),
                    &pairs,
                );
                // Of each term a few roundings, of its coefficient those of three sums of D products; then the sum.
                let largest = |rows: &Stored| rows.wide().iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let terms = 8.0 * pairs.iter().map(|p| p.2.abs()).sum::<f64>();
                let size = largest(&case.queries).max(largest(&case.bank)).max(1.0);
                let bound = terms * size * (2 * dim + b * k + 8) as f64 * UNIT;
                for (got, truth, side) in [(&dq, &tq, "queries"), (&dk, &tk, "bank")] {
                    ensure!(
                        got.len() == truth.len(),
                        "{what}: gradient of {side} has {} elements",
                        got.len()
                    );
                    let ratio = gradient::worst_ratio(got, truth, |_| bound);
                    ensure!(ratio <= 1.0, "{what}: gradient of {side}: {ratio:.2} bounds");
                    print_ratio(backend, &format!("{what}, gradient of {side}"), ratio);
                }
            }
        }
    }
    Ok(())
}
