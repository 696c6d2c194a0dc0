//! Which keys a query may find: bits, and classes as compressed rows.

use std::ops::Range;

/// The numbers of the keys whose bit is set, ascending.
pub(super) fn allowed(bits: &[u64], keys: usize) -> Vec<u32> {
    let mut allowed = Vec::with_capacity(bits.iter().map(|word| word.count_ones() as usize).sum());
    for (first, word) in (0u32..).step_by(64).zip(bits) {
        let mut word = *word;
        while word != 0 {
            allowed.push(first + word.trailing_zeros());
            word &= word - 1;
        }
    }
    // Bits behind the last key mean nothing.
    while allowed.last().is_some_and(|key| *key as usize >= keys) {
        allowed.pop();
    }
    allowed
}

/// Queries and keys in the order of their labels, ascending by number inside a label.
pub(super) struct Classes {
    pub(super) queries: Vec<u32>,
    pub(super) keys: Vec<u32>,
    /// Per label that both sides have: its queries and its keys, as positions in the two orders.
    pub(super) ranges: Vec<(Range<usize>, Range<usize>)>,
}

impl Classes {
    /// Groups the queries and those keys of `allowed` (all when `None`) whose label some query has.
    pub(super) fn new(query_labels: &[u32], key_labels: &[u32], allowed: Option<&[u32]>) -> Self {
        let mut queries: Vec<u32> = (0..query_labels.len() as u32).collect();
        queries.sort_unstable_by_key(|q| (query_labels[*q as usize], *q));
        let mut wanted: Vec<u32> = queries.iter().map(|q| query_labels[*q as usize]).collect();
        wanted.dedup();
        let is_wanted = |key: &u32| wanted.binary_search(&key_labels[*key as usize]).is_ok();
        let mut keys: Vec<u32> = match allowed {
            Some(allowed) => allowed.iter().copied().filter(is_wanted).collect(),
            None => (0..key_labels.len() as u32).filter(is_wanted).collect(),
        };
        keys.sort_unstable_by_key(|key| (key_labels[*key as usize], *key));
        let mut ranges = Vec::new();
        let (mut query, mut key) = (0, 0);
        for label in wanted {
            let run = |order: &[u32], labels: &[u32]| {
                order.iter().take_while(|i| labels[**i as usize] == label).count()
            };
            let (from, first) = (query, key);
            query += run(&queries[from..], query_labels);
            key += run(&keys[first..], key_labels);
            if key > first {
                ranges.push((from..query, first..key));
            }
        }
        Self { queries, keys, ranges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_in_order_and_cut_at_the_last_key() {
        assert_eq!(allowed(&[0b1011, 1 | 1 << 63], 128), [0, 1, 3, 64, 127]);
        assert_eq!(allowed(&[0b1011, 1 | 1 << 63], 65), [0, 1, 3, 64]);
        assert!(allowed(&[0], 3).is_empty());
    }

    #[test]
    fn classes_pair_the_queries_of_a_label_with_its_keys() {
        let classes = Classes::new(&[5, 2, 5, 9], &[2, 5, 7, 5, 2, 5], Some(&[0, 1, 3, 4]));
        assert_eq!(classes.queries, [1, 0, 2, 3]);
        assert_eq!(classes.keys, [0, 4, 1, 3]);
        assert_eq!(classes.ranges, [(0..1, 0..2), (1..3, 2..4)]);
    }
}
