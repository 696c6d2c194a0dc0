//! Losses over lists of bank rows and the update of such rows as ops: against the definition, in the graph, in every
//! layout, on the CPU backend and by kernels on a simulated device.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "gathered/kernels.rs"]
mod kernels;

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    Bank, Error, GatheredPositives, NO_NEIGHBOR, Normalizer, Temperature, gathered_contrast,
    gathered_divergence, update_rows,
};
use consonance_reference::contrast::Normalizer as Divided;
use consonance_reference::gathered::{Lists, Losses};
use consonance_testkit::{data, threads};

const CPU: Device = Device::Cpu;
const B: usize = 7;
const N: usize = 40;
const K: usize = 70;
const D: usize = 12;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &CPU).unwrap()
}

/// Lists with repeated rows and padding.
fn lists() -> Vec<u32> {
    let rows = data::labels(B * K, N as u32 + 5, 7);
    rows.into_iter().map(|row| if row < N as u32 { row } else { NO_NEIGHBOR }).collect()
}

fn indices() -> Tensor {
    Tensor::from_vec(lists(), (B, K), &CPU).unwrap()
}

fn wide(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn weights() -> Vec<f32> {
    data::labels(B * K, 6, 8).iter().map(|w| (*w / 3) as f32 * 0.4).collect()
}

/// The definition, of a loss with weights.
fn truth(queries: &Tensor, bank: &Tensor, temperature: f64, weights: &[f32]) -> Losses {
    let (queries, bank, indices, temperatures) = (wide(queries), wide(bank), lists(), [temperature; B]);
    let (dim, columns) = (bank.len() / N, K);
    let lists = Lists {
        queries: &queries,
        bank: &bank,
        dim,
        indices: &indices,
        columns,
        temperatures: &temperatures,
    };
    lists.contrast(&data::widen(weights), Divided::WeightSum)
}

/// Coarser than any bound, far finer than any mistake; the bounds themselves are in the suite.
fn assert_close(got: &Tensor, expected: &[f64], size: f64) {
    for (at, (got, expected)) in wide(got).iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-4 * size, "{at}: {got}, expected {expected}");
    }
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    let (queries, bank) = (Var::from_tensor(&matrix(B, D, 1)).unwrap(), matrix(N, D, 2));
    let tau = Var::new(&[0.2f32], &CPU).unwrap();
    let weights = weights();
    let positives = GatheredPositives::Weights(Tensor::from_slice(&weights, (B, K), &CPU).unwrap());
    let temperature = Temperature::Learned(tau.as_tensor().clone());
    let found = gathered_contrast(
        queries.as_tensor(),
        &bank,
        &indices(),
        &temperature,
        &positives,
        Normalizer::WeightSum,
    )
    .unwrap();
    let truth = truth(queries.as_tensor(), &bank, f64::from(0.2f32), &weights);
    assert_eq!(found.anchors, B);
    assert_close(&found.per_row, &truth.per_row, 1.0);
    assert_close(&found.log_sum_exp, &truth.log_sum_exp, 1.0);
    assert!(!found.log_sum_exp.track_op());
    let grads = found.loss.backward().unwrap();
    let mean: Vec<f64> = truth.queries.iter().map(|g| g / B as f64).collect();
    assert_close(grads.get(&queries).unwrap(), &mean, 1.0);
    let of_tau = truth.temperatures.iter().sum::<f64>() / B as f64;
    assert_eq!(grads.get(&tau).unwrap().dims(), [1]);
    assert_close(grads.get(&tau).unwrap(), &[of_tau], 10.0);
}

#[test]
fn temperatures_of_their_own_and_scalars_are_learned() {
    let bank = matrix(N, D, 2);
    let run = |tau: Tensor| {
        let tau = Var::from_tensor(&tau).unwrap();
        let positives = GatheredPositives::First(3);
        let temperature = Temperature::Learned(tau.as_tensor().clone());
        let queries = matrix(B, D, 1);
        let found =
            gathered_contrast(&queries, &bank, &indices(), &temperature, &positives, Normalizer::Count)
                .unwrap();
        let gradient = found.loss.backward().unwrap().get(&tau).unwrap().clone();
        assert_eq!(gradient.dims(), tau.dims());
        wide(&gradient)
    };
    let one = run(Tensor::new(0.3f32, &CPU).unwrap());
    let own = run(Tensor::from_vec(vec![0.3f32; B], B, &CPU).unwrap());
    assert!((one[0] - own.iter().sum::<f64>()).abs() < 1e-5 * one[0].abs());
}

