//! The discrimination space: contrast and divergence of explicit class scores.
//!
//! With the classifier's rows w_c (normalized or not) and ℓ_c(v) = s⟨w_c, v⟩, new embeddings z and old ones k are
//! compared by what the *new* classifier says of them (Wu et al., AAAI 2022; the old classifier is not at hand):
//!
//! * raw: the contrastive loss with t_ij = ⟨ℓ(z_i), sg ℓ(k_j)⟩/τ₂;
//! * soft: the same with π(v) = softmax(ℓ(v)) in place of ℓ(v);
//! * divergence: Σ_j w̄_ij KL(sg π(k_j) ‖ π(z_i)), w̄ = w/Σw, whose gradient is that of the cross-entropy against the
//!   mean teacher π̄_i = Σ_j w̄_ij π(k_j).
//!
//! With cosines, ℓ (or π) is divided by its norm first. sg: the keys' side is a constant, also in the classifier.

use crate::contrast::{Normalizer, OtherPositives, Pairs, Problem};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Score vectors.
    Raw,
    /// Class distributions.
    Soft,
}

/// One problem.
#[derive(Debug, Clone, Copy)]
pub struct Discrimination<'a> {
    /// New embeddings `[B, dim]`.
    pub queries: &'a [f64],
    /// Old embeddings `[N, dim]`.
    pub keys: &'a [f64],
    /// The dimension.
    pub dim: usize,
    /// The classifier `[C, dim]` that scores the queries.
    pub weights: &'a [f64],
    /// The classifier that scores the keys: the same numbers, but a constant.
    pub key_weights: &'a [f64],
    /// Whether its rows are normalized.
    pub normalize_rows: bool,
    /// The factor s of the scores.
    pub scale: f64,
    /// Cosines in place of inner products.
    pub cosine: bool,
    /// One temperature τ₂ for all.
    pub temperature: f64,
    /// The pairs.
    pub pairs: &'a Pairs,
    /// What divides the weights of a row's positives.
    pub normalizer: Normalizer,
    /// Where the other positives stand.
    pub other_positives: OtherPositives,
}

/// Losses and gradients of the mean over the counted rows.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The mean of `per_row` over the counted rows; 0 when none counts.
    pub loss: f64,
    /// L_i.
    pub per_row: Vec<f64>,
    /// ∂loss/∂z, `[B, dim]`.
    pub queries: Vec<f64>,
    /// ∂loss/∂W, `[C, dim]`, through the queries' scores only.
    pub weights: Vec<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn normalized(x: &[f64]) -> Vec<f64> {
    let norm = dot(x, x).sqrt();
    x.iter().map(|v| v / norm).collect()
}

/// Gradient of x/‖x‖ applied to g.
fn through_norm(x: &[f64], g: &[f64]) -> Vec<f64> {
    let norm = dot(x, x).sqrt();
    let along = dot(x, g) / (norm * norm);
    x.iter().zip(g).map(|(x, g)| (g - x * along) / norm).collect()
}

/// softmax(x).
pub fn softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let e: Vec<f64> = x.iter().map(|v| (v - max).exp()).collect();
    let z: f64 = e.iter().sum();
    e.iter().map(|v| v / z).collect()
}

