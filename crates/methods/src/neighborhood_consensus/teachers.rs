//! What is known of the old embeddings before training: neighborhoods, sub-clusters, credibility.

use candle_core::{DType, Device, Tensor};
use consonance::{
    AffinityMap, Bank, ClusterCount, ClusterStart, CredibilityOptions, Entries, Limit, Neighbors,
    NeighborsOptions, Pairs, Rule, SubClusters, SubClustersOptions,
};

use super::METHOD;
use super::config::{CredibilityRule, CredibilityScope, NeighborhoodConsensusConfig, Positives, Weights};
use crate::error::{Error, Result};
use crate::{Batch, OldBank};

/// The keys of one step, all in the old space.
pub(super) struct Keys {
    /// `[n, Do]`.
    pub(super) embeddings: Tensor,
    labels: Tensor,
    credible: Tensor,
    /// Rows of the bank; absent when key j is row j.
    rows: Option<Tensor>,
}

#[derive(Debug)]
struct Clusters {
    /// The cluster of every row of the bank `[N]`.
    assignment: Tensor,
    /// The rows of every cluster, ascending, when weights come from the soft assignment.
    members: Vec<Vec<u32>>,
    /// The soft assignment of every row to its own cluster.
    weight: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Teachers {
    embeddings: Tensor,
    labels: Tensor,
    credible: Tensor,
    filtered: bool,
    clusters: Option<Clusters>,
    /// Neighbors of every row among the credible ones, when the whole bank is the keys.
    neighbors: Option<(Tensor, Option<Tensor>)>,
}

impl Teachers {
    pub(super) fn new(config: &NeighborhoodConsensusConfig, bank: &OldBank<'_>) -> Result<Self> {
        let embeddings = bank.embeddings.detach();
        let device = embeddings.device().clone();
        let rows = embeddings.dim(0)?;
        let most = match config.positives {
            Positives::SubClusters { most } => most,
            _ => 8,
        };
        let needs_clusters = matches!(config.positives, Positives::SubClusters { .. })
            || config.credibility.as_ref().is_some_and(|c| c.scope == CredibilityScope::SubCluster);
        let found = match needs_clusters {
            true => {
                let options = SubClustersOptions::new()
                    .with_count(ClusterCount::SquareRoot { max: most })
                    .with_start(ClusterStart::PlusPlus { seed: bank.seed });
                Some(consonance::sub_clusters(&embeddings, Some(bank.labels), &options)?)
            }
            false => None,
        };
        let credible = match &config.credibility {
            None => Tensor::ones(rows, DType::U8, &device)?,
            Some(filter) => {
                let rule = match filter.rule {
                    CredibilityRule::OwnProbability { share } => Rule::OwnProbability(Limit::Share(share)),
                    CredibilityRule::Entropy { share } => Rule::Entropy(Limit::Share(share)),
                };
                let mut options = CredibilityOptions::new().with_rule(rule);
                if let Some(nearest) = filter.nearest {
                    options = options.with_nearest(nearest);
                }
                if let (CredibilityScope::SubCluster, Some(found)) = (filter.scope, &found) {
                    options = options.with_sub_clusters(found);
                }
                consonance::credibility(&embeddings, bank.labels, &options)?.credible
            }
        };
        let clusters = match (config.positives, found) {
            (Positives::SubClusters { .. }, Some(found)) => {
                Some(Clusters::new(config.weights, &embeddings, &found)?)
            }
            _ => None,
        };
        let mut teachers = Self {
            embeddings,
            labels: bank.labels.clone(),
            credible,
            filtered: config.credibility.is_some(),
            clusters,
            neighbors: None,
        };
        teachers.find_neighbors(config)?;
        Ok(teachers)
    }

    fn find_neighbors(&mut self, config: &NeighborhoodConsensusConfig) -> Result<()> {
        self.neighbors = match (config.positives, config.keys) {
            (Positives::ClassNeighbors { .. } | Positives::Neighbors { .. }, super::Keys::Whole) => {
                let keys = self.keys(None)?;
                Some(self.search(config, &self.embeddings, &self.labels, &keys)?)
            }
            _ => None,
        };
        Ok(())
    }

