//! Stamps and recordings of what they are called.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use consonance::{NeighborsOptions, neighbors};

use crate::network::{Architecture, Network};
use crate::random::Draws;
use crate::speech::BANDS;
use crate::stamps::{self, SIZE, Subject};
use crate::trainer::unit_rows;
use crate::{FRAMES, Failure, Material, SUBJECTS, frames, pooled};

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

    /// What was loaded, in words.
    pub(crate) fn say(&self) -> String {
        let sum = |count: fn(&Subject) -> usize| self.subjects.iter().map(count).sum::<usize>();
        format!(
            "{} subjects of {} pictures, {} recordings for training and {} for the test",
            self.subjects.len(),
            sum(|subject| subject.pictures.len()),
            sum(|subject| subject.recordings.len()),
            self.subjects.len()
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

    /// How often the nearest clip to the recording that was kept from a subject shows that subject.
    fn test(&self, network: &Network, listener: &Network) -> Result<f64, Failure> {
        let (mut draws, mut shown, mut clips) = (Draws::new(&[0x7465_7374]), Vec::new(), Vec::new());
        for (at, subject) in self.subjects.iter().enumerate() {
            for picture in &subject.pictures {
                clips.push(frames(picture, self.size(), &mut draws));
                shown.push(at);
            }
        }
        let (_, video) = pooled(&embedded(network, &clips)?, clips.len())?;
        debug_assert_eq!(clips[0].len(), FRAMES * SIZE * SIZE * 3);
        let kept: Vec<_> = self.subjects.iter().map(|subject| subject.kept.picture(0.0, 1.0)).collect();
        let speech = unit_rows(&embedded(listener, &kept)?)?;
        let nearest =
            neighbors(&speech, &video, &NeighborsOptions::new(1))?.indices.flatten_all()?.to_vec1::<u32>()?;
        let right = nearest.iter().enumerate().filter(|(own, found)| shown[**found as usize] == *own).count();
        Ok(right as f64 / self.subjects.len() as f64)
    }
}
