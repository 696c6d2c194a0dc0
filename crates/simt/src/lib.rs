//! Runs CUDA kernels on the CPU, under test.
//!
//! The very sources in `kernels/` are compiled by the host's C++ compiler with `-DCONSONANCE_SIMT` and executed: every
//! thread of a block is a coroutine, every access is checked before it happens, and a seed picks the order of
//! threads. A kernel that reads what nobody wrote, that lacks a barrier, that leaves its buffers or whose lanes part
//! ways stops with a [`Fault`] that names the line.
//!
//! ```
//! use consonance_simt::{Device, FaultKind, Launch, Library};
//!
//! let folder = tempfile::tempdir()?;
//! let source = folder.path().join("double.cu");
//! std::fs::write(&source, r#"
//!     #include <simt/device.h>
//!     struct Double { uint64_t values; uint32_t count; uint32_t unused; };
//!     CONSONANCE_KERNEL(double_all, Double, 64, 1) {
//!         const uint32_t i = blockIdx.x * 64 + threadIdx.x;
//!         if (i < p.count) reinterpret_cast<float*>(p.values)[i] *= 2.0f;
//!     }
//! "#)?;
//! if consonance_simt::skipped_without_compiler() {
//!     return Ok(());
//! }
//! let library = Library::compile(&[source], &[], &[])?;
//! let device = Device::new()?;
//! let values: Vec<u8> = (0..100).flat_map(|i| (i as f32).to_ne_bytes()).collect();
//! let buffer = device.upload(&values)?;
//! let mut params = buffer.address().to_ne_bytes().to_vec();
//! params.extend(100u64.to_ne_bytes());
//! let launch = Launch {
//!     kernel: "double_all", grid: [2, 1, 1], threads: 64, shared_bytes: 0, params: &params, seed: 0,
//! };
//! let statistics = device.launch(&library, &launch)?;
//! assert_eq!(statistics.global_bytes_read, 400);
//!
//! let mut last = [0; 400];
//! device.download(&buffer, &mut last)?;
//! assert_eq!(last[396..], 198f32.to_ne_bytes());
//!
//! // One value too many.
//! let mut beyond = params.clone();
//! beyond[8] = 101;
//! let fault = device.launch(&library, &Launch { params: &beyond, ..launch }).unwrap_err();
//! assert_eq!(fault.kind, FaultKind::GlobalBounds);
//! assert!(fault.to_string().contains("double.cu:6"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is checked, what is not, and how an instruction is added: the README of this crate.

mod collectives;
mod compiler;
mod copies;
mod device;
mod execution;
mod fault;
mod hooks;
mod library;
mod matrix;
mod memory;
mod pages;
mod race;
mod random;
mod release;
mod schedule;
mod space;
mod statistics;
mod symbols;
mod threads;

pub use device::{Buffer, Device, Launch};
pub use fault::{Fault, FaultKind, Location, ThreadIndex};
pub use library::{CompileError, Kernel, Library};
pub use statistics::Statistics;

/// Whether a test has to be left out because there is no C++ compiler; says so on standard output.
///
/// # Panics
/// When it has to be left out and `CONSONANCE_REQUIRE_SIMT` is `1`: a skip is not a pass.
#[must_use]
pub fn skipped_without_compiler() -> bool {
    if compiler::find().is_some() {
        return false;
    }
    let required = std::env::var("CONSONANCE_REQUIRE_SIMT").as_deref() == Ok("1");
    assert!(!required, "CONSONANCE_REQUIRE_SIMT=1, but there is no C++ compiler: install g++ or clang++");
    #[expect(clippy::print_stdout, reason = "a test's skip is to be seen")]
    {
        println!("skipped: no C++ compiler");
    }
    true
}
