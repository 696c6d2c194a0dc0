//! Pushes into a ring, updates of class centers, and how each backend makes them.

use consonance::cuda::bank::{self as cuda, Entries, Ring};
use consonance::cuda::{Bytes, DType, Executor, Matrix, Result, Words};
use consonance_cpu::bank as cpu;
use consonance_cpu::gathered::RowsMut;
use half::{bf16, f16};

use super::{Cpu, OnDevice, Updated};
use crate::stored::Stored;

const OP: &str = "test";

/// One push.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[B, D]`, of any type.
    pub rows: Stored,
    /// `[B]`.
    pub labels: Vec<u32>,
    /// `[B]`.
    pub ids: Option<Vec<u32>>,
    /// `[B]`.
    pub credible: Option<Vec<u8>>,
}

/// Pushes into an empty ring, one after the other.
#[derive(Debug, Clone)]
pub struct PushCase {
    /// How the ring stores embeddings.
    pub dtype: DType,
    /// Slots.
    pub capacity: usize,
    /// Pushes, each of at most as many rows as there are slots.
    pub batches: Vec<Batch>,
}

/// All slots of a ring.
#[derive(Debug, Clone, PartialEq)]
pub struct Pushed {
    /// `[capacity, D]`; 0 in empty slots.
    pub keys: Vec<f32>,
    /// `[capacity]`; 0 in empty slots.
    pub labels: Vec<u32>,
    /// `[capacity]`; `u32::MAX` in empty slots.
    pub ids: Vec<u32>,
    /// `[capacity]`; 0 in empty slots.
    pub credible: Vec<u8>,
}

impl PushCase {
    pub(crate) fn dim(&self) -> usize {
        self.batches.first().map_or(0, |batch| batch.rows.cols())
    }

    /// The ring with no row in it.
    pub(crate) fn empty(&self) -> Pushed {
        Pushed {
            keys: vec![0.0; self.capacity * self.dim()],
            labels: vec![0; self.capacity],
            ids: vec![u32::MAX; self.capacity],
            credible: vec![0; self.capacity],
        }
    }
}

/// An update of class centers.
#[derive(Debug, Clone)]
pub struct CentersCase {
    /// `[C, D]`.
    pub centers: Stored,
    /// `[B]`.
    pub labels: Vec<u32>,
    /// `[B, D]`.
    pub rows: Stored,
    /// The share of the old center.
    pub momentum: f32,
    /// Whether centers have norm 1.
    pub normalize: bool,
}

fn bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    Stored::new(dtype, values, values.len().max(1)).bytes()
}

/// Elements as they are stored.
pub(super) fn floats(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_ne_bytes(*b).to_f32()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect(),
    }
}

