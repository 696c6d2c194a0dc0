//! What blocks of one launch know of each other.
//!
//! The pattern of a last block: every block writes its part, fences, and comes to the same counter; the block that comes
//! last reads all parts. The counter orders what was before each of its atomics before what is after the later ones.

use crate::race::{Access, clock, thread_of};

/// Accesses that are ordered before an atomic.
#[derive(Clone, Default)]
pub(crate) struct Released {
    /// Those of all threads, by their clocks: what earlier barriers of their blocks have ordered.
    ranges: Vec<(u64, u64)>,
    /// Those of single threads since the latest barrier: thread, first and last clock.
    threads: Vec<(u64, u64, u64)>,
}

impl Released {
    pub(crate) fn contains(&self, access: Access) -> bool {
        let clock = clock(access);
        let within = |(first, last): (u64, u64)| first <= clock && clock <= last;
        self.ranges.iter().any(|range| within(*range))
            || thread_of(access)
                .is_some_and(|who| self.threads.iter().any(|t| t.0 == who && within((t.1, t.2))))
    }

    /// Blocks that run one after the other leave one range.
    pub(crate) fn add_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        for range in &mut self.ranges {
            if first <= range.1 + 1 && range.0 <= last + 1 {
                *range = (range.0.min(first), range.1.max(last));
                return;
            }
        }
        self.ranges.push((first, last));
    }

    pub(crate) fn add_thread(&mut self, thread: u64, first: u64, last: u64) {
        if first <= last && !self.threads.contains(&(thread, first, last)) {
            self.threads.push((thread, first, last));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        other.ranges.iter().for_each(|range| self.add_range(range.0, range.1));
        other.threads.iter().for_each(|thread| self.add_thread(thread.0, thread.1, thread.2));
    }
}
