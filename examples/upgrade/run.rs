//! One seed of a run: the old model, the new models, their tests, and the files of each.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use consonance::Bank;
use consonance_datasets::{Dataset, Split};
use consonance_methods::{MethodConfig, OldBank, Procrustes, build, fit};
use consonance_metrics::RefreshCurve;

use crate::evaluate::{self, Embedded, Score, refresh, search};
use crate::network::Network;
use crate::options::{Config, Row};
use crate::progress::Progress;
use crate::random::Draws;
use crate::trainer::{Lesson, Recipe, embed, train};
use crate::{Failure, checkpoint, failure};

/// What one row of the table comes to at one seed.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    /// Queries and gallery by the row's own model.
    pub(crate) own: Score,
    /// Its queries in the old gallery; the old model has none.
    pub(crate) cross: Option<Score>,
    pub(crate) curve: Option<RefreshCurve>,
}

/// One seed's work: folders, data and what to say.
pub(crate) struct Run<'a> {
    pub(crate) config: &'a Config,
    pub(crate) data: &'a Dataset,
    pub(crate) out: &'a Path,
    pub(crate) seed: u64,
    pub(crate) progress: &'a Progress,
}

/// The old model's side, as a system has it stored.
pub(crate) struct OldSide {
    /// Embeddings `[N, Do]` of the new training images.
    pub(crate) train: Tensor,
    /// The labels of those images.
    pub(crate) labels: Tensor,
    pub(crate) test: Embedded,
    pub(crate) score: Score,
}

