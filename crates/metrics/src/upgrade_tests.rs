use super::*;
use approx::assert_abs_diff_eq;

/// The numbers are exact in binary, so the results are exact too.
#[test]
fn gains_by_hand() {
    let upgrade = Upgrade::new(0.25, 0.5, 0.375, 0.3125).unwrap();
    assert!(upgrade.is_compatible());
    assert_eq!(upgrade.absolute_gain().unwrap(), 0.0625);
    assert_eq!(upgrade.update_gain().unwrap(), 0.25);
    assert_eq!(upgrade.self_change().unwrap(), -0.25);
    // Backfilling everything is a gain of 1; an unchanged system is 0 and not yet compatible.
    assert_eq!(Upgrade::new(0.25, 0.5, 0.5, 0.5).unwrap().update_gain().unwrap(), 1.0);
    let same = Upgrade::new(0.25, 0.5, 0.5, 0.25).unwrap();
    assert_eq!(same.update_gain().unwrap(), 0.0);
    assert!(!same.is_compatible());
    // σ(0) = ½ on both sides.
    assert_eq!((p_up(&[same]).unwrap(), p_comp(&[same]).unwrap(), p_one(&[same]).unwrap()), (0.5, 0.5, 0.5));
}

#[test]
fn scores_by_hand() {
    // Set 1: Δ↓ = −½, Γ = 1. Set 2: Δ↓ = 0, Γ = −1.
    let sets = [Upgrade::new(0.25, 0.5, 0.25, 0.5).unwrap(), Upgrade::new(0.25, 0.5, 0.5, 0.0).unwrap()];
    let e = std::f64::consts::E;
    let (a, b) = ([1.0 / (1.0 + e.sqrt()), 0.5], [e / (e + 1.0), 1.0 / (1.0 + e)]);
    let eps = 4.0 * f64::EPSILON;
    assert_abs_diff_eq!(p_up(&sets).unwrap(), (a[0] + a[1]) / 2.0, epsilon = eps);
    assert_abs_diff_eq!(p_comp(&sets).unwrap(), 0.5, epsilon = eps);
    let harmonic = |a: f64, b: f64| 2.0 * a * b / (a + b);
    let expected = (harmonic(a[0], b[0]) + harmonic(a[1], b[1])) / 2.0;
    assert_abs_diff_eq!(p_one(&sets).unwrap(), expected, epsilon = eps);
}

/// Percents and fractions give the same scores: every formula is a ratio.
#[test]
fn scale_does_not_matter() {
    let fraction = Upgrade::new(0.28, 0.36, 0.41, 0.32).unwrap();
    let percent = Upgrade::new(28.0, 36.0, 41.0, 32.0).unwrap();
    assert_abs_diff_eq!(p_one(&[fraction]).unwrap(), p_one(&[percent]).unwrap(), epsilon = 1e-14);
}

#[test]
fn no_room_is_an_error_not_a_nan() {
    for paragon in [0.25, 0.2] {
        let flat = Upgrade::new(0.25, paragon, 0.25, 0.25).unwrap();
        let message = flat.update_gain().unwrap_err().to_string();
        assert!(message.contains("not better than the old model (0.25)"), "{message}");
        assert!(p_comp(&[flat]).is_err() && p_one(&[flat]).is_err());
        assert!(p_up(&[flat]).is_ok());
    }
    let dead = Upgrade::new(0.0, 0.0, 0.1, 0.1).unwrap();
    assert!(matches!(dead.self_change(), Err(Error::Undefined { .. })));
    // A subnormal denominator overflows the quotient: an error as well.
    let tiny = Upgrade::new(0.0, f64::from_bits(1), 100.0, 100.0).unwrap();
    assert!(tiny.update_gain().is_err() && tiny.self_change().is_err() && p_one(&[tiny]).is_err());
}

#[test]
fn bad_values_are_named() {
    for bad in [f64::NAN, f64::INFINITY, -0.1, 100.5] {
        let message = Upgrade::new(0.1, 0.2, bad, 0.2).unwrap_err().to_string();
        assert!(message.contains("`new`") && message.contains("expected"), "{message}");
    }
    let good = Upgrade { old: 0.1, paragon: 0.2, new: 0.2, cross: 0.2 };
    let message = p_one(&[good, Upgrade { cross: f64::NAN, ..good }]).unwrap_err().to_string();
    assert!(message.contains("`sets[1].cross` is NaN"), "{message}");
    assert!(matches!(p_up(&[]), Err(Error::Empty { .. })));
}

/// A row of the published comparison: mAP in percent, self and cross on RParis, ROxford and GLDv2-test, and the printed
/// P_up, P_comp and P_1.
struct Printed {
    name: &'static str,
    selves: [f64; 3],
    crosses: [f64; 3],
    scores: [f64; 3],
}

struct Block {
    old: [f64; 3],
    paragon: [f64; 3],
    paragon_cross: [f64; 3],
    paragon_p_comp: f64,
    rows: [Printed; 5],
}

const fn printed(name: &'static str, selves: [f64; 3], crosses: [f64; 3], scores: [f64; 3]) -> Printed {
    Printed { name, selves, crosses, scores }
}

