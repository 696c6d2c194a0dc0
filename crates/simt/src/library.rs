//! Kernels compiled for the CPU and loaded.

use std::ffi::{CStr, c_char};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compiler::{self, Compiler};
use crate::hooks::{HOOKS, Hooks};
use crate::schedule::Entry;
use crate::symbols::Symbols;

/// Why sources did not become a library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// There is no C++ compiler, or none that this system's libraries can be made with.
    #[error(
        "no C++ compiler: install g++ or clang++, or name one in CXX; kernels are simulated on Linux only"
    )]
    NoCompiler,
    /// The compiler or the linker refused.
    #[error("{command}\n{output}")]
    Refused {
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file could not be read or written, or a program not be started.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or program.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The library could not be loaded.
    #[error("{}: {reason}", path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// The loader's reason.
        reason: String,
    },
}

/// A kernel of a library.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The name that it was declared with.
    pub name: String,
    /// The size of its parameter struct.
    pub params_bytes: usize,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that must fit on a multiprocessor at once.
    pub blocks: u32,
    pub(crate) entry: Entry,
}

/// Kernels that a [`Device`](crate::Device) can run.
pub struct Library {
    kernels: Vec<Kernel>,
    image: Range<usize>,
    symbols: Symbols,
    /// The library counts executed lines, and writes the counters out when it is unloaded or the process ends.
    coverage: bool,
    _code: libloading::Library,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("kernels", &self.kernels).finish_non_exhaustive()
    }
}

/// `simt::Kernel`.
#[repr(C)]
struct Registered {
    name: *const c_char,
    params_bytes: usize,
    threads: u32,
    blocks: u32,
    entry: Entry,
    next: *const Registered,
}

impl Library {
    /// Compiles CUDA sources for the CPU and loads them, with headers from `includes` and macros from `defines`
    /// (`NAME` or `NAME=VALUE`).
    ///
    /// What was compiled before from the same files and flags is loaded from `target/simt`; other processes may do
    /// the same at the same time. Warnings of the compiler are errors.
    ///
    /// # Errors
    /// [`CompileError::NoCompiler`] where there is none, and what the compiler says otherwise.
    pub fn compile(
        sources: &[PathBuf],
        includes: &[PathBuf],
        defines: &[&str],
    ) -> Result<Self, CompileError> {
        Self::build(sources, includes, defines, true)
    }

    /// As [`Library::compile`], without optimization: compiled in less than half the time and some 1.5 times as slow, for
    /// kernels that run once. What is defined and never used is no error.
    ///
    /// # Errors
    /// Those of [`Library::compile`].
    pub fn compile_unoptimized(
        sources: &[PathBuf],
        includes: &[PathBuf],
        defines: &[&str],
    ) -> Result<Self, CompileError> {
        Self::build(sources, includes, defines, false)
    }

    fn build(
        sources: &[PathBuf],
        includes: &[PathBuf],
        defines: &[&str],
        optimized: bool,
    ) -> Result<Self, CompileError> {
        let compiler = compiler::find().ok_or(CompileError::NoCompiler)?;
        let own = own_headers();
        let includes = includes.iter().map(|folder| folder.canonicalize().map_err(io_error(folder)));
        let folders: Vec<PathBuf> =
            std::iter::once(Ok(own.clone())).chain(includes).collect::<Result<_, _>>()?;
        let coverage = std::env::var_os("CONSONANCE_SIMT_COVERAGE").filter(|c| !c.is_empty());
        let flags = compiler.kernel_flags(optimized, coverage.is_some());
        let coverage_counted = coverage.is_some();
        let build =
            Build { compiler, sources, includes: &folders, defines, flags, coverage: coverage_counted };
        let cache = coverage.map_or_else(cache_folder, PathBuf::from);
        let library = build.run(&cache)?;
        Self::load(library, own, build.coverage)
    }

