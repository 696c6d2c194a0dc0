//! Matrices as the families see them: borrowed rows of `f32`, `f16` or `bf16`, read into `f32` tiles.

use std::ops::Range;

use crate::parallel::each;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::{Error, Result, simd};

/// Borrowed elements of one storage type.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl Elements<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Elements<'a> {
    fn from(x: &'a [f32]) -> Self {
        Self::F32(x)
    }
}

impl<'a> From<&'a [f16]> for Elements<'a> {
    fn from(x: &'a [f16]) -> Self {
        Self::F16(x)
    }
}

impl<'a> From<&'a [bf16]> for Elements<'a> {
    fn from(x: &'a [bf16]) -> Self {
        Self::Bf16(x)
    }
}

/// A row-major matrix `[rows, cols]`, rows `stride >= cols` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    elements: Elements<'a>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Wraps a dense `[rows, cols]` matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of elements is not `rows * cols`.
    pub fn new(
        op: &'static str,
        argument: &'static str,
        elements: impl Into<Elements<'a>>,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        let elements = elements.into();
        if rows.checked_mul(cols) != Some(elements.len()) {
            return Err(Error::shape(op, argument, &[elements.len()], format!("{rows} x {cols} elements")));
        }
        Ok(Self { elements, rows, cols, stride: cols })
    }

    /// Wraps rows that lie `stride` elements apart, as a narrowed view does.
    ///
    /// # Errors
    /// [`Error::Shape`] when the last row reaches past the end, or `stride < cols`.
    pub fn strided(
        op: &'static str,
        argument: &'static str,
        elements: impl Into<Elements<'a>>,
        (rows, cols): (usize, usize),
        stride: usize,
    ) -> Result<Self> {
        let elements = elements.into();
        let needed = match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(stride).and_then(|x| x.checked_add(cols)),
        };
        if stride < cols || needed.is_none_or(|n| n > elements.len()) {
            return Err(Error::shape(
                op,
                argument,
                &[elements.len()],
                format!("{rows} x {cols} elements with rows {stride} apart"),
            ));
        }
        Ok(Self { elements, rows, cols, stride })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the dimension of the embeddings.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The distance between the first elements of neighboring rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The elements from the first row on.
    pub fn elements(&self) -> Elements<'a> {
        self.elements
    }

    /// The storage as `f32`, when it is `f32`: lets a tile be read in place, without a copy.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self.elements {
            Elements::F32(x) => Some(x),
            _ => None,
        }
    }

    /// Copies the rows of `range`, converted to `f32`, densely into the front of `out`.
    ///
    /// `out` holds at least `range.len() * cols` elements; what lies behind is left alone.
    pub fn load(&self, range: Range<usize>, out: &mut [f32]) {
        for (row, out) in range.zip(out.chunks_exact_mut(self.cols.max(1))) {
            self.load_row(row, out);
        }
    }

    /// Copies one row, converted to `f32`, into `out[..cols]`.
    pub fn load_row(&self, row: usize, out: &mut [f32]) {
        let (start, end) = (row * self.stride, row * self.stride + self.cols);
        let out = &mut out[..self.cols];
        match self.elements {
            Elements::F32(x) => out.copy_from_slice(&x[start..end]),
            Elements::F16(x) => x[start..end].convert_to_f32_slice(out),
            Elements::Bf16(x) => x[start..end].convert_to_f32_slice(out),
        }
    }

    /// Checks that every element is finite, in parallel.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming the first offending row.
    pub fn check_finite(&self, op: &'static str, argument: &'static str) -> Result<()> {
        const PART: usize = 512;
        let of_part = |part: usize| {
            let mut buffer = Vec::new();
            let mut rows = part * PART..((part + 1) * PART).min(self.rows);
            rows.find(|row| match self.elements {
                Elements::F32(x) => !simd::all_finite(&x[row * self.stride..][..self.cols]),
                _ => {
                    buffer.resize(self.cols, 0.0);
                    self.load_row(*row, &mut buffer);
                    !simd::all_finite(&buffer)
                }
            })
        };
        match each(self.rows.div_ceil(PART), of_part).into_iter().flatten().next() {
            Some(row) => Err(Error::NotFinite { op, argument, row }),
            None => Ok(()),
        }
    }
}
