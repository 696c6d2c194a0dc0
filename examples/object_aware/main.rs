//! Objects found without labels, and crops and backgrounds that know them.
//!
//! ```sh
//! cargo run --release --example object_aware
//! ```
//!
//! Generated from Emoji-ID: a scene shows one to three emoji over a texture of its own, and the true boxes are known. A network
//! learns by the contrast of two random crops of a scene (as SimCLR). Then ContraCAM and Grad-CAM (Mo et al., NeurIPS 2021)
//! look for the objects of these scenes with it: the intersection over union of all boxes that are found in a scene and all
//! true ones. With the boxes of ContraCAM in one round a second network learns from crops that hold an object, a third one also from objects
//! on other backgrounds. Tested with single emoji that no network has seen, each on other textures: how often the nearest
//! image shows the same emoji.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
mod scenes;
#[path = "../common/upgrade.rs"]
mod upgrade;

use candle_core::{DType, Device, Tensor};
use consonance::{ContrastOptions, NeighborsOptions, Pairs, Temperature, contrast, neighbors};
use consonance_datasets::{Dataset, emoji_id};
use consonance_methods::{
    BackgroundMixup, BackgroundMixupConfig, BoxesConfig, ContraCam, ContraCamConfig, ObjectAwareCrop,
    ObjectAwareCropConfig, RelativeBox, boxes,
};
use consonance_metrics::{Better, Cell, Column, Report};
use rayon::prelude::*;

use common::{Arguments, batches, optimizer};
use network::Network;
use progress::Progress;
use random::Draws;
use scenes::{LARGE, SMALL, Scene, dense, scene, singles};
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Scenes of a batch, for training and for maps: a scene's negatives.
const BATCH: usize = 64;
const TEMPERATURE: f64 = 0.2;
/// Rounds of the refined maps.
const ROUNDS: usize = 3;
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

fn tensor(scene: &Scene) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&scene.picture.pixels, (3, LARGE, LARGE), &Device::Cpu)
}

