//! The kernels on a CUDA device: the suite of all backends, and the same bits every time.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use consonance::cuda::CudaExecutor;
use consonance_testkit::backend::OnDevice;
use consonance_testkit::device::device_or_skip;
use consonance_testkit::suite;

#[test]
fn the_device_passes_the_suite() {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let backend = OnDevice::new(format!("{executor:?}"), executor);
    let mut failures = Vec::new();
    for (name, check) in suite::all() {
        let start = std::time::Instant::now();
        let outcome = check(&backend);
        println!("{name}: {:.3} s", start.elapsed().as_secs_f64());
        failures.extend(outcome.err().map(|message| format!("{name}: {message}")));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
