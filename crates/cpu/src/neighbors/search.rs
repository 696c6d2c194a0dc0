//! One block of queries against its keys: screen, score the survivors, keep the best.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::list::{self, Lists};
use crate::Rows;
use crate::scoring::{self, Bad, Metric, Scorer};
use crate::screen::{Aligned, Hit, Kernel, Size};

/// Up to this many queries, every pair is scored right away: packing the keys would cost more than it saves.
const DIRECT: usize = 4;
/// Elements of a tile of keys: with its packed copy it stays in a core's second-level cache.
const TILE_ELEMENTS: usize = 64 * 1024;
/// Elements of the key panels that stay in a core's first-level cache.
const GROUP_ELEMENTS: usize = 6 * 1024;
/// Elements of a block of queries.
const BLOCK_ELEMENTS: usize = 1024 * 1024;
/// Bytes of the lists of a block, for one worker.
const BLOCK_LIST_BYTES: usize = 8 * 1024 * 1024;

/// A block of queries and the keys that they search, as positions in [`Search::query_order`] and
/// [`Search::key_order`].
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
}

/// What all blocks share.
pub(super) struct Search<'a> {
    pub(super) scorer: Scorer,
    pub(super) k: usize,
    pub(super) queries: Rows<'a>,
    pub(super) bank: Rows<'a>,
    /// The queries in the order of the blocks; as they come when `None`.
    pub(super) query_order: Option<&'a [u32]>,
    /// The keys that may be found, in the order of the blocks; all of them, as they come, when `None`.
    pub(super) key_order: Option<&'a [u32]>,
    /// Ids of queries and keys: a key with the query's id is left out.
    pub(super) ids: Option<(&'a [u32], &'a [u32])>,
}

/// The queries of a block, converted, scaled and packed.
struct Panels {
    rows: Vec<f32>,
    packed: Aligned,
    /// Row numbers in the batch.
    ids: Vec<usize>,
    sizes: Vec<(Size, f64)>,
    largest: Size,
}

/// A tile of keys, converted, scaled and packed.
struct Tile<'a> {
    /// Converted rows; empty when the bank's rows are used in place.
    rows: Vec<f32>,
    in_place: Option<&'a [f32]>,
    packed: Aligned,
    /// What a screening sum starts from, per key, padded to whole panels.
    start: Vec<f32>,
    /// Key numbers in the bank.
    ids: Vec<usize>,
    largest: Size,
}

/// One worker's state.
struct Worker {
    lists: Lists,
    /// Screening thresholds, padded to whole panels with +∞.
    thresholds: Vec<f32>,
    /// The largest keys so far: thresholds allow for these.
    largest: Size,
    hits: Vec<Hit>,
    found: Vec<Found>,
}

/// A scored pair.
struct Found {
    row: usize,
    entry: u64,
}

impl<'a> Search<'a> {
    /// Cuts `queries` into blocks of about equal size that fit the caches.
    pub(super) fn blocks(&self, queries: Range<usize>, keys: Range<usize>) -> impl Iterator<Item = Block> {
        let most = (BLOCK_ELEMENTS / self.bank.cols().max(1)).min(BLOCK_LIST_BYTES / list::bytes(self.k));
        let count = queries.len().div_ceil(most.clamp(128, 4096)).max(1);
        let rows = queries.len().div_ceil(count).max(1);
        queries
            .clone()
            .step_by(rows)
            .map(move |from| Block { queries: from..(from + rows).min(queries.end), keys: keys.clone() })
    }

    /// The number of the query at a position.
    pub(super) fn query(&self, position: usize) -> usize {
        self.query_order.map_or(position, |order| order[position] as usize)
    }

    /// The number of the key at a position.
    pub(super) fn key(&self, position: usize) -> usize {
        self.key_order.map_or(position, |order| order[position] as usize)
    }

