//! The CPU backend of `consonance`: exact neighborhood search, sub-clusters, weighted contrastive losses and
//! ranking, without ever writing the query × key matrix.
//!
//! Every family takes plain slices wrapped as [`Rows`], checks them, and returns owned vectors. Storage may be
//! `f32`, `f16` or `bf16`; statistics are `f32` or wider. Results are the same bits for any number of threads,
//! and a row's result does not depend on the other rows of the batch: every output has one owner, tiles are
//! counted from the first key, and partial results merge in a fixed order.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub mod bank;
pub mod cam;
pub mod clips;
pub mod clusters;
pub mod contrast;
pub mod credibility;
pub mod discrimination;
pub mod divergence;
mod error;
pub mod gathered;
pub mod neighbors;
mod parallel;
pub mod ranking;
pub mod rows;
mod scoring;
mod screen;
pub mod simd;
pub mod soft_assignment;
mod sweep;
pub mod tile;

pub use error::{Error, Result};
pub use rows::{Elements, Rows};

/// Which gradients will be asked for, so that a forward pass computes or keeps what they need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gradients {
    /// Of the queries and, where it is learned, the temperature: computed in the forward pass.
    pub queries: bool,
    /// Of the keys: computed in a backward pass.
    pub keys: bool,
}

impl Gradients {
    /// Both or neither.
    #[must_use]
    pub fn all(wanted: bool) -> Self {
        Self { queries: wanted, keys: wanted }
    }
}
