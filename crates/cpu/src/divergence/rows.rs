//! The row pass: both softmaxes of every row, their divergence and the queries' gradient in one sweep over the tiles.

use std::ops::Range;

use super::plan::{Plan, range, width};
use super::{Direction, Forward, OP, Problem};
use crate::contrast::exponentials::{LANES, exponential, fold, largest};
use crate::contrast::targets::{Loaded, load_block};
use crate::contrast::{SIDE, SPLIT, columns, stride};
use crate::parallel::each;
use crate::screen::Aligned;
use crate::{Error, Gradients, Result, simd, tile};

/// Rows of one block at most: the scores of both sides stay inside the second-level cache.
const BLOCK: usize = 128;

/// Queries whose coefficients are left to the backward pass at most, where all keys are one tile: half a megabyte of them.
const LARGEST_KEPT: usize = 256;

/// The sides, as indices of arrays.
const STUDENT: usize = 0;
const TEACHER: usize = 1;

/// What a sweep over some tiles knows of a block's rows, of student and teacher: Σ e^b = `sum` · e^`max`.
struct Partial {
    direction: Direction,
    max: [Vec<f32>; 2],
    sum: [Vec<f64>; 2],
    /// Forward Σ e^a (a − b), with the teacher's maximum; reverse Σ e^b (b − a), with the student's.
    along: Vec<f64>,
    /// Forward Σ e^b y and Σ e^a y, with the maximum of its own side; reverse Σ e^b y and Σ e^b (b − a) y, both with the
    /// student's.
    weighted: [Vec<f32>; 2],
    /// Rows of coefficients ∂L_i/∂s_ij · 1/T, where [`Plan::has_one_tile`]; then the first of `weighted` is their sum with the
    /// keys and there is no second.
    coefficients: Vec<f32>,
}

impl Partial {
    /// `known`: maxima of the teacher that are to be kept; −∞ for those that are not known.
    fn new(direction: Direction, rows: usize, known: Option<&[f32]>, weighted: usize) -> Self {
        let unknown = || vec![f32::NEG_INFINITY; rows];
        Self {
            direction,
            max: [unknown(), known.map_or_else(unknown, <[f32]>::to_vec)],
            sum: [vec![0.0; rows], vec![0.0; rows]],
            along: vec![0.0; rows],
            weighted: [vec![0.0; weighted], vec![0.0; weighted]],
            coefficients: Vec::new(),
        }
    }

    /// The mean difference of row `r`, and what the two sums are multiplied by to be the gradient.
    fn weights(&self, r: usize) -> (f64, [f64; 2]) {
        let inverse = |side: usize| if self.sum[side][r] > 0.0 { self.sum[side][r].recip() } else { 0.0 };
        match self.direction {
            Direction::Forward => (self.along[r] * inverse(TEACHER), [inverse(STUDENT), -inverse(TEACHER)]),
            Direction::Reverse => {
                let mean = self.along[r] * inverse(STUDENT);
                (mean, [-mean * inverse(STUDENT), inverse(STUDENT)])
            }
        }
    }

    /// Moves one side of row `r` to a larger maximum.
    fn rescale(&mut self, side: usize, r: usize, max: f32, width: usize) {
        let factor = exponential(self.max[side][r] - max);
        self.max[side][r] = max;
        self.sum[side][r] *= f64::from(factor);
        let (along, sums) = match self.direction {
            Direction::Forward => (side == TEACHER, side..side + 1),
            Direction::Reverse => (side == STUDENT, if side == STUDENT { 0..2 } else { 0..0 }),
        };
        if along {
            self.along[r] *= f64::from(factor);
        }
        for weighted in &mut self.weighted[sums] {
            if let Some(row) = weighted.get_mut(r * width..(r + 1) * width) {
                simd::scale(factor, row);
            }
        }
    }

