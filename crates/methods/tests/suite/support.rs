//! Batches, banks and the comparison of gradients that all methods share.

use candle_core::{Device, Tensor, Var};
use consonance_methods::{Batch, CosineClassifier, CosineClassifierConfig, Margin, OldBank};
use consonance_testkit::data;
use consonance_testkit::gradient::{finite_differences, worst_ratio};

/// The unit roundoff of f32.
pub(crate) const U: f64 = 5.960_464_5e-8;

pub(crate) fn matrix(values: &[f32], rows: usize, cols: usize) -> Tensor {
    Tensor::from_slice(values, (rows, cols), &Device::Cpu).unwrap()
}

pub(crate) fn vector(values: &[u32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

pub(crate) fn number(x: &Tensor) -> f64 {
    f64::from(x.to_scalar::<f32>().unwrap())
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

pub(crate) fn unit(a: &[f64]) -> Vec<f64> {
    let n = norm(a);
    a.iter().map(|x| x / n).collect()
}

/// Unit rows by their angles in degrees.
pub(crate) fn angles(degrees: &[f64]) -> Vec<f32> {
    degrees.iter().flat_map(|a| [a.to_radians().cos() as f32, a.to_radians().sin() as f32]).collect()
}

/// A small problem: a bank of old embeddings, and a batch out of it with its own new embeddings.
pub(crate) struct Case {
    pub(crate) rows: usize,
    pub(crate) new_dim: usize,
    pub(crate) old_dim: usize,
    pub(crate) classes: usize,
    pub(crate) bank: Vec<f32>,
    pub(crate) bank_labels: Vec<u32>,
    pub(crate) new: Vec<f32>,
    pub(crate) indices: Vec<u32>,
    pub(crate) weight: Vec<f32>,
}

impl Case {
    pub(crate) fn new(
        rows: usize,
        bank_rows: usize,
        classes: usize,
        dims: (usize, usize),
        seed: u64,
    ) -> Self {
        let (new_dim, old_dim) = dims;
        let bank_labels: Vec<u32> = (0..bank_rows).map(|i| (i % classes) as u32).collect();
        Self {
            rows,
            new_dim,
            old_dim,
            classes,
            bank: data::unit(bank_rows, old_dim, seed),
            bank_labels,
            new: data::unit(rows, new_dim, seed + 1),
            indices: (0..rows).map(|i| ((i * 7 + 3) % bank_rows) as u32).collect(),
            weight: data::normal(classes, new_dim, seed + 2),
        }
    }

    pub(crate) fn labels(&self) -> Vec<u32> {
        self.indices.iter().map(|i| self.bank_labels[*i as usize]).collect()
    }

    pub(crate) fn old(&self) -> Vec<f32> {
        let d = self.old_dim;
        self.indices.iter().flat_map(|i| self.bank[*i as usize * d..(*i as usize + 1) * d].to_vec()).collect()
    }

    pub(crate) fn tensors(&self) -> Tensors {
        Tensors {
            new: Var::from_tensor(&matrix(&self.new, self.rows, self.new_dim)).unwrap(),
            old: matrix(&self.old(), self.rows, self.old_dim),
            labels: vector(&self.labels()),
            indices: vector(&self.indices),
            bank: matrix(&self.bank, self.bank_labels.len(), self.old_dim),
            bank_labels: vector(&self.bank_labels),
            classes: self.classes,
            dimension: self.new_dim,
        }
    }

    pub(crate) fn classifier(&self, scale: f64, margin: Margin) -> CosineClassifier {
        let weight = matrix(&self.weight, self.classes, self.new_dim);
        CosineClassifier::from_weight(&weight, CosineClassifierConfig { scale, margin }).unwrap()
    }
}

pub(crate) struct Tensors {
    pub(crate) new: Var,
    pub(crate) old: Tensor,
    pub(crate) labels: Tensor,
    pub(crate) indices: Tensor,
    pub(crate) bank: Tensor,
    pub(crate) bank_labels: Tensor,
    pub(crate) classes: usize,
    pub(crate) dimension: usize,
}

impl Tensors {
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch {
            new: self.new.as_tensor(),
            old: &self.old,
            labels: &self.labels,
            indices: &self.indices,
            progress: 0.5,
            epoch: 1,
            epochs: 2,
        }
    }

    pub(crate) fn bank(&self) -> OldBank<'_> {
        OldBank {
            embeddings: &self.bank,
            labels: &self.bank_labels,
            classes: self.classes,
            dimension: self.dimension,
            seed: 7,
        }
    }
}

/// Compares the gradient of `loss` at `variable` with central differences of `truth` at the same numbers.
pub(crate) fn check_gradient(
    name: &str,
    loss: &Tensor,
    variable: &Var,
    mut truth: impl FnMut(&[f64]) -> f64,
    bound: f64,
) {
    let at: Vec<f32> = variable.flatten_all().unwrap().to_vec1().unwrap();
    let wide = data::widen(&at);
    let value = truth(&wide);
    let got = number(loss);
    let scale = value.abs().max(1.0);
    assert!((got - value).abs() <= bound * scale, "{name}: value {got}, truth {value}, bound {bound}");
    let differences = finite_differences(&wide, truth);
    let grads = loss.backward().unwrap();
    let gradient = grads.get(variable).unwrap_or_else(|| panic!("{name}: no gradient arrives"));
    let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
    let ratio = worst_ratio(&gradient, &differences, |_| bound);
    let largest = differences.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    println!(
        "{name}: worst gradient error / bound {ratio:.3}, largest gradient {largest:.3e}, bound {bound:.1e}"
    );
    assert!(ratio <= 1.0, "{name}: {ratio}");
    assert!(largest > 20.0 * bound, "{name}: the gradient vanishes against the bound: {largest} vs {bound}");
}

/// The bound of a softmax cross-entropy over `n` cosines of scale `s` in `d` dimensions, in f32 against central
/// differences in f64: a logit is off by ε = s(d + 4)u, a probability by 2ε of itself, the gradient is a sum of `n`
/// unit vectors of total weight at most 2, times s (and 2 more for the normalization); the difference quotient adds
/// its third derivative, at most s³ h² with h = 1e-5.
pub(crate) fn softmax_bound(s: f64, d: usize, n: usize) -> f64 {
    let e = s * (d as f64 + 4.0) * U;
    4.0 * s.max(1.0) * (2.0 * e + (n + d + 8) as f64 * U) + s.max(1.0).powi(3) * 1e-10
}

/// Margin softmax cross-entropy of one row, in f64.
pub(crate) fn margin_loss(x: &[f64], prototypes: &[Vec<f64>], label: usize, s: f64, margin: Margin) -> f64 {
    let x = unit(x);
    let mut logits: Vec<f64> = prototypes.iter().map(|w| dot(&x, &unit(w))).collect();
    let c = logits[label];
    logits[label] = match margin {
        Margin::None => c,
        Margin::Cosine(m) => c - m,
        Margin::Angular(m) if c > -m.cos() => (c.clamp(-1.0, 1.0).acos() + m).cos(),
        Margin::Angular(m) => c - m * m.sin(),
    };
    let max = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let sum: f64 = logits.iter().map(|l| (s * (l - max)).exp()).sum();
    sum.ln() + s * (max - logits[label])
}

/// Rows of a flat f64 matrix.
pub(crate) fn rows(x: &[f64], d: usize) -> Vec<Vec<f64>> {
    x.chunks_exact(d).map(<[f64]>::to_vec).collect()
}

/// Rows brought to `d` dimensions as [`consonance_methods::fit`] does.
pub(crate) fn fit_rows(x: &[Vec<f64>], d: usize) -> Vec<Vec<f64>> {
    x.iter()
        .map(|r| {
            if r.len() <= d {
                let mut r = r.clone();
                r.resize(d, 0.0);
                r
            } else {
                unit(&r[..d])
            }
        })
        .collect()
}
