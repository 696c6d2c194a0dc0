//! Objects found without labels, and crops and backgrounds that know them.
//!
//! ```sh
//! cargo run --release --example object_aware
//! ```
//!
//! Generated from Emoji-ID: a scene shows one or two emoji over one of a few textures, and the true boxes are known. A network
//! learns by the contrast of two random crops of a scene (as SimCLR). Then ContraCAM and Grad-CAM (Mo et al., NeurIPS 2021)
//! look for the objects of these scenes with it, and with a network that was not trained: the intersection over union of all
//! boxes that are found in a scene and all true ones, and others. With the boxes of ContraCAM in one round a second network
//! learns from crops that hold an object, a third one also from objects on other backgrounds. Tested with single emoji that no
//! network has seen, each on three textures: how often the nearest image shows the same emoji. A picture shows scenes, maps
//! and boxes.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
mod encoder;
mod maps;
mod scenes;
mod sheet;
#[path = "../common/upgrade.rs"]
mod upgrade;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use consonance::{ContrastOptions, NeighborsOptions, Pairs, Temperature, contrast, neighbors};
use consonance_datasets::{Dataset, emoji_id};
use consonance_methods::{
    BackgroundMixup, BackgroundMixupConfig, BoxesConfig, ContraCamConfig, ObjectAwareCrop,
    ObjectAwareCropConfig, RelativeBox, boxes,
};
use consonance_metrics::{Better, Cell, Column, Report};
use rayon::prelude::*;

use common::{Arguments, batches, optimizer};
use encoder::Encoder;
use maps::{Fit, masks, tensor};
use network::Network;
use progress::Progress;
use random::Draws;
use scenes::{LARGE, SMALL, Scene, dense, scene, singles};
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Scenes of a batch, for training and for maps: a scene's negatives.
const BATCH: usize = 64;
const TEMPERATURE: f64 = 0.2;
/// Emoji of the test, and textures of each.
const TESTED: (usize, usize) = (200, 3);

/// How crops are drawn.
#[derive(Clone, Copy)]
struct Crops<'a> {
    /// Boxes of every scene; none: anywhere.
    boxes: Option<&'a [Vec<RelativeBox>]>,
    /// Masks of every scene `[1, H, W]`, for objects on other backgrounds.
    masks: Option<&'a [Tensor]>,
}

