//! The memory bank version: a row for every image and network, and a list of rows for every anchor.

use candle_core::{Device, Tensor};
use consonance::{
    GatheredPositives, Normalizer, Temperature, gathered_contrast, gathered_divergence, update_rows,
};
use rayon::prelude::*;

use super::{METHOD, MutualContrastConfig, Scores, check_cohort, check_embeddings};
use crate::Terms;
use crate::error::{Error, Result, fraction};
use crate::method::State;
use crate::tensors::{entry, uniform};

/// Mutual contrastive learning with one memory bank a network.
///
/// An anchor's list has, as [`IndexLists`](super::IndexLists) draws it, its own row, `positives` rows of its class, and
/// negatives. The interactive contrast has all columns with the own row and the class's as positives; the vanilla one
/// leaves the own row out. The soft losses compare the same columns. The banks are constants of a step; after it,
/// [`update`](Self::update) moves the rows of the batch: y ← z/|z|, z = m y + (1 − m) v with m = ½ as published.
#[derive(Debug)]
pub struct MutualBank {
    config: MutualContrastConfig,
    /// `[N, D]` each.
    banks: Vec<Tensor>,
    positives: usize,
    momentum: f64,
}

impl MutualBank {
    /// Banks `[rows, dimension]` for a cohort of `networks`, uniform in ±√(3/D) as published, for lists with `positives`
    /// rows of the anchor's class (1 as published); `momentum` m in `0..=1` (0.5).
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort of other than 2 to 4 networks, settings out of range, and sizes of 0.
    pub fn new(
        config: MutualContrastConfig,
        networks: usize,
        (rows, dimension): (usize, usize),
        positives: usize,
        momentum: f64,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        check_cohort("networks", networks)?;
        fraction(METHOD, "momentum", momentum)?;
        for (name, value) in [("rows", rows), ("dimension", dimension), ("positives", positives)] {
            if value == 0 {
                return Err(Error::argument(METHOD, name, 0, "at least 1"));
            }
        }
        let half = (3.0 / dimension as f64).sqrt();
        let count = rows * dimension;
        let bank = |network: usize| {
            let first = (network * count) as u64;
            let value = |i| (half * (2.0 * uniform(seed, first + i as u64) - 1.0)) as f32;
            let values: Vec<f32> = (0..count).into_par_iter().map(value).collect();
            Ok(Tensor::from_vec(values, (rows, dimension), device)?)
        };
        let banks = (0..networks).map(bank).collect::<Result<Vec<_>>>()?;
        Ok(Self { config, banks, positives, momentum })
    }

    /// The banks `[N, D]`, in the order of the networks; they share the method's memory.
    pub fn banks(&self) -> &[Tensor] {
        &self.banks
    }

    /// The terms of a batch: `embeddings` `[B, D]` f32 of every network, of unit norm, tracked; `lists` `[B, 1 +
    /// positives + negatives]`, u32 or i64, rows of the banks, where `u32::MAX` is padding.
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort of another size, shapes that disagree, rows that are not finite, lists without
    /// negatives or longer than the banks, and those of the operations, as for indices beyond the banks.
    pub fn terms(&self, embeddings: &[Tensor], lists: &Tensor) -> Result<Terms> {
        let rows = self.check(embeddings)?;
        let columns = match lists.dims() {
            &[got, columns] if got == rows => columns,
            dims => {
                let expected = format!("[{rows}, columns], a list for every row");
                return Err(Error::argument(METHOD, "lists", format!("{dims:?}"), expected));
            }
        };
        let held = self.banks[0].dim(0)?;
        if columns < self.positives + 2 || columns > held {
            let expected = format!(
                "{} columns (itself, {} positives, a negative) to {held}, the rows of the banks",
                self.positives + 2,
                self.positives
            );
            return Err(Error::argument(METHOD, "lists", format!("of {columns} columns"), expected));
        }
        let store = Lists {
            method: self,
            embeddings,
            all: lists,
            others: &lists.narrow(1, 1, columns - 1)?.contiguous()?,
        };
        store.terms(&self.config, self.banks.len())
    }

    /// Moves the rows `indices` `[B]` of every network's bank towards its embeddings; call it after the backward pass.
    ///
    /// # Errors
    /// As [`terms`](Self::terms), and those of [`update_rows`].
    pub fn update(&mut self, embeddings: &[Tensor], indices: &Tensor) -> Result<()> {
        self.check(embeddings)?;
        for (bank, rows) in self.banks.iter().zip(embeddings) {
            update_rows(bank, indices, &rows.detach(), self.momentum)?;
        }
        Ok(())
    }

    fn check(&self, embeddings: &[Tensor]) -> Result<usize> {
        let (rows, dimension) = check_embeddings("embeddings", embeddings)?;
        let (networks, held) = (self.banks.len(), self.banks[0].dim(1)?);
        if embeddings.len() != networks || dimension != held {
            let got = format!("{} of dimension {dimension}", embeddings.len());
            let expected = format!("{networks} of dimension {held}, as the banks");
            return Err(Error::argument(METHOD, "embeddings", got, expected));
        }
        Ok(rows)
    }

    /// The banks, to be saved.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn state(&self) -> Result<State> {
        let copy = |(a, bank): (usize, &Tensor)| Ok((format!("bank.{a}"), bank.copy()?));
        self.banks.iter().enumerate().map(copy).collect()
    }

    /// Takes over saved banks.
    ///
    /// # Errors
    /// [`Error::State`] when one is missing or has another shape.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let saved = |(a, bank): (usize, &Tensor)| {
            Ok(entry(METHOD, state, &format!("bank.{a}"), bank.dims(), bank.dtype())?.copy()?)
        };
        self.banks = self.banks.iter().enumerate().map(saved).collect::<Result<Vec<_>>>()?;
        Ok(())
    }
}

struct Lists<'a> {
    method: &'a MutualBank,
    embeddings: &'a [Tensor],
    all: &'a Tensor,
    /// Without the anchors' own rows: the columns of a network's own scores.
    others: &'a Tensor,
}

impl Scores for Lists<'_> {
    fn contrast(&self, a: usize, b: usize) -> Result<Tensor> {
        let (method, query) = (self.method, &self.embeddings[a]);
        let (lists, positives) = match a == b {
            true => (self.others, method.positives),
            false => (self.all, 1 + method.positives),
        };
        let tau = Temperature::Fixed(method.config.temperature);
        let first = GatheredPositives::First(positives);
        Ok(gathered_contrast(query, &method.banks[b], lists, &tau, &first, Normalizer::Count)?.loss)
    }

    fn divergence(&self, student: (usize, usize), teacher: (usize, usize)) -> Result<Tensor> {
        let side = |(a, b): (usize, usize)| (&self.embeddings[a], &self.method.banks[b]);
        let lists = if student.0 == student.1 { self.others } else { self.all };
        let config = &self.method.config;
        let (tau, t) = (config.temperature, config.softening);
        Ok(gathered_divergence(side(student), side(teacher), lists, tau, t)?.loss)
    }
}
