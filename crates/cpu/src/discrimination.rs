//! The discrimination space: the weighted mean of the class distributions of an anchor's positives.
//!
//! With class scores ℓ_c(v) = scale·⟨w_c, v⟩ and π(v) = softmax(ℓ(v)), an anchor's teacher is
//! π̄_i = Σ_j w̄_ij π(k_j) over its positives, w̄ = w/Σw (the "mean teachers" of Wu et al. 2022). Keys are streamed in
//! tiles, only those that are somebody's positive are scored, and neither B × N nor N × C is ever written: beside the
//! result `[B, C]` the memory is one tile of distributions.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rayon::prelude::*;

use crate::contrast::{Plan, Problem, view_row};
use crate::{Error, Result, Rows, simd, tile};

const OP: &str = "discrimination";

/// Distributions held at once, in numbers: 16 MiB.
const TILE_NUMBERS: usize = 1 << 22;
const LARGEST_TILE: usize = 256;

const LANES: usize = 16;

/// The teachers of every anchor.
#[derive(Debug, Clone, Default)]
pub struct MeanTeachers {
    /// π̄_i, `[B, C]`; zeros where there is no positive.
    pub distributions: Vec<f32>,
    /// Σ_j w̄_ij H(π(k_j)), `[B]`: what the divergence is less than the cross-entropy.
    pub entropies: Vec<f32>,
    /// Which rows have positives of positive weight.
    pub counted: Vec<bool>,
}

/// One tile of class distributions.
struct Tile {
    distributions: Vec<f32>,
    entropies: Vec<f64>,
}

/// Computes every anchor's mean teacher. `weights` are the rows w_c `[C, D]` of the classifier.
///
/// The bits of a row depend neither on the other rows nor on the threads.
///
/// # Errors
/// [`Error::Shape`] when the classifier's dimension is not the keys', [`Error::Empty`] without a class,
/// [`Error::Range`] for a scale that is not finite, [`Error::NotFinite`] for rows of the classifier.
pub fn mean_teachers(
    problem: &Problem<'_>,
    plan: &Plan,
    weights: &Rows<'_>,
    scale: f32,
) -> Result<MeanTeachers> {
    let (b, n, d, classes) =
        (problem.queries.rows(), problem.keys.rows(), problem.keys.cols(), weights.rows());
    if classes == 0 {
        return Err(Error::Empty { op: OP, argument: "weights" });
    }
    if weights.cols() != d {
        let expected = format!("[C, {d}], the dimension of the keys");
        return Err(Error::shape(OP, "weights", &[classes, weights.cols()], expected));
    }
    if !scale.is_finite() {
        return Err(Error::range(OP, "scale", scale, "a finite number"));
    }
    weights.check_finite(OP, "weights")?;
    // Padded with zero rows to the smallest tile whose bits do not depend on its shape.
    let width = classes.max(tile::MIN_COLS);
    let mut rows = vec![0.0f32; width * d];
    weights.load(0..classes, &mut rows);
    rows[..classes * d].iter_mut().for_each(|w| *w *= scale);
    let step = (TILE_NUMBERS / width).clamp(tile::MIN_ROWS, LARGEST_TILE);

    let wanted = wanted_keys(problem, plan);
    let mut place = vec![0u32; n];
    let mut distributions = vec![0.0f32; b * classes];
    let mut sums = vec![(0.0f64, 0.0f64); b];
    // A row adds its positives in the order of the keys, one by one: where a tile ends changes no bit.
    for keys in wanted.chunks(step) {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
        keys.iter().zip(0u32..).for_each(|(key, at)| place[*key as usize] = at);
        let range = *first as usize..*last as usize + 1;
        let tile = score(problem, keys, &rows, (classes, width));
        distributions.par_chunks_exact_mut(classes).zip(&mut sums).enumerate().for_each_init(
            || (Vec::new(), Vec::new()),
            |(old_query, old_key), (row, (out, (weight, entropy)))| {
                plan.weighted_positives(problem, row, range.clone(), (old_query, old_key), |key, w| {
                    let at = place[key] as usize;
                    simd::axpy(w, &tile.distributions[at * width..][..classes], out);
                    *weight += f64::from(w);
                    *entropy += f64::from(w) * tile.entropies[at];
                });
            },
        );
    }
    distributions.par_chunks_exact_mut(classes).zip(&sums).for_each(|(out, (weight, _))| {
        if *weight > 0.0 {
            simd::scale((1.0 / weight) as f32, out);
        }
    });
    Ok(MeanTeachers {
        distributions,
        entropies: sums.iter().map(|(w, h)| if *w > 0.0 { (h / w) as f32 } else { 0.0 }).collect(),
        counted: sums.iter().map(|(w, _)| *w > 0.0).collect(),
    })
}

