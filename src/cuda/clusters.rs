//! k-means inside every class on a device: plans and launches of `kernels/clusters.cu`, `clusters_stream.cu` and
//! `clusters_rounds.cu`.

mod plan;

use std::ops::Range;

use consonance_cpu::Error as Bad;
use consonance_cpu::clusters::problem::{Begin, Problem};
use consonance_cpu::clusters::{Geometry, Options};

use super::abi::{self, CLUSTER_THREADS};
use super::executor::launch;
use super::rows::check_sides;
use super::scratch::Scratch;
use super::{Error, Executor, Matrix, Memory, Order, Result, Words, segments};
use plan::{TABLE_BYTES, Tables};

const OP: &str = "sub_clusters";
/// The files of the kernels.
const ON_CHIP: &str = "clusters";
const STREAM: &str = "clusters_stream";
const ROUNDS: &str = "clusters_rounds";
const THREADS: u32 = CLUSTER_THREADS as u32;
/// Clusters of a block of `clusters_begin_*`, 16 lanes each.
const GROUPS: usize = CLUSTER_THREADS / 16;
/// Positions are `u32`, also those a tile behind the last.
const MOST_ROWS: usize = 1 << 31;

/// What was found: vectors in the memory of the device, and numbers of the classes.
#[derive(Debug)]
pub struct SubClusters {
    /// The distinct labels, ascending; `[0]` for one class over everything.
    pub labels: Vec<u32>,
    /// Where the clusters of each class start, one entry more than labels.
    pub offsets: Vec<usize>,
    /// `f32` `[K, D]`; unit rows on the sphere.
    pub centroids: Memory,
    /// `u32` `[K]`: rows of each cluster.
    pub sizes: Memory,
    /// `f32` `[K]`: the mean of ‖x − c‖² over the rows of each cluster.
    pub spread: Memory,
    /// `f32` `[K]`: the mean of ‖x − c‖ over the rows of each cluster.
    pub mean_distance: Memory,
    /// `u32` `[N]`: the cluster of every row.
    pub assignment: Memory,
    /// `f32` `[N]`: ‖x − c'‖² − ‖x − c‖² for the second nearest centroid of the class; +∞ with one cluster.
    pub margin: Memory,
    /// Σ ‖x − c‖² of each class.
    pub inertia: Vec<f64>,
    /// The rounds that each class took.
    pub iterations: Vec<u32>,
}

/// k-means inside every class of `points` `[N, D]`, with the definitions and options of
/// [`consonance_cpu::clusters::sub_clusters`]; labels and given starts are those of the host.
///
/// Classes that fit into the shared memory of a block are done by one launch that reads their rows once. The others are
/// streamed, one read a round for up to 64 clusters of a class and two for more, as docs/clusters.md says in full; a class
/// gets the same bits on both ways. This waits for the device. Memory of the device: 12 bytes a row, 12 bytes a centroid and
/// dimension (a given start 8 more), and for streamed classes 24 bytes a row, 4 bytes a centroid and dimension, and at most 32
/// bytes a row and a sum for each of 64 clusters more.
///
/// # Errors
/// [`Error::Argument`] for what the CPU backend refuses as well, and for rows that do not fit into shared memory;
/// [`Error::Row`] for rows that are not finite, too large, or on the sphere of norm zero; [`Error::OutOfMemory`],
/// [`Error::NoKernel`] and [`Error::Launch`].
pub fn sub_clusters(
    executor: &dyn Executor,
    points: &Matrix<'_>,
    labels: Option<&[u32]>,
    options: &Options<'_>,
) -> Result<SubClusters> {
    check_sides(OP, ["points"; 2], points, points)?;
    let (n, dim, bytes) = (points.rows(), points.cols(), points.dtype().bytes());
    if n > MOST_ROWS {
        return Err(Bad::range(OP, "points", format!("{n} rows"), "at most 2^31 rows").into());
    }
    let problem = Problem::new((n, dim), labels, options)?;
    let limit = executor.limits().shared_bytes as usize;
    let tables = Tables::new(&problem, dim, bytes, limit);
    let tile_rows = match plan::tile_rows(dim, bytes, limit) {
        Some(rows) => rows,
        None if tables.streamed.is_empty() => 0,
        None => {
            let expected =
                format!("rows of which two fit into the {limit} bytes of shared memory of a block");
            return Err(Bad::shape(OP, "points", &[n, dim], expected).into());
        }
    };
    let run = Run::new(executor, points, &problem, tables, options, tile_rows)?;
    run.on_chip()?;
    if !run.tables.streamed.is_empty() {
        run.streamed(options.max_iterations)?;
    }
    run.check()?;
    let classes = problem.labels.len();
    let (mut inertia, mut iterations) = (vec![0f64; classes], vec![0u32; classes]);
    executor.download(OP, &run.inertia, bytemuck::cast_slice_mut(&mut inertia))?;
    executor.download(OP, &run.iterations, bytemuck::cast_slice_mut(&mut iterations))?;
    let Run { centroids, sizes, spread, mean_distance, assignment, margin, .. } = run;
    let Problem { labels, clusters: offsets, .. } = problem;
    Ok(SubClusters {
        labels,
        offsets,
        centroids,
        sizes,
        spread,
        mean_distance,
        assignment,
        margin,
        inertia,
        iterations,
    })
}

