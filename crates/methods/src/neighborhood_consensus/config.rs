//! The choices of neighborhood consensus.

use serde::{Deserialize, Serialize};

use super::METHOD;
use crate::DimensionMatch;
use crate::error::{Error, Result, not_negative, positive};

/// Which old embeddings teach a new one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Positives {
    /// All of the image's class.
    #[default]
    Class,
    /// The k nearest of the image's class to its own old embedding: a hard sub-cluster.
    ClassNeighbors {
        /// How many, the own one included.
        k: usize,
    },
    /// The k nearest of any class: no labels needed.
    Neighbors {
        /// How many, the own one included.
        k: usize,
    },
    /// Those of the image's own sub-cluster: spherical k-means inside every class of the bank, with
    /// clip(round(√(n/2)), 1, `most`) clusters for a class of n rows.
    SubClusters {
        /// The largest number of sub-clusters of a class.
        most: usize,
    },
}

/// How much a teacher counts, by the cosine of its old embedding and the image's own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Weights {
    /// ½(1 + cos).
    Half,
    /// e^{(cos − 1)/temperature}: forgets other sub-clusters faster.
    Exp {
        /// Finite and above 0.
        temperature: f64,
    },
    /// 1: supervised contrast against old embeddings, the ablation.
    Uniform,
    /// The teacher's soft assignment to the image's sub-cluster, a softmax over the class's centroids of
    /// cos/temperature; for [`Positives::SubClusters`] only.
    SoftAssignment {
        /// Finite and above 0.
        temperature: f64,
    },
}

/// What divides the weights of an anchor's teachers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalization {
    /// Their number.
    Count,
    /// The sum of their weights.
    WeightSum,
}

/// Where an anchor's other teachers stand when one of them is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherTeachers {
    /// In the denominator, like every key (the published form).
    InDenominator,
    /// Left out: teachers of one anchor do not repel each other.
    LeftOut,
}

/// The loss in the space of class scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Discrimination {
    /// None.
    None,
    /// Contrast of score vectors.
    Raw {
        /// Cosines of score vectors in place of inner products.
        cosine: bool,
    },
    /// Contrast of class distributions softmax(scores/softening).
    Soft {
        /// Finite and above 0.
        softening: f64,
    },
    /// Divergence from the weighted mean of the teachers' class distributions softmax(scores/softening).
    Kl {
        /// Finite and above 0.
        softening: f64,
    },
}

/// What an old embedding is compared with to judge its credibility.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredibilityScope {
    /// Class means.
    #[default]
    Class,
    /// Means of sub-clusters.
    SubCluster,
}

/// When an old embedding is believed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CredibilityRule {
    /// −ln p(own class) ≤ share · ln(number of classes): finds embeddings that sit in a wrong class.
    OwnProbability {
        /// Above 0; 0.9 finds planted label noise best.
        share: f64,
    },
    /// H ≤ share · ln(number of centroids): the published rule has a share of ½.
    Entropy {
        /// Above 0.
        share: f64,
    },
}

/// The credibility filter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredibilityConfig {
    /// The centroids.
    pub scope: CredibilityScope,
    /// The entropy over the m nearest centroids only; over all when absent.
    pub nearest: Option<usize>,
    /// The rule.
    pub rule: CredibilityRule,
    /// Whether rows that are not credible leave the denominator too, or only the teachers.
    pub leave_denominator: bool,
}

impl Default for CredibilityConfig {
    fn default() -> Self {
        Self {
            scope: CredibilityScope::Class,
            nearest: None,
            rule: CredibilityRule::OwnProbability { share: 0.9 },
            leave_denominator: true,
        }
    }
}

/// Which old embeddings are the keys of a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Keys {
    /// The whole bank.
    #[default]
    Whole,
    /// The last `length` that batches have brought, the current one included (first in, first out).
    Queue {
        /// At least the batch size.
        length: usize,
    },
}

