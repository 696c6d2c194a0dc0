//! Points and centroids as they are compared: their norms, and what the products read of them.

use std::ops::Range;

use consonance_cpu::clusters::Geometry;
use consonance_cpu::neighbors::Metric;

use super::{FAMILY, THREADS, chunk_rows};
use crate::cuda::abi::{self, SLAB_BYTES, SOFT_STATUS, TILE_THREADS};
use crate::cuda::executor::launch;
use crate::cuda::neighbors::Search;
use crate::cuda::scratch::Scratch;
use crate::cuda::{DType, Error, Executor, Matrix, Memory, Result, Words};

const WARPS: usize = TILE_THREADS / 32;

/// Whether all rows could be compared, once the kernels have run.
#[derive(Debug)]
pub(in crate::cuda) struct Status {
    op: &'static str,
    words: Memory,
    unit: bool,
}

impl Status {
    pub(in crate::cuda) fn new(
        executor: &dyn Executor,
        op: &'static str,
        geometry: Geometry,
    ) -> Result<Self> {
        let words = executor.upload(op, bytemuck::cast_slice(&[u32::MAX, u32::MAX, 0u32]))?;
        Ok(Self { op, words, unit: geometry == Geometry::Spherical })
    }

    /// Waits for the device.
    pub(in crate::cuda) fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; SOFT_STATUS];
        executor.download(self.op, &self.words, bytemuck::cast_slice_mut(&mut words))?;
        for (argument, row) in [("points", words[0]), ("centroids", words[1])] {
            if row != u32::MAX {
                return Err(Error::Row { op: self.op, argument, row: row as usize, cosine: self.unit });
            }
        }
        Ok(())
    }

    fn word(&self, at: usize) -> u64 {
        self.words.address() + (at * size_of::<u32>()) as u64
    }

    /// The address of the bits of the largest scale of a point.
    pub(in crate::cuda) fn largest_scale(&self) -> u64 {
        self.word(2)
    }
}

/// What `soft_assignment_measure_*` writes: addresses, each or 0.
#[derive(Default)]
struct Measure {
    scales: u64,
    norms: u64,
    wide: u64,
    status: u64,
    largest_scale: u64,
}

/// # Safety
/// The addresses have a number, or a row of `f32`, for every row.
unsafe fn measure(
    executor: &dyn Executor,
    op: &'static str,
    rows: &Matrix<'_>,
    unit: bool,
    to: &Measure,
) -> Result<()> {
    let params = abi::SoftMeasure {
        rows: rows.address(),
        stride: rows.stride() as u64,
        scales: to.scales,
        norms: to.norms,
        wide: to.wide,
        status: to.status,
        largest_scale: to.largest_scale,
        count: rows.rows() as u32,
        dim: rows.cols() as u32,
        unit: u32::from(unit),
        reserved: 0,
    };
    let entry = format!("soft_assignment_measure_{}", rows.dtype().suffix());
    let grid = [rows.rows().div_ceil(WARPS) as u64, 1, 1];
    // SAFETY: passed on to the caller.
    unsafe { launch(executor, (op, FAMILY, &entry), grid, (THREADS, 0), &params) }
}

/// Where the products find the centroids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operands {
    /// The `f32` copy.
    Wide,
    /// The centroids as they are given.
    Given,
    /// The sum of two rows of 16 bits, each padded to so many elements.
    Split(usize),
}

impl Operands {
    /// For points of this dtype, and centroids of that one, or `f32` ones.
    fn new(points: DType, given: Option<DType>, dim: usize) -> Self {
        match points {
            DType::F32 => Self::Wide,
            _ if given == Some(points) => Self::Given,
            _ => Self::Split(dim.next_multiple_of(SLAB_BYTES / points.bytes())),
        }
    }

    /// Elements of a row that products read.
    fn dim(self, dim: usize) -> usize {
        match self {
            Self::Split(padded) => 2 * padded,
            _ => dim,
        }
    }
}

/// Points and centroids, measured.
pub(in crate::cuda) struct Sides<'a> {
    op: &'static str,
    points: Matrix<'a>,
    given: Option<Matrix<'a>>,
    geometry: Geometry,
    operands: Operands,
    centroid_count: usize,
    scratch: Memory,
    at: Offsets,
}

struct Offsets {
    point_scales: u64,
    point_norms: u64,
    centroid_scales: u64,
    centroid_norms: u64,
    wide: u64,
    split: u64,
    split_scales: u64,
}