#[test]
fn every_layout_and_type_is_read_and_gradients_have_the_type_of_the_queries() {
    let lists = indices();
    let rounded = |x: &Tensor, dtype| x.to_dtype(dtype).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (wide_queries, wide_bank) =
            (rounded(&matrix(B + 3, 20, 1), dtype), rounded(&matrix(N + 5, 20, 2), dtype));
        let expected = |queries: &Tensor, bank: &Tensor| {
            truth(queries, bank, 0.25, &{
                let mut first = vec![0.0; B * K];
                (0..B).for_each(|i| first[i * K..i * K + 2].fill(1.0));
                first
            })
        };
        for (queries, bank) in [
            (wide_queries.narrow(0, 2, B).unwrap(), wide_bank.narrow(0, 1, N).unwrap()),
            (
                wide_queries.narrow(0, 0, B).unwrap().narrow(1, 3, 9).unwrap(),
                wide_bank.narrow(0, 0, N).unwrap().narrow(1, 5, 9).unwrap(),
            ),
            (rounded(&matrix(20, B, 3), dtype).t().unwrap(), rounded(&matrix(20, N, 4), dtype).t().unwrap()),
        ] {
            let var = Var::from_tensor(&queries.contiguous().unwrap()).unwrap();
            // The graph goes on behind a view.
            let view = var.as_tensor().narrow(0, 0, B).unwrap();
            let i64_lists = lists.to_dtype(DType::I64).unwrap();
            let found = gathered_contrast(
                &view,
                &bank,
                &i64_lists,
                &Temperature::Fixed(0.25),
                &GatheredPositives::First(2),
                Normalizer::WeightSum,
            )
            .unwrap();
            let truth = expected(&queries, &bank);
            assert_close(&found.per_row, &truth.per_row, 1.0);
            let grads = found.per_row.sum_all().unwrap().backward().unwrap();
            let gradient = grads.get(&var).unwrap();
            assert_eq!(gradient.dtype(), dtype);
            // One rounding to the storage type.
            assert_close(gradient, &truth.queries, if dtype == DType::F32 { 1.0 } else { 200.0 });
        }
    }
}

