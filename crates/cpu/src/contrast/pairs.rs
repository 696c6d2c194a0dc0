//! Who is whose positive, and who is in whose denominator, as small per-row data.

use crate::tile::split;
use crate::{Error, Result, Rows};

use super::{OP, Pace};

/// Which keys are the positives of a query.
#[derive(Debug, Clone, Copy)]
pub enum Rule<'a> {
    /// Keys of the query's label.
    Labels {
        /// `[B]`.
        queries: &'a [u32],
        /// `[N]`.
        keys: &'a [u32],
    },
    /// Key i is the positive of query i; more keys than queries are allowed.
    Diagonal,
    /// Lists with base weights: query i's are `indices[offsets[i]..offsets[i + 1]]`, ascending without repeats.
    Lists {
        /// `[B + 1]`, ascending from 0.
        offsets: &'a [u32],
        /// Key indices, ascending inside each list.
        indices: &'a [u32],
        /// One base weight an index; all 1 when absent.
        weights: Option<&'a [f32]>,
    },
    /// Keys whose bit set shares at least `min_overlap` bits with the query's.
    Bits {
        /// `[B, words]`.
        queries: &'a [u32],
        /// `[N, words]`.
        keys: &'a [u32],
        /// 32-bit words of one set.
        words: usize,
        /// The smallest overlap of a positive pair, at least 1.
        min_overlap: u32,
    },
    /// Every key.
    All,
}

/// How the cosine of two old embeddings becomes a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AffinityMap {
    /// ½(1 + cos), in [0, 1].
    Half,
    /// e^{(cos − 1)/temperature}, in (0, 1].
    Exp {
        /// Finite and above 0.
        temperature: f32,
    },
}

impl AffinityMap {
    #[inline(always)]
    pub(super) fn weight(self, cosine: f32) -> f32 {
        let cosine = cosine.clamp(-1.0, 1.0);
        match self {
            Self::Half => 0.5f32.mul_add(cosine, 0.5),
            Self::Exp { temperature } => crate::simd::exp_inline((cosine - 1.0) / temperature),
        }
    }
}

/// Old embeddings of queries and keys: their cosine weighs the pair. Constants, of any norm but zero.
#[derive(Debug, Clone, Copy)]
pub struct Affinity<'a> {
    /// `[B, Do]`.
    pub queries: Rows<'a>,
    /// `[N, Do]`.
    pub keys: Rows<'a>,
    /// From cosine to weight.
    pub map: AffinityMap,
}

/// The pairs of a problem.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Which keys are positives.
    pub rule: Rule<'a>,
    /// Weights of the positives, beside the lists' own.
    pub affinity: Option<Affinity<'a>>,
    /// `[B]`; false: the row is no anchor.
    pub anchors: Option<&'a [bool]>,
    /// `[N]`; false: the key is in no numerator and no denominator.
    pub valid: Option<&'a [bool]>,
    /// `[N]`; false: the key is nobody's positive.
    pub credible: Option<&'a [bool]>,
    /// `[N]`, u_j ≥ 0.
    pub denominator_weights: Option<&'a [f32]>,
    /// Ids of queries `[B]` and keys `[N]`: pairs of equal id are in no numerator and no denominator.
    pub same_id: Option<(&'a [u32], &'a [u32])>,
    /// Labels of queries `[B]` and keys `[N]`: keys of the row's label that are not its positives leave its
    /// denominator.
    pub left_out_labels: Option<(&'a [u32], &'a [u32])>,
    /// Weights of the negatives of the query's own group in its denominator.
    pub pace: Option<Pace<'a>>,
}