impl Discrimination<'_> {
    fn classes(&self) -> usize {
        self.weights.len() / self.dim
    }

    /// ℓ(v).
    fn scores(&self, weights: &[f64], v: &[f64]) -> Vec<f64> {
        weights
            .chunks_exact(self.dim)
            .map(|w| self.scale * if self.normalize_rows { dot(&normalized(w), v) } else { dot(w, v) })
            .collect()
    }

    fn feature(&self, form: Form, scores: &[f64]) -> Vec<f64> {
        let f = if form == Form::Soft { softmax(scores) } else { scores.to_vec() };
        if self.cosine { normalized(&f) } else { f }
    }

    /// ∂/∂ℓ from ∂/∂feature.
    fn through_feature(&self, form: Form, scores: &[f64], g: &[f64]) -> Vec<f64> {
        let f = if form == Form::Soft { softmax(scores) } else { scores.to_vec() };
        let g = if self.cosine { through_norm(&f, g) } else { g.to_vec() };
        if form == Form::Raw {
            return g;
        }
        let along = dot(&f, &g);
        f.iter().zip(&g).map(|(p, g)| p * (g - along)).collect()
    }

    /// Gradients at z and W from those at the queries' scores `[B, C]`.
    fn through_scores(&self, g: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (c, d) = (self.classes(), self.dim);
        let mut queries = vec![0.0; self.queries.len()];
        let mut weights = vec![0.0; self.weights.len()];
        for (i, g) in g.chunks_exact(c).enumerate() {
            let z = &self.queries[i * d..][..d];
            for (class, g) in g.iter().enumerate() {
                let w = &self.weights[class * d..][..d];
                let row = if self.normalize_rows { normalized(w) } else { w.to_vec() };
                let along: Vec<f64> = z.iter().map(|z| g * self.scale * z).collect();
                let along = if self.normalize_rows { through_norm(w, &along) } else { along };
                for k in 0..d {
                    queries[i * d + k] += g * self.scale * row[k];
                    weights[class * d + k] += along[k];
                }
            }
        }
        (queries, weights)
    }

    /// The contrastive loss of score vectors or of distributions.
    pub fn contrast(&self, form: Form) -> Outcome {
        let scores: Vec<Vec<f64>> =
            self.queries.chunks_exact(self.dim).map(|z| self.scores(self.weights, z)).collect();
        let own: Vec<f64> = scores.iter().flat_map(|s| self.feature(form, s)).collect();
        let keys: Vec<f64> = self
            .keys
            .chunks_exact(self.dim)
            .flat_map(|k| self.feature(form, &self.scores(self.key_weights, k)))
            .collect();
        let problem = Problem {
            queries: &own,
            keys: &keys,
            dim: self.classes(),
            temperatures: &vec![self.temperature; self.pairs.queries],
            pairs: self.pairs,
            normalizer: self.normalizer,
            other_positives: self.other_positives,
        };
        let forward = problem.forward();
        let g = problem.mean_gradients().queries;
        let g: Vec<f64> = scores
            .iter()
            .zip(g.chunks_exact(self.classes()))
            .flat_map(|(s, g)| self.through_feature(form, s, g))
            .collect();
        let (queries, weights) = self.through_scores(&g);
        Outcome { loss: forward.loss, per_row: forward.per_row, queries, weights }
    }

    /// π(k_j) of every key.
    fn key_distributions(&self) -> Vec<Vec<f64>> {
        self.keys.chunks_exact(self.dim).map(|k| softmax(&self.scores(self.key_weights, k))).collect()
    }

    /// The mean teachers π̄_i `[B, C]` and which rows have one.
    pub fn teachers(&self) -> (Vec<f64>, Vec<bool>) {
        let (b, n, c) = (self.pairs.queries, self.pairs.keys, self.classes());
        let keys = self.key_distributions();
        let mut out = vec![0.0; b * c];
        let mut counted = vec![false; b];
        for i in 0..b {
            let total: f64 = (0..n).map(|j| self.weight(i, j)).sum();
            counted[i] = total > 0.0;
            for (j, p) in keys.iter().enumerate().filter(|_| total > 0.0) {
                (0..c).for_each(|k| out[i * c + k] += self.weight(i, j) / total * p[k]);
            }
        }
        (out, counted)
    }

    fn weight(&self, i: usize, j: usize) -> f64 {
        let at = i * self.pairs.keys + j;
        if self.pairs.positive[at] { self.pairs.weight[at] } else { 0.0 }
    }

    /// The divergence from the mean teacher.
    pub fn divergence(&self) -> Outcome {
        let (n, c) = (self.pairs.keys, self.classes());
        let (teachers, counted) = self.teachers();
        let keys = self.key_distributions();
        let count = counted.iter().filter(|x| **x).count().max(1) as f64;
        let mut per_row = vec![0.0; counted.len()];
        let mut g = vec![0.0; teachers.len()];
        for (i, z) in self.queries.chunks_exact(self.dim).enumerate().filter(|(i, _)| counted[*i]) {
            let own = softmax(&self.scores(self.weights, z));
            let total: f64 = (0..n).map(|j| self.weight(i, j)).sum();
            for (j, p) in keys.iter().enumerate() {
                let kl: f64 =
                    p.iter().zip(&own).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * (p.ln() - q.ln())).sum();
                per_row[i] += self.weight(i, j) / total * kl;
            }
            (0..c).for_each(|k| g[i * c + k] = (own[k] - teachers[i * c + k]) / count);
        }
        let (queries, weights) = self.through_scores(&g);
        Outcome { loss: per_row.iter().sum::<f64>() / count, per_row, queries, weights }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contrast::{affinity_half, cosine};

    fn angles(degrees: &[f64]) -> Vec<f64> {
        degrees.iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect()
    }

    /// The golden case: z {10°, 100°}, o {0°, 90°}, keys {0°, 90°, 30°, 200°} of labels {0, 1, 0, 1}.
    fn golden() -> (Vec<f64>, Vec<f64>, Vec<f64>, Pairs) {
        let (z, o, k) = (angles(&[10.0, 100.0]), angles(&[0.0, 90.0]), angles(&[0.0, 90.0, 30.0, 200.0]));
        let pairs = Pairs::new(2, 4, |i, j| i == j % 2)
            .weighted(|i, j| affinity_half(cosine(&o[2 * i..2 * i + 2], &k[2 * j..2 * j + 2])));
        (z, k, angles(&[0.0, 60.0, 90.0]), pairs)
    }

    #[test]
    fn golden_values() {
        let (z, k, w, pairs) = golden();
        let problem = Discrimination {
            queries: &z,
            keys: &k,
            dim: 2,
            weights: &w,
            key_weights: &w,
            normalize_rows: false,
            scale: 1.0,
            cosine: false,
            temperature: 1.0,
            pairs: &pairs,
            normalizer: Normalizer::Count,
            other_positives: OtherPositives::InDenominator,
        };
        assert!((problem.contrast(Form::Raw).loss - 0.861988919).abs() < 1e-9);
        // The rows have unit norm already.
        let normalized = Discrimination { normalize_rows: true, ..problem };
        assert!((normalized.contrast(Form::Raw).loss - 0.861988919).abs() < 1e-9);
        let soft = Discrimination { scale: 10.0, ..problem };
        assert!((soft.contrast(Form::Soft).loss - 0.900449111).abs() < 1e-9);
        let sharp = Discrimination { temperature: 0.1, ..soft };
        assert!((sharp.contrast(Form::Soft).loss - 1.542802788).abs() < 1e-9);
    }

    #[test]
    fn scores_factor_through_the_gram_matrix() {
        let (z, k, w, pairs) = golden();
        let gram = [1.25, 0.433012701892219, 0.433012701892219, 1.75];
        let projected: Vec<f64> = z
            .chunks_exact(2)
            .flat_map(|z| [z[0] * gram[0] + z[1] * gram[2], z[0] * gram[1] + z[1] * gram[3]])
            .collect();
        let problem = Problem {
            queries: &projected,
            keys: &k,
            dim: 2,
            temperatures: &[1.0, 1.0],
            pairs: &pairs,
            normalizer: Normalizer::Count,
            other_positives: OtherPositives::InDenominator,
        };
        assert!((problem.forward().loss - 0.861988919).abs() < 1e-9);
        assert_eq!(w.len(), 6);
    }

    #[test]
    fn gradients_pass_finite_differences() {
        let (z, k, w, pairs) = golden();
        let w: Vec<f64> = w.iter().enumerate().map(|(i, x)| x * (1.0 + 0.3 * i as f64)).collect();
        for normalize_rows in [false, true] {
            for cosine in [false, true] {
                for other_positives in [OtherPositives::InDenominator, OtherPositives::LeftOut] {
                    let at = |z: &[f64], w_new: &[f64], form: Option<Form>| {
                        let problem = Discrimination {
                            queries: z,
                            keys: &k,
                            dim: 2,
                            weights: w_new,
                            key_weights: &w,
                            normalize_rows,
                            scale: 2.0,
                            cosine,
                            temperature: 0.5,
                            pairs: &pairs,
                            normalizer: Normalizer::WeightSum,
                            other_positives,
                        };
                        match form {
                            Some(form) => problem.contrast(form),
                            None => problem.divergence(),
                        }
                    };
                    for form in [Some(Form::Raw), Some(Form::Soft), None] {
                        let out = at(&z, &w, form);
                        let check = |x: &[f64], g: &[f64], f: &dyn Fn(&[f64]) -> f64| {
                            for i in 0..x.len() {
                                let h = 1e-6;
                                let mut moved = x.to_vec();
                                moved[i] = x[i] + h;
                                let up = f(&moved);
                                moved[i] = x[i] - h;
                                let slope = (up - f(&moved)) / (2.0 * h);
                                assert!((slope - g[i]).abs() < 1e-7, "{form:?} {i}: {slope} vs {}", g[i]);
                            }
                        };
                        check(&z, &out.queries, &|z| at(z, &w, form).loss);
                        check(&w, &out.weights, &|w| at(&z, w, form).loss);
                        assert!(out.weights.iter().any(|g| g.abs() > 1e-3));
                    }
                }
            }
        }
    }

    #[test]
    fn one_teacher_is_plain_divergence_and_none_counts_nothing() {
        let (z, k, w, _) = golden();
        let pairs = Pairs::new(2, 4, |i, j| i == 0 && j == 2).weighted(|_, _| 0.3);
        let problem = Discrimination {
            queries: &z,
            keys: &k,
            dim: 2,
            weights: &w,
            key_weights: &w,
            normalize_rows: true,
            scale: 3.0,
            cosine: false,
            temperature: 1.0,
            pairs: &pairs,
            normalizer: Normalizer::Count,
            other_positives: OtherPositives::InDenominator,
        };
        let (teachers, counted) = problem.teachers();
        assert_eq!(counted, [true, false]);
        let truth = softmax(&problem.scores(&w, &k[4..6]));
        assert!(teachers[..3].iter().zip(&truth).all(|(a, b)| (a - b).abs() < 1e-15));
        let out = problem.divergence();
        assert_eq!(out.per_row[1], 0.0);
        assert_eq!(&out.queries[2..], [0.0, 0.0]);
        assert!(out.loss > 0.0 && out.loss == out.per_row[0]);
    }
}
