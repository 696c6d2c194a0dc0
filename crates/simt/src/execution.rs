//! The state of a running launch, and the accesses of its threads.

use std::collections::HashMap;
use std::ops::Range;

use crate::fault::FaultKind;
use crate::hooks::Coordinates;
use crate::memory::Memory;
use crate::race::{self, Mode, Order};
use crate::random::Random;
use crate::release::Released;
use crate::space::{ALLOCATED, Space, Trouble};
use crate::statistics::Statistics;
use crate::symbols::Symbols;
use crate::threads::{Gathering, Signal, State, Thread, Yield};

/// What the calling thread does next.
pub(crate) enum Next {
    Continue,
    Yield(Signal),
}

/// A fault before its place is looked up.
pub(crate) struct Defect {
    pub(crate) kind: FaultKind,
    pub(crate) thread: usize,
    pub(crate) at: usize,
    pub(crate) message: String,
    /// Whether the message ends in a list of who waits where.
    pub(crate) list: bool,
}

/// The most shared memory that a block can have: what compute capability 9.0 allows.
pub(crate) const SHARED_LIMIT: usize = 227 * 1024;
/// Bytes before and behind shared memory that belong to nobody.
pub(crate) const SHARED_GUARD: usize = 16 * 1024;
/// A thread gives way at one of this many accesses to shared memory, on average.
const PREEMPTION: usize = 64;

/// A launch. Lives at one address while its coroutines run; hooks reach it through a thread-local pointer.
pub(crate) struct Execution<'a> {
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: Space<1>,
    pub(crate) shared_bytes: usize,
    /// Addresses of the parameters and of the library, which may be read.
    pub(crate) params: Range<usize>,
    pub(crate) image: Range<usize>,
    pub(crate) symbols: &'a Symbols,
    /// Coverage counters are written in the library itself.
    pub(crate) image_writable: bool,
    pub(crate) order: Order,
    pub(crate) threads: Vec<Thread>,
    /// Per warp.
    pub(crate) gathering: Vec<Gathering>,
    pub(crate) ready: Vec<u32>,
    pub(crate) at_barrier: usize,
    /// A warp and mask whose operation the scheduler has to complete.
    pub(crate) late: Option<(usize, u32)>,
    pub(crate) random: Random,
    pub(crate) until_preemption: usize,
    pub(crate) statistics: Statistics,
    pub(crate) coordinates: Coordinates,
    /// Where blocks began, as clock and linear index, in the order in which they ran.
    pub(crate) begun: Vec<(u64, u64)>,
    /// Per address of an atomic, what fenced threads have passed on there.
    pub(crate) releases: HashMap<usize, Released>,
    /// Accesses, or switches between threads, after which a launch counts as endless.
    pub(crate) limit: u64,
    pub(crate) current: usize,
    pub(crate) stack: (usize, usize),
    pub(crate) defect: Option<Defect>,
}

