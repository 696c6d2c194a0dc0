//! Tests that need a CUDA device, where there may be none.

use std::fmt::Display;

/// The device, or `None` after a line that says that the test is skipped.
///
/// # Panics
/// Under `CONSONANCE_REQUIRE_GPU=1` when there is no device: there, a skip is no pass.
#[allow(clippy::print_stdout)]
pub fn device_or_skip<T>(device: Result<T, impl Display>) -> Option<T> {
    match device {
        Ok(device) => Some(device),
        Err(reason) => {
            assert!(!gpu_is_required(), "CONSONANCE_REQUIRE_GPU=1, but {reason}");
            let reason = reason.to_string();
            println!("skipped: no CUDA device: {}", reason.trim_start_matches("no CUDA device: "));
            None
        }
    }
}

/// Whether a test without a device fails instead of being skipped.
pub fn gpu_is_required() -> bool {
    std::env::var("CONSONANCE_REQUIRE_GPU").as_deref() == Ok("1")
}

/// Whether shapes should be small, for tools that run the kernels a hundred times slower (`CONSONANCE_SMALL=1`).
pub fn shapes_are_small() -> bool {
    std::env::var("CONSONANCE_SMALL").as_deref() == Ok("1")
}
