//! What is known of a problem before any product: checks, norms, indices. O(B + N) numbers.

use std::ops::Range;

use crate::parallel::{each, each_chunk};
use crate::tile::split::{self, Source, Terms};
use crate::{Error, Result, Rows, rows::Elements, simd};

use super::index::{Index, within};
use super::{AffinityMap, OP, OtherPositives, Problem, Rule, SIDE, STEP, TILE, pace};

/// Scores up to this size need no running maximum: e⁶⁰ · 10⁸ keys · [`LARGEST_PLAIN_NORM`] fits an `f32`, and
/// e⁻⁶⁰ is far above the smallest normal.
const LARGEST_PLAIN_SCORE: f64 = 60.0;
const LARGEST_PLAIN_NORM: f64 = 1e3;

/// A checked problem with its derived data: O(B + N) numbers, shared by the forward and the backward pass.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The dimension of tiles in memory: at least [`SIDE`].
    pub(super) width: usize,
    /// The same where a row holds sums of keys: a multiple of 32 for split products.
    pub(super) sums: usize,
    /// How to split, when products are split.
    pub(super) split: Option<Split>,
    /// 1/τ_i, one a query.
    pub(super) inverse_temperature: Vec<f32>,
    /// What the product of query i and a key is multiplied by to be its score: 1/τ_i without the powers of two of a
    /// split product.
    pub(super) scale: Vec<f32>,
    /// Whether the row's scores are bounded well enough to go without a running maximum.
    pub(super) plain: Vec<bool>,
    /// ln u_j, −∞ for keys in no denominator; absent when all are 0.
    pub(super) bias: Option<Vec<f32>>,
    /// Whether a tile holds a key of some denominator.
    pub(super) live: Vec<bool>,
    /// Whether a tile holds a valid key.
    pub(super) occupied: Vec<bool>,
    /// Keys that can be positives, when not all can.
    eligible: Option<Vec<bool>>,
    labels: Option<Index>,
    ids: Option<Index>,
    left_out: Option<Index>,
    /// Keys by group, where negatives of the query's group are weighed.
    groups: Option<Index>,
    /// 1/‖o‖ of old queries and keys.
    pub(super) inverse_norms: Option<(Vec<f32>, Vec<f32>)>,
    /// Whether positives leave the denominator.
    pub(super) positives_left_out: bool,
}

/// The dimension from which on the scores of three products have errors of the size of plain sums.
const LONG: usize = 512;

/// How operands are split: scaled by powers of two first, so that nothing overflows or vanishes that matters.
#[derive(Debug, Clone)]
pub(super) struct Split {
    /// Of queries and keys.
    pub(super) scores: Terms,
    /// Of numbers computed here and keys.
    pub(super) sums: Terms,
    /// What keys are multiplied by: the longest has a norm in [1, 2) then.
    pub(super) keys: f32,
    /// What each query is multiplied by: its largest element is in [1, 2) then.
    pub(super) queries: Vec<f32>,
}

impl Split {
    /// The queries of `rows`, as the products read them; converted into `buffer` unless they are stored as `f32`.
    pub(super) fn queries<'s>(
        &'s self,
        queries: &Rows<'s>,
        rows: Range<usize>,
        buffer: &'s mut Vec<f32>,
    ) -> Source<'s> {
        let (cols, factors) = (queries.cols(), &self.queries[rows.clone()]);
        match queries.as_f32() {
            Some(x) => Source::new(
                &x[rows.start * queries.stride()..],
                queries.stride(),
                (rows.len(), cols),
                factors,
            ),
            None => {
                buffer.resize(rows.len() * cols, 0.0);
                queries.load(rows.clone(), buffer);
                Source::new(buffer, cols, (rows.len(), cols), factors)
            }
        }
    }

    fn new(problem: &Problem<'_>, longest_key: f64) -> Self {
        let (queries, keys) = (&problem.queries, &problem.keys);
        let bf16 = |rows: &Rows<'_>| matches!(rows.elements(), Elements::Bf16(_));
        let mut buffer = Vec::new();
        let largest = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        Self {
            scores: match (bf16(queries), bf16(keys)) {
                (true, true) => Terms::One,
                (false, true) => Terms::ThreeByOne,
                _ if queries.cols() < LONG => Terms::Six,
                _ => Terms::Three,
            },
            sums: if bf16(keys) { Terms::TwoByOne } else { Terms::Three },
            keys: power_of_two(longest_key),
            queries: (0..queries.rows())
                .map(|i| power_of_two(f64::from(largest(view_row(queries, i, &mut buffer)))))
                .collect(),
        }
    }
}

