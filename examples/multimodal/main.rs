//! Images with captions and tags, beside images alone: what words add to contrastive training.
//!
//! ```sh
//! cargo run --release --example multimodal
//! ```
//!
//! Emoji-ID: half of the training identities, without their labels. Every picture has its emoji's names in the 28
//! locales of emojibase-data as captions and English tags (`data/emoji-captions`). One variant is MoCo, the contrast of two views of a picture; the
//! other adds the four terms with words of multimodal contrastive training (Yuan et al., CVPR 2021), at the published
//! weights. Tested on identities that no network has seen, by the features before the heads: mAP.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for a terminal
#![allow(dead_code)] // modules of `upgrade` are used in part

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/upgrade.rs"]
mod upgrade;

use std::collections::BTreeSet;

use candle_core::{Device, Tensor, Var};
use consonance_datasets::{Dataset, Split, emoji_captions, emoji_id};
use consonance_methods::{MomentumEncoder, Multimodal, MultimodalConfig, Streams, tag_sets};

use common::text::{self, Tower, counts};
use common::{Arguments, batches, compare, optimizer};
use evaluate::{Embedded, search};
use network::Network;
use progress::Progress;
use random::Draws;
use trainer::{Recipe, unit_rows};
use upgrade::*;

/// Keys of a queue, and dimensions of a head.
const QUEUE: usize = 1024;
const HEAD: usize = 32;
/// The public 0.999 is for runs of 10⁵ steps; here are some hundreds.
const MOMENTUM: f64 = 0.99;

/// The words of every image of a split.
struct Words {
    /// For each locale, letter groups `[images, counts]`.
    captions: Vec<Tensor>,
    /// `[images, words]`.
    tags: Tensor,
}

fn words(data: &Dataset, split: &Split) -> Result<Words, Failure> {
    let known = emoji_captions()?;
    let of_image: Vec<_> = split
        .items()
        .iter()
        .map(|item| &data.identities[item.identity as usize])
        .map(|identity| {
            known.emoji.get(&identity.name).ok_or_else(|| failure(format!("no caption: {}", identity.label)))
        })
        .collect::<Result<_, _>>()?;
    let all: BTreeSet<&str> =
        of_image.iter().flat_map(|caption| caption.tags.iter().map(String::as_str)).collect();
    let all: Vec<&str> = all.into_iter().collect();
    let number = |tag: &String| all.binary_search(&tag.as_str()).unwrap_or_default() as u32;
    let lists: Vec<Vec<u32>> =
        of_image.iter().map(|caption| caption.tags.iter().map(number).collect()).collect();
    let captions = (0..known.languages.len())
        .map(|language| counts(of_image.iter().map(|caption| caption.labels[language].as_str())))
        .collect::<Result<_, _>>()?;
    Ok(Words { captions, tags: tag_sets(&lists, all.len(), &Device::Cpu)? })
}

/// Images of a split that have a caption.
fn captioned(data: &Dataset, split: &Split) -> Result<Split, Failure> {
    let known = emoji_captions()?;
    Ok(split.filter(|item| known.emoji.contains_key(&data.identities[item.identity as usize].name)))
}

/// Heads of images and captions: three of images, two of captions, `[dim, HEAD]`.
fn head(features: &Tensor, heads: &[Var], at: usize) -> candle_core::Result<Tensor> {
    unit_rows(&features.relu()?.matmul(&heads[at])?)
}

fn train(
    name: &str,
    data: &Dataset,
    split: &Split,
    (recipe, config): (&Recipe, MultimodalConfig),
    words: &Words,
    seed: u64,
    progress: &Progress,
) -> Result<Network, Failure> {
    let (device, size) = (&Device::Cpu, (data.height, data.width));
    let new = || Network::new(&recipe.architecture, size.0, size.1, seed);
    let (network, follower) = (new()?, new()?);
    let dim = network.dim();
    let tower = Tower::new(text::COUNTS, dim, seed)?;
    let heads = (0..5).map(|at| text::matrix(dim, HEAD, [seed, 10 + at])).collect::<Result<Vec<_>, _>>()?;
    let mut variables = vec![network.parameters().clone()];
    variables.extend(tower.variables());
    variables.extend(heads);
    let momentum = MomentumEncoder::new(&variables, MOMENTUM)?;
    let heads = &variables[4..];
    let mut optimizer = optimizer(recipe, variables.clone());
    let sets = words.tags.dim(1)?;
    let mut method = Multimodal::new(config, (QUEUE, recipe.batch, HEAD), sets, device)?;
    let steps = batches(split.len(), recipe.batch, seed, 0).len();
    let bar = progress.training(name, recipe.epochs, steps, 0);
    for epoch in 0..recipe.epochs {
        for (step, rows) in batches(split.len(), recipe.batch, seed, epoch).iter().enumerate() {
            let view = |key: u64| {
                augment::augmented(split, size, rows, [seed, (2 * epoch) as u64 + key], &recipe.augmentation)
            };
            let mut draws = Draws::new(&[seed, epoch as u64, step as u64, 0x776f_7264]);
            let languages = draws.permutation(words.captions.len());
            let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
            let index = Tensor::new(index, device)?;
            let caption = |at: usize| words.captions[languages[at]].index_select(&index, 0);

            let followers = momentum.variables();
            follower.parameters().set(followers[0].as_tensor())?;
            let images = follower.forward(view(1))?.detach();
            let captions = text::forward(&followers[1..4], &caption(1)?)?;
            let keys = [
                head(&images, &followers[4..], 0)?,
                head(&images, &followers[4..], 1)?,
                head(&captions, &followers[4..], 3)?,
                head(&captions, &followers[4..], 4)?,
                head(&images, &followers[4..], 2)?,
            ]
            .map(|key| key.detach());
            let (images, captions) = (network.forward(view(0))?, tower.forward(&caption(0)?)?);
            let queries = [
                head(&images, heads, 0)?,
                head(&images, heads, 1)?,
                head(&captions, heads, 3)?,
                head(&images, heads, 2)?,
                head(&captions, heads, 4)?,
            ];
            let tags = words.tags.index_select(&index, 0)?;
            let terms = method.terms(&named(&queries), &named(&keys), &tags)?;
            let share = (epoch * steps + step) as f64 / (recipe.epochs * steps) as f64;
            optimizer.step(&terms.total.backward()?, share)?;
            momentum.step()?;
            bar.step(f64::from(terms.total.to_scalar::<f32>()?));
        }
        bar.epoch(epoch);
    }
    bar.finish();
    Ok(network)
}

fn named(x: &[Tensor; 5]) -> Streams<'_> {
    let [image, tag, caption, image_to_caption, caption_to_image] = x;
    Streams { image, tag, caption, image_to_caption, caption_to_image }
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(20, 0.5);
    let mut recipe = arguments.recipe()?;
    recipe.schedule.rate = 6e-3;
    let data = emoji_id()?;
    let split = captioned(&data, &data.train_subset(arguments.share)?.0)?;
    let words = words(&data, &split)?;
    let variants = [
        ("images alone", MultimodalConfig::image_only()),
        ("images, tags and captions", MultimodalConfig::default()),
    ];
    compare(
        "Multimodal contrastive training",
        "mAP",
        &arguments,
        &variants,
        |name, config, seed, progress| {
            let network = train(name, &data, &split, (&recipe, config), &words, seed, progress)?;
            let test = Embedded::new(&network, &data)?;
            Ok(search(&data, &test.query, &test.gallery)?.map)
        },
    )
}
