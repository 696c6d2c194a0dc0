//! The discrimination space: new and old embeddings compared by the class scores that the new classifier gives them.
//!
//! Wu et al. (AAAI 2022) align class scores of a new embedding with those of several old ones; since the old
//! classifier is not at hand, both are scored by the *new* one: ℓ(v) = s·W v. Three forms are offered.

use candle_core::{D, DType, Tensor, Var};
use consonance_cpu::contrast::{Options as ContrastOptions, Plan};
use consonance_cpu::discrimination::mean_teachers;

use super::contrast::{Contrast, Normalizer, Pairs, Temperature, contrast, data::Data};
use super::place::Place;
use super::view::Matrix;
use crate::{Error, Result};

const OP: &str = "discrimination";
/// Keys whose scores or norms are computed at once.
const CHUNK: usize = 1024;
/// The smallest norm that is divided by: shorter vectors count as zero.
const SMALLEST_NORM: f64 = 1e-12;

/// How embeddings are scored, and the form of the contrast.
#[derive(Debug, Clone)]
pub struct DiscriminationOptions {
    /// Scores against rows of unit norm (the default), or against the rows as they are.
    pub normalize_rows: bool,
    /// Factor s of the scores; divide it by T for softmax(ℓ/T). 1 by default.
    pub scale: f64,
    /// Cosines of score vectors (of distributions) in place of inner products.
    pub cosine: bool,
    /// Normalizer and place of the other positives.
    pub contrast: ContrastOptions,
}

impl Default for DiscriminationOptions {
    fn default() -> Self {
        Self { normalize_rows: true, scale: 1.0, cosine: false, contrast: ContrastOptions::default() }
    }
}

/// The result of [`discrimination_kl`].
#[derive(Debug, Clone)]
pub struct DiscriminationDivergence {
    /// Scalar `f32`: the mean of `per_row` over the counted anchors, 0 when there is none. Differentiable.
    pub loss: Tensor,
    /// `[B]` `f32`: Σ_j w̄_ij KL(π(k_j) ‖ π(z_i)); 0 for rows that do not count. Differentiable.
    pub per_row: Tensor,
    /// `[B, C]` `f32`, a constant: the mean teacher π̄_i.
    pub teachers: Tensor,
    /// The number of rows with a positive of positive weight.
    pub anchors: usize,
}

fn floats(argument: &'static str, x: &Tensor, cols: Option<usize>) -> Result<usize> {
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::DType { op: OP, argument, got: x.dtype(), expected: "f32, f16 or bf16" });
    }
    let &[rows, got] = x.dims() else {
        return Err(Error::Rank { op: OP, argument, got: x.rank(), expected: "a matrix [rows, dimension]" });
    };
    if rows == 0 {
        return Err(consonance_cpu::Error::Empty { op: OP, argument }.into());
    }
    if cols.is_some_and(|cols| cols != got) {
        let expected = format!("[rows, {}], the dimension of the queries", cols.unwrap_or(0));
        return Err(consonance_cpu::Error::shape(OP, argument, x.dims(), expected).into());
    }
    Ok(got)
}

fn check(queries: &Tensor, keys: &Tensor, weights: &Tensor, options: &DiscriminationOptions) -> Result<()> {
    let d = floats("queries", queries, None)?;
    floats("keys", keys, Some(d))?;
    floats("weights", weights, Some(d))?;
    if !(options.scale.is_finite() && options.scale > 0.0) {
        let expected = "finite and above 0";
        return Err(consonance_cpu::Error::range(OP, "scale", options.scale, expected).into());
    }
    Ok(())
}

fn norms(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    Ok(squares.maximum(SMALLEST_NORM * SMALLEST_NORM)?.sqrt()?)
}

/// The rows of the classifier in f32, of unit norm where asked; tracked.
fn classifier(weights: &Tensor, options: &DiscriminationOptions) -> Result<Tensor> {
    let w = weights.to_dtype(DType::F32)?;
    let w = if options.normalize_rows { w.broadcast_div(&norms(&w)?)? } else { w };
    Ok((w * options.scale)?)
}

/// Applies `f` to the keys in chunks of rows, as f32 constants, into one tensor `[N, cols]`.
fn in_chunks(keys: &Tensor, cols: usize, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    in_chunks_and_zeros(keys, (0, cols), f)
}

