//! The column pass: the gradient of the student's keys, one owner per tile of keys.
//!
//! ∂/∂y_j Σ_i g_i L_i = Σ_i (g_i T/τ) c_ij x_i with c_ij = p_ij − q_ij, or p_ij (b_ij − a_ij − M_i): the tile of
//! coefficients is built in f32, and one product adds it.

use super::plan::{Plan, range, width};
use super::{Direction, Forward, Problem};
use crate::contrast::targets::load_block;
use crate::contrast::{GRAIN, TILE, columns, stride};
use crate::parallel::each_chunk;
use crate::{simd, tile};

/// Queries of one step: a fixed grid from query 0, so that the order of every sum is the same for any threads.
const STEP: usize = 128;

pub(super) fn key_gradients(problem: &Problem<'_>, plan: &Plan, forward: &Forward, g: &[f32]) -> Vec<f32> {
    let (n, d) = (problem.student.keys.rows(), problem.student.keys.cols());
    let outer = problem.softening / problem.student.temperature;
    let weights: Vec<f32> = g.iter().map(|g| g * outer).collect();
    let mut out = vec![0.0f32; n * d];
    each_chunk(&mut out, TILE * d, Scratch::default, |scratch, t, out| {
        if plan.is_live(t) {
            tile_gradients(problem, plan, (forward, &weights), t, scratch, out);
        }
    });
    out
}

#[derive(Default)]
struct Scratch {
    keys: [Vec<f32>; 2],
    bias: Vec<f32>,
    scores: [Vec<f32>; 2],
    gradient: Vec<f32>,
}

fn tile_gradients(
    problem: &Problem<'_>,
    plan: &Plan,
    (forward, weights): (&Forward, &[f32]),
    t: usize,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (student, teacher) = (&problem.student, &problem.teacher);
    let (b, d) = (student.queries.rows(), student.keys.cols());
    let widths = [width(&student.keys), width(&teacher.keys)];
    let keys = range(t, student.keys.rows());
    let (columns, stride) = (columns(keys.len()), stride(student.keys.rows()));
    // The last rows of a step are filled up with zeros.
    let step = b.next_multiple_of(GRAIN).min(STEP);
    let Scratch { keys: [y, v], bias, scores: [of_student, of_teacher], gradient } = scratch;
    let bias = plan.bias(t, &keys, bias);
    let y = plan.tile(&student.keys, problem.excluded.valid, t, y);
    gradient.clear();
    gradient.resize(columns * widths[0], 0.0);
    of_student.resize(step * stride, 0.0);
    of_teacher.resize(step * stride, 0.0);
    for first in (0..b).step_by(STEP) {
        let rows = first..(first + STEP).min(b);
        let x = load_block(&student.queries, rows.clone(), step, widths[0]);
        let shape = (step, columns, widths[0]);
        if !forward.coefficients.is_empty() {
            let kept = forward.coefficients[first * stride..].chunks_exact(stride).zip(&weights[rows]);
            let mut scaled = of_student.chunks_exact_mut(stride);
            for ((kept, weight), scaled) in kept.zip(&mut scaled) {
                scaled[..columns].iter_mut().zip(kept).for_each(|(scaled, kept)| *scaled = weight * kept);
            }
            scaled.for_each(|padding| padding.fill(0.0));
            tile::accumulate_transposed(shape, (of_student, stride), x.view(), (gradient, widths[0]));
            continue;
        }
        let u = load_block(&teacher.queries, rows, step, widths[1]);
        let v = plan.tile(&teacher.keys, problem.excluded.valid, t, &mut *v);
        tile::scores((step, columns, widths[0]), x.view(), y, (of_student, stride));
        tile::scores((step, columns, widths[1]), u.view(), v, (of_teacher, stride));
        let pairs = of_student.chunks_exact_mut(stride).zip(of_teacher.chunks_exact_mut(stride));
        for (r, (of_student, of_teacher)) in pairs.enumerate() {
            let (of_student, of_teacher) = (&mut of_student[..columns], &mut of_teacher[..columns]);
            let row = first + r;
            let weight = weights.get(row).map_or(0.0, |weight| *weight);
            if weight == 0.0 || !forward.counted[row] {
                of_student.fill(0.0);
                continue;
            }
            plan.mask(&problem.excluded, row, &keys, [&mut *of_student, &mut *of_teacher]);
            let shift = [forward.log_sum_exp[row], forward.teacher_log_sum_exp[row]];
            let mean = forward.mean[row];
            simd::dispatch(
                #[inline(always)]
                || {
                    for (at, (s, t)) in of_student.iter_mut().zip(of_teacher.iter()).enumerate() {
                        let bias = bias.map_or(0.0, |bias| bias[at]);
                        let (b, a) = (s.mul_add(plan.scale[0], bias), t.mul_add(plan.scale[1], bias));
                        let p = simd::exp_inline(b - shift[0]);
                        let coefficient = match problem.direction {
                            Direction::Forward => p - simd::exp_inline(a - shift[1]),
                            // −∞ − (−∞) where the pair is not compared.
                            Direction::Reverse if p > 0.0 => p * (b - a - mean),
                            Direction::Reverse => 0.0,
                        };
                        *s = weight * coefficient;
                    }
                },
            );
        }
        tile::accumulate_transposed(shape, (of_student, stride), x.view(), (gradient, widths[0]));
    }
    for (out, gradient) in out.chunks_exact_mut(d).zip(gradient.chunks_exact(widths[0])) {
        out.copy_from_slice(&gradient[..d]);
    }
}