    /// The entries of the block's queries, `k` each, nearest first, 0 where there are fewer.
    ///
    /// Workers take the tiles from a common counter and share the floors of their lists. Which worker meets
    /// which key, and when it learns of a floor, changes how many pairs are scored but not which entries are the
    /// best, so the result does not depend on the number of threads.
    pub(super) fn run(&self, block: &Block) -> Result<Vec<u64>, Bad> {
        let panels = self.pack_queries(block);
        let tile_keys = self.tile_keys(block);
        let tiles = block.keys.len().div_ceil(tile_keys);
        let stride = stride(tiles);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let floors: Vec<AtomicU64> = block.queries.clone().map(|_| AtomicU64::new(0)).collect();
        let workers = rayon::current_num_threads().min(tiles);
        let lists: Vec<Lists> = (0..workers)
            .into_par_iter()
            .with_max_len(1)
            .filter_map(|_| {
                let mut worker: Option<Worker> = None;
                let mut tile = self.tile(tile_keys);
                loop {
                    let turn = next.fetch_add(1, Relaxed);
                    if turn >= tiles || failed.load(Relaxed) {
                        return worker.map(|worker| worker.lists);
                    }
                    let from = block.keys.start + turn * stride % tiles * tile_keys;
                    let worker = worker.get_or_insert_with(|| self.worker(&panels));
                    let range = from..(from + tile_keys).min(block.keys.end);
                    match self.load(&mut tile, range, panels.ids.len() > DIRECT) {
                        Ok(()) if self.scorer.can_overflow(panels.largest, tile.largest) => {
                            failed.store(true, Relaxed)
                        }
                        Ok(()) if panels.ids.len() > DIRECT => self.screen(worker, &panels, &tile, &floors),
                        Ok(()) => self.score_all(worker, &panels, &tile, &floors),
                        Err(Bad) => failed.store(true, Relaxed),
                    }
                }
            })
            .collect();
        if failed.into_inner() {
            return Err(Bad);
        }
        let mut out = vec![0u64; panels.ids.len() * self.k];
        out.par_chunks_mut(self.k)
            .with_min_len(16)
            .enumerate()
            .for_each(|(row, out)| list::merge(&lists, row, out));
        Ok(out)
    }

    fn tile_keys(&self, block: &Block) -> usize {
        let panel = self.scorer.kernel.keys;
        let most = (TILE_ELEMENTS / self.bank.cols().max(1)).clamp(panel, 32 * panel);
        // At least four tiles a worker where there are enough keys, so that they finish together.
        let shares = 4 * rayon::current_num_threads();
        most.min(block.keys.len().div_ceil(shares)).max(1).next_multiple_of(panel)
    }

    fn pack_queries(&self, block: &Block) -> Panels {
        let (dim, panel) = (self.queries.cols(), self.scorer.kernel.queries);
        let ids: Vec<usize> = block.queries.clone().map(|position| self.query(position)).collect();
        let mut rows = vec![0.0; ids.len() * dim];
        let mut sizes = Vec::with_capacity(ids.len());
        for (id, row) in ids.iter().zip(rows.chunks_exact_mut(dim.max(1))) {
            self.queries.load_row(*id, row);
            // The caller has checked the queries.
            sizes.push(self.scorer.prepare(row).unwrap_or_default());
        }
        let largest = sizes.iter().fold(Size::default(), |largest, (size, _)| largest.max(*size));
        let length = self.scorer.kernel.query_panel(dim);
        let mut packed = Aligned::default();
        if ids.len() > DIRECT {
            packed = Aligned::zeros(ids.len().div_ceil(panel) * length);
            for (rows, packed) in rows.chunks(panel * dim).zip(packed.as_mut_slice().chunks_mut(length)) {
                self.scorer.kernel.pack_queries(dim, rows.chunks_exact(dim), packed);
            }
        }
        Panels { rows, packed, ids, sizes, largest }
    }

    fn worker(&self, panels: &Panels) -> Worker {
        let rows = panels.ids.len();
        let padded = rows.next_multiple_of(self.scorer.kernel.queries);
        Worker {
            lists: Lists::new(rows, self.k),
            thresholds: vec![f32::INFINITY; padded],
            largest: Size::NONE,
            hits: Vec::new(),
            found: Vec::new(),
        }
    }

