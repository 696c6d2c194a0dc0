//! Lists of bank rows: an anchor's own, some of its class, and negatives of other classes.

use candle_core::{Device, Tensor};
use consonance::NO_NEIGHBOR;
use rayon::prelude::*;

use super::METHOD;
use crate::error::{Error, Result};
use crate::tensors::mix_bits;

/// Draws the lists of [`MutualBank`](super::MutualBank): `[itself, positives of its class, negatives of other classes]`,
/// negatives uniform and with replacement (1 and 8,192 as published).
///
/// Positives are other rows of the class: consecutive ones, with the class taken as a ring and a uniform start, so that no
/// row is listed twice; a class with too few of them leaves padding. What an anchor draws depends on the seed, the step and
/// its row alone.
#[derive(Debug, Clone)]
pub struct IndexLists {
    classes: Vec<u32>,
    /// Rows by class, and where each class begins.
    order: Vec<u32>,
    starts: Vec<usize>,
    /// Where a row stands in `order`.
    place: Vec<u32>,
    positives: usize,
    negatives: usize,
    seed: u64,
}

impl IndexLists {
    /// Takes the class of every bank row, `[N]` u32.
    ///
    /// # Errors
    /// [`Error::Argument`] for labels of another type or all of one class, and for no positives or no negatives.
    pub fn new(labels: &Tensor, positives: usize, negatives: usize, seed: u64) -> Result<Self> {
        for (name, count) in [("positives", positives), ("negatives", negatives)] {
            if count == 0 {
                return Err(Error::argument(METHOD, name, 0, "at least 1"));
            }
        }
        let classes = labels.to_vec1::<u32>()?;
        let mut order: Vec<u32> = (0..classes.len() as u32).collect();
        order.sort_by_key(|row| classes[*row as usize]);
        let (mut starts, mut place, mut last) = (Vec::new(), vec![0; classes.len()], None);
        for (at, row) in order.iter().enumerate() {
            place[*row as usize] = at as u32;
            if last != Some(classes[*row as usize]) {
                last = Some(classes[*row as usize]);
                starts.push(at);
            }
        }
        if starts.len() < 2 {
            let got = format!("{} classes", starts.len());
            return Err(Error::argument(METHOD, "labels", got, "2 classes or more: one has no negatives"));
        }
        starts.push(order.len());
        Ok(Self { classes, order, starts, place, positives, negatives, seed })
    }

    /// Columns of a list.
    pub fn columns(&self) -> usize {
        1 + self.positives + self.negatives
    }

    /// The lists `[B, columns]`, u32, of the anchors `rows` `[B]`, u32, at a step.
    ///
    /// # Errors
    /// [`Error::Argument`] for rows that are not there.
    pub fn draw(&self, rows: &Tensor, step: u64) -> Result<Tensor> {
        let rows = rows.to_vec1::<u32>()?;
        if let Some(row) = rows.iter().find(|row| **row as usize >= self.classes.len()) {
            let expected = format!("rows in 0..{}", self.classes.len());
            return Err(Error::argument(METHOD, "rows", row, expected));
        }
        let mut out = vec![NO_NEIGHBOR; rows.len() * self.columns()];
        out.par_chunks_mut(self.columns()).zip(&rows).for_each(|(list, row)| self.fill(*row, step, list));
        Ok(Tensor::from_vec(out, (rows.len(), self.columns()), &Device::Cpu)?)
    }

    fn fill(&self, row: u32, step: u64, list: &mut [u32]) {
        let place = self.place[row as usize] as usize;
        let class = self.starts.partition_point(|start| *start <= place) - 1;
        let (start, end) = (self.starts[class], self.starts[class + 1]);
        let key = mix_bits(mix_bits(self.seed, step), u64::from(row));
        // Uniform below n: the high half of a product with 64 random bits.
        let below = |draw: u64, n: usize| ((u128::from(mix_bits(key, draw)) * n as u128) >> 64) as usize;
        list[0] = row;
        let others = end - start - 1;
        if others > 0 {
            let first = below(0, others);
            for (p, slot) in list[1..=self.positives].iter_mut().enumerate().take(others) {
                // A ring of the class without the row itself.
                let at = (place - start + 1 + (first + p) % others) % (others + 1);
                *slot = self.order[start + at];
            }
        }
        let elsewhere = self.order.len() - (end - start);
        for (n, slot) in list[1 + self.positives..].iter_mut().enumerate() {
            let at = below(1 + n as u64, elsewhere);
            *slot = self.order[if at < start { at } else { at + end - start }];
        }
    }
}