/// Trains a network by the contrast of two crops of every scene.
fn train(
    name: &str,
    scenes: &[Scene],
    (recipe, crops): (&Recipe, Crops<'_>),
    seed: u64,
    progress: &Progress,
) -> Result<Encoder, Failure> {
    let encoder = Encoder::new(Network::new(&recipe.architecture, SMALL, SMALL, seed)?, seed)?;
    let mut optimizer = optimizer(recipe, encoder.variables());
    let cutter = ObjectAwareCrop::new(ObjectAwareCropConfig {
        size: SMALL,
        // Of a whole scene no less than the smallest emoji: 0.08 are 18 pixels.
        scale: (0.15, 1.0),
        ..Default::default()
    })?;
    let mut mixup = BackgroundMixup::new(BackgroundMixupConfig::default(), seed)?;
    let pixels = scenes.iter().map(tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let views = Tensor::arange(0u32, 2 * BATCH as u32, &Device::Cpu)?;
    let labels: Vec<u32> = (0..2 * BATCH as u32).map(|view| view % BATCH as u32).collect();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let steps = scenes.len() / BATCH;
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        for (step, rows) in batches(scenes.len(), BATCH, seed, epoch).into_iter().enumerate() {
            let mut images = Vec::with_capacity(2 * BATCH * 3 * SMALL * SMALL);
            for view in 0..2 {
                let cut = |row: &usize| -> Result<(Tensor, Option<Tensor>), Failure> {
                    let boxes = crops.boxes.map_or(&[][..], |boxes| &boxes[*row]);
                    let draw = ((epoch * scenes.len() + row) * 2 + view) as u64;
                    let window = cutter.draw(boxes, (LARGE, LARGE), seed, draw)?;
                    let mask = crops.masks.map(|all| cutter.crop(&all[*row], window)).transpose()?;
                    Ok((cutter.crop(&pixels[*row], window)?, mask))
                };
                let (cut, masks): (Vec<_>, Vec<_>) =
                    rows.par_iter().map(cut).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
                let masks: Vec<Tensor> = masks.into_iter().flatten().collect();
                let mut cut = Tensor::stack(&cut, 0)?;
                if view == 0 && !masks.is_empty() {
                    let masks = Tensor::cat(&masks, 0)?.clamp(0f32, 1f32)?;
                    let found = mixup.backgrounds(&cut, &masks)?;
                    cut = mixup.mix(&cut, &masks, &found)?;
                }
                let cut = cut.flatten_from(1)?.to_vec2::<f32>()?;
                let colored = rows.par_iter().zip(&cut).map(|(row, pixels)| {
                    let key = [seed, epoch as u64, *row as u64, view as u64, 0x636f_6c6f];
                    dense(pixels, Some(&mut Draws::new(&key)))
                });
                images.extend(colored.collect::<Vec<_>>().concat());
            }
            let z = unit_rows(&encoder.project(&encoder.network.forward(images)?)?)?;
            let pairs = Pairs::labels(&labels, &labels).ignore_same_id(&views, &views);
            let loss =
                contrast(&z, &z, &Temperature::Fixed(TEMPERATURE), &pairs, &ContrastOptions::default())?.loss;
            let number = (epoch * steps + step) as f64;
            optimizer.step(&loss.backward()?, number / (recipe.epochs * steps) as f64)?;
            bar.step(f64::from(loss.to_scalar::<f32>()?));
        }
        bar.epoch(epoch);
    }
    bar.finish();
    Ok(encoder)
}

/// How often the nearest of all other images shows the same emoji, by the features in front of the last layer.
fn test(data: &Dataset, network: &Network) -> Result<f64, Failure> {
    let (pictures, labels) = singles(data, TESTED.0, TESTED.1, &mut Draws::new(&[0x7465_7374]));
    let mut features = Vec::new();
    for part in pictures.chunks(BATCH) {
        let images: Vec<f32> = part.iter().flat_map(|picture| dense(&picture.pixels, None)).collect();
        features.push(network.activations(&images)?.mean((2, 3))?);
    }
    let features = Tensor::cat(&features, 0)?;
    // Relative to the mean of all, or cosines are near 1.
    let features = unit_rows(&features.broadcast_sub(&features.mean_keepdim(0)?)?)?;
    let ids = Tensor::arange(0u32, labels.len() as u32, &Device::Cpu)?;
    let options = NeighborsOptions::new(1).exclude_same_id(&ids, &ids);
    let nearest = neighbors(&features, &features, &options)?.indices.flatten_all()?.to_vec1::<u32>()?;
    let right = nearest.iter().zip(&labels).filter(|(found, own)| labels[**found as usize] == **own).count();
    Ok(right as f64 / labels.len() as f64)
}

/// Passes in which a network that is not trained sees the scenes, for the running statistics of its normalization.
const STILL: usize = 3;
const MAPS: [&str; 7] = [
    "none: the whole image",
    "not trained, Grad-CAM",
    "not trained, ContraCAM, 1 round",
    "Grad-CAM",
    "ContraCAM, 1 round",
    "ContraCAM, 3 rounds",
    "ContraCAM, 10 rounds",
];
/// The map in [`MAPS`] that crops and backgrounds are made of.
const USED: usize = 4;
const TRAININGS: [&str; 4] =
    ["none", "plain crops", "object-aware crops", "object-aware crops, background mixup"];

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(20, 0.4);
    let mut recipe = arguments.recipe()?;
    // One mean of each channel for the whole image, as maps need it.
    recipe.architecture.grid = 1;
    recipe.architecture.width = 16;
    recipe.schedule.rate = 6e-3;
    let mut still = recipe.clone();
    (still.epochs, still.schedule.rate) = (STILL, 0.0);
    let data = emoji_id()?;
    let (split, _) = data.train_subset(arguments.share)?;
    let progress = Progress::new();
    let (mut of_maps, mut of_trainings) = (vec![Vec::new(); MAPS.len()], vec![Vec::new(); TRAININGS.len()]);
    for seed in arguments.numbers() {
        let count = (arguments.share * 1920.0) as usize / BATCH * BATCH;
        if count == 0 {
            return Err(failure(format!("--share: {} leaves no batch of {BATCH} scenes", arguments.share)));
        }
        let scenes: Vec<Scene> =
            (0..count as u64).map(|at| scene(&split, &mut Draws::new(&[seed, at, 0x7363_656e]))).collect();
        let plain = Crops { boxes: None, masks: None };
        let run = |which: usize, recipe: &Recipe, crops| {
            train(&format!("{}, seed {seed}", TRAININGS[which]), &scenes, (recipe, crops), seed, &progress)
        };
        let (untrained, encoder) = (run(0, &still, plain)?, run(1, &recipe, plain)?);
        let mut all = vec![vec![Tensor::ones((1, LARGE, LARGE), DType::F32, &Device::Cpu)?; count]];
        let rounds = |rounds| ContraCamConfig { rounds, ..ContraCamConfig::default() };
        progress.say(&format!("seed {seed}: maps and boxes of {count} scenes"));
        for config in [ContraCamConfig::grad_cam(), rounds(1)] {
            all.push(masks(&scenes, &untrained, config)?);
        }
        for config in [ContraCamConfig::grad_cam(), rounds(1), rounds(3), rounds(10)] {
            all.push(masks(&scenes, &encoder, config)?);
        }
        for (fits, masks) in of_maps.iter_mut().zip(&all) {
            fits.push(Fit::of(&scenes, masks)?);
        }
        let picture = PathBuf::from(format!("target/object_aware/seed-{seed}.png"));
        sheet::draw(&picture, &scenes, &all[3..])?;
        // Of one round, for crops and for backgrounds.
        let soft = &all[USED];
        let boxes = boxes(&Tensor::cat(soft, 0)?, &BoxesConfig::default())?;
        let aware = Crops { boxes: Some(&boxes), masks: None };
        let mixed = Crops { masks: Some(soft), ..aware };
        let encoders = [untrained, encoder, run(2, &recipe, aware)?, run(3, &recipe, mixed)?];
        for (values, encoder) in of_trainings.iter_mut().zip(&encoders) {
            values.push(test(&data, &encoder.network)?);
        }
        let of_seed = |names: &[&str], values: Vec<Option<f64>>| {
            let text = |(name, value): (&&str, &Option<f64>)| {
                format!("{name} {:.1} %", 100.0 * value.unwrap_or(0.0))
            };
            names.iter().zip(&values).map(text).collect::<Vec<_>>().join(", ")
        };
        let of_maps = of_maps.iter().map(|fits| fits.last().map(|fit| fit.covered)).collect();
        let of_trainings = of_trainings.iter().map(|values| values.last().copied()).collect();
        progress.say(&format!("seed {seed}: {}", of_seed(&MAPS, of_maps)));
        progress.say(&format!("seed {seed}: {}", of_seed(&TRAININGS, of_trainings)));
        progress.say(&format!("seed {seed}: scenes, maps and boxes are in {}", picture.display()));
    }
    let title = format!("Scenes of emoji, {} epochs, {} seed(s)", arguments.epochs, arguments.seeds);
    let percent = |name: &str, better| Column::new(name).percent().decimals(1).better(better);
    let columns = [
        percent("IoU with the true boxes", Better::Higher),
        percent("at the best threshold", Better::Higher),
        percent("of each true box with the nearest", Better::Higher),
        percent("nothing found", Better::Lower),
    ];
    let mut report = Report::new(format!("{title}: boxes"), "map", columns);
    for (name, fits) in MAPS.iter().zip(&of_maps) {
        let cell = |value: fn(&Fit) -> f64| Cell::over_seeds(&fits.iter().map(value).collect::<Vec<_>>());
        let cells = [
            cell(|fit| fit.covered)?,
            cell(|fit| fit.best_threshold)?,
            cell(|fit| fit.of_each)?,
            cell(|fit| fit.without)?,
        ];
        report.push(*name, cells)?;
    }
    println!("{}", report.to_terminal());
    let column = percent("nearest image shows the same emoji", Better::Higher);
    let mut report = Report::new(format!("{title}: crops"), "training", [column]);
    for (name, values) in TRAININGS.iter().zip(&of_trainings) {
        report.push(*name, [Cell::over_seeds(values)?])?;
    }
    println!("{}", report.to_terminal());
    println!("Scenes with true boxes (green), maps and found boxes (red): target/object_aware/seed-*.png");
    Ok(())
}
