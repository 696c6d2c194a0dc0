//! A counting allocator: what an operation takes beyond its inputs, at its peak.
//!
//! A test binary installs it with `#[global_allocator] static ALLOCATOR: Counting = Counting;` and asks
//! [`peak_extra`]. It counts the whole process, so such a binary holds one test or runs them one after another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a tally of live and peak bytes.
#[derive(Debug)]
pub struct Counting;

// SAFETY: every call is handed to the system's allocator with the caller's own layout and pointer; the counters
// beside it touch no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(live, SeqCst);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the pointer came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The peak number of bytes allocated while `f` ran, beyond what was live before it started; the result of `f`
/// counts, as it is allocated too.
pub fn peak_extra<R>(f: impl FnOnce() -> R) -> (R, usize) {
    let before = LIVE.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = f();
    (result, PEAK.load(SeqCst) - before)
}
