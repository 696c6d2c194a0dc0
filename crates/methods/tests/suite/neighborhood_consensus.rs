//! Neighborhood consensus.

use candle_core::{DType, Device, Tensor};
use consonance_methods::*;
use consonance_reference::contrast as reference;
use consonance_reference::discrimination as scores;
use consonance_testkit::data;

use crate::support::*;

fn base() -> NeighborhoodConsensusConfig {
    NeighborhoodConsensusConfig {
        alpha: 1.0,
        temperature: 0.2,
        discrimination: Discrimination::None,
        credibility: None,
        ..NeighborhoodConsensusConfig::default()
    }
}

/// Pairs written out: who teaches whom with which weight, and who is in whose denominator.
fn reference_pairs(
    case: &Case,
    config: &NeighborhoodConsensusConfig,
    keys: &[usize],
    credible: &[bool],
) -> reference::Pairs {
    let bank = rows(&data::widen(&case.bank), case.old_dim);
    let cosine = |i: usize, j: usize| dot(&bank[case.indices[i] as usize], &bank[keys[j]]);
    let labels = case.labels();
    let same = |i: usize, j: usize| labels[i] == case.bank_labels[keys[j]];
    let nearest = |i: usize, k: usize, own_class: bool| -> Vec<usize> {
        let mut all: Vec<usize> =
            (0..keys.len()).filter(|j| credible[keys[*j]] && (!own_class || same(i, *j))).collect();
        all.sort_by(|a, b| cosine(i, *b).total_cmp(&cosine(i, *a)));
        all.truncate(k);
        all
    };
    let lists: Vec<Vec<usize>> = (0..case.rows)
        .map(|i| match config.positives {
            Positives::ClassNeighbors { k } => nearest(i, k, true),
            Positives::Neighbors { k } => nearest(i, k, false),
            _ => (0..keys.len()).filter(|j| same(i, *j)).collect(),
        })
        .collect();
    let mut pairs =
        reference::Pairs::new(case.rows, keys.len(), |i, j| lists[i].contains(&j)).weighted(|i, j| {
            match config.weights {
                Weights::Half => reference::affinity_half(cosine(i, j)),
                Weights::Exp { temperature } => reference::affinity_exp(cosine(i, j), temperature),
                _ => 1.0,
            }
        });
    pairs = match &config.credibility {
        Some(filter) if filter.leave_denominator => pairs.valid(|j| credible[keys[j]]),
        Some(_) => pairs.credible_positives(|j| credible[keys[j]]),
        None => pairs,
    };
    let by_label = !matches!(config.positives, Positives::Class | Positives::Neighbors { .. });
    if by_label && !config.same_class_negatives {
        let key_labels: Vec<u32> = keys.iter().map(|j| case.bank_labels[*j]).collect();
        pairs = pairs.leave_out_same_label(&labels, &key_labels);
    }
    pairs
}

fn normalizer(config: &NeighborhoodConsensusConfig) -> reference::Normalizer {
    match config.normalization {
        Normalization::Count => reference::Normalizer::Count,
        Normalization::WeightSum => reference::Normalizer::WeightSum,
    }
}

fn others(config: &NeighborhoodConsensusConfig) -> reference::OtherPositives {
    match config.other_teachers {
        OtherTeachers::InDenominator => reference::OtherPositives::InDenominator,
        OtherTeachers::LeftOut => reference::OtherPositives::LeftOut,
    }
}

/// L_emb of given keys.
fn embedding_loss(
    case: &Case,
    config: &NeighborhoodConsensusConfig,
    new: &[f64],
    keys: &[usize],
    credible: &[bool],
) -> f64 {
    let d = case.new_dim.max(case.old_dim);
    let bank = fit_rows(&rows(&data::widen(&case.bank), case.old_dim), d);
    let keys_flat: Vec<f64> = keys.iter().flat_map(|j| bank[*j].clone()).collect();
    let queries: Vec<f64> = fit_rows(&rows(new, case.new_dim), d).concat();
    let pairs = reference_pairs(case, config, keys, credible);
    reference::Problem {
        queries: &queries,
        keys: &keys_flat,
        dim: d,
        temperatures: &vec![config.temperature; case.rows],
        pairs: &pairs,
        normalizer: normalizer(config),
        other_positives: others(config),
    }
    .forward()
    .loss
}

