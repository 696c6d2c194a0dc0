//! The kernels of all families on a GPU: one program, because every program carries all kernels.
//!
//! `cargo bench --features cuda --bench cuda`, and `-- FAMILY` for one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

mod bank;
mod cam;
mod clips;
mod clusters;
mod contrast;
mod device;
mod divergence;
mod gathered;
mod neighbors;
mod ranking;
mod soft_assignment;

use criterion::Criterion;

/// A family's name and its benches.
type Family = (&'static str, fn(&mut Criterion));

const FAMILIES: &[Family] = &[
    ("bank", bank::bench),
    ("cam", cam::bench),
    ("clips", clips::bench),
    ("clusters", clusters::bench),
    ("contrast", contrast::bench),
    ("divergence", divergence::bench),
    ("gathered", gathered::bench),
    ("neighbors", neighbors::bench),
    ("ranking", ranking::bench),
    ("soft_assignment", soft_assignment::bench),
];

fn main() {
    // Criterion takes the name as a filter of its own, and its groups begin with that of their family.
    let is_named = |family: &str| std::env::args().skip(1).any(|argument| argument == family);
    let one = FAMILIES.iter().any(|(family, _)| is_named(family));
    let mut criterion = Criterion::default().configure_from_args();
    for (family, bench) in FAMILIES {
        if !one || is_named(family) {
            println!("{family}");
            bench(&mut criterion);
        }
    }
    criterion.final_summary();
}
