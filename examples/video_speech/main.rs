//! Clips and the words spoken over them, where many negatives are none: uniform and self-paced weights.
//!
//! ```sh
//! cargo run --release --example video_speech
//! ```
//!
//! Generated from Emoji-ID: a scan shows two emoji, each for two clips shortly one after the other, so that the other clip's
//! words fit as well (planted ambiguous pairs). A clip has three frames of a drawing that moves, its speech is the emoji's
//! name, some letters of which are lost. Both variants train a network of frames and one of letter groups by the contrast of
//! clip and speech, and predict the frames' order; one weighs the negatives of a scan by affinity and pace (after Jiao et
//! al., MICCAI 2020), the other counts all alike. Tested with drawings of a style that training never saw: how often the
//! clip's own name is the nearest of all names.
//!
//! With recorded speech, of the stamps of Tux Paint as Debian has them (160 MB, GPL-2; nothing of it is in this repository):
//!
//! ```sh
//! apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
//! cargo run --release --example video_speech -- --speech stamps
//! ```
//!
//! A clip is then a stamp that moves, its speech the stamp's name as a person said it in one of several languages, as a
//! log-mel spectrum that a network of its own hears. Scans and variants are the same. Of every subject a quarter of the
//! recordings is kept for the test: training shows its pictures and hears others of its recordings, mostly in other
//! languages. Tested is how often the ten clips that are nearest to such a recording, of clips of all subjects, have one of
//! its subject.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/upgrade.rs"]
mod upgrade;

mod emoji;
mod recorded;
mod speech;
mod stamps;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use candle_core::{Device, Tensor, Var};
use clap::Parser;
use consonance_methods::{
    OrderConfig, OrderHead, PairAffinity, VideoSpeech, VideoSpeechBatch, VideoSpeechConfig,
};

use common::{Arguments, Given, compare, optimizer};
use emoji::Emoji;
use network::Network;
use progress::Progress;
use random::Draws;
use recorded::Recorded;
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Frames of a clip.
const FRAMES: usize = 3;
/// Scans of a batch; each has two subjects with two clips.
const SCANS: usize = 12;
const SUBJECTS: usize = 2 * SCANS;
const CLIPS: usize = 4 * SCANS;
/// When a scan's clips are recorded.
const TIMES: [f32; 4] = [0.0, 0.5, 6.0, 6.5];

/// What scans are made of: subjects that are shown and spoken about.
trait Material {
    /// What is said over a clip.
    type Words;
    /// The network of words.
    type Listener;

    /// Height and width of a frame.
    fn size(&self) -> (usize, usize);
    fn subjects(&self) -> usize;
    /// Clips of an epoch.
    fn clips(&self) -> usize;
    /// Shows a subject, behind the frames in `images`, and speaks about it.
    fn clip(&self, subject: usize, images: &mut Vec<f32>, draws: &mut Draws) -> Self::Words;
    fn listener(&self, dim: usize, seed: u64) -> Result<(Self::Listener, Vec<Var>), Failure>;
    /// Embeddings `[n, dim]`, not normalized.
    fn hear(&self, listener: &Self::Listener, words: Vec<Self::Words>) -> Result<Tensor, Failure>;
    /// The share of tests that find what they should.
    fn test(&self, network: &Network, listener: &Self::Listener) -> Result<f64, Failure>;
}

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

/// The frames' features and the clips: `[n, FRAMES, dim]` and, of unit norm, `[n, dim]`.
fn pooled(features: &Tensor, clips: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let frames = features.reshape((clips, FRAMES, features.dim(1)?))?;
    let mean = unit_rows(&frames.mean(1)?)?;
    Ok((frames, mean))
}

fn train<M: Material>(
    name: &str,
    material: &M,
    (recipe, config): (&Recipe, VideoSpeechConfig),
    seed: u64,
    progress: &Progress,
) -> Result<(Network, M::Listener), Failure> {
    let (device, size) = (&Device::Cpu, material.size());
    let network = Network::new(&recipe.architecture, size.0, size.1, seed)?;
    let (listener, of_listener) = material.listener(network.dim(), seed)?;
    let head = OrderHead::new(OrderConfig { parts: FRAMES, hidden: 64 }, network.dim(), seed, device)?;
    let mut variables = vec![network.parameters().clone()];
    variables.extend(of_listener);
    variables.extend(head.variables().iter().cloned());
    let mut optimizer = optimizer(recipe, variables);
    let method = VideoSpeech::new(config)?;
    let scans: Vec<u32> = (0..CLIPS as u32).map(|clip| clip / 4).collect();
    let scans = Tensor::new(scans, device)?;
    let times = Tensor::new(TIMES.repeat(SCANS), device)?;
    let steps = material.clips().div_ceil(CLIPS);
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        for step in 0..steps {
            let mut draws = Draws::new(&[seed, epoch as u64, step as u64, 0x7363_616e]);
            let (mut images, mut words) = (Vec::new(), Vec::new());
            for subject in draws.permutation(material.subjects()).into_iter().take(SUBJECTS) {
                // Two clips of one subject, with other words each time.
                for _ in 0..2 {
                    words.push(material.clip(subject, &mut images, &mut draws));
                }
            }
            let number = (epoch * steps + step) as u64;
            let orders = head.draw(CLIPS, number)?;
            let (parts, video) = pooled(&network.forward(images)?, CLIPS)?;
            let order = head.loss(&head.shuffle(&parts, &orders)?, &orders)?;
            let speech = unit_rows(&material.hear(&listener, words)?)?;
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
    Ok((network, listener))
}

/// Compares both variants on a material.
fn run<M: Material>(
    (title, measure): (&str, &str),
    arguments: &Arguments,
    rate: f64,
    material: &M,
) -> Result<(), Failure> {
    let mut recipe = arguments.recipe()?;
    recipe.schedule.rate = rate;
    let paced = VideoSpeechConfig { pace_epochs: arguments.epochs as f64, ..VideoSpeechConfig::default() };
    let uniform = VideoSpeechConfig { affinity: PairAffinity::Uniform, ..paced };
    let variants = [("uniform negatives", uniform), ("affinity-aware, self-paced", paced)];
    compare(title, measure, arguments, &variants, |name, config, seed, progress| {
        let (network, listener) = train(name, material, (&recipe, config), seed, progress)?;
        material.test(&network, &listener)
    })
}

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    given: Given,
    /// The folder of an unpacked Debian package tuxpaint-stamps-default: recorded speech instead of written names.
    #[arg(long, value_name = "DIR")]
    speech: Option<PathBuf>,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let Some(folder) = options.speech else {
        let arguments = options.given.or(12, 0.3);
        let words = ("Video and speech with planted ambiguous pairs", "names found");
        return run(words, &arguments, 8e-3, &Emoji::load(arguments.share)?);
    };
    let arguments = options.given.or(27, 0.25);
    let recorded = Recorded::load(&folder, arguments.share, arguments.recipe()?.architecture)?;
    eprintln!("{}: {}", folder.display(), recorded.say());
    let words = ("Video and recorded speech with planted ambiguous pairs", "found among ten");
    run(words, &arguments, 4e-3, &recorded)
}
