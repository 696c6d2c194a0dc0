//! Neighbors on a GPU, by its own clock: milliseconds, TFLOP/s of useful work, the share of what the device does when it
//! only copies or only multiplies, and memory beyond the inputs.
//!
//! `cargo bench --features cuda --bench cuda -- neighbors`. With `candle-cuda` the products alone by Candle (cuBLAS) run
//! beside, in chunks of the bank: what every unfused search pays before it selects anything. It is also the ceiling that
//! the share of multiplying refers to.

use super::device::{Metered, OP, median, percent, record, rows};
use consonance::cuda::neighbors::{Classes, Search, neighbors};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Words, segments};
use consonance_cpu::neighbors::Metric;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Classes of the search inside classes.
const CLASSES: u32 = 1000;

/// Queries, keys, dimensions, neighbors, and whether only inside classes: kernel sizes from search and training.
const SHAPES: [([usize; 4], bool); 10] = [
    ([8192, 1_000_000, 128, 10], false),
    ([8192, 1_000_000, 256, 10], false),
    ([8192, 1_000_000, 512, 10], false),
    ([8192, 1_000_000, 512, 64], false),
    ([8192, 1_000_000, 512, 128], false),
    ([8192, 1_000_000, 768, 10], false),
    ([1024, 100_000, 128, 32], false),
    ([64, 1_000_000, 512, 10], false),
    ([1, 1_000_000, 512, 10], false),
    ([8192, 1_000_000, 512, 10], true),
];

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    // What a copy reads and writes; a search only reads.
    let copying = 2.0 * copied as f64 / ms / 1e6;
    println!("| copy of {copied} bytes | {ms:.3} ms | {copying:.0} GB/s read and written |");
    println!("|---|---:|---:|");
    #[cfg(feature = "candle-cuda")]
    let multiplying = products();
    #[cfg(not(feature = "candle-cuda"))]
    let multiplying: Option<f64> = None;
    println!(
        "\n| search | ms | TFLOP/s | of multiplying | GB/s of the bank | of copying | MiB beyond inputs |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for ([b, n, dim, k], in_classes) in SHAPES {
        let (b, n) = if shapes_are_small() { (b.min(128), n.min(4096)) } else { (b, n) };
        for dtype in [DType::BF16, DType::F32] {
            let (left, right) = (rows(&executor, dtype, b, dim, 1), rows(&executor, dtype, n, dim, 2));
            let words = |len, seed| {
                executor.upload(OP, bytemuck::cast_slice(&data::labels(len, CLASSES, seed))).unwrap()
            };
            let (query_labels, key_labels) = (words(b, 3), words(n, 4));
            let labels = (
                Words::new(OP, "labels", &query_labels, b).unwrap(),
                Words::new(OP, "labels", &key_labels, n).unwrap(),
            );
            let orders =
                (segments::sort(&executor, labels.0).unwrap(), segments::sort(&executor, labels.1).unwrap());
            let search = Search {
                queries: Matrix::new(OP, "queries", &left, dtype, 0, [b, dim, dim]).unwrap(),
                bank: Matrix::new(OP, "bank", &right, dtype, 0, [n, dim, dim]).unwrap(),
                k,
                metric: Metric::InnerProduct,
                labels: in_classes.then_some(Classes {
                    query_labels: labels.0,
                    key_labels: labels.1,
                    query_order: &orders.0,
                    key_order: &orders.1,
                }),
                ids: None,
                allow: None,
            };
            let metered = Metered::new(&executor);
            drop(neighbors(&metered, &search).unwrap());
            let beyond = metered.mebibytes();
            let once =
                || f64::from(executor.milliseconds(OP, || neighbors(&executor, &search).map(drop)).unwrap());
            let ms = median(once);
            let classes = if in_classes { "/classes" } else { "" };
            let pairs = (b * n) as f64 / if in_classes { f64::from(CLASSES) } else { 1.0 };
            let tflops = 2.0 * pairs * dim as f64 / ms / 1e9;
            let bandwidth = (n * dim * dtype.bytes()) as f64 / ms / 1e6;
            let name = format!("{}/{b}x{n}x{dim}/k{k}{classes}", dtype.suffix());
            println!(
                "| {name} | {ms:.3} | {tflops:.1} | {} | {bandwidth:.0} | {} | {beyond:.1} |",
                percent(multiplying.map(|most| tflops / most)),
                percent(Some(bandwidth / copying)),
            );
            record(
                criterion,
                "neighbors",
                &name,
                Throughput::Elements((2.0 * pairs * dim as f64) as u64),
                once,
            );
        }
    }
}

/// The products alone, by Candle's own matmul, a chunk of the bank at a time: the floor of an unfused search. Gives
/// the most TFLOP/s.
#[cfg(feature = "candle-cuda")]
fn products() -> Option<f64> {
    use candle_core::{DType, Device, Tensor};
    let device = Device::new_cuda(0).unwrap();
    let mut most = 0.0f64;
    println!("\n| products alone (Candle matmul), bf16 | ms | TFLOP/s |\n|---|---:|---:|");
    for ([b, n, dim, _], in_classes) in SHAPES {
        if in_classes || shapes_are_small() {
            continue;
        }
        let chunk = 65_536.min(n);
        let queries = Tensor::randn(0f32, 1., (b, dim), &device).unwrap().to_dtype(DType::BF16).unwrap();
        let bank = Tensor::randn(0f32, 1., (chunk, dim), &device).unwrap().to_dtype(DType::BF16).unwrap();
        let run = || {
            for _ in 0..n.div_ceil(chunk) {
                queries.matmul(&bank.t().unwrap()).unwrap();
            }
            device.synchronize().unwrap();
        };
        run();
        let mut times: Vec<f64> = (0..7)
            .map(|_| {
                let start = std::time::Instant::now();
                run();
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let work = 2.0 * (b * dim) as f64 * (n.div_ceil(chunk) * chunk) as f64;
        println!("| {b}x{n}x{dim} | {:.3} | {:.1} |", times[3], work / times[3] / 1e9);
        most = most.max(work / times[3] / 1e9);
    }
    (most > 0.0).then_some(most)
}
