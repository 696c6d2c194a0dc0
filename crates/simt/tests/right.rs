//! Kernels without a fault give what is known of them, the same bits under every seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::time::Instant;

use common::{Run, download, library, params, words};
use consonance_simt::Device;
use half::{bf16, f16};

const SEEDS: u64 = 12;

/// Numbers that look random.
fn numbers(count: usize) -> impl Iterator<Item = u32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ 0x5bd1_e995).rotate_left(13))
}

#[test]
fn sums_of_blocks() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let values: Vec<u32> = numbers(1000).map(|v| v % 1000).collect();
    let input = device.upload(&words(&values)).unwrap();
    let expected: Vec<u32> = values.chunks(128).map(|block| block.iter().sum()).collect();
    for seed in 0..SEEDS {
        let sums = device.allocate(4 * 8).unwrap();
        let params = params(&[&input, &sums], &[1000, 0]);
        let statistics = run.launch("block_sum", 8, 512, &params, seed).unwrap();
        assert_eq!(download(&device, &sums, 8), expected);
        assert_eq!(statistics.global_bytes_read, 4000);
        assert_eq!(statistics.global_bytes_written, 32);
        assert_eq!(statistics.barriers, 8 * 8);
        assert_eq!(statistics.shared_bytes_written, 8 * 4 * (128 + 127));
    }
}

#[test]
fn the_last_block_may_read_what_fenced_blocks_wrote() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let values: Vec<u32> = numbers(600).map(|v| v % 1000).collect();
    let input = device.upload(&words(&values)).unwrap();
    for seed in 0..SEEDS {
        let sums = device.upload(&words(&[0; 12])).unwrap();
        run.launch("last_block_sum", 10, 12, &params(&[&input, &sums], &[600, 0]), seed).unwrap();
        assert_eq!(download(&device, &sums, 2), [10, values.iter().sum()]);
    }
}

#[test]
fn words_move_between_lanes() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let each = |f: &dyn Fn(u32) -> u32| (0..32).map(f).collect::<Vec<u32>>();
    let expected = [
        each(&|l| 100 + (l * 7 + 3) % 32),
        each(&|l| 100 + l / 8 * 8 + 2),
        each(&|l| 100 + if l < 3 { l } else { l - 3 }),
        each(&|l| 100 + if l % 16 + 5 < 16 { l + 5 } else { l }),
        each(&|l| 100 + (l ^ 9)),
        each(&|_| (0..32).filter(|l| l % 3 == 0).map(|l| 1u32 << l).sum()),
        each(&|_| 1),
        each(&|_| 0),
        each(&|_| (31i32 - 40) as u32),
        each(&|_| 31 * 16),
        each(&|l| (0..32).filter(|o| o / 5 == l / 5).map(|o| 1u32 << o).sum()),
        each(&|l| (l ^ 1) + 7),
        each(&|l| (0.5 * (l + 1).min(31) as f32).to_bits()),
        each(&|l| if l < 16 { 120 } else { 0 }),
    ]
    .concat();
    for seed in 0..SEEDS {
        let out = device.allocate(4 * expected.len()).unwrap();
        let statistics = run.launch("warp_words", 1, 0, &params(&[&out], &[]), seed).unwrap();
        assert_eq!(download(&device, &out, expected.len()), expected);
        assert_eq!(statistics.shuffles, 15);
    }
}

fn halves(values: &[f32], as_f16: bool) -> Vec<u8> {
    let bits = |v: &f32| if as_f16 { f16::from_f32(*v).to_bits() } else { bf16::from_f32(*v).to_bits() };
    values.iter().flat_map(|v| bits(v).to_le_bytes()).collect()
}

