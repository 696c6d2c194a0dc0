//! Divergences from mean teachers by kernels.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{AffinityMap, DiscriminationDivergence, DiscriminationOptions, Pairs, discrimination_kl};
use consonance_testkit::data;

use super::{labels, with_kernels};

const CPU: Device = Device::Cpu;
const B: usize = 9;
const N: usize = 150;
const D: usize = 12;
const CLASSES: usize = 20;

fn unit(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &CPU).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The loss with the gradients of queries and classifier.
fn found(
    dtype: DType,
    pairs: &Pairs,
    options: &DiscriminationOptions,
) -> (DiscriminationDivergence, Vec<Tensor>) {
    let queries = Var::from_tensor(&unit(B, D, 1).to_dtype(dtype).unwrap()).unwrap();
    let weights = Var::from_tensor(&unit(CLASSES, D, 3)).unwrap();
    let keys = unit(N + 2, D + 3, 2).to_dtype(dtype).unwrap();
    let keys = keys.narrow(0, 1, N).unwrap().narrow(1, 2, D).unwrap();
    let found = discrimination_kl(queries.as_tensor(), &keys, weights.as_tensor(), pairs, options).unwrap();
    let grads = found.loss.backward().unwrap();
    let gradients = [&queries, &weights].map(|var| grads.get(var).unwrap().clone()).to_vec();
    (found, gradients)
}

#[test]
fn mean_teachers_are_those_of_the_cpu_for_every_rule() {
    let options = DiscriminationOptions { scale: 8.0, ..DiscriminationOptions::default() };
    let (own, of_keys) = (labels(B, 4), labels(N, 5));
    let mask = |seed| labels(N, seed).ne(0u32).unwrap();
    let offsets: Vec<u32> = (0..=B as u32).map(|i| i * 3).collect();
    let indices: Vec<u32> = (0..B as u32).flat_map(|i| [i, 40 + i, 149 - i]).collect();
    let vector = |values: Vec<u32>| Tensor::new(&values[..], &CPU).unwrap();
    let sets = |rows, seed| Tensor::from_vec(data::labels(rows * 2, 1 << 30, seed), (rows, 2), &CPU).unwrap();
    let (old, old_keys) = (unit(B, 7, 6), unit(N, 7, 7));
    let cases = [
        Pairs::labels(&own, &of_keys),
        Pairs::labels(&own, &of_keys)
            .valid(&mask(8))
            .credible_positives(&mask(9))
            .ignore_same_id(&labels(B, 10), &labels(N, 11))
            .leave_out_same_label(&own, &of_keys)
            .affinity(&old, &old_keys, AffinityMap::Exp { temperature: 0.3 }),
        Pairs::diagonal(),
        Pairs::lists(&vector(offsets), &vector(indices), None),
        Pairs::bits(&sets(B, 12), &sets(N, 13), 16),
        Pairs::all().affinity(&old, &old_keys, AffinityMap::Half),
    ];
    for (at, pairs) in cases.iter().enumerate() {
        for dtype in [DType::F32, DType::BF16] {
            let run = || found(dtype, pairs, &options);
            let (expected, gradients) = run();
            let Some(((got, of_kernels), launched)) = with_kernels(run) else { return };
            assert!(launched.iter().any(|name| name.starts_with("contrast_targets")), "{launched:?}");
            assert_eq!(got.anchors, expected.anchors);
            assert!(expected.anchors > 0, "case {at}");
            // Means of up to N products in f32, by moments of N rows with their 600 steps; numbers of at most ln C; scores of at
            // most 8, which D sums and an exponential round.
            let u = 2f64.powi(-24);
            let steps = (600 + N + 2 * 8 * (D + 8)) as f64 * u;
            let bound = 4.0 * steps * (CLASSES as f64).ln();
            // The gradients are 8 π W and such: scale times differences of two distributions.
            for (got, expected, bound) in [
                (&got.teachers, &expected.teachers, bound),
                (&got.per_row, &expected.per_row, bound * 8.0),
                (&of_kernels[1], &gradients[1], bound * 8.0),
            ] {
                let worst = values(got)
                    .into_iter()
                    .zip(values(expected))
                    .map(|(got, expected)| (got - expected).abs())
                    .fold(0.0, f64::max);
                println!("case {at}, {dtype:?}: difference / bound {:.1e}", worst / bound);
                assert!(worst <= bound, "case {at}, {dtype:?}: {worst:e} apart, at most {bound:e}");
            }
            assert_eq!((of_kernels[0].dims(), of_kernels[0].dtype()), (&[B, D][..], dtype));
        }
    }
}

#[test]
fn rows_without_positives_and_bad_arguments_are_as_on_the_cpu() {
    let options = DiscriminationOptions::default();
    let none = Tensor::full(77u32, B, &CPU).unwrap();
    let pairs = Pairs::labels(&none, &labels(N, 5));
    let (queries, keys, weights) = (unit(B, D, 1), unit(N, D, 2), unit(CLASSES, D, 3));
    let run = |pairs: &Pairs| discrimination_kl(&queries, &keys, &weights, pairs, &options);
    let Some((found, _)) = with_kernels(|| run(&pairs).unwrap()) else { return };
    assert_eq!(found.anchors, 0);
    assert!(values(&found.per_row).iter().chain(&values(&found.teachers)).all(|v| *v == 0.0));
    let short = Tensor::ones(N - 1, DType::U8, &CPU).unwrap();
    let past = Tensor::full(N as u32, (B, 1), &CPU).unwrap();
    for (pairs, name) in [
        (Pairs::labels(&none, &labels(N + 1, 5)), "`key_labels`"),
        (Pairs::all().valid(&short), "`valid`"),
        (Pairs::all().credible_positives(&short), "`credible_positives`"),
        (Pairs::neighbors(&past, None), "`indices`"),
    ] {
        let text = with_kernels(|| run(&pairs).map(drop)).unwrap().0.unwrap_err().to_string();
        assert!(text.contains(name), "{text}");
    }
}
