//! The host's C++ compiler, and the commands that it is given.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A C++ compiler that answered.
#[derive(Debug, Clone)]
pub(crate) struct Compiler {
    /// The program and arguments that belong to it.
    pub(crate) command: Vec<String>,
    /// What it says of itself: part of the name of what it compiles.
    pub(crate) version: String,
    clang: bool,
}

/// The compiler of this process: `$CXX`, or the first of `c++`, `g++` and `clang++` that answers.
pub(crate) fn find() -> Option<&'static Compiler> {
    static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            // Addresses of the library's image are the linker's names on ELF systems.
            if !cfg!(target_os = "linux") {
                return None;
            }
            let named = std::env::var("CXX").ok().filter(|c| !c.trim().is_empty());
            let candidates: Vec<&str> = match &named {
                Some(compiler) => vec![compiler],
                None => vec!["c++", "g++", "clang++"],
            };
            candidates.into_iter().find_map(ask)
        })
        .as_ref()
}

fn ask(command: &str) -> Option<Compiler> {
    let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    let (program, arguments) = command.split_first()?;
    let output = Command::new(program).args(arguments).arg("--version").output().ok()?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let clang = version.contains("clang");
    output.status.success().then_some(Compiler { command, version, clang })
}

/// Flags for all that goes into a library.
const COMMON: [&str; 11] = [
    "-std=c++17",
    "-g",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-DCONSONANCE_SIMT",
    "-c",
];
/// Flags for kernels: every access as it is written, one at a time, and seen by the simulator.
const KERNELS: &[&str] = &[
    "-fsanitize=thread",
    "-fno-tree-vectorize",
    "-Wall",
    "-Wextra",
    "-Werror",
    // CUDA's words need no header in nvcc either.
    "-include",
    "simt/device.h",
    "-x",
    "c++",
];
const KERNELS_GCC: &[&str] = &[
    "-Wno-unknown-pragmas",
    "-fno-store-merging",
    "-fno-tree-loop-distribute-patterns",
    "-fno-tree-tail-merge",
    "-fno-crossjumping",
];
const KERNELS_CLANG: &[&str] = &[
    "-Wno-unknown-pragmas",
    "-Wno-pass-failed",
    "-fno-slp-vectorize",
    // By default a read right before a write of the same address is not reported.
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
];
const COVERAGE: &[&str] = &["--coverage", "-fprofile-update=atomic"];

impl Compiler {
    /// All flags that kernels are compiled with, coverage included.
    pub(crate) fn kernel_flags(&self, optimized: bool, coverage: bool) -> Vec<&'static str> {
        let special: &[&str] = if self.clang { KERNELS_CLANG } else { KERNELS_GCC };
        let coverage: &[&str] = if coverage { COVERAGE } else { &[] };
        // Deliberate faults are not optimized, and may leave a variable without use.
        let level: &[&str] = if optimized { &["-O1"] } else { &["-O0", "-Wno-unused"] };
        COMMON.iter().chain(KERNELS).chain(level).chain(special).chain(coverage).copied().collect()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.command.first().map_or("c++", String::as_str));
        command.args(self.command.iter().skip(1));
        command
    }

    pub(crate) fn kernel(
        &self,
        flags: &[&str],
        includes: &[PathBuf],
        defines: &[&str],
        source: &Path,
        object: &Path,
    ) -> Command {
        let mut command = self.command();
        command.args(flags);
        for include in includes {
            command.arg("-I").arg(include);
        }
        command.args(defines.iter().map(|define| format!("-D{define}")));
        command.arg(source).arg("-o").arg(object);
        command
    }

    pub(crate) fn shim(&self, include: &Path, object: &Path) -> Command {
        let mut command = self.command();
        command.args(COMMON).args(["-O2", "-Wall", "-Wextra", "-Werror", "-I"]).arg(include);
        command.arg(include.join("simt/shim.cpp")).arg("-o").arg(object);
        command
    }

    pub(crate) fn link<S: AsRef<OsStr>>(&self, coverage: bool, objects: &[S], library: &Path) -> Command {
        let mut command = self.command();
        command.args(["-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"]);
        if coverage {
            command.arg("--coverage");
        }
        command.args(objects).arg("-o").arg(library).arg("-lm");
        command
    }
}