/// Settings of [`NeighborhoodConsensus`](super::NeighborhoodConsensus).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NeighborhoodConsensusConfig {
    /// Weight α of the loss in the embedding space.
    pub alpha: f64,
    /// Weight β of the loss in the discrimination space.
    pub beta: f64,
    /// Temperature τ of the embedding space.
    pub temperature: f64,
    /// Temperature τ₂ of contrasts in the discrimination space.
    pub score_temperature: f64,
    /// The teachers.
    pub positives: Positives,
    /// Their weights.
    pub weights: Weights,
    /// What divides the weights.
    pub normalization: Normalization,
    /// Where the other teachers stand.
    pub other_teachers: OtherTeachers,
    /// Whether keys of the anchor's class that are not its teachers are negatives; else they are left out.
    pub same_class_negatives: bool,
    /// The loss in the discrimination space.
    pub discrimination: Discrimination,
    /// The credibility filter; none when absent.
    pub credibility: Option<CredibilityConfig>,
    /// The keys.
    pub keys: Keys,
    /// What to do when the dimensions differ.
    pub dimensions: DimensionMatch,
}

impl Default for NeighborhoodConsensusConfig {
    fn default() -> Self {
        Self {
            alpha: 4.0,
            beta: 0.1,
            temperature: 0.07,
            score_temperature: 0.1,
            positives: Positives::Class,
            weights: Weights::Half,
            normalization: Normalization::WeightSum,
            other_teachers: OtherTeachers::LeftOut,
            same_class_negatives: false,
            discrimination: Discrimination::Kl { softening: 1.0 },
            credibility: Some(CredibilityConfig::default()),
            keys: Keys::Whole,
            dimensions: DimensionMatch::ZeroPad,
        }
    }
}

impl NeighborhoodConsensusConfig {
    /// The constants of the public re-implementation: α = 1, β = 0.01, a queue of 8,192, τ = τ₂ = 1, weights
    /// ½(1 + cos) divided by their number, all teachers in the denominator, plain score vectors, no filter.
    #[must_use]
    pub fn published() -> Self {
        Self {
            alpha: 1.0,
            beta: 0.01,
            temperature: 1.0,
            score_temperature: 1.0,
            normalization: Normalization::Count,
            other_teachers: OtherTeachers::InDenominator,
            discrimination: Discrimination::Raw { cosine: false },
            credibility: None,
            keys: Keys::Queue { length: 8192 },
            ..Self::default()
        }
    }

    /// Checks every range, and choices that exclude each other.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        not_negative(METHOD, "alpha", self.alpha)?;
        not_negative(METHOD, "beta", self.beta)?;
        positive(METHOD, "temperature", self.temperature)?;
        positive(METHOD, "score_temperature", self.score_temperature)?;
        match self.positives {
            Positives::ClassNeighbors { k } | Positives::Neighbors { k }
                if k == 0 || k > consonance::MAX_K =>
            {
                let expected = format!("a number of neighbors in 1..={}", consonance::MAX_K);
                return Err(Error::argument(METHOD, "k", k, expected));
            }
            Positives::SubClusters { most: 0 } => {
                return Err(Error::argument(METHOD, "most", 0, "at least one sub-cluster a class"));
            }
            _ => {}
        }
        match (self.weights, self.positives) {
            (Weights::SoftAssignment { .. }, Positives::Class | Positives::ClassNeighbors { .. })
            | (Weights::SoftAssignment { .. }, Positives::Neighbors { .. }) => {
                let expected = "half, exp or uniform, unless the positives are sub-clusters";
                return Err(Error::argument(METHOD, "weights", "soft-assignment", expected));
            }
            (Weights::Exp { temperature } | Weights::SoftAssignment { temperature }, _) => {
                positive(METHOD, "weights.temperature", temperature)?;
            }
            _ => {}
        }
        if let Discrimination::Soft { softening } | Discrimination::Kl { softening } = self.discrimination {
            positive(METHOD, "softening", softening)?;
        }
        if let Some(filter) = &self.credibility {
            let (CredibilityRule::OwnProbability { share } | CredibilityRule::Entropy { share }) =
                filter.rule;
            positive(METHOD, "credibility.share", share)?;
            if filter.nearest.is_some_and(|m| m < 2) {
                let expected = "at least 2 centroids: the entropy over one is always 0";
                return Err(Error::argument(
                    METHOD,
                    "credibility.nearest",
                    filter.nearest.unwrap_or(0),
                    expected,
                ));
            }
        }
        if self.keys == (Keys::Queue { length: 0 }) {
            return Err(Error::argument(METHOD, "length", 0, "a queue of at least one batch"));
        }
        Ok(())
    }
}
