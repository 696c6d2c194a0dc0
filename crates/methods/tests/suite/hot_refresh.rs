//! Hot-Refresh.

use consonance_methods::{CompatibleMethod, HotRefresh, HotRefreshConfig, Margin};
use consonance_testkit::data;

use crate::support::*;

/// The formula, pair by pair.
fn truth(case: &Case, new: &[f64], config: &HotRefreshConfig) -> f64 {
    let d = case.new_dim.max(case.old_dim);
    let new = fit_rows(&rows(new, case.new_dim), d);
    let old = fit_rows(&rows(&data::widen(&case.old()), case.old_dim), d);
    let labels = case.labels();
    let tau = config.temperature;
    let sum: f64 = (0..new.len())
        .map(|i| {
            let own = dot(&new[i], &old[i]) / tau;
            let side = |keys: &[Vec<f64>]| -> Vec<f64> {
                let mut scores: Vec<f64> = (0..keys.len())
                    .filter(|k| labels[*k] != labels[i])
                    .map(|k| dot(&new[i], &keys[k]) / tau)
                    .collect();
                scores.sort_by(|a, b| b.total_cmp(a));
                scores.truncate(config.hardest.unwrap_or(usize::MAX));
                scores
            };
            let mut all = side(&old);
            if config.new_negatives {
                all.extend(side(&new));
            }
            let max = all.iter().fold(own, |a, b| a.max(*b));
            let z: f64 = all.iter().chain([&own]).map(|s| (s - max).exp()).sum();
            z.ln() + max - own
        })
        .sum();
    sum / new.len() as f64
}

#[test]
fn all_variants_agree_with_the_formula() {
    for new_negatives in [true, false] {
        for hardest in [None, Some(2), Some(100)] {
            for dims in [(5, 5), (6, 4)] {
                let case = Case::new(9, 18, 4, dims, 21);
                let t = case.tensors();
                let config = HotRefreshConfig {
                    temperature: 0.2,
                    new_negatives,
                    hardest,
                    ..HotRefreshConfig::default()
                };
                let mut method = HotRefresh::new(config.clone(), &t.bank()).unwrap();
                let terms = method.terms(&t.batch(), &case.classifier(5.0, Margin::None)).unwrap();
                let name = format!("hot-refresh {new_negatives} {hardest:?} {dims:?}");
                // New negatives are tracked: each row's embedding stands in 9 rows' losses.
                let bound = 3.0 * softmax_bound(5.0, dims.0, 18);
                check_gradient(&name, &terms.total, &t.new, |x| truth(&case, x, &config), bound);
            }
        }
    }
}

#[test]
fn the_published_temperature_is_finite() {
    let case = Case::new(9, 18, 4, (5, 5), 21);
    let t = case.tensors();
    let mut method = HotRefresh::new(HotRefreshConfig::default(), &t.bank()).unwrap();
    let terms = method.terms(&t.batch(), &case.classifier(5.0, Margin::None)).unwrap();
    let value = truth(&case, &data::widen(&case.new), &HotRefreshConfig::default());
    assert!((number(&terms.total) - value).abs() < 1e-4 * value);
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(4, 8, 2, (3, 3), 1);
    let t = case.tensors();
    for config in [
        HotRefreshConfig { temperature: 0.0, ..HotRefreshConfig::default() },
        HotRefreshConfig { weight: f64::NAN, ..HotRefreshConfig::default() },
        HotRefreshConfig { hardest: Some(0), ..HotRefreshConfig::default() },
    ] {
        assert!(HotRefresh::new(config, &t.bank()).is_err());
    }
}
