//! Divergences of two distributions over the same keys, and how each backend computes them.

use consonance::cuda::divergence as cuda;
use consonance::cuda::{Executor, Memory, Result, Words};
use consonance_cpu::{
    Gradients,
    divergence::{self as cpu, Direction},
};

use super::{Cpu, OnDevice, Sides, slices};
use crate::data;
use crate::stored::Stored;

const OP: &str = "test";

/// A divergence.
#[derive(Debug, Clone)]
pub struct DivergenceCase {
    /// Queries `[B, D]` and keys `[N, D]`.
    pub student: (Stored, Stored),
    /// Queries `[B, D']` and keys `[N, D']`.
    pub teacher: (Stored, Stored),
    /// Of student and teacher.
    pub temperatures: [f32; 2],
    /// What the scores of both sides are divided by once more.
    pub softening: f32,
    /// Which divergence.
    pub direction: Direction,
    /// Keys that are compared.
    pub valid: Option<Vec<bool>>,
    /// Pairs of equal id are not compared.
    pub ids: Sides,
    /// Query i does not meet key i.
    pub diagonal: bool,
    /// The teacher's log-sum-exp of an earlier run.
    pub known: Option<Vec<f32>>,
    /// What the rows' divergences are multiplied by in the keys' gradient.
    pub upstream: Vec<f32>,
    /// Whether gradients are asked for.
    pub gradients: bool,
}

/// What a backend finds.
#[derive(Debug, Clone, Default)]
pub struct DivergenceFound {
    /// L_i.
    pub per_row: Vec<f32>,
    /// The logarithms of the student's sums.
    pub log_sum_exp: Vec<f32>,
    /// Those of the teacher's.
    pub teacher_log_sum_exp: Vec<f32>,
    /// Which rows count.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i; empty unless asked for.
    pub queries: Vec<f32>,
    /// The gradient of Σ upstream_i L_i for the student's keys; empty unless asked for.
    pub keys: Vec<f32>,
}

impl DivergenceCase {
    /// All pairs, with gradients.
    pub fn new(student: (Stored, Stored), teacher: (Stored, Stored), direction: Direction) -> Self {
        let b = student.0.rows();
        Self {
            student,
            teacher,
            temperatures: [0.1, 0.2],
            softening: 3.0,
            direction,
            valid: None,
            ids: None,
            diagonal: false,
            known: None,
            upstream: data::normal(b, 1, 77),
            gradients: true,
        }
    }

    /// Some of the queries, in this order; not for pairs that depend on the queries' numbers.
    #[must_use]
    pub fn select(&self, queries: &[usize]) -> Self {
        let pick = |values: &[f32]| queries.iter().map(|row| values[*row]).collect();
        Self {
            student: (self.student.0.select(queries), self.student.1.clone()),
            teacher: (self.teacher.0.select(queries), self.teacher.1.clone()),
            ids: self.ids.as_ref().map(|(q, k)| (queries.iter().map(|row| q[*row]).collect(), k.clone())),
            known: self.known.as_ref().map(|known| pick(known)),
            upstream: pick(&self.upstream),
            ..self.clone()
        }
    }
}

impl Cpu {
    pub(super) fn divergence_of(case: &DivergenceCase) -> std::result::Result<DivergenceFound, String> {
        Self::rows(&case.student.0, &case.student.1, |queries, keys| {
            case.teacher.0.with_rows(|teacher_queries| {
                case.teacher.1.with_rows(|teacher_keys| {
                    let [temperature, of_teacher] = case.temperatures;
                    let problem = cpu::Problem {
                        student: cpu::Side { queries: *queries, keys: *keys, temperature },
                        teacher: cpu::Side {
                            queries: teacher_queries?,
                            keys: teacher_keys?,
                            temperature: of_teacher,
                        },
                        softening: case.softening,
                        direction: case.direction,
                        excluded: cpu::Exclusions {
                            valid: case.valid.as_deref(),
                            same_id: slices(&case.ids),
                            diagonal: case.diagonal,
                        },
                        teacher_log_sum_exp: case.known.as_deref(),
                    };
                    let plan = cpu::Plan::new(&problem)?;
                    let found = cpu::forward(&problem, &plan, Gradients::all(case.gradients))?;
                    let keys = match case.gradients {
                        true => cpu::key_gradients(&problem, &plan, &found, &case.upstream)?,
                        false => Vec::new(),
                    };
                    Ok(DivergenceFound {
                        per_row: found.per_row,
                        log_sum_exp: found.log_sum_exp,
                        teacher_log_sum_exp: found.teacher_log_sum_exp,
                        counted: found.counted,
                        queries: found.query_gradients,
                        keys,
                    })
                })
            })
        })
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn divergence_of(&self, case: &DivergenceCase) -> Result<DivergenceFound> {
        let executor = self.executor();
        let (b, n, dim) = (case.student.0.rows(), case.student.1.rows(), case.student.0.cols());
        let upload = |rows: &Stored| executor.upload(OP, &rows.bytes());
        let [x, y, u, v] = [&case.student.0, &case.student.1, &case.teacher.0, &case.teacher.1].map(upload);
        let (x, y, u, v) = (x?, y?, u?, v?);
        let (valid, ids) = (self.bits(case.valid.as_ref())?, self.both(slices(&case.ids))?);
        let upstream = self.floats(&case.upstream)?;
        let known = case.known.as_ref().map(|known| self.floats(known)).transpose()?;
        let words = |memory: &Memory, len: usize| {
            // SAFETY: the caller gives the length that was uploaded, and the memory lives until the end of the call.
            unsafe { Words::from_address(memory.address(), len) }
        };
        let id_lengths = case.ids.as_ref().map_or([0; 2], |(q, k)| [q.len(), k.len()]);
        let mask_length = case.valid.as_ref().map_or(0, |valid| valid.len().div_ceil(32));
        let problem = cuda::Problem {
            student: cuda::Side {
                queries: self.matrix(&case.student.0, &x)?,
                keys: self.matrix(&case.student.1, &y)?,
                temperature: case.temperatures[0],
            },
            teacher: cuda::Side {
                queries: self.matrix(&case.teacher.0, &u)?,
                keys: self.matrix(&case.teacher.1, &v)?,
                temperature: case.temperatures[1],
            },
            softening: case.softening,
            direction: case.direction,
            excluded: cuda::Exclusions {
                valid: valid.as_ref().map(|memory| words(memory, mask_length)),
                same_id: ids.as_ref().map(|(q, k)| (words(q, id_lengths[0]), words(k, id_lengths[1]))),
                diagonal: case.diagonal,
            },
            teacher_log_sum_exp: known
                .as_ref()
                .zip(case.known.as_ref())
                .map(|(memory, known)| words(memory, known.len())),
        };
        let found = cuda::losses(executor, &problem, case.gradients)?;
        found.check(executor)?;
        let log_sum_exp: Vec<f32> = self.words(&found.log_sum_exp, b)?;
        let keys = match case.gradients {
            true => {
                let upstream = words(&upstream, case.upstream.len());
                self.words(&cuda::key_gradients(executor, &problem, &found, upstream)?, n * dim)?
            }
            false => Vec::new(),
        };
        Ok(DivergenceFound {
            per_row: self.words(&found.per_row, b)?,
            counted: log_sum_exp.iter().map(|lse| *lse > f32::NEG_INFINITY).collect(),
            log_sum_exp,
            teacher_log_sum_exp: self.words(&found.teacher_log_sum_exp, b)?,
            queries: match &found.query_gradients {
                Some(gradients) => self.words(gradients, b * dim)?,
                None => Vec::new(),
            },
            keys,
        })
    }
}
