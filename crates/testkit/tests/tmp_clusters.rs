#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
use std::sync::Arc;
use consonance_simt::Library;
use consonance_testkit::backend::{Cpu, OnDevice, Recorded, Simt, kernel_folder};
use consonance_testkit::suite;
#[test]
fn tmp() {
    let sources: Vec<_> = ["clusters.cu", "clusters_stream.cu", "clusters_rounds.cu", "segments.cu"].iter().map(|f| kernel_folder().join(f)).collect();
    let library = Arc::new(Library::compile(&sources, &[kernel_folder().join("include")], &[]).unwrap_or_else(|e| panic!("{e}")));
    let only = std::env::var("ONLY").unwrap_or_default();
    for (name, check) in suite::clusters::CHECKS {
        if !name.contains(&only) { continue; }
        let start = std::time::Instant::now();
        let cpu = check(&Cpu);
        let t0 = start.elapsed();
        let mut digests = Vec::new();
        for (mp, seed) in [(1, 0), (4, 3)] {
            let backend = Recorded::new(OnDevice::new("simt", Simt::new(library.clone(), mp, seed)));
            let out = check(&backend);
            digests.push((out, backend.digest()));
        }
        println!("{name}: cpu {cpu:?} {t0:?}, simt {digests:?} {:?}", start.elapsed());
    }
}
