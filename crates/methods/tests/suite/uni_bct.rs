//! UniBCT.

use consonance_methods::{CompatibleMethod, Margin, UniBct, UniBctConfig, UniBctStart};
use consonance_testkit::data;

use crate::support::*;

/// Solves `a x = b` by elimination with pivots; `b` has several columns.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    for p in 0..n {
        let best = (p..n).max_by(|i, j| a[*i][p].abs().total_cmp(&a[*j][p].abs())).unwrap();
        a.swap(p, best);
        b.swap(p, best);
        for i in p + 1..n {
            let f = a[i][p] / a[p][p];
            let (pivot_a, pivot_b) = (a[p].clone(), b[p].clone());
            a[i].iter_mut().zip(&pivot_a).for_each(|(x, y)| *x -= f * y);
            b[i].iter_mut().zip(&pivot_b).for_each(|(x, y)| *x -= f * y);
        }
    }
    for p in (0..n).rev() {
        for i in 0..p {
            let f = a[i][p] / a[p][p];
            let pivot = b[p].clone();
            b[i].iter_mut().zip(&pivot).for_each(|(x, y)| *x -= f * y);
        }
        let d = a[p][p];
        b[p].iter_mut().for_each(|x| *x /= d);
    }
    b
}

#[test]
fn prototypes_solve_the_graph() {
    let case = Case::new(6, 23, 3, (5, 4), 41);
    let t = case.tensors();
    let new = data::unit(23, 5, 99);
    let mut method = UniBct::new(UniBctConfig::default(), &t.bank()).unwrap();
    method.refine(&matrix(&new, 23, 5)).unwrap();
    let got = method.prototypes().to_vec2::<f32>().unwrap();
    let (new, old) = (rows(&data::widen(&new), 5), rows(&data::widen(&case.bank), 4));
    for class in 0..3u32 {
        let own: Vec<usize> = (0..23).filter(|i| case.bank_labels[*i] == class).collect();
        let n = own.len();
        let mut a = vec![vec![0.0; n]; n];
        for i in 0..n {
            let e: Vec<f64> = (0..n)
                .map(|j| if i == j { 0.0 } else { (dot(&new[own[i]], &new[own[j]]) / 0.05).exp() })
                .collect();
            let z: f64 = e.iter().sum();
            for j in 0..n {
                a[i][j] = f64::from(i == j) - 0.9 * e[j] / z;
            }
        }
        let smoothed = solve(a, own.iter().map(|i| old[*i].clone()).collect());
        for k in 0..4 {
            let mean = 0.1 * smoothed.iter().map(|r| r[k]).sum::<f64>() / n as f64;
            assert!((f64::from(got[class as usize][k]) - mean).abs() < 2.0 * U, "class {class}");
        }
    }
}

#[test]
fn the_loss_is_off_until_the_first_refinement() {
    let case = Case::new(8, 20, 4, (4, 4), 43);
    let t = case.tensors();
    let classifier = case.classifier(6.0, Margin::Cosine(0.1));
    let mut method = UniBct::new(UniBctConfig::default(), &t.bank()).unwrap();
    assert_eq!(number(&method.terms(&t.batch(), &classifier).unwrap().total), 0.0);
    let wanted: Vec<usize> = (0..35).filter(|e| method.wants_embeddings(*e, 35)).collect();
    assert_eq!(wanted, [10, 20]);
    let wanted: Vec<usize> = (0..10).filter(|e| method.wants_embeddings(*e, 10)).collect();
    assert_eq!(wanted, [3, 6]);
    let embeddings = matrix(&data::unit(20, 4, 5), 20, 4);
    assert!(method.start_epoch(3, 10, None).is_err());
    method.start_epoch(2, 10, None).unwrap();
    method.start_epoch(3, 10, Some(&embeddings)).unwrap();
    let terms = method.terms(&t.batch(), &classifier).unwrap();
    let prototypes: Vec<f32> = method.prototypes().flatten_all().unwrap().to_vec1().unwrap();
    let prototypes = rows(&data::widen(&prototypes), 4);
    let truth = |x: &[f64]| {
        let sum: f64 = rows(x, 4)
            .iter()
            .zip(case.labels())
            .map(|(x, y)| margin_loss(x, &prototypes, y as usize, 6.0, Margin::Cosine(0.1)))
            .sum();
        sum / 8.0
    };
    check_gradient("uni-bct", &terms.total, &t.new, truth, softmax_bound(6.0, 4, 4));
    let mut resumed = UniBct::new(UniBctConfig::default(), &t.bank()).unwrap();
    resumed.restore(&method.state().unwrap()).unwrap();
    assert_eq!(number(&resumed.terms(&t.batch(), &classifier).unwrap().total), number(&terms.total));
}

#[test]
fn class_means_may_serve_from_the_start() {
    let case = Case::new(8, 20, 4, (4, 4), 43);
    let t = case.tensors();
    let config =
        UniBctConfig { start: UniBctStart::ClassMeans, refine_at: vec![], ..UniBctConfig::default() };
    let mut method = UniBct::new(config, &t.bank()).unwrap();
    assert!(number(&method.terms(&t.batch(), &case.classifier(6.0, Margin::None)).unwrap().total) > 0.1);
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    for config in [
        UniBctConfig { smoothing: 1.0, ..UniBctConfig::default() },
        UniBctConfig { temperature: 0.0, ..UniBctConfig::default() },
        UniBctConfig { refine_at: vec![1.0], ..UniBctConfig::default() },
        UniBctConfig { refine_at: vec![], ..UniBctConfig::default() },
        UniBctConfig { margin: Some(Margin::Angular(3.0)), ..UniBctConfig::default() },
    ] {
        assert!(UniBct::new(config.clone(), &t.bank()).is_err(), "{config:?}");
    }
    let mut method = UniBct::new(UniBctConfig::default(), &t.bank()).unwrap();
    assert!(method.refine(&matrix(&[0.0; 21], 7, 3)).is_err());
    assert!(method.refine(&matrix(&[f32::NAN; 24], 8, 3)).unwrap_err().to_string().contains("row 0"));
}
