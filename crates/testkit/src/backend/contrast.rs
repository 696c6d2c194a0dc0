//! A contrastive loss, and how each backend computes it.

use consonance::cuda::contrast::{self as cuda, key_gradients, losses};
use consonance::cuda::{Executor, Memory, Result, Words, segments};
use consonance_cpu::{
    Gradients,
    contrast::{self as cpu, AffinityMap, Normalizer, Options, OtherPositives},
};
use consonance_reference::contrast as reference;

use super::contrast_pace::{Close, PaceCase};
use super::{Cpu, OnDevice, Sides, slices};
use crate::data;
use crate::stored::Stored;

const OP: &str = "test";

/// Which keys are the positives of a query.
#[derive(Debug, Clone)]
pub enum ContrastRule {
    /// Keys of the query's label.
    Labels(Vec<u32>, Vec<u32>),
    /// Key i of query i.
    Diagonal,
    /// Offsets, indices and weights.
    Lists(Vec<u32>, Vec<u32>, Option<Vec<f32>>),
    /// Sets of so many words, and their least overlap.
    Bits(Vec<u32>, Vec<u32>, usize, u32),
    /// Every key.
    All,
}

/// A contrastive loss.
#[derive(Debug, Clone)]
pub struct ContrastCase {
    /// `[B, D]`.
    pub queries: Stored,
    /// `[N, D]`.
    pub keys: Stored,
    /// One, or one a query.
    pub temperatures: Vec<f32>,
    /// Which keys are positives.
    pub rule: ContrastRule,
    /// Queries that are anchors.
    pub anchors: Option<Vec<bool>>,
    /// Keys of any sum.
    pub valid: Option<Vec<bool>>,
    /// Keys that may be positives.
    pub credible: Option<Vec<bool>>,
    /// u_j.
    pub denominator_weights: Option<Vec<f32>>,
    /// Ids of both sides.
    pub ids: Sides,
    /// Labels of both sides, whose keys leave the denominator unless they are positives.
    pub left_out: Sides,
    /// Old embeddings of both sides, and the weight of a pair by their cosine.
    pub affinity: Option<(Stored, Stored, AffinityMap)>,
    /// Weights of the negatives of the query's own group.
    pub pace: Option<PaceCase>,
    /// What divides the weights.
    pub normalizer: Normalizer,
    /// Where the other positives stand.
    pub other_positives: OtherPositives,
    /// The gradient of every row's loss.
    pub upstream: Vec<f32>,
    /// Whether gradients are asked for.
    pub gradients: bool,
}

/// What a backend finds.
#[derive(Debug, Clone, Default)]
pub struct ContrastFound {
    /// L_i.
    pub per_row: Vec<f32>,
    /// The logarithms of the denominators.
    pub log_sum_exp: Vec<f32>,
    /// Which rows count.
    pub counted: Vec<bool>,
    /// ∂L_i/∂x_i.
    pub queries: Vec<f32>,
    /// ∂L_i/∂τ_i.
    pub temperatures: Vec<f32>,
    /// The gradient of Σ upstream · L for the keys.
    pub keys: Vec<f32>,
}

impl ContrastCase {
    /// One temperature, a rule and no option.
    pub fn new(queries: Stored, keys: Stored, temperature: f32, rule: ContrastRule) -> Self {
        let upstream = data::normal(queries.rows(), 1, 99);
        Self {
            queries,
            keys,
            temperatures: vec![temperature],
            rule,
            anchors: None,
            valid: None,
            credible: None,
            denominator_weights: None,
            ids: None,
            left_out: None,
            affinity: None,
            pace: None,
            normalizer: Normalizer::Count,
            other_positives: OtherPositives::InDenominator,
            upstream,
            gradients: true,
        }
    }

    /// The temperature of a query.
    pub fn temperature(&self, query: usize) -> f64 {
        f64::from(self.temperatures[if self.temperatures.len() == 1 { 0 } else { query }])
    }

