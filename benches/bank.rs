//! Pushing a batch into a bank, and moving class centers, beside the same centers written with Candle's own ops: a
//! one-hot matrix of the labels times the rows.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use consonance::{Bank, update_centers};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// Rows of a batch, slots, classes, dimensions.
const SHAPES: [(usize, usize, usize, usize); 2] = [(1024, 65_536, 1000, 128), (1024, 65_536, 10_000, 512)];
const MOMENTUM: f64 = 0.9;

fn unit(rows: usize, dim: usize, seed: u64) -> Result<Tensor> {
    Tensor::from_vec(data::unit(rows, dim, seed), (rows, dim), &Device::Cpu)
}

/// Centers of norm 1, of classes without a row unchanged, in Candle's ops.
fn centers_of_candle(centers: &Tensor, labels: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let classes = Tensor::arange(0u32, centers.dims()[0] as u32, &Device::Cpu)?.unsqueeze(1)?;
    let members = classes.broadcast_eq(&labels.unsqueeze(0)?)?.to_dtype(DType::F32)?;
    let count = members.sum_keepdim(1)?;
    let mean = members.matmul(rows)?.broadcast_div(&count.maximum(1f32)?)?;
    let moved = ((centers * MOMENTUM)? + (mean * (1.0 - MOMENTUM))?)?;
    let moved = moved.broadcast_div(&moved.sqr()?.sum_keepdim(1)?.sqrt()?)?;
    count.gt(0f32)?.broadcast_as(centers.shape())?.where_cond(&moved, centers)
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("bank");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for (b, slots, classes, dim) in SHAPES {
        let name = format!("{b}of{classes}x{dim}");
        let rows = unit(b, dim, 1).unwrap();
        let labels = Tensor::new(data::labels(b, classes as u32, 2), &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let mut bank = Bank::new(slots, dim, dtype, &Device::Cpu).unwrap();
            let name = format!("{name}, {slots} slots of {dtype:?}");
            group.bench_function(BenchmarkId::new("consonance, push", name), |bencher| {
                bencher.iter(|| bank.push(&rows, &labels).unwrap());
            });
        }
        let centers = unit(classes, dim, 3).unwrap();
        group.bench_function(BenchmarkId::new("consonance, centers", &name), |bencher| {
            bencher.iter(|| update_centers(&centers, &labels, &rows, MOMENTUM, true).unwrap());
        });
        group.bench_function(BenchmarkId::new("candle, centers", &name), |bencher| {
            bencher.iter(|| black_box(centers_of_candle(&centers, &labels, &rows).unwrap()));
        });
    }
    group.finish();
}

criterion_group!(bank_benches, benches);
criterion_main!(bank_benches);
