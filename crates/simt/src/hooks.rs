//! What kernels call: the Rust side of `include/simt/hooks.h`.

use std::cell::Cell;
use std::ptr;

use crate::execution::{Execution, Next};
use crate::race::Mode;
use crate::threads::Signal;

/// `dim3` and `uint3`.
type Triple = [u32; 3];

/// Where a thread is.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Coordinates {
    pub(crate) thread: Triple,
    pub(crate) block: Triple,
    pub(crate) threads: Triple,
    pub(crate) grid: Triple,
}

#[repr(C)]
pub(crate) struct Pair {
    first: u64,
    second: u64,
}

type Access = extern "C" fn(usize, usize);

/// The table that a library of kernels is given.
#[repr(C)]
pub(crate) struct Hooks {
    read: [Access; 5],
    write: [Access; 5],
    range: extern "C" fn(usize, usize, u32, usize),
    atomic: extern "C" fn(usize, u32, u32, u64, u64, usize) -> u64,
    coordinates: extern "C" fn() -> *const Coordinates,
    shared_memory: extern "C" fn() -> *mut u8,
    barrier: extern "C" fn(usize),
    fence: extern "C" fn(),
    warp: extern "C" fn(u32, u32, u64, u32, u32, usize) -> u64,
    load_matrices: extern "C" fn(u32, usize, usize) -> Pair,
    multiply_add: extern "C" fn(u32, u64, u64, u64, u64, u64, usize) -> Pair,
    copy_async: extern "C" fn(usize, usize, u32, i32, usize),
    copy_async_commit: extern "C" fn(),
    copy_async_wait: extern "C" fn(u32, usize),
}

/// The one table.
pub(crate) static HOOKS: Hooks = Hooks {
    read: [read::<1>, read::<2>, read::<4>, read::<8>, read::<16>],
    write: [write::<1>, write::<2>, write::<4>, write::<8>, write::<16>],
    range,
    atomic,
    coordinates,
    shared_memory,
    barrier,
    fence,
    warp,
    load_matrices,
    multiply_add,
    copy_async,
    copy_async_commit,
    copy_async_wait,
};

thread_local! {
    /// The launch that runs on this thread of the process.
    static CURRENT: Cell<*mut Execution<'static>> = const { Cell::new(ptr::null_mut()) };
}

/// Makes `execution` the launch of this thread until it is dropped.
pub(crate) struct Running;

impl Running {
    pub(crate) fn new(execution: *mut Execution<'static>) -> Self {
        CURRENT.set(execution);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.set(ptr::null_mut());
    }
}

/// Lets the running thread do `action` and what follows from it. Without a launch, and so for a library's own
/// initialisers, nothing is done.
#[inline(always)]
fn with(action: impl FnOnce(&mut Execution) -> Next) {
    let execution = CURRENT.get();
    if execution.is_null() {
        return;
    }
    // SAFETY: `Running` holds a launch that outlives its coroutines, all of which run on this thread of the process
    // and one at a time; no reference is kept over a suspension, which only happens below.
    match action(unsafe { &mut *execution }) {
        Next::Continue => {}
        Next::Yield(signal) => suspend(execution, signal),
    }
}

#[cold]
#[inline(never)]
fn suspend(execution: *mut Execution, signal: Signal) {
    // SAFETY: as above; the yielder belongs to the coroutine that runs, which is this one, and lives on its stack.
    unsafe {
        let yielder = (*execution).yielder();
        (*yielder).suspend(signal);
    }
}

fn result() -> [u64; 2] {
    let execution = CURRENT.get();
    if execution.is_null() {
        return [0; 2];
    }
    // SAFETY: as in `with`.
    unsafe { (*execution).result() }
}

extern "C" fn read<const BYTES: usize>(address: usize, at: usize) {
    with(|execution| execution.access::<BYTES>(Mode::Read, address, at));
}

extern "C" fn write<const BYTES: usize>(address: usize, at: usize) {
    with(|execution| execution.access::<BYTES>(Mode::Write, address, at));
}

extern "C" fn range(address: usize, bytes: usize, write: u32, at: usize) {
    let mode = if write != 0 { Mode::Write } else { Mode::Read };
    with(|execution| execution.range(mode, address, bytes, at));
}

extern "C" fn atomic(address: usize, bytes: u32, op: u32, operand: u64, expected: u64, at: usize) -> u64 {
    with(|execution| execution.atomic(address, bytes as usize, op, [operand, expected], at));
    result()[0]
}

extern "C" fn coordinates() -> *const Coordinates {
    static NOWHERE: Coordinates =
        Coordinates { thread: [0; 3], block: [0; 3], threads: [0; 3], grid: [0; 3] };
    let execution = CURRENT.get();
    if execution.is_null() {
        return &raw const NOWHERE;
    }
    // SAFETY: as in `with`.
    unsafe { &raw const (*execution).coordinates }
}

extern "C" fn shared_memory() -> *mut u8 {
    let execution = CURRENT.get();
    if execution.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: as in `with`.
    unsafe { (*execution).shared_memory() }
}

extern "C" fn barrier(at: usize) {
    with(|execution| execution.barrier(at));
}

extern "C" fn fence() {
    with(|execution| execution.fence());
}

extern "C" fn warp(op: u32, mask: u32, value: u64, selector: u32, width: u32, at: usize) -> u64 {
    let words = [value, u64::from(selector), u64::from(width), 0, 0];
    with(|execution| execution.warp(op, mask, words, at));
    result()[0]
}

extern "C" fn load_matrices(op: u32, row: usize, at: usize) -> Pair {
    with(|execution| execution.load_matrices(op, row, at));
    let [first, second] = result();
    Pair { first, second }
}

extern "C" fn multiply_add(op: u32, c0: u64, c1: u64, a0: u64, a1: u64, b: u64, at: usize) -> Pair {
    with(|execution| execution.warp(op, u32::MAX, [c0, c1, a0, a1, b], at));
    let [first, second] = result();
    Pair { first, second }
}

extern "C" fn copy_async(to: usize, from: usize, size: u32, bytes: i32, at: usize) {
    with(|execution| execution.copy_async(to, from, size as usize, bytes, at));
}

extern "C" fn copy_async_commit() {
    with(|execution| execution.copy_async_commit());
}

extern "C" fn copy_async_wait(pending: u32, at: usize) {
    with(|execution| execution.copy_async_wait(u64::from(pending), at));
}
