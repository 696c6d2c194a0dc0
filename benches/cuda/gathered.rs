//! Losses over lists of bank rows on a GPU, by its own clock: milliseconds and GB/s of listed rows, beside the rate at
//! which the device copies, for both losses with and without the gradient of the queries, and the update of bank rows.
//!
//! `cargo bench --features cuda --bench cuda -- gathered`.

use super::device::{OP, median, record, rows};
use consonance::cuda::gathered::{Lists, Loss, Positives, Teacher, losses, update_rows};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Memory, Result, Words};
use consonance_cpu::contrast::Normalizer;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Queries, bank rows, columns, dimensions: the memory bank of Yang et al. 2022 for ImageNet, and rows four and sixteen
/// times as wide.
const SHAPES: [[usize; 4]; 3] =
    [[256, 1_281_167, 8194, 128], [256, 400_000, 8194, 512], [256, 100_000, 2049, 2048]];

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    // What a copy reads and writes; a loss only reads.
    println!("| copy of {copied} bytes | {ms:.3} ms | {:.0} GB/s |", 2.0 * copied as f64 / ms / 1e6);
    println!("|---|---:|---:|\n\n| loss | ms | GB/s of listed rows |\n|---|---:|---:|");
    for [b, n, columns, dim] in SHAPES {
        let (b, n, columns) =
            if shapes_are_small() { (b.min(16), n.min(1000), columns.min(100)) } else { (b, n, columns) };
        for dtype in [DType::BF16, DType::F32] {
            let sides: Vec<Memory> = [(b, 1), (n, 2), (b, 3), (n, 4)]
                .map(|(count, seed)| rows(&executor, dtype, count, dim, seed))
                .into();
            let matrix = |side: usize, rows| {
                Matrix::new(OP, "rows", &sides[side], dtype, 0, [rows, dim, dim]).unwrap()
            };
            let words = |words: &[u32]| executor.upload(OP, bytemuck::cast_slice(words)).unwrap();
            let list = words(&data::labels(b * columns, n as u32, 5));
            // Rows are normal: their inner product is D times a cosine.
            let tau = words(&[(0.07 * dim as f32).to_bits()]);
            let lists = Lists {
                queries: matrix(0, b),
                bank: matrix(1, n),
                indices: Words::new(OP, "indices", &list, b * columns).unwrap(),
                temperatures: Words::new(OP, "temperature", &tau, 1).unwrap(),
            };
            let contrast = Loss::Contrast { positives: Positives::First(1), normalizer: Normalizer::Count };
            let teacher = Teacher { queries: matrix(2, b), bank: matrix(3, n), softening: 3.0 };
            let bytes = (b * columns * dim * dtype.bytes()) as f64;
            for (name, loss, sides) in
                [("contrast", contrast, 1.0), ("divergence", Loss::Divergence(teacher), 2.0)]
            {
                for gradients in [false, true] {
                    let run = || losses(&executor, &lists, &loss, gradients).map(drop);
                    let once = || f64::from(executor.milliseconds(OP, run).unwrap());
                    let ms = median(once);
                    let with = if gradients { "with gradient" } else { "forward" };
                    let name = format!("{name}, {with}/{}/{b}x{columns}of{n}x{dim}", dtype.suffix());
                    println!("| {name} | {ms:.3} | {:.0} |", sides * bytes / ms / 1e6);
                    record(criterion, "gathered", &name, Throughput::Bytes((sides * bytes) as u64), once);
                }
            }
            let slots = words(&data::labels(b, n as u32, 6));
            let slots = Words::new(OP, "indices", &slots, b).unwrap();
            let update = || -> Result<()> {
                // SAFETY: the bank was uploaded for this bench.
                unsafe { update_rows(&executor, &lists.bank, slots, &lists.queries, 0.5).map(drop) }
            };
            let ms = median(|| f64::from(executor.milliseconds(OP, update).unwrap()));
            println!("| update of {b} rows/{}/{dim} | {ms:.3} | – |", dtype.suffix());
        }
    }
}