    fn load(path: PathBuf, own: PathBuf, coverage: bool) -> Result<Self, CompileError> {
        let refused =
            |error: libloading::Error| CompileError::Load { path: path.clone(), reason: error.to_string() };
        type Bind = unsafe extern "C" fn(*const Hooks);
        type Describe = unsafe extern "C" fn(*mut usize) -> *const Registered;
        // SAFETY: a library that was compiled from this crate's shim; its initialisers only register kernels.
        let code = unsafe { libloading::Library::new(&path) }.map_err(refused)?;
        let mut image = [0; 2];
        // SAFETY: the types are those of the definitions in shim.cpp, which every such library has.
        let first = unsafe {
            code.get::<Bind>(c"simt_bind").map_err(refused)?(&raw const HOOKS);
            code.get::<Describe>(c"simt_describe").map_err(refused)?(image.as_mut_ptr())
        };
        let mut kernels = Vec::new();
        let mut next = first;
        // SAFETY: the list consists of static objects of the library, whose last one points to nothing.
        while let Some(kernel) = unsafe { next.as_ref() } {
            // SAFETY: a string literal of the library.
            let name = unsafe { CStr::from_ptr(kernel.name) }.to_string_lossy().into_owned();
            let Registered { params_bytes, threads, blocks, entry, .. } = *kernel;
            kernels.push(Kernel { name, params_bytes, threads, blocks, entry });
            next = kernel.next;
        }
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        let symbols = Symbols::new(path, own.join("simt"));
        Ok(Self { kernels, image: image[0]..image[1], symbols, coverage, _code: code })
    }

    /// The kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    pub(crate) fn image(&self) -> Range<usize> {
        self.image.clone()
    }

    pub(crate) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    pub(crate) fn counts_coverage(&self) -> bool {
        self.coverage
    }
}

fn own_headers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include")
}

fn cache_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from)
        .join("simt")
}

struct Build<'a> {
    compiler: &'a Compiler,
    sources: &'a [PathBuf],
    includes: &'a [PathBuf],
    defines: &'a [&'a str],
    flags: Vec<&'static str>,
    coverage: bool,
}

impl Build<'_> {
    /// The compiled library, compiled now or before.
    fn run(&self, cache: &Path) -> Result<PathBuf, CompileError> {
        let folder = cache.join(format!("{:016x}", self.key()?));
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let folder = folder.canonicalize().map_err(io_error(&folder))?;
        let library = folder.join("kernels.so");
        if library.is_file() {
            return Ok(library);
        }
        let lock = folder.join("lock");
        let file = File::create(&lock).map_err(io_error(&lock))?;
        // One process compiles, the others wait for it; objects of coverage must keep the names they were made with.
        file.lock().map_err(io_error(&lock))?;
        if library.is_file() {
            return Ok(library);
        }
        let mut objects = vec![folder.join("shim.o")];
        execute(&mut self.compiler.shim(&own_headers(), &objects[0]))?;
        let mut commands = Vec::new();
        for (index, source) in self.sources.iter().enumerate() {
            let source = source.canonicalize().map_err(io_error(source))?;
            let stem = source.file_stem().unwrap_or_default().to_string_lossy();
            let object = folder.join(format!("{index}-{stem}.o"));
            let mut command =
                self.compiler.kernel(&self.flags, self.includes, self.defines, &source, &object);
            // Away from the sources, whose names would be shortened in what is kept of them.
            command.current_dir(&folder);
            commands.push(command);
            objects.push(object);
        }
        execute_all(&mut commands)?;
        let unfinished = folder.join("kernels.so.unfinished");
        execute(&mut self.compiler.link(self.coverage, &objects, &unfinished))?;
        fs::rename(&unfinished, &library).map_err(io_error(&library))?;
        Ok(library)
    }

    /// What the library depends on: files, flags and compiler.
    fn key(&self) -> Result<u64, CompileError> {
        let mut hasher = DefaultHasher::new();
        self.compiler.command.hash(&mut hasher);
        self.compiler.version.hash(&mut hasher);
        self.flags.hash(&mut hasher);
        self.defines.hash(&mut hasher);
        let mut files = self.sources.to_vec();
        for folder in self.includes {
            files_below(folder, &mut files).map_err(io_error(folder))?;
        }
        for file in files {
            file.hash(&mut hasher);
            fs::read(&file).map_err(io_error(&file))?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}

fn files_below(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            files_below(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CompileError {
    let path = path.to_owned();
    move |source| CompileError::Io { path, source }
}

/// As many at a time as there are processors.
fn execute_all(commands: &mut [Command]) -> Result<(), CompileError> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for group in commands.chunks_mut(processors) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = group.iter_mut().map(|command| scope.spawn(|| execute(command))).collect();
            running.into_iter().map(|thread| thread.join().unwrap_or(Ok(()))).collect()
        });
        results.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

fn execute(command: &mut Command) -> Result<(), CompileError> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().map_err(io_error(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(CompileError::Refused {
        command: format!("{} {}", program.display(), arguments.join(" ")),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
