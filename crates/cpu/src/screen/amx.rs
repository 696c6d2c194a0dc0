//! The kernel for Intel's tile matrix unit: 32 queries × 32 keys of bfloat16, summed in `f32`.
//!
//! Rows are rounded to bfloat16 when they are packed, and what the rounding takes away is measured, so that the
//! bound of the error is the rows' own and not the worst case of the format. Tiles hold 16 rows of 64 bytes: keys
//! as they are, queries as pairs of dimensions, sums as 16 keys × 16 queries.

use std::arch::asm;
use std::arch::x86_64::{
    __m512, _CMP_GE_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_loadu_ps, _mm512_set1_ps,
};

use super::{Hit, Kernel};
use crate::amx;
use crate::simd::{dot_inline, scale_f64_inline, squared_distance_inline, squared_norm_inline};

/// Dimensions of one step: a row of a tile holds 32 bfloat16.
const STEP: usize = 32;
/// Rows of both panels.
const SIDE: usize = 32;
/// Elements of 16 bits that a step takes of a panel.
const STEP_ELEMENTS: usize = SIDE * STEP;

static AMX: Kernel = Kernel {
    name: "amx",
    queries: SIDE,
    keys: SIDE,
    // Two bfloat16 in the place of one f32.
    packed: |dim| dim.div_ceil(STEP) * STEP / 2,
    pack_queries,
    pack_keys,
    arm: amx::arm,
    disarm: amx::disarm,
    screen,
    residual: Some(residual),
    // The unit takes subnormal inputs for 0 and flushes subnormal results.
    underflow: 2.4e-38,
    dot,
    squared_distance,
    squared_norm,
    scale,
};

/// The kernel, when this machine has the unit and the system lets this process use it.
pub(super) fn available() -> Option<&'static Kernel> {
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("fma");
    (vectors && amx::available()).then_some(&AMX)
}

/// Rounds to the nearest bfloat16, ties to even; subnormals become 0, and what would become infinite is cut off.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let finite = if rounded >> 16 & 0x7f80 == 0x7f80 { bits } else { rounded } >> 16;
    if finite & 0x7f80 == 0 { 0 } else { finite as u16 }
}

#[inline(always)]
fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// `panel[step][row][d]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_keys(dim: usize, rows: &[&[f32]], panel: &mut [f32]) {
    let panel: &mut [u16] = bytemuck::cast_slice_mut(panel);
    if rows.len() < SIDE || !dim.is_multiple_of(STEP) {
        panel.fill(0);
    }
    for (step, panel) in panel.chunks_exact_mut(STEP_ELEMENTS).enumerate() {
        for (row, out) in rows.iter().zip(panel.chunks_exact_mut(STEP)) {
            let row = &row[step * STEP..dim.min((step + 1) * STEP)];
            match <&[f32; STEP]>::try_from(row) {
                Ok(row) => (0..STEP).for_each(|d| out[d] = round(row[d])),
                Err(_) => out.iter_mut().zip(row).for_each(|(out, x)| *out = round(*x)),
            }
        }
    }
}

