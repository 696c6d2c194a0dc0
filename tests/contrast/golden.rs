//! The published values of the neighborhood loss, of scores in the classifier's space, and of NT-Xent.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{AffinityMap, Contrast, ContrastOptions, Normalizer, Pairs, Temperature, contrast};

fn directions(degrees: &[f64]) -> Tensor {
    let x: Vec<f32> =
        degrees.iter().flat_map(|a| [a.to_radians().cos() as f32, a.to_radians().sin() as f32]).collect();
    Tensor::from_vec(x, (degrees.len(), 2), &Device::Cpu).unwrap()
}

fn u32s(x: &[u32]) -> Tensor {
    Tensor::new(x, &Device::Cpu).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= 1e-6 * e.abs().max(1.0), "got {got:?}, expected {expected:?}");
    }
}

fn labels() -> Pairs {
    Pairs::labels(&u32s(&[0, 1]), &u32s(&[0, 1, 0, 1]))
}

fn weighted() -> Pairs {
    labels().affinity(&directions(&[0.0, 90.0]), &bank(), AffinityMap::Half)
}

fn bank() -> Tensor {
    directions(&[0.0, 90.0, 30.0, 200.0])
}

fn options(normalizer: Normalizer) -> ContrastOptions {
    ContrastOptions { normalizer, ..Default::default() }
}

fn run(queries: &Tensor, keys: &Tensor, tau: f64, pairs: &Pairs, normalizer: Normalizer) -> Contrast {
    contrast(queries, keys, &Temperature::Fixed(tau), pairs, &options(normalizer)).unwrap()
}

#[test]
fn neighborhood_loss() {
    let z = Var::from_tensor(&directions(&[10.0, 100.0])).unwrap();
    let cases = [
        (
            Normalizer::Count,
            [0.686_937_227, 1.906_686_896],
            1.296_812_062,
            [0.059_751_356, -0.225_414_748, 0.777_517_241, 1.101_025_483],
        ),
        (
            Normalizer::WeightSum,
            [0.710_742_590, 2.869_377_496],
            1.790_060_043,
            [0.061_822_000, -0.233_226_350, 1.170_087_484, 1.656_935_781],
        ),
    ];
    for (normalizer, rows, loss, gradient) in cases {
        let out = run(&z, &bank(), 0.1, &weighted(), normalizer);
        assert_near(&values(&out.per_row), &rows);
        assert_near(&values(&out.log_sum_exp), &[10.341_061_637, 9.849_710_692]);
        assert_near(&[scalar(&out.loss)], &[loss]);
        assert_eq!(out.anchors, 2);
        let grads = out.loss.backward().unwrap();
        assert_near(&values(grads.get(&z).unwrap()), &gradient);
    }
}

#[test]
fn supervised_contrast() {
    let z = directions(&[10.0, 100.0]);
    for normalizer in [Normalizer::Count, Normalizer::WeightSum] {
        assert_near(&[scalar(&run(&z, &bank(), 0.1, &labels(), normalizer).loss)], &[3.256_236_292]);
    }
}

#[test]
fn discrimination_space() {
    let (z, w) = (directions(&[10.0, 100.0]), directions(&[0.0, 60.0, 90.0]));
    let logits = |v: &Tensor| v.matmul(&w.t().unwrap()).unwrap();
    let loss = |q: &Tensor, k: &Tensor, tau| scalar(&run(q, k, tau, &weighted(), Normalizer::Count).loss);
    assert_near(&[loss(&logits(&z), &logits(&bank()), 1.0)], &[0.861_988_919]);
    let gram = w.t().unwrap().matmul(&w).unwrap();
    assert_near(&[loss(&z.matmul(&gram).unwrap(), &bank(), 1.0)], &[0.861_988_919]);
    let soft = |v: &Tensor| {
        let e = (logits(v) / 0.1).unwrap().exp().unwrap();
        e.broadcast_div(&e.sum_keepdim(1).unwrap()).unwrap()
    };
    assert_near(&[loss(&soft(&z), &soft(&bank()), 1.0)], &[0.900_449_111]);
    assert_near(&[loss(&soft(&z), &soft(&bank()), 0.1)], &[1.542_802_788]);
}

#[test]
fn two_sided_nt_xent() {
    let (h1, h2) = (directions(&[0.0, 70.0]), directions(&[20.0, 110.0]));
    let pairs = Pairs::diagonal().ignore_same_id(&u32s(&[0, 1]), &u32s(&[10, 11, 0, 1]));
    for (a, b, expected) in [(&h1, &h2, 0.134_732_504), (&h2, &h1, 0.025_321_164)] {
        let keys = Tensor::cat(&[b, a], 0).unwrap();
        assert_near(&[scalar(&run(a, &keys, 0.1, &pairs, Normalizer::Count).loss)], &[expected]);
    }
}