    /// Some of the queries, in this order. Not for diagonal pairs.
    #[must_use]
    pub fn select(&self, queries: &[usize]) -> Self {
        fn pick<T: Clone>(values: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|row| values[*row].clone()).collect()
        }
        let sides = |sides: &Sides| sides.as_ref().map(|(left, right)| (pick(left, queries), right.clone()));
        let rule = match &self.rule {
            ContrastRule::Labels(left, right) => ContrastRule::Labels(pick(left, queries), right.clone()),
            ContrastRule::Lists(offsets, indices, weights) => {
                let lists = queries.iter().map(|row| offsets[*row] as usize..offsets[*row + 1] as usize);
                let places: Vec<usize> = lists.clone().flatten().collect();
                let mut ends = vec![0];
                lists.for_each(|list| ends.push(ends.last().copied().unwrap_or(0) + list.len() as u32));
                let weights = weights.as_ref().map(|weights| pick(weights, &places));
                ContrastRule::Lists(ends, pick(indices, &places), weights)
            }
            ContrastRule::Bits(left, right, words, least) => {
                let places: Vec<usize> =
                    queries.iter().flat_map(|row| row * words..(row + 1) * words).collect();
                ContrastRule::Bits(pick(left, &places), right.clone(), *words, *least)
            }
            other => other.clone(),
        };
        Self {
            queries: self.queries.select(queries),
            temperatures: match self.temperatures.len() {
                1 => self.temperatures.clone(),
                _ => pick(&self.temperatures, queries),
            },
            rule,
            anchors: self.anchors.as_ref().map(|anchors| pick(anchors, queries)),
            ids: sides(&self.ids),
            left_out: sides(&self.left_out),
            affinity: self
                .affinity
                .as_ref()
                .map(|(old, keys, map)| (old.select(queries), keys.clone(), *map)),
            pace: self.pace.as_ref().map(|pace| pace.select(queries)),
            upstream: pick(&self.upstream, queries),
            ..self.clone()
        }
    }

    /// The pairs as the definition has them.
    pub fn pairs(&self) -> reference::Pairs {
        let (b, n) = (self.queries.rows(), self.keys.rows());
        let in_list = |i: usize, j: usize| match &self.rule {
            ContrastRule::Lists(offsets, indices, _) => {
                (offsets[i] as usize..offsets[i + 1] as usize).find(|at| indices[*at] as usize == j)
            }
            _ => None,
        };
        let anchor = |i: usize| self.anchors.as_ref().is_none_or(|anchors| anchors[i]);
        let mut pairs = reference::Pairs::new(b, n, |i, j| {
            anchor(i)
                && match &self.rule {
                    ContrastRule::Labels(left, right) => left[i] == right[j],
                    ContrastRule::Diagonal => i == j,
                    ContrastRule::Lists(..) => in_list(i, j).is_some(),
                    ContrastRule::Bits(left, right, words, least) => {
                        let sets = left[i * words..][..*words].iter().zip(&right[j * words..][..*words]);
                        sets.map(|(a, b)| (a & b).count_ones()).sum::<u32>() >= *least
                    }
                    ContrastRule::All => true,
                }
        });
        if let ContrastRule::Lists(_, _, Some(weights)) = &self.rule {
            pairs = pairs.weighted(|i, j| in_list(i, j).map_or(1.0, |at| f64::from(weights[at])));
        }
        if let Some((left, right, map)) = &self.affinity {
            let (left, right, dim) = (left.wide(), right.wide(), left.cols());
            pairs = pairs.weighted(|i, j| {
                let cosine = reference::cosine(&left[i * dim..][..dim], &right[j * dim..][..dim]);
                match map {
                    AffinityMap::Half => reference::affinity_half(cosine),
                    AffinityMap::Exp { temperature } => {
                        reference::affinity_exp(cosine, f64::from(*temperature))
                    }
                }
            });
        }
        if let Some(valid) = &self.valid {
            pairs = pairs.valid(|j| valid[j]);
        }
        if let Some(credible) = &self.credible {
            pairs = pairs.credible_positives(|j| credible[j]);
        }
        if let Some(weights) = &self.denominator_weights {
            pairs = pairs.denominator_weights(&data::widen(weights));
        }
        if let Some((left, right)) = &self.ids {
            pairs = pairs.ignore_same_id(left, right);
        }
        if let Some((left, right)) = &self.left_out {
            pairs = pairs.leave_out_same_label(left, right);
        }
        if let Some(pace) = &self.pace {
            pairs = pairs.paced(|i, j| pace.weight(i, j));
        }
        pairs
    }

    fn options(&self) -> Options {
        Options { normalizer: self.normalizer, other_positives: self.other_positives, ..Options::default() }
    }
}

