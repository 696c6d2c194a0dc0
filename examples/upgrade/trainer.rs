//! The training of one model: the classifier's loss, what a method adds to it, and a checkpoint after every epoch.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use consonance_datasets::Split;
use consonance_methods::{Batch, CompatibleMethod, CosineClassifier, CosineClassifierConfig};
use serde::{Deserialize, Serialize};

use crate::augment::{self, Augmentation};
use crate::checkpoint::{self, Saved};
use crate::network::{Architecture, Network};
use crate::optimizer::{AdamW, Schedule};
use crate::progress::Progress;
use crate::random::Draws;
use crate::{Failure, failure};

/// Images that pass through a network at once when it only embeds.
const EMBED_BATCH: usize = 256;
/// Marks the keys of the sampling order.
const ORDER: u64 = 0x6f72_6465;

/// How a model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recipe {
    pub(crate) architecture: Architecture,
    pub(crate) epochs: usize,
    pub(crate) batch: usize,
    pub(crate) schedule: Schedule,
    pub(crate) augmentation: Augmentation,
    pub(crate) classifier: CosineClassifierConfig,
}

/// What a model is trained on, and by what.
pub(crate) struct Lesson<'a> {
    /// The row of the table, for the log.
    pub(crate) name: String,
    pub(crate) split: &'a Split,
    pub(crate) size: (usize, usize),
    /// Labels are below it.
    pub(crate) classes: usize,
    pub(crate) recipe: &'a Recipe,
    pub(crate) seed: u64,
    /// A method, and the old embeddings `[N, D]` of the split's images, unit norm.
    pub(crate) method: Option<(Box<dyn CompatibleMethod>, Tensor)>,
    /// Where the checkpoint goes.
    pub(crate) checkpoint: Option<&'a Path>,
}

/// Embeddings `[n, D]` of unit norm of a split's images.
pub(crate) fn embed(network: &Network, split: &Split) -> Result<Tensor, Failure> {
    let mut out = Vec::with_capacity(split.len() * network.dim());
    let all: Vec<usize> = (0..split.len()).collect();
    for indices in all.chunks(EMBED_BATCH) {
        out.extend(network.embed(augment::plain(split, indices))?);
    }
    for row in out.chunks_exact_mut(network.dim()) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        if !(norm.is_finite() && norm > 0.0) {
            return Err(failure("an embedding has no direction; lower the learning rate"));
        }
        row.iter_mut().for_each(|x| *x /= norm);
    }
    Ok(Tensor::from_vec(out, (split.len(), network.dim()), &Device::Cpu)?)
}

/// Rows of unit norm, differentiable.
pub(crate) fn unit_rows(x: &Tensor) -> candle_core::Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?)
}

