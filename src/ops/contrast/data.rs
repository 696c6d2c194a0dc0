//! Pairs read from tensors into vectors, as the backend takes them.

use candle_core::{DType, Tensor};
use consonance_cpu::contrast::{Affinity, AffinityMap, Pairs as CpuPairs, Problem, Rule as CpuRule};
use consonance_cpu::{Error as CpuError, Rows};

use super::lists::Lists;
use super::pairs::{Pairs, Rule as TensorRule};
use super::{ContrastOptions, OP};
use crate::ops::view::{Matrix, check_cpu, labels, mask, weights};
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
        };
        f(&Problem { queries, keys, temperatures, pairs, options: *options })
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
