//! Multimodal contrastive training (Yuan, Lin, Kuen, Zhang, Wang, Maire, Kale, Faieta, "Multimodal Contrastive Training for
//! Visual Representation Learning", CVPR 2021): five contrasts of images, tags and captions over queues of momentum keys.
//!
//! For a query q, its own key k⁺ and the queue, ℓ(q, k⁺) = −ln e^{⟨q,k⁺⟩/τ}/(e^{⟨q,k⁺⟩/τ} + Σ_j e^{⟨q,k_j⟩/τ}). Images have
//! heads of their own for themselves, for tags and for captions, captions for themselves and for images:
//!
//! | term | query | key |
//! |---|---|---|
//! | `image` | a view of the image | another view, by the momentum encoder |
//! | `tag` | a view of the image, head of its own | as `image`; positives are the keys whose tags overlap |
//! | `caption` | a caption | another caption of the image, or the same under another dropout |
//! | `image_to_caption` | a view of the image | its caption |
//! | `caption_to_image` | a caption | its image |
//!
//! With K-hot tag vectors t and P(i) = {j : ⟨t_i, t_j⟩ > ε}, the tag term is −(1/|P(i)|) Σ_{p∈P(i)} ln softmax_p(⟨q_i, k/τ⟩)
//! over the queue *and the batch's keys*, so that an image's own key always is among its positives; the other terms have
//! their own key and the queue. The loss is Σ λ ℓ, each term with a λ and τ of its own.
//!
//! **Sources.** The five terms are the paper's; 65,536 keys, momentum 0.999, τ = 0.07, λ = 1 but 10⁻⁴ for `caption_to_image`
//! are its settings as far as they are known; ε = 0, where the batch stands in the tag term, and the hinge form of the terms
//! between modalities, Σ_j max(0, m − ⟨q,k⁺⟩ + ⟨q,k_j⟩), are choices of this crate.

use candle_core::{DType, Device, Tensor};
use consonance::{ContrastOptions, Pairs, Temperature, contrast};
use serde::{Deserialize, Serialize};

use crate::Terms;
use crate::error::{Error, Result, not_negative, positive};
use crate::margins;
use crate::method::State;
use crate::queue::{Queues, Slots};
use crate::tensors::{check_rows, entry};

const METHOD: &str = "multimodal";

/// The streams of keys, in the order of their queues.
const STREAMS: usize = 5;

/// Settings of a contrast.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastTerm {
    /// λ. A term of weight 0 is not computed.
    pub weight: f64,
    /// τ.
    pub temperature: f64,
}

impl Default for ContrastTerm {
    fn default() -> Self {
        Self { weight: 1.0, temperature: 0.07 }
    }
}

/// Settings of the tag term.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TagTerm {
    /// λ. A term of weight 0 is not computed.
    pub weight: f64,
    /// τ.
    pub temperature: f64,
    /// ε: keys that share more tags than this are positives.
    pub overlap: u32,
}

impl Default for TagTerm {
    fn default() -> Self {
        Self { weight: 1.0, temperature: 0.07, overlap: 0 }
    }
}

/// The form of the terms between modalities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum InterModal {
    /// As the terms inside a modality.
    #[default]
    Softmax,
    /// Σ_j max(0, m − ⟨q,k⁺⟩ + ⟨q,k_j⟩) over the queue; the temperature has no meaning then.
    Hinge {
        /// m.
        margin: f64,
    },
}

/// Settings of [`Multimodal`]; the defaults are those of the module's sources.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultimodalConfig {
    /// Two views of an image.
    pub image: ContrastTerm,
    /// Images whose tags overlap.
    pub tag: TagTerm,
    /// Two captions of an image.
    pub caption: ContrastTerm,
    /// From an image to its caption.
    pub image_to_caption: ContrastTerm,
    /// From a caption to its image.
    pub caption_to_image: ContrastTerm,
    /// The form of the last two.
    pub inter_modal: InterModal,
}

impl Default for MultimodalConfig {
    fn default() -> Self {
        let term = ContrastTerm::default();
        Self {
            image: term,
            tag: TagTerm::default(),
            caption: term,
            image_to_caption: term,
            caption_to_image: ContrastTerm { weight: 1e-4, ..term },
            inter_modal: InterModal::Softmax,
        }
    }
}