#[test]
fn every_choice_of_the_embedding_space() {
    let (n, half) = (30, Weights::Half);
    for (name, config) in [
        ("class", base()),
        (
            "published form",
            NeighborhoodConsensusConfig {
                normalization: Normalization::Count,
                other_teachers: OtherTeachers::InDenominator,
                ..base()
            },
        ),
        ("exp", NeighborhoodConsensusConfig { weights: Weights::Exp { temperature: 0.3 }, ..base() }),
        ("uniform", NeighborhoodConsensusConfig { weights: Weights::Uniform, ..base() }),
        (
            "class neighbors",
            NeighborhoodConsensusConfig { positives: Positives::ClassNeighbors { k: 3 }, ..base() },
        ),
        (
            "class neighbors, negatives",
            NeighborhoodConsensusConfig {
                positives: Positives::ClassNeighbors { k: 3 },
                same_class_negatives: true,
                weights: Weights::Exp { temperature: 0.5 },
                ..base()
            },
        ),
        (
            "neighbors",
            NeighborhoodConsensusConfig { positives: Positives::Neighbors { k: 4 }, weights: half, ..base() },
        ),
        (
            "more neighbors than there are",
            NeighborhoodConsensusConfig { positives: Positives::ClassNeighbors { k: 100 }, ..base() },
        ),
    ] {
        for dims in [(6, 6), (8, 5), (4, 6)] {
            for filter in [None, Some(true), Some(false)] {
                let case = Case::new(9, n, 4, dims, 61);
                let t = case.tensors();
                let credibility = filter.map(|leave_denominator| CredibilityConfig {
                    leave_denominator,
                    ..CredibilityConfig::default()
                });
                let config = NeighborhoodConsensusConfig { credibility, ..config.clone() };
                let mut method = NeighborhoodConsensus::new(config.clone(), &t.bank()).unwrap();
                let credible: Vec<bool> = (0..n).map(|j| filter.is_none() || j % 4 != 1).collect();
                if filter.is_some() {
                    let mask: Vec<u8> = credible.iter().map(|c| u8::from(*c)).collect();
                    method.set_credible(&Tensor::new(mask, &Device::Cpu).unwrap()).unwrap();
                }
                let terms = method.terms(&t.batch(), &case.classifier(8.0, Margin::None)).unwrap();
                let keys: Vec<usize> = (0..n).collect();
                check_gradient(
                    &format!("{name} {dims:?} {filter:?}"),
                    &terms.total,
                    &t.new,
                    |x| embedding_loss(&case, &config, x, &keys, &credible),
                    2.0 * softmax_bound(5.0, 8, n),
                );
            }
        }
    }
}

#[test]
fn every_form_of_the_discrimination_space() {
    let n = 24;
    for discrimination in [
        Discrimination::Raw { cosine: false },
        Discrimination::Raw { cosine: true },
        Discrimination::Soft { softening: 2.0 },
        Discrimination::Kl { softening: 2.0 },
    ] {
        for dims in [(5, 5), (6, 4)] {
            let case = Case::new(7, n, 4, dims, 71);
            let t = case.tensors();
            let config = NeighborhoodConsensusConfig {
                alpha: 0.0,
                beta: 1.0,
                discrimination,
                score_temperature: 0.5,
                ..base()
            };
            let classifier = case.classifier(4.0, Margin::Cosine(0.1));
            let mut method = NeighborhoodConsensus::new(config.clone(), &t.bank()).unwrap();
            let terms = method.terms(&t.batch(), &classifier).unwrap();
            let keys: Vec<usize> = (0..n).collect();
            let pairs = reference_pairs(&case, &config, &keys, &vec![true; n]);
            let old = fit_rows(&rows(&data::widen(&case.bank), dims.1), dims.0).concat();
            let constant = data::widen(&case.weight);
            let value = |x: &[f64], w: &[f64]| {
                let problem = scores::Discrimination {
                    queries: x,
                    keys: &old,
                    dim: dims.0,
                    weights: w,
                    key_weights: &constant,
                    normalize_rows: true,
                    scale: if matches!(discrimination, Discrimination::Raw { .. }) { 1.0 } else { 2.0 },
                    cosine: discrimination == Discrimination::Raw { cosine: true },
                    temperature: 0.5,
                    pairs: &pairs,
                    normalizer: normalizer(&config),
                    other_positives: others(&config),
                };
                match discrimination {
                    Discrimination::Raw { .. } => problem.contrast(scores::Form::Raw).loss,
                    Discrimination::Soft { .. } => problem.contrast(scores::Form::Soft).loss,
                    _ => problem.divergence().loss,
                }
            };
            // Inner products of 4 scores of at most 1, over a temperature of ½: logits of at most 8.
            let bound = softmax_bound(8.0, dims.0, n);
            let new = data::widen(&case.new);
            let name = format!("{discrimination:?} {dims:?}");
            check_gradient(&format!("features {name}"), &terms.total, &t.new, |x| value(x, &constant), bound);
            let weight = &classifier.variables()[0];
            check_gradient(&format!("classifier {name}"), &terms.total, weight, |w| value(&new, w), bound);
        }
    }
}

