//! Blocks one after the other, their threads as coroutines, both in an order that the seed picks.

use std::collections::{HashMap, VecDeque};

use corosensei::CoroutineResult;
use corosensei::stack::{DefaultStack, Stack};

use crate::Location;
use crate::collectives::lanes;
use crate::execution::{Execution, Next};
use crate::fault::FaultKind;
use crate::hooks::Running;
use crate::random::Random;
use crate::threads::{Coroutine, Gathering, Signal, State, Thread, operation};

/// The stack of a simulated thread.
const STACK_BYTES: usize = 128 * 1024;

/// The kernel's function in the library.
pub(crate) type Entry = unsafe extern "C" fn(params: *const u8);

/// Runs all blocks of a launch, or as far as the first fault, which `execution.defect` then holds.
///
/// # Safety
/// `entry` is the function of a kernel that was compiled for [`crate::hooks`], bound to them, and that takes the
/// parameters at `params`.
pub(crate) unsafe fn run(
    execution: &mut Execution<'_>,
    stacks: &mut Vec<DefaultStack>,
    entry: Entry,
    threads: usize,
) -> std::io::Result<()> {
    let blocks: u64 = execution.coordinates.grid.iter().map(|n| u64::from(*n)).product();
    while stacks.len() < threads {
        stacks.push(DefaultStack::new(STACK_BYTES)?);
    }
    let mut order: Vec<u64> = (0..blocks).collect();
    shuffle(&mut order, &mut execution.random);
    for block in order {
        begin(execution, block, threads);
        let mut coroutines: Vec<Coroutine> = Vec::with_capacity(threads);
        // From here on the execution is reached through this pointer alone, also by hooks.
        let shared: *mut Execution<'static> = std::ptr::from_mut(execution).cast();
        for thread in 0..threads {
            let Some(stack) = stacks.pop() else { break };
            execution.threads[thread].stack = (stack.limit().get(), stack.base().get());
            let params = execution.params.start as *const u8;
            coroutines.push(Coroutine::with_stack(stack, move |yielder, ()| {
                // SAFETY: the execution outlives its coroutines, and no reference to it is kept while they run.
                unsafe { (&mut (*shared).threads)[thread].yielder = yielder };
                // SAFETY: the caller vouches for the function and its parameters.
                unsafe { entry(params) };
            }));
        }
        let running = Running::new(shared);
        // SAFETY: `shared` is the exclusive reference given; the coroutines are those of its threads.
        unsafe { drive(shared, &mut coroutines) };
        drop(running);
        for mut coroutine in coroutines {
            if !coroutine.done() {
                // SAFETY: what is abandoned are frames of a kernel and of hooks; neither owns anything.
                unsafe { coroutine.force_reset() };
            }
            stacks.push(coroutine.into_stack());
        }
        if execution.defect.is_some() {
            break;
        }
    }
    Ok(())
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    for i in (1..items.len()).rev() {
        items.swap(i, random.below(i + 1));
    }
}

fn begin(execution: &mut Execution<'_>, block: u64, threads: usize) {
    let clock = execution.order.newest() + 1;
    execution.order.begin_block(threads, clock);
    execution.begun.push((clock, block));
    execution.clear_shared();
    execution.coordinates.block = execution.block_of(block);
    execution.at_barrier = 0;
    execution.threads.clear();
    execution.threads.extend((0..threads).map(|_| Thread {
        state: State::Ready,
        yielder: std::ptr::null(),
        stack: (0, 0),
        result: [0; 2],
        fenced: false,
        copies: VecDeque::new(),
        group: 0,
    }));
    execution.gathering.clear();
    execution.gathering.resize(threads.div_ceil(32), Gathering::default());
    execution.ready.clear();
    execution.ready.extend(0..threads as u32);
}

/// Runs threads until all have exited or one has done something wrong.
///
/// # Safety
/// `execution` is valid and not borrowed; `coroutines` are those of its threads, in order.
unsafe fn drive(execution: *mut Execution<'static>, coroutines: &mut [Coroutine]) {
    let mut alive = coroutines.len();
    while alive > 0 {
        let thread = {
            // SAFETY: valid by the caller's word; the reference ends before a coroutine runs.
            let execution = unsafe { &mut *execution };
            let Some(thread) = execution.pick() else {
                execution.deadlock();
                return;
            };
            if execution.statistics.switches > execution.limit {
                execution.endless(execution.place(thread));
                return;
            }
            thread
        };
        let yielded = coroutines[thread].resume(());
        // SAFETY: as above; the coroutine is suspended or gone.
        let execution = unsafe { &mut *execution };
        let next = match yielded {
            CoroutineResult::Yield(Signal::Preempted) => {
                execution.ready.push(thread as u32);
                Next::Continue
            }
            CoroutineResult::Yield(Signal::Blocked) => execution.settle(thread),
            CoroutineResult::Yield(Signal::Fault) => return,
            CoroutineResult::Return(()) => {
                alive -= 1;
                execution.exit(thread)
            }
        };
        if matches!(next, Next::Yield(Signal::Fault)) {
            return;
        }
    }
}

