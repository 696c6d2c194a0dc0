//! The threads of a block, and what they wait for.

use std::collections::VecDeque;

use corosensei::Yielder;
use corosensei::stack::DefaultStack;

/// Why a thread gives the processor back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Another thread may run first.
    Preempted,
    /// It waits for others.
    Blocked,
    /// It has done something wrong and never runs again.
    Fault,
}

pub(crate) type Yield = Yielder<(), Signal>;
pub(crate) type Coroutine = corosensei::Coroutine<(), Signal, (), DefaultStack>;

/// An operation that the lanes of `mask` come to together.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) op: u32,
    pub(crate) mask: u32,
    /// The return address in the kernel.
    pub(crate) at: usize,
    pub(crate) words: [u64; 5],
}

/// The operation that lanes of a warp come to, as long as all of them come to the same place: an arrival there needs
/// no look at every other lane.
#[derive(Clone, Copy, Default)]
pub(crate) struct Gathering {
    pub(crate) op: u32,
    pub(crate) mask: u32,
    pub(crate) at: usize,
    /// The lanes that have come; none when the lanes' own states have to be looked at.
    pub(crate) here: u32,
}

impl Gathering {
    pub(crate) fn joins(&self, arrival: &Arrival, lane: usize) -> bool {
        self.here != 0
            && (self.op, self.mask, self.at) == (arrival.op, arrival.mask, arrival.at)
            && self.mask >> lane & 1 != 0
    }
}

#[derive(Clone, Copy)]
pub(crate) enum State {
    Ready,
    /// Waits for the others of its block.
    Barrier {
        at: usize,
    },
    /// Waits for the others of its warp.
    Warp(Arrival),
    Exited,
}

/// An asynchronous copy on its way.
pub(crate) struct Copy {
    /// The offset in shared memory.
    pub(crate) to: usize,
    pub(crate) size: usize,
    pub(crate) data: [u8; 16],
    pub(crate) group: u64,
}

pub(crate) struct Thread {
    pub(crate) state: State,
    pub(crate) yielder: *const Yield,
    /// The addresses of its stack.
    pub(crate) stack: (usize, usize),
    pub(crate) result: [u64; 2],
    /// It has called `__threadfence`.
    pub(crate) fenced: bool,
    pub(crate) copies: VecDeque<Copy>,
    /// The number of groups of copies that it has closed.
    pub(crate) group: u64,
}

/// The names of the operations of a warp, for faults.
pub(crate) fn operation(op: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "__shfl_sync",
        "__shfl_up_sync",
        "__shfl_down_sync",
        "__shfl_xor_sync",
        "__ballot_sync",
        "__any_sync",
        "__all_sync",
        "__reduce_min_sync",
        "__reduce_max_sync",
        "__reduce_min_sync",
        "__reduce_max_sync",
        "__reduce_add_sync",
        "__reduce_and_sync",
        "__reduce_or_sync",
        "__reduce_xor_sync",
        "__match_any_sync",
        "__syncwarp",
    ];
    const MATRIX: [&str; 4] =
        ["load_matrices_4", "load_matrices_4_transposed", "multiply_add_bf16", "multiply_add_f16"];
    let op = op as usize;
    NAMES.get(op).or_else(|| MATRIX.get(op.wrapping_sub(32))).copied().unwrap_or("an unknown operation")
}
