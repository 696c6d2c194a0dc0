//! What the update of bank rows must fulfil.
//!
//! Bound: u = 2⁻²⁴, z = m y + (1 − m) v with 1 − m rounded and one fused product and sum, so each component errs by
//! 3 u (|m y_d| + |(1 − m) v_d|); call the norm of that ε. The squared norm is a sum of D fused squares, joined over lanes:
//! the norm errs by ε + (D + 16) u |z|. A component of z/|z| errs by 3 u (…)/|z| + |z_d|/|z| (ε/|z| + (D + 18) u), and is
//! rounded once more: 2⁻¹¹ (f16) or 2⁻⁸ (bf16) of itself, and what is subnormal in f16 by 2⁻²⁵.

use consonance::cuda::DType;
use consonance_cpu::gathered::PADDING;
use consonance_reference::gathered as reference;

use super::{Outcome, ensure};
use crate::backend::{Backend, UpdateCase};
use crate::data;
use crate::stored::Stored;

const U: f64 = 1.0 / 16_777_216.0;

/// Rows of an even number of elements, so that simulated devices, which know global memory by words of four bytes, see
/// that blocks write apart.
fn case(dtype: DType, [b, n, dim]: [usize; 3], seed: u64) -> UpdateCase {
    let bank = Stored::new(dtype, &data::unit(n, dim, seed + 1), dim);
    let rows = Stored::new(dtype, &data::unit(b, dim, seed + 2), dim);
    // Distinct: multiples of a number that has no factor of n.
    let step = (n / 2..n).find(|step| gcd(*step, n) == 1).unwrap_or(1);
    let indices = (0..b).map(|at| ((at * step) % n) as u32).collect();
    UpdateCase { bank, indices, rows, momentum: 0.5 }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn updated(backend: &dyn Backend, case: &UpdateCase) -> Result<Vec<f32>, String> {
    let (bank, outcome) = backend.update_rows(case)?;
    outcome.map(|()| bank)
}

fn plain(rows: &Stored) -> Vec<f32> {
    (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
}

/// Every updated row is in its bound, every other has its bits.
pub(super) fn values(backend: &dyn Backend) -> Outcome {
    for (seed, shape) in
        (0..).zip([[1, 1, 2], [3, 7, 6], [5, 40, 64], [4, 9, 34], [130, 300, 8], [2, 5, 700]])
    {
        for dtype in DType::ALL {
            for momentum in [0.0, 0.5, 0.99, 1.0] {
                let mut case = UpdateCase { momentum, ..case(dtype, shape, seed) };
                if shape[0] > 2 {
                    case.indices[1] = PADDING;
                }
                check(backend, &case)?;
            }
        }
    }
    Ok(())
}

fn check(backend: &dyn Backend, case: &UpdateCase) -> Outcome {
    let got = updated(backend, case)?;
    let dim = case.bank.cols();
    let (before, rows) = (case.bank.wide(), case.rows.wide());
    let mut expected = before.clone();
    let m = f64::from(case.momentum);
    reference::update_rows(&mut expected, dim, &case.indices, &rows, m);
    let (relative, absolute) = match case.bank.dtype() {
        DType::F32 => (0.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25)),
        DType::BF16 => (1.0 / 256.0, 0.0),
    };
    let mut worst = 0.0f64;
    for row in 0..case.bank.rows() {
        let range = row * dim..(row + 1) * dim;
        let Some(position) = case.indices.iter().position(|index| *index as usize == row) else {
            let old = case.bank.row(row);
            ensure!(same(&got[range], old), "row {row} is in no list, and changes");
            continue;
        };
        let v = &rows[position * dim..][..dim];
        let sizes: Vec<f64> =
            before[range.clone()].iter().zip(v).map(|(y, v)| m * y.abs() + (1.0 - m) * v.abs()).collect();
        let z = before[range.clone()].iter().zip(v).map(|(y, v)| m * y + (1.0 - m) * v);
        let norm = z.map(|z| z * z).sum::<f64>().sqrt();
        let error = 3.0 * U * sizes.iter().map(|s| s * s).sum::<f64>().sqrt() / norm;
        for ((got, expected), size) in got[range.clone()].iter().zip(&expected[range]).zip(&sizes) {
            let of_norm = error + (dim + 18) as f64 * U;
            let exact = 3.0 * U * size / norm + expected.abs() * of_norm;
            let bound = exact + relative * (expected.abs() + exact) + absolute;
            let difference = (f64::from(*got) - expected).abs();
            if difference > 0.0 {
                let ratio = difference / bound;
                ensure!(ratio <= 1.0, "row {row}: {got}, expected {expected}: {ratio:.2} bounds");
                worst = worst.max(ratio);
            }
        }
    }
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        let (b, m) = (case.indices.len(), case.momentum);
        println!("{}: update of {b}, momentum {m}: error / bound {worst:.3}", backend.name());
    }
    Ok(())
}

