//! Sub-clusters done by kernels, against the CPU backend.

use candle_core::{DType, Device, Tensor};
use consonance::{ClusterCount, ClusterStart, Geometry, SubClusters, SubClustersOptions, sub_clusters};

use super::{integers, labels, with_kernels};

/// What both backends give bit for bit.
fn bits(found: &SubClusters) -> [Vec<u32>; 6] {
    let floats = |tensor: &Tensor| -> Vec<u32> {
        let flat: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        flat.iter().map(|value| value.to_bits()).collect()
    };
    [
        floats(&found.centroids),
        floats(&found.margin),
        found.sizes.to_vec1().unwrap(),
        found.assignment.to_vec1().unwrap(),
        found.offsets.iter().map(|offset| *offset as u32).collect(),
        found.labels.clone(),
    ]
}

#[test]
fn every_layout_start_and_count_gives_the_bits_of_the_cpu() {
    let given = ClusterStart::Given(integers(12, 9, 5, DType::BF16));
    for (dtype, start, count) in [
        (DType::F32, ClusterStart::PlusPlus { seed: 3 }, ClusterCount::Fixed(3)),
        (DType::F16, ClusterStart::Random { seed: 4 }, ClusterCount::SquareRoot { max: 5 }),
        (DType::BF16, given, ClusterCount::PerClass(vec![3, 4, 2, 3])),
    ] {
        let options = SubClustersOptions::new()
            .with_geometry(Geometry::Euclidean)
            .with_count(count)
            .with_start(start)
            .with_max_iterations(6);
        let wide = integers(90, 20, 1, dtype);
        for points in [
            wide.narrow(1, 3, 9).unwrap().narrow(0, 7, 80).unwrap(),
            integers(9, 90, 2, dtype).t().unwrap().narrow(0, 10, 80).unwrap(),
        ] {
            let labels = labels(80, 3).to_dtype(DType::I64).unwrap();
            let run = || sub_clusters(&points, Some(&labels), &options).unwrap();
            let expected = run();
            let Some((found, launched)) = with_kernels(run) else { return };
            assert_eq!(bits(&found), bits(&expected));
            assert_eq!(found.iterations, expected.iterations);
            assert_eq!(found.spread.dims(), expected.spread.dims());
            assert!(launched.iter().all(|name| name.starts_with("clusters_segment")), "{launched:?}");
        }
    }
}

#[test]
fn one_class_over_everything_is_streamed() {
    let points = integers(900, 32, 1, DType::F32);
    let options =
        SubClustersOptions::new().with_geometry(Geometry::Euclidean).with_count(ClusterCount::Fixed(4));
    let run = || sub_clusters(&points, None, &options.clone().with_max_iterations(3)).unwrap();
    let expected = run();
    let Some((found, launched)) = with_kernels(run) else { return };
    assert_eq!(bits(&found), bits(&expected));
    assert!(launched.contains(&"clusters_assign_f32".to_owned()), "{launched:?}");
}

#[test]
fn errors_name_the_argument_and_leave_the_device_as_it_was() {
    let points = integers(40, 6, 1, DType::F32);
    let run = |points: &Tensor, labels: &Tensor| {
        sub_clusters(points, Some(labels), &SubClustersOptions::new()).map(|_| ()).unwrap_err().to_string()
    };
    let spoilt = (&points / 0.0).unwrap();
    let Some((text, _)) = with_kernels(|| run(&spoilt, &labels(40, 2))) else { return };
    assert!(text.starts_with("sub_clusters: `points` row 0"), "{text}");
    let (text, _) = with_kernels(|| run(&points, &labels(39, 2))).unwrap();
    assert!(text.starts_with("sub_clusters: `labels`"), "{text}");
    let wrong = points.to_dtype(DType::U32).unwrap();
    let (text, _) = with_kernels(|| run(&wrong, &labels(40, 2))).unwrap();
    assert!(text.contains("`points`") && text.contains("f32, f16 or bf16"), "{text}");
    // A row that even alone does not fit on chip.
    let long = Tensor::ones((2, 60_000), DType::F32, &Device::Cpu).unwrap();
    let (text, _) = with_kernels(|| run(&long, &labels(2, 2))).unwrap();
    assert!(text.contains("`points`") && text.contains("shared memory"), "{text}");
}
