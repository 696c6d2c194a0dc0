//! MixBCT.

use consonance_methods::{CompatibleMethod, Margin, MixBct, MixBctConfig};
use consonance_testkit::data;

use crate::support::*;

fn replaced(mixed: &[Vec<f32>], old: &[Vec<f32>], new: &[Vec<f32>]) -> Vec<bool> {
    mixed
        .iter()
        .zip(old)
        .zip(new)
        .map(|((m, o), n)| {
            assert!(m == o || m == n);
            m == o
        })
        .collect()
}

#[test]
fn a_share_of_credible_rows_is_replaced_and_takes_no_gradient() {
    let case = Case::new(20, 60, 3, (4, 4), 5);
    let t = case.tensors();
    let mut method = MixBct::new(MixBctConfig::default(), &t.bank()).unwrap();
    // 20 rows a class, 18 of them credible: the nearest to the class mean.
    assert_eq!(method.credible().iter().filter(|c| **c).count(), 54);
    let bank = rows(&data::widen(&case.bank), 4);
    for class in 0..3 {
        let own: Vec<usize> = (0..60).filter(|i| case.bank_labels[*i] == class).collect();
        let mean: Vec<f64> =
            (0..4).map(|k| own.iter().map(|i| bank[*i][k]).sum::<f64>() / own.len() as f64).collect();
        let distance = |i: usize| bank[i].iter().zip(&mean).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let farthest =
            own.iter().filter(|i| method.credible()[**i]).map(|i| distance(*i)).fold(0.0, f64::max);
        let nearest = own
            .iter()
            .filter(|i| !method.credible()[**i])
            .map(|i| distance(*i))
            .fold(f64::INFINITY, f64::min);
        assert!(farthest <= nearest);
    }
    let mixed = method.mix(&t.batch()).unwrap();
    let (old, new) = (t.old.to_vec2::<f32>().unwrap(), t.new.to_vec2::<f32>().unwrap());
    let mask = replaced(&mixed.to_vec2::<f32>().unwrap(), &old, &new);
    assert_eq!(mask.iter().filter(|m| **m).count(), 6);
    for (row, m) in mask.iter().enumerate() {
        assert!(!m || method.credible()[case.indices[row] as usize]);
    }
    let classifier = case.classifier(8.0, Margin::Cosine(0.1));
    let loss = classifier.loss(&mixed, &t.labels).unwrap();
    let grads = loss.backward().unwrap();
    let g = grads.get(&t.new).unwrap().to_vec2::<f32>().unwrap();
    for (row, m) in mask.iter().enumerate() {
        assert_eq!(g[row].iter().all(|g| *g == 0.0), *m, "row {row}");
    }
    assert!(grads.get(&classifier.variables()[0]).is_some());
    let terms = method.terms(&t.batch(), &classifier).unwrap();
    assert!(terms.parts.is_empty() && number(&terms.total) == 0.0);
}

#[test]
fn steps_differ_and_a_resumed_run_draws_the_same() {
    let case = Case::new(20, 60, 3, (6, 4), 5);
    let t = case.tensors();
    let mut method = MixBct::new(MixBctConfig::default(), &t.bank()).unwrap();
    let draw = |m: &mut MixBct| m.mix(&t.batch()).unwrap().to_vec2::<f32>().unwrap();
    let (first, second) = (draw(&mut method), draw(&mut method));
    assert_ne!(first, second);
    let state = method.state().unwrap();
    let mut resumed = MixBct::new(MixBctConfig::default(), &t.bank()).unwrap();
    resumed.restore(&state).unwrap();
    assert_eq!(draw(&mut method), draw(&mut resumed));
    let message = resumed.restore(&consonance_methods::State::new()).unwrap_err().to_string();
    assert_eq!(message, "mix-bct: saved state `step` is missing");
}

#[test]
fn the_ends_of_the_ranges() {
    let case = Case::new(10, 20, 2, (4, 4), 6);
    let t = case.tensors();
    for (share, credible, expected) in [(0.0, 0.9, 0), (1.0, 1.0, 10), (1.0, 0.0, 0)] {
        let mut method = MixBct::new(MixBctConfig { share, credible }, &t.bank()).unwrap();
        let mixed = method.mix(&t.batch()).unwrap().to_vec2::<f32>().unwrap();
        let mask = replaced(&mixed, &t.old.to_vec2().unwrap(), &t.new.to_vec2().unwrap());
        assert_eq!(mask.iter().filter(|m| **m).count(), expected, "{share} {credible}");
    }
    assert!(MixBct::new(MixBctConfig { share: 1.1, credible: 0.9 }, &t.bank()).is_err());
    assert!(MixBct::new(MixBctConfig { share: 0.3, credible: f64::NAN }, &t.bank()).is_err());
    let far = vector(&[20; 10]);
    let batch = consonance_methods::Batch { indices: &far, ..t.batch() };
    let mut method = MixBct::new(MixBctConfig::default(), &t.bank()).unwrap();
    assert!(method.mix(&batch).unwrap_err().to_string().contains("rows of the bank in 0..20"));
}