/// The power of two that brings `x` into [1, 2), inside a range where it and its inverse are normal; 1 for 0.
fn power_of_two(x: f64) -> f32 {
    const LARGEST: u64 = 100;
    // The biased exponent of a f64 is that of its power of two: no rounding, no logarithm.
    let exponent = if x == 0.0 { 1023 } else { (x.to_bits() >> 52).clamp(1023 - LARGEST, 1023 + LARGEST) };
    f64::from_bits((2046 - exponent) << 52) as f32
}

/// Rows that one thread takes at a time.
const PART: usize = 512;

/// The largest norm of the rows that `keep` admits.
///
/// The sum of squares finds NaN and infinities on the way: one reading of the bank for both.
fn largest_norm(rows: &Rows<'_>, argument: &'static str, keep: impl Fn(usize) -> bool + Sync) -> Result<f64> {
    let squares = |row: usize, x: &[f32]| match simd::dot(x, x) {
        s if s.is_finite() => Ok(if keep(row) { f64::from(s) } else { 0.0 }),
        _ if simd::all_finite(x) && !keep(row) => Ok(0.0),
        _ if simd::all_finite(x) => Ok(x.iter().map(|v| f64::from(*v).powi(2)).sum()),
        _ => Err(row),
    };
    let of_part = |part: usize| {
        let (mut largest, mut bad, mut buffer) = (0.0f64, usize::MAX, Vec::new());
        for row in part * PART..((part + 1) * PART).min(rows.rows()) {
            match squares(row, view_row(rows, row, &mut buffer)) {
                Ok(s) => largest = largest.max(s),
                Err(row) => bad = bad.min(row),
            }
        }
        (largest, bad)
    };
    let parts = each(rows.rows().div_ceil(PART), of_part);
    let (largest, bad) =
        parts.into_iter().fold((0.0, usize::MAX), |a: (f64, usize), b| (a.0.max(b.0), a.1.min(b.1)));
    if bad != usize::MAX {
        return Err(Error::NotFinite { op: OP, argument, row: bad });
    }
    Ok(largest.sqrt())
}

/// One row as `f32`: in place when it is stored so, else converted into `buffer`.
#[inline]
pub(crate) fn view_row<'s>(rows: &Rows<'s>, row: usize, buffer: &'s mut Vec<f32>) -> &'s [f32] {
    let cols = rows.cols();
    match rows.elements() {
        Elements::F32(x) => &x[row * rows.stride()..][..cols],
        _ => {
            buffer.resize(cols, 0.0);
            rows.load_row(row, buffer);
            &buffer[..cols]
        }
    }
}

/// 1/‖o‖; 0 for rows without direction that `keep` does not need, as the empty slots of a bank.
pub(super) fn inverse_norms(
    rows: &Rows<'_>,
    argument: &'static str,
    keep: impl Fn(usize) -> bool,
) -> Result<Vec<f32>> {
    let (norms, bad): (Vec<f32>, Vec<usize>) = {
        let mut norms = vec![0.0f32; rows.rows()];
        each_chunk(&mut norms, PART, Vec::new, |buffer, part, norms| {
            for (at, norm) in norms.iter_mut().enumerate() {
                let x = view_row(rows, part * PART + at, buffer);
                let s = simd::dot(x, x);
                // Squares that overflow or vanish in f32 are summed again in f64.
                *norm = match s.is_normal() {
                    true => (1.0 / f64::from(s).sqrt()) as f32,
                    false => (1.0 / x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()) as f32,
                };
            }
        });
        let mut bad = Vec::new();
        for (row, norm) in norms.iter_mut().enumerate().filter(|(_, n)| !(n.is_finite() && **n > 0.0)) {
            if keep(row) {
                bad.push(row);
                break;
            }
            *norm = 0.0;
        }
        (norms, bad)
    };
    let Some(&row) = bad.first() else { return Ok(norms) };
    let mut buffer = Vec::new();
    let x = view_row(rows, row, &mut buffer);
    match simd::all_finite(x) {
        true => Err(Error::ZeroNorm { op: OP, argument, row }),
        false => Err(Error::NotFinite { op: OP, argument, row }),
    }
}