    /// Adds the tiles after these.
    fn merge(&mut self, mut other: Self, width: usize) {
        // Of the only tile, so of one of both.
        self.coefficients.append(&mut other.coefficients);
        for r in 0..self.along.len() {
            if other.max[STUDENT][r] == f32::NEG_INFINITY {
                continue; // no key of this row
            }
            for side in [STUDENT, TEACHER] {
                let (mine, theirs) = (self.max[side][r], other.max[side][r]);
                if mine < theirs {
                    self.rescale(side, r, theirs, width);
                } else if theirs < mine {
                    other.rescale(side, r, mine, width);
                }
                self.sum[side][r] += other.sum[side][r];
            }
            self.along[r] += other.along[r];
            for (mine, theirs) in self.weighted.iter_mut().zip(&other.weighted) {
                if let Some(row) = mine.get_mut(r * width..(r + 1) * width) {
                    simd::axpy(1.0, &theirs[r * width..][..width], row);
                }
            }
        }
    }
}

/// Scratch of one worker.
#[derive(Default)]
struct Scratch {
    scores: [Aligned; 2],
    keys: [Vec<f32>; 2],
    bias: Vec<f32>,
}

/// A block of queries in memory.
struct Block<'a> {
    rows: Range<usize>,
    padded: usize,
    x: [Loaded<'a>; 2],
}

/// Scores of a row's tile into coefficients, in place: forward e^b and e^a, reverse e^b and e^b (b − a), all relative to
/// `shift`. Returns the sums of e^b, of e^a, and of the mean difference.
///
/// A bias of 0 gives the bits of no bias.
#[inline(always)]
fn coefficients<const REVERSE: bool>(
    student: &mut [f32],
    teacher: &mut [f32],
    bias: Option<&[f32]>,
    scale: [f32; 2],
    shift: [f32; 2],
) -> [f32; 3] {
    const NO_BIAS: [f32; LANES] = [0.0; LANES];
    let mut sums = [[0.0f32; LANES]; 3];
    let rows = student.chunks_exact_mut(LANES).zip(teacher.chunks_exact_mut(LANES));
    for (at, (student, teacher)) in rows.enumerate() {
        let bias = bias.map_or(&NO_BIAS[..], |bias| &bias[at * LANES..][..LANES]);
        for l in 0..LANES {
            let b = student[l].mul_add(scale[STUDENT], bias[l]);
            let a = teacher[l].mul_add(scale[TEACHER], bias[l]);
            let (p, q) = (simd::exp_inline(b - shift[STUDENT]), simd::exp_inline(a - shift[TEACHER]));
            let weight = if REVERSE { p } else { q };
            let difference = if REVERSE { b - a } else { a - b };
            // −∞ − (−∞) where the pair is not compared, and has no weight.
            let along = if weight > 0.0 { weight * difference } else { 0.0 };
            (student[l], teacher[l]) = (p, if REVERSE { along } else { q });
            sums[0][l] += p;
            sums[1][l] += q;
            sums[2][l] += along;
        }
    }
    sums.map(|lanes| fold(lanes, |a, b| a + b))
}