impl Cpu {
    pub(super) fn contrast_of(case: &ContrastCase) -> std::result::Result<ContrastFound, String> {
        Self::with_contrast(case, &|problem| {
            let plan = cpu::Plan::new(problem)?;
            let forward = cpu::forward(problem, &plan, Gradients::all(case.gradients))?;
            let keys = match case.gradients {
                true => cpu::key_gradients(problem, &plan, &forward, &case.upstream)?,
                false => Vec::new(),
            };
            Ok(ContrastFound {
                per_row: forward.per_row,
                log_sum_exp: forward.log_sum_exp,
                counted: forward.counted,
                queries: forward.query_gradients,
                temperatures: forward.temperature_gradients,
                keys,
            })
        })
    }

    /// Calls `f` with the problem of a case.
    pub(super) fn with_contrast<R>(
        case: &ContrastCase,
        f: &dyn Fn(&cpu::Problem<'_>) -> consonance_cpu::Result<R>,
    ) -> std::result::Result<R, String> {
        let rule = match &case.rule {
            ContrastRule::Labels(queries, keys) => cpu::Rule::Labels { queries, keys },
            ContrastRule::Diagonal => cpu::Rule::Diagonal,
            ContrastRule::Lists(offsets, indices, weights) => {
                cpu::Rule::Lists { offsets, indices, weights: weights.as_deref() }
            }
            ContrastRule::Bits(queries, keys, words, least) => {
                cpu::Rule::Bits { queries, keys, words: *words, min_overlap: *least }
            }
            ContrastRule::All => cpu::Rule::All,
        };
        let run = |queries: &consonance_cpu::Rows<'_>,
                   keys: &consonance_cpu::Rows<'_>,
                   affinity: Option<cpu::Affinity<'_>>,
                   closeness: Option<cpu::Closeness<'_>>| {
            let pairs = cpu::Pairs {
                affinity,
                pace: case.pace.as_ref().zip(closeness).map(|(pace, closeness)| cpu::Pace {
                    groups: (&pace.queries, &pace.keys),
                    closeness,
                    pace: pace.pace,
                    admission: pace.admission,
                }),
                anchors: case.anchors.as_deref(),
                valid: case.valid.as_deref(),
                credible: case.credible.as_deref(),
                denominator_weights: case.denominator_weights.as_deref(),
                same_id: slices(&case.ids),
                left_out_labels: slices(&case.left_out),
                ..cpu::Pairs::new(rule)
            };
            let (queries, keys) = (*queries, *keys);
            let temperatures = &case.temperatures[..];
            let problem = cpu::Problem { queries, keys, temperatures, pairs, options: case.options() };
            f(&problem)
        };
        Self::rows(&case.queries, &case.keys, |queries, keys| {
            let with_affinity = |closeness: Option<cpu::Closeness<'_>>| match &case.affinity {
                None => run(queries, keys, None, closeness),
                Some((old_queries, old_keys, map)) => old_queries.with_rows(|left| {
                    old_keys.with_rows(|right| {
                        let affinity = cpu::Affinity { queries: left?, keys: right?, map: *map };
                        run(queries, keys, Some(affinity), closeness)
                    })
                }),
            };
            match case.pace.as_ref().map(|pace| &pace.close) {
                None => with_affinity(None),
                Some(Close::Times(left, right, scale)) => {
                    with_affinity(Some(cpu::Closeness::Times { queries: left, keys: right, scale: *scale }))
                }
                Some(Close::Features(left, right)) => left.with_rows(|queries| {
                    right.with_rows(|keys| {
                        with_affinity(Some(cpu::Closeness::Features { queries: queries?, keys: keys? }))
                    })
                }),
            }
        })
    }
}