impl<'a> Sides<'a> {
    /// Measures both sides.
    pub(in crate::cuda) fn new(
        executor: &dyn Executor,
        op: &'static str,
        points: &Matrix<'a>,
        centroids: &Matrix<'a>,
        geometry: Geometry,
    ) -> Result<(Self, Status)> {
        let (sides, status) =
            Self::of_points(executor, op, points, centroids.rows(), Some(*centroids), geometry)?;
        let to = Measure {
            scales: sides.address(sides.at.centroid_scales),
            norms: sides.address(sides.at.centroid_norms),
            wide: sides.wide(),
            status: status.word(1),
            ..Measure::default()
        };
        // SAFETY: the scratch has a number and a row for every centroid.
        unsafe { measure(executor, op, centroids, sides.unit(), &to)? };
        sides.split(executor)?;
        Ok((sides, status))
    }

    /// Measures the points; `wide` is to be filled with so many centroids before [`Sides::settle`].
    pub(in crate::cuda) fn of_points(
        executor: &dyn Executor,
        op: &'static str,
        points: &Matrix<'a>,
        centroid_count: usize,
        given: Option<Matrix<'a>>,
        geometry: Geometry,
    ) -> Result<(Self, Status)> {
        let (n, k, d) = (points.rows(), centroid_count, points.cols());
        let operands = Operands::new(points.dtype(), given.map(|it| it.dtype()), d);
        let mut layout = Scratch::new();
        let mut floats = |count: usize| layout.take(count * size_of::<f32>());
        let at = Offsets {
            point_scales: floats(n),
            point_norms: floats(n),
            centroid_scales: floats(k),
            centroid_norms: floats(k),
            wide: floats(k * d),
            split_scales: floats(k),
            // 16-bit elements, two for a float.
            split: if let Operands::Split(padded) = operands { floats(k * padded) } else { 0 },
        };
        let scratch = executor.scratch(op, layout.bytes())?;
        let status = Status::new(executor, op, geometry)?;
        let sides = Self { op, points: *points, given, geometry, operands, centroid_count, scratch, at };
        let to = Measure {
            scales: sides.address(sides.at.point_scales),
            norms: sides.address(sides.at.point_norms),
            status: status.word(0),
            largest_scale: status.word(2),
            ..Measure::default()
        };
        // SAFETY: the scratch has a number for every point.
        unsafe { measure(executor, op, points, sides.unit(), &to)? };
        Ok((sides, status))
    }

    /// Measures the centroids that were written to `wide`.
    pub(in crate::cuda) fn settle(&self, executor: &dyn Executor) -> Result<()> {
        let to = Measure {
            scales: self.address(self.at.centroid_scales),
            norms: self.address(self.at.centroid_norms),
            ..Measure::default()
        };
        // SAFETY: the scratch has a number for every centroid.
        unsafe { measure(executor, self.op, &self.wide_matrix(), false, &to)? };
        self.split(executor)
    }

    fn split(&self, executor: &dyn Executor) -> Result<()> {
        let Operands::Split(padded) = self.operands else { return Ok(()) };
        let params = abi::SoftSplit {
            wide: self.wide(),
            parts: self.address(self.at.split),
            scales: self.address(self.at.split_scales),
            count: self.centroid_count as u32,
            dim: self.points.cols() as u32,
            padded: padded as u32,
            reserved: 0,
        };
        let entry = format!("soft_assignment_split_{}", self.points.dtype().suffix());
        let grid = [self.centroid_count.div_ceil(WARPS) as u64, 1, 1];
        // SAFETY: the scratch has two padded rows and a scale for every centroid.
        unsafe { launch(executor, (self.op, FAMILY, &entry), grid, (THREADS, 0), &params) }
    }

    fn unit(&self) -> bool {
        self.geometry == Geometry::Spherical
    }

    fn address(&self, offset: u64) -> u64 {
        self.scratch.address() + offset
    }