#[test]
fn sub_clusters_teach_their_own() {
    // Two classes of two clear sub-clusters each.
    let degrees = [0.0, 4.0, 8.0, 50.0, 54.0, 58.0, 120.0, 124.0, 128.0, 170.0, 174.0, 178.0];
    let case = Case {
        bank: angles(&degrees),
        bank_labels: vec![0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
        new: angles(&[2.0, 130.0]),
        indices: vec![1, 9],
        ..Case::new(2, 12, 2, (2, 2), 1)
    };
    let t = case.tensors();
    for weights in [Weights::Uniform, Weights::SoftAssignment { temperature: 0.1 }] {
        let config =
            NeighborhoodConsensusConfig { positives: Positives::SubClusters { most: 8 }, weights, ..base() };
        let mut method = NeighborhoodConsensus::new(config, &t.bank()).unwrap();
        let terms = method.terms(&t.batch(), &case.classifier(8.0, Margin::None)).unwrap();
        // √(6/2) rounds to 2. With teachers {0°, 4°, 8°} and {170°, 174°, 178°} and the other class as negatives.
        let row = |angle: f64, teachers: &[f64], negatives: &[f64]| {
            let score = |a: &f64| (angle - a).to_radians().cos() / 0.2;
            let z: f64 = negatives.iter().map(|a| score(a).exp()).sum();
            let center = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
            let own = center(teachers);
            let class = if own < 100.0 { [4.0, 54.0] } else { [124.0, 174.0] };
            let weight = |a: &f64| match weights {
                Weights::SoftAssignment { temperature } => {
                    let e = |c: f64| ((a - c).to_radians().cos() / temperature).exp();
                    e(own) / class.iter().map(|c| e(*c)).sum::<f64>()
                }
                _ => 1.0,
            };
            let sum: f64 = teachers.iter().map(weight).sum();
            teachers.iter().map(|a| weight(a) / sum * (1.0 + z * (-score(a)).exp()).ln()).sum::<f64>()
        };
        let truth = 0.5 * (row(2.0, &degrees[..3], &degrees[6..]) + row(130.0, &degrees[9..], &degrees[..6]));
        assert!((number(&terms.total) - truth).abs() < 1e-5 * truth, "{weights:?}");
    }
}

fn steps(case: &Case) -> Vec<Vec<u32>> {
    (0..6u32).map(|s| (0..5).map(|i| (s * 5 + i * 3) % case.bank_labels.len() as u32).collect()).collect()
}

fn of(case: &Case, indices: &[u32]) -> Case {
    Case {
        rows: indices.len(),
        new: data::unit(indices.len(), case.new_dim, u64::from(indices[0])),
        indices: indices.to_vec(),
        bank: case.bank.clone(),
        bank_labels: case.bank_labels.clone(),
        weight: case.weight.clone(),
        ..*case
    }
}

#[test]
fn a_partly_filled_queue_is_a_shorter_queue_and_a_full_one_forgets() {
    let case = Case::new(5, 40, 4, (6, 6), 81);
    for positives in
        [Positives::Class, Positives::ClassNeighbors { k: 3 }, Positives::SubClusters { most: 4 }]
    {
        let with = |length| NeighborhoodConsensusConfig { keys: Keys::Queue { length }, positives, ..base() };
        let t = case.tensors();
        let mut long = NeighborhoodConsensus::new(with(1000), &t.bank()).unwrap();
        let mut exact = NeighborhoodConsensus::new(with(30), &t.bank()).unwrap();
        let mut short = NeighborhoodConsensus::new(with(12), &t.bank()).unwrap();
        for (step, indices) in steps(&case).iter().enumerate() {
            let case = of(&case, indices);
            let t = case.tensors();
            let classifier = case.classifier(8.0, Margin::None);
            let value = |m: &mut NeighborhoodConsensus| {
                m.terms(&t.batch(), &classifier).unwrap().total.to_scalar::<f32>().unwrap()
            };
            let (a, b) = (value(&mut long), value(&mut exact));
            assert_eq!(a.to_bits(), b.to_bits(), "step {step} {positives:?}");
            let c = f64::from(value(&mut short));
            if positives == Positives::Class {
                let pushed: Vec<u32> = steps(&self::of(&case, indices))[..=step].concat();
                let kept: Vec<usize> =
                    pushed[pushed.len().saturating_sub(12)..].iter().map(|i| *i as usize).collect();
                let truth = embedding_loss(&case, &with(12), &data::widen(&case.new), &kept, &[true; 40]);
                assert!((c - truth).abs() < 1e-5 * truth.max(1.0), "step {step}: {c} vs {truth}");
            }
        }
    }
}

#[test]
fn a_resumed_run_continues_with_the_same_bits() {
    let case = Case::new(5, 40, 4, (6, 6), 83);
    for length in [12, 1000] {
        let config = NeighborhoodConsensusConfig { keys: Keys::Queue { length }, ..base() };
        let t = case.tensors();
        let mut method = NeighborhoodConsensus::new(config.clone(), &t.bank()).unwrap();
        let mut resumed = NeighborhoodConsensus::new(config, &t.bank()).unwrap();
        for (step, indices) in steps(&case).iter().enumerate() {
            let case = of(&case, indices);
            let t = case.tensors();
            let classifier = case.classifier(8.0, Margin::None);
            if step >= 3 {
                resumed.restore(&method.state().unwrap()).unwrap();
            }
            let value = |m: &mut NeighborhoodConsensus| {
                m.terms(&t.batch(), &classifier).unwrap().total.to_scalar::<f32>().unwrap().to_bits()
            };
            if step >= 3 {
                assert_eq!(value(&mut resumed), value(&mut method), "step {step}");
            } else {
                value(&mut method);
            }
        }
        let mut state = method.state().unwrap();
        state.insert("queue.ids".to_owned(), vector(&[99]));
        assert!(resumed.restore(&state).unwrap_err().to_string().contains("queue.ids"));
        state.insert("queue.ids".to_owned(), vector(&vec![0; 1001]));
        assert!(resumed.restore(&state).is_err());
    }
}

#[test]
fn a_batch_in_shards_sums_to_the_whole() {
    // With the whole bank as keys, rows know nothing of each other.
    let case = Case::new(8, 40, 4, (6, 6), 85);
    let t = case.tensors();
    let classifier = case.classifier(8.0, Margin::None);
    let config =
        NeighborhoodConsensusConfig { discrimination: Discrimination::Kl { softening: 1.0 }, ..base() };
    let mut method = NeighborhoodConsensus::new(config, &t.bank()).unwrap();
    let whole = method.terms(&t.batch(), &classifier).unwrap();
    let gradient = |x: &Tensor| x.backward().unwrap().get(&t.new).unwrap().to_vec2::<f32>().unwrap();
    let whole_gradient = gradient(&whole.total);
    for shard in 0..2 {
        let part = |x: &Tensor| x.narrow(0, shard * 4, 4).unwrap().contiguous().unwrap();
        let (new, old) = (t.new.as_tensor().narrow(0, shard * 4, 4).unwrap(), part(&t.old));
        let (labels, indices) = (part(&t.labels), part(&t.indices));
        let batch = Batch { new: &new, old: &old, labels: &labels, indices: &indices, ..t.batch() };
        let terms = method.terms(&batch, &classifier).unwrap();
        let rows = gradient(&(terms.total * 0.5).unwrap());
        for row in shard * 4..shard * 4 + 4 {
            for (a, b) in rows[row].iter().zip(&whole_gradient[row]) {
                // The mean of means rounds once more than the mean.
                assert!((a - b).abs() <= 8.0 * U as f32 * b.abs().max(0.1), "row {row}: {a} vs {b}");
            }
        }
    }
}

#[test]
fn configurations_survive_files_and_are_checked() {
    for name in MethodConfig::NAMES {
        let config = MethodConfig::by_name(name).unwrap();
        assert_eq!(config.name(), *name);
        config.validate().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MethodConfig>(&text).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<MethodConfig>(&format!(r#"{{"method":"{name}"}}"#)).unwrap(),
            config
        );
        let unknown = serde_json::from_str::<MethodConfig>(&format!(r#"{{"method":"{name}","alfa":1}}"#));
        assert!(unknown.is_err(), "{name}");
        let case = Case::new(6, 24, 3, (5, 4), 91);
        let t = case.tensors();
        let mut method = build(&config, &t.bank()).unwrap();
        assert_eq!(method.name(), *name);
        let classifier = case.classifier(8.0, Margin::Cosine(0.1));
        let mixed = method.mix(&t.batch()).unwrap();
        assert_eq!(mixed.dims(), t.new.dims());
        let terms = method.terms(&t.batch(), &classifier).unwrap();
        let total = (terms.total + classifier.loss(&mixed, &t.labels).unwrap()).unwrap();
        let grads = total.backward().unwrap();
        assert!(grads.get(&t.new).is_some(), "{name}");
        method.restore(&method.state().unwrap()).unwrap();
    }
    assert!(MethodConfig::by_name("nccl").unwrap_err().to_string().contains("neighborhood-consensus"));
    let default = NeighborhoodConsensusConfig::default;
    for bad in [
        NeighborhoodConsensusConfig { alpha: -1.0, ..default() },
        NeighborhoodConsensusConfig { beta: f64::NAN, ..default() },
        NeighborhoodConsensusConfig { temperature: 0.0, ..default() },
        NeighborhoodConsensusConfig { score_temperature: -0.1, ..default() },
        NeighborhoodConsensusConfig { positives: Positives::Neighbors { k: 0 }, ..default() },
        NeighborhoodConsensusConfig { positives: Positives::ClassNeighbors { k: 1025 }, ..default() },
        NeighborhoodConsensusConfig { positives: Positives::SubClusters { most: 0 }, ..default() },
        NeighborhoodConsensusConfig { weights: Weights::SoftAssignment { temperature: 0.1 }, ..default() },
        NeighborhoodConsensusConfig { weights: Weights::Exp { temperature: 0.0 }, ..default() },
        NeighborhoodConsensusConfig { discrimination: Discrimination::Kl { softening: 0.0 }, ..default() },
        NeighborhoodConsensusConfig { keys: Keys::Queue { length: 0 }, ..default() },
        NeighborhoodConsensusConfig {
            credibility: Some(CredibilityConfig { nearest: Some(1), ..CredibilityConfig::default() }),
            ..default()
        },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
    NeighborhoodConsensusConfig::published().validate().unwrap();
}

#[test]
fn batches_that_are_not_of_the_bank_are_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    let classifier = case.classifier(8.0, Margin::None);
    let mut method = NeighborhoodConsensus::new(base(), &t.bank()).unwrap();
    let far = vector(&[0, 1, 2, 8]);
    let message = |r: Result<Terms>| r.unwrap_err().to_string();
    let batch = Batch { indices: &far, ..t.batch() };
    assert!(message(method.terms(&batch, &classifier)).contains("rows of the bank in 0..8"));
    let narrow = t.old.narrow(1, 0, 2).unwrap();
    let batch = Batch { old: &narrow, ..t.batch() };
    assert!(message(method.terms(&batch, &classifier)).contains("`old`"));
    let half = t.new.to_dtype(DType::F16).unwrap();
    let batch = Batch { new: &half, ..t.batch() };
    assert!(message(method.terms(&batch, &classifier)).contains("`new`"));
    assert!(method.set_credible(&Tensor::ones(8, DType::U8, &Device::Cpu).unwrap()).is_err());
}