#[test]
fn divergences_are_those_of_the_definition_and_reach_the_student_alone() {
    let (queries, bank) = (Var::from_tensor(&matrix(B, D, 1)).unwrap(), matrix(N, D, 2));
    let (other, other_bank) = (Var::from_tensor(&matrix(B, 5, 3)).unwrap(), matrix(N, 5, 4));
    let found = gathered_divergence(
        (queries.as_tensor(), &bank),
        (other.as_tensor(), &other_bank),
        &indices(),
        0.1,
        3.0,
    )
    .unwrap();
    let (x, y, t, u) = (wide(queries.as_tensor()), wide(&bank), wide(other.as_tensor()), wide(&other_bank));
    let (list, temperatures) = (lists(), [f64::from(0.1f32); B]);
    let of = |queries, bank, dim| {
        let (indices, temperatures) = (&list[..], &temperatures[..]);
        Lists { queries, bank, dim, indices, columns: K, temperatures }
    };
    let truth = of(&x, &y, D).divergence(&of(&t, &u, 5), 3.0);
    assert_eq!(found.anchors, B);
    assert_close(&found.per_row, &truth.per_row, 10.0);
    let grads = found.per_row.sum_all().unwrap().backward().unwrap();
    assert_close(grads.get(&queries).unwrap(), &truth.queries, 10.0);
    assert!(grads.get(&other).is_none());
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (queries, bank) = (matrix(B, D, 1), matrix(N, D, 2));
    let [one, two, eight] = threads::on_1_2_8_threads(|| {
        let positives = GatheredPositives::First(2);
        let tau = Temperature::Fixed(0.1);
        let queries = Var::from_tensor(&queries).unwrap();
        let found =
            gathered_contrast(queries.as_tensor(), &bank, &indices(), &tau, &positives, Normalizer::Count)
                .unwrap();
        let gradient = found.loss.backward().unwrap().get(&queries).unwrap().clone();
        let bits = |x: &Tensor| -> Vec<u32> {
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        (bits(&found.per_row), bits(&gradient))
    });
    assert_eq!(one, two);
    assert_eq!(one, eight);
}

#[test]
fn constants_that_are_tracked_are_refused() {
    let (queries, bank) = (matrix(B, D, 1), Var::from_tensor(&matrix(N, D, 2)).unwrap());
    let tau = Temperature::Fixed(0.1);
    let first = GatheredPositives::First(1);
    let refused = |result: consonance::Result<()>| match result {
        Err(Error::NotDifferentiable { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    let bank = bank.as_tensor();
    let contrast = gathered_contrast(&queries, bank, &indices(), &tau, &first, Normalizer::Count);
    assert_eq!(refused(contrast.map(drop)), "bank");
    let constant = bank.detach();
    let divergence =
        gathered_divergence((&queries, bank), (&queries, &constant), &indices(), 0.1, 1.0).map(drop);
    assert_eq!(refused(divergence), "bank");
    let weights = Var::from_tensor(&Tensor::ones((B, K), DType::F32, &CPU).unwrap()).unwrap();
    let weights = GatheredPositives::Weights(weights.as_tensor().clone());
    let contrast = gathered_contrast(&queries, &constant, &indices(), &tau, &weights, Normalizer::Count);
    assert_eq!(refused(contrast.map(drop)), "weights");
    assert_eq!(
        refused(update_rows(bank, &Tensor::new(&[0u32], &CPU).unwrap(), &matrix(1, D, 3), 0.5)),
        "bank"
    );
}

#[test]
fn errors_name_the_argument() {
    let (queries, bank) = (matrix(B, D, 1), matrix(N, D, 2));
    let run = |queries: &Tensor, bank: &Tensor, indices: &Tensor, tau: f64, positives: &GatheredPositives| {
        let tau = Temperature::Fixed(tau);
        gathered_contrast(queries, bank, indices, &tau, positives, Normalizer::Count).unwrap_err().to_string()
    };
    let first = GatheredPositives::First(1);
    let good = indices();
    let short = GatheredPositives::Weights(Tensor::ones((B, K - 1), DType::F32, &CPU).unwrap());
    for (text, name) in [
        (run(&queries.flatten_all().unwrap(), &bank, &good, 0.1, &first), "`queries`"),
        (run(&queries, &bank, &good.flatten_all().unwrap(), 0.1, &first), "`indices`"),
        (run(&queries, &bank, &good.narrow(0, 1, 3).unwrap(), 0.1, &first), "`indices`"),
        (run(&queries, &bank, &good.to_dtype(DType::F32).unwrap(), 0.1, &first), "`indices`"),
        (run(&queries, &bank.narrow(0, 0, 3).unwrap(), &good, 0.1, &first), "`indices`"),
        (run(&queries, &bank.narrow(1, 0, 3).unwrap(), &good, 0.1, &first), "`bank`"),
        (run(&queries, &bank.to_dtype(DType::F64).unwrap(), &good, 0.1, &first), "`bank`"),
        (run(&queries, &bank, &good, 0.0, &first), "`temperature`"),
        (run(&queries, &bank, &good, 0.1, &GatheredPositives::First(0)), "`positives`"),
        (run(&queries, &bank, &good, 0.1, &short), "`weights`"),
        (run(&(&queries / 0.0).unwrap(), &bank, &good, 0.1, &first), "`queries`"),
    ] {
        assert!(text.starts_with("gathered_contrast") && text.contains(name), "{text}");
    }
}

#[test]
fn updates_write_the_memory_that_views_share() {
    for dtype in [DType::F32, DType::BF16] {
        let all = matrix(N, D, 2).to_dtype(dtype).unwrap();
        let bank = all.narrow(0, 4, 20).unwrap();
        let (rows, slots) = (matrix(3, D, 5), Tensor::new(&[7u32, NO_NEIGHBOR, 7], &CPU).unwrap());
        let before = wide(&all);
        update_rows(&bank, &slots, &rows, 0.5).unwrap();
        let mut expected = before.clone();
        let rounded = wide(&rows.to_dtype(dtype).unwrap());
        consonance_reference::gathered::update_rows(
            &mut expected[4 * D..],
            D,
            &[7, NO_NEIGHBOR, 7],
            &rounded,
            0.5,
        );
        assert_close(&all, &expected, if dtype == DType::F32 { 1.0 } else { 100.0 });
        let after = wide(&all);
        let changed: Vec<usize> =
            (0..N * D).filter(|at| after[*at] != before[*at]).map(|at| at / D).collect();
        assert!(changed.iter().all(|row| *row == 11) && !changed.is_empty(), "{changed:?}");
    }
}

#[test]
fn a_bank_may_be_updated_with_rows_of_its_own() {
    let bank = matrix(N, D, 2);
    let (slots, rows) = (Tensor::new(&[1u32, 2], &CPU).unwrap(), bank.narrow(0, 2, 2).unwrap());
    let apart = bank.force_contiguous().unwrap();
    update_rows(&apart, &slots, &rows.force_contiguous().unwrap(), 0.25).unwrap();
    update_rows(&bank, &slots, &rows, 0.25).unwrap();
    assert_eq!(bank.to_vec2::<f32>().unwrap(), apart.to_vec2::<f32>().unwrap());
}

#[test]
fn updates_that_cannot_be_made_change_nothing() {
    let bank = matrix(N, D, 2);
    let before = bank.to_vec2::<f32>().unwrap();
    let slots = Tensor::new(&[1u32, 3], &CPU).unwrap();
    let rows = matrix(2, D, 3);
    let opposite = bank.narrow(0, 3, 1).unwrap().neg().unwrap();
    let cancelling = Tensor::cat(&[&rows.narrow(0, 0, 1).unwrap(), &opposite], 0).unwrap();
    let text = |result: consonance::Result<()>| result.unwrap_err().to_string();
    for (text, name) in [
        (text(update_rows(&bank, &slots, &(&rows / 0.0).unwrap(), 0.5)), "`rows`"),
        (text(update_rows(&bank, &slots, &cancelling, 0.5)), "row 1"),
        (text(update_rows(&bank, &Tensor::new(&[1u32, N as u32], &CPU).unwrap(), &rows, 0.5)), "`indices`"),
        (text(update_rows(&bank, &slots, &rows, 1.5)), "`momentum`"),
        (text(update_rows(&bank.t().unwrap(), &slots, &rows, 0.5)), "`bank`"),
        (text(update_rows(&bank, &slots.narrow(0, 0, 1).unwrap(), &rows, 0.5)), "`indices`"),
    ] {
        assert!(text.starts_with("update_rows") && text.contains(name), "{text}");
    }
    assert_eq!(bank.to_vec2::<f32>().unwrap(), before);
}

/// The loop of a memory bank: lists of the sample itself and of negatives, the loss, then the update.
#[test]
fn a_step_with_a_memory_bank_draws_the_query_to_its_own_row() {
    let bank = Bank::from_embeddings(&matrix(N, D, 2), &Tensor::zeros(N, DType::U32, &CPU).unwrap()).unwrap();
    let bank = bank.snapshot().unwrap();
    let query = Var::from_tensor(&matrix(1, D, 9)).unwrap();
    let list = Tensor::new(&[[5u32, 9, 30, 30, 2]], &CPU).unwrap();
    let loss = || {
        let first = GatheredPositives::First(1);
        let tau = Temperature::Fixed(0.2);
        gathered_contrast(query.as_tensor(), bank.keys(), &list, &tau, &first, Normalizer::Count)
            .unwrap()
            .loss
    };
    let mut last = f32::INFINITY;
    for _ in 0..5 {
        let loss = loss();
        let value = loss.to_scalar::<f32>().unwrap();
        assert!(value < last, "{value} after {last}");
        last = value;
        let gradient = loss.backward().unwrap().get(&query).unwrap().clone();
        query.set(&(query.as_tensor() - (gradient * 0.02).unwrap()).unwrap()).unwrap();
        update_rows(bank.keys(), &Tensor::new(&[5u32], &CPU).unwrap(), query.as_tensor(), 0.5).unwrap();
    }
}
