//! Splitting into bfloat16 and the layouts that the tile registers read.
//!
//! A left operand is rows: for each step of 32 columns one line of 32 bfloat16 a part. A right operand is panels of
//! 32 columns: for each step, part and half of the panel 16 lines of 16 pairs of consecutive rows.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{GROUP, LINE, SIDE};

/// Rows between a load and what is fetched into the cache meanwhile.
const AHEAD: usize = 16;

/// A matrix of `f32` to pack; rows and columns beyond its size read as zeros.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    data: &'a [f32],
    stride: usize,
    rows: usize,
    cols: usize,
    /// What each row is multiplied by: powers of two or 0.
    factors: &'a [f32],
}

impl<'a> Source<'a> {
    /// `rows` rows of `cols`, `stride` apart, row `r` times `factors[r]`.
    pub(crate) fn new(
        data: &'a [f32],
        stride: usize,
        (rows, cols): (usize, usize),
        factors: &'a [f32],
    ) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len(), "pack: matrix too short");
        assert!(factors.len() >= rows, "pack: factors too short");
        Self { data, stride, rows, cols, factors }
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Whether all of a range of rows and columns is there.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows <= self.rows && cols <= self.cols
    }

    /// 16 columns of a row from `col` on; `WHOLE` when they are known to be there.
    ///
    /// # Safety
    /// With `WHOLE`, [`Source::holds`] rows beyond `row` and columns to `col + 16`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load<const WHOLE: bool>(&self, row: usize, col: usize) -> __m512 {
        if WHOLE {
            // SAFETY: the caller's contract, and `new` has checked that the rows lie inside the slice, with a factor each.
            return unsafe {
                let at = self.data.as_ptr().add(row * self.stride + col);
                // Keys come from far away, in short runs: ask for those of the next panel. It may lie anywhere.
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * self.stride).cast());
                _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(*self.factors.get_unchecked(row)))
            };
        }
        if row >= self.rows || col >= self.cols {
            return _mm512_setzero_ps();
        }
        let count = (self.cols - col).min(16);
        let mask = (0xffffu32 >> (16 - count)) as u16;
        // SAFETY: `new` has checked that the rows lie inside the slice; the mask ends with the row.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, self.data.as_ptr().add(row * self.stride + col)) };
        _mm512_mul_ps(x, _mm512_set1_ps(self.factors[row]))
    }
}

/// Rounds two vectors to bfloat16, to nearest even: `a` below `b`. Subnormals become 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round(a: __m512, b: __m512) -> __m512i {
    let rounded = _mm512_cvtne2ps_pbh(b, a);
    // SAFETY: 64 bytes are 64 bytes.
    unsafe { std::mem::transmute(rounded) }
}

/// 32 columns of one row in parts: each is what the ones before leave, rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split<const PARTS: usize>(mut a: __m512, mut b: __m512) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        *part = round(a, b);
        let widen = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)));
        // Exact, and no work where it is not used.
        a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(*part)));
        b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64::<1>(*part)));
    }
    parts
}

/// a0 b0 a1 b1 … from a0 a1 … b0 b1 …
const INTERLEAVED: [u16; 32] = {
    let mut at = [0; 32];
    let mut i = 0;
    while i < 32 {
        at[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    at
};

/// 16 columns of two rows in parts, each a pair a column.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_pairs<const PARTS: usize>(mut a: __m512, mut b: __m512) -> [__m512i; PARTS] {
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(INTERLEAVED.as_ptr().cast()) };
    let upper = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        *part = _mm512_permutexvar_epi16(order, round(a, b));
        a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
        b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_si512(*part, upper)));
    }
    parts
}

