//! Is there a device? Asked before cudarc is, which panics where there is no driver to load.

use std::sync::OnceLock;

use cudarc::driver::{result, sys};
use libloading::Library;

use super::{Error, Result};

#[cfg(windows)]
const DRIVERS: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const DRIVERS: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Whether there is a CUDA device that a [`CudaExecutor`](super::CudaExecutor) could run on.
///
/// # Errors
/// [`Error::NoDevice`], which says what is missing.
pub fn available() -> Result<()> {
    match device_count()? {
        0 => Err(no_device(sys::CUresult::CUDA_ERROR_NO_DEVICE)),
        _ => Ok(()),
    }
}

/// The number of CUDA devices that the driver shows.
///
/// # Errors
/// [`Error::NoDevice`] without a driver, or with one that does not start.
pub fn device_count() -> Result<usize> {
    static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let mut tried = Vec::new();
        for name in DRIVERS {
            // SAFETY: the driver's own library, whose start-up code is what every CUDA program runs.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(library),
                // The loader's own words are one level down.
                Err(error) => tried.push(match std::error::Error::source(&error) {
                    Some(source) => source.to_string(),
                    None => format!("{name}: {error}"),
                }),
            }
        }
        Err(tried.join("; "))
    });
    if let Err(tried) = library {
        return Err(Error::NoDevice {
            reason: format!(
                "the NVIDIA driver's library cannot be loaded ({tried}); install the driver, or run on the CPU"
            ),
        });
    }
    let count = result::init().and_then(|()| result::device::get_count());
    let count = count.map_err(|error| no_device(error.0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What a driver's refusal to start means.
pub(super) fn no_device(code: sys::CUresult) -> Error {
    use sys::CUresult as R;
    let remedy = match code {
        R::CUDA_ERROR_NO_DEVICE => "the driver shows no device; CUDA_VISIBLE_DEVICES hides devices",
        R::CUDA_ERROR_STUB_LIBRARY => {
            "the library found is a stand-in for linking; install the NVIDIA driver, or take the stand-in out of the \
             search path"
        }
        R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and its kernel module are of different versions; restart the machine"
        }
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            "the device has no memory left for a context; end other programs on it"
        }
        R::CUDA_ERROR_INVALID_DEVICE => "there is no device with this number",
        _ => "the driver does not start; see what nvidia-smi says",
    };
    Error::NoDevice { reason: format!("{code:?}: {remedy}") }
}

/// The CUDA version that the driver supports, as `13.0`.
pub(super) fn driver_version() -> String {
    let mut version = 0;
    // SAFETY: writes one number; a driver that answers is loaded wherever this is asked.
    match unsafe { sys::cuDriverGetVersion(&raw mut version) } {
        sys::CUresult::CUDA_SUCCESS => format!("{}.{}", version / 1000, version % 1000 / 10),
        code => format!("unknown ({code:?})"),
    }
}
