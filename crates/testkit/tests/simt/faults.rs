//! Deliberate faults in the kernels, each of which the suite must find: what it does not find, it does not check.

#[path = "bank_faults.rs"]
mod bank;
#[path = "cam_faults.rs"]
mod cam;
#[path = "clips_faults.rs"]
mod clips;
#[path = "clusters_faults.rs"]
mod clusters;
#[path = "contrast_faults.rs"]
mod contrast;
#[path = "contrast_pace_faults.rs"]
mod contrast_pace;
#[path = "contrast_symmetric_faults.rs"]
mod contrast_symmetric;
#[path = "credibility_faults.rs"]
mod credibility;
#[path = "divergence_faults.rs"]
mod divergence;
#[path = "gathered_faults.rs"]
mod gathered;
#[path = "neighbors_faults.rs"]
mod neighbors;
#[path = "ranking_faults.rs"]
mod ranking;
#[path = "soft_assignment_faults.rs"]
mod soft_assignment;

use std::path::Path;
use std::sync::Arc;

use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{OnDevice, Simt, kernel_folder};
use consonance_testkit::suite::Check;
use rayon::prelude::*;

/// A piece of a kernel file, which occurs in it once, and what stands there instead.
struct Fault {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The check that finds it; none: any check of the family, one after the other, which takes longer.
    found_by: Option<&'static str>,
}

const fn fault(what: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Fault {
    Fault { what, file, right, wrong, found_by: None }
}

impl Fault {
    /// The check that finds it, so that no other need run.
    const fn by(mut self, check: &'static str) -> Self {
        self.found_by = Some(check);
        self
    }
}

/// A family: the kernel files that its checks need, the checks, and the faults.
type Family = (&'static [&'static str], &'static [Check], &'static [Fault]);

fn assert_all_found(family: &Family) {
    if skipped_without_compiler() {
        return;
    }
    // One fault by a part of its name, while it is being written.
    let named = std::env::var("CONSONANCE_FAULT").ok();
    let faults: Vec<&Fault> =
        family.2.iter().filter(|fault| named.as_ref().is_none_or(|name| fault.what.contains(name))).collect();
    if faults.is_empty() {
        println!("skipped: no fault of this family is named `{}`", named.unwrap_or_default());
        return;
    }
    let unfound: Vec<String> = faults
        .into_par_iter()
        .filter_map(|fault| {
            let message = found(family, fault);
            if let Ok(message) = &message {
                println!("{}: {}", fault.what, message.lines().next().unwrap_or_default());
            }
            message.err()
        })
        .collect();
    assert!(unfound.is_empty(), "{}", unfound.join("\n"));
}

/// What the suite says of the kernels with this fault.
fn found((files, checks, _): &Family, fault: &Fault) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    copy(&kernel_folder(), folder.path());
    let path = folder.path().join(fault.file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(fault.right).count(), 1, "`{}` in {}", fault.right, fault.file);
    std::fs::write(&path, text.replace(fault.right, fault.wrong)).unwrap();
    let sources: Vec<_> = files.iter().map(|file| folder.path().join(file)).collect();
    let library = match Library::compile_unoptimized(&sources, &[folder.path().join("include")], &[]) {
        Ok(library) => Arc::new(library),
        Err(error) => return Err(format!("{}: does not compile: {error}", fault.what)),
    };
    let backend = |seed| OnDevice::new(fault.what, Simt::new(library.clone(), 1, seed));
    let asked = |name: &str| fault.found_by.is_none_or(|check| check == name);
    let mut asked = checks.iter().zip(0..).filter(|((name, _), _)| asked(name)).peekable();
    assert!(asked.peek().is_some(), "{}: the family has no check `{:?}`", fault.what, fault.found_by);
    let wrong = asked.find_map(|((name, check), seed)| {
        check(&backend(seed)).err().map(|message| format!("{name}: {message}"))
    });
    match wrong {
        // Of the family's own making: the check would fail without the fault, too.
        Some(message) if message.contains("no such kernel") => Err(format!("{}: {message}", fault.what)),
        Some(message) => Ok(message),
        None => Err(format!("{}: {} passes", fault.what, fault.found_by.unwrap_or("the suite"))),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
