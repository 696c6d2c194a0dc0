//! Where an op runs: on the CPU backend, or by kernels.
//!
//! Kernels run where the tensors are, on a CUDA device. Inside [`with_kernels_on`] they also run for tensors of the
//! CPU, whose data is copied to an executor and back: so the ops, their backward passes and whole training steps are
//! tested with the kernels where there is no GPU.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::view;
use crate::cuda::{self, Bytes, Executor, Memory, Words};
use crate::{Error, Result};

thread_local! {
    static EXECUTOR: RefCell<Option<Arc<dyn Executor>>> = const { RefCell::new(None) };
}

/// Runs `f` with the ops of tensors on the CPU done by the kernels of `executor`, on this thread.
///
/// For tests of the kernels through the ops; ops without kernels run on the CPU backend as ever.
pub fn with_kernels_on<R>(executor: Arc<dyn Executor>, f: impl FnOnce() -> R) -> R {
    /// Puts back what was there before, also when `f` panics.
    struct Restore(Option<Arc<dyn Executor>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            EXECUTOR.set(self.0.take());
        }
    }
    let _restore = Restore(EXECUTOR.replace(Some(executor)));
    f()
}

/// Where the kernels of an op run, and how its tensors get there.
#[derive(Clone)]
pub(super) enum Place {
    /// An executor with memory of its own, for tensors of the CPU.
    Copied(Arc<dyn Executor>),
    /// The device of the tensors.
    #[cfg(feature = "candle-cuda")]
    Cuda(candle_core::CudaDevice, Arc<cuda::CudaExecutor>),
}

