//! What a case runs on: the CPU backend, or the kernels on some executor.

mod bank;
mod cam;
mod clips;
mod clusters;
mod contrast;
mod contrast_pace;
mod contrast_symmetric;
mod credibility;
mod device;
mod divergence;
mod gathered;
mod guarded;
mod recorded;
mod simt;
mod soft_assignment;

use consonance_cpu::cam::Backgrounds;
use consonance_cpu::clusters::SubClusters;
use consonance_cpu::credibility::Credibility;
use consonance_cpu::neighbors::{self as cpu, Metric, Neighbors};
use consonance_cpu::ranking::{self, ApVariant, Ranking};
use consonance_cpu::soft_assignment::{SoftAssignment, SoftCentroids};

use crate::stored::Stored;

pub use bank::{Batch, CentersCase, PushCase, Pushed};
pub use cam::{BackgroundsCase, BlendCase, CamCase};
pub use clips::ClipsCase;
pub use clusters::{ClustersCase, ClustersStart};
pub use contrast::{ContrastCase, ContrastFound, ContrastRule};
pub use contrast_pace::{Close, PaceCase};
pub use contrast_symmetric::{SymmetricCase, SymmetricFound};
pub use credibility::CredibilityCase;
pub use device::OnDevice;
pub use divergence::{DivergenceCase, DivergenceFound};
pub use gathered::{GatheredCase, GatheredFound, GatheredLoss, GatheredPositives, UpdateCase, Updated};
pub use guarded::Guarded;
pub use recorded::Recorded;
pub use simt::{Simt, kernel_folder, kernel_sources};
pub use soft_assignment::SoftCase;

/// A number for every row of both sides.
pub type Sides = Option<(Vec<u32>, Vec<u32>)>;

fn slices(sides: &Sides) -> Option<(&[u32], &[u32])> {
    sides.as_ref().map(|(left, right)| (left.as_slice(), right.as_slice()))
}

/// A search.
#[derive(Debug, Clone)]
pub struct NeighborsCase {
    /// `[B, D]`.
    pub queries: Stored,
    /// `[N, D]`.
    pub bank: Stored,
    /// Neighbors of each query.
    pub k: usize,
    /// How rows are compared.
    pub metric: Metric,
    /// Only keys of the query's own label.
    pub labels: Sides,
    /// No keys of the query's own id.
    pub ids: Sides,
    /// Only keys that are allowed.
    pub allow: Option<Vec<bool>>,
}

impl NeighborsCase {
    /// All keys, all pairs.
    pub fn new(queries: Stored, bank: Stored, k: usize, metric: Metric) -> Self {
        Self { queries, bank, k, metric, labels: None, ids: None, allow: None }
    }

    /// Whether a query may find a key.
    pub fn admits(&self, query: usize, key: usize) -> bool {
        self.labels.as_ref().is_none_or(|(q, k)| q[query] == k[key])
            && self.ids.as_ref().is_none_or(|(q, k)| q[query] != k[key])
            && self.allow.as_ref().is_none_or(|allow| allow[key])
    }

    /// Some of the queries, in this order.
    #[must_use]
    pub fn select(&self, queries: &[usize]) -> Self {
        let pick = |pair: &Sides| {
            pair.as_ref().map(|(q, k)| (queries.iter().map(|row| q[*row]).collect(), k.clone()))
        };
        let (labels, ids) = (pick(&self.labels), pick(&self.ids));
        Self { queries: self.queries.select(queries), labels, ids, ..self.clone() }
    }
}

/// A ranking.
#[derive(Debug, Clone)]
pub struct RankingCase {
    /// `[B, D]`.
    pub queries: Stored,
    /// `[N, D]`.
    pub gallery: Stored,
    /// How rows are compared.
    pub metric: Metric,
    /// The definition of average precision.
    pub variant: ApVariant,
    /// Labels of both sides.
    pub labels: (Vec<u32>, Vec<u32>),
    /// Cameras of both sides.
    pub cameras: Sides,
    /// Ids of both sides.
    pub ids: Sides,
    /// The label of distractors.
    pub distractor: Option<u32>,
}

impl RankingCase {
    /// The options as the backends take them, with the rank of every relevant item kept.
    pub fn options(&self) -> ranking::Options<'_> {
        ranking::Options {
            metric: self.metric,
            variant: self.variant,
            cameras: slices(&self.cameras),
            ids: slices(&self.ids),
            distractor: self.distractor,
            keep_ranks: true,
            ..ranking::Options::new(&self.labels.0, &self.labels.1)
        }
    }
}

/// The gradients of a search: of the queries and of the bank.
pub type Gradients = (Vec<f32>, Vec<f32>);

/// Runs cases. Errors are the text that a user would see.
pub trait Backend {
    /// What it is, for messages.
    fn name(&self) -> String;