/// `panel[step][half][pair of dimensions][query of the half][dimension of the pair]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_queries(dim: usize, rows: &[&[f32]], panel: &mut [f32]) {
    let panel: &mut [u16] = bytemuck::cast_slice_mut(panel);
    panel.fill(0);
    for (r, row) in rows.iter().enumerate() {
        for (d, x) in row[..dim].iter().enumerate() {
            let (step, d) = (d / STEP, d % STEP);
            panel[step * STEP_ELEMENTS + r / 16 * 16 * STEP + d / 2 * STEP + r % 16 * 2 + d % 2] = round(*x);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn residual(x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let chunks = x.chunks_exact(16);
    let rest = chunks.remainder();
    // The difference of a float and its rounding is exact.
    let square = |x: f32| f64::from(x - widen(round(x))).powi(2);
    for x in chunks {
        for i in 0..16 {
            lanes[i] += square(x[i]);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| square(*x)).sum::<f64>()
}

/// The products of one pair of panels: `sums[key][query]`.
///
/// # Safety
/// This thread is armed; both panels hold `steps` steps; `steps` is positive.
#[inline(always)]
unsafe fn product(steps: usize, q: *const u16, k: *const u16, sums: &mut Sums) {
    // SAFETY: each step reads 2,048 bytes from both panels, which hold `steps` of them; the stores write the
    // 32 rows of 128 bytes of `sums`. Rows of a tile lie 64 bytes apart in the panels.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{k} + {row}*1]",
            "tileloadd tmm6, [{q} + {row}*1]",
            "tileloadd tmm7, [{q} + {row}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{k} + {row}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {k}, 2048",
            "add {q}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {wide}*1], tmm0",
            "tilestored [{sums} + {wide}*1 + 64], tmm1",
            "tilestored [{sums} + {wide}*1 + 2048], tmm2",
            "tilestored [{sums} + {wide}*1 + 2112], tmm3",
            q = inout(reg) q => _,
            k = inout(reg) k => _,
            steps = inout(reg) steps => _,
            row = in(reg) 64usize,
            wide = in(reg) 128usize,
            sums = in(reg) sums.0.as_mut_ptr(),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

#[repr(C, align(64))]
struct Sums([[f32; SIDE]; SIDE]);

/// # Safety
/// The machine has AVX-512F and this thread is armed; `q` holds one panel, `k` `start.len() / 32` panels,
/// `thresholds` 32.
#[target_feature(enable = "avx512f,fma")]
unsafe fn screen(dim: usize, q: &[f32], k: &[f32], start: &[f32], thresholds: &[f32], hits: &mut Vec<Hit>) {
    let steps = dim.div_ceil(STEP);
    let (q, k): (&[u16], &[u16]) = (bytemuck::cast_slice(q), bytemuck::cast_slice(k));
    let mut sums = Sums([[0.0; SIDE]; SIDE]);
    let load = |x: &[f32], at: usize| -> __m512 {
        let lanes = &x[at..at + 16];
        // SAFETY: 16 elements.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    };
    let (left, right) = (load(thresholds, 0), load(thresholds, 16));
    for (panel, (start, k)) in start.chunks_exact(SIDE).zip(k.chunks_exact(steps * STEP_ELEMENTS)).enumerate()
    {
        // SAFETY: the caller's contract; `k` is a chunk of one panel.
        unsafe { product(steps, q.as_ptr(), k.as_ptr(), &mut sums) };
        for (key, (sums, start)) in sums.0.iter().zip(start).enumerate() {
            let start = _mm512_set1_ps(*start);
            let low = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(_mm512_add_ps(load(sums, 0), start), left);
            let high = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(_mm512_add_ps(load(sums, 16), start), right);
            let mut mask = u32::from(low) | u32::from(high) << 16;
            while mask != 0 {
                hits.push(Hit { query: mask.trailing_zeros() as u16, key: (panel * SIDE + key) as u16 });
                mask &= mask - 1;
            }
        }
    }
}

#[target_feature(enable = "avx512f,fma")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_inline(a, b)
}

#[target_feature(enable = "avx512f,fma")]
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    squared_distance_inline(a, b)
}

#[target_feature(enable = "avx512f,fma")]
fn squared_norm(x: &[f32]) -> f64 {
    squared_norm_inline(x)
}

#[target_feature(enable = "avx512f,fma")]
fn scale(alpha: f64, x: &mut [f32]) {
    scale_f64_inline(alpha, x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_to_nearest_even_without_infinities_and_subnormals() {
        for x in [1.0f32, -1.003_906_3, 1.007_812_6, 2.718_5, -1e30, 1e-30, 0.0, -0.0, 65_280.1] {
            assert_eq!(widen(round(x)), bf16::from_f32(x).to_f32(), "{x}");
        }
        assert!(widen(round(f32::MAX)).is_finite() && widen(round(f32::MIN)).is_finite());
        assert_eq!(widen(round(1e-39)), 0.0);
    }
}
