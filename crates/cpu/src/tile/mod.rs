//! Matrix products of tiles that fit the cache, on the thread that asks for them.
//!
//! The shape of a call must not change an element's bits, or a row's result would depend on its neighbors.
//! `gemm` sums every element over the shared dimension in one order as long as it takes its blocked path with
//! the same depth of block. Three cases leave that path: a single row or column (vector kernels), at most 256
//! results of contiguous operands (horizontal sums), and, for a shared dimension above 512, results of at most
//! 64 × 64 (another depth). Owners therefore pad their tiles of scores to [`MIN_ROWS`] × [`MIN_COLS`] at least
//! and sum over at most [`MAX_DEPTH`] keys at a time; the tests compare bits over shapes.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod split;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
#[path = "none.rs"]
pub(crate) mod split;

use gemm::Parallelism;

/// The smallest number of rows of a tile of scores whose bits do not depend on the tile's shape.
pub const MIN_ROWS: usize = 4;

/// The smallest number of columns of a tile of scores whose bits do not depend on the tile's shape.
pub const MIN_COLS: usize = 65;

/// The largest number of keys that one [`accumulate`] sums over in an order that its shape does not change.
pub const MAX_DEPTH: usize = 512;

/// One operand or result: `data[i * row + j * col]`.
#[derive(Clone, Copy)]
struct View {
    row: usize,
    col: usize,
}

fn product(
    m: usize,
    n: usize,
    k: usize,
    c: (&mut [f32], usize),
    a: (&[f32], View),
    b: (&[f32], View),
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let reach = |v: View, rows: usize, cols: usize| {
        if rows == 0 || cols == 0 { 0 } else { (rows - 1) * v.row + (cols - 1) * v.col + 1 }
    };
    assert!(c.0.len() >= reach(View { row: c.1, col: 1 }, m, n), "tile product: result too short");
    assert!(a.0.len() >= reach(a.1, m, k), "tile product: left operand too short");
    assert!(b.0.len() >= reach(b.1, k, n), "tile product: right operand too short");
    // SAFETY: the three assertions above say that every element that the strides reach lies inside its slice;
    // `c` is borrowed mutably, so it aliases neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.0.as_mut_ptr(),
            1,
            c.1 as isize,
            add,
            a.0.as_ptr(),
            a.1.col as isize,
            a.1.row as isize,
            b.0.as_ptr(),
            b.1.col as isize,
            b.1.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `out[i, j] = ⟨x_i, y_j⟩`: `x` is `[m, d]` and `y` is `[n, d]`, rows `ldx` and `ldy` apart; `out` is `[m, n]`
/// with rows `ldo` apart.
pub fn scores(
    (m, n, d): (usize, usize, usize),
    (x, ldx): (&[f32], usize),
    (y, ldy): (&[f32], usize),
    (out, ldo): (&mut [f32], usize),
) {
    product(m, n, d, (out, ldo), (x, View { row: ldx, col: 1 }), (y, View { row: 1, col: ldy }), false);
}

/// `out[i, :] += Σ_j p[i, j] · y_j`: `p` is `[m, n]`, `y` is `[n, d]`, `out` is `[m, d]`.
pub fn accumulate(
    (m, n, d): (usize, usize, usize),
    (p, ldp): (&[f32], usize),
    (y, ldy): (&[f32], usize),
    (out, ldo): (&mut [f32], usize),
) {
    product(m, d, n, (out, ldo), (p, View { row: ldp, col: 1 }), (y, View { row: ldy, col: 1 }), true);
}

/// `out[j, :] += Σ_i p[i, j] · x_i`: `p` is `[m, n]`, `x` is `[m, d]`, `out` is `[n, d]`.
pub fn accumulate_transposed(
    (m, n, d): (usize, usize, usize),
    (p, ldp): (&[f32], usize),
    (x, ldx): (&[f32], usize),
    (out, ldo): (&mut [f32], usize),
) {
    product(n, d, m, (out, ldo), (p, View { row: 1, col: ldp }), (x, View { row: ldx, col: 1 }), true);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    #[test]
    fn an_element_has_the_same_bits_in_every_shape() {
        for d in [1, 2, 3, 7, 64, 128, 513, 1024] {
            let (m, n) = (200, 300);
            let (x, y) = (values(m * d, 1), values(n * d, 2));
            let mut whole = vec![0.0; m * n];
            scores((m, n, d), (&x, d), (&y, d), (&mut whole, n));
            for (rows, cols) in [(4, 300), (200, 65), (17, 66), (4, 65), (64, 256), (128, 67), (64, 65)] {
                let mut part = vec![0.0; rows * cols];
                let (i0, j0) = (m - rows, n - cols);
                scores((rows, cols, d), (&x[i0 * d..], d), (&y[j0 * d..], d), (&mut part, cols));
                for i in 0..rows {
                    for j in 0..cols {
                        let (a, b) = (part[i * cols + j], whole[(i0 + i) * n + j0 + j]);
                        assert_eq!(a.to_bits(), b.to_bits(), "d {d}, shape {rows} x {cols}, at {i}, {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn accumulated_rows_have_the_same_bits_in_every_shape() {
        let (m, n, d) = (160, 256, 96);
        let (p, y) = (values(m * n, 3), values(n * d, 4));
        let mut whole = values(m * d, 5);
        let start = whole.clone();
        accumulate((m, n, d), (&p, n), (&y, d), (&mut whole, d));
        for rows in [4, 5, 16, 17, 64, 100] {
            let mut part = start[..rows * d].to_vec();
            accumulate((rows, n, d), (&p, n), (&y, d), (&mut part, d));
            assert!(part.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} rows");
        }
    }

    #[test]
    fn zeros_at_the_end_of_the_shared_dimension_change_no_bits() {
        let (m, n, d) = (160, 512, 96);
        for used in [17, 96, 128, 160, 256, 480] {
            let (mut p, mut y) = (values(m * n, 3), values(n * d, 4));
            p.chunks_exact_mut(n).for_each(|row| row[used..].fill(0.0));
            y[used * d..].fill(0.0);
            let (mut whole, mut transposed) = (values(m * d, 5), values(m * d, 5));
            let (mut short, mut short_transposed) = (whole.clone(), whole.clone());
            accumulate((m, n, d), (&p, n), (&y, d), (&mut whole, d));
            accumulate((m, used, d), (&p, n), (&y, d), (&mut short, d));
            // [n, m], as rows of the left operand.
            let across: Vec<f32> = (0..n * m).map(|at| p[at % m * n + at / m]).collect();
            accumulate_transposed((n, m, d), (&across, m), (&y, d), (&mut transposed, d));
            accumulate_transposed((used, m, d), (&across, m), (&y, d), (&mut short_transposed, d));
            assert!(short.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{used} keys");
            let same = short_transposed.iter().zip(&transposed).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{used} queries");
        }
    }
}