impl Run<'_> {
    pub(crate) fn folder(&self) -> PathBuf {
        self.out.join(format!("seed-{}", self.seed))
    }

    /// Old and new models start from other weights, and so do the seeds.
    fn key(&self, what: u64) -> u64 {
        Draws::new(&[self.seed, what]).bits()
    }

    fn train(
        &self,
        name: &str,
        (split, classes): (&Split, usize),
        (recipe, seed): (&Recipe, u64),
        method: Option<(&MethodConfig, &Tensor, &Tensor)>,
    ) -> Result<Network, Failure> {
        let path = self.folder().join("checkpoints").join(format!("{name}.safetensors"));
        let method = match method {
            None => None,
            Some((config, embeddings, labels)) => {
                let dimension = recipe.architecture.dim;
                let bank = OldBank { embeddings, labels, classes, dimension, seed };
                Some((build(config, &bank)?, embeddings.clone()))
            }
        };
        let shown =
            if self.config.seeds.len() > 1 { format!("{name}, seed {}", self.seed) } else { name.to_owned() };
        let size = (self.data.height, self.data.width);
        let mut lesson =
            Lesson { name: shown, split, size, classes, recipe, seed, method, checkpoint: Some(&path) };
        train(&mut lesson, self.progress)
    }

    /// Trains the old model on its share of the identities, embeds all images with it and stores the bank.
    pub(crate) fn old(&self) -> Result<(OldSide, Outcome), Failure> {
        let (split, classes) = self.data.train_subset(self.config.old_share)?;
        let network = self.train("old", (&split, classes), (&self.config.old, self.key(0)), None)?;
        let embeddings = embed(&network, &self.data.train)?;
        let labels = evaluate::labels(&self.data.train)?;
        let test = Embedded::new(&network, self.data)?;
        let score = search(self.data, &test.query, &test.gallery)?;
        let banks = self.folder().join("banks");
        std::fs::create_dir_all(&banks).map_err(|e| failure(format!("{}: {e}", banks.display())))?;
        Bank::from_embeddings(&embeddings, &labels)?.save(&banks.join("old-train.safetensors"))?;
        let gallery_labels = evaluate::labels(&self.data.gallery)?;
        Bank::from_embeddings(&test.gallery, &gallery_labels)?
            .save(&banks.join("old-gallery.safetensors"))?;
        self.save_embeddings("old", &test, &embeddings)?;
        let outcome = Outcome { name: "old".into(), own: score, cross: None, curve: None };
        Ok((OldSide { train: embeddings, labels, test, score }, outcome))
    }

    fn save_embeddings(&self, name: &str, test: &Embedded, train: &Tensor) -> Result<(), Failure> {
        let path = self.folder().join("embeddings").join(format!("{name}.safetensors"));
        let tensors = [
            ("train".to_owned(), train.clone()),
            ("query".to_owned(), test.query.clone()),
            ("gallery".to_owned(), test.gallery.clone()),
        ];
        checkpoint::save(&path, &tensors, &HashMap::new())
    }

    /// The cross-test and the refresh curve of a new model.
    fn outcome(&self, name: &str, test: &Embedded, old: &OldSide) -> Result<Outcome, Failure> {
        // Embeddings of other dimensions are compared after padding with zeros.
        let dim = test.query.dim(1)?.max(old.test.gallery.dim(1)?);
        let padded = test.map(|x| Ok(fit(x, dim)?))?;
        let gallery = fit(&old.test.gallery, dim)?;
        let own = search(self.data, &padded.query, &padded.gallery)?;
        let curve = refresh(self.data, &padded, &gallery, self.seed)?;
        let cross = search(self.data, &padded.query, &gallery)?;
        let line = format!(
            "{name}: self mAP {:.1} %, cross mAP {:.1} % (old model: {:.1} %)",
            100.0 * own.map,
            100.0 * cross.map,
            100.0 * old.score.map
        );
        self.progress.say(&line);
        Ok(Outcome { name: name.to_owned(), own, cross: Some(cross), curve: Some(curve) })
    }

    /// Trains with a method over the bank of old embeddings with the given labels, and tests.
    pub(crate) fn method(
        &self,
        name: &str,
        config: &MethodConfig,
        old: &OldSide,
        labels: &Tensor,
    ) -> Result<Outcome, Failure> {
        let split = (&self.data.train, self.data.train_identities);
        let method = Some((config, &old.train, labels));
        let network = self.train(name, split, (&self.config.new, self.key(1)), method)?;
        let test = Embedded::new(&network, self.data)?;
        self.save_embeddings(name, &test, &embed(&network, &self.data.train)?)?;
        self.outcome(name, &test, old)
    }

    /// All rows of the table, the old model first.
    pub(crate) fn rows(&self, old: &OldSide) -> Result<Vec<Outcome>, Failure> {
        let mut alone: Option<(Embedded, Tensor)> = None;
        let mut outcomes = Vec::new();
        for row in &self.config.methods {
            outcomes.push(match row {
                Row::Method { name, config } => self.method(name, config, old, &old.labels)?,
                Row::Independent | Row::Procrustes => {
                    let (test, train) = match &alone {
                        Some(known) => known.clone(),
                        None => self.alone()?,
                    };
                    alone = Some((test.clone(), train.clone()));
                    if *row == Row::Independent {
                        self.outcome("independent", &test, old)?
                    } else {
                        let map = Procrustes::fit(&train, &old.train)?;
                        let mapped = test.map(|x| Ok(map.to_old(x)?))?;
                        self.save_embeddings("procrustes", &mapped, &map.to_old(&train)?)?;
                        self.outcome("procrustes", &mapped, old)?
                    }
                }
            });
        }
        Ok(outcomes)
    }

    /// The new model trained alone, and its embeddings of the training images.
    fn alone(&self) -> Result<(Embedded, Tensor), Failure> {
        let split = (&self.data.train, self.data.train_identities);
        let network = self.train("independent", split, (&self.config.new, self.key(1)), None)?;
        let (test, train) = (Embedded::new(&network, self.data)?, embed(&network, &self.data.train)?);
        self.save_embeddings("independent", &test, &train)?;
        Ok((test, train))
    }

    /// A tensor of u32 labels.
    pub(crate) fn label_tensor(labels: Vec<u32>) -> Result<Tensor, Failure> {
        Ok(Tensor::new(labels, &Device::Cpu)?)
    }
}
