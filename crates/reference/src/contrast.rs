//! The weighted multi-positive contrastive loss, with every pair written out.
//!
//! With scores s_ij = ⟨x_i, y_j⟩/τ_i, a set of positives P(i) with weights w_ij ≥ 0, denominator weights
//! u_ij ≥ 0 and a normalizer n_i (|P(i)| or Σ_P w_ij), a_ij = w_ij/n_i on P(i) and 0 elsewhere:
//!
//! * other positives in the denominator (SupCon, "outside" form; Khosla et al. 2020, eq. 2, and the
//!   neighborhood loss of Wu et al. 2022):
//!   L_i = Σ_j a_ij (lse_i − s_ij), lse_i = ln Σ_k u_ik e^{s_ik}, ∂L_i/∂s_ij = A_i p_ij − a_ij;
//! * other positives left out (each positive competes with the non-positives alone):
//!   L_i = Σ_j a_ij (ln(e^{s_ij} + Z_i) − s_ij) = Σ_j a_ij ln(1 + Z_i e^{−s_ij}), Z_i = Σ_{k∉P(i)} u_ik e^{s_ik};
//!   with q_ij = σ(ln Z_i − s_ij): ∂L_i/∂s_ij = −a_ij q_ij on P(i) and (Σ_j a_ij q_ij) u_ik e^{s_ik}/Z_i elsewhere.
//!
//! A row whose normalizer is zero has no positive: it adds zero and is not counted. So does, in the first form,
//! a row whose denominator is empty. In the second form an empty Z_i makes the row's loss zero, and it counts.

/// What divides the weights of a row's positives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalizer {
    /// The number of positives, |P(i)|.
    Count,
    /// The sum of their weights.
    WeightSum,
}

/// Where the other positives of an anchor stand when one of them is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherPositives {
    /// In the denominator, like every key.
    InDenominator,
    /// Nowhere: each positive competes with the non-positives.
    LeftOut,
}

/// The pairs of a problem as full `[queries, keys]` matrices.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// Number of queries.
    pub queries: usize,
    /// Number of keys.
    pub keys: usize,
    /// Whether key j is a positive of query i.
    pub positive: Vec<bool>,
    /// w_ij; read where `positive`.
    pub weight: Vec<f64>,
    /// u_ij; 0 takes key j out of row i's denominator.
    pub denominator: Vec<f64>,
}

impl Pairs {
    /// Positives by a predicate, weights 1, every key in every denominator.
    pub fn new(queries: usize, keys: usize, positive: impl Fn(usize, usize) -> bool) -> Self {
        let mut p = Vec::with_capacity(queries * keys);
        for i in 0..queries {
            for j in 0..keys {
                p.push(positive(i, j));
            }
        }
        Self {
            queries,
            keys,
            positive: p,
            weight: vec![1.0; queries * keys],
            denominator: vec![1.0; queries * keys],
        }
    }

    fn change(mut self, f: impl Fn(usize, usize, &mut bool, &mut f64, &mut f64)) -> Self {
        for i in 0..self.queries {
            for j in 0..self.keys {
                let at = i * self.keys + j;
                f(i, j, &mut self.positive[at], &mut self.weight[at], &mut self.denominator[at]);
            }
        }
        self
    }

    /// Multiplies the weights of the positives.
    pub fn weighted(self, w: impl Fn(usize, usize) -> f64) -> Self {
        self.change(|i, j, _, weight, _| *weight *= w(i, j))
    }

    /// Keys that are not valid leave numerator and denominator.
    pub fn valid(self, valid: impl Fn(usize) -> bool) -> Self {
        self.change(|_, j, positive, _, u| {
            if !valid(j) {
                (*positive, *u) = (false, 0.0);
            }
        })
    }

    /// Keys that are not credible are no positives; they stay in the denominator.
    pub fn credible_positives(self, credible: impl Fn(usize) -> bool) -> Self {
        self.change(|_, j, positive, _, _| *positive &= credible(j))
    }

