//! The builder of pairs.

use candle_core::Tensor;
use consonance_cpu::Error as Bad;
use consonance_cpu::contrast::{Admission, AffinityMap};

use super::OP;
use super::lists::transposed_lists;
use crate::Result;

/// Which keys are the positives of a query, with which weight, and which keys are in its denominator.
///
/// Start from one rule ([`Pairs::labels`], [`Pairs::diagonal`], [`Pairs::lists`], [`Pairs::neighbors`],
/// [`Pairs::bits`], [`Pairs::all`]) and add options; every tensor is checked when the loss is computed. Nothing here
/// is differentiated.
#[derive(Debug, Clone)]
pub struct Pairs {
    pub(super) rule: Rule,
    pub(super) affinity: Option<(Tensor, Tensor, AffinityMap)>,
    /// Queries that are anchors: of the transposed pairs of the symmetric form.
    pub(super) anchors: Option<Tensor>,
    pub(super) valid: Option<Tensor>,
    pub(super) credible: Option<Tensor>,
    pub(super) denominator_weights: Option<Tensor>,
    pub(super) same_id: Option<(Tensor, Tensor)>,
    pub(super) left_out_labels: Option<(Tensor, Tensor)>,
    pub(super) pace: Option<Pace>,
}

/// Groups of queries and keys, the affinity inside them, ρ and its use.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    pub(super) groups: (Tensor, Tensor),
    pub(super) closeness: Closeness,
    pub(super) pace: f64,
    pub(super) admission: Admission,
}

/// How close a negative of the query's group is to being a positive: an affinity in [0, 1], a constant.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Closeness {
    /// e^{−|t_i − t_j|/scale} of times.
    Times {
        /// `[B]` floats.
        queries: Tensor,
        /// `[N]` floats.
        keys: Tensor,
        /// Finite and above 0, in the unit of the times.
        scale: f64,
    },
    /// ½(1 + cos) of features, of any norm but zero.
    Features {
        /// `[B, Df]`.
        queries: Tensor,
        /// `[N, Df]`.
        keys: Tensor,
    },
}

#[derive(Debug, Clone)]
pub(super) enum Rule {
    Labels(Tensor, Tensor),
    Diagonal,
    Lists { offsets: Tensor, indices: Tensor, weights: Option<Tensor> },
    Neighbors { indices: Tensor, weights: Option<Tensor> },
    Bits { queries: Tensor, keys: Tensor, min_overlap: u32 },
    All,
}

