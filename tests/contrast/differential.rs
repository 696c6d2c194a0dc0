//! The op against the f64 reference, for every rule and option, over ragged shapes and all dtypes.

use candle_core::DType;
use consonance::{Admission, AffinityMap, ContrastOptions, Normalizer, OtherPositives, Products};
use proptest::prelude::*;

use crate::case::{Case, Near, Rule, Spec, Tau};

const EXP: AffinityMap = AffinityMap::Exp { temperature: 0.2 };
const RULES: [Rule; 8] = [
    Rule::Labels(1),
    Rule::Labels(5),
    Rule::Labels(300),
    Rule::Diagonal,
    Rule::Lists { weighted: true },
    Rule::Neighbors,
    Rule::Bits,
    Rule::All,
];

fn compare(name: &str, spec: Spec) {
    println!("{name}: worst ratio {:.4}", Case::new(spec).worst_ratio());
}

#[test]
fn every_rule_in_both_forms_and_with_both_normalizers() {
    for rule in RULES {
        for affinity in [None, Some(AffinityMap::Half), Some(EXP)] {
            for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
                for other_positives in [OtherPositives::InDenominator, OtherPositives::LeftOut] {
                    let options = ContrastOptions { normalizer, other_positives, ..Default::default() };
                    let spec = Spec { rule, affinity, options, ..Spec::new(37, 601, 24) };
                    compare(&format!("{rule:?} {affinity:?} {options:?}"), spec);
                }
            }
        }
    }
}

#[test]
fn every_option_alone_and_all_together() {
    let base = Spec { affinity: Some(AffinityMap::Half), ..Spec::new(29, 530, 17) };
    for spec in [
        base,
        base.left_out(),
        Spec { rule: Rule::All, ..base },
        Spec { rule: Rule::Bits, ..base }.left_out(),
    ] {
        let label = format!("{:?} {:?}", spec.rule, spec.options.other_positives);
        compare(&format!("{label} valid"), Spec { valid: true, ..spec });
        compare(&format!("{label} credible"), Spec { credible: true, ..spec });
        compare(&format!("{label} denominator weights"), Spec { denominator_weights: true, ..spec });
        compare(&format!("{label} same id"), Spec { same_id: true, ..spec });
        compare(&format!("{label} leave out"), Spec { leave_out: true, ..spec });
        for near in [Near::Times, Near::Features] {
            for (pace, admission) in [(0.6, Admission::Hard), (0.6, Admission::Soft), (1.0, Admission::Soft)]
            {
                let paced = Spec { pace: Some((near, pace, admission)), ..spec };
                compare(&format!("{label} paced by {near:?}, {admission:?} at {pace}"), paced);
                let more = Spec { valid: true, same_id: true, denominator_weights: true, ..paced };
                compare(&format!("{label} paced by {near:?}, {admission:?} at {pace}, more"), more);
            }
        }
        let all = Spec {
            valid: true,
            credible: true,
            denominator_weights: true,
            same_id: true,
            leave_out: true,
            tau: Tau::PerRow(0.2),
            ..spec
        };
        compare(&format!("{label} everything"), all);
        compare(&format!("{label} everything, weight sum"), all.weight_sum());
    }
}

#[test]
fn temperatures_learned_and_low() {
    for tau in [0.01, 0.02, 0.05, 1.0] {
        for make in [Tau::Scalar, Tau::PerRow] {
            let pace = Some((Near::Times, 0.8, Admission::Soft));
            let paced = Spec { tau: make(tau), pace, rule: Rule::Diagonal, ..Spec::new(33, 1100, 32) };
            compare(&format!("{:?} paced", paced.tau), paced);
            compare(&format!("{:?} paced, left out", paced.tau), paced.left_out());
            let spec = Spec { tau: make(tau), affinity: Some(EXP), ..Spec::new(33, 1100, 32) };
            compare(&format!("{:?}", spec.tau), spec);
            compare(&format!("{:?} left out", spec.tau), spec.left_out());
        }
    }
}