    /// The neighbors of old embeddings among the credible keys, and their weights.
    fn search(
        &self,
        config: &NeighborhoodConsensusConfig,
        queries: &Tensor,
        labels: &Tensor,
        keys: &Keys,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let options = match config.positives {
            Positives::ClassNeighbors { k } => NeighborsOptions::new(k).same_label(labels, &keys.labels),
            Positives::Neighbors { k } => NeighborsOptions::new(k),
            Positives::Class | Positives::SubClusters { .. } => NeighborsOptions::new(1),
        };
        let options = options.allow(&keys.credible);
        let Neighbors { scores, indices } = consonance::neighbors(queries, &keys.embeddings, &options)?;
        let cosines = scores.clamp(-1.0, 1.0)?;
        let weights = match config.weights {
            Weights::Half => Some(((cosines + 1.0)? * 0.5)?),
            Weights::Exp { temperature } => Some(((cosines - 1.0)? / temperature)?.exp()?),
            Weights::Uniform | Weights::SoftAssignment { .. } => None,
        };
        Ok((indices, weights))
    }

    pub(super) fn credible(&self) -> &Tensor {
        &self.credible
    }

    pub(super) fn set_credible(
        &mut self,
        config: &NeighborhoodConsensusConfig,
        credible: &Tensor,
    ) -> Result<()> {
        let rows = self.labels.dim(0)?;
        if credible.dims() != [rows] || credible.dtype() != DType::U8 {
            let got = format!("{:?} of {:?}", credible.dims(), credible.dtype());
            return Err(Error::argument(METHOD, "credible", got, format!("[{rows}] of U8")));
        }
        if !self.filtered {
            return Err(Error::argument(
                METHOD,
                "credible",
                "a mask",
                "settings with the credibility filter",
            ));
        }
        self.credible = credible.clone();
        self.find_neighbors(config)
    }

    /// Checks that rows `[n]`, u32, are rows of the bank.
    pub(super) fn check_rows(&self, rows: &Tensor) -> Result<()> {
        let largest = rows.max(0)?.to_scalar::<u32>()?;
        let count = self.labels.dim(0)?;
        if largest as usize >= count {
            return Err(Error::argument(
                METHOD,
                "indices",
                largest,
                format!("rows of the bank in 0..{count}"),
            ));
        }
        Ok(())
    }

    /// Checks that the batch comes from the bank.
    pub(super) fn check_indices(&self, batch: &Batch<'_>) -> Result<()> {
        self.check_rows(batch.indices)?;
        let (got, expected) = (batch.old.dim(1)?, self.embeddings.dim(1)?);
        if got != expected {
            return Err(Error::argument(
                METHOD,
                "old",
                format!("of dimension {got}"),
                format!("{expected}, as the bank"),
            ));
        }
        Ok(())
    }

    /// Pushes rows of the bank into a queue, in this order.
    pub(super) fn refill(&self, queue: &mut Bank, rows: &Tensor) -> Result<()> {
        queue.push_entries(&Entries {
            embeddings: &self.embeddings.index_select(rows, 0)?,
            labels: &self.labels.index_select(rows, 0)?,
            ids: Some(rows),
            credible: Some(&self.credible.index_select(rows, 0)?),
        })?;
        Ok(())
    }

    /// The whole bank, or the filled part of the queue.
    pub(super) fn keys(&self, queue: Option<&Bank>) -> Result<Keys> {
        Ok(match queue {
            None => Keys {
                embeddings: self.embeddings.clone(),
                labels: self.labels.clone(),
                credible: self.credible.clone(),
                rows: None,
            },
            Some(queue) => {
                let filled = |x: &Tensor| x.narrow(0, 0, queue.len());
                Keys {
                    embeddings: queue.filled()?,
                    labels: filled(queue.labels())?,
                    credible: filled(queue.valid())?,
                    rows: Some(filled(queue.ids())?),
                }
            }
        })
    }

