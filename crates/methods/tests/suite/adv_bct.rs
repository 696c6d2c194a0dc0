//! AdvBCT.

use consonance_methods::{AdvBct, AdvBctConfig, Batch, CompatibleMethod, Margin};
use consonance_testkit::data;

use crate::support::*;

/// The discriminator's loss on one side, from its variables in the order of `variables()`.
fn discriminator(x: &[Vec<f64>], v: &[Vec<f64>], side: usize) -> f64 {
    let (d, h) = (x[0].len(), v[1].len());
    let hidden: Vec<Vec<f64>> =
        x.iter().map(|x| (0..h).map(|k| dot(x, &v[0][k * d..][..d]) + v[1][k]).collect()).collect();
    let n = x.len() as f64;
    let mut out = 0.0;
    let mean: Vec<f64> = (0..h).map(|k| hidden.iter().map(|r| r[k]).sum::<f64>() / n).collect();
    let variance: Vec<f64> =
        (0..h).map(|k| hidden.iter().map(|r| (r[k] - mean[k]).powi(2)).sum::<f64>() / n).collect();
    for row in &hidden {
        let active: Vec<f64> = (0..h)
            .map(|k| ((row[k] - mean[k]) / (variance[k] + 1e-5).sqrt() * v[2][k] + v[3][k]).max(0.0))
            .collect();
        let scores: Vec<f64> = (0..2).map(|c| dot(&active, &v[4][c * h..][..h]) + v[5][c]).collect();
        let max = scores[0].max(scores[1]);
        out += ((scores[0] - max).exp() + (scores[1] - max).exp()).ln() + max - scores[side];
    }
    out / n
}