    fn tile(&self, keys: usize) -> Tile<'a> {
        let dim = self.bank.cols();
        let in_place = self.bank.as_f32().filter(|_| self.scorer.metric != Metric::Cosine);
        Tile {
            rows: if in_place.is_some() { Vec::new() } else { vec![0.0; keys * dim] },
            in_place,
            packed: Aligned::default(),
            start: vec![0.0; keys],
            ids: Vec::with_capacity(keys),
            largest: Size::default(),
        }
    }

    fn load(&self, tile: &mut Tile<'a>, range: Range<usize>, pack: bool) -> Result<(), Bad> {
        let (dim, panel) = (self.bank.cols(), self.scorer.kernel.keys);
        tile.ids.clear();
        tile.ids.extend(range.map(|position| self.key(position)));
        tile.largest = Size::default();
        tile.start.fill(0.0);
        for (r, id) in tile.ids.iter().enumerate() {
            let (size, squared) = match tile.in_place {
                Some(x) => self.scorer.measure(&x[id * self.bank.stride()..][..dim])?,
                None => {
                    let row = &mut tile.rows[r * dim..][..dim];
                    self.bank.load_row(*id, row);
                    self.scorer.prepare(row)?
                }
            };
            tile.largest = tile.largest.max(size);
            if self.scorer.metric == Metric::SquaredL2 {
                tile.start[r] = Scorer::start(squared);
            }
        }
        if pack {
            let length = self.scorer.kernel.key_panel(dim);
            let needed = tile.ids.len().div_ceil(panel) * length;
            let mut packed = std::mem::take(&mut tile.packed);
            if packed.as_slice().len() < needed {
                packed = Aligned::zeros(tile.start.len() / panel * length);
            }
            for (p, out) in packed.as_mut_slice()[..needed].chunks_exact_mut(length.max(1)).enumerate() {
                let keys = p * panel..tile.ids.len().min((p + 1) * panel);
                self.scorer.kernel.pack_keys(dim, keys.map(|r| tile.row(r, dim, self.bank.stride())), out);
            }
            tile.packed = packed;
        }
        Ok(())
    }

    /// The screening threshold of a row against the keys that the worker has met.
    fn threshold(&self, worker: &Worker, panels: &Panels, row: usize) -> f32 {
        let score = scoring::floor_score(self.scorer.metric, worker.lists.floor(row));
        self.scorer.least(score, panels.sizes[row], worker.largest)
    }

    fn screen(&self, worker: &mut Worker, panels: &Panels, tile: &Tile<'_>, floors: &[AtomicU64]) {
        let (dim, kernel) = (self.bank.cols(), self.scorer.kernel);
        let grown = worker.largest.max(tile.largest);
        let all = std::mem::replace(&mut worker.largest, grown) != grown;
        for (row, floor) in floors.iter().enumerate() {
            let before = worker.lists.floor(row);
            if worker.lists.raise(row, floor) != before || all {
                worker.thresholds[row] = self.threshold(worker, panels, row);
            }
        }
        let armed = kernel.arm();
        let mut hits = std::mem::take(&mut worker.hits);
        let (query_panel, key_panel) = (kernel.query_panel(dim), kernel.key_panel(dim));
        // As many key panels at once as stay in the first-level cache while all query panels pass by.
        let group = (GROUP_ELEMENTS / key_panel).max(1) * kernel.keys;
        for from in (0..tile.ids.len()).step_by(group) {
            let keys = &tile.packed.as_slice()[from / kernel.keys * key_panel..];
            let start = &tile.start[from..tile.start.len().min(from + group)];
            for first in (0..panels.ids.len()).step_by(kernel.queries) {
                let queries =
                    &panels.packed.as_slice()[first / kernel.queries * query_panel..][..query_panel];
                hits.clear();
                let thresholds = &worker.thresholds[first..][..kernel.queries];
                Kernel::screen(&armed, dim, (queries, thresholds), (keys, start), &mut hits);
                self.score(&hits, (panels, first), (tile, from), &mut worker.found);
                for found in &worker.found {
                    let row = found.row;
                    if worker.lists.offer(row, found.entry, &floors[row]) {
                        worker.thresholds[row] = self.threshold(worker, panels, row);
                    }
                }
            }
        }
        worker.hits = hits;
    }

    /// Scores the hits of a query panel and some key panels that start at these places. All scores come before the
    /// first offer, so that the processor works on several at once.
    fn score(
        &self,
        hits: &[Hit],
        (panels, first): (&Panels, usize),
        (tile, from): (&Tile<'_>, usize),
        found: &mut Vec<Found>,
    ) {
        found.clear();
        found.extend(hits.iter().filter_map(|hit| {
            let (row, key) = (first + usize::from(hit.query), from + usize::from(hit.key));
            let entry = if key < tile.ids.len() { self.entry(panels, tile, row, key) } else { None };
            entry.map(|entry| Found { row, entry })
        }));
    }

    fn score_all(&self, worker: &mut Worker, panels: &Panels, tile: &Tile<'_>, floors: &[AtomicU64]) {
        for (row, floor) in floors.iter().enumerate() {
            worker.lists.raise(row, floor);
            for key in 0..tile.ids.len() {
                if let Some(entry) = self.entry(panels, tile, row, key) {
                    worker.lists.offer(row, entry, floor);
                }
            }
        }
    }

    /// The entry of one pair; `None` when the key is left out.
    #[inline]
    fn entry(&self, panels: &Panels, tile: &Tile<'_>, row: usize, key: usize) -> Option<u64> {
        let id = tile.ids[key];
        if self.ids.is_some_and(|(queries, keys)| queries[panels.ids[row]] == keys[id]) {
            return None;
        }
        let dim = self.bank.cols();
        let (x, y) = (&panels.rows[row * dim..][..dim], tile.row(key, dim, self.bank.stride()));
        // The caller has checked that key numbers fit u32.
        Some(scoring::entry(self.scorer.metric, self.scorer.score(x, y), id as u32))
    }
}

/// A step through `tiles` that reaches each once and jumps far: keys that come in the order of their scores would
/// otherwise all enter the lists.
fn stride(tiles: usize) -> usize {
    let coprime = |step: usize| {
        let (mut a, mut b) = (tiles, step);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    (tiles * 5 / 8..tiles).find(|step| coprime(*step)).unwrap_or(1)
}

impl Tile<'_> {
    #[inline]
    fn row(&self, r: usize, dim: usize, stride: usize) -> &[f32] {
        match self.in_place {
            Some(x) => &x[self.ids[r] * stride..][..dim],
            None => &self.rows[r * dim..][..dim],
        }
    }
}
