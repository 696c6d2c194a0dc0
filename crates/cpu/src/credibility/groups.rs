//! The rows behind each centroid, and the distance of a row to its own class without itself.

use std::ops::Range;

use rayon::prelude::*;

use super::{Centers, OP, Options};
use crate::{
    Error, Result, Rows,
    clusters::{
        Geometry,
        points::{Points, squared_distance_inline},
        segments::{Segments, counting_sort},
    },
    simd,
};

/// Centroids with the sums they came from. Centroids without rows are gone; those of a class are neighbors.
pub(super) struct Groups<'a> {
    d: usize,
    unit: bool,
    leave_one_out: bool,
    /// `[G, D]`, f64 sums of the rows as they are read.
    sums: Vec<f64>,
    /// `[G, D]`: means, or directions.
    pub(super) centroids: Vec<f32>,
    partition: &'a Partition,
}

/// Which rows stand behind each centroid, and which centroids are those of each class. Groups without rows are gone; those of
/// a class are neighbors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The distinct labels, ascending.
    pub labels: Vec<u32>,
    /// The class (a position in `labels`) of every row.
    pub class_of_row: Vec<u32>,
    /// The group of every row.
    pub group_of_row: Vec<u32>,
    /// `members[starts[g]..starts[g + 1]]` are the rows of group `g`, in their order.
    pub starts: Vec<usize>,
    /// Row numbers, group by group.
    pub members: Vec<u32>,
    /// Groups of class `c`: `classes[c]..classes[c + 1]`.
    pub classes: Vec<usize>,
}

impl Partition {
    /// The groups of rows with these labels.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Range`] for sub-clusters that do not fit the labels.
    pub fn new(labels: &[u32], centers: &Centers<'_>) -> Result<Self> {
        let segments = Segments::by_label(labels);
        let (group_of_row, classes) = match centers {
            Centers::Classes => (segments.class_of.clone(), (0..=segments.len()).collect()),
            Centers::SubClusters { assignment, offsets } => compact(&segments, assignment, offsets)?,
        };
        let (starts, members) = counting_sort(&group_of_row, classes.last().copied().unwrap_or(0));
        Ok(Self {
            labels: segments.labels,
            class_of_row: segments.class_of,
            group_of_row,
            starts,
            members,
            classes,
        })
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.starts.len() - 1
    }

    /// The rows of a group.
    pub fn rows_of(&self, group: usize) -> &[u32] {
        &self.members[self.starts[group]..self.starts[group + 1]]
    }

    /// The class of a group.
    pub fn class_of(&self, group: usize) -> usize {
        self.classes.partition_point(|start| *start <= group) - 1
    }
}

impl<'a> Groups<'a> {
    /// Sums and centroids; `inverse` norms for directions.
    pub(super) fn new(
        points: &Rows<'_>,
        inverse: Option<&[f32]>,
        partition: &'a Partition,
        options: &Options<'_>,
    ) -> Self {
        let (count, starts, order) = (partition.groups(), &partition.starts, &partition.members);
        let d = points.cols();
        let unit = options.geometry == Geometry::Spherical;
        let mut sums = vec![0.0f64; count * d];
        sums.par_chunks_exact_mut(d).enumerate().for_each_init(Vec::new, |buffer, (g, sum)| {
            let rows = Points::new(points, &order[starts[g]..starts[g + 1]], inverse);
            simd::dispatch(
                #[inline(always)]
                || {
                    for i in 0..rows.len() {
                        let row = rows.row(i, buffer);
                        sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
                    }
                },
            );
        });
        let mut centroids = vec![0.0f32; count * d];
        for (g, (c, sum)) in centroids.chunks_exact_mut(d).zip(sums.chunks_exact(d)).enumerate() {
            let divisor = divisor(unit, sum, starts[g + 1] - starts[g]);
            c.iter_mut().zip(sum).for_each(|(c, s)| *c = (s / divisor) as f32);
        }
        Self { d, unit, leave_one_out: options.leave_one_out, sums, centroids, partition }
    }

