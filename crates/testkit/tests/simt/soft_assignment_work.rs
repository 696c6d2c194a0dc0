//! What the passes of soft assignment, soft centroids and credibility multiply and copy, against docs/soft_assignment.md.

use std::collections::BTreeMap;

use consonance::cuda::DType;
use consonance_cpu::clusters::Geometry;
use consonance_reference::soft_assignment::Affinity;
use consonance_simt::{Statistics, skipped_without_compiler};
use consonance_testkit::backend::{Backend, CredibilityCase, OnDevice, Simt, SoftCase};
use consonance_testkit::data;
use consonance_testkit::stored::Stored;

/// Runs on one multiprocessor and gives the statistics of every kernel, each launched once but for those that measure.
fn counted(run: impl Fn(&dyn Backend)) -> BTreeMap<String, Statistics> {
    let backend = OnDevice::new("simt", Simt::new(super::LIBRARY.clone(), 1, 0));
    run(&backend);
    backend.executor().statistics().into_iter().collect()
}

#[test]
fn the_passes_of_soft_assignment_multiply_and_copy_what_their_page_says() {
    if skipped_without_compiler() {
        return;
    }
    // Groups and parts of the soft update.
    for (points, centroids, [n, k, dim], groups, parts) in [
        (DType::BF16, DType::BF16, [128, 192, 128], 1, 1),
        (DType::F16, DType::F32, [64, 128, 256], 2, 1),
        (DType::BF16, DType::F32, [64, 64, 1024], 4, 2),
        (DType::F32, DType::F16, [128, 64, 512], 2, 2),
    ] {
        let case = SoftCase {
            points: Stored::new(points, &data::unit(n, dim, 1), dim),
            centroids: Stored::new(centroids, &data::unit(k, dim, 2), dim),
            geometry: Geometry::Spherical,
            affinity: Affinity::Exponential(2.0),
            nearest: None,
        };
        let found = counted(|backend| drop(backend.soft_centroids(&case).unwrap()));
        let folds = if points != DType::F32 && centroids != points { 2 } else { 1 };
        let times = if points == DType::F32 { 3 } else { 1 };
        let unit = (2 * n * k * dim) as u64;
        let pairs = (n / 64 * (k / 64)) as u64;
        let suffix = points.suffix();
        let what = format!("{points:?} [{n}, {dim}] to {centroids:?} [{k}, {dim}]");
        let rows = &found[&format!("soft_assignment_rows_{suffix}")];
        let bytes = points.bytes() as u64;
        let of_pair = 128 * dim as u64 * folds * bytes;
        println!("{what}: {} operations, {} bytes copied", rows.product_flops, rows.async_copies * 16);
        assert_eq!(rows.product_flops, unit * times * folds, "operations of {what}");
        assert_eq!(rows.async_copies * 16, pairs * of_pair, "bytes copied by {what}");
        let update = &found[&format!("soft_centroids_rows_{suffix}_{groups}")];
        let width = 128 * groups;
        let sums = 2 * (n * k) as u64 * width * parts * times;
        println!(
            "{what}, update: {} operations, {} bytes copied",
            update.product_flops,
            update.async_copies * 16
        );
        assert_eq!(
            update.product_flops,
            parts * unit * times * folds + sums,
            "operations of the update, {what}"
        );
        let copied = pairs * parts * (of_pair + 64 * width * bytes);
        assert_eq!(update.async_copies * 16, copied, "bytes copied by the update, {what}");
    }
}

#[test]
fn the_pass_of_credibility_multiplies_and_copies_what_its_page_says() {
    if skipped_without_compiler() {
        return;
    }
    for (dtype, dim, folds, times) in [(DType::BF16, 128, 2, 1), (DType::F32, 96, 1, 3)] {
        let (n, classes) = (256, 64);
        let labels: Vec<u32> = (0..n as u32).map(|i| i % classes).collect();
        let case = CredibilityCase::new(Stored::new(dtype, &data::unit(n, dim, 1), dim), labels);
        let found = counted(|backend| drop(backend.credibility(&case).unwrap()));
        let rows = &found[&format!("credibility_rows_{}", dtype.suffix())];
        let unit = (2 * n * classes as usize * dim) as u64;
        assert_eq!(rows.product_flops, unit * times * folds, "operations, {dtype:?}");
        let copied = (n / 64 * 128 * dim * dtype.bytes()) as u64 * folds;
        assert_eq!(rows.async_copies * 16, copied, "bytes copied, {dtype:?}");
        // The rows once, with number and scale of the row for each element, the sums again, and two offsets a thread.
        let sums = &found[&format!("credibility_centroids_{}", dtype.suffix())];
        let k = classes as usize;
        let bytes = (n * dim * (dtype.bytes() + 8) + k * (8 * dim + 8 * 128)) as u64;
        println!("{dtype:?}: centroids read {} bytes", sums.global_bytes_read);
        assert_eq!(sums.global_bytes_read, bytes, "bytes read for the centroids, {dtype:?}");
    }
}
