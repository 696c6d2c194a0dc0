//! What the passes of a family multiply and copy, counted by the simulator, against what docs/ derives.

use std::collections::BTreeMap;

use consonance::cuda::DType;
use consonance_cpu::divergence::Direction;
use consonance_simt::{Statistics, skipped_without_compiler};
use consonance_testkit::backend::{Backend, ContrastCase, ContrastRule, DivergenceCase, OnDevice, Simt};
use consonance_testkit::data;
use consonance_testkit::stored::Stored;

/// The statistics of every kernel of a loss, and of its gradients when they are asked for; each is launched once.
fn contrast(dtype: DType, [b, n, dim]: [usize; 3], gradients: bool) -> BTreeMap<String, Statistics> {
    let unit = |rows, seed| Stored::new(dtype, &data::unit(rows, dim, seed), dim);
    let labels = ContrastRule::Labels(data::labels(b, 50, 3), data::labels(n, 50, 4));
    let backend = OnDevice::new("simt", Simt::new(super::LIBRARY.clone(), 1, 0));
    let case = ContrastCase { gradients, ..ContrastCase::new(unit(b, 1), unit(n, 2), 0.1, labels) };
    backend.contrast(&case).unwrap();
    backend.executor().statistics().into_iter().collect()
}

/// docs/contrast.md, "On a GPU": products of 2 B N D, and elements copied in units of ⌈B/64⌉ ⌈N/64⌉ D.
#[test]
fn the_passes_of_contrast_multiply_and_copy_what_their_page_says() {
    if skipped_without_compiler() {
        return;
    }
    // Groups of the entries, and parts.
    for (dtype, [b, n, dim], groups, parts) in [
        (DType::BF16, [128, 192, 128], 1, 1),
        (DType::F16, [64, 128, 256], 2, 1),
        (DType::BF16, [64, 128, 512], 4, 1),
        (DType::F16, [64, 64, 1024], 4, 2),
        (DType::F32, [64, 128, 256], 2, 1),
        (DType::F32, [64, 64, 512], 2, 2),
    ] {
        // f32 is multiplied as three products of its parts.
        let times = if dtype == DType::F32 { 3 } else { 1 };
        let unit = (2 * b * n * dim * times) as u64;
        let tiles = (b / 64 * (n / 64) * dim * dtype.bytes()) as u64;
        for gradients in [false, true] {
            let found = contrast(dtype, [b, n, dim], gradients);
            let of = |step: &str| &found[&format!("contrast_{step}_{}_{groups}", dtype.suffix())];
            let passes = if gradients {
                vec![("rows", 1 + parts, 128 * parts + 64), ("keys", 1 + parts, 128 * parts + 64)]
            } else {
                vec![("rows", 1, 128)]
            };
            for (step, products, elements) in passes {
                let counted = of(step);
                let what =
                    format!("{step}, {dtype:?} [{b}, {dim}] against [{n}, {dim}], gradients {gradients}");
                println!(
                    "{what}: {} products of {unit} operations, {} bytes copied, {} bytes read in all",
                    counted.product_flops as f64 / unit as f64,
                    counted.async_copies * 16,
                    counted.global_bytes_read,
                );
                assert_eq!(counted.product_flops, products * unit, "operations of {what}");
                assert_eq!(counted.async_copies * 16, elements * tiles, "bytes copied by {what}");
            }
        }
    }
}

/// The statistics of every kernel of a divergence and its gradients; each is launched once.
fn divergence(dtype: DType, [b, n, dim, width]: [usize; 4]) -> BTreeMap<String, Statistics> {
    let sides = |dim, seed| {
        let unit = |rows, seed| Stored::new(dtype, &data::unit(rows, dim, seed), dim);
        (unit(b, seed), unit(n, seed + 1))
    };
    let backend = OnDevice::new("simt", Simt::new(super::LIBRARY.clone(), 1, 0));
    let case = DivergenceCase::new(sides(dim, 1), sides(width, 3), Direction::Forward);
    backend.divergence(&case).unwrap();
    backend.executor().statistics().into_iter().collect()
}

/// docs/divergence.md, "On a GPU": products of 2 B N, and elements copied in units of ⌈B/64⌉ ⌈N/64⌉.
#[test]
fn the_passes_of_divergence_multiply_and_copy_what_their_page_says() {
    if skipped_without_compiler() {
        return;
    }
    // Groups of the entries, and parts.
    for (dtype, [b, n, dim, width], groups, parts) in [
        (DType::BF16, [128, 192, 128, 64], 1, 1),
        (DType::F16, [64, 128, 256, 512], 2, 1),
        (DType::BF16, [64, 128, 512, 128], 4, 1),
        (DType::F16, [64, 64, 1024, 64], 4, 2),
        (DType::F32, [64, 128, 256, 96], 2, 1),
        (DType::F32, [64, 64, 512, 32], 2, 2),
    ] {
        // f32 is multiplied as three products of its parts.
        let times = if dtype == DType::F32 { 3 } else { 1 };
        let (pairs, tiles) = (2 * b * n * times, b / 64 * (n / 64) * dtype.bytes());
        let found = divergence(dtype, [b, n, dim, width]);
        let suffix = dtype.suffix();
        let gradient = (parts * (dim + width) + dim, parts * 128 * (dim + width) + 64 * dim);
        for (entry, (products, elements)) in [
            (format!("rows_{suffix}"), (dim + width, 128 * (dim + width))),
            (format!("queries_{suffix}_{groups}"), gradient),
            (format!("keys_{suffix}_{groups}"), gradient),
        ] {
            let counted = &found[&format!("divergence_{entry}")];
            let what = format!("{entry}, [{b}, {dim} and {width}] against {n}");
            println!(
                "{what}: {} products of 2 B N, {} bytes copied, {} bytes read in all",
                counted.product_flops as f64 / (2 * b * n) as f64,
                counted.async_copies * 16,
                counted.global_bytes_read,
            );
            assert_eq!(counted.product_flops, (products * pairs) as u64, "operations of {what}");
            assert_eq!(counted.async_copies * 16, (elements * tiles) as u64, "bytes copied by {what}");
        }
    }
}
