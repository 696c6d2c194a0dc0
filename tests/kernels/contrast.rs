//! The contrastive loss by kernels, through the op and through a training step of neighborhood consensus.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    Admission, AffinityMap, Closeness, Contrast, ContrastOptions, Normalizer, OtherPositives, Pairs,
    Products, Temperature, contrast, contrast_symmetric,
};
use consonance_methods::{
    Batch, CompatibleMethod, CosineClassifier, CosineClassifierConfig, Discrimination, Margin,
    NeighborhoodConsensus, NeighborhoodConsensusConfig, Normalization, OldBank, OtherTeachers, Positives,
};
use consonance_testkit::data;
use consonance_testkit::suite::{Between, between_backends};

use super::with_kernels;

const TAU: f64 = 0.2;

fn unit(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

fn labels(rows: usize, classes: u32, seed: u64) -> Tensor {
    Tensor::from_vec(data::labels(rows, classes, seed), rows, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let wide = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    wide.to_vec1().unwrap()
}

/// Compares two tensors and says how much of the bound their difference takes.
fn close(what: &str, got: &Tensor, expected: &Tensor, bound: f64) {
    assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()), "{what}");
    let both = values(got).into_iter().zip(values(expected));
    let worst = both.map(|(got, expected)| (got - expected).abs()).fold(0.0, f64::max);
    println!("{what}: difference / bound {:.1e}", worst / bound);
    assert!(worst <= bound, "{what}: {worst:e} apart, expected at most {bound:e}");
}

/// A loss with all its gradients.
struct Found {
    contrast: Contrast,
    gradients: Vec<Tensor>,
}

fn found(
    [queries, keys, temperature]: [&Var; 3],
    run: impl Fn(&Tensor, &Tensor, &Temperature) -> consonance::Result<Contrast>,
) -> Found {
    // Views in the graph, so that gradients go on behind the op.
    let x = (queries.as_tensor() * 0.5).unwrap().t().unwrap().contiguous().unwrap().t().unwrap();
    let x = (x * 2.0).unwrap();
    let contrast = run(&x, keys.as_tensor(), &Temperature::Learned(temperature.as_tensor().clone())).unwrap();
    let grads = contrast.loss.backward().unwrap();
    let gradients = [queries, keys, temperature].map(|var| grads.get(var).unwrap().clone()).to_vec();
    Found { contrast, gradients }
}

