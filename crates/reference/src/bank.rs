//! The ring buffer of a bank, one row after another.
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
