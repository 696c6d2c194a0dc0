//! The definitions of every family of consonance, in f64, as plain loops: slow and obviously right.

pub mod bank;
pub mod contrast;
pub mod neighbors;