fn wide(method: &AdvBct) -> Vec<Vec<f64>> {
    method
        .variables()
        .iter()
        .map(|v| data::widen(&v.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        .collect()
}

/// Sums of d, of 100 and of B products with slopes of the order of 1, through 1/σ of the normalization.
fn bound(d: usize, b: usize) -> f64 {
    64.0 * (d + 100 + b + 16) as f64 * U
}

#[test]
fn the_adversarial_gradient_is_reversed_for_features_and_not_for_the_discriminator() {
    let case = Case::new(16, 24, 3, (5, 5), 51);
    let t = case.tensors();
    let config = AdvBctConfig { boundary: 0.0, ..AdvBctConfig::default() };
    let mut method = AdvBct::new(config, &t.bank()).unwrap();
    let batch = Batch { epoch: 1, epochs: 4, progress: 0.3, ..t.batch() };
    let terms = method.terms(&batch, &case.classifier(5.0, Margin::None)).unwrap();
    let (v, old) = (wide(&method), rows(&data::widen(&case.old()), 5));
    let fading = 3.0 / 4.0;
    let value =
        |x: &[f64], v: &[Vec<f64>]| fading * (discriminator(&rows(x, 5), v, 0) + discriminator(&old, v, 1));
    let new = data::widen(&case.new);
    assert!((number(&terms.total) - value(&new, &v)).abs() < bound(5, 16));
    let grads = terms.total.backward().unwrap();
    let differences = consonance_testkit::gradient::finite_differences(&new, |x| value(x, &v));
    let gamma = 2.0 / (1.0 + (-3.0f64).exp()) - 1.0;
    let reversed: Vec<f64> = differences.iter().map(|g| -gamma * g).collect();
    let got: Vec<f32> = grads.get(&t.new).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let ratio = consonance_testkit::gradient::worst_ratio(&got, &reversed, |_| bound(5, 16));
    println!("adv-bct features: {ratio:.3}");
    assert!(ratio <= 1.0 && reversed.iter().any(|g| g.abs() > 20.0 * bound(5, 16)));
    for (i, var) in method.variables().iter().enumerate().take(6) {
        let at = v[i].clone();
        let differences = consonance_testkit::gradient::finite_differences(&at, |x| {
            let mut v = v.clone();
            v[i] = x.to_vec();
            value(&new, &v)
        });
        let got: Vec<f32> = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        // A bias before the normalization has no slope; the bound covers what rounding leaves.
        let ratio = consonance_testkit::gradient::worst_ratio(&got, &differences, |_| 4.0 * bound(5, 16));
        println!("adv-bct variable {i}: {ratio:.3}");
        assert!(ratio <= 1.0, "variable {i}");
    }
}

#[test]
fn radii_leave_outliers_out() {
    // Class 0: three at 0° and one at 180°; class 1: two; class 2: one, without radius.
    let degrees = [0.0, 0.0, 0.0, 180.0, 0.0, 0.0, 10.0, 60.0, 120.0];
    let labels = [0, 0, 0, 0, 0, 0, 0, 1, 1];
    let case = Case { bank: angles(&degrees), bank_labels: labels.to_vec(), ..Case::new(2, 9, 2, (2, 2), 1) };
    let t = case.tensors();
    let method = AdvBct::new(AdvBctConfig::default(), &t.bank()).unwrap();
    let radii = method.radii().unwrap();
    // Class 1: mean of 60° and 120° is (0, √3/2), the distance ½.
    assert!((f64::from(radii[1]) - 0.5).abs() < 1e-6);
    let mean: Vec<f64> = {
        let points: Vec<(f64, f64)> =
            degrees[..7].iter().map(|a| (a.to_radians().cos(), a.to_radians().sin())).collect();
        vec![points.iter().map(|p| p.0).sum::<f64>() / 7.0, points.iter().map(|p| p.1).sum::<f64>() / 7.0]
    };
    let distance = |a: f64| norm(&[a.to_radians().cos() - mean[0], a.to_radians().sin() - mean[1]]);
    // Distances of 0° fill the quartiles; 180° is far outside, 10° just inside or not as the rule says.
    assert!(f64::from(radii[0]) < distance(180.0) - 0.5);
}

#[test]
fn the_boundary_is_the_formula() {
    for (threshold, dims) in [(1.0, (4, 4)), (0.2, (6, 4))] {
        let case = Case::new(10, 24, 4, dims, 53);
        let t = case.tensors();
        let config = AdvBctConfig { adversarial: 0.0, threshold, boundary: 3.0, ..AdvBctConfig::default() };
        let mut method = AdvBct::new(config, &t.bank()).unwrap();
        let terms = method.terms(&t.batch(), &case.classifier(5.0, Margin::None)).unwrap();
        let theta = wide(&method)[6].clone();
        let radii = data::widen(&method.radii().unwrap());
        let bank = rows(&data::widen(&case.bank), dims.1);
        let centers: Vec<Vec<f64>> = (0..4)
            .map(|c| {
                let own: Vec<_> = bank.iter().zip(&case.bank_labels).filter(|(_, l)| **l == c).collect();
                (0..dims.1).map(|k| own.iter().map(|(r, _)| r[k]).sum::<f64>() / own.len() as f64).collect()
            })
            .collect();
        let centers = fit_rows(&centers, dims.0);
        let value = |x: &[f64], theta: &[f64]| {
            let excess: Vec<f64> = rows(x, dims.0)
                .iter()
                .zip(case.labels())
                .map(|(x, y)| {
                    let y = y as usize;
                    let difference: Vec<f64> = x.iter().zip(&centers[y]).map(|(a, b)| a - b).collect();
                    let delta = (radii[y] - threshold).abs() / (1.0 + (-theta[y]).exp());
                    let r = if radii[y] < threshold { radii[y] + delta } else { radii[y] - delta };
                    (norm(&difference) - r).max(0.0)
                })
                .filter(|e| *e > 0.0)
                .collect();
            3.0 * excess.iter().sum::<f64>() / excess.len().max(1) as f64
        };
        let small = 3.0 * 8.0 * (dims.0 as f64 + 16.0) * U + 1e-9;
        let (new, at) = (data::widen(&case.new), theta.clone());
        check_gradient("adv-bct boundary", &terms.total, &t.new, |x| value(x, &at), small);
        check_gradient("adv-bct elastic", &terms.total, &method.variables()[6], |th| value(&new, th), small);
    }
}

#[test]
fn a_resumed_run_has_the_same_variables() {
    let case = Case::new(8, 16, 4, (4, 4), 55);
    let t = case.tensors();
    let classifier = case.classifier(5.0, Margin::None);
    let mut method = AdvBct::new(AdvBctConfig::default(), &t.bank()).unwrap();
    for var in method.variables() {
        var.set(&(var.as_tensor() * 1.5).unwrap()).unwrap();
    }
    let state = method.state().unwrap();
    let mut other = t.bank();
    other.seed = 1234;
    let mut resumed = AdvBct::new(AdvBctConfig::default(), &other).unwrap();
    resumed.restore(&state).unwrap();
    let value = |m: &mut AdvBct| number(&m.terms(&t.batch(), &classifier).unwrap().total);
    assert_eq!(value(&mut method), value(&mut resumed));
    // A state is a copy: stepping on does not change it.
    method.variables()[0]
        .set(
            &method.variables()[1]
                .zeros_like()
                .unwrap()
                .broadcast_as((4, 100))
                .unwrap()
                .t()
                .unwrap()
                .contiguous()
                .unwrap(),
        )
        .unwrap();
    resumed.restore(&state).unwrap();
    assert_ne!(value(&mut method), value(&mut resumed));
    let mut wrong = state.clone();
    wrong.insert("elastic".to_owned(), matrix(&[0.0; 2], 1, 2));
    assert!(resumed.restore(&wrong).unwrap_err().to_string().contains("`elastic`"));
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    for config in [
        AdvBctConfig { adversarial: -1.0, ..AdvBctConfig::default() },
        AdvBctConfig { threshold: f64::NAN, ..AdvBctConfig::default() },
    ] {
        assert!(AdvBct::new(config, &t.bank()).is_err());
    }
    let mut method = AdvBct::new(AdvBctConfig::default(), &t.bank()).unwrap();
    let classifier = case.classifier(5.0, Margin::None);
    for batch in [Batch { progress: 1.5, ..t.batch() }, Batch { epoch: 2, epochs: 2, ..t.batch() }] {
        assert!(method.terms(&batch, &classifier).unwrap_err().to_string().contains("`progress`"));
    }
}