/// A call: its tables, its memory, and what all launches have in common.
struct Run<'a> {
    executor: &'a dyn Executor,
    suffix: &'static str,
    bytes: usize,
    tables: Tables,
    params: abi::Clusters,
    /// Addresses of the lists of classes.
    on_chip: u64,
    streamed: u64,
    centroids: Memory,
    sizes: Memory,
    spread: Memory,
    mean_distance: Memory,
    assignment: Memory,
    margin: Memory,
    inertia: Memory,
    iterations: Memory,
    status: Memory,
    _inputs: [Memory; 3],
    _scratch: Memory,
}

impl<'a> Run<'a> {
    fn new(
        executor: &'a dyn Executor,
        points: &Matrix<'_>,
        problem: &Problem,
        tables: Tables,
        options: &Options<'_>,
        tile_rows: usize,
    ) -> Result<Self> {
        let (n, dim, bytes) = (points.rows(), points.cols(), points.dtype().bytes());
        let (classes, k) = (problem.labels.len(), problem.clusters.last().copied().unwrap_or(0));
        if k.checked_mul(dim).and_then(|elements| elements.checked_mul(8)).is_none() {
            return Err(Bad::range(OP, "count", k, "centroids that fit into memory").into());
        }
        // All lists one behind the other, in one copy.
        let lists = [
            &tables.members,
            &tables.first_rows,
            &tables.end_rows,
            &tables.first_clusters,
            &tables.end_clusters,
            &problem.labels,
            &tables.chunk_rows,
            &tables.first_chunks,
            &tables.on_chip,
            &tables.streamed,
            &tables.chunk_classes,
            &tables.chunk_firsts,
            &tables.chunk_places,
            &tables.clusters,
            &tables.cluster_classes,
        ];
        let words: Vec<u32> = lists.iter().flat_map(|list| list.iter().copied()).collect();
        let table = executor.upload(OP, bytemuck::cast_slice(&words))?;
        let mut next = table.address();
        let [
            members,
            first_rows,
            end_rows,
            first_clusters,
            end_clusters,
            labels,
            chunk_rows,
            first_chunks,
            on_chip,
            streamed,
            chunk_classes,
            chunk_firsts,
            chunk_places,
            clusters,
            cluster_classes,
        ] = lists.map(|list| {
            let address = next;
            next += (list.len() * size_of::<u32>()) as u64;
            address
        });
        let (start, seed, chosen, given) = match &problem.begin {
            Begin::PlusPlus { seed } => {
                (abi::START_PLUS_PLUS, *seed, executor.allocate(OP, k * size_of::<u32>())?, Vec::new())
            }
            Begin::Rows(rows) => {
                (abi::START_ROWS, 0, executor.upload(OP, bytemuck::cast_slice(rows))?, Vec::new())
            }
            Begin::Places(places) => (abi::START_GIVEN, 0, executor.allocate(OP, 1)?, places.clone()),
        };
        let given = executor.upload(OP, bytemuck::cast_slice(&given))?;
        let is_streamed = !tables.streamed.is_empty();
        let mut layout = Scratch::new();
        let sums = layout.take(k * dim * 8);
        let mut take = |bytes: usize| layout.take(if is_streamed { bytes } else { 0 });
        let partials = take(tables.places * dim * 8);
        let (centers, starts, moves, places) = (take(k * dim * 4), take(k * 4), take(k * 8), take(k * 4));
        let (inverses, far, nearest) = (take(n * 4), take(n * 8), take(n * 4));
        let (shifts, variances) = (take(classes * dim * 4), take(classes * 8));
        let (states, changes) = (take(classes * 4), take(classes * 4));
        let scratch = executor.scratch(OP, layout.bytes())?;
        let at = |offset: u64| scratch.address() + offset;
        let words = |count: usize| executor.allocate(OP, count * size_of::<u32>());
        let (centroids, sizes, spread, mean_distance) = (words(k * dim)?, words(k)?, words(k)?, words(k)?);
        let (assignment, margin) = (words(n)?, words(n)?);
        let (inertia, iterations) = (executor.allocate(OP, classes * 8)?, words(classes)?);
        let status = executor.upload(OP, bytemuck::cast_slice(&[u32::MAX, 0]))?;
        let params = abi::Clusters {
            points: points.address(),
            stride: points.stride() as u64,
            members,
            first_rows,
            end_rows,
            first_clusters,
            end_clusters,
            labels,
            chunk_rows,
            classes: 0,
            chunk_classes,
            chunk_firsts,
            chunk_places,
            clusters,
            cluster_classes,
            first_chunks,
            given: given.address(),
            chosen: chosen.address(),
            sums: at(sums),
            partials: at(partials),
            centers: at(centers),
            starts: at(starts),
            moves: at(moves),
            places: at(places),
            inverses: at(inverses),
            far: at(far),
            nearest: at(nearest),
            order: 0,
            shifts: at(shifts),
            variances: at(variances),
            states: at(states),
            changes: at(changes),
            centroids: centroids.address(),
            sizes: sizes.address(),
            spread: spread.address(),
            mean_distance: mean_distance.address(),
            assignment: assignment.address(),
            margin: margin.address(),
            inertia: inertia.address(),
            iterations: iterations.address(),
            status: status.address(),
            seed,
            tolerance: options.tolerance.to_bits(),
            row_count: n as u32,
            dim: dim as u32,
            start: start as u32,
            max_iterations: options.max_iterations.min(u32::MAX as usize) as u32,
            unit: u32::from(options.geometry == Geometry::Spherical),
            distance: plan::distance(dim, bytes) as u32,
            tile_rows: tile_rows as u32,
            step: 0,
            order_first: 0,
            count: 0,
        };
        Ok(Self {
            executor,
            suffix: points.dtype().suffix(),
            bytes,
            tables,
            params,
            on_chip,
            streamed,
            centroids,
            sizes,
            spread,
            mean_distance,
            assignment,
            margin,
            inertia,
            iterations,
            status,
            _inputs: [table, chosen, given],
            _scratch: scratch,
        })
    }

