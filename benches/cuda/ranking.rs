//! Ranking on a GPU: wall time, since its result is numbers on the host.
//!
//! `cargo bench --features cuda --bench cuda -- ranking`.

use std::time::Instant;

use consonance::cuda::ranking::ranking;
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix};
use consonance_cpu::ranking::Options;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};
use half::bf16;

use super::device::{median, record};

const OP: &str = "bench";

/// Queries, items, dimensions, labels: Market-1501's size, and a larger gallery.
const SHAPES: [([usize; 3], u32); 2] = [([3368, 19_732, 512], 751), ([4096, 200_000, 512], 5000)];

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    println!("| ranking | ms | TFLOP/s |\n|---|---:|---:|");
    for ([b, n, dim], classes) in SHAPES {
        let (b, n) = if shapes_are_small() { (b.min(64), n.min(1000)) } else { (b, n) };
        let (query_labels, item_labels) = (data::labels(b, classes, 1), data::labels(n, classes, 2));
        let options = Options::new(&query_labels, &item_labels);
        for dtype in [DType::F32, DType::BF16] {
            let upload = |rows, seed| {
                let values = data::normal(rows, dim, seed);
                let bytes: Vec<u8> = match dtype {
                    DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
                    _ => bytemuck::cast_slice(&values).to_vec(),
                };
                executor.upload(OP, &bytes).unwrap()
            };
            let (left, right) = (upload(b, 3), upload(n, 4));
            let queries = Matrix::new(OP, "queries", &left, dtype, 0, [b, dim, dim]).unwrap();
            let gallery = Matrix::new(OP, "gallery", &right, dtype, 0, [n, dim, dim]).unwrap();
            let once = || {
                let start = Instant::now();
                drop(ranking(&executor, &queries, &gallery, &options).unwrap());
                start.elapsed().as_secs_f64() * 1e3
            };
            let ms = median(once);
            let work = 2.0 * (b * n * dim) as f64;
            let name = format!("{}/{b}x{n}x{dim}/{classes} labels", dtype.suffix());
            println!("| {name} | {:.3} | {:.1} |", ms, work / ms / 1e9);
            record(criterion, "ranking", &name, Throughput::Elements(work as u64), once);
        }
    }
}
