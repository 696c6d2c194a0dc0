//! Two clips of every video: augmentation that is the same for all frames, and short intervals between the clips.
//!
//! ```sh
//! cargo run --release --example cvrl
//! ```
//!
//! The videos are **generated** from Emoji-ID: a drawing moves, grows, spins or rests over a texture, and in two of
//! five videos does something else from the middle on. The videos of a drawing share its texture and differ in their motion alone,
//! so that the loss is about motion. Three variants train a network of frames and one over what changes between them by
//! contrastive video representation learning (Qian et al., CVPR 2021), without any label: with augmentations drawn for each
//! frame, with augmentations drawn once a clip but intervals of any length, and as published, with augmentations drawn once
//! a clip and short intervals preferred. Tested by the kind of motion: how often most of the five nearest labeled clips move
//! as a clip of a drawing and a texture that training never saw; beside networks that were not trained at all.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/upgrade.rs"]
mod upgrade;
mod videos;

use candle_core::{Device, Tensor};
use consonance::{AugmentOptions, ClipParameters, NeighborsOptions, augment_clips, neighbors};
use consonance_datasets::{Dataset, Split, emoji_id};
use consonance_methods::{
    ClipAugmentationConfig, ClipSamplerConfig, Consistency, Cvrl, CvrlConfig, IntervalDistribution,
};
use rayon::prelude::*;

use common::text::Tower;
use common::{Arguments, compare, optimizer};
use network::Network;
use progress::Progress;
use random::Draws;
use trainer::{Recipe, unit_rows};
use upgrade::*;
use videos::{KINDS, LENGTH, Look, SIDE, Texture, Video};

/// Frames of a clip, and how far apart they are in the video.
const FRAMES: usize = 6;
const STRIDE: usize = 2;
/// Height and width of the frames that the network sees.
const SEEN: usize = 24;
/// Drawings of a batch, each in so many videos of every kind.
const DRAWINGS: usize = 2;
const VIDEOS: usize = 4;
/// Videos of a batch.
const BATCH: usize = DRAWINGS * KINDS * VIDEOS;
/// The share of videos that change in the middle to a kind that is drawn.
const CHANGE: f32 = 0.5;
/// Neighbors that vote.
const VOTERS: usize = 5;
/// Dimensions of a clip's representation.
const DIMENSION: usize = 64;

/// What is compared.
fn config(consistency: Consistency, interval: IntervalDistribution) -> CvrlConfig {
    CvrlConfig {
        sampling: ClipSamplerConfig { frames: FRAMES, stride: STRIDE, interval },
        augmentation: ClipAugmentationConfig {
            height: SEEN,
            width: SEEN,
            // Milder than published, for drawings of ten pixels and a few minutes.
            area: [0.7, 1.0],
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            solarize: [0.0, 0.0],
            consistency,
            ..ClipAugmentationConfig::default()
        },
        ..CvrlConfig::default()
    }
}

/// The networks: of frames, of what is pooled over a clip, and the head that only the loss sees.
struct Model {
    frames: Network,
    sequence: Tower,
    head: Tower,
}

impl Model {
    fn new(recipe: &Recipe, seed: u64) -> Result<Self, Failure> {
        let frames = Network::new(&recipe.architecture, SEEN, SEEN, seed)?;
        let sequence = Tower::new(STATISTICS * frames.dim(), DIMENSION, seed)?;
        let head = Tower::new(DIMENSION, DIMENSION, seed + 100)?;
        Ok(Self { frames, sequence, head })
    }

    /// Frames `[B, T, 3, H, W]` as the network of frames takes them.
    fn input(clips: &Tensor) -> Result<Vec<f32>, Failure> {
        let last = clips.affine(255.0 / 64.0, -127.5 / 64.0)?.permute((0, 1, 3, 4, 2))?;
        Ok(last.flatten_all()?.to_vec1()?)
    }

    /// Representations `[B, DIMENSION]` of clips, to learn from.
    fn forward(&self, clips: &Tensor) -> Result<Tensor, Failure> {
        let features = self.frames.forward(Self::input(clips)?)?;
        Ok(self.sequence.forward(&statistics(&features)?)?)
    }

