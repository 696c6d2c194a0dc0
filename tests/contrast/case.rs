//! Random problems, the same for the op and for the f64 reference, and the bound on their difference.
//!
//! The bound is derived in docs/contrast.md; `u` is the unit round-off of f32.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    Admission, AffinityMap, Closeness, Contrast, ContrastOptions, Normalizer, OtherPositives, Pairs,
    Products, Temperature, contrast,
};
use consonance_reference::contrast as reference;
use consonance_testkit::data;

pub(crate) const U: f64 = 1.0 / 16_777_216.0;

/// Exponentials below the smallest normal number are 0.
const FLUSH: f64 = f32::MIN_POSITIVE as f64;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    Labels(u32),
    Diagonal,
    Lists { weighted: bool },
    Neighbors,
    Bits,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tau {
    Fixed(f64),
    Scalar(f64),
    PerRow(f64),
}

/// What makes negatives of a group close to positives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Near {
    Times,
    Features,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) b: usize,
    pub(crate) n: usize,
    pub(crate) d: usize,
    pub(crate) seed: u64,
    pub(crate) rule: Rule,
    pub(crate) affinity: Option<AffinityMap>,
    pub(crate) valid: bool,
    pub(crate) credible: bool,
    pub(crate) denominator_weights: bool,
    pub(crate) same_id: bool,
    pub(crate) leave_out: bool,
    pub(crate) pace: Option<(Near, f64, Admission)>,
    pub(crate) options: ContrastOptions,
    pub(crate) tau: Tau,
    pub(crate) dtype: DType,
    pub(crate) unit: bool,
    /// What queries and keys are multiplied by.
    pub(crate) sizes: (f64, f64),
}

impl Spec {
    pub(crate) fn new(b: usize, n: usize, d: usize) -> Self {
        Self {
            b,
            n,
            d,
            seed: 1,
            rule: Rule::Labels(4),
            affinity: None,
            valid: false,
            credible: false,
            denominator_weights: false,
            same_id: false,
            leave_out: false,
            pace: None,
            options: ContrastOptions::default(),
            tau: Tau::Fixed(0.1),
            dtype: DType::F32,
            unit: true,
            sizes: (1.0, 1.0),
        }
    }

    pub(crate) fn left_out(mut self) -> Self {
        self.options.other_positives = OtherPositives::LeftOut;
        self
    }

    pub(crate) fn products(mut self, products: Products) -> Self {
        self.options.products = products;
        self
    }

    pub(crate) fn weight_sum(mut self) -> Self {
        self.options.normalizer = Normalizer::WeightSum;
        self
    }
}

/// The numbers of a problem, and its pairs as tensors and as the reference's matrices.
pub(crate) struct Case {
    pub(crate) spec: Spec,
    pub(crate) queries: Tensor,
    pub(crate) keys: Tensor,
    pub(crate) temperatures: Vec<f32>,
    pub(crate) pairs: Pairs,
    pub(crate) full: reference::Pairs,
}

