//! Soft assignment of points to centroids with its entropy, streamed over the centroids.

mod centroids;

use crate::{
    Error, Result, Rows,
    clusters::{
        Geometry,
        points::{Points, checked_norms},
    },
    sweep::{Grid, Own, log_sum_exp_and_entropy, sweep},
};

pub use crate::sweep::Rates;
pub use centroids::{SoftCentroids, refuse_nearest, soft_centroids};

const OP: &str = "soft_assignment";

/// The score s_k of a centroid at distance d_k; probabilities are p_k ∝ e^{s_k}.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Affinity<'a> {
    /// s = −rate·d.
    Exponential {
        /// β > 0.
        rate: f64,
    },
    /// s_k = −d/scale_k, one scale per centroid.
    Scaled(&'a [f64]),
    /// s = −d²/(2σ²). On unit rows that is the softmax of cos/τ with τ = σ².
    Gaussian {
        /// σ > 0.
        sigma: f64,
    },
    /// s_k = −d²/(2σ_k²), one σ per centroid.
    ScaledGaussian(&'a [f64]),
}

/// The choices of [`soft_assignment`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options<'a> {
    /// Rows and centroids as they are, or as unit vectors.
    pub geometry: Geometry,
    /// The scores.
    pub affinity: Affinity<'a>,
    /// Only the m nearest centroids of each row count (all when m exceeds their number), or all.
    pub nearest: Option<usize>,
}

impl Options<'_> {
    /// Checks the shapes `[N, D]` of the points and `[K, D]` of the centroids, and m.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Shape`] and [`Error::Range`].
    pub fn check(&self, [n, d]: [usize; 2], [k, columns]: [usize; 2]) -> Result<()> {
        for (argument, rows) in [("points", n), ("centroids", k)] {
            if rows == 0 {
                return Err(Error::Empty { op: OP, argument });
            }
            if rows > u32::MAX as usize {
                return Err(Error::range(OP, argument, format!("{rows} rows"), "fewer than 2^32 rows"));
            }
        }
        if d == 0 || columns != d {
            let expected = format!("[{k}, {d}] with at least one column, as the points have");
            return Err(Error::shape(OP, "centroids", &[k, columns], expected));
        }
        if self.nearest == Some(0) {
            return Err(Error::range(OP, "nearest", 0, "at least one centroid"));
        }
        Ok(())
    }

    /// The rates of `k` centroids.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of scales, [`Error::Range`] for a rate or scale that is not positive.
    pub fn rates(&self, k: usize) -> Result<Rates> {
        rates(self.affinity, k)
    }
}

/// Soft assignment of `N` points to `K` centroids.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftAssignment {
    /// ln Σ_k e^{s_k}, `[N]`.
    pub log_sum_exp: Vec<f32>,
    /// H = −Σ p ln p in nats, `[N]`.
    pub entropy: Vec<f32>,
    /// The most probable centroid, ties to the smaller index, `[N]`.
    pub best: Vec<u32>,
    /// Its probability, `[N]`.
    pub best_probability: Vec<f32>,
    /// m, the columns of the two lists; 0 when all centroids count.
    pub width: usize,
    /// The m nearest centroids of each row by (distance, index) ascending, `[N, m]`.
    pub indices: Vec<u32>,
    /// Their probabilities, `[N, m]`.
    pub probabilities: Vec<f32>,
}

/// p_ik ∝ e^{s_ik} over all centroids, or over the m nearest, with its entropy; no N × K memory.
///
/// `points` is `[N, D]`, `centroids` `[K, D]`. Squared distances come from products in f32 where that is exact
/// enough and from the differences where it would cancel (below 1/64 of ‖x‖² + ‖c‖²), with fewer than 32
/// centroids, and for the m nearest; sums of exponentials are f32 inside a tile and f64 over tiles. A row's bits
/// do not depend on the other rows.
///
/// # Errors
/// [`Error::Empty`], [`Error::Shape`], [`Error::Range`] for a rate, scale or m that is not positive,
/// [`Error::NotFinite`], and [`Error::ZeroNorm`] on the sphere.
pub fn soft_assignment(
    points: Rows<'_>,
    centroids: Rows<'_>,
    options: &Options<'_>,
) -> Result<SoftAssignment> {
    with_grid(points, centroids, options, |points, grid| {
        let width = options.nearest.map_or(0, |m| m.min(grid.k));
        collected(width, assigned(points, grid, width))
    })
}

