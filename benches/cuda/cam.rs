//! Class activation maps, blends and backgrounds on a GPU, by its own clock: microseconds, and GB/s read and written beside
//! what the device copies.
//!
//! `cargo bench --features cuda --bench cuda -- cam`.

use super::device::{OP, median, record, rows};
use consonance::cuda::cam::{Other, backgrounds, cam, masked_blend};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Result, Words};
use consonance_cpu::cam::Options;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Images, channels, height and width of the activations and of the maps.
const SHAPES: [[usize; 4]; 3] = [[256, 512, 7, 224], [256, 2048, 14, 224], [64, 2048, 14, 224]];

/// A step's name, the step, and the bytes that it reads and writes.
type Step<'a> = (&'static str, &'a dyn Fn() -> Result<()>, f64);

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    println!("| copy of {copied} bytes | {ms:.3} ms | {:.0} GB/s |", 2.0 * copied as f64 / ms / 1e6);
    println!("|---|---:|---:|\n\n| step | µs | GB/s |\n|---|---:|---:|");
    for [b, k, side, size] in SHAPES {
        let (b, k, size) =
            if shapes_are_small() { (b.min(4), k.min(64), size.min(40)) } else { (b, k, size) };
        let pixels = size * size;
        for dtype in [DType::BF16, DType::F32] {
            let activations = rows(&executor, dtype, b, k * side * side, 1);
            let gradients = rows(&executor, DType::F32, b, k, 2);
            let images = rows(&executor, dtype, b, 3 * pixels, 3);
            let colors = rows(&executor, dtype, 1, 3, 4);
            let mask: Vec<f32> = data::normal(b, pixels, 5).iter().map(|v| v.clamp(0.0, 1.0)).collect();
            let mask = executor.upload(OP, bytemuck::cast_slice(&mask)).unwrap();
            let matrix =
                |memory, rows, cols| Matrix::new(OP, "rows", memory, dtype, 0, [rows, cols, cols]).unwrap();
            let words = |memory, len| Words::new(OP, "words", memory, len).unwrap();
            let (activations, images) =
                (matrix(&activations, b, k * side * side), matrix(&images, b, 3 * pixels));
            let (gradients, mask) = (words(&gradients, b * k), words(&mask, b * pixels));
            let options = Options { from: [side; 2], to: [size; 2], keep_negative: false };
            let color = Other::Colors(matrix(&colors, 1, 3));
            let map = || cam(&executor, &activations, gradients, &options).map(drop);
            let blend = || masked_blend(&executor, &images, &color, mask).map(drop);
            let paste = || masked_blend(&executor, &images, &Other::Images(images), mask).map(drop);
            let cover = || backgrounds(&executor, &images, mask, [size; 2], 0.2, false).map(drop);
            let of = |elements: usize| (elements * dtype.bytes()) as f64;
            let (read, plane) = (of(b * k * side * side), 4.0 * (b * pixels) as f64);
            let all = of(b * 3 * pixels);
            let steps: [Step<'_>; 4] = [
                ("map", &map, read + plane),
                ("blend with a color", &blend, 2.0 * all + plane),
                ("blend with images", &paste, 3.0 * all + plane),
                ("backgrounds", &cover, 2.0 * all + plane),
            ];
            for (name, step, bytes) in steps {
                let once = || f64::from(executor.milliseconds(OP, step).unwrap());
                let ms = median(once);
                let name = format!("{name}/{}/{b}x{k}x{side} to {size}", dtype.suffix());
                println!("| {name} | {:.1} | {:.0} |", ms * 1e3, bytes / ms / 1e6);
                record(criterion, "cam", &name, Throughput::Bytes(bytes as u64), once);
            }
        }
    }
}