/// The same, with rows of zeros behind.
fn in_chunks_and_zeros(
    keys: &Tensor,
    (zeros, cols): (usize, usize),
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let n = keys.dim(0)?;
    let out = Tensor::zeros((n + zeros, cols), DType::F32, keys.device())?;
    for start in (0..n).step_by(CHUNK) {
        let chunk =
            keys.narrow(0, start, CHUNK.min(n - start))?.detach().to_dtype(DType::F32)?.contiguous()?;
        out.slice_set(&f(&chunk)?.contiguous()?, 0, start)?;
    }
    Ok(out)
}

/// Contrast of score vectors: t_ij = ⟨ℓ(z_i), sg ℓ(k_j)⟩/τ₂ in place of ⟨z_i, k_j⟩/τ.
///
/// - `queries` `[B, D]` and `keys` `[N, D]`: new and old embeddings, f32, f16 or bf16;
/// - `weights` `[C, D]`: the classifier's rows, normalized here unless told otherwise.
///
/// Linear scores factor, ⟨W z, W k⟩ = zᵀ(WᵀW)k, so nothing C-wide is computed: the queries are multiplied by the
/// D × D matrix G = Wᵀ sg(W), and an ordinary [`contrast`] against the keys follows. The gradient arrives at the
/// queries and, through the first factor only (the keys' scores are constants), at the classifier; never at the keys.
/// Equal to contrasting explicit score vectors up to rounding.
///
/// With cosines the keys are divided by ‖ℓ(k_j)‖ = √(kᵀGk): one copy of the keys, `[N, D]` in f32.
///
/// # Errors
/// Those of [`contrast`]; [`Error::Argument`] for a classifier of another dimension or a scale out of range.
pub fn discrimination_raw(
    queries: &Tensor,
    keys: &Tensor,
    weights: &Tensor,
    temperature: &Temperature,
    pairs: &Pairs,
    options: &DiscriminationOptions,
) -> Result<Contrast> {
    check(queries, keys, weights, options)?;
    let w = classifier(weights, options)?;
    let z = queries.to_dtype(DType::F32)?;
    let projected = z.matmul(&w.t()?.matmul(&w.detach())?)?;
    if !options.cosine {
        return contrast(&projected, &keys.detach(), temperature, pairs, &options.contrast);
    }
    // Both factors of ‖ℓ(z)‖ depend on z and W.
    let own = (z.matmul(&w.t()?.matmul(&w)?)? * &z)?.sum_keepdim(1)?;
    let own = own.maximum(SMALLEST_NORM * SMALLEST_NORM)?.sqrt()?;
    let gram = w.detach().t()?.matmul(&w.detach())?;
    let keys = in_chunks(keys, z.dim(1)?, |k| {
        let squares = (k.matmul(&gram)? * k)?.sum_keepdim(1)?;
        Ok(k.broadcast_div(&squares.maximum(SMALLEST_NORM * SMALLEST_NORM)?.sqrt()?)?)
    })?;
    contrast(&projected.broadcast_div(&own)?, &keys, temperature, pairs, &options.contrast)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let shifted = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?)
}

