//! Loops over `f32` slices, compiled for every instruction set and chosen at run time.
//!
//! The order of every sum is fixed by the code (16 lanes, then a fixed tree), not by the machine's vector
//! length, so that one machine gives the same bits for the same inputs whatever the tile or the thread.

use std::sync::LazyLock;

use pulp::{Arch, WithSimd};

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
const LANES: usize = 16;

struct Run<F>(F);

impl<R, F: FnOnce() -> R> WithSimd for Run<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> R {
        simd.vectorize(
            #[inline(always)]
            || (self.0)(),
        )
    }
}

/// Runs `f` compiled for the best instruction set of this machine.
///
/// `f` and all that it calls must be `#[inline(always)]` to profit: a called function that is not inlined is
/// compiled for the baseline.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    ARCH.dispatch(Run(f))
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// ⟨a, b⟩ in 16 fused lanes, folded by a fixed tree.
///
/// Both slices have the same length; the longer one's rest would be ignored.
#[inline(always)]
pub fn dot_inline(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for (i, (x, y)) in ar.iter().zip(br).enumerate() {
        lanes[i] = x.mul_add(*y, lanes[i]);
    }
    fold(lanes)
}

/// [`dot_inline`] behind one dispatch: for single products.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dispatch(
        #[inline(always)]
        || dot_inline(a, b),
    )
}

/// ‖a − b‖² from the differences, in 16 fused lanes, folded by a fixed tree.
///
/// Both slices have the same length; the longer one's rest would be ignored.
#[inline(always)]
pub fn squared_distance_inline(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for i in 0..LANES {
            let difference = x[i] - y[i];
            lanes[i] = difference.mul_add(difference, lanes[i]);
        }
    }
    for (i, (x, y)) in ar.iter().zip(br).enumerate() {
        let difference = x - y;
        lanes[i] = difference.mul_add(difference, lanes[i]);
    }
    fold(lanes)
}

/// ‖x‖² in f64: no finite `f32` row overflows, and only a row of zeros gives 0. Not finite when `x` is not.
#[inline(always)]
pub fn squared_norm_inline(x: &[f32]) -> f64 {
    wide_dot_inline(x, x)
}

/// ⟨a, b⟩ in f64, over the shorter one.
#[inline(always)]
pub fn wide_dot_inline(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let n = a.len().min(b.len());
    let (a, b) = (a[..n].chunks_exact(LANES), b[..n].chunks_exact(LANES));
    let (rest_a, rest_b) = (a.remainder(), b.remainder());
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            lanes[i] = f64::from(a[i]).mul_add(f64::from(b[i]), lanes[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane = f64::from(*a).mul_add(f64::from(*b), *lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// [`wide_dot_inline`] behind one dispatch.
pub fn wide_dot(a: &[f32], b: &[f32]) -> f64 {
    dispatch(
        #[inline(always)]
        || wide_dot_inline(a, b),
    )
}

/// [`squared_norm_inline`] behind one dispatch.
pub fn squared_norm(x: &[f32]) -> f64 {
    dispatch(
        #[inline(always)]
        || squared_norm_inline(x),
    )
}

/// `x *= alpha` with the factor and the product in f64, rounded once.
#[inline(always)]
pub fn scale_f64_inline(alpha: f64, x: &mut [f32]) {
    for x in x {
        *x = (f64::from(*x) * alpha) as f32;
    }
}

/// `y += alpha * x`, one fused operation an element.
#[inline(always)]
pub fn axpy_inline(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = alpha.mul_add(*x, *y);
    }
}

/// [`axpy_inline`] behind one dispatch.
pub fn axpy(alpha: f32, x: &[f32], y: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || axpy_inline(alpha, x, y),
    );
}

/// `x *= alpha`.
pub fn scale(alpha: f32, x: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || x.iter_mut().for_each(|x| *x *= alpha),
    );
}

/// Whether no element is NaN or infinite.
pub fn all_finite(x: &[f32]) -> bool {
    // x - x is 0 for finite x and NaN otherwise; a plain sum would overflow on large finite rows.
    dispatch(
        #[inline(always)]
        || {
            let mut bad = [0u32; LANES];
            let chunks = x.chunks_exact(LANES);
            let rest = chunks.remainder();
            for c in chunks {
                for i in 0..LANES {
                    bad[i] |= u32::from(!c[i].is_finite());
                }
            }
            bad.iter().all(|b| *b == 0) && rest.iter().all(|x| x.is_finite())
        },
    )
}

/// eˣ for x ≤ 0 and beyond, to about 1 ulp: range reduction by ln 2 in two parts, then a degree-6 polynomial.
///
/// Below −87.3 the result is 0 (no subnormals), above 88.7 it is clamped to the largest finite power; −∞ gives
/// exactly 0, so that a masked score drops out. NaN is not propagated: inputs are checked before.
#[inline(always)]
pub fn exp_inline(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
    let clamped = x.clamp(-87.336_54, 88.376_26);
    let shifted = clamped.mul_add(LOG2E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.984_127e-4_f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_334e-3);
    p = p.mul_add(r, 4.166_666_8e-2);
    p = p.mul_add(r, 1.666_666_7e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let bits = (shifted.to_bits() << 23).wrapping_add(0x3f80_0000);
    let e = p * f32::from_bits(bits);
    if x < -87.336_54 { 0.0 } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_ulp_and_zero_at_minus_infinity() {
        let mut worst = 0.0f64;
        for i in 0..=200_000 {
            let x = -87.0 + 0.000_875 * i as f32;
            let truth = f64::from(x).exp();
            worst = worst.max(((f64::from(exp_inline(x)) - truth) / truth).abs());
        }
        println!("exp: worst relative error {:.2} ulp", worst / f64::from(f32::EPSILON));
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp_inline(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_inline(0.0), 1.0);
    }

    #[test]
    fn dot_of_integers_is_exact_at_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32 - 2.0).collect();
            let truth: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot(&a, &b), truth, "length {n}");
        }
    }

    #[test]
    fn a_single_bad_element_is_found_wherever_it_is() {
        for n in [1, 15, 16, 17, 40] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in 0..n {
                    let mut x = vec![f32::MAX; n];
                    assert!(all_finite(&x));
                    x[at] = bad;
                    assert!(!all_finite(&x));
                }
            }
        }
    }
}
