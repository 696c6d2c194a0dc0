//! One upgrade on one test set, and the AdvBCT scores over several.
//!
//! The criterion and Γ are those of BCT (Shen et al., CVPR 2020). P_up, P_comp and P_1 are the scores of AdvBCT (Pan et al.,
//! CVPR 2023), in the form that reproduces its published table from the mAP values printed there; the tests do so.

use serde::{Deserialize, Serialize};

use crate::error::{check_metric, finite};
use crate::{Error, Result};

/// The four results of an upgrade on one test set, all by the same metric M and on the same scale.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upgrade {
    /// M(φ_o, φ_o): the system as it was.
    pub old: f64,
    /// M(φ_*, φ_*): the new model trained alone, gallery re-embedded.
    pub paragon: f64,
    /// M(φ_n, φ_n), the self-test: the compatible new model, gallery re-embedded.
    pub new: f64,
    /// M(φ_n, φ_o), the cross-test: the compatible new model searching the old gallery.
    pub cross: f64,
}

impl Upgrade {
    /// Checks that the four values are metric values, and takes them together.
    ///
    /// # Errors
    /// [`Error::Range`] for a value that is not in 0 to 100 (NaN included).
    pub fn new(old: f64, paragon: f64, new: f64, cross: f64) -> Result<Self> {
        let upgrade = Self { old, paragon, new, cross };
        upgrade.check("upgrade", "")?;
        Ok(upgrade)
    }

    fn check(&self, op: &'static str, prefix: &str) -> Result<()> {
        for (name, value) in
            [("old", self.old), ("paragon", self.paragon), ("new", self.new), ("cross", self.cross)]
        {
            check_metric(op, format!("{prefix}{name}"), value)?;
        }
        Ok(())
    }

    /// The criterion of compatibility, M(φ_n, φ_o) > M(φ_o, φ_o) (BCT, Shen et al., CVPR 2020): the new model on the old gallery is
    /// better than the old system.
    pub fn is_compatible(&self) -> bool {
        self.cross > self.old
    }

    /// The update gain Γ = (M(φ_n, φ_o) − M(φ_o, φ_o)) / (M(φ_*, φ_*) − M(φ_o, φ_o)) (BCT).
    ///
    /// Above 0 the new model is compatible; 1 is as good as re-embedding the whole gallery.
    ///
    /// # Errors
    /// [`Error::Undefined`] if the paragon is not better than the old model: there is nothing to gain, and with a negative
    /// denominator a worse cross-test would score higher. [`Error::Range`] for values that are no metric values.
    pub fn update_gain(&self) -> Result<f64> {
        self.check("update gain", "")?;
        let room = self.room("update gain")?;
        finite("update gain", (self.cross - self.old) / room)
    }

    /// The absolute gain Δ↑ = M(φ_n, φ_o) − M(φ_o, φ_o) of the cross-test over the old system.
    ///
    /// # Errors
    /// [`Error::Range`] for values that are no metric values.
    pub fn absolute_gain(&self) -> Result<f64> {
        self.check("absolute gain", "")?;
        Ok(self.cross - self.old)
    }

    /// The relative change of the self-test, Δ↓ = (M(φ_n, φ_n) − M(φ_*, φ_*)) / M(φ_*, φ_*): what compatibility costs
    /// (negative) or brings (positive).
    ///
    /// # Errors
    /// [`Error::Undefined`] if the paragon's metric is 0. [`Error::Range`] for values that are no metric values.
    pub fn self_change(&self) -> Result<f64> {
        self.check("self-test change", "")?;
        if self.paragon == 0.0 {
            return Err(Error::undefined("self-test change", "the paragon's metric is 0"));
        }
        finite("self-test change", (self.new - self.paragon) / self.paragon)
    }

    fn room(&self, metric: &'static str) -> Result<f64> {
        if self.paragon > self.old {
            return Ok(self.paragon - self.old);
        }
        Err(Error::undefined(
            metric,
            format!("the paragon ({}) is not better than the old model ({})", self.paragon, self.old),
        ))
    }
}

/// P_up = mean over the test sets of σ(Δ↓), σ(x) = 1/(1 + e^{−x}) (AdvBCT): how good the new model is by itself;
/// ½ says "as good as the paragon". A fraction: multiply by 100 for the percents that papers print.
///
/// # Errors
/// [`Error::Empty`] without test sets, else as [`Upgrade::self_change`] for any of them.
pub fn p_up(sets: &[Upgrade]) -> Result<f64> {
    mean("P_up", sets, up)
}

/// P_comp = mean over the test sets of σ(Γ) (AdvBCT): how well the new model searches the old gallery; ½ says "as
/// the old model did". A fraction.
///
/// # Errors
/// [`Error::Empty`] without test sets, else as [`Upgrade::update_gain`] for any of them.
pub fn p_comp(sets: &[Upgrade]) -> Result<f64> {
    mean("P_comp", sets, comp)
}

/// The P_1-score: mean over the test sets of 2ab/(a + b), with a = σ(Δ↓) and b = σ(Γ) of the set (AdvBCT). It is the
/// mean of the harmonic means, not the harmonic mean of [`p_up`] and [`p_comp`]. A fraction.
///
/// # Errors
/// As [`p_up`] and [`p_comp`].
pub fn p_one(sets: &[Upgrade]) -> Result<f64> {
    mean("P_1", sets, |set| {
        let (a, b) = (up(set)?, comp(set)?);
        // Both can underflow to 0, where the harmonic mean goes to 0 too.
        Ok(if a + b > 0.0 { 2.0 * a * b / (a + b) } else { 0.0 })
    })
}

fn up(set: &Upgrade) -> Result<f64> {
    set.self_change().map(sigmoid)
}

fn comp(set: &Upgrade) -> Result<f64> {
    set.update_gain().map(sigmoid)
}

fn mean(op: &'static str, sets: &[Upgrade], value: impl Fn(&Upgrade) -> Result<f64>) -> Result<f64> {
    if sets.is_empty() {
        return Err(Error::Empty { op, argument: "sets" });
    }
    let mut sum = 0.0;
    for (index, set) in sets.iter().enumerate() {
        set.check(op, &format!("sets[{index}]."))?;
        sum += value(set)?;
    }
    Ok(sum / sets.len() as f64)
}

/// The logistic function. e^{−x} may overflow to infinity, which gives the limit 0.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
