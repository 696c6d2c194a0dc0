//! The kernels and their executor on a GPU; without one, what every way in answers.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cuda/driver.rs"]
mod driver;
#[path = "cuda/suite.rs"]
mod suite;