impl Pairs {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            affinity: None,
            anchors: None,
            valid: None,
            credible: None,
            denominator_weights: None,
            same_id: None,
            left_out_labels: None,
            pace: None,
        }
    }

    /// Positives: the keys of the query's label. `[B]` and `[N]`, `u32` or `i64`.
    pub fn labels(query_labels: &Tensor, key_labels: &Tensor) -> Self {
        Self::new(Rule::Labels(query_labels.clone(), key_labels.clone()))
    }

    /// Positive: key i of query i. There may be more keys than queries: the rest are negatives.
    pub fn diagonal() -> Self {
        Self::new(Rule::Diagonal)
    }

    /// Positives: explicit lists. Query i's keys are `indices[offsets[i]..offsets[i + 1]]` with base weights at the
    /// same places (1 without): `offsets` `[B + 1]` and `indices` `[n]` `u32` or `i64`, `weights` `[n]` floats ≥ 0. A
    /// list may have any order and be empty, but names no key twice.
    pub fn lists(offsets: &Tensor, indices: &Tensor, weights: Option<&Tensor>) -> Self {
        Self::new(Rule::Lists {
            offsets: offsets.clone(),
            indices: indices.clone(),
            weights: weights.cloned(),
        })
    }

    /// Positives: the rows of an index matrix `[B, k]` `u32`, as a neighbor search returns it, with base weights
    /// `[B, k]` (1 without). The index `u32::MAX` is padding.
    pub fn neighbors(indices: &Tensor, weights: Option<&Tensor>) -> Self {
        Self::new(Rule::Neighbors { indices: indices.clone(), weights: weights.cloned() })
    }

    /// Positives: keys whose bit set shares at least `min_overlap ≥ 1` bits with the query's. `[B, words]` and
    /// `[N, words]` of `u32`, 32 bits a word.
    pub fn bits(query_bits: &Tensor, key_bits: &Tensor, min_overlap: u32) -> Self {
        Self::new(Rule::Bits { queries: query_bits.clone(), keys: key_bits.clone(), min_overlap })
    }

    /// Positives: every key; with [`Pairs::affinity`], soft teachers without labels.
    pub fn all() -> Self {
        Self::new(Rule::All)
    }

    /// Weighs the positives by the cosine of old embeddings `[B, Do]` and `[N, Do]` (of any norm but zero): the
    /// sub-cluster estimate of Wu et al. 2022. The weights are constants.
    #[must_use]
    pub fn affinity(mut self, old_queries: &Tensor, old_keys: &Tensor, map: AffinityMap) -> Self {
        self.affinity = Some((old_queries.clone(), old_keys.clone(), map));
        self
    }

    /// Keys whose entry of the mask `[N]` `u8` is 0 are in no numerator and no denominator: a bank's empty slots.
    #[must_use]
    pub fn valid(mut self, mask: &Tensor) -> Self {
        self.valid = Some(mask.clone());
        self
    }

    /// Keys whose entry of the mask `[N]` `u8` is 0 are nobody's positives, but stay in the denominators.
    #[must_use]
    pub fn credible_positives(mut self, mask: &Tensor) -> Self {
        self.credible = Some(mask.clone());
        self
    }

    /// Weighs the keys in the denominators: `[N]` floats, u_j ≥ 0; 0 takes a key out.
    #[must_use]
    pub fn denominator_weights(mut self, weights: &Tensor) -> Self {
        self.denominator_weights = Some(weights.clone());
        self
    }

    /// A key with the id of the query is neither its positive nor in its denominator: the query itself. `[B]` and
    /// `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn ignore_same_id(mut self, query_ids: &Tensor, key_ids: &Tensor) -> Self {
        self.same_id = Some((query_ids.clone(), key_ids.clone()));
        self
    }

    /// Keys of the query's label that are not its positives leave its denominator: likely false negatives. `[B]` and
    /// `[N]`, `u32` or `i64`.
    #[must_use]
    pub fn leave_out_same_label(mut self, query_labels: &Tensor, key_labels: &Tensor) -> Self {
        self.left_out_labels = Some((query_labels.clone(), key_labels.clone()));
        self
    }

    /// Whether kernels compute both directions from one pass: all keys as positives have sums of their own.
    pub(super) fn has_one_pass(&self) -> bool {
        !matches!(self.rule, Rule::All) && self.pace.is_none()
    }

    /// Weighs the negatives of the query's own group (a scan, a video) in its denominator, by their affinity a_ij to its
    /// positives and the pace ρ in (0, 1]: [`Admission::Hard`] admits those of a_ij ≤ ρ, [`Admission::Soft`] gives them
    /// max(0, 1 − a_ij/ρ). Negatives of other groups, and positives, count fully. Groups `[B]` and `[N]`, `u32` or `i64`.
    ///
    /// With a growing ρ this is self-paced learning: easy negatives first, ambiguous ones later (Jiao et al., MICCAI 2020).
    #[must_use]
    pub fn pace(
        mut self,
        groups: (&Tensor, &Tensor),
        closeness: Closeness,
        pace: f64,
        admission: Admission,
    ) -> Self {
        self.pace = Some(Pace { groups: (groups.0.clone(), groups.1.clone()), closeness, pace, admission });
        self
    }

    /// The same pairs of `b` queries and `n` keys with both exchanged; a key that is not valid or not credible is no
    /// anchor.
    ///
    /// # Errors
    /// [`Error::Argument`] for denominator weights and for diagonal pairs of different numbers.
    pub(super) fn transposed(&self, b: usize, n: usize) -> Result<Self> {
        if self.denominator_weights.is_some() {
            let expected = "none in the symmetric form: they belong to one side";
            return Err(Bad::shape(OP, "denominator_weights", &[n], expected).into());
        }
        let swapped = |sides: &Option<(Tensor, Tensor)>| sides.clone().map(|(q, k)| (k, q));
        let anchors = match (&self.valid, &self.credible) {
            (Some(valid), Some(credible)) => {
                let zero = |mask: &Tensor| mask.ne(0u8);
                Some((zero(valid)? * zero(credible)?)?)
            }
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        let rule = match &self.rule {
            Rule::Labels(q, k) => Rule::Labels(k.clone(), q.clone()),
            Rule::Diagonal if b == n => Rule::Diagonal,
            Rule::Diagonal => {
                let expected = format!("[{b}, D]: diagonal pairs of the symmetric form are one to one");
                return Err(Bad::shape(OP, "y", &[n], expected).into());
            }
            lists @ (Rule::Lists { .. } | Rule::Neighbors { .. }) => transposed_lists(lists, b, n)?,
            Rule::Bits { queries, keys, min_overlap } => {
                Rule::Bits { queries: keys.clone(), keys: queries.clone(), min_overlap: *min_overlap }
            }
            Rule::All => Rule::All,
        };
        Ok(Self {
            rule,
            affinity: self.affinity.clone().map(|(q, k, map)| (k, q, map)),
            anchors,
            valid: None,
            credible: None,
            denominator_weights: None,
            same_id: swapped(&self.same_id),
            left_out_labels: swapped(&self.left_out_labels),
            pace: self.pace.as_ref().map(Pace::transposed),
        })
    }
}

impl Pace {
    fn transposed(&self) -> Self {
        let closeness = match self.closeness.clone() {
            Closeness::Times { queries, keys, scale } => {
                Closeness::Times { queries: keys, keys: queries, scale }
            }
            Closeness::Features { queries, keys } => Closeness::Features { queries: keys, keys: queries },
        };
        let groups = (self.groups.1.clone(), self.groups.0.clone());
        Self { groups, closeness, pace: self.pace, admission: self.admission }
    }
}
