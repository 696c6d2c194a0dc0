//! Queues of momentum keys, one for every stream, filled in lockstep.

use candle_core::{DType, Device, Tensor};
use consonance::{Bank, Contrast, ContrastOptions, Entries, Pairs, Temperature, contrast};

use crate::error::{Error, Result};
use crate::method::State;
use crate::tensors::{counter, entry, read_counter};

/// Queues of the last `length` keys, and the batch's own keys in front of them.
///
/// The batch is pushed *before* its loss, into a ring of `length + batch` slots: a query's positive is its own key there,
/// the rest of the batch is left out, and the other slots are the queue, as it was before the batch. So nothing is
/// concatenated or copied. Slot j of every queue holds the same sample.
#[derive(Debug)]
pub(crate) struct Queues {
    method: &'static str,
    banks: Vec<Bank>,
    batch: usize,
    /// The number of the last batch, from 1: the label of its slots. 0 before the first.
    step: u64,
}

/// What a batch's queries are compared with.
pub(crate) struct Slots {
    /// The filled slots' batch numbers `[n]`.
    pub(crate) steps: Tensor,
    /// The batch number of the queries `[B]`.
    pub(crate) now: Tensor,
    /// The slot of every query's own key `[B]`.
    pub(crate) own: Tensor,
    /// The slot of the first query's.
    pub(crate) first: usize,
    step: u32,
}

impl Slots {
    /// The slots that were there before the batch `[n]`, u8.
    pub(crate) fn queued(&self) -> Result<Tensor> {
        Ok(self.steps.ne(self.step)?)
    }

    /// The own key against the queue: the rest of the batch is in no sum.
    pub(crate) fn pairs(&self) -> Result<Pairs> {
        let own = Pairs::neighbors(&self.own.unsqueeze(1)?, None);
        Ok(own.leave_out_same_label(&self.now, &self.steps))
    }
}

impl Queues {
    /// Empty queues of `length` keys for batches of `batch` rows.
    pub(crate) fn new(
        method: &'static str,
        streams: usize,
        (length, batch, dimension): (usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        for (name, value) in [("length", length), ("batch", batch), ("dimension", dimension)] {
            if value == 0 {
                return Err(Error::argument(method, name, 0, "at least 1"));
            }
        }
        let bank = |_| Ok(Bank::new(length + batch, dimension, DType::F32, device)?);
        let banks = (0..streams).map(bank).collect::<Result<Vec<_>>>()?;
        Ok(Self { method, banks, batch, step: 0 })
    }

    /// Pushes a batch `[B, D]` of every stream, as many rows as was said, and says where it is.
    pub(crate) fn push(&mut self, keys: &[&Tensor]) -> Result<Slots> {
        let capacity = self.banks[0].capacity();
        for key in keys {
            if key.dims() != [self.batch, self.banks[0].dim()] {
                let expected = format!("[{}, {}]", self.batch, self.banks[0].dim());
                return Err(Error::argument(self.method, "keys", format!("{:?}", key.dims()), expected));
            }
        }
        let device = self.banks[0].keys().device().clone();
        let head = self.banks[0].head();
        let step = label(self.step + 1);
        let now = Tensor::full(step, self.batch, &device)?.contiguous()?;
        for (bank, key) in self.banks.iter_mut().zip(keys) {
            let embeddings = &key.detach();
            bank.push_entries(&Entries { embeddings, labels: &now, ids: None, credible: None })?;
        }
        self.step += 1;
        let own: Vec<u32> = (0..self.batch).map(|i| ((head + i) % capacity) as u32).collect();
        let own = Tensor::from_vec(own, self.batch, &device)?;
        let steps = self.banks[0].labels().narrow(0, 0, self.len())?;
        Ok(Slots { steps, now, own, first: head, step })
    }

    /// The filled slots `[n, D]` of a stream; they share the queue's memory.
    pub(crate) fn keys(&self, stream: usize) -> Result<Tensor> {
        Ok(self.banks[stream].filled()?)
    }

    /// The number of filled slots, those of the last batch included.
    pub(crate) fn len(&self) -> usize {
        self.banks[0].len()
    }

    /// The rows of a batch.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// The contrast of every query's own key among itself and the queue of a stream.
    pub(crate) fn contrast(
        &self,
        queries: &Tensor,
        stream: usize,
        temperature: f64,
        pairs: &Pairs,
    ) -> Result<Contrast> {
        let tau = Temperature::Fixed(temperature);
        Ok(contrast(queries, &self.keys(stream)?, &tau, pairs, &ContrastOptions::default())?)
    }

    /// All that a resumed run needs.
    pub(crate) fn state(&self) -> Result<State> {
        let mut state = State::new();
        let device = &Device::Cpu;
        for (stream, bank) in self.banks.iter().enumerate() {
            state.insert(format!("queue.{stream}"), bank.keys().copy()?);
        }
        state.insert("queue.steps".into(), self.banks[0].labels().copy()?);
        state.insert("queue.step".into(), counter(self.step, device)?);
        let place = [self.banks[0].head() as u64, self.len() as u64];
        for (name, value) in ["queue.head", "queue.len"].into_iter().zip(place) {
            state.insert(name.into(), counter(value, device)?);
        }
        Ok(state)
    }

    /// Takes over a saved state.
    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        let (capacity, dimension) = (self.banks[0].capacity(), self.banks[0].dim());
        let device = self.banks[0].keys().device().clone();
        let number = |name: &str| read_counter(entry(self.method, state, name, &[2], DType::U32)?);
        let (step, head, len) = (number("queue.step")?, number("queue.head")?, number("queue.len")?);
        let wrong = |reason: String| Error::State { method: self.method, entry: "queue.head".into(), reason };
        let (head, len) = (head as usize, len as usize);
        let fits = if len < capacity { head == len } else { len == capacity && head < capacity };
        if !fits {
            return Err(wrong(format!("{head} contradicts {len} of {capacity} slots")));
        }
        let steps = entry(self.method, state, "queue.steps", &[capacity], DType::U32)?;
        let mut banks = Vec::with_capacity(self.banks.len());
        for stream in 0..self.banks.len() {
            let name = format!("queue.{stream}");
            let keys = entry(self.method, state, &name, &[capacity, dimension], DType::F32)?;
            let mut bank = Bank::new(capacity, dimension, DType::F32, &device)?;
            if len > 0 {
                bank.push(&keys.narrow(0, 0, len)?, &steps.narrow(0, 0, len)?)?;
                bank.seek(head)?;
            }
            banks.push(bank);
        }
        (self.banks, self.step) = (banks, step);
        Ok(())
    }
}

/// A batch's number as a label; it repeats after 2³² − 1 batches, when no slot holds the earlier one.
fn label(step: u64) -> u32 {
    (step % u64::from(u32::MAX)) as u32
}
