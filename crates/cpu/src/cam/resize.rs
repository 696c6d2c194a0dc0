//! Bicubic interpolation, along rows first and along columns then.

use crate::simd;

/// The cubic's parameter, as PyTorch's.
const CUBIC: f32 = -0.75;
const LANES: usize = 16;

/// Four pixels that an output pixel is made of, and the weights of the differences of three to the second.
#[derive(Debug, Clone, Copy)]
struct Taps {
    at: [u32; 4],
    weights: [f32; 3],
}

/// How a line of pixels is stretched.
#[derive(Debug)]
pub(super) struct Axis {
    input: usize,
    taps: Vec<Taps>,
}

impl Axis {
    pub(super) fn new(input: usize, output: usize) -> Self {
        Self { input, taps: (0..output).map(|at| taps(at, input, output)).collect() }
    }
}

/// The position (at + ½) input/output − ½ is a quotient of integers, so its whole part is exact and its rest rounded once.
fn taps(at: usize, input: usize, output: usize) -> Taps {
    let (twice, step) = (((2 * at + 1) * input) as i64 - output as i64, 2 * output as i64);
    let (first, rest) = (twice.div_euclid(step), twice.rem_euclid(step));
    let t = rest as f32 / step as f32;
    let place = |i: i64| (first + i).clamp(0, input as i64 - 1) as u32;
    let near = |x: f32| (CUBIC + 2.0).mul_add(x, -(CUBIC + 3.0)).mul_add(x * x, 1.0);
    let far = |x: f32| ((x - 5.0).mul_add(x, 8.0)).mul_add(x, -4.0) * CUBIC;
    Taps { at: [-1, 0, 1, 2].map(place), weights: [far(1.0 + t), near(1.0 - t), far(2.0 - t)] }
}

/// The value in the middle and weighed differences to it: a constant line stays what it is to the last bit.
#[inline(always)]
fn mix(before: f32, middle: f32, after: f32, last: f32, weights: &[f32; 3]) -> f32 {
    let sum = weights[2].mul_add(last - middle, middle);
    let sum = weights[1].mul_add(after - middle, sum);
    weights[0].mul_add(before - middle, sum)
}

/// `[h, w]` to `[h, W]`.
pub(super) fn horizontal(map: &[f32], axis: &Axis, out: &mut [f32]) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (line, out) in map.chunks_exact(axis.input).zip(out.chunks_exact_mut(axis.taps.len())) {
                for (out, Taps { at: [a, b, c, d], weights }) in out.iter_mut().zip(&axis.taps) {
                    let tap = |at: &u32| line[*at as usize];
                    *out = mix(tap(a), tap(b), tap(c), tap(d), weights);
                }
            }
        },
    );
}

/// `[h, W]` to `[H, W]`, and the least and the largest of it.
pub(super) fn vertical(map: &[f32], axis: &Axis, out: &mut [f32]) -> (f32, f32) {
    let width = map.len() / axis.input;
    simd::dispatch(
        #[inline(always)]
        || {
            let (mut least, mut most) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
            for (out, taps) in out.chunks_exact_mut(width).zip(&axis.taps) {
                let [a, b, c, d] = taps.at.map(|at| &map[at as usize * width..][..width]);
                for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *out = mix(*a, *b, *c, *d, &taps.weights);
                }
                for part in out.chunks(LANES) {
                    for ((x, least), most) in part.iter().zip(&mut least).zip(&mut most) {
                        *least = if *x < *least { *x } else { *least };
                        *most = if *x > *most { *x } else { *most };
                    }
                }
            }
            let fold = |values: [f32; LANES], pick: fn(f32, f32) -> f32| values.into_iter().reduce(pick);
            (fold(least, f32::min).unwrap_or(0.0), fold(most, f32::max).unwrap_or(0.0))
        },
    )
}
