//! What the passes of a family multiply and copy, counted by the simulator, against what docs/ derives.

use std::collections::BTreeMap;

use consonance::cuda::DType;
use consonance_simt::{Statistics, skipped_without_compiler};
use consonance_testkit::backend::{
    Backend, ClustersCase, ClustersStart, ContrastCase, ContrastRule, OnDevice, Simt, SymmetricCase,
};
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

/// docs/clusters.md, "On a GPU": aligned rows are copied once in all on chip; once a pass where they are streamed.
#[test]
fn k_means_reads_the_rows_as_often_as_its_page_says() {
    if skipped_without_compiler() {
        return;
    }
    let run = |case: &ClustersCase| {
        let backend = OnDevice::new("simt", Simt::new(super::LIBRARY.clone(), 4, 0));
        let found = backend.clusters(case).unwrap();
        (found, backend.executor().statistics())
    };
    for dtype in DType::ALL {
        // On chip: three classes, one launch.
        let (n, d, k) = (450, 8, 4);
        let points = Stored::new(dtype, &data::normal(n, d, 1), d);
        let case = ClustersCase::new(points, Some(data::labels(n, 3, 2)), k);
        let (found, statistics) = run(&case);
        let [(name, counted)] = &statistics[..] else { panic!("{} launches", statistics.len()) };
        assert!(name.starts_with("clusters_segment"));
        assert!(found.iterations.iter().all(|rounds| *rounds > 2), "{:?}", found.iterations);
        let bank = (n * d * dtype.bytes()) as u64;
        assert_eq!(counted.async_copies * 16, bank, "bytes of rows read by {name}");
        // Row numbers when rows are copied and when results are written; 6 words and a label a step, by every thread; sums of
        // the moments, and of the clusters once a round.
        let threads = 256 * (6 * 4 + 4 * k as u64) * 3;
        let sums: u32 = found.iterations.iter().sum();
        let rest = 8 * n as u64 + threads + 3 * 8 * d as u64 + u64::from(sums) * (8 * k * d) as u64;
        println!("{name}: {bank} bytes of rows, {rest} of all else");
        assert_eq!(counted.global_bytes_read, bank + rest, "bytes read by {name}");
    }
    for (dtype, n, d, k, fused) in
        [(DType::F32, 700, 40, 3, true), (DType::BF16, 1100, 64, 3, true), (DType::F16, 700, 64, 66, false)]
    {
        let points = Stored::new(dtype, &data::normal(n, d, 1), d);
        let case = ClustersCase {
            start: ClustersStart::Random(1),
            max_iterations: 3,
            ..ClustersCase::new(points, None, k)
        };
        let (found, statistics) = run(&case);
        // The round in which no row changes hands is none.
        let rounds = found.iterations[0] as usize;
        let assignments = if rounds < 3 { rounds + 2 } else { rounds + 1 };
        assert!(rounds > 0);
        let bank = (n * d * dtype.bytes()) as u64;
        let launched = |step: &str| {
            statistics
                .iter()
                .filter(|(name, _)| name.starts_with(&format!("clusters_{step}")))
                .collect::<Vec<_>>()
        };
        // One read a round, one for norms and moments before, one for distances and margins behind.
        for (step, times) in [("measure", 1), ("assign", assignments)] {
            let launches = launched(step);
            assert_eq!(launches.len(), times, "{step}");
            for (name, counted) in launches {
                assert_eq!(counted.async_copies * 16, bank, "bytes of rows read by {name}");
            }
        }
        // No cluster was empty: the passes that this takes end before they copy anything.
        for (name, counted) in launched("far").into_iter().chain(launched("sum")) {
            assert_eq!(counted.async_copies, 0, "bytes of rows read by {name}");
        }
        // The sums of sorted rows are one read more; those of chunks read no row.
        for (name, counted) in launched("average") {
            let read = counted.global_bytes_read;
            println!("{name}, {n} x {d} into {k}: {read} bytes, of rows {bank}");
            assert_eq!(read >= bank, !fused, "bytes read by {name}");
        }
    }
}
