//! The neighbors take no memory of the size queries × keys.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use consonance_cpu::Rows;
use consonance_cpu::neighbors::{Metric, Options, neighbors};
use consonance_testkit::{allocation, data};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

#[test]
fn peak_memory_is_of_the_order_of_the_inputs_rows_and_a_tile_a_thread() {
    // The scores of the larger case would take 320 MiB.
    for (b, n, dim, k) in [(1024, 20_000, 32, 16), (2048, 40_000, 32, 32)] {
        let (x, y) = (data::normal(b, dim, 1), data::normal(n, dim, 2));
        let labels = (data::labels(b, 10, 3), data::labels(n, 10, 4));
        let queries = Rows::new("test", "x", &x[..], b, dim).unwrap();
        let bank = Rows::new("test", "y", &y[..], n, dim).unwrap();
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2] {
            for labels in [None, Some((&labels.0[..], &labels.1[..]))] {
                let options = Options { k, metric, labels, ..Options::default() };
                let threads = rayon::current_num_threads();
                let (_, peak) = allocation::peak_extra(|| neighbors(&queries, &bank, &options).unwrap());
                // The result with its lists: k places of 8 bytes, their entries once more, and for each thread a
                // list with room for 2 k entries; the queries twice (converted and packed); the orders; a tile
                // of keys twice for each thread. 1 MiB for the pool itself.
                let lists = b * k * 8 * (2 + 3 * threads);
                let bound = lists
                    + b * dim * 4 * 3
                    + b * 64 * (1 + threads)
                    + n * 16
                    + threads * (4 << 20)
                    + (1 << 20);
                println!(
                    "{b} x {n} x {dim}, k {k}, {metric:?}: {peak} bytes of {bound}, matrix {}",
                    b * n * 4
                );
                assert!(peak <= bound && bound < b * n * 4);
            }
        }
    }
}
