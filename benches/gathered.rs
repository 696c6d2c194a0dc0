//! Losses over lists of bank rows forward and backward, beside the same losses written with Candle's own ops, which copy
//! the listed rows into a `[B, K, D]` tensor; and the update of a batch of bank rows.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{D, Device, Result, Tensor, Var};
use consonance::{
    GatheredPositives, Normalizer, Temperature, gathered_contrast, gathered_divergence, update_rows,
};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// Queries, bank rows, columns, dimensions. The last is a quarter of the batch of Yang et al. 2022, whose copies would take a
/// gigabyte each.
const SHAPES: [(usize, usize, usize, usize); 2] = [(64, 100_000, 1024, 128), (64, 200_000, 8194, 128)];
const TAU: f64 = 0.07;
const SOFTENING: f64 = 3.0;

struct Input {
    queries: Var,
    bank: Tensor,
    other: Tensor,
    other_bank: Tensor,
    indices: Tensor,
    shape: (usize, usize, usize),
}

impl Input {
    fn new((b, n, columns, d): (usize, usize, usize, usize)) -> Result<Self> {
        let unit = |rows, seed| Tensor::from_vec(data::unit(rows, d, seed), (rows, d), &Device::Cpu);
        Ok(Self {
            queries: Var::from_tensor(&unit(b, 1)?)?,
            bank: unit(n, 2)?,
            other: unit(b, 3)?,
            other_bank: unit(n, 4)?,
            indices: Tensor::from_vec(data::labels(b * columns, n as u32, 5), (b, columns), &Device::Cpu)?,
            shape: (b, columns, d),
        })
    }

    fn contrast(&self) -> Result<Option<Tensor>> {
        let (tau, first) = (Temperature::Fixed(TAU), GatheredPositives::First(1));
        let queries = self.queries.as_tensor();
        let found = gathered_contrast(queries, &self.bank, &self.indices, &tau, &first, Normalizer::Count)?;
        Ok(found.loss.backward()?.get(&self.queries).cloned())
    }

    fn divergence(&self) -> Result<Option<Tensor>> {
        let (student, teacher) = ((self.queries.as_tensor(), &self.bank), (&self.other, &self.other_bank));
        let found = gathered_divergence(student, teacher, &self.indices, TAU, SOFTENING)?;
        Ok(found.loss.backward()?.get(&self.queries).cloned())
    }

    /// ⟨x_i, y_j⟩/τ of the listed rows, in Candle's ops.
    fn scores(&self, queries: &Tensor, bank: &Tensor) -> Result<Tensor> {
        let rows = bank.index_select(&self.indices.flatten_all()?, 0)?.reshape(self.shape)?;
        rows.matmul(&queries.unsqueeze(2)?)?.squeeze(2)? / TAU
    }

    fn contrast_of_candle(&self) -> Result<Option<Tensor>> {
        let scores = self.scores(self.queries.as_tensor(), &self.bank)?;
        let log_p = candle_nn::ops::log_softmax(&scores, D::Minus1)?;
        let loss = log_p.narrow(1, 0, 1)?.mean_all()?.neg()?;
        Ok(loss.backward()?.get(&self.queries).cloned())
    }

    fn divergence_of_candle(&self) -> Result<Option<Tensor>> {
        let soften = |scores: Tensor| candle_nn::ops::log_softmax(&(scores / SOFTENING)?, D::Minus1);
        let student = soften(self.scores(self.queries.as_tensor(), &self.bank)?)?;
        let teacher = soften(self.scores(&self.other, &self.other_bank)?)?;
        let divergence = (teacher.exp()? * (&teacher - &student)?)?.sum(1)?;
        let loss = (divergence.mean_all()? * (SOFTENING * SOFTENING))?;
        Ok(loss.backward()?.get(&self.queries).cloned())
    }

    fn update(&self, slots: &Tensor) -> Result<()> {
        Ok(update_rows(&self.bank, slots, self.queries.as_tensor(), 0.5)?)
    }
}

fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("{error}"),
    }
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("gathered");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for shape in SHAPES {
        let input = ok(Input::new(shape));
        let name = format!("{}x{}of{}x{}", shape.0, shape.2, shape.1, shape.3);
        group.bench_function(BenchmarkId::new("consonance, contrast", &name), |b| {
            b.iter(|| black_box(ok(input.contrast())));
        });
        group.bench_function(BenchmarkId::new("candle, contrast", &name), |b| {
            b.iter(|| black_box(ok(input.contrast_of_candle())));
        });
        group.bench_function(BenchmarkId::new("consonance, divergence", &name), |b| {
            b.iter(|| black_box(ok(input.divergence())));
        });
        group.bench_function(BenchmarkId::new("candle, divergence", &name), |b| {
            b.iter(|| black_box(ok(input.divergence_of_candle())));
        });
        let slots = ok(Tensor::from_vec(data::labels(shape.0, shape.1 as u32, 6), shape.0, &Device::Cpu));
        group.bench_function(BenchmarkId::new("consonance, update", &name), |b| {
            b.iter(|| ok(input.update(&slots)));
        });
    }
    group.finish();
}

criterion_group!(gathered_benches, benches);
criterion_main!(gathered_benches);
