//! What the tests share: libraries of the kernels beside them, and launches in few words.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use consonance_simt::{Buffer, Device, Fault, Launch, Library, Statistics};

pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(name)
}

/// The kernels of a file, or `None` without a compiler.
pub(crate) fn library(name: &str) -> Option<Library> {
    if consonance_simt::skipped_without_compiler() {
        return None;
    }
    Some(Library::compile(&[source(name)], &[], &[]).unwrap_or_else(|error| panic!("{error}")))
}

pub(crate) fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn download(device: &Device, buffer: &Buffer, count: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * count];
    device.download(buffer, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Addresses, then 32-bit values, as a parameter struct has them.
pub(crate) fn params(addresses: &[&Buffer], values: &[u32]) -> Vec<u8> {
    let addresses = addresses.iter().flat_map(|b| b.address().to_le_bytes());
    addresses.chain(words(values)).collect()
}

pub(crate) struct Run<'a> {
    pub(crate) device: &'a Device,
    pub(crate) library: &'a Library,
}

impl Run<'_> {
    /// A launch of `blocks` blocks with as many threads as the kernel declares.
    pub(crate) fn launch(
        &self,
        kernel: &str,
        blocks: u32,
        shared_bytes: u32,
        params: &[u8],
        seed: u64,
    ) -> Result<Statistics, Fault> {
        let threads = self.library.kernel(kernel).map_or(32, |kernel| kernel.threads);
        self.device.launch(
            self.library,
            &Launch { kernel, grid: [blocks, 1, 1], threads, shared_bytes, params, seed },
        )
    }
}