    pub(in crate::cuda) fn points(&self) -> &Matrix<'a> {
        &self.points
    }

    /// The address of the centroids as they are compared, `f32` `[K, D]`.
    pub(in crate::cuda) fn wide(&self) -> u64 {
        self.address(self.at.wide)
    }

    fn wide_matrix(&self) -> Matrix<'_> {
        let d = self.points.cols();
        // SAFETY: the scratch has a row of `f32` for every centroid, and `self` keeps it.
        unsafe { Matrix::from_address(self.wide(), DType::F32, [self.centroid_count, d, d]) }
    }

    /// What the kernels read of both sides.
    pub(in crate::cuda) fn params(&self) -> abi::SoftAssignment {
        let d = self.points.cols();
        let dim = self.operands.dim(d);
        let (operands, stride, scales) = match (self.operands, &self.given) {
            (Operands::Given, Some(given)) => (given.address(), given.stride(), self.at.centroid_scales),
            (Operands::Split(_), _) => (self.address(self.at.split), dim, self.at.split_scales),
            _ => (self.wide(), d, 0),
        };
        abi::SoftAssignment {
            points: self.points.address(),
            point_stride: self.points.stride() as u64,
            point_scales: self.address(self.at.point_scales),
            point_norms: self.address(self.at.point_norms),
            centroids: self.wide(),
            centroid_norms: self.address(self.at.centroid_norms),
            operands,
            operand_stride: stride as u64,
            operand_scales: if self.operands == Operands::Wide { 0 } else { self.address(scales) },
            point_count: self.points.rows() as u32,
            centroid_count: self.centroid_count as u32,
            dim: d as u32,
            operand_dim: dim as u32,
            ..abi::SoftAssignment::default()
        }
    }

    /// Whether points and centroids can be searched as they are stored: then no copy is made.
    fn in_place(&self) -> Option<Matrix<'_>> {
        let centroids = self.given.unwrap_or_else(|| self.wide_matrix());
        (!self.unit() && centroids.dtype() == self.points.dtype()).then_some(centroids)
    }

    /// Rows of a chunk with lists of `width` neighbors.
    pub(in crate::cuda) fn chunk_rows(&self, width: usize) -> usize {
        chunk_rows(self.points.rows(), self.points.cols() + 2 * width)
    }

    /// Some of the points as they are compared, for [`Sides::search`].
    pub(in crate::cuda) fn compared(&self, executor: &dyn Executor, rows: Range<usize>) -> Result<Compared> {
        let points = &self.points;
        let first = points.address() + (rows.start * points.stride() * points.dtype().bytes()) as u64;
        let shape = [rows.len(), points.cols(), points.stride()];
        if self.in_place().is_some() {
            return Ok(Compared { address: first, dtype: points.dtype(), shape, copy: None });
        }
        let copy = executor.scratch(self.op, rows.len() * points.cols() * size_of::<f32>())?;
        let to = Measure { wide: copy.address(), ..Measure::default() };
        // SAFETY: the rows are those of the points, and the copy has room for them.
        unsafe {
            let rows = Matrix::from_address(first, points.dtype(), shape);
            measure(executor, self.op, &rows, self.unit(), &to)?;
        }
        let shape = [rows.len(), points.cols(), points.cols()];
        Ok(Compared { address: copy.address(), dtype: DType::F32, shape, copy: Some(copy) })
    }

    /// The search for the `k` centroids nearest to these points; none of a point's own id.
    pub(in crate::cuda) fn search<'b>(
        &'b self,
        points: &'b Compared,
        k: usize,
        ids: Option<(Words<'b>, Words<'b>)>,
    ) -> Search<'b> {
        Search {
            // SAFETY: the address is that of these rows, and both are kept for as long.
            queries: unsafe { Matrix::from_address(points.address, points.dtype, points.shape) },
            bank: self.in_place().unwrap_or_else(|| self.wide_matrix()),
            k,
            metric: Metric::SquaredL2,
            labels: None,
            ids,
            allow: None,
        }
    }
}

/// Points as they are compared.
pub(in crate::cuda) struct Compared {
    address: u64,
    dtype: DType,
    shape: [usize; 3],
    #[expect(dead_code, reason = "frees the copy when it is dropped")]
    copy: Option<Memory>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_read_centroids_in_the_type_of_the_points() {
        use DType::{BF16, F16, F32};
        for (points, given, expected) in [
            (F32, Some(F32), Operands::Wide),
            (F32, Some(BF16), Operands::Wide),
            (F32, None, Operands::Wide),
            (BF16, Some(BF16), Operands::Given),
            (F16, Some(BF16), Operands::Split(128)),
            (F16, None, Operands::Split(128)),
        ] {
            assert_eq!(Operands::new(points, given, 100), expected);
        }
        assert_eq!(Operands::Split(128).dim(100), 256);
        assert_eq!(Operands::Given.dim(100), 100);
        assert_eq!(Operands::new(F16, None, 64), Operands::Split(64));
    }
}
