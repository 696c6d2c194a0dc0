use super::*;
use approx::assert_abs_diff_eq;

fn directions(degrees: &[f64]) -> Vec<f64> {
    degrees.iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect()
}

/// SplitMix64 mapped to (−1, 1): the reference depends on nothing.
fn values(n: usize, seed: u64) -> Vec<f64> {
    (1..=n as u64)
        .map(|i| {
            let mut z =
                seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

struct Golden {
    z: Vec<f64>,
    o: Vec<f64>,
    bank: Vec<f64>,
}

impl Golden {
    const LABELS: [usize; 2] = [0, 1];
    const BANK_LABELS: [usize; 4] = [0, 1, 0, 1];

    fn new() -> Self {
        Self {
            z: directions(&[10.0, 100.0]),
            o: directions(&[0.0, 90.0]),
            bank: directions(&[0.0, 90.0, 30.0, 200.0]),
        }
    }

    fn pairs(&self, weighted: bool) -> Pairs {
        let pairs = Pairs::new(2, 4, |i, j| Self::LABELS[i] == Self::BANK_LABELS[j]);
        if !weighted {
            return pairs;
        }
        pairs.weighted(|i, j| affinity_half(cosine(&self.o[2 * i..][..2], &self.bank[2 * j..][..2])))
    }
}

fn problem<'a>(
    queries: &'a [f64],
    keys: &'a [f64],
    dim: usize,
    temperatures: &'a [f64],
    pairs: &'a Pairs,
    normalizer: Normalizer,
) -> Problem<'a> {
    Problem {
        queries,
        keys,
        dim,
        temperatures,
        pairs,
        normalizer,
        other_positives: OtherPositives::InDenominator,
    }
}

#[test]
fn neighborhood_loss_has_its_golden_values() {
    let g = Golden::new();
    let pairs = g.pairs(true);
    let weights = [1.0, 0.5, 0.933_013, 0.030_154, 0.5, 1.0, 0.75, 0.328_990];
    for (w, expected) in pairs.weight.iter().zip(weights) {
        assert_abs_diff_eq!(*w, expected, epsilon = 1e-6);
    }
    let tau = [0.1, 0.1];
    let count = problem(&g.z, &g.bank, 2, &tau, &pairs, Normalizer::Count);
    let out = count.forward();
    assert_abs_diff_eq!(out.log_sum_exp[0], 10.341_061_637, epsilon = 1e-8);
    assert_abs_diff_eq!(out.log_sum_exp[1], 9.849_710_692, epsilon = 1e-8);
    assert_abs_diff_eq!(out.per_row[0], 0.686_937_227, epsilon = 1e-8);
    assert_abs_diff_eq!(out.per_row[1], 1.906_686_896, epsilon = 1e-8);
    assert_abs_diff_eq!(out.loss, 1.296_812_062, epsilon = 1e-8);
    let expected = [0.059_751_356, -0.225_414_748, 0.777_517_241, 1.101_025_483];
    for (got, e) in count.mean_gradients().queries.iter().zip(expected) {
        assert_abs_diff_eq!(*got, e, epsilon = 1e-8);
    }

    let sum = problem(&g.z, &g.bank, 2, &tau, &pairs, Normalizer::WeightSum);
    let out = sum.forward();
    assert_abs_diff_eq!(out.per_row[0], 0.710_742_590, epsilon = 1e-8);
    assert_abs_diff_eq!(out.per_row[1], 2.869_377_496, epsilon = 1e-8);
    assert_abs_diff_eq!(out.loss, 1.790_060_043, epsilon = 1e-8);
    let expected = [0.061_822_000, -0.233_226_350, 1.170_087_484, 1.656_935_781];
    for (got, e) in sum.mean_gradients().queries.iter().zip(expected) {
        assert_abs_diff_eq!(*got, e, epsilon = 1e-8);
    }
}

#[test]
fn supervised_contrast_has_its_golden_value() {
    let g = Golden::new();
    let pairs = g.pairs(false);
    for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
        let loss = problem(&g.z, &g.bank, 2, &[0.1, 0.1], &pairs, normalizer).forward().loss;
        assert_abs_diff_eq!(loss, 3.256_236_292, epsilon = 1e-8);
    }
}

