//! The contrastive loss on tensors: golden values, the f64 reference within a bound derived beforehand, bits, errors.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // the helpers of a test may panic and print as the test may

#[path = "contrast/golden.rs"]
mod golden;

#[path = "contrast/case.rs"]
mod case;
#[path = "contrast/differential.rs"]
mod differential;
#[path = "contrast/errors.rs"]
mod errors;
#[path = "contrast/properties.rs"]
mod properties;