pub(crate) fn wide(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn narrow(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn u32s(x: &[u32]) -> Tensor {
    Tensor::new(x, &Device::Cpu).unwrap()
}

fn matrix(x: Vec<f32>, rows: usize, cols: usize, dtype: DType) -> Tensor {
    Tensor::from_vec(x, (rows, cols), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Neighbor lists with padding: query i has i mod 4 neighbors.
fn neighbors(b: usize, n: usize, seed: u64) -> Vec<u32> {
    let start = data::labels(b, n as u32, seed);
    let mut out = vec![u32::MAX; b * 3];
    for i in 0..b {
        for k in 0..(i % 4).min(n) {
            out[i * 3 + k] = (start[i] + (k * k + 3 * k) as u32) % n as u32;
        }
        let mut row = out[i * 3..][..3].to_vec();
        row.sort_unstable();
        row.dedup();
        row.resize(3, u32::MAX);
        row.reverse(); // any order is allowed
        out[i * 3..][..3].copy_from_slice(&row);
    }
    out
}

impl Case {
    pub(crate) fn new(spec: Spec) -> Self {
        let Spec { b, n, d, seed, .. } = spec;
        let make = |rows, cols, seed| match spec.unit {
            true => data::unit(rows, cols, seed),
            false => data::normal(rows, cols, seed),
        };
        let sized = |x: Vec<f32>, size: f64| x.iter().map(|x| (f64::from(*x) * size) as f32).collect();
        let queries = matrix(sized(make(b, d, seed), spec.sizes.0), b, d, spec.dtype);
        let keys = matrix(sized(make(n, d, seed + 1), spec.sizes.1), n, d, spec.dtype);
        let spread = data::labels(b, 1000, seed + 2);
        let temperatures: Vec<f32> = match spec.tau {
            Tau::Fixed(t) | Tau::Scalar(t) => vec![t as f32; b],
            Tau::PerRow(t) => spread.iter().map(|s| (t * (1.0 + f64::from(*s) / 1000.0)) as f32).collect(),
        };
        let (mut pairs, mut full) = rule(&spec);
        if let Some(map) = spec.affinity {
            let (old_d, oq, ok) = (d / 2 + 3, seed + 5, seed + 6);
            let (oq, ok) = (data::normal(b, old_d, oq), data::normal(n, old_d, ok));
            let (oq, ok) = (matrix(oq, b, old_d, DType::F32), matrix(ok, n, old_d, spec.dtype));
            pairs = pairs.affinity(&oq, &ok, map);
            let (oq, ok) = (wide(&oq), wide(&ok));
            full = full.weighted(|i, j| {
                let cosine = reference::cosine(&oq[i * old_d..][..old_d], &ok[j * old_d..][..old_d]);
                match map {
                    AffinityMap::Half => reference::affinity_half(cosine),
                    AffinityMap::Exp { temperature } => {
                        reference::affinity_exp(cosine, f64::from(temperature))
                    }
                }
            });
        }
        let mask = |seed: u64, keep: u32| -> Vec<u8> {
            data::labels(n, 10, seed).iter().map(|x| u8::from(*x < keep)).collect()
        };
        let bytes = |m: &[u8]| Tensor::new(m, &Device::Cpu).unwrap();
        if spec.valid {
            let m = mask(seed + 7, 7);
            pairs = pairs.valid(&bytes(&m));
            full = full.valid(|j| m[j] != 0);
        }
        if spec.credible {
            let m = mask(seed + 8, 6);
            pairs = pairs.credible_positives(&bytes(&m));
            full = full.credible_positives(|j| m[j] != 0);
        }
        if spec.denominator_weights {
            let u: Vec<f32> = data::labels(n, 9, seed + 9)
                .iter()
                .map(|x| if *x == 0 { 0.0 } else { *x as f32 / 3.0 })
                .collect();
            pairs = pairs.denominator_weights(&Tensor::new(&u[..], &Device::Cpu).unwrap());
            full = full.denominator_weights(&data::widen(&u));
        }
        if spec.same_id {
            let (qi, ki) = (data::labels(b, 7, seed + 10), data::labels(n, 40, seed + 11));
            pairs = pairs.ignore_same_id(&u32s(&qi), &u32s(&ki));
            full = full.ignore_same_id(&qi, &ki);
        }
        if let Some((near, pace, admission)) = spec.pace {
            let (qg, kg) = (data::labels(b, 5, seed + 14), data::labels(n, 6, seed + 15));
            let groups = (u32s(&qg), u32s(&kg));
            let affinity: Box<dyn Fn(usize, usize) -> f64>;
            let closeness;
            match near {
                Near::Times => {
                    let (qt, kt) = (data::normal(b, 1, seed + 16), data::normal(n, 1, seed + 17));
                    let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
                    closeness = Closeness::Times { queries: tensor(&qt), keys: tensor(&kt), scale: 0.75 };
                    affinity =
                        Box::new(move |i, j| (-(f64::from(qt[i]) - f64::from(kt[j])).abs() / 0.75).exp());
                }
                Near::Features => {
                    let (qf, kf) = (data::normal(b, 3, seed + 16), data::normal(n, 3, seed + 17));
                    let (qf, kf) = (matrix(qf, b, 3, DType::F32), matrix(kf, n, 3, spec.dtype));
                    let (x, y) = (wide(&qf), wide(&kf));
                    closeness = Closeness::Features { queries: qf, keys: kf };
                    affinity = Box::new(move |i, j| {
                        reference::affinity_half(reference::cosine(&x[i * 3..][..3], &y[j * 3..][..3]))
                    });
                }
            }
            let limit = f64::from(pace as f32);
            let weight = |i: usize, j: usize| match (qg[i] == kg[j], admission) {
                (false, _) => 1.0,
                (true, Admission::Hard) => f64::from(u8::from(affinity(i, j) <= limit)),
                (true, Admission::Soft) => (1.0 - affinity(i, j) / limit).max(0.0),
            };
            pairs = pairs.pace((&groups.0, &groups.1), closeness, pace, admission);
            full = full.paced(weight);
        }
        if spec.leave_out {
            let (ql, kl) = (data::labels(b, 5, seed + 12), data::labels(n, 6, seed + 13));
            pairs = pairs.leave_out_same_label(&u32s(&ql), &u32s(&kl));
            full = full.leave_out_same_label(&ql, &kl);
        }
        Self { spec, queries, keys, temperatures, pairs, full }
    }

    pub(crate) fn temperature(&self) -> (Temperature, Option<Var>) {
        let learned = |t: Tensor| {
            let var = Var::from_tensor(&t).unwrap();
            (Temperature::Learned(var.as_tensor().clone()), Some(var))
        };
        match self.spec.tau {
            Tau::Fixed(t) => (Temperature::Fixed(t), None),
            Tau::Scalar(t) => learned(Tensor::new(t as f32, &Device::Cpu).unwrap()),
            Tau::PerRow(_) => learned(Tensor::new(&self.temperatures[..], &Device::Cpu).unwrap()),
        }
    }

    pub(crate) fn loss(&self) -> Contrast {
        contrast(&self.queries, &self.keys, &self.temperature().0, &self.pairs, &self.spec.options).unwrap()
    }

    /// Loss and all gradients of Σ g_i L_i against the reference; the worst |difference| / bound.
    pub(crate) fn worst_ratio(&self) -> f64 {
        let Spec { b, n, d, .. } = self.spec;
        let (queries, keys) =
            (Var::from_tensor(&self.queries).unwrap(), Var::from_tensor(&self.keys).unwrap());
        let (temperature, tau) = self.temperature();
        let out = contrast(&queries, &keys, &temperature, &self.pairs, &self.spec.options).unwrap();
        let g: Vec<f32> = data::normal(b, 1, self.spec.seed + 20);
        let weights = Tensor::new(&g[..], &Device::Cpu).unwrap();
        let grads = (&out.per_row * &weights).unwrap().sum_all().unwrap().backward().unwrap();

        let (x, y) = (wide(&self.queries), wide(&self.keys));
        let temperatures = data::widen(&self.temperatures);
        let options = self.spec.options;
        let problem = reference::Problem {
            queries: &x,
            keys: &y,
            dim: d,
            temperatures: &temperatures,
            pairs: &self.full,
            normalizer: match options.normalizer {
                Normalizer::Count => reference::Normalizer::Count,
                Normalizer::WeightSum => reference::Normalizer::WeightSum,
            },
            other_positives: match options.other_positives {
                OtherPositives::InDenominator => reference::OtherPositives::InDenominator,
                OtherPositives::LeftOut => reference::OtherPositives::LeftOut,
            },
        };
        let truth = problem.forward();
        let truth_gradients = problem.gradients(&data::widen(&g));
        assert_eq!(out.anchors, truth.counted.iter().filter(|c| **c).count(), "anchors of {:?}", self.spec);
        let bounds: Vec<RowBound> = (0..b).map(|i| RowBound::new(self, &problem, &truth, i)).collect();

        let mut worst = 0.0f64;
        let mut check = |what: &str, got: &[f64], expected: &[f64], bound: &dyn Fn(usize) -> f64| {
            assert_eq!(got.len(), expected.len(), "{what}");
            for (at, (got, e)) in got.iter().zip(expected).enumerate() {
                if got == e {
                    continue;
                }
                let ratio = (got - e).abs() / bound(at);
                assert!(ratio <= 1.0, "{what} {at}: got {got}, expected {e}, ratio {ratio}, {:?}", self.spec);
                worst = worst.max(ratio);
            }
        };
        check("per_row", &wide(&out.per_row), &truth.per_row, &|i| bounds[i].loss);
        check("log_sum_exp", &wide(&out.log_sum_exp), &truth.log_sum_exp, &|i| bounds[i].lse);
        let mean: f64 = bounds.iter().map(|r| r.loss).sum::<f64>() / out.anchors.max(1) as f64;
        let size: f64 = truth.per_row.iter().map(|l| l.abs()).sum::<f64>() / out.anchors.max(1) as f64;
        check("loss", &wide(&out.loss), &[truth.loss], &|_| {
            mean + (b as f64 + 2.0) * U * size + f64::MIN_POSITIVE
        });

        // Gradients are rounded to the dtype of their argument.
        let (rounding, smallest) = match self.spec.dtype {
            DType::F16 => (1.0 / 2048.0, 1.0 / 16_777_216.0),
            DType::BF16 => (1.0 / 256.0, FLUSH),
            _ => (U, FLUSH),
        };
        let stored = |value: f64, error: f64| error * (1.0 + rounding) + value.abs() * rounding + smallest;
        let gradient = &truth_gradients.queries;
        check("queries' gradient", &wide(grads.get(&queries).unwrap()), gradient, &|at| {
            let i = at / d;
            stored(gradient[at], f64::from(g[i]).abs() * bounds[i].gradient)
        });
        let gradient = &truth_gradients.keys;
        let key_bounds: Vec<f64> = (0..n)
            .map(|j| (0..b).map(|i| f64::from(g[i]).abs() * bounds[i].key(&truth, &self.full, i, j, b)).sum())
            .collect();
        check("keys' gradient", &wide(grads.get(&keys).unwrap()), gradient, &|at| {
            // A coefficient's parts and products below the smallest normal number are 0.
            stored(gradient[at], key_bounds[at / d] + 12.0 * b as f64 * FLUSH)
        });
        if let Some(tau) = tau {
            let got = wide(grads.get(&tau).unwrap());
            let bound = |i: usize| f64::from(g[i]).abs() * bounds[i].temperature;
            let gradient = &truth_gradients.temperatures;
            if self.spec.tau == Tau::PerRow(self.spec.tau.value()) {
                check("temperatures' gradient", &got, gradient, &|i| bound(i) + U * gradient[i].abs());
            } else {
                let total: f64 = gradient.iter().sum();
                let error: f64 = (0..b).map(bound).sum::<f64>() + U * total.abs();
                check("temperature's gradient", &got, &[total], &|_| error + f64::MIN_POSITIVE);
            }
        }
        worst
    }
}

impl Tau {
    fn value(self) -> f64 {
        match self {
            Self::Fixed(t) | Self::Scalar(t) | Self::PerRow(t) => t,
        }
    }
}

fn rule(spec: &Spec) -> (Pairs, reference::Pairs) {
    let Spec { b, n, seed, .. } = *spec;
    match spec.rule {
        Rule::Labels(classes) => {
            let (ql, kl) = (data::labels(b, classes, seed + 3), data::labels(n, classes, seed + 4));
            (Pairs::labels(&u32s(&ql), &u32s(&kl)), reference::Pairs::new(b, n, |i, j| ql[i] == kl[j]))
        }
        Rule::Diagonal => (Pairs::diagonal(), reference::Pairs::new(b, n, |i, j| i == j)),
        Rule::All => (Pairs::all(), reference::Pairs::new(b, n, |_, _| true)),
        Rule::Bits => {
            let bits = |rows, seed| -> Vec<u32> {
                let (x, y) = (data::labels(rows, 1 << 16, seed), data::labels(rows, 1 << 16, seed + 100));
                x.iter().zip(&y).flat_map(|(x, y)| [x & y, y & (x >> 3)]).collect()
            };
            let (q, k) = (bits(b, seed + 3), bits(n, seed + 4));
            let tensor = |x: &[u32], rows| u32s(x).reshape((rows, 2)).unwrap();
            let overlap = |i: usize, j: usize| {
                (q[2 * i] & k[2 * j]).count_ones() + (q[2 * i + 1] & k[2 * j + 1]).count_ones()
            };
            (
                Pairs::bits(&tensor(&q, b), &tensor(&k, n), 3),
                reference::Pairs::new(b, n, |i, j| overlap(i, j) >= 3),
            )
        }
        Rule::Neighbors => {
            let lists = neighbors(b, n, seed + 3);
            let full = reference::Pairs::new(b, n, |i, j| lists[i * 3..][..3].contains(&(j as u32)));
            (Pairs::neighbors(&u32s(&lists).reshape((b, 3)).unwrap(), None), full)
        }
        Rule::Lists { weighted } => {
            let lists = neighbors(b, n, seed + 3);
            let (mut offsets, mut indices, mut weights) = (vec![0u32], vec![], vec![]);
            let mut full = vec![0.0f64; b * n];
            for i in 0..b {
                for j in lists[i * 3..][..3].iter().filter(|j| **j != u32::MAX) {
                    indices.push(*j);
                    let w = 0.25 + ((i + *j as usize) % 5) as f32;
                    weights.push(w);
                    full[i * n + *j as usize] = f64::from(w);
                }
                offsets.push(indices.len() as u32);
            }
            let pairs = reference::Pairs::new(b, n, |i, j| full[i * n + j] > 0.0);
            let weights = weighted.then(|| Tensor::new(&weights[..], &Device::Cpu).unwrap());
            (
                Pairs::lists(&u32s(&offsets), &u32s(&indices), weights.as_ref()),
                if weighted { pairs.weighted(|i, j| full[i * n + j]) } else { pairs },
            )
        }
    }
}

/// The bounds of one row, for a unit gradient.
struct RowBound {
    loss: f64,
    lse: f64,
    gradient: f64,
    temperature: f64,
    norm_over_tau: f64,
    softmax: f64,
    weights: f64,
    gate: f64,
    normalizer: f64,
    split: bool,
}

impl RowBound {
    fn new(case: &Case, p: &reference::Problem<'_>, truth: &reference::Contrast, i: usize) -> Self {
        let Spec { n, d, .. } = case.spec;
        let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt();
        let x = norm(&p.queries[i * d..][..d]);
        let tau = p.temperatures[i];
        let largest = (0..n).map(|j| norm(&p.keys[j * d..][..d])).fold(0.0, f64::max);
        let bias = if case.spec.denominator_weights { 3f64.ln() } else { 0.0 };
        // Single pairs' weights: ln u is exact but for its rounding.
        let row = &case.full.denominator[i * n..][..n];
        let of_pairs = row.iter().filter(|u| **u > 0.0).map(|u| u.ln().abs()).fold(0.0, f64::max);
        let bias = if case.spec.pace.is_some() { bias + of_pairs } else { bias };
        let sigma = x * largest / tau + bias;
        let (dim, tiles) = (d.max(16) as f64, n.div_ceil(512) as f64);
        let lse = truth.log_sum_exp[i];
        let size = if lse.is_finite() { lse.abs() } else { 0.0 };
        // One score; one exponential, relative; the sum, relative.
        let split = case.spec.options.products.splits(d);
        // Six products of split numbers stay inside the bound of plain sums; three leave out 2^-15.
        let steps = d.div_ceil(32) as f64;
        let three = split && d >= 512;
        let sums = if three { 514.0 + 1.02 * (17.0 + 3.0 * steps) } else { dim };
        let score = (sums + 4.0) * U * sigma;
        let exponential = score + 4.0 * U * sigma + 4.0 * U;
        let sum = exponential + (36.0 + 6.0 * tiles) * U;
        let e_lse = sum + U * size;

        let positives: Vec<usize> = (0..n).filter(|j| case.full.positive[i * n + j]).collect();
        let count = positives.len() as f64;
        let total: f64 = positives.iter().map(|j| case.full.weight[i * n + j]).sum();
        let old = (d / 2 + 3) as f64;
        let one_weight = match case.spec.affinity {
            None => 0.0,
            Some(AffinityMap::Half) => (old + 6.0) * U,
            Some(AffinityMap::Exp { temperature }) => (old + 8.0) * U / f64::from(temperature) + 4.0 * U,
        };
        let (normalizer, weights) = match case.spec.options.normalizer {
            Normalizer::Count => (count, one_weight),
            Normalizer::WeightSum => (total, 2.0 * count * one_weight / total.max(f64::MIN_POSITIVE)),
        };
        if !truth.counted[i] {
            return Self {
                loss: 0.0,
                lse: e_lse,
                gradient: 0.0,
                temperature: 0.0,
                norm_over_tau: x / tau,
                softmax: 0.0,
                weights: 0.0,
                gate: 0.0,
                normalizer: 1.0,
                split,
            };
        }
        let mass = total / normalizer;
        // Sums over positives: runs of 64, or moments of all keys.
        let long = 70.0 + count / 64.0 + if case.spec.rule == Rule::All { 450.0 + tiles + old } else { 0.0 };
        let left_out = case.spec.options.other_positives == OtherPositives::LeftOut;
        let loss = if left_out {
            mass * (e_lse + score) + weights * (size + sigma + 1.0)
        } else {
            mass * e_lse + weights * (size + sigma) + long * U * mass * sigma + 4.0 * U * mass * size
        } + 2.0 * U * truth.per_row[i].abs();
        // σ is Lipschitz with 1/4.
        let gate = if left_out { 0.25 * (e_lse + score) } else { 0.0 };
        // The sum of p y: by blocks of 512 keys, or three products of split numbers.
        let weighted = match split {
            true => 514.0 + 1.02 * (17.0 + 48.0 * tiles.min(16.0)) + tiles / 16.0,
            false => 516.0 + tiles,
        };
        let vanishing = n as f64 * FLUSH * if split { 6.0 } else { 1.0 };
        let softmax = 2.0 * sum + weighted * U;
        let gradient = largest / tau
            * (mass * (softmax + 2.0 * gate + long * U) + 2.0 * weights + 6.0 * U * mass + vanishing);
        Self {
            loss,
            lse: e_lse,
            gradient,
            temperature: x * gradient / tau,
            norm_over_tau: x / tau,
            softmax: sum + e_lse + 4.0 * U * (size + sigma),
            weights,
            gate,
            normalizer,
            split,
        }
    }

    /// The bound on row i's share of key j's gradient, for a unit row gradient.
    fn key(&self, truth: &reference::Contrast, full: &reference::Pairs, i: usize, j: usize, b: usize) -> f64 {
        let at = i * full.keys + j;
        let a = if full.positive[at] { full.weight[at] / self.normalizer } else { 0.0 };
        let size = truth.coefficients[at].abs() + 2.0 * a;
        let steps = b.div_ceil(256) as f64;
        let long =
            U * if self.split { 514.0 + 1.02 * (17.0 + 24.0 * steps) } else { 262.0 + b as f64 / 256.0 };
        self.norm_over_tau
            * (size * (self.softmax + long + self.weights + 2.0 * self.gate)
                + self.weights
                + self.gate * a
                + 2.0 * FLUSH)
    }
}