impl Execution<'_> {
    pub(crate) fn yielder(&self) -> *const Yield {
        self.threads[self.current].yielder
    }

    pub(crate) fn result(&self) -> [u64; 2] {
        self.threads[self.current].result
    }

    pub(crate) fn shared_memory(&mut self) -> *mut u8 {
        self.shared.data[SHARED_GUARD..].as_mut_ptr()
    }

    /// Prepares shared memory for a new block: nothing in it is written.
    pub(crate) fn clear_shared(&mut self) {
        self.shared.state[SHARED_GUARD..SHARED_GUARD + self.shared_bytes].fill(ALLOCATED);
    }

    #[cold]
    pub(crate) fn fault(&mut self, kind: FaultKind, at: usize, message: String) -> Next {
        self.fault_of(kind, self.current, at, message, false)
    }

    #[cold]
    pub(crate) fn fault_of(
        &mut self,
        kind: FaultKind,
        thread: usize,
        at: usize,
        message: String,
        list: bool,
    ) -> Next {
        self.defect.get_or_insert(Defect { kind, thread, at, message, list });
        Next::Yield(Signal::Fault)
    }

    #[cold]
    pub(crate) fn endless(&mut self, at: usize) -> Next {
        let message =
            format!("the launch has not ended after {} steps (Device::with_step_limit)", self.limit);
        self.fault_of(FaultKind::Endless, self.current, at, message, true)
    }

    fn preempt(&mut self) -> Next {
        self.until_preemption -= 1;
        if self.until_preemption > 0 {
            return Next::Continue;
        }
        self.until_preemption = 1 + self.random.below(2 * PREEMPTION);
        Next::Yield(Signal::Preempted)
    }

    /// An access of its natural alignment.
    #[inline(always)]
    pub(crate) fn access<const BYTES: usize>(&mut self, mode: Mode, address: usize, at: usize) -> Next {
        if !address.is_multiple_of(BYTES) {
            return self.fault(
                FaultKind::Misaligned,
                at,
                format!("{} {BYTES} bytes at {address:#x}, which is no multiple of {BYTES}", verb(mode)),
            );
        }
        self.span(mode, address, BYTES, at)
    }

    /// An access that the compiler does not hold to be aligned.
    pub(crate) fn range(&mut self, mode: Mode, address: usize, bytes: usize, at: usize) -> Next {
        if bytes == 0 {
            return Next::Continue;
        }
        self.span(mode, address, bytes, at)
    }

    #[inline(always)]
    fn span(&mut self, mode: Mode, address: usize, bytes: usize, at: usize) -> Next {
        self.statistics.accesses += 1;
        if self.statistics.accesses > self.limit {
            return self.endless(at);
        }
        if let Some(offset) = self.shared.offset(address, bytes) {
            return match self.shared.access(&self.order, self.order.phase, mode, offset, bytes) {
                Ok(()) => {
                    let counter = if mode == Mode::Read {
                        &mut self.statistics.shared_bytes_read
                    } else {
                        &mut self.statistics.shared_bytes_written
                    };
                    *counter += bytes as u64;
                    self.preempt()
                }
                Err(trouble) => self.shared_fault(mode, offset, bytes, at, &trouble),
            };
        }
        if let Some(offset) = self.memory.space.offset(address, bytes) {
            return match self.memory.space.access(&self.order, self.order.launch, mode, offset, bytes) {
                Ok(()) => {
                    let counter = if mode == Mode::Read {
                        &mut self.statistics.global_bytes_read
                    } else {
                        &mut self.statistics.global_bytes_written
                    };
                    *counter += bytes as u64;
                    if mode == Mode::Atomic { self.preempt() } else { Next::Continue }
                }
                Err(trouble) => self.global_fault(mode, offset, bytes, at, &trouble),
            };
        }
        let within = |range: (usize, usize)| range.0 <= address && address + bytes <= range.1;
        if mode != Mode::Atomic && within(self.stack) {
            return Next::Continue;
        }
        let writable = mode == Mode::Read;
        if within((self.params.start, self.params.end)) {
            if writable {
                return Next::Continue;
            }
            return self.fault(FaultKind::ReadOnly, at, "writes to its parameters".to_owned());
        }
        if within((self.image.start, self.image.end)) {
            if writable || self.image_writable {
                return Next::Continue;
            }
            return self.fault(
                FaultKind::ReadOnly,
                at,
                "writes to a constant or a global variable".to_owned(),
            );
        }
        self.fault(
            FaultKind::Address,
            at,
            format!(
                "{} {bytes} bytes at {address:#x}, which is neither global nor shared memory, nor the thread's own",
                verb(mode)
            ),
        )
    }

    #[cold]
    fn shared_fault(
        &mut self,
        mode: Mode,
        offset: usize,
        bytes: usize,
        at: usize,
        trouble: &Trouble,
    ) -> Next {
        let byte = offset as i64 - SHARED_GUARD as i64;
        let what = format!("{} {bytes} bytes at byte {byte} of shared memory", verb(mode));
        let (kind, message) = match trouble {
            Trouble::Bounds | Trouble::Freed => {
                (FaultKind::SharedBounds, format!("{what}, which has {} bytes", self.shared_bytes))
            }
            Trouble::Uninitialised { first } => (
                FaultKind::Uninitialised,
                format!("{what}; nobody has written byte {}", *first as i64 - SHARED_GUARD as i64),
            ),
            Trouble::Pending => (
                FaultKind::PendingCopy,
                format!("{what}, the target of an asynchronous copy that its thread has not waited for"),
            ),
            Trouble::Race(conflict) => (FaultKind::Race, self.conflict(what, conflict)),
        };
        self.fault(kind, at, message)
    }

    #[cold]
    fn global_fault(
        &mut self,
        mode: Mode,
        offset: usize,
        bytes: usize,
        at: usize,
        trouble: &Trouble,
    ) -> Next {
        let what = format!("{} {bytes} bytes {}", verb(mode), self.memory.near(offset));
        let (kind, message) = match trouble {
            Trouble::Bounds => (FaultKind::GlobalBounds, format!("{what}: outside of every buffer")),
            Trouble::Freed => {
                (FaultKind::GlobalBounds, format!("{} {bytes} bytes of a freed buffer", verb(mode)))
            }
            Trouble::Uninitialised { first } => {
                let near = self.memory.near(*first);
                (FaultKind::Uninitialised, format!("{what}; nobody has written the byte {near}"))
            }
            Trouble::Pending => (FaultKind::PendingCopy, what),
            Trouble::Race(conflict) => (FaultKind::Race, self.conflict(what, conflict)),
        };
        self.fault(kind, at, message)
    }

    fn conflict(&self, what: String, conflict: &race::Conflict) -> String {
        let clock = race::clock(conflict.earlier);
        let mut who = race::describe(conflict.earlier);
        if clock < self.order.block {
            let index = self.begun.partition_point(|(begun, _)| *begun <= clock);
            if let Some((_, block)) = index.checked_sub(1).and_then(|i| self.begun.get(i)) {
                who = format!("{who} of block {:?}", self.block_of(*block));
            }
        }
        let did = if conflict.wrote { "wrote" } else { "read" };
        format!("{what}; {who} {did} it before and nothing orders the two")
    }

    /// The block of a linear index.
    pub(crate) fn block_of(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.coordinates.grid.map(u64::from);
        [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
    }

    pub(crate) fn atomic(
        &mut self,
        address: usize,
        bytes: usize,
        op: u32,
        operands: [u64; 2],
        at: usize,
    ) -> Next {
        let next = match bytes {
            4 => self.access::<4>(Mode::Atomic, address, at),
            _ => self.access::<8>(Mode::Atomic, address, at),
        };
        if matches!(next, Next::Yield(Signal::Fault)) {
            return next;
        }
        self.statistics.atomics += 1;
        let cell = if let Some(offset) = self.shared.offset(address, bytes) {
            &mut self.shared.data[offset..offset + bytes]
        } else if let Some(offset) = self.memory.space.offset(address, bytes) {
            &mut self.memory.space.data[offset..offset + bytes]
        } else {
            return next;
        };
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(cell);
        let old = u64::from_le_bytes(word);
        let new = combine(op, bytes, old, operands);
        cell.copy_from_slice(&new.to_le_bytes()[..bytes]);
        self.threads[self.current].result[0] = old;
        self.publish(address);
        next
    }

    /// `__threadfence`.
    pub(crate) fn fence(&mut self) -> Next {
        self.threads[self.current].fenced = true;
        Next::Continue
    }

    /// A thread that has fenced and comes to an atomic in global memory takes what the ones before it have passed on
    /// there, and adds what it knows itself.
    fn publish(&mut self, address: usize) {
        if !self.threads[self.current].fenced || self.shared.offset(address, 1).is_some() {
            return;
        }
        let released = self.releases.entry(address).or_default();
        self.order.acquire(released.clone());
        released.add(&self.order.release());
    }

    pub(crate) fn barrier(&mut self, at: usize) -> Next {
        self.threads[self.current].state = State::Barrier { at };
        self.at_barrier += 1;
        Next::Yield(Signal::Blocked)
    }
}

/// The new value of an atomic; the numbers are those of `simt::Atomic`.
fn combine(op: u32, bytes: usize, old: u64, [operand, expected]: [u64; 2]) -> u64 {
    let signed = |x: u64| if bytes == 4 { i64::from(x as u32 as i32) } else { x as i64 };
    match op {
        0 => old,
        1 => operand,
        2 => old.wrapping_add(operand),
        3 => old & operand,
        4 => old | operand,
        5 => old ^ operand,
        6 => old.min(operand),
        7 => old.max(operand),
        8 => signed(old).min(signed(operand)) as u64,
        9 => signed(old).max(signed(operand)) as u64,
        _ if old == expected => operand,
        _ => old,
    }
}

pub(crate) fn verb(mode: Mode) -> &'static str {
    match mode {
        Mode::Read => "reads",
        Mode::Write => "writes",
        Mode::Atomic => "atomically changes",
    }
}
