//! What a contrastive loss must fulfil.

use consonance::cuda::DType;
use consonance_cpu::contrast::{AffinityMap, Normalizer, OtherPositives};

use super::contrast_bound::{Truth, check_values};
use super::{Check, Outcome, ensure};
use crate::backend::{Backend, ContrastCase, ContrastFound, ContrastRule};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("contrast: sizes", sizes),
    ("contrast: rules and options", options),
    ("contrast: positives left out", left_out),
    ("contrast: old embeddings", affinities),
    ("contrast: without gradients", without_gradients),
    ("contrast: many keys", many_keys),
    ("contrast: scores beyond e^60", large_scores),
    ("contrast: padding", padding),
    ("contrast: rows stand alone", rows_stand_alone),
    ("contrast: rows without a positive", no_positives),
    ("contrast: numbers out of range", bad_numbers),
    ("contrast: refused arguments", refusals),
];

pub(super) fn labels(b: usize, n: usize, classes: u32, seed: u64) -> ContrastRule {
    ContrastRule::Labels(data::labels(b, classes, seed), data::labels(n, classes, seed + 1))
}

/// Lists of up to six keys.
pub(super) fn lists(b: usize, n: usize, seed: u64, weighted: bool) -> ContrastRule {
    let starts = data::labels(b, n as u32, seed);
    let (mut offsets, mut indices) = (vec![0], Vec::new());
    for (i, start) in starts.iter().enumerate() {
        let mut list: Vec<u32> =
            (0..(i as u32 * 5 + 3) % 7).map(|k| (start + k * k * 11) % n as u32).collect();
        list.sort_unstable();
        list.dedup();
        indices.extend(list);
        offsets.push(indices.len() as u32);
    }
    let weights = data::labels(indices.len(), 5, seed + 1).iter().map(|w| *w as f32 / 3.0).collect();
    ContrastRule::Lists(offsets, indices, weighted.then_some(weights))
}

pub(super) fn bits(b: usize, n: usize, seed: u64) -> ContrastRule {
    let sets = |rows, seed| data::labels(rows * 3, 1 << 30, seed);
    ContrastRule::Bits(sets(b, seed), sets(n, seed + 1), 3, 24)
}

/// Unit vectors.
pub(super) fn unit_case(
    dtype: DType,
    [b, n, dim]: [usize; 3],
    seed: u64,
    rule: ContrastRule,
) -> ContrastCase {
    let queries = Stored::new(dtype, &data::unit(b, dim, seed + 31), dim);
    let keys = Stored::new(dtype, &data::unit(n, dim, seed + 32), dim);
    ContrastCase::new(queries, keys, 0.1, rule)
}

pub(super) fn mask(rows: usize, of: u32, seed: u64) -> Vec<bool> {
    data::labels(rows, of, seed).iter().map(|v| *v != 0).collect()
}

/// Temperatures of their own for all queries.
fn temperatures(b: usize, seed: u64) -> Vec<f32> {
    data::labels(b, 16, seed).iter().map(|v| 0.07 + *v as f32 / 64.0).collect()
}

