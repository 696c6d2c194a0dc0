//! The kernels on the CPU, by `consonance-simt`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consonance::cuda::{Error, Executor, Launch, Limits, Memory, Result};
use consonance_simt::{Buffer, Device, Fault, Library, Statistics};

/// The folder of the kernels.
pub fn kernel_folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    folder.canonicalize().expect("the folder kernels/")
}

/// All kernel files.
pub fn kernel_sources() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(kernel_folder()).expect("the folder kernels/");
    let mut sources: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry of kernels/").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    sources
}

/// An executor whose device is simulated. Each has memory and a schedule of its own.
pub struct Simt {
    library: Arc<Library>,
    device: Device,
    seed: AtomicU64,
    multiprocessors: u32,
    statistics: Mutex<Vec<(String, Statistics)>>,
}

impl Simt {
    /// A device of so many multiprocessors, on which plans depend but results must not, under a schedule.
    ///
    /// # Panics
    /// When the operating system gives no memory.
    pub fn new(library: Arc<Library>, multiprocessors: u32, seed: u64) -> Self {
        let device = Device::new().expect("memory for a simulated device");
        Self { library, device, seed: AtomicU64::new(seed), multiprocessors, statistics: Mutex::default() }
    }

    /// The kernels that were launched, by name, since the executor was made.
    pub fn launched(&self) -> BTreeSet<String> {
        self.counted().iter().map(|(name, _)| name.clone()).collect()
    }

    fn counted(&self) -> MutexGuard<'_, Vec<(String, Statistics)>> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each launch did, in their order.
    pub fn statistics(&self) -> Vec<(String, Statistics)> {
        self.counted().clone()
    }
}

fn refused(op: &'static str, kernel: &str) -> impl FnOnce(Fault) -> Error {
    let kernel = kernel.to_owned();
    move |fault| Error::Launch { op, kernel, reason: fault.to_string() }
}

// SAFETY: launches run at once, in the order of the calls; buffers are aligned to 256 bytes and live as long as their
// owner.
unsafe impl Executor for Simt {
    fn limits(&self) -> Limits {
        Limits { multiprocessors: self.multiprocessors, shared_bytes: 99 * 1024, grid: 2_147_483_647 }
    }

    fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        let buffer: Buffer = self.device.allocate(bytes.max(1)).map_err(refused(op, "allocation"))?;
        let (address, bytes) = (buffer.address(), buffer.bytes());
        // SAFETY: the buffer frees its memory when it is dropped.
        Ok(unsafe { Memory::new(address, bytes, Box::new(buffer)) })
    }

    fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory> {
        let padded;
        let bytes = if bytes.is_empty() {
            padded = [0];
            &padded
        } else {
            bytes
        };
        let buffer = self.device.upload(bytes).map_err(refused(op, "upload"))?;
        let (address, bytes) = (buffer.address(), buffer.bytes());
        // SAFETY: as above.
        Ok(unsafe { Memory::new(address, bytes, Box::new(buffer)) })
    }

    fn download(&self, op: &'static str, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        let buffer = memory.owner::<Buffer>().ok_or_else(|| Error::Launch {
            op,
            kernel: "download".to_owned(),
            reason: "the memory is of another device".to_owned(),
        })?;
        self.device.download(buffer, bytes).map_err(refused(op, "download"))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        // Another order for every launch.
        let next = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let seed = self.seed.load(Relaxed);
        self.seed.store(next(seed), Relaxed);
        let simulated = consonance_simt::Launch {
            kernel: launch.entry,
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            params: launch.params,
            seed,
        };
        let statistics =
            self.device.launch(&self.library, &simulated).map_err(refused(launch.op, launch.entry))?;
        self.counted().push((launch.entry.to_owned(), statistics));
        Ok(())
    }
}