/// What is launched at least, and of how many rows' losses a side has a share.
struct Expected {
    launched: [&'static str; 2],
    shares: [f64; 3],
}

fn compare(what: &str, bound: Between, of: impl Fn(&Found) -> Expected, run: impl Fn() -> Found) -> bool {
    let expected = run();
    let Some((got, launched)) = with_kernels(&run) else { return false };
    close(&format!("{what}: losses"), &got.contrast.per_row, &expected.contrast.per_row, bound.loss);
    close(&format!("{what}: lse"), &got.contrast.log_sum_exp, &expected.contrast.log_sum_exp, bound.loss);
    assert_eq!(got.contrast.anchors, expected.contrast.anchors, "{what}");
    let of = of(&expected);
    let gradients = got.gradients.iter().zip(&expected.gradients).zip(of.shares);
    for (name, ((got, expected), share)) in ["queries", "keys", "temperature"].iter().zip(gradients) {
        close(&format!("{what}: gradient of the {name}"), got, expected, bound.gradient * share);
    }
    for kernel in of.launched {
        assert!(launched.iter().any(|name| name.starts_with(kernel)), "{what}: {launched:?}");
    }
    true
}

/// Of the mean over the rows: a query has its own row's share.
fn one_way(expected: &Found) -> Expected {
    let shares = [1.0 / expected.contrast.anchors as f64, 1.0, 1.0 / TAU];
    Expected { launched: ["contrast_rows", "contrast_keys"], shares }
}

#[test]
fn every_rule_gives_the_loss_and_the_gradients_of_the_cpu() {
    let (b, n, dim) = (9, 70, 24);
    let (queries, keys) =
        (Var::from_tensor(&unit(b, dim, 1)).unwrap(), Var::from_tensor(&unit(n, dim, 2)).unwrap());
    let temperature = Var::from_tensor(&Tensor::new(&[TAU as f32], &Device::Cpu).unwrap()).unwrap();
    let (q, k) = (labels(b, 5, 3), labels(n, 5, 4));
    let mask = labels(n, 3, 5).to_dtype(DType::U8).unwrap();
    let (old_q, old_k) = (unit(b, 7, 6), (unit(n, 7, 7) * 3.0).unwrap().to_dtype(DType::BF16).unwrap());
    // Neighbors in no order, with places that hold none.
    let near: Vec<u32> =
        (0..b * 4).map(|i| if i % 7 == 3 { u32::MAX } else { (61 - i % 4 * 15 - i / 4) as u32 }).collect();
    let near = Tensor::from_vec(near, (b, 4), &Device::Cpu).unwrap();
    let weights = Tensor::from_vec(
        data::labels(b * 4, 4, 8).iter().map(|w| *w as f32 / 3.0).collect(),
        (b, 4),
        &Device::Cpu,
    );
    let weights = weights.unwrap();
    let offsets = Tensor::from_vec((0..=b as u32).map(|i| i * 2).collect(), b + 1, &Device::Cpu).unwrap();
    let listed =
        Tensor::from_vec((0..2 * b as i64).map(|i| 69 - 3 * i).collect(), 2 * b, &Device::Cpu).unwrap();
    let sets = |rows, seed| {
        Tensor::from_vec(data::labels(rows * 2, 1 << 30, seed), (rows, 2), &Device::Cpu).unwrap()
    };
    let of_rows = |rows, seed| unit(1, rows, seed).flatten_all().unwrap();
    let times = Closeness::Times { queries: of_rows(b, 10), keys: of_rows(n, 11), scale: 0.3 };
    let all = [
        ("labels", Pairs::labels(&q.to_dtype(DType::I64).unwrap(), &k), None),
        ("diagonal", Pairs::diagonal().valid(&mask), None),
        ("lists", Pairs::lists(&offsets, &listed, None), None),
        ("neighbors", Pairs::neighbors(&near, Some(&weights)), None),
        ("bits", Pairs::bits(&sets(b, 1), &sets(n, 2), 16), None),
        (
            "old embeddings",
            Pairs::labels(&q, &k).affinity(&old_q, &old_k, AffinityMap::Half).leave_out_same_label(&q, &k),
            Some(AffinityMap::Half),
        ),
        (
            "all",
            Pairs::all().affinity(&old_q, &old_k, AffinityMap::Half).credible_positives(&mask),
            Some(AffinityMap::Half),
        ),
        (
            "options",
            Pairs::labels(&q, &k)
                .ignore_same_id(&labels(b, 9, 1), &labels(n, 9, 2))
                .denominator_weights(&(&mask.to_dtype(DType::F16).unwrap() * 0.5).unwrap()),
            None,
        ),
        (
            "pace",
            Pairs::labels(&q, &k).pace((&labels(b, 3, 8), &labels(n, 3, 9)), times, 0.6, Admission::Hard),
            None,
        ),
        (
            "pace, features",
            Pairs::diagonal().pace(
                (&labels(b, 2, 8), &labels(n, 2, 9)),
                Closeness::Features { queries: old_q.clone(), keys: old_k.clone() },
                0.5,
                Admission::Hard,
            ),
            None,
        ),
    ];
    for (name, pairs, map) in all {
        for other_positives in [OtherPositives::InDenominator, OtherPositives::LeftOut] {
            let options = ContrastOptions {
                other_positives,
                normalizer: Normalizer::WeightSum,
                ..ContrastOptions::default()
            };
            // A negative with a weight of its own is summed alone, where others are by tiles of 64 keys.
            let summed = if name.starts_with("pace") { 64 * n } else { n };
            let bound = between_backends([summed, dim, 7], TAU, map);
            let run =
                || found([&queries, &keys, &temperature], |x, y, tau| contrast(x, y, tau, &pairs, &options));
            if !compare(&format!("{name}, {other_positives:?}"), bound, one_way, run) {
                return;
            }
        }
    }
}

#[test]
fn the_symmetric_form_is_that_of_the_cpu() {
    let (n, dim) = (20, 12);
    let (x, y) = (Var::from_tensor(&unit(n, dim, 1)).unwrap(), Var::from_tensor(&unit(n, dim, 2)).unwrap());
    let temperature = Var::from_tensor(&Tensor::new(TAU as f32, &Device::Cpu).unwrap()).unwrap();
    let near =
        Tensor::from_vec((0..n as u32 * 2).map(|i| i * 7 % 20).collect(), (n, 2), &Device::Cpu).unwrap();
    let mask = labels(n, 5, 5).to_dtype(DType::U8).unwrap();
    let (of_x, of_y) = (labels(n, 4, 6), labels(n, 4, 7));
    let sets = |seed| Tensor::from_vec(data::labels(n * 2, 1 << 30, seed), (n, 2), &Device::Cpu).unwrap();
    let (old_x, old_y) = (unit(n, 5, 8), unit(n, 5, 9));
    let close = Closeness::Features { queries: old_x.clone(), keys: old_y.clone() };
    // Each side has the means of both directions, half each.
    let shares = [1.0, 1.0, 1.0 / TAU];
    let one_pass = ["contrast_symmetric_sums", "contrast_symmetric_gradient"];
    let all = [
        ("diagonal", Pairs::diagonal(), one_pass, None),
        ("neighbors", Pairs::neighbors(&near, None).valid(&mask), one_pass, None),
        (
            "labels",
            Pairs::labels(&of_x, &of_y).ignore_same_id(&labels(n, 9, 1), &labels(n, 9, 2)),
            one_pass,
            None,
        ),
        ("bits", Pairs::bits(&sets(1), &sets(2), 16).credible_positives(&mask), one_pass, None),
        (
            "old embeddings",
            Pairs::labels(&of_x, &of_y).affinity(&old_x, &old_y, AffinityMap::Half),
            one_pass,
            Some(AffinityMap::Half),
        ),
        ("all", Pairs::all(), ["contrast_rows", "contrast_keys"], None),
        (
            "pace",
            Pairs::diagonal().pace((&of_x, &of_y), close, 0.5, Admission::Hard),
            ["contrast_pace_rows", "contrast_pace_keys"],
            None,
        ),
    ];
    for (name, pairs, launched, map) in all {
        for other_positives in [OtherPositives::InDenominator, OtherPositives::LeftOut] {
            let options = ContrastOptions {
                other_positives,
                normalizer: Normalizer::WeightSum,
                ..ContrastOptions::default()
            };
            let run =
                || found([&x, &y, &temperature], |x, y, tau| contrast_symmetric(x, y, tau, &pairs, &options));
            let what = format!("symmetric, {name}, {other_positives:?}");
            let of = |_: &Found| Expected { launched, shares };
            let summed = if name == "pace" { 64 * n } else { n };
            if !compare(&what, between_backends([summed, dim, 5], TAU, map), of, run) {
                return;
            }
        }
    }
    // What is not tracked costs nothing.
    let frozen = y.as_tensor().detach();
    let run = || {
        let tau = Temperature::Fixed(TAU);
        let found = contrast_symmetric(&x, &frozen, &tau, &Pairs::diagonal(), &ContrastOptions::default());
        found.unwrap().loss.backward().unwrap()
    };
    let (grads, launched) = with_kernels(run).unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&frozen).is_none());
    assert!(!launched.iter().any(|name| name.starts_with("contrast_rows")), "{launched:?}");
}

