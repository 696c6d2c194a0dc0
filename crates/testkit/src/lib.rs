//! Cases, error bounds and finite differences that the tests of every family share.
//!
//! Nothing here is for users: it is the other half of the definitions in `consonance-reference`.

// A test that cannot start has to stop.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

pub mod allocation;
pub mod backend;
pub mod data;
pub mod device;
pub mod gradient;
pub mod stored;
pub mod suite;
pub mod threads;
