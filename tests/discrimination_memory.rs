//! The discrimination space never writes B × N or N × C: measured with a counting allocator, in a binary of its own.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{Device, Tensor, Var};
use consonance::{DiscriminationOptions, Pairs, Temperature, discrimination_kl, discrimination_raw};
use consonance_testkit::{allocation, data};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

#[test]
fn peak_memory_is_of_the_batch_and_one_tile() {
    // B × N would be 64 MiB, N × C 256 MiB.
    let (b, n, d, c) = (256, 65_536, 64, 1024);
    let device = Device::Cpu;
    let matrix = |x: Vec<f32>, rows: usize| Tensor::from_vec(x, (rows, d), &device).unwrap();
    let queries = Var::from_tensor(&matrix(data::unit(b, d, 1), b)).unwrap();
    let keys = matrix(data::unit(n, d, 2), n);
    let weights = Var::from_tensor(&matrix(data::normal(c, d, 3), c)).unwrap();
    let labels = |rows: usize, seed| Tensor::new(data::labels(rows, 1000, seed), &device).unwrap();
    let pairs = Pairs::labels(&labels(b, 4), &labels(n, 5));
    let options = DiscriminationOptions { scale: 8.0, ..DiscriminationOptions::default() };
    let limit = 48 << 20;
    let (_, peak) = allocation::peak_extra(|| {
        let found =
            discrimination_kl(queries.as_tensor(), &keys, weights.as_tensor(), &pairs, &options).unwrap();
        assert_eq!(found.anchors, b);
        found.loss.backward().unwrap()
    });
    println!("divergence: {:.1} MiB", peak as f64 / (1 << 20) as f64);
    assert!(peak < limit, "{peak} bytes");
    let (_, peak) = allocation::peak_extra(|| {
        let t = Temperature::Fixed(0.5);
        let found = discrimination_raw(queries.as_tensor(), &keys, weights.as_tensor(), &t, &pairs, &options);
        found.unwrap().loss.backward().unwrap()
    });
    println!("raw: {:.1} MiB", peak as f64 / (1 << 20) as f64);
    assert!(peak < limit, "{peak} bytes");
}