impl Plan {
    /// Checks the problem and prepares it.
    ///
    /// # Errors
    /// [`Error::Empty`] without queries or keys, [`Error::Shape`] for lengths that disagree, [`Error::Range`] for
    /// temperatures, weights and indices out of range, [`Error::NotFinite`] and [`Error::ZeroNorm`] for rows.
    pub fn new(problem: &Problem<'_>) -> Result<Self> {
        let (queries, keys, pairs) = (&problem.queries, &problem.keys, &problem.pairs);
        let (b, n, d) = (queries.rows(), keys.rows(), queries.cols());
        for (argument, rows) in [("queries", b), ("keys", n)] {
            if rows == 0 {
                return Err(Error::Empty { op: OP, argument });
            }
        }
        if d == 0 || keys.cols() != d {
            let expected =
                if d == 0 { "at least one dimension".into() } else { format!("[N, {d}], as the queries") };
            return Err(Error::shape(
                OP,
                if d == 0 { "queries" } else { "keys" },
                &[n, keys.cols()],
                expected,
            ));
        }
        if u32::try_from(n).is_err() || u32::try_from(b).is_err() {
            return Err(Error::range(OP, "keys", n.max(b), "at most 2^32 - 1 rows"));
        }
        let tau = problem.temperatures;
        if tau.len() != 1 && tau.len() != b {
            return Err(Error::shape(
                OP,
                "temperature",
                &[tau.len()],
                format!("[], [1] or [{b}], one a query"),
            ));
        }
        // 1/τ must be finite too, or scores would be.
        if let Some(bad) = tau.iter().find(|t| !(t.is_finite() && **t > 0.0 && t.recip().is_finite())) {
            return Err(Error::range(OP, "temperature", bad, "finite and above 0"));
        }
        pairs.check(b, n)?;

        let valid = |j: usize| pairs.valid.is_none_or(|v| v[j]);
        let longest_key = largest_norm(keys, "keys", valid)?;
        largest_norm(queries, "queries", |_| true)?;
        let bias = bias(problem);
        let widest_bias =
            bias.iter().flatten().filter(|u| u.is_finite()).fold(0.0f64, |m, u| m.max(f64::from(u.abs())));
        let widest_bias = widest_bias + if pairs.pace.is_some() { pace::WIDEST } else { 0.0 };
        let inverse_temperature: Vec<f32> =
            (0..b).map(|i| tau[if tau.len() == 1 { 0 } else { i }].recip()).collect();
        let mut buffer = Vec::new();
        let split = problem.options.products.splits(d).then(|| Split::new(problem, longest_key));
        let scale = match &split {
            None => inverse_temperature.clone(),
            Some(split) => (inverse_temperature.iter().zip(&split.queries))
                .map(|(t, q)| {
                    let scale = f64::from(*t) / (f64::from(*q) * f64::from(split.keys));
                    scale.min(f64::from(f32::MAX)) as f32
                })
                .collect(),
        };
        let plain = (0..b)
            .map(|i| {
                let x = view_row(queries, i, &mut buffer);
                let norm = f64::from(simd::dot(x, x)).sqrt();
                let score = norm * longest_key * f64::from(inverse_temperature[i]) + widest_bias;
                score <= LARGEST_PLAIN_SCORE && longest_key <= LARGEST_PLAIN_NORM
            })
            .collect();
        let any = |f: &dyn Fn(usize) -> bool| -> Vec<bool> {
            (0..n.div_ceil(TILE)).map(|t| (t * TILE..((t + 1) * TILE).min(n)).any(f)).collect()
        };
        let eligible = (pairs.valid.is_some() || pairs.credible.is_some())
            .then(|| (0..n).map(|j| valid(j) && pairs.credible.is_none_or(|c| c[j])).collect::<Vec<_>>());
        let can = |j: usize| eligible.as_ref().is_none_or(|e| e[j]);
        let labels = match pairs.rule {
            Rule::Labels { keys, .. } => Some(Index::new(keys, can)),
            _ => None,
        };
        let inverse_norms = match &pairs.affinity {
            Some(a) => Some((
                inverse_norms(&a.queries, "old_queries", |_| true)?,
                inverse_norms(&a.keys, "old_keys", can)?,
            )),
            None => None,
        };
        Ok(Self {
            width: d.max(SIDE),
            sums: if split.is_some() { d.next_multiple_of(split::SIDE) } else { d.max(SIDE) },
            split,
            scale,
            inverse_temperature,
            plain,
            live: any(&|j| bias.as_ref().is_none_or(|u| u[j] > f32::NEG_INFINITY)),
            occupied: any(&valid),
            bias,
            labels,
            ids: pairs.same_id.map(|(_, keys)| Index::new(keys, valid)),
            left_out: pairs.left_out_labels.map(|(_, keys)| Index::new(keys, valid)),
            groups: pairs.pace.map(|pace| Index::new(pace.groups.1, valid)),
            eligible,
            inverse_norms,
            positives_left_out: problem.options.other_positives == OtherPositives::LeftOut,
        })
    }

