//! What the symmetric form of a contrastive loss must fulfil, and scores that are bounded beforehand.
//!
//! The bound is that of both directions (`contrast_bound`), where a coefficient of a side's gradient is the sum of two, each in
//! units of the largest of both. Sums of both sides are cut into at most 16 splits each: with ⌈K/S⌉ tiles one after the
//! other, S splits, and 8 steps within a tile they have no more steps than K + 13.

use consonance::cuda::DType;
use consonance_cpu::contrast::{AffinityMap, Normalizer, OtherPositives};

use super::contrast::{bits, describe, labels, lists, mask, old, unit_case};
use super::contrast_bound::{Bounds, Compared, check_values, print_share, worst_share};
use super::{Check, Outcome, ensure};
use crate::backend::{Backend, ContrastCase, ContrastFound, ContrastRule, SymmetricCase, SymmetricFound};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("contrast, symmetric: sizes", sizes),
    ("contrast, symmetric: rules and options", options),
    ("contrast, symmetric: positives left out", left_out),
    ("contrast, symmetric: splits of both sides", splits),
    ("contrast, symmetric: without gradients", without_gradients),
    ("contrast, symmetric: rows stand alone", rows_stand_alone),
    ("contrast, symmetric: scores beyond e^60", large_scores),
    ("contrast, symmetric: refused arguments", refusals),
    ("contrast: bounded scores", bounded),
];

