//! The CPU backend passes the suite that the kernels pass (`tests/simt.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use consonance_testkit::backend::Cpu;
use consonance_testkit::suite;

#[test]
fn the_cpu_backend_passes_the_suite() {
    let failures = suite::failures(&Cpu);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