fn log_softmax(scores: &Tensor) -> Result<Tensor> {
    let scores = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?;
    Ok(scores.broadcast_sub(&scores.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Contrast of class distributions: t_ij = ⟨π(z_i), sg π(k_j)⟩/τ₂ with π(v) = softmax(ℓ(v)), the soft multi-labels.
///
/// Arguments as [`discrimination_raw`]; the softening T is part of the scale, s/T. The softmax does not factor: the
/// distributions of all keys are held, `[N, C]` in f32, which a queue of some thousand keys affords and a bank of
/// millions does not; [`discrimination_kl`] does without. The gradient arrives at the queries and the classifier.
///
/// # Errors
/// As [`discrimination_raw`].
pub fn discrimination_soft(
    queries: &Tensor,
    keys: &Tensor,
    weights: &Tensor,
    temperature: &Temperature,
    pairs: &Pairs,
    options: &DiscriminationOptions,
) -> Result<Contrast> {
    check(queries, keys, weights, options)?;
    let w = classifier(weights, options)?;
    let spread = |x: &Tensor, w: &Tensor| -> Result<Tensor> {
        let p = softmax(&x.matmul(&w.t()?)?)?;
        if options.cosine { Ok(p.broadcast_div(&norms(&p)?)?) } else { Ok(p) }
    };
    let own = spread(&queries.to_dtype(DType::F32)?, &w)?;
    let constant = w.detach();
    let keys = in_chunks(keys, w.dim(0)?, |k| spread(k, &constant))?;
    contrast(&own, &keys, temperature, pairs, &options.contrast)
}

/// Divergence from the mean teacher: L_i = Σ_j w̄_ij KL(sg π(k_j) ‖ π(z_i)), w̄ = w/Σw over the positives.
///
/// Arguments as [`discrimination_soft`]. Up to a constant this is the cross-entropy of π(z_i) against
/// π̄_i = Σ_j w̄_ij π(k_j), so one C-wide target an anchor is all that is kept: the keys are streamed in tiles, and
/// beside `[B, C]` no matrix is written. Of the pairs only positives and their weights matter; the keys outside count
/// for nothing. The gradient arrives at the queries and, through π(z_i), at the classifier.
///
/// On a GPU the mean teachers come from the kernels of [`contrast`], with the positives alone in a row, and the
/// distributions of all keys are held, `[N, C + 1]` in f32.
///
/// # Errors
/// As [`discrimination_raw`].
pub fn discrimination_kl(
    queries: &Tensor,
    keys: &Tensor,
    weights: &Tensor,
    pairs: &Pairs,
    options: &DiscriminationOptions,
) -> Result<DiscriminationDivergence> {
    check(queries, keys, weights, options)?;
    let w = classifier(weights, options)?;
    let (teachers, entropies, anchors) = match Place::of(OP, "queries", queries)? {
        Some(_) => teachers_by_kernels(queries, keys, &w.detach(), pairs)?,
        None => teachers_on_cpu(queries, keys, &w, pairs, options)?,
    };
    let log = log_softmax(&queries.to_dtype(DType::F32)?.matmul(&w.t()?)?)?;
    let per_row = ((&teachers * log)?.sum(1)?.neg()? - entropies)?;
    let loss = (per_row.sum_all()? * (1.0 / anchors.max(1) as f64))?;
    Ok(DiscriminationDivergence { loss, per_row, teachers, anchors })
}

/// π̄_i `[B, C]`, Σ_j w̄_ij H(π(k_j)) `[B]` and the number of rows with positives.
type Teachers = (Tensor, Tensor, usize);

fn teachers_on_cpu(
    queries: &Tensor,
    keys: &Tensor,
    w: &Tensor,
    pairs: &Pairs,
    options: &DiscriminationOptions,
) -> Result<Teachers> {
    let (b, n, classes) = (queries.dim(0)?, keys.dim(0)?, w.dim(0)?);
    let views = (
        Matrix::new(OP, "queries", queries)?,
        Matrix::new(OP, "keys", keys)?,
        Matrix::new(OP, "weights", w)?,
    );
    let guards = (views.0.lock(), views.1.lock(), views.2.lock());
    let rows = guards.2.rows()?;
    let found = Data::read(pairs, b, n)?.with_problem(
        guards.0.rows()?,
        guards.1.rows()?,
        &[1.0],
        &options.contrast,
        |problem| Ok(mean_teachers(problem, &Plan::new(problem)?, &rows, 1.0)?),
    )?;
    let anchors = found.counted.iter().filter(|c| **c).count();
    let teachers = Tensor::from_vec(found.distributions, (b, classes), queries.device())?;
    Ok((teachers, Tensor::from_vec(found.entropies, b, queries.device())?, anchors))
}

/// As gradients of a contrast at queries of zeros, against the distributions with their entropies in one more column.
fn teachers_by_kernels(queries: &Tensor, keys: &Tensor, w: &Tensor, pairs: &Pairs) -> Result<Teachers> {
    let (b, n, classes) = (queries.dim(0)?, keys.dim(0)?, w.dim(0)?);
    let device = queries.device();
    // The key more, of zeros, is what the denominators hold.
    let values = in_chunks_and_zeros(keys, (1, classes + 1), |k| {
        let log = log_softmax(&k.matmul(&w.t()?)?)?;
        let p = log.exp()?;
        let entropy = (&p * log)?.sum_keepdim(1)?.neg()?;
        Ok(Tensor::cat(&[p, entropy], 1)?)
    })?;
    let zeros = Var::zeros((b, classes + 1), DType::F32, device)?;
    let sums = ContrastOptions { normalizer: Normalizer::WeightSum, ..ContrastOptions::default() };
    let alone = pairs.alone(b, n, device)?;
    let found = contrast(zeros.as_tensor(), &values, &Temperature::Fixed(1.0), &alone, &sums)?;
    let gradients = found.per_row.sum_all()?.backward()?;
    let mean = gradients.get(&zeros).map_or_else(|| zeros.zeros_like(), Tensor::neg)?;
    let (teachers, entropies) = (mean.narrow(1, 0, classes)?, mean.narrow(1, classes, 1)?);
    Ok((teachers.contiguous()?, entropies.flatten_all()?, found.anchors))
}
