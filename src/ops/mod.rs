//! The operations on Candle tensors, one file per family.

pub(crate) mod bank;
pub(crate) mod cam;
pub(crate) mod clips;
pub(crate) mod clusters;
pub(crate) mod contrast;
pub(crate) mod credibility;
pub(crate) mod discrimination;
pub(crate) mod divergence;
pub(crate) mod gathered;
mod in_place;
pub(crate) mod neighbors;
pub(crate) mod place;
pub(crate) mod ranking;
pub(crate) mod soft_assignment;
pub(crate) mod view;
