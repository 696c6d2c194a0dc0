//! What a ring and class centers must fulfil.
//!
//! A ring holds the rounded rows, bit for bit. Centers, with u = 2⁻²⁴ and z = m c + (1 − m) mean of n rows: a component of
//! the sum errs by n u Σ|v_d|, the mean by u more, so z_d by (n + 4) u (|m c_d| + (1 − m) Σ|v_d|/n); call the norm of that ε.
//! Without a norm that is all. Divided by its norm a component errs by that over |z| and by |z_d|/|z| (ε/|z| + (D + 18) u). It
//! is rounded once more: 2⁻¹¹ (f16) or 2⁻⁸ (bf16) of itself, and what is subnormal in f16 by 2⁻²⁵.

use consonance::cuda::DType;
use consonance_reference::bank as reference;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, Batch, CentersCase, PushCase, Pushed};
use crate::data;
use crate::stored::Stored;

const U: f64 = 1.0 / 16_777_216.0;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("bank: pushes", pushes),
    ("bank: refused pushes", refused_pushes),
    ("bank: centers", centers),
    ("bank: centers behind padding", padding),
    ("bank: centers out of range", bad_numbers),
    ("bank: refused centers", refused_centers),
];

fn batch(dtype: DType, rows: usize, dim: usize, seed: u64, full: bool) -> Batch {
    let values = data::normal(rows, dim, seed);
    Batch {
        // Rows of views lie further apart.
        rows: Stored::padded(dtype, &values, dim, dim + full as usize, full as usize),
        labels: data::labels(rows, 9, seed),
        ids: full.then(|| data::labels(rows, 1000, seed + 1)),
        credible: full.then(|| data::labels(rows, 3, seed + 2).iter().map(|v| *v as u8).collect()),
    }
}

/// The definition's ring, whose rows are rounded to its type.
fn expected(case: &PushCase) -> Pushed {
    let dim = case.batches[0].rows.cols();
    let mut ring = reference::Ring::new(case.capacity);
    for batch in &case.batches {
        for row in 0..batch.rows.rows() {
            let stored = Stored::new(case.dtype, batch.rows.row(row), dim);
            ring.push(reference::Slot {
                embedding: stored.wide(),
                label: batch.labels[row],
                id: batch.ids.as_ref().map_or(u32::MAX, |ids| ids[row]),
                credible: batch.credible.as_ref().is_none_or(|credible| credible[row] != 0),
            });
        }
    }
    let slots = || ring.slots.iter();
    let embedding = |slot: &Option<reference::Slot>| match slot {
        Some(slot) => slot.embedding.iter().map(|v| *v as f32).collect(),
        None => vec![0.0; dim],
    };
    Pushed {
        keys: slots().flat_map(embedding).collect(),
        labels: slots().map(|slot| slot.as_ref().map_or(0, |slot| slot.label)).collect(),
        ids: slots().map(|slot| slot.as_ref().map_or(u32::MAX, |slot| slot.id)).collect(),
        credible: slots().map(|slot| u8::from(slot.as_ref().is_some_and(|slot| slot.credible))).collect(),
    }
}

/// Rings that are filled in part, filled up, and run round; every pair of types.
fn pushes(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for from in DType::ALL {
            for (capacity, dim, sizes) in [
                (1, 3, vec![1, 1]),
                (7, 5, vec![3]),
                (10, 33, vec![6, 10, 3, 10, 1]),
                (40, 8, vec![40, 39, 40]),
            ] {
                let batches = sizes.iter().zip(0..).map(|(rows, turn): (&usize, u64)| {
                    batch(from, *rows, dim, 10 * turn + capacity as u64, turn % 2 == 1)
                });
                let case = PushCase { dtype, capacity, batches: batches.collect() };
                let (got, expected) = (backend.push(&case)?, expected(&case));
                let bits = |keys: &[f32]| keys.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
                let same = bits(&got.keys) == bits(&expected.keys)
                    && (&got.labels, &got.ids, &got.credible)
                        == (&expected.labels, &expected.ids, &expected.credible);
                ensure!(same, "{from:?} into {capacity} slots of {dtype:?}, {sizes:?}: {got:?}");
            }
        }
    }
    Ok(())
}