#[test]
fn discrimination_space_has_its_golden_values() {
    let g = Golden::new();
    let pairs = g.pairs(true);
    let w = directions(&[0.0, 60.0, 90.0]);
    let logits = |v: &[f64]| -> Vec<f64> {
        v.chunks(2).flat_map(|v| w.chunks(2).map(|w| v[0] * w[0] + v[1] * w[1]).collect::<Vec<_>>()).collect()
    };
    let raw = |queries: &[f64], keys: &[f64], dim| {
        problem(queries, keys, dim, &[1.0, 1.0], &pairs, Normalizer::Count).forward().loss
    };
    assert_abs_diff_eq!(raw(&logits(&g.z), &logits(&g.bank), 3), 0.861_988_919, epsilon = 1e-8);
    let gram = [1.25, 0.433_012_701_892_219_3, 0.433_012_701_892_219_3, 1.75];
    let mapped: Vec<f64> =
        g.z.chunks(2)
            .flat_map(|z| [gram[0] * z[0] + gram[1] * z[1], gram[2] * z[0] + gram[3] * z[1]])
            .collect();
    assert_abs_diff_eq!(raw(&mapped, &g.bank, 2), 0.861_988_919, epsilon = 1e-8);

    let softmax = |v: &[f64]| -> Vec<f64> {
        logits(v)
            .chunks(3)
            .flat_map(|l| {
                let e: Vec<f64> = l.iter().map(|l| (l / 0.1).exp()).collect();
                let z: f64 = e.iter().sum();
                e.into_iter().map(move |e| e / z).collect::<Vec<_>>()
            })
            .collect()
    };
    let (pz, pk) = (softmax(&g.z), softmax(&g.bank));
    for (tau, expected) in [(1.0, 0.900_449_111), (0.1, 1.542_802_788)] {
        let loss = problem(&pz, &pk, 3, &[tau, tau], &pairs, Normalizer::Count).forward().loss;
        assert_abs_diff_eq!(loss, expected, epsilon = 1e-8);
    }
}

#[test]
fn two_sided_nt_xent_has_its_golden_values() {
    let (h1, h2) = (directions(&[0.0, 70.0]), directions(&[20.0, 110.0]));
    let mut total = 0.0;
    for (a, b, expected) in [(&h1, &h2, 0.134_732_504), (&h2, &h1, 0.025_321_164)] {
        let keys = [b.clone(), a.clone()].concat();
        let pairs = Pairs::new(2, 4, |i, j| i == j).ignore_same_id(&[0, 1], &[10, 11, 0, 1]);
        let loss = problem(a, &keys, 2, &[0.1, 0.1], &pairs, Normalizer::Count).forward().loss;
        assert_abs_diff_eq!(loss, expected, epsilon = 1e-8);
        total += loss;
    }
    assert_abs_diff_eq!(total, 0.160_053_668, epsilon = 1e-8);
}

#[test]
fn mutual_contrast_of_two_networks_has_gradient_p_minus_target() {
    // Batch form of mutual contrastive learning: two images a class, the anchor's own image in neither set.
    let labels = [0, 0, 1, 1, 2, 2];
    let ids = [0, 1, 2, 3, 4, 5];
    let (va, vb) = (values(6 * 4, 1), values(6 * 4, 2));
    let pairs = Pairs::new(6, 6, |i, j| labels[i] == labels[j]).ignore_same_id(&ids, &ids);
    for keys in [&va, &vb] {
        let out = problem(&va, keys, 4, &[0.1; 6], &pairs, Normalizer::Count).forward();
        for i in 0..6 {
            let mut sum = 0.0;
            for j in 0..6 {
                let s: f64 = (0..4).map(|k| va[i * 4 + k] * keys[j * 4 + k]).sum::<f64>() / 0.1;
                let p = if i == j { 0.0 } else { (s - out.log_sum_exp[i]).exp() };
                let target = f64::from(u8::from(j == i ^ 1));
                assert_abs_diff_eq!(out.coefficients[i * 6 + j], p - target, epsilon = 1e-12);
                sum += out.coefficients[i * 6 + j];
            }
            assert_abs_diff_eq!(sum, 0.0, epsilon = 1e-12);
        }
    }
}

/// Every option at once or alone, as full matrices.
fn all_pairs() -> Vec<(&'static str, Pairs)> {
    let (b, n) = (5, 9);
    let (ql, kl) = ([0, 1, 2, 0, 7], [0, 1, 2, 0, 1, 2, 0, 1, 3]);
    let (qi, ki) = ([0, 1, 2, 3, 4], [0, 9, 9, 3, 9, 9, 9, 9, 4]);
    let w = values(b * n, 7);
    let labels = || Pairs::new(b, n, |i, j| ql[i] == kl[j]);
    let u: Vec<f64> =
        values(n, 8).iter().enumerate().map(|(j, v)| if j == 5 { 0.0 } else { 1.2 + v }).collect();
    vec![
        ("labels", labels()),
        ("all", Pairs::new(b, n, |_, _| true)),
        ("diagonal", Pairs::new(b, n, |i, j| i == j)),
        ("weighted", labels().weighted(|i, j| w[i * n + j].abs())),
        ("valid", labels().valid(|j| j % 3 != 1)),
        ("credible", labels().credible_positives(|j| j != 3)),
        ("denominator weights", labels().denominator_weights(&u)),
        ("same id", labels().ignore_same_id(&qi, &ki)),
        ("left out labels", Pairs::new(b, n, |i, j| i == j).leave_out_same_label(&ql, &kl)),
        (
            "everything",
            labels()
                .weighted(|i, j| w[i * n + j].abs())
                .valid(|j| j != 8)
                .credible_positives(|j| j != 6)
                .denominator_weights(&u)
                .ignore_same_id(&qi, &ki)
                .leave_out_same_label(&ql, &kl),
        ),
        ("no positive", Pairs::new(b, n, |_, _| false)),
    ]
}