    /// Multiplies the denominator weights by u_j.
    pub fn denominator_weights(self, weights: &[f64]) -> Self {
        self.change(|_, j, _, _, u| *u *= weights[j])
    }

    /// Pairs of equal id leave numerator and denominator.
    pub fn ignore_same_id(self, query_ids: &[u32], key_ids: &[u32]) -> Self {
        self.change(|i, j, positive, _, u| {
            if query_ids[i] == key_ids[j] {
                (*positive, *u) = (false, 0.0);
            }
        })
    }

    /// Keys of the row's label that are not positives leave the denominator. Call it last.
    pub fn leave_out_same_label(self, query_labels: &[u32], key_labels: &[u32]) -> Self {
        self.change(|i, j, positive, _, u| {
            if query_labels[i] == key_labels[j] && !*positive {
                *u = 0.0;
            }
        })
    }

    /// Multiplies the denominator weights of pairs that are not positive by u_ij. Call it after the positives are known.
    pub fn paced(self, weight: impl Fn(usize, usize) -> f64) -> Self {
        self.change(|i, j, positive, _, u| {
            if !*positive {
                *u *= weight(i, j);
            }
        })
    }

    /// The same pairs with queries and keys exchanged; denominators do not carry over where they differ by key.
    pub fn transposed(&self) -> Self {
        let at = |t: usize| (t % self.queries) * self.keys + t / self.queries;
        let n = self.queries * self.keys;
        Self {
            queries: self.keys,
            keys: self.queries,
            positive: (0..n).map(|t| self.positive[at(t)]).collect(),
            weight: (0..n).map(|t| self.weight[at(t)]).collect(),
            denominator: (0..n).map(|t| self.denominator[at(t)]).collect(),
        }
    }
}

/// The cosine of two rows.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// ½(1 + cos): the affinity of Wu et al. 2022 as published code has it.
pub fn affinity_half(cosine: f64) -> f64 {
    0.5 * (1.0 + cosine)
}

/// e^{(cos − 1)/τ}: an affinity that forgets distant sub-clusters faster.
pub fn affinity_exp(cosine: f64, temperature: f64) -> f64 {
    ((cosine - 1.0) / temperature).exp()
}

/// One problem.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[queries, dim]`.
    pub queries: &'a [f64],
    /// `[keys, dim]`.
    pub keys: &'a [f64],
    /// The embeddings' dimension.
    pub dim: usize,
    /// One temperature a query.
    pub temperatures: &'a [f64],
    /// The pairs.
    pub pairs: &'a Pairs,
    /// What divides the weights.
    pub normalizer: Normalizer,
    /// Where the other positives stand.
    pub other_positives: OtherPositives,
}

/// The forward result.
#[derive(Debug, Clone)]
pub struct Contrast {
    /// The mean of `per_row` over the counted rows; 0 when none counts.
    pub loss: f64,
    /// L_i; 0 for rows that do not count.
    pub per_row: Vec<f64>,
    /// ln of the denominator (without the positives when they are left out); −∞ when empty.
    pub log_sum_exp: Vec<f64>,
    /// Which rows count.
    pub counted: Vec<bool>,
    /// ∂L_i/∂s_ij, `[queries, keys]`.
    pub coefficients: Vec<f64>,
}

/// The gradients of Σ_i g_i L_i.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// `[queries, dim]`.
    pub queries: Vec<f64>,
    /// `[keys, dim]`.
    pub keys: Vec<f64>,
    /// One a query; a shared temperature takes their sum.
    pub temperatures: Vec<f64>,
}