fn sweep(
    problem: &Problem<'_>,
    plan: &Plan,
    block: &Block<'_>,
    tiles: Range<usize>,
    gradients: Gradients,
    scratch: &mut Scratch,
) -> Partial {
    let sides = [&problem.student, &problem.teacher];
    let (rows, first, padded) = (block.rows.len(), block.rows.start, block.padded);
    let widths = sides.map(|side| width(&side.keys));
    let known = problem.teacher_log_sum_exp.map(|lse| &lse[block.rows.clone()]);
    let is_known = |r: usize| known.is_some_and(|known| known[r] > f32::NEG_INFINITY);
    let weighted = if gradients.queries { padded * widths[STUDENT] } else { 0 };
    let mut partial = Partial::new(problem.direction, rows, known, weighted);
    let stride = stride(problem.student.keys.rows());
    let masks = problem.excluded.same_id.is_some() || problem.excluded.diagonal;
    for t in tiles.filter(|t| plan.is_live(*t)) {
        let keys = range(t, problem.student.keys.rows());
        let columns = columns(keys.len());
        let Scratch { scores: [of_student, of_teacher], keys: [y, v], bias } = &mut *scratch;
        let bias = plan.bias(t, &keys, bias);
        let (y, v) = (
            plan.tile(&problem.student.keys, problem.excluded.valid, t, y),
            plan.tile(&problem.teacher.keys, problem.excluded.valid, t, v),
        );
        let (of_student, of_teacher) =
            (of_student.reserve(padded * stride), of_teacher.reserve(padded * stride));
        for (side, keys, scores) in [(STUDENT, y, &mut *of_student), (TEACHER, v, &mut *of_teacher)] {
            let shape = (padded, columns, widths[side]);
            tile::scores(shape, block.x[side].view(), keys, (scores, stride));
        }
        let pairs = of_student.chunks_exact_mut(stride).zip(of_teacher.chunks_exact_mut(stride));
        for (r, (student, teacher)) in pairs.take(rows).enumerate() {
            let (student, teacher) = (&mut student[..columns], &mut teacher[..columns]);
            if masks {
                plan.mask(&problem.excluded, first + r, &keys, [&mut *student, &mut *teacher]);
            }
            simd::dispatch(
                #[inline(always)]
                || {
                    let max = [
                        largest(student, bias, plan.scale[STUDENT]),
                        largest(teacher, bias, plan.scale[TEACHER]),
                    ];
                    for side in [STUDENT, TEACHER] {
                        if max[side] > partial.max[side][r] && (side == STUDENT || !is_known(r)) {
                            partial.rescale(side, r, max[side], widths[STUDENT]);
                        }
                    }
                    if partial.max[STUDENT][r] == f32::NEG_INFINITY {
                        student.fill(0.0);
                        teacher.fill(0.0);
                        return;
                    }
                    let shift = [partial.max[STUDENT][r], partial.max[TEACHER][r]];
                    let [p, q, along] = match problem.direction {
                        Direction::Forward => {
                            coefficients::<false>(student, teacher, bias, plan.scale, shift)
                        }
                        Direction::Reverse => coefficients::<true>(student, teacher, bias, plan.scale, shift),
                    };
                    partial.sum[STUDENT][r] += f64::from(p);
                    partial.sum[TEACHER][r] += f64::from(q);
                    partial.along[r] += f64::from(along);
                },
            );
        }
        let one = plan.has_one_tile();
        if one && (gradients.queries || gradients.keys) {
            let pairs = of_student.chunks_exact_mut(stride).zip(of_teacher.chunks_exact(stride));
            for (r, (student, teacher)) in pairs.take(rows).enumerate() {
                let [p, q] = partial.weights(r).1.map(|weight| weight as f32);
                simd::dispatch(
                    #[inline(always)]
                    || {
                        for (student, teacher) in student[..columns].iter_mut().zip(&teacher[..columns]) {
                            *student = p * *student + q * *teacher;
                        }
                    },
                );
            }
            if gradients.keys && problem.student.queries.rows() <= LARGEST_KEPT {
                partial.coefficients.extend_from_slice(&of_student[..rows * stride]);
            }
        }
        if gradients.queries {
            let shape = (padded, columns, widths[STUDENT]);
            let sums = [of_student, of_teacher].into_iter().zip(&mut partial.weighted);
            for (scores, out) in sums.take(if one { 1 } else { 2 }) {
                tile::accumulate(shape, (scores, stride), y, (out, widths[STUDENT]));
            }
        }
    }
    partial
}

/// Rows of a block: enough blocks for the threads, none larger than [`BLOCK`]. Bits do not depend on it.
fn block_rows(queries: usize) -> usize {
    queries.div_ceil(rayon::current_num_threads()).next_multiple_of(SIDE).clamp(SIDE, BLOCK)
}

