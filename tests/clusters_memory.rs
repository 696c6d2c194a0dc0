//! Sub-clusters, soft assignment and credibility take no memory of the size rows × centroids, nor a copy of the
//! rows: in its own binary, as it counts every allocation.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor};
use consonance::{
    ClusterCount, ClusterStart, CredibilityOptions, Geometry, SoftAffinity, SoftAssignmentOptions,
    SubClustersOptions, credibility, soft_assignment, sub_clusters,
};
use consonance_testkit::allocation::{Counting, peak_extra};
use consonance_testkit::data;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: usize = 8 << 20;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::normal(rows, cols, seed), (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn the_statistics_of_40_000_rows_stay_below_8_mib_beside_matrices_of_78_and_762() {
    // Two threads: each has its own tiles.
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(statistics);
}

fn statistics() {
    let (n, d, k) = (40_000, 64, 512);
    let x = matrix(n, d, 1);
    let half = x.to_dtype(DType::BF16).unwrap();
    let centers = x.narrow(0, 0, k).unwrap();
    let classes = Tensor::new((0..n as u32).map(|i| i % 5000).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let report = |name: &str, peak: usize, matrix: usize| {
        println!("{name}: {:.1} MiB, the matrix {} MiB", peak as f64 / f64::from(1 << 20), matrix >> 20);
        assert!(peak < LIMIT, "{name}: {peak} bytes");
    };
    for (x, geometry) in
        [(&x, Geometry::Euclidean), (&half, Geometry::Euclidean), (&half, Geometry::Spherical)]
    {
        let options = SubClustersOptions::new()
            .with_geometry(geometry)
            .with_count(ClusterCount::Fixed(k))
            .with_start(ClusterStart::Given(centers.clone()))
            .with_max_iterations(2);
        let (_, peak) = peak_extra(|| sub_clusters(x, None, &options).unwrap());
        report("one class", peak, n * k * 4);
        let options = SubClustersOptions::new().with_geometry(geometry).with_count(ClusterCount::Fixed(1));
        let (_, peak) = peak_extra(|| sub_clusters(x, Some(&classes), &options).unwrap());
        report("5,000 classes", peak, n * 5000 * 4);
    }
    for nearest in [None, Some(4)] {
        let mut options = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 4.0 });
        options.nearest = nearest;
        let (_, peak) = peak_extra(|| soft_assignment(&x, &centers, &options).unwrap());
        report("soft assignment", peak, n * k * 4);
    }
    // Beside the rows' statistics: sums in f64 and centroids, 5,000 × 64.
    let (_, peak) = peak_extra(|| credibility(&x, &classes, &CredibilityOptions::new()).unwrap());
    report("credibility", peak - 5000 * d * (8 + 4 + 4), n * 5000 * 4);
}
