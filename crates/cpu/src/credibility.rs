//! Which labeled embeddings deserve belief: how well each one fits its own class among all classes.
//!
//! The distribution is that of neighborhood consensus (Wu et al., AAAI 2022): p_ik ∝ e^{s_ik} over the centroids
//! of **all** classes, s falling with the distance d_ik, and H_i its entropy. Entropy alone says only that a row
//! lies between classes: a row that sits squarely in a wrong class has a small H. The second statistic is
//! therefore −ln p of the row's own class, `suspicion`, with the row left out of its own centroid, for among
//! five or six rows it would vouch for itself.

mod groups;

use rayon::prelude::*;

use self::groups::Groups;
pub use self::groups::Partition;
use crate::{
    Error, Result, Rows,
    clusters::{
        Geometry,
        points::{Points, TILE, checked_norms},
    },
    sweep::{Found, Grid, Own, Rates, log_sum_exp_and_entropy, sweep},
};

const OP: &str = "credibility";

/// What the centroids stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Centers<'a> {
    /// One centroid per class.
    Classes,
    /// One centroid per sub-cluster: the mean of the rows assigned to it.
    SubClusters {
        /// The global cluster id of every row, as sub-clustering returns it.
        assignment: &'a [u32],
        /// Where the clusters of each class start, classes by ascending label.
        offsets: &'a [usize],
    },
}

/// How distances become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Scale {
    /// s = −d/σ with one σ for all: the median over centroids of the standard deviation of their rows' distances.
    SharedDeviation,
    /// s = −d/v with one v for all: the median over centroids of the variance of their rows' distances.
    SharedVariance,
    /// s_k = −d/max(v_k, floor), v_k the variance of the distances of centroid k's rows; the floor is the median
    /// of v when `None`.
    ClassVariance {
        /// The smallest scale.
        floor: Option<f64>,
    },
    /// s = −rate·d.
    Exponential {
        /// β > 0.
        rate: f64,
    },
    /// s = −d²/(2σ²).
    Gaussian {
        /// σ > 0.
        sigma: f64,
    },
}

/// A threshold in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Limit {
    /// This share of the logarithm of the number of outcomes.
    Share(f64),
    /// This many nats.
    Nats(f64),
}

impl Limit {
    fn nats(self, outcomes: usize) -> f64 {
        match self {
            Self::Share(share) => share * (outcomes.max(1) as f64).ln(),
            Self::Nats(nats) => nats,
        }
    }
}

/// Which rows are believed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rule {
    /// H ≤ limit; the share is of ln K, or of ln m with the m nearest centroids.
    Entropy(Limit),
    /// −ln p_own ≤ limit; the share is of ln C, C the number of classes.
    OwnProbability(Limit),
    /// Both.
    Both {
        /// The limit of H.
        entropy: Limit,
        /// The limit of −ln p_own.
        own: Limit,
    },
}

/// The choices of [`credibility`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options<'a> {
    /// Classes or sub-clusters.
    pub centers: Centers<'a>,
    /// Rows and means as they are, or both as directions.
    pub geometry: Geometry,
    /// Leaves a row out of the centroid that it belongs to.
    pub leave_one_out: bool,
    /// The scores.
    pub scale: Scale,
    /// The entropy over the m nearest centroids only, or over all. `suspicion` is over all in any case.
    pub nearest: Option<usize>,
    /// Which rows are believed.
    pub rule: Rule,
    /// Also refuses rows whose most probable centroid belongs to another class.
    pub reject_other_class: bool,
}

impl Default for Options<'_> {
    /// The choice that found planted label noise best in the measurements of docs/clusters.md: directions,
    /// leave-one-out, one shared deviation, −ln p_own ≤ 0.9 ln C.
    fn default() -> Self {
        Self {
            centers: Centers::Classes,
            geometry: Geometry::Spherical,
            leave_one_out: true,
            scale: Scale::SharedDeviation,
            nearest: None,
            rule: Rule::OwnProbability(Limit::Share(0.9)),
            reject_other_class: false,
        }
    }
}

