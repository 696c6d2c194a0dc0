//! Memory with a state per byte: global memory, or the shared memory of a block.

use std::io;

use crate::pages::Pages;
use crate::race::{Conflict, Mode, Order, Shadow};

pub(crate) const INITIALISED: u8 = 1;
pub(crate) const PENDING: u8 = 2;
pub(crate) const ALLOCATED: u8 = 4;
pub(crate) const FREED: u8 = 8;

const READABLE: u8 = ALLOCATED | INITIALISED;

/// Bytes, their states and their last accesses; `1 << GRAIN` bytes share the memory of accesses.
pub(crate) struct Space<const GRAIN: u32> {
    pub(crate) data: Pages<u8>,
    pub(crate) state: Pages<u8>,
    shadow: Shadow<GRAIN>,
}

/// Why an access is refused.
pub(crate) enum Trouble {
    Bounds,
    Freed,
    Uninitialised { first: usize },
    Pending,
    Race(Conflict),
}

impl<const GRAIN: u32> Space<GRAIN> {
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        Ok(Self { data: Pages::new(bytes)?, state: Pages::new(bytes)?, shadow: Shadow::new(bytes)? })
    }

    /// The offset of an address in this space, if `bytes` bytes from there lie in it.
    #[inline]
    pub(crate) fn offset(&self, address: usize, bytes: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.data.as_ptr() as usize);
        (offset < self.data.len() && bytes <= self.data.len() - offset).then_some(offset)
    }

    /// Checks an access to `bytes` bytes and remembers it; inlined for each constant size.
    #[inline(always)]
    pub(crate) fn access(
        &mut self,
        order: &Order,
        floor: u64,
        mode: Mode,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Trouble> {
        let state = &mut self.state[offset..offset + bytes];
        let fine = match mode {
            Mode::Read | Mode::Atomic => state.iter().fold(true, |fine, s| fine & (*s == READABLE)),
            Mode::Write => state.iter().fold(true, |fine, s| fine & (*s | INITIALISED == READABLE)),
        };
        if !fine {
            return Err(self.trouble(offset, bytes));
        }
        self.shadow.access(order, floor, mode, offset, bytes).map_err(Trouble::Race)?;
        if mode == Mode::Write {
            state.fill(READABLE);
        }
        Ok(())
    }

    #[cold]
    fn trouble(&self, offset: usize, bytes: usize) -> Trouble {
        let state = &self.state[offset..offset + bytes];
        if state.iter().any(|s| s & FREED != 0) {
            Trouble::Freed
        } else if state.iter().any(|s| s & ALLOCATED == 0) {
            Trouble::Bounds
        } else if state.iter().any(|s| s & PENDING != 0) {
            Trouble::Pending
        } else {
            let first = state.iter().position(|s| s & INITIALISED == 0).unwrap_or(0);
            Trouble::Uninitialised { first: offset + first }
        }
    }
}
