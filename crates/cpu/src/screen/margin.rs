//! How far the sums of a screening kernel can lie from the scores that decide.

use crate::scoring::Metric;

/// Half a unit in the last place of an `f32` next to 1.
const UNIT: f64 = 5.960_464_477_539_063e-8;

/// The size of a row: what error bounds need to know of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Size {
    /// An upper bound of the Euclidean norm.
    pub(crate) norm: f64,
    /// An upper bound of the norm of what packing takes away.
    pub(crate) residual: f64,
}

impl Size {
    /// The size of no row: less than that of any.
    pub(crate) const NONE: Self = Self { norm: -1.0, residual: 0.0 };

    /// The size of rows that are at most as large as either.
    pub(crate) fn max(self, other: Self) -> Self {
        Self { norm: self.norm.max(other.norm), residual: self.residual.max(other.residual) }
    }

    /// The size of a row from its squared norm and the squared norm of its residual, computed in f64.
    pub(crate) fn new(squared: f64, residual: f64) -> Self {
        Self { norm: squared.sqrt() * (1.0 + 1e-9), residual: residual.sqrt() * (1.0 + 1e-9) }
    }
}

/// Bounds for vectors of one dimension.
///
/// With u = 2⁻²⁴ and γₙ = n·u/(1 − n·u), a sum of n products in any order, fused or not, errs by at most
/// γₙ Σ|x_d y_d| ≤ γₙ‖x‖‖y‖ (Higham, section 3.1, and Cauchy-Schwarz). A screening sum starts from one more
/// term; the score that decides has its own error of the same form. Underflow adds at most 2⁻¹⁵⁰ an operation, or
/// what the kernel says. A kernel that packs x̃ for x adds |⟨x̃, ỹ⟩ − ⟨x, y⟩| ≤ ‖x − x̃‖‖ỹ‖ + ‖x‖‖y − ỹ‖.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Margin {
    /// Relative error of a screening sum and a deciding score together.
    relative: f64,
    /// What underflow can add.
    absolute: f64,
}

impl Margin {
    /// The bounds of dimension `dim`, where an operation can lose `underflow`.
    pub(crate) fn new(dim: usize, underflow: f64) -> Self {
        let dim = dim as f64;
        // γ of dim + 2 for the screen and of dim / 16 + 8 for the score, with room for the roundings of the
        // threshold itself; 1.1 covers 1 / (1 − n·u) up to dimensions of a million.
        Self { relative: 1.1 * (dim + dim / 16.0 + 16.0) * UNIT, absolute: (dim + 8.0) * (3e-45 + underflow) }
    }

    /// How far the screening sum and the deciding score of a pair can lie from each other, when both start from the
    /// same number of at most the size `start` and no key is larger than `keys`: ‖x‖ times the first plus ‖x − x̃‖
    /// times the second plus the third.
    pub(crate) fn slopes(&self, keys: Size, start: f64) -> [f64; 3] {
        let y = keys.norm + keys.residual;
        let packed = y * (1.0 + self.relative);
        [keys.residual + self.relative * y, packed, self.relative * start + self.absolute]
    }

    /// Between which screening sums a pair may have the deciding score `score`: every pair whose score is `score`
    /// or nearer has a sum of at least the first; every pair with a sum of at least the second has a nearer one.
    ///
    /// The screening sum is ⟨x, y⟩ for the inner product and the cosine, ⟨x, y⟩ − ‖y‖²/2 for squared L2: from
    /// ‖x − y‖² ≤ t follows ⟨x, y⟩ − ‖y‖²/2 ≥ (‖x‖² − t)/2.
    pub(crate) fn around(
        &self,
        metric: Metric,
        score: f32,
        (query, squared_norm): (Size, f64),
        keys: Size,
    ) -> (f32, f32) {
        let score = f64::from(score);
        let (x, y) = (query.norm + query.residual, keys.norm + keys.residual);
        let (center, size) = match metric {
            Metric::InnerProduct | Metric::Cosine => (score, x * y + score.abs()),
            Metric::SquaredL2 => (0.5 * (squared_norm - score), x * x + y * y + score),
        };
        let packing = query.residual * y + query.norm * keys.residual;
        // Rounding to f32 may move a bound by half a unit: step outward.
        let error = packing + self.relative * size + self.absolute + center.abs() * 2.0 * UNIT + 3e-45;
        ((center - error) as f32, (center + error) as f32)
    }
}