/// The limits of a [`Rule`], in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Of the entropy.
    pub entropy: Option<f64>,
    /// Of −ln p_own.
    pub suspicion: Option<f64>,
}

impl Options<'_> {
    /// Checks the numbers among the choices.
    ///
    /// # Errors
    /// [`Error::Range`] for scales, limits and an m out of range.
    pub fn check(&self) -> Result<()> {
        check(self)
    }

    /// The rates of all centroids, from the distances of their rows.
    ///
    /// # Errors
    /// [`Error::Range`] for a scale that gives no positive rate in f32.
    pub fn rates(&self, spreads: &[Spread]) -> Result<Rates> {
        rates(self.scale, spreads)
    }

    /// What the rule compares with.
    pub fn limits(&self, partition: &Partition) -> Limits {
        let outcomes = self.nearest.map_or(usize::MAX, |m| m.max(1)).min(partition.groups());
        let entropy = |limit: Limit| Some(limit.nats(outcomes));
        let suspicion = |limit: Limit| Some(limit.nats(partition.labels.len()));
        let (entropy, suspicion) = match self.rule {
            Rule::Entropy(limit) => (entropy(limit), None),
            Rule::OwnProbability(limit) => (None, suspicion(limit)),
            Rule::Both { entropy: limit, own } => (entropy(limit), suspicion(own)),
        };
        Limits { entropy, suspicion }
    }

    /// The published rule: plain means, v_k the class's variance with the median as its floor, H ≤ ½ ln K.
    #[must_use]
    pub fn published() -> Self {
        Self {
            geometry: Geometry::Euclidean,
            leave_one_out: false,
            scale: Scale::ClassVariance { floor: None },
            rule: Rule::Entropy(Limit::Share(0.5)),
            ..Self::default()
        }
    }
}

/// What is known of each of `N` rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Credibility {
    /// 1 where the row is believed.
    pub credible: Vec<u8>,
    /// H in nats, over all centroids or the m nearest.
    pub entropy: Vec<f32>,
    /// p of the row's own class: the sum over its centroids.
    pub own_probability: Vec<f32>,
    /// −ln of that: the score by which to rank rows, the least credible highest.
    pub suspicion: Vec<f32>,
    /// The distance to the nearest own centroid less that to the nearest other one; −∞ without another class.
    pub margin: Vec<f32>,
    /// How many centroids of other classes are nearer than the own ones.
    pub closer: Vec<u32>,
    /// The label of the class of the most probable centroid.
    pub predicted: Vec<u32>,
    /// The limit that H was compared with, when the rule has one.
    pub entropy_limit: Option<f64>,
    /// The limit that `suspicion` was compared with, when the rule has one.
    pub suspicion_limit: Option<f64>,
}

