//! A bank of keys that outlive the step: a ring buffer on the device.

mod centers;
mod kernels;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use crate::{Error, Result};

use super::place::Place;
use super::view;

pub use centers::update_centers;

const OP: &str = "bank";
const FORMAT: &str = "consonance-bank";
const VERSION: &str = "1";

/// Rows to push into a [`Bank`].
#[derive(Debug, Clone, Copy)]
pub struct Entries<'a> {
    /// `[B, D]`, f32, f16 or bf16; converted to the bank's dtype, detached.
    pub embeddings: &'a Tensor,
    /// Classes `[B]`, u32.
    pub labels: &'a Tensor,
    /// Whose embeddings they are `[B]`, u32; `u32::MAX` when absent.
    pub ids: Option<&'a Tensor>,
    /// Whether each may serve as a teacher `[B]`, u8; all 1 when absent.
    pub credible: Option<&'a Tensor>,
}

/// A ring buffer of embeddings with labels, ids and credibility, all on one device.
///
/// Row number t, counted over all pushes, lies in slot t mod capacity: a full bank forgets its oldest rows, a batch
/// larger than the bank keeps its last rows, and a batch pushed in shards gives the same bank. A push is at most two
/// slice copies for each tensor.
///
/// Push the step's own rows *before* the loss: then every anchor's own key is among the keys.
///
/// # Aliasing
/// [`keys`](Self::keys), [`labels`](Self::labels) and the other views share the bank's memory, so that no step
/// copies the bank: a later [`push`](Self::push) shows in views handed out before. Call `backward` before the next
/// push, or take a [`snapshot`](Self::snapshot), which never changes. Two clones of a bank share memory too, until
/// [`snapshot`](Self::snapshot).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use consonance::Bank;
///
/// # fn main() -> consonance::Result<()> {
/// let device = Device::Cpu;
/// let mut bank = Bank::new(4, 2, DType::F32, &device)?;
/// let old = Tensor::new(&[[1f32, 0.], [0., 1.], [0.6, 0.8]], &device)?;
/// bank.push(&old, &Tensor::new(&[0u32, 1, 1], &device)?)?;
/// assert_eq!((bank.len(), bank.capacity(), bank.head()), (3, 4, 3));
/// assert_eq!(bank.keys().dims(), [4, 2]);
/// assert_eq!(bank.filled()?.dims(), [3, 2]);
/// assert_eq!(bank.valid().to_vec1::<u8>()?, [1, 1, 1, 0]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bank {
    keys: Tensor,
    labels: Tensor,
    ids: Tensor,
    /// 0 in empty slots.
    credible: Tensor,
    head: usize,
    length: usize,
    /// Whether `keys` is still the caller's own memory: copied before the first write.
    borrowed: bool,
}

fn empty(argument: &'static str) -> Error {
    consonance_cpu::Error::Empty { op: OP, argument }.into()
}

fn shape(argument: &'static str, got: &[usize], expected: impl Into<String>) -> Error {
    consonance_cpu::Error::shape(OP, argument, got, expected).into()
}

fn check_float(argument: &'static str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        got => Err(Error::DType { op: OP, argument, got, expected: "f32, f16 or bf16" }),
    }
}

fn check_vector(argument: &'static str, x: &Tensor, dtype: DType, len: usize) -> Result<()> {
    if x.dtype() != dtype {
        let expected = if dtype == DType::U32 { "u32" } else { "u8, 0 or 1" };
        return Err(Error::DType { op: OP, argument, got: x.dtype(), expected });
    }
    if x.dims() != [len] {
        return Err(shape(argument, x.dims(), format!("[{len}], one value a row")));
    }
    Ok(())
}

/// Finite rows, where the check is cheap: on the CPU.
fn check_finite(argument: &'static str, rows: &Tensor) -> Result<()> {
    if rows.device().is_cpu() {
        let matrix = view::Matrix::new(OP, argument, rows)?;
        matrix.lock().rows()?.check_finite(OP, argument)?;
    }
    Ok(())
}