    /// The neighbors of every query.
    ///
    /// # Errors
    /// What the backend says.
    fn neighbors(&self, case: &NeighborsCase) -> Result<Neighbors, String>;

    /// Gradients of Σ upstream · score, given the neighbors of a case.
    ///
    /// # Errors
    /// What the backend says.
    fn gradients(&self, case: &NeighborsCase, indices: &[u32], upstream: &[f32])
    -> Result<Gradients, String>;

    /// The measures of a ranking.
    ///
    /// # Errors
    /// What the backend says.
    fn ranking(&self, case: &RankingCase) -> Result<Ranking, String>;

    /// The losses and all gradients of a contrastive loss.
    ///
    /// # Errors
    /// What the backend says.
    fn contrast(&self, case: &ContrastCase) -> Result<ContrastFound, String>;

    /// The losses of both directions of a contrastive loss, and all gradients.
    ///
    /// # Errors
    /// What the backend says.
    fn symmetric(&self, case: &SymmetricCase) -> Result<SymmetricFound, String>;

    /// The divergences of two distributions over the same keys, and all gradients.
    ///
    /// # Errors
    /// What the backend says.
    fn divergence(&self, case: &DivergenceCase) -> Result<DivergenceFound, String>;

    /// The losses over lists of bank rows, with or without gradients.
    ///
    /// # Errors
    /// What the backend says.
    fn gathered(&self, case: &GatheredCase, gradients: bool) -> Result<GatheredFound, String>;

    /// A bank after an update of its rows.
    ///
    /// # Errors
    /// What the backend says when there is no bank to give back.
    fn update_rows(&self, case: &UpdateCase) -> Result<Updated, String>;

    /// A ring after pushes.
    ///
    /// # Errors
    /// What the backend says.
    fn push(&self, case: &PushCase) -> Result<Pushed, String>;

    /// Centers after an update.
    ///
    /// # Errors
    /// What the backend says when there are no centers to give back.
    fn update_centers(&self, case: &CentersCase) -> Result<Updated, String>;

    /// Augmented clips, as stored, one behind the other.
    ///
    /// # Errors
    /// What the backend says.
    fn clips(&self, case: &ClipsCase) -> Result<Vec<f32>, String>;
    /// Class activation maps.
    ///
    /// # Errors
    /// What the backend says.
    fn cam(&self, case: &CamCase) -> Result<Vec<f32>, String>;

    /// Images blended by a mask.
    ///
    /// # Errors
    /// What the backend says.
    fn masked_blend(&self, case: &BlendCase) -> Result<Vec<f32>, String>;

    /// Images whose object is covered.
    ///
    /// # Errors
    /// What the backend says.
    fn backgrounds(&self, case: &BackgroundsCase) -> Result<Backgrounds, String>;

    /// The clusters of every class.
    ///
    /// # Errors
    /// What the backend says.
    fn clusters(&self, case: &ClustersCase) -> Result<SubClusters, String>;

    /// A soft assignment.
    ///
    /// # Errors
    /// What the backend says.
    fn soft_assignment(&self, case: &SoftCase) -> Result<SoftAssignment, String>;

    /// Centroids after a soft update.
    ///
    /// # Errors
    /// What the backend says.
    fn soft_centroids(&self, case: &SoftCase) -> Result<SoftCentroids, String>;

    /// Which rows are believed.
    ///
    /// # Errors
    /// What the backend says.
    fn credibility(&self, case: &CredibilityCase) -> Result<Credibility, String>;
}

impl<B: Backend + ?Sized> Backend for &B {
    fn name(&self) -> String {
        (**self).name()
    }

    fn neighbors(&self, case: &NeighborsCase) -> Result<Neighbors, String> {
        (**self).neighbors(case)
    }

    fn gradients(
        &self,
        case: &NeighborsCase,
        indices: &[u32],
        upstream: &[f32],
    ) -> Result<Gradients, String> {
        (**self).gradients(case, indices, upstream)
    }

    fn ranking(&self, case: &RankingCase) -> Result<Ranking, String> {
        (**self).ranking(case)
    }

    fn contrast(&self, case: &ContrastCase) -> Result<ContrastFound, String> {
        (**self).contrast(case)
    }

    fn symmetric(&self, case: &SymmetricCase) -> Result<SymmetricFound, String> {
        (**self).symmetric(case)
    }

    fn divergence(&self, case: &DivergenceCase) -> Result<DivergenceFound, String> {
        (**self).divergence(case)
    }

    fn gathered(&self, case: &GatheredCase, gradients: bool) -> Result<GatheredFound, String> {
        (**self).gathered(case, gradients)
    }

    fn update_rows(&self, case: &UpdateCase) -> Result<Updated, String> {
        (**self).update_rows(case)
    }

    fn push(&self, case: &PushCase) -> Result<Pushed, String> {
        (**self).push(case)
    }

    fn update_centers(&self, case: &CentersCase) -> Result<Updated, String> {
        (**self).update_centers(case)
    }

