//! Which classes fit on chip, how the others are cut into chunks, and the tables that say so.

use consonance_cpu::clusters::problem::Problem;

use crate::cuda::abi::{CLUSTER_THREADS, FUSED_CLUSTERS};

/// Rows of a chunk at least.
const CHUNK_ROWS: usize = 256;
/// Rows of a tile at most.
const TILE_ROWS: usize = 64;
/// Bytes of what a block of a class or a cluster knows: `CLUSTER_THREADS` + 1 numbers and 4 words.
pub(super) const TABLE_BYTES: usize = (CLUSTER_THREADS + 1) * 8 + 16;

/// Elements from row to row in shared memory: rows start at multiples of 16 bytes, and rows of neighboring groups in
/// different banks.
pub(super) fn distance(dim: usize, bytes: usize) -> usize {
    let row = (dim * bytes).next_multiple_of(16);
    (if row.is_multiple_of(128) { row + 16 } else { row }) / bytes
}

/// Shared memory of a class on chip, array by array as `clusters_segment_*` cuts it.
pub(super) fn shared_bytes(rows: usize, clusters: usize, dim: usize, bytes: usize) -> usize {
    let arrays = [
        (CLUSTER_THREADS + 1) * 8,
        16,
        dim * 4,
        rows * 8,
        rows * 4,
        rows * 4,
        rows * 4,
        rows * 4,
        clusters * 8,
        clusters * 4,
        clusters * 4,
        (clusters + 1) * 4,
        clusters * dim * 4,
        rows * distance(dim, bytes) * bytes,
    ];
    arrays.iter().map(|bytes| bytes.next_multiple_of(16)).sum()
}

/// Shared memory of a block that streams tiles: a table, the lists of a tile, its rows and one more.
pub(super) fn stream_shared_bytes(tile_rows: usize, dim: usize, bytes: usize) -> usize {
    let words = FUSED_CLUSTERS + 2 + 3 * tile_rows + 1;
    (TABLE_BYTES + words * 4).next_multiple_of(16) + (tile_rows + 1) * distance(dim, bytes) * bytes
}

/// Rows of a tile: as many as leave room for two blocks on a multiprocessor, if any, else as fit; `None` when not even one
/// does. Results do not depend on it.
pub(super) fn tile_rows(dim: usize, bytes: usize, limit: usize) -> Option<usize> {
    let fitting = |limit: usize| {
        let sizes = std::iter::successors(Some(TILE_ROWS), |rows| (*rows > 1).then_some(rows / 2));
        sizes.into_iter().find(|rows| stream_shared_bytes(*rows, dim, bytes) <= limit)
    };
    fitting(limit / 2).filter(|rows| *rows >= 16).or_else(|| fitting(limit))
}

/// Rows of a chunk, counted from the first row of a class: so many that the sums of all chunks take 32 bytes a row at most.
pub(super) fn chunk_rows(clusters: usize, dim: usize) -> usize {
    (sums(clusters) * dim / 4).next_multiple_of(TILE_ROWS).max(CHUNK_ROWS)
}

/// Rows of sums that a chunk has: one for the moments alone.
fn sums(clusters: usize) -> usize {
    if clusters <= FUSED_CLUSTERS { clusters } else { 1 }
}

/// The tables of a call, `u32`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    /// Rows by position: those of classes on chip, of streamed ones whose sums are fused, of the other streamed ones.
    pub(super) members: Vec<u32>,
    /// By class.
    pub(super) first_rows: Vec<u32>,
    pub(super) end_rows: Vec<u32>,
    pub(super) first_clusters: Vec<u32>,
    pub(super) end_clusters: Vec<u32>,
    pub(super) chunk_rows: Vec<u32>,
    pub(super) first_chunks: Vec<u32>,
    /// Classes on chip, and streamed ones: the last `sorted` of them have sums that are not fused.
    pub(super) on_chip: Vec<u32>,
    pub(super) streamed: Vec<u32>,
    pub(super) sorted: usize,
    /// Chunks of the streamed classes.
    pub(super) chunk_classes: Vec<u32>,
    pub(super) chunk_firsts: Vec<u32>,
    pub(super) chunk_places: Vec<u32>,
    /// Clusters of the streamed classes.
    pub(super) clusters: Vec<u32>,
    pub(super) cluster_classes: Vec<u32>,
    /// How many of them are of classes whose sums are fused.
    pub(super) fused_clusters: usize,
    /// Rows of sums of all chunks.
    pub(super) places: usize,
    /// The first position of a streamed class, and of one whose sums are not fused.
    pub(super) first_streamed: usize,
    pub(super) first_sorted: usize,
    /// Shared memory of the largest class on chip.
    pub(super) shared_bytes: usize,
    /// The most clusters of a streamed class.
    pub(super) most_clusters: usize,
}

