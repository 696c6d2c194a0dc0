//! What a contrastive loss must fulfil whose negatives of the query's own group have weights of their own.

use consonance::cuda::DType;
use consonance_cpu::contrast::{Admission, AffinityMap, Normalizer, OtherPositives};

use super::contrast::{bits, expect, labels, lists, mask, old, unit_case};
use super::contrast_bound::check_values;
use super::{Check, Outcome};
use crate::backend::{Backend, Close, ContrastCase, ContrastRule, PaceCase};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("contrast, pace: times", times),
    ("contrast, pace: features", features),
    ("contrast, pace: options", options),
    ("contrast, pace: affinities at the pace", ties),
    ("contrast, pace: bad numbers and refused arguments", refusals),
];

fn groups([b, n]: [usize; 2], count: u32, seed: u64, close: Close) -> PaceCase {
    PaceCase {
        queries: data::labels(b, count, seed),
        // Some keys are of a group that no query has.
        keys: data::labels(n, count + 1, seed + 1),
        close,
        pace: 0.7,
        admission: Admission::Soft,
    }
}

/// Times around each other, so that weights of all sizes occur.
fn close_in_time([b, n]: [usize; 2], seed: u64) -> Close {
    let times = |rows, seed| data::normal(rows, 1, seed);
    Close::Times(times(b, seed), times(n, seed + 1), 2.5)
}

