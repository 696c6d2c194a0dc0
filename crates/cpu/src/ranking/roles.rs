//! Which items of the gallery are relevant to a query, and which are not in its list.

use super::{JUNK, Options};

/// Positions in the gallery without its junk, by label and by id.
pub(super) struct Roles<'a> {
    options: &'a Options<'a>,
    /// The items that are no junk, ascending: position → index.
    pub(super) items: Vec<u32>,
    /// Positions ordered by label, then ascending.
    by_label: Vec<u32>,
    /// Positions ordered by id, then ascending; empty without ids.
    by_id: Vec<u32>,
}

impl<'a> Roles<'a> {
    pub(super) fn new(options: &'a Options<'a>) -> Self {
        let labels = options.gallery_labels;
        let items: Vec<u32> = (0..labels.len() as u32).filter(|j| labels[*j as usize] != JUNK).collect();
        let ordered = |values: &[u32]| {
            let mut order: Vec<u32> = (0..items.len() as u32).collect();
            order.sort_unstable_by_key(|p| (values[items[*p as usize] as usize], *p));
            order
        };
        let by_label = ordered(labels);
        let by_id = options.ids.map(|(_, ids)| ordered(ids)).unwrap_or_default();
        Self { options, items, by_label, by_id }
    }

    /// The positions whose value is `value`, ascending.
    fn run<'b>(&self, order: &'b [u32], values: &[u32], value: u32) -> &'b [u32] {
        let of = |p: &u32| values[self.items[*p as usize] as usize];
        let from = order.partition_point(|p| of(p) < value);
        let to = order.partition_point(|p| of(p) <= value);
        &order[from..to]
    }

    /// Writes the positions of the query's relevant items and of the items that are not in its list, ascending.
    pub(super) fn of(&self, query: usize, relevant: &mut Vec<u32>, left_out: &mut Vec<u32>) {
        relevant.clear();
        left_out.clear();
        let options = self.options;
        if let Some((queries, ids)) = options.ids {
            left_out.extend_from_slice(self.run(&self.by_id, ids, queries[query]));
        }
        let label = options.query_labels[query];
        for position in self.run(&self.by_label, options.gallery_labels, label) {
            let item = self.items[*position as usize] as usize;
            let same_camera = options.cameras.is_some_and(|(q, g)| q[query] == g[item]);
            let same_id = options.ids.is_some_and(|(q, g)| q[query] == g[item]);
            if same_camera && !same_id {
                left_out.push(*position);
            }
            if !same_camera && !same_id && options.distractor != Some(label) && label != JUNK {
                relevant.push(*position);
            }
        }
        left_out.sort_unstable();
    }
}
