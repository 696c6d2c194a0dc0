//! Memory of a stream, and scratch memory that is used again.

use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use cudarc::driver::{CudaStream, result};

use super::Result;

/// Scratch grows in steps of this, so that slightly larger calls find room.
const STEP: usize = 1 << 20;

/// Bytes of the device, freed on drop behind everything that was launched on the stream before.
pub(super) struct Buffer {
    address: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
    /// The thread whose stream it is, for the per-thread stream.
    home: Option<ThreadId>,
}

impl Buffer {
    /// At least one byte. The stream's context is current.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        home: Option<ThreadId>,
        bytes: usize,
    ) -> std::result::Result<Self, result::DriverError> {
        let bytes = bytes.max(1);
        // SAFETY: the stream is live and its context current. The content is undefined, as `Executor::allocate` says.
        let address = unsafe {
            if stream.context().has_async_alloc() {
                result::malloc_async(stream.cu_stream(), bytes)
            } else {
                result::malloc_sync(bytes)
            }
        }?;
        Ok(Self { address, bytes, stream: stream.clone(), home })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_on(&self, stream: &CudaStream) -> bool {
        self.stream.cu_stream() == stream.cu_stream() && self.stream.context() == stream.context()
    }
}

impl Buffer {
    /// The address of memory that the caller now has to free, as [`Drop`] would.
    pub(super) fn leak(mut self) -> u64 {
        std::mem::take(&mut self.address)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What was leaked is another's; the driver's own addresses are never 0.
        if self.address == 0 {
            return;
        }
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        // On another thread the per-thread stream is another stream, which would not wait for the work on ours.
        let elsewhere = self.home.is_some_and(|home| home != std::thread::current().id());
        if elsewhere || !context.has_async_alloc() {
            context.record_err(context.synchronize());
        }
        // SAFETY: the address is from the allocation in `new` of the same kind and is freed once. What was launched
        // on the stream runs before the memory is given back, or has run where the line above waited.
        context.record_err(unsafe {
            if context.has_async_alloc() {
                result::free_async(self.address, self.stream.cu_stream())
            } else {
                result::free_sync(self.address)
            }
        });
    }
}

/// One buffer that is lent, comes back, and grows when more is asked for.
///
/// On one stream the next borrower's kernels run behind the last one's, so nobody waits. While it is out, a second
/// borrower gets a buffer of its own, and the larger of the two is kept.
#[derive(Default)]
pub(super) struct Arena {
    kept: Arc<Mutex<Option<Buffer>>>,
}

impl Arena {
    /// At least so many bytes.
    pub(super) fn lend(&self, bytes: usize, make: impl FnOnce(usize) -> Result<Buffer>) -> Result<Loan> {
        let kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let buffer = match kept {
            Some(buffer) if buffer.bytes >= bytes => buffer,
            too_small => {
                // Given back before the larger one is asked for: the two need not fit side by side.
                drop(too_small);
                make(bytes.max(1).checked_next_multiple_of(STEP).unwrap_or(bytes))?
            }
        };
        Ok(Loan { buffer: Some(buffer), home: self.kept.clone() })
    }
}

/// A buffer that goes back to its arena on drop.
pub(super) struct Loan {
    buffer: Option<Buffer>,
    home: Arc<Mutex<Option<Buffer>>>,
}

impl Loan {
    pub(super) fn address(&self) -> u64 {
        self.buffer.as_ref().map_or(0, Buffer::address)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut kept = self.home.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let larger = |buffer: &Buffer| kept.as_ref().is_none_or(|kept| kept.bytes < buffer.bytes);
        if self.buffer.as_ref().is_some_and(larger) {
            std::mem::swap(&mut *kept, &mut self.buffer);
        }
    }
}
