//! Sub-clusters beside Lloyd's algorithm written with Candle's own ops.
//!
//! Standard normal rows, the first rows of each class as the start, 10 rounds. `candle` is the usual unfused form:
//! the `N × K` scores, argmax, and `index_add` of the rows; with many classes, class after class. The other lines
//! show what k-means++ costs, and the credibility filter and soft assignment over the same centroids.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{D, DType, Device, Result, Tensor};
use consonance::{
    ClusterCount, ClusterStart, CredibilityOptions, Geometry, SoftAffinity, SoftAssignmentOptions,
    SubClustersOptions, credibility, soft_assignment, sub_clusters,
};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const ROUNDS: usize = 10;
/// Classes, rows of each, D, clusters of each.
const SHAPES: [(usize, usize, usize, usize); 2] = [(1, 50_000, 128, 256), (1000, 50, 128, 4)];

fn ok<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("{error}"),
    }
}

/// Lloyd's algorithm in Candle's ops, as one writes it without this crate.
fn unfused(points: &Tensor, start: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, k) = (points.dim(0)?, start.dim(0)?);
    let ones = Tensor::ones((n, 1), DType::F32, points.device())?;
    let mut centroids = start.clone();
    let nearest = |centroids: &Tensor| {
        let half = (centroids.sqr()?.sum(1)? * 0.5)?;
        points.matmul(&centroids.t()?)?.broadcast_sub(&half)?.argmax(D::Minus1)
    };
    for _ in 0..ROUNDS {
        let assignment = nearest(&centroids)?;
        let sums = centroids.zeros_like()?.index_add(&assignment, points, 0)?;
        let counts = Tensor::zeros((k, 1), DType::F32, points.device())?.index_add(&assignment, &ones, 0)?;
        let filled = counts.gt(0f32)?.broadcast_as(centroids.shape())?;
        centroids = filled.where_cond(&sums.broadcast_div(&counts.maximum(1f32)?)?, &centroids)?;
    }
    let assignment = nearest(&centroids)?;
    Ok((centroids, assignment))
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("clusters");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for (classes, rows, d, k) in SHAPES {
        let n = classes * rows;
        let points = ok(Tensor::from_vec(data::normal(n, d, 1), (n, d), &Device::Cpu));
        let labels: Vec<u32> = (0..n).map(|i| (i / rows) as u32).collect();
        let labels = ok(Tensor::new(labels, &Device::Cpu));
        let starts: Vec<Tensor> = (0..classes).map(|c| ok(points.narrow(0, c * rows, k))).collect();
        let start = ok(Tensor::cat(&starts, 0));
        let options = SubClustersOptions::new()
            .with_geometry(Geometry::Euclidean)
            .with_count(ClusterCount::Fixed(k))
            .with_start(ClusterStart::Given(start.clone()))
            .with_max_iterations(ROUNDS);
        let of = (classes > 1).then_some(&labels);
        let name = if classes > 1 { format!("{classes}x{rows}x{d}x{k}") } else { format!("{rows}x{d}x{k}") };
        group.bench_function(BenchmarkId::new("consonance", &name), |b| {
            b.iter(|| black_box(ok(sub_clusters(&points, of, &options))));
        });
        group.bench_function(BenchmarkId::new("candle", &name), |b| {
            b.iter(|| {
                for (class, start) in starts.iter().enumerate() {
                    black_box(ok(unfused(&ok(points.narrow(0, class * rows, rows)), start)));
                }
            });
        });
        if classes > 1 {
            let plus_plus = options.clone().with_start(ClusterStart::PlusPlus { seed: 1 });
            group.bench_function(BenchmarkId::new("consonance with k-means++", &name), |b| {
                b.iter(|| black_box(ok(sub_clusters(&points, of, &plus_plus))));
            });
            group.bench_function(BenchmarkId::new("credibility", &name), |b| {
                b.iter(|| black_box(ok(credibility(&points, &labels, &CredibilityOptions::new()))));
            });
        } else {
            let soft = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 10.0 });
            group.bench_function(BenchmarkId::new("soft assignment", &name), |b| {
                b.iter(|| black_box(ok(soft_assignment(&points, &start, &soft))));
            });
        }
    }
    group.finish();
}

criterion_group!(cluster_benches, benches);
criterion_main!(cluster_benches);
