//! Pairs read from tensors into vectors, as the backend takes them.

use candle_core::{DType, Tensor};
use consonance_cpu::contrast::{Affinity, AffinityMap, Pairs as CpuPairs, Problem, Rule as CpuRule};
use consonance_cpu::{Error as CpuError, Rows};

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
            anchors: None,
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

    /// The same pairs with queries and keys exchanged.
    pub(super) fn transposed(&self, b: usize, n: usize) -> Result<Self> {
        if self.denominator_weights.is_some() {
            let expected = "none in the symmetric form: they belong to one side";
            return Err(CpuError::shape(OP, "denominator_weights", &[n], expected).into());
        }
        let swapped = |of: &Option<(Vec<u32>, Vec<u32>)>| of.as_ref().map(|(q, k)| (k.clone(), q.clone()));
        let can = |j: usize| {
            self.valid.as_ref().is_none_or(|v| v[j]) && self.credible.as_ref().is_none_or(|c| c[j])
        };
        Ok(Self {
            rule: match &self.rule {
                Rule::Labels(q, k) => Rule::Labels(k.clone(), q.clone()),
                Rule::Diagonal if b == n => Rule::Diagonal,
                Rule::Diagonal => {
                    let expected = format!("[{b}, D]: diagonal pairs of the symmetric form are one to one");
                    return Err(CpuError::shape(OP, "y", &[n], expected).into());
                }
                Rule::Lists { offsets, indices, weights } => {
                    transposed_lists(n, offsets, indices, weights.as_deref())?
                }
                Rule::Bits { queries, keys, words, min_overlap } => Rule::Bits {
                    queries: keys.clone(),
                    keys: queries.clone(),
                    words: *words,
                    min_overlap: *min_overlap,
                },
                Rule::All => Rule::All,
            },
            affinity: self.affinity.as_ref().map(|(q, k, map)| (k.clone(), q.clone(), *map)),
            anchors: (self.valid.is_some() || self.credible.is_some()).then(|| (0..n).map(can).collect()),
            valid: None,
            credible: None,
            denominator_weights: None,
            same_id: swapped(&self.same_id),
            left_out_labels: swapped(&self.left_out_labels),
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
        TensorRule::Lists { offsets, indices, weights: w } => {
            let count = indices.elem_count();
            let offsets = labels(OP, "offsets", offsets, b + 1)?;
            let indices = labels(OP, "indices", indices, count)?;
            let w = w.as_ref().map(|w| weights(OP, "weights", w, count)).transpose()?;
            sorted_lists(offsets, indices, w)?
        }
        TensorRule::Neighbors { indices, weights: w } => neighbor_lists(b, indices, w.as_ref())?,
        TensorRule::Bits { queries, keys, min_overlap } => {
            let (queries, words) = bit_sets("query_bits", queries, b, None)?;
            let (keys, words) = bit_sets("key_bits", keys, n, Some(words))?;
            Rule::Bits { queries, keys, words, min_overlap: *min_overlap }
        }
        TensorRule::All => Rule::All,
    })
}

/// Sorts each list by key; malformed offsets are left for the backend's check, which names them.
fn sorted_lists(offsets: Vec<u32>, mut indices: Vec<u32>, mut weights: Option<Vec<f32>>) -> Result<Rule> {
    let well_formed = offsets.windows(2).all(|w| w[0] <= w[1])
        && offsets.last().is_some_and(|end| *end as usize == indices.len());
    if well_formed {
        let mut list: Vec<(u32, f32)> = Vec::new();
        for w in offsets.windows(2) {
            let range = w[0] as usize..w[1] as usize;
            if indices[range.clone()].is_sorted() {
                continue;
            }
            list.clear();
            list.extend(range.clone().map(|at| (indices[at], weights.as_ref().map_or(1.0, |w| w[at]))));
            list.sort_by_key(|(j, _)| *j);
            for (at, (j, weight)) in range.zip(&list) {
                indices[at] = *j;
                if let Some(weights) = &mut weights {
                    weights[at] = *weight;
                }
            }
        }
    }
    Ok(Rule::Lists { offsets, indices, weights })
}

fn neighbor_lists(b: usize, indices: &Tensor, w: Option<&Tensor>) -> Result<Rule> {
    check_cpu(OP, "indices", indices)?;
    let &[rows, k] = indices.dims() else {
        return Err(Error::Rank { op: OP, argument: "indices", got: indices.rank(), expected: "[B, k]" });
    };
    if rows != b {
        return Err(
            CpuError::shape(OP, "indices", indices.dims(), format!("[{b}, k], one row a query")).into()
        );
    }
    let flat = labels(OP, "indices", &indices.flatten_all()?, b * k)?;
    let base = match w {
        Some(w) if w.dims() != indices.dims() => {
            let expected = format!("[{b}, {k}], as the indices");
            return Err(CpuError::shape(OP, "weights", w.dims(), expected).into());
        }
        Some(w) => Some(weights(OP, "weights", &w.flatten_all()?, b * k)?),
        None => None,
    };
    let mut offsets = vec![0u32];
    let (mut kept, mut kept_weights) = (Vec::new(), Vec::new());
    for row in 0..b {
        for at in (row * k..(row + 1) * k).filter(|at| flat[*at] != u32::MAX) {
            kept.push(flat[at]);
            kept_weights.extend(base.as_ref().map(|w| w[at]));
        }
        offsets.push(kept.len() as u32);
    }
    sorted_lists(offsets, kept, base.is_some().then_some(kept_weights))
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

/// Lists of keys by query as lists of queries by key, ascending.
fn transposed_lists(n: usize, offsets: &[u32], indices: &[u32], weights: Option<&[f32]>) -> Result<Rule> {
    if let Some(bad) = indices.iter().find(|j| **j as usize >= n) {
        return Err(CpuError::range(OP, "indices", bad, format!("below {n}, the number of keys")).into());
    }
    let mut starts = vec![0u32; n + 1];
    indices.iter().for_each(|j| starts[*j as usize + 1] += 1);
    for j in 0..n {
        starts[j + 1] += starts[j];
    }
    let mut next = starts.clone();
    let mut out = (vec![0u32; indices.len()], weights.map(|w| vec![0.0f32; w.len()]));
    for (row, w) in offsets.windows(2).enumerate() {
        for at in w[0] as usize..(w[1] as usize).min(indices.len()) {
            let to = &mut next[indices[at] as usize];
            out.0[*to as usize] = row as u32;
            if let (Some(out), Some(weights)) = (&mut out.1, weights) {
                out[*to as usize] = weights[at];
            }
            *to += 1;
        }
    }
    Ok(Rule::Lists { offsets: starts, indices: out.0, weights: out.1 })
}
