//! Loading kernels: each family's fatbin once for a context, each function once.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::{CudaContext, result, sys};

use super::failure::Call;
use super::{Error, Launch, Result};
use crate::kernels;

/// A kernel of a loaded module.
#[derive(Clone, Copy)]
pub(super) struct Function {
    raw: sys::CUfunction,
    /// Threads that a block of it can have on this device.
    pub(super) max_threads: u32,
    /// Dynamic shared memory that a block of it can have.
    pub(super) max_shared: u32,
}

// SAFETY: a handle of the driver, valid on every thread that has its context current; its module is never unloaded.
unsafe impl Send for Function {}

impl Function {
    pub(super) fn raw(self) -> sys::CUfunction {
        self.raw
    }
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: as for `Function`.
unsafe impl Send for Module {}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Module>,
    functions: HashMap<String, Function>,
}

/// The kernels of one context. They stay loaded for the life of the process, and the context with them.
pub(super) struct Functions {
    _context: Arc<CudaContext>,
    shared_bytes: u32,
    loaded: Mutex<Loaded>,
}

impl Functions {
    /// Those of this context, shared by all of its executors.
    pub(super) fn of(context: &Arc<CudaContext>, shared_bytes: u32) -> Arc<Self> {
        static CONTEXTS: LazyLock<Mutex<HashMap<usize, Arc<Functions>>>> = LazyLock::new(Mutex::default);
        let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let key = context.cu_ctx() as usize;
        let new = || Arc::new(Self { _context: context.clone(), shared_bytes, loaded: Mutex::default() });
        contexts.entry(key).or_insert_with(new).clone()
    }

    /// The kernel of a launch, loaded at its first. The context is current.
    pub(super) fn get(&self, launch: &Launch<'_>) -> Result<Function> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(launch.entry) {
            return Ok(*function);
        }
        let failed = |doing| {
            move |error: result::DriverError| {
                Call { op: launch.op, doing, last: launch.entry }.load_error(launch, error.0)
            }
        };
        let module = match loaded.modules.get(launch.family) {
            Some(module) => *module,
            None => {
                let fatbin = fatbin(launch)?;
                // SAFETY: a fatbin of nvcc, at an address aligned to 8 as its header is read, and whole.
                let module = unsafe { result::module::load_data(fatbin.as_ptr().cast()) };
                let module = Module(module.map_err(failed("loading the family's kernels"))?);
                loaded.modules.insert(launch.family, module);
                module
            }
        };
        let name = CString::new(launch.entry)
            .map_err(|_| no_kernel(launch, "its name contains a zero byte".into()))?;
        // SAFETY: the module is loaded and never unloaded.
        let raw = unsafe { result::module::get_function(module.0, name) }
            .map_err(failed("looking the kernel up"))?;
        let function = self.prepare(raw).map_err(failed("preparing the kernel"))?;
        loaded.functions.insert(launch.entry.to_owned(), function);
        Ok(function)
    }

    /// Allows all the shared memory of the device, once.
    fn prepare(&self, raw: sys::CUfunction) -> std::result::Result<Function, result::DriverError> {
        use sys::CUfunction_attribute as A;
        // SAFETY: the function was just found in a loaded module.
        let attribute = |attribute| unsafe { result::function::get_function_attribute(raw, attribute) };
        let number = |value: i32| u32::try_from(value).unwrap_or(0);
        let max_threads = number(attribute(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?);
        let fixed = number(attribute(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?);
        let max_shared = self.shared_bytes.saturating_sub(fixed);
        // SAFETY: as above.
        unsafe {
            result::function::set_function_attribute(
                raw,
                A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                i32::try_from(max_shared).unwrap_or(i32::MAX),
            )
        }?;
        Ok(Function { raw, max_threads, max_shared })
    }
}

/// The family's fatbin at an aligned address: an embedded one can lie anywhere.
fn fatbin(launch: &Launch<'_>) -> Result<Vec<u64>> {
    let bytes = kernels::fatbin(launch.family).ok_or_else(|| {
        let families: Vec<_> = kernels::families().collect();
        no_kernel(
            launch,
            if families.is_empty() {
                "this build carries no kernels, for want of nvcc; build again where nvcc is on the PATH or in \
                 $CUDA_HOME/bin (tools/cuda-home.sh installs one)"
                    .into()
            } else {
                format!("this build carries only the families {}", families.join(", "))
            },
        )
    })?;
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut::<u64, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    Ok(words)
}

fn no_kernel(launch: &Launch<'_>, reason: String) -> Error {
    Error::NoKernel { op: launch.op, kernel: launch.entry.to_owned(), reason }
}