/// Positions of one index are applied one after the other, wherever they stand.
pub(super) fn repeated(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for [b, n, dim] in [[6, 4, 10], [150, 40, 6], [300, 3, 40]] {
            let mut all = case(dtype, [b, n, dim], 9);
            all.indices = data::labels(b, n as u32, 11);
            let got = updated(backend, &all)?;
            let mut bank = all.bank.clone();
            for position in 0..b {
                let one = UpdateCase {
                    bank: bank.clone(),
                    indices: vec![all.indices[position]],
                    rows: all.rows.select(&[position]),
                    ..all
                };
                // Of long lists one row is followed.
                if b > 10 && all.indices[position] != all.indices[b - 1] {
                    continue;
                }
                bank = Stored::new(dtype, &updated(backend, &one)?, dim);
            }
            let rows: Vec<usize> = if b > 10 { vec![all.indices[b - 1] as usize] } else { (0..n).collect() };
            for row in rows {
                let apart = &plain(&bank)[row * dim..][..dim];
                let together = &got[row * dim..][..dim];
                ensure!(
                    same(apart, together),
                    "{dtype:?}: row {row} of {n}: {together:?}, one by one {apart:?}"
                );
            }
        }
    }
    Ok(())
}

/// Rows behind padding that holds NaN. The bank of the CPU backend is dense, and is so here.
pub(super) fn padding(backend: &dyn Backend) -> Outcome {
    for (dim, stride, offset) in [(6, 10, 2), (24, 32, 8)] {
        for dtype in DType::ALL {
            let plain_case = case(dtype, [5, 30, dim], 7);
            let pad = |rows: &Stored| Stored::padded(dtype, &plain(rows), dim, stride, offset);
            let padded =
                UpdateCase { bank: pad(&plain_case.bank), rows: pad(&plain_case.rows), ..plain_case.clone() };
            let (a, b) = (updated(backend, &plain_case)?, updated(backend, &padded)?);
            ensure!(same(&a, &b), "{dtype:?}, rows of {dim} at {stride}: other bits behind padding");
        }
    }
    Ok(())
}

/// The error names the argument, and the bank is as it was.
fn expect(backend: &dyn Backend, case: &UpdateCase, parts: &[&str]) -> Outcome {
    let (bank, outcome) = backend.update_rows(case)?;
    let Err(text) = outcome else { return Err(format!("no error that names {parts:?}")) };
    ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
    ensure!(same(&bank, &plain(&case.bank)), "{parts:?}: the bank changes on an error");
    Ok(())
}

pub(super) fn bad_numbers(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let good = case(dtype, [6, 20, 12], 3);
        for value in [f32::NAN, f32::INFINITY] {
            let mut bad = good.clone();
            bad.rows.set_row(4, value);
            expect(backend, &bad, &["update_rows", "`rows`", "row 4"])?;
            let mut bad = good.clone();
            bad.bank.set_row(good.indices[3] as usize, value);
            expect(backend, &bad, &["update_rows", "`bank`", &format!("row {}", good.indices[3])])?;
        }
        for index in [20, u32::MAX - 1] {
            let mut bad = good.clone();
            bad.indices[5] = index;
            expect(backend, &bad, &["`indices`", "position 5"])?;
        }
        // The old row and the new one cancel, here alone and there after another position.
        let mut bad = good.clone();
        bad.bank.set_row(good.indices[2] as usize, 0.0);
        bad.rows.set_row(2, 0.0);
        expect(backend, &bad, &["`rows`", "row 2", "zero"])?;
        let mut bad = good.clone();
        bad.momentum = 0.0;
        bad.indices[5] = bad.indices[1];
        bad.rows.set_row(5, 0.0);
        expect(backend, &bad, &["`rows`", "row 5", "zero"])?;
    }
    Ok(())
}

pub(super) fn refusals(backend: &dyn Backend) -> Outcome {
    let good = case(DType::F32, [3, 10, 4], 0);
    let side = |rows, dim| Stored::new(DType::F32, &data::unit(rows, dim, 1), dim);
    let bad = [
        (UpdateCase { rows: side(3, 5), ..good.clone() }, "`bank`"),
        (UpdateCase { rows: side(4, 4), ..good.clone() }, "update_rows"),
        (UpdateCase { momentum: -0.1, ..good.clone() }, "`momentum`"),
        (UpdateCase { momentum: 1.1, ..good.clone() }, "`momentum`"),
        (UpdateCase { momentum: f32::NAN, ..good.clone() }, "`momentum`"),
    ];
    bad.iter().try_for_each(|(case, name)| expect(backend, case, &[name]))
}
