//! Asynchronous copies from global to shared memory.
//!
//! The source is read when a copy is issued; the target holds nothing that may be read or written from then until
//! its thread has waited, and gets its bytes at that wait, the latest moment there is. An earlier arrival could only
//! be seen by accesses that are faults.

use crate::execution::{Execution, Next};
use crate::fault::FaultKind;
use crate::race::Mode;
use crate::space::{ALLOCATED, INITIALISED, PENDING};
use crate::threads::{Copy, Signal};

impl Execution<'_> {
    pub(crate) fn copy_async(&mut self, to: usize, from: usize, size: usize, bytes: i32, at: usize) -> Next {
        let count = match usize::try_from(bytes) {
            Ok(count) if count <= size => count,
            _ => {
                let message = format!("an asynchronous copy of {size} bytes is asked for {bytes} of them");
                return self.fault(FaultKind::CopySize, at, message);
            }
        };
        if !to.is_multiple_of(size) || !from.is_multiple_of(size) {
            let message = format!(
                "an asynchronous copy of {size} bytes from {from:#x} to {to:#x}: both must be multiples"
            );
            return self.fault(FaultKind::Misaligned, at, message);
        }
        let Some(source) = self.memory.space.offset(from, count.max(1)) else {
            let message = format!(
                "an asynchronous copy of {count} bytes from {from:#x}, which is not in global memory"
            );
            return self.fault(FaultKind::GlobalBounds, at, message);
        };
        if count == 0 {
            if self.memory.space.state[source] & ALLOCATED == 0 {
                let near = self.memory.near(source);
                let message = format!(
                    "an asynchronous copy of no bytes from {near}: the address must be valid all the same"
                );
                return self.fault(FaultKind::GlobalBounds, at, message);
            }
        } else if let fault @ Next::Yield(Signal::Fault) = self.range(Mode::Read, from, count, at) {
            return fault;
        }
        let Some(target) = self.shared.offset(to, size) else {
            let message = format!("an asynchronous copy to {to:#x}, which is not in shared memory");
            return self.fault(FaultKind::SharedBounds, at, message);
        };
        let next = self.range(Mode::Write, to, size, at);
        if matches!(next, Next::Yield(Signal::Fault)) {
            return next;
        }
        self.statistics.async_copies += 1;
        self.shared.state[target..target + size].fill(ALLOCATED | PENDING);
        let mut data = [0; 16];
        data[..count].copy_from_slice(&self.memory.space.data[source..source + count]);
        let thread = &mut self.threads[self.current];
        thread.copies.push_back(Copy { to: target, size, data, group: thread.group });
        next
    }

    pub(crate) fn copy_async_commit(&mut self) -> Next {
        self.threads[self.current].group += 1;
        Next::Continue
    }

    pub(crate) fn copy_async_wait(&mut self, pending: u64, at: usize) -> Next {
        let thread = &mut self.threads[self.current];
        while let Some(copy) = thread.copies.front() {
            if copy.group + pending >= thread.group {
                break;
            }
            let Copy { to, size, data, .. } = *copy;
            thread.copies.pop_front();
            self.shared.state[to..to + size].fill(ALLOCATED | INITIALISED);
            self.shared.data[to..to + size].copy_from_slice(&data[..size]);
            // The bytes are this thread's from now on, whenever they came.
            let written = self.shared.access(&self.order, self.order.phase, Mode::Write, to, size);
            if written.is_err() {
                let message =
                    "an asynchronous copy arrives where another thread has written since".to_owned();
                return self.fault(FaultKind::Race, at, message);
            }
        }
        Next::Continue
    }
}
