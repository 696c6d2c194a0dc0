//! Safe wrappers of the kernels: validate, allocate, launch. No Candle here.
//!
//! The wrappers do not know what they run on: an [`Executor`] allocates memory and launches kernels by name. On a
//! GPU that is a CUDA stream (the feature `cuda`); in the tests it is also `crates/simt`, which runs the same
//! kernels on the CPU, so that validation, planning and the kernels themselves are proven without a GPU.

pub mod abi;
pub mod bank;
pub mod cam;
pub mod clips;
pub mod clusters;
pub mod contrast;
pub mod credibility;
pub mod divergence;
#[cfg(feature = "cuda")]
mod driver;
mod error;
mod executor;
pub mod gathered;
pub mod neighbors;
pub mod ranking;
mod rows;
mod scratch;
pub mod segments;
pub mod soft_assignment;

#[cfg(feature = "cuda")]
pub use driver::{CudaExecutor, available, device_count};
pub use error::{Error, Result};
pub use executor::{Bytes, DType, Elements, Executor, Launch, Limits, Matrix, Memory, Params, Words};
pub use segments::Order;
