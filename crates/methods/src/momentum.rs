//! Momentum encoders: a copy of a network that follows it slowly, so that the keys of a queue stay comparable.

use candle_core::{Tensor, Var};

use crate::error::{Error, Result, fraction};
use crate::method::State;
use crate::tensors::entry;

const METHOD: &str = "momentum encoder";

/// The weights of a momentum encoder: θ_k ← m θ_k + (1 − m) θ_q after every step (He, Fan, Wu, Xie, Girshick, "Momentum
/// Contrast for Unsupervised Visual Representation Learning", CVPR 2020, eq. 2).
///
/// Build the momentum network over [`variables`](Self::variables), which never are the online ones, and run it without
/// gradients.
///
/// ```
/// use candle_core::{Device, Var};
/// use consonance_methods::MomentumEncoder;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let online = Var::new(&[1f32, 2.], &Device::Cpu)?;
/// let follower = MomentumEncoder::new(&[online.clone()], 0.75)?;
/// online.set(&(online.as_tensor() * 3.)?)?;
/// follower.step()?;
/// assert_eq!(follower.variables()[0].to_vec1::<f32>()?, [1.5, 3.]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MomentumEncoder {
    online: Vec<Var>,
    followers: Vec<Var>,
    momentum: f64,
}

impl MomentumEncoder {
    /// Copies of `online`, which start with its values; `momentum` m in `0..=1`, 0.999 as published.
    ///
    /// # Errors
    /// [`Error::Argument`] for no variables and a momentum out of range.
    pub fn new(online: &[Var], momentum: f64) -> Result<Self> {
        fraction(METHOD, "momentum", momentum)?;
        if online.is_empty() {
            return Err(Error::argument(METHOD, "online", "no variables", "those of a network"));
        }
        let copy = |var: &Var| Ok(Var::from_tensor(&var.as_detached_tensor().copy()?)?);
        let followers = online.iter().map(copy).collect::<Result<Vec<_>>>()?;
        Ok(Self { online: online.to_vec(), followers, momentum })
    }

    /// The followers' variables, in the order of the online ones.
    pub fn variables(&self) -> &[Var] {
        &self.followers
    }

    /// Moves the followers towards the online variables.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn step(&self) -> Result<()> {
        let m = self.momentum;
        for (online, follower) in self.online.iter().zip(&self.followers) {
            let kept = (follower.as_detached_tensor() * m)?;
            follower.set(&(kept + (online.as_detached_tensor() * (1.0 - m))?)?)?;
        }
        Ok(())
    }

    /// The followers by number, to be saved.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn state(&self) -> Result<State> {
        let copy = |(i, var): (usize, &Var)| Ok((i.to_string(), var.as_detached_tensor().copy()?));
        self.followers.iter().enumerate().map(copy).collect()
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`Error::State`] when an entry is missing or has another shape; the followers are unchanged then.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let found = |(i, var): (usize, &Var)| -> Result<Tensor> {
            Ok(entry(METHOD, state, &i.to_string(), var.dims(), var.dtype())?.clone())
        };
        let saved = self.followers.iter().enumerate().map(found).collect::<Result<Vec<_>>>()?;
        self.followers.iter().zip(saved).try_for_each(|(var, value)| var.set(&value))?;
        Ok(())
    }
}