#[test]
fn gradients_agree_with_finite_differences_for_every_option() {
    let (b, n, d) = (5, 9, 3);
    let x = values(b * d, 11);
    let y = values(n * d, 12);
    let tau: Vec<f64> = values(b, 13).iter().map(|v| 0.4 + 0.2 * v).collect();
    let g = values(b, 14);
    let mut worst = 0.0f64;
    for (name, pairs) in all_pairs() {
        for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
            for other_positives in [OtherPositives::InDenominator, OtherPositives::LeftOut] {
                let total = |x: &[f64], y: &[f64], tau: &[f64]| -> f64 {
                    let p = Problem {
                        queries: x,
                        keys: y,
                        dim: d,
                        temperatures: tau,
                        pairs: &pairs,
                        normalizer,
                        other_positives,
                    };
                    p.forward().per_row.iter().zip(&g).map(|(l, g)| l * g).sum()
                };
                let p = Problem {
                    queries: &x,
                    keys: &y,
                    dim: d,
                    temperatures: &tau,
                    pairs: &pairs,
                    normalizer,
                    other_positives,
                };
                let got = p.gradients(&g);
                let mut all = x.clone();
                all.extend(&y);
                all.extend(&tau);
                let analytic: Vec<f64> =
                    got.queries.iter().chain(&got.keys).chain(&got.temperatures).copied().collect();
                for (at, a) in analytic.iter().enumerate() {
                    let h = 1e-5;
                    let mut moved = all.clone();
                    let mut value = |delta: f64| {
                        moved[at] = all[at] + delta;
                        let (x, rest) = moved.split_at(b * d);
                        let (y, tau) = rest.split_at(n * d);
                        total(x, y, tau)
                    };
                    let numeric = (value(h) - value(-h)) / (2.0 * h);
                    // Central differences in f64: h²/6 · |L'''| (below 1e-6 at τ ≥ 0.2) and rounding 1e-16/h.
                    let bound = 1e-6 * (1.0 + a.abs());
                    worst = worst.max((numeric - a).abs() / bound);
                    assert!(
                        (numeric - a).abs() <= bound,
                        "{name} {normalizer:?} {other_positives:?} at {at}"
                    );
                }
            }
        }
    }
    println!("finite differences: worst ratio {worst:.3}");
}

#[test]
fn a_row_without_positive_adds_zero_and_is_not_counted() {
    let (x, y) = (values(4, 1), values(6, 2));
    let pairs = Pairs::new(2, 3, |i, _| i == 1);
    let out = problem(&x, &y, 2, &[0.5, 0.5], &pairs, Normalizer::Count).forward();
    assert_eq!(out.per_row[0], 0.0);
    assert_eq!(out.counted, [false, true]);
    assert_eq!(out.loss, out.per_row[1]);
}

#[test]
fn forms_agree_with_one_positive_and_differ_with_more() {
    let (x, y) = (values(6, 1), values(15, 2));
    let with = |pairs: &Pairs, other_positives| {
        Problem {
            queries: &x,
            keys: &y,
            dim: 3,
            temperatures: &[0.3, 0.4],
            pairs,
            normalizer: Normalizer::Count,
            other_positives,
        }
        .forward()
        .loss
    };
    let one = Pairs::new(2, 5, |i, j| i == j);
    let (a, b) = (with(&one, OtherPositives::InDenominator), with(&one, OtherPositives::LeftOut));
    assert_abs_diff_eq!(a, b, epsilon = 1e-12);
    let two = Pairs::new(2, 5, |i, j| j <= i + 1);
    assert!(with(&two, OtherPositives::InDenominator) > with(&two, OtherPositives::LeftOut));
    let all = Pairs::new(2, 5, |_, _| true);
    assert_eq!(with(&all, OtherPositives::LeftOut), 0.0);
}
