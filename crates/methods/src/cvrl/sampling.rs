//! Where the two clips of a video begin.

use serde::{Deserialize, Serialize};

use super::METHOD;
use crate::error::{Error, Result, positive};
use crate::tensors::{mix_bits, uniform};

/// How far apart two clips of a video begin: a distribution of the interval t in 0..=m.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum IntervalDistribution {
    /// P(t) = (p + 1)/(p m) · (1 − (t/m)^p): short intervals are more likely than long ones.
    Decreasing {
        /// p, finite and above 0.
        power: f64,
    },
    /// P(t) = 1/m, its limit for large p.
    Uniform,
}

impl IntervalDistribution {
    fn validate(self) -> Result<()> {
        match self {
            Self::Decreasing { power } => positive(METHOD, "power", power),
            Self::Uniform => Ok(()),
        }
    }

    /// P(t) for t in 0..=m.
    ///
    /// # Errors
    /// [`Error::Argument`] for a power or m that is not a finite number above 0, and a t beyond them.
    pub fn pdf(self, t: f64, m: f64) -> Result<f64> {
        self.check(t, m)?;
        Ok(match self {
            Self::Decreasing { power } => (power + 1.0) / (power * m) * (1.0 - (t / m).powf(power)),
            Self::Uniform => 1.0 / m,
        })
    }

    /// F(t) = ((p + 1)/p) (t/m) − (1/p) (t/m)^{p+1}, the probability of an interval of at most t.
    ///
    /// # Errors
    /// As [`pdf`](Self::pdf).
    pub fn cdf(self, t: f64, m: f64) -> Result<f64> {
        self.check(t, m)?;
        Ok(self.share(t / m))
    }

    /// The interval t with F(t) = u, u in 0..=1: by its closed form for p = 1, t = m (1 − √(1 − u)), and by bisection down to
    /// the last bit for every other power.
    ///
    /// # Errors
    /// As [`pdf`](Self::pdf), and for a u outside 0..=1.
    pub fn inverse(self, u: f64, m: f64) -> Result<f64> {
        self.check(0.0, m)?;
        crate::error::fraction(METHOD, "u", u)?;
        match self {
            // Without the difference of two numbers near 1.
            Self::Decreasing { power: 1.0 } => Ok(m * (u / (1.0 + (1.0 - u).sqrt()))),
            Self::Decreasing { .. } => Ok(m * self.bisected(u)),
            Self::Uniform => Ok(m * u),
        }
    }

    fn check(self, t: f64, m: f64) -> Result<()> {
        self.validate()?;
        positive(METHOD, "room", m)?;
        if (0.0..=m).contains(&t) {
            return Ok(());
        }
        Err(Error::argument(METHOD, "interval", t, format!("an interval in 0..={m}, within the video")))
    }

    /// F at a share x of m, as x + x (1 − x^p)/p, which stays exact for small powers.
    fn share(self, x: f64) -> f64 {
        match self {
            Self::Decreasing { power } if x > 0.0 => x - x * (power * x.ln()).exp_m1() / power,
            Self::Decreasing { .. } => 0.0,
            Self::Uniform => x,
        }
    }

    /// The share x with F(x) = u.
    fn bisected(self, u: f64) -> f64 {
        let (mut low, mut high) = (0.0f64, 1.0f64);
        loop {
            let middle = 0.5 * (low + high);
            if middle <= low || middle >= high {
                return low;
            }
            if self.share(middle) > u {
                high = middle;
            } else {
                low = middle;
            }
        }
    }
}

/// Settings of a [`ClipSampler`], as published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipSamplerConfig {
    /// Frames of a clip; 16.
    pub frames: usize,
    /// Frames of the video from one to the next of a clip; 2.
    pub stride: usize,
    /// How far apart the clips of a video begin; decreasing with power 1, so linearly.
    pub interval: IntervalDistribution,
}

impl Default for ClipSamplerConfig {
    fn default() -> Self {
        Self { frames: 16, stride: 2, interval: IntervalDistribution::Decreasing { power: 1.0 } }
    }
}