/// Around tiles of 64 rows, slabs of 32 and 64 dimensions, and blocks of one, two and four times 128; of several parts.
fn sizes(backend: &dyn Backend) -> Outcome {
    let shapes = [
        [1, 1, 1],
        [3, 7, 5],
        [63, 64, 33],
        [64, 65, 32],
        [65, 63, 64],
        [13, 131, 130],
        [67, 127, 72],
        [2, 70, 257],
        [66, 65, 300],
    ];
    for (seed, [b, n, dim]) in (0..).zip(shapes) {
        // Slabs of f32 hold half as many dimensions as the others, which share their code.
        let other = if seed % 2 == 0 { DType::F16 } else { DType::BF16 };
        for dtype in [DType::F32, other] {
            let mut case = unit_case(dtype, [b, n, dim], 10 * seed, labels(b, n, 4, seed));
            if seed % 2 == 1 {
                case.temperatures = temperatures(b, seed);
            }
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

fn options(backend: &dyn Backend) -> Outcome {
    let alone: &[usize] = &[0, 3, 12, 16, 32, 64, 127];
    for (turn, ([b, n, dim], options)) in (0u64..).zip([([19, 71, 9], alone), ([66, 90, 20], &[12, 127])]) {
        let rules = [
            labels(b, n, 5, turn),
            ContrastRule::Diagonal,
            lists(b, n, turn + 3, false),
            lists(b, n, turn + 4, true),
            bits(b, n, turn + 5),
            ContrastRule::All,
        ];
        for (at, rule) in rules.into_iter().enumerate() {
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
                case.anchors = (which & 4 != 0).then(|| mask(b, 5, seed + 3));
                case.denominator_weights = (which & 8 != 0)
                    .then(|| data::labels(n, 7, seed + 4).iter().map(|u| *u as f32 / 3.0).collect());
                case.ids =
                    (which & 16 != 0).then(|| (data::labels(b, 6, seed + 5), data::labels(n, 20, seed + 6)));
                case.left_out =
                    (which & 32 != 0).then(|| (data::labels(b, 4, seed + 7), data::labels(n, 4, seed + 8)));
                if which & 64 != 0 {
                    case.normalizer = Normalizer::WeightSum;
                }
                check_values(backend, &case)?;
            }
        }
    }
    Ok(())
}

fn left_out(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [67, 75, 21];
    let rules =
        [labels(b, n, 4, 1), ContrastRule::Diagonal, lists(b, n, 3, true), bits(b, n, 5), ContrastRule::All];
    for (at, rule) in rules.into_iter().enumerate() {
        for which in [0, 1, 2] {
            let mut case = unit_case(DType::ALL[(at + which) % 3], [b, n, dim], 70 + at as u64, rule.clone());
            case.other_positives = OtherPositives::LeftOut;
            if which == 1 {
                case.temperatures = temperatures(b, 3);
                case.normalizer = Normalizer::WeightSum;
                case.denominator_weights =
                    Some(data::labels(n, 7, 4).iter().map(|u| *u as f32 / 3.0).collect());
            }
            if which == 2 {
                case.valid = Some(mask(n, 4, 1));
                case.ids = Some((data::labels(b, 6, 5), data::labels(n, 20, 6)));
                case.left_out = Some((data::labels(b, 4, 7), data::labels(n, 4, 8)));
                case.affinity =
                    Some(old(case.keys.dtype(), [b, n, 5], AffinityMap::Exp { temperature: 0.3 }));
            }
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

/// Old embeddings of no particular norm.
pub(super) fn old(dtype: DType, [b, n, dim]: [usize; 3], map: AffinityMap) -> (Stored, Stored, AffinityMap) {
    let rows = |rows, seed| Stored::new(dtype, &data::normal(rows, dim, seed), dim);
    (rows(b, 81), rows(n, 82), map)
}

/// Weights by old embeddings, of any norm and of dtypes of their own; with moments of all keys and without.
fn affinities(backend: &dyn Backend) -> Outcome {
    let maps = [AffinityMap::Half, AffinityMap::Exp { temperature: 0.2 }];
    let [b, n, dim] = [5, 70, 7];
    let rules = [labels(b, n, 4, 1), lists(b, n, 3, true), bits(b, n, 4), ContrastRule::All];
    for (turn, rule) in rules.into_iter().enumerate() {
        let mut case = unit_case(DType::ALL[turn % 3], [b, n, dim], 90 + turn as u64, rule);
        case.affinity = Some(old(DType::ALL[(2 * turn + 1) % 3], [b, n, 3], maps[turn % 2]));
        check_values(backend, &case)?;
    }
    for (at, shape) in [[5, 70, 7, 3], [67, 66, 65, 70], [2, 2100, 5, 33]].into_iter().enumerate() {
        let [b, n, dim, old_dim] = shape;
        let mut case = unit_case(DType::ALL[at], [b, n, dim], 95, ContrastRule::All);
        case.affinity = Some(old(DType::ALL[(at + 1) % 3], [b, n, old_dim], maps[0]));
        if at > 0 {
            // Moments of keys that may be positives alone.
            case.credible = Some(mask(n, 3, 2));
            case.valid = Some(mask(n, 5, 3));
            case.anchors = Some(mask(b, 4, 4));
            case.normalizer = Normalizer::WeightSum;
            case.temperatures = temperatures(b, 2);
        }
        check_values(backend, &case)?;
    }
    Ok(())
}

/// The loss is the same, bit for bit, when no gradient is asked for.
fn without_gradients(backend: &dyn Backend) -> Outcome {
    for (at, dim) in [20, 200, 300].into_iter().enumerate() {
        let mut case = unit_case(DType::ALL[at], [5, 70, dim], 3, labels(5, 70, 4, 3));
        if at == 1 {
            case.rule = ContrastRule::All;
        }
        if at == 2 {
            case.other_positives = OtherPositives::LeftOut;
        }
        let with = backend.contrast(&case)?;
        case.gradients = false;
        let without = backend.contrast(&case)?;
        let bits = |found: &ContrastFound| -> Vec<u32> {
            found.per_row.iter().chain(&found.log_sum_exp).map(|v| v.to_bits()).collect()
        };
        ensure!(bits(&with) == bits(&without), "{}: another loss without gradients", describe(&case));
        ensure!(without.queries.is_empty(), "gradients that nobody asked for");
    }
    Ok(())
}

/// Several splits of the keys, and more positives than warps look at together.
fn many_keys(backend: &dyn Backend) -> Outcome {
    for (dtype, seed) in DType::ALL.into_iter().zip(0..) {
        let mut case = unit_case(dtype, [2, 1100, 6], seed, labels(2, 1100, 4, seed));
        // The largest scores come in the second split, so that joining has to rescale.
        case.keys.set_row(1090, 3.0);
        check_values(backend, &case)?;
    }
    Ok(())
}

fn large_scores(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 150, 24];
    for (dtype, seed) in DType::ALL.into_iter().zip(0..) {
        let queries = Stored::new(dtype, &data::normal(b, dim, seed + 60), dim);
        // Ever larger keys: the running maximum moves in every tile.
        let values = data::normal(n, dim, seed + 61);
        let growing: Vec<f32> =
            values.iter().enumerate().map(|(at, v)| v * (at / dim) as f32 / 40.0).collect();
        let keys = Stored::new(dtype, &growing, dim);
        check_values(backend, &ContrastCase::new(queries, keys, 0.05, labels(b, n, 3, seed)))?;
    }
    Ok(())
}

/// Rows behind padding that holds NaN, at addresses of no alignment, and at aligned ones.
fn padding(backend: &dyn Backend) -> Outcome {
    for (dim, stride, offset) in [(7, 9, 3), (24, 32, 8), (40, 41, 1)] {
        for dtype in DType::ALL {
            let mut case = unit_case(dtype, [18, 70, dim], 7, labels(18, 70, 4, 7));
            let plain = backend.contrast(&case)?;
            let pad = |rows: &Stored| {
                let values: Vec<f32> = (0..rows.rows()).flat_map(|i| rows.row(i).to_vec()).collect();
                Stored::padded(dtype, &values, dim, stride, offset)
            };
            (case.queries, case.keys) = (pad(&case.queries), pad(&case.keys));
            let padded = backend.contrast(&case)?;
            let same = bits_of(&plain, 0..18, dim) == bits_of(&padded, 0..18, dim)
                && plain.keys.iter().map(|v| v.to_bits()).eq(padded.keys.iter().map(|v| v.to_bits()));
            ensure!(same, "{dtype:?}, rows of {dim} at {stride}: other bits behind padding");
        }
    }
    Ok(())
}

/// All that belongs to these rows, bit for bit.
fn bits_of(found: &ContrastFound, rows: impl IntoIterator<Item = usize>, dim: usize) -> Vec<u32> {
    let of_row = |row: usize| {
        let numbers = [found.per_row[row], found.log_sum_exp[row], found.temperatures[row]];
        numbers.into_iter().chain(found.queries[row * dim..][..dim].iter().copied())
    };
    rows.into_iter().flat_map(of_row).map(f32::to_bits).collect()
}

/// A row's loss and gradients do not depend on the other rows, bit for bit.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [70, 150, 33];
    for (dtype, rule) in DType::ALL.into_iter().zip([labels(b, n, 6, 1), lists(b, n, 2, true), bits(b, n, 3)])
    {
        let mut case = unit_case(dtype, [b, n, dim], 5, rule);
        case.temperatures = temperatures(b, 9);
        case.ids = Some((data::labels(b, 9, 7), data::labels(n, 9, 8)));
        let all = backend.contrast(&case)?;
        for rows in [vec![69], vec![3, 64, 5], (0..b).rev().collect()] {
            let some = backend.contrast(&case.select(&rows))?;
            let same = bits_of(&some, 0..rows.len(), dim) == bits_of(&all, rows.iter().copied(), dim);
            ensure!(same, "{dtype:?}: other bits among {} queries", rows.len());
        }
    }
    Ok(())
}

fn no_positives(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 67, 8];
    let alone = ContrastRule::Labels(vec![1, 100, 2, 101, 3], data::labels(n, 4, 1));
    let mut none = unit_case(DType::F32, [b, n, dim], 3, alone.clone());
    none.anchors = Some(vec![true, true, false, true, true]);
    let mut closed = unit_case(DType::BF16, [b, n, dim], 4, alone);
    closed.denominator_weights = Some(vec![0.0; n]);
    let mut weightless = unit_case(DType::F16, [b, n, dim], 5, lists(b, n, 1, true));
    if let ContrastRule::Lists(_, _, Some(weights)) = &mut weightless.rule {
        weights.fill(0.0);
    }
    weightless.normalizer = Normalizer::WeightSum;
    for (case, counted) in
        [(none, [true, false, false, false, true]), (closed, [false; 5]), (weightless, [false; 5])]
    {
        let found = check_values(backend, &case)?;
        ensure!(found.counted == counted, "counted rows are {:?}, expected {counted:?}", found.counted);
        for row in (0..b).filter(|row| !counted[*row]) {
            let zero = found.per_row[row] == 0.0
                && found.temperatures[row] == 0.0
                && found.queries[row * dim..][..dim].iter().all(|v| *v == 0.0);
            ensure!(zero, "row {row} does not count, and has a loss or a gradient");
        }
    }
    Ok(())
}

pub(super) fn expect(backend: &dyn Backend, case: &ContrastCase, parts: &[&str]) -> Outcome {
    match backend.contrast(case) {
        Ok(_) => Err(format!("no error that names {parts:?}")),
        Err(text) => {
            ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
            Ok(())
        }
    }
}

fn bad_numbers(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 70, 6];
    for dtype in DType::ALL {
        let case = unit_case(dtype, [b, n, dim], 1, labels(b, n, 2, 1));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bad = case.clone();
            bad.keys.set_row(67, value);
            bad.keys.set_row(66, value);
            expect(backend, &bad, &["contrast", "`keys`", "66"])?;
            let mut bad = case.clone();
            bad.queries.set_row(4, value);
            expect(backend, &bad, &["contrast", "`queries`", "4"])?;
        }
        for value in [0.0, -0.1, f32::NAN, f32::INFINITY, 1e-39] {
            let mut bad = case.clone();
            bad.temperatures = temperatures(b, 1);
            bad.temperatures[3] = value;
            expect(backend, &bad, &["contrast", "`temperature`"])?;
        }
        for value in [-1.0, f32::NAN, f32::INFINITY] {
            let mut bad = case.clone();
            bad.denominator_weights = Some((0..n).map(|j| if j == 65 { value } else { 1.0 }).collect());
            expect(backend, &bad, &["contrast", "`denominator_weights`"])?;
        }
    }
    for (place, name) in [(3, "`old_queries`"), (66, "`old_keys`")] {
        let mut bad = unit_case(DType::F32, [b, n, dim], 1, labels(b, n, 2, 1));
        let (mut left, mut right, map) = old(DType::BF16, [b, n, 4], AffinityMap::Half);
        if place < b { &mut left } else { &mut right }.set_row(place, 0.0);
        bad.affinity = Some((left, right, map));
        expect(backend, &bad, &["contrast", name, &place.to_string()])?;
    }
    let list = |offsets: &[u32], indices: &[u32], weights: Option<&[f32]>| {
        let rule = ContrastRule::Lists(offsets.to_vec(), indices.to_vec(), weights.map(<[f32]>::to_vec));
        unit_case(DType::F32, [2, 9, 3], 1, rule)
    };
    expect(backend, &list(&[0, 2, 3], &[4, 4, 1], None), &["`indices`"])?;
    expect(backend, &list(&[0, 2, 3], &[5, 4, 1], None), &["`indices`"])?;
    expect(backend, &list(&[0, 2, 3], &[3, 4, 9], None), &["`indices`"])?;
    expect(backend, &list(&[0, 2, 3], &[3, 4, 5], Some(&[1.0, -1.0, 1.0])), &["weights"])?;
    for offsets in [[0, 2, 2], [0, 2, 4], [1, 2, 3], [0, 4, 3]] {
        expect(backend, &list(&offsets, &[3, 4, 5], None), &["offsets"])?;
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let case = unit_case(DType::F32, [3, 10, 4], 0, labels(3, 10, 2, 0));
    let with = |rule| ContrastCase { rule, ..case.clone() };
    let bad = [
        (ContrastCase { keys: Stored::new(DType::F32, &[0.0; 30], 3), ..case.clone() }, "`keys`"),
        (ContrastCase { keys: Stored::new(DType::F32, &[], 4), ..case.clone() }, "`keys`"),
        (ContrastCase { queries: Stored::new(DType::F32, &[], 4), ..case.clone() }, "`queries`"),
        (ContrastCase { temperatures: vec![0.1; 2], ..case.clone() }, "`temperature`"),
        (ContrastCase { upstream: vec![1.0; 2], ..case.clone() }, "`row_gradients`"),
        (ContrastCase { ids: Some((vec![0; 2], vec![0; 10])), ..case.clone() }, "`query_ids`"),
        (ContrastCase { left_out: Some((vec![0; 3], vec![0; 11])), ..case.clone() }, "`key_labels`"),
        (ContrastCase { anchors: Some(vec![true; 50]), ..case.clone() }, "`anchors`"),
        (ContrastCase { valid: Some(vec![true; 50]), ..case.clone() }, "`valid`"),
        (ContrastCase { credible: Some(vec![true; 50]), ..case.clone() }, "`credible_positives`"),
        (ContrastCase { denominator_weights: Some(vec![1.0; 9]), ..case.clone() }, "`denominator_weights`"),
        (
            ContrastCase { affinity: Some(old(DType::F32, [2, 10, 4], AffinityMap::Half)), ..case.clone() },
            "`old_queries`",
        ),
        (
            ContrastCase { affinity: Some(old(DType::F32, [3, 9, 4], AffinityMap::Half)), ..case.clone() },
            "`old_keys`",
        ),
        (
            ContrastCase {
                affinity: Some(old(DType::F32, [3, 10, 4], AffinityMap::Exp { temperature: 0.0 })),
                ..case.clone()
            },
            "affinity temperature",
        ),
        (with(labels(3, 11, 2, 0)), "`key_labels`"),
        (with(ContrastRule::Lists(vec![0, 0], vec![], None)), "`offsets`"),
        (with(ContrastRule::Lists(vec![0, 0, 0, 1], vec![2], Some(vec![1.0; 2]))), "`weights`"),
        (with(ContrastRule::Bits(vec![0; 6], vec![0; 19], 2, 1)), "`key_bits`"),
        (with(ContrastRule::Bits(vec![0; 3], vec![0; 10], 1, 0)), "`min_overlap`"),
        (unit_case(DType::F32, [3, 2, 4], 0, ContrastRule::Diagonal), "`keys`"),
    ];
    bad.iter().try_for_each(|(case, name)| expect(backend, case, &[name]))
}

/// The definition of a case, for messages of the checks.
pub(super) fn describe(case: &ContrastCase) -> String {
    let rule = match &case.rule {
        ContrastRule::Labels(..) => "labels",
        ContrastRule::Diagonal => "diagonal",
        ContrastRule::Lists(_, _, None) => "lists",
        ContrastRule::Lists(..) => "weighted lists",
        ContrastRule::Bits(..) => "bits",
        ContrastRule::All => "all",
    };
    let with = [
        (case.anchors.is_some(), ", anchors"),
        (case.valid.is_some(), ", valid"),
        (case.credible.is_some(), ", credible"),
        (case.denominator_weights.is_some(), ", denominator weights"),
        (case.ids.is_some(), ", ids"),
        (case.left_out.is_some(), ", left-out labels"),
        (case.affinity.is_some(), ", old embeddings"),
        (case.pace.is_some(), ", pace"),
        (case.normalizer == Normalizer::WeightSum, ", by weight"),
        (case.other_positives == OtherPositives::LeftOut, ", positives left out"),
    ];
    let with: String = with.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    let [b, n, dim] = Truth::shape(case);
    format!("{:?} [{b}, {dim}] against [{n}, {dim}], {rule}{with}", case.keys.dtype())
}
