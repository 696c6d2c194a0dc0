//! The ring buffer of a bank, one row after another, and centers of classes.
//!
//! A bank of capacity Q holds the Q rows pushed last: row number t (counted from 0 over all pushes) lies in slot
//! t mod Q, so a batch larger than Q keeps its last rows, and pushing a batch in shards gives the same bank.

/// A ring of slots with labels, ids and credibility.
#[derive(Debug, Clone, PartialEq)]
pub struct Ring {
    /// One embedding a slot; `None` while the slot is empty.
    pub slots: Vec<Option<Slot>>,
    /// Rows pushed so far.
    pub pushed: usize,
}

/// What one slot holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// The embedding.
    pub embedding: Vec<f64>,
    /// Its class.
    pub label: u32,
    /// Whose embedding it is.
    pub id: u32,
    /// Whether it may serve as a teacher.
    pub credible: bool,
}

impl Ring {
    /// An empty ring.
    pub fn new(capacity: usize) -> Self {
        Self { slots: vec![None; capacity], pushed: 0 }
    }

    /// Puts one row into the next slot.
    pub fn push(&mut self, slot: Slot) {
        let at = self.pushed % self.slots.len();
        self.slots[at] = Some(slot);
        self.pushed += 1;
    }

    /// The slot that the next row goes to.
    pub fn head(&self) -> usize {
        self.pushed % self.slots.len()
    }

    /// The number of filled slots.
    pub fn len(&self) -> usize {
        self.pushed.min(self.slots.len())
    }

    /// Whether nothing has been pushed.
    pub fn is_empty(&self) -> bool {
        self.pushed == 0
    }
}

/// Moves the center of every class that `labels` name towards the mean of its rows: c ← m c + (1 − m) mean, divided by its
/// norm when `normalize` is set: the exponential moving average of prototypes and class centers (Snell, Swersky, Zemel,
/// "Prototypical Networks for Few-shot Learning", NeurIPS 2017, for the mean; Li, Zhou, Xiong, Hoi, "Prototypical
/// Contrastive Learning of Unsupervised Representations", ICLR 2021, for momentum over steps). `u32::MAX` is no class.
pub fn update_centers(
    centers: &mut [f64],
    dim: usize,
    labels: &[u32],
    rows: &[f64],
    momentum: f64,
    normalize: bool,
) {
    for (class, center) in centers.chunks_exact_mut(dim).enumerate() {
        let members: Vec<&[f64]> = labels
            .iter()
            .zip(rows.chunks_exact(dim))
            .filter(|(label, _)| **label as usize == class)
            .map(|(_, row)| row)
            .collect();
        if members.is_empty() {
            continue;
        }
        for (d, c) in center.iter_mut().enumerate() {
            let mean = members.iter().map(|row| row[d]).sum::<f64>() / members.len() as f64;
            *c = momentum * *c + (1.0 - momentum) * mean;
        }
        if normalize {
            let norm = center.iter().map(|c| c * c).sum::<f64>().sqrt();
            center.iter_mut().for_each(|c| *c /= norm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    /// By hand: class 0 sees (0, 2) and (4, 0), whose mean is (2, 1); class 1 sees nothing; class 2 one row.
    #[test]
    fn centers_have_their_golden_values() {
        let start = [2.0, 3.0, 7.0, 7.0, 0.0, -1.0];
        let (labels, rows) = ([0, u32::MAX, 2, 0], [0.0, 2.0, 9.0, 9.0, 3.0, 3.0, 4.0, 0.0]);
        let mut plain = start;
        update_centers(&mut plain, 2, &labels, &rows, 0.75, false);
        for (got, expected) in plain.iter().zip([2.0, 2.5, 7.0, 7.0, 0.75, 0.0]) {
            assert_abs_diff_eq!(*got, expected, epsilon = 1e-12);
        }
        let mut unit = start;
        update_centers(&mut unit, 2, &labels, &rows, 0.75, true);
        let norm = (4.0f64 + 6.25).sqrt();
        for (got, expected) in unit.iter().zip([2.0 / norm, 2.5 / norm, 7.0, 7.0, 1.0, 0.0]) {
            assert_abs_diff_eq!(*got, expected, epsilon = 1e-12);
        }
    }
}
