//! Clips and the words spoken over them, where many negatives are none: uniform and self-paced weights.
//!
//! ```sh
//! cargo run --release --example video_speech
//! ```
//!
//! Generated from Emoji-ID and its captions: a scan shows two emoji, each for two clips shortly one after the other, so that
//! the other clip's words fit as well (planted ambiguous pairs). A clip has three frames of a drawing that moves, its speech
//! is the emoji's name, some letters of which are lost. Both variants train a network of frames and one of letter groups by
//! the contrast of clip and speech, and predict the frames' order; one weighs the negatives of a scan by affinity and pace
//! (after Jiao et al., MICCAI 2020), the other counts all alike. Tested with drawings of a style that training never
//! saw: how often the clip's own name is the nearest of all names.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/upgrade.rs"]
mod upgrade;

use candle_core::{Device, Tensor};
use consonance::{NeighborsOptions, neighbors};
use consonance_datasets::{Dataset, Split, emoji_id};
use consonance_methods::{
    OrderConfig, OrderHead, PairAffinity, VideoSpeech, VideoSpeechBatch, VideoSpeechConfig,
};

use common::text::{self, Tower, counts};
use common::{Arguments, compare, optimizer};
use network::Network;
use progress::Progress;
use random::Draws;
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Frames of a clip.
const FRAMES: usize = 3;
/// Scans of a batch; each has two emoji with two clips.
const SCANS: usize = 12;
const CLIPS: usize = 4 * SCANS;
/// When a scan's clips are recorded.
const TIMES: [f32; 4] = [0.0, 0.5, 6.0, 6.5];
/// The style that is kept for the test.
const TEST_STYLE: &str = "twemoji";

/// Frames of a clip: the drawing moves in one direction, over white.
fn frames(image: &[u8], (height, width): (usize, usize), draws: &mut Draws) -> Vec<f32> {
    let mut step = || draws.below(2) as isize * 4 - 2;
    let (down, right) = (step(), step());
    let start = |draws: &mut Draws, step: isize| draws.below(5) as isize - 2 - step;
    let (top, left) = (start(draws, down), start(draws, right));
    let mut out = Vec::with_capacity(FRAMES * image.len());
    for frame in 0..FRAMES as isize {
        let (y0, x0) = (top + frame * down, left + frame * right);
        for y in 0..height as isize {
            for x in 0..width as isize {
                let (v, u) = (y - y0, x - x0);
                let inside = (0..height as isize).contains(&v) && (0..width as isize).contains(&u);
                for c in 0..3 {
                    let byte = if inside { image[(v as usize * width + u as usize) * 3 + c] } else { 255 };
                    out.push((f32::from(byte) - 127.5) / 64.0 + 0.1 * draws.normal());
                }
            }
        }
    }
    out
}

/// A name with some of its letters lost.
fn spoken(name: &str, draws: &mut Draws) -> String {
    name.chars().filter(|_| draws.unit() >= 0.1).collect()
}

/// The frames' features and the clips: `[n, FRAMES, dim]` and, of unit norm, `[n, dim]`.
fn clips(features: &Tensor, clips: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let frames = features.reshape((clips, FRAMES, features.dim(1)?))?;
    let mean = unit_rows(&frames.mean(1)?)?;
    Ok((frames, mean))
}

