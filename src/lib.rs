//! consonance.
