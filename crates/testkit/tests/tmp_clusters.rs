#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
use consonance_simt::Library;
use consonance_testkit::backend::{Cpu, OnDevice, Recorded, Simt, kernel_folder};
use consonance_testkit::suite;
use std::sync::Arc;
#[test]
fn tmp() {
    let sources: Vec<_> = ["clusters.cu", "clusters_stream.cu", "clusters_rounds.cu", "segments.cu"]
        .iter()
        .map(|f| kernel_folder().join(f))
        .collect();
    let library = Arc::new(
        Library::compile(&sources, &[kernel_folder().join("include")], &[]).unwrap_or_else(|e| panic!("{e}")),
    );
    let only = std::env::var("ONLY").unwrap_or_default();
    for (name, check) in suite::clusters::CHECKS {
        if !name.contains(&only) {
            continue;
        }
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

struct Fault {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
}
const fn fault(what: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Fault {
    Fault { what, file, right, wrong }
}
type Family = (&'static [&'static str], &'static [suite::Check], &'static [Fault]);
#[path = "simt/clusters_faults.rs"]
mod clusters;
#[test]
fn faults() {
    let only = std::env::var("FAULT").unwrap_or_default();
    for fault in clusters::CLUSTERS.2.iter() {
        if !fault.what.contains(&only) {
            continue;
        }
        let start = std::time::Instant::now();
        let folder = std::path::PathBuf::from("/tmp/w/clusters-fault");
        let _ = std::fs::remove_dir_all(&folder);
        std::process::Command::new("cp").arg("-r").arg(kernel_folder()).arg(&folder).status().unwrap();
        let path = folder.join(fault.file);
        let text = std::fs::read_to_string(&path).unwrap();
        let count = text.matches(fault.right).count();
        if count != 1 {
            println!("BAD {}: {count} matches", fault.what);
            continue;
        }
        std::fs::write(&path, text.replace(fault.right, fault.wrong)).unwrap();
        let sources: Vec<_> = clusters::CLUSTERS.0.iter().map(|f| folder.join(f)).collect();
        let library = match Library::compile(&sources, &[folder.join("include")], &[]) {
            Ok(l) => Arc::new(l),
            Err(e) => {
                println!("BAD {}: {e}", fault.what);
                continue;
            }
        };
        let compiled = start.elapsed();
        let wrong = clusters::CLUSTERS.1.iter().zip(0..).find_map(|((name, check), seed)| {
            check(&OnDevice::new("x", Simt::new(library.clone(), 1, seed)))
                .err()
                .map(|m| format!("{name}: {m}"))
        });
        match wrong {
            Some(m) => println!(
                "found {}: {} {compiled:?} {:?}",
                fault.what,
                m.lines().next().unwrap(),
                start.elapsed()
            ),
            None => println!("BAD {}: passes {:?}", fault.what, start.elapsed()),
        }
    }
}