impl Problem<'_> {
    fn score(&self, i: usize, j: usize) -> f64 {
        let (x, y) = (&self.queries[i * self.dim..][..self.dim], &self.keys[j * self.dim..][..self.dim]);
        x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() / self.temperatures[i]
    }

    /// Loss and ∂L_i/∂s_ij.
    pub fn forward(&self) -> Contrast {
        let (b, n) = (self.pairs.queries, self.pairs.keys);
        let mut out = Contrast {
            loss: 0.0,
            per_row: vec![0.0; b],
            log_sum_exp: vec![f64::NEG_INFINITY; b],
            counted: vec![false; b],
            coefficients: vec![0.0; b * n],
        };
        for i in 0..b {
            let at = |j: usize| i * n + j;
            let positive = |j: usize| self.pairs.positive[at(j)];
            let left_out = self.other_positives == OtherPositives::LeftOut;
            let u = |j: usize| if left_out && positive(j) { 0.0 } else { self.pairs.denominator[at(j)] };
            let s: Vec<f64> = (0..n).map(|j| self.score(i, j)).collect();
            let max = (0..n).filter(|&j| u(j) > 0.0).map(|j| s[j]).fold(f64::NEG_INFINITY, f64::max);
            let z: f64 = (0..n).filter(|&j| u(j) > 0.0).map(|j| u(j) * (s[j] - max).exp()).sum();
            let lse = if z > 0.0 { max + z.ln() } else { f64::NEG_INFINITY };
            out.log_sum_exp[i] = lse;
            let normalizer: f64 = (0..n)
                .filter(|&j| positive(j))
                .map(|j| match self.normalizer {
                    Normalizer::Count => 1.0,
                    Normalizer::WeightSum => self.pairs.weight[at(j)],
                })
                .sum();
            if normalizer <= 0.0 || (!left_out && z <= 0.0) {
                continue;
            }
            out.counted[i] = true;
            let a = |j: usize| if positive(j) { self.pairs.weight[at(j)] / normalizer } else { 0.0 };
            let p = |j: usize| if u(j) > 0.0 { u(j) * (s[j] - lse).exp() } else { 0.0 };
            if left_out {
                let q = |j: usize| 1.0 / (1.0 + (s[j] - lse).exp());
                let mass: f64 = (0..n).map(|j| a(j) * q(j)).sum();
                for (j, score) in s.iter().enumerate() {
                    let margin = lse - score;
                    let softplus =
                        if margin > 0.0 { margin + (-margin).exp().ln_1p() } else { margin.exp().ln_1p() };
                    out.per_row[i] += if positive(j) { a(j) * softplus } else { 0.0 };
                    out.coefficients[at(j)] = if positive(j) { -a(j) * q(j) } else { mass * p(j) };
                }
            } else {
                let mass: f64 = (0..n).map(a).sum();
                for (j, score) in s.iter().enumerate() {
                    out.per_row[i] += if positive(j) { a(j) * (lse - score) } else { 0.0 };
                    out.coefficients[at(j)] = mass * p(j) - a(j);
                }
            }
        }
        let counted = out.counted.iter().filter(|c| **c).count();
        if counted > 0 {
            out.loss = out.per_row.iter().sum::<f64>() / counted as f64;
        }
        out
    }

    /// The gradients of Σ_i `row_gradients[i]` · L_i.
    pub fn gradients(&self, row_gradients: &[f64]) -> Gradients {
        let (b, n, d) = (self.pairs.queries, self.pairs.keys, self.dim);
        let coefficients = self.forward().coefficients;
        let mut out =
            Gradients { queries: vec![0.0; b * d], keys: vec![0.0; n * d], temperatures: vec![0.0; b] };
        for i in 0..b {
            let tau = self.temperatures[i];
            for j in 0..n {
                let c = row_gradients[i] * coefficients[i * n + j];
                for k in 0..d {
                    out.queries[i * d + k] += c / tau * self.keys[j * d + k];
                    out.keys[j * d + k] += c / tau * self.queries[i * d + k];
                }
                out.temperatures[i] -= c * self.score(i, j) / tau;
            }
        }
        out
    }

    /// The gradients of the mean loss.
    pub fn mean_gradients(&self) -> Gradients {
        let counted = self.forward().counted.iter().filter(|c| **c).count().max(1) as f64;
        self.gradients(&vec![1.0 / counted; self.pairs.queries])
    }
}

#[cfg(test)]
#[path = "contrast_tests.rs"]
mod tests;