impl Bank {
    /// An empty bank of `capacity` slots for embeddings of dimension `dim`, stored as `dtype`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a capacity or dimension of 0, [`Error::DType`] for other than f32, f16 and bf16.
    pub fn new(capacity: usize, dim: usize, dtype: DType, device: &Device) -> Result<Self> {
        if capacity == 0 || dim == 0 {
            let argument = if capacity == 0 { "capacity" } else { "dim" };
            return Err(consonance_cpu::Error::range(OP, argument, 0, "at least 1").into());
        }
        check_float("dtype", dtype)?;
        Ok(Self {
            keys: Tensor::zeros((capacity, dim), dtype, device)?,
            labels: Tensor::zeros(capacity, DType::U32, device)?,
            ids: Tensor::full(u32::MAX, capacity, device)?.contiguous()?,
            credible: Tensor::zeros(capacity, DType::U8, device)?,
            head: 0,
            length: 0,
            borrowed: false,
        })
    }

    /// A full bank over precomputed embeddings: slot i is row i, and its id is i.
    ///
    /// The embeddings `[N, D]` are shared with the caller until the first push, which copies them.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn from_embeddings(embeddings: &Tensor, labels: &Tensor) -> Result<Self> {
        let (rows, _) = Self::check_rows(embeddings)?;
        check_finite("embeddings", embeddings)?;
        check_vector("labels", labels, DType::U32, rows)?;
        let device = embeddings.device();
        let count = u32::try_from(rows).map_err(|_| {
            Error::from(consonance_cpu::Error::range(OP, "embeddings", rows, "at most 2^32 - 1 rows"))
        })?;
        Ok(Self {
            keys: embeddings.detach().contiguous()?,
            labels: labels.to_device(device)?.force_contiguous()?,
            ids: Tensor::arange(0, count, device)?,
            credible: Tensor::ones(rows, DType::U8, device)?,
            head: 0,
            length: rows,
            borrowed: true,
        })
    }

    fn check_rows(embeddings: &Tensor) -> Result<(usize, usize)> {
        check_float("embeddings", embeddings.dtype())?;
        match embeddings.dims() {
            &[0, _] => Err(empty("embeddings")),
            &[_, 0] => Err(shape("embeddings", embeddings.dims(), "at least one dimension")),
            &[rows, cols] => Ok((rows, cols)),
            dims => {
                let expected = "a matrix [rows, dimension]";
                Err(Error::Rank { op: OP, argument: "embeddings", got: dims.len(), expected })
            }
        }
    }

    /// Pushes rows `[B, D]` with their labels `[B]` (u32): credible, without ids.
    ///
    /// # Errors
    /// [`Error::Argument`] for another dimension, no rows, or rows that are not finite in the bank's dtype,
    /// [`Error::DType`], [`Error::Rank`].
    pub fn push(&mut self, embeddings: &Tensor, labels: &Tensor) -> Result<()> {
        self.push_entries(&Entries { embeddings, labels, ids: None, credible: None })
    }

    /// Pushes rows with ids and credibility.
    ///
    /// # Errors
    /// As [`push`](Self::push). On an error the bank is unchanged.
    pub fn push_entries(&mut self, entries: &Entries<'_>) -> Result<()> {
        let (rows, dim) = Self::check_rows(entries.embeddings)?;
        if dim != self.dim() {
            let expected = format!("[rows, {}], the bank's dimension", self.dim());
            return Err(shape("embeddings", entries.embeddings.dims(), expected));
        }
        check_vector("labels", entries.labels, DType::U32, rows)?;
        if let Some(ids) = entries.ids {
            check_vector("ids", ids, DType::U32, rows)?;
        }
        if let Some(credible) = entries.credible {
            check_vector("credible", credible, DType::U8, rows)?;
        }
        let device = self.keys.device().clone();
        let keep = rows.min(self.capacity());
        let from = rows - keep;
        let take = |x: &Tensor| -> Result<Tensor> {
            Ok(x.detach().narrow(0, from, keep)?.to_device(&device)?.contiguous()?)
        };
        let (embeddings, labels) = (take(entries.embeddings)?, take(entries.labels)?);
        let (ids, credible) = (entries.ids.map(take).transpose()?, entries.credible.map(take).transpose()?);
        let (ids, credible) = (ids.as_ref(), credible.as_ref());
        let given = Entries { embeddings: &embeddings, labels: &labels, ids, credible };
        let start = (self.head + from) % self.capacity();
        let place = match &device {
            // Without kernels, by Candle alone.
            Device::Metal(_) => None,
            _ => Place::of(OP, "bank", &self.keys)?,
        };
        match place {
            Some(place) => {
                if device.is_cpu() {
                    check_finite("embeddings", &given.embeddings.to_dtype(self.keys.dtype())?)?;
                }
                self.own()?;
                kernels::push(&place, self, start, &given)?;
            }
            None => self.copy(start, &given)?,
        }
        self.head = (self.head + rows) % self.capacity();
        self.length = (self.length + rows).min(self.capacity());
        Ok(())
    }

    /// Copies entries, at most as many as there are slots, into the slots from `start` on.
    fn copy(&mut self, start: usize, entries: &Entries<'_>) -> Result<()> {
        let (keep, device) = (entries.embeddings.dims()[0], self.keys.device().clone());
        let embeddings = entries.embeddings.to_dtype(self.keys.dtype())?;
        check_finite("embeddings", &embeddings)?;
        let ids = match entries.ids {
            Some(ids) => ids.clone(),
            None => Tensor::full(u32::MAX, keep, &device)?.contiguous()?,
        };
        let credible = match entries.credible {
            Some(credible) => credible.ne(0u8)?,
            None => Tensor::ones(keep, DType::U8, &device)?,
        };
        self.own()?;
        let before_end = keep.min(self.capacity() - start);
        for (target, source) in [
            (&self.keys, &embeddings),
            (&self.labels, entries.labels),
            (&self.ids, &ids),
            (&self.credible, &credible),
        ] {
            target.slice_set(&source.narrow(0, 0, before_end)?, 0, start)?;
            if before_end < keep {
                target.slice_set(&source.narrow(0, before_end, keep - before_end)?, 0, 0)?;
            }
        }
        Ok(())
    }

    /// Makes the memory of the keys the bank's own before it is written.
    fn own(&mut self) -> Result<()> {
        if self.borrowed {
            self.keys = self.keys.force_contiguous()?;
            self.borrowed = false;
        }
        Ok(())
    }

    /// Moves the embeddings of filled slots towards new ones, for a memory bank that has a slot for every sample: as
    /// [`update_rows`](crate::update_rows) of `slots` `[B]` (u32 or i64; `u32::MAX` is skipped) with `embeddings` `[B, D]`.
    ///
    /// # Errors
    /// As [`update_rows`](crate::update_rows), and [`Error::Argument`] while the bank is empty. On an error the bank is
    /// unchanged.
    pub fn update(&mut self, slots: &Tensor, embeddings: &Tensor, momentum: f64) -> Result<()> {
        self.own()?;
        crate::update_rows(&self.filled()?, slots, embeddings, momentum)
    }

    /// Sets which of the filled slots may serve as teachers: `[len]`, u8.
    ///
    /// # Errors
    /// [`Error::DType`] and [`Error::Argument`] for another length.
    pub fn set_credible(&mut self, credible: &Tensor) -> Result<()> {
        check_vector("credible", credible, DType::U8, self.length)?;
        if self.length == 0 {
            return Ok(());
        }
        let mask = credible.to_device(self.credible.device())?.ne(0u8)?.contiguous()?;
        Ok(self.credible.slice_set(&mask, 0, 0)?)
    }

    /// Moves the slot that the next row goes to, for a full bank that is filled again in the order of its slots.
    ///
    /// # Errors
    /// [`Error::Argument`] for a slot that is not there, and while the bank is not full: then the next slot is the
    /// first empty one.
    pub fn seek(&mut self, head: usize) -> Result<()> {
        let full = self.length == self.capacity();
        if head == self.head || (full && head < self.capacity()) {
            self.head = head;
            return Ok(());
        }
        let expected = if full { format!("a slot in 0..{}", self.capacity()) } else { self.head.to_string() };
        Err(consonance_cpu::Error::range(OP, "head", head, expected).into())
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.keys.dims()[0]
    }

    /// Dimension of the embeddings.
    pub fn dim(&self) -> usize {
        self.keys.dims()[1]
    }

    /// Storage type of the embeddings.
    pub fn dtype(&self) -> DType {
        self.keys.dtype()
    }

    /// Number of filled slots.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing has been pushed.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The slot that the next row goes to.
    pub fn head(&self) -> usize {
        self.head
    }

    /// All slots `[capacity, D]`, a constant for autograd; empty slots are zero rows, which [`valid`](Self::valid)
    /// takes out. The shape never changes.
    pub fn keys(&self) -> &Tensor {
        &self.keys
    }

    /// Labels of all slots `[capacity]`, u32.
    pub fn labels(&self) -> &Tensor {
        &self.labels
    }

    /// Ids of all slots `[capacity]`, u32; `u32::MAX` where none was given.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// 1 where the slot is filled and credible `[capacity]`, u8: the mask for numerator and denominator.
    pub fn valid(&self) -> &Tensor {
        &self.credible
    }

    /// 1 where the slot is filled `[capacity]`, u8: the mask for the denominator when only positives must be credible.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn filled_mask(&self) -> Result<Tensor> {
        let mask: Vec<u8> = (0..self.capacity()).map(|slot| u8::from(slot < self.length)).collect();
        Ok(Tensor::from_vec(mask, self.capacity(), self.keys.device())?)
    }

    /// The filled slots `[len, D]`: a view, all of [`keys`](Self::keys) once the ring is full.
    ///
    /// # Errors
    /// [`Error::Argument`] while the bank is empty.
    pub fn filled(&self) -> Result<Tensor> {
        if self.length == 0 {
            return Err(empty("bank"));
        }
        Ok(self.keys.narrow(0, 0, self.length)?)
    }

    /// A copy with memory of its own: no push into the other shows in it.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn snapshot(&self) -> Result<Self> {
        Ok(Self {
            keys: self.keys.force_contiguous()?,
            labels: self.labels.force_contiguous()?,
            ids: self.ids.force_contiguous()?,
            credible: self.credible.force_contiguous()?,
            head: self.head,
            length: self.length,
            borrowed: false,
        })
    }

    /// Writes the bank as safetensors: to a temporary name beside `path`, then renamed, so that a killed process
    /// leaves the old file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let metadata = HashMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("version".to_owned(), VERSION.to_owned()),
            ("head".to_owned(), self.head.to_string()),
            ("length".to_owned(), self.length.to_string()),
        ]);
        let tensors = [
            ("credible", &self.credible),
            ("ids", &self.ids),
            ("keys", &self.keys),
            ("labels", &self.labels),
        ];
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| format_error(path, e))?;
        crate::files::write(path, &bytes)
    }

    /// Reads a bank that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Format`] when it is truncated, is no safetensors file, is
    /// one of something else, or contradicts itself.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        use candle_core::safetensors::Load;
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| wrong(format!("not a whole safetensors file ({e})")))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| format_error(path, e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| metadata.get(name).map(String::as_str).unwrap_or_default();
        if (entry("format"), entry("version")) != (FORMAT, VERSION) {
            let got = format!("format `{}` version `{}`", entry("format"), entry("version"));
            return Err(wrong(format!("is no bank: {got}, expected `{FORMAT}` version `{VERSION}`")));
        }
        let number = |name: &str| {
            entry(name)
                .parse::<usize>()
                .map_err(|_| wrong(format!("`{name}` is `{}`, expected a number", entry(name))))
        };
        let (head, length) = (number("head")?, number("length")?);
        let tensor = |name: &str| -> Result<Tensor> {
            let view = file.tensor(name).map_err(|_| wrong(format!("has no tensor `{name}`")))?;
            Ok(view.load(device)?)
        };
        let keys = tensor("keys")?;
        let &[capacity, dim] = keys.dims() else {
            return Err(wrong(format!("`keys` has shape {:?}, expected [capacity, dimension]", keys.dims())));
        };
        check_float("keys", keys.dtype()).map_err(|e| wrong(e.to_string()))?;
        let vector = |name: &'static str, dtype: DType| -> Result<Tensor> {
            let x = tensor(name)?;
            check_vector(name, &x, dtype, capacity).map_err(|e| wrong(e.to_string()))?;
            Ok(x)
        };
        let labels = vector("labels", DType::U32)?;
        let ids = vector("ids", DType::U32)?;
        let credible = vector("credible", DType::U8)?;
        let full = length == capacity;
        if capacity == 0 || dim == 0 || length > capacity || head >= capacity || !(full || head == length) {
            let got = format!("head {head} and length {length} of a [{capacity}, {dim}] bank");
            return Err(wrong(format!("contradicts itself: {got}")));
        }
        Ok(Self { keys, labels, ids, credible, head, length, borrowed: false })
    }
}

fn format_error(path: &Path, e: safetensors::SafeTensorError) -> Error {
    Error::Format { path: path.to_owned(), reason: e.to_string() }
}
