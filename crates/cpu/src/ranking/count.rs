//! How many items stand before each relevant item.

use std::cmp::Reverse;
use std::ops::Range;

use rayon::prelude::*;

use super::roles::Roles;
use crate::scoring::{self, Bad, Metric, Scorer};
use crate::screen::Size;
use crate::{Rows, simd, tile};

/// Queries of a block.
pub(super) const BLOCK: usize = 128;
/// Items of a tile.
const TILE: usize = 512;
/// Items of a share: what one task of a block goes through.
const SHARE: usize = 16 * TILE;
/// Up to this many relevant items, a tile's row is compared with one after the other, 16 scores at a time; above,
/// every score finds its place among them by bisection.
const SWEEP: usize = 32;

/// Where a relevant item stands in its query's list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its score and index, ordered.
    entry: u64,
    /// Items with a nearer score.
    nearer: u64,
    /// Items of its score with a smaller index.
    before: u64,
    /// Items of its score with a larger index.
    behind: u64,
}

impl Place {
    /// The place behind `ahead` items and before `behind` items of the same score.
    pub(super) fn new(entry: u64, ahead: u64, behind: u64) -> Self {
        Self { entry, nearer: ahead, before: 0, behind }
    }

    /// The rank, from 1.
    pub(super) fn rank(&self) -> u64 {
        self.nearer + self.before + 1
    }

    /// Items that score no worse, itself included.
    pub(super) fn no_worse(&self) -> u64 {
        self.nearer + self.before + 1 + self.behind
    }

    /// Whether both have the same score.
    pub(super) fn ties_with(&self, other: &Self) -> bool {
        self.entry >> 32 == other.entry >> 32
    }
}

/// Counts for blocks of queries.
pub(super) struct Counter<'a> {
    pub(super) scorer: Scorer,
    pub(super) queries: Rows<'a>,
    pub(super) gallery: Rows<'a>,
    pub(super) roles: &'a Roles<'a>,
}

/// The queries of a block, converted and scaled, with their lists.
struct Block {
    rows: Vec<f32>,
    sizes: Vec<(Size, f64)>,
    /// Relevant items of every query, best first.
    places: Vec<Vec<Place>>,
    /// Positions that are not in the query's list, ascending.
    left_out: Vec<Vec<u32>>,
    largest: Size,
}

/// A tile of the gallery, converted and scaled, and its products with the block.
struct Tile {
    positions: Range<usize>,
    rows: Vec<f32>,
    start: Vec<f32>,
    sums: Vec<f32>,
    largest: Size,
}

impl Counter<'_> {
    /// The places of the relevant items of every query of a block, best first.
    pub(super) fn block(&self, range: Range<usize>) -> Result<Vec<Vec<Place>>, Bad> {
        let mut block = self.prepare(range)?;
        let items = self.roles.items.len();
        let shares: Vec<Range<usize>> =
            (0..items).step_by(SHARE).map(|from| from..items.min(from + SHARE)).collect();
        // Counts are integers: their sums do not depend on how the items are shared out.
        let counted = shares.into_par_iter().map(|share| self.share(&block, share)).try_reduce_with(
            |mut left, right| {
                for (left, right) in left.iter_mut().flatten().zip(right.iter().flatten()) {
                    left.nearer += right.nearer;
                    left.before += right.before;
                    left.behind += right.behind;
                }
                Ok(left)
            },
        );
        match counted {
            Some(places) => places,
            None => Ok(std::mem::take(&mut block.places)),
        }
    }

    fn prepare(&self, range: Range<usize>) -> Result<Block, Bad> {
        let dim = self.queries.cols();
        let mut block = Block {
            rows: vec![0.0; range.len() * dim],
            sizes: Vec::with_capacity(range.len()),
            places: Vec::with_capacity(range.len()),
            left_out: Vec::with_capacity(range.len()),
            largest: Size::default(),
        };
        let (mut relevant, mut item) = (Vec::new(), vec![0.0; dim]);
        for (query, row) in range.zip(block.rows.chunks_exact_mut(dim)) {
            self.queries.load_row(query, row);
            let size = self.scorer.prepare(row)?;
            block.largest = block.largest.max(size.0);
            block.sizes.push(size);
            let mut left_out = Vec::new();
            self.roles.of(query, &mut relevant, &mut left_out);
            let mut places = Vec::with_capacity(relevant.len());
            for position in &relevant {
                let index = self.roles.items[*position as usize];
                self.gallery.load_row(index as usize, &mut item);
                let (size, _) = self.scorer.prepare(&mut item)?;
                if self.scorer.can_overflow(block.largest, size) {
                    return Err(Bad);
                }
                let entry = scoring::entry(self.scorer.metric, self.scorer.score(row, &item), index);
                places.push(Place { entry, nearer: 0, before: 0, behind: 0 });
            }
            places.sort_unstable_by_key(|place| Reverse(place.entry));
            block.places.push(places);
            block.left_out.push(left_out);
        }
        Ok(block)
    }

    /// Counts the items of one share.
    fn share(&self, block: &Block, share: Range<usize>) -> Result<Vec<Vec<Place>>, Bad> {
        let dim = self.gallery.cols();
        let mut places = block.places.clone();
        let width = TILE.min(share.len());
        let mut tile = Tile {
            positions: 0..0,
            rows: vec![0.0; width * dim],
            start: vec![0.0; width],
            sums: vec![0.0; width * block.sizes.len()],
            largest: Size::default(),
        };
        let mut row = Row::default();
        for from in share.clone().step_by(TILE) {
            self.load(&mut tile, from..share.end.min(from + TILE))?;
            if self.scorer.can_overflow(block.largest, tile.largest) {
                return Err(Bad);
            }
            let Tile { positions, rows, start, sums, largest } = &mut tile;
            let width = positions.len();
            tile::scores((block.sizes.len(), width, dim), (&block.rows, dim), (rows, dim), (sums, width));
            let listed = places.iter_mut().zip(sums.chunks_exact_mut(width)).enumerate();
            for (i, (places, sums)) in listed.filter(|(_, (places, _))| !places.is_empty()) {
                if self.scorer.metric == Metric::SquaredL2 {
                    sums.iter_mut().zip(&*start).for_each(|(sum, start)| *sum += start);
                }
                // What is not in the list stands behind everything.
                let out = &block.left_out[i];
                let first = out.partition_point(|p| (*p as usize) < positions.start);
                for position in out[first..].iter().take_while(|p| (**p as usize) < positions.end) {
                    sums[*position as usize - positions.start] = f32::NEG_INFINITY;
                }
                row.bound(&self.scorer, places, block.sizes[i], *largest);
                let x = &block.rows[i * dim..][..dim];
                row.count(sums, places, |at| {
                    let index = self.roles.items[positions.start + at];
                    let score = self.scorer.score(x, &rows[at * dim..][..dim]);
                    scoring::entry(self.scorer.metric, score, index)
                });
            }
        }
        Ok(places)
    }

    fn load(&self, tile: &mut Tile, positions: Range<usize>) -> Result<(), Bad> {
        let dim = self.gallery.cols();
        tile.largest = Size::default();
        for ((position, row), start) in
            positions.clone().zip(tile.rows.chunks_exact_mut(dim)).zip(&mut tile.start)
        {
            self.gallery.load_row(self.roles.items[position] as usize, row);
            let (size, squared) = self.scorer.prepare(row)?;
            tile.largest = tile.largest.max(size);
            *start = Scorer::start(squared);
        }
        tile.positions = positions;
        Ok(())
    }
}