impl MultimodalConfig {
    /// The first term alone: MoCo.
    #[must_use]
    pub fn image_only() -> Self {
        let off = ContrastTerm { weight: 0.0, ..ContrastTerm::default() };
        Self {
            image: ContrastTerm::default(),
            tag: TagTerm { weight: 0.0, ..TagTerm::default() },
            caption: off,
            image_to_caption: off,
            caption_to_image: off,
            inter_modal: InterModal::Softmax,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (name, weight, temperature) in [
            ("image", self.image.weight, self.image.temperature),
            ("tag", self.tag.weight, self.tag.temperature),
            ("caption", self.caption.weight, self.caption.temperature),
            ("image_to_caption", self.image_to_caption.weight, self.image_to_caption.temperature),
            ("caption_to_image", self.caption_to_image.weight, self.caption_to_image.temperature),
        ] {
            not_negative(METHOD, name, weight)?;
            positive(METHOD, name, temperature)?;
        }
        match self.inter_modal {
            InterModal::Softmax => Ok(()),
            InterModal::Hinge { margin } => positive(METHOD, "inter_modal", margin),
        }
    }
}

/// What the heads give of a batch: queries, or keys of the momentum encoders; `[B, D]`, f32, rows of unit norm.
#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    /// Of images, the head for images.
    pub image: &'a Tensor,
    /// Of images, the head for tags.
    pub tag: &'a Tensor,
    /// Of captions, the head for captions.
    pub caption: &'a Tensor,
    /// For `image_to_caption`: of images as queries, of captions as keys.
    pub image_to_caption: &'a Tensor,
    /// For `caption_to_image`: of captions as queries, of images as keys.
    pub caption_to_image: &'a Tensor,
}

impl<'a> Streams<'a> {
    fn all(&self) -> [&'a Tensor; STREAMS] {
        [self.image, self.tag, self.caption, self.image_to_caption, self.caption_to_image]
    }

    fn check(&self, side: &'static str, shape: (usize, usize)) -> Result<()> {
        for stream in self.all() {
            let got = check_rows(METHOD, side, stream)?;
            if got != shape {
                let expected = format!("{shape:?} in every stream");
                return Err(Error::argument(METHOD, side, format!("{got:?}"), expected));
            }
        }
        Ok(())
    }
}

/// Multimodal contrastive training over queues.
#[derive(Debug)]
pub struct Multimodal {
    config: MultimodalConfig,
    queues: Queues,
    /// Tag sets of the slots, `[capacity, words]`.
    tags: Tensor,
    shape: (usize, usize),
}

impl Multimodal {
    /// Empty queues of the last `length` keys of `dimension`, in batches of `batch`, with tag sets of `words` words of 32
    /// tags each.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range, and sizes of 0.
    pub fn new(
        config: MultimodalConfig,
        (length, batch, dimension): (usize, usize, usize),
        words: usize,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        if words == 0 {
            return Err(Error::argument(METHOD, "words", 0, "at least 1"));
        }
        let queues = Queues::new(METHOD, STREAMS, (length, batch, dimension), device)?;
        let tags = Tensor::zeros((length + batch, words), DType::U32, device)?;
        Ok(Self { config, queues, tags, shape: (batch, dimension) })
    }

    /// The number of keys in every queue, those of the last batch included.
    pub fn filled(&self) -> usize {
        self.queues.len()
    }

    /// The terms of a batch, which then is in the queues: `queries` are tracked, `keys` of the momentum encoders constants,
    /// `tags` `[B, words]` u32 the tag set of every image, a bit a tag ([`tag_sets`]).
    ///
    /// While the queues are empty the own key is all there is, and the loss of such terms is 0.
    ///
    /// # Errors
    /// [`Error::Argument`] for a batch of another size, shapes that disagree, rows that are not finite, and a row without
    /// any tag; the queues are unchanged then.
    pub fn terms(&mut self, queries: &Streams<'_>, keys: &Streams<'_>, tags: &Tensor) -> Result<Terms> {
        queries.check("queries", self.shape)?;
        keys.check("keys", self.shape)?;
        self.check_tags(tags)?;
        let slots = self.queues.push(&keys.all())?;
        self.push_tags(tags, &slots)?;
        let (config, pairs) = (&self.config, slots.pairs()?);
        let own = |stream: usize, term: ContrastTerm| -> Result<Tensor> {
            Ok(self.queues.contrast(queries.all()[stream], stream, term.temperature, &pairs)?.loss)
        };
        let between = |stream: usize, term: ContrastTerm| match config.inter_modal {
            InterModal::Softmax => own(stream, term),
            InterModal::Hinge { margin } => {
                let queued = slots.queued()?;
                let nothing = Tensor::zeros(queued.dims(), DType::F32, queued.device())?;
                let bias = queued.where_cond(&nothing, &(&nothing + f64::NEG_INFINITY)?)?;
                let sides = (queries.all()[stream], keys.all()[stream]);
                margins::hinge(sides.0, sides.1, &self.queues.keys(stream)?, &bias, margin)
            }
        };
        let mut terms = Vec::new();
        if config.image.weight != 0.0 {
            terms.push(("image", config.image.weight, own(0, config.image)?));
        }
        if config.tag.weight != 0.0 {
            terms.push(("tag", config.tag.weight, self.tag(queries.tag, tags)?));
        }
        if config.caption.weight != 0.0 {
            terms.push(("caption", config.caption.weight, own(2, config.caption)?));
        }
        for (name, stream, term) in [
            ("image_to_caption", 3, config.image_to_caption),
            ("caption_to_image", 4, config.caption_to_image),
        ] {
            if term.weight != 0.0 {
                terms.push((name, term.weight, between(stream, term)?));
            }
        }
        Terms::weighted(METHOD, terms)
    }

