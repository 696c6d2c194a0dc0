//! The operations on Candle tensors, one file per family.

pub(crate) mod bank;
pub(crate) mod contrast;
pub(crate) mod view;
