//! The executor of a CUDA device, over cudarc.

mod buffer;
mod failure;
mod functions;
mod probe;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, result, sys};

use super::{Error, Executor, Launch, Limits, Memory, Result};
use buffer::{Arena, Buffer};
use failure::Call;
use functions::Functions;
pub use probe::{available, device_count};

/// The handle that the driver gives every thread's own stream.
const PER_THREAD_STREAM: usize = 2;

/// A CUDA device, by one of its streams: everything runs in the order of the calls.
///
/// Nothing waits for the device but [`Executor::download`] and [`CudaExecutor::synchronize`]. With
/// `CONSONANCE_SYNC=1` every launch waits, so that an error names the kernel that caused it.
///
/// An executor can be shared between threads, unless it is on the per-thread stream: that one is another stream on
/// every thread, and the executor answers with an error on any but the thread it was made on.
pub struct CudaExecutor {
    stream: Arc<CudaStream>,
    functions: Arc<Functions>,
    limits: Limits,
    /// Copies from pageable memory may still read it after the call.
    host_is_read_late: bool,
    waits: bool,
    thread: Option<ThreadId>,
    arena: Arena,
    last: Mutex<String>,
}

impl std::fmt::Debug for CudaExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaExecutor(device {}, {:?})", self.stream.context().ordinal(), self.limits)
    }
}

impl CudaExecutor {
    /// A stream of its own on the device with this number.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver or without this device.
    pub fn new(ordinal: usize) -> Result<Self> {
        let devices = device_count()?;
        if ordinal >= devices {
            return Err(Error::NoDevice {
                reason: format!(
                    "device {ordinal} was asked for and the driver shows {devices}, counted from 0; \
                     CUDA_VISIBLE_DEVICES hides devices"
                ),
            });
        }
        let start =
            || -> std::result::Result<_, result::DriverError> { CudaContext::new(ordinal)?.new_stream() };
        let stream = start().map_err(|error| probe::no_device(error.0))?;
        Self::from_stream(stream)
    }