/// The bounds of one query against one tile.
#[derive(Default)]
struct Row {
    /// Sums below are of items behind the place, for sure; falling with the places.
    least: Vec<f32>,
    /// Sums of at least this are of items that are nearer, for sure; falling with the places.
    sure: Vec<f32>,
}

impl Row {
    fn bound(&mut self, scorer: &Scorer, places: &[Place], query: (Size, f64), keys: Size) {
        self.least.clear();
        self.sure.clear();
        for place in places {
            let (score, _) = scoring::score_and_index(scorer.metric, place.entry);
            let (least, sure) = scorer.around(score, query, keys);
            self.least.push(least);
            self.sure.push(sure);
        }
        // Bisection needs them to fall. Scores that nearly tie could break that by a rounding: widen.
        for at in 1..self.least.len() {
            self.least[at] = self.least[at].min(self.least[at - 1]);
        }
        for at in (1..self.sure.len()).rev() {
            self.sure[at - 1] = self.sure[at - 1].max(self.sure[at]);
        }
    }

    /// Adds one tile's items to the counts; `entry` scores the item at a place of the tile.
    fn count(&self, sums: &[f32], places: &mut [Place], entry: impl Fn(usize) -> u64) {
        if places.len() <= SWEEP {
            for ((place, least), sure) in places.iter_mut().zip(&self.least).zip(&self.sure) {
                let (possible, certain) = count_at_least(sums, *least, *sure);
                place.nearer += u64::from(certain);
                if possible != certain {
                    for (at, sum) in sums.iter().enumerate() {
                        if sum >= least && sum < sure {
                            add(place, entry(at));
                        }
                    }
                }
            }
            return;
        }
        // Per item: the places that it is surely nearer than, and those that need its score.
        let last = self.least[self.least.len() - 1];
        let mut nearer_from = vec![0u64; places.len() + 1];
        for (at, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum >= last) {
            let unsure = self.least.partition_point(|least| sum < least);
            let certain = self.sure.partition_point(|sure| sum < sure);
            nearer_from[certain] += 1;
            if unsure < certain {
                let entry = entry(at);
                places[unsure..certain].iter_mut().for_each(|place| add(place, entry));
            }
        }
        let mut nearer = 0;
        for (place, new) in places.iter_mut().zip(nearer_from) {
            nearer += new;
            place.nearer += nearer;
        }
    }
}

fn add(place: &mut Place, entry: u64) {
    match (entry >> 32).cmp(&(place.entry >> 32)) {
        std::cmp::Ordering::Greater => place.nearer += 1,
        std::cmp::Ordering::Equal if entry > place.entry => place.before += 1,
        std::cmp::Ordering::Equal if entry < place.entry => place.behind += 1,
        _ => {}
    }
}

/// How many sums are at least `least`, and how many at least `sure`.
fn count_at_least(sums: &[f32], least: f32, sure: f32) -> (u32, u32) {
    simd::dispatch(
        #[inline(always)]
        || {
            let (mut possible, mut certain) = (0u32, 0u32);
            for sum in sums {
                possible += u32::from(*sum >= least);
                certain += u32::from(*sum >= sure);
            }
            (possible, certain)
        },
    )
}