/// Compares everything with the definition and prints the largest share of a bound that an error takes.
fn check_both(backend: &dyn Backend, case: &SymmetricCase) -> Result<SymmetricFound, String> {
    let found = backend.symmetric(case)?;
    let what = format!("both ways, {}", describe(&case.rows));
    let columns = case.columns();
    let both = [Bounds::new(&case.rows)?, Bounds::new(&columns)?];
    let (b, n, dim) = (case.rows.queries.rows(), case.rows.keys.rows(), case.rows.queries.cols());
    let mut worst = 0.0f64;
    for ((found, bounds), name) in found.directions.iter().zip(&both).zip(["rows", "columns"]) {
        let what = format!("{what}, {name}");
        let forward = &bounds.forward;
        ensure!(found.counted == forward.counted, "{what}: counted rows are {:?}", found.counted);
        let [loss, lse] = bounds.of_rows();
        let temperatures = bounds.gradients(&vec![1.0; found.counted.len()]).temperatures;
        let all: [Compared<'_>; 3] = [
            ("loss", &found.per_row, &forward.per_row, &loss),
            ("log-sum-exp", &found.log_sum_exp, &forward.log_sum_exp, &lse),
            ("gradient of the temperatures", &found.temperatures, &temperatures, &bounds.of_temperatures()),
        ];
        worst = worst.max(worst_share(&what, &all)?);
    }
    let (mut of_x, mut of_y) = (vec![0.0; b * dim], vec![0.0; n * dim]);
    let (x, y) = (case.rows.queries.wide(), case.rows.keys.wide());
    let largest = both[0].largest().max(both[1].largest());
    for i in 0..b {
        for j in 0..n {
            let of_pair =
                |tiles| both[0].of_pair(i, j, tiles, largest) + both[1].of_pair(j, i, tiles, largest);
            let (for_x, for_y) = (of_pair(n.div_ceil(64)), of_pair(b.div_ceil(64)));
            for d in 0..dim {
                of_x[i * dim + d] += for_x * y[j * dim + d].abs();
                of_y[j * dim + d] += for_y * x[i * dim + d].abs();
            }
        }
    }
    let [rows, columns] = [both[0].all_gradients(), both[1].all_gradients()];
    let add =
        |one: &[f64], other: &[f64]| -> Vec<f64> { one.iter().zip(other).map(|(a, b)| a + b).collect() };
    let (x, y) = (add(&rows.queries, &columns.keys), add(&rows.keys, &columns.queries));
    let all: [Compared<'_>; 2] =
        [("gradient of x", &found.x, &x, &of_x), ("gradient of y", &found.y, &y, &of_y)];
    worst = worst.max(worst_share(&what, &all)?);
    print_share(backend, &what, worst);
    Ok(found)
}

/// Around tiles of 64 rows, slabs, and blocks of one, two and four times 128 dimensions; of several parts.
fn sizes(backend: &dyn Backend) -> Outcome {
    let shapes = [
        [1, 1, 1],
        [7, 3, 5],
        [64, 63, 33],
        [65, 64, 32],
        [63, 66, 64],
        [13, 131, 130],
        [67, 65, 172],
        [70, 3, 300],
        [5, 66, 520],
        [3, 4, 1024],
    ];
    for (seed, [b, n, dim]) in (0..).zip(shapes) {
        let other = if seed % 2 == 0 { DType::F16 } else { DType::BF16 };
        for dtype in [DType::F32, other] {
            let case = unit_case(dtype, [b, n, dim], 10 * seed, labels(b, n, 4, seed));
            check_both(backend, &SymmetricCase::new(case))?;
        }
    }
    Ok(())
}

/// The rules that one pass has.
fn rules(b: usize, n: usize, seed: u64) -> [ContrastRule; 5] {
    [
        ContrastRule::Diagonal,
        labels(b, n, 5, seed),
        lists(b, n, seed + 3, false),
        lists(b, n, seed + 4, true),
        bits(b, n, seed + 5),
    ]
}

fn options(backend: &dyn Backend) -> Outcome {
    for (turn, ([b, n, dim], options)) in
        (0u64..).zip([([67, 67, 9], &[0, 3, 4, 12, 31, 32][..]), ([66, 66, 20], &[1, 18])])
    {
        for (at, rule) in rules(b, n, turn).into_iter().enumerate() {
            for which in options.iter().copied() {
                let dtype = DType::ALL[(turn as usize + at + which) % 3];
                let mut case = unit_case(dtype, [b, n, dim], turn + 40, rule.clone());
                let seed = turn + 10 * which as u64;
                if which & 1 != 0 {
                    let valid = mask(n, 4, seed + 1);
                    // What is not valid may hold any finite number.
                    (0..n).filter(|key| !valid[*key]).for_each(|key| case.keys.set_row(key, 1000.0));
                    case.valid = Some(valid);
                }
                case.credible = (which & 2 != 0).then(|| mask(n, 3, seed + 2));
                case.ids =
                    (which & 4 != 0).then(|| (data::labels(b, 6, seed + 5), data::labels(n, 20, seed + 6)));
                case.left_out =
                    (which & 8 != 0).then(|| (data::labels(b, 4, seed + 7), data::labels(n, 4, seed + 8)));
                if which & 16 != 0 {
                    case.normalizer = Normalizer::WeightSum;
                }
                if which & 32 != 0 {
                    let map =
                        if at % 2 == 0 { AffinityMap::Half } else { AffinityMap::Exp { temperature: 0.3 } };
                    case.affinity = Some(old(DType::ALL[at % 3], [b, n, 5], map));
                }
                check_both(backend, &SymmetricCase::new(case))?;
            }
        }
    }
    Ok(())
}

fn left_out(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [66, 66, 21];
    for (at, rule) in rules(b, n, 2).into_iter().enumerate() {
        for which in [0, 1] {
            let mut case = unit_case(DType::ALL[(at + which) % 3], [b, n, dim], 70 + at as u64, rule.clone());
            case.other_positives = OtherPositives::LeftOut;
            if which == 1 {
                case.valid = Some(mask(n, 4, 1));
                case.ids = Some((data::labels(b, 6, 5), data::labels(n, 20, 6)));
                case.affinity =
                    Some(old(case.keys.dtype(), [b, n, 5], AffinityMap::Exp { temperature: 0.3 }));
                // Of some of the rows alone, and far below the other direction's.
                case.upstream[..40].fill(0.0);
                case.upstream.iter_mut().for_each(|g| *g /= 4096.0);
            }
            check_both(backend, &SymmetricCase::new(case))?;
        }
    }
    Ok(())
}

/// More than 16 tiles of a side, so that a split has several.
fn splits(backend: &dyn Backend) -> Outcome {
    for (at, [b, n]) in [[1100, 5], [5, 1100], [1030, 70]].into_iter().enumerate() {
        let mut case = unit_case(DType::ALL[at], [b, n, 6], at as u64, labels(b, n, 40, at as u64));
        // The largest scores come late, so that joining has to rescale.
        case.queries.set_row(b - 1, 3.0);
        case.keys.set_row(n - 1, 3.0);
        check_both(backend, &SymmetricCase::new(case))?;
    }
    Ok(())
}

fn bits_of(found: &[&[f32]]) -> Vec<u32> {
    found.iter().flat_map(|values| values.iter().map(|v| v.to_bits())).collect()
}

/// The losses are the same, bit for bit, when no gradient is asked for.
fn without_gradients(backend: &dyn Backend) -> Outcome {
    for (at, dtype) in DType::ALL.into_iter().enumerate() {
        let rule = if at == 0 { ContrastRule::Diagonal } else { labels(66, 66, 4, 3) };
        let mut case = SymmetricCase::new(unit_case(dtype, [66, 66, 20], 3, rule));
        let with = backend.symmetric(&case)?;
        case.rows.gradients = false;
        let without = backend.symmetric(&case)?;
        for (with, without) in with.directions.iter().zip(&without.directions) {
            let bits = |found: &ContrastFound| bits_of(&[&found.per_row, &found.log_sum_exp]);
            ensure!(bits(with) == bits(without), "{dtype:?}: other losses without gradients");
        }
        ensure!(without.x.is_empty() && without.y.is_empty(), "gradients that nobody asked for");
    }
    Ok(())
}

/// Rows of lengths that only some bounds reach.
fn lengthen(rows: &Stored, every: usize, by: f32) -> Stored {
    let values: Vec<f32> = (0..rows.rows())
        .flat_map(|i| rows.row(i).iter().map(move |v| if i % every == 1 { v * by } else { *v }))
        .collect();
    Stored::new(rows.dtype(), &values, rows.cols())
}

/// A row's loss and the temperature's gradient do not depend on the other rows of its side, bit for bit; among longer
/// ones neither.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [70, 150, 33];
    for (dtype, rule) in DType::ALL.into_iter().zip([labels(b, n, 6, 1), lists(b, n, 2, true), bits(b, n, 3)])
    {
        let mut case = unit_case(dtype, [b, n, dim], 5, rule);
        case.ids = Some((data::labels(b, 9, 7), data::labels(n, 9, 8)));
        case.queries = lengthen(&case.queries, 3, 9.0);
        // Both ways: some queries, and some keys.
        let columns = SymmetricCase {
            upstream: case.upstream.clone(),
            rows: SymmetricCase::new(case.clone()).columns(),
        };
        for case in [SymmetricCase::new(case), columns] {
            let all = backend.symmetric(&case)?;
            let rows = case.rows.queries.rows();
            for picked in [vec![rows - 1], vec![3, 64, 5], (0..rows).rev().collect::<Vec<_>>()] {
                let some = SymmetricCase { rows: case.rows.select(&picked), upstream: case.upstream.clone() };
                let some = backend.symmetric(&some)?;
                let bits = |found: &ContrastFound, rows: &[usize]| {
                    let of = |values: &[f32]| rows.iter().map(|row| values[*row]).collect::<Vec<_>>();
                    bits_of(&[&of(&found.per_row), &of(&found.log_sum_exp), &of(&found.temperatures)])
                };
                let own: Vec<usize> = (0..picked.len()).collect();
                let same = bits(&some.directions[0], &own) == bits(&all.directions[0], &picked);
                ensure!(same, "{dtype:?}: other bits among {} rows", picked.len());
            }
        }
    }
    Ok(())
}