#[test]
fn errors_name_the_argument_and_leave_the_device_usable() {
    let (queries, keys) = (unit(3, 5, 1), unit(8, 5, 2));
    let tau = Temperature::Fixed(0.1);
    let pairs = Pairs::labels(&labels(3, 2, 1), &labels(8, 2, 2));
    let run = |keys: &Tensor, tau: &Temperature, pairs: &Pairs, options: &ContrastOptions| {
        contrast(&queries, keys, tau, pairs, options).map(|_| ()).map_err(|error| error.to_string())
    };
    let options = ContrastOptions::default();
    let plain = ContrastOptions { products: Products::F32, ..options };
    let spoilt = (&keys / 0.0).unwrap();
    let negative = Tensor::new(&[-1f32; 8], &Device::Cpu).unwrap();
    let zeros = Tensor::zeros((8, 4), DType::F32, &Device::Cpu).unwrap();
    let twice = Tensor::new(&[[1u32, 1], [0, 2], [3, u32::MAX]], &Device::Cpu).unwrap();
    let groups = (labels(3, 2, 3), labels(8, 2, 4));
    let late = Closeness::Times {
        queries: Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(),
        keys: Tensor::new(&[0f32, 1., f32::NAN, 0., 0., 0., 0., 0.], &Device::Cpu).unwrap(),
        scale: 1.0,
    };
    let cases = [
        (&keys.to_dtype(DType::F16).unwrap(), &tau, pairs.clone(), &options, "`keys`"),
        (&spoilt, &tau, pairs.clone(), &options, "`keys` row 0"),
        (&keys, &Temperature::Fixed(0.0), pairs.clone(), &options, "`temperature`"),
        (&keys, &tau, pairs.clone().denominator_weights(&negative), &options, "`denominator_weights`"),
        (
            &keys,
            &tau,
            pairs.clone().affinity(&unit(3, 4, 1), &zeros, AffinityMap::Half),
            &options,
            "`old_keys` row 0",
        ),
        (&keys, &tau, Pairs::neighbors(&twice, None), &options, "`indices`"),
        (&keys, &tau, Pairs::labels(&labels(3, 2, 1), &labels(7, 2, 2)), &options, "`key_labels`"),
        (&keys, &tau, pairs.clone(), &plain, "`products`"),
        (
            &keys,
            &tau,
            pairs.clone().pace((&groups.0, &groups.1), late, 0.5, Admission::Soft),
            &options,
            "`key_times` row 2",
        ),
    ];
    for (keys, tau, pairs, options, name) in &cases {
        let Some((text, _)) = with_kernels(|| run(keys, tau, pairs, options).unwrap_err()) else { return };
        assert!(text.starts_with("contrast: ") && text.contains(name), "{text}, expected {name}");
    }
    assert!(with_kernels(|| run(&keys, &tau, &pairs, &options)).unwrap().0.is_ok());
}