    /// An existing stream, such as the one of Candle's CUDA device.
    ///
    /// # Errors
    /// [`Error::NoDevice`] without a driver, and errors of the driver.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        available()?;
        let context = stream.context();
        let attribute = |attribute| {
            let value = context.attribute(attribute).map_err(|error| probe::no_device(error.0))?;
            Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
        };
        use sys::CUdevice_attribute as A;
        let limits = Limits {
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            grid: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
        };
        let host_is_read_late =
            attribute(A::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)? != 0;
        let per_thread = stream.cu_stream() as usize == PER_THREAD_STREAM;
        Ok(Self {
            functions: Functions::of(context, limits.shared_bytes),
            limits,
            host_is_read_late,
            waits: std::env::var("CONSONANCE_SYNC").as_deref() == Ok("1"),
            thread: per_thread.then(|| std::thread::current().id()),
            arena: Arena::default(),
            last: Mutex::default(),
            stream,
        })
    }

    /// The executor that this thread keeps for a stream, made at its first use, so that scratch memory is used
    /// again from one call to the next.
    ///
    /// # Errors
    /// As [`CudaExecutor::from_stream`].
    pub fn of_thread(stream: &Arc<CudaStream>) -> Result<Arc<Self>> {
        thread_local! {
            static KEPT: RefCell<HashMap<(usize, usize), Arc<CudaExecutor>>> = RefCell::default();
        }
        let key = (stream.context().cu_ctx() as usize, stream.cu_stream() as usize);
        if let Some(kept) = KEPT.with_borrow(|kept| kept.get(&key).cloned()) {
            return Ok(kept);
        }
        let made = Arc::new(Self::from_stream(stream.clone())?);
        KEPT.with_borrow_mut(|kept| kept.insert(key, made.clone()));
        Ok(made)
    }

    /// Memory of this executor as cudarc's slice of its first `len` elements, which frees it from now on.
    ///
    /// # Errors
    /// [`Error::Argument`] when the memory is shorter, or not from [`Executor::allocate`] of a CUDA executor.
    pub fn into_slice<T: DeviceRepr>(
        &self,
        op: &'static str,
        memory: Memory,
        len: usize,
    ) -> Result<CudaSlice<T>> {
        let bytes = memory.bytes();
        let buffer = match memory.into_owner::<Buffer>() {
            Ok(buffer) if len <= bytes / size_of::<T>() && buffer.is_on(&self.stream) => buffer,
            _ => {
                let expected = format!("memory of this executor with {len} elements");
                return Err(consonance_cpu::Error::shape(op, "memory", &[bytes], expected).into());
            }
        };
        // SAFETY: the address is that of a live allocation on this stream with room for `len` elements, which nobody
        // else frees any more; cudarc frees it by the same rule as `Buffer`. Any bits are a `T`, a plain number.
        Ok(unsafe { self.stream.upgrade_device_ptr(buffer.leak(), len) })
    }

    /// The stream that everything runs on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits for everything launched before.
    ///
    /// # Errors
    /// Errors of the driver, also those of earlier launches.
    pub fn synchronize(&self, op: &'static str) -> Result<()> {
        self.enter(op)?;
        self.call(op, "waiting for the device", self.stream.synchronize())
    }

    /// The milliseconds that the device spends on what `work` enqueues, by its own clock. Waits for it.
    ///
    /// # Errors
    /// Those of `work`, and errors of the driver.
    pub fn milliseconds(&self, op: &'static str, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        self.enter(op)?;
        let event = || {
            let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            self.call(op, "recording an event", event)
        };
        let start = event()?;
        work()?;
        let end = event()?;
        self.call(op, "measuring time", start.elapsed_ms(&end))
    }

    /// The milliseconds of a copy of so many bytes from one place of the device to another, the median of 10: the
    /// ceiling of what a kernel can read and write.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and errors of the driver.
    pub fn copy_milliseconds(&self, op: &'static str, bytes: usize) -> Result<f32> {
        let (from, to) = (self.buffer(op, bytes)?, self.buffer(op, bytes)?);
        let copy = || {
            // SAFETY: both buffers are live on this stream and hold `bytes` bytes; what is copied does not matter.
            let copied = unsafe {
                result::memcpy_dtod_async(to.address(), from.address(), bytes, self.stream.cu_stream())
            };
            self.call(op, "copying on the device", copied)
        };
        copy()?;
        let mut times = (0..10).map(|_| self.milliseconds(op, copy)).collect::<Result<Vec<f32>>>()?;
        times.sort_by(f32::total_cmp);
        Ok(times[5])
    }

    /// Makes the context current, on the right thread.
    fn enter(&self, op: &'static str) -> Result<()> {
        if self.thread.is_some_and(|home| home != std::thread::current().id()) {
            return Err(Error::Driver {
                op,
                reason: "this executor is on the per-thread stream of another thread; make one on each thread, or use \
                         a stream of its own"
                    .into(),
            });
        }
        self.call(op, "making the context current", self.stream.context().bind_to_thread())
    }

    fn call<T>(
        &self,
        op: &'static str,
        doing: &'static str,
        outcome: std::result::Result<T, result::DriverError>,
    ) -> Result<T> {
        outcome.map_err(|error| {
            let last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            Call { op, doing, last: &last }.error(error.0)
        })
    }

    fn buffer(&self, op: &'static str, bytes: usize) -> Result<Buffer> {
        self.enter(op)?;
        Buffer::new(&self.stream, self.thread, bytes).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { op, bytes },
            _ => match self.call::<()>(op, "allocating", Err(error)) {
                Err(error) => error,
                Ok(()) => Error::OutOfMemory { op, bytes },
            },
        })
    }
}

