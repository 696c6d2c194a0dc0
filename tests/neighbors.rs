//! The neighbors op against the definition: ragged shapes, every layout and storage type, gradients, errors.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor, Var};
use consonance::{Error, Metric, NO_NEIGHBOR, NeighborsOptions, neighbors};
use consonance_reference::neighbors as reference;
use consonance_testkit::{data, gradient, threads};
use proptest::prelude::*;

const METRICS: [(Metric, reference::Metric); 3] = [
    (Metric::InnerProduct, reference::Metric::InnerProduct),
    (Metric::Cosine, reference::Metric::Cosine),
    (Metric::SquaredL2, reference::Metric::SquaredL2),
];

fn matrix(x: &[f32], dim: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / dim, dim), &Device::Cpu).unwrap()
}

fn vector(x: &[u32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap()
}

/// The same matrix in another layout.
fn laid_out(x: &Tensor, layout: u32) -> Tensor {
    let (rows, cols) = x.dims2().unwrap();
    let zeros =
        |shape: (usize, usize)| Tensor::full(9f32, shape, &Device::Cpu).unwrap().to_dtype(x.dtype()).unwrap();
    match layout {
        // Rows of a longer matrix.
        1 => Tensor::cat(&[&zeros((3, cols)), x, &zeros((2, cols))], 0).unwrap().narrow(0, 3, rows).unwrap(),
        // Columns of a wider one.
        2 => Tensor::cat(&[&zeros((rows, 2)), x, &zeros((rows, 1))], 1).unwrap().narrow(1, 2, cols).unwrap(),
        // A transpose.
        3 => x.t().unwrap().contiguous().unwrap().t().unwrap(),
        // Some rows and columns of a transpose.
        4 => {
            let wide = Tensor::cat(&[&zeros((rows, 1)), x], 1).unwrap();
            wide.t().unwrap().contiguous().unwrap().t().unwrap().narrow(1, 1, cols).unwrap()
        }
        _ => x.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn integers_agree_with_the_definition_bit_for_bit(
        b in prop_oneof![Just(1usize), Just(13), 2usize..40],
        n in prop_oneof![Just(1usize), Just(127), Just(257), 2usize..100],
        dim in prop_oneof![Just(1usize), Just(31), 2usize..70],
        k in prop_oneof![Just(1usize), Just(64), 2usize..20],
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
        (left, right) in (0u32..5, 0u32..5),
        (l2, classes, exclude, mask) in (any::<bool>(), 0u32..4, any::<bool>(), any::<bool>()),
        seed in 0u64..1000,
    ) {
        let (metric, defined) = METRICS[if l2 { 2 } else { 0 }];
        let (x, y) = (data::integers(b, dim, seed), data::integers(n, dim, seed + 1));
        let (ql, kl) = (data::labels(b, classes, seed + 2), data::labels(n, classes, seed + 3));
        let (qi, ki) = (data::labels(b, 5, seed + 4), data::labels(n, 5, seed + 5));
        let on: Vec<u8> = data::labels(n, 3, seed + 6).into_iter().map(|v| v as u8).collect();
        let mut options = NeighborsOptions::new(k).metric(metric);
        if classes > 0 {
            let wide = vector(&ql).to_dtype(DType::I64).unwrap();
            options = options.same_label(&wide, &vector(&kl));
        }
        if exclude {
            options = options.exclude_same_id(&vector(&qi), &vector(&ki));
        }
        if mask {
            options = options.allow(&Tensor::from_slice(&on, n, &Device::Cpu).unwrap());
        }
        let q = laid_out(&matrix(&x, dim).to_dtype(dtype).unwrap(), left);
        let bank = laid_out(&matrix(&y, dim).to_dtype(dtype).unwrap(), right);
        let found = neighbors(&q, &bank, &options).unwrap();
        let (scores, indices) = (found.scores.to_vec2::<f32>().unwrap(), found.indices.to_vec2::<u32>().unwrap());
        let truth = reference::neighbors(&data::widen(&x), &data::widen(&y), dim, k, defined, |i, j| {
            (classes == 0 || ql[i] == kl[j]) && (!exclude || qi[i] != ki[j]) && (!mask || on[j] != 0)
        });
        for (i, truth) in truth.iter().enumerate() {
            let mut expected: Vec<_> = truth.iter().map(|(j, s)| (*j as u32, *s as f32)).collect();
            expected.resize(k, (NO_NEIGHBOR, metric.worst()));
            let got: Vec<_> = indices[i].iter().copied().zip(scores[i].iter().copied()).collect();
            prop_assert_eq!(got, expected);
        }
    }
}

#[test]
fn gradients_arrive_at_both_inputs() {
    let (b, n, dim, k) = (6, 30, 20, 5);
    let (x, y, g) = (data::normal(b, dim, 1), data::normal(n, dim, 2), data::normal(b, k, 3));
    for (metric, defined) in METRICS {
        for dtype in [DType::F32, DType::BF16] {
            let q = Var::from_tensor(&matrix(&x, dim).to_dtype(dtype).unwrap()).unwrap();
            let bank = Var::from_tensor(&matrix(&y, dim).to_dtype(dtype).unwrap()).unwrap();
            let found = neighbors(&q, &bank, &NeighborsOptions::new(k).metric(metric)).unwrap();
            let loss = (found.scores * matrix(&g, k)).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            let stored = |t: &Tensor| -> Vec<f32> {
                t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let (dq, dk) = (stored(grads.get(&q).unwrap()), stored(grads.get(&bank).unwrap()));
            let pairs: Vec<_> = found
                .indices
                .to_vec2::<u32>()
                .unwrap()
                .iter()
                .enumerate()
                .flat_map(|(i, row)| row.iter().map(move |j| (i, *j as usize)).collect::<Vec<_>>())
                .zip(&g)
                .map(|((i, j), g)| (i, j, f64::from(*g)))
                .collect();
            let (wide_x, wide_y) = (data::widen(&stored(&q)), data::widen(&stored(&bank)));
            let (tq, tk) = reference::gradients(&wide_x, &wide_y, dim, defined, &pairs);
            // A sum of at most b·k terms of a few roundings each, then one rounding to the storage type.
            let largest = 4.0
                * pairs.iter().map(|p| p.2.abs()).sum::<f64>()
                * wide_x.iter().chain(&wide_y).fold(1.0f64, |m, v| m.max(v.abs()));
            let sum = 2f64.powi(-24) * (b * k + 8) as f64 * largest;
            let half_unit = if dtype == DType::F32 { 2f64.powi(-24) } else { 2f64.powi(-8) };
            for (got, truth, name) in [(&dq, &tq, "queries"), (&dk, &tk, "bank")] {
                let ratio = gradient::worst_ratio(got, truth, |i| sum + half_unit * truth[i].abs());
                println!("{metric:?} {dtype:?} {name}: error / bound {ratio:.4}");
                assert!(ratio <= 1.0);
            }
        }
    }
}

#[test]
fn constants_get_no_gradient_and_places_without_a_neighbor_none_either() {
    let q = Var::from_tensor(&matrix(&[1.0, 2.0], 2)).unwrap();
    let bank = matrix(&[3.0, 4.0, 5.0, 6.0], 2);
    let found = neighbors(&q, &bank, &NeighborsOptions::new(3)).unwrap();
    let real = found.scores.narrow(1, 0, 2).unwrap().sum_all().unwrap();
    let grads = real.backward().unwrap();
    assert_eq!(grads.get(&q).unwrap().to_vec2::<f32>().unwrap(), [[8.0, 10.0]]);
    assert!(grads.get(&bank).is_none());
    let constant = neighbors(&q.detach(), &bank, &NeighborsOptions::new(3)).unwrap();
    assert!(!constant.scores.track_op());
    assert_eq!(constant.scores.to_vec2::<f32>().unwrap(), [[17.0, 11.0, f32::NEG_INFINITY]]);
    assert_eq!(constant.indices.to_vec2::<u32>().unwrap(), [[1, 0, NO_NEIGHBOR]]);
}

#[test]
fn a_batch_may_search_itself() {
    let x = Var::from_tensor(&matrix(&data::integers(40, 8, 1), 8)).unwrap();
    let ids = Tensor::arange(0u32, 40, &Device::Cpu).unwrap();
    let found = neighbors(&x, &x, &NeighborsOptions::new(4).exclude_same_id(&ids, &ids)).unwrap();
    for (i, row) in found.indices.to_vec2::<u32>().unwrap().iter().enumerate() {
        assert!(!row.contains(&(i as u32)));
    }
    let grads = found.scores.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().dims(), [40, 8]);
}

#[test]
fn threads_and_neighboring_rows_do_not_change_a_bit() {
    let (b, n, dim, k) = (50, 3000, 64, 10);
    let (x, bank) = (matrix(&data::normal(b, dim, 1), dim), matrix(&data::normal(n, dim, 2), dim));
    for (metric, _) in METRICS {
        let options = NeighborsOptions::new(k).metric(metric);
        let run = |x: &Tensor| {
            let found = neighbors(x, &bank, &options).unwrap();
            let scores: Vec<u32> = found
                .scores
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .map(|s| s.to_bits())
                .collect();
            (scores, found.indices.flatten_all().unwrap().to_vec1::<u32>().unwrap())
        };
        let [one, two, eight] = threads::on_1_2_8_threads(|| run(&x));
        assert!(one == two && two == eight);
        for i in [0, 17, 49] {
            let (scores, indices) = run(&x.narrow(0, i, 1).unwrap());
            assert_eq!((&scores[..], &indices[..]), (&one.0[i * k..][..k], &one.1[i * k..][..k]));
        }
    }
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let (x, bank) = (matrix(&data::normal(4, 6, 1), 6), matrix(&data::normal(9, 6, 2), 6));
    let message = |q: &Tensor, bank: &Tensor, options: &NeighborsOptions| {
        neighbors(q, bank, options).unwrap_err().to_string()
    };
    let plain = NeighborsOptions::new(2);
    assert_eq!(message(&x, &bank, &NeighborsOptions::new(0)), "neighbors: `k` is 0, expected 1..=1024");
    assert_eq!(message(&x, &bank, &NeighborsOptions::new(2000)), "neighbors: `k` is 2000, expected 1..=1024");
    let empty = Tensor::zeros((0, 6), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(message(&empty, &bank, &plain), "neighbors: `queries` is empty, expected at least one row");
    assert_eq!(message(&x, &empty, &plain), "neighbors: `bank` is empty, expected at least one row");
    let flat = x.flatten_all().unwrap();
    assert_eq!(
        message(&flat, &bank, &plain),
        "neighbors: `queries` has 1 dimensions, expected a matrix [rows, dimension]"
    );
    let wide = bank.to_dtype(DType::F64).unwrap();
    assert_eq!(message(&x, &wide, &plain), "neighbors: `bank` has dtype F64, expected f32, f16 or bf16");
    assert!(
        message(&x, &bank.narrow(1, 0, 5).unwrap(), &plain)
            .contains("`bank` has shape [9, 5], expected [N, 6]")
    );
    let mut values = data::normal(9, 6, 2);
    values[4 * 6] = f32::NAN;
    assert!(message(&x, &matrix(&values, 6), &plain).contains("`bank` row 4 is not finite"));
    values[4 * 6..5 * 6].fill(0.0);
    let cosine = plain.clone().metric(Metric::Cosine);
    assert!(message(&x, &matrix(&values, 6), &cosine).contains("`bank` row 4 has norm zero"));
    let (four, nine) = (vector(&[0; 4]), vector(&[0; 9]));
    assert!(
        message(&x, &bank, &plain.clone().same_label(&nine, &nine)).contains("`query_labels` has shape [9]")
    );
    assert!(
        message(&x, &bank, &plain.clone().exclude_same_id(&four, &four)).contains("`key_ids` has shape [4]")
    );
    assert!(message(&x, &bank, &plain.clone().allow(&nine)).contains("`allow` has dtype U32, expected u8"));
    let negative = Tensor::full(-1i64, 9, &Device::Cpu).unwrap();
    let refused = neighbors(&x, &bank, &plain.same_label(&four, &negative));
    assert!(matches!(refused, Err(Error::Argument(_))));
}