impl<'a> Pairs<'a> {
    /// Pairs of one rule and no option.
    pub fn new(rule: Rule<'a>) -> Self {
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

    /// Checks every length and range against `b` queries and `n` keys.
    pub(super) fn check(&self, b: usize, n: usize) -> Result<()> {
        let length = |argument, got: usize, expected: usize, what: &str| match got == expected {
            true => Ok(()),
            false => Err(Error::shape(OP, argument, &[got], format!("[{expected}], one a {what}"))),
        };
        match self.rule {
            Rule::Labels { queries, keys } => {
                length("query_labels", queries.len(), b, "query")?;
                length("key_labels", keys.len(), n, "key")?;
            }
            Rule::Diagonal if n < b => {
                return Err(Error::shape(
                    OP,
                    "keys",
                    &[n],
                    format!("at least {b} rows: with diagonal pairs key i is the positive of query i"),
                ));
            }
            Rule::Lists { offsets, indices, weights } => check_lists(b, n, offsets, indices, weights)?,
            Rule::Bits { queries, keys, words, min_overlap } => {
                if words == 0 || min_overlap == 0 {
                    let (argument, got) = if words == 0 { ("bits", 0) } else { ("min_overlap", min_overlap) };
                    return Err(Error::range(OP, argument, got, "at least 1"));
                }
                length("query_bits", queries.len(), b * words, "word of a query's set")?;
                length("key_bits", keys.len(), n * words, "word of a key's set")?;
            }
            Rule::Diagonal | Rule::All => {}
        }
        for (argument, mask, expected, what) in [
            ("valid", self.valid, n, "key"),
            ("credible_positives", self.credible, n, "key"),
            ("anchors", self.anchors, b, "query"),
        ] {
            if let Some(mask) = mask {
                length(argument, mask.len(), expected, what)?;
            }
        }
        if let Some(u) = self.denominator_weights {
            length("denominator_weights", u.len(), n, "key")?;
            if let Some(bad) = u.iter().find(|u| !(u.is_finite() && **u >= 0.0)) {
                return Err(Error::range(OP, "denominator_weights", bad, "finite and at least 0"));
            }
        }
        for (names, ids) in
            [(("query_ids", "key_ids"), self.same_id), (("query_labels", "key_labels"), self.left_out_labels)]
        {
            if let Some((queries, keys)) = ids {
                length(names.0, queries.len(), b, "query")?;
                length(names.1, keys.len(), n, "key")?;
            }
        }
        if let Some(pace) = &self.pace {
            pace.check(b, n)?;
        }
        if let Some(a) = &self.affinity {
            let shape = |r: &Rows<'_>| [r.rows(), r.cols()];
            if a.queries.rows() != b {
                return Err(Error::shape(
                    OP,
                    "old_queries",
                    &shape(&a.queries),
                    format!("[{b}, Do], one row a query"),
                ));
            }
            if a.keys.rows() != n || a.keys.cols() != a.queries.cols() {
                let expected = format!("[{n}, {}], one row a key", a.queries.cols());
                return Err(Error::shape(OP, "old_keys", &shape(&a.keys), expected));
            }
            if a.queries.cols() == 0 {
                return Err(Error::shape(OP, "old_queries", &shape(&a.queries), "at least one dimension"));
            }
            if let AffinityMap::Exp { temperature: t } = a.map
                && !(t.is_finite() && t > 0.0)
            {
                return Err(Error::range(OP, "affinity temperature", t, "finite and above 0"));
            }
        }
        Ok(())
    }
}

fn check_lists(b: usize, n: usize, offsets: &[u32], indices: &[u32], weights: Option<&[f32]>) -> Result<()> {
    let ascending = offsets.first() == Some(&0) && offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.len() != b + 1 || !ascending || offsets.last().map(|e| *e as usize) != Some(indices.len()) {
        let expected = format!("[{}] ascending from 0 to the number of indices, {}", b + 1, indices.len());
        return Err(Error::shape(OP, "offsets", &[offsets.len()], expected));
    }
    for w in offsets.windows(2) {
        let list = &indices[w[0] as usize..w[1] as usize];
        if let Some(bad) = list.iter().find(|j| **j as usize >= n) {
            return Err(Error::range(OP, "indices", bad, format!("below {n}, the number of keys")));
        }
        if let Some(bad) = list.windows(2).find(|p| p[0] >= p[1]) {
            return Err(Error::range(
                OP,
                "indices",
                format!("{} after {}", bad[1], bad[0]),
                "ascending lists without repeats",
            ));
        }
    }
    if let Some(weights) = weights {
        if weights.len() != indices.len() {
            let expected = format!("[{}], one an index", indices.len());
            return Err(Error::shape(OP, "weights", &[weights.len()], expected));
        }
        if let Some(bad) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
            return Err(Error::range(OP, "weights", bad, "finite and at least 0"));
        }
    }
    Ok(())
}

/// What divides the weights of a row's positives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalizer {
    /// The number of positives, |P(i)|.
    #[default]
    Count,
    /// The sum of their weights: every row becomes a cross-entropy against a distribution.
    WeightSum,
}

/// Where the other positives of an anchor stand when one of them is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherPositives {
    /// In the denominator, like every key.
    #[default]
    InDenominator,
    /// Nowhere: each positive competes with the non-positives alone, so positives do not repel each other.
    LeftOut,
}

/// The dimension from which on splitting pays: below it, exponentials and packing cost as much as the products.
const SPLIT_DIM: usize = 128;

/// How the inner products and the weighted sums of embeddings are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// The fastest way of this machine whose errors are of the size of plain sums in `f32`: from 128 dimensions on,
    /// where there is Intel's tile matrix unit (AMX), numbers are split into several of bfloat16. Elsewhere the same as
    /// [`Products::F32`].
    #[default]
    Fastest,
    /// Products and sums in `f32`.
    F32,
}

impl Products {
    /// Whether this choice splits numbers of `dim` dimensions into bfloat16 on this machine.
    pub fn splits(self, dim: usize) -> bool {
        self == Self::Fastest && dim >= SPLIT_DIM && split::available()
    }
}

/// The form of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// What divides the weights.
    pub normalizer: Normalizer,
    /// Where the other positives stand.
    pub other_positives: OtherPositives,
    /// How products are computed.
    pub products: Products,
}
