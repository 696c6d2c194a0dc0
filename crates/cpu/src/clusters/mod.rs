//! Sub-clusters: k-means inside every class at once, and over everything as one class.
//!
//! Lloyd's algorithm (Lloyd 1982) with k-means++ starts, Euclidean or on the sphere (spherical k-means, Dhillon
//! and Modha 2001). Classes are ragged and their rows may come in any order. Every class is a problem of its own:
//! its numbers depend on its rows, its label and the options, never on which other classes are there.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod lloyd;
mod means;
mod nearest;
mod panel;
pub mod philox;
pub(crate) mod points;
pub mod problem;
pub(crate) mod segments;
mod start;

use rayon::prelude::*;

use self::{
    lloyd::{Output, Stop, Workspace},
    philox::Draws,
    points::{Checked, Points, checked_norms},
    segments::Segments,
};
use crate::{Error, Result, Rows};

const OP: &str = "sub_clusters";

/// What the distance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Geometry {
    /// Rows as they are, squared Euclidean distance.
    Euclidean,
    /// Rows and centroids as unit vectors: the largest cosine wins, and ‖x − c‖² = 2 − 2 cos.
    #[default]
    Spherical,
}

/// How many clusters a class gets.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Count<'a> {
    /// The same number for every class.
    Fixed(usize),
    /// One number per class, classes by ascending label.
    PerClass(&'a [usize]),
    /// clip(round(√(n/2)), 1, `max`) for a class of n rows.
    SquareRoot {
        /// The upper limit; 8 by custom.
        max: usize,
    },
}

/// Where the iterations start.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Start<'a> {
    /// k-means++ from the seed.
    PlusPlus {
        /// The key of the counter-based generator.
        seed: u64,
    },
    /// Distinct rows of the class, all sets equally likely.
    Random {
        /// The key of the counter-based generator.
        seed: u64,
    },
    /// These centroids, `[Σ K_c, D]`, class by class by ascending label.
    Given(Rows<'a>),
}

/// The choices of [`sub_clusters`].
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The distance.
    pub geometry: Geometry,
    /// The number of clusters; a class with fewer rows gets as many clusters as rows.
    pub count: Count<'a>,
    /// The start.
    pub start: Start<'a>,
    /// At most this many rounds of assigning and averaging; 0 only assigns to the start.
    pub max_iterations: usize,
    /// A class also stops when the squared movement of its centroids, summed, is at most `tolerance` times the
    /// mean squared distance of its rows from their mean. 0 stops only when no row changes hands.
    pub tolerance: f64,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            geometry: Geometry::default(),
            count: Count::SquareRoot { max: 8 },
            start: Start::PlusPlus { seed: 0 },
            max_iterations: 50,
            tolerance: 0.0,
        }
    }
}

/// The sub-clusters of every class. Cluster ids are global: class `c` owns `offsets[c]..offsets[c + 1]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SubClusters {
    /// D.
    pub dim: usize,
    /// The distinct labels, ascending; `[0]` for one class over everything.
    pub labels: Vec<u32>,
    /// Where the clusters of each class start, `labels.len() + 1` entries.
    pub offsets: Vec<usize>,
    /// `[K, D]`; unit rows on the sphere.
    pub centroids: Vec<f32>,
    /// Rows of each cluster.
    pub sizes: Vec<u32>,
    /// The mean of ‖x − c‖² over the rows of each cluster; 0 for a cluster without rows.
    pub spread: Vec<f32>,
    /// The mean of ‖x − c‖ over the rows of each cluster; 0 for a cluster without rows.
    pub mean_distance: Vec<f32>,
    /// The cluster of every row: the nearest centroid of its class, ties to the smaller id.
    pub assignment: Vec<u32>,
    /// ‖x − c'‖² − ‖x − c‖² for the second nearest centroid c' of the class; +∞ when the class has one cluster.
    pub margin: Vec<f32>,
    /// Σ ‖x − c‖² of each class, from the differences, in f64.
    pub inertia: Vec<f64>,
    /// The rounds of assigning and averaging that each class took.
    pub iterations: Vec<u32>,
}

/// clip(round(√(n/2)), 1, max): the rule for the number of sub-clusters of a class of `n` rows.
#[must_use]
pub fn square_root_rule(n: usize, max: usize) -> usize {
    ((n as f64 / 2.0).sqrt().round() as usize).clamp(1, max.max(1))
}

