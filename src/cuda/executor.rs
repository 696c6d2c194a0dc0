//! What kernels run on, and what a launch is.

use std::any::Any;
use std::marker::PhantomData;

use super::{Error, Result};

/// Memory and launches of one device, in the order of the calls (one stream).
///
/// # Safety
/// An implementation runs `launch`es, `upload`s and `download`s in the order of the calls, gives addresses aligned
/// to at least 256 bytes, and keeps the memory of a [`Memory`] valid until its `owner` is dropped and everything
/// launched before has run.
pub unsafe trait Executor: Send + Sync {
    /// The limits that plans are made for.
    fn limits(&self) -> Limits;

    /// Memory with undefined content; at least one byte, also when none is asked for.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] and errors of the driver.
    fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory>;

    /// Memory for one call of an operation, with undefined content. An executor may keep it when it is dropped and
    /// lend it again.
    ///
    /// # Errors
    /// As [`Executor::allocate`].
    fn scratch(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        self.allocate(op, bytes)
    }

    /// Memory with this content.
    ///
    /// # Errors
    /// As [`Executor::allocate`].
    fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory>;

    /// The content of the first `bytes.len()` bytes, after everything launched before. Waits for the device.
    ///
    /// # Errors
    /// Errors of the driver, also those of earlier launches.
    fn download(&self, op: &'static str, memory: &Memory, bytes: &mut [u8]) -> Result<()>;

    /// Enqueues a kernel and returns without waiting.
    ///
    /// # Errors
    /// [`Error::NoKernel`] when the device has no such kernel, [`Error::Launch`] when the driver refuses.
    ///
    /// # Safety
    /// `launch.params` are the bytes of the struct that `launch.entry` takes, and every address in it is valid for
    /// what the kernel reads and writes there under this grid.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;
}

/// What a device allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may ask for, in bytes.
    pub shared_bytes: u32,
    /// Blocks in the first dimension of a grid; 65,535 in the other two.
    pub grid: u32,
}

/// Memory of a device, freed on drop.
pub struct Memory {
    address: u64,
    bytes: usize,
    owner: Box<dyn Any + Send>,
}

impl Memory {
    /// Memory at `address` that lives as long as `owner`.
    ///
    /// # Safety
    /// `owner` keeps `bytes` bytes at `address` of the device allocated.
    pub unsafe fn new(address: u64, bytes: usize, owner: Box<dyn Any + Send>) -> Self {
        Self { address, bytes, owner }
    }

    /// The device's address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What keeps the memory, when it is a `T`: an executor finds its own buffer.
    pub fn owner<T: Any>(&self) -> Option<&T> {
        self.owner.downcast_ref()
    }

    /// What keeps the memory, when it is a `T`, instead of the memory.
    ///
    /// # Errors
    /// The memory itself, when it is not a `T`.
    pub fn into_owner<T: Any>(self) -> std::result::Result<Box<T>, Self> {
        let Self { address, bytes, owner } = self;
        // `Box<dyn Any + Send>` gives back itself when it is not a `T`.
        owner.downcast().map_err(|owner| Self { address, bytes, owner })
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// One launch of one kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The public operation, for errors.
    pub op: &'static str,
    /// The kernel file, `kernels/<family>.cu`.
    pub family: &'static str,
    /// The kernel's name.
    pub entry: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block: what the kernel declares.
    pub threads: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The kernel's parameter struct, as bytes; aligned to 8.
    pub params: &'a [u8],
}

/// A parameter struct of a kernel: the same layout as its namesake in `kernels/include/abi.h`.
///
/// # Safety
/// `#[repr(C)]`, without padding, alignment at most 8, and equal to the C struct field by field.
pub unsafe trait Params: bytemuck::NoUninit {
    /// The name in `abi.h`.
    const NAME: &'static str;
}

/// How floats are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper 16 bits of an `f32`.
    BF16,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The end of a kernel's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// A matrix in the memory of a device: elements of a row are neighbors, rows are `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    address: u64,
    rows: usize,
    cols: usize,
    stride: usize,
    dtype: DType,
    memory: PhantomData<&'a ()>,
}

impl<'a> Matrix<'a> {
    /// A matrix in borrowed memory, `offset` elements behind its start.
    ///
    /// # Errors
    /// [`Error::Argument`] when the matrix does not fit into the memory or rows overlap.
    pub fn new(
        op: &'static str,
        argument: &'static str,
        memory: &'a Memory,
        dtype: DType,
        offset: usize,
        [rows, cols, stride]: [usize; 3],
    ) -> Result<Self> {
        let elements = memory.bytes() / dtype.bytes();
        let end = match rows {
            0 => Some(offset),
            _ => (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(cols)?.checked_add(offset)),
        };
        if stride < cols && rows > 1 || end.is_none_or(|end| end > elements) {
            let expected = format!("rows that do not overlap, within {elements} elements");
            return Err(consonance_cpu::Error::shape(op, argument, &[rows, cols, stride], expected).into());
        }
        let address = memory.address() + (offset * dtype.bytes()) as u64;
        Ok(Self { address, rows, cols, stride, dtype, memory: PhantomData })
    }

    /// A matrix at an address of the device.
    ///
    /// # Safety
    /// During `'a` the device holds elements of `dtype` there: `rows` rows of `cols`, `stride` apart.
    pub unsafe fn from_address(address: u64, dtype: DType, [rows, cols, stride]: [usize; 3]) -> Self {
        Self { address, rows, cols, stride, dtype, memory: PhantomData }
    }

