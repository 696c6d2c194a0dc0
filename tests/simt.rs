//! The kernels, run on the CPU: the suite of all backends, every kernel's schedules, and what a plan must not change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex};

use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{OnDevice, Simt, kernel_folder, kernel_sources};
use consonance_testkit::suite;
use rayon::prelude::*;

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let library = Library::compile(&kernel_sources(), &[kernel_folder().join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

fn backend(multiprocessors: u32, seed: u64) -> OnDevice<Simt> {
    let name = format!("simt with {multiprocessors} multiprocessors and schedule {seed}");
    OnDevice::new(name, Simt::new(LIBRARY.clone(), multiprocessors, seed))
}

#[test]
fn the_kernels_pass_the_suite_and_every_one_is_run() {
    if skipped_without_compiler() {
        return;
    }
    LazyLock::force(&LIBRARY);
    let launched = Mutex::new(BTreeSet::new());
    let failures: Vec<String> = suite::all()
        .collect::<Vec<_>>()
        .into_par_iter()
        .filter_map(|(name, check)| {
            let start = std::time::Instant::now();
            let backend = backend(4, 1);
            let outcome = check(&backend);
            println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
            launched.lock().unwrap().extend(backend.executor().launched());
            outcome.err().map(|message| format!("{name}: {message}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let all: BTreeSet<String> = LIBRARY.kernels().map(|kernel| kernel.name.clone()).collect();
    assert_eq!(launched.into_inner().unwrap(), all, "kernels that the suite runs, and all kernels");
}
