//! The cosine classifier.

use candle_core::{Device, Tensor, Var};
use consonance_methods::{CosineClassifier, CosineClassifierConfig, Margin};
use consonance_testkit::data;

use crate::support::*;

#[test]
fn hand_computed_values() {
    // cos 60° = 1/2 to the own row, 0 to the other: ln(1 + e^{-s/2}).
    let w = matrix(&angles(&[0.0, 150.0]), 2, 2);
    let x = matrix(&angles(&[60.0]), 1, 2);
    for (margin, target) in [
        (Margin::None, 0.5),
        (Margin::Cosine(0.2), 0.3),
        (Margin::Angular(30f64.to_radians()), 0.0),
        // 60° + 135° passes 180°: cos θ − m sin m.
        (Margin::Angular(89f64.to_radians()), 149f64.to_radians().cos()),
    ] {
        let config = CosineClassifierConfig { scale: 2.0, margin };
        let classifier = CosineClassifier::from_weight(&w, config).unwrap();
        let loss = number(&classifier.loss(&x, &vector(&[0])).unwrap());
        let truth = (1.0 + (2.0f64 * (0.0 - target)).exp()).ln();
        assert!((loss - truth).abs() < 1e-6, "{margin:?}: {loss} vs {truth}");
    }
}

#[test]
fn an_angle_past_pi_is_continued_without_a_jump_upwards() {
    let w = matrix(&angles(&[0.0, 90.0]), 2, 2);
    let m = 0.5f64;
    let config = CosineClassifierConfig { scale: 1.0, margin: Margin::Angular(m) };
    let classifier = CosineClassifier::from_weight(&w, config).unwrap();
    let at =
        |degrees: f64| number(&classifier.loss(&matrix(&angles(&[degrees]), 1, 2), &vector(&[0])).unwrap());
    let theta = 170f64.to_radians();
    let truth = margin_loss(
        &[theta.cos(), theta.sin()],
        &[vec![1.0, 0.0], vec![0.0, 1.0]],
        0,
        1.0,
        Margin::Angular(m),
    );
    assert!((at(170.0) - truth).abs() < 1e-6);
    assert!(at(180.0).is_finite() && at(0.0).is_finite());
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (b, c, d) = (5, 7, 6);
    let x = data::unit(b, d, 1);
    let w = data::normal(c, d, 2);
    let labels = [0u32, 6, 3, 3, 1];
    for s in [1.0, 8.0] {
        for margin in [Margin::None, Margin::Cosine(0.1), Margin::Angular(0.3)] {
            let config = CosineClassifierConfig { scale: s, margin };
            let classifier = CosineClassifier::from_weight(&matrix(&w, c, d), config).unwrap();
            let var = Var::from_tensor(&matrix(&x, b, d)).unwrap();
            let loss = classifier.loss(var.as_tensor(), &vector(&labels)).unwrap();
            let wide_w = rows(&data::widen(&w), d);
            let value = |x: &[Vec<f64>], w: &[Vec<f64>]| {
                let sum: f64 =
                    x.iter().zip(labels).map(|(x, y)| margin_loss(x, w, y as usize, s, margin)).sum();
                sum / b as f64
            };
            let bound = softmax_bound(s, d, c);
            check_gradient(
                &format!("features s {s} {margin:?}"),
                &loss,
                &var,
                |x| value(&rows(x, d), &wide_w),
                bound,
            );
            let wide_x = rows(&data::widen(&x), d);
            let weight = &classifier.variables()[0];
            check_gradient(
                &format!("weight s {s} {margin:?}"),
                &loss,
                weight,
                |w| value(&wide_x, &rows(w, d)),
                bound,
            );
        }
    }
}

#[test]
fn the_gradient_is_finite_at_the_own_row() {
    let w = matrix(&angles(&[0.0, 90.0]), 2, 2);
    for margin in [Margin::None, Margin::Cosine(0.35), Margin::Angular(0.5)] {
        let classifier =
            CosineClassifier::from_weight(&w, CosineClassifierConfig { scale: 64.0, margin }).unwrap();
        for degrees in [0.0, 180.0] {
            let x = Var::from_tensor(&matrix(&angles(&[degrees]), 1, 2)).unwrap();
            let loss = classifier.loss(x.as_tensor(), &vector(&[0])).unwrap();
            let grads = loss.backward().unwrap();
            let g: Vec<f32> = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(g.iter().all(|g| g.is_finite()), "{margin:?} at {degrees}: {g:?}");
        }
    }
}

#[test]
fn bad_input_is_refused() {
    let device = Device::Cpu;
    let config = CosineClassifierConfig::default();
    assert!(CosineClassifier::new(0, 4, config.clone(), 0, &device).is_err());
    let classifier = CosineClassifier::new(3, 4, config.clone(), 0, &device).unwrap();
    let x = Tensor::zeros((2, 4), candle_core::DType::F32, &device).unwrap();
    let message = classifier.loss(&x, &vector(&[0, 3])).unwrap_err().to_string();
    assert_eq!(message, "cosine classifier: `labels` is 3, expected labels in 0..3");
    assert!(classifier.loss(&x, &vector(&[0])).unwrap_err().to_string().contains("`labels`"));
    assert!(
        classifier
            .loss(&x.narrow(1, 0, 3).unwrap(), &vector(&[0, 1]))
            .unwrap_err()
            .to_string()
            .contains("`features`")
    );
    for bad in [
        CosineClassifierConfig { scale: 0.0, ..config.clone() },
        CosineClassifierConfig { scale: f64::NAN, ..config.clone() },
        CosineClassifierConfig { margin: Margin::Cosine(-0.1), ..config.clone() },
        CosineClassifierConfig { margin: Margin::Angular(2.0), ..config },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
    let unknown = serde_json::from_str::<CosineClassifierConfig>(r#"{"scales": 3.0}"#);
    assert!(unknown.unwrap_err().to_string().contains("scales"));
}