#[test]
fn products_of_integers_are_exact_in_every_position() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    for as_f16 in [false, true] {
        // Up to 8 bits, all different: a product tells which elements met.
        let a: Vec<f32> = (0..256).map(|i| i as f32 - 128.0).collect();
        let b: Vec<f32> = numbers(128).map(|v| (v % 255) as f32 - 127.0).collect();
        let c: Vec<f32> = (0..128).map(|i| (i * 37) as f32).collect();
        let mut expected = c.clone();
        for i in 0..16 {
            for j in 0..8 {
                expected[i * 8 + j] += (0..16).map(|k| a[i * 16 + k] * b[j * 16 + k]).sum::<f32>();
            }
        }
        let (left, right) =
            (device.upload(&halves(&a, as_f16)).unwrap(), device.upload(&halves(&b, as_f16)).unwrap());
        for seed in 0..SEEDS {
            let sums = device.upload(&words(&c.iter().map(|v| v.to_bits()).collect::<Vec<_>>())).unwrap();
            let loaded = device.allocate(4 * 8 * 32).unwrap();
            let params = params(&[&left, &right, &sums, &loaded], &[u32::from(as_f16), 0]);
            let statistics = run.launch("product", 1, 768, &params, seed).unwrap();
            let got: Vec<f32> = download(&device, &sums, 128).into_iter().map(f32::from_bits).collect();
            assert_eq!(got, expected);
            assert_eq!((statistics.products, statistics.product_flops), (1, 4096));
            assert_eq!(statistics.matrix_loads, 2);
            // The loads: a fragment has rows, its transpose columns of the same matrix.
            let element = |row: usize, column: usize| {
                let bytes = halves(&a[row * 16 + column..][..1], as_f16);
                u32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
            };
            for (index, word) in download(&device, &loaded, 256).into_iter().enumerate() {
                let (register, lane) = (index / 32, index % 32);
                let (row, column) = (register % 4 % 2 * 8, register % 4 / 2 * 8);
                let (g, t) = (lane / 4, 2 * (lane % 4));
                let pair = if register < 4 {
                    element(row + g, column + t) | element(row + g, column + t + 1) << 16
                } else {
                    element(row + t, column + g) | element(row + t + 1, column + g) << 16
                };
                assert_eq!(word, pair, "register {register} of lane {lane}");
            }
        }
    }
}

#[test]
fn products_of_real_numbers_stay_within_the_bound_of_truncation() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let real = |v: u32| bf16::from_f32((v as f32 / u32::MAX as f32 - 0.5) * (v % 64) as f32).to_f32();
    let a: Vec<f32> = numbers(256).map(real).collect();
    let b: Vec<f32> = numbers(400).skip(272).map(real).collect();
    let c: Vec<f32> = numbers(128).map(|v| real(v) * 10.0).collect();
    let upload = |v: &[f32]| device.upload(&halves(v, false)).unwrap();
    let sums = device.upload(&words(&c.iter().map(|v| v.to_bits()).collect::<Vec<_>>())).unwrap();
    let loaded = device.allocate(1024).unwrap();
    run.launch("product", 1, 768, &params(&[&upload(&a), &upload(&b), &sums, &loaded], &[0, 0]), 5).unwrap();
    let got = download(&device, &sums, 128);
    let mut largest = 0f64;
    for i in 0..16 {
        for j in 0..8 {
            let products: Vec<f64> =
                (0..16).map(|k| f64::from(a[i * 16 + k]) * f64::from(b[j * 16 + k])).collect();
            let start = f64::from(c[i * 8 + j]);
            let exact = start + products.iter().sum::<f64>();
            let magnitude = start.abs() + products.iter().map(|p| p.abs()).sum::<f64>();
            // Twice nine addends and a rounding lose less than 2^-23 of the largest magnitude each.
            let bound = 20.0 * magnitude * 2f64.powi(-23);
            let error = (f64::from(f32::from_bits(got[i * 8 + j])) - exact).abs();
            largest = largest.max(error / bound);
        }
    }
    println!("error / bound: {largest:.3}");
    assert!(largest <= 1.0);
}

#[test]
fn copies_through_a_ring() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    for count in [1, 63, 64, 65, 640, 649] {
        let values: Vec<u32> = numbers(count).collect();
        let mut expected = vec![0u32; 64];
        for (i, value) in values.iter().enumerate() {
            expected[i % 64] = expected[i % 64].wrapping_add(*value);
        }
        let input = device.upload(&words(&values)).unwrap();
        for seed in 0..SEEDS {
            let sums = device.allocate(256).unwrap();
            let params = params(&[&input, &sums], &[count as u32, 0]);
            let statistics = run.launch("pipeline", 1, 3 * 256, &params, seed).unwrap();
            assert_eq!(download(&device, &sums, 64), expected);
            assert_eq!(statistics.async_copies, 16 * count.div_ceil(64) as u64);
            assert_eq!(statistics.global_bytes_read, 4 * count as u64);
        }
    }
}

#[test]
fn atomics_count() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let values: Vec<u32> = numbers(1000).map(|v| v % 13 + 2).collect();
    let input = device.upload(&words(&values)).unwrap();
    let mut expected = vec![0u32; 20];
    values.iter().for_each(|v| expected[*v as usize] += 1);
    (expected[16], expected[17]) = (2, 14);
    (expected[18], expected[19]) = (values.iter().sum(), 1000);
    let mut start = vec![0; 20];
    start[16] = u32::MAX;
    for seed in 0..SEEDS {
        let sums = device.upload(&words(&start)).unwrap();
        let params = params(&[&input, &sums], &[1000, 0]);
        let statistics = run.launch("histogram", 11, 64, &params, seed).unwrap();
        assert_eq!(download(&device, &sums, 20), expected);
        assert_eq!(statistics.atomics, 4 * 1000 + 11 * 16);
    }
}