fn refused_pushes(backend: &dyn Backend) -> Outcome {
    let good = PushCase { dtype: DType::F32, capacity: 4, batches: vec![batch(DType::F32, 3, 5, 1, true)] };
    let with = |change: &dyn Fn(&mut Batch)| {
        let mut case = good.clone();
        change(&mut case.batches[0]);
        case
    };
    for (case, name) in [
        (with(&|batch| batch.labels = vec![1; 2]), "`labels`"),
        (with(&|batch| batch.ids = Some(vec![1; 2])), "`ids`"),
        (with(&|batch| batch.credible = Some(vec![1; 2])), "`credible`"),
        (with(&|batch| *batch = self::batch(DType::F32, 5, 5, 1, false)), "`embeddings`"),
    ] {
        match backend.push(&case) {
            Ok(_) => return Err(format!("no error that names {name}")),
            Err(text) => ensure!(text.contains(name), "`{text}` does not name {name}"),
        }
    }
    Ok(())
}

/// Rows of an even number of elements: simulated devices know global memory by words of four bytes.
fn case(dtype: DType, [b, classes, dim]: [usize; 3], seed: u64) -> CentersCase {
    let labels = data::labels(b, classes as u32 + 2, seed);
    CentersCase {
        centers: Stored::new(dtype, &data::unit(classes, dim, seed + 1), dim),
        // Labels beyond the centers stand for rows of no class here.
        labels: labels.iter().map(|label| if *label < classes as u32 { *label } else { u32::MAX }).collect(),
        rows: Stored::new(dtype, &data::unit(b, dim, seed + 2), dim),
        momentum: 0.9,
        normalize: true,
    }
}

fn centers(backend: &dyn Backend) -> Outcome {
    for (seed, shape) in
        (0..).zip([[1, 1, 2], [9, 3, 6], [5, 40, 64], [150, 7, 8], [300, 2, 34], [3, 2, 700]])
    {
        for dtype in DType::ALL {
            for momentum in [0.0, 0.5, 0.99, 1.0] {
                for normalize in [true, false] {
                    check(backend, &CentersCase { momentum, normalize, ..case(dtype, shape, seed) })?;
                }
            }
        }
    }
    Ok(())
}

fn check(backend: &dyn Backend, case: &CentersCase) -> Outcome {
    let (got, outcome) = backend.update_centers(case)?;
    outcome?;
    let (dim, m) = (case.centers.cols(), f64::from(case.momentum));
    let (before, rows) = (case.centers.wide(), case.rows.wide());
    let mut expected = before.clone();
    reference::update_centers(&mut expected, dim, &case.labels, &rows, m, case.normalize);
    let (relative, absolute) = match case.centers.dtype() {
        DType::F32 => (0.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25)),
        DType::BF16 => (1.0 / 256.0, 0.0),
    };
    let mut worst = 0.0f64;
    for class in 0..case.centers.rows() {
        let range = class * dim..(class + 1) * dim;
        let members: Vec<usize> =
            (0..case.labels.len()).filter(|at| case.labels[*at] as usize == class).collect();
        if members.is_empty() {
            let same =
                got[range].iter().zip(case.centers.row(class)).all(|(a, b)| a.to_bits() == b.to_bits());
            ensure!(same, "class {class} has no row, and its center changes");
            continue;
        }
        let n = members.len() as f64;
        let mean =
            |d: usize, f: fn(f64) -> f64| members.iter().map(|at| f(rows[at * dim + d])).sum::<f64>() / n;
        let sizes: Vec<f64> =
            (0..dim).map(|d| m * before[class * dim + d].abs() + (1.0 - m) * mean(d, f64::abs)).collect();
        let z = (0..dim).map(|d| m * before[class * dim + d] + (1.0 - m) * mean(d, |v| v));
        let norm = if case.normalize { z.map(|z| z * z).sum::<f64>().sqrt() } else { 1.0 };
        let of_terms = (n + 4.0) * U / norm;
        let error = of_terms * sizes.iter().map(|s| s * s).sum::<f64>().sqrt();
        let of_norm = if case.normalize { error + (dim + 18) as f64 * U } else { U };
        for ((got, expected), size) in got[range.clone()].iter().zip(&expected[range]).zip(&sizes) {
            let exact = of_terms * size + expected.abs() * of_norm;
            let bound = exact + relative * (expected.abs() + exact) + absolute;
            let difference = (f64::from(*got) - expected).abs();
            if difference > 0.0 {
                let ratio = difference / bound;
                ensure!(ratio <= 1.0, "class {class}: {got}, expected {expected}: {ratio:.2} bounds");
                worst = worst.max(ratio);
            }
        }
    }
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        let (b, classes) = (case.labels.len(), case.centers.rows());
        println!("{}: {classes} centers of {b} rows: error / bound {worst:.3}", backend.name());
    }
    Ok(())
}

