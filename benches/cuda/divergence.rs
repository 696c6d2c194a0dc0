//! Divergences of two distributions over the same keys on a GPU, by its own clock: milliseconds and TFLOP/s of the
//! products that docs/divergence.md counts, for the loss, the queries' gradient and the keys'.
//!
//! `cargo bench --features cuda --bench cuda -- divergence`. f32 is multiplied as three products of its parts, which do not
//! count.

use super::device::{OP, median, record, rows};
use consonance::cuda::divergence::{Exclusions, Problem, Side, key_gradients, losses};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Memory, Result, Words};
use consonance_cpu::divergence::Direction;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Queries, keys, dimensions of student and teacher.
const SHAPES: [[usize; 4]; 4] = [
    [8192, 65_536, 128, 128],
    [8192, 65_536, 512, 512],
    [8192, 65_536, 128, 768],
    [8192, 1_000_000, 256, 256],
];

/// What is computed, and how many products of 2 B N (D + D') and of 2 B N D are of use for it.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Loss,
    Queries,
    Keys,
}

impl Pass {
    const ALL: [(Self, &'static str, [usize; 2]); 3] = [
        (Self::Loss, "loss", [1, 0]),
        (Self::Queries, "queries", [2, 1]),
        (Self::Keys, "queries and keys", [3, 2]),
    ];
}

fn run(executor: &dyn Executor, problem: &Problem<'_>, upstream: Words<'_>, pass: Pass) -> Result<()> {
    let found = losses(executor, problem, pass != Pass::Loss)?;
    if pass == Pass::Keys {
        drop(key_gradients(executor, problem, &found, upstream)?);
    }
    Ok(())
}

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    println!("| divergence | ms | TFLOP/s |\n|---|---:|---:|");
    for [b, n, dim, width] in SHAPES {
        let (b, n) = if shapes_are_small() { (b.min(128), n.min(1000)) } else { (b, n) };
        for dtype in [DType::BF16, DType::F32] {
            let sides: Vec<Memory> = [(b, dim, 1), (n, dim, 2), (b, width, 3), (n, width, 4)]
                .map(|(count, dim, seed)| rows(&executor, dtype, count, dim, seed))
                .into();
            let side = |at: usize, dim: usize| {
                let matrix = |at: usize, rows| {
                    Matrix::new(OP, "rows", &sides[at], dtype, 0, [rows, dim, dim]).unwrap()
                };
                // Rows are normal: their inner product is D times a cosine.
                Side { queries: matrix(at, b), keys: matrix(at + 1, n), temperature: 0.07 * dim as f32 }
            };
            let upstream = data::normal(b, 1, 5);
            let upstream = executor.upload(OP, bytemuck::cast_slice(&upstream)).unwrap();
            let upstream = Words::new(OP, "upstream", &upstream, b).unwrap();
            for direction in [Direction::Forward, Direction::Reverse] {
                let problem = Problem {
                    student: side(0, dim),
                    teacher: side(2, width),
                    softening: 3.0,
                    direction,
                    excluded: Exclusions::default(),
                    teacher_log_sum_exp: None,
                };
                for (pass, name, [scores, values]) in Pass::ALL {
                    let once = || {
                        let run = || run(&executor, &problem, upstream, pass);
                        f64::from(executor.milliseconds(OP, run).unwrap())
                    };
                    let ms = median(once);
                    let operations = 2.0 * (b * n) as f64 * (scores * (dim + width) + values * dim) as f64;
                    let shape = format!("{b}x{n}x{dim}from{width}");
                    let name = format!("{direction:?}, {name}/{}/{shape}", dtype.suffix());
                    println!("| {name} | {ms:.3} | {:.1} |", operations / ms / 1e9);
                    record(criterion, "divergence", &name, Throughput::Elements(operations as u64), once);
                }
            }
        }
    }
}
