//! Class activation maps, blends and backgrounds, beside maps and blends written with Candle's own ops.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "cam/unfused.rs"]
mod unfused;

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Tensor};
use consonance::{BackgroundsOptions, backgrounds, cam, masked_blend};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use unfused::{normal, stretching};

/// Images, channels, height and width of the activations and of the maps.
const SHAPES: [[usize; 4]; 2] = [[64, 512, 7, 224], [64, 2048, 14, 224]];

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("cam");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for [b, k, side, size] in SHAPES {
        let name = format!("{b}x{k}x{side}x{side} to {size}x{size}");
        let activations = normal(&[b, k, side, side], 1).unwrap().relu().unwrap();
        let gradients = normal(&[b, k], 2).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let activations = activations.to_dtype(dtype).unwrap();
            group.bench_function(BenchmarkId::new(format!("consonance, {dtype:?}"), &name), |bench| {
                bench.iter(|| black_box(cam(&activations, &gradients, (size, size), false).unwrap()));
            });
        }
        let axis = stretching(side, size).unwrap();
        group.bench_function(BenchmarkId::new("candle, F32", &name), |bench| {
            bench.iter(|| black_box(unfused::cam(&activations, &gradients, (&axis, &axis)).unwrap()));
        });
    }
    let (b, size) = (64, 224);
    let images = normal(&[b, 3, size, size], 3).unwrap();
    let color = images.mean((0, 2, 3)).unwrap();
    let mask: Tensor = normal(&[b, size, size], 4).unwrap().clamp(0f32, 1f32).unwrap();
    let name = format!("{b}x3x{size}x{size}");
    group.bench_function(BenchmarkId::new("consonance, blend", &name), |bench| {
        bench.iter(|| black_box(masked_blend(&images, &color, &mask).unwrap()));
    });
    group.bench_function(BenchmarkId::new("candle, blend", &name), |bench| {
        bench.iter(|| black_box(unfused::masked_blend(&images, &color, &mask).unwrap()));
    });
    // An object in the middle: most of the mask is 0.
    let side = Tensor::arange(0f32, size as f32, images.device()).unwrap();
    let inside = (side.affine(1.0, -(size as f64) / 2.0).unwrap().abs().unwrap()).lt(60f32).unwrap();
    let inside = inside.to_dtype(DType::F32).unwrap();
    let object =
        inside.reshape((size, 1)).unwrap().broadcast_mul(&inside.reshape((1, size)).unwrap()).unwrap();
    let object = object.unsqueeze(0).unwrap().repeat((b, 1, 1)).unwrap();
    group.bench_function(BenchmarkId::new("consonance, backgrounds", &name), |bench| {
        bench.iter(|| black_box(backgrounds(&images, &object, &BackgroundsOptions::default()).unwrap()));
    });
    group.finish();
}

criterion_group!(cam_benches, benches);
criterion_main!(cam_benches);
