//! What a device needs to know of a call: its checks, its classes and its start, worked out on the host.

use super::{
    Options, Start, check, check_start, cluster_offsets, philox::Draws, points, segments::Segments, start,
};
use crate::Result;

/// Where the iterations of a [`Problem`] start.
#[derive(Debug, Clone, PartialEq)]
pub enum Begin {
    /// k-means++ from the seed.
    PlusPlus {
        /// The key of the counter-based generator.
        seed: u64,
    },
    /// A row of every cluster's class, counted from the first row of the class.
    Rows(Vec<u32>),
    /// `[K, D]`, unit rows on the sphere.
    Places(Vec<f64>),
}

/// The classes of a call of [`super::sub_clusters`], checked as it checks them; only the points are left to look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The distinct labels, ascending; `[0]` for one class over everything.
    pub labels: Vec<u32>,
    /// Where the rows of each class start in `members`, one entry more than labels.
    pub rows: Vec<usize>,
    /// Row numbers, class by class, in their order inside a class.
    pub members: Vec<u32>,
    /// Where the clusters of each class start, one entry more than labels.
    pub clusters: Vec<usize>,
    /// The start.
    pub begin: Begin,
}

impl Problem {
    /// The problem of points `[n, d]`.
    ///
    /// # Errors
    /// Those of [`super::sub_clusters`] that do not depend on the points themselves.
    pub fn new((n, d): (usize, usize), labels: Option<&[u32]>, options: &Options<'_>) -> Result<Self> {
        check((n, d), labels, options)?;
        let segments = labels.map_or_else(|| Segments::single(n), Segments::by_label);
        let clusters = cluster_offsets(&segments, options.count)?;
        let k = clusters.last().copied().unwrap_or(0);
        let inverse = check_start(&options.start, k, d, options.geometry == super::Geometry::Spherical)?;
        let begin = match &options.start {
            Start::PlusPlus { seed } => Begin::PlusPlus { seed: *seed },
            Start::Random { seed } => {
                let rows = clusters.windows(2).enumerate().flat_map(|(class, own)| {
                    let draws = Draws::new(*seed, segments.labels[class]);
                    start::random(segments.members(class).len(), own[1] - own[0], &draws)
                });
                Begin::Rows(rows.map(|row| row as u32).collect())
            }
            Start::Given(given) => {
                let mut buffer = vec![0.0; d];
                let mut places = Vec::with_capacity(k * d);
                for cluster in 0..k {
                    let scale = inverse.as_ref().map_or(1.0, |inverse| inverse[cluster]);
                    let row = points::row_of(given, cluster, &mut buffer);
                    places.extend(row.iter().map(|x| f64::from(*x) * scale));
                }
                Begin::Places(places)
            }
        };
        let Segments { labels, offsets, members, .. } = segments;
        Ok(Self { labels, rows: offsets, members, clusters, begin })
    }
}
