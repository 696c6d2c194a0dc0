//! A simulated device: memory, and launches of kernels.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corosensei::stack::DefaultStack;

use crate::execution::{Execution, SHARED_GUARD, SHARED_LIMIT};
use crate::fault::{Fault, FaultKind, ThreadIndex};
use crate::hooks::Coordinates;
use crate::library::Library;
use crate::memory::Memory;
use crate::race::Order;
use crate::random::Random;
use crate::schedule;
use crate::space::Space;
use crate::statistics::Statistics;

/// Global memory and launches. Launches of one device run one after the other; devices are independent, so every
/// test has its own.
pub struct Device {
    memory: Arc<Mutex<Memory>>,
    stacks: Mutex<Vec<DefaultStack>>,
    step_limit: u64,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

/// Memory of a [`Device`], freed on drop.
pub struct Buffer {
    memory: Arc<Mutex<Memory>>,
    offset: usize,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// The address that kernels know it by, a multiple of 256.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        lock(&self.memory).release(self.offset);
    }
}

/// One launch of one kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block: what the kernel declares.
    pub threads: u32,
    /// Shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// The kernel's parameter struct, as bytes.
    pub params: &'a [u8],
    /// Picks the order of blocks and threads. A right kernel gives the same bits under every seed.
    pub seed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking test leaves behind is whole: nothing here panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// A device with 256 MiB of global memory; pages of it exist once they are used.
    ///
    /// # Errors
    /// When the operating system gives no addresses for that.
    pub fn new() -> io::Result<Self> {
        Self::with_capacity(256 << 20)
    }

    /// A device with `bytes` bytes of global memory, for which six times as many addresses are reserved.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn with_capacity(bytes: usize) -> io::Result<Self> {
        let memory = Arc::new(Mutex::new(Memory::new(bytes)?));
        Ok(Self { memory, stacks: Mutex::new(Vec::new()), step_limit: 10_000_000_000 })
    }

    /// The same device, on which a launch of more than `steps` accesses, or switches between threads, is a fault.
    /// Ten thousand million by default, which takes minutes; tests of wrong kernels want less. A loop that does neither
    /// is not noticed.
    #[must_use]
    pub fn with_step_limit(self, steps: u64) -> Self {
        Self { step_limit: steps, ..self }
    }

    /// Memory that nobody has written: reading it is a fault.
    ///
    /// # Errors
    /// [`FaultKind::OutOfMemory`].
    pub fn allocate(&self, bytes: usize) -> Result<Buffer, Fault> {
        let mut memory = lock(&self.memory);
        let Some(offset) = memory.allocate(bytes) else {
            return Err(host_fault(
                FaultKind::OutOfMemory,
                format!("no room for {bytes} bytes; ask for more with Device::with_capacity"),
            ));
        };
        let address = memory.space.data.as_ptr() as u64 + offset as u64;
        Ok(Buffer { memory: Arc::clone(&self.memory), offset, address, bytes })
    }

    /// Memory with this content.
    ///
    /// # Errors
    /// As [`Device::allocate`].
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer, Fault> {
        let buffer = self.allocate(bytes.len())?;
        lock(&self.memory).write(buffer.offset, bytes);
        Ok(buffer)
    }

    /// Overwrites the first `bytes.len()` bytes.
    ///
    /// # Errors
    /// [`FaultKind::GlobalBounds`] when the buffer is shorter or of another device.
    pub fn write(&self, buffer: &Buffer, bytes: &[u8]) -> Result<(), Fault> {
        self.own(buffer, bytes.len())?;
        lock(&self.memory).write(buffer.offset, bytes);
        Ok(())
    }

    /// The content of the first `bytes.len()` bytes.
    ///
    /// # Errors
    /// [`FaultKind::GlobalBounds`] when the buffer is shorter or of another device, [`FaultKind::Uninitialised`]
    /// when nobody has written some of the bytes.
    pub fn download(&self, buffer: &Buffer, bytes: &mut [u8]) -> Result<(), Fault> {
        self.own(buffer, bytes.len())?;
        let memory = lock(&self.memory);
        if let Some(first) = memory.unwritten(buffer.offset, bytes.len()) {
            let message =
                format!("a download of {} bytes, of which nobody has written byte {first}", bytes.len());
            return Err(host_fault(FaultKind::Uninitialised, message));
        }
        bytes.copy_from_slice(&memory.space.data[buffer.offset..buffer.offset + bytes.len()]);
        Ok(())
    }

    fn own(&self, buffer: &Buffer, bytes: usize) -> Result<(), Fault> {
        if !Arc::ptr_eq(&self.memory, &buffer.memory) {
            return Err(host_fault(FaultKind::GlobalBounds, "a buffer of another device".to_owned()));
        }
        if bytes > buffer.bytes {
            let message = format!("{bytes} bytes of a buffer of {}", buffer.bytes);
            return Err(host_fault(FaultKind::GlobalBounds, message));
        }
        Ok(())
    }

    /// Runs all threads of a launch.
    ///
    /// # Errors
    /// The first fault; what was written before it stays written, and the device can go on.
    pub fn launch(&self, library: &Library, launch: &Launch<'_>) -> Result<Statistics, Fault> {
        let fault = |kind, message| Fault { kernel: launch.kernel.to_owned(), ..host_fault(kind, message) };
        let Some(kernel) = library.kernel(launch.kernel) else {
            let names: Vec<&str> = library.kernels().map(|kernel| kernel.name.as_str()).collect();
            let message = format!("no such kernel; the library has {}", names.join(", "));
            return Err(fault(FaultKind::UnknownKernel, message));
        };
        if launch.params.len() != kernel.params_bytes {
            let message = format!(
                "{} bytes of parameters, the kernel's struct has {}",
                launch.params.len(),
                kernel.params_bytes
            );
            return Err(fault(FaultKind::Params, message));
        }
        if launch.threads != kernel.threads || !(1..=1024).contains(&launch.threads) {
            let message = format!("{} threads, the kernel declares {}", launch.threads, kernel.threads);
            return Err(fault(FaultKind::Launch, message));
        }
        if launch.shared_bytes as usize > SHARED_LIMIT || launch.grid.contains(&0) {
            let message = format!(
                "a grid of {:?} with {} bytes of shared memory; at least one block and at most {SHARED_LIMIT} bytes",
                launch.grid, launch.shared_bytes
            );
            return Err(fault(FaultKind::Launch, message));
        }
        self.run(library, kernel.entry, launch)
            .unwrap_or_else(|error| Err(fault(FaultKind::OutOfMemory, error.to_string())))
    }

    fn run(
        &self,
        library: &Library,
        entry: schedule::Entry,
        launch: &Launch<'_>,
    ) -> io::Result<Result<Statistics, Fault>> {
        let mut memory = lock(&self.memory);
        let mut stacks = lock(&self.stacks);
        // In words, for the alignment that a parameter struct may have.
        let mut params = vec![0u128; launch.params.len().div_ceil(16).max(1)];
        for (word, bytes) in params.iter_mut().zip(launch.params.chunks(16)) {
            let mut buffer = [0; 16];
            buffer[..bytes.len()].copy_from_slice(bytes);
            *word = u128::from_ne_bytes(buffer);
        }
        let start = params.as_ptr() as usize;
        let mut random = Random::new(launch.seed);
        let clock = memory.clock + 1;
        let mut execution = Execution {
            memory: &mut memory,
            shared: Space::new(SHARED_LIMIT + 2 * SHARED_GUARD)?,
            shared_bytes: launch.shared_bytes as usize,
            params: start..start + launch.params.len(),
            image: library.image(),
            symbols: library.symbols(),
            image_writable: library.counts_coverage(),
            order: Order::new(clock),
            threads: Vec::new(),
            gathering: Vec::new(),
            ready: Vec::new(),
            at_barrier: 0,
            late: None,
            until_preemption: 1 + random.below(64),
            random,
            statistics: Statistics::default(),
            coordinates: Coordinates {
                threads: [launch.threads, 1, 1],
                grid: launch.grid,
                ..Coordinates::default()
            },
            begun: Vec::new(),
            releases: HashMap::new(),
            limit: self.step_limit,
            current: 0,
            stack: (0, 0),
            defect: None,
        };
        // SAFETY: a library's kernels are compiled for the hooks that it is bound to, and the parameters have the
        // size of the kernel's struct.
        unsafe { schedule::run(&mut execution, &mut stacks, entry, launch.threads as usize)? };
        execution.memory.clock = execution.order.newest();
        let Some(defect) = execution.defect.take() else { return Ok(Ok(execution.statistics)) };
        let mut message = defect.message;
        if defect.list {
            message = format!("{message} ({})", execution.whereabouts());
        }
        let offset = defect.at.checked_sub(execution.image.start);
        Ok(Err(Fault {
            kind: defect.kind,
            kernel: launch.kernel.to_owned(),
            thread: Some(ThreadIndex { block: execution.coordinates.block, thread: defect.thread as u32 }),
            location: offset.and_then(|offset| execution.symbols.locate(offset as u64)),
            message,
        }))
    }
}

fn host_fault(kind: FaultKind, message: String) -> Fault {
    Fault { kind, kernel: String::new(), thread: None, location: None, message }
}
