//! Pairs read from tensors into vectors, as the backend takes them.

use candle_core::{DType, Tensor};
use consonance_cpu::contrast::{
    Admission, Affinity, AffinityMap, Closeness as CpuCloseness, Pace as CpuPace, Pairs as CpuPairs, Problem,
    Rule as CpuRule,
};
use consonance_cpu::{Error as CpuError, Rows};

use super::lists::Lists;
use super::pairs::{Closeness as TensorCloseness, Pace as TensorPace, Pairs, Rule as TensorRule};
use super::{ContrastOptions, OP};
use crate::ops::view::{Guard, Matrix, check_cpu, labels, mask, weights};
use crate::{Error, Result};

#[derive(Debug, Clone)]
enum Rule {
    Labels(Vec<u32>, Vec<u32>),
    Diagonal,
    Lists { offsets: Vec<u32>, indices: Vec<u32>, weights: Option<Vec<f32>> },
    Bits { queries: Vec<u32>, keys: Vec<u32>, words: usize, min_overlap: u32 },
    All,
}

/// The data of pairs: O(B + N) numbers; old embeddings stay where they are.
#[derive(Debug, Clone)]
pub(in crate::ops) struct Data {
    rule: Rule,
    affinity: Option<(Matrix, Matrix, AffinityMap)>,
    anchors: Option<Vec<bool>>,
    valid: Option<Vec<bool>>,
    credible: Option<Vec<bool>>,
    denominator_weights: Option<Vec<f32>>,
    same_id: Option<(Vec<u32>, Vec<u32>)>,
    left_out_labels: Option<(Vec<u32>, Vec<u32>)>,
    pace: Option<Pace>,
}

#[derive(Debug, Clone)]
struct Pace {
    groups: (Vec<u32>, Vec<u32>),
    closeness: Closeness,
    pace: f32,
    admission: Admission,
}

#[derive(Debug, Clone)]
enum Closeness {
    Times(Vec<f32>, Vec<f32>, f32),
    Features(Box<(Matrix, Matrix)>),
}

impl Data {
    /// Reads the pairs of `b` queries and `n` keys.
    pub(in crate::ops) fn read(pairs: &Pairs, b: usize, n: usize) -> Result<Self> {
        let both = |names: (&'static str, &'static str), of: &Option<(Tensor, Tensor)>| match of {
            Some((q, k)) => Ok::<_, Error>(Some((labels(OP, names.0, q, b)?, labels(OP, names.1, k, n)?))),
            None => Ok(None),
        };
        let keys_mask = |name, of: &Option<Tensor>| of.as_ref().map(|m| mask(OP, name, m, n)).transpose();
        Ok(Self {
            rule: rule(&pairs.rule, b, n)?,
            affinity: match &pairs.affinity {
                Some((q, k, map)) => {
                    Some((Matrix::new(OP, "old_queries", q)?, Matrix::new(OP, "old_keys", k)?, *map))
                }
                None => None,
            },
            anchors: pairs.anchors.as_ref().map(|m| mask(OP, "anchors", m, b)).transpose()?,
            valid: keys_mask("valid", &pairs.valid)?,
            credible: keys_mask("credible_positives", &pairs.credible)?,
            denominator_weights: match &pairs.denominator_weights {
                Some(u) => Some(weights(OP, "denominator_weights", u, n)?),
                None => None,
            },
            same_id: both(("query_ids", "key_ids"), &pairs.same_id)?,
            left_out_labels: both(("query_labels", "key_labels"), &pairs.left_out_labels)?,
            pace: pairs.pace.as_ref().map(|pace| Pace::read(pace, b, n)).transpose()?,
        })
    }

