//! A digest of everything that a backend answers.

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};

use consonance_cpu::cam::Backgrounds;
use consonance_cpu::clusters::SubClusters;
use consonance_cpu::credibility::Credibility;
use consonance_cpu::neighbors::Neighbors;
use consonance_cpu::ranking::Ranking;
use consonance_cpu::soft_assignment::{SoftAssignment, SoftCentroids};

use super::{
    Backend, BackgroundsCase, BlendCase, CamCase, CentersCase, ClipsCase, ClustersCase, ContrastCase,
    ContrastFound, CredibilityCase, DivergenceCase, DivergenceFound, GatheredCase, GatheredFound, Gradients,
    NeighborsCase, PushCase, Pushed, RankingCase, SoftCase, SymmetricCase, SymmetricFound, UpdateCase,
    Updated,
};

/// A backend whose answers are added up, bit for bit: two runs of the same checks gave the same bits when their
/// digests are equal.
pub struct Recorded<B> {
    backend: B,
    digest: RefCell<DefaultHasher>,
}

impl<B> Recorded<B> {
    /// Nothing answered yet.
    pub fn new(backend: B) -> Self {
        Self { backend, digest: RefCell::default() }
    }

    /// What answers.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The digest of all answers so far.
    pub fn digest(&self) -> u64 {
        self.digest.borrow().finish()
    }

    fn add(&self, floats: &[f32]) {
        floats.iter().for_each(|value| value.to_bits().hash(&mut *self.digest.borrow_mut()));
    }

    fn add_assignment(&self, found: &SoftAssignment) {
        for floats in [&found.log_sum_exp, &found.entropy, &found.best_probability, &found.probabilities] {
            self.add(floats);
        }
        (&found.best, &found.indices).hash(&mut *self.digest.borrow_mut());
    }
}

impl<B: Backend> Backend for Recorded<B> {
    fn name(&self) -> String {
        self.backend.name()
    }

    fn neighbors(&self, case: &NeighborsCase) -> Result<Neighbors, String> {
        let found = self.backend.neighbors(case)?;
        self.add(&found.scores);
        found.indices.hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn gradients(
        &self,
        case: &NeighborsCase,
        indices: &[u32],
        upstream: &[f32],
    ) -> Result<Gradients, String> {
        let gradients = self.backend.gradients(case, indices, upstream)?;
        self.add(&gradients.0);
        self.add(&gradients.1);
        Ok(gradients)
    }

    fn ranking(&self, case: &RankingCase) -> Result<Ranking, String> {
        let ranking = self.backend.ranking(case)?;
        ranking.ranks.hash(&mut *self.digest.borrow_mut());
        Ok(ranking)
    }

    fn contrast(&self, case: &ContrastCase) -> Result<ContrastFound, String> {
        let found = self.backend.contrast(case)?;
        for floats in [&found.per_row, &found.log_sum_exp, &found.queries, &found.temperatures, &found.keys] {
            self.add(floats);
        }
        found.counted.hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn symmetric(&self, case: &SymmetricCase) -> Result<SymmetricFound, String> {
        let found = self.backend.symmetric(case)?;
        for floats in [&found.x, &found.y] {
            self.add(floats);
        }
        for found in &found.directions {
            for floats in [&found.per_row, &found.log_sum_exp, &found.temperatures] {
                self.add(floats);
            }
            found.counted.hash(&mut *self.digest.borrow_mut());
        }
        Ok(found)
    }

    fn divergence(&self, case: &DivergenceCase) -> Result<DivergenceFound, String> {
        let found = self.backend.divergence(case)?;
        for floats in
            [&found.per_row, &found.log_sum_exp, &found.teacher_log_sum_exp, &found.queries, &found.keys]
        {
            self.add(floats);
        }
        found.counted.hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn gathered(&self, case: &GatheredCase, gradients: bool) -> Result<GatheredFound, String> {
        let found = self.backend.gathered(case, gradients)?;
        for floats in [&found.per_row, &found.log_sum_exp, &found.queries, &found.temperatures] {
            self.add(floats);
        }
        found.counted.hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn update_rows(&self, case: &UpdateCase) -> Result<Updated, String> {
        let found = self.backend.update_rows(case)?;
        self.add(&found.0);
        Ok(found)
    }

    fn push(&self, case: &PushCase) -> Result<Pushed, String> {
        let found = self.backend.push(case)?;
        self.add(&found.keys);
        (&found.labels, &found.ids, &found.credible).hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn update_centers(&self, case: &CentersCase) -> Result<Updated, String> {
        let found = self.backend.update_centers(case)?;
        self.add(&found.0);
        Ok(found)
    }

    fn clips(&self, case: &ClipsCase) -> Result<Vec<f32>, String> {
        let found = self.backend.clips(case)?;
        self.add(&found);
        Ok(found)
    }

    fn cam(&self, case: &CamCase) -> Result<Vec<f32>, String> {
        let found = self.backend.cam(case)?;
        self.add(&found);
        Ok(found)
    }

    fn masked_blend(&self, case: &BlendCase) -> Result<Vec<f32>, String> {
        let found = self.backend.masked_blend(case)?;
        self.add(&found);
        Ok(found)
    }

    fn backgrounds(&self, case: &BackgroundsCase) -> Result<Backgrounds, String> {
        let found = self.backend.backgrounds(case)?;
        self.add(&found.images);
        (&found.rectangles, &found.found).hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn clusters(&self, case: &ClustersCase) -> Result<SubClusters, String> {
        let found = self.backend.clusters(case)?;
        for floats in [&found.centroids, &found.spread, &found.mean_distance, &found.margin] {
            self.add(floats);
        }
        found.inertia.iter().for_each(|value| value.to_bits().hash(&mut *self.digest.borrow_mut()));
        (&found.sizes, &found.assignment, &found.iterations).hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }

    fn soft_assignment(&self, case: &SoftCase) -> Result<SoftAssignment, String> {
        let found = self.backend.soft_assignment(case)?;
        self.add_assignment(&found);
        Ok(found)
    }

    fn soft_centroids(&self, case: &SoftCase) -> Result<SoftCentroids, String> {
        let found = self.backend.soft_centroids(case)?;
        self.add(&found.centroids);
        self.add(&found.mass);
        self.add_assignment(&found.assignment);
        Ok(found)
    }

    fn credibility(&self, case: &CredibilityCase) -> Result<Credibility, String> {
        let found = self.backend.credibility(case)?;
        for floats in [&found.entropy, &found.own_probability, &found.suspicion, &found.margin] {
            self.add(floats);
        }
        (&found.credible, &found.closer, &found.predicted).hash(&mut *self.digest.borrow_mut());
        Ok(found)
    }
}
