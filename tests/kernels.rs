//! The ops done by kernels, on a simulated device: every layout of tensors, labels, masks, gradients in the graph,
//! and errors, against the CPU backend.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "kernels/clusters.rs"]
mod clusters;
#[path = "kernels/contrast.rs"]
mod contrast;
#[path = "kernels/discrimination.rs"]
mod discrimination;
#[path = "kernels/soft_assignment.rs"]
mod soft_assignment;

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    ApVariant, Metric, Neighbors, NeighborsOptions, RankingOptions, neighbors, ranking, with_kernels_on,
};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder, kernel_sources};
use consonance_testkit::data;

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let library = Library::compile(&kernel_sources(), &[kernel_folder().join("include")], &[]);
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

fn integers(rows: usize, cols: usize, seed: u64, dtype: DType) -> Tensor {
    let values = data::integers(rows, cols, seed);
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn labels(rows: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::labels(rows, 4, seed), rows, &Device::Cpu).unwrap()
}

fn bits(found: &Neighbors) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    (found.scores.to_vec2().unwrap(), found.indices.to_vec2().unwrap())
}

#[test]
fn every_layout_gives_the_bits_of_the_cpu() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (left, right) = (integers(30, 20, 1, dtype), integers(90, 20, 2, dtype));
        let views = [
            (left.clone(), right.clone()),
            (left.narrow(0, 3, 18).unwrap(), right.narrow(0, 7, 70).unwrap()),
            (left.narrow(1, 5, 9).unwrap(), right.narrow(1, 1, 9).unwrap()),
            (left.t().unwrap().narrow(1, 2, 17).unwrap(), right.t().unwrap().narrow(1, 60, 17).unwrap()),
        ];
        for (queries, bank) in views {
            let (b, n) = (queries.dims()[0], bank.dims()[0]);
            let mask = labels(n, 3).to_dtype(DType::U8).unwrap();
            let options = NeighborsOptions::new(5)
                .metric(Metric::SquaredL2)
                .same_label(&labels(b, 4).to_dtype(DType::I64).unwrap(), &labels(n, 5))
                .exclude_same_id(&labels(b, 6), &labels(n, 7))
                .allow(&mask);
            let expected = bits(&neighbors(&queries, &bank, &options).unwrap());
            let Some((found, launched)) = with_kernels(|| neighbors(&queries, &bank, &options)) else {
                return;
            };
            assert_eq!(bits(&found.unwrap()), expected);
            assert!(launched.iter().any(|name| name.starts_with("neighbors_rank")), "{launched:?}");
        }
    }
}

#[test]
fn gradients_of_kernels_arrive_in_the_graph_and_in_the_type_of_the_argument() {
    for dtype in [DType::F32, DType::BF16] {
        let queries = Var::from_tensor(&integers(9, 12, 1, dtype)).unwrap();
        let bank = Var::from_tensor(&integers(40, 12, 2, dtype)).unwrap();
        let weights = Tensor::from_vec(data::integers(9, 4, 3), (9, 4), &Device::Cpu).unwrap();
        // A part of the bank, through a linear map, so that the graph goes on behind the op.
        let loss = || -> candle_core::Result<(Tensor, Tensor)> {
            let found =
                neighbors(&(queries.as_tensor() * 2.0)?, &bank.narrow(0, 3, 30)?, &NeighborsOptions::new(4))?;
            let grads = (found.scores * &weights)?.sum_all()?.backward()?;
            let take = |var: &Var| grads.get(var).unwrap().clone();
            Ok((take(&queries), take(&bank)))
        };
        let expected = loss().unwrap();
        let Some((found, launched)) = with_kernels(loss) else { return };
        let found = found.unwrap();
        for (got, expected) in [(&found.0, &expected.0), (&found.1, &expected.1)] {
            assert_eq!(got.dtype(), dtype);
            let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
            // Integers: exact in any order of summation, and representable.
            assert_eq!(wide(got), wide(expected));
        }
        assert!(launched.iter().any(|name| name.starts_with("neighbors_gradient_keys")), "{launched:?}");
    }
    // A bank that is not tracked costs nothing.
    let queries = Var::from_tensor(&integers(3, 5, 1, DType::F32)).unwrap();
    let bank = integers(8, 5, 2, DType::F32);
    let run = || neighbors(&queries, &bank, &NeighborsOptions::new(2))?.scores.sum_all()?.backward();
    let Some((grads, launched)) = with_kernels(run) else { return };
    assert!(grads.unwrap().get(&bank).is_none());
    assert!(!launched.iter().any(|name| name.starts_with("neighbors_gradient_keys")), "{launched:?}");
}

#[test]
fn rankings_of_kernels_are_those_of_the_cpu() {
    let (queries, gallery) = (integers(20, 6, 1, DType::F16), integers(150, 6, 2, DType::F16));
    let junk = labels(150, 4).to_dtype(DType::I64).unwrap();
    let junk = ((junk + 1.0).unwrap() - 2.0).unwrap();
    let options = RankingOptions::new(&labels(20, 3).to_dtype(DType::I64).unwrap(), &junk)
        .metric(Metric::Cosine)
        .variant(ApVariant::Trapezoid)
        .exclude_same_camera(&labels(20, 5), &labels(150, 6))
        .keep_ranks();
    let plain = options.metric(Metric::InnerProduct);
    let expected = ranking(&queries, &gallery, &plain).unwrap();
    let Some((found, launched)) = with_kernels(|| ranking(&queries, &gallery, &plain)) else { return };
    assert_eq!(found.unwrap(), expected);
    assert!(launched.contains(&"ranking_count_f16".to_owned()), "{launched:?}");
}

#[test]
fn errors_of_kernels_name_the_argument() {
    let (queries, bank) = (integers(3, 5, 1, DType::F32), integers(8, 5, 2, DType::F32));
    let spoilt = (&bank / 0.0).unwrap();
    let run = || neighbors(&queries, &spoilt, &NeighborsOptions::new(2)).unwrap_err().to_string();
    let Some((text, _)) = with_kernels(run) else { return };
    assert!(text.starts_with("neighbors: `bank` row 0"), "{text}");
    let unchecked = NeighborsOptions::new(2).check_rows(false);
    let (found, _) = with_kernels(|| neighbors(&queries, &spoilt, &unchecked)).unwrap();
    assert_eq!(found.unwrap().indices.to_vec2::<u32>().unwrap(), [[consonance::NO_NEIGHBOR; 2]; 3]);
    let mixed = bank.to_dtype(DType::BF16).unwrap();
    let (text, _) =
        with_kernels(|| neighbors(&queries, &mixed, &NeighborsOptions::new(2)).unwrap_err().to_string())
            .unwrap();
    assert!(text.contains("`bank`") && text.contains("convert one of them"), "{text}");
    let negative = Tensor::new(&[-1i64, 0, 0], &Device::Cpu).unwrap();
    let classes = NeighborsOptions::new(2).same_label(&negative, &labels(8, 1));
    let (text, _) = with_kernels(|| neighbors(&queries, &bank, &classes).unwrap_err().to_string()).unwrap();
    assert!(text.contains("`query_labels`"), "{text}");
}
