//! 32 × 32 sums of products of split operands in the tile registers.
//!
//! Four registers hold the sums, two a part of the left operand, two a part of the right one. The order of the
//! products of one step is fixed, the small ones first; so is the order of the steps.

use std::arch::asm;

use super::{GROUP, LINE, SIDE};
use crate::amx::Armed;

/// Rows of split numbers: `rows` rows `stride` elements apart; each step takes `parts` lines of 32 bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) parts: usize,
}

/// How many parts the operands have, and so which products are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    /// hi·hi: both operands are bfloat16 already.
    One,
    /// lo·hi + hi·hi: the right operand is bfloat16 already.
    TwoByOne,
    /// All of a left operand of three parts; the right operand is bfloat16 already.
    ThreeByOne,
    /// hi·lo + lo·hi + hi·hi of two parts each.
    Three,
    /// The six products of three parts each that reach the last bit of an `f32`.
    Six,
}

impl Terms {
    /// Parts of the left and of the right operand.
    pub(crate) fn parts(self) -> (usize, usize) {
        match self {
            Self::One => (1, 1),
            Self::TwoByOne => (2, 1),
            Self::ThreeByOne => (3, 1),
            Self::Three => (2, 2),
            Self::Six => (3, 3),
        }
    }
}

/// Steps between two visits of the same sums: so much of 32 rows stays in the first-level cache meanwhile.
const CHUNK: usize = 16;

/// `out[.., 0..32 · count] = left · panels`, added to what is there when `add`: `out` holds `left.rows` rows, a
/// multiple of 32, `ldo` apart; `panels` are `count` panels of `steps` steps.
pub(crate) fn multiply(
    _: &Armed,
    terms: Terms,
    steps: usize,
    left: Left<'_>,
    (panels, count): (&[f32], usize),
    (out, ldo): (&mut [f32], usize),
    add: bool,
) {
    let (parts, right_parts) = terms.parts();
    let (group, step) = (parts * LINE, right_parts * GROUP);
    assert!(left.rows.is_multiple_of(SIDE) && left.rows > 0 && steps > 0, "split product: odd shape");
    assert_eq!(left.parts, parts, "split product: parts");
    assert!(left.stride >= steps * group && ldo >= count * SIDE, "split product: overlapping rows");
    assert!(
        left.data.len() >= (left.rows - 1) * left.stride + steps * group,
        "split product: left too short"
    );
    assert!(panels.len() >= count * steps * step, "split product: panels too short");
    assert!(out.len() >= (left.rows - 1) * ldo + count * SIDE, "split product: result too short");
    let kernel = match terms {
        Terms::One => one,
        Terms::TwoByOne => two_by_one,
        Terms::ThreeByOne => three_by_one,
        Terms::Three => three,
        Terms::Six => six,
    };
    for row in (0..left.rows).step_by(SIDE) {
        for first in (0..steps).step_by(CHUNK) {
            for panel in 0..count {
                // SAFETY: `Armed` says that this thread's tiles are configured. The kernel reads some of `steps` steps of 32 rows
                // of `left` and of one of `count` panels, and reads and writes 32 rows of 32 elements of `out`; the assertions
                // above are that these lie inside their slices.
                unsafe {
                    kernel(
                        CHUNK.min(steps - first),
                        (left.data.as_ptr().add(row * left.stride + first * group), left.stride * 4),
                        panels.as_ptr().add((panel * steps + first) * step),
                        (out.as_mut_ptr().add(row * ldo + panel * SIDE), ldo * 4),
                        add || first > 0,
                    );
                }
            }
        }
    }
}

/// Loads part `$part` of 32 rows of the left operand.
macro_rules! left {
    (hi) => {
        "tileloadd tmm4, [{a} + {lda}*1]\ntileloadd tmm5, [{below} + {lda}*1]"
    };
    (lo) => {
        "tileloadd tmm4, [{a} + {lda}*1 + 64]\ntileloadd tmm5, [{below} + {lda}*1 + 64]"
    };
    (last) => {
        "tileloadd tmm4, [{a} + {lda}*1 + 128]\ntileloadd tmm5, [{below} + {lda}*1 + 128]"
    };
}

/// Loads part `$part` of 32 columns of the right operand.
macro_rules! right {
    (hi) => {
        "tileloadd tmm6, [{b} + {row}*1]\ntileloadd tmm7, [{b} + {row}*1 + 1024]"
    };
    (lo) => {
        "tileloadd tmm6, [{b} + {row}*1 + 2048]\ntileloadd tmm7, [{b} + {row}*1 + 3072]"
    };
    (last) => {
        "tileloadd tmm6, [{b} + {row}*1 + 4096]\ntileloadd tmm7, [{b} + {row}*1 + 5120]"
    };
}

macro_rules! dot {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7"
    };
}

macro_rules! kernel {
    ($name:ident, $group:literal, $panel:literal, [$($line:expr),+]) => {
        /// `lda` and `ldc` in bytes.
        ///
        /// # Safety
        /// This thread's tiles are configured; `steps` is positive; all that it reads and writes is there.
        unsafe fn $name(
            steps: usize,
            (a, lda): (*const f32, usize),
            b: *const f32,
            (c, ldc): (*mut f32, usize),
            add: bool,
        ) {
            // SAFETY: the caller's contract; the registers are named, and nothing else lives in tiles.
            unsafe {
                asm!(
                    "test {add}, {add}",
                    "jz 3f",
                    "tileloadd tmm0, [{c} + {ldc}*1]",
                    "tileloadd tmm1, [{c} + {ldc}*1 + 64]",
                    "tileloadd tmm2, [{d} + {ldc}*1]",
                    "tileloadd tmm3, [{d} + {ldc}*1 + 64]",
                    "jmp 2f",
                    "3:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "2:",
                    $($line,)+
                    concat!("add {a}, ", $group),
                    concat!("add {below}, ", $group),
                    concat!("add {b}, ", $panel),
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{c} + {ldc}*1], tmm0",
                    "tilestored [{c} + {ldc}*1 + 64], tmm1",
                    "tilestored [{d} + {ldc}*1], tmm2",
                    "tilestored [{d} + {ldc}*1 + 64], tmm3",
                    add = in(reg) usize::from(add),
                    a = inout(reg) a => _,
                    below = inout(reg) a.byte_add(16 * lda) => _,
                    lda = in(reg) lda,
                    b = inout(reg) b => _,
                    row = in(reg) 64usize,
                    c = in(reg) c,
                    d = in(reg) c.byte_add(16 * ldc),
                    ldc = in(reg) ldc,
                    steps = inout(reg) steps => _,
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
    };
}

kernel!(one, 64, 2048, [left!(hi), right!(hi), dot!()]);
kernel!(two_by_one, 128, 2048, [right!(hi), left!(lo), dot!(), left!(hi), dot!()]);
kernel!(three_by_one, 192, 2048, [right!(hi), left!(last), dot!(), left!(lo), dot!(), left!(hi), dot!()]);
kernel!(three, 128, 4096, [right!(hi), left!(lo), dot!(), left!(hi), dot!(), right!(lo), dot!()]);
kernel!(
    six,
    192,
    6144,
    [
        left!(hi),
        right!(last),
        dot!(),
        right!(lo),
        dot!(),
        left!(lo),
        dot!(),
        right!(hi),
        dot!(),
        left!(last),
        dot!(),
        left!(hi),
        dot!()
    ]
);
