//! Orthogonal Procrustes: the post-hoc adapter between two embedding spaces (Schönemann, 1966).
//!
//! Given new and old embeddings N `[n, Dn]` and O `[n, Do]` of the same images, the map R with orthonormal rows or
//! columns that minimizes `‖N R − O‖_F` among the equal dimensions is `R = U Vᵀ` with `Nᵀ O = U Σ Vᵀ`. For different
//! dimensions the same R is the semi-orthogonal map of largest `tr(Rᵀ Nᵀ O)`. New queries are mapped into the old
//! space (and searched in the stored gallery as it is), or the old gallery into the new space by `Rᵀ`. The new model
//! is left alone: nothing is trained.

use candle_core::Tensor;
use nalgebra::DMatrix;

use crate::error::{Error, Result};
use crate::tensors::unit_rows;

const METHOD: &str = "procrustes";
/// Rows per partial product: bounds the f64 copies.
const CHUNK: usize = 4096;

/// A fitted orthogonal map between the new and the old space.
#[derive(Debug, Clone)]
pub struct Procrustes {
    rotation: Tensor,
    singular: Vec<f64>,
}

impl Procrustes {
    /// Fits the map on paired rows: new `[n, Dn]` and old `[n, Do]` embeddings of the same images, f32.
    ///
    /// The cross-covariance and its singular value decomposition are in f64.
    ///
    /// # Errors
    /// [`Error::Argument`] for matrices that do not pair, no rows, or rows that are not finite.
    pub fn fit(new: &Tensor, old: &Tensor) -> Result<Self> {
        let (n, dn) = matrix("new", new)?;
        let (rows, d_old) = matrix("old", old)?;
        if rows != n {
            return Err(Error::argument(
                METHOD,
                "old",
                format!("{rows} rows"),
                format!("{n} rows, as `new`"),
            ));
        }
        let mut cross = DMatrix::<f64>::zeros(dn, d_old);
        for start in (0..n).step_by(CHUNK) {
            let len = CHUNK.min(n - start);
            let new = columns("new", &new.detach().narrow(0, start, len)?, start)?;
            let old = columns("old", &old.detach().narrow(0, start, len)?, start)?;
            cross.gemm(1.0, &new, &old.transpose(), 1.0);
        }
        let svd = cross.try_svd(true, true, f64::EPSILON, 0).ok_or_else(|| {
            Error::argument(METHOD, "new", "a cross-covariance without decomposition", "finite embeddings")
        })?;
        let (Some(u), Some(vt)) = (svd.u, svd.v_t) else {
            return Err(Error::argument(METHOD, "new", "an empty decomposition", "at least one dimension"));
        };
        let map = u * vt;
        // nalgebra stores columns; the transpose's columns are this map's rows.
        let values: Vec<f32> = map.transpose().as_slice().iter().map(|x| *x as f32).collect();
        let rotation = Tensor::from_vec(values, (dn, d_old), new.device())?;
        Ok(Self { rotation, singular: svd.singular_values.iter().copied().collect() })
    }

    /// The map R `[Dn, Do]`, f32.
    pub fn rotation(&self) -> &Tensor {
        &self.rotation
    }

    /// The singular values of `Nᵀ O`, largest first: a small one says that its direction is hardly determined.
    pub fn singular_values(&self) -> &[f64] {
        &self.singular
    }

    /// New embeddings `[.., Dn]` in the old space `[.., Do]`, of unit norm; differentiable.
    ///
    /// # Errors
    /// Those of Candle, for a dimension that does not fit.
    pub fn to_old(&self, new: &Tensor) -> Result<Tensor> {
        unit_rows(&new.matmul(&self.rotation)?)
    }

    /// Old embeddings `[.., Do]` in the new space `[.., Dn]`, of unit norm; differentiable.
    ///
    /// # Errors
    /// Those of Candle, for a dimension that does not fit.
    pub fn to_new(&self, old: &Tensor) -> Result<Tensor> {
        unit_rows(&old.matmul(&self.rotation.t()?)?)
    }
}

fn matrix(argument: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match (x.dims(), x.dtype()) {
        (&[rows, cols], candle_core::DType::F32) if rows > 0 && cols > 0 => Ok((rows, cols)),
        (dims, dtype) => {
            let got = format!("{dims:?} of {dtype:?}");
            Err(Error::argument(METHOD, argument, got, "a matrix of F32 with at least one row"))
        }
    }
}

/// A chunk as an f64 matrix whose columns are the rows.
fn columns(argument: &'static str, rows: &Tensor, start: usize) -> Result<DMatrix<f64>> {
    let (n, d) = rows.dims2()?;
    let values = rows.flatten_all()?.to_vec1::<f32>()?;
    if let Some(at) = values.iter().position(|x| !x.is_finite()) {
        let got = format!("not finite in row {}", start + at / d);
        return Err(Error::argument(METHOD, argument, got, "finite numbers"));
    }
    Ok(DMatrix::from_iterator(d, n, values.into_iter().map(f64::from)))
}
