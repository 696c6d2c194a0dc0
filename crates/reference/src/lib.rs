//! The definitions of every family of consonance, in f64, as plain loops: slow and obviously right.

pub mod bank;
pub mod cam;
pub mod clips;
pub mod clusters;
pub mod contrast;
pub mod credibility;
pub mod discrimination;
pub mod divergence;
pub mod gathered;
pub mod neighbors;
pub mod ranking;
pub mod soft_assignment;