impl Execution<'_> {
    /// The thread that runs next.
    fn pick(&mut self) -> Option<usize> {
        if self.ready.is_empty() {
            return None;
        }
        let index = self.random.below(self.ready.len());
        let thread = self.ready.swap_remove(index) as usize;
        self.statistics.switches += 1;
        self.current = thread;
        self.stack = self.threads[thread].stack;
        self.coordinates.thread = [thread as u32, 0, 0];
        self.order.enter(thread);
        Some(thread)
    }

    /// Lets threads run on that the one just blocked has completed: those of a barrier, or of a warp that came to
    /// one operation from several places.
    fn settle(&mut self, thread: usize) -> Next {
        if let Some((warp, mask)) = self.late.take() {
            let places: Vec<usize> = lanes(mask).map(|lane| self.place(warp * 32 + lane)).collect();
            if !self.one_line(&places) {
                let message = "lanes of a warp come to a matrix operation on different lines".to_owned();
                return self.fault_of(FaultKind::DivergedWarp, thread, self.place(thread), message, true);
            }
            return self.complete(warp, mask, None);
        }
        if self.at_barrier == 0 {
            return Next::Continue;
        }
        if self.at_barrier < self.threads.len() {
            let waits = matches!(self.threads[thread].state, State::Barrier { .. });
            if waits && self.threads.iter().any(|t| matches!(t.state, State::Exited)) {
                return self.missing(thread);
            }
            return Next::Continue;
        }
        let places: Vec<usize> = (0..self.threads.len()).map(|t| self.place(t)).collect();
        if !self.one_line(&places) {
            let message = "threads of the block wait at different barriers".to_owned();
            return self.fault_of(FaultKind::DivergedBarrier, thread, self.place(thread), message, true);
        }
        self.at_barrier = 0;
        self.statistics.barriers += 1;
        self.order.barrier();
        for (index, thread) in self.threads.iter_mut().enumerate() {
            thread.state = State::Ready;
            self.ready.push(index as u32);
        }
        Next::Continue
    }

    fn one_line(&self, places: &[usize]) -> bool {
        let mut lines: HashMap<usize, Option<Location>> = HashMap::new();
        let mut distinct = places.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < 2 {
            return true;
        }
        for place in distinct {
            lines.insert(place, self.symbols.locate((place - self.image.start) as u64));
        }
        let mut lines = lines.into_values();
        let first = lines.next();
        lines.all(|line| line.is_some() && Some(&line) == first.as_ref())
    }

    fn exit(&mut self, thread: usize) -> Next {
        self.threads[thread].state = State::Exited;
        if self.at_barrier > 0 {
            let waiting = self.threads.iter().position(|t| matches!(t.state, State::Barrier { .. }));
            return self.missing(waiting.unwrap_or(thread));
        }
        self.missing_lane(thread)
    }

    /// A lane of the warp that waits for one that has exited.
    fn missing_lane(&mut self, exited: usize) -> Next {
        let first = exited / 32 * 32;
        let end = (first + 32).min(self.threads.len());
        for thread in first..end {
            if let State::Warp(arrival) = self.threads[thread].state
                && arrival.mask >> (exited % 32) & 1 != 0
            {
                let name = operation(arrival.op);
                let message = format!("waits at {name} for lane {}, which has exited", exited % 32);
                return self.fault_of(FaultKind::DivergedWarp, thread, arrival.at, message, true);
            }
        }
        Next::Continue
    }

    fn missing(&mut self, waiting: usize) -> Next {
        let message = "waits at a barrier that other threads of the block never come to".to_owned();
        self.fault_of(FaultKind::DivergedBarrier, waiting, self.place(waiting), message, true)
    }

    /// Nobody can run.
    fn deadlock(&mut self) {
        let barrier = self.threads.iter().position(|t| matches!(t.state, State::Barrier { .. }));
        let warp = self.threads.iter().position(|t| matches!(t.state, State::Warp(_)));
        let (thread, kind) = match (barrier, warp) {
            (Some(thread), _) => (thread, FaultKind::DivergedBarrier),
            (None, Some(thread)) => (thread, FaultKind::DivergedWarp),
            (None, None) => return,
        };
        let message = "waits for threads that wait for something else".to_owned();
        self.fault_of(kind, thread, self.place(thread), message, true);
    }

    /// Who waits where, in words.
    pub(crate) fn whereabouts(&self) -> String {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        let mut known: HashMap<(usize, u32), usize> = HashMap::new();
        for (index, thread) in self.threads.iter().enumerate() {
            let key = match thread.state {
                State::Ready => (0, 0),
                State::Exited => (0, 1),
                State::Barrier { at } => (at, 2),
                State::Warp(arrival) => (arrival.at, 3 + arrival.op),
            };
            let group = *known.entry(key).or_insert_with(|| {
                let place = || match self.symbols.locate((key.0 - self.image.start) as u64) {
                    Some(location) => format!(" at {location}"),
                    None => String::new(),
                };
                groups.push((
                    match thread.state {
                        State::Ready => "can run".to_owned(),
                        State::Exited => "exited".to_owned(),
                        State::Barrier { .. } => format!("wait in __syncthreads{}", place()),
                        State::Warp(arrival) => format!("wait in {}{}", operation(arrival.op), place()),
                    },
                    Vec::new(),
                ));
                groups.len() - 1
            });
            groups[group].1.push(index);
        }
        let parts: Vec<String> =
            groups.iter().map(|(what, threads)| format!("threads {} {what}", ranges(threads))).collect();
        parts.join("; ")
    }
}

/// Ascending numbers as ranges.
fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *n => *last = *n,
            _ => ranges.push((*n, *n)),
        }
    }
    let words: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    words.join(", ")
}
