//! Two networks that learn from each other's embeddings, beside two that learn alone.
//!
//! ```sh
//! cargo run --release --example mutual
//! ```
//!
//! Emoji-ID: 30 % of the training identities, two images of each in every batch, as Yang et al. (AAAI 2022) have it. All
//! variants train two networks with a classifier each; all but the first add losses of mutual contrastive learning, to the
//! embeddings themselves or, as published, to a head over them. Tested on identities that no network has seen: mAP of a
//! network by itself, the mean of both.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/upgrade.rs"]
mod upgrade;

use candle_core::{Device, Tensor};
use consonance_datasets::{Dataset, Split, emoji_id};
use consonance_methods::{CosineClassifier, MutualBatch, MutualContrastConfig};

use common::text::Tower;
use common::{Arguments, compare, optimizer};
use evaluate::{Embedded, search};
use network::Network;
use progress::Progress;
use random::Draws;
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Networks of a cohort.
const COHORT: usize = 2;

/// Batches of two images a class.
fn pairs(split: &Split, batch: usize, seed: u64, epoch: usize) -> Vec<Vec<usize>> {
    let mut of_class: Vec<Vec<usize>> = Vec::new();
    for (row, class) in split.identities().into_iter().enumerate() {
        of_class.resize(of_class.len().max(class as usize + 1), Vec::new());
        of_class[class as usize].push(row);
    }
    let mut draws = Draws::new(&[seed, 0x7061_6972, epoch as u64]);
    // As many images as an epoch has, a class in every batch at most once.
    let mut batches = Vec::new();
    while batches.len() * batch < split.len() {
        for classes in draws.permutation(of_class.len()).chunks_exact(batch / 2) {
            let mut rows = Vec::with_capacity(batch);
            for class in classes {
                let order = draws.permutation(of_class[*class].len());
                rows.extend(order.iter().cycle().take(2).map(|at| of_class[*class][*at]));
            }
            batches.push(rows);
        }
    }
    batches.truncate(split.len().div_ceil(batch));
    batches
}

fn train(
    name: &str,
    data: &Dataset,
    (split, classes): (&Split, usize),
    recipe: &Recipe,
    mutual: Option<(&MutualBatch, bool)>,
    seed: u64,
    progress: &Progress,
) -> Result<Vec<Network>, Failure> {
    let (device, size) = (&Device::Cpu, (data.height, data.width));
    let (mut networks, mut classifiers, mut variables) = (Vec::new(), Vec::new(), Vec::new());
    // The contrast has a head of its own, linear, ReLU, linear, as published.
    let mut heads = Vec::new();
    for member in 0..COHORT as u64 {
        let key = Draws::new(&[seed, member]).bits();
        let network = Network::new(&recipe.architecture, size.0, size.1, key)?;
        let classifier =
            CosineClassifier::new(classes, network.dim(), recipe.classifier.clone(), key, device)?;
        variables.push(network.parameters().clone());
        variables.extend(classifier.variables());
        let head = Tower::new(network.dim(), network.dim(), key)?;
        variables.extend(head.variables());
        heads.push(head);
        networks.push(network);
        classifiers.push(classifier);
    }
    let mut optimizer = optimizer(recipe, variables);
    let labels = split.identities();
    let steps = pairs(split, recipe.batch, seed, 0).len();
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        for (step, rows) in pairs(split, recipe.batch, seed, epoch).iter().enumerate() {
            let images = augment::augmented(split, size, rows, [seed, epoch as u64], &recipe.augmentation);
            let of_rows: Vec<u32> = rows.iter().map(|row| labels[*row]).collect();
            let of_rows = Tensor::new(of_rows, device)?;
            let (mut losses, mut embeddings) = (Vec::new(), Vec::new());
            for ((network, classifier), head) in networks.iter().zip(&classifiers).zip(&heads) {
                let features = network.forward(images.clone())?;
                losses.push(classifier.loss(&unit_rows(&features)?, &of_rows)?);
                embeddings.push(match mutual {
                    Some((_, true)) => unit_rows(&head.forward(&features)?)?,
                    _ => unit_rows(&features)?,
                });
            }
            if let Some((mutual, _)) = mutual {
                losses.push(mutual.terms(&embeddings, &of_rows)?.total);
            }
            let loss = Tensor::stack(&losses, 0)?.sum_all()?;
            let share = (epoch * steps + step) as f64 / (recipe.epochs * steps) as f64;
            optimizer.step(&loss.backward()?, share)?;
            bar.step(f64::from(loss.to_scalar::<f32>()?));
        }
        bar.epoch(epoch);
    }
    bar.finish();
    Ok(networks)
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(12, 0.3);
    let recipe = arguments.recipe()?;
    let data = emoji_id()?;
    let (split, classes) = data.train_subset(arguments.share)?;
    let published = MutualContrastConfig::default();
    // Of the embeddings, which are tested themselves, the soft losses at the published 1 weigh more than the classifier,
    // and the hard ones at 0.1 little; chosen on seeds 11 and 12.
    let milder = MutualContrastConfig { vcl: 0.3, icl: 0.3, soft_vcl: 0.1, soft_icl: 0.1, ..published };
    let hard = MutualContrastConfig { soft_vcl: 0.0, soft_icl: 0.0, ..milder };
    // The losses, and whether they are on a head.
    let variants = [
        ("independent networks", None),
        ("all four losses of a head, published weights", Some((published, true))),
        ("all four losses of the embeddings, published weights", Some((published, false))),
        ("VCL and ICL of the embeddings, 0.3 each", Some((hard, false))),
        ("all four losses of the embeddings, 0.3 and 0.1", Some((milder, false))),
    ];
    let title = "Mutual contrastive learning of two networks";
    compare(title, "mAP", &arguments, &variants, |name, variant, seed, progress| {
        let method = variant.map(|(config, _)| MutualBatch::new(config, COHORT)).transpose()?;
        let mutual = method.as_ref().zip(variant.map(|(_, head)| head));
        let networks = train(name, &data, (&split, classes), &recipe, mutual, seed, progress)?;
        let mut sum = 0.0;
        for network in &networks {
            let test = Embedded::new(network, &data)?;
            sum += search(&data, &test.query, &test.gallery)?.map;
        }
        Ok(sum / networks.len() as f64)
    })
}
