//! A toy upgrade: every image is a class's latent vector seen through noisy channels; the linear old model sees half of
//! the channels, the linear new model all of them. Models are tested on classes that no training has seen.

use candle_core::{DType, Device, Tensor, Var};
use consonance_methods::*;
use consonance_testkit::data;

use crate::support::{matrix, number, vector};

const INPUT: usize = 16;
const DIM: usize = 8;
const CLASSES: usize = 24;
const PER_CLASS: usize = 10;
const TRAIN: usize = 16;

struct World {
    /// Inputs of training and of test classes.
    train: Tensor,
    train_labels: Vec<u32>,
    test: Tensor,
    test_labels: Vec<u32>,
    old_train: Tensor,
    old_test: Tensor,
}

fn unit_rows(x: &Tensor) -> Tensor {
    let norms = x.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    x.broadcast_div(&norms).unwrap()
}

fn world() -> World {
    let latent = matrix(&data::normal(CLASSES, DIM, 1), CLASSES, DIM);
    let channels = matrix(&data::normal(DIM, INPUT, 8), DIM, INPUT);
    let centers: Vec<f32> = latent.matmul(&channels).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let noise = data::normal(CLASSES * PER_CLASS, INPUT, 2);
    let inputs: Vec<f32> = (0..CLASSES * PER_CLASS * INPUT)
        .map(|i| centers[i / (PER_CLASS * INPUT) * INPUT + i % INPUT] + 2.5 * noise[i])
        .collect();
    let labels: Vec<u32> = (0..CLASSES * PER_CLASS).map(|i| (i / PER_CLASS) as u32).collect();
    let (n, rows) = (TRAIN * PER_CLASS, CLASSES * PER_CLASS);
    let all = matrix(&inputs, rows, INPUT);
    // The old model sees the first half of the input through a random map of its own.
    let old_map = matrix(&data::normal(INPUT / 2, DIM, 3), INPUT / 2, DIM);
    let old = unit_rows(&all.narrow(1, 0, INPUT / 2).unwrap().matmul(&old_map).unwrap());
    World {
        train: all.narrow(0, 0, n).unwrap(),
        train_labels: labels[..n].to_vec(),
        test: all.narrow(0, n, rows - n).unwrap(),
        test_labels: labels[n..].to_vec(),
        old_train: old.narrow(0, 0, n).unwrap().contiguous().unwrap(),
        old_test: old.narrow(0, n, rows - n).unwrap().contiguous().unwrap(),
    }
}