/// Uploaded numbers of both sides.
type Uploaded = Option<(Memory, Memory)>;

impl<E: Executor> OnDevice<E> {
    pub(super) fn bits(&self, mask: Option<&Vec<bool>>) -> Result<Option<Memory>> {
        let word = |chunk: &[bool]| chunk.iter().rev().fold(0, |word, on| word << 1 | u32::from(*on));
        mask.map(|mask| self.upload(&mask.chunks(32).map(word).collect::<Vec<u32>>())).transpose()
    }

    pub(super) fn floats(&self, values: &[f32]) -> Result<Memory> {
        self.executor().upload(OP, bytemuck::cast_slice(values))
    }

    pub(super) fn both(&self, sides: Option<(&[u32], &[u32])>) -> Result<Uploaded> {
        sides.map(|(left, right)| Ok((self.upload(left)?, self.upload(right)?))).transpose()
    }

    /// Calls `run` with the problem and its upstream gradient, whose queries and keys lie in `queries` and `keys`.
    pub(super) fn with_problem<R>(
        &self,
        case: &ContrastCase,
        [queries, keys]: [&Memory; 2],
        run: impl FnOnce(&cuda::Problem<'_>, Words<'_>) -> Result<R>,
    ) -> Result<R> {
        let executor = self.executor();
        let (temperatures, upstream) = (self.floats(&case.temperatures)?, self.floats(&case.upstream)?);
        let (masks, weights) = (
            [
                self.bits(case.anchors.as_ref())?,
                self.bits(case.valid.as_ref())?,
                self.bits(case.credible.as_ref())?,
            ],
            case.denominator_weights.as_ref().map(|weights| self.floats(weights)).transpose()?,
        );
        let (ids, left_out) = (self.both(slices(&case.ids))?, self.both(slices(&case.left_out))?);
        let numbers = match &case.rule {
            ContrastRule::Labels(left, right) | ContrastRule::Bits(left, right, ..) => {
                self.both(Some((left, right)))?
            }
            ContrastRule::Lists(offsets, indices, _) => self.both(Some((offsets, indices)))?,
            ContrastRule::Diagonal | ContrastRule::All => None,
        };
        let list_weights = match &case.rule {
            ContrastRule::Lists(_, _, Some(weights)) => Some((self.floats(weights)?, weights.len())),
            _ => None,
        };
        let words = |memory: &Memory, len: usize| {
            // SAFETY: the caller gives the length that was uploaded, and the memory lives until the end of the call.
            unsafe { Words::from_address(memory.address(), len) }
        };
        let order = match (&case.rule, &numbers) {
            (ContrastRule::Labels(_, right), Some((_, keys))) => {
                segments::sort(executor, words(keys, right.len()))?
            }
            _ => segments::sort(executor, words(&temperatures, 0))?,
        };
        let old = case.affinity.as_ref().map(|(left, right, map)| {
            let upload = |rows: &Stored| executor.upload(OP, &rows.bytes());
            Ok::<_, consonance::cuda::Error>((left, upload(left)?, right, upload(right)?, *map))
        });
        let old = old.transpose()?;
        let affinity = old.as_ref().map(|(left, of_left, right, of_right, map)| {
            let (queries, keys) = (self.matrix(left, of_left)?, self.matrix(right, of_right)?);
            Ok::<_, consonance::cuda::Error>(cuda::Affinity { queries, keys, map: *map })
        });
        let pace =
            case.pace.as_ref().map(|pace| Ok::<_, consonance::cuda::Error>((pace, self.place_pace(pace)?)));
        let pace = pace.transpose()?;
        let pair = |memory: &Uploaded, lengths: [usize; 2]| {
            memory.as_ref().map(|(left, right)| (words(left, lengths[0]), words(right, lengths[1])))
        };
        let lengths =
            |sides: &Sides| sides.as_ref().map_or([0; 2], |(left, right)| [left.len(), right.len()]);
        let rule = match (&case.rule, &numbers) {
            (ContrastRule::Labels(left, right), Some((queries, keys))) => cuda::Rule::Labels {
                queries: words(queries, left.len()),
                keys: words(keys, right.len()),
                key_order: &order,
            },
            (ContrastRule::Lists(starts, list, _), Some((offsets, indices))) => cuda::Rule::Lists {
                offsets: words(offsets, starts.len()),
                indices: words(indices, list.len()),
                weights: list_weights.as_ref().map(|(memory, len)| words(memory, *len)),
                padded: false,
            },
            (ContrastRule::Bits(left, right, set, least), Some((queries, keys))) => cuda::Rule::Bits {
                queries: words(queries, left.len()),
                keys: words(keys, right.len()),
                words: *set,
                min_overlap: *least,
            },
            (ContrastRule::Diagonal, _) => cuda::Rule::Diagonal,
            _ => cuda::Rule::All,
        };
        let mask = |memory: &Option<Memory>, values: &Option<Vec<bool>>| {
            let len = values.as_ref().map_or(0, |values| values.len().div_ceil(32));
            memory.as_ref().map(|memory| words(memory, len))
        };
        let problem = cuda::Problem {
            queries: self.matrix(&case.queries, queries)?,
            keys: self.matrix(&case.keys, keys)?,
            temperatures: words(&temperatures, case.temperatures.len()),
            pairs: cuda::Pairs {
                affinity: affinity.transpose()?,
                anchors: mask(&masks[0], &case.anchors),
                valid: mask(&masks[1], &case.valid),
                credible: mask(&masks[2], &case.credible),
                denominator_weights: weights
                    .as_ref()
                    .zip(case.denominator_weights.as_ref())
                    .map(|(memory, weights)| words(memory, weights.len())),
                same_id: pair(&ids, lengths(&case.ids)),
                left_out_labels: pair(&left_out, lengths(&case.left_out)),
                pace: pace.as_ref().map(|(pace, placed)| self.pace_of(pace, placed)).transpose()?,
                ..cuda::Pairs::new(rule)
            },
            options: case.options(),
        };
        run(&problem, words(&upstream, case.upstream.len()))
    }

