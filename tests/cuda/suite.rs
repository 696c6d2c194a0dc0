//! The kernels on a GPU pass the suite that the CPU backend and the simulated kernels pass, with the same bits every
//! time, and write nothing beside their memory.

use consonance::cuda::CudaExecutor;
use consonance_testkit::backend::{Guarded, OnDevice, Recorded};
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use consonance_testkit::suite;

#[test]
fn the_kernels_pass_the_suite_with_the_same_bits_every_time() {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let backend = OnDevice::new("GPU", executor);
    let digest = |check: &suite::Check| {
        let recorded = Recorded::new(&backend);
        check.1(&recorded).map(|()| recorded.digest()).map_err(|message| format!("{}: {message}", check.0))
    };
    let checks: Vec<suite::Check> = suite::all().collect();
    let first: Vec<Result<u64, String>> = checks.iter().map(digest).collect();
    let failures: Vec<&String> = first.iter().filter_map(|digest| digest.as_ref().err()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let rounds = if shapes_are_small() { 1 } else { 20 };
    for round in 0..rounds {
        for (check, first) in checks.iter().zip(&first) {
            assert_eq!(&digest(check), first, "{}: other bits in round {round}", check.0);
        }
    }
}

#[test]
fn the_kernels_write_nothing_beside_their_memory() {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    let backend = OnDevice::new("GPU between canaries", Guarded::new(executor));
    let failures = suite::failures(&backend);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(backend.executor().trespasses().is_empty(), "{:#?}", backend.executor().trespasses());
}
