//! Backward-compatible training methods as Candle modules, with neighborhood consensus first.
//!
//! A method adds its terms to the loss that trains the new model alone, so that embeddings of the new model can be
//! compared with the stored embeddings of the old one. All methods answer to one trait, [`CompatibleMethod`], and
//! are built by name from a [`MethodConfig`] and the old embeddings of the training images, an [`OldBank`].
//!
//! Each method is in its published form with its published defaults; its module states the formula and the source.
//! [`Procrustes`] is the post-hoc adapter that needs no training of the new model at all.
//!
//! Beside them stand published systems on the same operations, each with its own configuration: mutual contrastive learning
//! ([`MutualBatch`], [`MutualBank`], [`MutualQueue`]), multimodal contrastive training ([`Multimodal`]), contrastive
//! video representation learning ([`Cvrl`]), the contrast of video and speech with self-paced negatives
//! ([`VideoSpeech`]), and object-aware contrastive learning ([`ContraCam`], [`ObjectAwareCrop`], [`BackgroundMixup`]).

mod adv_bct;
mod bct;
mod classes;
mod classifier;
mod cvrl;
mod dimensions;
mod error;
mod hot_refresh;
mod l2;
mod lce;
mod margins;
mod method;
mod mix_bct;
mod momentum;
mod multimodal;
mod mutual;
mod neighborhood_consensus;
mod object_aware;
mod procrustes;
mod queue;
mod tensors;
mod uni_bct;
mod video_speech;

pub use adv_bct::{AdvBct, AdvBctConfig};
pub use bct::{Bct, BctConfig, BctTargets};
pub use classes::ClassMeans;
pub use classifier::{CosineClassifier, CosineClassifierConfig, Margin};
pub use cvrl::{
    ClipAugmentation, ClipAugmentationConfig, ClipSampler, ClipSamplerConfig, ClipStarts, ClipView,
    Consistency, Cvrl, CvrlConfig, IntervalDistribution,
};
pub use dimensions::{DimensionMatch, fit, match_dimensions};
pub use error::{Error, Result};
pub use hot_refresh::{HotRefresh, HotRefreshConfig};
pub use l2::{L2, L2Config, L2Form};
pub use lce::{Lce, LceConfig};
pub use method::{Batch, CompatibleMethod, MethodConfig, OldBank, State, Terms, build};
pub use mix_bct::{MixBct, MixBctConfig};
pub use momentum::MomentumEncoder;
pub use multimodal::{ContrastTerm, InterModal, Multimodal, MultimodalConfig, Streams, TagTerm, tag_sets};
pub use mutual::{
    IndexLists, LogitDistillation, LogitStudents, MutualBank, MutualBatch, MutualContrastConfig, MutualQueue,
    logit_distillation,
};
pub use neighborhood_consensus::{
    CredibilityConfig, CredibilityRule, CredibilityScope, Discrimination, Keys, NeighborhoodConsensus,
    NeighborhoodConsensusConfig, Normalization, OtherTeachers, Positives, Weights,
};
pub use object_aware::{
    BackgroundMixup, BackgroundMixupConfig, BoxesConfig, CamWeights, ContraCam, ContraCamCompat,
    ContraCamConfig, CropWindow, MixupPlan, ObjectAwareCrop, ObjectAwareCropConfig, ObjectMasks, RelativeBox,
    Scored, boxes,
};
pub use procrustes::Procrustes;
pub use uni_bct::{UniBct, UniBctConfig, UniBctStart};
pub use video_speech::{
    OrderConfig, OrderHead, PairAdmission, PairAffinity, SampleWeights, VideoSpeech, VideoSpeechBatch,
    VideoSpeechConfig, VideoSpeechForm,
};
