//! Global memory: one range of addresses, with a guard gap between allocations.

use std::collections::BTreeMap;
use std::io;

use crate::space::{ALLOCATED, FREED, INITIALISED, Space};

/// Alignment of allocations, and the gap between two of them at least.
const ALIGN: usize = 256;
/// Freed bytes that are kept apart before they are given out again, so that late accesses are noticed.
const QUARANTINE: usize = 16 << 20;
/// What memory holds before it is written.
const POISON: u8 = 0xcd;

pub(crate) struct Memory {
    pub(crate) space: Space<2>,
    /// The latest clock of all launches so far.
    pub(crate) clock: u64,
    /// Offset and bytes of what is allocated.
    live: BTreeMap<usize, usize>,
    /// Offset and length of what is free again, in its gaps.
    free: BTreeMap<usize, usize>,
    freed: usize,
    top: usize,
}

impl Memory {
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let space = Space::new(capacity)?;
        Ok(Self { space, clock: 1, live: BTreeMap::new(), free: BTreeMap::new(), freed: 0, top: ALIGN })
    }

    /// The offset of new memory for `bytes` bytes, at least one.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Option<usize> {
        let bytes = bytes.max(1);
        let length = bytes.checked_next_multiple_of(ALIGN)?.checked_add(ALIGN)?;
        let reused = if self.freed > QUARANTINE { self.reuse(length) } else { None };
        let offset = reused.or_else(|| self.grow(length)).or_else(|| self.reuse(length))?;
        self.live.insert(offset, bytes);
        self.space.state[offset..offset + bytes].fill(ALLOCATED);
        self.space.data[offset..offset + bytes].fill(POISON);
        Some(offset)
    }

    fn grow(&mut self, length: usize) -> Option<usize> {
        let end = self.top.checked_add(length).filter(|end| *end <= self.space.data.len())?;
        Some(std::mem::replace(&mut self.top, end))
    }

    fn reuse(&mut self, length: usize) -> Option<usize> {
        let (offset, free) = self.free.iter().find(|(_, free)| **free >= length).map(|(o, f)| (*o, *f))?;
        self.free.remove(&offset);
        if free > length {
            self.free.insert(offset + length, free - length);
        }
        self.freed -= length;
        self.space.state[offset..offset + length].fill(0);
        Some(offset)
    }

    pub(crate) fn release(&mut self, offset: usize) {
        let Some(bytes) = self.live.remove(&offset) else { return };
        self.space.state[offset..offset + bytes].fill(FREED);
        let mut length = bytes.next_multiple_of(ALIGN) + ALIGN;
        self.freed += length;
        let mut start = offset;
        if let Some(behind) = self.free.remove(&(offset + length)) {
            length += behind;
        }
        if let Some((before, free)) = self.free.range(..offset).next_back().map(|(o, f)| (*o, *f))
            && before + free == offset
        {
            start = before;
            length += free;
        }
        self.free.insert(start, length);
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.space.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.space.state[offset..offset + bytes.len()].fill(ALLOCATED | INITIALISED);
    }

    /// The first of `bytes` bytes that nobody wrote.
    pub(crate) fn unwritten(&self, offset: usize, bytes: usize) -> Option<usize> {
        self.space.state[offset..offset + bytes].iter().position(|s| s & INITIALISED == 0)
    }

    /// Where an offset lies that is in no allocation, in words.
    pub(crate) fn near(&self, offset: usize) -> String {
        let before = self.live.range(..=offset).next_back().map(|(o, b)| (offset - o, *b));
        let behind = self.live.range(offset..).next().map(|(o, b)| (o - offset, *b));
        match (before, behind) {
            (Some((from, bytes)), _) if from < bytes + ALIGN + ALIGN || behind.is_none() => {
                format!("at byte {from} of a buffer of {bytes} bytes")
            }
            (_, Some((until, bytes))) => format!("{until} bytes before a buffer of {bytes} bytes"),
            _ => "and nothing is allocated".to_owned(),
        }
    }
}
