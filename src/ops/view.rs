//! Candle tensors as the backend sees them.
//!
//! A [`Matrix`] holds a tensor whose rows can be read in place: the offset and the distance between rows of a
//! view are honored, every other layout (a transpose, a broadcast) is made contiguous once. The backend borrows
//! the elements for as long as the [`Guard`] lives:
//!
//! ```text
//! let queries = Matrix::new(OP, "queries", queries)?;
//! let guard = queries.lock();
//! let rows: consonance_cpu::Rows = guard.rows()?;
//! ```

use candle_core::{CpuStorage, DType, Device, Layout, Storage, StorageRef, Tensor};
use consonance_cpu::{Elements, Rows};

use crate::{Error, Result};

const FLOATS: &str = "f32, f16 or bf16";
const NO_KERNEL: &str = "the CPU: this operation has no kernel for other devices";

/// Checks that a tensor lies in the memory of the CPU.
///
/// # Errors
/// [`Error::Device`] otherwise.
pub(crate) fn check_cpu(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.device() {
        Device::Cpu => Ok(()),
        other => {
            Err(Error::Device { op, argument, got: format!("{:?}", other.location()), expected: NO_KERNEL })
        }
    }
}

/// A float matrix `[rows, cols]` whose rows are contiguous, and the distance between rows: the tensor itself, or a
/// copy of another layout, which carries no gradient.
///
/// # Errors
/// [`Error::Rank`] and [`Error::DType`].
pub(super) fn matrix(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<(Tensor, usize)> {
    if tensor.rank() != 2 {
        let (got, expected) = (tensor.rank(), "a matrix [rows, dimension]");
        return Err(Error::Rank { op, argument, got, expected });
    }
    if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        return Err(Error::DType { op, argument, got: tensor.dtype(), expected: FLOATS });
    }
    match row_stride(tensor.layout()) {
        Some(stride) => Ok((tensor.clone(), stride)),
        None => Ok((tensor.detach().force_contiguous()?, tensor.dims()[1])),
    }
}

/// A float matrix `[rows, cols]` on the CPU whose rows can be read in place.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    op: &'static str,
    argument: &'static str,
    tensor: Tensor,
}

impl Matrix {
    /// Takes a tensor `[rows, cols]` of `f32`, `f16` or `bf16`, without a copy when its rows are contiguous.
    ///
    /// The copy of another layout carries no gradient: gradients belong to the op that the caller applies.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::DType`] and [`Error::Device`].
    pub(crate) fn new(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<Self> {
        check_cpu(op, argument, tensor)?;
        let (tensor, _) = matrix(op, argument, tensor)?;
        Ok(Self { op, argument, tensor })
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.tensor.dims()[0]
    }

    /// Locks the storage for reading.
    pub(crate) fn lock(&self) -> Guard<'_> {
        let (storage, layout) = self.tensor.storage_and_layout();
        Guard { op: self.op, argument: self.argument, storage, layout }
    }
}

/// The locked storage of a [`Matrix`].
pub(crate) struct Guard<'a> {
    op: &'static str,
    argument: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl Guard<'_> {
    /// The rows, borrowed from the storage.
    ///
    /// # Errors
    /// [`Error::Device`] when the storage is not the CPU's.
    pub(crate) fn rows(&self) -> Result<Rows<'_>> {
        match &*self.storage {
            Storage::Cpu(storage) => rows(self.op, self.argument, storage, self.layout),
            _ => Err(Error::Device {
                op: self.op,
                argument: self.argument,
                got: "another device".to_owned(),
                expected: NO_KERNEL,
            }),
        }
    }
}

/// The distance between rows, when the elements of each row are neighbors in memory and rows do not overlap.
fn row_stride(layout: &Layout) -> Option<usize> {
    let (&[rows, cols], &[row, col]) = (layout.dims(), layout.stride()) else { return None };
    match () {
        () if cols > 1 && col != 1 => None,
        () if rows <= 1 => Some(cols),
        () => (row >= cols).then_some(row),
    }
}

