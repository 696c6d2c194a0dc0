//! Losses over lists of bank rows, the update of such rows, and how each backend computes them.

use consonance::cuda::gathered as cuda;
use consonance::cuda::{DType, Executor, Result, Words};
use consonance_cpu::contrast::Normalizer;
use consonance_cpu::gathered as cpu;
use half::{bf16, f16};

use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Which columns are positives.
#[derive(Debug, Clone)]
pub enum GatheredPositives {
    /// The first ones.
    First(usize),
    /// Those with a weight above 0, `[B, K]`.
    Weights(Vec<f32>),
}

/// What rows are compared by.
#[derive(Debug, Clone)]
pub enum GatheredLoss {
    /// The contrastive loss.
    Contrast(GatheredPositives, Normalizer),
    /// The divergence from a teacher of these queries and this bank, and its softening.
    Divergence(Stored, Stored, f32),
}

/// A loss over lists of bank rows.
#[derive(Debug, Clone)]
pub struct GatheredCase {
    /// `[B, D]`.
    pub queries: Stored,
    /// `[N, D]`.
    pub bank: Stored,
    /// `[B, columns]`.
    pub indices: Vec<u32>,
    /// Columns of every query.
    pub columns: usize,
    /// One, or one a query; a divergence has one.
    pub temperatures: Vec<f32>,
    /// What rows are compared by.
    pub loss: GatheredLoss,
}

/// What a backend finds.
#[derive(Debug, Clone, Default)]
pub struct GatheredFound {
    /// L_i.
    pub per_row: Vec<f32>,
    /// The logarithms of the denominators.
    pub log_sum_exp: Vec<f32>,
    /// Which rows count.
    pub counted: Vec<bool>,
    /// How many rows count.
    pub anchors: usize,
    /// ∂L_i/∂x_i; empty unless asked for.
    pub queries: Vec<f32>,
    /// ∂L_i/∂τ_i; empty unless asked for, and of divergences.
    pub temperatures: Vec<f32>,
}

impl GatheredCase {
    /// Some of the queries, in this order.
    #[must_use]
    pub fn select(&self, queries: &[usize]) -> Self {
        fn pick<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
            rows.iter().flat_map(|row| values[row * width..][..width].to_vec()).collect()
        }
        Self {
            queries: self.queries.select(queries),
            indices: pick(&self.indices, queries, self.columns),
            temperatures: match self.temperatures.len() {
                1 => self.temperatures.clone(),
                _ => pick(&self.temperatures, queries, 1),
            },
            loss: match &self.loss {
                GatheredLoss::Contrast(GatheredPositives::Weights(weights), normalizer) => {
                    let weights = pick(weights, queries, self.columns);
                    GatheredLoss::Contrast(GatheredPositives::Weights(weights), *normalizer)
                }
                GatheredLoss::Divergence(teacher, bank, softening) => {
                    GatheredLoss::Divergence(teacher.select(queries), bank.clone(), *softening)
                }
                other => other.clone(),
            },
            ..self.clone()
        }
    }
}

/// An update of bank rows.
#[derive(Debug, Clone)]
pub struct UpdateCase {
    /// `[N, D]`.
    pub bank: Stored,
    /// `[B]`.
    pub indices: Vec<u32>,
    /// `[B, D]`.
    pub rows: Stored,
    /// The share of the old row.
    pub momentum: f32,
}

/// A bank after an update, one row behind the other, and the error that a user would see.
pub type Updated = (Vec<f32>, std::result::Result<(), String>);

impl Cpu {
    pub(super) fn gathered_of(
        case: &GatheredCase,
        gradients: bool,
    ) -> std::result::Result<GatheredFound, String> {
        let found = Self::rows(&case.queries, &case.bank, |queries, bank| match &case.loss {
            GatheredLoss::Contrast(positives, normalizer) => {
                let positives = match positives {
                    GatheredPositives::First(count) => cpu::Positives::First(*count),
                    GatheredPositives::Weights(weights) => cpu::Positives::Weights(weights),
                };
                let problem = cpu::Contrast {
                    queries: *queries,
                    bank: *bank,
                    indices: &case.indices,
                    columns: case.columns,
                    temperatures: &case.temperatures,
                    positives,
                    normalizer: *normalizer,
                };
                cpu::contrast(&problem, gradients)
            }
            GatheredLoss::Divergence(teacher, teacher_bank, softening) => teacher.with_rows(|teacher| {
                teacher_bank.with_rows(|teacher_bank| {
                    let problem = cpu::Divergence {
                        queries: *queries,
                        bank: *bank,
                        teacher_queries: teacher?,
                        teacher_bank: teacher_bank?,
                        indices: &case.indices,
                        columns: case.columns,
                        temperature: case.temperatures[0],
                        softening: *softening,
                    };
                    cpu::divergence(&problem, gradients)
                })
            }),
        })?;
        Ok(GatheredFound {
            anchors: found.anchors(),
            per_row: found.per_row,
            log_sum_exp: found.log_sum_exp,
            counted: found.counted,
            queries: found.query_gradients,
            temperatures: found.temperature_gradients,
        })
    }

