//! Lists of the best entries seen so far, one a query.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Entries of a list: the best `k` and some room, so that the best are selected now and then, not at every entry.
fn room(k: usize) -> usize {
    k + k.clamp(16, 256)
}

/// Bytes of one list.
pub(super) fn bytes(k: usize) -> usize {
    room(k) * size_of::<u64>()
}

/// One list a query, of one worker.
pub(super) struct Lists {
    k: usize,
    entries: Vec<u64>,
    lengths: Vec<usize>,
    /// For each query an entry at or below which none can be among the best `k`; 0 while unknown.
    floors: Vec<u64>,
}

impl Lists {
    pub(super) fn new(rows: usize, k: usize) -> Self {
        Self { k, entries: vec![0; rows * room(k)], lengths: vec![0; rows], floors: vec![0; rows] }
    }

    pub(super) fn floor(&self, row: usize) -> u64 {
        self.floors[row]
    }

    /// Takes over a floor that another worker found.
    pub(super) fn raise(&mut self, row: usize, floor: &AtomicU64) -> u64 {
        self.floors[row] = self.floors[row].max(floor.load(Relaxed));
        self.floors[row]
    }

    /// Adds an entry when it is above the floor; says whether the floor has risen.
    #[inline]
    pub(super) fn offer(&mut self, row: usize, entry: u64, shared: &AtomicU64) -> bool {
        if entry <= self.floors[row] {
            return false;
        }
        let room = room(self.k);
        let list = &mut self.entries[row * room..][..room];
        list[self.lengths[row]] = entry;
        self.lengths[row] += 1;
        if self.lengths[row] < room {
            return false;
        }
        let (_, last, _) = list.select_nth_unstable_by_key(self.k - 1, |e| Reverse(*e));
        let floor = (*last).max(self.floors[row]);
        self.lengths[row] = self.k;
        self.floors[row] = floor;
        shared.fetch_max(floor, Relaxed);
        true
    }

    /// The entries of a row, in no order.
    pub(super) fn row(&self, row: usize) -> &[u64] {
        &self.entries[row * room(self.k)..][..self.lengths[row]]
    }
}

/// The best `out.len()` entries of a row over all workers, nearest first; the rest of `out` stays 0.
///
/// Entries are distinct and totally ordered, so the result does not depend on who found which.
pub(super) fn merge(lists: &[Lists], row: usize, out: &mut [u64]) {
    let mut all: Vec<u64> = lists.iter().flat_map(|lists| lists.row(row)).copied().collect();
    if all.len() > out.len() {
        all.select_nth_unstable_by_key(out.len() - 1, |e| Reverse(*e));
        all.truncate(out.len());
    }
    all.sort_unstable_by_key(|e| Reverse(*e));
    out[..all.len()].copy_from_slice(&all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_the_best_whatever_the_order_and_the_split() {
        for k in [1, 2, 16, 33, 300] {
            let values: Vec<u64> = (1..2000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).collect();
            let mut truth = values.clone();
            truth.sort_unstable_by_key(|e| Reverse(*e));
            truth.truncate(k);
            for workers in [1, 3] {
                let shared = AtomicU64::new(0);
                let mut lists: Vec<_> = (0..workers).map(|_| Lists::new(1, k)).collect();
                for (i, value) in values.iter().enumerate() {
                    let lists = &mut lists[i % workers];
                    lists.raise(0, &shared);
                    lists.offer(0, *value, &shared);
                }
                let mut out = vec![0; k];
                merge(&lists, 0, &mut out);
                assert_eq!(out, truth, "k {k}, {workers} workers");
            }
        }
    }
}
