//! Divergences take no memory of the size queries × keys: in its own binary, as it counts every allocation.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{Device, Tensor, Var};
use consonance::{Direction, DivergenceOptions, divergence};
use consonance_testkit::allocation::{Counting, peak_extra};
use consonance_testkit::data;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn forward_and_backward_take_sums_and_tiles_and_no_matrix() {
    let (b, n, dim) = (1024, 65_536, 64);
    let (queries, keys) = (Var::from_tensor(&matrix(b, dim, 1)).unwrap(), matrix(n, dim, 2));
    let (other, other_keys) = (matrix(b, dim, 3), matrix(n, dim, 4));
    let tracked = Var::from_tensor(&keys).unwrap();
    let valid = Tensor::ones(n, candle_core::DType::U8, &Device::Cpu).unwrap();
    let threads = rayon::current_num_threads();
    // For each thread the queries of a block, their scores on both sides, two sums for 128 rows, in the total and in two
    // splits at once, tiles of both sides' keys, and what the products pack: a slab of the size of the second-level cache, of
    // which 4 MiB are counted; five times the gradient of the queries; the mask, as it is read, and its bias.
    let of_block = 2 * 128 * dim * 4 + 2 * 128 * 544 * 4 + 2 * 3 * 128 * dim * 4;
    let of_thread = of_block + 2 * 512 * dim * 4 + (4 << 20);
    let bound = threads * of_thread + 5 * b * dim * 4 + n * 8 + (1 << 20);
    // The keys' gradient is N × D itself, and Candle adds it to zeros.
    let with_keys = bound + 3 * n * dim * 4;
    for direction in [Direction::Forward, Direction::Reverse] {
        let options = DivergenceOptions::new(0.07).softening(3.0).direction(direction).valid(&valid);
        for (keys, bound) in [(&keys, bound), (tracked.as_tensor(), with_keys)] {
            let (_, peak) = peak_extra(|| {
                let student = (queries.as_tensor(), keys);
                let found = divergence(student, (&other, &other_keys), &options).unwrap();
                found.loss.backward().unwrap()
            });
            println!("{direction:?}: {peak} bytes of {bound}, the matrix {}", b * n * 4);
            assert!(peak <= bound && bound < b * n * 4 / 3);
        }
    }
}
