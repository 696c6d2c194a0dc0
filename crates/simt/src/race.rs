//! Which accesses are ordered, and the shadow that remembers the last ones.
//!
//! Every thread has a clock that barriers and `__syncwarp` advance. The shadow of a cell of memory (two bytes of
//! shared memory, four of global memory) holds who wrote it last and who has read it since, each with its clock at
//! that time: an access is a race unless the accesses it conflicts with are ordered before it.
//!
//! A barrier orders everything, so that a whole vector of clocks per thread is not needed: one clock stands for all
//! that was before the latest barrier (`phase`), and behind it a thread only knows of lanes of its own warp. A
//! synchronisation object of another shape (an mbarrier) would add what it orders to `Order::known`.

use crate::pages::Pages;
use crate::release::Released;

/// Who accessed a cell, and when: mask of its bytes (bits 0-3), atomic (4), who (5-15), clock (from 16).
pub(crate) type Access = u64;

const ATOMIC: u64 = 1 << 4;
const WHO: u64 = 0x7ff << 5;
const LANES: u64 = 1024;
const SEVERAL_WARPS: u64 = 2046;
const SEVERAL_BLOCKS: u64 = 2047;

pub(crate) fn clock(access: Access) -> u64 {
    access >> 16
}

/// The thread, where it was one.
pub(crate) fn thread_of(access: Access) -> Option<u64> {
    Some(who(access)).filter(|who| *who < LANES)
}

fn who(access: Access) -> u64 {
    (access & WHO) >> 5
}

/// In words, for a fault.
pub(crate) fn describe(access: Access) -> String {
    let atomically = if access & ATOMIC != 0 { " (atomically)" } else { "" };
    let who = match who(access) {
        SEVERAL_BLOCKS => "threads of several blocks".to_owned(),
        SEVERAL_WARPS => "threads of several warps".to_owned(),
        lanes @ LANES.. => format!("several lanes of warp {}", lanes - LANES),
        thread => format!("thread {thread}"),
    };
    who + atomically
}

/// What is ordered before the running thread.
pub(crate) struct Order {
    /// The clock at which the launch began: all before is ordered.
    pub(crate) launch: u64,
    /// The clock at which the block began: before it other blocks of the launch ran.
    pub(crate) block: u64,
    /// The clock of the block's latest barrier.
    pub(crate) phase: u64,
    /// The clocks of all threads.
    pub(crate) clocks: Vec<u64>,
    /// For every thread and every lane of its warp, the clock before which that lane's accesses are ordered.
    pub(crate) known: Vec<[u64; 32]>,
    /// What atomics of this block have ordered before themselves of other blocks of this launch.
    acquired: Vec<(Access, Released)>,
    thread: u64,
    mine: Access,
}

impl Order {
    pub(crate) fn new(launch: u64) -> Self {
        Self {
            launch,
            block: launch,
            phase: launch,
            clocks: Vec::new(),
            known: Vec::new(),
            acquired: Vec::new(),
            thread: 0,
            mine: 0,
        }
    }

    /// Begins a block of `threads` threads at `clock`.
    pub(crate) fn begin_block(&mut self, threads: usize, clock: u64) {
        self.block = clock;
        self.phase = clock;
        self.clocks.clear();
        self.clocks.resize(threads, clock);
        self.known.clear();
        self.known.resize(threads, [1; 32]);
        // Lanes that the block does not have never access anything.
        let last = threads % 32;
        if last != 0 {
            for known in &mut self.known[threads - last..] {
                known[last..].fill(u64::MAX);
            }
        }
        self.acquired.clear();
    }

    pub(crate) fn newest(&self) -> u64 {
        self.clocks.iter().copied().max().unwrap_or(self.phase).max(self.phase)
    }

    pub(crate) fn enter(&mut self, thread: usize) {
        self.thread = thread as u64;
        self.mine = self.clocks[thread] << 16 | (thread as u64) << 5;
    }

    /// All threads of the block have come to a barrier.
    pub(crate) fn barrier(&mut self) {
        self.phase = self.newest() + 1;
        self.clocks.fill(self.phase);
        self.enter(self.thread as usize);
    }

    /// The lanes `mask` of `warp` have come to a `__syncwarp`.
    pub(crate) fn sync_warp(&mut self, warp: usize, mask: u32) {
        let lanes = || (0..32).filter(|lane| mask >> lane & 1 != 0).map(|lane| (warp * 32 + lane, lane));
        let now = lanes().map(|(thread, _)| self.clocks[thread]).max().unwrap_or(self.phase) + 1;
        let mut known = [0; 32];
        for (thread, _) in lanes() {
            for (all, one) in known.iter_mut().zip(&self.known[thread]) {
                *all = (*all).max(*one);
            }
        }
        lanes().for_each(|(_, lane)| known[lane] = now);
        for (thread, _) in lanes() {
            self.known[thread] = known;
            self.clocks[thread] = now;
        }
        self.enter(self.thread as usize);
    }

    /// What is ordered before the running thread, for a fenced atomic to pass on; what the thread does later is not.
    pub(crate) fn release(&mut self) -> Released {
        let mut released = Released::default();
        for (by, what) in &self.acquired {
            if self.ordered_within(*by) {
                released.add(what);
            }
        }
        let thread = self.thread as usize;
        released.add_range(self.block, self.phase - 1);
        released.add_thread(self.thread, self.phase, self.clocks[thread]);
        for lane in 0..32 {
            let other = thread / 32 * 32 + lane;
            if other != thread && other < self.clocks.len() {
                released.add_thread(other as u64, self.phase, self.known[thread][lane] - 1);
            }
        }
        self.clocks[thread] += 1;
        self.enter(thread);
        released
    }

