//! k-means inside every class on a GPU, by its own clock: milliseconds, TFLOP/s of the assignments and GB/s of the passes over
//! the rows that the plan makes, beside the rate at which the device copies.
//!
//! `cargo bench --features cuda --bench cuda -- clusters`. With `candle-cuda` Lloyd's algorithm in Candle's ops runs beside, with
//! its N × K scores.

use super::device::{Metered, OP, median, percent, record, rows};
use consonance::cuda::clusters::sub_clusters;
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix};
use consonance_cpu::clusters::{Count, Geometry, Options, Start};
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Rounds of assigning and averaging; one assignment more follows.
const ROUNDS: usize = 5;
/// Classes, rows of each, dimensions, clusters of each: small classes on chip, larger ones that are streamed and fused, and
/// one problem over everything.
const SHAPES: [[usize; 4]; 6] = [
    [20_000, 50, 128, 4],
    [10_000, 60, 512, 5],
    [770, 1300, 512, 10],
    [1, 1_000_000, 512, 1000],
    [1, 1_000_000, 128, 8192],
    [1, 1_000_000, 512, 8192],
];

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    // What a copy reads and writes; assignments only read.
    let copying = 2.0 * copied as f64 / ms / 1e6;
    println!("| copy of {copied} bytes | {ms:.3} ms | {copying:.0} GB/s read and written |\n|---|---:|---:|");
    #[cfg(feature = "candle-cuda")]
    unfused();
    println!("\n| clusters | start | ms | rounds | TFLOP/s | GB/s | of copying | MiB beyond inputs |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    for [classes, of_each, dim, k] in SHAPES {
        let (classes, of_each, k) = if shapes_are_small() {
            (classes.min(20), of_each.min(2000), k.min(100))
        } else {
            (classes, of_each, k)
        };
        let n = classes * of_each;
        let labels: Vec<u32> = (0..n).map(|row| (row / of_each) as u32).collect();
        for dtype in [DType::BF16, DType::F32] {
            let memory = rows(&executor, dtype, n, dim, 1);
            let points = Matrix::new(OP, "points", &memory, dtype, 0, [n, dim, dim]).unwrap();
            for (start_name, start) in
                [("random", Start::Random { seed: 1 }), ("k-means++", Start::PlusPlus { seed: 1 })]
            {
                // A pass over the rows for each of thousands of centroids is not what one problem starts from.
                if classes == 1 && start_name == "k-means++" {
                    continue;
                }
                let options = Options {
                    geometry: Geometry::Euclidean,
                    count: Count::Fixed(k),
                    start,
                    max_iterations: ROUNDS,
                    tolerance: 0.0,
                };
                let run = |executor: &dyn Executor| sub_clusters(executor, &points, Some(&labels), &options);
                let metered = Metered::new(&executor);
                let found = run(&metered).unwrap();
                let beyond = metered.mebibytes();
                let rounds = found.iterations.iter().sum::<u32>() as f64 / classes as f64;
                let once = || f64::from(executor.milliseconds(OP, || run(&executor).map(drop)).unwrap());
                let ms = median(once);
                let work = 2.0 * (n * dim * k) as f64 * (rounds + 1.0);
                // On chip one read in all; else norms, start, rounds and the end, and sorted sums.
                let on_chip = of_each * (dim * dtype.bytes() + 24) + k * dim * 4 < 90 * 1024;
                let steps = if start_name == "random" { 0.0 } else { (k - 1) as f64 };
                let sorted = if k > 64 { rounds } else { 0.0 };
                let passes = if on_chip { 1.0 } else { 2.0 + steps + rounds + sorted };
                let bytes = (n * dim * dtype.bytes()) as f64 * passes;
                let name = format!("{}/{classes}x{of_each}x{dim}/k{k}", dtype.suffix());
                println!(
                    "| {name} | {start_name} | {ms:.3} | {rounds:.1} | {:.1} | {:.0} | {} | {beyond:.1} |",
                    work / ms / 1e9,
                    bytes / ms / 1e6,
                    percent(Some(bytes / ms / 1e6 / copying)),
                );
                record(
                    criterion,
                    "clusters",
                    &format!("{name}/{start_name}"),
                    Throughput::Elements(work as u64),
                    once,
                );
            }
        }
    }
}

/// Lloyd's algorithm in Candle's ops: scores of all rows and centroids of as many classes as fit, argmax, and sums by
/// `index_add`; the first rows of every class are the start.
#[cfg(feature = "candle-cuda")]
fn unfused() {
    use candle_core::{D, DType, Device, Tensor};
    let device = Device::new_cuda(0).unwrap();
    println!("\n| Candle's ops, f32 | ms of {ROUNDS} rounds |\n|---|---:|");
    // Beyond these sizes the scores do not fit.
    for [classes, of_each, dim, k] in SHAPES.into_iter().filter(|[c, n, _, k]| c * n * k <= 4 << 30) {
        if shapes_are_small() {
            continue;
        }
        let points = Tensor::randn(0f32, 1., (classes, of_each, dim), &device).unwrap();
        let flat = points.reshape((classes * of_each, dim)).unwrap();
        let ones = Tensor::ones((classes * of_each, 1), DType::F32, &device).unwrap();
        let first = Tensor::arange_step(0u32, (classes * k) as u32, k as u32, &device).unwrap();
        let first = first.reshape((classes, 1)).unwrap();
        let run = || -> candle_core::Result<()> {
            let mut centroids = points.narrow(1, 0, k)?.contiguous()?;
            for _ in 0..ROUNDS {
                let half = (centroids.sqr()?.sum(2)?.unsqueeze(1)? * 0.5)?;
                let scores = points.matmul(&centroids.transpose(1, 2)?.contiguous()?)?;
                let nearest = scores.broadcast_sub(&half)?.argmax(D::Minus1)?;
                let cluster = nearest.broadcast_add(&first)?.flatten_all()?;
                let before = centroids.reshape((classes * k, dim))?;
                let sums = before.zeros_like()?.index_add(&cluster, &flat, 0)?;
                let zeros = Tensor::zeros((classes * k, 1), DType::F32, &device)?;
                let counts = zeros.index_add(&cluster, &ones, 0)?;
                let filled = counts.gt(0f32)?.broadcast_as(before.shape())?;
                let means = sums.broadcast_div(&counts.maximum(1f32)?)?;
                centroids = filled.where_cond(&means, &before)?.reshape((classes, k, dim))?;
            }
            device.synchronize()
        };
        let ms = median(|| {
            let start = std::time::Instant::now();
            run().unwrap();
            start.elapsed().as_secs_f64() * 1e3
        });
        println!("| {classes}x{of_each}x{dim}/k{k} | {ms:.3} |");
    }
}
