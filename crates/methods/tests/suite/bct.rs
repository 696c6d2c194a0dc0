//! BCT.

use consonance_methods::{Bct, BctConfig, BctTargets, CompatibleMethod, DimensionMatch, Margin};
use consonance_testkit::data;

use crate::support::*;

fn means(case: &Case) -> Vec<Vec<f64>> {
    let bank = rows(&data::widen(&case.bank), case.old_dim);
    (0..case.classes)
        .map(|c| {
            let own: Vec<_> = bank.iter().zip(&case.bank_labels).filter(|(_, l)| **l as usize == c).collect();
            (0..case.old_dim).map(|k| own.iter().map(|(r, _)| r[k]).sum::<f64>() / own.len() as f64).collect()
        })
        .collect()
}

#[test]
fn the_pseudo_classifier_is_the_class_means() {
    for (dims, how) in [
        ((6, 6), DimensionMatch::ZeroPad),
        ((6, 4), DimensionMatch::ZeroPad),
        ((6, 4), DimensionMatch::Truncate),
    ] {
        let case = Case::new(8, 20, 5, dims, 3);
        let t = case.tensors();
        let classifier = case.classifier(6.0, Margin::None);
        let config = BctConfig { dimensions: how, ..BctConfig::default() };
        let mut method = Bct::new(config, &t.bank()).unwrap();
        let terms = method.terms(&t.batch(), &classifier).unwrap();
        let d = if how == DimensionMatch::ZeroPad { dims.0.max(dims.1) } else { dims.0.min(dims.1) };
        let prototypes = fit_rows(&means(&case).iter().map(|m| unit(m)).collect::<Vec<_>>(), d);
        let truth = |x: &[f64]| {
            let x = fit_rows(&rows(x, dims.0), d);
            let sum: f64 = x
                .iter()
                .zip(case.labels())
                .map(|(x, y)| margin_loss(x, &prototypes, y as usize, 6.0, Margin::None))
                .sum();
            sum / 8.0
        };
        check_gradient(
            &format!("bct {dims:?} {how:?}"),
            &terms.total,
            &t.new,
            truth,
            softmax_bound(6.0, d, 5),
        );
        assert_eq!(terms.parts[0].0, "influence");
    }
}

#[test]
fn an_old_classifier_sees_only_its_own_classes() {
    let case = Case::new(6, 12, 4, (3, 3), 9);
    let t = case.tensors();
    let classifier = case.classifier(5.0, Margin::None);
    let old_weight = data::normal(2, 3, 4);
    // New classes 1 and 2 are old classes 1 and 0; 0 and 3 are new.
    let map = [None, Some(1), Some(0), None];
    let config =
        BctConfig { scale: Some(4.0), weight: 2.0, margin: Margin::Cosine(0.1), ..BctConfig::default() };
    let mut method = Bct::with_classifier(config, &matrix(&old_weight, 2, 3), &map).unwrap();
    let terms = method.terms(&t.batch(), &classifier).unwrap();
    let prototypes = rows(&data::widen(&old_weight), 3);
    let truth = |x: &[f64]| {
        let x = rows(x, 3);
        let kept: Vec<f64> = x
            .iter()
            .zip(case.labels())
            .filter_map(|(x, y)| {
                map[y as usize].map(|o| margin_loss(x, &prototypes, o as usize, 4.0, Margin::Cosine(0.1)))
            })
            .collect();
        2.0 * kept.iter().sum::<f64>() / kept.len() as f64
    };
    check_gradient("bct with classifier", &terms.total, &t.new, truth, 2.0 * softmax_bound(4.0, 3, 2));
    // None of the batch's classes is old: nothing is added.
    let mut method =
        Bct::with_classifier(BctConfig::default(), &matrix(&old_weight, 2, 3), &[None; 4]).unwrap();
    assert_eq!(number(&method.terms(&t.batch(), &classifier).unwrap().total), 0.0);
    assert!(Bct::with_classifier(BctConfig::default(), &matrix(&old_weight, 2, 3), &[Some(2)]).is_err());
}

#[test]
fn distillation_asks_for_what_the_old_embedding_says() {
    let case = Case::new(6, 12, 4, (5, 5), 11);
    let t = case.tensors();
    let classifier = case.classifier(5.0, Margin::None);
    let config = BctConfig { targets: BctTargets::Distilled, ..BctConfig::default() };
    let mut method = Bct::new(config, &t.bank()).unwrap();
    let terms = method.terms(&t.batch(), &classifier).unwrap();
    let prototypes: Vec<_> = means(&case).iter().map(|m| unit(m)).collect();
    let old = rows(&data::widen(&case.old()), 5);
    let log_softmax = |x: &[f64]| -> Vec<f64> {
        (0..4).map(|c| -margin_loss(x, &prototypes, c, 5.0, Margin::None)).collect()
    };
    let truth = |x: &[f64]| {
        let x = rows(x, 5);
        let sum: f64 = x
            .iter()
            .zip(&old)
            .map(|(x, o)| log_softmax(o).iter().zip(log_softmax(x)).map(|(o, n)| -o.exp() * n).sum::<f64>())
            .sum();
        sum / 6.0
    };
    check_gradient("bct distilled", &terms.total, &t.new, truth, softmax_bound(5.0, 5, 4));
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    for config in [
        BctConfig { weight: -1.0, ..BctConfig::default() },
        BctConfig { scale: Some(0.0), ..BctConfig::default() },
        BctConfig { margin: Margin::Cosine(f64::NAN), ..BctConfig::default() },
    ] {
        assert!(Bct::new(config.clone(), &t.bank()).is_err(), "{config:?}");
    }
    let mut bank = t.bank();
    bank.classes = 1;
    let message = Bct::new(BctConfig::default(), &bank).unwrap_err().to_string();
    assert_eq!(message, "bct: `labels` is 1, expected labels in 0..1");
    let nan = matrix(&[f32::NAN; 24], 8, 3);
    bank.classes = 2;
    bank.embeddings = &nan;
    assert!(Bct::new(BctConfig::default(), &bank).unwrap_err().to_string().contains("finite"));
    let mut method = Bct::new(BctConfig::default(), &t.bank()).unwrap();
    let labels = vector(&[0, 1, 0]);
    let batch = consonance_methods::Batch { labels: &labels, ..t.batch() };
    let classifier = case.classifier(5.0, Margin::None);
    assert!(method.terms(&batch, &classifier).unwrap_err().to_string().contains("`labels`"));
}