/// Ever longer rows of either side: running maxima move in every tile.
fn large_scores(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [140, 150, 24];
    for (seed, dtype) in (0..).zip(DType::ALL) {
        let growing = |rows: usize, seed, times: f32| {
            let values = data::normal(rows, dim, seed);
            let values: Vec<f32> = values
                .iter()
                .enumerate()
                .map(|(at, v)| v * times * (at / dim) as f32 / rows as f32)
                .collect();
            Stored::new(dtype, &values, dim)
        };
        for (x, y) in [(1.0, 4.0), (4.0, 1.0)] {
            let (queries, keys) = (growing(b, seed + 60, x), growing(n, seed + 61, y));
            let case = ContrastCase::new(queries, keys, 0.05, labels(b, n, 3, seed));
            check_both(backend, &SymmetricCase::new(case))?;
        }
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let case = SymmetricCase::new(unit_case(DType::F32, [3, 10, 4], 0, labels(3, 10, 2, 0)));
    let spoilt = |of: fn(&mut SymmetricCase)| {
        let mut case = case.clone();
        of(&mut case);
        case
    };
    let bad = [
        (spoilt(|case| case.upstream.truncate(9)), "`row_gradients`"),
        (spoilt(|case| case.rows.upstream.truncate(2)), "`row_gradients`"),
        (spoilt(|case| case.rows.temperatures = vec![0.0]), "`temperature`"),
        (spoilt(|case| case.rows.queries.set_row(2, f32::NAN)), "`queries`"),
        (spoilt(|case| case.rows.keys.set_row(7, f32::INFINITY)), "`keys`"),
        (spoilt(|case| case.rows.valid = Some(vec![true; 50])), "`valid`"),
    ];
    for (case, name) in &bad {
        match backend.symmetric(case) {
            Ok(_) => return Err(format!("no error that names {name}")),
            Err(text) => ensure!(text.contains(name), "`{text}` does not name {name}"),
        }
    }
    Ok(())
}

/// Queries of which some are bounded beforehand and some are not, in one tile: values, and each with the bits that it has
/// alone. Weights of keys and temperatures count for the bound, and keys that are not valid do not.
fn bounded(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [66, 140, 18];
    for (seed, dtype) in (0..).zip(DType::ALL) {
        for which in 0..4 {
            let mut case =
                unit_case(dtype, [b, n, if which == 3 { 140 } else { dim }], seed, labels(b, n, 4, seed));
            match which {
                0 => case.queries = lengthen(&case.queries, 2, 8.0),
                1 => case.temperatures = (0..b).map(|i| if i % 5 == 2 { 0.004 } else { 0.3 }).collect(),
                2 => {
                    // e^−69 of all weights.
                    case.temperatures = vec![0.07];
                    case.denominator_weights = Some((0..n).map(|j| (1 + j % 3) as f32 * 1e-30).collect());
                }
                _ => {
                    case.queries = lengthen(&case.queries, 3, 12.0);
                    let valid: Vec<bool> = (0..n).map(|j| j % 7 != 3).collect();
                    (0..n).filter(|j| !valid[*j]).for_each(|j| case.keys.set_row(j, 900.0));
                    case.valid = Some(valid);
                }
            }
            let all = check_values(backend, &case)?;
            if let Some(valid) = case.valid.clone() {
                let mut other = case.clone();
                (0..n).filter(|j| !valid[*j]).for_each(|j| other.keys.set_row(j, 0.1));
                let other = backend.contrast(&other)?;
                let same =
                    bits_of(&[&all.per_row, &all.queries]) == bits_of(&[&other.per_row, &other.queries]);
                ensure!(same, "{dtype:?}: other bits with other keys that are not valid");
            }
            for row in [1, 2, 65] {
                let alone = backend.contrast(&case.select(&[row]))?;
                let dim = case.queries.cols();
                let of = |found: &ContrastFound, row: usize| {
                    bits_of(&[
                        &found.per_row[row..=row],
                        &found.log_sum_exp[row..=row],
                        &found.temperatures[row..=row],
                        &found.queries[row * dim..][..dim],
                    ])
                };
                ensure!(of(&alone, 0) == of(&all, row), "{dtype:?}, {which}: row {row} has other bits alone");
            }
        }
    }
    Ok(())
}
