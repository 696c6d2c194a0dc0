//! Lists of positives, read from tensors on any device and sorted.

use candle_core::{Device, Tensor};
use consonance_cpu::Error as CpuError;

use super::OP;
use super::pairs::Rule;
use crate::ops::view::{labels, weights};
use crate::{Error, Result};

/// Lists of keys with weights, or without.
pub(super) struct Lists {
    pub(super) offsets: Vec<u32>,
    pub(super) indices: Vec<u32>,
    pub(super) weights: Option<Vec<f32>>,
}

impl Lists {
    /// Reads the lists of `b` queries, each sorted by key; empty ones for other rules. Waits for a device.
    pub(super) fn read(rule: &Rule, b: usize) -> Result<Self> {
        let here = |tensor: &Tensor| Ok::<_, Error>(tensor.detach().to_device(&Device::Cpu)?);
        match rule {
            Rule::Lists { offsets, indices, weights: w } => {
                let count = indices.elem_count();
                let offsets = labels(OP, "offsets", &here(offsets)?, b + 1)?;
                let indices = labels(OP, "indices", &here(indices)?, count)?;
                let weights = match w {
                    Some(w) => Some(weights(OP, "weights", &here(w)?, count)?),
                    None => None,
                };
                Ok(Self { offsets, indices, weights }.sorted())
            }
            Rule::Neighbors { indices, weights } => {
                let weights = weights.as_ref().map(here).transpose()?;
                Self::of_neighbors(b, &here(indices)?, weights.as_ref())
            }
            _ => Ok(Self { offsets: vec![0; b + 1], indices: Vec::new(), weights: None }),
        }
    }

    /// Sorts each list by key; malformed offsets are left for the backend's check, which names them.
    fn sorted(self) -> Self {
        let Self { offsets, mut indices, mut weights } = self;
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
        Self { offsets, indices, weights }
    }

    fn of_neighbors(b: usize, indices: &Tensor, w: Option<&Tensor>) -> Result<Self> {
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
        Ok(Self { offsets, indices: kept, weights: base.is_some().then_some(kept_weights) }.sorted())
    }
}

/// Lists of keys by query as lists of queries by key, ascending.
pub(super) fn transposed_lists(rule: &Rule, b: usize, n: usize) -> Result<Rule> {
    let device = match rule {
        Rule::Lists { indices, .. } | Rule::Neighbors { indices, .. } => indices.device(),
        _ => &Device::Cpu,
    };
    let Lists { offsets, indices, weights } = Lists::read(rule, b)?;
    if let Some(bad) = indices.iter().find(|j| **j as usize >= n) {
        return Err(CpuError::range(OP, "indices", bad, format!("below {n}, the number of keys")).into());
    }
    let mut starts = vec![0u32; n + 1];
    indices.iter().for_each(|j| starts[*j as usize + 1] += 1);
    for j in 0..n {
        starts[j + 1] += starts[j];
    }
    let mut next = starts.clone();
    let mut out = (vec![0u32; indices.len()], weights.as_ref().map(|w| vec![0.0f32; w.len()]));
    for (row, w) in offsets.windows(2).enumerate() {
        for at in w[0] as usize..(w[1] as usize).min(indices.len()) {
            let to = &mut next[indices[at] as usize];
            out.0[*to as usize] = row as u32;
            if let (Some(out), Some(weights)) = (&mut out.1, &weights) {
                out[*to as usize] = weights[at];
            }
            *to += 1;
        }
    }
    let count = out.0.len();
    Ok(Rule::Lists {
        offsets: Tensor::from_vec(starts, n + 1, device)?,
        indices: Tensor::from_vec(out.0, count, device)?,
        weights: out.1.map(|weights| Tensor::from_vec(weights, count, device)).transpose()?,
    })
}
