//! The sums of 32 rows and 32 centroids on Intel's tile matrix unit, in bfloat16 with sums in `f32`.
//!
//! It reads what the screening kernel of that unit packs ([`screen::Kernel::tiles`]): rows as keys, that is row
//! after row, 32 dimensions to a step; centroids as queries, pairs of dimensions side by side. A tile of sums then
//! has a row for each row and starts from −‖c‖²/2, so that one row's sums lie next to each other.

use std::arch::asm;

use super::panel::{Kernel, LD, x86};
use crate::screen;

/// Dimensions of one step.
const STEP: usize = 32;
/// Rows and centroids of a product.
const SIDE: usize = 32;
/// Bytes between the sums of two rows.
const STRIDE: usize = 4 * LD;

static AMX: Kernel = Kernel {
    name: "amx",
    rows: SIDE,
    keys: SIDE,
    least: 8,
    packed: true,
    sums,
    scan: x86::scan_avx512::<1>,
    scan_two: x86::scan_avx512::<2>,
    scan_known: x86::scan_avx512::<0>,
    scores: x86::scores_avx512,
    distances: x86::distances_avx512,
};

/// The kernel, when this machine has the unit and the system lets this process use it.
pub(super) fn available() -> Option<&'static Kernel> {
    screen::Kernel::tiles().map(|_| &AMX)
}

/// # Safety
/// This thread is armed; `x` holds a packed panel of 32 rows, `panels` one of 32 centroids for every 32 of `start`,
/// and `out` 32 rows of `start.len()` elements [`LD`] apart.
unsafe fn sums(dim: usize, (x, _): (&[f32], usize), panels: &[f32], start: &[f32], out: &mut [f32]) {
    let steps = dim.div_ceil(STEP);
    // Two bfloat16 in the place of one f32.
    let panels = panels.chunks_exact(steps * STEP * SIDE / 2);
    for (p, (start, panel)) in start.chunks_exact(SIDE).zip(panels).enumerate() {
        let out = &mut out[p * SIDE..][..(SIDE - 1) * LD + SIDE];
        // SAFETY: each step reads 2,048 bytes of `x` and of the panel, which hold `steps` of them by the caller's
        // contract, and `steps` is positive as no class has dimension 0. The first four loads read 64 bytes of the
        // 32 starts again and again (a distance of 0 between rows); the stores write 32 rows of 128 bytes, `STRIDE`
        // apart, inside `out`. Rows of the other tiles lie 64 bytes apart in the panels.
        unsafe {
            asm!(
                "tileloadd tmm0, [{start} + {zero}*1]",
                "tileloadd tmm1, [{start} + {zero}*1 + 64]",
                "tileloadd tmm2, [{start} + {zero}*1]",
                "tileloadd tmm3, [{start} + {zero}*1 + 64]",
                "2:",
                "tileloadd tmm4, [{x} + {row}*1]",
                "tileloadd tmm6, [{c} + {row}*1]",
                "tileloadd tmm7, [{c} + {row}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x} + {row}*1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {c}, 2048",
                "add {x}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{out} + {wide}*1], tmm0",
                "tilestored [{out} + {wide}*1 + 64], tmm1",
                "tilestored [{lower} + {wide}*1], tmm2",
                "tilestored [{lower} + {wide}*1 + 64], tmm3",
                x = inout(reg) x.as_ptr() => _,
                c = inout(reg) panel.as_ptr() => _,
                steps = inout(reg) steps => _,
                start = in(reg) start.as_ptr(),
                zero = in(reg) 0usize,
                row = in(reg) 64usize,
                wide = in(reg) STRIDE,
                out = in(reg) out.as_mut_ptr(),
                lower = in(reg) out.as_mut_ptr().add(16 * LD),
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
}