/// The rows of a CPU storage under a layout: what `cpu_fwd` of a custom op receives.
///
/// # Errors
/// [`Error::DType`] for other than `f32`, `f16`, `bf16`; [`Error::Argument`] for a layout whose rows are not
/// contiguous (a [`Matrix`] never has one).
pub(crate) fn rows<'a>(
    op: &'static str,
    argument: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<Rows<'a>> {
    let strided = row_stride(layout).zip(layout.dims().first().copied().zip(layout.dims().get(1).copied()));
    let Some((stride, shape)) = strided else {
        let expected = "a matrix with contiguous rows";
        return Err(consonance_cpu::Error::shape(op, argument, layout.dims(), expected).into());
    };
    let start = layout.start_offset();
    let elements = match storage {
        CpuStorage::F32(x) => Elements::F32(x.get(start..).unwrap_or_default()),
        CpuStorage::F16(x) => Elements::F16(x.get(start..).unwrap_or_default()),
        CpuStorage::BF16(x) => Elements::Bf16(x.get(start..).unwrap_or_default()),
        _ => {
            let got = candle_core::backend::BackendStorage::dtype(storage);
            return Err(Error::DType { op, argument, got, expected: FLOATS });
        }
    };
    Ok(Rows::strided(op, argument, elements, shape, stride)?)
}

/// The bytes of a CPU tensor's storage from its first element on.
///
/// # Errors
/// [`Error::DType`] for other types than the kernels read.
pub(super) fn bytes(op: &'static str, tensor: &Tensor) -> Result<Vec<u8>> {
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset();
    fn rest<T: bytemuck::NoUninit>(elements: &[T], start: usize) -> Vec<u8> {
        bytemuck::cast_slice(elements.get(start..).unwrap_or_default()).to_vec()
    }
    Ok(match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => rest(x, start),
        Storage::Cpu(CpuStorage::F16(x)) => rest(x, start),
        Storage::Cpu(CpuStorage::BF16(x)) => rest(x, start),
        Storage::Cpu(CpuStorage::U32(x)) => rest(x, start),
        Storage::Cpu(CpuStorage::U8(x)) => rest(x, start),
        _ => {
            let (argument, got) = ("tensor", tensor.dtype());
            return Err(Error::DType { op, argument, got, expected: "f32, f16, bf16, u32 or u8 on the CPU" });
        }
    })
}

fn vector<T: candle_core::WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(tensor.detach().to_vec1::<T>()?)
}

fn check_vector(op: &'static str, argument: &'static str, tensor: &Tensor, len: usize) -> Result<()> {
    check_cpu(op, argument, tensor)?;
    check_vector_shape(op, argument, tensor, len)
}

/// Checks for a vector of so many elements.
///
/// # Errors
/// [`Error::Rank`] and [`Error::Argument`].
pub(super) fn check_vector_shape(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    len: usize,
) -> Result<()> {
    if tensor.rank() != 1 {
        return Err(Error::Rank { op, argument, got: tensor.rank(), expected: "a vector, one value a row" });
    }
    if tensor.dims()[0] != len {
        let expected = format!("one value for each of {len} rows");
        return Err(consonance_cpu::Error::shape(op, argument, tensor.dims(), expected).into());
    }
    Ok(())
}

/// Reads labels or ids `[len]`: `u32`, or `i64` when every value fits.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`], [`Error::Device`], and [`Error::Argument`] for another length or a value
/// outside `0..=u32::MAX`.
pub(crate) fn labels(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    len: usize,
) -> Result<Vec<u32>> {
    check_vector(op, argument, tensor, len)?;
    match tensor.dtype() {
        DType::U32 => vector(tensor),
        DType::I64 => vector::<i64>(tensor)?
            .into_iter()
            .map(|label| {
                u32::try_from(label).map_err(|_| {
                    let expected = format!("labels in 0..={}", u32::MAX);
                    consonance_cpu::Error::range(op, argument, label, expected).into()
                })
            })
            .collect(),
        got => Err(Error::DType { op, argument, got, expected: "u32 or i64" }),
    }
}

/// Reads a mask `[len]` of `u8`: true where it is not 0.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`], [`Error::Device`], and [`Error::Argument`] for another length.
pub(crate) fn mask(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    len: usize,
) -> Result<Vec<bool>> {
    check_vector(op, argument, tensor, len)?;
    match tensor.dtype() {
        DType::U8 => Ok(vector::<u8>(tensor)?.into_iter().map(|x| x != 0).collect()),
        got => Err(Error::DType { op, argument, got, expected: "u8, 0 or 1" }),
    }
}