    /// Representations of unit norm, to be searched.
    fn embed(&self, clips: &Tensor) -> Result<Tensor, Failure> {
        let features = self.frames.embed(Self::input(clips)?)?;
        let features = Tensor::from_vec(features, (clips.dim(0)? * FRAMES, self.frames.dim()), &Device::Cpu)?;
        Ok(unit_rows(&self.sequence.forward(&statistics(&features)?)?)?.detach())
    }
}

/// What is pooled over the frames of a clip.
const STATISTICS: usize = 3;

/// The mean of the frames' features, and how much they change from one frame to the next and to the one after it:
/// `[B, STATISTICS · D]` of `[B · FRAMES, D]`.
fn statistics(features: &Tensor) -> candle_core::Result<Tensor> {
    let features = features.reshape(((), FRAMES, features.dim(1)?))?;
    let change = |lag: usize| -> candle_core::Result<Tensor> {
        let (early, late) = (features.narrow(1, 0, FRAMES - lag)?, features.narrow(1, lag, FRAMES - lag)?);
        (late - early)?.abs()?.mean(1)
    };
    Tensor::cat(&[features.mean(1)?, change(1)?, change(2)?], 1)
}

fn clips(values: Vec<f32>, count: usize) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, (count, FRAMES, 3, SIDE, SIDE), &Device::Cpu)
}

fn train(
    name: &str,
    (data, split): (&Dataset, &Split),
    (recipe, config): (&Recipe, CvrlConfig),
    seed: u64,
    progress: &Progress,
) -> Result<Model, Failure> {
    let model = Model::new(recipe, seed)?;
    let mut variables = vec![model.frames.parameters().clone()];
    variables.extend(model.sequence.variables().into_iter().chain(model.head.variables()));
    let mut optimizer = optimizer(recipe, variables);
    let method = Cvrl::new(config)?;
    let (steps, size) = (split.len().div_ceil(DRAWINGS), (data.height, data.width));
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        let order = Draws::new(&[seed, epoch as u64, 0x6f72_6465]).permutation(split.len());
        for step in 0..steps {
            let number = epoch * steps + step;
            let pairs: Vec<[Vec<f32>; 2]> = (0..DRAWINGS)
                .into_par_iter()
                .map(|drawing| {
                    let mut draws = Draws::new(&[seed, number as u64, drawing as u64]);
                    let row = order[(step * DRAWINGS + drawing) % order.len()];
                    let texture = Texture::draw(&mut draws);
                    let mut out = [Vec::new(), Vec::new()];
                    let look = Look::draw(&mut draws);
                    for at in 0..KINDS * VIDEOS {
                        let (first, other) = (at % KINDS, draws.below(KINDS));
                        let second = if draws.unit() < CHANGE { other } else { first };
                        let video =
                            Video::new((split, row), size, (&texture, look), [first, second], &mut draws);
                        let clip = (number * DRAWINGS + drawing) * KINDS * VIDEOS + at;
                        let starts = method.sampler().starts(LENGTH, seed, clip as u64)?;
                        for (start, out) in [starts.first, starts.second].into_iter().zip(&mut out) {
                            video.frames(&method.sampler().indices(LENGTH, start)?, out);
                        }
                    }
                    Ok::<_, consonance_methods::Error>(out)
                })
                .collect::<Result<_, _>>()?;
            let side = |view: usize| clips(pairs.iter().flat_map(|pair| pair[view].clone()).collect(), BATCH);
            let first = (number * BATCH) as u64;
            let views = method.augmentation().views(&side(0)?, &side(1)?, seed, first)?;
            // Both views in one pass, so that they share their batch statistics.
            let representations = model.forward(&Tensor::cat(&views, 0)?)?;
            let embeddings = unit_rows(&model.head.forward(&representations.relu()?)?)?;
            let half = |view: usize| embeddings.narrow(0, view * BATCH, BATCH);
            let terms = method.terms(&half(0)?, &half(1)?)?;
            optimizer.step(&terms.total.backward()?, number as f64 / (recipe.epochs * steps) as f64)?;
            bar.step(f64::from(terms.total.to_scalar::<f32>()?));
        }
        bar.epoch(epoch);
    }
    bar.finish();
    Ok(model)
}

