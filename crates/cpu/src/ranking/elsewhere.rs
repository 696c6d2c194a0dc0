//! For backends that count on another device: which items are relevant, and measures from their counts.

use super::count::Place;
use super::roles::Roles;
use super::{Options, Ranking, Row};

/// The relevant items of every query, as compressed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relevant {
    /// Where each query's items start, and the end of the last: one more than there are queries.
    pub offsets: Vec<u64>,
    /// Item numbers.
    pub items: Vec<u32>,
}

impl Relevant {
    /// The items that each query should find and that are in its list.
    pub fn new(options: &Options<'_>) -> Self {
        let roles = Roles::new(options);
        let (mut offsets, mut items) = (vec![0], Vec::new());
        let (mut relevant, mut left_out) = (Vec::new(), Vec::new());
        for query in 0..options.query_labels.len() {
            roles.of(query, &mut relevant, &mut left_out);
            items.extend(relevant.iter().map(|position| roles.items[*position as usize]));
            offsets.push(items.len() as u64);
        }
        Self { offsets, items }
    }
}

/// What was counted for the relevant items of every query, best first; arrays as long as [`Relevant::items`].
#[derive(Debug, Clone, Copy)]
pub struct Counts<'a> {
    /// Score and index in one integer, the larger the better; the upper half is the score.
    pub entries: &'a [u64],
    /// Irrelevant items between the relevant item and the one before it.
    pub between: &'a [u32],
    /// What adds up, modulo 2³² and from the first item on, to the irrelevant items that score the same as the
    /// relevant item and come behind it.
    pub ties: &'a [u32],
}

impl Ranking {
    /// The measures of lists whose relevant items have these counts.
    pub fn from_counts(relevant: &Relevant, counts: &Counts<'_>, options: &Options<'_>) -> Self {
        let mut ranking = Self::default();
        for bounds in relevant.offsets.windows(2) {
            let range = bounds[0] as usize..bounds[1] as usize;
            let places =
                places(&counts.entries[range.clone()], &counts.between[range.clone()], &counts.ties[range]);
            ranking.push(Row::new(&places, options), options);
        }
        ranking
    }
}

fn places(entries: &[u64], between: &[u32], ties: &[u32]) -> Vec<Place> {
    let (mut irrelevant, mut tied) = (0u64, 0u32);
    let mut places = Vec::with_capacity(entries.len());
    for (m, entry) in entries.iter().enumerate() {
        irrelevant += u64::from(between[m]);
        tied = tied.wrapping_add(ties[m]);
        let end = m + entries[m..].partition_point(|other| other >> 32 == entry >> 32);
        let relevant_behind = (end - m - 1) as u64;
        places.push(Place::new(*entry, irrelevant + m as u64, relevant_behind + u64::from(tied)));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranking::ApVariant;

    #[test]
    fn counts_become_ranks_and_ties() {
        // Scores 9, 5, 5, 5, 1: relevant are the first, the second and the fourth, then nothing.
        let relevant = Relevant { offsets: vec![0, 3, 3], items: vec![0, 1, 3] };
        let counts = Counts {
            entries: &[9 << 32 | 9, 5 << 32 | 8, 5 << 32 | 6],
            between: &[0, 0, 1],
            ties: &[0, 1, u32::MAX],
        };
        let labels = [0; 2];
        let options =
            Options { keep_ranks: true, variant: ApVariant::StepTies, ..Options::new(&labels, &labels) };
        let ranking = Ranking::from_counts(&relevant, &counts, &options);
        assert_eq!(ranking.ranks, [vec![1, 2, 4], vec![]]);
        assert_eq!(ranking.relevant, [3, 0]);
        // Precision 1 among the first, 3/4 among the first four, twice.
        assert_eq!(ranking.average_precision, [Some((1.0 + 2.0 * 0.75) / 3.0), None]);
    }

    #[test]
    fn relevant_items_leave_out_junk_cameras_and_ids() {
        let (queries, items) = ([1, 2, super::super::JUNK], [1, super::super::JUNK, 2, 1, 1]);
        let (cameras, ids) = (([0, 0, 0], [0, 0, 1, 1, 2]), ([7, 8, 9], [1, 2, 3, 7, 5]));
        let options = Options {
            cameras: Some((&cameras.0, &cameras.1)),
            ids: Some((&ids.0, &ids.1)),
            ..Options::new(&queries, &items)
        };
        let relevant = Relevant::new(&options);
        assert_eq!(relevant, Relevant { offsets: vec![0, 1, 2, 2], items: vec![4, 2] });
    }
}