#[test]
fn several_splits_of_the_keys() {
    for unit in [true, false] {
        let tau = if unit { Tau::Scalar(0.05) } else { Tau::Scalar(0.5) };
        let spec = Spec { tau, unit, ..Spec::new(5, 20_011, 20) };
        compare(&format!("20,011 keys, unit {unit}"), spec);
        compare(&format!("20,011 keys, unit {unit}, left out"), spec.left_out());
    }
}

/// Dimensions from which on products may be split, with a remainder and without, on both sides of the change from six
/// products to three.
const LONG: [usize; 4] = [128, 161, 512, 530];

#[test]
fn long_embeddings_with_split_and_with_plain_products() {
    for d in LONG {
        for products in [Products::Fastest, Products::F32] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let spec = Spec { dtype, tau: Tau::PerRow(0.07), ..Spec::new(37, 1100, d) };
                let spec = Spec { affinity: Some(AffinityMap::Half), ..spec }.products(products);
                let name = format!("D {d}, {dtype:?}, {products:?}");
                compare(&name, spec);
                compare(&format!("{name}, left out"), spec.left_out());
                compare(&format!("{name}, all"), Spec { rule: Rule::All, valid: true, ..spec });
                // Running maxima, several steps of queries.
                let low = Spec { tau: Tau::Scalar(0.01), leave_out: true, denominator_weights: true, ..spec };
                let low = Spec { pace: Some((Near::Features, 0.9, Admission::Soft)), ..low };
                compare(&format!("{name}, low temperature"), Spec { b: 300, n: 530, ..low });
            }
        }
    }
}

#[test]
fn long_embeddings_over_several_splits_of_the_keys() {
    for products in [Products::Fastest, Products::F32] {
        let spec = Spec { tau: Tau::Scalar(0.05), ..Spec::new(5, 9001, 128) }.products(products);
        compare(&format!("9001 keys, {products:?}"), spec);
        compare(&format!("9001 keys, {products:?}, normal"), Spec { unit: false, ..spec });
    }
}

#[test]
fn long_embeddings_of_any_size() {
    // Sizes that would overflow or vanish without the powers of two: scores stay moderate.
    for d in [128, 512] {
        for (query, key) in [(1e18, 1e-18), (1e-18, 1e18), (3e-20, 2e-3), (1e-3, 3e-20), (5.0, 7.0)] {
            for products in [Products::Fastest, Products::F32] {
                let sizes = (query, key);
                let tau = Tau::Scalar(0.1 * query * key);
                let spec = Spec { sizes, tau, ..Spec::new(19, 600, d) }.products(products);
                compare(&format!("D {d}, sizes {sizes:?}, {products:?}"), spec);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn ragged_shapes_agree_with_the_reference(
        b in prop::sample::select(vec![1usize, 2, 13, 16, 17, 63, 65, 257, 301]),
        n in prop::sample::select(vec![1usize, 2, 13, 63, 127, 511, 512, 513, 1031]),
        d in prop::sample::select(vec![1usize, 2, 7, 15, 16, 17, 64, 129]),
        seed in 0u64..1000,
        rule in prop::sample::select(RULES.to_vec()),
        affinity in prop::sample::select(vec![None, Some(AffinityMap::Half), Some(EXP)]),
        flags in any::<[bool; 8]>(),
        tau in prop::sample::select(vec![Tau::Fixed(0.1), Tau::Scalar(0.3), Tau::PerRow(0.07), Tau::PerRow(1.0)]),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]),
    ) {
        let mut spec = Spec { seed, rule, affinity, tau, dtype, ..Spec::new(b, n, d) };
        if rule == Rule::Diagonal && n < b {
            spec.rule = Rule::Labels(5);
        }
        [spec.valid, spec.credible, spec.denominator_weights, spec.same_id, spec.leave_out, spec.unit] =
            [flags[0], flags[1], flags[2], flags[3], flags[4], flags[5]];
        if flags[6] {
            spec = spec.left_out();
        }
        if flags[7] {
            spec = spec.weight_sum();
        }
        Case::new(spec).worst_ratio();
    }
}
