//! Compiling kernels with nvcc: which architectures, which command line, and what has to be compiled again.
//!
//! Part of the build script, and of `tests/nvcc.rs`, which tests it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What gets machine code when nobody says otherwise: A100, L4 and RTX 40, H100 and H200.
pub(crate) const DEFAULT_ARCHITECTURES: &str = "80,89,90a";
/// The options that all kernels are compiled with; the report tool reads the same file.
pub(crate) const OPTIONS_FILE: &str = "kernels/nvcc.options";
/// Where headers are looked for, as [`OPTIONS_FILE`] says.
pub(crate) const INCLUDE_FOLDER: &str = "kernels/include";

/// The kernel files of a folder, in order of their names.
pub(crate) fn sources(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    if folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cu") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    Ok(sources)
}

/// The name of a kernel file without folder and ending.
pub(crate) fn family(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The compiler, where the variables say.
pub(crate) fn find(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(variable("NVCC").map(PathBuf::from));
    candidates.extend(variable("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    let folders = variable("PATH").unwrap_or_default();
    candidates.extend(std::env::split_paths(&folders).map(|folder| folder.join("nvcc")));
    candidates.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    candidates.into_iter().find(|path| path.is_file())
}

/// The architectures of `CONSONANCE_CUDA_ARCHS`, else the one of `CUDA_COMPUTE_CAP`, else the default.
pub(crate) fn architectures(list: Option<&str>, capability: Option<&str>) -> Result<Vec<String>, String> {
    match (list, capability) {
        (Some(list), _) => parse("CONSONANCE_CUDA_ARCHS", list),
        (None, Some(capability)) => {
            let mut parsed = parse("CUDA_COMPUTE_CAP", &capability.replace('.', ""))?;
            for arch in &mut parsed {
                // The instructions of Hopper that make the difference are only in 90a.
                if arch == "90" {
                    arch.push('a');
                }
            }
            Ok(parsed)
        }
        (None, None) => parse("the default", DEFAULT_ARCHITECTURES),
    }
}

/// A list like `80,90a`: numbers from 80, each with `a` or `f` or without, none twice, in ascending order.
fn parse(variable: &str, list: &str) -> Result<Vec<String>, String> {
    let mut archs: Vec<(u32, String)> = Vec::new();
    for arch in list.split([',', ';']).map(str::trim).filter(|arch| !arch.is_empty()) {
        let digits = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
        let number = match digits.parse::<u32>() {
            Ok(number) if digits.len() <= 3 => number,
            _ => {
                return Err(format!(
                    "{variable}: `{arch}` is no architecture; expected a list like {DEFAULT_ARCHITECTURES}"
                ));
            }
        };
        if number < 80 {
            return Err(format!("{variable}: the kernels need compute capability 8.0, `{arch}` has less"));
        }
        if !archs.iter().any(|(_, known)| known == arch) {
            archs.push((number, arch.to_owned()));
        }
    }
    if archs.is_empty() {
        return Err(format!(
            "{variable} names no architecture; expected a list like {DEFAULT_ARCHITECTURES}"
        ));
    }
    archs.sort();
    Ok(archs.into_iter().map(|(_, arch)| arch).collect())
}

/// nvcc's options for machine code of each architecture and the newest one's PTX. Only PTX without `a` and `f` runs on
/// later devices.
pub(crate) fn code_options(archs: &[String]) -> Vec<String> {
    let mut options: Vec<String> =
        archs.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")).collect();
    if let Some(newest) = archs.last() {
        let portable = newest.trim_end_matches(['a', 'f']);
        options.push(format!("-gencode=arch=compute_{portable},code=compute_{portable}"));
    }
    options
}

/// A file and all that it includes by `#include "..."`, as nvcc finds them: beside the including file, then in
/// `folder`. What is in neither belongs to the toolkit.
pub(crate) fn with_headers(source: &Path, folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![source.to_owned()];
    while let Some(path) = open.pop() {
        if !found.insert(path.clone()) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix('#') else { continue };
            let Some(rest) = rest.trim_start().strip_prefix("include") else { continue };
            let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            let beside = path.parent().unwrap_or(Path::new("")).join(name);
            open.extend([beside, folder.join(name)].into_iter().find(|path| path.is_file()));
        }
    }
    Ok(found)
}

/// The compiler with its options, and the folder that it writes to.
pub(crate) struct Compilation {
    compiler: PathBuf,
    version: String,
    options: Vec<String>,
    out: PathBuf,
}

impl Compilation {
    /// Asks the compiler for its version.
    pub(crate) fn new(compiler: PathBuf, options: Vec<String>, out: &Path) -> Result<Self, String> {
        let output = Command::new(&compiler)
            .arg("--version")
            .output()
            .map_err(|error| format!("{} does not start: {error}", compiler.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Self { compiler, version, options, out: out.to_owned() })
    }

    /// The fatbins of the sources, at most `jobs` compilers at a time.
    pub(crate) fn run(&self, sources: &[PathBuf], jobs: usize) -> Result<Vec<PathBuf>, String> {
        let jobs = jobs.max(1);
        // Spare cores compile the architectures of a file side by side.
        let threads = (jobs / sources.len().max(1)).max(1);
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let errors = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(sources.len()) {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if failed.load(Ordering::Relaxed) {
                            break;
                        }
                        if let Err(error) = self.compile(source, threads) {
                            failed.store(true, Ordering::Relaxed);
                            errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(error);
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if errors.is_empty() {
            Ok(sources.iter().map(|source| self.fatbin(source)).collect())
        } else {
            Err(errors.join("\n"))
        }
    }

    /// Where the fatbin of a source goes.
    pub(crate) fn fatbin(&self, source: &Path) -> PathBuf {
        self.out.join(family(source)).with_extension("fatbin")
    }

    /// Compiles a source unless its fatbin was made from the same text by the same command.
    fn compile(&self, source: &Path, threads: usize) -> Result<(), String> {
        let fatbin = self.fatbin(source);
        let stamp = fatbin.with_extension("stamp");
        let fingerprint =
            self.fingerprint(source).map_err(|error| format!("{}: {error}", source.display()))?;
        if fatbin.is_file() && fs::read_to_string(&stamp).is_ok_and(|known| known == fingerprint) {
            return Ok(());
        }
        let output = Command::new(&self.compiler)
            .args(["--options-file", OPTIONS_FILE, "--fatbin", "--threads", &threads.to_string()])
            .args(&self.options)
            .arg(source)
            .arg("-o")
            .arg(&fatbin)
            .output()
            .map_err(|error| format!("{} does not start: {error}", self.compiler.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if !output.status.success() {
            return Err(format!("nvcc failed on {}:\n{said}", source.display()));
        }
        fs::write(fatbin.with_extension("resources.txt"), said.as_bytes())
            .and_then(|()| fs::write(stamp, fingerprint))
            .map_err(|error| format!("{}: {error}", self.out.display()))
    }

    /// Changes with everything that the fatbin depends on.
    pub(crate) fn fingerprint(&self, source: &Path) -> io::Result<String> {
        let mut hasher = DefaultHasher::new();
        self.version.hash(&mut hasher);
        self.options.hash(&mut hasher);
        fs::read(OPTIONS_FILE)?.hash(&mut hasher);
        for path in with_headers(source, Path::new(INCLUDE_FOLDER))? {
            path.hash(&mut hasher);
            fs::read(&path)?.hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}