/// The first three blocks of the table in AdvBCT (Pan et al., CVPR 2023): GLDv2, extended data with ResNet-18, extended
/// classes with ResNet-18, extended data with ResNet-18 to ResNet-50.
const BLOCKS: [Block; 3] = [
    Block {
        old: [75.45, 49.15, 10.03],
        paragon: [81.15, 63.85, 16.48],
        paragon_cross: [4.93, 1.20, 0.2],
        paragon_p_comp: 7.19,
        rows: [
            printed("BCT", [80.58, 56.34, 14.61], [77.37, 49.66, 11.30], [48.02, 54.71, 51.13]),
            printed("LCE", [81.57, 60.85, 16.48], [77.83, 51.35, 12.17], [49.65, 57.41, 53.34]),
            printed("UniBCT", [80.93, 57.24, 16.06], [78.30, 50.97, 13.25], [48.90, 59.19, 53.52]),
            printed("Hot-refresh", [79.57, 58.15, 13.88], [76.53, 50.05, 10.35], [47.78, 52.50, 50.03]),
            printed("AdvBCT", [82.78, 62.13, 15.71], [78.55, 52.31, 11.49], [49.55, 58.09, 53.45]),
        ],
    },
    Block {
        old: [74.29, 54.34, 11.43],
        paragon: [81.15, 63.85, 16.48],
        paragon_cross: [4.93, 1.29, 0.2],
        paragon_p_comp: 3.38,
        rows: [
            printed("BCT", [79.45, 58.94, 14.79], [76.13, 53.43, 12.26], [48.33, 52.79, 50.41]),
            printed("LCE", [81.26, 60.49, 16.07], [76.78, 54.29, 12.04], [49.37, 53.95, 51.51]),
            printed("UniBCT", [76.92, 59.07, 14.80], [74.55, 57.82, 12.31], [48.09, 54.78, 51.17]),
            printed("Hot-refresh", [78.93, 60.31, 14.0], [75.33, 51.68, 10.41], [48.06, 47.26, 47.57]),
            printed("AdvBCT", [82.05, 64.51, 16.44], [77.16, 54.82, 12.05], [50.16, 54.87, 52.35]),
        ],
    },
    Block {
        old: [75.45, 49.15, 10.03],
        paragon: [87.66, 76.56, 22.12],
        paragon_cross: [4.81, 2.26, 0.2],
        paragon_p_comp: 15.44,
        rows: [
            printed("BCT", [85.54, 68.66, 19.11], [78.95, 54.42, 12.78], [47.81, 55.86, 51.52]),
            printed("LCE", [87.49, 75.16, 21.85], [79.36, 57.18, 13.30], [49.73, 57.31, 53.25]),
            printed("UniBCT", [84.37, 67.42, 21.57], [78.91, 56.18, 13.42], [48.48, 56.80, 52.31]),
            printed("Hot-refresh", [86.78, 75.10, 20.61], [78.81, 57.84, 12.41], [49.19, 56.53, 52.60]),
            printed("AdvBCT", [86.79, 75.71, 20.77], [79.08, 59.03, 12.75], [49.31, 57.30, 53.01]),
        ],
    },
];

fn sets(block: &Block, selves: &[f64; 3], crosses: &[f64; 3]) -> Vec<Upgrade> {
    (0..3).map(|d| Upgrade::new(block.old[d], block.paragon[d], selves[d], crosses[d]).unwrap()).collect()
}

/// The formulas against the published table: 44 of its 45 scores come out to ±0.01, the resolution at which the table
/// prints its inputs and its scores.
///
/// The one exception, P_1 of LCE in the first block (53.23 here, 53.34 printed), is a slip of the table and not of the
/// formula: the harmonic mean is concave, so a mean of harmonic means cannot exceed the harmonic mean of the means, and that
/// of the row's own printed P_up and P_comp (49.65 and 57.41, both reproduced) is 53.25.
///
/// The table's fourth block (extended classes, ResNet-50) is left out: all 15 of its scores lie 0.05 to 0.28 above the ones
/// that its printed mAP values give, as if another paragon had been used.
#[test]
fn reproduces_the_published_table() {
    let mut reproduced = 0;
    for (number, block) in BLOCKS.iter().enumerate() {
        for row in &block.rows {
            let sets = sets(block, &row.selves, &row.crosses);
            let scores = [p_up(&sets).unwrap(), p_comp(&sets).unwrap(), p_one(&sets).unwrap()];
            for ((score, printed), which) in scores.iter().zip(row.scores).zip(["P_up", "P_comp", "P_1"]) {
                let score = 100.0 * score;
                if (number, row.name, which) == (0, "LCE", "P_1") {
                    assert_abs_diff_eq!(score, 53.23, epsilon = 0.005);
                    let [up, comp, one] = row.scores;
                    let bound = 2.0 * up * comp / (up + comp);
                    assert!(score <= bound && bound < one - 0.08, "{score} {bound} {one}");
                    continue;
                }
                assert!(
                    (score - printed).abs() <= 0.01,
                    "block {number}, {}, {which}: {score} against {printed}",
                    row.name
                );
                reproduced += 1;
            }
        }
    }
    assert_eq!(reproduced, 44);
}

/// The paragon's own compatibility, which the table prints beside the 45.
#[test]
fn reproduces_the_paragons() {
    for block in &BLOCKS {
        let sets = sets(block, &block.paragon, &block.paragon_cross);
        assert_abs_diff_eq!(100.0 * p_comp(&sets).unwrap(), block.paragon_p_comp, epsilon = 0.01);
        assert_eq!(p_up(&sets).unwrap(), 0.5);
    }
}
