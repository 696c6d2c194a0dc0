//! The contrastive loss takes no memory of the size queries × keys: in its own binary, as it counts every allocation.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{Device, Tensor, Var};
use consonance::{AffinityMap, ContrastOptions, OtherPositives, Pairs, Temperature, contrast};
use consonance_testkit::allocation::{Counting, peak_extra};
use consonance_testkit::data;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: usize = 64 << 20;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

fn labels(rows: usize, classes: u32, seed: u64) -> Tensor {
    Tensor::new(&data::labels(rows, classes, seed)[..], &Device::Cpu).unwrap()
}

#[test]
fn forward_and_backward_stay_below_64_mib_at_every_measured_size() {
    for (b, n, d) in [(1024, 8192, 128), (1024, 65_536, 128), (512, 8192, 512)] {
        let (queries, keys, old) =
            (Var::from_tensor(&matrix(b, d, 1)).unwrap(), matrix(n, d, 2), matrix(b, d, 3));
        let (ql, kl) = (labels(b, 1000, 4), labels(n, 1000, 5));
        let one_class = (labels(b, 1, 4), labels(n, 1, 5));
        let half = AffinityMap::Half;
        let left_out = ContrastOptions { other_positives: OtherPositives::LeftOut, ..Default::default() };
        let cases = [
            ("labels", Pairs::labels(&ql, &kl), ContrastOptions::default()),
            ("labels with affinity", Pairs::labels(&ql, &kl).affinity(&old, &keys, half), Default::default()),
            ("left out", Pairs::labels(&ql, &kl).affinity(&old, &keys, half), left_out),
            ("all with affinity", Pairs::all().affinity(&old, &keys, half), Default::default()),
            ("one class", Pairs::labels(&one_class.0, &one_class.1), Default::default()),
        ];
        for (name, pairs, options) in cases {
            let (_, peak) = peak_extra(|| {
                let out = contrast(&queries, &keys, &Temperature::Fixed(0.07), &pairs, &options).unwrap();
                let grads = out.loss.backward().unwrap();
                assert!(grads.get(&queries).is_some());
                (out, grads)
            });
            println!("{b} x {n} x {d}, {name}: {:.1} MiB, the matrix {} MiB", mib(peak), (b * n * 4) >> 20);
            assert!(peak < LIMIT, "{name}: {peak} bytes");
        }
        // The keys' gradient is N x D itself, and Candle adds it to zeros: three times, and the tiles.
        let tracked = Var::from_tensor(&keys).unwrap();
        let pairs = Pairs::labels(&ql, &kl);
        let (_, peak) = peak_extra(|| {
            let options = ContrastOptions::default();
            let out = contrast(&queries, &tracked, &Temperature::Fixed(0.07), &pairs, &options).unwrap();
            out.loss.backward().unwrap()
        });
        println!("{b} x {n} x {d}, keys tracked: {:.1} MiB", mib(peak));
        assert!(peak < LIMIT + 3 * n * d * 4, "keys tracked: {peak} bytes");
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
