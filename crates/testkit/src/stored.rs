//! Rows as they are stored: in a type, with a distance between rows and something behind each.

use consonance::cuda::DType;
use consonance_cpu::{Result, Rows};
use half::{bf16, f16};

/// A matrix in storage of some type.
#[derive(Debug, Clone)]
pub struct Stored {
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    offset: usize,
    /// All elements, also those between rows, as the storage type rounds them.
    elements: Vec<f32>,
}

impl Stored {
    /// `values` `[rows, cols]`, rounded to `dtype`, one row behind the other.
    pub fn new(dtype: DType, values: &[f32], cols: usize) -> Self {
        Self::padded(dtype, values, cols, cols, 0)
    }

    /// The same with rows `stride` elements apart, `offset` elements behind the start, and NaN everywhere else: what
    /// reads too much shows.
    pub fn padded(dtype: DType, values: &[f32], cols: usize, stride: usize, offset: usize) -> Self {
        let rows = values.len() / cols;
        let mut elements = vec![f32::NAN; offset + rows * stride];
        for (row, values) in values.chunks_exact(cols).enumerate() {
            for (to, value) in elements[offset + row * stride..].iter_mut().zip(values) {
                *to = rounded(dtype, *value);
            }
        }
        Self { dtype, rows, cols, stride, offset, elements }
    }

    /// The type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Elements before the first row.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// A row, as stored.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.elements[self.offset + row * self.stride..][..self.cols]
    }

    /// The rows one behind the other, in f64, for the reference.
    pub fn wide(&self) -> Vec<f64> {
        (0..self.rows).flat_map(|row| self.row(row).iter().map(|v| f64::from(*v))).collect()
    }

    /// Some of the rows, in this order, one behind the other.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let values: Vec<f32> = rows.iter().flat_map(|row| self.row(*row).iter().copied()).collect();
        Self::new(self.dtype, &values, self.cols)
    }

    /// Overwrites a row.
    pub fn set_row(&mut self, row: usize, value: f32) {
        let start = self.offset + row * self.stride;
        self.elements[start..start + self.cols].fill(value);
    }

    /// The storage as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self.dtype {
            DType::F32 => bytemuck::cast_slice(&self.elements).to_vec(),
            DType::F16 => self.elements.iter().flat_map(|v| f16::from_f32(*v).to_ne_bytes()).collect(),
            DType::BF16 => self.elements.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
        }
    }

    /// Calls `f` with the rows as the CPU backend reads them.
    pub fn with_rows<R>(&self, f: impl FnOnce(Result<Rows<'_>>) -> R) -> R {
        let (size, values) = ((self.rows, self.cols), &self.elements[self.offset..]);
        match self.dtype {
            DType::F32 => f(Rows::strided("test", "rows", values, size, self.stride)),
            DType::F16 => {
                let values: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                f(Rows::strided("test", "rows", values.as_slice(), size, self.stride))
            }
            DType::BF16 => {
                let values: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                f(Rows::strided("test", "rows", values.as_slice(), size, self.stride))
            }
        }
    }
}

fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
    }
}
