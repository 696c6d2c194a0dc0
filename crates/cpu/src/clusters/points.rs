//! The rows of one class as the clustering reads them: gathered, normalized, shifted, in tiles.

use std::ops::Range;

use rayon::prelude::*;

use crate::{Error, Result, Rows, simd};

/// The rows of a tile, whole groups of every panel kernel; tiles are counted from the first row of a class.
pub(crate) const TILE: usize = 288;
/// Up to this many elements a class is gathered once and stays in the cache for all iterations.
const RESIDENT: usize = 128 * 1024;
const LANES: usize = 16;

/// The largest squared norm of a row: no `f32` score overflows.
pub(crate) const LARGEST: f64 = f32::MAX as f64 / 16.0;

/// What was found, or the number of a row and what is wrong with it.
pub(crate) type Checked<T> = std::result::Result<T, (usize, Error)>;

/// Squared norms in f64, and the checks that go with them.
///
/// # Errors
/// [`Error::NotFinite`]; [`Error::ZeroNorm`] when `unit`; [`Error::Range`] when a squared norm comes near the
/// largest `f32`, so that no score can overflow.
pub(crate) fn checked_norms(
    op: &'static str,
    argument: &'static str,
    rows: &Rows<'_>,
    unit: bool,
) -> Result<Vec<f64>> {
    let mut norms = vec![0.0f64; rows.rows()];
    norms.par_chunks_mut(TILE).enumerate().for_each_init(Vec::new, |buffer, (t, norms)| {
        squared_norms(rows, |i| t * TILE + i, buffer, norms);
    });
    for (row, norm) in norms.iter().enumerate() {
        check_norm(op, argument, row, *norm, unit)?;
    }
    Ok(norms)
}

/// The squared norms of some rows in f64.
fn squared_norms(rows: &Rows<'_>, row: impl Fn(usize) -> usize, buffer: &mut Vec<f32>, norms: &mut [f64]) {
    buffer.resize(rows.cols(), 0.0);
    simd::dispatch(
        #[inline(always)]
        || {
            for (i, norm) in norms.iter_mut().enumerate() {
                *norm = simd::squared_norm_inline(row_of(rows, row(i), buffer));
            }
        },
    );
}

fn check_norm(op: &'static str, argument: &'static str, row: usize, norm: f64, unit: bool) -> Result<()> {
    // Squares of f32 cannot overflow an f64: the norm is finite exactly when the row is.
    if !norm.is_finite() {
        return Err(Error::NotFinite { op, argument, row });
    }
    if unit && norm == 0.0 {
        return Err(Error::ZeroNorm { op, argument, row });
    }
    if norm > LARGEST {
        return Err(Error::range(
            op,
            argument,
            format!("a row ({row}) of squared norm {norm:e}"),
            "squared norms below 2e37, so that no f32 score overflows",
        ));
    }
    Ok(())
}

/// A row in place when it is `f32`, else converted into `buffer`.
#[inline(always)]
pub(crate) fn row_of<'b>(rows: &Rows<'b>, row: usize, buffer: &'b mut [f32]) -> &'b [f32] {
    match rows.as_f32() {
        Some(x) => &x[row * rows.stride()..][..rows.cols()],
        None => {
            rows.load_row(row, buffer);
            buffer
        }
    }
}

/// ‖x − c‖² from the differences, in 16 f64 lanes: no cancellation when both lie far from the origin.
#[inline(always)]
pub(crate) fn squared_distance_inline(x: &[f32], c: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let n = x.len().min(c.len());
    let (xc, cc) = (x[..n].chunks_exact(LANES), c[..n].chunks_exact(LANES));
    let (xr, cr) = (xc.remainder(), cc.remainder());
    for (x, c) in xc.zip(cc) {
        for i in 0..LANES {
            let difference = f64::from(x[i]) - f64::from(c[i]);
            lanes[i] = difference.mul_add(difference, lanes[i]);
        }
    }
    for (lane, (x, c)) in lanes.iter_mut().zip(xr.iter().zip(cr)) {
        let difference = f64::from(*x) - f64::from(*c);
        *lane = difference.mul_add(difference, *lane);
    }
    fold(lanes)
}

/// ‖x‖² in the lanes of [`squared_distance_inline`].
#[inline(always)]
pub(crate) fn squared_length_inline(x: &[f64]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = x.mul_add(*x, *lane);
        }
    }
    fold(lanes)
}

/// ‖x − c‖² for two centroids, with the bits of [`squared_distance_inline`].
#[inline(always)]
pub(crate) fn squared_distances_inline(x: &[f32], [a, b]: [&[f64]; 2]) -> [f64; 2] {
    let n = x.len().min(a.len()).min(b.len());
    let whole = n / LANES * LANES;
    let (mut left, mut right) = ([0.0f64; LANES], [0.0f64; LANES]);
    let centers = a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES));
    for (x, (a, b)) in x[..whole].chunks_exact(LANES).zip(centers) {
        for i in 0..LANES {
            let x = f64::from(x[i]);
            let (to_a, to_b) = (x - a[i], x - b[i]);
            left[i] = to_a.mul_add(to_a, left[i]);
            right[i] = to_b.mul_add(to_b, right[i]);
        }
    }
    for (i, x) in x[whole..n].iter().enumerate() {
        let (to_a, to_b) = (f64::from(*x) - a[whole + i], f64::from(*x) - b[whole + i]);
        left[i] = to_a.mul_add(to_a, left[i]);
        right[i] = to_b.mul_add(to_b, right[i]);
    }
    [fold(left), fold(right)]
}

