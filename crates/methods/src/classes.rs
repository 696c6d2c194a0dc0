//! Class means of old embeddings: the pseudo-classifier of BCT, the centers of LCE and AdvBCT.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::method::OldBank;

/// Means of the old embeddings of every class that has one.
#[derive(Debug, Clone)]
pub struct ClassMeans {
    means: Vec<f64>,
    counts: Vec<usize>,
    dimension: usize,
    slot: Vec<u32>,
    classes: Vec<u32>,
}

/// The slot of a class that has no old embedding.
pub(crate) const NO_SLOT: u32 = u32::MAX;

impl ClassMeans {
    /// Sums every class's rows in f64, in the order of the bank.
    ///
    /// # Errors
    /// Those of [`OldBank::check`].
    pub fn new(method: &'static str, bank: &OldBank<'_>) -> Result<Self> {
        let ([_, dimension], labels) = bank.check(method)?;
        let rows = bank.embeddings.detach().to_vec2::<f32>()?;
        let mut counts = vec![0usize; bank.classes];
        labels.iter().for_each(|label| counts[*label as usize] += 1);
        let classes: Vec<u32> = (0..bank.classes as u32).filter(|c| counts[*c as usize] > 0).collect();
        let mut slot = vec![NO_SLOT; bank.classes];
        classes.iter().enumerate().for_each(|(s, c)| slot[*c as usize] = s as u32);
        let mut means = vec![0.0; classes.len() * dimension];
        for (row, label) in rows.iter().zip(&labels) {
            let start = slot[*label as usize] as usize * dimension;
            means[start..start + dimension].iter_mut().zip(row).for_each(|(m, x)| *m += f64::from(*x));
        }
        let counts: Vec<usize> = classes.iter().map(|c| counts[*c as usize]).collect();
        for (mean, count) in means.chunks_exact_mut(dimension).zip(&counts) {
            mean.iter_mut().for_each(|x| *x /= *count as f64);
        }
        Ok(Self { means, counts, dimension, slot, classes })
    }

    /// Number of classes that have an old embedding: the rows of the means.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether no class has an old embedding.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The class of every row of the means.
    pub fn classes(&self) -> &[u32] {
        &self.classes
    }

    /// The number of old embeddings of every row's class.
    pub fn counts(&self) -> &[usize] {
        &self.counts
    }

    /// The row of a class, when it has an old embedding.
    pub fn slot(&self, class: u32) -> Option<usize> {
        self.slot.get(class as usize).filter(|s| **s != NO_SLOT).map(|s| *s as usize)
    }

    /// One mean, not normalized.
    pub fn mean(&self, slot: usize) -> &[f64] {
        &self.means[slot * self.dimension..(slot + 1) * self.dimension]
    }

    /// The means `[len, Do]`, f32: normalized to unit norm, or as they are.
    ///
    /// A mean of norm zero (opposite embeddings) stays zero: it has no direction, and scores 0 everywhere.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn tensor(&self, normalized: bool, device: &candle_core::Device) -> Result<Tensor> {
        let mut out = Vec::with_capacity(self.means.len());
        for mean in self.means.chunks_exact(self.dimension) {
            let norm = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
            let scale = if normalized && norm > 0.0 { 1.0 / norm } else { 1.0 };
            out.extend(mean.iter().map(|x| (x * scale) as f32));
        }
        Ok(Tensor::from_vec(out, (self.classes.len(), self.dimension), device)?)
    }
}

/// The rows of a batch whose class has an old side, and the slots of their classes.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Rows of the batch `[kept]`, u32.
    pub(crate) rows: Tensor,
    /// Slots of their classes `[kept]`, u32.
    pub(crate) slots: Tensor,
    /// Whether every row is kept, so that nothing needs to be gathered.
    pub(crate) all: bool,
}

impl Kept {
    /// Looks the classes up; `None` when no row of the batch has an old side.
    pub(crate) fn new(method: &'static str, labels: &Tensor, slot_of: &[u32]) -> Result<Option<Self>> {
        let labels_host = labels.to_vec1::<u32>()?;
        let mut rows = Vec::new();
        let mut slots = Vec::new();
        for (row, label) in labels_host.iter().enumerate() {
            let Some(slot) = slot_of.get(*label as usize) else {
                let expected = format!("labels in 0..{}", slot_of.len());
                return Err(Error::argument(method, "labels", label, expected));
            };
            if *slot != NO_SLOT {
                rows.push(row as u32);
                slots.push(*slot);
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let all = rows.len() == labels_host.len();
        let device = labels.device();
        Ok(Some(Self { rows: Tensor::new(rows, device)?, slots: Tensor::new(slots, device)?, all }))
    }

    /// The kept rows of a matrix of the batch.
    pub(crate) fn select(&self, x: &Tensor) -> Result<Tensor> {
        if self.all { Ok(x.clone()) } else { Ok(x.contiguous()?.index_select(&self.rows, 0)?) }
    }
}

impl ClassMeans {
    /// The slot of every class, [`NO_SLOT`] where there is none.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slot
    }
}