/// Clips of one kind of motion each, every drawing in all of them, as the network sees them, and their kinds.
fn labeled(data: &Dataset, split: &Split, drawings: usize, key: u64) -> Result<(Tensor, Vec<u32>), Failure> {
    let size = (data.height, data.width);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    let order = Draws::new(&[key]).permutation(split.len());
    for (number, row) in order.into_iter().take(drawings).enumerate() {
        let mut draws = Draws::new(&[key, number as u64]);
        let (texture, look) = (Texture::draw(&mut draws), Look::draw(&mut draws));
        for kind in 0..KINDS {
            let video = Video::new((split, row), size, (&texture, look), [kind; 2], &mut draws);
            let start = draws.below(LENGTH - (FRAMES - 1) * STRIDE) as u32;
            let frames: Vec<u32> = (0..FRAMES as u32).map(|k| start + k * STRIDE as u32).collect();
            video.frames(&frames, &mut values);
            labels.push(kind as u32);
        }
    }
    let plain = vec![ClipParameters::plain(SIDE, SIDE); labels.len()];
    let clips = augment_clips(&clips(values, labels.len())?, &plain, &AugmentOptions::new(SEEN, SEEN))?;
    Ok((clips, labels))
}

/// How often most of the nearest labeled clips move in a test clip's way.
fn test(model: &Model, known: &(Tensor, Vec<u32>), asked: &(Tensor, Vec<u32>)) -> Result<f64, Failure> {
    let (known_clips, asked_clips) = (model.embed(&known.0)?, model.embed(&asked.0)?);
    let nearest = neighbors(&asked_clips, &known_clips, &NeighborsOptions::new(VOTERS))?.indices;
    let mut right = 0;
    for (found, own) in nearest.to_vec2::<u32>()?.iter().zip(&asked.1) {
        let mut votes = [0usize; KINDS];
        found.iter().for_each(|row| votes[known.1[*row as usize] as usize] += 1);
        // Of kinds with as many votes the one of the nearest clip.
        let most = votes.iter().max().copied().unwrap_or(0);
        let winner =
            found.iter().map(|row| known.1[*row as usize]).find(|kind| votes[*kind as usize] == most);
        right += usize::from(winner == Some(*own));
    }
    Ok(right as f64 / asked.1.len() as f64)
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(4, 0.15);
    let mut recipe = arguments.recipe()?;
    recipe.schedule.rate = 4e-3;
    recipe.architecture.width = 8;
    let data = emoji_id()?;
    let (split, _) = data.train_subset(arguments.share)?;
    let split = split.filter(|item| item.style == 0);
    if split.len() < DRAWINGS {
        return Err(failure(format!("--share: {} drawings, expected at least {DRAWINGS}", split.len())));
    }
    let known = labeled(&data, &split, 60, 0x6b6e_6f77)?;
    let asked = labeled(&data, &data.query, 60, 0x6173_6b65)?;
    let linear = IntervalDistribution::Decreasing { power: 1.0 };
    let uniform = IntervalDistribution::Uniform;
    let variants = [
        ("none", None),
        ("augmentation of frames, short intervals", Some(config(Consistency::Frame, linear))),
        ("augmentation of clips, any intervals", Some(config(Consistency::Clip, uniform))),
        ("augmentation of clips, short intervals", Some(config(Consistency::Clip, linear))),
    ];
    let title = "Kinds of motion in generated videos, six of them (chance 16.7 %)";
    compare(title, "kinds found", &arguments, &variants, |name, config, seed, progress| {
        let model = match config {
            Some(config) => train(name, (&data, &split), (&recipe, config), seed, progress)?,
            None => Model::new(&recipe, seed)?,
        };
        test(&model, &known, &asked)
    })
}
