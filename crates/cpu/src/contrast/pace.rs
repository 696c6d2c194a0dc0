//! Weights of single pairs in the denominator: negatives of the query's own group count the less, the closer they are to
//! being positives, and are admitted at a pace.

use crate::{Error, Result, Rows};

use super::OP;
use super::plan::{inverse_norms, view_row};

/// How close a negative of the query's group is to being a positive: an affinity in [0, 1].
#[derive(Debug, Clone, Copy)]
pub enum Closeness<'a> {
    /// e^{−|t_i − t_j|/scale} of times.
    Times {
        /// `[B]`, finite.
        queries: &'a [f32],
        /// `[N]`, finite.
        keys: &'a [f32],
        /// Finite and above 0.
        scale: f32,
    },
    /// ½(1 + cos) of features, constants of any norm but zero.
    Features {
        /// `[B, Df]`.
        queries: Rows<'a>,
        /// `[N, Df]`.
        keys: Rows<'a>,
    },
}

/// How an affinity a becomes a weight at the pace ρ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// 1 where a ≤ ρ, else 0.
    Hard,
    /// max(0, 1 − a/ρ).
    Soft,
}

impl Admission {
    /// The weight of an affinity.
    pub fn weight(self, affinity: f64, pace: f64) -> f64 {
        match self {
            Self::Hard => f64::from(u8::from(affinity <= pace)),
            Self::Soft => (1.0 - affinity / pace).max(0.0),
        }
    }
}

/// Weights of the negatives of the query's own group; other negatives, and positives, count fully.
#[derive(Debug, Clone, Copy)]
pub struct Pace<'a> {
    /// Groups of queries `[B]` and keys `[N]`.
    pub groups: (&'a [u32], &'a [u32]),
    /// The affinity inside a group.
    pub closeness: Closeness<'a>,
    /// ρ, above 0 and at most 1.
    pub pace: f32,
    /// From affinity to weight.
    pub admission: Admission,
}

/// The largest |ln u| of a weight above 0: 1 − a/ρ is 0 or at least 2⁻⁵³.
pub(super) const WIDEST: f64 = 37.0;

impl Pace<'_> {
    pub(super) fn check(&self, b: usize, n: usize) -> Result<()> {
        let length = |argument, got: usize, expected: usize, what: &str| match got == expected {
            true => Ok(()),
            false => Err(Error::shape(OP, argument, &[got], format!("[{expected}], one a {what}"))),
        };
        length("query_groups", self.groups.0.len(), b, "query")?;
        length("key_groups", self.groups.1.len(), n, "key")?;
        if !(self.pace > 0.0 && self.pace <= 1.0) {
            return Err(Error::range(OP, "pace", self.pace, "above 0 and at most 1"));
        }
        match &self.closeness {
            Closeness::Times { queries, keys, scale } => {
                length("query_times", queries.len(), b, "query")?;
                length("key_times", keys.len(), n, "key")?;
                for (argument, times) in [("query_times", queries), ("key_times", keys)] {
                    if let Some(bad) = times.iter().find(|t| !t.is_finite()) {
                        return Err(Error::range(OP, argument, bad, "finite times"));
                    }
                }
                match scale.is_finite() && *scale > 0.0 {
                    true => Ok(()),
                    false => Err(Error::range(OP, "time scale", scale, "finite and above 0")),
                }
            }
            Closeness::Features { queries, keys } => {
                let (shape, dim) = (|r: &Rows<'_>| [r.rows(), r.cols()], queries.cols());
                if queries.rows() != b || dim == 0 {
                    let expected = format!("[{b}, Df], one row a query and at least one dimension");
                    return Err(Error::shape(OP, "query_features", &shape(queries), expected));
                }
                if keys.rows() != n || keys.cols() != dim {
                    let expected = format!("[{n}, {dim}], one row a key");
                    return Err(Error::shape(OP, "key_features", &shape(keys), expected));
                }
                inverse_norms(queries, "query_features", |_| true)?;
                inverse_norms(keys, "key_features", |_| true)?;
                Ok(())
            }
        }
    }

    /// u_ij of a negative of the query's group. In f64: near a = ρ little is left of 1 − a/ρ.
    pub(super) fn weight(&self, row: usize, key: usize, buffers: &mut [Vec<f32>; 2]) -> f64 {
        let affinity = match &self.closeness {
            Closeness::Times { queries, keys, scale } => {
                let apart = (f64::from(queries[row]) - f64::from(keys[key])).abs();
                (-apart / f64::from(*scale)).exp()
            }
            Closeness::Features { queries, keys } => {
                let [left, right] = buffers;
                let (x, y) = (view_row(queries, row, left), view_row(keys, key, right));
                let dot = |a: &[f32], b: &[f32]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                // Squares of subnormal numbers are normal in f64.
                let cosine = dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
                0.5 * (1.0 + cosine.clamp(-1.0, 1.0))
            }
        };
        self.admission.weight(affinity, f64::from(self.pace))
    }
}
