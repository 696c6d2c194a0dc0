//! What the passes of a divergence multiply and copy, against docs/divergence.md.

use std::collections::BTreeMap;

use consonance::cuda::DType;
use consonance_cpu::divergence::Direction;
use consonance_simt::{Statistics, skipped_without_compiler};
use consonance_testkit::backend::{Backend, DivergenceCase, OnDevice, Simt};
use consonance_testkit::data;
use consonance_testkit::stored::Stored;

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
