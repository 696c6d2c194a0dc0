//! What losses over lists of bank rows must fulfil.

use consonance::cuda::DType;
use consonance_cpu::contrast::Normalizer;
use consonance_cpu::gathered::PADDING;

use super::gathered_bound::{check_values, is_listed};
use super::gathered_update as update;
use super::{Check, Outcome, ensure};
use crate::backend::{Backend, GatheredCase, GatheredFound, GatheredLoss, GatheredPositives};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("gathered: sizes", sizes),
    ("gathered: wide rows", wide_rows),
    ("gathered: positives", positives),
    ("gathered: many columns", many_columns),
    ("gathered: scores beyond e^60", large_scores),
    ("gathered: padding", padding),
    ("gathered: rows stand alone", rows_stand_alone),
    ("gathered: rows that do not count", no_positives),
    ("gathered: rows that nobody lists", unlisted_rows),
    ("gathered: numbers out of range", bad_numbers),
    ("gathered: refused arguments", refusals),
    ("gathered: updates", update::values),
    ("gathered: updates of one row", update::repeated),
    ("gathered: updates behind padding", update::padding),
    ("gathered: updates out of range", update::bad_numbers),
    ("gathered: refused updates", update::refusals),
];

/// Lists with repeated rows, and padding here and there.
pub(super) fn lists(b: usize, columns: usize, n: usize, seed: u64) -> Vec<u32> {
    let holes = data::labels(b * columns, 7, seed + 1);
    let rows = data::labels(b * columns, n as u32, seed);
    rows.iter().zip(holes).map(|(row, hole)| if hole == 0 { PADDING } else { *row }).collect()
}

fn unit(dtype: DType, rows: usize, dim: usize, seed: u64) -> Stored {
    Stored::new(dtype, &data::unit(rows, dim, seed), dim)
}

fn first(count: usize) -> GatheredLoss {
    GatheredLoss::Contrast(GatheredPositives::First(count), Normalizer::Count)
}

/// Unit vectors, the first column a positive.
fn case(dtype: DType, [b, n, columns, dim]: [usize; 4], seed: u64) -> GatheredCase {
    GatheredCase {
        queries: unit(dtype, b, dim, seed + 21),
        bank: unit(dtype, n, dim, seed + 22),
        indices: lists(b, columns, n, seed),
        columns,
        temperatures: vec![0.1],
        loss: first(1),
    }
}

/// The same lists with a teacher of another dimension.
fn with_teacher(case: &GatheredCase, dim: usize, softening: f32, seed: u64) -> GatheredCase {
    let (dtype, b, n) = (case.bank.dtype(), case.queries.rows(), case.bank.rows());
    let (queries, bank) = (unit(dtype, b, dim, seed + 23), unit(dtype, n, dim, seed + 24));
    let temperatures = case.temperatures[..1].to_vec();
    let loss = GatheredLoss::Divergence(queries, bank, softening);
    GatheredCase { loss, temperatures, ..case.clone() }
}

/// Temperatures of their own for all queries.
fn temperatures(b: usize, seed: u64) -> Vec<f32> {
    data::labels(b, 16, seed).iter().map(|v| 0.07 + *v as f32 / 64.0).collect()
}

/// Around chunks of 4 and 8 dimensions, groups of 4 to 32 lanes and tiles of 32 rows.
fn sizes(backend: &dyn Backend) -> Outcome {
    let shapes = [
        [1, 1, 1, 1],
        [3, 7, 2, 3],
        [2, 40, 31, 8],
        [5, 9, 33, 17],
        [3, 64, 64, 64],
        [4, 100, 70, 33],
        [2, 30, 97, 130],
        [2, 20, 35, 257],
    ];
    for (seed, shape) in (0..).zip(shapes) {
        for dtype in DType::ALL {
            let mut case = case(dtype, shape, 10 * seed);
            if seed % 2 == 1 {
                case.temperatures = temperatures(shape[0], seed);
            }
            check_values(backend, &case)?;
            let other = [1, 5, 64, 12, 24, 100, 31, 16][seed as usize];
            check_values(backend, &with_teacher(&case, other, 3.0, seed))?;
        }
    }
    Ok(())
}

/// Rows of several kilobytes: few in a tile, cut into parts, with several dimensions a thread.
fn wide_rows(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for (dim, other) in [(513, 40), (1030, 3000), (2048, 2048)] {
            let mut case = case(dtype, [2, 6, 9, dim], dim as u64);
            case.loss = GatheredLoss::Contrast(
                GatheredPositives::Weights(data::labels(18, 3, 5).iter().map(|w| *w as f32).collect()),
                Normalizer::WeightSum,
            );
            check_values(backend, &case)?;
            check_values(backend, &with_teacher(&case, other, 2.0, 1))?;
        }
        check_values(backend, &case(dtype, [1, 4, 5, 4096], 3))?;
        // A narrow student of a wide teacher.
        check_values(backend, &with_teacher(&case(dtype, [1, 4, 5, 20], 4), 4000, 1.0, 2))?;
    }
    Ok(())
}

