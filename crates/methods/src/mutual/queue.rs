//! The self-supervised version: queues of momentum keys, as in MoCo.

use candle_core::{Device, Tensor};
use consonance::{DivergenceOptions, Pairs, divergence};

use super::{METHOD, MutualContrastConfig, Scores, check_cohort, check_embeddings};
use crate::Terms;
use crate::error::{Error, Result};
use crate::method::State;
use crate::queue::Queues;

/// Mutual contrastive learning with one queue of momentum keys a network: row i of S^{ab} is ⟨q_a,i, k_b,i⟩ with i's own key
/// of the batch, and ⟨q_a,i, k⟩ with the keys k of network b's queue, the first column being the positive. No labels are
/// needed. The keys are those of [`MomentumEncoder`](crate::MomentumEncoder)s of another view of the images. Published with
/// 65,536 keys, batches of 256, momentum 0.999 and 128 dimensions.
#[derive(Debug)]
pub struct MutualQueue {
    config: MutualContrastConfig,
    queues: Queues,
    networks: usize,
}

impl MutualQueue {
    /// Empty queues for a cohort of `networks`: the last `length` keys of `dimension`, in batches of `batch`.
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort of other than 2 to 4 networks, settings out of range, and sizes of 0.
    pub fn new(
        config: MutualContrastConfig,
        networks: usize,
        (length, batch, dimension): (usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        check_cohort("networks", networks)?;
        let queues = Queues::new(METHOD, networks, (length, batch, dimension), device)?;
        Ok(Self { config, queues, networks })
    }

    /// The number of keys in every queue, those of the last batch included.
    pub fn filled(&self) -> usize {
        self.queues.len()
    }

    /// The terms of a batch, which then is in the queues: `queries` `[B, D]` f32 of every network, of unit norm, tracked;
    /// `keys` `[B, D]` of every network's momentum encoder, constants.
    ///
    /// Row j of every queue belongs to the same image. While the queues are empty every share is 1 and the loss 0.
    ///
    /// # Errors
    /// [`Error::Argument`] for a cohort or a batch of another size, shapes that disagree and rows that are not finite; the
    /// queues are unchanged then.
    pub fn terms(&mut self, queries: &[Tensor], keys: &[Tensor]) -> Result<Terms> {
        let shape = check_embeddings("queries", queries)?;
        let of_keys = check_embeddings("keys", keys)?;
        if shape != of_keys || queries.len() != self.networks || keys.len() != self.networks {
            let got = format!("{} of {of_keys:?}", keys.len());
            let expected = format!("{} of {shape:?}, as the queries", self.networks);
            return Err(Error::argument(METHOD, "keys", got, expected));
        }
        let slots = self.queues.push(&keys.iter().collect::<Vec<_>>())?;
        let soft = DivergenceOptions::new(self.config.temperature).softening(self.config.softening);
        let store = Own { method: self, queries, pairs: slots.pairs()?, soft: soft.valid(&slots.queued()?) };
        store.terms(&self.config, self.networks)
    }

    /// The queues, to be saved.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn state(&self) -> Result<State> {
        self.queues.state()
    }

    /// Takes over saved queues.
    ///
    /// # Errors
    /// [`Error::State`] when an entry is missing or does not fit.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        self.queues.restore(state)
    }
}

/// Each query's own key, and the queue.
struct Own<'a> {
    method: &'a MutualQueue,
    queries: &'a [Tensor],
    pairs: Pairs,
    /// Of the queue alone.
    soft: DivergenceOptions,
}

impl Own<'_> {
    /// −ln of the own key's share at a temperature, `[B]`.
    fn contrast_at(&self, (a, b): (usize, usize), temperature: f64) -> Result<Tensor> {
        Ok(self.method.queues.contrast(&self.queries[a], b, temperature, &self.pairs)?.per_row)
    }
}

impl Scores for Own<'_> {
    fn contrast(&self, a: usize, b: usize) -> Result<Tensor> {
        Ok(self.contrast_at((a, b), self.method.config.temperature)?.mean_all()?)
    }

    /// Every row has a column of its own beside the queue's, so the divergence is put together by the chain rule. With the
    /// own key's shares p of the student and q of the teacher, and D of the distributions inside the queue,
    /// KL = q ln(q/p) + (1 − q) ln((1 − q)/(1 − p)) + (1 − q) D.
    fn divergence(&self, student: (usize, usize), teacher: (usize, usize)) -> Result<Tensor> {
        let (config, queues) = (&self.method.config, &self.method.queues);
        if queues.len() == queues.batch() {
            // Nothing but own keys: both sides are sure.
            return Ok(self.contrast_at(student, config.temperature)?.zeros_like()?.sum_all()?);
        }
        let softened = config.temperature * config.softening;
        let log_p = self.contrast_at(student, softened)?.neg()?;
        let log_q = self.contrast_at(teacher, softened)?.detach().neg()?;
        let rest = |log: &Tensor| -> Result<Tensor> { Ok((1.0 - log.exp()?)?.log()?) };
        let q = log_q.exp()?;
        let others = (1.0 - &q)?;
        let own = (&q * (&log_q - &log_p)?)?;
        let between = (&others * (rest(&log_q)? - rest(&log_p)?)?)?;
        let side = |(a, b): (usize, usize)| Ok::<_, Error>((&self.queries[a], queues.keys(b)?));
        let (student, teacher) = (side(student)?, side(teacher)?);
        let inside = divergence((student.0, &student.1), (teacher.0, &teacher.1), &self.soft)?.per_row;
        let t = config.softening * config.softening;
        Ok((((own + between)? * t)? + (others * inside)?)?.mean_all()?)
    }
}