/// k-means inside every class of `points` `[N, D]`; `labels` are `N` class labels in any order, with gaps
/// allowed, or `None` for one class over everything.
///
/// Each round gives every row its nearest centroid, gives empty clusters the rows farthest from their own
/// centroids, and averages; a last assignment makes `assignment`, `sizes`, `spread`, `margin` and `inertia`
/// those of the returned centroids, so a centroid is its rows' mean up to the last movement. A class with more
/// clusters than distinct rows may return clusters of size 0 at the place of a duplicate.
///
/// Centroids are averaged in f64; what decides which is nearest are f32 products, after a class that lies far from
/// the origin is shifted to its first row. Beyond the inputs and outputs it takes O(N + K·D) memory.
///
/// # Errors
/// [`Error::Empty`] without rows; [`Error::Shape`] when labels, counts or start do not fit; [`Error::Range`]
/// for a count of 0, a bad tolerance or rows too large; [`Error::NotFinite`]; [`Error::ZeroNorm`] on the sphere.
pub fn sub_clusters(points: Rows<'_>, labels: Option<&[u32]>, options: &Options<'_>) -> Result<SubClusters> {
    let (n, d) = (points.rows(), points.cols());
    check((n, d), labels, options)?;
    let unit = options.geometry == Geometry::Spherical;
    // On the sphere every row needs its norm before it can be read; else a class is checked when its turn comes.
    let inverse: Option<Vec<f32>> = match unit {
        true => Some(
            checked_norms(OP, "points", &points, true)?.iter().map(|x| (1.0 / x.sqrt()) as f32).collect(),
        ),
        false => None,
    };
    let segments = labels.map_or_else(|| Segments::single(n), Segments::by_label);
    let offsets = cluster_offsets(&segments, options.count)?;
    let k = offsets.last().copied().unwrap_or(0);
    let given_inverse = check_start(&options.start, k, d, unit)?;

    let mut all = SubClusters {
        dim: d,
        labels: segments.labels.clone(),
        centroids: vec![0.0; k * d],
        sizes: vec![0; k],
        spread: vec![0.0; k],
        mean_distance: vec![0.0; k],
        assignment: vec![0; n],
        margin: vec![0.0; n],
        inertia: vec![0.0; segments.len()],
        iterations: vec![0; segments.len()],
        offsets: Vec::new(),
    };
    let one_class = |space: &mut Workspace, class: usize, mut out: Output<'_>| -> Checked<()> {
        let mut points = Points::new(&points, segments.members(class), inverse.as_deref());
        let variance = settle(&mut points, unit, options.tolerance)?;
        let draws = |seed| Draws::new(seed, segments.labels[class]);
        let clusters = out.sizes.len();
        let rows = match &options.start {
            Start::PlusPlus { seed } => start::plus_plus(&points, clusters, &draws(*seed)),
            Start::Random { seed } => start::random(points.len(), clusters, &draws(*seed)),
            Start::Given(_) => Vec::new(),
        };
        space.exact.resize(clusters * d, 0.0);
        let mut buffer = Vec::new();
        for (c, exact) in space.exact.chunks_exact_mut(d).enumerate() {
            if let Start::Given(given) = &options.start {
                let at = offsets[class] + c;
                buffer.resize(d, 0.0);
                let row = points::row_of(given, at, &mut buffer);
                let scale = given_inverse.as_ref().map_or(1.0, |inverse| inverse[at]);
                exact.iter_mut().zip(row).for_each(|(s, x)| *s = f64::from(*x) * scale);
                if let Some(shift) = &points.shift {
                    exact.iter_mut().zip(shift).for_each(|(s, shift)| *s -= f64::from(*shift));
                }
            } else {
                let row = points.row(rows[c], &mut buffer);
                exact.iter_mut().zip(row).for_each(|(s, x)| *s = f64::from(*x));
            }
        }
        let stop = Stop { iterations: options.max_iterations, tolerance: options.tolerance };
        lloyd::lloyd(&points, space, unit, stop, variance, &mut out);
        let first = offsets[class] as u32;
        out.assignment.iter_mut().for_each(|cluster| *cluster += first);
        Ok(())
    };
    let outputs = outputs(&mut all, &offsets, &segments);
    let outcomes: Vec<Checked<()>> = outputs
        .into_par_iter()
        .enumerate()
        .map_init(Workspace::default, |space, (class, out)| one_class(space, class, out))
        .collect();
    // Of all bad rows the first is named, whatever its class.
    if let Some((_, error)) = outcomes.into_iter().filter_map(Checked::err).min_by_key(|(row, _)| *row) {
        return Err(error);
    }
    if !segments.members.is_sorted() {
        all.assignment = in_order_of_rows(&segments.members, &all.assignment);
        all.margin = in_order_of_rows(&segments.members, &all.margin);
    }
    all.offsets = offsets;
    Ok(all)
}

