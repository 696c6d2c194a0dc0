//! Compiles `kernels/*.cu` for the feature `cuda` and writes the table that `src/kernels.rs` embeds.
//!
//! Without nvcc the table is empty and the crate builds all the same: asking for a kernel then says what to do.
//!
//! - `CONSONANCE_CUDA_ARCHS` (default `80,89,90a`) lists the architectures that get machine code; the newest is added
//!   as PTX, for devices that come later.
//! - `CUDA_COMPUTE_CAP=90` is a short cut for that one, for faster builds.
//! - `CONSONANCE_REQUIRE_NVCC=1` makes a missing compiler an error, for releases.
//! - `CONSONANCE_NVCC_FLAGS` are further options of nvcc, such as `-lineinfo`.
//!
//! nvcc is looked for in `$NVCC`, `$CUDA_HOME/bin`, the `PATH` and `/usr/local/cuda/bin`. Its report of registers and
//! spills is beside each fatbin in the build's folder; `tools/kernel-report.py` makes a table of it.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const VARIABLES: [&str; 7] = [
    "CONSONANCE_CUDA_ARCHS",
    "CONSONANCE_NVCC_FLAGS",
    "CONSONANCE_REQUIRE_NVCC",
    "CUDA_COMPUTE_CAP",
    "CUDA_HOME",
    "DOCS_RS",
    "NVCC",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/nvcc.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut table = String::from("pub(crate) static EMBEDDED: &[(&str, &[u8])] = &[\n");
    // Other builds neither compile kernels nor depend on the variables.
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo::rerun-if-changed=kernels");
        for variable in VARIABLES {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        for (family, fatbin) in kernels(&out)? {
            writeln!(table, "    ({family:?}, include_bytes!({:?})),", fatbin.display().to_string())?;
        }
    }
    table.push_str("];\n");
    let path = out.join("kernel_table.rs");
    if fs::read_to_string(&path).ok().as_deref() != Some(&table) {
        fs::write(path, table)?;
    }
    Ok(())
}

/// The families and their fatbins.
fn kernels(out: &Path) -> Result<Vec<(String, PathBuf)>, Box<dyn Error>> {
    let sources = nvcc::sources(Path::new("kernels"))?;
    if sources.is_empty() || env::var_os("DOCS_RS").is_some() {
        return Ok(Vec::new());
    }
    let Some(compiler) = nvcc::find(|variable| env::var_os(variable)) else {
        if env::var("CONSONANCE_REQUIRE_NVCC").as_deref() == Ok("1") {
            return Err(
                "CONSONANCE_REQUIRE_NVCC=1, but no nvcc in $NVCC, $CUDA_HOME/bin, on the PATH or in \
                        /usr/local/cuda/bin; install the CUDA toolkit, or run tools/cuda-home.sh"
                    .into(),
            );
        }
        println!(
            "cargo::warning=no nvcc found: this build carries no CUDA kernels, and asking for one is an error; install \
             the CUDA toolkit, or run tools/cuda-home.sh"
        );
        return Ok(Vec::new());
    };
    let variable = |name| env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
    let archs = nvcc::architectures(
        variable("CONSONANCE_CUDA_ARCHS").as_deref(),
        variable("CUDA_COMPUTE_CAP").as_deref(),
    )?;
    let mut options = nvcc::code_options(&archs);
    if let Some(flags) = variable("CONSONANCE_NVCC_FLAGS") {
        options.extend(flags.split_whitespace().map(str::to_owned));
    }
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let fatbins = nvcc::Compilation::new(compiler, options, out)?.run(&sources, jobs)?;
    Ok(sources.iter().map(|source| nvcc::family(source)).zip(fatbins).collect())
}