#[test]
fn a_training_step_of_neighborhood_consensus_is_that_of_the_cpu() {
    let (b, n, classes, dim) = (12, 90, 5, 24);
    let (bank, bank_labels) = (unit(n, dim, 1), labels(n, classes, 2));
    let indices =
        Tensor::from_vec((0..b as u32).map(|i| (i * 7 + 3) % n as u32).collect(), b, &Device::Cpu).unwrap();
    let new = Var::from_tensor(&unit(b, dim, 3)).unwrap();
    let weight = unit(classes as usize, dim, 4);
    let published = NeighborhoodConsensusConfig {
        temperature: TAU,
        score_temperature: TAU,
        normalization: Normalization::Count,
        other_teachers: OtherTeachers::InDenominator,
        credibility: None,
        ..NeighborhoodConsensusConfig::default()
    };
    let configs = [
        published.clone(),
        NeighborhoodConsensusConfig {
            discrimination: Discrimination::Raw { cosine: true },
            ..published.clone()
        },
        NeighborhoodConsensusConfig {
            positives: Positives::ClassNeighbors { k: 6 },
            other_teachers: OtherTeachers::LeftOut,
            normalization: Normalization::WeightSum,
            ..published
        },
    ];
    for config in configs {
        let step = || {
            let old_bank = OldBank {
                embeddings: &bank,
                labels: &bank_labels,
                classes: classes as usize,
                dimension: dim,
                seed: 7,
            };
            let mut method = NeighborhoodConsensus::new(config.clone(), &old_bank).unwrap();
            let classifier = CosineClassifier::from_weight(
                &weight,
                CosineClassifierConfig { scale: 8.0, margin: Margin::None },
            );
            let batch = Batch {
                new: new.as_tensor(),
                old: &bank.index_select(&indices, 0).unwrap(),
                labels: &bank_labels.index_select(&indices, 0).unwrap(),
                indices: &indices,
                progress: 0.5,
                epoch: 1,
                epochs: 2,
            };
            let terms = method.terms(&batch, &classifier.unwrap()).unwrap();
            let gradient = terms.total.backward().unwrap().get(&new).unwrap().clone();
            (terms.total, gradient)
        };
        let expected = step();
        let Some((got, launched)) = with_kernels(step) else { return };
        assert!(launched.iter().any(|name| name.starts_with("contrast_targets")), "{launched:?}");
        // Both spaces; the raw scores of C classes are at most C in size for the embedding's 1.
        let bound = between_backends([n, dim, dim], TAU, Some(AffinityMap::Half));
        let spaces = config.alpha + config.beta * f64::from(classes);
        close("neighborhood consensus: loss", &got.0, &expected.0, spaces * bound.loss);
        close(
            "neighborhood consensus: gradient",
            &got.1,
            &expected.1,
            spaces * f64::from(classes) * bound.gradient,
        );
    }
}