    /// Calls `f` with the problem that these pairs make of queries, keys and temperatures.
    pub(in crate::ops) fn with_problem<R>(
        &self,
        queries: Rows<'_>,
        keys: Rows<'_>,
        temperatures: &[f32],
        options: &ContrastOptions,
        f: impl FnOnce(&Problem<'_>) -> Result<R>,
    ) -> Result<R> {
        let guards = self.affinity.as_ref().map(|(q, k, _)| (q.lock(), k.lock()));
        let affinity = match (&guards, &self.affinity) {
            (Some((q, k)), Some((_, _, map))) => {
                Some(Affinity { queries: q.rows()?, keys: k.rows()?, map: *map })
            }
            _ => None,
        };
        enum Locked<'a> {
            Times(&'a [f32], &'a [f32], f32),
            Features(Guard<'a>, Guard<'a>),
        }
        let closeness = self.pace.as_ref().map(|pace| match &pace.closeness {
            Closeness::Times(q, k, scale) => Locked::Times(q, k, *scale),
            Closeness::Features(sides) => Locked::Features(sides.0.lock(), sides.1.lock()),
        });
        let pace = match (&self.pace, &closeness) {
            (Some(pace), Some(closeness)) => Some(CpuPace {
                groups: (&pace.groups.0, &pace.groups.1),
                closeness: match closeness {
                    Locked::Times(queries, keys, scale) => {
                        CpuCloseness::Times { queries, keys, scale: *scale }
                    }
                    Locked::Features(q, k) => CpuCloseness::Features { queries: q.rows()?, keys: k.rows()? },
                },
                pace: pace.pace,
                admission: pace.admission,
            }),
            _ => None,
        };
        fn both(of: &Option<(Vec<u32>, Vec<u32>)>) -> Option<(&[u32], &[u32])> {
            of.as_ref().map(|(q, k)| (&q[..], &k[..]))
        }
        let pairs = CpuPairs {
            rule: match &self.rule {
                Rule::Labels(queries, keys) => CpuRule::Labels { queries, keys },
                Rule::Diagonal => CpuRule::Diagonal,
                Rule::Lists { offsets, indices, weights } => {
                    CpuRule::Lists { offsets, indices, weights: weights.as_deref() }
                }
                Rule::Bits { queries, keys, words, min_overlap } => {
                    CpuRule::Bits { queries, keys, words: *words, min_overlap: *min_overlap }
                }
                Rule::All => CpuRule::All,
            },
            affinity,
            anchors: self.anchors.as_deref(),
            valid: self.valid.as_deref(),
            credible: self.credible.as_deref(),
            denominator_weights: self.denominator_weights.as_deref(),
            same_id: both(&self.same_id),
            left_out_labels: both(&self.left_out_labels),
            pace,
        };
        f(&Problem { queries, keys, temperatures, pairs, options: *options })
    }
}

impl Pace {
    fn read(pace: &TensorPace, b: usize, n: usize) -> Result<Self> {
        let (q, k) = &pace.groups;
        Ok(Self {
            groups: (labels(OP, "query_groups", q, b)?, labels(OP, "key_groups", k, n)?),
            closeness: match &pace.closeness {
                TensorCloseness::Times { queries, keys, scale } => Closeness::Times(
                    weights(OP, "query_times", queries, b)?,
                    weights(OP, "key_times", keys, n)?,
                    *scale as f32,
                ),
                TensorCloseness::Features { queries, keys } => Closeness::Features(Box::new((
                    Matrix::new(OP, "query_features", queries)?,
                    Matrix::new(OP, "key_features", keys)?,
                ))),
            },
            pace: pace.pace as f32,
            admission: pace.admission,
        })
    }
}

fn rule(rule: &TensorRule, b: usize, n: usize) -> Result<Rule> {
    Ok(match rule {
        TensorRule::Labels(q, k) => {
            Rule::Labels(labels(OP, "query_labels", q, b)?, labels(OP, "key_labels", k, n)?)
        }
        TensorRule::Diagonal => Rule::Diagonal,
        TensorRule::Lists { .. } | TensorRule::Neighbors { .. } => {
            let Lists { offsets, indices, weights } = Lists::read(rule, b)?;
            Rule::Lists { offsets, indices, weights }
        }
        TensorRule::Bits { queries, keys, min_overlap } => {
            let (queries, words) = bit_sets("query_bits", queries, b, None)?;
            let (keys, words) = bit_sets("key_bits", keys, n, Some(words))?;
            Rule::Bits { queries, keys, words, min_overlap: *min_overlap }
        }
        TensorRule::All => Rule::All,
    })
}

fn bit_sets(
    argument: &'static str,
    bits: &Tensor,
    rows: usize,
    words: Option<usize>,
) -> Result<(Vec<u32>, usize)> {
    check_cpu(OP, argument, bits)?;
    let &[got, width] = bits.dims() else {
        return Err(Error::Rank { op: OP, argument, got: bits.rank(), expected: "[rows, words]" });
    };
    if got != rows || words.is_some_and(|w| w != width) {
        let expected = match words {
            Some(words) => format!("[{rows}, {words}], as many words as the queries'"),
            None => format!("[{rows}, words]"),
        };
        return Err(CpuError::shape(OP, argument, bits.dims(), expected).into());
    }
    match bits.dtype() {
        DType::U32 => Ok((bits.flatten_all()?.to_vec1::<u32>()?, width)),
        got => Err(Error::DType { op: OP, argument, got, expected: "u32, 32 bits a word" }),
    }
}
