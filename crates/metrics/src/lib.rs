//! Compatibility metrics of an embedding upgrade, and how they are shown: tables, CSV and SVG plots.
//!
//! The crate takes numbers. Retrieval itself (mAP, CMC, rank counts) is the `ranking` family of `consonance`; feed its
//! results in here.
//!
//! **Notation.** M(a, b) is any retrieval metric (mAP, CMC@1, top-1 accuracy, ...) with queries embedded by a and the
//! gallery by b. φ_o is the *old* model, φ_n the *new* one, φ_* the *paragon*: the new architecture trained alone, with
//! no thought of compatibility. M(φ_n, φ_n) is the *self-test* and M(φ_n, φ_o) the *cross-test*. All values of one
//! computation are either fractions (0 to 1) or percents (0 to 100); no metric here mixes the two.
//!
//! | what | where | source |
//! |---|---|---|
//! | criterion, Γ, Δ↑, Δ↓ | [`Upgrade`] | BCT (Shen et al., CVPR 2020) |
//! | P_up, P_comp, P_1 | [`p_up`], [`p_comp`], [`p_one`] | AdvBCT (Pan et al., CVPR 2023) |
//! | AC, AM, AA, BC, FC | [`CompatibilityMatrix`] | CoReS, CL2R, IAM-CL2R |
//! | hot-refresh curve | [`RefreshCurve`] | RACT (Zhang et al., ICLR 2022) |
//! | NFR, relative NFR | [`NegativeFlips`] | PCT (Yan et al., CVPR 2021) |
//! | ROC of a detector | [`Roc`] | Fawcett, Pattern Recognition Letters 2006 |
//! | mean ± spread over seeds | [`Summary`], [`Report`] | |
//! | SVG plots | [`plot`] | |
//!
//! Nothing returns NaN or infinity: an input outside its range is an [`Error::Range`], and a ratio whose denominator
//! vanishes is an [`Error::Undefined`] that says why.

mod error;
mod files;
mod flips;
mod matrix;
pub mod plot;
mod refresh;
mod report;
mod roc;
mod summary;
mod upgrade;

pub use error::{Error, Result};
pub use files::write_atomically;
pub use flips::NegativeFlips;
pub use matrix::CompatibilityMatrix;
pub use refresh::{RefreshCurve, RefreshDrop};
pub use report::{Better, Cell, Column, Report};
pub use roc::{OperatingPoint, Roc};
pub use summary::Summary;
pub use upgrade::{Upgrade, p_comp, p_one, p_up};
