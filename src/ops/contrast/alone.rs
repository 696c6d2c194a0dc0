//! Pairs whose positives stand alone: what makes a contrast a weighted mean over the positives.

use std::collections::HashSet;

use candle_core::{DType, Device, Tensor};
use consonance_cpu::Error as Bad;

use super::OP;
use super::pairs::{Pairs, Rule};
use crate::Result;
use crate::ops::view::check_vector_shape;

impl Pairs {
    /// The positives of `b` queries among `n` keys and one key more, number `n`, which is nobody's positive and the only one
    /// in the denominators.
    ///
    /// Where that key is 0, every Σ_j p_ij y_j is 0, and ∂L_i/∂x_i is minus the weighted mean of the positives over τ,
    /// summed in f32. The old embedding of the key more is a copy of the first one's: any with a direction would do.
    ///
    /// # Errors
    /// [`crate::Error::Rank`], [`crate::Error::Argument`] for lengths that are not those of the keys, and for lists and diagonal
    /// pairs that name key `n`.
    pub(in crate::ops) fn alone(&self, b: usize, n: usize, device: &Device) -> Result<Self> {
        let with = |name: &'static str, of: &Tensor, more: u32| -> Result<Tensor> {
            check_vector_shape(OP, name, of, n)?;
            let more = Tensor::new(&[i64::from(more)], of.device())?.to_dtype(of.dtype())?;
            Ok(Tensor::cat(&[&of.contiguous()?, &more], 0)?)
        };
        let mask = |name: &'static str, of: &Option<Tensor>, more: u32| match of {
            Some(mask) => with(name, mask, more),
            None => with(name, &Tensor::ones(n, DType::U8, device)?, more),
        };
        let rule = match &self.rule {
            Rule::Labels(queries, keys) => Rule::Labels(queries.clone(), with("key_labels", keys, 0)?),
            Rule::Diagonal if n < b => {
                let expected =
                    format!("at least {b} rows: with diagonal pairs key i is the positive of query i");
                return Err(Bad::shape(OP, "keys", &[n], expected).into());
            }
            lists @ (Rule::Lists { indices, .. } | Rule::Neighbors { indices, .. }) => {
                let past = indices.to_dtype(DType::I64)?.eq(n as i64)?.to_dtype(DType::U32)?;
                if past.sum_all()?.to_scalar::<u32>()? != 0 {
                    let expected = format!("below {n}, the number of keys");
                    return Err(Bad::range(OP, "indices", n, expected).into());
                }
                lists.clone()
            }
            Rule::Bits { queries, keys, min_overlap } => {
                let none =
                    Tensor::zeros((1, keys.dims().get(1).copied().unwrap_or(0)), keys.dtype(), device)?;
                let keys = Tensor::cat(&[&keys.contiguous()?, &none], 0)?;
                Rule::Bits { queries: queries.clone(), keys, min_overlap: *min_overlap }
            }
            rule @ (Rule::Diagonal | Rule::All) => rule.clone(),
        };
        let affinity = self.affinity.as_ref().map(|(queries, keys, map)| {
            let more = Tensor::cat(&[&keys.contiguous()?, &keys.narrow(0, 0, 1)?.contiguous()?], 0)?;
            Ok::<_, candle_core::Error>((queries.clone(), more, *map))
        });
        let same_id = match &self.same_id {
            None => None,
            Some((queries, keys)) => {
                // An id that no query has, or the key would leave that query's denominator.
                let ids = queries.detach().to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
                let ids: HashSet<i64> = ids.into_iter().collect();
                let free = (0..).find(|id| !ids.contains(&i64::from(*id))).unwrap_or(0);
                Some((queries.clone(), with("key_ids", keys, free)?))
            }
        };
        let mut weights = vec![0f32; n + 1];
        weights[n] = 1.0;
        Ok(Self {
            rule,
            affinity: affinity.transpose()?,
            anchors: self.anchors.clone(),
            valid: self.valid.as_ref().map(|mask| with("valid", mask, 1)).transpose()?,
            credible: Some(mask("credible_positives", &self.credible, 0)?),
            denominator_weights: Some(Tensor::from_vec(weights, n + 1, device)?),
            same_id,
            // Of the denominators, which the key more has to itself.
            left_out_labels: None,
            pace: None,
        })
    }
}