#[test]
fn conversions_agree_with_half() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    // All of f16 by index; floats around every border of the narrow types, halfway cases and ordinary ones.
    let count = 1 << 16;
    let floats: Vec<f32> = (0..count as u32)
        .map(|i| match i % 4 {
            0 => f16::from_bits((i >> 1) as u16).to_f32() * (1.0 + 2f32.powi(-11)),
            1 => f32::from_bits(i.wrapping_mul(0x9e37_79b9)),
            2 => f32::from_bits(0x3300_0000 + i.wrapping_mul(0x0000_0a01)),
            _ => (i as f32 - 32768.0) / 200.0,
        })
        .collect();
    let input = device.upload(&words(&floats.iter().map(|f| f.to_bits()).collect::<Vec<_>>())).unwrap();
    let out = device.allocate(16 * count).unwrap();
    run.launch("conversions", 1, 0, &params(&[&input, &out], &[count as u32, 0]), 0).unwrap();
    let got = download(&device, &out, 4 * count);
    for (i, (float, words)) in floats.iter().zip(got.chunks(4)).enumerate() {
        let narrow = f16::from_f32(*float);
        if float.is_nan() {
            assert_eq!(words[0], 0x7fff_7fff);
            assert_eq!(words[1], 0x7fff_7fff);
        } else {
            assert_eq!(words[0], u32::from(narrow.to_bits()) * 0x1_0001, "{float:e}");
            let pair = u32::from(bf16::from_f32(*float).to_bits());
            assert_eq!(words[1], pair | (pair ^ 0x8000) << 16, "{float:e}");
        }
        let wide = f16::from_bits(i as u16);
        if !wide.is_nan() {
            assert_eq!(f32::from_bits(words[2]).to_bits(), wide.to_f32().to_bits());
        }
        let power = f32::from_bits(words[3]);
        let exact = f64::from(*float).exp2();
        if exact < 2f64.powi(-126) {
            assert_eq!(power, 0.0);
        } else if exact < f64::from(f32::MAX) {
            assert!((f64::from(power) - exact).abs() <= exact * 2f64.powi(-22), "{float}");
        } else {
            assert!(power.is_nan() || power.is_infinite() || power == f32::MAX, "{float}");
        }
    }
}

#[test]
fn thousands_of_products_take_well_under_a_second() {
    let Some(library) = library("right.cu") else { return };
    let device = Device::new().unwrap();
    let run = Run { device: &device, library: &library };
    let sums = device.allocate(4 * 256).unwrap();
    for (kernel, rounds, shared) in [("many_products", 500, 0), ("many_accesses", 4000, 1024)] {
        let start = Instant::now();
        let statistics = run.launch(kernel, 1, shared, &params(&[&sums], &[rounds, 0]), 3).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{kernel}: {seconds:.3} s; {:.2e} products, {:.2e} accesses, {:.2e} switches a second",
            statistics.products as f64 / seconds,
            statistics.accesses as f64 / seconds,
            statistics.switches as f64 / seconds
        );
        assert!(seconds < 5.0, "{kernel}: {seconds} s");
        if kernel == "many_products" {
            assert_eq!(statistics.products, 4000);
            let all = download(&device, &sums, 256);
            assert!(all.iter().all(|s| f32::from_bits(*s) == 4.0 * 16.0 * 500.0));
        }
    }
}

#[test]
fn devices_work_side_by_side() {
    let Some(library) = library("right.cu") else { return };
    let values: Vec<u32> = (0..1000).collect();
    let expected: Vec<u32> = values.chunks(128).map(|block| block.iter().sum()).collect();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (library, values, expected) = (&library, &values, &expected);
            scope.spawn(move || {
                let device = Device::new().unwrap();
                let run = Run { device: &device, library };
                let input = device.upload(&words(values)).unwrap();
                for round in 0..10 {
                    let sums = device.allocate(32).unwrap();
                    let params = params(&[&input, &sums], &[1000, 0]);
                    run.launch("block_sum", 8, 512, &params, seed * 100 + round).unwrap();
                    assert_eq!(&download(&device, &sums, 8), expected);
                }
            });
        }
    });
}