fn train(
    name: &str,
    data: &Dataset,
    split: &Split,
    (recipe, config): (&Recipe, VideoSpeechConfig),
    seed: u64,
    progress: &Progress,
) -> Result<(Network, Tower), Failure> {
    let (device, size) = (&Device::Cpu, (data.height, data.width));
    let network = Network::new(&recipe.architecture, size.0, size.1, seed)?;
    let tower = Tower::new(text::COUNTS, network.dim(), seed)?;
    let head = OrderHead::new(OrderConfig { parts: FRAMES, hidden: 64 }, network.dim(), seed, device)?;
    let mut variables = vec![network.parameters().clone()];
    variables.extend(tower.variables());
    variables.extend(head.variables().iter().cloned());
    let mut optimizer = optimizer(recipe, variables);
    let method = VideoSpeech::new(config)?;
    let mut of_identity: Vec<Vec<usize>> = Vec::new();
    for (row, identity) in split.identities().into_iter().enumerate() {
        of_identity.resize(of_identity.len().max(identity as usize + 1), Vec::new());
        of_identity[identity as usize].push(row);
    }
    let scans: Vec<u32> = (0..CLIPS as u32).map(|clip| clip / 4).collect();
    let scans = Tensor::new(scans, device)?;
    let times = Tensor::new(TIMES.repeat(SCANS), device)?;
    let steps = split.len().div_ceil(CLIPS);
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        for step in 0..steps {
            let mut draws = Draws::new(&[seed, epoch as u64, step as u64, 0x7363_616e]);
            let (mut images, mut words) = (Vec::new(), Vec::new());
            for identity in draws.permutation(of_identity.len()).into_iter().take(2 * SCANS) {
                // Two drawings of one emoji, and its name twice, each time with other letters lost.
                for _ in 0..2 {
                    let rows = &of_identity[identity];
                    let row = rows[draws.below(rows.len())];
                    images.extend(frames(split.image(row), size, &mut draws));
                    words.push(spoken(&data.identities[identity].label, &mut draws));
                }
            }
            let number = (epoch * steps + step) as u64;
            let orders = head.draw(CLIPS, number)?;
            let (parts, video) = clips(&network.forward(images)?, CLIPS)?;
            let order = head.loss(&head.shuffle(&parts, &orders)?, &orders)?;
            let speech = unit_rows(&tower.forward(&counts(words.iter().map(String::as_str))?)?)?;
            let share = number as f64 / (recipe.epochs * steps) as f64;
            let batch = VideoSpeechBatch {
                video: &video,
                speech: &speech,
                scans: &scans,
                times: &times,
                epoch: recipe.epochs as f64 * share,
            };
            let terms = method.terms(&batch, Some(&order))?;
            optimizer.step(&terms.total.backward()?, share)?;
            bar.step(f64::from(terms.total.to_scalar::<f32>()?));
        }
        bar.epoch(epoch);
    }
    bar.finish();
    Ok((network, tower))
}

/// How often a test clip's nearest name is its own.
fn test(
    data: &Dataset,
    split: &Split,
    classes: usize,
    network: &Network,
    tower: &Tower,
) -> Result<f64, Failure> {
    let mut draws = Draws::new(&[0x7465_7374]);
    let mut out = Vec::new();
    for row in 0..split.len() {
        out.extend(network.embed(frames(split.image(row), (data.height, data.width), &mut draws))?);
    }
    let features = Tensor::from_vec(out, (split.len() * FRAMES, network.dim()), &Device::Cpu)?;
    let (_, video) = clips(&features, split.len())?;
    let names = data.identities[..classes].iter().map(|identity| identity.label.as_str());
    let names = unit_rows(&tower.forward(&counts(names)?)?)?.detach();
    let nearest =
        neighbors(&video, &names, &NeighborsOptions::new(1))?.indices.flatten_all()?.to_vec1::<u32>()?;
    let right = nearest.iter().zip(split.identities()).filter(|(found, own)| *found == own).count();
    Ok(right as f64 / split.len() as f64)
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(12, 0.3);
    let mut recipe = arguments.recipe()?;
    recipe.schedule.rate = 8e-3;
    let data = emoji_id()?;
    let kept = data.styles.iter().position(|style| style == TEST_STYLE);
    let kept = kept.ok_or_else(|| failure(format!("no style {TEST_STYLE}")))? as u32;
    let (split, classes) = data.train_subset(arguments.share)?;
    if classes < 2 * SCANS {
        return Err(failure(format!("--share: {classes} emoji, expected at least {}", 2 * SCANS)));
    }
    let (seen, unseen) = (split.filter(|item| item.style != kept), split.filter(|item| item.style == kept));
    let paced = VideoSpeechConfig { pace_epochs: arguments.epochs as f64, ..VideoSpeechConfig::default() };
    let uniform = VideoSpeechConfig { affinity: PairAffinity::Uniform, ..paced };
    let variants = [("uniform negatives", uniform), ("affinity-aware, self-paced", paced)];
    let title = "Video and speech with planted ambiguous pairs";
    compare(title, "names found", &arguments, &variants, |name, config, seed, progress| {
        let (network, tower) = train(name, &data, &seen, (&recipe, config), seed, progress)?;
        test(&data, &unseen, classes, &network, &tower)
    })
}
