//! Soft assignment, soft centroids and credibility by kernels, through the ops: layouts, types, labels, errors.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    CredibilityOptions, Geometry, Scale, SoftAffinity, SoftAssignmentOptions, SubClustersOptions,
    credibility, soft_assignment, soft_centroids, sub_clusters,
};

use super::{integers, labels, with_kernels};

fn words(tensor: &Tensor) -> Vec<u32> {
    tensor.to_vec1().unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// f32 results of two orders of summation.
fn close(left: &Tensor, right: &Tensor) {
    for (a, b) in floats(left).iter().zip(floats(right)) {
        assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()) || *a == b, "{a} and {b}");
    }
}

/// Integers decide the nearest centroids alone, whatever the layout.
#[test]
fn every_layout_gives_the_nearest_centroids_of_the_cpu() {
    for (points, centroids) in
        [(DType::F32, DType::F32), (DType::F16, DType::F32), (DType::BF16, DType::BF16)]
    {
        let (x, c) = (integers(30, 20, 1, points), integers(90, 20, 2, centroids));
        let views = [
            (x.clone(), c.clone()),
            (x.narrow(1, 5, 9).unwrap(), c.narrow(1, 1, 9).unwrap()),
            (x.t().unwrap().narrow(1, 2, 17).unwrap(), c.t().unwrap().narrow(1, 60, 17).unwrap()),
        ];
        let plain = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 0.5 })
            .with_geometry(Geometry::Euclidean);
        for (x, c) in views {
            for options in [plain.clone(), plain.clone().with_nearest(5)] {
                let expected = soft_assignment(&x, &c, &options).unwrap();
                let Some((found, launched)) = with_kernels(|| soft_assignment(&x, &c, &options)) else {
                    return;
                };
                let found = found.unwrap();
                assert_eq!(words(&found.best), words(&expected.best));
                close(&found.log_sum_exp, &expected.log_sum_exp);
                close(&found.entropy, &expected.entropy);
                close(&found.best_probability, &expected.best_probability);
                assert_eq!(found.nearest.is_some(), options.nearest.is_some());
                if let (Some(found), Some(expected)) = (&found.nearest, &expected.nearest) {
                    assert_eq!(found.0.to_vec2::<u32>().unwrap(), expected.0.to_vec2::<u32>().unwrap());
                    close(&found.1, &expected.1);
                }
                assert!(launched.iter().any(|name| name.starts_with("soft_assignment_")), "{launched:?}");
            }
            let expected = soft_centroids(&x, &c, &plain).unwrap();
            let (found, launched) = with_kernels(|| soft_centroids(&x, &c, &plain)).unwrap();
            let found = found.unwrap();
            assert_eq!(found.centroids.dims(), expected.centroids.dims());
            assert_eq!(words(&found.assignment.best), words(&expected.assignment.best));
            assert!(launched.contains(&"soft_centroids_join".to_owned()), "{launched:?}");
            if points == DType::F32 {
                close(&found.mass, &expected.mass);
            }
        }
    }
}

#[test]
fn credibility_by_kernels_is_that_of_the_cpu() {
    let points = integers(60, 12, 1, DType::F32);
    let labels = labels(60, 2).to_dtype(DType::I64).unwrap();
    let clusters = sub_clusters(&points, Some(&labels), &SubClustersOptions::new()).unwrap();
    let plain = CredibilityOptions::new();
    for options in [
        plain.clone(),
        plain.clone().with_nearest(2),
        plain.clone().with_sub_clusters(&clusters).with_scale(Scale::Exponential { rate: 3.0 }),
        CredibilityOptions::published(),
    ] {
        let expected = credibility(&points, &labels, &options).unwrap();
        let Some((found, launched)) = with_kernels(|| credibility(&points, &labels, &options)) else {
            return;
        };
        let found = found.unwrap();
        assert_eq!(found.credible.to_vec1::<u8>().unwrap(), expected.credible.to_vec1::<u8>().unwrap());
        assert_eq!(words(&found.predicted), words(&expected.predicted));
        assert_eq!(words(&found.closer), words(&expected.closer));
        for (found, expected) in [
            (&found.entropy, &expected.entropy),
            (&found.suspicion, &expected.suspicion),
            (&found.own_probability, &expected.own_probability),
            (&found.margin, &expected.margin),
        ] {
            close(found, expected);
        }
        assert_eq!(
            (found.entropy_limit, found.suspicion_limit),
            (expected.entropy_limit, expected.suspicion_limit)
        );
        assert!(launched.contains(&"credibility_join".to_owned()), "{launched:?}");
    }
}

#[test]
fn errors_of_soft_assignment_and_credibility_name_the_argument() {
    let (x, c) = (integers(5, 4, 1, DType::F32), integers(8, 4, 2, DType::F32));
    let options = SoftAssignmentOptions::new(SoftAffinity::Exponential { rate: 1.0 })
        .with_geometry(Geometry::Euclidean);
    let spoilt = (&c / 0.0).unwrap();
    let run = || soft_assignment(&x, &spoilt, &options).unwrap_err().to_string();
    let Some((text, _)) = with_kernels(run) else { return };
    assert!(text.starts_with("soft_assignment: `centroids` row 0"), "{text}");
    let tracked = Var::from_tensor(&x).unwrap();
    let (text, _) = with_kernels(|| soft_centroids(&tracked, &c, &options).unwrap_err().to_string()).unwrap();
    assert!(text.contains("soft_centroids") && text.contains("`points`"), "{text}");
    let many = integers(1100, 4, 3, DType::F32);
    let listed = options.clone().with_nearest(1030);
    let (text, _) = with_kernels(|| soft_assignment(&x, &many, &listed).unwrap_err().to_string()).unwrap();
    assert!(text.contains("`nearest`") && text.contains("1..=1024"), "{text}");
    let few = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
    let (text, _) =
        with_kernels(|| credibility(&x, &few, &CredibilityOptions::new()).unwrap_err().to_string()).unwrap();
    assert!(text.contains("credibility: `labels`"), "{text}");
    let zero = (&x * 0.0).unwrap();
    let (text, _) = with_kernels(|| {
        credibility(&zero, &labels(5, 1), &CredibilityOptions::new()).unwrap_err().to_string()
    })
    .unwrap();
    assert!(text.contains("`points` row 0") && text.contains("norm zero"), "{text}");
}