    /// Who teaches whom, with which weight.
    pub(super) fn pairs(
        &self,
        config: &NeighborhoodConsensusConfig,
        batch: &Batch<'_>,
        keys: &Keys,
    ) -> Result<Pairs> {
        let old = batch.old.detach();
        let weighted = |pairs: Pairs| match config.weights {
            Weights::Half => pairs.affinity(&old, &keys.embeddings, AffinityMap::Half),
            Weights::Exp { temperature } => {
                let temperature = temperature as f32;
                pairs.affinity(&old, &keys.embeddings, AffinityMap::Exp { temperature })
            }
            Weights::Uniform | Weights::SoftAssignment { .. } => pairs,
        };
        let pairs = match (config.positives, &self.clusters) {
            (Positives::ClassNeighbors { .. } | Positives::Neighbors { .. }, _) => {
                let (indices, weights) = match &self.neighbors {
                    Some((indices, weights)) => {
                        let rows = |x: &Tensor| x.index_select(batch.indices, 0);
                        (rows(indices)?, weights.as_ref().map(rows).transpose()?)
                    }
                    None => self.search(config, &old, batch.labels, keys)?,
                };
                Pairs::neighbors(&indices, weights.as_ref())
            }
            (Positives::SubClusters { .. }, Some(clusters)) => match config.weights {
                Weights::SoftAssignment { .. } => clusters.lists(batch.indices, keys)?,
                _ => {
                    let of = |rows: &Tensor| clusters.assignment.index_select(rows, 0);
                    let own = of(batch.indices)?;
                    let theirs = match &keys.rows {
                        Some(rows) => of(rows)?,
                        None => clusters.assignment.clone(),
                    };
                    weighted(Pairs::labels(&own, &theirs))
                }
            },
            _ => weighted(Pairs::labels(batch.labels, &keys.labels)),
        };
        // Neighbors of any class know nothing of labels.
        let by_label = !matches!(config.positives, Positives::Class | Positives::Neighbors { .. });
        let pairs = match by_label && !config.same_class_negatives {
            true => pairs.leave_out_same_label(batch.labels, &keys.labels),
            false => pairs,
        };
        Ok(match &config.credibility {
            Some(filter) if filter.leave_denominator => pairs.valid(&keys.credible),
            Some(_) => pairs.credible_positives(&keys.credible),
            None => pairs,
        })
    }
}

impl Clusters {
    fn new(weights: Weights, embeddings: &Tensor, found: &SubClusters) -> Result<Self> {
        let mut clusters =
            Self { assignment: found.assignment.clone(), members: Vec::new(), weight: Vec::new() };
        let Weights::SoftAssignment { temperature } = weights else { return Ok(clusters) };
        let assignment = found.assignment.to_vec1::<u32>()?;
        let centroids = found.centroids.to_vec2::<f32>()?;
        clusters.members = vec![Vec::new(); centroids.len()];
        for (row, x) in embeddings.to_vec2::<f32>()?.iter().enumerate() {
            let own = assignment[row] as usize;
            clusters.members[own].push(row as u32);
            let class = found.offsets.partition_point(|start| *start <= own) - 1;
            let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let cosine = |c: usize| -> f64 {
                let dot: f64 = x.iter().zip(&centroids[c]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                dot / norm.max(f64::MIN_POSITIVE)
            };
            let score = cosine(own);
            let sum: f64 = (found.offsets[class]..found.offsets[class + 1])
                .map(|c| ((cosine(c) - score) / temperature).exp())
                .sum();
            clusters.weight.push((1.0 / sum) as f32);
        }
        Ok(clusters)
    }

    /// Lists of the batch's own clusters, weighted by the soft assignment of each member.
    fn lists(&self, indices: &Tensor, keys: &Keys) -> Result<Pairs> {
        let assignment = self.assignment.index_select(indices, 0)?.to_vec1::<u32>()?;
        // In a queue, a row of the bank may lie in several slots, or in none.
        let slots: Option<Vec<(u32, u32)>> = match &keys.rows {
            Some(rows) => {
                let mut slots: Vec<(u32, u32)> = rows
                    .to_vec1::<u32>()?
                    .into_iter()
                    .enumerate()
                    .map(|(slot, row)| (row, slot as u32))
                    .collect();
                slots.sort_unstable();
                Some(slots)
            }
            None => None,
        };
        let (mut offsets, mut list, mut weights) = (vec![0u32], Vec::new(), Vec::new());
        for cluster in assignment {
            for row in &self.members[cluster as usize] {
                let weight = self.weight[*row as usize];
                match &slots {
                    None => {
                        list.push(*row);
                        weights.push(weight);
                    }
                    Some(slots) => {
                        let start = slots.partition_point(|(r, _)| r < row);
                        for (_, slot) in slots[start..].iter().take_while(|(r, _)| r == row) {
                            list.push(*slot);
                            weights.push(weight);
                        }
                    }
                }
            }
            offsets.push(list.len() as u32);
        }
        let tensor = |x: Vec<u32>| Tensor::new(x, &Device::Cpu);
        let weights = Tensor::new(weights, &Device::Cpu)?;
        Ok(Pairs::lists(&tensor(offsets)?, &tensor(list)?, Some(&weights)))
    }
}
