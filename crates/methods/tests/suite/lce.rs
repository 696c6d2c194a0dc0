//! LCE.

use consonance_methods::{CompatibleMethod, Lce, LceConfig, Margin};
use consonance_testkit::data;

use crate::support::*;

struct Side {
    centers: Vec<Vec<f64>>,
    boundaries: Vec<f64>,
}

fn side(case: &Case) -> Side {
    let bank = rows(&data::widen(&case.bank), case.old_dim);
    let of = |c: usize| -> Vec<&Vec<f64>> {
        bank.iter().zip(&case.bank_labels).filter(|(_, l)| **l as usize == c).map(|(r, _)| r).collect()
    };
    let centers: Vec<Vec<f64>> = (0..case.classes)
        .map(|c| unit(&(0..case.old_dim).map(|k| of(c).iter().map(|r| r[k]).sum()).collect::<Vec<f64>>()))
        .collect();
    let boundaries = (0..case.classes)
        .map(|c| of(c).iter().map(|r| dot(r, &centers[c])).fold(f64::INFINITY, f64::min))
        .collect();
    Side { centers, boundaries }
}

#[test]
fn alignment_reaches_the_classifier_and_the_boundary_the_features() {
    for dims in [(4, 4), (6, 4), (4, 6)] {
        let case = Case::new(12, 15, 3, dims, 31);
        let t = case.tensors();
        let classifier = case.classifier(16.0, Margin::Angular(0.1));
        let mut method = Lce::new(LceConfig::default(), &t.bank()).unwrap();
        let terms = method.terms(&t.batch(), &classifier).unwrap();
        let old = side(&case);
        let bound_of = |x: &[f64]| {
            let d = dims.0.max(dims.1);
            let centers = fit_rows(&old.centers, d);
            let sum: f64 = fit_rows(&rows(x, dims.0), d)
                .iter()
                .zip(case.labels())
                .map(|(x, y)| (old.boundaries[y as usize] - dot(&unit(x), &centers[y as usize])).max(0.0))
                .sum();
            sum / 12.0
        };
        let align_of = |w: &[f64]| {
            let centers = fit_rows(&old.centers, dims.0);
            let sum: f64 = rows(w, dims.0)
                .iter()
                .zip(&centers)
                .map(|(w, c)| unit(w).iter().zip(c).map(|(a, b)| (a - b).powi(2)).sum::<f64>())
                .sum();
            100.0 * sum / (3 * dims.0) as f64
        };
        let fixed = align_of(&data::widen(&case.weight));
        // Sums of d products of numbers below 1, times the weight 100 of squared differences below 2.
        let small = 16.0 * (dims.0.max(dims.1) as f64 + 8.0) * U;
        check_gradient("lce boundary", &terms.total, &t.new, |x| fixed + bound_of(x), 10.0 * small + 1e-9);
        let fixed = bound_of(&data::widen(&case.new));
        let weight = &classifier.variables()[0];
        check_gradient("lce alignment", &terms.total, weight, |w| fixed + align_of(w), 100.0 * small + 1e-8);
    }
}

#[test]
fn old_embeddings_are_inside_their_own_boundary() {
    let case = Case::new(6, 15, 3, (4, 4), 33);
    let t = case.tensors();
    let mut method = Lce::new(LceConfig::default(), &t.bank()).unwrap();
    let batch = consonance_methods::Batch { new: &t.old, ..t.batch() };
    let terms = method.terms(&batch, &case.classifier(5.0, Margin::None)).unwrap();
    assert_eq!(terms.parts[1].0, "boundary");
    assert!(terms.parts[1].1 < 8.0 * U);
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    assert!(Lce::new(LceConfig { alignment: -1.0, ..LceConfig::default() }, &t.bank()).is_err());
    assert!(Lce::new(LceConfig { boundary: f64::INFINITY, ..LceConfig::default() }, &t.bank()).is_err());
}