/// Reads weights `[len]`: `f32`, `f16` or `bf16`, as `f32`.
///
/// # Errors
/// [`Error::Rank`], [`Error::DType`], [`Error::Device`], and [`Error::Argument`] for another length.
pub(crate) fn weights(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    len: usize,
) -> Result<Vec<f32>> {
    check_vector(op, argument, tensor, len)?;
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => vector(&tensor.detach().to_dtype(DType::F32)?),
        got => Err(Error::DType { op, argument, got, expected: FLOATS }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tensor: &Tensor) -> (Vec<f32>, usize) {
        let matrix = Matrix::new("test", "x", tensor).unwrap();
        let guard = matrix.lock();
        let rows = guard.rows().unwrap();
        let mut out = vec![0.0; rows.rows() * rows.cols()];
        rows.load(0..rows.rows(), &mut out);
        (out, rows.stride())
    }

    fn truth(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn counting(rows: usize, cols: usize, dtype: DType) -> Tensor {
        let count = (rows * cols) as u32;
        Tensor::arange(0, count, &Device::Cpu)
            .unwrap()
            .reshape((rows, cols))
            .unwrap()
            .to_dtype(dtype)
            .unwrap()
    }

    #[test]
    fn views_are_read_in_place_with_their_offset_and_stride() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = counting(9, 7, dtype);
            let rows = x.narrow(0, 2, 5).unwrap();
            assert_eq!(read(&rows), (truth(&rows), 7));
            let both = rows.narrow(1, 3, 2).unwrap();
            assert_eq!(read(&both), (truth(&both), 7));
            let one_column = x.narrow(1, 6, 1).unwrap();
            assert_eq!(read(&one_column), (truth(&one_column), 7));
            let last = x.narrow(0, 8, 1).unwrap().narrow(1, 1, 6).unwrap();
            assert_eq!(read(&last).0, truth(&last));
        }
    }

    #[test]
    fn other_layouts_are_made_contiguous() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = counting(9, 7, dtype);
            let t = x.t().unwrap();
            assert_eq!(read(&t), (truth(&t), 9));
            let offset = t.narrow(0, 1, 4).unwrap().narrow(1, 2, 5).unwrap();
            assert_eq!(read(&offset), (truth(&offset), 5));
            let repeated = x.narrow(0, 3, 1).unwrap().broadcast_as((4, 7)).unwrap();
            assert_eq!(read(&repeated), (truth(&repeated), 7));
            let spread = x.narrow(1, 2, 1).unwrap().broadcast_as((9, 3)).unwrap();
            assert_eq!(read(&spread), (truth(&spread), 3));
        }
        let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(read(&empty), (vec![], 4));
    }

    #[test]
    fn labels_and_masks_are_read_and_checked() {
        let device = Device::Cpu;
        let u = Tensor::new(&[3u32, 0, 7, 9], &device).unwrap();
        let i = Tensor::new(&[3i64, 0, 7, 9], &device).unwrap();
        assert_eq!(labels("test", "l", &u, 4).unwrap(), [3, 0, 7, 9]);
        assert_eq!(labels("test", "l", &i.narrow(0, 1, 2).unwrap(), 2).unwrap(), [0, 7]);
        let negative = Tensor::new(&[-1i64], &device).unwrap();
        let message = labels("test", "l", &negative, 1).unwrap_err().to_string();
        assert_eq!(message, "test: `l` is -1, expected labels in 0..=4294967295");
        assert!(matches!(labels("test", "l", &u, 5), Err(Error::Argument(_))));
        let float = Tensor::new(&[0.5f32], &device).unwrap();
        assert!(matches!(labels("test", "l", &float, 1), Err(Error::DType { .. })));
        assert_eq!(weights("test", "w", &float, 1).unwrap(), [0.5]);
        let m = Tensor::new(&[0u8, 1, 2], &device).unwrap();
        assert_eq!(mask("test", "m", &m, 3).unwrap(), [false, true, true]);
        assert!(matches!(mask("test", "m", &u, 4), Err(Error::DType { .. })));
        let square = u.reshape((2, 2)).unwrap();
        assert!(matches!(labels("test", "l", &square, 2), Err(Error::Rank { got: 2, .. })));
    }

    #[test]
    fn what_is_no_float_matrix_is_refused() {
        let x = counting(2, 3, DType::F32);
        assert!(matches!(
            Matrix::new("test", "x", &x.flatten_all().unwrap()),
            Err(Error::Rank { got: 1, .. })
        ));
        let wide = x.to_dtype(DType::F64).unwrap();
        let message = Matrix::new("test", "x", &wide).unwrap_err().to_string();
        assert_eq!(message, "test: `x` has dtype F64, expected f32, f16 or bf16");
        let converted: candle_core::Error = Matrix::new("test", "x", &wide).unwrap_err().into();
        assert!(converted.to_string().contains("expected f32, f16 or bf16"));
    }
}