/// The keys that are somebody's positive, ascending.
fn wanted_keys(problem: &Problem<'_>, plan: &Plan) -> Vec<u32> {
    let n = problem.keys.rows();
    let marks: Vec<AtomicBool> = (0..n).map(|_| AtomicBool::new(false)).collect();
    (0..problem.queries.rows())
        .into_par_iter()
        .for_each(|row| plan.each_positive(problem, row, 0..n, |key, _| marks[key].store(true, Relaxed)));
    marks.iter().zip(0u32..).filter(|(mark, _)| mark.load(Relaxed)).map(|(_, key)| key).collect()
}

/// The distributions of some keys.
fn score(problem: &Problem<'_>, keys: &[u32], rows: &[f32], (classes, width): (usize, usize)) -> Tile {
    const GROUP: usize = 16;
    let d = problem.keys.cols();
    let mut distributions = vec![0.0f32; keys.len() * width];
    let mut entropies = vec![0.0f64; keys.len()];
    distributions
        .par_chunks_mut(GROUP * width)
        .zip(entropies.par_chunks_mut(GROUP))
        .zip(keys.par_chunks(GROUP))
        .for_each_init(
            || (vec![0.0f32; GROUP * d], Vec::new(), vec![0.0f32; tile::MIN_ROWS * width]),
            |(block, buffer, padded), ((out, entropies), keys)| {
                for (slot, key) in block.chunks_exact_mut(d).zip(keys) {
                    slot.copy_from_slice(view_row(&problem.keys, *key as usize, buffer));
                }
                // The last group may be short of rows; its results are as those of whole groups.
                if keys.len() < tile::MIN_ROWS {
                    block[keys.len() * d..].fill(0.0);
                    tile::scores((tile::MIN_ROWS, width, d), (block, d), (rows, d), (padded, width));
                    out.copy_from_slice(&padded[..out.len()]);
                } else {
                    tile::scores((keys.len(), width, d), (block, d), (rows, d), (out, width));
                }
                for (row, entropy) in out.chunks_exact_mut(width).zip(entropies) {
                    *entropy = softmax(&mut row[..classes]);
                }
            },
        );
    Tile { distributions, entropies }
}

/// Softmax in place; returns the entropy in nats. Sums run in [`LANES`] fixed lanes of f64.
fn softmax(scores: &mut [f32]) -> f64 {
    simd::dispatch(
        #[inline(always)]
        || {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for block in scores.chunks(LANES) {
                for (m, s) in largest.iter_mut().zip(block) {
                    *m = if *s > *m { *s } else { *m };
                }
            }
            let max = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // H = ln Z − Σ p s with the shifted scores s; e^s underflows to 0 only where p s vanishes too.
            let (mut z, mut along) = ([0.0f64; LANES], [0.0f64; LANES]);
            let blocks = scores.len() - scores.len() % LANES;
            let (whole, rest) = scores.split_at_mut(blocks);
            for block in whole.chunks_exact_mut(LANES) {
                for l in 0..LANES {
                    let shifted = block[l] - max;
                    let e = simd::exp_inline(shifted);
                    z[l] += f64::from(e);
                    along[l] += f64::from(e) * f64::from(shifted);
                    block[l] = e;
                }
            }
            for (l, s) in rest.iter_mut().enumerate() {
                let shifted = *s - max;
                let e = simd::exp_inline(shifted);
                z[l] += f64::from(e);
                along[l] += f64::from(e) * f64::from(shifted);
                *s = e;
            }
            let (z, along): (f64, f64) = (z.iter().sum(), along.iter().sum());
            let scale = (1.0 / z) as f32;
            scores.iter_mut().for_each(|s| *s *= scale);
            (z.ln() - along / z).max(0.0)
        },
    )
}
