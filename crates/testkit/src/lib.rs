//! Cases, error bounds and finite differences that the tests of every family share.
//!
//! Nothing here is for users: it is the other half of the definitions in `consonance-reference`.

pub mod allocation;
pub mod data;
pub mod gradient;
pub mod threads;