    fn clips(&self, case: &ClipsCase) -> Result<Vec<f32>, String> {
        (**self).clips(case)
    }

    fn cam(&self, case: &CamCase) -> Result<Vec<f32>, String> {
        (**self).cam(case)
    }

    fn masked_blend(&self, case: &BlendCase) -> Result<Vec<f32>, String> {
        (**self).masked_blend(case)
    }

    fn backgrounds(&self, case: &BackgroundsCase) -> Result<Backgrounds, String> {
        (**self).backgrounds(case)
    }

    fn clusters(&self, case: &ClustersCase) -> Result<SubClusters, String> {
        (**self).clusters(case)
    }

    fn soft_assignment(&self, case: &SoftCase) -> Result<SoftAssignment, String> {
        (**self).soft_assignment(case)
    }

    fn soft_centroids(&self, case: &SoftCase) -> Result<SoftCentroids, String> {
        (**self).soft_centroids(case)
    }

    fn credibility(&self, case: &CredibilityCase) -> Result<Credibility, String> {
        (**self).credibility(case)
    }
}

/// `consonance-cpu`.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

impl Cpu {
    fn rows<R>(
        left: &Stored,
        right: &Stored,
        f: impl FnOnce(&consonance_cpu::Rows<'_>, &consonance_cpu::Rows<'_>) -> consonance_cpu::Result<R>,
    ) -> Result<R, String> {
        let found = left.with_rows(|left| right.with_rows(|right| f(&left?, &right?)));
        found.map_err(|error| error.to_string())
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        "CPU backend".to_owned()
    }

    fn neighbors(&self, case: &NeighborsCase) -> Result<Neighbors, String> {
        let allow: Option<Vec<u64>> = case.allow.as_ref().map(|allow| {
            let word = |chunk: &[bool]| chunk.iter().rev().fold(0, |word, on| word << 1 | u64::from(*on));
            allow.chunks(64).map(word).collect()
        });
        Self::rows(&case.queries, &case.bank, |queries, bank| {
            let options = cpu::Options {
                k: case.k,
                metric: case.metric,
                labels: slices(&case.labels),
                ids: slices(&case.ids),
                allow: allow.as_deref(),
            };
            cpu::neighbors(queries, bank, &options)
        })
    }

    fn gradients(
        &self,
        case: &NeighborsCase,
        indices: &[u32],
        upstream: &[f32],
    ) -> Result<Gradients, String> {
        Self::rows(&case.queries, &case.bank, |queries, bank| {
            let (dq, dk) = cpu::gradients(queries, bank, case.metric, (indices, upstream), true)?;
            Ok((dq, dk.unwrap_or_default()))
        })
    }

    fn ranking(&self, case: &RankingCase) -> Result<Ranking, String> {
        Self::rows(&case.queries, &case.gallery, |queries, gallery| {
            ranking::ranking(queries, gallery, &case.options())
        })
    }

    fn contrast(&self, case: &ContrastCase) -> Result<ContrastFound, String> {
        Self::contrast_of(case)
    }

    fn symmetric(&self, case: &SymmetricCase) -> Result<SymmetricFound, String> {
        Self::symmetric_of(case)
    }

    fn divergence(&self, case: &DivergenceCase) -> Result<DivergenceFound, String> {
        Self::divergence_of(case)
    }

    fn gathered(&self, case: &GatheredCase, gradients: bool) -> Result<GatheredFound, String> {
        Self::gathered_of(case, gradients)
    }

    fn update_rows(&self, case: &UpdateCase) -> Result<Updated, String> {
        Ok(Self::updated(case))
    }

    fn push(&self, case: &PushCase) -> Result<Pushed, String> {
        Self::pushed(case)
    }

    fn update_centers(&self, case: &CentersCase) -> Result<Updated, String> {
        Ok(Self::centered(case))
    }

    fn clips(&self, case: &ClipsCase) -> Result<Vec<f32>, String> {
        Self::augmented(case)
    }

    fn cam(&self, case: &CamCase) -> Result<Vec<f32>, String> {
        Self::cam_of(case)
    }

    fn masked_blend(&self, case: &BlendCase) -> Result<Vec<f32>, String> {
        Self::blend_of(case)
    }

    fn backgrounds(&self, case: &BackgroundsCase) -> Result<Backgrounds, String> {
        Self::backgrounds_of(case)
    }

    fn clusters(&self, case: &ClustersCase) -> Result<SubClusters, String> {
        Self::clustered(case)
    }

    fn soft_assignment(&self, case: &SoftCase) -> Result<SoftAssignment, String> {
        Self::soft_assignment_of(case)
    }

    fn soft_centroids(&self, case: &SoftCase) -> Result<SoftCentroids, String> {
        Self::soft_centroids_of(case)
    }

    fn credibility(&self, case: &CredibilityCase) -> Result<Credibility, String> {
        Self::credibility_of(case)
    }
}
