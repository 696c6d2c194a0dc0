//! Several upgrades in a row: the compatibility matrix and the averages over it.

use serde::{Deserialize, Serialize};

use crate::error::check_metric;
use crate::{Error, Result};

/// The compatibility matrix C of T models in time order: C_ij = M(φ_i, φ_j) for i ≥ j, queries by the newer model i, gallery
/// by the older model j; the diagonal holds the self-tests (CoReS, Biondi et al., TPAMI 2023; CL2R, Biondi et al., CVIU 2023;
/// IAM-CL2R, Ricci et al., 2024).
///
/// In the formulas, i and j run from 1 to T.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<f64>>", into = "Vec<Vec<f64>>")]
pub struct CompatibilityMatrix {
    rows: Vec<Vec<f64>>,
}

impl TryFrom<Vec<Vec<f64>>> for CompatibilityMatrix {
    type Error = Error;

    fn try_from(rows: Vec<Vec<f64>>) -> Result<Self> {
        Self::new(rows)
    }
}

impl From<CompatibilityMatrix> for Vec<Vec<f64>> {
    fn from(matrix: CompatibilityMatrix) -> Self {
        matrix.rows
    }
}

impl CompatibilityMatrix {
    /// The matrix from its lower triangle: row i (counted from 0) holds the i + 1 values C_i0 … C_ii.
    ///
    /// # Errors
    /// [`Error::Empty`] without rows, [`Error::Length`] for a row that is not one longer than the row before it, and
    /// [`Error::Range`] for a value that is not in 0 to 100 (NaN included).
    pub fn new(lower_triangle: Vec<Vec<f64>>) -> Result<Self> {
        const OP: &str = "compatibility matrix";
        if lower_triangle.is_empty() {
            return Err(Error::Empty { op: OP, argument: "lower_triangle" });
        }
        for (i, row) in lower_triangle.iter().enumerate() {
            if row.len() != i + 1 {
                return Err(Error::Length {
                    op: OP,
                    argument: format!("lower_triangle[{i}]"),
                    got: row.len(),
                    expected: format!("{} (row i of the lower triangle has i + 1 values)", i + 1),
                });
            }
            for (j, value) in row.iter().enumerate() {
                check_metric(OP, format!("lower_triangle[{i}][{j}]"), *value)?;
            }
        }
        Ok(Self { rows: lower_triangle })
    }

    /// T, the number of models.
    pub fn models(&self) -> usize {
        self.rows.len()
    }

    /// C_ij with queries by model `query` and the gallery by model `gallery`, both counted from 0; `None` where the gallery's
    /// model is the newer one, or there is no such model.
    pub fn get(&self, query: usize, gallery: usize) -> Option<f64> {
        self.rows.get(query)?.get(gallery).copied()
    }

    /// Average compatibility as CoReS and CL2R count it: AC = 2/(T(T−1)) Σ_{i>j} 1[C_ij ≥ C_jj], the share of the pairs of
    /// models that are compatible.
    ///
    /// # Errors
    /// [`Error::Undefined`] for a single model.
    pub fn average_compatibility(&self) -> Result<f64> {
        self.compatible_share("AC", |cross, old| cross >= old)
    }

    /// Average compatibility as IAM-CL2R counts it, with the strict C_ij > C_jj: a tie is not an improvement.
    ///
    /// # Errors
    /// [`Error::Undefined`] for a single model.
    pub fn average_compatibility_strict(&self) -> Result<f64> {
        self.compatible_share("AC (strict)", |cross, old| cross > old)
    }

    fn compatible_share(&self, metric: &'static str, compatible: impl Fn(f64, f64) -> bool) -> Result<f64> {
        self.several(metric)?;
        let (mut hits, mut pairs) = (0u64, 0u64);
        for (i, row) in self.rows.iter().enumerate() {
            for (cross, older) in row[..i].iter().zip(self.diagonal()) {
                pairs += 1;
                hits += u64::from(compatible(*cross, older));
            }
        }
        Ok(hits as f64 / pairs as f64)
    }

    /// Average multi-model accuracy as CoReS defines it: AM = 2/(T(T+1)) Σ_{i≥j} C_ij, the mean of the lower triangle with
    /// the diagonal.
    pub fn average_multimodel_accuracy(&self) -> f64 {
        let entries = self.models() * (self.models() + 1) / 2;
        self.rows.iter().flatten().sum::<f64>() / entries as f64
    }

    /// Average multi-model accuracy as the code of CoReS computes it: the mean of the entries above 0. It takes a model that
    /// finds nothing at all (an exact 0) for a missing entry, and so reports a higher value than
    /// [`Self::average_multimodel_accuracy`].
    ///
    /// # Errors
    /// [`Error::Undefined`] if every entry is 0.
    pub fn average_multimodel_accuracy_nonzero(&self) -> Result<f64> {
        nonzero_mean("AM (without zeros)", &self.rows)
    }

    /// Average accuracy of IAM-CL2R after every step: AA_i, the mean of the nonzero entries of the leading i × i block, for
    /// i = 1 … T. The published code marks missing entries by 0, so exact zeros drop out of it. The last value is the one that
    /// is reported as AA.
    ///
    /// # Errors
    /// [`Error::Undefined`] if all entries of a leading block are 0.
    pub fn average_accuracy(&self) -> Result<Vec<f64>> {
        (1..=self.models()).map(|i| nonzero_mean("AA", &self.rows[..i])).collect()
    }

