//! The contrastive loss forward and backward, beside the same loss written with Candle's own ops.
//!
//! `consonance` and `candle` are the neighborhood loss: positives by label with 1,000 labels (8 or 66 a row), weighted by
//! ½(1 + cos) of old embeddings, the gradient for the queries; keys are constants, as a bank is. `candle` writes its
//! `B × N` matrices. The other lines show both without weights, and what the other forms and the keys' gradient cost.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use consonance::{AffinityMap, ContrastOptions, OtherPositives, Pairs, Temperature, contrast};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const SHAPES: [(usize, usize, usize); 3] = [(1024, 8192, 128), (1024, 65_536, 128), (512, 8192, 512)];
const LABELS: u32 = 1000;
const TAU: f64 = 0.07;

struct Input {
    queries: Var,
    keys: Tensor,
    old_queries: Tensor,
    query_labels: Tensor,
    key_labels: Tensor,
}

impl Input {
    fn new((b, n, d): (usize, usize, usize)) -> Result<Self> {
        let unit = |rows, seed| Tensor::from_vec(data::unit(rows, d, seed), (rows, d), &Device::Cpu);
        let labels = |rows, seed| Tensor::new(&data::labels(rows, LABELS, seed)[..], &Device::Cpu);
        Ok(Self {
            queries: Var::from_tensor(&unit(b, 1)?)?,
            keys: unit(n, 2)?,
            old_queries: unit(b, 3)?,
            query_labels: labels(b, 4)?,
            key_labels: labels(n, 5)?,
        })
    }

    fn pairs(&self, affinity: bool) -> Pairs {
        let pairs = Pairs::labels(&self.query_labels, &self.key_labels);
        if affinity { pairs.affinity(&self.old_queries, &self.keys, AffinityMap::Half) } else { pairs }
    }

    /// The fused op.
    fn fused(&self, keys: &Tensor, affinity: bool, options: &ContrastOptions) -> Result<Option<Tensor>> {
        let out = contrast(&self.queries, keys, &Temperature::Fixed(TAU), &self.pairs(affinity), options)?;
        Ok(out.loss.backward()?.get(&self.queries).cloned())
    }

    /// The same loss in Candle's ops, as one writes it without this crate.
    fn unfused(&self, affinity: bool) -> Result<Option<Tensor>> {
        let scores = (self.queries.matmul(&self.keys.t()?)? / TAU)?;
        let (q, k) = (self.query_labels.unsqueeze(1)?, self.key_labels.unsqueeze(0)?);
        let positive = q.broadcast_eq(&k)?.to_dtype(DType::F32)?;
        let count = positive.sum_keepdim(1)?;
        let mut weights = positive.broadcast_div(&count.maximum(1f32)?)?;
        if affinity {
            let cosine = self.old_queries.matmul(&self.keys.t()?)?;
            weights = (weights * ((cosine + 1.0)? * 0.5)?)?;
        }
        let log_p = candle_nn::ops::log_softmax(&scores, D::Minus1)?;
        let anchors = count.minimum(1f32)?.sum_all()?.to_scalar::<f32>()?;
        let loss = ((weights * log_p)?.sum_all()? * (-1.0 / f64::from(anchors)))?;
        Ok(loss.backward()?.get(&self.queries).cloned())
    }
}

fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("{error}"),
    }
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("contrast");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for shape in SHAPES {
        let input = ok(Input::new(shape));
        let name = format!("{}x{}x{}", shape.0, shape.1, shape.2);
        let default = ContrastOptions::default();
        let left_out = ContrastOptions { other_positives: OtherPositives::LeftOut, ..default };
        for (fused, unfused, affinity) in
            [("consonance", "candle", true), ("consonance, equal weights", "candle, equal weights", false)]
        {
            group.bench_function(BenchmarkId::new(fused, &name), |b| {
                b.iter(|| black_box(ok(input.fused(&input.keys, affinity, &default))));
            });
            group.bench_function(BenchmarkId::new(unfused, &name), |b| {
                b.iter(|| black_box(ok(input.unfused(affinity))));
            });
        }
        group.bench_function(BenchmarkId::new("consonance, positives left out", &name), |b| {
            b.iter(|| black_box(ok(input.fused(&input.keys, true, &left_out))));
        });
        let tracked = ok(Var::from_tensor(&input.keys));
        group.bench_function(BenchmarkId::new("consonance, with the keys' gradient", &name), |b| {
            b.iter(|| black_box(ok(input.fused(&tracked, true, &default))));
        });
    }
    group.finish();
}

criterion_group!(contrast_benches, benches);
criterion_main!(contrast_benches);
