//! What the passes of a family multiply and copy, counted by the simulator, against what docs/ derives.

use std::collections::BTreeMap;

use consonance::cuda::DType;
use consonance_simt::{Statistics, skipped_without_compiler};
use consonance_testkit::backend::{Backend, ContrastCase, ContrastRule, OnDevice, Simt, SymmetricCase};
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

/// The statistics of every launch of a symmetric loss and of both sides' gradients, in their order.
fn symmetric(dtype: DType, [b, n, dim]: [usize; 3]) -> Vec<(String, Statistics)> {
    let unit = |rows, seed| Stored::new(dtype, &data::unit(rows, dim, seed), dim);
    let labels = ContrastRule::Labels(data::labels(b, 50, 3), data::labels(n, 50, 4));
    let backend = OnDevice::new("simt", Simt::new(super::LIBRARY.clone(), 1, 0));
    let case = SymmetricCase::new(ContrastCase::new(unit(b, 1), unit(n, 2), 0.1, labels));
    backend.symmetric(&case).unwrap();
    backend.executor().statistics()
}

/// docs/contrast.md, "On a GPU": 1 + 2 (1 + parts) products, and elements copied as by the passes of one direction.
#[test]
fn the_symmetric_form_multiplies_and_copies_what_its_page_says() {
    if skipped_without_compiler() {
        return;
    }
    for (dtype, [b, n, dim], groups, parts) in [
        (DType::BF16, [128, 192, 128], 1, 1),
        (DType::F16, [64, 128, 512], 4, 1),
        // A split of the queries has two tiles.
        (DType::BF16, [1088, 64, 128], 1, 1),
        (DType::F16, [64, 64, 1024], 4, 2),
        (DType::F32, [64, 128, 256], 2, 1),
        (DType::F32, [64, 64, 512], 2, 2),
    ] {
        let times = if dtype == DType::F32 { 3 } else { 1 };
        let unit = (2 * b * n * dim * times) as u64;
        let tiles = (b / 64 * (n / 64) * dim * dtype.bytes()) as u64;
        let found = symmetric(dtype, [b, n, dim]);
        let (sums, gradient) = (
            format!("contrast_symmetric_sums_{}", dtype.suffix()),
            format!("contrast_symmetric_gradient_{}_{groups}", dtype.suffix()),
        );
        let mut products = 0;
        for (name, counted) in &found {
            let (of, elements) = match name {
                name if *name == sums => (1, 128),
                name if *name == gradient => (1 + parts, 128 * parts + 64),
                // The other kernels have no products.
                _ => (0, 0),
            };
            let what = format!("{name}, {dtype:?} [{b}, {dim}] against [{n}, {dim}]");
            assert_eq!(counted.product_flops, of * unit, "operations of {what}");
            assert_eq!(counted.async_copies * 16, elements * tiles, "bytes copied by {what}");
            products += of;
        }
        println!(
            "symmetric, {dtype:?} [{b}, {dim}] against [{n}, {dim}]: {products} products of {unit} operations"
        );
        assert_eq!(products, 1 + 2 * (1 + parts), "{:?}", found.iter().map(|it| &it.0).collect::<Vec<_>>());
    }
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