fn positives(backend: &dyn Backend) -> Outcome {
    let [b, n, columns, dim] = [9, 50, 45, 20];
    for (seed, dtype) in (0..).zip(DType::ALL) {
        let plain = case(dtype, [b, n, columns, dim], seed + 70);
        let few: Vec<f32> =
            data::labels(b * columns, 9, seed).iter().map(|w| (*w / 7) as f32 * 0.75).collect();
        let all: Vec<f32> = data::labels(b * columns, 9, seed).iter().map(|w| *w as f32 / 5.0).collect();
        for positives in [
            GatheredPositives::First(1),
            GatheredPositives::First(2),
            GatheredPositives::First(40),
            GatheredPositives::First(columns),
            GatheredPositives::Weights(few),
            GatheredPositives::Weights(all),
        ] {
            for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
                let loss = GatheredLoss::Contrast(positives.clone(), normalizer);
                let temperatures = temperatures(b, seed);
                check_values(backend, &GatheredCase { loss, temperatures, ..plain.clone() })?;
            }
        }
        for softening in [0.5, 1.0, 4.0] {
            check_values(backend, &with_teacher(&plain, dim, softening, seed))?;
        }
        // A student that is its own teacher.
        let loss = GatheredLoss::Divergence(plain.queries.clone(), plain.bank.clone(), 3.0);
        let found = check_values(backend, &GatheredCase { loss, ..plain })?;
        ensure!(found.per_row.iter().all(|loss| *loss == 0.0), "equal sides diverge: {:?}", found.per_row);
    }
    Ok(())
}

/// Several splits of the columns.
fn many_columns(backend: &dyn Backend) -> Outcome {
    for (seed, dtype) in (0..).zip(DType::ALL) {
        let mut case = case(dtype, [2, 300, 4500, 6], seed + 80);
        // The largest scores come in the second split, so that joining has to rescale.
        case.bank.set_row(299, 3.0);
        case.indices.iter_mut().filter(|row| **row == 299).for_each(|row| *row = 7);
        case.indices[2000] = 299;
        case.indices[4500 + 2100] = 299;
        let weights: Vec<f32> = (0..9000).map(|at| if at % 1000 == 3 { 0.5 } else { 0.0 }).collect();
        case.loss = GatheredLoss::Contrast(GatheredPositives::Weights(weights), Normalizer::Count);
        check_values(backend, &case)?;
        check_values(backend, &with_teacher(&case, 9, 0.25, seed))?;
    }
    Ok(())
}

fn large_scores(backend: &dyn Backend) -> Outcome {
    let [b, n, columns, dim] = [4, 150, 150, 24];
    for (seed, dtype) in (0..).zip(DType::ALL) {
        let grown = |rows: Stored, seed| {
            // Ever larger rows, listed in their order: the running maximum moves in every tile.
            let values = data::normal(rows.rows(), dim, seed);
            let growing: Vec<f32> =
                values.iter().enumerate().map(|(at, v)| v * (at / dim) as f32 / 40.0).collect();
            Stored::new(dtype, &growing, dim)
        };
        let mut case = case(dtype, [b, n, columns, dim], seed);
        case.queries = Stored::new(dtype, &data::normal(b, dim, seed + 60), dim);
        case.bank = grown(case.bank, seed + 61);
        case.indices = (0..b * columns).map(|at| (at % columns) as u32).collect();
        case.temperatures = vec![0.05];
        check_values(backend, &case)?;
        let mut teacher = with_teacher(&case, dim, 1.0, seed);
        if let GatheredLoss::Divergence(queries, bank, _) = &mut teacher.loss {
            *queries = Stored::new(dtype, &data::normal(b, dim, seed + 62), dim);
            *bank = grown(bank.clone(), seed + 63);
        }
        check_values(backend, &teacher)?;
    }
    Ok(())
}

/// All that belongs to these rows, bit for bit.
fn bits_of(found: &GatheredFound, rows: impl IntoIterator<Item = usize>, dim: usize) -> Vec<u32> {
    let of_row = |row: usize| {
        let numbers = [found.per_row[row], found.log_sum_exp[row]];
        let temperature = found.temperatures.get(row).copied();
        numbers.into_iter().chain(temperature).chain(found.queries[row * dim..][..dim].iter().copied())
    };
    rows.into_iter().flat_map(of_row).map(f32::to_bits).collect()
}

