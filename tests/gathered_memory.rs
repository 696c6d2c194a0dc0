//! Losses over lists take no memory of the size queries × columns × dimensions: in its own binary, as it counts every
//! allocation.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{Device, Tensor, Var};
use consonance::{GatheredPositives, Normalizer, Temperature, gathered_contrast, gathered_divergence};
use consonance_testkit::allocation::{Counting, peak_extra};
use consonance_testkit::data;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn forward_and_backward_take_the_lists_once_and_a_tile_a_thread() {
    let (b, n, columns, dim) = (64, 50_000, 8194, 128);
    let queries = Var::from_tensor(&matrix(b, dim, 1)).unwrap();
    let (bank, other) = (matrix(n, dim, 2), matrix(n, dim, 3));
    let lists = data::labels(b * columns, n as u32, 4);
    let indices = Tensor::from_vec(lists, (b, columns), &Device::Cpu).unwrap();
    // The lists as the backend takes them, three times the gradient, and for each thread two tiles of 64 rows.
    let threads = rayon::current_num_threads();
    let bound = b * columns * 4 + 3 * b * dim * 4 + threads * 4 * 64 * dim * 4 + (1 << 20);
    let copied = b * columns * dim * 4;
    let (_, peak) = peak_extra(|| {
        let (tau, first) = (Temperature::Fixed(0.07), GatheredPositives::First(1));
        let found =
            gathered_contrast(queries.as_tensor(), &bank, &indices, &tau, &first, Normalizer::Count).unwrap();
        found.loss.backward().unwrap()
    });
    println!("contrast: {peak} bytes of {bound}, the listed rows {copied}");
    assert!(peak <= bound && bound < copied / 50);
    let (_, peak) = peak_extra(|| {
        let student = (queries.as_tensor(), &bank);
        let found = gathered_divergence(student, (queries.as_tensor(), &other), &indices, 0.07, 3.0).unwrap();
        found.loss.backward().unwrap()
    });
    println!("divergence: {peak} bytes of {bound}");
    assert!(peak <= bound);
}