    /// Backward compatibility of CL2R: BC = 1/(T−1) Σ_{i<T} (C_Ti − C_ii), what the last model gains on the galleries of all
    /// earlier ones.
    ///
    /// # Errors
    /// [`Error::Undefined`] for a single model.
    pub fn backward_compatibility(&self) -> Result<f64> {
        let steps = self.several("BC")?;
        let last = &self.rows[steps];
        Ok(last[..steps].iter().zip(self.diagonal()).map(|(cross, own)| cross - own).sum::<f64>()
            / steps as f64)
    }

    /// Forward compatibility of CL2R: FC = 1/(T−1) Σ_{i≥2} (C_{i,i−1} − C_ii), what is lost by leaving the gallery one model
    /// behind.
    ///
    /// # Errors
    /// [`Error::Undefined`] for a single model.
    pub fn forward_compatibility(&self) -> Result<f64> {
        let steps = self.several("FC")?;
        let lost = (1..=steps).map(|i| self.rows[i][i - 1] - self.rows[i][i]).sum::<f64>();
        Ok(lost / steps as f64)
    }

    /// The self-tests C_jj. Row j has j + 1 values, the last of them on the diagonal.
    fn diagonal(&self) -> impl Iterator<Item = f64> {
        self.rows.iter().filter_map(|row| row.last().copied())
    }

    /// T − 1, or the error that one model alone is compatible with nothing.
    fn several(&self, metric: &'static str) -> Result<usize> {
        match self.models() {
            0 | 1 => Err(Error::undefined(metric, "it compares models, and there is only one")),
            models => Ok(models - 1),
        }
    }
}

fn nonzero_mean(metric: &'static str, rows: &[Vec<f64>]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in rows.iter().flatten().filter(|v| **v > 0.0) {
        sum += value;
        count += 1;
    }
    if count == 0 {
        return Err(Error::undefined(metric, "every entry is 0"));
    }
    Ok(sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sixteenths: every sum below is exact in binary.
    fn example() -> CompatibilityMatrix {
        CompatibilityMatrix::new(vec![vec![0.5], vec![0.5, 0.625], vec![0.0, 0.75, 0.8125]]).unwrap()
    }

    #[test]
    fn averages_by_hand() {
        let c = example();
        // Pairs (2,1): 0.5 against 0.5, a tie; (3,1): 0 against 0.5, no; (3,2): 0.75 against 0.625, yes.
        assert_eq!(c.average_compatibility().unwrap(), 2.0 / 3.0);
        assert_eq!(c.average_compatibility_strict().unwrap(), 1.0 / 3.0);
        // The six entries sum to 3.1875; the code's variant does not count the one exact 0.
        assert_eq!(c.average_multimodel_accuracy(), 3.1875 / 6.0);
        assert_eq!(c.average_multimodel_accuracy_nonzero().unwrap(), 3.1875 / 5.0);
        // Leading blocks: {0.5}, {0.5, 0.5, 0.625}, all without the 0.
        assert_eq!(c.average_accuracy().unwrap(), [0.5, 1.625 / 3.0, 3.1875 / 5.0]);
        // BC: ((0 − 0.5) + (0.75 − 0.625)) / 2. FC: ((0.5 − 0.625) + (0.75 − 0.8125)) / 2.
        assert_eq!(c.backward_compatibility().unwrap(), -0.1875);
        assert_eq!(c.forward_compatibility().unwrap(), -0.09375);
        assert_eq!((c.models(), c.get(2, 1), c.get(1, 2), c.get(3, 0)), (3, Some(0.75), None, None));
    }

    #[test]
    fn one_model_compares_with_nothing() {
        let one = CompatibilityMatrix::new(vec![vec![0.5]]).unwrap();
        assert_eq!(one.average_multimodel_accuracy(), 0.5);
        assert_eq!(one.average_accuracy().unwrap(), [0.5]);
        for result in [
            one.average_compatibility(),
            one.average_compatibility_strict(),
            one.backward_compatibility(),
            one.forward_compatibility(),
        ] {
            assert!(result.unwrap_err().to_string().contains("only one"));
        }
        let zero = CompatibilityMatrix::new(vec![vec![0.0]]).unwrap();
        assert!(zero.average_accuracy().is_err() && zero.average_multimodel_accuracy_nonzero().is_err());
        assert_eq!(zero.average_multimodel_accuracy(), 0.0);
    }

    #[test]
    fn bad_triangles_are_named() {
        assert!(matches!(CompatibilityMatrix::new(vec![]), Err(Error::Empty { .. })));
        let square = CompatibilityMatrix::new(vec![vec![0.5, 0.1], vec![0.5, 0.6]]).unwrap_err().to_string();
        assert!(square.contains("`lower_triangle[0]` has length 2, expected 1"), "{square}");
        let nan = CompatibilityMatrix::new(vec![vec![0.5], vec![f64::NAN, 0.6]]).unwrap_err().to_string();
        assert!(nan.contains("`lower_triangle[1][0]` is NaN"), "{nan}");
    }
}
