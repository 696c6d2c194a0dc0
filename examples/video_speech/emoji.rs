//! Emoji and their written names, some letters of which are lost.

use candle_core::{Device, Tensor, Var};
use consonance::{NeighborsOptions, neighbors};
use consonance_datasets::{Dataset, Split, emoji_id};

use crate::common::text::{self, Tower, counts};
use crate::network::Network;
use crate::random::Draws;
use crate::trainer::unit_rows;
use crate::{Failure, Material, SUBJECTS, failure, frames, pooled};

/// The style that is kept for the test.
const TEST_STYLE: &str = "twemoji";

/// A share of the training emoji.
pub(crate) struct Emoji {
    data: Dataset,
    seen: Split,
    unseen: Split,
    /// Rows of the seen pictures of every emoji.
    rows: Vec<Vec<usize>>,
}

impl Emoji {
    pub(crate) fn load(share: f64) -> Result<Self, Failure> {
        let data = emoji_id()?;
        let kept = data.styles.iter().position(|style| style == TEST_STYLE);
        let kept = kept.ok_or_else(|| failure(format!("no style {TEST_STYLE}")))? as u32;
        let (split, classes) = data.train_subset(share)?;
        if classes < SUBJECTS {
            return Err(failure(format!("--share: {classes} emoji, expected at least {SUBJECTS}")));
        }
        let (seen, unseen) =
            (split.filter(|item| item.style != kept), split.filter(|item| item.style == kept));
        let mut rows: Vec<Vec<usize>> = vec![Vec::new(); classes];
        for (row, identity) in seen.identities().into_iter().enumerate() {
            rows[identity as usize].push(row);
        }
        Ok(Self { data, seen, unseen, rows })
    }

    fn size(&self) -> (usize, usize) {
        (self.data.height, self.data.width)
    }
}

impl Material for Emoji {
    type Words = String;
    type Listener = Tower;

    fn size(&self) -> (usize, usize) {
        self.size()
    }

    fn subjects(&self) -> usize {
        self.rows.len()
    }

    fn clips(&self) -> usize {
        self.seen.len()
    }

    fn clip(&self, subject: usize, images: &mut Vec<f32>, draws: &mut Draws) -> String {
        let rows = &self.rows[subject];
        let row = rows[draws.below(rows.len())];
        images.extend(frames(self.seen.image(row), self.size(), draws));
        let name = &self.data.identities[subject].label;
        name.chars().filter(|_| draws.unit() >= 0.1).collect()
    }

    fn listener(&self, dim: usize, seed: u64) -> Result<(Tower, Vec<Var>), Failure> {
        let tower = Tower::new(text::COUNTS, dim, seed)?;
        let variables = tower.variables();
        Ok((tower, variables))
    }

    fn hear(&self, listener: &Tower, words: Vec<String>) -> Result<Tensor, Failure> {
        Ok(listener.forward(&counts(words.iter().map(String::as_str))?)?)
    }

    /// How often a test clip's nearest name is its own.
    fn test(&self, network: &Network, listener: &Tower) -> Result<f64, Failure> {
        let (mut draws, clips) = (Draws::new(&[0x7465_7374]), self.unseen.len());
        let mut out = Vec::new();
        for row in 0..clips {
            out.extend(network.embed(frames(self.unseen.image(row), self.size(), &mut draws))?);
        }
        let features = Tensor::from_vec(out, (clips * crate::FRAMES, network.dim()), &Device::Cpu)?;
        let (_, video) = pooled(&features, clips)?;
        let names = self.data.identities[..self.subjects()].iter().map(|identity| identity.label.as_str());
        let names = unit_rows(&listener.forward(&counts(names)?)?)?.detach();
        let nearest =
            neighbors(&video, &names, &NeighborsOptions::new(1))?.indices.flatten_all()?.to_vec1::<u32>()?;
        let right = nearest.iter().zip(self.unseen.identities()).filter(|(found, own)| *found == own).count();
        Ok(right as f64 / clips as f64)
    }
}
