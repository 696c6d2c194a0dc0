//! What a ranking must fulfil.

use consonance::cuda::DType;
use consonance_cpu::neighbors::Metric;
use consonance_cpu::ranking::{ApVariant, JUNK};
use consonance_reference::neighbors::Metric as Defined;
use consonance_reference::ranking as reference;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, RankingCase, Sides};
use crate::data;
use crate::stored::Stored;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("ranking: integers against sorted lists", integers),
    ("ranking: real inputs", reals),
    ("ranking: rows that cannot be compared", bad_rows),
];

fn defined(metric: Metric) -> Defined {
    match metric {
        Metric::InnerProduct => Defined::InnerProduct,
        Metric::Cosine => Defined::Cosine,
        Metric::SquaredL2 => Defined::SquaredL2,
    }
}

fn role(case: &RankingCase, query: usize, item: usize) -> reference::Role {
    let same = |pair: &Sides| pair.as_ref().is_some_and(|(q, g)| q[query] == g[item]);
    let (label, its) = (case.labels.0[query], case.labels.1[item]);
    if its == JUNK || same(&case.ids) || (label == its && same(&case.cameras)) {
        reference::Role::Ignored
    } else if label == its && case.distractor != Some(label) && label != JUNK {
        reference::Role::Relevant
    } else {
        reference::Role::Irrelevant
    }
}

fn equals_definition(backend: &dyn Backend, case: &RankingCase) -> Outcome {
    let ranking = backend.ranking(case)?;
    let (queries, gallery, dim) = (case.queries.wide(), case.gallery.wide(), case.gallery.cols());
    let (b, n) = (case.queries.rows(), case.gallery.rows());
    let what = format!(
        "{:?} {:?} {:?} [{b}, {dim}] in [{n}, {dim}]",
        case.metric,
        case.gallery.dtype(),
        case.variant
    );
    for i in 0..b {
        let query = &queries[i * dim..][..dim];
        let list = reference::ranked_list(query, &gallery, defined(case.metric), |j| role(case, i, j));
        let ranks: Vec<u64> = reference::ranks(&list).into_iter().map(|rank| rank as u64).collect();
        ensure!(
            ranking.ranks[i] == ranks,
            "{what}: query {i}: ranks {:?}, expected {ranks:?}",
            ranking.ranks[i]
        );
        ensure!(ranking.first_hit[i] == ranks.first().copied(), "{what}: query {i}: first hit");
        let expected = (!ranks.is_empty()).then(|| match case.variant {
            ApVariant::ReId => reference::average_precision(&list),
            ApVariant::AtK { k } => reference::average_precision_at(&list, k),
            ApVariant::Trapezoid => reference::average_precision_trapezoid(&list),
            ApVariant::StepTies => reference::average_precision_steps(&list),
        });
        let close = match (ranking.average_precision[i], expected) {
            (Some(got), Some(expected)) => (got - expected).abs() <= 1e-12,
            (got, expected) => got == expected,
        };
        ensure!(close, "{what}: query {i}: AP {:?}, expected {expected:?}", ranking.average_precision[i]);
    }
    Ok(())
}

fn case(dtype: DType, metric: Metric, variant: ApVariant, [b, n, dim]: [usize; 3], seed: u64) -> RankingCase {
    RankingCase {
        queries: Stored::new(dtype, &data::integers(b, dim, seed), dim),
        gallery: Stored::new(dtype, &data::integers(n, dim, seed + 1), dim),
        metric,
        variant,
        labels: (data::labels(b, 5, seed + 2), data::labels(n, 5, seed + 3)),
        cameras: None,
        ids: None,
        distractor: None,
    }
}

/// Few dimensions, so that ties come by the hundreds.
fn integers(backend: &dyn Backend) -> Outcome {
    let variants = [ApVariant::ReId, ApVariant::AtK { k: 3 }, ApVariant::Trapezoid, ApVariant::StepTies];
    for (turn, shape) in (0..).zip([[1, 1, 1], [5, 63, 3], [66, 300, 2], [20, 150, 40], [2, 70, 300]]) {
        for (which, variant) in variants.into_iter().enumerate() {
            let dtype = DType::ALL[(turn as usize + which) % 3];
            let metric = if which % 2 == 0 { Metric::InnerProduct } else { Metric::SquaredL2 };
            let mut case = case(dtype, metric, variant, shape, 10 * turn);
            let [b, n, _] = shape;
            if which & 1 != 0 {
                case.cameras = Some((data::labels(b, 2, turn + 4), data::labels(n, 2, turn + 5)));
                case.distractor = Some(0);
            }
            if which & 2 != 0 {
                case.ids = Some((data::labels(b, 7, turn + 6), data::labels(n, 7, turn + 7)));
                for junk in (0..n).step_by(6) {
                    case.labels.1[junk] = JUNK;
                    // Nobody looks at junk: it may hold anything, also what would come first.
                    case.gallery.set_row(junk, if junk % 12 == 0 { f32::NAN } else { 3.0 });
                }
                case.labels.0[b - 1] = JUNK;
            }
            equals_definition(backend, &case)?;
        }
    }
    Ok(())
}

/// Unit vectors whose scores are far enough apart for f32 to order them as f64 does, which is checked here.
fn reals(backend: &dyn Backend) -> Outcome {
    for metric in [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2] {
        for dtype in DType::ALL {
            let (b, n, dim) = (3, 24, 16);
            let mut case = case(dtype, metric, ApVariant::ReId, [b, n, dim], 3);
            case.queries = Stored::new(dtype, &data::unit(b, dim, 8), dim);
            case.gallery = Stored::new(dtype, &data::unit(n, dim, 9), dim);
            let (queries, gallery) = (case.queries.wide(), case.gallery.wide());
            for query in queries.chunks_exact(dim) {
                let list =
                    reference::ranked_list(query, &gallery, defined(metric), |_| reference::Role::Irrelevant);
                let gap =
                    list.windows(2).map(|pair| (pair[0].1 - pair[1].1).abs()).fold(f64::INFINITY, f64::min);
                // Both scores are sums of 16 products and a few roundings more, of size at most 4.
                let rounding = 2.0 * 4.0 * (2 * dim + 8) as f64 / 16_777_216.0;
                ensure!(gap > rounding, "the scores of a list are {gap:e} apart: choose another seed");
            }
            equals_definition(backend, &case)?;
        }
    }
    Ok(())
}

fn bad_rows(backend: &dyn Backend) -> Outcome {
    let good = case(DType::F32, Metric::Cosine, ApVariant::ReId, [3, 70, 8], 5);
    for (value, name) in [(f32::NAN, "not finite"), (0.0, "norm zero")] {
        let mut bad = good.clone();
        bad.gallery.set_row(66, value);
        let text = match backend.ranking(&bad) {
            Ok(_) => return Err(format!("a gallery row of {value} was accepted")),
            Err(text) => text,
        };
        ensure!(["ranking", "gallery", "66", name].iter().all(|part| text.contains(part)), "`{text}`");
    }
    let mut wrong = good;
    wrong.labels.0.pop();
    match backend.ranking(&wrong) {
        Ok(_) => Err("two labels for three queries were accepted".to_owned()),
        Err(text) => {
            ensure!(text.contains("query_labels"), "`{text}`");
            Ok(())
        }
    }
}