/// The credibility of every row of `points` `[N, D]` under its class label; labels in any order, gaps allowed.
///
/// A row alone in its class, for which leaving it out leaves nothing, keeps its own position as its centroid:
/// nothing speaks against it but the nearness of others. A row alone in its sub-cluster is compared with the
/// other sub-clusters of its class. The mean of directions that cancel stays at the origin.
///
/// Shared scales are over centroids with at least two rows; where they vanish (classes of two rows have equal
/// left-out distances) the deviation over all rows takes their place, then a tenth of the mean distance, then 1.
///
/// Beyond inputs and outputs it takes O(N + K·D) memory; a row's results depend on others through the centroids
/// and the scale only.
///
/// # Errors
/// [`Error::Empty`], [`Error::Shape`] and [`Error::Range`] for arguments that do not fit, [`Error::NotFinite`],
/// [`Error::ZeroNorm`] on the sphere.
pub fn credibility(points: Rows<'_>, labels: &[u32], options: &Options<'_>) -> Result<Credibility> {
    let (n, d) = (points.rows(), points.cols());
    if n == 0 {
        return Err(Error::Empty { op: OP, argument: "points" });
    }
    if d == 0 || n > u32::MAX as usize {
        return Err(Error::shape(OP, "points", &[n, d], "at least one column and fewer than 2^32 rows"));
    }
    if labels.len() != n {
        return Err(Error::shape(OP, "labels", &[labels.len()], format!("[{n}], one label per row")));
    }
    options.check()?;
    let unit = options.geometry == Geometry::Spherical;
    let norms = checked_norms(OP, "points", &points, unit)?;
    let inverse: Option<Vec<f32>> = unit.then(|| norms.iter().map(|x| (1.0 / x.sqrt()) as f32).collect());
    drop(norms);
    let partition = Partition::new(labels, &options.centers)?;
    let groups = Groups::new(&points, inverse.as_deref(), &partition, options);
    let members: Vec<u32> = (0..n as u32).collect();
    let rows = Points::new(&points, &members, inverse.as_deref());

    let distances = own_distances(&rows, &groups);
    let spreads: Vec<Spread> =
        (0..partition.groups()).map(|g| Spread::of(partition.rows_of(g), &distances)).collect();
    let grid = Grid::new(&groups.centroids, d, options.rates(&spreads)?);
    let width = options.nearest.unwrap_or(0).min(partition.groups());
    let limits = options.limits(&partition);
    let found = sweep(
        &rows,
        &grid,
        width,
        |i, x| Own { columns: groups.columns(i), squared: groups.own_squared(i, x) },
        |_, _, own, found| judge(&grid, &own, &found, &partition),
    );
    let believed = |row: &Judged, i: usize| {
        limits.entropy.is_none_or(|limit| row.entropy <= limit)
            && limits.suspicion.is_none_or(|limit| row.suspicion <= limit || partition.labels.len() == 1)
            && (!options.reject_other_class || row.class == partition.class_of_row[i] as usize)
    };
    Ok(Credibility {
        credible: found.iter().enumerate().map(|(i, row)| u8::from(believed(row, i))).collect(),
        entropy: found.iter().map(|row| row.entropy as f32).collect(),
        own_probability: found.iter().map(|row| (-row.suspicion).exp() as f32).collect(),
        suspicion: found.iter().map(|row| row.suspicion as f32).collect(),
        margin: found.iter().map(|row| row.margin).collect(),
        closer: found.iter().map(|row| row.closer).collect(),
        predicted: found.iter().map(|row| partition.labels[row.class]).collect(),
        entropy_limit: limits.entropy,
        suspicion_limit: limits.suspicion,
    })
}

#[derive(Debug)]
struct Judged {
    entropy: f64,
    suspicion: f64,
    margin: f32,
    closer: u32,
    class: usize,
}

fn judge(grid: &Grid, own: &Own, found: &Found, partition: &Partition) -> Judged {
    let score = |k: usize, squared: f32| grid.score(k, squared);
    let scores: Vec<f32> =
        own.columns.clone().zip(&own.squared).map(|(k, squared)| score(k, *squared)).collect();
    let (own_lse, _) = log_sum_exp_and_entropy(&scores);
    let entropy = if found.nearest.is_empty() {
        found.entropy
    } else {
        let near: Vec<f32> = found.nearest.iter().map(|(squared, k)| score(*k as usize, *squared)).collect();
        log_sum_exp_and_entropy(&near).1
    };
    let nearest = own.squared.iter().copied().fold(f32::INFINITY, f32::min);
    Judged {
        entropy,
        suspicion: (found.log_sum_exp - own_lse).max(0.0),
        margin: nearest.sqrt() - found.other.sqrt(),
        closer: found.closer,
        class: partition.class_of(found.best as usize),
    }
}

/// The distance of every row to the centroid that it belongs to, left out of it where it can be.
fn own_distances(rows: &Points<'_>, groups: &Groups<'_>) -> Vec<f64> {
    let mut out = vec![0.0f64; rows.len()];
    out.par_chunks_mut(TILE).enumerate().for_each_init(Vec::new, |buffer, (t, out)| {
        let first = t * TILE;
        let (x, ld) = rows.tile(first..first + out.len(), buffer);
        for (i, out) in out.iter_mut().enumerate() {
            *out = groups.member_squared(first + i, &x[i * ld..i * ld + rows.dim()]).sqrt();
        }
    });
    out
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => 0.5 * (values[n / 2 - 1] + values[n / 2]),
    }
}

