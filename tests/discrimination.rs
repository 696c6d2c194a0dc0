//! The discrimination space against its reference: values, gradients, bits, refusals.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    AffinityMap, ContrastOptions, DiscriminationOptions, Error, Normalizer, OtherPositives, Pairs,
    Temperature, discrimination_kl, discrimination_raw, discrimination_soft,
};
use consonance_reference::contrast as reference;
use consonance_reference::discrimination::{Discrimination, Form};
use consonance_testkit::{data, gradient::worst_ratio, threads::on_1_2_8_threads};
use proptest::prelude::*;

const DEVICE: Device = Device::Cpu;
const U: f64 = 5.960_464_5e-8;

fn matrix(x: &[f32], rows: usize, cols: usize) -> Tensor {
    Tensor::from_slice(x, (rows, cols), &DEVICE).unwrap()
}

fn vector(x: &[u32]) -> Tensor {
    Tensor::from_slice(x, x.len(), &DEVICE).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn number(x: &Tensor) -> f64 {
    f64::from(x.to_scalar::<f32>().unwrap())
}

fn angles(degrees: &[f64]) -> Vec<f32> {
    degrees.iter().flat_map(|a| [a.to_radians().cos() as f32, a.to_radians().sin() as f32]).collect()
}

#[test]
fn golden_values() {
    let (z, o) = (matrix(&angles(&[10.0, 100.0]), 2, 2), matrix(&angles(&[0.0, 90.0]), 2, 2));
    let k = matrix(&angles(&[0.0, 90.0, 30.0, 200.0]), 4, 2);
    let w = matrix(&angles(&[0.0, 60.0, 90.0]), 3, 2);
    let pairs = Pairs::labels(&vector(&[0, 1]), &vector(&[0, 1, 0, 1])).affinity(&o, &k, AffinityMap::Half);
    let options = DiscriminationOptions::default();
    let raw = discrimination_raw(&z, &k, &w, &Temperature::Fixed(1.0), &pairs, &options).unwrap();
    assert!((number(&raw.loss) - 0.861988919).abs() < 1e-6);
    let options = DiscriminationOptions { scale: 10.0, ..options };
    for (tau, truth) in [(1.0, 0.900449111), (0.1, 1.542802788)] {
        let soft = discrimination_soft(&z, &k, &w, &Temperature::Fixed(tau), &pairs, &options).unwrap();
        assert!((number(&soft.loss) - truth).abs() < 1e-6, "{tau}");
    }
}

struct Case {
    b: usize,
    n: usize,
    d: usize,
    c: usize,
    z: Vec<f32>,
    k: Vec<f32>,
    w: Vec<f32>,
    o: Vec<f32>,
    query_labels: Vec<u32>,
    key_labels: Vec<u32>,
    valid: Vec<u8>,
}

impl Case {
    fn new(b: usize, n: usize, d: usize, c: usize, seed: u64) -> Self {
        Self {
            b,
            n,
            d,
            c,
            z: data::unit(b, d, seed),
            k: data::unit(n, d, seed + 1),
            w: data::normal(c, d, seed + 2),
            o: data::unit(b, d, seed + 3),
            query_labels: data::labels(b, 4, seed + 4),
            key_labels: data::labels(n, 4, seed + 5),
            valid: (0..n).map(|j| u8::from(j % 5 != 3)).collect(),
        }
    }

    fn pairs(&self) -> Pairs {
        let o = matrix(&self.o, self.b, self.d);
        let valid = Tensor::new(self.valid.as_slice(), &DEVICE).unwrap();
        Pairs::labels(&vector(&self.query_labels), &vector(&self.key_labels))
            .affinity(&o, &matrix(&self.k, self.n, self.d), AffinityMap::Half)
            .valid(&valid)
    }

    fn reference_pairs(&self) -> reference::Pairs {
        let (o, k) = (data::widen(&self.o), data::widen(&self.k));
        let d = self.d;
        reference::Pairs::new(self.b, self.n, |i, j| self.query_labels[i] == self.key_labels[j])
            .weighted(|i, j| reference::affinity_half(reference::cosine(&o[i * d..][..d], &k[j * d..][..d])))
            .valid(|j| self.valid[j] == 1)
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Raw,
    Soft,
    Kl,
}

/// Value and gradients of one form against the reference; returns the worst error over its bound.
fn compare(case: &Case, which: Which, options: &DiscriminationOptions) -> f64 {
    let tau = 0.5;
    let z = Var::from_tensor(&matrix(&case.z, case.b, case.d)).unwrap();
    let w = Var::from_tensor(&matrix(&case.w, case.c, case.d)).unwrap();
    let k = matrix(&case.k, case.n, case.d);
    let (t, pairs) = (Temperature::Fixed(tau), case.pairs());
    let (loss, per_row) = match which {
        Which::Raw => {
            let r = discrimination_raw(z.as_tensor(), &k, w.as_tensor(), &t, &pairs, options).unwrap();
            (r.loss, r.per_row)
        }
        Which::Soft => {
            let r = discrimination_soft(z.as_tensor(), &k, w.as_tensor(), &t, &pairs, options).unwrap();
            (r.loss, r.per_row)
        }
        Which::Kl => {
            let r = discrimination_kl(z.as_tensor(), &k, w.as_tensor(), &pairs, options).unwrap();
            (r.loss, r.per_row)
        }
    };
    let (wide_z, wide_k, wide_w) = (data::widen(&case.z), data::widen(&case.k), data::widen(&case.w));
    let reference_pairs = case.reference_pairs();
    let problem = Discrimination {
        queries: &wide_z,
        keys: &wide_k,
        dim: case.d,
        weights: &wide_w,
        key_weights: &wide_w,
        normalize_rows: options.normalize_rows,
        scale: options.scale,
        cosine: options.cosine,
        temperature: tau,
        pairs: &reference_pairs,
        normalizer: match options.contrast.normalizer {
            Normalizer::Count => reference::Normalizer::Count,
            Normalizer::WeightSum => reference::Normalizer::WeightSum,
        },
        other_positives: match options.contrast.other_positives {
            OtherPositives::InDenominator => reference::OtherPositives::InDenominator,
            OtherPositives::LeftOut => reference::OtherPositives::LeftOut,
        },
    };
    let truth = match which {
        Which::Raw => problem.contrast(Form::Raw),
        Which::Soft => problem.contrast(Form::Soft),
        Which::Kl => problem.divergence(),
    };
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let longest = match options.normalize_rows {
        true => 1.0,
        false => wide_w.chunks_exact(case.d).map(norm).fold(0.0, f64::max),
    };
    // A score is at most L, and off by (d + 4)uL. Score vectors are at most S = L√C long, their products off by
    // (C + 2d + 8)uS². Distributions are at most 1 long and off by twice what a score is, their products by twice
    // that and Cu; a cosine divides them by 1/√C at worst. The logit has that over τ, the loss twice that; the gradient
    // is a mean of features times the same slope again.
    let (l, c, d) = ((options.scale * longest).max(1.0), case.c as f64, case.d as f64);
    let (logit, slope) = match which {
        Which::Raw => ((c + 2.0 * d + 8.0) * U * l * l * c / tau, l * l * c / tau),
        Which::Soft | Which::Kl => {
            let stretch = if options.cosine { c.sqrt() } else { 1.0 };
            (stretch * (4.0 * l * (d + 4.0) + c + 8.0) * U / tau, stretch * l * c.sqrt() / tau)
        }
    };
    let value = 4.0 * logit + 4.0 * U;
    let gradient = 8.0 * (logit + (case.n + 8) as f64 * U) * slope;
    let mut worst = (number(&loss) - truth.loss).abs() / value;
    worst = worst.max(worst_ratio(&flat(&per_row), &truth.per_row, |_| value));
    let grads = loss.backward().unwrap();
    for (var, truth) in [(&z, &truth.queries), (&w, &truth.weights)] {
        let got = flat(grads.get(var).expect("the gradient arrives"));
        worst = worst.max(worst_ratio(&got, truth, |_| gradient));
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_form_agrees_with_the_reference(
        b in 1usize..20,
        n in 1usize..90,
        d in 1usize..12,
        c in 1usize..80,
        seed in 0u64..10_000,
        flags in 0u32..16,
    ) {
        let case = Case::new(b, n, d, c, seed);
        let options = DiscriminationOptions {
            normalize_rows: flags & 1 == 0,
            scale: 1.5,
            cosine: flags & 2 != 0,
            contrast: ContrastOptions {
                normalizer: if flags & 4 == 0 { Normalizer::Count } else { Normalizer::WeightSum },
                other_positives: if flags & 8 == 0 { OtherPositives::InDenominator } else { OtherPositives::LeftOut },
                ..ContrastOptions::default()
            },
        };
        for which in [Which::Raw, Which::Soft, Which::Kl] {
            let ratio = compare(&case, which, &options);
            prop_assert!(ratio <= 1.0, "{which:?} {options:?}: {ratio}");
        }
    }
}

#[test]
fn ratios_are_printed_for_a_larger_problem() {
    let case = Case::new(65, 521, 33, 127, 3);
    for which in [Which::Raw, Which::Soft, Which::Kl] {
        for cosine in [false, true] {
            let options = DiscriminationOptions { cosine, scale: 2.0, ..DiscriminationOptions::default() };
            let ratio = compare(&case, which, &options);
            println!("{which:?} cosine {cosine}: worst error / bound {ratio:.1e}");
            assert!(ratio <= 1.0);
        }
    }
}

#[test]
fn keys_take_no_gradient() {
    let case = Case::new(5, 9, 4, 3, 1);
    let z = Var::from_tensor(&matrix(&case.z, 5, 4)).unwrap();
    let k = Var::from_tensor(&matrix(&case.k, 9, 4)).unwrap();
    let w = matrix(&case.w, 3, 4);
    let (t, pairs) = (Temperature::Fixed(0.5), case.pairs());
    for cosine in [false, true] {
        let options = DiscriminationOptions { cosine, ..DiscriminationOptions::default() };
        for loss in [
            discrimination_raw(z.as_tensor(), k.as_tensor(), &w, &t, &pairs, &options).unwrap().loss,
            discrimination_soft(z.as_tensor(), k.as_tensor(), &w, &t, &pairs, &options).unwrap().loss,
            discrimination_kl(z.as_tensor(), k.as_tensor(), &w, &pairs, &options).unwrap().loss,
        ] {
            let grads = loss.backward().unwrap();
            assert!(grads.get(&z).is_some() && grads.get(&k).is_none());
        }
    }
}

#[test]
fn teachers_have_the_same_bits_on_any_threads_alone_and_in_a_batch() {
    let case = Case::new(37, 700, 16, 70, 5);
    let (z, k, w) = (matrix(&case.z, 37, 16), matrix(&case.k, 700, 16), matrix(&case.w, 70, 16));
    let options = DiscriminationOptions { scale: 4.0, ..DiscriminationOptions::default() };
    let bits = |x: &Tensor| flat(x).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let whole = |_: ()| discrimination_kl(&z, &k, &w, &case.pairs(), &options).unwrap().teachers;
    let [one, two, eight] = on_1_2_8_threads(|| bits(&whole(())));
    assert!(one == two && one == eight);
    let o = matrix(&case.o, 37, 16);
    let valid = Tensor::new(case.valid.as_slice(), &DEVICE).unwrap();
    for row in [0, 17, 36] {
        let labels = vector(&case.query_labels[row..=row]);
        let pairs = Pairs::labels(&labels, &vector(&case.key_labels))
            .affinity(&o.narrow(0, row, 1).unwrap(), &k, AffinityMap::Half)
            .valid(&valid);
        let alone = discrimination_kl(&z.narrow(0, row, 1).unwrap(), &k, &w, &pairs, &options).unwrap();
        assert_eq!(bits(&alone.teachers), one[row * 70..(row + 1) * 70], "row {row}");
    }
}

#[test]
fn half_precision_keys_and_views_are_read() {
    let case = Case::new(6, 30, 8, 5, 2);
    let (z, w) = (matrix(&case.z, 6, 8), matrix(&case.w, 5, 8));
    let options = DiscriminationOptions::default();
    let t = Temperature::Fixed(0.5);
    for dtype in [DType::F16, DType::BF16] {
        let k = matrix(&case.k, 30, 8).to_dtype(dtype).unwrap();
        let rounded = k.to_dtype(DType::F32).unwrap();
        let close = |a: &Tensor, b: &Tensor| assert!((number(a) - number(b)).abs() < 64.0 * U, "{dtype:?}");
        let pairs = case.pairs();
        close(
            &discrimination_kl(&z, &k, &w, &pairs, &options).unwrap().loss,
            &discrimination_kl(&z, &rounded, &w, &pairs, &options).unwrap().loss,
        );
        close(
            &discrimination_raw(&z, &k, &w, &t, &pairs, &options).unwrap().loss,
            &discrimination_raw(&z, &rounded, &w, &t, &pairs, &options).unwrap().loss,
        );
    }
    let transposed = z.t().unwrap().contiguous().unwrap().t().unwrap();
    let pairs = case.pairs();
    let k = matrix(&case.k, 30, 8);
    let a = discrimination_kl(&z, &k, &w, &pairs, &options).unwrap().loss;
    let b = discrimination_kl(&transposed, &k, &w, &pairs, &options).unwrap().loss;
    assert!((number(&a) - number(&b)).abs() < 64.0 * U);
}

#[test]
fn anchors_without_teachers_add_nothing() {
    let case = Case::new(3, 6, 4, 5, 8);
    let pairs = Pairs::labels(&vector(&[0, 1, 9]), &vector(&[0, 0, 1, 1, 2, 2]));
    let (z, k, w) = (matrix(&case.z, 3, 4), matrix(&case.k, 6, 4), matrix(&case.w, 5, 4));
    let options = DiscriminationOptions::default();
    let found = discrimination_kl(&z, &k, &w, &pairs, &options).unwrap();
    assert_eq!(found.anchors, 2);
    assert_eq!(flat(&found.per_row)[2], 0.0);
    assert!(flat(&found.teachers)[10..].iter().all(|p| *p == 0.0));
    let none = Pairs::labels(&vector(&[7, 8, 9]), &vector(&[0, 0, 1, 1, 2, 2]));
    let found = discrimination_kl(&z, &k, &w, &none, &options).unwrap();
    assert_eq!((found.anchors, number(&found.loss)), (0, 0.0));
}

#[test]
fn bad_input_is_refused() {
    let case = Case::new(3, 6, 4, 5, 8);
    let (z, k, w) = (matrix(&case.z, 3, 4), matrix(&case.k, 6, 4), matrix(&case.w, 5, 4));
    let (t, pairs, options) = (Temperature::Fixed(0.5), case.pairs(), DiscriminationOptions::default());
    let narrow = w.narrow(1, 0, 3).unwrap();
    let message = |e: Error| e.to_string();
    assert!(
        message(discrimination_raw(&z, &k, &narrow, &t, &pairs, &options).unwrap_err()).contains("`weights`")
    );
    assert!(message(discrimination_kl(&z, &k, &narrow, &pairs, &options).unwrap_err()).contains("`weights`"));
    let empty = w.narrow(0, 0, 0).unwrap();
    assert!(
        message(discrimination_soft(&z, &k, &empty, &t, &pairs, &options).unwrap_err()).contains("empty")
    );
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let options = DiscriminationOptions { scale, ..options.clone() };
        assert!(message(discrimination_kl(&z, &k, &w, &pairs, &options).unwrap_err()).contains("`scale`"));
    }
    let nan = matrix(&[f32::NAN; 24], 6, 4);
    assert!(discrimination_kl(&z, &nan, &w, &pairs, &options).is_err());
    assert!(discrimination_raw(&z, &nan, &w, &t, &pairs, &options).is_err());
    let nan = matrix(&[f32::NAN; 20], 5, 4);
    assert!(discrimination_kl(&z, &k, &nan, &pairs, &options).is_err());
    let zero = Temperature::Fixed(0.0);
    assert!(
        message(discrimination_raw(&z, &k, &w, &zero, &pairs, &options).unwrap_err()).contains("temperature")
    );
}
