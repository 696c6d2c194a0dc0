//! Canaries around every allocation of an executor.

use std::sync::{Arc, Mutex, PoisonError};

use consonance::cuda::{Error, Executor, Launch, Limits, Memory, Result};

const GUARD: usize = 256;
/// A float that is not a number, a large index, a mask that says yes.
const CANARY: u8 = 0xff;

/// An executor whose allocations lie between canaries, and hold the same at first. What writes beside its memory is
/// found when the memory is freed, what reads memory that nobody wrote gets no zeros.
pub struct Guarded<E: Executor + 'static> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    executor: E,
    trespasses: Mutex<Vec<String>>,
}

impl<E: Executor> Guarded<E> {
    /// Guards this executor's memory.
    pub fn new(executor: E) -> Self {
        Self { shared: Arc::new(Shared { executor, trespasses: Mutex::default() }) }
    }

    /// What wrote beside its memory, of the memory freed so far.
    pub fn trespasses(&self) -> Vec<String> {
        self.shared.trespasses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn guard(&self, op: &'static str, content: &[u8]) -> Result<Memory> {
        let bytes = content.len().max(1);
        let mut all = vec![CANARY; bytes + 2 * GUARD];
        all[GUARD..GUARD + content.len()].copy_from_slice(content);
        let inner = self.shared.executor.upload(op, &all)?;
        let address = inner.address() + GUARD as u64;
        let between = Between { op, inner, bytes, shared: self.shared.clone() };
        // SAFETY: `between` owns the memory around and frees it when it is dropped.
        Ok(unsafe { Memory::new(address, bytes, Box::new(between)) })
    }
}

/// Memory between canaries.
struct Between<E: Executor> {
    op: &'static str,
    inner: Memory,
    bytes: usize,
    shared: Arc<Shared<E>>,
}

impl<E: Executor> Between<E> {
    fn content(&self) -> Result<Vec<u8>> {
        let mut all = vec![0; self.bytes + 2 * GUARD];
        self.shared.executor.download(self.op, &self.inner, &mut all)?;
        Ok(all)
    }
}

impl<E: Executor> Drop for Between<E> {
    fn drop(&mut self) {
        let trespass = match self.content() {
            Ok(all) => {
                let beside = all[..GUARD].iter().chain(&all[GUARD + self.bytes..]);
                let count = beside.filter(|byte| **byte != CANARY).count();
                (count > 0).then(|| format!("{}: {count} bytes beside an array of {}", self.op, self.bytes))
            }
            Err(error) => Some(error.to_string()),
        };
        self.shared.trespasses.lock().unwrap_or_else(PoisonError::into_inner).extend(trespass);
    }
}

// SAFETY: as the executor within: guards are multiples of 256 bytes, so addresses stay aligned.
unsafe impl<E: Executor + 'static> Executor for Guarded<E> {
    fn limits(&self) -> Limits {
        self.shared.executor.limits()
    }

    fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        self.guard(op, &vec![CANARY; bytes])
    }

    fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory> {
        self.guard(op, bytes)
    }

    fn download(&self, op: &'static str, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        let between = memory.owner::<Between<E>>().filter(|between| bytes.len() <= between.bytes);
        let between = between.ok_or_else(|| Error::Launch {
            op,
            kernel: "download".to_owned(),
            reason: "the memory is of another executor, or shorter".to_owned(),
        })?;
        bytes.copy_from_slice(&between.content()?[GUARD..][..bytes.len()]);
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.shared.executor.launch(launch) }
    }
}
