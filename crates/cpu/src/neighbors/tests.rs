use consonance_reference::neighbors as reference;
use consonance_testkit::{data, threads};
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

const METRICS: [Metric; 3] = [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2];

fn rows<'a>(x: &'a [f32], dim: usize) -> Rows<'a> {
    Rows::new("test", "x", x, x.len() / dim, dim).unwrap()
}

fn metric_of(metric: Metric) -> reference::Metric {
    match metric {
        Metric::InnerProduct => reference::Metric::InnerProduct,
        Metric::Cosine => reference::Metric::Cosine,
        Metric::SquaredL2 => reference::Metric::SquaredL2,
    }
}

fn bits(found: &Neighbors) -> (Vec<u32>, Vec<u32>) {
    (found.scores.iter().map(|s| s.to_bits()).collect(), found.indices.clone())
}

/// Integer inputs: every score is exact, so indices and scores agree with the reference to the last bit.
fn agrees_exactly(x: &[f32], y: &[f32], dim: usize, options: &Options<'_>) {
    let allowed = |i: usize, j: usize| {
        options.labels.is_none_or(|(q, k)| q[i] == k[j])
            && options.ids.is_none_or(|(q, k)| q[i] != k[j])
            && options.allow.is_none_or(|bits| bits[j / 64] >> (j % 64) & 1 == 1)
    };
    let (metric, k) = (metric_of(options.metric), options.k);
    let truth = reference::neighbors(&data::widen(x), &data::widen(y), dim, k, metric, allowed);
    for kernel in Kernel::all() {
        let found = with_kernel(kernel, &rows(x, dim), &rows(y, dim), options).unwrap();
        for (i, truth) in truth.iter().enumerate() {
            for place in 0..k {
                let (index, score) = (found.indices[i * k + place], found.scores[i * k + place]);
                match truth.get(place) {
                    Some((j, s)) => assert_eq!(
                        (index as usize, f64::from(score)),
                        (*j, *s),
                        "{}, row {i}, place {place}",
                        kernel.name
                    ),
                    None => {
                        assert_eq!((index, score), (NONE, options.metric.worst()), "row {i}, place {place}")
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn integer_rows_agree_with_the_reference_bit_for_bit(
        b in prop_oneof![1usize..20, Just(67usize)],
        n in prop_oneof![1usize..40, 60usize..70, Just(521usize), Just(1030usize)],
        dim in prop_oneof![1usize..20, Just(64usize), Just(131usize)],
        k in prop_oneof![1usize..10, Just(32usize), Just(100usize)],
        l2 in any::<bool>(), classes in 0u32..5, exclude in any::<bool>(), mask in 0u32..3, seed in 0u64..1000,
    ) {
        let (x, y) = (data::integers(b, dim, seed), data::integers(n, dim, seed + 1));
        let (ql, kl) = (data::labels(b, classes, seed + 2), data::labels(n, classes, seed + 3));
        let (qi, ki) = (data::labels(b, 9, seed + 4), data::labels(n, 9, seed + 5));
        let words: Vec<u64> = data::labels(n.div_ceil(64) * 2, u32::MAX, seed + 6)
            .chunks(2).map(|w| u64::from(w[0]) << 32 | u64::from(w[1])).collect();
        let none = vec![0u64; words.len()];
        let options = Options {
            k,
            metric: if l2 { Metric::SquaredL2 } else { Metric::InnerProduct },
            labels: (classes > 0).then_some((&ql, &kl)),
            ids: exclude.then_some((&qi, &ki)),
            allow: match mask { 0 => None, 1 => Some(&words), _ => Some(&none) },
        };
        agrees_exactly(&x, &y, dim, &options);
    }
}

/// What the scores of real inputs must satisfy, whatever the rounding: each returned score is within the bound of
/// the f64 score, no key that was left out is better than the last by more than twice the bound, indices are
/// distinct and scores in order.
fn certify(x: &[f32], y: &[f32], dim: usize, metric: Metric, found: &Neighbors) -> f64 {
    let (wide_x, wide_y, k) = (data::widen(x), data::widen(y), found.k);
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let unit = 2f64.powi(-24);
    // 16 lanes and a tree of 4: dim / 16 + 5 roundings on the way of a term, one more for each rounded input of the
    // cosine, two for a squared difference (relative to the score itself).
    let count = dim as f64 / 16.0 + 8.0;
    let mut worst = 0.0f64;
    for (i, x) in wide_x.chunks_exact(dim).enumerate() {
        let (scores, indices) = (&found.scores[i * k..][..k], &found.indices[i * k..][..k]);
        let sign = if metric == Metric::SquaredL2 { -1.0 } else { 1.0 };
        let exact = |j: usize| sign * reference::score(metric_of(metric), x, &wide_y[j * dim..][..dim]);
        let bound = |j: usize| {
            1.01 * count
                * unit
                * match metric {
                    Metric::InnerProduct => norm(x) * norm(&wide_y[j * dim..][..dim]),
                    Metric::Cosine => 1.0,
                    Metric::SquaredL2 => exact(j).abs(),
                }
        };
        let mut seen = vec![false; wide_y.len() / dim];
        for (place, (score, index)) in scores.iter().zip(indices).enumerate() {
            let j = *index as usize;
            assert!(!std::mem::replace(&mut seen[j], true), "row {i}: {j} twice");
            let got = sign * f64::from(*score);
            worst = worst.max((got - exact(j)).abs() / bound(j));
            if place > 0 {
                let before = sign * f64::from(scores[place - 1]);
                assert!(
                    before > got || (before == got && indices[place - 1] < *index),
                    "row {i}, place {place}"
                );
            }
        }
        let last = sign * f64::from(scores[k - 1]);
        for j in (0..seen.len()).filter(|j| !seen[*j]) {
            assert!(exact(j) <= last + bound(j), "row {i}: key {j} was missed");
        }
    }
    worst
}

#[test]
fn real_rows_carry_a_certificate_and_every_kernel_gives_the_same_bits() {
    for (b, n, dim, k) in [(40, 3000, 128, 32), (13, 1537, 67, 5), (3, 700, 33, 200), (60, 2048, 512, 64)] {
        for metric in METRICS {
            let (x, y) = (data::normal(b, dim, 1), data::normal(n, dim, 2));
            let options = Options { k, metric, ..Options::default() };
            let found = neighbors(&rows(&x, dim), &rows(&y, dim), &options).unwrap();
            let ratio = certify(&x, &y, dim, metric, &found);
            println!("{metric:?} {b} x {n} x {dim}, k {k}: error / bound {ratio:.3}");
            assert!(ratio <= 1.0);
            for kernel in Kernel::all() {
                let other = with_kernel(kernel, &rows(&x, dim), &rows(&y, dim), &options).unwrap();
                assert_eq!(bits(&other), bits(&found), "{}", kernel.name);
            }
        }
    }
}

#[test]
fn near_twins_far_from_the_origin_are_told_apart() {
    // All rows within 1e-3 of a point at distance 100: the expanded form of the distance would be noise.
    let (b, n, dim) = (9, 800, 40);
    let offset = |x: Vec<f32>| -> Vec<f32> { x.iter().map(|v| 16.0 + v * 1e-3).collect() };
    let (x, y) = (offset(data::normal(b, dim, 5)), offset(data::normal(n, dim, 6)));
    let options = Options { k: 10, metric: Metric::SquaredL2, ..Options::default() };
    let found = neighbors(&rows(&x, dim), &rows(&y, dim), &options).unwrap();
    let ratio = certify(&x, &y, dim, Metric::SquaredL2, &found);
    println!("near twins: error / bound {ratio:.3}");
    assert!(ratio <= 1.0);
}

#[test]
fn threads_batches_and_orders_do_not_change_a_bit() {
    let (b, n, dim, k) = (70, 5000, 96, 24);
    let (x, y) = (data::normal(b, dim, 3), data::normal(n, dim, 4));
    let labels = (data::labels(b, 3, 1), data::labels(n, 3, 2));
    for metric in METRICS {
        for labels in [None, Some((&labels.0[..], &labels.1[..]))] {
            let options = Options { k, metric, labels, ..Options::default() };
            let [one, two, eight] = threads::on_1_2_8_threads(|| {
                bits(&neighbors(&rows(&x, dim), &rows(&y, dim), &options).unwrap())
            });
            assert!(one == two && one == eight, "{metric:?}");
            for i in 0..b {
                let labels = labels.map(|(q, keys)| (&q[i..=i], keys));
                let options = Options { labels, ..options };
                let alone = neighbors(&rows(&x[i * dim..][..dim], dim), &rows(&y, dim), &options).unwrap();
                let alone = bits(&alone);
                assert_eq!(
                    (&alone.0[..], &alone.1[..]),
                    (&one.0[i * k..][..k], &one.1[i * k..][..k]),
                    "row {i}"
                );
            }
        }
    }
}

#[test]
fn sixteen_bit_rows_give_the_bits_of_their_f32_copies() {
    let (b, n, dim) = (20, 500, 48);
    let (x, y) = (data::normal(b, dim, 7), data::normal(n, dim, 8));
    let y16: Vec<f16> = y.iter().map(|v| f16::from_f32(*v)).collect();
    let yb: Vec<bf16> = y.iter().map(|v| bf16::from_f32(*v)).collect();
    let wide16: Vec<f32> = y16.iter().map(|v| v.to_f32()).collect();
    let wide_b: Vec<f32> = yb.iter().map(|v| v.to_f32()).collect();
    for metric in METRICS {
        let options = Options { k: 12, metric, ..Options::default() };
        let x = rows(&x, dim);
        let f16_rows = Rows::new("test", "y", &y16[..], n, dim).unwrap();
        let bf16_rows = Rows::new("test", "y", &yb[..], n, dim).unwrap();
        for (narrow, wide) in [(f16_rows, &wide16), (bf16_rows, &wide_b)] {
            let narrow = neighbors(&x, &narrow, &options).unwrap();
            assert_eq!(bits(&narrow), bits(&neighbors(&x, &rows(wide, dim), &options).unwrap()));
        }
    }
}

#[test]
fn rows_that_nobody_may_find_can_hold_anything() {
    let dim = 5;
    let mut y = data::integers(70, dim, 1);
    y[3 * dim..4 * dim].fill(f32::NAN);
    y[66 * dim..67 * dim].fill(0.0);
    let x = data::integers(6, dim, 2);
    let allow = [!(1u64 << 3), !(1u64 << 2)];
    for metric in METRICS {
        let options = Options { k: 70, metric, allow: Some(&allow), ..Options::default() };
        let found = neighbors(&rows(&x, dim), &rows(&y, dim), &options).unwrap();
        assert!(found.indices.iter().all(|j| *j != 3 && *j != 66));
        assert_eq!(found.indices.iter().filter(|j| **j == NONE).count(), 2 * 6);
    }
}

#[test]
fn bad_input_is_named() {
    let dim = 4;
    let (x, y) = (data::normal(6, dim, 1), data::normal(50, dim, 2));
    let run = |x: &[f32], y: &[f32], options: &Options<'_>| {
        neighbors(&rows(x, dim), &rows(y, dim), options).unwrap_err().to_string()
    };
    let plain = Options { k: 3, ..Options::default() };
    assert_eq!(run(&x, &y, &Options { k: 0, ..plain }), "neighbors: `k` is 0, expected 1..=1024");
    assert_eq!(run(&x, &y, &Options { k: 1025, ..plain }), "neighbors: `k` is 1025, expected 1..=1024");
    assert_eq!(run(&[], &y, &plain), "neighbors: `queries` is empty, expected at least one row");
    assert_eq!(run(&x, &[], &plain), "neighbors: `bank` is empty, expected at least one row");
    let wide = neighbors(&rows(&x, dim), &rows(&y, 5), &plain).unwrap_err().to_string();
    assert_eq!(wide, "neighbors: `bank` has shape [40, 5], expected [N, 4], the dimension of `queries`");
    for metric in METRICS {
        let options = Options { metric, ..plain };
        for bad in [f32::NAN, f32::INFINITY] {
            let (mut x, mut y) = (x.clone(), y.clone());
            (x[2 * dim + 1], y[9 * dim], y[30 * dim]) = (bad, bad, bad);
            assert!(run(&x, &y, &options).contains("`queries` row 2 is not finite"));
            x[2 * dim + 1] = 0.0;
            assert!(run(&x, &y, &options).contains("`bank` row 9 is not finite"));
        }
    }
    let cosine = Options { metric: Metric::Cosine, ..plain };
    let (mut zero_x, mut zero_y) = (x.clone(), y.clone());
    zero_x[dim..2 * dim].fill(0.0);
    zero_y[7 * dim..8 * dim].fill(0.0);
    assert!(run(&zero_x, &y, &cosine).contains("`queries` row 1 has norm zero"));
    assert!(run(&x, &zero_y, &cosine).contains("`bank` row 7 has norm zero"));
    let (mut large_x, mut large_y) = (x.clone(), y.clone());
    (large_x[0], large_y[0]) = (1e20, 1e20);
    assert!(run(&large_x, &large_y, &plain).contains("below 1e38"));
    assert!(neighbors(&rows(&large_x, dim), &rows(&large_y, dim), &cosine).is_ok());
    let (three, bank) = ([1u32, 2, 3], vec![1u32; 50]);
    let options = Options { labels: Some((&three, &bank)), ..plain };
    assert!(run(&x, &y, &options).contains("`query_labels` has shape [3], expected [6], one for each query"));
    let options = Options { ids: Some((&bank[..6], &three)), ..plain };
    assert!(run(&x, &y, &options).contains("`key_ids` has shape [3], expected [50], one for each key"));
    let options = Options { allow: Some(&[1, 2]), ..plain };
    assert!(run(&x, &y, &options).contains("`allow` has shape [2], expected [1], one for each 64 keys"));
}

#[test]
fn gradients_match_the_reference() {
    let (b, n, dim, k) = (7, 40, 24, 6);
    let (x, y, g) = (data::normal(b, dim, 1), data::normal(n, dim, 2), data::normal(b, k, 3));
    for metric in METRICS {
        let found =
            neighbors(&rows(&x, dim), &rows(&y, dim), &Options { k, metric, ..Options::default() }).unwrap();
        let mut indices = found.indices.clone();
        indices[3] = NONE;
        let (dq, dk) = gradients(&rows(&x, dim), &rows(&y, dim), metric, (&indices, &g), true).unwrap();
        let pairs: Vec<_> = indices
            .iter()
            .zip(&g)
            .enumerate()
            .filter(|(_, (j, _))| **j != NONE)
            .map(|(place, (j, g))| (place / k, *j as usize, f64::from(*g)))
            .collect();
        let (wide_x, wide_y) = (data::widen(&x), data::widen(&y));
        let (tq, tk) = reference::gradients(&wide_x, &wide_y, dim, metric_of(metric), &pairs);
        // At most b·k terms an element, each of a few roundings; the terms themselves bound the sum.
        let largest = 4.0
            * g.iter().map(|g| f64::from(g.abs())).sum::<f64>()
            * wide_x.iter().chain(&wide_y).fold(1.0, |m: f64, v| m.max(v.abs()));
        let bound = 2f64.powi(-24) * (b * k + 8) as f64 * largest;
        for (got, truth) in dq.iter().zip(&tq).chain(dk.as_deref().unwrap().iter().zip(&tk)) {
            assert!((f64::from(*got) - truth).abs() <= bound, "{metric:?}: {got} against {truth}");
        }
    }
}