/// Columns to rows, by elements of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
    let mut y = x;
    for i in (0..16).step_by(2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    let mut z = y;
    for i in (0..16).step_by(4) {
        z[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        z[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        z[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        z[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    // Each z[4 q + c] holds columns c, 4 + c, 8 + c, 12 + c of rows 4 q .. 4 q + 4.
    let mut out = z;
    for c in 0..4 {
        let even = _mm512_shuffle_i32x4::<0x88>(z[c], z[4 + c]);
        let odd = _mm512_shuffle_i32x4::<0xdd>(z[c], z[4 + c]);
        let even_below = _mm512_shuffle_i32x4::<0x88>(z[8 + c], z[12 + c]);
        let odd_below = _mm512_shuffle_i32x4::<0xdd>(z[8 + c], z[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(even, even_below);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, odd_below);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even, even_below);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_below);
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn store(out: &mut [f32], at: usize, x: __m512i) {
    let line = &mut out[at..at + LINE];
    // SAFETY: 64 bytes.
    unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), x) }
}

/// Rows as a left operand: `out[row * stride + (step * PARTS + part) * 16..]`, for `rows` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn rows<const PARTS: usize>(source: Source<'_>, rows: usize, out: &mut [f32], stride: usize) {
    for row in 0..rows {
        for step in 0..source.cols.div_ceil(SIDE) {
            // SAFETY: not `WHOLE`.
            let (a, b) = unsafe {
                (source.load::<false>(row, step * SIDE), source.load::<false>(row, step * SIDE + 16))
            };
            for (part, x) in split::<PARTS>(a, b).into_iter().enumerate() {
                store(out, row * stride + (step * PARTS + part) * LINE, x);
            }
        }
    }
}

/// Columns as the rows of a left operand, the rows as its shared dimension: `steps` steps of 32 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn transposed<const PARTS: usize>(
    source: Source<'_>,
    steps: usize,
    out: &mut [f32],
    stride: usize,
) {
    for col in (0..source.cols).step_by(16) {
        for step in 0..steps {
            let mut pairs = [[_mm512_set1_epi32(0); 16]; PARTS];
            for p in 0..16 {
                let row = step * SIDE + 2 * p;
                // SAFETY: not `WHOLE`.
                let (a, b) = unsafe { (source.load::<false>(row, col), source.load::<false>(row + 1, col)) };
                let split = split_pairs::<PARTS>(a, b);
                pairs.iter_mut().zip(split).for_each(|(pairs, part)| pairs[p] = part);
            }
            for (part, pairs) in pairs.into_iter().enumerate() {
                for (c, line) in transpose(pairs).into_iter().enumerate() {
                    store(out, (col + c) * stride + (step * PARTS + part) * LINE, line);
                }
            }
        }
    }
}

/// 32 rows from `first` on as the columns of a panel, their columns as the shared dimension.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn across<const PARTS: usize>(source: Source<'_>, first: usize, panel: &mut [f32]) {
    // SAFETY: the condition is the contract.
    unsafe {
        match source.holds(first + SIDE, source.cols.next_multiple_of(SIDE)) {
            true => across_inner::<PARTS, true>(source, first, panel),
            false => across_inner::<PARTS, false>(source, first, panel),
        }
    }
}

/// # Safety
/// With `WHOLE` the rows are there and the number of columns is a multiple of 32.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn across_inner<const PARTS: usize, const WHOLE: bool>(
    source: Source<'_>,
    first: usize,
    panel: &mut [f32],
) {
    for (step, panel) in panel.chunks_exact_mut(PARTS * GROUP).take(source.cols.div_ceil(SIDE)).enumerate() {
        for half in 0..2 {
            let mut lines = [[_mm512_set1_epi32(0); 16]; PARTS];
            for r in 0..16 {
                let row = first + half * 16 + r;
                // SAFETY: the caller's contract.
                let (a, b) = unsafe {
                    (source.load::<WHOLE>(row, step * SIDE), source.load::<WHOLE>(row, step * SIDE + 16))
                };
                let split = split::<PARTS>(a, b);
                lines.iter_mut().zip(split).for_each(|(lines, part)| lines[r] = part);
            }
            for (part, lines) in lines.into_iter().enumerate() {
                for (p, line) in transpose(lines).into_iter().enumerate() {
                    store(panel, part * GROUP + half * GROUP / 2 + p * LINE, line);
                }
            }
        }
    }
}

/// 32 columns a panel from `col` on, the rows as the shared dimension: `steps` steps of 32 rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn along<const PARTS: usize>(source: Source<'_>, col: usize, steps: usize, panels: &mut [f32]) {
    let count = panels.len() / (steps * PARTS * GROUP);
    // SAFETY: the condition is the contract.
    unsafe {
        match source.holds(steps * SIDE, col + count * SIDE) {
            true => along_inner::<PARTS, true>(source, col, steps, panels),
            false => along_inner::<PARTS, false>(source, col, steps, panels),
        }
    }
}

/// # Safety
/// With `WHOLE` the rows and the columns of all panels are there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn along_inner<const PARTS: usize, const WHOLE: bool>(
    source: Source<'_>,
    col: usize,
    steps: usize,
    panels: &mut [f32],
) {
    let size = steps * PARTS * GROUP;
    for pair in 0..steps * 16 {
        for (at, panel) in panels.chunks_exact_mut(size).enumerate() {
            for half in 0..2 {
                let col = col + at * SIDE + half * 16;
                // SAFETY: the caller's contract.
                let (a, b) =
                    unsafe { (source.load::<WHOLE>(2 * pair, col), source.load::<WHOLE>(2 * pair + 1, col)) };
                let split = split_pairs::<PARTS>(a, b);
                for (part, line) in split.into_iter().enumerate() {
                    let group = (pair / 16 * PARTS + part) * GROUP;
                    store(panel, group + half * GROUP / 2 + pair % 16 * LINE, line);
                }
            }
        }
    }
}

/// Every 32 numbers of `row` become a line of hi and a line of lo, in their place.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn in_place(row: &mut [f32]) {
    for group in row.chunks_exact_mut(2 * LINE) {
        // SAFETY: 2 × 16 elements.
        let (a, b) = unsafe { (_mm512_loadu_ps(group.as_ptr()), _mm512_loadu_ps(group.as_ptr().add(LINE))) };
        let [hi, lo] = split::<2>(a, b);
        store(group, 0, hi);
        store(group, LINE, lo);
    }
}
