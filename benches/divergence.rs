//! Divergences of two distributions over the same keys, forward and backward, beside the same loss written with Candle's
//! own ops, which hold several `B × N` matrices.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{D, Device, Result, Tensor, Var};
use consonance::{Direction, DivergenceOptions, divergence};
use consonance_testkit::data;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// Queries, keys, dimensions of student and teacher.
const SHAPES: [[usize; 4]; 3] = [[128, 128, 128, 128], [1024, 8192, 128, 128], [512, 8192, 128, 512]];
const TAU: f64 = 0.07;
const SOFTENING: f64 = 3.0;

struct Input {
    student: (Var, Var),
    teacher: (Tensor, Tensor),
}

impl Input {
    fn new([b, n, dim, width]: [usize; 4]) -> Result<Self> {
        let unit = |rows, dim, seed| Tensor::from_vec(data::unit(rows, dim, seed), (rows, dim), &Device::Cpu);
        Ok(Self {
            student: (Var::from_tensor(&unit(b, dim, 1)?)?, Var::from_tensor(&unit(n, dim, 2)?)?),
            teacher: (unit(b, width, 3)?, unit(n, width, 4)?),
        })
    }

    /// The student's keys, tracked or as a bank.
    fn keys(&self, tracked: bool) -> Tensor {
        if tracked { self.student.1.as_tensor().clone() } else { self.student.1.detach() }
    }

    fn ours(&self, direction: Direction, tracked: bool) -> Result<Option<Tensor>> {
        let options = DivergenceOptions::new(TAU).softening(SOFTENING).direction(direction);
        let student = (self.student.0.as_tensor(), &self.keys(tracked));
        let found = divergence(student, (&self.teacher.0, &self.teacher.1), &options)?;
        Ok(found.loss.backward()?.get(&self.student.0).cloned())
    }

    fn of_candle(&self, direction: Direction, tracked: bool) -> Result<Option<Tensor>> {
        let log = |queries: &Tensor, keys: &Tensor| {
            let scores = (queries.matmul(&keys.t()?)? / (TAU * SOFTENING))?;
            candle_nn::ops::log_softmax(&scores, D::Minus1)
        };
        let student = log(self.student.0.as_tensor(), &self.keys(tracked))?;
        let teacher = log(&self.teacher.0, &self.teacher.1)?;
        let divergence = match direction {
            Direction::Forward => (teacher.exp()? * (&teacher - &student)?)?,
            Direction::Reverse => (student.exp()? * (&student - &teacher)?)?,
        };
        let loss = (divergence.sum(1)?.mean_all()? * (SOFTENING * SOFTENING))?;
        Ok(loss.backward()?.get(&self.student.0).cloned())
    }
}

fn ok<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("{error}"),
    }
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("divergence");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for shape in SHAPES {
        let input = ok(Input::new(shape));
        for direction in [Direction::Forward, Direction::Reverse] {
            for tracked in [false, true] {
                let keys = if tracked { "both sides" } else { "queries" };
                let name =
                    format!("{direction:?}, {keys}, {}x{}x{}from{}", shape[0], shape[1], shape[2], shape[3]);
                group.bench_function(BenchmarkId::new("consonance", &name), |b| {
                    b.iter(|| black_box(ok(input.ours(direction, tracked))));
                });
                group.bench_function(BenchmarkId::new("candle", &name), |b| {
                    b.iter(|| black_box(ok(input.of_candle(direction, tracked))));
                });
            }
        }
    }
    group.finish();
}

criterion_group!(divergence_benches, benches);
criterion_main!(divergence_benches);
