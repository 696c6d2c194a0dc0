//! Augmentation of clips beside the same written with Candle's own ops: resampling and blur as products with dense matrices,
//! colors element by element. The steps are those of a first view of CVRL, with a crop, a flip, brightness, contrast,
//! saturation and grayscale; a hue of 0 turns is computed here and left out there.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use consonance::{AugmentOptions, ClipParameters, ColorJitter, ColorStep, CropBox, augment_clips};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Clips, frames, side of a frame before and after.
const SHAPES: [[usize; 4]; 2] = [[2, 16, 256, 224], [8, 8, 128, 112]];
const SIGMA: f32 = 1.5;
const FACTORS: [f32; 3] = [0.7, 1.4, 0.6];

fn parameters(side: usize) -> ClipParameters {
    use ColorStep::{Brightness, Contrast, Hue, Saturation};
    let [brightness, contrast, saturation] = FACTORS;
    let order = [Brightness, Contrast, Saturation, Hue];
    ClipParameters {
        crop: CropBox { top: side / 8, left: side / 16, height: side * 3 / 4, width: side * 2 / 3 },
        flip: true,
        jitter: Some(ColorJitter { brightness, contrast, saturation, hue: 0.0, order }),
        grayscale: true,
        blur: Some(SIGMA),
        solarize: None,
    }
}

/// The shares of `from` pixels from `start` on in each of `size`, in reverse when they are flipped: `[all, size]`.
fn resampling(all: usize, (start, from): (usize, usize), size: usize, flip: bool) -> Result<Tensor> {
    let mut shares = vec![0f32; all * size];
    for at in 0..size {
        let place = ((at as f64 + 0.5) * from as f64 / size as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let (first, share) = (place.floor() as usize, place.fract() as f32);
        let to = if flip { size - 1 - at } else { at };
        shares[(start + first) * size + to] += 1.0 - share;
        shares[(start + (first + 1).min(from - 1)) * size + to] += share;
    }
    Tensor::from_vec(shares, (all, size), &Device::Cpu)
}

/// The weights of a blur as a symmetric band matrix `[size, size]`.
fn band(size: usize, radius: usize) -> Result<Tensor> {
    let weights = consonance_cpu::clips::blur_weights(SIGMA, radius);
    let weight = |at: usize| weights.get((at / size).abs_diff(at % size)).copied().unwrap_or(0.0);
    Tensor::from_vec((0..size * size).map(weight).collect::<Vec<f32>>(), (size, size), &Device::Cpu)
}

/// Planes `[N, H, W]` times `down` `[H, H']` and `right` `[W, W']`.
fn along(planes: &Tensor, down: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (n, h, w) = planes.dims3()?;
    let (h_out, w_out) = (down.dim(1)?, right.dim(1)?);
    let wide = planes.reshape((n * h, w))?.matmul(right)?.reshape((n, h, w_out))?;
    let turned = wide.transpose(1, 2)?.contiguous()?.reshape((n * w_out, h))?;
    turned.matmul(down)?.reshape((n, w_out, h_out))?.transpose(1, 2)?.contiguous()
}

/// The steps of [`parameters`] with Candle's own ops.
fn candle(clips: &Tensor, size: usize, radius: usize) -> Result<Tensor> {
    let (b, t, c, side, _) = clips.dims5()?;
    let parameters = parameters(side);
    let CropBox { top, left, height, width } = parameters.crop;
    let planes = clips.reshape((b * t * c, side, side))?;
    let right = resampling(side, (left, width), size, parameters.flip)?;
    let x = along(&planes, &resampling(side, (top, height), size, false)?, &right)?
        .reshape((b, t, c, size, size))?;
    let [brightness, contrast, saturation] = FACTORS.map(f64::from);
    let x = (x * brightness)?.clamp(0f32, 1f32)?;
    let mean = x.mean_keepdim((1, 3, 4))?;
    let x = (x.broadcast_sub(&mean)? * contrast)?.broadcast_add(&mean)?.clamp(0f32, 1f32)?;
    let (value, least) = (x.max_keepdim(2)?, x.min_keepdim(2)?);
    let most = (&value / ((&value - least)? + 1e-12)?)?;
    let scale = most.minimum(saturation)?;
    let x = value.broadcast_sub(&value.broadcast_sub(&x)?.broadcast_mul(&scale)?)?.clamp(0f32, 1f32)?;
    let luma = Tensor::new(&[0.2989f32, 0.587, 0.114], &Device::Cpu)?.reshape((1, 1, 3, 1, 1))?;
    let gray = x.broadcast_mul(&luma)?.sum_keepdim(2)?.broadcast_as(x.shape())?.contiguous()?;
    let band = band(size, radius)?;
    along(&gray.reshape((b * t * c, size, size))?, &band, &band)?
        .clamp(0f32, 1f32)?
        .reshape((b, t, c, size, size))
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("clips");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for [b, t, side, size] in SHAPES {
        let name = format!("{b}x{t} frames of {side}, to {size}");
        let values: Vec<f32> =
            data::labels(b * t * 3 * side * side, 256, 1).into_iter().map(|v| v as f32 / 255.0).collect();
        let clips = Tensor::from_vec(values, (b, t, 3, side, side), &Device::Cpu).unwrap();
        let (options, all) = (AugmentOptions::new(size, size), vec![parameters(side); b]);
        let ours = augment_clips(&clips, &all, &options).unwrap();
        let theirs = candle(&clips, size, options.blur_radius).unwrap();
        let difference =
            (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference <= 1e-4, "{name}: {difference}");
        group.throughput(Throughput::Elements((b * t * size * size) as u64));
        for dtype in [DType::F32, DType::BF16] {
            let clips = clips.to_dtype(dtype).unwrap();
            let id = BenchmarkId::new("consonance", format!("{name}, {dtype:?}"));
            group.bench_function(id, |bench| {
                bench.iter(|| black_box(augment_clips(&clips, &all, &options).unwrap()));
            });
        }
        group.bench_function(BenchmarkId::new("candle", &name), |bench| {
            bench.iter(|| black_box(candle(&clips, size, options.blur_radius).unwrap()));
        });
    }
    group.finish();
}

criterion_group!(clips_benches, benches);
criterion_main!(clips_benches);