impl ClipSamplerConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("frames", self.frames), ("stride", self.stride)] {
            if value == 0 || value > u32::MAX as usize {
                return Err(Error::argument(METHOD, name, value, "at least 1, below 2^32"));
            }
        }
        self.interval.validate()
    }
}

/// The first frames of both clips of a video, in a random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipStarts {
    /// Of the clip that becomes the first view.
    pub first: usize,
    /// Of the clip that becomes the second view.
    pub second: usize,
}

/// Draws where the two clips of a video begin. What is drawn depends on the seed and a number alone.
///
/// A video of L frames has m = L − (n − 1) r places for the first frame of a clip of n frames r apart. The interval t is the whole
/// part of a draw from the [`IntervalDistribution`] over m; one clip begins anywhere in 0..m − t, the other t frames later,
/// and which is the first one is drawn, too. In a video without room for a clip (m ≤ 0) both begin anywhere, and the video
/// is repeated from its beginning.
#[derive(Debug, Clone, Copy)]
pub struct ClipSampler {
    config: ClipSamplerConfig,
}

impl ClipSampler {
    /// Takes the settings.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range.
    pub fn new(config: ClipSamplerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config })
    }

    /// m, the places where a clip may begin in a video of so many frames; `None` when it has no room for a clip.
    ///
    /// # Errors
    /// [`Error::Argument`] for a video without frames.
    pub fn room(&self, video: usize) -> Result<Option<usize>> {
        if video == 0 {
            return Err(Error::argument(METHOD, "video", "0 frames", "at least 1 frame"));
        }
        let span = (self.config.frames - 1).checked_mul(self.config.stride);
        Ok(span.and_then(|span| video.checked_sub(span)).filter(|room| *room > 0))
    }

    /// Where the clips of a video of so many frames begin.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    pub fn starts(&self, video: usize, seed: u64, number: u64) -> Result<ClipStarts> {
        let key = mix_bits(seed, number);
        match self.room(video)? {
            Some(room) => {
                let interval = self.config.interval.inverse(uniform(key, 0), room as f64)? as usize;
                self.starts_at(video, interval.min(room - 1), seed, number)
            }
            None => Ok(ClipStarts { first: below(key, 1, video), second: below(key, 2, video) }),
        }
    }

    /// Where the clips begin when their interval is given.
    ///
    /// # Errors
    /// [`Error::Argument`] for an interval after which a second clip would leave the video, and as [`room`](Self::room).
    pub fn starts_at(&self, video: usize, interval: usize, seed: u64, number: u64) -> Result<ClipStarts> {
        let room = self.room(video)?.unwrap_or(0);
        if interval >= room {
            let ClipSamplerConfig { frames, stride, .. } = self.config;
            let expected = format!(
                "below {room}: the places of a clip of {frames} frames, {stride} apart, in a video of {video} frames"
            );
            return Err(Error::argument(METHOD, "interval", interval, expected));
        }
        let key = mix_bits(seed, number);
        let early = below(key, 1, room - interval);
        let late = early + interval;
        Ok(match below(key, 3, 2) {
            0 => ClipStarts { first: early, second: late },
            _ => ClipStarts { first: late, second: early },
        })
    }

    /// The frames of the clip that begins at `start` of a video of so many frames, which is repeated when it ends too soon.
    ///
    /// # Errors
    /// [`Error::Argument`] for a start beyond the video, and for a video without frames.
    pub fn indices(&self, video: usize, start: usize) -> Result<Vec<u32>> {
        self.room(video)?;
        if start >= video || video > u32::MAX as usize {
            return Err(Error::argument(
                METHOD,
                "start",
                start,
                format!("a frame in 0..{video}, below 2^32"),
            ));
        }
        let ClipSamplerConfig { frames, stride, .. } = self.config;
        Ok((0..frames).map(|k| ((start as u64 + k as u64 * stride as u64) % video as u64) as u32).collect())
    }
}

/// A uniform integer below `n`, which is not 0: number `at` of a key.
fn below(key: u64, at: u64, n: usize) -> usize {
    ((u128::from(mix_bits(key, at)) * n as u128) >> 64) as usize
}