/// Mean average precision of queries in a gallery of the same items, the item itself excluded.
fn map(queries: &Tensor, gallery: &Tensor, labels: &[u32]) -> f64 {
    let scores = queries.matmul(&gallery.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
    let mut sum = 0.0;
    for (i, row) in scores.iter().enumerate() {
        let mut order: Vec<usize> = (0..row.len()).filter(|j| *j != i).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let (mut hits, mut precision) = (0.0, 0.0);
        for (rank, j) in order.iter().enumerate() {
            if labels[*j] == labels[i] {
                hits += 1.0;
                precision += hits / (rank + 1) as f64;
            }
        }
        sum += precision / hits;
    }
    sum / scores.len() as f64
}

struct Outcome {
    own: f64,
    cross: f64,
}

/// Trains a linear new model for `epochs` of full batches by gradient descent with momentum.
fn train(w: &World, old: &Tensor, config: Option<&MethodConfig>) -> Outcome {
    let device = Device::Cpu;
    let map_new =
        Var::from_tensor(&(matrix(&data::normal(INPUT, DIM, 4), INPUT, DIM) * 0.25).unwrap()).unwrap();
    let config_new = CosineClassifierConfig { scale: 12.0, margin: Margin::Cosine(0.1) };
    let classifier = CosineClassifier::new(TRAIN, DIM, config_new, 5, &device).unwrap();
    let labels = vector(&w.train_labels);
    let bank = OldBank { embeddings: old, labels: &labels, classes: TRAIN, dimension: DIM, seed: 6 };
    let mut method = config.map(|config| build(config, &bank).unwrap());
    let indices = vector(&(0..w.train_labels.len() as u32).collect::<Vec<_>>());
    let mut variables = vec![map_new.clone()];
    variables.extend(classifier.variables());
    variables.extend(method.iter().flat_map(|m| m.variables()));
    let mut momentum: Vec<Tensor> = variables.iter().map(|v| v.zeros_like().unwrap()).collect();
    let epochs = 120;
    for epoch in 0..epochs {
        let new = unit_rows(&w.train.matmul(map_new.as_tensor()).unwrap());
        let loss = match &mut method {
            None => classifier.loss(&new, &labels).unwrap(),
            Some(method) => {
                let wanted = method.wants_embeddings(epoch, epochs).then(|| new.detach());
                method.start_epoch(epoch, epochs, wanted.as_ref()).unwrap();
                let progress = epoch as f64 / epochs as f64;
                let batch =
                    Batch { new: &new, old, labels: &labels, indices: &indices, progress, epoch, epochs };
                let mixed = method.mix(&batch).unwrap();
                let own = classifier.loss(&mixed, &labels).unwrap();
                let terms = method.terms(&batch, &classifier).unwrap();
                ((own * method.classification_weight()).unwrap() + terms.total).unwrap()
            }
        };
        let grads = loss.backward().unwrap();
        for (var, m) in variables.iter().zip(&mut momentum) {
            if let Some(g) = grads.get(var) {
                *m = ((&*m * 0.9).unwrap() + g).unwrap();
                var.set(&(var.as_tensor() - (&*m * 0.05).unwrap()).unwrap()).unwrap();
            }
        }
    }
    let new = unit_rows(&w.test.matmul(map_new.as_tensor()).unwrap()).detach();
    Outcome { own: map(&new, &new, &w.test_labels), cross: map(&new, &w.old_test, &w.test_labels) }
}

#[test]
fn cross_test_beats_the_old_model_and_the_independent_model_is_near_chance() {
    let w = world();
    let old = map(&w.old_test, &w.old_test, &w.test_labels);
    let chance = map(
        &matrix(&data::unit(w.test_labels.len(), DIM, 77), w.test_labels.len(), DIM),
        &w.old_test,
        &w.test_labels,
    );
    let alone = train(&w, &w.old_train, None);
    println!("old {old:.3}, chance {chance:.3}, independent self {:.3} cross {:.3}", alone.own, alone.cross);
    assert!(alone.own > old);
    assert!(alone.cross < chance + 0.1, "an independent model is not comparable: {}", alone.cross);
    let outcomes: Vec<(&str, Outcome)> = MethodConfig::NAMES
        .iter()
        .map(|name| (*name, train(&w, &w.old_train, Some(&MethodConfig::by_name(name).unwrap()))))
        .collect();
    for (name, out) in &outcomes {
        println!("{name}: self {:.3} cross {:.3}", out.own, out.cross);
    }
    for (name, out) in &outcomes {
        assert!(out.cross > alone.cross + 0.1, "{name} makes the models comparable");
        if *name == "neighborhood-consensus" {
            assert!(out.cross > old, "cross-test {} above the old model's {old}", out.cross);
            assert!(out.own > 0.99 * alone.own, "self-test {} against {}", out.own, alone.own);
        }
    }
    let config =
        NeighborhoodConsensusConfig { alpha: 0.0, beta: 0.0, ..NeighborhoodConsensusConfig::default() };
    let off = train(&w, &w.old_train, Some(&MethodConfig::NeighborhoodConsensus(config)));
    assert!((off.cross - alone.cross).abs() < 1e-6 && (off.own - alone.own).abs() < 1e-6);
}

#[test]
fn the_filter_helps_under_planted_noise() {
    let w = world();
    // A tenth of the old embeddings is replaced by that of an image of another class.
    let n = w.train_labels.len();
    let planted: Vec<usize> = (0..n).filter(|i| i % 10 == 3).collect();
    let mut from: Vec<u32> = (0..n as u32).collect();
    for i in &planted {
        from[*i] = ((i + 5 * PER_CLASS) % n) as u32;
    }
    let noisy = w.old_train.index_select(&vector(&from), 0).unwrap();
    let config =
        |credibility| NeighborhoodConsensusConfig { credibility, ..NeighborhoodConsensusConfig::default() };
    let labels = vector(&w.train_labels);
    let bank = OldBank { embeddings: &noisy, labels: &labels, classes: TRAIN, dimension: DIM, seed: 6 };
    let with = config(Some(CredibilityConfig::default()));
    let method = NeighborhoodConsensus::new(with.clone(), &bank).unwrap();
    let credible = method.credible().to_vec1::<u8>().unwrap();
    let found = planted.iter().filter(|i| credible[**i] == 0).count();
    let alarms = (0..n).filter(|i| credible[*i] == 0 && !planted.contains(i)).count();
    println!("found {found} of {}, {alarms} false alarms of {}", planted.len(), n - planted.len());
    assert!(found as f64 >= 0.8 * planted.len() as f64);
    let on = train(&w, &noisy, Some(&MethodConfig::NeighborhoodConsensus(with)));
    let off = train(&w, &noisy, Some(&MethodConfig::NeighborhoodConsensus(config(None))));
    println!("with filter {:.4}, without {:.4}", on.cross, off.cross);
    assert!(on.cross > off.cross);
}

#[test]
fn procrustes_maps_the_independent_model() {
    let w = world();
    let x = |seed| unit_rows(&w.train.matmul(&matrix(&data::normal(INPUT, DIM, seed), INPUT, DIM)).unwrap());
    let fitted = Procrustes::fit(&x(9), &w.old_train).unwrap();
    let test = unit_rows(&w.test.matmul(&matrix(&data::normal(INPUT, DIM, 9), INPUT, DIM)).unwrap());
    let raw = map(&test, &w.old_test, &w.test_labels);
    let mapped = map(&fitted.to_old(&test).unwrap(), &w.old_test, &w.test_labels);
    println!("raw {raw:.3}, mapped {mapped:.3}");
    assert!(mapped > raw + 0.05);
    assert_eq!(fitted.rotation().dtype(), DType::F32);
    assert!(number(&fitted.rotation().sqr().unwrap().sum_all().unwrap()) > DIM as f64 - 0.01);
}