    /// What was found of `b` rows, without gradients.
    pub(super) fn rows_of(&self, found: &cuda::Losses, b: usize) -> Result<ContrastFound> {
        let inverse: Vec<f32> = self.words(&found.inverse_normalizer, b)?;
        Ok(ContrastFound {
            per_row: self.words(&found.per_row, b)?,
            log_sum_exp: self.words(&found.log_sum_exp, b)?,
            counted: inverse.iter().map(|inverse| *inverse > 0.0).collect(),
            ..ContrastFound::default()
        })
    }

    pub(super) fn contrast_of(&self, case: &ContrastCase) -> Result<ContrastFound> {
        let executor = self.executor();
        let (b, n, dim) = (case.queries.rows(), case.keys.rows(), case.queries.cols());
        let sides = (executor.upload(OP, &case.queries.bytes())?, executor.upload(OP, &case.keys.bytes())?);
        self.with_problem(case, [&sides.0, &sides.1], |problem, upstream| {
            let found = losses(executor, problem, case.gradients)?;
            found.check(executor)?;
            let mut all = self.rows_of(&found, b)?;
            if let Some(gradients) = &found.gradients {
                let of_keys = key_gradients(executor, problem, &found, upstream)?;
                all.queries = self.words(&gradients.queries, b * dim)?;
                all.temperatures = self.words(&gradients.temperatures, b)?;
                all.keys = self.words(&of_keys, n * dim)?;
            }
            Ok(all)
        })
    }
}