/// Rows behind padding that holds NaN, at addresses of no alignment, and at aligned ones.
fn padding(backend: &dyn Backend) -> Outcome {
    for (dim, stride, offset) in [(7, 9, 3), (24, 32, 8), (40, 41, 1)] {
        for dtype in DType::ALL {
            let pad = |rows: &Stored| {
                let values: Vec<f32> = (0..rows.rows()).flat_map(|i| rows.row(i).to_vec()).collect();
                Stored::padded(dtype, &values, rows.cols(), stride, offset)
            };
            let plain = case(dtype, [5, 30, 50, dim], 7);
            for case in [with_teacher(&plain, dim - 2, 2.0, 1), plain] {
                let mut padded = case.clone();
                (padded.queries, padded.bank) = (pad(&case.queries), pad(&case.bank));
                if let GatheredLoss::Divergence(queries, bank, _) = &mut padded.loss {
                    (*queries, *bank) = (pad(queries), pad(bank));
                }
                let (plain, padded) = (backend.gathered(&case, true)?, backend.gathered(&padded, true)?);
                let same = bits_of(&plain, 0..5, dim) == bits_of(&padded, 0..5, dim);
                ensure!(same, "{dtype:?}, rows of {dim} at {stride}: other bits behind padding");
            }
        }
    }
    Ok(())
}

/// A row's loss and gradients do not depend on the other rows, bit for bit.
fn rows_stand_alone(backend: &dyn Backend) -> Outcome {
    let [b, n, columns, dim] = [20, 60, 75, 33];
    for dtype in DType::ALL {
        let mut plain = case(dtype, [b, n, columns, dim], 5);
        let teacher = with_teacher(&plain, 10, 3.0, 6);
        plain.temperatures = temperatures(b, 9);
        let weights = data::labels(b * columns, 4, 8).iter().map(|w| *w as f32).collect();
        plain.loss = GatheredLoss::Contrast(GatheredPositives::Weights(weights), Normalizer::WeightSum);
        for case in [plain, teacher] {
            let all = backend.gathered(&case, true)?;
            for rows in [vec![19], vec![3, 14, 5], (0..b).rev().collect()] {
                let some = backend.gathered(&case.select(&rows), true)?;
                let same = bits_of(&some, 0..rows.len(), dim) == bits_of(&all, rows.iter().copied(), dim);
                ensure!(same, "{dtype:?}: other bits among {} queries", rows.len());
            }
        }
    }
    Ok(())
}

fn no_positives(backend: &dyn Backend) -> Outcome {
    let [b, n, columns, dim] = [4, 20, 40, 6];
    for dtype in DType::ALL {
        let mut plain = case(dtype, [b, n, columns, dim], 3);
        plain.indices.fill(4);
        // The first row has its positive; the second's is padding; the third lists nothing.
        plain.indices[columns] = PADDING;
        plain.indices[2 * columns..3 * columns].fill(PADDING);
        let mut weights = vec![0.0; b * columns];
        weights[35] = 2.0;
        // Weights of padding are not looked at.
        weights[columns] = f32::NAN;
        weights[3 * columns + 39] = 1e-3;
        let weighted = GatheredLoss::Contrast(GatheredPositives::Weights(weights), Normalizer::WeightSum);
        for (case, counted) in [
            (plain.clone(), [true, false, false, true]),
            (GatheredCase { loss: weighted, ..plain.clone() }, [true, false, false, true]),
            (with_teacher(&plain, dim, 2.0, 1), [true, true, false, true]),
        ] {
            let found = check_values(backend, &case)?;
            ensure!(found.counted == counted, "counted rows are {:?}, expected {counted:?}", found.counted);
            for row in (0..b).filter(|row| !counted[*row]) {
                let zero = found.per_row[row] == 0.0
                    && found.temperatures.get(row).is_none_or(|v| *v == 0.0)
                    && found.queries[row * dim..][..dim].iter().all(|v| *v == 0.0);
                ensure!(zero, "row {row} does not count, and has a loss or a gradient");
            }
            ensure!(found.log_sum_exp[2] == f32::NEG_INFINITY, "an empty list has a log-sum-exp");
        }
    }
    Ok(())
}

/// Rows that nobody lists are not looked at.
fn unlisted_rows(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let plain = case(dtype, [6, 20, 40, 12], 3);
        for mut case in [with_teacher(&plain, 12, 2.0, 1), plain] {
            case.indices.iter_mut().filter(|row| **row == 11).for_each(|row| *row = 12);
            let before = backend.gathered(&case, true)?;
            case.bank.set_row(11, f32::NAN);
            if let GatheredLoss::Divergence(_, bank, _) = &mut case.loss {
                bank.set_row(11, f32::INFINITY);
            }
            let after = backend.gathered(&case, true)?;
            let same = bits_of(&before, 0..6, 12) == bits_of(&after, 0..6, 12);
            ensure!(same, "{dtype:?}: a row that nobody lists changes results");
        }
    }
    Ok(())
}

