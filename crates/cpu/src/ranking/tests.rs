use consonance_reference::neighbors::Metric as Defined;
use consonance_reference::ranking as reference;
use consonance_testkit::{data, threads};
use half::f16;
use proptest::prelude::*;

use super::*;

const VARIANTS: [ApVariant; 5] = [
    ApVariant::ReId,
    ApVariant::AtK { k: 5 },
    ApVariant::AtK { k: 100 },
    ApVariant::Trapezoid,
    ApVariant::StepTies,
];

fn rows(x: &[f32], dim: usize) -> Rows<'_> {
    Rows::new("test", "x", x, x.len() / dim, dim).unwrap()
}

fn role(options: &Options<'_>, i: usize, j: usize) -> reference::Role {
    let label = options.gallery_labels[j];
    let same = label == options.query_labels[i];
    if label == JUNK
        || (same && options.cameras.is_some_and(|(q, g)| q[i] == g[j]))
        || options.ids.is_some_and(|(q, g)| q[i] == g[j])
    {
        reference::Role::Ignored
    } else if same && options.distractor != Some(label) {
        reference::Role::Relevant
    } else {
        reference::Role::Irrelevant
    }
}

fn defined(list: &[(usize, f64, bool)], variant: ApVariant) -> f64 {
    match variant {
        ApVariant::ReId => reference::average_precision(list),
        ApVariant::AtK { k } => reference::average_precision_at(list, k),
        ApVariant::Trapezoid => reference::average_precision_trapezoid(list),
        ApVariant::StepTies => reference::average_precision_steps(list),
    }
}

