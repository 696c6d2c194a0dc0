//! The ranking op against the definition: ragged shapes, every layout and storage type, roles, errors.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor};
use consonance::{ApVariant, Metric, RankingOptions, ranking};
use consonance_reference::{neighbors, ranking as reference};
use consonance_testkit::data;
use proptest::prelude::*;

fn matrix(x: &[f32], dim: usize) -> Tensor {
    Tensor::from_slice(x, (x.len() / dim, dim), &Device::Cpu).unwrap()
}

fn vector(x: &[u32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn integers_rank_as_defined(
        b in prop_oneof![Just(1usize), Just(13), 2usize..40],
        n in prop_oneof![Just(1usize), Just(127), Just(521), 2usize..100],
        dim in prop_oneof![Just(1usize), Just(31), 2usize..70],
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
        transposed in any::<bool>(),
        variant in 0usize..4,
        (l2, junk, cameras, own) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        seed in 0u64..1000,
    ) {
        let (x, y) = (data::integers(b, dim, seed), data::integers(n, dim, seed + 1));
        let (ql, gl) = (data::labels(b, 6, seed + 2), data::labels(n, 6, seed + 3));
        let (qc, gc) = (data::labels(b, 3, seed + 4), data::labels(n, 3, seed + 5));
        let (qi, gi) = (data::labels(b, 50, seed + 6), data::labels(n, 50, seed + 7));
        // Label 5 is junk, label 0 are distractors.
        let signed = |labels: &[u32]| -> Tensor {
            let labels: Vec<i64> = labels.iter().map(|l| if junk && *l == 5 { -1 } else { i64::from(*l) }).collect();
            Tensor::from_slice(&labels, labels.len(), &Device::Cpu).unwrap()
        };
        let variant = [ApVariant::ReId, ApVariant::AtK { k: 4 }, ApVariant::Trapezoid, ApVariant::StepTies][variant];
        let (metric, defined) = match l2 {
            true => (Metric::SquaredL2, neighbors::Metric::SquaredL2),
            false => (Metric::InnerProduct, neighbors::Metric::InnerProduct),
        };
        let mut options =
            RankingOptions::new(&signed(&ql), &signed(&gl)).metric(metric).variant(variant).distractor(0).keep_ranks();
        if cameras {
            options = options.exclude_same_camera(&vector(&qc), &vector(&gc));
        }
        if own {
            options = options.exclude_same_id(&vector(&qi), &vector(&gi));
        }
        let layout = |x: Tensor| {
            let x = x.to_dtype(dtype).unwrap();
            if transposed { x.t().unwrap().contiguous().unwrap().t().unwrap() } else { x }
        };
        // The gallery as some rows of a longer matrix, so that its storage has an offset.
        let longer = Tensor::cat(&[&matrix(&x, dim), &matrix(&y, dim)], 0).unwrap();
        let gallery = layout(longer).narrow(0, b, n).unwrap();
        let found = ranking(&layout(matrix(&x, dim)), &gallery, &options).unwrap();
        let wide = data::widen(&y);
        for (i, x) in data::widen(&x).chunks_exact(dim).enumerate() {
            let list = reference::ranked_list(x, &wide, defined, |j| {
                if (junk && gl[j] == 5) || (cameras && ql[i] == gl[j] && qc[i] == gc[j]) || (own && qi[i] == gi[j]) {
                    reference::Role::Ignored
                } else if ql[i] == gl[j] && gl[j] != 0 {
                    reference::Role::Relevant
                } else {
                    reference::Role::Irrelevant
                }
            });
            let ranks: Vec<u64> = reference::ranks(&list).into_iter().map(|rank| rank as u64).collect();
            prop_assert_eq!(&found.ranks[i], &ranks);
            prop_assert_eq!(found.first_hit[i], ranks.first().copied());
            let truth = (!ranks.is_empty()).then(|| match variant {
                ApVariant::ReId => reference::average_precision(&list),
                ApVariant::AtK { k } => reference::average_precision_at(&list, k),
                ApVariant::Trapezoid => reference::average_precision_trapezoid(&list),
                ApVariant::StepTies => reference::average_precision_steps(&list),
            });
            // Sums of at most R quotients below 1, in f64 on both sides, then one division.
            let bound = f64::EPSILON * (ranks.len() + 4) as f64;
            prop_assert_eq!(found.average_precision[i].is_some(), truth.is_some());
            prop_assert!((found.average_precision[i].unwrap_or(0.0) - truth.unwrap_or(0.0)).abs() <= bound);
        }
    }
}

#[test]
fn queries_without_a_match_are_counted_apart() {
    let gallery = matrix(&[3.0, 2.0, 1.0], 1);
    let options = RankingOptions::new(&vector(&[1, 9]), &vector(&[7, 1, 1]));
    let found = ranking(&matrix(&[1.0, 1.0], 1), &gallery, &options).unwrap();
    assert_eq!((found.counted(), found.skipped()), (1, 1));
    assert_eq!(found.mean_average_precision(), (1.0 / 2.0 + 2.0 / 3.0) / 2.0);
    assert_eq!(found.cmc_curve(2), [0.0, 1.0]);
    assert_eq!(found.top1(), [Some(false), None]);
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let (x, y) = (matrix(&data::normal(3, 4, 1), 4), matrix(&data::normal(8, 4, 2), 4));
    let (three, eight) = (vector(&[0; 3]), vector(&[0; 8]));
    let message =
        |q: &Tensor, g: &Tensor, options: &RankingOptions| ranking(q, g, options).unwrap_err().to_string();
    let plain = RankingOptions::new(&three, &eight);
    let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let none = Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap();
    let no_gallery = RankingOptions::new(&three, &none);
    assert_eq!(message(&x, &empty, &no_gallery), "ranking: `gallery` is empty, expected at least one row");
    let no_queries = RankingOptions::new(&none, &eight);
    assert_eq!(message(&empty, &y, &no_queries), "ranking: `queries` is empty, expected at least one row");
    assert!(message(&x, &y, &RankingOptions::new(&eight, &eight)).contains("`query_labels` has shape [8]"));
    assert!(
        message(&x, &y.narrow(1, 0, 3).unwrap(), &plain)
            .contains("`gallery` has shape [8, 3], expected [N, 4]")
    );
    let minus_two = Tensor::full(-2i64, 8, &Device::Cpu).unwrap();
    let refused = message(&x, &y, &RankingOptions::new(&three, &minus_two));
    assert!(refused.contains("`gallery_labels` is -2"), "{refused}");
    assert!(message(&x, &y, &plain.clone().variant(ApVariant::AtK { k: 0 })).contains("`k` is 0"));
    assert!(message(&x.to_dtype(DType::F64).unwrap(), &y, &plain).contains("`queries` has dtype F64"));
    assert!(message(&x.unsqueeze(0).unwrap(), &y, &plain).contains("`queries` has 3 dimensions"));
    let bad = (x.zeros_like().unwrap() / 0.0).unwrap();
    assert!(message(&bad, &y, &plain).contains("`queries` row 0 is not finite"));
    let cosine = plain.metric(Metric::Cosine);
    assert!(message(&x, &y.zeros_like().unwrap(), &cosine).contains("`gallery` row 0 has norm zero"));
}
