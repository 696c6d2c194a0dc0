//! The contrastive loss over lists of bank rows.

use super::{
    Contrast, Forward, PADDING, Positives, Row, Running, TILE, check_indices, check_sides, check_temperature,
    each_row, least_bad, lesser, load, scores,
};
use crate::contrast::Normalizer;
use crate::{Error, Result, simd};

const OP: &str = "gathered_contrast";

fn check(problem: &Contrast<'_>) -> Result<()> {
    let Contrast { queries, bank, indices, columns, temperatures, positives, .. } = problem;
    check_sides(OP, ["queries", "bank"], queries, bank)?;
    let b = queries.rows();
    if temperatures.len() != 1 && temperatures.len() != b {
        let expected = format!("[1] or [{b}], one a query");
        return Err(Error::shape(OP, "temperature", &[temperatures.len()], expected));
    }
    check_temperature(OP, "temperature", temperatures)?;
    check_indices(OP, indices, (b, *columns), bank.rows())?;
    match positives {
        Positives::First(count) if *count == 0 || count > columns => {
            Err(Error::range(OP, "positives", count, format!("1..={columns}, the columns of a list")))
        }
        Positives::Weights(weights) if weights.len() != indices.len() => {
            Err(Error::shape(OP, "weights", &[weights.len()], format!("[{b}, {columns}], as the indices")))
        }
        Positives::Weights(weights) => {
            let bad = weights
                .iter()
                .zip(*indices)
                .position(|(w, index)| *index != PADDING && !(*w >= 0.0 && w.is_finite()));
            bad.map_or(Ok(()), |at| {
                let got = format!("{} at row {}", weights[at], at / columns);
                Err(Error::range(OP, "weights", got, "finite and at least 0"))
            })
        }
        Positives::First(_) => Ok(()),
    }
}

/// What a thread holds for a row: the query, a tile of listed rows, and sums.
struct Scratch {
    x: Vec<f32>,
    listed: Vec<u32>,
    weights: Vec<f32>,
    rows: Vec<f32>,
    scores: Vec<f32>,
    softmax: Running,
    /// Σ w y: never rescaled.
    targets: Running,
}

/// Computes every row's loss and, with `gradients`, ∂L_i/∂x_i and ∂L_i/∂τ_i in the same pass.
///
/// Extra memory is O(B·D) and a tile of 64 rows for each thread. The bits of a row depend neither on the other rows nor on
/// the threads.
///
/// # Errors
/// [`Error::Empty`], [`Error::Shape`] for sides, lists, weights and temperatures that disagree; [`Error::Range`] for
/// temperatures that are not finite and above 0, indices beyond the bank, weights below 0 or not finite, no or too many
/// first columns, and rows so large that sums leave `f32`; [`Error::NotFinite`] for queries and listed rows that are not
/// finite, or whose score is not.
pub fn contrast(problem: &Contrast<'_>, gradients: bool) -> Result<Forward> {
    check(problem)?;
    let (b, dim) = (problem.queries.rows(), problem.queries.cols());
    let scratch = || Scratch {
        x: vec![0.0; dim],
        listed: Vec::with_capacity(TILE),
        weights: Vec::with_capacity(TILE),
        rows: vec![0.0; TILE * dim],
        scores: Vec::with_capacity(TILE),
        softmax: Running::new(dim),
        targets: Running::new(dim),
    };
    each_row((OP, ["bank", "bank"]), (b, dim), gradients, scratch, |i, scratch, gradient| {
        row(problem, i, scratch, gradient)
    })
}

fn row(problem: &Contrast<'_>, i: usize, s: &mut Scratch, gradient: &mut [f32]) -> Row {
    let columns = problem.columns;
    let tau = problem.temperatures[if problem.temperatures.len() == 1 { 0 } else { i }];
    let scale = tau.recip();
    let indices = &problem.indices[i * columns..][..columns];
    problem.queries.load_row(i, &mut s.x);
    s.softmax.clear();
    s.targets.clear();
    let (mut weight, mut along, mut count) = (0.0f64, 0.0f64, 0usize);
    let mut bad = None;
    for first in (0..columns).step_by(TILE) {
        let tile = first..(first + TILE).min(columns);
        s.listed.clear();
        s.weights.clear();
        for c in tile.filter(|c| indices[*c] != PADDING) {
            s.listed.push(indices[c]);
            s.weights.push(match problem.positives {
                Positives::First(count) => f32::from(u8::from(c < count)),
                Positives::Weights(weights) => weights[i * columns + c],
            });
        }
        if s.listed.is_empty() {
            continue;
        }
        load(&problem.bank, &s.listed, &mut s.rows);
        simd::dispatch(
            #[inline(always)]
            || {
                scores(&s.x, &s.rows, s.listed.len(), scale, &mut s.scores);
                bad = lesser(bad, least_bad(&s.scores, &s.listed, false));
                for (score, w) in s.scores.iter().zip(&s.weights) {
                    if *w > 0.0 {
                        weight += f64::from(*w);
                        along += f64::from(*w) * f64::from(*score);
                        count += 1;
                    }
                }
                let factor = s.softmax.take(&mut s.scores);
                if !gradient.is_empty() {
                    s.softmax.add(&s.rows, &s.scores, factor);
                    if s.weights.iter().any(|w| *w > 0.0) {
                        s.targets.add(&s.rows, &s.weights, 1.0);
                    }
                }
            },
        );
    }
    let log_sum_exp = s.softmax.log_sum_exp();
    let normalizer = match problem.normalizer {
        Normalizer::Count => count as f64,
        Normalizer::WeightSum => weight,
    };
    let counted = count > 0;
    let mut temperature_gradient = 0.0;
    if counted && !gradient.is_empty() {
        let of_softmax = weight / s.softmax.sum;
        let outer = 1.0 / (normalizer * f64::from(tau));
        let mut sum = 0.0;
        for (((g, o), t), x) in
            gradient.iter_mut().zip(&s.softmax.weighted).zip(&s.targets.weighted).zip(&s.x)
        {
            let exact = (of_softmax * f64::from(*o) - f64::from(*t)) * outer;
            *g = exact as f32;
            sum += exact * f64::from(*x);
        }
        temperature_gradient = (-sum / f64::from(tau)) as f32;
    }
    let loss = if counted { (weight * log_sum_exp - along) / normalizer } else { 0.0 };
    Row { loss: loss as f32, log_sum_exp: log_sum_exp as f32, counted, temperature_gradient, bad }
}
