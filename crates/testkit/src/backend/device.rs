//! The kernels, on any executor.

use consonance::cuda::neighbors::{Classes, Search, Side, gradient, neighbors, pack_bits};
use consonance::cuda::{Bytes, Executor, Matrix, Memory, Result, Words, ranking, segments};
use consonance_cpu::cam::Backgrounds;
use consonance_cpu::clusters::SubClusters;
use consonance_cpu::credibility::Credibility;
use consonance_cpu::neighbors::Neighbors;
use consonance_cpu::ranking::Ranking;
use consonance_cpu::soft_assignment::{SoftAssignment, SoftCentroids};

use super::{
    Backend, BackgroundsCase, BlendCase, CamCase, CentersCase, ClipsCase, ClustersCase, ContrastCase,
    ContrastFound, CredibilityCase, DivergenceCase, DivergenceFound, GatheredCase, GatheredFound, Gradients,
    NeighborsCase, PushCase, Pushed, RankingCase, Sides, SoftCase, SymmetricCase, SymmetricFound, UpdateCase,
    Updated,
};
use crate::stored::Stored;

const OP: &str = "test";

/// Uploads a case, runs the wrappers of `consonance::cuda`, downloads the results.
pub struct OnDevice<E> {
    executor: E,
    name: String,
}

impl<E: Executor> OnDevice<E> {
    /// The kernels on this executor.
    pub fn new(name: impl Into<String>, executor: E) -> Self {
        Self { executor, name: name.into() }
    }

    /// What the kernels run on.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    pub(super) fn matrix<'a>(&self, rows: &Stored, memory: &'a Memory) -> Result<Matrix<'a>> {
        let shape = [rows.rows(), rows.cols(), rows.stride()];
        Matrix::new(OP, "rows", memory, rows.dtype(), rows.offset(), shape)
    }

    pub(super) fn upload(&self, words: &[u32]) -> Result<Memory> {
        self.executor.upload(OP, bytemuck::cast_slice(words))
    }

    pub(super) fn words<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &self,
        memory: &Memory,
        len: usize,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); len];
        self.executor.download(OP, memory, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn search(&self, case: &NeighborsCase) -> Result<Neighbors> {
        let executor = &self.executor;
        let queries = executor.upload(OP, &case.queries.bytes())?;
        let bank = executor.upload(OP, &case.bank.bytes())?;
        let pair = |pair: &Sides| {
            pair.as_ref().map(|(q, k)| Ok::<_, consonance::cuda::Error>((self.upload(q)?, self.upload(k)?)))
        };
        let (labels, ids) = (pair(&case.labels).transpose()?, pair(&case.ids).transpose()?);
        let (b, n) = (case.queries.rows(), case.bank.rows());
        let sides = |pair: &'_ (Memory, Memory)| -> Result<(Words<'_>, Words<'_>)> {
            // SAFETY: both were uploaded from as many words as they hold.
            unsafe {
                let words = |memory: &Memory| Words::from_address(memory.address(), memory.bytes() / 4);
                Ok((words(&pair.0), words(&pair.1)))
            }
        };
        let labels = labels.as_ref().map(sides).transpose()?;
        let orders = labels
            .map(|(q, k)| {
                Ok::<_, consonance::cuda::Error>((segments::sort(executor, q)?, segments::sort(executor, k)?))
            })
            .transpose()?;
        let mask = case.allow.as_ref().map(|allow| {
            let bytes: Vec<u8> = allow.iter().map(|on| u8::from(*on)).collect();
            let mask = executor.upload(OP, &bytes)?;
            pack_bits(executor, Bytes::new(OP, "allow", &mask, n)?)
        });
        let mask = mask.transpose()?;
        let search = Search {
            queries: self.matrix(&case.queries, &queries)?,
            bank: self.matrix(&case.bank, &bank)?,
            k: case.k,
            metric: case.metric,
            labels: labels.zip(orders.as_ref()).map(
                |((query_labels, key_labels), (query_order, key_order))| Classes {
                    query_labels,
                    key_labels,
                    query_order,
                    key_order,
                },
            ),
            ids: ids.as_ref().map(sides).transpose()?,
            allow: mask.as_ref().map(|bits| Words::new(OP, "allow", bits, n.div_ceil(32))).transpose()?,
        };
        let found = neighbors(executor, &search)?;
        found.check(executor)?;
        let (scores, indices) =
            (self.words(&found.scores, b * case.k)?, self.words(&found.indices, b * case.k)?);
        Ok(Neighbors { k: case.k, scores, indices })
    }

    fn gradient(&self, case: &NeighborsCase, indices: &[u32], upstream: &[f32]) -> Result<Gradients> {
        let executor = &self.executor;
        let queries = executor.upload(OP, &case.queries.bytes())?;
        let bank = executor.upload(OP, &case.bank.bytes())?;
        let sides = (&self.matrix(&case.queries, &queries)?, &self.matrix(&case.bank, &bank)?);
        let (upstream_memory, index_memory) =
            (executor.upload(OP, bytemuck::cast_slice(upstream))?, self.upload(indices)?);
        let pairs = (
            Words::new(OP, "upstream", &upstream_memory, upstream.len())?,
            Words::new(OP, "indices", &index_memory, indices.len())?,
        );
        let dq = gradient(executor, sides, case.metric, case.k, pairs, Side::Queries)?;
        let dk = gradient(executor, sides, case.metric, case.k, pairs, Side::Bank)?;
        let dim = case.bank.cols();
        Ok((self.words(&dq, case.queries.rows() * dim)?, self.words(&dk, case.bank.rows() * dim)?))
    }
}