    /// The contrast with all slots, those of overlapping tags as positives.
    fn tag(&self, queries: &Tensor, tags: &Tensor) -> Result<Tensor> {
        let term = self.config.tag;
        let held = self.tags.narrow(0, 0, self.queues.len())?;
        let pairs = Pairs::bits(tags, &held, term.overlap.saturating_add(1));
        let tau = Temperature::Fixed(term.temperature);
        Ok(contrast(queries, &self.queues.keys(1)?, &tau, &pairs, &ContrastOptions::default())?.loss)
    }

    fn check_tags(&self, tags: &Tensor) -> Result<()> {
        let (batch, words) = (self.shape.0, self.tags.dim(1)?);
        if tags.dims() != [batch, words] || tags.dtype() != DType::U32 {
            let got = format!("{:?} of {:?}", tags.dims(), tags.dtype());
            return Err(Error::argument(METHOD, "tags", got, format!("[{batch}, {words}] of U32")));
        }
        let empty = |set: &Vec<u32>| set.iter().all(|word| *word == 0);
        match tags.to_vec2::<u32>()?.iter().position(empty) {
            Some(row) => {
                let got = format!("an empty set in row {row}");
                Err(Error::argument(METHOD, "tags", got, "at least one tag an image"))
            }
            None => Ok(()),
        }
    }

    fn push_tags(&mut self, tags: &Tensor, slots: &Slots) -> Result<()> {
        let (batch, capacity) = (self.shape.0, self.tags.dim(0)?);
        let tags = tags.contiguous()?;
        let before_end = batch.min(capacity - slots.first);
        self.tags.slice_set(&tags.narrow(0, 0, before_end)?, 0, slots.first)?;
        if before_end < batch {
            self.tags.slice_set(&tags.narrow(0, before_end, batch - before_end)?, 0, 0)?;
        }
        Ok(())
    }

    /// The queues and their tags, to be saved.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn state(&self) -> Result<State> {
        let mut state = self.queues.state()?;
        state.insert("queue.tags".into(), self.tags.copy()?);
        Ok(state)
    }

    /// Takes over saved queues.
    ///
    /// # Errors
    /// [`Error::State`] when an entry is missing or does not fit.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let tags = entry(METHOD, state, "queue.tags", self.tags.dims(), DType::U32)?.copy()?;
        self.queues.restore(state)?;
        self.tags = tags;
        Ok(())
    }
}

/// Tag sets `[n, words]` u32 of lists of tags below `tags`, a bit a tag.
///
/// # Errors
/// [`Error::Argument`] for an empty list, a tag that is not below `tags`, and no lists or tags at all.
pub fn tag_sets(lists: &[Vec<u32>], tags: usize, device: &Device) -> Result<Tensor> {
    if lists.is_empty() || tags == 0 {
        let got = format!("{} of {tags} tags", lists.len());
        return Err(Error::argument(METHOD, "lists", got, "at least one list and one tag"));
    }
    let words = tags.div_ceil(32);
    let mut sets = vec![0u32; lists.len() * words];
    for (row, (list, set)) in lists.iter().zip(sets.chunks_exact_mut(words)).enumerate() {
        if list.is_empty() {
            let got = format!("empty for image {row}");
            return Err(Error::argument(METHOD, "lists", got, "at least one tag an image"));
        }
        for tag in list {
            if *tag as usize >= tags {
                return Err(Error::argument(METHOD, "lists", tag, format!("tags in 0..{tags}")));
            }
            set[*tag as usize / 32] |= 1 << (tag % 32);
        }
    }
    Ok(Tensor::from_vec(sets, (lists.len(), words), device)?)
}