impl Tables {
    /// The classes of `problem`, rows of `dim` elements of `bytes` bytes; those on chip take at most `limit` bytes each.
    pub(super) fn new(problem: &Problem, dim: usize, bytes: usize, limit: usize) -> Self {
        let classes = problem.labels.len();
        let rows = |class: usize| problem.rows[class]..problem.rows[class + 1];
        let clusters = |class: usize| problem.clusters[class + 1] - problem.clusters[class];
        let needs = |class: usize| shared_bytes(rows(class).len(), clusters(class), dim, bytes);
        let kind = |class: &usize| match (needs(*class) <= limit, clusters(*class) <= FUSED_CLUSTERS) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        };
        let mut order: Vec<usize> = (0..classes).collect();
        // Stable: classes stay in the order of their labels, as the order by clusters needs.
        order.sort_by_key(kind);
        let mut tables = Self {
            members: Vec::with_capacity(problem.members.len()),
            first_rows: vec![0; classes],
            end_rows: vec![0; classes],
            first_clusters: problem.clusters[..classes].iter().map(|first| *first as u32).collect(),
            end_clusters: problem.clusters[1..].iter().map(|end| *end as u32).collect(),
            chunk_rows: vec![0; classes],
            first_chunks: vec![0; classes],
            ..Self::default()
        };
        for class in order {
            let first = tables.members.len();
            tables.members.extend_from_slice(&problem.members[rows(class)]);
            let end = tables.members.len();
            let each = chunk_rows(clusters(class), dim);
            (tables.first_rows[class], tables.end_rows[class]) = (first as u32, end as u32);
            tables.chunk_rows[class] = each.min(u32::MAX as usize) as u32;
            if kind(&class) == 0 {
                tables.on_chip.push(class as u32);
                tables.shared_bytes = tables.shared_bytes.max(needs(class));
                (tables.first_streamed, tables.first_sorted) = (end, end);
                continue;
            }
            if kind(&class) == 1 {
                tables.first_sorted = end;
                tables.fused_clusters += clusters(class);
            }
            tables.sorted += usize::from(kind(&class) == 2);
            tables.streamed.push(class as u32);
            tables.most_clusters = tables.most_clusters.max(clusters(class));
            tables.first_chunks[class] = tables.chunk_classes.len() as u32;
            for chunk in (first..end).step_by(each) {
                tables.chunk_classes.push(class as u32);
                tables.chunk_firsts.push(chunk as u32);
                tables.chunk_places.push(tables.places as u32);
                tables.places += sums(clusters(class));
            }
            let own = problem.clusters[class]..problem.clusters[class + 1];
            tables.cluster_classes.resize(tables.cluster_classes.len() + own.len(), class as u32);
            tables.clusters.extend(own.map(|cluster| cluster as u32));
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use consonance_cpu::clusters::problem::Begin;

    use super::*;

    #[test]
    fn rows_in_shared_memory_are_aligned_and_apart_in_banks() {
        for (dim, bytes) in [(1, 4), (8, 2), (32, 4), (64, 2), (100, 2), (512, 2), (512, 4)] {
            let row = distance(dim, bytes) * bytes;
            assert!(
                row >= dim * bytes && row.is_multiple_of(16) && !row.is_multiple_of(128),
                "{dim}, {bytes}"
            );
        }
    }

    #[test]
    fn tiles_fit_and_leave_room_for_a_second_block_where_they_can() {
        let limit = 99 * 1024;
        assert_eq!(tile_rows(64, 4, limit), Some(64));
        assert_eq!(tile_rows(512, 2, limit), Some(32));
        assert_eq!(tile_rows(1024, 4, limit), Some(16));
        assert_eq!(tile_rows(20_000, 4, limit), None);
        assert_eq!(tile_rows(12_000, 4, limit), Some(1));
        for (dim, bytes) in [(3, 4), (512, 4), (4096, 2), (12_000, 4)] {
            let rows = tile_rows(dim, bytes, limit).unwrap();
            assert!(stream_shared_bytes(rows, dim, bytes) <= limit);
        }
    }

    #[test]
    fn sums_of_chunks_take_at_most_32_bytes_a_row_beyond_the_first_chunk() {
        for (clusters, dim) in [(1, 3), (8, 512), (64, 64), (65, 2048), (65_536, 512)] {
            let rows = chunk_rows(clusters, dim);
            assert!(rows >= CHUNK_ROWS && rows.is_multiple_of(TILE_ROWS));
            assert!(sums(clusters) * dim * 8 <= 32 * rows);
        }
    }

    #[test]
    fn every_row_and_cluster_has_one_owner_wherever_its_class_goes() {
        // Classes of 30, 4,000, 3,000 and 5 rows in 3, 70, 4 and 5 clusters.
        let sizes = [(30, 3), (4000, 70), (3000, 4), (5, 5)];
        let sum = |take: fn(&(usize, usize)) -> usize| {
            sizes.iter().fold(vec![0], |mut all, size| {
                all.push(all[all.len() - 1] + take(size));
                all
            })
        };
        let problem = Problem {
            labels: vec![2, 3, 5, 8],
            rows: sum(|size| size.0),
            members: (0..7035).rev().collect(),
            clusters: sum(|size| size.1),
            begin: Begin::PlusPlus { seed: 0 },
        };
        let tables = Tables::new(&problem, 16, 4, 99 * 1024);
        assert_eq!((&tables.on_chip[..], &tables.streamed[..], tables.sorted), (&[0, 3][..], &[2, 1][..], 1));
        assert_eq!((tables.first_streamed, tables.first_sorted, tables.most_clusters), (35, 3035, 70));
        assert_eq!(tables.fused_clusters, 4);
        for class in 0..4 {
            let own = tables.first_rows[class] as usize..tables.end_rows[class] as usize;
            assert_eq!(tables.members[own], problem.members[problem.rows[class]..problem.rows[class + 1]]);
        }
        assert_eq!(tables.chunk_firsts.len(), 4000_usize.div_ceil(256) + 3000_usize.div_ceil(256));
        assert_eq!(tables.first_chunks[2], 0);
        assert_eq!(tables.chunk_firsts[tables.first_chunks[1] as usize], 3035);
        assert_eq!(tables.places, 12 * 4 + 16);
        assert_eq!(tables.clusters, (73..77).chain(3..73).collect::<Vec<u32>>());
        assert!(tables.shared_bytes <= 99 * 1024);
    }
}
