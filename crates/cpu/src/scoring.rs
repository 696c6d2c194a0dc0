//! How rows are compared: metrics, scores with a fixed order of summation, and the total order of entries.

use rayon::prelude::*;

use crate::screen::{Kernel, Margin, Size};
use crate::{Error, Result, Rows};

/// How two rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// ⟨x, y⟩: the larger, the nearer.
    #[default]
    InnerProduct,
    /// ⟨x, y⟩ / (‖x‖‖y‖): the larger, the nearer. Each row is scaled to norm 1 in f64 and rounded to `f32` once.
    Cosine,
    /// ‖x − y‖², summed from the differences: the smaller, the nearer, never negative.
    SquaredL2,
}

impl Metric {
    /// The score that stands where there is no neighbor: −∞, or +∞ for squared L2.
    pub fn worst(self) -> f32 {
        match self {
            Self::InnerProduct | Self::Cosine => f32::NEG_INFINITY,
            Self::SquaredL2 => f32::INFINITY,
        }
    }
}

/// A row cannot be compared: not finite, of norm zero, or so large that a score overflows.
#[derive(Debug)]
pub(crate) struct Bad;

/// Scores of one metric and dimension.
#[derive(Clone, Copy)]
pub(crate) struct Scorer {
    pub(crate) kernel: &'static Kernel,
    pub(crate) metric: Metric,
    margin: Margin,
}

impl Scorer {
    pub(crate) fn new(kernel: &'static Kernel, metric: Metric, dim: usize) -> Self {
        Self { kernel, metric, margin: Margin::new(dim, kernel.underflow) }
    }

    /// Measures a row as it is: its size and its squared norm.
    ///
    /// # Errors
    /// [`Bad`] when it is not finite.
    pub(crate) fn measure(&self, row: &[f32]) -> std::result::Result<(Size, f64), Bad> {
        let squared = self.kernel.squared_norm(row);
        if squared.is_finite() {
            Ok((Size::new(squared, self.kernel.residual(row)), squared))
        } else {
            Err(Bad)
        }
    }

    /// Scales a row for the cosine and measures it.
    ///
    /// # Errors
    /// [`Bad`] when it is not finite, or of norm zero and a direction is needed.
    pub(crate) fn prepare(&self, row: &mut [f32]) -> std::result::Result<(Size, f64), Bad> {
        if self.metric != Metric::Cosine {
            return self.measure(row);
        }
        let squared = self.kernel.squared_norm(row);
        if squared == 0.0 || !squared.is_finite() {
            return Err(Bad);
        }
        self.kernel.scale(1.0 / squared.sqrt(), row);
        // Every element is rounded once, so the norm is 1 to within 2⁻²⁴ and what underflow takes away.
        Ok((Size::new(1.000_001, self.kernel.residual(row)), 1.0))
    }

    /// The score of two prepared rows, in the order of summation of [`crate::simd::dot`].
    #[inline]
    pub(crate) fn score(&self, x: &[f32], y: &[f32]) -> f32 {
        match self.metric {
            Metric::InnerProduct | Metric::Cosine => self.kernel.dot(x, y),
            Metric::SquaredL2 => self.kernel.squared_distance(x, y),
        }
    }

    /// What the screening sum of a key of this squared norm starts from, for squared L2.
    pub(crate) fn start(squared: f64) -> f32 {
        (-0.5 * squared) as f32
    }

    /// The least screening sum of pairs whose score is `score` or nearer; −∞ when all scores are.
    pub(crate) fn least(&self, score: f32, query: (Size, f64), keys: Size) -> f32 {
        if score.is_finite() { self.around(score, query, keys).0 } else { f32::NEG_INFINITY }
    }

    /// See [`Margin::around`].
    pub(crate) fn around(&self, score: f32, query: (Size, f64), keys: Size) -> (f32, f32) {
        self.margin.around(self.metric, score, query, keys)
    }

    /// Whether a score of rows of these sizes could leave the range of `f32`.
    pub(crate) fn can_overflow(&self, query: Size, key: Size) -> bool {
        match self.metric {
            Metric::InnerProduct => query.norm * key.norm > 1e38,
            Metric::Cosine => false,
            Metric::SquaredL2 => (query.norm + key.norm).powi(2) > 1e38,
        }
    }
}