impl Place {
    /// Where an op on this tensor runs its kernels; `None` for the CPU backend.
    ///
    /// # Errors
    /// [`Error::Device`] for a device without kernels, and errors of the driver.
    pub(super) fn of(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<Option<Self>> {
        match tensor.device() {
            Device::Cpu => Ok(EXECUTOR.with_borrow(|executor| executor.clone().map(Self::Copied))),
            #[cfg(feature = "candle-cuda")]
            Device::Cuda(device) => {
                let executor = cuda::CudaExecutor::of_thread(&device.cuda_stream())?;
                Ok(Some(Self::Cuda(device.clone(), executor)))
            }
            other => {
                let got = format!("{:?}", other.location());
                Err(Error::Device {
                    op,
                    argument,
                    got,
                    expected: "the CPU, or CUDA with the feature `candle-cuda`",
                })
            }
        }
    }

    pub(super) fn executor(&self) -> &dyn Executor {
        match self {
            Self::Copied(executor) => &**executor,
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(_, executor) => &**executor,
        }
    }

    /// Checks that a tensor is where the kernels read it.
    fn check(&self, op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
        let here = match self {
            Self::Copied(_) => tensor.device().is_cpu(),
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(device, _) => match tensor.device() {
                Device::Cuda(other) => candle_core::backend::BackendDevice::same_device(device, other),
                _ => false,
            },
        };
        if here {
            return Ok(());
        }
        let got = format!("{:?}", tensor.device().location());
        Err(Error::Device { op, argument, got, expected: "the device of the queries" })
    }

    /// A float matrix `[rows, cols]`, read in place on a CUDA device when its rows are contiguous.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::DType`], [`Error::Device`] and errors of the driver.
    pub(super) fn matrix(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
    ) -> Result<PlacedMatrix> {
        self.check(op, argument, tensor)?;
        let (tensor, stride) = view::matrix(op, argument, tensor)?;
        let dtype = match tensor.dtype() {
            DType::F32 => cuda::DType::F32,
            DType::F16 => cuda::DType::F16,
            DType::BF16 => cuda::DType::BF16,
            got => return Err(Error::DType { op, argument, got, expected: "f32, f16 or bf16" }),
        };
        let shape = [tensor.dims()[0], tensor.dims()[1], stride];
        let (address, keep) = self.place(op, &tensor)?;
        Ok(PlacedMatrix { address, dtype, shape, keep })
    }

    /// Labels or ids `[len]`, `u32`, or `i64` when every value fits; to check these waits for the device.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::DType`], [`Error::Device`], [`Error::Argument`] and errors of the driver.
    pub(super) fn labels(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
        len: usize,
    ) -> Result<PlacedVector> {
        self.check(op, argument, tensor)?;
        view::check_vector_shape(op, argument, tensor, len)?;
        let words = match tensor.dtype() {
            DType::U32 => tensor.detach(),
            DType::I64 => {
                let words = tensor.detach().to_dtype(DType::U32)?;
                let differ = words.to_dtype(DType::I64)?.ne(&tensor.detach())?;
                if differ.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? != 0 {
                    let expected = format!("labels in 0..={}", u32::MAX);
                    return Err(consonance_cpu::Error::range(op, argument, "outside", expected).into());
                }
                words
            }
            got => return Err(Error::DType { op, argument, got, expected: "u32 or i64" }),
        };
        self.vector(op, words)
    }

    /// A mask `[len]` of `u8`.
    ///
    /// # Errors
    /// As [`Place::labels`].
    pub(super) fn mask(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
        len: usize,
    ) -> Result<PlacedVector> {
        self.check(op, argument, tensor)?;
        view::check_vector_shape(op, argument, tensor, len)?;
        match tensor.dtype() {
            DType::U8 => self.vector(op, tensor.detach()),
            got => Err(Error::DType { op, argument, got, expected: "u8, 0 or 1" }),
        }
    }

    /// Weights `[len]`, floats of any type, as `f32`.
    ///
    /// # Errors
    /// As [`Place::labels`].
    pub(super) fn floats(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
        len: usize,
    ) -> Result<PlacedVector> {
        self.check(op, argument, tensor)?;
        view::check_vector_shape(op, argument, tensor, len)?;
        match tensor.dtype() {
            DType::F32 | DType::F16 | DType::BF16 => self.vector(op, tensor.detach().to_dtype(DType::F32)?),
            got => Err(Error::DType { op, argument, got, expected: "f32, f16 or bf16" }),
        }
    }

    /// The elements of an `f32` tensor of any shape, one behind the other.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Device`] and errors of the driver.
    pub(super) fn numbers(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
    ) -> Result<PlacedVector> {
        self.check(op, argument, tensor)?;
        match tensor.dtype() {
            DType::F32 => self.vector(op, tensor.detach()),
            got => Err(Error::DType { op, argument, got, expected: "f32" }),
        }
    }

    /// Sets of bits `[rows, words]` of `u32`, and the words of one.
    ///
    /// # Errors
    /// As [`Place::labels`].
    pub(super) fn sets(
        &self,
        op: &'static str,
        argument: &'static str,
        tensor: &Tensor,
        rows: usize,
    ) -> Result<(PlacedVector, usize)> {
        self.check(op, argument, tensor)?;
        let &[got, words] = tensor.dims() else {
            return Err(Error::Rank { op, argument, got: tensor.rank(), expected: "[rows, words]" });
        };
        if got != rows {
            let expected = format!("[{rows}, words]");
            return Err(consonance_cpu::Error::shape(op, argument, tensor.dims(), expected).into());
        }
        match tensor.dtype() {
            DType::U32 => Ok((self.vector(op, tensor.detach())?, words)),
            got => Err(Error::DType { op, argument, got, expected: "u32, 32 bits a word" }),
        }
    }

    /// Makes what kernels have written to placed memory show in its tensor, which is contiguous: on a CUDA device it does
    /// already.
    ///
    /// # Errors
    /// Errors of the driver and of Candle.
    pub(super) fn write_back(&self, op: &'static str, keep: &Keep, to: &Tensor) -> Result<()> {
        match (self, keep) {
            (Self::Copied(executor), Keep::Memory(memory)) => {
                let mut bytes = vec![0; to.elem_count() * to.dtype().size_in_bytes()];
                executor.download(op, memory, &mut bytes)?;
                let new = Tensor::from_raw_buffer(&bytes, to.dtype(), to.dims(), &Device::Cpu)?;
                Ok(to.slice_set(&new, 0, 0)?)
            }
            #[cfg(feature = "candle-cuda")]
            _ => Ok(()),
        }
    }

    /// The elements of a tensor of any shape, one behind the other.
    pub(super) fn vector(&self, op: &'static str, tensor: Tensor) -> Result<PlacedVector> {
        let tensor = tensor.force_contiguous()?;
        let len = tensor.elem_count();
        let (address, keep) = self.place(op, &tensor)?;
        Ok(PlacedVector { address, len, keep })
    }

    /// A contiguous vector that kernels write, in place on a CUDA device.
    pub(super) fn target(&self, op: &'static str, tensor: &Tensor) -> Result<PlacedVector> {
        let (address, keep) = self.place(op, tensor)?;
        Ok(PlacedVector { address, len: tensor.elem_count(), keep })
    }

    /// The address of a tensor's first element, and what keeps it valid.
    fn place(&self, op: &'static str, tensor: &Tensor) -> Result<(u64, Keep)> {
        match self {
            Self::Copied(executor) => {
                let memory = executor.upload(op, &view::bytes(op, tensor)?)?;
                Ok((memory.address(), Keep::Memory(memory)))
            }
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(_, executor) => {
                Ok((on_device::address(executor, tensor)?, Keep::Tensor(tensor.clone())))
            }
        }
    }

    /// A tensor `[len]` of this memory: floats, `u32` or `u8`.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn list(&self, op: &'static str, memory: Memory, dtype: DType, len: usize) -> Result<Tensor> {
        Ok(self.tensor(op, memory, dtype, (len, 1))?.squeeze(1)?)
    }

