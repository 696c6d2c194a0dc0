//! Every method against its formula in f64: values, finite differences, gradients that arrive, refusals.

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
