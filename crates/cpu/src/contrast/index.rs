//! Keys by label: ascending lists without a hash, in O(N).

/// Keys up to this many are compared, which is quicker than counting 2¹⁶ digits.
const FEW: usize = 4096;

/// The keys of each label, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    labels: Vec<u32>,
    starts: Vec<u32>,
    order: Vec<u32>,
}

impl Index {
    /// Sorts the keys that `keep` admits by (label, key).
    pub(crate) fn new(of: &[u32], keep: impl Fn(usize) -> bool) -> Self {
        let mut order: Vec<u32> = (0..of.len() as u32).filter(|j| keep(*j as usize)).collect();
        match order.len() <= FEW {
            true => order.sort_by_key(|j| of[*j as usize]),
            false => order = counted(of, order),
        }
        let (mut labels, mut starts) = (Vec::new(), Vec::new());
        for (at, j) in order.iter().enumerate() {
            let label = of[*j as usize];
            if labels.last() != Some(&label) {
                labels.push(label);
                starts.push(at as u32);
            }
        }
        starts.push(order.len() as u32);
        Self { labels, starts, order }
    }

    /// The keys of `label`, ascending; empty when there are none.
    pub(crate) fn keys(&self, label: u32) -> &[u32] {
        match self.labels.binary_search(&label) {
            Ok(at) => &self.order[self.starts[at] as usize..self.starts[at + 1] as usize],
            Err(_) => &[],
        }
    }
}

/// Sorts ascending keys by (label, key): two stable counting passes over 16 bits each.
fn counted(of: &[u32], mut order: Vec<u32>) -> Vec<u32> {
    let mut sorted = vec![0u32; order.len()];
    for shift in [0, 16] {
        let digit = |j: u32| (of[j as usize] >> shift) as usize & 0xffff;
        let mut counts = vec![0u32; 1 << 16];
        order.iter().for_each(|j| counts[digit(*j)] += 1);
        if counts.iter().any(|c| *c as usize == order.len()) {
            continue; // all keys share the digit: the pass would not move anything
        }
        let mut start = 0;
        for c in &mut counts {
            (*c, start) = (start, start + *c);
        }
        for j in &order {
            let at = &mut counts[digit(*j)];
            sorted[*at as usize] = *j;
            *at += 1;
        }
        std::mem::swap(&mut order, &mut sorted);
    }
    order
}

/// The part of an ascending list that lies in `range`.
pub(crate) fn within(list: &[u32], range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
    let start = list.partition_point(|j| (*j as usize) < range.start);
    let end = start + list[start..].partition_point(|j| (*j as usize) < range.end);
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ascending_and_complete_for_any_label() {
        for count in [5000, 100] {
            lists_of(count);
        }
        assert!(Index::new(&[], |_| true).keys(0).is_empty());
        assert!(Index::new(&[5, 5], |_| false).keys(5).is_empty());
    }

    fn lists_of(count: u32) {
        let of: Vec<u32> = (0..count).map(|j| [7, 70_000, u32::MAX, 0, j % 50][j as usize % 5]).collect();
        let index = Index::new(&of, |j| j % 11 != 3);
        for label in of.iter().copied().chain([1_000_000]) {
            let expected: Vec<u32> = (0..count).filter(|j| of[*j as usize] == label && j % 11 != 3).collect();
            assert_eq!(index.keys(label), expected);
        }
    }
}
