//! Stamps and recordings of what they are called.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use consonance::{NeighborsOptions, neighbors};

use crate::network::{Architecture, Network};
use crate::random::Draws;
use crate::speech::BANDS;
use crate::stamps::{self, SIZE, Subject};
use crate::trainer::unit_rows;
use crate::{Failure, Material, SUBJECTS, frames, pooled};

/// Clips that are looked at for a recording.
pub(crate) const NEAREST: usize = 10;
/// Rows that are embedded at a time.
const ROWS: usize = 64;

/// Subjects with their pictures and recordings.
pub(crate) struct Recorded {
    subjects: Vec<Subject>,
    architecture: Architecture,
}

impl Recorded {
    pub(crate) fn load(folder: &Path, share: f64, architecture: Architecture) -> Result<Self, Failure> {
        Ok(Self { subjects: stamps::load(folder, share, SUBJECTS)?, architecture })
    }

    /// What was loaded, in words, and what clips in random order would find.
    pub(crate) fn say(&self) -> String {
        let sum = |count: fn(&Subject) -> usize| self.subjects.iter().map(count).sum::<usize>();
        let clips = sum(|subject| subject.pictures.len());
        let missed = |own: usize| -> f64 {
            (0..NEAREST).map(|at| clips.saturating_sub(own + at) as f64 / (clips - at) as f64).product()
        };
        let found = |subject: &Subject| subject.kept.len() as f64 * (1.0 - missed(subject.pictures.len()));
        let chance = self.subjects.iter().map(found).sum::<f64>() / sum(|subject| subject.kept.len()) as f64;
        format!(
            "{} subjects of {clips} pictures, {} recordings for training and {} for the test, where chance finds {:.1} %",
            self.subjects.len(),
            sum(|subject| subject.recordings.len()),
            sum(|subject| subject.kept.len()),
            100.0 * chance
        )
    }
}

/// Embeddings of rows of pictures, `[pictures, dim]`, by running statistics.
fn embedded(network: &Network, pictures: &[Vec<f32>]) -> Result<Tensor, Failure> {
    let mut out = Vec::new();
    for part in pictures.chunks(ROWS) {
        out.extend(network.embed(part.concat())?);
    }
    let rows = out.len() / network.dim();
    Ok(Tensor::from_vec(out, (rows, network.dim()), &Device::Cpu)?)
}

impl Material for Recorded {
    type Words = Vec<f32>;
    type Listener = Network;

    fn size(&self) -> (usize, usize) {
        (SIZE, SIZE)
    }

    fn subjects(&self) -> usize {
        self.subjects.len()
    }

    fn clips(&self) -> usize {
        self.subjects.iter().map(|subject| subject.recordings.len()).sum()
    }

    fn clip(&self, subject: usize, images: &mut Vec<f32>, draws: &mut Draws) -> Vec<f32> {
        let Subject { pictures, recordings, .. } = &self.subjects[subject];
        images.extend(frames(&pictures[draws.below(pictures.len())], self.size(), draws));
        recordings[draws.below(recordings.len())].augmented(draws)
    }

    /// A network over pictures of spectra, of the same kind as that of the frames.
    fn listener(&self, dim: usize, seed: u64) -> Result<(Network, Vec<Var>), Failure> {
        let architecture = Architecture { dim, ..self.architecture.clone() };
        let key = Draws::new(&[seed, 0x7370_6565]).bits();
        let network = Network::new(&architecture, BANDS, BANDS, key)?;
        let variables = vec![network.parameters().clone()];
        Ok((network, variables))
    }

    fn hear(&self, listener: &Network, words: Vec<Vec<f32>>) -> Result<Tensor, Failure> {
        Ok(listener.forward(words.concat())?)
    }

    /// How often the clips that are nearest to a recording that was kept from a subject have one that shows it.
    fn test(&self, network: &Network, listener: &Network) -> Result<f64, Failure> {
        let (mut draws, mut shown, mut clips) = (Draws::new(&[0x7465_7374]), Vec::new(), Vec::new());
        let (mut heard, mut kept) = (Vec::new(), Vec::new());
        for (at, subject) in self.subjects.iter().enumerate() {
            for picture in &subject.pictures {
                clips.extend(
                    frames(picture, self.size(), &mut draws).chunks(SIZE * SIZE * 3).map(<[f32]>::to_vec),
                );
                shown.push(at);
            }
            for recording in &subject.kept {
                kept.push(recording.picture(0.0, 1.0));
                heard.push(at);
            }
        }
        let (_, video) = pooled(&embedded(network, &clips)?, shown.len())?;
        let speech = unit_rows(&embedded(listener, &kept)?)?;
        let near = neighbors(&speech, &video, &NeighborsOptions::new(NEAREST))?.indices.to_vec2::<u32>()?;
        let right =
            |(near, own): &(&Vec<u32>, &usize)| near.iter().any(|clip| shown[*clip as usize] == **own);
        Ok(near.iter().zip(&heard).filter(right).count() as f64 / heard.len() as f64)
    }
}