/// Halves are added until one lane is left.
#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The rows of one class.
pub(crate) struct Points<'a> {
    rows: &'a Rows<'a>,
    members: &'a [u32],
    /// 1/‖x‖ of every row of `rows`, when rows are read as unit vectors.
    inverse_norms: Option<&'a [f32]>,
    /// Subtracted from every row: brings a class that lies far from the origin close to it.
    pub(crate) shift: Option<Vec<f32>>,
    /// All rows, dense, when the class is small.
    resident: Option<Vec<f32>>,
    in_place: bool,
}

impl<'a> Points<'a> {
    pub(crate) fn new(rows: &'a Rows<'a>, members: &'a [u32], inverse_norms: Option<&'a [f32]>) -> Self {
        let consecutive = members.windows(2).all(|w| w[1] == w[0] + 1);
        let in_place = consecutive && rows.as_f32().is_some() && inverse_norms.is_none();
        Self { rows, members, inverse_norms, shift: None, resident: None, in_place }
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn dim(&self) -> usize {
        self.rows.cols()
    }

    /// The checks of [`checked_norms`]. An error comes with the number of its row.
    pub(crate) fn check_norms(&self, op: &'static str, argument: &'static str) -> Checked<()> {
        let (mut buffer, mut norm) = (Vec::new(), [0.0]);
        for row in self.members.iter().map(|row| *row as usize) {
            squared_norms(self.rows, |_| row, &mut buffer, &mut norm);
            check_norm(op, argument, row, norm[0], false).map_err(|error| (row, error))?;
        }
        Ok(())
    }

    /// Sets the shift, and gathers the class when it is small.
    pub(crate) fn settle(&mut self, shift: Option<Vec<f32>>) {
        self.in_place &= shift.is_none();
        self.shift = shift;
        if !self.in_place && self.len() * self.dim() <= RESIDENT {
            let mut all = vec![0.0; self.len() * self.dim()];
            self.load(0..self.len(), &mut all);
            self.resident = Some(all);
        }
    }

    /// Copies a range of the class into `out`, normalized and shifted.
    fn load(&self, range: Range<usize>, out: &mut [f32]) {
        simd::dispatch(
            #[inline(always)]
            || {
                for (i, out) in range.zip(out.chunks_exact_mut(self.dim())) {
                    let row = self.members[i] as usize;
                    self.rows.load_row(row, out);
                    if let Some(inverse) = self.inverse_norms {
                        out.iter_mut().for_each(|v| *v *= inverse[row]);
                    }
                    if let Some(shift) = &self.shift {
                        out.iter_mut().zip(shift).for_each(|(v, s)| *v -= s);
                    }
                }
            },
        );
    }

    /// The whole class as a matrix and the distance between its rows, when it lies in memory as it is read.
    #[inline]
    pub(crate) fn dense(&self) -> Option<(&[f32], usize)> {
        if let Some(all) = &self.resident {
            return Some((all, self.dim()));
        }
        let first = *self.members.first()? as usize * self.rows.stride();
        self.rows.as_f32().filter(|_| self.in_place).map(|x| (&x[first..], self.rows.stride()))
    }

    /// A range of the class as a matrix and the distance between its rows; `buffer` serves when it must be
    /// copied.
    pub(crate) fn tile<'b>(&'b self, range: Range<usize>, buffer: &'b mut Vec<f32>) -> (&'b [f32], usize) {
        let d = self.dim();
        if let Some(all) = &self.resident {
            return (&all[range.start * d..range.end * d], d);
        }
        if let (true, Some(x)) = (self.in_place, self.rows.as_f32()) {
            let first = self.members[range.start] as usize;
            let stride = self.rows.stride();
            return (&x[first * stride..(first + range.len() - 1) * stride + d], stride);
        }
        buffer.resize(range.len() * d, 0.0);
        self.load(range, buffer);
        (buffer, d)
    }

    /// One row of the class.
    pub(crate) fn row<'b>(&'b self, i: usize, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        self.tile(i..i + 1, buffer).0
    }

    /// `work` on every tile, in parallel when there are several; results in the order of the tiles.
    pub(crate) fn for_tiles<R: Send>(
        &self,
        work: impl Fn(Range<usize>, &mut Vec<f32>) -> R + Sync,
    ) -> Vec<R> {
        let n = self.len();
        let range = |t: usize| t * TILE..n.min((t + 1) * TILE);
        let tiles = n.div_ceil(TILE);
        if tiles <= 1 {
            let mut buffer = Vec::new();
            return (0..tiles).map(|t| work(range(t), &mut buffer)).collect();
        }
        (0..tiles).into_par_iter().map_init(Vec::new, |buffer, t| work(range(t), buffer)).collect()
    }
}