impl<E: Executor> Backend for OnDevice<E> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn neighbors(&self, case: &NeighborsCase) -> std::result::Result<Neighbors, String> {
        self.search(case).map_err(|error| error.to_string())
    }

    fn gradients(
        &self,
        case: &NeighborsCase,
        indices: &[u32],
        upstream: &[f32],
    ) -> std::result::Result<Gradients, String> {
        self.gradient(case, indices, upstream).map_err(|error| error.to_string())
    }

    fn ranking(&self, case: &RankingCase) -> std::result::Result<Ranking, String> {
        let run = || {
            let queries = self.executor.upload(OP, &case.queries.bytes())?;
            let gallery = self.executor.upload(OP, &case.gallery.bytes())?;
            let (queries, gallery) =
                (self.matrix(&case.queries, &queries)?, self.matrix(&case.gallery, &gallery)?);
            ranking::ranking(&self.executor, &queries, &gallery, &case.options())
        };
        run().map_err(|error| error.to_string())
    }

    fn contrast(&self, case: &ContrastCase) -> std::result::Result<ContrastFound, String> {
        self.contrast_of(case).map_err(|error| error.to_string())
    }

    fn symmetric(&self, case: &SymmetricCase) -> std::result::Result<SymmetricFound, String> {
        self.symmetric_of(case).map_err(|error| error.to_string())
    }

    fn divergence(&self, case: &DivergenceCase) -> std::result::Result<DivergenceFound, String> {
        self.divergence_of(case).map_err(|error| error.to_string())
    }

    fn gathered(&self, case: &GatheredCase, gradients: bool) -> std::result::Result<GatheredFound, String> {
        self.gathered_of(case, gradients).map_err(|error| error.to_string())
    }

    fn update_rows(&self, case: &UpdateCase) -> std::result::Result<Updated, String> {
        self.updated(case).map_err(|error| error.to_string())
    }

    fn push(&self, case: &PushCase) -> std::result::Result<Pushed, String> {
        self.pushed(case).map_err(|error| error.to_string())
    }

    fn update_centers(&self, case: &CentersCase) -> std::result::Result<Updated, String> {
        self.centered(case).map_err(|error| error.to_string())
    }

    fn clips(&self, case: &ClipsCase) -> std::result::Result<Vec<f32>, String> {
        self.augmented(case).map_err(|error| error.to_string())
    }

    fn cam(&self, case: &CamCase) -> std::result::Result<Vec<f32>, String> {
        self.cam_of(case).map_err(|error| error.to_string())
    }

    fn masked_blend(&self, case: &BlendCase) -> std::result::Result<Vec<f32>, String> {
        self.blend_of(case).map_err(|error| error.to_string())
    }

    fn backgrounds(&self, case: &BackgroundsCase) -> std::result::Result<Backgrounds, String> {
        self.backgrounds_of(case).map_err(|error| error.to_string())
    }

    fn clusters(&self, case: &ClustersCase) -> std::result::Result<SubClusters, String> {
        self.clustered(case)
    }

    fn soft_assignment(&self, case: &SoftCase) -> std::result::Result<SoftAssignment, String> {
        self.soft_assignment_of(case).map_err(|error| error.to_string())
    }

    fn soft_centroids(&self, case: &SoftCase) -> std::result::Result<SoftCentroids, String> {
        self.soft_centroids_of(case).map_err(|error| error.to_string())
    }

    fn credibility(&self, case: &CredibilityCase) -> std::result::Result<Credibility, String> {
        self.credibility_of(case).map_err(|error| error.to_string())
    }
}
