//! What a divergence of two distributions over the same keys must fulfil.

use consonance::cuda::DType;
use consonance_cpu::divergence::Direction;

use super::divergence_bound::{check_values, describe};
use super::{Check, Outcome, ensure};
use crate::backend::{Backend, DivergenceCase, DivergenceFound};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("divergence: sizes", sizes),
    ("divergence: excluded pairs", exclusions),
    ("divergence: temperatures", temperatures),
    ("divergence: many keys", many_keys),
    ("divergence: scores beyond e^60", large_scores),
    ("divergence: equal sides", equal_sides),
    ("divergence: known statistics", known_statistics),
    ("divergence: without gradients", without_gradients),
    ("divergence: padding", padding),
    ("divergence: rows stand alone", rows_stand_alone),
    ("divergence: rows without a key", no_keys),
    ("divergence: numbers out of range", bad_numbers),
    ("divergence: refused arguments", refusals),
];

const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Reverse];

/// Unit vectors of both sides.
fn unit_case(
    dtype: DType,
    [b, n, dim, width]: [usize; 4],
    seed: u64,
    direction: Direction,
) -> DivergenceCase {
    let rows = |rows, dim, seed| Stored::new(dtype, &data::unit(rows, dim, seed), dim);
    let student = (rows(b, dim, seed + 31), rows(n, dim, seed + 32));
    let teacher = (rows(b, width, seed + 33), rows(n, width, seed + 34));
    DivergenceCase::new(student, teacher, direction)
}

fn mask(rows: usize, of: u32, seed: u64) -> Vec<bool> {
    data::labels(rows, of, seed).iter().map(|v| *v != 0).collect()
}

/// Around tiles of 64 rows, slabs of 32 and 64 dimensions, and blocks of one, two and four times 128; of several parts.
fn sizes(backend: &dyn Backend) -> Outcome {
    let shapes = [
        [1, 1, 1, 3],
        [3, 7, 5, 70],
        [63, 64, 33, 32],
        [64, 65, 32, 64],
        [65, 63, 64, 1],
        [13, 131, 130, 9],
        [67, 127, 72, 33],
        [2, 70, 257, 5],
        [66, 65, 300, 129],
    ];
    for (seed, shape) in (0..).zip(shapes) {
        // Slabs of f32 hold half as many dimensions as the others, which share their code.
        let other = if seed % 2 == 0 { DType::F16 } else { DType::BF16 };
        for (at, dtype) in [DType::F32, other].into_iter().enumerate() {
            let direction = DIRECTIONS[(seed as usize / 2 + at) % 2];
            check_values(backend, &unit_case(dtype, shape, 10 * seed, direction))?;
        }
    }
    // Every entry of the four groups.
    for (dtype, direction) in [(DType::F16, DIRECTIONS[1]), (DType::BF16, DIRECTIONS[0])] {
        check_values(backend, &unit_case(dtype, [5, 66, 513, 20], 3, direction))?;
        check_values(backend, &unit_case(dtype, [5, 66, 140, 20], 3, direction))?;
    }
    Ok(())
}

