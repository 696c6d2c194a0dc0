//! Rows grouped by their class label, whatever the order in which they came.

/// The rows of every class: classes by ascending label, rows inside a class in their original order.
#[derive(Debug, Clone)]
pub(crate) struct Segments {
    /// The distinct labels, ascending.
    pub(crate) labels: Vec<u32>,
    /// `members[offsets[c]..offsets[c + 1]]` are the rows of class `c`.
    pub(crate) offsets: Vec<usize>,
    /// Row numbers, class by class.
    pub(crate) members: Vec<u32>,
    /// The class (a position in `labels`) of every row.
    pub(crate) class_of: Vec<u32>,
}

impl Segments {
    /// Groups by a stable counting sort; labels need be neither sorted nor contiguous, nor start at 0.
    pub(crate) fn by_label(labels: &[u32]) -> Self {
        if labels.is_sorted() {
            return Self::runs(labels);
        }
        let highest = labels.iter().copied().max().unwrap_or(0) as usize;
        // A table over the labels when they are dense enough for it, else a search among the distinct ones.
        if highest <= 8 * labels.len() + 1024 {
            let mut class = vec![u32::MAX; highest + 1];
            labels.iter().for_each(|label| class[*label as usize] = 0);
            let mut distinct = Vec::new();
            for (label, class) in class.iter_mut().enumerate().filter(|(_, class)| **class == 0) {
                *class = distinct.len() as u32;
                distinct.push(label as u32);
            }
            let class_of = labels.iter().map(|label| class[*label as usize]).collect();
            Self::from_classes(distinct, class_of)
        } else {
            let mut distinct = labels.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            let class_of =
                labels.iter().map(|label| distinct.partition_point(|other| other < label) as u32).collect();
            Self::from_classes(distinct, class_of)
        }
    }

    /// All `rows` as one class of label 0.
    pub(crate) fn single(rows: usize) -> Self {
        Self {
            labels: vec![0],
            offsets: vec![0, rows],
            members: (0..rows as u32).collect(),
            class_of: vec![0; rows],
        }
    }

    /// Classes that already lie one after the other.
    fn runs(labels: &[u32]) -> Self {
        let rows = labels.len();
        let mut all = Self {
            labels: Vec::new(),
            offsets: vec![0],
            members: (0..rows as u32).collect(),
            class_of: vec![0; rows],
        };
        for (class, run) in (0u32..).zip(labels.chunk_by(|a, b| a == b)) {
            let first = all.offsets[all.labels.len()];
            all.class_of[first..first + run.len()].fill(class);
            all.labels.push(run[0]);
            all.offsets.push(first + run.len());
        }
        all
    }

    fn from_classes(labels: Vec<u32>, class_of: Vec<u32>) -> Self {
        let (offsets, members) = counting_sort(&class_of, labels.len());
        Self { labels, offsets, members, class_of }
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn members(&self, class: usize) -> &[u32] {
        &self.members[self.offsets[class]..self.offsets[class + 1]]
    }
}

/// The positions of `keys` (all below `buckets`) sorted stably by key, and where each bucket starts.
pub(crate) fn counting_sort(keys: &[u32], buckets: usize) -> (Vec<usize>, Vec<u32>) {
    let mut offsets = vec![0usize; buckets + 1];
    keys.iter().for_each(|key| offsets[*key as usize + 1] += 1);
    for i in 0..buckets {
        offsets[i + 1] += offsets[i];
    }
    let mut next = offsets.clone();
    let mut order = vec![0u32; keys.len()];
    for (position, key) in keys.iter().enumerate() {
        let slot = &mut next[*key as usize];
        order[*slot] = position as u32;
        *slot += 1;
    }
    (offsets, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsorted_labels_with_gaps_group_stably() {
        for shift in [0u32, 5, 4_000_000_000] {
            let labels: Vec<u32> = [7, 2, 7, 2, 9, 2].iter().map(|l| l + shift).collect();
            let s = Segments::by_label(&labels);
            assert_eq!(s.labels, [2 + shift, 7 + shift, 9 + shift]);
            assert_eq!(s.offsets, [0, 3, 5, 6]);
            assert_eq!(s.members, [1, 3, 5, 0, 2, 4]);
            assert_eq!(s.class_of, [1, 0, 1, 0, 2, 0]);
        }
    }

    #[test]
    fn sorted_labels_group_as_unsorted_ones() {
        let labels = [0, 0, 3, 3, 3, 9, 10, 10, u32::MAX];
        let s = Segments::by_label(&labels);
        assert_eq!(s.labels, [0, 3, 9, 10, u32::MAX]);
        assert_eq!(s.offsets, [0, 2, 5, 6, 8, 9]);
        assert_eq!(s.members, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(s.class_of, [0, 0, 1, 1, 1, 2, 3, 3, 4]);
        assert!(Segments::by_label(&[]).labels.is_empty());
    }
}
