//! Pushes into a ring and updates of class centers on a GPU, by its own clock: microseconds, and GB/s read and written
//! beside what the device copies.
//!
//! `cargo bench --features cuda --bench cuda -- bank`.

use super::device::{OP, median, record, rows};
use consonance::cuda::bank::{Entries, Ring, push, update_centers};
use consonance::cuda::{Bytes, CudaExecutor, DType, Executor, Matrix, Result, Words};
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

/// Rows of a batch, slots, classes, dimensions.
const SHAPES: [[usize; 4]; 3] =
    [[1024, 65_536, 1000, 128], [1024, 65_536, 10_000, 512], [8192, 1_000_000, 100_000, 512]];

/// A step's name, the step, and the bytes that it reads and writes.
type Step<'a> = (&'static str, &'a dyn Fn() -> Result<()>, f64);

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let copied = if shapes_are_small() { 1 << 20 } else { 1usize << 30 };
    let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
    println!("| copy of {copied} bytes | {ms:.3} ms | {:.0} GB/s |", 2.0 * copied as f64 / ms / 1e6);
    println!("|---|---:|---:|\n\n| step | µs | GB/s |\n|---|---:|---:|");
    for [b, slots, classes, dim] in SHAPES {
        let (b, slots, classes) = if shapes_are_small() {
            (b.min(64), slots.min(500), classes.min(50))
        } else {
            (b, slots, classes)
        };
        for dtype in [DType::BF16, DType::F32] {
            let batch = rows(&executor, dtype, b, dim, 1);
            let keys = executor.allocate(OP, slots * dim * dtype.bytes()).unwrap();
            let means = rows(&executor, dtype, classes, dim, 2);
            let words = |words: &[u32]| executor.upload(OP, bytemuck::cast_slice(words)).unwrap();
            let labels = words(&data::labels(b, classes as u32, 3));
            let (slot_labels, slot_ids) = (words(&vec![0; slots]), words(&vec![0; slots]));
            let credible = executor.upload(OP, &vec![0; slots]).unwrap();
            let matrix = |memory, rows| Matrix::new(OP, "rows", memory, dtype, 0, [rows, dim, dim]).unwrap();
            let vector = |memory, len| Words::new(OP, "labels", memory, len).unwrap();
            let ring = Ring {
                keys: matrix(&keys, slots),
                labels: vector(&slot_labels, slots),
                ids: vector(&slot_ids, slots),
                credible: Bytes::new(OP, "credible", &credible, slots).unwrap(),
            };
            let (batch, labels) = (matrix(&batch, b), vector(&labels, b));
            let entries = Entries { rows: batch, labels, ids: None, credible: None };
            let centers = matrix(&means, classes);
            let pushing = || -> Result<()> {
                // SAFETY: the ring was made for this bench.
                unsafe { push(&executor, &ring, slots - b / 2, &entries) }
            };
            let moving = || -> Result<()> {
                // SAFETY: the centers were uploaded for this bench.
                unsafe { update_centers(&executor, &centers, labels, &batch, (0.9, true)).map(drop) }
            };
            let row = (b * dim * dtype.bytes()) as f64;
            // A center is read and written for each of its classes, at most one a row, by the second of two runs.
            let steps: [Step<'_>; 2] = [("push", &pushing, 2.0 * row), ("centers", &moving, 5.0 * row)];
            for (name, step, bytes) in steps {
                let once = || f64::from(executor.milliseconds(OP, step).unwrap());
                let ms = median(once);
                let name = format!("{name}/{}/{b}of{classes}x{dim}", dtype.suffix());
                println!("| {name} | {:.1} | {:.0} |", ms * 1e3, bytes / ms / 1e6);
                record(criterion, "bank", &name, Throughput::Bytes(bytes as u64), once);
            }
        }
    }
}