fn exclusions(backend: &dyn Backend) -> Outcome {
    for (turn, [b, n, dim, width]) in (0u64..).zip([[19, 71, 9, 6], [70, 90, 20, 40]]) {
        for which in 1..8 {
            let dtype = DType::ALL[(turn as usize + which) % 3];
            let direction = DIRECTIONS[(turn as usize + which / 2) % 2];
            let mut case = unit_case(dtype, [b, n, dim, width], turn + 40, direction);
            if which & 1 != 0 {
                let valid = mask(n, 4, turn + 1);
                // What is not valid may hold any finite number.
                (0..n).filter(|key| !valid[*key]).for_each(|key| {
                    case.student.1.set_row(key, 1000.0);
                    case.teacher.1.set_row(key, -1000.0);
                });
                case.valid = Some(valid);
            }
            if which & 2 != 0 {
                case.ids = Some((data::labels(b, 6, turn + 5), data::labels(n, 20, turn + 6)));
            }
            case.diagonal = which & 4 != 0;
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

fn temperatures(backend: &dyn Backend) -> Outcome {
    for (at, (temperatures, softening)) in
        [([1.0, 0.05], 1.0), ([0.03, 0.5], 0.5), ([0.07, 0.07], 4.0)].into_iter().enumerate()
    {
        for direction in DIRECTIONS {
            let mut case = unit_case(DType::ALL[at], [9, 70, 12, 8], at as u64, direction);
            (case.temperatures, case.softening) = (temperatures, softening);
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

/// Several splits of the keys.
fn many_keys(backend: &dyn Backend) -> Outcome {
    for (dtype, seed) in DType::ALL.into_iter().zip(0..) {
        for direction in DIRECTIONS {
            let mut case = unit_case(dtype, [2, 1100, 6, 5], seed, direction);
            // The largest scores come in the second split, so that joining has to rescale.
            case.student.1.set_row(1090, 3.0);
            case.teacher.1.set_row(1080, 2.0);
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

fn large_scores(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 150, 24];
    for (dtype, seed) in DType::ALL.into_iter().zip(0..) {
        for direction in DIRECTIONS {
            // Ever larger keys: the running maxima move in every tile.
            let growing = |seed| {
                let values = data::normal(n, dim, seed);
                let grown: Vec<f32> =
                    values.iter().enumerate().map(|(at, v)| v * (at / dim) as f32 / 40.0).collect();
                Stored::new(dtype, &grown, dim)
            };
            let queries = |seed| Stored::new(dtype, &data::normal(b, dim, seed), dim);
            let student = (queries(seed + 60), growing(seed + 61));
            let mut case = DivergenceCase::new(student, (queries(seed + 62), growing(seed + 63)), direction);
            (case.temperatures, case.softening) = ([0.2, 0.1], 1.0);
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

/// Sides that are one diverge by nothing, to the last bit, and pull nowhere.
fn equal_sides(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for direction in DIRECTIONS {
            let mut case = unit_case(dtype, [7, 130, 20, 20], 4, direction);
            case.teacher = case.student.clone();
            case.temperatures = [0.1; 2];
            let found = check_values(backend, &case)?;
            let all = found.per_row.iter().chain(&found.queries).chain(&found.keys);
            ensure!(all.clone().all(|v| *v == 0.0), "{}: equal sides diverge", describe(&case));
            // And a student close by, whose gradient is far below its own probabilities.
            let values: Vec<f32> = (0..130).flat_map(|key| case.student.1.row(key).to_vec()).collect();
            let near: Vec<f32> = values.iter().map(|v| v * 1.01).collect();
            case.student.1 = Stored::new(dtype, &near, 20);
            check_values(backend, &case)?;
        }
    }
    Ok(())
}

fn known_statistics(backend: &dyn Backend) -> Outcome {
    for (at, dtype) in DType::ALL.into_iter().enumerate() {
        for (which, direction) in DIRECTIONS.into_iter().enumerate() {
            // Several splits of the keys: once.
            let n = if which == 0 { [70, 1100, 130][at] } else { 70 };
            let mut case = unit_case(dtype, [5, n, 9, 7], 6, direction);
            case.ids = Some((vec![3, 9, 3, 3, 3], vec![9; case.student.1.rows()]));
            let first = backend.divergence(&case)?;
            case.known = Some(first.teacher_log_sum_exp);
            check_values(backend, &case)?;
            // One row that is not known.
            if let Some(known) = &mut case.known {
                known[3] = f32::NEG_INFINITY;
            }
            check_values(backend, &case)?;
            for wrong in [-2.0, 2.0] {
                let mut stale = case.clone();
                if let Some(known) = &mut stale.known {
                    known[2] += wrong;
                }
                expect(backend, &stale, &["divergence", "`statistics`", "row 2"])?;
            }
            // A row that compares nothing has no statistics.
            let mut stale = case.clone();
            if let Some(known) = &mut stale.known {
                known[1] = 0.0;
            }
            expect(backend, &stale, &["divergence", "`statistics`", "row 1"])?;
        }
    }
    Ok(())
}

/// The divergence is the same, bit for bit, when no gradient is asked for.
fn without_gradients(backend: &dyn Backend) -> Outcome {
    for (at, dim) in [20, 200, 300].into_iter().enumerate() {
        let mut case = unit_case(DType::ALL[at], [5, 70, dim, 30], 3, DIRECTIONS[at % 2]);
        let with = backend.divergence(&case)?;
        case.gradients = false;
        let without = backend.divergence(&case)?;
        let bits = |found: &DivergenceFound| -> Vec<u32> {
            let numbers = found.per_row.iter().chain(&found.log_sum_exp).chain(&found.teacher_log_sum_exp);
            numbers.map(|v| v.to_bits()).collect()
        };
        ensure!(bits(&with) == bits(&without), "{}: another loss without gradients", describe(&case));
        ensure!(without.queries.is_empty(), "gradients that nobody asked for");
    }
    Ok(())
}

/// All that belongs to these rows, bit for bit.
fn bits_of(found: &DivergenceFound, rows: impl IntoIterator<Item = usize>, dim: usize) -> Vec<u32> {
    let of_row = |row: usize| {
        let numbers = [found.per_row[row], found.log_sum_exp[row], found.teacher_log_sum_exp[row]];
        numbers.into_iter().chain(found.queries[row * dim..][..dim].iter().copied())
    };
    rows.into_iter().flat_map(of_row).map(f32::to_bits).collect()
}

/// Rows behind padding that holds NaN, at addresses of no alignment, and at aligned ones.
fn padding(backend: &dyn Backend) -> Outcome {
    for (dim, stride, offset) in [(7, 9, 3), (24, 32, 8), (40, 41, 1)] {
        for (dtype, direction) in DType::ALL.into_iter().zip([DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[0]]) {
            let mut case = unit_case(dtype, [18, 70, dim, dim], 7, direction);
            let plain = backend.divergence(&case)?;
            let pad = |rows: &Stored| {
                let values: Vec<f32> = (0..rows.rows()).flat_map(|i| rows.row(i).to_vec()).collect();
                Stored::padded(dtype, &values, dim, stride, offset)
            };
            case.student = (pad(&case.student.0), pad(&case.student.1));
            case.teacher = (pad(&case.teacher.0), pad(&case.teacher.1));
            let padded = backend.divergence(&case)?;
            let same = bits_of(&plain, 0..18, dim) == bits_of(&padded, 0..18, dim)
                && plain.keys.iter().map(|v| v.to_bits()).eq(padded.keys.iter().map(|v| v.to_bits()));
            ensure!(same, "{dtype:?}, rows of {dim} at {stride}: other bits behind padding");
        }
    }
    Ok(())
}

/// A row's divergence and gradient do not depend on the other rows, bit for bit.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    let [b, n, dim, width] = [70, 150, 33, 12];
    for (at, dtype) in DType::ALL.into_iter().enumerate() {
        let mut case = unit_case(dtype, [b, n, dim, width], 5, DIRECTIONS[at % 2]);
        case.ids = Some((data::labels(b, 9, 7), data::labels(n, 9, 8)));
        let all = backend.divergence(&case)?;
        for rows in [vec![69], vec![3, 64, 5], (0..b).rev().collect()] {
            let some = backend.divergence(&case.select(&rows))?;
            let same = bits_of(&some, 0..rows.len(), dim) == bits_of(&all, rows.iter().copied(), dim);
            ensure!(same, "{dtype:?}: other bits among {} queries", rows.len());
        }
    }
    Ok(())
}

fn no_keys(backend: &dyn Backend) -> Outcome {
    let [b, n, dim] = [5, 67, 8];
    for (dtype, direction) in [(DType::F32, DIRECTIONS[0]), (DType::F16, DIRECTIONS[1])] {
        let mut none = unit_case(dtype, [b, n, dim, 3], 3, direction);
        none.ids = Some((vec![1, 2, 1, 3, 1], vec![1; n]));
        let mut invalid = unit_case(dtype, [b, n, dim, 3], 4, direction);
        invalid.valid = Some(vec![false; n]);
        for (case, counted) in [(none, [false, true, false, true, false]), (invalid, [false; 5])] {
            let found = check_values(backend, &case)?;
            ensure!(found.counted == counted, "counted rows are {:?}, expected {counted:?}", found.counted);
            for row in (0..b).filter(|row| !counted[*row]) {
                let gradient = &found.queries[row * dim..][..dim];
                let zero = found.per_row[row] == 0.0 && gradient.iter().all(|v| *v == 0.0);
                ensure!(zero, "row {row} does not count, and has a loss or a gradient");
            }
        }
    }
    Ok(())
}

fn expect(backend: &dyn Backend, case: &DivergenceCase, parts: &[&str]) -> Outcome {
    match backend.divergence(case) {
        Ok(_) => Err(format!("no error that names {parts:?}")),
        Err(text) => {
            ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
            Ok(())
        }
    }
}

fn bad_numbers(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let case = unit_case(dtype, [5, 70, 6, 4], 1, Direction::Forward);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (name, row) in [("queries", 4), ("keys", 66), ("teacher_queries", 3), ("teacher_keys", 67)] {
                let mut bad = case.clone();
                let rows = match name {
                    "queries" => &mut bad.student.0,
                    "keys" => &mut bad.student.1,
                    "teacher_queries" => &mut bad.teacher.0,
                    _ => &mut bad.teacher.1,
                };
                rows.set_row(row, value);
                if row > 60 {
                    rows.set_row(69, value);
                }
                expect(backend, &bad, &["divergence", &format!("`{name}`"), &row.to_string()])?;
            }
        }
    }
    // Products that leave f32.
    let mut large = unit_case(DType::F32, [5, 70, 6, 4], 1, Direction::Forward);
    large.student.0.set_row(2, 3e18);
    large.student.1.set_row(9, 3e18);
    large.temperatures[0] = 1e-3;
    expect(backend, &large, &["divergence", "`queries`", "2"])
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let case = unit_case(DType::F32, [5, 70, 6, 4], 1, Direction::Reverse);
    let rows = |rows, dim| Stored::new(DType::F32, &data::unit(rows, dim, 3), dim);
    type Change<'a> = &'a dyn Fn(&mut DivergenceCase);
    let changes: [(&str, Change<'_>); 12] = [
        ("`queries`", &|case| case.student.0 = rows(0, 6)),
        ("`keys`", &|case| case.student.1 = rows(0, 6)),
        ("`keys`", &|case| case.student.1 = rows(70, 7)),
        ("`teacher_queries`", &|case| case.teacher.0 = rows(4, 4)),
        ("`teacher_keys`", &|case| case.teacher.1 = rows(71, 4)),
        ("`teacher_keys`", &|case| case.teacher.1 = rows(70, 5)),
        ("`temperature`", &|case| case.temperatures[0] = 0.0),
        ("`teacher_temperature`", &|case| case.temperatures[1] = f32::NAN),
        ("`softening`", &|case| case.softening = 1e20),
        ("`valid`", &|case| case.valid = Some(vec![true; 7])),
        ("`key_ids`", &|case| case.ids = Some((vec![1; 5], vec![1; 69]))),
        ("`statistics`", &|case| case.known = Some(vec![0.0; 4])),
    ];
    for (name, change) in changes {
        let mut bad = case.clone();
        change(&mut bad);
        expect(backend, &bad, &["divergence", name])?;
    }
    Ok(())
}