fn expect(backend: &dyn Backend, case: &GatheredCase, parts: &[&str]) -> Outcome {
    for gradients in [true, false] {
        match backend.gathered(case, gradients) {
            Ok(_) => return Err(format!("no error that names {parts:?}")),
            Err(text) => {
                let named = parts.iter().all(|part| text.contains(part));
                ensure!(named, "`{text}` does not name {parts:?}");
            }
        }
    }
    Ok(())
}

fn bad_numbers(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut plain = case(dtype, [5, 20, 40, 12], 1);
        plain.indices[3 * 40 + 7] = 17;
        plain.indices[4 * 40 + 39] = 16;
        let teacher = with_teacher(&plain, 9, 2.0, 1);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (case, name) in [(&plain, "`gathered"), (&teacher, "`gathered")] {
                let op = &name[1..];
                let mut bad = case.clone();
                bad.bank.set_row(17, value);
                bad.bank.set_row(16, value);
                expect(backend, &bad, &[op, "`bank`", "row 16"])?;
                let mut bad = case.clone();
                bad.queries.set_row(4, value);
                expect(backend, &bad, &[op, "`queries`", "row 4"])?;
            }
            let with = |change: &dyn Fn(&mut Stored, &mut Stored)| {
                let mut bad = teacher.clone();
                if let GatheredLoss::Divergence(queries, bank, _) = &mut bad.loss {
                    change(queries, bank);
                }
                bad
            };
            expect(
                backend,
                &with(&|_, bank| bank.set_row(17, value)),
                &["divergence", "`teacher_bank`", "row 17"],
            )?;
            expect(
                backend,
                &with(&|rows, _| rows.set_row(2, value)),
                &["divergence", "`teacher_queries`", "row 2"],
            )?;
        }
        for value in [0.0, -0.1, f32::NAN, f32::INFINITY, 1e-39] {
            let mut bad = plain.clone();
            bad.temperatures = temperatures(5, 1);
            bad.temperatures[3] = value;
            expect(backend, &bad, &["gathered_contrast", "`temperature`", "3"])?;
            let bad = GatheredCase { temperatures: vec![value], ..teacher.clone() };
            expect(backend, &bad, &["gathered_divergence", "`temperature`"])?;
        }
        for row in [20, 21, u32::MAX - 1] {
            for case in [&plain, &teacher] {
                let mut bad = case.clone();
                bad.indices[2 * 40 + 39] = row;
                expect(backend, &bad, &["`indices`", "row 2"])?;
            }
        }
        for value in [-1.0, f32::NAN, f32::INFINITY] {
            let mut weights = vec![1.0; 200];
            let at = (3 * 40..4 * 40).find(|at| is_listed(&plain, *at)).unwrap_or_default();
            weights[at] = value;
            let loss = GatheredLoss::Contrast(GatheredPositives::Weights(weights), Normalizer::Count);
            expect(backend, &GatheredCase { loss, ..plain.clone() }, &["`weights`", "row 3"])?;
        }
    }
    Ok(())
}

fn refusals(backend: &dyn Backend) -> Outcome {
    let plain = case(DType::F32, [3, 10, 6, 4], 0);
    let weights = GatheredLoss::Contrast(GatheredPositives::Weights(vec![1.0; 17]), Normalizer::Count);
    let side = |rows, dim| unit(DType::F32, rows, dim, 1);
    let none = |dim| Stored::new(DType::F32, &[], dim);
    let teacher = |queries, bank, softening| GatheredLoss::Divergence(queries, bank, softening);
    let with = |loss| GatheredCase { loss, ..plain.clone() };
    let bad = [
        (GatheredCase { bank: side(10, 5), ..plain.clone() }, "`bank`"),
        (GatheredCase { bank: none(4), ..plain.clone() }, "`bank`"),
        (GatheredCase { queries: none(4), indices: vec![], ..plain.clone() }, "`queries`"),
        (GatheredCase { indices: vec![0; 17], ..plain.clone() }, "`indices`"),
        (GatheredCase { indices: vec![], columns: 0, ..plain.clone() }, "`indices`"),
        (GatheredCase { temperatures: vec![0.1; 2], ..plain.clone() }, "`temperature`"),
        (with(first(0)), "`positives`"),
        (with(first(7)), "`positives`"),
        (with(weights), "`weights`"),
        (with(teacher(side(2, 4), side(10, 4), 1.0)), "`teacher_queries`"),
        (with(teacher(side(3, 4), side(11, 4), 1.0)), "`teacher_bank`"),
        (with(teacher(side(3, 4), side(10, 5), 1.0)), "`teacher_bank`"),
        (with(teacher(side(3, 4), side(10, 4), 0.0)), "`softening`"),
        (with(teacher(side(3, 4), side(10, 4), f32::NAN)), "`softening`"),
    ];
    bad.iter().try_for_each(|(case, name)| expect(backend, case, &[name]))
}