    /// The running thread has come to an atomic that passes this on.
    pub(crate) fn acquire(&mut self, released: Released) {
        self.acquired.push((self.mine, released));
    }

    /// Whether an access at or after `floor` is ordered before the running thread.
    fn ordered(&self, access: Access) -> bool {
        let clock = clock(access);
        if clock < self.block {
            return clock < self.launch
                || self.acquired.iter().any(|(by, what)| self.ordered_within(*by) && what.contains(access));
        }
        self.ordered_within(access)
    }

    /// The same for an access of this block.
    fn ordered_within(&self, access: Access) -> bool {
        let clock = clock(access);
        let who = who(access);
        if clock < self.phase || who == self.thread {
            return true;
        }
        let warp = self.thread >> 5;
        let known = &self.known[self.thread as usize];
        if who < LANES {
            who >> 5 == warp && clock < known[(who & 31) as usize]
        } else {
            let own = (self.thread & 31) as usize;
            who - LANES == warp && known.iter().enumerate().all(|(lane, k)| lane == own || clock < *k)
        }
    }

    /// The accesses `old` and `new` to one cell as one, for which both must be ordered before what follows.
    fn merge(&self, old: Access, new: Access, floor: u64) -> Access {
        let clock = clock(old);
        if clock < floor || old & 0xf == 0 {
            return new;
        }
        let both = (old | new) & (0xf | ATOMIC);
        if clock < self.block {
            return clock << 16 | SEVERAL_BLOCKS << 5 | both;
        }
        if who(old) == self.thread {
            return new | both;
        }
        if self.ordered(old) {
            return new;
        }
        let warp = self.thread >> 5;
        let same_warp = who(old) >> 5 == warp || who(old) == LANES + warp;
        let group = if same_warp { LANES + warp } else { SEVERAL_WARPS };
        clock.max(new >> 16) << 16 | group << 5 | both
    }
}

/// The last accesses to memory in cells of `1 << GRAIN` bytes.
pub(crate) struct Shadow<const GRAIN: u32> {
    writes: Pages<u64>,
    reads: Pages<u64>,
}

/// An earlier access that is not ordered before this one.
pub(crate) struct Conflict {
    pub(crate) earlier: Access,
    pub(crate) wrote: bool,
}

/// How memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Read,
    Write,
    Atomic,
}

impl<const GRAIN: u32> Shadow<GRAIN> {
    const FULL: u64 = (1 << (1 << GRAIN)) - 1;

    pub(crate) fn new(bytes: usize) -> std::io::Result<Self> {
        let cells = (bytes >> GRAIN) + 1;
        Ok(Self { writes: Pages::new(cells)?, reads: Pages::new(cells)? })
    }

    /// Remembers an access to `bytes` bytes; accesses with a clock below `floor` are ordered before it.
    #[inline]
    pub(crate) fn access(
        &mut self,
        order: &Order,
        floor: u64,
        mode: Mode,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Conflict> {
        let (first, last) = (offset >> GRAIN, (offset + bytes - 1) >> GRAIN);
        let cells = self.writes[first..=last].iter_mut().zip(&mut self.reads[first..=last]);
        if (offset | bytes) & ((1 << GRAIN) - 1) == 0 {
            for (write, read) in cells {
                Self::cell(order, floor, mode, Self::FULL, write, read)?;
            }
            return Ok(());
        }
        for (cell, (write, read)) in (first..).zip(cells) {
            let mut mask = Self::FULL;
            if cell << GRAIN < offset {
                mask &= Self::FULL << (offset - (cell << GRAIN));
            }
            if (cell + 1) << GRAIN > offset + bytes {
                mask &= Self::FULL >> (((cell + 1) << GRAIN) - offset - bytes);
            }
            Self::cell(order, floor, mode, mask, write, read)?;
        }
        Ok(())
    }

    /// The same for the bytes `mask` of one cell.
    #[inline(always)]
    fn cell(
        order: &Order,
        floor: u64,
        mode: Mode,
        mask: u64,
        write: &mut Access,
        read: &mut Access,
    ) -> Result<(), Conflict> {
        let mine = order.mine | mask;
        let relevant = |old: Access| clock(old) >= floor && old & mask != 0;
        if relevant(*write) && !(mode == Mode::Atomic && *write & ATOMIC != 0) && !order.ordered(*write) {
            return Err(Conflict { earlier: *write, wrote: true });
        }
        if mode == Mode::Read {
            if clock(*read) < floor {
                *read = mine;
            } else if *read != mine {
                *read = order.merge(*read, mine, floor);
            }
            return Ok(());
        }
        if relevant(*read) && !order.ordered(*read) {
            return Err(Conflict { earlier: *read, wrote: false });
        }
        if mode == Mode::Atomic {
            let old = if *write & ATOMIC != 0 { *write } else { 0 };
            *write = order.merge(old, mine | ATOMIC, floor);
        } else if (*write ^ mine) >> 4 == 0 {
            *write |= mask;
        } else {
            *write = mine;
        }
        if mask == Self::FULL {
            *read = 0;
        }
        Ok(())
    }
}
