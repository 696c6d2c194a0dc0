//! The same ops done by kernels on a simulated device, against the CPU backend.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor, Var};
use consonance::{
    GatheredPositives, Normalizer, Temperature, gathered_contrast, gathered_divergence, update_rows,
    with_kernels_on,
};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder};

use super::{B, CPU, D, K, N, indices, matrix, weights, wide};

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let folder = kernel_folder();
    let sources = ["gathered.cu", "gathered_update.cu"].map(|file| folder.join(file));
    let library = Library::compile(&sources, &[folder.join("include")], &[]);
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

/// Two results within what both bounds allow, and far closer than any mistake.
fn assert_same(a: &Tensor, b: &Tensor, relative: f64) {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    for (a, b) in wide(a).iter().zip(wide(b)) {
        assert!((a - b).abs() <= relative * b.abs().max(1.0), "{a} and {b}");
    }
}

#[test]
fn contrasts_of_kernels_are_those_of_the_cpu() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let stored = |x: Tensor| x.to_dtype(dtype).unwrap();
        let queries = Var::from_tensor(&stored(matrix(B, 20, 1))).unwrap();
        // A view of columns, read at its place, and lists of another type.
        let bank = stored(matrix(N + 2, 33, 2)).narrow(0, 1, N).unwrap().narrow(1, 4, 20).unwrap();
        let tau = Var::new(&[0.3f32; B], &CPU).unwrap();
        let weights = stored(Tensor::from_vec(weights(), (B, K), &CPU).unwrap());
        let lists = indices().to_dtype(DType::I64).unwrap();
        let run = || {
            let positives = GatheredPositives::Weights(weights.clone());
            let temperature = Temperature::Learned(tau.as_tensor().clone());
            let rows = (queries.as_tensor() * 2.0).unwrap();
            let found =
                gathered_contrast(&rows, &bank, &lists, &temperature, &positives, Normalizer::WeightSum)
                    .unwrap();
            let grads = found.loss.backward().unwrap();
            assert!(grads.get(&bank).is_none());
            (found, grads.get(&queries).unwrap().clone(), grads.get(&tau).unwrap().clone())
        };
        let expected = run();
        let Some((got, launched)) = with_kernels(run) else { return };
        assert_eq!(got.0.anchors, expected.0.anchors);
        assert_same(&got.0.per_row, &expected.0.per_row, 1e-4);
        assert_same(&got.0.log_sum_exp, &expected.0.log_sum_exp, 1e-4);
        assert_same(&got.1, &expected.1, if dtype == DType::F32 { 1e-4 } else { 1e-2 });
        assert_same(&got.2, &expected.2, 1e-3);
        assert!(launched.iter().any(|name| name.starts_with("gathered_contrast")), "{launched:?}");
    }
}

#[test]
fn without_a_tracked_input_kernels_sum_no_gradient() {
    let run = || {
        let positives = GatheredPositives::First(2);
        let tau = Temperature::Fixed(0.1);
        let (queries, bank) = (matrix(B, D, 1), matrix(N, D, 2));
        gathered_contrast(&queries, &bank, &indices(), &tau, &positives, Normalizer::Count).unwrap()
    };
    let expected = run();
    let Some((got, _)) = with_kernels(run) else { return };
    assert!(!got.per_row.track_op());
    assert_same(&got.per_row, &expected.per_row, 1e-4);
}

#[test]
fn divergences_of_kernels_are_those_of_the_cpu() {
    let (queries, other) = (Var::from_tensor(&matrix(B, D, 1)).unwrap(), matrix(B, 5, 3));
    let (bank, other_bank) = (matrix(N, D, 2), matrix(N, 5, 4));
    let run = || {
        let student = (queries.as_tensor(), &bank);
        let found = gathered_divergence(student, (&other, &other_bank), &indices(), 0.1, 3.0).unwrap();
        let gradient = found.loss.backward().unwrap().get(&queries).unwrap().clone();
        (found, gradient)
    };
    let expected = run();
    let Some((got, launched)) = with_kernels(run) else { return };
    assert_eq!(got.0.anchors, expected.0.anchors);
    assert_same(&got.0.per_row, &expected.0.per_row, 1e-3);
    assert_same(&got.1, &expected.1, 1e-3);
    assert!(launched.contains(&"gathered_divergence_f32".to_owned()), "{launched:?}");
}

#[test]
fn updates_of_kernels_are_written_back() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let rows = matrix(4, D, 5);
        let slots = Tensor::new(&[3i64, 7, 3, 11], &CPU).unwrap();
        let run = || {
            let all = matrix(N, D, 2).to_dtype(dtype).unwrap();
            update_rows(&all.narrow(0, 6, 20).unwrap(), &slots, &rows, 0.5).unwrap();
            all
        };
        let expected = run();
        let Some((got, launched)) = with_kernels(run) else { return };
        assert_same(&got, &expected, if dtype == DType::F32 { 1e-6 } else { 1e-2 });
        assert!(launched.iter().all(|name| name.starts_with("gathered_update")), "{launched:?}");
    }
}

#[test]
fn errors_of_kernels_name_the_argument() {
    let (queries, bank) = (matrix(B, D, 1), matrix(N, D, 2));
    let tau = Temperature::Fixed(0.1);
    let first = GatheredPositives::First(1);
    let run = |queries: &Tensor, bank: &Tensor, indices: &Tensor| {
        let text =
            with_kernels(|| gathered_contrast(queries, bank, indices, &tau, &first, Normalizer::Count));
        text.map(|(result, _)| result.unwrap_err().to_string())
    };
    let Some(text) = run(&queries, &bank.narrow(0, 0, 9).unwrap(), &indices()) else { return };
    assert!(text.starts_with("gathered_contrast: `indices`"), "{text}");
    let text = run(&queries, &(&bank / 0.0).unwrap(), &indices()).unwrap();
    assert!(text.starts_with("gathered_contrast: `bank` row"), "{text}");
    let text = run(&queries, &bank.to_dtype(DType::BF16).unwrap(), &indices()).unwrap();
    assert!(text.contains("`bank`") && text.contains("convert one of them"), "{text}");
    let before = bank.to_vec2::<f32>().unwrap();
    let slots = Tensor::new(&[N as u32], &CPU).unwrap();
    let (outcome, _) = with_kernels(|| update_rows(&bank, &slots, &matrix(1, D, 3), 0.5)).unwrap();
    let text = outcome.unwrap_err().to_string();
    assert!(text.starts_with("update_rows: `indices`"), "{text}");
    assert_eq!(bank.to_vec2::<f32>().unwrap(), before);
}
