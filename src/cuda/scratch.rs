//! Cutting one allocation into arrays.

/// Offsets of arrays in one piece of memory, each at a multiple of 256 bytes.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bytes: usize,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Makes room for an array and gives its offset.
    pub(super) fn take(&mut self, bytes: usize) -> u64 {
        let offset = self.bytes;
        self.bytes = (offset + bytes).next_multiple_of(256);
        offset as u64
    }

    /// The bytes of all arrays.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