    /// The centroids of a row's own class.
    pub(super) fn columns(&self, row: usize) -> Range<usize> {
        let class = self.partition.class_of_row[row] as usize;
        self.partition.classes[class]..self.partition.classes[class + 1]
    }

    /// The squared distance of a row to the centroid that it belongs to, left out of it if so chosen and if
    /// another row remains.
    pub(super) fn member_squared(&self, row: usize, x: &[f32]) -> f64 {
        let group = self.partition.group_of_row[row] as usize;
        let others = self.partition.rows_of(group).len() - 1;
        if !self.leave_one_out || others == 0 {
            return self.squared(group, x);
        }
        let sum = &self.sums[group * self.d..(group + 1) * self.d];
        let left: Vec<f64> = sum.iter().zip(x).map(|(s, x)| s - f64::from(*x)).collect();
        let divisor = divisor(self.unit, &left, others);
        left.iter().zip(x).map(|(c, x)| (f64::from(*x) - c / divisor).powi(2)).sum()
    }

    /// The squared distances to all centroids of the row's own class.
    pub(super) fn own_squared(&self, row: usize, x: &[f32]) -> Vec<f32> {
        let own = self.partition.group_of_row[row] as usize;
        let columns = self.columns(row);
        let alone = self.leave_one_out && self.partition.rows_of(own).len() == 1 && columns.len() > 1;
        columns
            .map(|group| match () {
                () if group != own => self.squared(group, x) as f32,
                () if alone => f32::INFINITY,
                () => self.member_squared(row, x) as f32,
            })
            .collect()
    }

    fn squared(&self, group: usize, x: &[f32]) -> f64 {
        let c = &self.centroids[group * self.d..(group + 1) * self.d];
        simd::dispatch(
            #[inline(always)]
            || squared_distance_inline(x, c),
        )
    }
}

/// What turns a sum into a mean or a direction; a sum of zero stays zero.
fn divisor(unit: bool, sum: &[f64], count: usize) -> f64 {
    if !unit {
        return count as f64;
    }
    let norm = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
    // Directions that cancel leave rounding of about 2⁻²⁴ each: no direction.
    if norm > 1e-6 { norm } else { f64::INFINITY }
}

/// Checks sub-clusters against the classes, and drops those without rows.
fn compact(segments: &Segments, assignment: &[u32], offsets: &[usize]) -> Result<(Vec<u32>, Vec<usize>)> {
    let (n, classes) = (segments.class_of.len(), segments.len());
    if assignment.len() != n {
        return Err(Error::shape(
            OP,
            "assignment",
            &[assignment.len()],
            format!("[{n}], one cluster per row"),
        ));
    }
    let rising = offsets.first() == Some(&0) && offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.len() != classes + 1 || !rising || offsets[classes] > n {
        let expected = format!(
            "[{}] offsets from 0 upward to at most {n}, one more than there are classes",
            classes + 1
        );
        return Err(Error::shape(OP, "offsets", &[offsets.len()], expected));
    }
    let total = offsets[classes];
    let mut sizes = vec![0usize; total];
    for (row, (cluster, class)) in assignment.iter().zip(&segments.class_of).enumerate() {
        let own = offsets[*class as usize]..offsets[*class as usize + 1];
        if !own.contains(&(*cluster as usize)) {
            let expected = format!("a cluster of the row's own class, in {own:?}");
            return Err(Error::range(OP, "assignment", format!("{cluster} at row {row}"), expected));
        }
        sizes[*cluster as usize] += 1;
    }
    let mut rank = Vec::with_capacity(total + 1);
    let mut next = 0usize;
    for size in &sizes {
        rank.push(next);
        next += usize::from(*size > 0);
    }
    rank.push(next);
    let group_of = assignment.iter().map(|cluster| rank[*cluster as usize] as u32).collect();
    Ok((group_of, offsets.iter().map(|start| rank[*start]).collect()))
}
