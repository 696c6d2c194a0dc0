//! Augmentation of clips on a GPU, by its own clock: milliseconds for both views of CVRL with parameters as published, and
//! GB/s of the pixels that go in and come out, beside what the device copies.
//!
//! `cargo bench --features cuda --bench cuda -- clips`.

use super::device::{OP, median, record};
use consonance::cuda::clips::augment;
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix};
use consonance_cpu::clips::{ClipParameters, Frames, Options};
use consonance_methods::{ClipAugmentation, ClipAugmentationConfig, ClipView};
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};
use half::{bf16, f16};

/// Clips, frames, height and width before, side after.
const SHAPES: [[usize; 5]; 2] = [[64, 16, 256, 340, 224], [256, 16, 128, 170, 112]];

/// Pixels in [0, 1], bytes over 255, in storage of a type.
fn pixels(dtype: DType, count: usize) -> Vec<u8> {
    let some: Vec<f32> = data::labels(1 << 16, 256, 1).into_iter().map(|byte| byte as f32 / 255.0).collect();
    let bytes: Vec<u8> = match dtype {
        DType::F32 => some.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        DType::F16 => some.iter().flat_map(|v| f16::from_f32(*v).to_ne_bytes()).collect(),
        DType::BF16 => some.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
    };
    bytes.iter().copied().cycle().take(count * dtype.bytes()).collect()
}

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    println!("| copy of {copied} bytes | {ms:.3} ms | {:.0} GB/s |", 2.0 * copied as f64 / ms / 1e6);
    println!("|---|---:|---:|\n\n| view | ms | GB/s |\n|---|---:|---:|");
    for [clips, count, height, width, side] in SHAPES {
        let clips = if shapes_are_small() { 2 } else { clips };
        let frames = Frames { count, height, width };
        let options = Options::new(side, side);
        let config =
            ClipAugmentationConfig { height: side, width: side, ..ClipAugmentationConfig::default() };
        let augmentation = ClipAugmentation::new(config).unwrap();
        for dtype in [DType::BF16, DType::F32] {
            let elements = frames.elements();
            let memory = executor.upload(OP, &pixels(dtype, clips * elements)).unwrap();
            let matrix = Matrix::new(OP, "clips", &memory, dtype, 0, [clips, elements, elements]).unwrap();
            let bytes = (clips * (elements + options.frames(count).elements()) * dtype.bytes()) as f64;
            for (name, view) in [("first", ClipView::First), ("second", ClipView::Second)] {
                let draw = |clip| augmentation.draw(view, (height, width), 1, (clip, 0)).unwrap();
                let parameters: Vec<ClipParameters> = (0..clips as u64).map(draw).collect();
                let work = || augment(&executor, &matrix, frames, &parameters, &options).map(drop);
                let once = || f64::from(executor.milliseconds(OP, work).unwrap());
                let ms = median(once);
                let name = format!("{name}/{}/{clips}x{count} of {height}x{width} to {side}", dtype.suffix());
                println!("| {name} | {ms:.3} | {:.0} |", bytes / ms / 1e6);
                record(criterion, "clips", &name, Throughput::Bytes(bytes as u64), once);
            }
        }
    }
}
