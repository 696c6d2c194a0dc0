//! L2.

use consonance_methods::{CompatibleMethod, L2, L2Config, L2Form, Margin};
use consonance_testkit::data;

use crate::support::*;

#[test]
fn the_three_published_forms() {
    for (name, config, dims) in [
        ("norm", L2Config::default(), (5, 5)),
        ("weakened", L2Config::weakened(), (5, 3)),
        ("mean squared", L2Config::open_bct(), (6, 4)),
    ] {
        let case = Case::new(7, 14, 3, dims, 5);
        let t = case.tensors();
        let mut method = L2::new(config.clone(), &t.bank()).unwrap();
        let terms = method.terms(&t.batch(), &case.classifier(5.0, Margin::None)).unwrap();
        assert_eq!(method.classification_weight(), if name == "mean squared" { 0.0 } else { 1.0 });
        let d = if name == "mean squared" { 4 } else { 5 };
        let old = fit_rows(&rows(&data::widen(&case.old()), dims.1), d);
        let truth = |x: &[f64]| {
            let x = fit_rows(&rows(x, dims.0), d);
            let sum: f64 = x
                .iter()
                .zip(&old)
                .map(|(x, o)| {
                    let difference: Vec<f64> = x.iter().zip(o).map(|(a, b)| a - b).collect();
                    match config.form {
                        L2Form::Norm { threshold } => (norm(&difference) - threshold).max(0.0),
                        L2Form::MeanSquared => dot(&difference, &difference) / d as f64,
                    }
                })
                .sum();
            config.weight * sum / 7.0
        };
        // Differences of numbers below 2, d products, a root whose slope is 1 here.
        let bound = config.weight * (d as f64 + 8.0) * 4.0 * U + 1e-9;
        check_gradient(name, &terms.total, &t.new, truth, bound);
    }
}

#[test]
fn hand_computed_and_finite_at_no_distance() {
    let case = Case { new: vec![1.0, 0.0, 0.6, 0.8], ..Case::new(2, 2, 2, (2, 2), 1) };
    let mut case = Case { bank: vec![1.0, 0.0, 1.0, 0.0], indices: vec![0, 1], ..case };
    case.rows = 2;
    let t = case.tensors();
    let mut method = L2::new(L2Config::default(), &t.bank()).unwrap();
    let terms = method.terms(&t.batch(), &case.classifier(5.0, Margin::None)).unwrap();
    // Distances 0 and √(0.16 + 0.64).
    assert!((number(&terms.total) - 10.0 * 0.5 * 0.8f64.sqrt()).abs() < 1e-5);
    let grads = terms.total.backward().unwrap();
    let g: Vec<f32> = grads.get(&t.new).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(&g[..2], [0.0, 0.0]);
    assert!(g.iter().all(|g| g.is_finite()) && g[3] > 1.0);
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    assert!(L2::new(L2Config { weight: f64::INFINITY, ..L2Config::default() }, &t.bank()).is_err());
    let form = L2Form::Norm { threshold: -0.1 };
    assert!(L2::new(L2Config { form, ..L2Config::default() }, &t.bank()).is_err());
    let mut method = L2::new(L2Config::default(), &t.bank()).unwrap();
    let old = matrix(&[f32::NAN; 12], 4, 3);
    let batch = consonance_methods::Batch { old: &old, ..t.batch() };
    let message = method.terms(&batch, &case.classifier(5.0, Margin::None)).unwrap_err().to_string();
    assert!(message.contains("l2: `old` is not finite"), "{message}");
}
