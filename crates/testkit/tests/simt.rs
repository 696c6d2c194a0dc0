//! The kernels, run on the CPU: the suite of all backends, under several schedules and plans that must give the same
//! bits, and with planted faults that must not pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "simt/divergence_work.rs"]
mod divergence_work;
#[path = "simt/faults.rs"]
mod faults;
#[path = "simt/soft_assignment_work.rs"]
mod soft_assignment_work;
#[path = "simt/work.rs"]
mod work;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use consonance::cuda::DType;
use consonance_cpu::neighbors::Metric;
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{
    Backend, NeighborsCase, OnDevice, Recorded, Simt, kernel_folder, kernel_sources,
};
use consonance_testkit::stored::Stored;
use consonance_testkit::{data, suite};
use rayon::prelude::*;

/// Multiprocessors of the simulated device, which decide into how many splits a plan cuts the bank, and the seed of
/// its schedule.
const RUNS: [(u32, u64); 8] = [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (4, 5), (16, 6), (64, 7)];

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let library = Library::compile(&kernel_sources(), &[kernel_folder().join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

#[test]
fn the_kernels_pass_the_suite_with_the_same_bits_under_every_schedule_and_plan() {
    if skipped_without_compiler() {
        return;
    }
    LazyLock::force(&LIBRARY);
    let launched = Mutex::new(BTreeSet::new());
    // Which lines are executed does not depend on the schedule, and counting them is slow.
    let runs = if std::env::var_os("CONSONANCE_SIMT_COVERAGE").is_some() { &RUNS[..1] } else { &RUNS[..] };
    let named = std::env::var("CONSONANCE_CHECK").ok();
    let wanted = |name: &str| named.as_deref().is_none_or(|text| name.contains(text));
    let (checks, left_out): (Vec<suite::Check>, Vec<_>) = suite::all().partition(|(name, _)| wanted(name));
    if !left_out.is_empty() {
        println!("skipped: {} checks without CONSONANCE_CHECK in their name", left_out.len());
    }
    let jobs: Vec<_> = checks.iter().flat_map(|check| runs.iter().map(move |run| (check, *run))).collect();
    let outcomes: Vec<(Result<u64, String>, Duration)> = jobs
        .into_par_iter()
        .map(|((name, check), (multiprocessors, seed))| {
            let name = format!("{name}, {multiprocessors} multiprocessors, schedule {seed}");
            let simt = Simt::new(LIBRARY.clone(), multiprocessors, seed);
            let backend = Recorded::new(OnDevice::new(name.as_str(), simt));
            let begun = Instant::now();
            let outcome = check(&backend);
            let took = begun.elapsed();
            launched.lock().unwrap().extend(backend.backend().executor().launched());
            (outcome.map(|()| backend.digest()).map_err(|message| format!("{name}: {message}")), took)
        })
        .collect();
    for (outcomes, (name, _)) in outcomes.chunks(runs.len()).zip(&checks) {
        let took: Duration = outcomes.iter().map(|(_, took)| *took).sum();
        println!("{name}: {:.1} s for {} runs", took.as_secs_f64(), runs.len());
    }
    let digests: Vec<Result<u64, String>> = outcomes.into_iter().map(|(outcome, _)| outcome).collect();
    let failures: Vec<&String> = digests.iter().filter_map(|digest| digest.as_ref().err()).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    for (digests, (name, _)) in digests.chunks(runs.len()).zip(&checks) {
        let same = digests.iter().all(|digest| digest == &digests[0]);
        assert!(same, "{name}: other bits under another schedule or plan: {digests:?}");
    }
    if !left_out.is_empty() {
        return;
    }
    let all: BTreeSet<String> = LIBRARY.kernels().map(|kernel| kernel.name.clone()).collect();
    assert_eq!(launched.into_inner().unwrap(), all, "kernels that the suite runs, and all kernels");
}

/// What the proof of a search is for: where scores are apart, tensor cores do all the work, and the blocks of the
/// slower steps end before they copy anything.
#[test]
fn rows_whose_scores_are_apart_are_proven_by_the_first_step() {
    if skipped_without_compiler() {
        return;
    }
    let (b, n, dim, k) = (20, 600, 64, 10);
    for dtype in DType::ALL {
        for metric in [Metric::InnerProduct, Metric::Cosine, Metric::SquaredL2] {
            let queries = Stored::new(dtype, &data::unit(b, dim, 1), dim);
            let bank = Stored::new(dtype, &data::unit(n, dim, 2), dim);
            let backend = OnDevice::new("simt", Simt::new(LIBRARY.clone(), 1, 0));
            backend.neighbors(&NeighborsCase::new(queries, bank, k, metric)).unwrap();
            for (kernel, statistics) in backend.executor().statistics() {
                let is_slow = kernel.starts_with("neighbors_refine") || kernel.starts_with("neighbors_exact");
                let copies = statistics.async_copies;
                assert!(
                    !is_slow || copies == 0,
                    "{kernel} had rows left: {dtype:?} {metric:?}, {copies} copies"
                );
            }
        }
    }
}
