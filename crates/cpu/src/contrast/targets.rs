//! Tiles of keys as the products read them: in place when they can, else converted and padded with zeros.

use std::ops::Range;

use crate::Rows;

use super::TILE;
use super::plan::Plan;

/// Scratch of one worker.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) scores: Vec<f32>,
    keys: Vec<f32>,
    bias: Vec<f32>,
}

/// The keys of a tile: [`TILE`] rows, `stride` apart, and their bias.
pub(super) struct Tile<'s> {
    pub(super) keys: &'s [f32],
    pub(super) stride: usize,
    pub(super) bias: Option<&'s [f32]>,
    pub(super) scores: &'s mut [f32],
}

/// The keys of tile `t`.
pub(super) fn range(t: usize, keys: usize) -> Range<usize> {
    t * TILE..((t + 1) * TILE).min(keys)
}

impl Scratch {
    /// Room for the scores of `rows` queries against one tile.
    pub(super) fn new(rows: usize) -> Self {
        Self { scores: vec![0.0; rows * TILE], ..Self::default() }
    }

    /// Prepares tile `t`. A short last tile is filled up with zero rows of bias −∞, so that the products have one
    /// shape and a bank gives the bits of a longer one whose last rows are not valid.
    pub(super) fn tile<'s>(&'s mut self, keys: &Rows<'s>, plan: &'s Plan, t: usize) -> Tile<'s> {
        let range = range(t, keys.rows());
        let (rows, cols, width) = (range.len(), keys.cols(), plan.width);
        let full = rows == TILE;
        let in_place = keys.as_f32().filter(|_| full && cols == width);
        let (data, stride): (&[f32], usize) = match in_place {
            Some(x) => (&x[range.start * keys.stride()..], keys.stride()),
            None => {
                self.keys.clear();
                self.keys.resize(TILE * width, 0.0);
                for (row, out) in range.clone().zip(self.keys.chunks_exact_mut(width)) {
                    keys.load_row(row, &mut out[..cols]);
                }
                (&self.keys, width)
            }
        };
        let bias = match (&plan.bias, full) {
            (None, true) => None,
            (Some(bias), true) => Some(&bias[range]),
            (bias, false) => {
                self.bias.clear();
                match bias {
                    Some(bias) => self.bias.extend_from_slice(&bias[range]),
                    None => self.bias.resize(rows, 0.0),
                }
                self.bias.resize(TILE, f32::NEG_INFINITY);
                Some(&self.bias[..])
            }
        };
        Tile { keys: data, stride, bias, scores: &mut self.scores }
    }
}

/// Queries `range`, converted and padded with zeros to `rows` rows of `width`.
pub(super) fn load_block(queries: &Rows<'_>, range: Range<usize>, rows: usize, width: usize) -> Vec<f32> {
    let mut block = vec![0.0f32; rows * width];
    for (row, out) in range.zip(block.chunks_exact_mut(width)) {
        queries.load_row(row, &mut out[..queries.cols()]);
    }
    block
}
