//! New and old embeddings of different dimensions.
//!
//! openBCT compares embeddings of different dimensions by truncating the longer one, or by padding the shorter one
//! with zeros, and normalizing again.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensors::unit_rows;

/// What to do when the new dimension D and the old dimension Do differ; nothing when they are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DimensionMatch {
    /// The shorter embeddings get zeros behind: what a gallery index of the longer ones can hold.
    #[default]
    ZeroPad,
    /// The longer embeddings keep their first coordinates, normalized again.
    Truncate,
}

/// Brings rows `[n, d]` of unit norm to `dimension` columns: zeros behind, or the first coordinates normalized again.
///
/// # Errors
/// [`Error::Argument`] for other than a matrix.
pub fn fit(rows: &Tensor, dimension: usize) -> Result<Tensor> {
    let &[_, cols] = rows.dims() else {
        return Err(Error::argument(
            "fit",
            "rows",
            format!("{:?}", rows.dims()),
            "a matrix [rows, dimension]",
        ));
    };
    if cols == dimension {
        return Ok(rows.clone());
    }
    if cols < dimension {
        return Ok(rows.pad_with_zeros(D::Minus1, 0, dimension - cols)?);
    }
    unit_rows(&rows.narrow(D::Minus1, 0, dimension)?)
}

/// Brings new and old rows to one dimension: the larger of the two when padding, the smaller when truncating.
///
/// Gradients arrive at both where they are tracked.
///
/// # Errors
/// [`Error::Argument`] for other than matrices.
pub fn match_dimensions(new: &Tensor, old: &Tensor, how: DimensionMatch) -> Result<(Tensor, Tensor)> {
    let (d, o) = (new.dim(D::Minus1)?, old.dim(D::Minus1)?);
    let common = match how {
        DimensionMatch::ZeroPad => d.max(o),
        DimensionMatch::Truncate => d.min(o),
    };
    Ok((fit(new, common)?, fit(old, common)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn padding_keeps_the_products_and_truncation_normalizes() {
        let device = Device::Cpu;
        let new = Tensor::new(&[[0.6f32, 0.8, 0.0], [0.0, 0.6, 0.8]], &device).unwrap();
        let old = Tensor::new(&[[1.0f32, 0.0], [0.0, 1.0]], &device).unwrap();
        let (n, o) = match_dimensions(&new, &old, DimensionMatch::ZeroPad).unwrap();
        assert_eq!((n.dims(), o.dims()), ([2, 3].as_slice(), [2, 3].as_slice()));
        assert_eq!(o.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
        let (n, o) = match_dimensions(&new, &old, DimensionMatch::Truncate).unwrap();
        assert_eq!(o.dims(), [2, 2]);
        let n = n.to_vec2::<f32>().unwrap();
        assert!((n[0][0] - 0.6).abs() < 1e-6 && (n[1][1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_arrives_through_both_ways() {
        let device = Device::Cpu;
        for (cols, how) in [(4, DimensionMatch::Truncate), (2, DimensionMatch::ZeroPad)] {
            let new = Var::from_tensor(&Tensor::ones((2, cols), candle_core::DType::F32, &device).unwrap())
                .unwrap();
            let old = Tensor::new(&[[1.0f32, 0.0, 0.0], [0.0, 1.0, 0.0]], &device).unwrap();
            let (n, o) = match_dimensions(new.as_tensor(), &old, how).unwrap();
            let grads = (n * o).unwrap().sum_all().unwrap().backward().unwrap();
            let g = grads.get(&new).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(g > 0.1, "{how:?}: {g}");
        }
    }

    #[test]
    fn a_vector_is_refused() {
        let x = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(fit(&x, 2).unwrap_err().to_string().contains("expected a matrix"));
    }
}
