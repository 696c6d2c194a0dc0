//! From an address in a library to a line of a kernel.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::Location;

/// The debug information of a library, read when it is first asked for.
pub(crate) struct Symbols {
    library: PathBuf,
    /// Headers of the simulator: never the line that a fault is about.
    own: PathBuf,
    loader: Mutex<Option<addr2line::Loader>>,
}

impl Symbols {
    pub(crate) fn new(library: PathBuf, own: PathBuf) -> Self {
        Self { library, own, loader: Mutex::new(None) }
    }

    /// The line of the call before the return address `offset` of the library, seen through inlined functions of
    /// the simulator's own headers.
    pub(crate) fn locate(&self, offset: u64) -> Option<Location> {
        let mut loader = self.loader.lock().ok()?;
        if loader.is_none() {
            *loader = addr2line::Loader::new(&self.library).ok();
        }
        let mut frames = loader.as_ref()?.find_frames(offset.checked_sub(1)?).ok()?;
        while let Ok(Some(frame)) = frames.next() {
            if let Some(addr2line::Location { file: Some(file), line: Some(line), .. }) = frame.location
                && !Path::new(file).starts_with(&self.own)
            {
                return Some(Location { file: file.into(), line });
            }
        }
        None
    }
}

// SAFETY: the loader is only reached through the mutex, and it holds no reference to anything of the thread that
// made it: what keeps it from being `Send` are its own cells and the mapping of the file, which it owns.
unsafe impl Send for Symbols {}
// SAFETY: as above; a shared reference gives out nothing but locked access.
unsafe impl Sync for Symbols {}