/// All rows of a matrix one behind the other.
fn dense(rows: &Stored) -> Vec<f32> {
    (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect()
}

impl Cpu {
    /// The ring's definition: on the CPU a push is made of Candle's copies, which `tests/bank.rs` holds to the same.
    pub(super) fn pushed(case: &PushCase) -> std::result::Result<Pushed, String> {
        let (dim, mut ring, mut next) = (case.dim(), case.empty(), 0);
        for batch in &case.batches {
            let rows = batch.rows.rows();
            for (name, is_right) in [
                ("embeddings", rows <= case.capacity),
                ("labels", batch.labels.len() == rows),
                ("ids", batch.ids.as_ref().is_none_or(|ids| ids.len() == rows)),
                ("credible", batch.credible.as_ref().is_none_or(|credible| credible.len() == rows)),
            ] {
                if !is_right {
                    return Err(format!("`{name}` has another length"));
                }
            }
            for row in 0..batch.rows.rows() {
                let slot = next % case.capacity;
                let stored = Stored::new(case.dtype, batch.rows.row(row), dim);
                ring.keys[slot * dim..][..dim].copy_from_slice(stored.row(0));
                ring.labels[slot] = batch.labels[row];
                ring.ids[slot] = batch.ids.as_ref().map_or(u32::MAX, |ids| ids[row]);
                ring.credible[slot] =
                    batch.credible.as_ref().map_or(1, |credible| u8::from(credible[row] != 0));
                next += 1;
            }
        }
        Ok(ring)
    }

    pub(super) fn centered(case: &CentersCase) -> Updated {
        let values = dense(&case.centers);
        let update = |centers: RowsMut<'_>| {
            let found = case.rows.with_rows(|rows| {
                let classes = case.centers.rows();
                cpu::update_centers(centers, classes, &case.labels, &rows?, case.momentum, case.normalize)
            });
            found.map_err(|error| error.to_string())
        };
        match case.centers.dtype() {
            DType::F32 => {
                let mut centers = values;
                let outcome = update(RowsMut::F32(&mut centers));
                (centers, outcome)
            }
            DType::F16 => {
                let mut centers: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                let outcome = update(RowsMut::F16(&mut centers));
                (centers.iter().map(|v| v.to_f32()).collect(), outcome)
            }
            DType::BF16 => {
                let mut centers: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                let outcome = update(RowsMut::Bf16(&mut centers));
                (centers.iter().map(|v| v.to_f32()).collect(), outcome)
            }
        }
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn pushed(&self, case: &PushCase) -> Result<Pushed> {
        let executor = self.executor();
        let (capacity, dim, empty) = (case.capacity, case.dim(), case.empty());
        let keys = executor.upload(OP, &bytes(case.dtype, &empty.keys))?;
        let (labels, ids) = (self.upload(&empty.labels)?, self.upload(&empty.ids)?);
        let credible = executor.upload(OP, &empty.credible)?;
        let ring = Ring {
            keys: Matrix::new(OP, "keys", &keys, case.dtype, 0, [capacity, dim, dim])?,
            labels: Words::new(OP, "labels", &labels, capacity)?,
            ids: Words::new(OP, "ids", &ids, capacity)?,
            credible: Bytes::new(OP, "credible", &credible, capacity)?,
        };
        let mut head = 0;
        for batch in &case.batches {
            let rows = executor.upload(OP, &batch.rows.bytes())?;
            let labels = self.upload(&batch.labels)?;
            let ids = batch.ids.as_ref().map(|ids| self.upload(ids)).transpose()?;
            let credible =
                batch.credible.as_ref().map(|credible| executor.upload(OP, credible)).transpose()?;
            let len = batch.labels.len();
            let entries = Entries {
                rows: self.matrix(&batch.rows, &rows)?,
                labels: Words::new(OP, "labels", &labels, len)?,
                ids: match (&ids, &batch.ids) {
                    (Some(memory), Some(ids)) => Some(Words::new(OP, "ids", memory, ids.len())?),
                    _ => None,
                },
                credible: match (&credible, &batch.credible) {
                    (Some(memory), Some(values)) => Some(Bytes::new(OP, "credible", memory, values.len())?),
                    _ => None,
                },
            };
            // SAFETY: the ring was uploaded for this call alone.
            unsafe { cuda::push(executor, &ring, head, &entries)? };
            head = (head + len) % capacity;
        }
        let stored: Vec<u8> = self.words(&keys, capacity * dim * case.dtype.bytes())?;
        Ok(Pushed {
            keys: floats(case.dtype, &stored),
            labels: self.words(&labels, capacity)?,
            ids: self.words(&ids, capacity)?,
            credible: self.words(&credible, capacity)?,
        })
    }

    pub(super) fn centered(&self, case: &CentersCase) -> Result<Updated> {
        let executor = self.executor();
        let centers = executor.upload(OP, &case.centers.bytes())?;
        let rows = executor.upload(OP, &case.rows.bytes())?;
        let labels = self.upload(&case.labels)?;
        let run = || {
            let update = {
                let centers = self.matrix(&case.centers, &centers)?;
                let rows = self.matrix(&case.rows, &rows)?;
                let labels = Words::new(OP, "labels", &labels, case.labels.len())?;
                let options = (case.momentum, case.normalize);
                // SAFETY: the centers were uploaded for this call alone.
                unsafe { cuda::update_centers(executor, &centers, labels, &rows, options)? }
            };
            update.check(executor)
        };
        let outcome = run().map_err(|error: consonance::cuda::Error| error.to_string());
        let stored: Vec<u8> = self.words(&centers, case.centers.bytes().len())?;
        let elements = floats(case.centers.dtype(), &stored);
        let row = |row: usize| {
            let start = case.centers.offset() + row * case.centers.stride();
            elements[start..start + case.centers.cols()].to_vec()
        };
        Ok(((0..case.centers.rows()).flat_map(row).collect(), outcome))
    }
}