    /// Whether the forward pass leaves its products to the backward pass: where all pairs are one step of one tile, at
    /// most half a megabyte.
    pub(super) fn keeps_products(&self, problem: &Problem<'_>) -> bool {
        self.tiles() == 1 && problem.queries.rows() <= STEP
    }

    /// The number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.live.len()
    }

    #[inline(always)]
    pub(super) fn can_be_positive(&self, key: usize) -> bool {
        self.eligible.as_ref().is_none_or(|e| e[key])
    }

    /// Calls `f(key, base weight)` for the positives of `row` in `range`, ascending.
    #[inline(always)]
    pub(crate) fn each_positive(
        &self,
        problem: &Problem<'_>,
        row: usize,
        range: Range<usize>,
        mut f: impl FnMut(usize, f32),
    ) {
        let pairs = &problem.pairs;
        if pairs.anchors.is_some_and(|a| !a[row]) {
            return;
        }
        let mut visit = |key: usize, weight: f32| {
            if self.can_be_positive(key) && pairs.same_id.is_none_or(|(q, k)| q[row] != k[key]) {
                f(key, weight);
            }
        };
        match pairs.rule {
            Rule::Labels { queries, .. } => {
                let list = self.labels.as_ref().map_or(&[][..], |index| index.keys(queries[row]));
                list[within(list, &range)].iter().for_each(|j| visit(*j as usize, 1.0));
            }
            Rule::Diagonal if range.contains(&row) => visit(row, 1.0),
            Rule::Diagonal => {}
            Rule::Lists { offsets, indices, weights } => {
                let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
                for at in within(&indices[start..end], &range) {
                    visit(indices[start + at] as usize, weights.map_or(1.0, |w| w[start + at]));
                }
            }
            Rule::Bits { queries, keys, words, min_overlap } => {
                let q = &queries[row * words..][..words];
                for j in range {
                    if overlap(q, &keys[j * words..][..words]) >= min_overlap {
                        visit(j, 1.0);
                    }
                }
            }
            Rule::All => range.for_each(|j| visit(j, 1.0)),
        }
    }

    fn is_positive(&self, problem: &Problem<'_>, row: usize, key: usize) -> bool {
        let mut found = false;
        self.each_positive(problem, row, key..key + 1, |_, _| found = true);
        found
    }

    /// Whether rows differ in who is in their denominator.
    pub(super) fn masks_rows(&self) -> bool {
        self.positives_left_out || self.ids.is_some() || self.left_out.is_some() || self.groups.is_some()
    }

    /// Takes the keys of `range` that are not in the row's denominator out of its scores, by −∞, and weighs the negatives
    /// of the row's group: u e^s = e^{s + ln u}.
    #[inline(always)]
    pub(super) fn mask(&self, problem: &Problem<'_>, row: usize, range: Range<usize>, scores: &mut [f32]) {
        let pairs = &problem.pairs;
        let start = range.start;
        if let (Some(index), Some(pace)) = (&self.groups, &pairs.pace) {
            let list = index.keys(pace.groups.0[row]);
            let (scale, mut buffers) = (f64::from(self.scale[row]), [Vec::new(), Vec::new()]);
            for j in &list[within(list, &range)] {
                if !self.is_positive(problem, row, *j as usize) {
                    // Products are not scaled yet; ln 0 is −∞.
                    let bias = pace.weight(row, *j as usize, &mut buffers).ln() / scale;
                    scores[*j as usize - start] += bias as f32;
                }
            }
        }
        if let (Some(index), Some((queries, _))) = (&self.ids, pairs.same_id) {
            let list = index.keys(queries[row]);
            list[within(list, &range)].iter().for_each(|j| scores[*j as usize - start] = f32::NEG_INFINITY);
        }
        if let (Some(index), Some((queries, _))) = (&self.left_out, pairs.left_out_labels) {
            let list = index.keys(queries[row]);
            for j in &list[within(list, &range)] {
                if !self.is_positive(problem, row, *j as usize) {
                    scores[*j as usize - start] = f32::NEG_INFINITY;
                }
            }
        }
        if self.positives_left_out {
            self.each_positive(problem, row, range, |j, _| scores[j - start] = f32::NEG_INFINITY);
        }
    }

    /// The weight of a positive pair, from its base weight and the old embeddings.
    #[inline(always)]
    pub(super) fn weight(
        &self,
        problem: &Problem<'_>,
        old_query: &[f32],
        row: usize,
        key: usize,
        base: f32,
        buffer: &mut Vec<f32>,
    ) -> f32 {
        let (Some(a), Some((queries, keys))) = (&problem.pairs.affinity, &self.inverse_norms) else {
            return base;
        };
        let cosine = simd::dot(old_query, view_row(&a.keys, key, buffer)) * queries[row] * keys[key];
        base * a.map.weight(cosine)
    }

    /// The class whose members are the row's positives, all of weight 1: rows of a class share their sums.
    pub(super) fn shared_class(&self, problem: &Problem<'_>, row: usize) -> Option<u32> {
        let pairs = &problem.pairs;
        let alike = pairs.affinity.is_none() && pairs.same_id.is_none() && !self.positives_left_out;
        match pairs.rule {
            Rule::Labels { queries, .. } if alike && pairs.anchors.is_none_or(|a| a[row]) => {
                Some(queries[row])
            }
            _ => None,
        }
    }

    /// Calls `f(key, weight)` for the positives of `row` in `range`, ascending; the vectors are scratch memory.
    pub(crate) fn weighted_positives(
        &self,
        problem: &Problem<'_>,
        row: usize,
        range: Range<usize>,
        (old_query, old_key): (&mut Vec<f32>, &mut Vec<f32>),
        mut f: impl FnMut(usize, f32),
    ) {
        if let Some(a) = &problem.pairs.affinity {
            old_query.resize(a.queries.cols(), 0.0);
            a.queries.load_row(row, old_query);
        }
        self.each_positive(problem, row, range, |key, base| {
            f(key, self.weight(problem, old_query, row, key, base, old_key));
        });
    }

    /// Whether the pairs' weights are ½(1 + cos) or 1 on all eligible keys alike, so that moments of the keys
    /// replace every sum over positives.
    pub(super) fn has_moments(&self, problem: &Problem<'_>) -> bool {
        let pairs = &problem.pairs;
        matches!(pairs.rule, Rule::All)
            && pairs.same_id.is_none()
            && !self.positives_left_out
            && pairs.affinity.is_none_or(|a| a.map == AffinityMap::Half)
    }
}

#[inline(always)]
fn overlap(a: &[u32], b: &[u32]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a & b).count_ones()).sum()
}

/// ln u_j, −∞ for keys out of every denominator.
fn bias(problem: &Problem<'_>) -> Option<Vec<f32>> {
    let pairs = &problem.pairs;
    if pairs.valid.is_none() && pairs.denominator_weights.is_none() {
        return None;
    }
    let value = |j: usize| match (pairs.valid, pairs.denominator_weights) {
        (Some(valid), _) if !valid[j] => f32::NEG_INFINITY,
        (_, Some(u)) => u[j].ln(),
        _ => 0.0,
    };
    Some((0..problem.keys.rows()).map(value).collect())
}
