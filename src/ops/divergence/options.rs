//! What a divergence compares, and how.

use candle_core::{DType, Tensor};

use super::{Direction, OP};
use crate::{Error, Result};

/// Temperatures, direction, and the pairs that are compared.
///
/// Start from [`DivergenceOptions::new`] and add options; every tensor is checked when the loss is computed. Nothing here
/// is differentiated.
#[derive(Debug, Clone)]
pub struct DivergenceOptions {
    pub(super) temperature: f64,
    pub(super) teacher_temperature: f64,
    pub(super) softening: f64,
    pub(super) direction: Direction,
    pub(super) valid: Option<Tensor>,
    pub(super) same_id: Option<(Tensor, Tensor)>,
    pub(super) ignore_diagonal: bool,
    pub(super) statistics: Option<TeacherStatistics>,
}

impl DivergenceOptions {
    /// One temperature τ for both sides, no softening (T = 1), KL(teacher ‖ student) over all keys.
    #[must_use]
    pub fn new(temperature: f64) -> Self {
        Self {
            temperature,
            teacher_temperature: temperature,
            softening: 1.0,
            direction: Direction::Forward,
            valid: None,
            same_id: None,
            ignore_diagonal: false,
            statistics: None,
        }
    }

    /// Another temperature τ' for the teacher's inner products.
    #[must_use]
    pub fn teacher_temperature(mut self, temperature: f64) -> Self {
        self.teacher_temperature = temperature;
        self
    }

    /// T, what divides the scores of both sides once more, and whose square multiplies the divergence.
    #[must_use]
    pub fn softening(mut self, softening: f64) -> Self {
        self.softening = softening;
        self
    }

    /// Which divergence.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Keys whose entry of the mask `[N]` `u8` is 0 are not compared: a bank's empty slots.
    #[must_use]
    pub fn valid(mut self, mask: &Tensor) -> Self {
        self.valid = Some(mask.clone());
        self
    }

    /// A query is not compared with keys of its own id. `[B]` and `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn ignore_same_id(mut self, query_ids: &Tensor, key_ids: &Tensor) -> Self {
        self.same_id = Some((query_ids.clone(), key_ids.clone()));
        self
    }

    /// Query i is not compared with key i: itself, where the batch is its own bank.
    #[must_use]
    pub fn ignore_diagonal(mut self) -> Self {
        self.ignore_diagonal = true;
        self
    }

    /// What an earlier call found of the same teacher queries against the same teacher keys, with the same exclusions,
    /// temperature and softening: its maxima need not be searched again.
    #[must_use]
    pub fn statistics(mut self, statistics: &TeacherStatistics) -> Self {
        self.statistics = Some(statistics.clone());
        self
    }
}

/// The statistics of a frozen teacher's rows, for later calls with the same teacher: see
/// [`DivergenceOptions::statistics`]. Those of another teacher are found out, with an error.
#[derive(Debug, Clone)]
pub struct TeacherStatistics {
    log_sum_exp: Tensor,
}

impl TeacherStatistics {
    /// Statistics that were kept as a tensor `[B]` `f32`: ln Σ_j e^{t_ij/T}.
    ///
    /// # Errors
    /// [`Error::Rank`] and [`Error::DType`].
    pub fn new(log_sum_exp: &Tensor) -> Result<Self> {
        let argument = "statistics";
        match (log_sum_exp.rank(), log_sum_exp.dtype()) {
            (1, DType::F32) => Ok(Self { log_sum_exp: log_sum_exp.detach() }),
            (1, got) => Err(Error::DType { op: OP, argument, got, expected: "f32" }),
            (got, _) => Err(Error::Rank { op: OP, argument, got, expected: "[B], one a query" }),
        }
    }

    /// `[B]` `f32`: ln Σ_j e^{t_ij/T}; −∞ for rows without a key.
    #[must_use]
    pub fn log_sum_exp(&self) -> &Tensor {
        &self.log_sum_exp
    }

    /// Those of some rows, by their numbers `[b]`, `u32` or `i64`: of a batch, from statistics of a whole data set.
    ///
    /// # Errors
    /// Those of Candle, for numbers beyond the rows.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(Self { log_sum_exp: self.log_sum_exp.index_select(rows, 0)? })
    }
}