/// Groups smaller than a warp, larger than a block, and everything; one dimension and more than a block has.
fn times(backend: &dyn Backend) -> Outcome {
    let shapes = [([1, 1, 1], 1), ([3, 40, 5], 2), ([9, 65, 33], 20), ([3, 300, 7], 1), ([3, 6, 1030], 2)];
    for (seed, ([b, n, dim], count)) in (0..).zip(shapes) {
        for (turn, dtype) in DType::ALL.into_iter().enumerate() {
            if turn > 0 && (dim > 1000) && seed as usize % 2 + 1 != turn {
                continue;
            }
            let mut case = unit_case(dtype, [b, n, dim], seed + 20, labels(b, n, 4, seed));
            let mut pace = groups([b, n], count, seed + 3, close_in_time([b, n], seed + 7));
            pace.admission = if turn == 1 { Admission::Hard } else { Admission::Soft };
            case.pace = Some(pace);
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

fn features(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 70, 9];
    for (turn, dtype) in DType::ALL.into_iter().enumerate() {
        let seed = turn as u64;
        let of = [DType::ALL[(turn + 1) % 3], DType::ALL[(turn + 2) % 3]];
        let width = [3, 40, 33][turn];
        let rows = |dtype, rows, seed| {
            let padded = data::normal(rows, width, seed);
            Stored::padded(dtype, &padded, width, width + turn, turn)
        };
        let close = Close::Features(rows(of[0], b, seed + 30), rows(of[1], n, seed + 31));
        let mut case = unit_case(dtype, [b, n, dim], seed + 40, ContrastRule::Diagonal);
        case.pace = Some(PaceCase { pace: 0.9, ..groups([b, n], 3, seed, close) });
        check_values(backend, &case)?;
    }
    Ok(())
}

/// Beside every rule, and with all that decides who is a negative.
fn options(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [19, 71, 9];
    let rules = [
        labels(b, n, 5, 1),
        ContrastRule::Diagonal,
        lists(b, n, 3, false),
        lists(b, n, 4, true),
        bits(b, n, 5),
        ContrastRule::All,
    ];
    for (at, rule) in rules.into_iter().enumerate() {
        let mut case = unit_case(DType::ALL[at % 3], [b, n, dim], 40 + at as u64, rule);
        let seed = 10 * at as u64;
        case.pace = Some(groups([b, n], 3, seed, close_in_time([b, n], seed + 9)));
        check_values(backend, &case)?;
        case.valid = Some(mask(n, 4, seed + 1));
        case.credible = Some(mask(n, 3, seed + 2));
        case.anchors = Some(mask(b, 5, seed + 3));
        case.denominator_weights =
            Some(data::labels(n, 7, seed + 4).iter().map(|u| *u as f32 / 3.0).collect());
        case.ids = Some((data::labels(b, 6, seed + 5), data::labels(n, 20, seed + 6)));
        case.left_out = Some((data::labels(b, 4, seed + 7), data::labels(n, 4, seed + 8)));
        case.normalizer = Normalizer::WeightSum;
        case.temperatures = (0..b).map(|i| 0.07 + (i % 7) as f32 / 32.0).collect();
        check_values(backend, &case)?;
        if at != 5 {
            case.left_out = None;
            case.other_positives = OtherPositives::LeftOut;
            case.affinity = Some(old(DType::ALL[(at + 1) % 3], [b, n, 4], AffinityMap::Half));
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

/// Features along axes, of lengths that are powers of two: affinities are 0, 1/2 and 1 exactly, and 1/2 is the pace.
fn ties(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [6, 40, 8];
    let axes = |rows: usize, seed| -> Vec<f32> {
        let axis = data::labels(rows, 8, seed);
        axis.iter()
            .flat_map(|at| (0..4).map(move |d| if d == at % 4 { [2.0, -0.5][*at as usize / 4] } else { 0.0 }))
            .collect()
    };
    for (turn, dtype) in DType::ALL.into_iter().enumerate() {
        let close = Close::Features(Stored::new(dtype, &axes(b, 1), 4), Stored::new(dtype, &axes(n, 2), 4));
        let mut case = unit_case(dtype, [b, n, dim], 50 + turn as u64, ContrastRule::Diagonal);
        let admission = if turn == 1 { Admission::Soft } else { Admission::Hard };
        case.pace = Some(PaceCase { pace: 0.5, admission, ..groups([b, n], 2, 3, close) });
        check_values(backend, &case)?;
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let [b, n] = [3, 70];
    let case = unit_case(DType::F32, [b, n, 4], 0, labels(b, n, 2, 0));
    let good = groups([b, n], 2, 1, close_in_time([b, n], 2));
    let with = |change: &dyn Fn(&mut PaceCase)| {
        let mut pace = good.clone();
        change(&mut pace);
        ContrastCase { pace: Some(pace), ..case.clone() }
    };
    for pace in [0.0, -0.5, 1.5, f32::NAN] {
        expect(backend, &with(&|it| it.pace = pace), &["`pace`"])?;
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let close = Close::Times(vec![0.0; b], vec![0.0; n], scale);
        expect(backend, &with(&|it| it.close = close.clone()), &["time scale"])?;
    }
    expect(backend, &with(&|it| it.queries.push(0)), &["`query_groups`"])?;
    expect(backend, &with(&|it| it.keys.push(0)), &["`key_groups`"])?;
    let times = |queries: usize, keys: usize| Close::Times(vec![0.5; queries], vec![0.5; keys], 1.0);
    expect(backend, &with(&|it| it.close = times(b + 1, n)), &["`query_times`"])?;
    expect(backend, &with(&|it| it.close = times(b, n - 1)), &["`key_times`"])?;
    for value in [f32::NAN, f32::INFINITY] {
        let of_queries = Close::Times(vec![0.0, value, 0.0], vec![0.0; n], 1.0);
        expect(backend, &with(&|it| it.close = of_queries.clone()), &["`query_times`"])?;
        let of_keys =
            Close::Times(vec![0.0; b], (0..n).map(|j| if j > 66 { value } else { 1.0 }).collect(), 1.0);
        expect(backend, &with(&|it| it.close = of_keys.clone()), &["`key_times`"])?;
    }
    let rows = |rows: usize, cols: usize| Stored::new(DType::F16, &data::normal(rows, cols, 5), cols);
    let features =
        |left: Stored, right: Stored| with(&|it| it.close = Close::Features(left.clone(), right.clone()));
    expect(backend, &features(rows(b + 1, 3), rows(n, 3)), &["`query_features`"])?;
    expect(backend, &features(rows(b, 3), rows(n, 4)), &["`key_features`"])?;
    for value in [0.0, f32::NAN] {
        let mut bad = rows(n, 3);
        bad.set_row(66, value);
        expect(backend, &features(rows(b, 3), bad), &["`key_features`", "66"])?;
        let mut bad = rows(b, 3);
        bad.set_row(2, value);
        expect(backend, &features(bad, rows(n, 3)), &["`query_features`", "2"])?;
    }
    Ok(())
}
