//! What a launch or an access can do wrong.

use std::fmt;
use std::path::PathBuf;

/// Why a launch was stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The kernel's name; empty for an upload or a download.
    pub kernel: String,
    /// The thread that was stopped, if one ran.
    pub thread: Option<ThreadIndex>,
    /// Where in the kernel, if a thread ran and the library has debug information there.
    pub location: Option<Location>,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.kernel.is_empty() {
            write!(f, "{}: ", self.kernel)?;
        }
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        if let Some(ThreadIndex { block, thread }) = self.thread {
            write!(f, "block {block:?} thread {thread}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// A thread of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadIndex {
    /// `blockIdx`.
    pub block: [u32; 3],
    /// `threadIdx.x`.
    pub thread: u32,
}

/// A place in a source file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// The file, as it was named to the compiler.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// The library has no kernel of that name.
    UnknownKernel,
    /// Another number of threads than the kernel declares, more shared memory than a block can have, or an empty grid.
    Launch,
    /// The bytes given are not as many as the kernel's parameter struct has.
    Params,
    /// The device's memory is used up.
    OutOfMemory,
    /// An access outside every allocation of global memory.
    GlobalBounds,
    /// An access outside the shared memory that the launch asked for.
    SharedBounds,
    /// An access to memory that is neither global, nor shared, nor the thread's own.
    Address,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// A read of memory that nobody wrote.
    Uninitialised,
    /// A write to the parameters or to constants.
    ReadOnly,
    /// Two unordered accesses of two threads to the same bytes, at least one of them a write.
    Race,
    /// An access to the target of an asynchronous copy before the thread that issued it has waited for it.
    PendingCopy,
    /// An asynchronous copy of more bytes than its size, or of fewer than none.
    CopySize,
    /// Threads of a block that do not come to the same barrier.
    DivergedBarrier,
    /// Lanes of a warp that do not come to the same operation.
    DivergedWarp,
    /// More steps than the device allows.
    Endless,
}
