//! Pushes and centers by kernels on a simulated device: the contents of the CPU's, bit for bit.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor};
use consonance::{Bank, Entries, update_centers, with_kernels_on};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder};
use consonance_testkit::data;

use super::{DEVICE, matrix};

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let folder = kernel_folder();
    let library = Library::compile(&[folder.join("bank.cu")], &[folder.join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

/// Runs `f` with kernels and says which were launched, or `None` without a compiler.
fn with_kernels<R>(f: impl FnOnce() -> R) -> Option<(R, Vec<String>)> {
    if skipped_without_compiler() {
        return None;
    }
    let executor = Arc::new(Simt::new(LIBRARY.clone(), 4, 7));
    let result = with_kernels_on(executor.clone(), f);
    Some((result, executor.launched().into_iter().collect()))
}

type Contents = (Vec<Vec<f32>>, Vec<u32>, Vec<u32>, Vec<u8>, usize, usize);

fn contents(bank: &Bank) -> Contents {
    (
        bank.keys().to_dtype(DType::F32).unwrap().to_vec2().unwrap(),
        bank.labels().to_vec1().unwrap(),
        bank.ids().to_vec1().unwrap(),
        bank.valid().to_vec1().unwrap(),
        bank.head(),
        bank.len(),
    )
}

#[test]
fn pushes_by_kernels_give_the_bank_of_the_cpu_bit_for_bit() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for from in [DType::F32, DType::F16, DType::BF16] {
            let run = || {
                let mut bank = Bank::new(10, 6, dtype, &DEVICE).unwrap();
                // Batches that go round, and one larger than the bank; views of columns and of rows.
                for (step, rows) in [4usize, 7, 25, 3, 10].into_iter().enumerate() {
                    let seed = step as u64;
                    let x = matrix(&data::normal(rows + 2, 9, seed), rows + 2, 9).to_dtype(from).unwrap();
                    let view = x.narrow(0, 1, rows).unwrap().narrow(1, 2, 6).unwrap();
                    let labels = Tensor::new(data::labels(rows, 9, seed), &DEVICE).unwrap();
                    let ids = Tensor::new(data::labels(rows, 99, seed), &DEVICE).unwrap();
                    let credible = data::labels(rows, 3, seed).iter().map(|v| *v as u8).collect::<Vec<u8>>();
                    let credible = Tensor::new(credible, &DEVICE).unwrap();
                    let all = step % 2 == 0;
                    bank.push_entries(&Entries {
                        embeddings: &view,
                        labels: &labels,
                        ids: all.then_some(&ids),
                        credible: all.then_some(&credible),
                    })
                    .unwrap();
                }
                contents(&bank)
            };
            let expected = run();
            let Some((got, launched)) = with_kernels(run) else { return };
            assert_eq!(got, expected, "{from:?} into {dtype:?}");
            assert!(launched.iter().all(|name| name.starts_with("bank_push")), "{launched:?}");
        }
    }
}

#[test]
fn a_push_that_is_refused_changes_nothing() {
    let labels = Tensor::new(&[0u32, 1], &DEVICE).unwrap();
    let run = || {
        let mut bank = Bank::new(3, 2, DType::F16, &DEVICE).unwrap();
        // Finite in f32, infinite in the bank's f16.
        let text = bank.push(&matrix(&[1.0, 2.0, 1e6, 0.0], 2, 2), &labels).unwrap_err().to_string();
        (text, contents(&bank))
    };
    let expected = run();
    let Some((got, launched)) = with_kernels(run) else { return };
    assert_eq!(got, expected);
    assert!(launched.is_empty());
}

#[test]
fn the_callers_memory_is_left_alone_by_kernels() {
    let x = matrix(&[1.0, 2.0, 3.0], 3, 1);
    let labels = Tensor::new(&[4u32, 5, 6], &DEVICE).unwrap();
    let run = || {
        let mut bank = Bank::from_embeddings(&x, &labels).unwrap();
        bank.push(&matrix(&[9.0], 1, 1), &labels.narrow(0, 0, 1).unwrap()).unwrap();
        bank.keys().to_vec2::<f32>().unwrap()
    };
    let Some((got, _)) = with_kernels(run) else { return };
    assert_eq!(got, [[9.0], [2.0], [3.0]]);
    assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0], [2.0], [3.0]]);
    assert_eq!(labels.to_vec1::<u32>().unwrap(), [4, 5, 6]);
}

#[test]
fn centers_by_kernels_are_those_of_the_cpu() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let labels = Tensor::new(data::labels(30, 7, 3), &DEVICE).unwrap();
        let rows = matrix(&data::unit(30, 12, 2), 30, 12);
        let run = || {
            let all = matrix(&data::unit(9, 12, 1), 9, 12).to_dtype(dtype).unwrap();
            update_centers(&all.narrow(0, 1, 7).unwrap(), &labels, &rows, 0.9, true).unwrap();
            all.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap()
        };
        let expected = run();
        let Some((got, launched)) = with_kernels(run) else { return };
        // One rounding to the storage type, of values that differ in their last bits.
        let most = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
        for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
            assert!((got - expected).abs() <= most, "{got}, expected {expected}");
        }
        assert!(launched.iter().all(|name| name.starts_with("bank_centers")), "{launched:?}");
    }
    let run = || {
        let centers = matrix(&data::unit(2, 4, 1), 2, 4);
        let labels = Tensor::new(&[0u32, 2], &DEVICE).unwrap();
        let rows = matrix(&data::unit(2, 4, 2), 2, 4);
        update_centers(&centers, &labels, &rows, 0.5, true).unwrap_err().to_string()
    };
    let Some((text, _)) = with_kernels(run) else { return };
    assert!(text.starts_with("update_centers: `labels`"), "{text}");
}