    fn launch(
        &self,
        (family, entry): (&'static str, &str),
        blocks: usize,
        shared: usize,
        params: &abi::Clusters,
    ) -> Result<()> {
        let grid = [blocks as u64, 1, 1];
        // SAFETY: the arrays of `params` have the lengths that `Clusters` in abi.h gives them, by `Run::new`; the tables name
        // rows, classes and clusters of the problem, and the kernels write nothing but scratch and results.
        unsafe { launch(self.executor, (OP, family, entry), grid, (THREADS, shared as u32), params) }
    }

    /// A kernel with a block for each class, chunk or cluster.
    fn each(&self, step: &str, blocks: usize, params: &abi::Clusters) -> Result<()> {
        self.launch((ROUNDS, &format!("clusters_{step}")), blocks, TABLE_BYTES, params)
    }

    /// A kernel that streams the chunks.
    fn chunks(&self, step: &str, params: &abi::Clusters) -> Result<()> {
        let (rows, dim) = (params.tile_rows as usize, params.dim as usize);
        let shared = plan::stream_shared_bytes(rows, dim, self.bytes);
        let entry = format!("clusters_{step}_{}", self.suffix);
        self.launch((STREAM, &entry), self.tables.chunk_classes.len(), shared, params)
    }

    fn on_chip(&self) -> Result<()> {
        let params = abi::Clusters { classes: self.on_chip, ..self.params };
        let entry = format!("clusters_segment_{}", self.suffix);
        self.launch((ON_CHIP, &entry), self.tables.on_chip.len(), self.tables.shared_bytes, &params)
    }

    /// Waits, and says how many streamed classes are not done.
    fn check(&self) -> Result<u32> {
        let mut words = [0u32; 2];
        self.executor.download(OP, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        if words[0] != u32::MAX {
            let cosine = self.params.unit != 0;
            return Err(Error::Row { op: OP, argument: "points", row: words[0] as usize, cosine });
        }
        Ok(words[1])
    }

    /// The positions of a range in the order of their clusters. Inside both ranges that there are, of classes whose sums are
    /// fused and of the others, classes lie in the order of their clusters.
    fn sorted(&self, range: Range<usize>) -> Result<(Order, abi::Clusters)> {
        // SAFETY: `nearest` has a word for every position.
        let nearest =
            unsafe { Words::from_address(self.params.nearest + 4 * range.start as u64, range.len()) };
        let order = segments::sort(self.executor, nearest)?;
        let params = abi::Clusters { order: order.address(), order_first: range.start as u32, ..self.params };
        Ok((order, params))
    }

    /// The statistics of the streamed classes at `classes` of their list, whose clusters and positions are those ranges.
    fn statistics(
        &self,
        classes: Range<usize>,
        clusters: Range<usize>,
        positions: Range<usize>,
    ) -> Result<()> {
        if classes.is_empty() {
            return Ok(());
        }
        let (_order, sorted) = self.sorted(positions)?;
        let params = abi::Clusters {
            classes: self.streamed + 4 * classes.start as u64,
            clusters: sorted.clusters + 4 * clusters.start as u64,
            cluster_classes: sorted.cluster_classes + 4 * clusters.start as u64,
            count: classes.len() as u32,
            ..sorted
        };
        self.each("places", classes.len(), &params)?;
        self.each("finish", clusters.len(), &params)?;
        self.each("inertia", classes.len().div_ceil(CLUSTER_THREADS), &params)
    }

    fn streamed(&self, max_iterations: usize) -> Result<()> {
        let tables = &self.tables;
        let (classes, clusters) = (tables.streamed.len(), tables.clusters.len());
        let n = self.params.row_count as usize;
        let params = abi::Clusters { classes: self.streamed, ..self.params };
        self.chunks("measure", &params)?;
        self.each(&format!("settle_{}", self.suffix), classes, &params)?;
        self.check()?;
        if params.start as usize == abi::START_PLUS_PLUS {
            for step in 0..tables.most_clusters as u32 {
                let params = abi::Clusters { step, ..params };
                self.each("draw", classes, &params)?;
                if step as usize + 1 < tables.most_clusters {
                    self.chunks("update", &params)?;
                }
            }
        }
        let begin = abi::Clusters { count: clusters as u32, ..params };
        self.each(&format!("begin_{}", self.suffix), clusters.div_ceil(GROUPS), &begin)?;
        let fused = classes - tables.sorted;
        for _ in 0..max_iterations {
            self.chunks("assign", &params)?;
            self.each("judge", classes, &params)?;
            self.chunks("far", &params)?;
            self.each("relocate", classes, &params)?;
            if fused > 0 {
                self.chunks("sum", &params)?;
            }
            let average = format!("average_{}", self.suffix);
            if tables.sorted > 0 {
                let (_order, sorted) = self.sorted(tables.first_sorted..n)?;
                let classes = self.streamed + 4 * fused as u64;
                self.each("places", tables.sorted, &abi::Clusters { classes, ..sorted })?;
                self.each(&average, clusters, &sorted)?;
            } else {
                self.each(&average, clusters, &params)?;
            }
            self.each("close", classes, &params)?;
            if self.check()? == 0 {
                break;
            }
        }
        self.chunks("assign", &abi::Clusters { step: 1, ..params })?;
        let (middle, between) = (tables.first_sorted, tables.fused_clusters);
        self.statistics(0..fused, 0..between, tables.first_streamed..middle)?;
        self.statistics(fused..classes, between..clusters, middle..n)
    }
}
