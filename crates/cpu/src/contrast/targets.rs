//! Tiles of keys as the products read them: in place when they can, else converted and padded with zeros.

use std::borrow::Cow;
use std::ops::Range;

use crate::Rows;
use crate::screen::Aligned;
use crate::tile::split::{Buffers, Source};

use super::plan::Plan;
use super::{Problem, TILE, columns, stride};

/// Scratch of one worker.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    scores: Aligned,
    keys: Vec<f32>,
    bias: Vec<f32>,
    factors: Vec<f32>,
    buffers: Buffers,
}

/// The keys of a tile, `stride` apart, and their bias: `columns` rows; only those that there are for split products.
pub(super) struct Tile<'s> {
    pub(super) columns: usize,
    pub(super) keys: &'s [f32],
    pub(super) stride: usize,
    shape: (usize, usize),
    factors: &'s [f32],
    pub(super) bias: Option<&'s [f32]>,
    /// Rows of `columns` scores, [`stride`] apart.
    pub(super) scores: &'s mut [f32],
    pub(super) buffers: &'s mut Buffers,
}

impl<'s> Tile<'s> {
    /// The keys as split products read them.
    pub(super) fn source(&self) -> Source<'s> {
        Source::new(self.keys, self.stride, self.shape, self.factors)
    }
}

/// The keys of tile `t`.
pub(super) fn range(t: usize, keys: usize) -> Range<usize> {
    t * TILE..((t + 1) * TILE).min(keys)
}

impl Scratch {
    /// Room for the scores of `rows` queries against one tile of `keys` keys.
    pub(super) fn new(rows: usize, keys: usize) -> Self {
        Self { scores: Aligned::zeros(rows * stride(keys)), ..Self::default() }
    }

    /// Prepares tile `t`. A short last tile is filled up to its columns with zero rows of bias −∞; a bank gives the bits
    /// of a longer one whose last rows are not valid.
    pub(super) fn tile<'s>(&'s mut self, problem: &Problem<'s>, plan: &'s Plan, t: usize) -> Tile<'s> {
        let keys = &problem.keys;
        let range = range(t, keys.rows());
        let (rows, cols, width) = (range.len(), keys.cols(), plan.width);
        let columns = columns(rows);
        let full = rows == columns;
        // Slots that are not valid may hold any finite number, whose products may be none: 0 keeps it out.
        let valid = |j: usize| problem.pairs.valid.is_none_or(|valid| valid[j]);
        let padded = plan.split.is_none();
        let whole = || full && cols == width && range.clone().all(valid);
        let in_place = keys.as_f32().filter(|_| !padded || whole());
        let (data, stride): (&[f32], usize) = match in_place {
            Some(x) => (&x[range.start * keys.stride()..], keys.stride()),
            None => {
                self.keys.clear();
                self.keys.resize(columns * width, 0.0); // keeps the padding at zero
                let rows = range.clone().zip(self.keys.chunks_exact_mut(width));
                for (row, out) in rows.filter(|(row, _)| !padded || valid(*row)) {
                    keys.load_row(row, &mut out[..cols]);
                }
                (&self.keys, width)
            }
        };
        let bias = match (&plan.bias, full) {
            (None, true) => None,
            (Some(bias), true) => Some(&bias[range.clone()]),
            (bias, false) => {
                self.bias.clear();
                match bias {
                    Some(bias) => self.bias.extend_from_slice(&bias[range.clone()]),
                    None => self.bias.resize(rows, 0.0),
                }
                self.bias.resize(columns, f32::NEG_INFINITY);
                Some(&self.bias[..])
            }
        };
        let factor = plan.split.as_ref().map_or(1.0, |split| split.keys);
        self.factors.clear();
        self.factors.extend(range.map(|j| if valid(j) { factor } else { 0.0 }));
        Tile {
            columns,
            keys: data,
            stride,
            shape: (rows, cols),
            factors: &self.factors,
            bias,
            scores: self.scores.as_mut_slice(),
            buffers: &mut self.buffers,
        }
    }
}

/// Rows as the products read them.
#[derive(Default)]
pub(crate) struct Loaded<'a> {
    data: Cow<'a, [f32]>,
    stride: usize,
}

impl Loaded<'_> {
    /// The rows and their distance.
    pub(crate) fn view(&self) -> (&[f32], usize) {
        (&self.data, self.stride)
    }
}

/// Rows `range`: in place when they can be read so, else converted and padded with zeros to `padded` rows of `width`.
pub(crate) fn load_block<'a>(
    rows: &Rows<'a>,
    range: Range<usize>,
    padded: usize,
    width: usize,
) -> Loaded<'a> {
    let (cols, stride) = (rows.cols(), rows.stride());
    if let Some(x) = rows.as_f32().filter(|_| range.len() == padded && cols == width) {
        return Loaded { data: Cow::Borrowed(&x[range.start * stride..]), stride };
    }
    let mut block = vec![0.0f32; padded * width];
    for (row, out) in range.zip(block.chunks_exact_mut(width)) {
        rows.load_row(row, &mut out[..cols]);
    }
    Loaded { data: Cow::Owned(block), stride: width }
}
