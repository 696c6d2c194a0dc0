//! The symmetric form of a contrastive loss, and how each backend computes it.

use consonance::cuda::contrast::{Symmetric, SymmetricSide, symmetric_gradient, symmetric_losses};
use consonance::cuda::{Executor, Result};
use consonance_cpu::contrast as cpu;

use super::{ContrastCase, ContrastFound, ContrastRule, Cpu, OnDevice, Sides};
use crate::data;

const OP: &str = "test";

/// A contrastive loss in both directions: the case itself, whose queries are x and keys y, and that of y against x.
#[derive(Debug, Clone)]
pub struct SymmetricCase {
    /// x against y, with its upstream gradient.
    pub rows: ContrastCase,
    /// The gradient of the losses of y against x.
    pub upstream: Vec<f32>,
}

/// What a backend finds.
#[derive(Debug, Clone, Default)]
pub struct SymmetricFound {
    /// Of x against y and of y against x, without gradients of queries and keys.
    pub directions: [ContrastFound; 2],
    /// The gradient of both directions' losses for x.
    pub x: Vec<f32>,
    /// The same for y.
    pub y: Vec<f32>,
}

/// Lists of keys by query as lists of queries by key.
fn transposed_lists(keys: usize, offsets: &[u32], indices: &[u32], weights: Option<&[f32]>) -> ContrastRule {
    let mut lists = vec![Vec::new(); keys];
    for (query, range) in offsets.windows(2).enumerate() {
        for at in range[0] as usize..range[1] as usize {
            lists[indices[at] as usize].push((query as u32, weights.map_or(1.0, |weights| weights[at])));
        }
    }
    let mut ends = vec![0];
    lists.iter().for_each(|list| ends.push(ends[ends.len() - 1] + list.len() as u32));
    let all: Vec<(u32, f32)> = lists.concat();
    let weights = weights.map(|_| all.iter().map(|(_, weight)| *weight).collect());
    ContrastRule::Lists(ends, all.iter().map(|(query, _)| *query).collect(), weights)
}

impl SymmetricCase {
    /// Both directions of a case without anchors and denominator weights.
    pub fn new(rows: ContrastCase) -> Self {
        let upstream = data::normal(rows.keys.rows(), 1, 98);
        Self { rows, upstream }
    }

    /// y against x.
    pub fn columns(&self) -> ContrastCase {
        let swapped = |sides: &Sides| sides.clone().map(|(left, right)| (right, left));
        let rows = &self.rows;
        let rule = match &rows.rule {
            ContrastRule::Labels(left, right) => ContrastRule::Labels(right.clone(), left.clone()),
            ContrastRule::Lists(offsets, indices, weights) => {
                transposed_lists(rows.keys.rows(), offsets, indices, weights.as_deref())
            }
            ContrastRule::Bits(left, right, words, least) => {
                ContrastRule::Bits(right.clone(), left.clone(), *words, *least)
            }
            other => other.clone(),
        };
        let masks = (rows.valid.clone(), rows.credible.clone());
        ContrastCase {
            queries: rows.keys.clone(),
            keys: rows.queries.clone(),
            rule,
            anchors: match masks {
                (Some(valid), Some(credible)) => {
                    Some(valid.iter().zip(credible).map(|(valid, credible)| *valid && credible).collect())
                }
                (one, other) => one.or(other),
            },
            valid: None,
            credible: None,
            ids: swapped(&rows.ids),
            left_out: swapped(&rows.left_out),
            affinity: rows.affinity.clone().map(|(left, right, map)| (right, left, map)),
            upstream: self.upstream.clone(),
            ..rows.clone()
        }
    }
}

impl Cpu {
    /// Two losses; the gradients of embeddings from products that both share, where there is that way.
    pub(super) fn symmetric_of(case: &SymmetricCase) -> std::result::Result<SymmetricFound, String> {
        let columns = case.columns();
        let mut directions = [Self::contrast_of(&case.rows)?, Self::contrast_of(&columns)?];
        let mut found = SymmetricFound::default();
        if case.rows.gradients {
            let together = Self::with_contrast(&case.rows, &|of_rows| {
                Ok(Self::with_contrast(&columns, &|of_columns| {
                    let plans = [cpu::Plan::new(of_rows)?, cpu::Plan::new(of_columns)?];
                    let both =
                        cpu::Symmetric { rows: (of_rows, &plans[0]), columns: (of_columns, &plans[1]) };
                    Ok(both.is_short().then(|| {
                        let found = both.forward();
                        let gradients = both.gradients(&found, &case.rows.upstream, &case.upstream);
                        (found, gradients)
                    }))
                }))
            })??;
            let dim = case.rows.queries.cols();
            let add = |queries: &[f32], upstream: &[f32], keys: &[f32]| -> Vec<f32> {
                let scaled = queries.iter().enumerate().map(|(at, v)| v * upstream[at / dim]);
                scaled.zip(keys).map(|(one, other)| one + other).collect()
            };
            let [rows, columns] = &directions;
            [found.x, found.y] = match together {
                None => [
                    add(&rows.queries, &case.rows.upstream, &columns.keys),
                    add(&columns.queries, &case.upstream, &rows.keys),
                ],
                Some((losses, gradients)) => {
                    for (both, alone) in [(losses.rows, rows), (losses.columns, columns)] {
                        if both.per_row != alone.per_row || both.log_sum_exp != alone.log_sum_exp {
                            return Err("losses of both directions are not those of each alone".into());
                        }
                    }
                    gradients
                }
            };
        }
        directions.iter_mut().for_each(|it| (it.queries, it.keys) = (Vec::new(), Vec::new()));
        Ok(SymmetricFound { directions, ..found })
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn symmetric_of(&self, case: &SymmetricCase) -> Result<SymmetricFound> {
        let executor = self.executor();
        let (b, n, dim) = (case.rows.queries.rows(), case.rows.keys.rows(), case.rows.queries.cols());
        let x = executor.upload(OP, &case.rows.queries.bytes())?;
        let y = executor.upload(OP, &case.rows.keys.bytes())?;
        self.with_problem(&case.rows, [&x, &y], |rows, of_rows| {
            self.with_problem(&case.columns(), [&y, &x], |columns, of_columns| {
                let problem = Symmetric { rows: *rows, columns: *columns };
                let found = symmetric_losses(executor, &problem, case.rows.gradients)?;
                found.check(executor)?;
                let mut all = SymmetricFound {
                    directions: [self.rows_of(&found.rows, b)?, self.rows_of(&found.columns, n)?],
                    ..SymmetricFound::default()
                };
                if let Some([of_x, of_y]) = &found.temperatures {
                    all.directions[0].temperatures = self.words(of_x, b)?;
                    all.directions[1].temperatures = self.words(of_y, n)?;
                    let upstream = [of_rows, of_columns];
                    let gradient = |side| symmetric_gradient(executor, &problem, &found, upstream, side);
                    all.x = self.words(&gradient(SymmetricSide::X)?, b * dim)?;
                    all.y = self.words(&gradient(SymmetricSide::Y)?, n * dim)?;
                }
                Ok(all)
            })
        })
    }
}