/// The distances of a centroid's rows to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// How many rows.
    pub rows: usize,
    /// The mean of their distances.
    pub mean: f64,
    /// The variance of their distances, divided by their number.
    pub variance: f64,
}

impl Spread {
    fn of(rows: &[u32], distances: &[f64]) -> Self {
        let n = rows.len().max(1) as f64;
        let far = || rows.iter().map(|row| distances[*row as usize]);
        let mean = far().sum::<f64>() / n;
        let variance = far().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        Self { rows: rows.len(), mean, variance }
    }

    /// The spread of all rows together.
    fn joined(spreads: &[Self]) -> Self {
        let rows = spreads.iter().map(|s| s.rows).sum::<usize>();
        let weighed = |f: &dyn Fn(&Self) -> f64| {
            spreads.iter().map(|s| s.rows as f64 * f(s)).sum::<f64>() / rows.max(1) as f64
        };
        let mean = weighed(&|s| s.mean);
        Self { rows, mean, variance: weighed(&|s| s.variance + (s.mean - mean).powi(2)) }
    }
}

fn rates(scale: Scale, spreads: &[Spread]) -> Result<Rates> {
    let same = |rate: f64, squared| Rates { rates: vec![rate as f32; spreads.len()], squared };
    // Variance of each centroid's own distances; none for a single row.
    let spread = || spreads.iter().map(|s| (s.rows > 1).then_some(s.variance));
    let all = Spread::joined(spreads);
    let mean = all.mean;
    // Rounding alone gives equal distances a variance of about (2⁻²⁴ d)²; below 10⁻¹² d² it is no scale.
    let usable = |v: f64| v > 1e-12 * mean * mean;
    let fallback = || [all.variance, 0.01 * mean * mean, 1.0].into_iter().find(|v| usable(*v)).unwrap_or(1.0);
    let shared =
        || Some(median(spread().flatten().collect())).filter(|v| usable(*v)).unwrap_or_else(fallback);
    let rates = match scale {
        Scale::SharedDeviation => same(1.0 / shared().sqrt(), false),
        Scale::SharedVariance => same(1.0 / shared(), false),
        Scale::ClassVariance { floor } => {
            let floor = floor.unwrap_or_else(shared);
            let rates = spread().map(|v| (1.0 / v.unwrap_or(0.0).max(floor)) as f32).collect();
            Rates { rates, squared: false }
        }
        Scale::Exponential { rate } => same(rate, false),
        Scale::Gaussian { sigma } => same(0.5 / (sigma * sigma), true),
    };
    match rates.rates.iter().find(|r| !(r.is_finite() && **r > 0.0)) {
        Some(rate) => {
            Err(Error::range(OP, "scale", format!("a rate of {rate}"), "a rate that is positive in f32"))
        }
        None => Ok(rates),
    }
}

fn check(options: &Options<'_>) -> Result<()> {
    let positive = |argument, value: f64| {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(Error::range(OP, argument, value, "a positive finite number"))
    };
    match options.scale {
        Scale::ClassVariance { floor: Some(floor) } => positive("scale.floor", floor)?,
        Scale::Exponential { rate } => positive("scale.rate", rate)?,
        Scale::Gaussian { sigma } => positive("scale.sigma", sigma)?,
        _ => {}
    }
    let limit = |argument, limit| {
        let (Limit::Share(value) | Limit::Nats(value)) = limit;
        if value >= 0.0 && value.is_finite() {
            return Ok(());
        }
        Err(Error::range(OP, argument, value, "a finite number, 0 or more"))
    };
    match options.rule {
        Rule::Entropy(entropy) => limit("rule.entropy", entropy)?,
        Rule::OwnProbability(own) => limit("rule.own", own)?,
        Rule::Both { entropy, own } => {
            limit("rule.entropy", entropy)?;
            limit("rule.own", own)?;
        }
    }
    if options.nearest == Some(0) {
        return Err(Error::range(OP, "nearest", 0, "at least one centroid"));
    }
    Ok(())
}
