//! Exact top-k by inner product, beside the same with Candle's own ops: the whole matrix of scores, sorted.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;

use candle_core::{Device, Tensor};
use consonance::{NeighborsOptions, neighbors};
use consonance_testkit::data;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// Queries, keys, dimension, k.
const SHAPES: [(usize, usize, usize, usize); 3] =
    [(1024, 100_000, 128, 32), (256, 65_536, 128, 16), (1024, 20_000, 512, 32)];
/// Candle sorts every row of the matrix; beyond this many scores a sample takes longer than is worth waiting.
const MOST_SORTED: usize = 32_000_000;

fn unit(rows: usize, dim: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, dim, seed), (rows, dim), &Device::Cpu).expect("the shape fits")
}

fn sorted(queries: &Tensor, bank: &Tensor, k: usize) -> candle_core::Result<(Tensor, Tensor)> {
    let (scores, indices) = queries.matmul(&bank.t()?)?.sort_last_dim(false)?;
    Ok((scores.narrow(1, 0, k)?.contiguous()?, indices.narrow(1, 0, k)?.contiguous()?))
}

fn bench(c: &mut Criterion) {
    for (b, n, dim, k) in SHAPES {
        let mut group = c.benchmark_group(format!("neighbors/{b}x{n}x{dim}x{k}"));
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .throughput(Throughput::Elements((b * n) as u64));
        let (queries, bank) = (unit(b, dim, 1), unit(n, dim, 2));
        let options = NeighborsOptions::new(k);
        group.bench_function("consonance", |bencher| {
            bencher.iter(|| neighbors(black_box(&queries), black_box(&bank), &options).expect("valid input"));
        });
        if b * n <= MOST_SORTED {
            group.bench_function("candle", |bencher| {
                bencher.iter(|| sorted(black_box(&queries), black_box(&bank), k).expect("valid input"));
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