    /// A tensor of this memory: floats, `u32` or `u8`.
    ///
    /// # Errors
    /// Errors of the driver.
    pub(super) fn tensor(
        &self,
        op: &'static str,
        memory: Memory,
        dtype: DType,
        shape: (usize, usize),
    ) -> Result<Tensor> {
        match self {
            Self::Copied(executor) => {
                let mut bytes = vec![0u8; shape.0 * shape.1 * dtype.size_in_bytes()];
                executor.download(op, &memory, &mut bytes)?;
                Ok(Tensor::from_raw_buffer(&bytes, dtype, &[shape.0, shape.1], &Device::Cpu)?)
            }
            #[cfg(feature = "candle-cuda")]
            Self::Cuda(device, executor) => on_device::tensor(op, (device, executor), memory, dtype, shape),
        }
    }
}

/// What keeps an address valid.
pub(super) enum Keep {
    Memory(Memory),
    #[cfg(feature = "candle-cuda")]
    Tensor(#[expect(dead_code, reason = "frees the storage when it is dropped")] Tensor),
}

/// A matrix where kernels read it.
pub(super) struct PlacedMatrix {
    address: u64,
    dtype: cuda::DType,
    shape: [usize; 3],
    pub(super) keep: Keep,
}

impl PlacedMatrix {
    pub(super) fn matrix(&self) -> cuda::Matrix<'_> {
        // SAFETY: the address is that of a tensor with this type, these rows and this stride, and `self` keeps it.
        unsafe { cuda::Matrix::from_address(self.address, self.dtype, self.shape) }
    }
}

/// A vector where kernels read it.
pub(super) struct PlacedVector {
    address: u64,
    len: usize,
    pub(super) keep: Keep,
}

impl PlacedVector {
    /// Of a tensor of 4-byte elements.
    pub(super) fn words(&self) -> Words<'_> {
        // SAFETY: the address is that of a tensor with so many elements, and `self` keeps it.
        unsafe { Words::from_address(self.address, self.len) }
    }

    /// Of a tensor of bytes.
    pub(super) fn bytes(&self) -> Bytes<'_> {
        // SAFETY: as above.
        unsafe { Bytes::from_address(self.address, self.len) }
    }
}

/// A copy of the storage of a contiguous tensor on a CUDA device: what `cuda_fwd` of a custom op returns.
#[cfg(feature = "candle-cuda")]
pub(super) fn cuda_storage(
    tensor: &Tensor,
) -> candle_core::Result<(candle_core::CudaStorage, candle_core::Shape)> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cuda(storage) => {
            Ok((candle_core::backend::BackendStorage::try_clone(storage, layout)?, tensor.shape().clone()))
        }
        _ => candle_core::bail!("a tensor on a CUDA device has another storage"),
    }
}

#[cfg(feature = "candle-cuda")]
mod on_device {
    use super::*;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    use candle_core::{CudaDevice, CudaStorage, Storage};

    /// The address of the first element of a tensor on this executor's device.
    pub(super) fn address(executor: &cuda::CudaExecutor, tensor: &Tensor) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(
                candle_core::Error::Msg("a tensor on a CUDA device has another storage".to_owned()).into()
            );
        };
        let stream = executor.stream();
        // The guard orders streams of one context among each other; here there is one stream, so it may be dropped
        // before the launch.
        let start = match tensor.dtype() {
            DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(stream).0,
            DType::F16 => storage.as_cuda_slice::<half::f16>()?.device_ptr(stream).0,
            DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(stream).0,
            DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(stream).0,
            DType::U8 => storage.as_cuda_slice::<u8>()?.device_ptr(stream).0,
            other => return Err(candle_core::Error::Msg(format!("no kernel reads {other:?}")).into()),
        };
        Ok(start + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
    }

    pub(super) fn tensor(
        op: &'static str,
        (device, executor): (&CudaDevice, &cuda::CudaExecutor),
        memory: Memory,
        dtype: DType,
        shape: (usize, usize),
    ) -> Result<Tensor> {
        let len = shape.0 * shape.1;
        let storage = match dtype {
            DType::F32 => {
                CudaStorage::wrap_cuda_slice(executor.into_slice::<f32>(op, memory, len)?, device.clone())
            }
            DType::F16 => {
                let slice = executor.into_slice::<half::f16>(op, memory, len)?;
                CudaStorage::wrap_cuda_slice(slice, device.clone())
            }
            DType::BF16 => {
                let slice = executor.into_slice::<half::bf16>(op, memory, len)?;
                CudaStorage::wrap_cuda_slice(slice, device.clone())
            }
            DType::U8 => {
                CudaStorage::wrap_cuda_slice(executor.into_slice::<u8>(op, memory, len)?, device.clone())
            }
            _ => CudaStorage::wrap_cuda_slice(executor.into_slice::<u32>(op, memory, len)?, device.clone()),
        };
        Ok(Tensor::from((Storage::Cuda(storage), shape)))
    }
}
