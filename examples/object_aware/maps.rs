//! Maps of scenes, and how well the boxes around what they show fit the true ones.

use candle_core::{Device, Tensor};
use consonance_methods::{BoxesConfig, ContraCam, ContraCamConfig, RelativeBox, boxes};
use rayon::prelude::*;

use crate::encoder::Encoder;
use crate::scenes::{LARGE, Scene, dense};
use crate::{BATCH, Failure};

/// Shares of a map's maximum that boxes are tried at; the published one is a half.
const THRESHOLDS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// `[3, H, W]`.
pub(crate) fn tensor(scene: &Scene) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&scene.picture.pixels, (3, LARGE, LARGE), &Device::Cpu)
}

/// The masks of all scenes, `[1, H, W]` each. The last plane has 16 x 16 pixels, as the last halving is left out: published for
/// boxes.
pub(crate) fn masks(
    scenes: &[Scene],
    encoder: &Encoder,
    config: ContraCamConfig,
) -> Result<Vec<Tensor>, Failure> {
    let method = ContraCam::new(config)?;
    let network = encoder.network.resized(LARGE, LARGE, true)?;
    let encode = |images: &Tensor| {
        let images: Vec<f32> =
            images.flatten_from(1)?.to_vec2::<f32>()?.iter().flat_map(|image| dense(image, None)).collect();
        network.activations(&images)
    };
    let mut out = Vec::with_capacity(scenes.len());
    for part in scenes.chunks(BATCH) {
        let images = Tensor::stack(&part.iter().map(tensor).collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let project = |pooled: &Tensor| encoder.project(&network.head(pooled)?);
        let masks = method.masks(&images, encode, project)?.masks;
        for at in 0..part.len() {
            out.push(masks.narrow(0, at, 1)?);
        }
    }
    Ok(out)
}

/// The boxes of all masks as they are: expanded boxes are for crops.
pub(crate) fn tight(masks: &[Tensor], threshold: f64) -> Result<Vec<Vec<RelativeBox>>, Failure> {
    let config = BoxesConfig { expand: 0.0, threshold, ..BoxesConfig::default() };
    Ok(boxes(&Tensor::cat(masks, 0)?, &config)?)
}

/// How well boxes fit, means over the scenes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fit {
    /// The intersection over union of the pixels that all found boxes of a scene cover and those that all true ones cover.
    pub(crate) covered: f64,
    /// The same with the threshold that fits the true boxes best, for all scenes one: what a map could give.
    pub(crate) best_threshold: f64,
    /// The intersection over union of a true box with the found one that fits it best, mean of a scene's true boxes.
    pub(crate) of_each: f64,
    /// The share of scenes in which nothing is found.
    pub(crate) without: f64,
}

impl Fit {
    pub(crate) fn of(scenes: &[Scene], masks: &[Tensor]) -> Result<Self, Failure> {
        let found = tight(masks, BoxesConfig::default().threshold)?;
        let mut best_threshold = 0.0f64;
        for threshold in THRESHOLDS {
            best_threshold = best_threshold.max(overlap(scenes, &tight(masks, threshold)?));
        }
        let of_each = scenes.iter().zip(&found).map(|(scene, found)| {
            let best = |own: &RelativeBox| found.iter().map(|other| own.iou(other)).fold(0.0, f64::max);
            scene.boxes.iter().map(best).sum::<f64>() / scene.boxes.len().max(1) as f64
        });
        let count = scenes.len() as f64;
        Ok(Self {
            covered: overlap(scenes, &found),
            best_threshold,
            of_each: of_each.sum::<f64>() / count,
            without: found.iter().filter(|found| found.is_empty()).count() as f64 / count,
        })
    }
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

/// The mean intersection over union of what the found boxes cover and what the true ones cover.
fn overlap(scenes: &[Scene], found: &[Vec<RelativeBox>]) -> f64 {
    let share = |(scene, found): (&Scene, &Vec<RelativeBox>)| -> f64 {
        let pairs: Vec<(bool, bool)> =
            covered(&scene.boxes).into_iter().zip(covered(found)).filter(|(a, b)| *a || *b).collect();
        pairs.iter().filter(|(a, b)| *a && *b).count() as f64 / pairs.len().max(1) as f64
    };
    let shares: Vec<f64> = scenes.par_iter().zip(found).map(share).collect();
    shares.iter().sum::<f64>() / scenes.len() as f64
}