/// The parts of the result that belong to each class, rows in the order of the classes.
fn outputs<'a>(all: &'a mut SubClusters, offsets: &[usize], segments: &Segments) -> Vec<Output<'a>> {
    fn take<'a, T>(rest: &mut &'a mut [T], n: usize) -> &'a mut [T] {
        rest.split_off_mut(..n).unwrap_or_default()
    }
    let d = all.dim;
    let (mut centroids, mut sizes) = (&mut all.centroids[..], &mut all.sizes[..]);
    let (mut spread, mut mean_distance) = (&mut all.spread[..], &mut all.mean_distance[..]);
    let (mut assignment, mut margin) = (&mut all.assignment[..], &mut all.margin[..]);
    let scalars = all.inertia.iter_mut().zip(&mut all.iterations).enumerate();
    let outputs = scalars.map(|(class, (inertia, iterations))| {
        let (n, k) = (segments.members(class).len(), offsets[class + 1] - offsets[class]);
        Output {
            centroids: take(&mut centroids, k * d),
            sizes: take(&mut sizes, k),
            spread: take(&mut spread, k),
            mean_distance: take(&mut mean_distance, k),
            assignment: take(&mut assignment, n),
            margin: take(&mut margin, n),
            inertia,
            iterations,
        }
    });
    outputs.collect()
}

/// Puts what belongs to these rows where the rows are.
fn in_order_of_rows<T: Copy + Default>(rows: &[u32], values: &[T]) -> Vec<T> {
    let mut all = vec![T::default(); values.len()];
    rows.iter().zip(values).for_each(|(row, value)| all[*row as usize] = *value);
    all
}

/// Checks a class that is not on the sphere, and shifts it to its first row when it lies far from the origin compared
/// with its extent, for there the scores ⟨x, c⟩ − ‖c‖²/2 would cancel. Returns the mean squared distance of the rows
/// from their mean, of which the tolerance is a share.
fn settle(points: &mut Points<'_>, unit: bool, tolerance: f64) -> Checked<f64> {
    points.settle(None);
    if unit && tolerance == 0.0 {
        return Ok(0.0);
    }
    let (mean, square) = means::moments(points);
    // No row is larger than all of them together.
    let total = square * points.len() as f64;
    if !unit && (!total.is_finite() || total > points::LARGEST) {
        points.check_norms(OP, "points")?;
    }
    let square = if unit { 1.0 } else { square };
    let far: f64 = mean.iter().map(|m| m * m).sum();
    let variance = (square - far).max(0.0);
    if !unit && far > 4.0 * variance {
        let origin = points.row(0, &mut Vec::new()).to_vec();
        points.settle(Some(origin));
    }
    Ok(variance)
}

fn check((n, d): (usize, usize), labels: Option<&[u32]>, options: &Options<'_>) -> Result<()> {
    if n == 0 {
        return Err(Error::Empty { op: OP, argument: "points" });
    }
    if d == 0 {
        return Err(Error::shape(OP, "points", &[n, d], "at least one column"));
    }
    if n > u32::MAX as usize {
        return Err(Error::range(OP, "points", format!("{n} rows"), "fewer than 2^32 rows"));
    }
    if let Some(labels) = labels.filter(|labels| labels.len() != n) {
        return Err(Error::shape(OP, "labels", &[labels.len()], format!("[{n}], one label per row")));
    }
    if !(options.tolerance.is_finite() && options.tolerance >= 0.0) {
        return Err(Error::range(OP, "tolerance", options.tolerance, "a finite number, 0 or more"));
    }
    Ok(())
}

fn cluster_offsets(segments: &Segments, count: Count<'_>) -> Result<Vec<usize>> {
    let zero = |argument| Err(Error::range(OP, argument, 0, "at least one cluster"));
    match count {
        Count::Fixed(0) | Count::SquareRoot { max: 0 } => return zero("count"),
        Count::PerClass(list) if list.len() != segments.len() => {
            let expected = format!("[{}], one count per class", segments.len());
            return Err(Error::shape(OP, "count", &[list.len()], expected));
        }
        Count::PerClass(list) if list.contains(&0) => return zero("count"),
        _ => {}
    }
    let mut offsets = vec![0];
    let mut total = 0;
    for class in 0..segments.len() {
        let n = segments.members(class).len();
        total += match count {
            Count::Fixed(k) => k.min(n),
            Count::PerClass(list) => list[class].min(n),
            Count::SquareRoot { max } => square_root_rule(n, max).min(n),
        };
        offsets.push(total);
    }
    Ok(offsets)
}

/// The inverse norms of a given start on the sphere.
fn check_start(start: &Start<'_>, k: usize, d: usize, unit: bool) -> Result<Option<Vec<f64>>> {
    let Start::Given(given) = start else { return Ok(None) };
    if (given.rows(), given.cols()) != (k, d) {
        let expected = format!("[{k}, {d}]: one row per cluster, a class having at most as many as rows");
        return Err(Error::shape(OP, "start", &[given.rows(), given.cols()], expected));
    }
    let norms = checked_norms(OP, "start", given, unit)?;
    Ok(unit.then(|| norms.iter().map(|x| 1.0 / x.sqrt()).collect()))
}