    /// The device's address of the first element.
    pub fn address(&self) -> u64 {
        self.address
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

    /// How elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

/// Elements of `T` in the memory of a device.
#[derive(Debug)]
pub struct Elements<'a, T> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a T>,
}

/// `u32` or `f32` numbers in the memory of a device.
pub type Words<'a> = Elements<'a, u32>;
/// Bytes in the memory of a device.
pub type Bytes<'a> = Elements<'a, u8>;

impl<T> Clone for Elements<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Elements<'_, T> {}

impl<'a, T> Elements<'a, T> {
    /// The first `len` elements of borrowed memory.
    ///
    /// # Errors
    /// [`Error::Argument`] when the memory is shorter.
    pub fn new(op: &'static str, argument: &'static str, memory: &'a Memory, len: usize) -> Result<Self> {
        let most = memory.bytes() / size_of::<T>();
        if len > most {
            let expected = format!("at most {most} elements");
            return Err(consonance_cpu::Error::shape(op, argument, &[len], expected).into());
        }
        Ok(Self { address: memory.address(), len, memory: PhantomData })
    }

    /// Elements at an address of the device.
    ///
    /// # Safety
    /// During `'a` the device holds `len` elements there, at a multiple of their size.
    pub unsafe fn from_address(address: u64, len: usize) -> Self {
        Self { address, len, memory: PhantomData }
    }

    /// The device's address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The one place from which kernels are launched.
///
/// # Errors
/// [`Error::Launch`] for a grid beyond the device's limits, and the errors of [`Executor::launch`].
///
/// # Safety
/// As [`Executor::launch`]: `params` is what `entry` takes and its addresses are valid.
pub(super) unsafe fn launch<P: Params>(
    executor: &dyn Executor,
    (op, family, entry): (&'static str, &'static str, &str),
    grid: [u64; 3],
    (threads, shared_bytes): (u32, u32),
    params: &P,
) -> Result<()> {
    if grid.contains(&0) {
        return Ok(());
    }
    let limits = executor.limits();
    let allowed = [u64::from(limits.grid), 65_535, 65_535];
    if grid.iter().zip(allowed).any(|(got, most)| *got > most) || shared_bytes > limits.shared_bytes {
        return Err(Error::Launch {
            op,
            kernel: entry.to_owned(),
            reason: format!(
                "a grid of {grid:?} blocks with {shared_bytes} bytes of shared memory each is past the device's \
                 {allowed:?} and {}; use fewer rows in a call",
                limits.shared_bytes
            ),
        });
    }
    let launch = Launch {
        op,
        family,
        entry,
        grid: grid.map(|blocks| blocks as u32),
        threads,
        shared_bytes,
        params: bytemuck::bytes_of(params),
    };
    // SAFETY: passed on to the caller.
    unsafe { executor.launch(&launch) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Counts launches and has no memory.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    // SAFETY: nothing is launched and no memory is handed out.
    unsafe impl Executor for Counting {
        fn limits(&self) -> Limits {
            Limits { multiprocessors: 1, shared_bytes: 1000, grid: 100_000 }
        }

        fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory> {
            Err(Error::OutOfMemory { op, bytes })
        }

        fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory> {
            self.allocate(op, bytes.len())
        }

        fn download(&self, _: &'static str, _: &Memory, _: &mut [u8]) -> Result<()> {
            Ok(())
        }

        unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
            assert_eq!(launch.params.len(), 24);
            self.0.fetch_add(1, Relaxed);
            Ok(())
        }
    }

    #[test]
    fn launches_past_the_limits_are_refused_and_empty_ones_left_out() {
        let executor = Counting::default();
        let params = crate::cuda::abi::NeighborsBits::default();
        let run = |grid, shared| {
            // SAFETY: the executor launches nothing.
            unsafe { launch(&executor, ("op", "family", "kernel"), grid, (128, shared), &params) }
        };
        run([5, 65_535, 1], 1000).unwrap();
        run([0, 70_000, 1], 0).unwrap();
        assert_eq!(executor.0.load(Relaxed), 1);
        for (grid, shared) in
            [([100_001, 1, 1], 0), ([1, 65_536, 1], 0), ([1, 1, 1 << 40], 0), ([1, 1, 1], 1001)]
        {
            let text = run(grid, shared).unwrap_err().to_string();
            assert!(text.starts_with("op: kernel `kernel`: a grid of"), "{text}");
            assert!(text.contains("use fewer rows in a call"), "{text}");
        }
        assert_eq!(executor.0.load(Relaxed), 1);
        let text = executor.scratch("op", 77).unwrap_err().to_string();
        assert_eq!(
            text,
            "op: out of device memory, 77 bytes were asked for; free some, or use fewer rows in a call"
        );
    }

    #[test]
    fn matrices_stay_within_their_memory() {
        // SAFETY: nothing reads the address.
        let memory = unsafe { Memory::new(256, 80, Box::new(7u8)) };
        let matrix = |dtype, offset, shape| Matrix::new("op", "x", &memory, dtype, offset, shape);
        assert_eq!(matrix(DType::F32, 4, [4, 3, 4]).unwrap().address(), 272);
        assert_eq!(matrix(DType::BF16, 1, [3, 13, 13]).unwrap().address(), 258);
        assert!(matrix(DType::F32, 20, [0, 3, 3]).is_ok());
        for (offset, shape) in [(6, [4, 3, 4]), (0, [2, 5, 4]), (0, [usize::MAX, 1, 2]), (21, [0, 3, 3])] {
            let text = matrix(DType::F32, offset, shape).unwrap_err().to_string();
            assert!(text.contains("`x`") && text.contains("20 elements"), "{text}");
        }
        assert_eq!(memory.owner::<u8>(), Some(&7));
        let memory = memory.into_owner::<u32>().unwrap_err();
        assert_eq!(*memory.into_owner::<u8>().unwrap(), 7);
    }
}
