//! Compiles `kernels/*.cu` into fatbins and writes the table that `src/kernels.rs` embeds.
//!
//! Without nvcc the table is empty and the crate builds all the same: asking for a kernel then says what to do.
//! `CONSONANCE_REQUIRE_NVCC=1` makes a missing compiler an error, for release builds.
//! `CONSONANCE_CUDA_ARCHS` (default `80,89,90a`) lists the architectures that get machine code; the newest
//! portable one is added as PTX.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DEFAULT_ARCHS: &str = "80,89,90a";

fn main() -> Result<(), Box<dyn Error>> {
    for variable in ["CONSONANCE_CUDA_ARCHS", "CONSONANCE_REQUIRE_NVCC", "CUDA_HOME", "NVCC", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");

    let out = PathBuf::from(env::var("OUT_DIR")?);
    let sources = kernel_sources(Path::new("kernels"))?;
    let nvcc = if sources.is_empty() || env::var_os("DOCS_RS").is_some() { None } else { find_nvcc() };
    if nvcc.is_none() && !sources.is_empty() && env::var("CONSONANCE_REQUIRE_NVCC").as_deref() == Ok("1") {
        return Err("CONSONANCE_REQUIRE_NVCC=1, but no nvcc in $NVCC, $CUDA_HOME/bin or on the PATH".into());
    }

    let mut table = String::from("pub(crate) static EMBEDDED: &[(&str, &[u8])] = &[\n");
    if let Some(nvcc) = nvcc {
        let builds: Vec<_> =
            sources.iter().map(|source| spawn(&nvcc, source, &out)).collect::<Result<_, _>>()?;
        for (mut child, source, fatbin) in builds {
            if !child.wait()?.success() {
                return Err(format!("nvcc failed on {}", source.display()).into());
            }
            let name = source.file_stem().ok_or("a kernel file has no name")?.to_string_lossy();
            writeln!(table, "    ({name:?}, include_bytes!({:?})),", fatbin.display().to_string())?;
        }
    }
    table.push_str("];\n");
    fs::write(out.join("kernel_table.rs"), table)?;
    Ok(())
}

fn kernel_sources(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut sources = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "cu") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    Ok(sources)
}

fn find_nvcc() -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(env::var_os("NVCC").map(PathBuf::from));
    candidates.extend(env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    candidates.extend(env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join("nvcc")));
    candidates.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    candidates.into_iter().find(|path| path.is_file())
}

type Build = (std::process::Child, PathBuf, PathBuf);

fn spawn(nvcc: &Path, source: &Path, out: &Path) -> Result<Build, Box<dyn Error>> {
    let archs = env::var("CONSONANCE_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
    let number = |arch: &str| arch.trim_end_matches(char::is_alphabetic).parse::<u32>();
    let mut newest = 0;
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-O3", "-std=c++17", "-Werror", "all-warnings", "-I", "kernels/include"]);
    for arch in archs {
        newest = newest
            .max(number(arch).map_err(|_| format!("CONSONANCE_CUDA_ARCHS: `{arch}` is no architecture"))?);
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}"));
    let fatbin = out.join(source.file_name().ok_or("a kernel file has no name")?).with_extension("fatbin");
    command.arg(source).arg("-o").arg(&fatbin);
    Ok((command.spawn()?, source.to_owned(), fatbin))
}
