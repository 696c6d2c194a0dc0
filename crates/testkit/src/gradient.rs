//! Finite differences, and the comparison of a result with its bound.

/// Central differences of `f` at `x`, in f64 with step `1e-5 · max(1, |x|)`.
pub fn finite_differences(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let h = 1e-5 * x[i].abs().max(1.0);
            at[i] = x[i] + h;
            let up = f(&at);
            at[i] = x[i] - h;
            let down = f(&at);
            at[i] = x[i];
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// The largest |got − truth| / bound over all elements; print it, so that slack is visible.
///
/// # Panics
/// When the lengths differ, or an element is not finite where the truth is.
pub fn worst_ratio(got: &[f32], truth: &[f64], bound: impl Fn(usize) -> f64) -> f64 {
    assert_eq!(got.len(), truth.len(), "lengths differ");
    let mut worst = 0.0f64;
    for (i, (g, t)) in got.iter().zip(truth).enumerate() {
        assert_eq!(g.is_finite(), t.is_finite(), "element {i}: got {g}, expected {t}");
        if t.is_finite() {
            worst = worst.max((f64::from(*g) - t).abs() / bound(i));
        } else {
            assert_eq!(f64::from(*g), *t, "element {i}");
        }
    }
    worst
}
