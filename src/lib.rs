//! Exact neighborhood search, sub-clusters and weighted contrastive losses for training embeddings that stay
//! comparable with the ones already stored.
//!
//! The operations take and return Candle tensors, run on the CPU, and never write a query × key matrix.

pub mod cuda;
#[cfg(feature = "candle")]
mod error;
#[cfg(feature = "candle")]
mod files;
pub mod kernels;
#[cfg(feature = "candle")]
mod ops;

#[cfg(feature = "candle")]
pub use consonance_cpu::clips::{ClipParameters, ColorJitter, ColorStep, CropBox, Options as AugmentOptions};
#[cfg(feature = "candle")]
pub use error::{Error, Result};
#[cfg(feature = "candle")]
pub use ops::bank::{Bank, Entries, update_centers};
#[cfg(feature = "candle")]
pub use ops::cam::{Backgrounds, BackgroundsOptions, backgrounds, cam, masked_blend};
pub use ops::clips::augment_clips;
#[cfg(feature = "candle")]
pub use ops::contrast::{
    Admission, AffinityMap, Closeness, Contrast, ContrastOptions, Normalizer, OtherPositives, Pairs,
    Products, Temperature, contrast, contrast_symmetric,
};
#[cfg(feature = "candle")]
pub use ops::discrimination::{
    DiscriminationDivergence, DiscriminationOptions, discrimination_kl, discrimination_raw,
    discrimination_soft,
};
#[cfg(feature = "candle")]
pub use ops::divergence::{Direction, Divergence, DivergenceOptions, TeacherStatistics, divergence};
#[cfg(feature = "candle")]
pub use ops::gathered::{
    GatheredDivergence, GatheredPositives, gathered_contrast, gathered_divergence, update_rows,
};
#[cfg(feature = "candle")]
pub use ops::neighbors::{MAX_K, Metric, NO_NEIGHBOR, Neighbors, NeighborsOptions, neighbors};
#[cfg(feature = "candle")]
pub use ops::place::with_kernels_on;
#[cfg(feature = "candle")]
pub use ops::ranking::{ApVariant, JUNK, Ranking, RankingOptions, ranking};
#[cfg(feature = "candle")]
pub use {
    consonance_cpu::{
        clusters::Geometry,
        credibility::{Limit, Rule, Scale},
    },
    ops::{
        clusters::{ClusterCount, ClusterStart, SubClusters, SubClustersOptions, sub_clusters},
        credibility::{Credibility, CredibilityOptions, credibility},
        soft_assignment::{
            SoftAffinity, SoftAssignment, SoftAssignmentOptions, SoftCentroids, soft_assignment,
            soft_centroids,
        },
    },
};

/// The example of the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
