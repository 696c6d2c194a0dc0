//! The contrastive loss on tensors: golden values, the f64 reference within a bound derived beforehand, bits, errors.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

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