/// Trains a model, from its checkpoint on if there is one.
pub(crate) fn train(lesson: &mut Lesson<'_>, progress: &Progress) -> Result<Network, Failure> {
    let (recipe, split) = (lesson.recipe, lesson.split);
    let (height, width) = lesson.size;
    let device = &Device::Cpu;
    let network = Network::new(&recipe.architecture, height, width, lesson.seed)?;
    let settings = recipe.classifier.clone();
    let classifier = CosineClassifier::new(lesson.classes, network.dim(), settings, lesson.seed, device)?;
    let mut variables = vec![("network".to_owned(), network.parameters().clone())];
    let named = |prefix: &'static str| move |(i, var)| (format!("{prefix}.{i}"), var);
    variables.extend(classifier.variables().into_iter().enumerate().map(named("classifier")));
    if let Some((method, _)) = &lesson.method {
        variables.extend(method.variables().into_iter().enumerate().map(named("method")));
    }
    let mut optimizer = AdamW::new(recipe.schedule.clone(), variables);

    let mut first = 0;
    if let Some(path) = lesson.checkpoint.filter(|path| path.exists()) {
        let saved = Saved::load(path)?;
        first = saved.number("epochs")?;
        let tensor = |name: &str| saved.tensor(name).map_err(candle_core::Error::wrap);
        optimizer.restore(saved.number("steps")?, tensor)?;
        network.set_running(saved.tensor("running")?.to_vec1()?)?;
        if let Some((method, _)) = &mut lesson.method {
            method.restore(&saved.under("state."))?;
        }
    }

    let labels = split.identities();
    let batches = (split.len() as f64 / recipe.batch as f64).round().max(1.0) as usize;
    let bar = progress.training(&lesson.name, recipe.epochs, batches, first);
    for epoch in first..recipe.epochs {
        if let Some((method, _)) = &mut lesson.method {
            let wanted = method.wants_embeddings(epoch, recipe.epochs);
            let now = if wanted { Some(embed(&network, split)?) } else { None };
            method.start_epoch(epoch, recipe.epochs, now.as_ref())?;
        }
        let order = Draws::new(&[lesson.seed, ORDER, epoch as u64]).permutation(split.len());
        for b in 0..batches {
            // Batches differ by at most one image: batch statistics of a short rest would be noise.
            let rows = &order[b * split.len() / batches..(b + 1) * split.len() / batches];
            let key = [lesson.seed, epoch as u64];
            let images = augment::augmented(split, lesson.size, rows, key, &recipe.augmentation);
            let new = unit_rows(&network.forward(images)?)?;
            let of_rows: Vec<u32> = rows.iter().map(|&i| labels[i]).collect();
            let of_rows = Tensor::from_vec(of_rows, rows.len(), device)?;
            let share = (epoch * batches + b) as f64 / (recipe.epochs * batches) as f64;
            let loss = match &mut lesson.method {
                None => classifier.loss(&new, &of_rows)?,
                Some((method, bank)) => {
                    let indices: Vec<u32> = rows.iter().map(|&i| i as u32).collect();
                    let indices = Tensor::from_vec(indices, rows.len(), device)?;
                    let batch = Batch {
                        new: &new,
                        old: &bank.index_select(&indices, 0)?,
                        labels: &of_rows,
                        indices: &indices,
                        progress: share,
                        epoch,
                        epochs: recipe.epochs,
                    };
                    let own = method.classification_weight();
                    let terms = method.terms(&batch, &classifier)?;
                    match own {
                        0.0 => terms.total,
                        _ => ((classifier.loss(&method.mix(&batch)?, &of_rows)? * own)? + terms.total)?,
                    }
                }
            };
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(failure(format!("{}, epoch {}: the loss is {value}", lesson.name, epoch + 1)));
            }
            optimizer.step(&loss.backward()?, share)?;
            bar.step(value);
        }
        bar.epoch(epoch);
        if let Some(path) = lesson.checkpoint {
            let mut tensors = optimizer.state()?;
            let running = network.running();
            tensors.push(("running".into(), Tensor::from_slice(&running, running.len(), device)?));
            if let Some((method, _)) = &lesson.method {
                tensors.extend(method.state()?.into_iter().map(|(name, t)| (format!("state.{name}"), t)));
            }
            tensors.sort_by(|a, b| a.0.cmp(&b.0));
            let notes = HashMap::from([
                ("epochs".to_owned(), (epoch + 1).to_string()),
                ("steps".to_owned(), optimizer.steps().to_string()),
            ]);
            checkpoint::save(path, &tensors, &notes)?;
        }
    }
    bar.finish();
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use consonance_datasets::emoji_id;
    use consonance_methods::{MethodConfig, OldBank, Terms, build};

    /// Another method until `until`, then an error: what a kill looks like from inside.
    #[derive(Debug)]
    struct Killed {
        method: Box<dyn CompatibleMethod>,
        until: usize,
    }

    impl CompatibleMethod for Killed {
        fn name(&self) -> &'static str {
            "killed"
        }

        fn terms(
            &mut self,
            batch: &Batch<'_>,
            classifier: &CosineClassifier,
        ) -> consonance_methods::Result<Terms> {
            if batch.epoch >= self.until {
                return Err(candle_core::Error::Msg("killed".into()).into());
            }
            self.method.terms(batch, classifier)
        }

        fn variables(&self) -> Vec<candle_core::Var> {
            self.method.variables()
        }

        fn state(&self) -> consonance_methods::Result<consonance_methods::State> {
            self.method.state()
        }

        fn restore(&mut self, state: &consonance_methods::State) -> consonance_methods::Result<()> {
            self.method.restore(state)
        }
    }

    fn recipe() -> Recipe {
        Recipe {
            architecture: Architecture { width: 8, stages: 2, dim: 16, fold: true, grid: 2, residual: 0b10 },
            epochs: 3,
            batch: 16,
            schedule: Schedule::default(),
            augmentation: Augmentation::default(),
            classifier: CosineClassifierConfig::default(),
        }
    }

    #[test]
    fn a_killed_run_continues_to_the_same_bits() -> Result<(), Failure> {
        let data = emoji_id()?;
        let split = data.train.filter(|item| item.identity < 12);
        let recipe = recipe();
        let folder = tempfile::tempdir()?;
        let old = Network::new(&recipe.architecture, data.height, data.width, 9)?;
        let bank = embed(&old, &split)?;
        let labels = Tensor::new(split.identities(), &Device::Cpu)?;
        let method = || -> Result<Box<dyn CompatibleMethod>, Failure> {
            let bank = OldBank { embeddings: &bank, labels: &labels, classes: 12, dimension: 16, seed: 5 };
            Ok(build(&MethodConfig::by_name("adv-bct").or_else(|_| MethodConfig::by_name("bct"))?, &bank)?)
        };
        let run = |file: &str, until: usize| -> Result<Vec<f32>, Failure> {
            let path = folder.path().join(file);
            let mut lesson = Lesson {
                name: "test".into(),
                split: &split,
                size: (data.height, data.width),
                classes: 12,
                recipe: &recipe,
                seed: 5,
                method: Some((Box::new(Killed { method: method()?, until }), bank.clone())),
                checkpoint: Some(&path),
            };
            let network = train(&mut lesson, &Progress::new())?;
            Ok(embed(&network, &split)?.flatten_all()?.to_vec1()?)
        };
        let straight = run("straight", 9)?;
        for until in [1, 2] {
            let file = format!("killed-{until}");
            assert!(run(&file, until).is_err());
            assert!(run(&file, 9)? == straight, "killed in epoch {}", until + 1);
        }
        Ok(())
    }

    #[test]
    fn threads_do_not_change_a_trained_model() -> Result<(), Failure> {
        let data = emoji_id()?;
        let split = data.train.filter(|item| item.identity < 12);
        let recipe = Recipe { epochs: 1, ..recipe() };
        let mut seen: Option<Vec<f32>> = None;
        for threads in [1, 2, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            let now = pool.install(|| -> Result<Vec<f32>, Failure> {
                let mut lesson = Lesson {
                    name: "test".into(),
                    split: &split,
                    size: (data.height, data.width),
                    classes: 12,
                    recipe: &recipe,
                    seed: 1,
                    method: None,
                    checkpoint: None,
                };
                let network = train(&mut lesson, &Progress::new())?;
                Ok(embed(&network, &split)?.flatten_all()?.to_vec1()?)
            })?;
            match &seen {
                Some(first) => assert!(*first == now, "{threads} threads"),
                None => seen = Some(now),
            }
        }
        Ok(())
    }

    #[test]
    fn a_foreign_checkpoint_is_an_error_that_names_the_file() -> Result<(), Failure> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("checkpoint.safetensors");
        for bytes in [b"no safetensors at all".as_slice(), b""] {
            std::fs::write(&path, bytes)?;
            let message = Saved::load(&path).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains("checkpoint.safetensors"), "{message}");
        }
        let tensors = [("x".to_owned(), Tensor::new(&[1f32, 2.0], &Device::Cpu)?)];
        checkpoint::save(&path, &tensors, &HashMap::new())?;
        let saved = Saved::load(&path)?;
        assert_eq!(saved.tensor("x")?.to_vec1::<f32>()?, [1.0, 2.0]);
        assert!(saved.tensor("y").is_err() && saved.number("epochs").is_err());
        let whole = std::fs::read(&path)?;
        std::fs::write(&path, &whole[..whole.len() - 1])?;
        assert!(Saved::load(&path).is_err());
        Ok(())
    }
}