pub(super) fn forward(problem: &Problem<'_>, plan: &Plan, gradients: Gradients) -> Result<Forward> {
    let (b, d) = (problem.student.queries.rows(), problem.student.queries.cols());
    let size = block_rows(b);
    let blocks = b.div_ceil(size);
    let splits = plan.tiles().div_ceil(SPLIT);
    // Fewer blocks than threads: several splits of one block run at once, and merge in order.
    let wave = rayon::current_num_threads().div_ceil(blocks).clamp(1, splits);
    let done: Vec<Result<Forward>> = each(blocks, |at| {
        let rows = at * size..((at + 1) * size).min(b);
        let padded = rows.len().next_multiple_of(SIDE);
        let x = [&problem.student.queries, &problem.teacher.queries]
            .map(|of| load_block(of, rows.clone(), padded, width(of)));
        let block = Block { rows, padded, x };
        let tiles = |split: usize| split * SPLIT..((split + 1) * SPLIT).min(plan.tiles());
        let known = problem.teacher_log_sum_exp.map(|lse| &lse[block.rows.clone()]);
        let weighted = if gradients.queries { padded * width(&problem.student.keys) } else { 0 };
        let mut total = Partial::new(problem.direction, block.rows.len(), known, weighted);
        for first in (0..splits).step_by(wave) {
            let partials = each(wave.min(splits - first), |at| {
                sweep(problem, plan, &block, tiles(first + at), gradients, &mut Scratch::default())
            });
            partials.into_iter().for_each(|partial| total.merge(partial, width(&problem.student.keys)));
        }
        let mut found = finish(problem, plan, &block, &total, gradients)?;
        found.coefficients = total.coefficients;
        Ok(found)
    });
    let mut out = Forward::default();
    if gradients.queries {
        out.query_gradients.reserve_exact(b * d);
    }
    for block in done {
        let block = block?;
        out.per_row.extend(block.per_row);
        out.log_sum_exp.extend(block.log_sum_exp);
        out.teacher_log_sum_exp.extend(block.teacher_log_sum_exp);
        out.counted.extend(block.counted);
        out.query_gradients.extend(block.query_gradients);
        out.mean.extend(block.mean);
        out.coefficients.extend(block.coefficients);
    }
    Ok(out)
}

/// From the sums to divergences and gradients, row by row.
fn finish(
    problem: &Problem<'_>,
    plan: &Plan,
    block: &Block<'_>,
    total: &Partial,
    gradients: Gradients,
) -> Result<Forward> {
    let (d, width) = (problem.student.queries.cols(), width(&problem.student.keys));
    let mut out = Forward::default();
    let softening = f64::from(problem.softening);
    for (r, row) in block.rows.clone().enumerate() {
        let sum = [total.sum[STUDENT][r], total.sum[TEACHER][r]];
        let counted = plan.compares(&problem.excluded, row);
        let stale = problem.teacher_log_sum_exp.is_some_and(|known| {
            let is_known = known[row] > f32::NEG_INFINITY;
            // A softmax sums to 1, whatever rounding does to the logarithm of its sum.
            is_known && !(counted && (0.5..=2.0).contains(&sum[TEACHER]))
        });
        if stale {
            let got = format!("not that of row {row}");
            let expected = "of these teacher queries and keys, exclusions, temperature and softening";
            return Err(Error::range(OP, "statistics", got, expected));
        }
        let lse = |side: usize| match counted {
            true => f64::from(total.max[side][r]) + sum[side].ln(),
            false => f64::NEG_INFINITY,
        };
        let (student, teacher) = (lse(STUDENT), lse(TEACHER));
        let (mut loss, mut mean) = (0.0, 0.0);
        let start = out.query_gradients.len();
        if gradients.queries {
            out.query_gradients.resize(start + d, 0.0);
        }
        if counted {
            let (of_row, weights) = total.weights(r);
            mean = of_row;
            loss = match problem.direction {
                Direction::Forward => mean - teacher + student,
                Direction::Reverse => mean - student + teacher,
            };
            let outer = softening / f64::from(problem.student.temperature);
            for (k, gradient) in out.query_gradients[start..].iter_mut().enumerate() {
                let of = |at: usize| f64::from(total.weighted[at][r * width + k]);
                let sum = match plan.has_one_tile() {
                    true => of(0),
                    false => weights[0] * of(0) + weights[1] * of(1),
                };
                *gradient = (outer * sum) as f32;
            }
        }
        let loss = (softening * softening * loss) as f32;
        if !(loss.is_finite() && simd::all_finite(&out.query_gradients[start..])) {
            let got = format!("so large that sums of row {row} leave f32");
            return Err(Error::range(OP, "queries", got, "rows of smaller norm; scale the embeddings"));
        }
        out.per_row.push(loss);
        out.log_sum_exp.push(student as f32);
        out.teacher_log_sum_exp.push(teacher as f32);
        out.counted.push(counted);
        out.mean.push(mean as f32);
    }
    Ok(out)
}