// SAFETY: one stream, whose driver runs launches and copies in the order of the calls; on the per-thread stream, calls
// from another thread are refused. The driver aligns allocations to 256 bytes. Freeing is enqueued on the same stream,
// behind everything launched before.
unsafe impl Executor for CudaExecutor {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        let buffer = self.buffer(op, bytes)?;
        let (address, bytes) = (buffer.address(), buffer.bytes());
        // SAFETY: the buffer owns these bytes.
        Ok(unsafe { Memory::new(address, bytes, Box::new(buffer)) })
    }

    fn scratch(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        let lent = self.arena.lend(bytes, |bytes| self.buffer(op, bytes))?;
        // SAFETY: the loan keeps the buffer, which owns at least these bytes.
        Ok(unsafe { Memory::new(lent.address(), bytes.max(1), Box::new(lent)) })
    }

    fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory> {
        let memory = self.allocate(op, bytes.len())?;
        if bytes.is_empty() {
            return Ok(memory);
        }
        // SAFETY: the memory is live on this stream and holds `bytes.len()` bytes or more. `bytes` outlives the copy:
        // the driver has read pageable memory when the call returns, and in the other cases we wait below.
        let copied = unsafe { result::memcpy_htod_async(memory.address(), bytes, self.stream.cu_stream()) };
        let read_late = self.host_is_read_late || is_page_locked(bytes);
        let waited = if read_late { self.stream.synchronize() } else { Ok(()) };
        self.call(op, "copying to the device", copied.and(waited))?;
        Ok(memory)
    }

    fn download(&self, op: &'static str, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() > memory.bytes() {
            let expected = format!("at most the {} bytes of the memory", memory.bytes());
            return Err(consonance_cpu::Error::shape(op, "bytes", &[bytes.len()], expected).into());
        }
        self.enter(op)?;
        let copied = if bytes.is_empty() {
            Ok(())
        } else {
            // SAFETY: the memory is live and large enough, and `bytes` is ours until the stream has been waited for,
            // which happens also when the copy could not be enqueued.
            unsafe { result::memcpy_dtoh_async(bytes, memory.address(), self.stream.cu_stream()) }
        };
        let waited = self.stream.synchronize();
        self.call(op, "copying from the device", copied.and(waited))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.enter(launch.op)?;
        let function = self.functions.get(launch)?;
        if launch.threads > function.max_threads || launch.shared_bytes > function.max_shared {
            return Err(Error::Launch {
                op: launch.op,
                kernel: launch.entry.to_owned(),
                reason: format!(
                    "a block of {} threads with {} bytes of shared memory was asked for, and on this device the kernel \
                     can have {} and {}; this is a mistake of the wrapper",
                    launch.threads, launch.shared_bytes, function.max_threads, function.max_shared
                ),
            });
        }
        {
            let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            last.clear();
            last.push_str(launch.entry);
        }
        let [x, y, z] = launch.grid;
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function is never unloaded. A kernel takes one struct, whose bytes the caller gives; the driver
        // copies them during the call and does not write to them. The caller vouches for the addresses in it.
        let launched = unsafe {
            result::launch_kernel(
                function.raw(),
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut params,
            )
        };
        let context = Call { op: launch.op, doing: "launching", last: launch.entry };
        launched.map_err(|error| context.launch_error(launch, error.0))?;
        if self.waits {
            self.stream.synchronize().map_err(|error| context.launch_error(launch, error.0))?;
        }
        Ok(())
    }
}

/// Whether the driver knows this memory of the host, so that a copy from it goes on behind the call.
fn is_page_locked(bytes: &[u8]) -> bool {
    let mut kind = 0u32;
    // SAFETY: the attribute is written as a 32-bit number, and `kind` outlives the call. Any address may be asked
    // about: the driver refuses those that it does not know.
    let asked = unsafe {
        sys::cuPointerGetAttribute(
            (&raw mut kind).cast(),
            sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            bytes.as_ptr() as sys::CUdeviceptr,
        )
    };
    asked == sys::CUresult::CUDA_SUCCESS && kind != 0
}