/// Checks that rows are finite, and of positive norm for the cosine.
///
/// # Errors
/// [`Error::NotFinite`] and [`Error::ZeroNorm`], naming the first offending row.
pub(crate) fn check_rows(
    op: &'static str,
    argument: &'static str,
    rows: &Rows<'_>,
    metric: Metric,
) -> Result<()> {
    rows.check_finite(op, argument)?;
    if metric != Metric::Cosine {
        return Ok(());
    }
    let kernel = Kernel::best();
    let zero = (0..rows.rows()).into_par_iter().with_min_len(256).map_init(
        || vec![0.0; rows.cols()],
        |buffer, row| {
            rows.load_row(row, buffer);
            (kernel.squared_norm(buffer) == 0.0).then_some(row)
        },
    );
    match zero.find_first(Option::is_some).flatten() {
        Some(row) => Err(Error::ZeroNorm { op, argument, row }),
        None => Ok(()),
    }
}

/// Why a computation over `candidates` met a [`Bad`] row: the error of the first such row.
pub(crate) fn diagnose(
    op: &'static str,
    argument: &'static str,
    rows: &Rows<'_>,
    candidates: impl Iterator<Item = usize>,
    metric: Metric,
) -> Error {
    let kernel = Kernel::best();
    let mut buffer = vec![0.0; rows.cols()];
    let mut largest = 0.0f64;
    for row in candidates {
        rows.load_row(row, &mut buffer);
        let squared = kernel.squared_norm(&buffer);
        if !squared.is_finite() {
            return Error::NotFinite { op, argument, row };
        }
        if squared == 0.0 && metric == Metric::Cosine {
            return Error::ZeroNorm { op, argument, row };
        }
        largest = largest.max(squared.sqrt());
    }
    let expected = "rows whose scores stay below 1e38; scale the embeddings";
    Error::range(op, argument, format!("a norm up to {largest:e}"), expected)
}

/// A score and an index in one integer: the larger entry is the nearer neighbor, and of equal scores the smaller
/// index. No entry is 0.
pub(crate) fn entry(metric: Metric, score: f32, index: u32) -> u64 {
    // Adding 0 makes −0 a +0, so that the two tie.
    let rising = if metric == Metric::SquaredL2 { -(score + 0.0) + 0.0 } else { score + 0.0 };
    let bits = rising.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!index)
}

/// The score and the index of an entry that is not 0.
pub(crate) fn score_and_index(metric: Metric, entry: u64) -> (f32, u32) {
    let ordered = (entry >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered };
    let rising = f32::from_bits(bits);
    let score = if metric == Metric::SquaredL2 { 0.0 - rising } else { rising };
    (score, !(entry as u32))
}

/// The worst score that still matters to a list whose last entry is `floor`.
pub(crate) fn floor_score(metric: Metric, floor: u64) -> f32 {
    match (floor, metric) {
        (0, Metric::SquaredL2) => f32::INFINITY,
        (0, _) => f32::NEG_INFINITY,
        _ => score_and_index(metric, floor).0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_order_by_score_then_by_smaller_index_and_read_back() {
        let scores = [f32::MIN, -2.0, -1e-40, 0.0, 1e-40, 0.5, 3.0, f32::MAX];
        for metric in [Metric::InnerProduct, Metric::SquaredL2] {
            for pair in scores.windows(2) {
                let (low, high) = (entry(metric, pair[0], 1), entry(metric, pair[1], 9));
                assert_eq!(low < high, metric == Metric::InnerProduct, "{pair:?}");
            }
            for score in scores {
                assert_eq!(score_and_index(metric, entry(metric, score, 77)), (score, 77));
                assert!(entry(metric, score, 3) > entry(metric, score, 4));
                assert_ne!(entry(metric, score, u32::MAX), 0);
            }
            assert_eq!(entry(metric, -0.0, 5), entry(metric, 0.0, 5));
        }
    }
}