    pub(super) fn updated(case: &UpdateCase) -> Updated {
        let values: Vec<f32> = (0..case.bank.rows()).flat_map(|row| case.bank.row(row).to_vec()).collect();
        let n = case.bank.rows();
        let update = |bank: cpu::RowsMut<'_>| {
            let found =
                case.rows.with_rows(|rows| cpu::update_rows(bank, n, &case.indices, &rows?, case.momentum));
            found.map_err(|error| error.to_string())
        };
        match case.bank.dtype() {
            DType::F32 => {
                let mut bank = values;
                let outcome = update(cpu::RowsMut::F32(&mut bank));
                (bank, outcome)
            }
            DType::F16 => {
                let mut bank: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                let outcome = update(cpu::RowsMut::F16(&mut bank));
                (bank.iter().map(|v| v.to_f32()).collect(), outcome)
            }
            DType::BF16 => {
                let mut bank: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                let outcome = update(cpu::RowsMut::Bf16(&mut bank));
                (bank.iter().map(|v| v.to_f32()).collect(), outcome)
            }
        }
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn gathered_of(&self, case: &GatheredCase, gradients: bool) -> Result<GatheredFound> {
        let executor = self.executor();
        let (b, dim) = (case.queries.rows(), case.queries.cols());
        let floats = |values: &[f32]| executor.upload(OP, bytemuck::cast_slice(values));
        let queries = executor.upload(OP, &case.queries.bytes())?;
        let bank = executor.upload(OP, &case.bank.bytes())?;
        let (indices, temperatures) = (self.upload(&case.indices)?, floats(&case.temperatures)?);
        let lists = cuda::Lists {
            queries: self.matrix(&case.queries, &queries)?,
            bank: self.matrix(&case.bank, &bank)?,
            indices: Words::new(OP, "indices", &indices, case.indices.len())?,
            temperatures: Words::new(OP, "temperature", &temperatures, case.temperatures.len())?,
        };
        let (weights, sides);
        let loss = match &case.loss {
            GatheredLoss::Contrast(positives, normalizer) => {
                let positives = match positives {
                    GatheredPositives::First(count) => cuda::Positives::First(*count),
                    GatheredPositives::Weights(values) => {
                        weights = floats(values)?;
                        cuda::Positives::Weights(Words::new(OP, "weights", &weights, values.len())?)
                    }
                };
                cuda::Loss::Contrast { positives, normalizer: *normalizer }
            }
            GatheredLoss::Divergence(teacher, teacher_bank, softening) => {
                sides = (executor.upload(OP, &teacher.bytes())?, executor.upload(OP, &teacher_bank.bytes())?);
                cuda::Loss::Divergence(cuda::Teacher {
                    queries: self.matrix(teacher, &sides.0)?,
                    bank: self.matrix(teacher_bank, &sides.1)?,
                    softening: *softening,
                })
            }
        };
        let found = cuda::losses(executor, &lists, &loss, gradients)?;
        let anchors = found.check(executor)?;
        let inverse: Vec<f32> = self.words(&found.inverse_normalizer, b)?;
        let (mut of_queries, mut of_temperatures) = (Vec::new(), Vec::new());
        if let Some((queries, temperatures)) = &found.gradients {
            of_queries = self.words(queries, b * dim)?;
            if matches!(case.loss, GatheredLoss::Contrast(..)) {
                of_temperatures = self.words(temperatures, b)?;
            }
        }
        Ok(GatheredFound {
            per_row: self.words(&found.per_row, b)?,
            log_sum_exp: self.words(&found.log_sum_exp, b)?,
            counted: inverse.iter().map(|inverse| *inverse > 0.0).collect(),
            anchors,
            queries: of_queries,
            temperatures: of_temperatures,
        })
    }

    pub(super) fn updated(&self, case: &UpdateCase) -> Result<Updated> {
        let executor = self.executor();
        let bank = executor.upload(OP, &case.bank.bytes())?;
        let rows = executor.upload(OP, &case.rows.bytes())?;
        let indices = self.upload(&case.indices)?;
        let run = || {
            let update = {
                let bank = self.matrix(&case.bank, &bank)?;
                let rows = self.matrix(&case.rows, &rows)?;
                let indices = Words::new(OP, "indices", &indices, case.indices.len())?;
                // SAFETY: the bank was uploaded for this call alone.
                unsafe { cuda::update_rows(executor, &bank, indices, &rows, case.momentum)? }
            };
            update.check(executor)
        };
        let outcome = run().map_err(|error: consonance::cuda::Error| error.to_string());
        let len = case.bank.bytes().len();
        let bytes: Vec<u8> = self.words(&bank, len)?;
        let elements: Vec<f32> = match case.bank.dtype() {
            DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
            DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_ne_bytes(*b).to_f32()).collect(),
            DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect(),
        };
        let row = |row: usize| {
            let start = case.bank.offset() + row * case.bank.stride();
            elements[start..start + case.bank.cols()].to_vec()
        };
        Ok(((0..case.bank.rows()).flat_map(row).collect(), outcome))
    }
}
