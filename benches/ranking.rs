//! mAP and CMC of a gallery of the size of Market-1501, beside Candle's matrix of scores with every row sorted.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use consonance::{RankingOptions, ranking};
use consonance_testkit::data;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// Queries, gallery, dimension; the first is Market-1501's.
const SHAPES: [(usize, usize, usize); 2] = [(3368, 19_732, 512), (512, 19_732, 512)];
const IDENTITIES: u32 = 750;
const CAMERAS: u32 = 6;
/// Beyond this many scores, sorting takes longer than is worth waiting.
const MOST_SORTED: usize = 16_000_000;

fn unit(rows: usize, dim: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, dim, seed), (rows, dim), &Device::Cpu).expect("the shape fits")
}

fn labels(rows: usize, classes: u32, seed: u64) -> Tensor {
    Tensor::from_vec(data::labels(rows, classes, seed), rows, &Device::Cpu).expect("the shape fits")
}

fn bench(c: &mut Criterion) {
    for (b, n, dim) in SHAPES {
        let mut group = c.benchmark_group(format!("ranking/{b}x{n}x{dim}"));
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .throughput(Throughput::Elements((b * n) as u64));
        let (queries, gallery) = (unit(b, dim, 1), unit(n, dim, 2));
        let options = RankingOptions::new(&labels(b, IDENTITIES, 3), &labels(n, IDENTITIES, 4))
            .exclude_same_camera(&labels(b, CAMERAS, 5), &labels(n, CAMERAS, 6));
        group.bench_function("consonance", |bencher| {
            bencher
                .iter(|| ranking(black_box(&queries), black_box(&gallery), &options).expect("valid input"));
        });
        if b * n <= MOST_SORTED {
            group.bench_function("candle", |bencher| {
                bencher.iter(|| {
                    let scores =
                        black_box(&queries).matmul(&gallery.t().expect("a matrix")).expect("shapes fit");
                    scores.arg_sort_last_dim(false).expect("a float matrix")
                });
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