/// Rows behind padding that holds NaN.
fn padding(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let plain = case(dtype, [20, 6, 8], 4);
        let pad = |rows: &Stored| {
            let values: Vec<f32> = (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect();
            Stored::padded(dtype, &values, 8, 14, 2)
        };
        let padded = CentersCase { centers: pad(&plain.centers), rows: pad(&plain.rows), ..plain.clone() };
        let (a, b) = (backend.update_centers(&plain)?.0, backend.update_centers(&padded)?.0);
        let same = a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure!(same, "{dtype:?}: other bits behind padding");
    }
    Ok(())
}

/// The error names the argument, and the centers are as they were.
fn expect(backend: &dyn Backend, case: &CentersCase, parts: &[&str]) -> Outcome {
    let (centers, outcome) = backend.update_centers(case)?;
    let Err(text) = outcome else { return Err(format!("no error that names {parts:?}")) };
    ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
    let before: Vec<f32> = (0..case.centers.rows()).flat_map(|row| case.centers.row(row).to_vec()).collect();
    let same = centers.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits());
    ensure!(same, "{parts:?}: the centers change on an error");
    Ok(())
}

fn bad_numbers(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut good = case(dtype, [8, 5, 12], 3);
        good.labels = vec![0, 1, 2, 3, 4, 2, 1, 2];
        for value in [f32::NAN, f32::INFINITY] {
            let mut bad = good.clone();
            bad.rows.set_row(5, value);
            expect(backend, &bad, &["update_centers", "`rows`", "row 5"])?;
            let mut bad = good.clone();
            bad.centers.set_row(3, value);
            expect(backend, &bad, &["update_centers", "`centers`", "class 3"])?;
        }
        for label in [5, u32::MAX - 1] {
            let mut bad = good.clone();
            bad.labels[6] = label;
            expect(backend, &bad, &["`labels`", "position 6"])?;
        }
        let mut bad = good.clone();
        bad.centers.set_row(4, 0.0);
        bad.rows.set_row(4, 0.0);
        expect(backend, &bad, &["`centers`", "class 4", "zero"])?;
        // Without a norm that is a center like any other.
        bad.normalize = false;
        check(backend, &bad)?;
    }
    Ok(())
}

fn refused_centers(backend: &dyn Backend) -> Outcome {
    let good = case(DType::F32, [3, 10, 4], 0);
    let side = |rows, dim| Stored::new(DType::F32, &data::unit(rows, dim, 1), dim);
    let bad = [
        (CentersCase { rows: side(3, 6), ..good.clone() }, "`centers`"),
        (CentersCase { rows: side(4, 4), ..good.clone() }, "update_centers"),
        (CentersCase { momentum: -0.1, ..good.clone() }, "`momentum`"),
        (CentersCase { momentum: f32::NAN, ..good.clone() }, "`momentum`"),
    ];
    bad.iter().try_for_each(|(case, name)| expect(backend, case, &[name]))
}