/// Checks and measures both sides, and calls `f` with the rows and the centroids as they are compared.
fn with_grid<R>(
    points: Rows<'_>,
    centroids: Rows<'_>,
    options: &Options<'_>,
    f: impl FnOnce(&Points<'_>, &Grid) -> R,
) -> Result<R> {
    let (n, d, k) = (points.rows(), points.cols(), centroids.rows());
    options.check([n, d], [k, centroids.cols()])?;
    let rates = options.rates(k)?;
    let unit = options.geometry == Geometry::Spherical;
    let inverse = inverse_norms("points", &points, unit)?;
    let center_inverse = inverse_norms("centroids", &centroids, unit)?;

    let mut centers = vec![0.0f32; k * d];
    centroids.load(0..k, &mut centers);
    if let Some(inverse) = &center_inverse {
        for (c, inverse) in centers.chunks_exact_mut(d).zip(inverse) {
            c.iter_mut().for_each(|v| *v *= inverse);
        }
    }
    let grid = Grid::new(&centers, d, rates);
    drop(centers);
    let members: Vec<u32> = (0..n as u32).collect();
    Ok(f(&Points::new(&points, &members, inverse.as_deref()), &grid))
}

/// What is found of a row: lse, entropy, the best centroid and its score, and the list of the nearest.
type Assigned = (f64, f64, u32, f32, Vec<(u32, f32)>);

fn assigned(points: &Points<'_>, grid: &Grid, width: usize) -> Vec<Assigned> {
    sweep(
        points,
        grid,
        width,
        |_, _| Own::default(),
        |_, _, _, found| {
            if width == 0 {
                return (found.log_sum_exp, found.entropy, found.best, found.best_score, Vec::new());
            }
            let scores: Vec<f32> = found.nearest.iter().map(|(s, k)| grid.score(*k as usize, *s)).collect();
            let (lse, entropy) = log_sum_exp_and_entropy(&scores);
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let best =
                found.nearest.iter().zip(&scores).filter(|(_, s)| **s == top).map(|((_, k), _)| *k).min();
            let list: Vec<(u32, f32)> = found
                .nearest
                .iter()
                .zip(&scores)
                .map(|((_, k), s)| (*k, (f64::from(*s) - lse).exp() as f32))
                .collect();
            (lse, entropy, best.unwrap_or(0), top, list)
        },
    )
}

fn collected(width: usize, rows: Vec<Assigned>) -> SoftAssignment {
    let n = rows.len();
    let mut out = SoftAssignment {
        log_sum_exp: Vec::with_capacity(n),
        entropy: Vec::with_capacity(n),
        best: Vec::with_capacity(n),
        best_probability: Vec::with_capacity(n),
        width,
        indices: Vec::with_capacity(n * width),
        probabilities: Vec::with_capacity(n * width),
    };
    for (lse, entropy, best, top, list) in rows {
        out.log_sum_exp.push(lse as f32);
        out.entropy.push(entropy as f32);
        out.best.push(best);
        out.best_probability.push((f64::from(top) - lse).exp() as f32);
        for (k, p) in list {
            out.indices.push(k);
            out.probabilities.push(p);
        }
    }
    out
}

fn inverse_norms(argument: &'static str, rows: &Rows<'_>, unit: bool) -> Result<Option<Vec<f32>>> {
    let norms = checked_norms(OP, argument, rows, unit)?;
    Ok(unit.then(|| norms.iter().map(|x| (1.0 / x.sqrt()) as f32).collect()))
}

fn rates(affinity: Affinity<'_>, k: usize) -> Result<Rates> {
    let positive = |argument: &'static str, value: f64| {
        if value.is_finite() && value > 0.0 && (value as f32) > 0.0 && (value as f32).is_finite() {
            Ok(value)
        } else {
            Err(Error::range(OP, argument, value, "a positive finite number"))
        }
    };
    let list = |scales: &[f64], rate: fn(f64) -> f64, squared| {
        if scales.len() != k {
            return Err(Error::shape(OP, "scales", &[scales.len()], format!("[{k}], one per centroid")));
        }
        let rates = scales
            .iter()
            .map(|s| positive("scales", rate(positive("scales", *s)?)).map(|r| r as f32))
            .collect::<Result<_>>()?;
        Ok(Rates { rates, squared })
    };
    let gauss = |sigma: f64| 0.5 / (sigma * sigma);
    match affinity {
        Affinity::Exponential { rate } => {
            Ok(Rates { rates: vec![positive("rate", rate)? as f32; k], squared: false })
        }
        Affinity::Gaussian { sigma } => {
            let rate = positive("sigma", gauss(positive("sigma", sigma)?))?;
            Ok(Rates { rates: vec![rate as f32; k], squared: true })
        }
        Affinity::Scaled(scales) => list(scales, |s| 1.0 / s, false),
        Affinity::ScaledGaussian(scales) => list(scales, gauss, true),
    }
}