/// Trains a network by the contrast of two crops of every scene.
fn train(
    name: &str,
    scenes: &[Scene],
    (recipe, crops): (&Recipe, Crops<'_>),
    seed: u64,
    progress: &Progress,
) -> Result<Network, Failure> {
    let network = Network::new(&recipe.architecture, SMALL, SMALL, seed)?;
    let mut optimizer = optimizer(recipe, vec![network.parameters().clone()]);
    let cutter = ObjectAwareCrop::new(ObjectAwareCropConfig {
        size: SMALL,
        // Windows of 32 pixels at least half a scene wide would be larger than an emoji by far.
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
            let z = unit_rows(&network.forward(images)?)?;
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
    Ok(network)
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

/// The masks of all scenes, `[1, H, W]` each.
fn masks(scenes: &[Scene], network: &Network, config: ContraCamConfig) -> Result<Vec<Tensor>, Failure> {
    let method = ContraCam::new(config)?;
    let encode = |images: &Tensor| {
        let images: Vec<f32> =
            images.flatten_from(1)?.to_vec2::<f32>()?.iter().flat_map(|image| dense(image, None)).collect();
        network.activations(&images)
    };
    let mut out = Vec::with_capacity(scenes.len());
    for part in scenes.chunks(BATCH) {
        let images = Tensor::stack(&part.iter().map(tensor).collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let masks = method.masks(&images, encode, |pooled| network.head(pooled))?.masks;
        for at in 0..part.len() {
            out.push(masks.narrow(0, at, 1)?);
        }
    }
    Ok(out)
}

/// The pixels that some box covers.
fn covered(boxes: &[RelativeBox]) -> Vec<bool> {
    let inside = |at: usize| {
        let middle = |place: usize| (place as f64 + 0.5) / LARGE as f64;
        let (y, x) = (middle(at / LARGE), middle(at % LARGE));
        boxes.iter().any(|b| (b.top..b.bottom).contains(&y) && (b.left..b.right).contains(&x))
    };
    (0..LARGE * LARGE).map(inside).collect()
}

/// The mean intersection over union of what the boxes of the masks cover and what the true boxes cover.
fn overlap(scenes: &[Scene], masks: &[Tensor]) -> Result<f64, Failure> {
    // As they are: expanded boxes are for crops.
    let config = BoxesConfig { expand: 0.0, ..BoxesConfig::default() };
    let found = boxes(&Tensor::cat(masks, 0)?, &config)?;
    let share = |(scene, found): (&Scene, &Vec<RelativeBox>)| -> f64 {
        let pairs: Vec<(bool, bool)> =
            covered(&scene.boxes).into_iter().zip(covered(found)).filter(|(a, b)| *a || *b).collect();
        pairs.iter().filter(|(a, b)| *a && *b).count() as f64 / pairs.len().max(1) as f64
    };
    let shares: Vec<f64> = scenes.par_iter().zip(&found).map(share).collect();
    Ok(shares.iter().sum::<f64>() / scenes.len() as f64)
}

/// The network for whole scenes: its weights do not depend on the size of an image.
fn for_scenes(network: &Network, recipe: &Recipe) -> Result<Network, Failure> {
    let large = Network::new(&recipe.architecture, LARGE, LARGE, 0)?;
    large.parameters().set(network.parameters().as_tensor())?;
    large.set_running(network.running())?;
    Ok(large)
}

const MAPS: [&str; 4] = ["none: the whole image", "Grad-CAM", "ContraCAM, 3 rounds", "ContraCAM, 1 round"];
const TRAININGS: [&str; 3] = ["plain crops", "object-aware crops", "object-aware crops, background mixup"];

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(40, 0.4);
    let mut recipe = arguments.recipe()?;
    // One mean of each channel for the whole image, as maps need it.
    recipe.architecture.grid = 1;
    recipe.architecture.width = 16;
    recipe.schedule.rate = 6e-3;
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
        let run = |which: usize, crops| {
            train(&format!("{}, seed {seed}", TRAININGS[which]), &scenes, (&recipe, crops), seed, &progress)
        };
        let network = run(0, plain)?;
        let large = for_scenes(&network, &recipe)?;
        let mut soft = vec![Tensor::ones((1, LARGE, LARGE), DType::F32, &Device::Cpu)?; count];
        of_maps[0].push(overlap(&scenes, &soft)?);
        for (at, config) in [
            ContraCamConfig::grad_cam(),
            ContraCamConfig { rounds: ROUNDS, ..ContraCamConfig::default() },
            ContraCamConfig::masks(),
        ]
        .into_iter()
        .enumerate()
        {
            soft = masks(&scenes, &large, config)?;
            of_maps[1 + at].push(overlap(&scenes, &soft)?);
        }
        // Of the last one, for crops and for backgrounds.
        let boxes = boxes(&Tensor::cat(&soft, 0)?, &BoxesConfig::default())?;
        let aware = Crops { boxes: Some(&boxes), masks: None };
        let networks = [network, run(1, aware)?, run(2, Crops { masks: Some(&soft), ..aware })?];
        for (values, network) in of_trainings.iter_mut().zip(&networks) {
            values.push(test(&data, network)?);
        }
        let of_seed = |names: &[&str], values: &[Vec<f64>]| {
            let texts = names.iter().zip(values);
            texts
                .map(|(name, values)| {
                    format!("{name} {:.1} %", 100.0 * values.last().copied().unwrap_or(0.0))
                })
                .collect::<Vec<_>>()
                .join(", ")
        };
        progress.say(&format!("seed {seed}: {}", of_seed(&MAPS, &of_maps)));
        progress.say(&format!("seed {seed}: {}", of_seed(&TRAININGS, &of_trainings)));
    }
    let title = format!("Scenes of emoji, {} epochs, {} seed(s)", arguments.epochs, arguments.seeds);
    table(&format!("{title}: boxes"), "map", "IoU with the true boxes", &MAPS, &of_maps)?;
    table(
        &format!("{title}: crops"),
        "training",
        "nearest image shows the same emoji",
        &TRAININGS,
        &of_trainings,
    )
}

/// Prints mean and spread over the seeds.
fn table(title: &str, of: &str, measure: &str, names: &[&str], values: &[Vec<f64>]) -> Result<(), Failure> {
    let column = Column::new(measure).percent().decimals(1).better(Better::Higher);
    let mut report = Report::new(title, of, [column]);
    for (name, values) in names.iter().zip(values) {
        report.push(*name, [Cell::over_seeds(values)?])?;
    }
    println!("{}", report.to_terminal());
    Ok(())
}