/// Integer inputs: the ranks agree exactly, and average precision to the rounding of a sum of quotients in f64.
fn agrees(x: &[f32], y: &[f32], dim: usize, options: &Options<'_>) {
    let metric = if options.metric == Metric::SquaredL2 { Defined::SquaredL2 } else { Defined::InnerProduct };
    let (wide_x, wide_y) = (data::widen(x), data::widen(y));
    let lists: Vec<_> = wide_x
        .chunks_exact(dim)
        .enumerate()
        .map(|(i, x)| reference::ranked_list(x, &wide_y, metric, |j| role(options, i, j)))
        .collect();
    for variant in VARIANTS {
        let options = Options { variant, keep_ranks: true, ..*options };
        let found = ranking(&rows(x, dim), &rows(y, dim), &options).unwrap();
        for (i, list) in lists.iter().enumerate() {
            let ranks: Vec<u64> = reference::ranks(list).into_iter().map(|rank| rank as u64).collect();
            assert_eq!(found.ranks[i], ranks, "query {i}");
            assert_eq!(found.relevant[i], ranks.len() as u64);
            assert_eq!(found.first_hit[i], ranks.first().copied());
            match found.average_precision[i] {
                Some(got) => {
                    let truth = defined(list, variant);
                    let bound = f64::EPSILON * (ranks.len() + 4) as f64;
                    assert!((got - truth).abs() <= bound, "query {i}, {variant:?}: {got} against {truth}");
                }
                None => assert!(ranks.is_empty()),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn integer_rows_rank_as_defined(
        b in prop_oneof![Just(1usize), Just(131), 2usize..30],
        n in prop_oneof![Just(1usize), Just(513), Just(1031), 2usize..100],
        dim in prop_oneof![Just(1usize), 2usize..40],
        l2 in any::<bool>(), classes in 1u32..9, cameras in any::<bool>(), ids in any::<bool>(),
        junk in any::<bool>(), distractor in any::<bool>(), seed in 0u64..1000,
    ) {
        let (x, y) = (data::integers(b, dim, seed), data::integers(n, dim, seed + 1));
        let (ql, mut gl) = (data::labels(b, classes, seed + 2), data::labels(n, classes, seed + 3));
        let (qc, gc) = (data::labels(b, 3, seed + 4), data::labels(n, 3, seed + 5));
        let (qi, gi) = (data::labels(b, 40, seed + 6), data::labels(n, 40, seed + 7));
        if junk {
            gl.iter_mut().step_by(3).for_each(|label| *label = JUNK);
        }
        agrees(&x, &y, dim, &Options {
            metric: if l2 { Metric::SquaredL2 } else { Metric::InnerProduct },
            cameras: cameras.then_some((&qc, &gc)),
            ids: ids.then_some((&qi, &gi)),
            distractor: distractor.then_some(0),
            ..Options::new(&ql, &gl)
        });
    }
}

#[test]
fn many_relevant_items_take_the_other_path_to_the_same_ranks() {
    // 1,200 items of 2 labels: several hundred relevant items a query, above the limit of the sweep.
    let (b, n, dim) = (5, 1200, 7);
    let (x, y) = (data::integers(b, dim, 1), data::integers(n, dim, 2));
    let (ql, gl) = (data::labels(b, 2, 3), data::labels(n, 2, 4));
    for metric in [Metric::InnerProduct, Metric::SquaredL2] {
        agrees(&x, &y, dim, &Options { metric, ..Options::new(&ql, &gl) });
    }
}

/// Real rows: a rank may differ from the f64 order only by items whose f64 scores lie within twice the rounding
/// bound of the relevant item's.
#[test]
fn real_rows_rank_within_their_bounds() {
    let (b, n, dim) = (20, 2000, 96);
    let (x, y) = (data::unit(b, dim, 1), data::unit(n, dim, 2));
    let (ql, gl) = (data::labels(b, 40, 3), data::labels(n, 40, 4));
    let options = Options { keep_ranks: true, ..Options::new(&ql, &gl) };
    let found = ranking(&rows(&x, dim), &rows(&y, dim), &options).unwrap();
    // Unit rows; both scores of a comparison err by at most γ of dim / 16 + 5 operations.
    let bound = 2.0 * 1.01 * (dim as f64 / 16.0 + 5.0) * 2f64.powi(-24);
    let (wide_x, wide_y) = (data::widen(&x), data::widen(&y));
    for (i, x) in wide_x.chunks_exact(dim).enumerate() {
        let list = reference::ranked_list(x, &wide_y, Defined::InnerProduct, |j| role(&options, i, j));
        let relevant = list.iter().filter(|item| item.2);
        for (rank, item) in found.ranks[i].iter().zip(relevant) {
            let above = list.iter().filter(|other| other.1 > item.1 + bound).count() as u64;
            let near = list.iter().filter(|other| other.1 >= item.1 - bound).count() as u64;
            assert!(above < *rank && *rank <= near, "query {i}: rank {rank} outside {above} + 1..={near}");
        }
    }
}

#[test]
fn threads_batches_and_storage_do_not_change_a_bit() {
    let (b, n, dim) = (150, 9000, 40);
    let (x, y) = (data::normal(b, dim, 1), data::normal(n, dim, 2));
    let (ql, gl) = (data::labels(b, 200, 3), data::labels(n, 200, 4));
    for metric in [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2] {
        let options = Options { metric, keep_ranks: true, ..Options::new(&ql, &gl) };
        let run = || ranking(&rows(&x, dim), &rows(&y, dim), &options).unwrap();
        let [one, two, eight] = threads::on_1_2_8_threads(run);
        assert!(one == two && one == eight);
        for i in [0, 77, 149] {
            let alone = Options { query_labels: &ql[i..=i], ..options };
            let alone = ranking(&rows(&x[i * dim..][..dim], dim), &rows(&y, dim), &alone).unwrap();
            assert_eq!(
                (&alone.ranks[0], alone.average_precision[0]),
                (&one.ranks[i], one.average_precision[i])
            );
        }
        let narrow: Vec<f16> = y.iter().map(|v| f16::from_f32(*v)).collect();
        let wide: Vec<f32> = narrow.iter().map(|v| v.to_f32()).collect();
        let stored = Rows::new("test", "y", &narrow[..], n, dim).unwrap();
        let stored = ranking(&rows(&x, dim), &stored, &options).unwrap();
        assert!(stored == ranking(&rows(&x, dim), &rows(&wide, dim), &options).unwrap());
    }
}

#[test]
fn measures_of_a_small_gallery_by_hand() {
    // Scores 9, 8, …: the query of label 1 finds its items at the ranks 2 and 4, the query of label 2 none (same
    // camera), the query of label 3 its only item first.
    let gallery = [9.0, 8.0, 7.0, 6.0, 5.0];
    let labels = [3, 1, 2, 1, 0];
    let options =
        Options { cameras: Some((&[0, 0, 0], &[1, 1, 0, 1, 1])), ..Options::new(&[1, 2, 3], &labels) };
    let found = ranking(&rows(&[1.0, 1.0, 1.0], 1), &rows(&gallery, 1), &options).unwrap();
    assert_eq!(found.first_hit, [Some(2), None, Some(1)]);
    assert_eq!(found.relevant, [2, 0, 1]);
    // Item 2 has label 2 only for the query of label 2; for the query of label 1 it stands in the list.
    assert_eq!(found.average_precision, [Some((1.0 / 2.0 + 2.0 / 4.0) / 2.0), None, Some(1.0)]);
    assert_eq!((found.counted(), found.skipped()), (2, 1));
    assert_eq!(found.mean_average_precision(), 0.75);
    assert_eq!(found.cmc_curve(3), [0.5, 1.0, 1.0]);
    assert_eq!((found.cmc(1), found.cmc(2)), (0.5, 1.0));
    assert_eq!(found.top1(), [Some(false), None, Some(true)]);
}

#[test]
fn junk_may_hold_anything_and_bad_input_is_named() {
    let dim = 3;
    let (x, mut y) = (data::normal(4, dim, 1), data::normal(20, dim, 2));
    let (ql, mut gl) = (data::labels(4, 3, 3), data::labels(20, 3, 4));
    y[5 * dim] = f32::NAN;
    let run = |x: &[f32], y: &[f32], options: &Options<'_>| {
        ranking(&rows(x, dim), &rows(y, dim), options).map_err(|e| e.to_string())
    };
    let refused = run(&x, &y, &Options::new(&ql, &gl)).unwrap_err();
    assert!(refused.contains("ranking: `gallery` row 5 is not finite"), "{refused}");
    gl[5] = JUNK;
    assert!(run(&x, &y, &Options::new(&ql, &gl)).is_ok());
    assert!(run(&[], &y, &Options::new(&[], &gl)).unwrap_err().contains("`queries` is empty"));
    assert!(run(&x, &[], &Options::new(&ql, &[])).unwrap_err().contains("`gallery` is empty"));
    assert!(run(&x, &y, &Options::new(&ql[..3], &gl)).unwrap_err().contains("`query_labels` has shape [3]"));
    let options = Options { cameras: Some((&ql, &ql)), ..Options::new(&ql, &gl) };
    assert!(run(&x, &y, &options).unwrap_err().contains("`gallery_cameras` has shape [4]"));
    let options = Options { variant: ApVariant::AtK { k: 0 }, ..Options::new(&ql, &gl) };
    assert!(run(&x, &y, &options).unwrap_err().contains("`k` is 0, expected at least 1"));
    let mut zero = x.clone();
    zero[dim..2 * dim].fill(0.0);
    let options = Options { metric: Metric::Cosine, ..Options::new(&ql, &gl) };
    assert!(run(&zero, &y, &options).unwrap_err().contains("`queries` row 1 has norm zero"));
    y[7 * dim..8 * dim].fill(0.0);
    assert!(run(&x, &y, &options).unwrap_err().contains("`gallery` row 7 has norm zero"));
}
