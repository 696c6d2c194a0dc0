//! Every method against its formula in f64: values, finite differences, gradients that arrive, refusals.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod adv_bct;
mod bct;
mod classifier;
mod hot_refresh;
mod l2;
mod lce;
mod mix_bct;
mod neighborhood_consensus;
mod procrustes;
mod support;
mod uni_bct;
mod upgrade;
