//! What a refusal of the driver means, and what to do about it.

use cudarc::driver::sys::CUresult;

use super::probe::driver_version;
use super::{Error, Launch};

/// What was being done.
pub(super) struct Call<'a> {
    pub(super) op: &'static str,
    pub(super) doing: &'static str,
    /// The kernel launched last, or empty.
    pub(super) last: &'a str,
}

impl Call<'_> {
    /// An error of any call.
    pub(super) fn error(&self, code: CUresult) -> Error {
        if is_sticky(code) {
            return self.lost(code);
        }
        let remedy = match code {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => "; free device memory, or use fewer rows in a call",
            CUresult::CUDA_ERROR_DEINITIALIZED => "; the process is ending",
            _ => "",
        };
        Error::Driver { op: self.op, reason: format!("{} failed: {code:?}{remedy}", self.doing) }
    }

    /// An error of loading a kernel.
    pub(super) fn load_error(&self, launch: &Launch<'_>, code: CUresult) -> Error {
        use CUresult as R;
        let reason = match code {
            R::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                "this build has no code for this device; build with its compute capability in CONSONANCE_CUDA_ARCHS, \
                 8.0 or higher"
                    .to_owned()
            }
            R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => format!(
                "the driver supports CUDA {} and this build was compiled by a newer nvcc; update the driver, or build \
                 with this device's compute capability in CONSONANCE_CUDA_ARCHS",
                driver_version()
            ),
            R::CUDA_ERROR_INVALID_PTX
            | R::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            | R::CUDA_ERROR_JIT_COMPILATION_DISABLED => format!(
                "this build has no machine code for this device, and compiling its PTX failed ({code:?}); build with \
                 its compute capability in CONSONANCE_CUDA_ARCHS"
            ),
            R::CUDA_ERROR_INVALID_IMAGE | R::CUDA_ERROR_INVALID_SOURCE => format!(
                "the driver, which supports CUDA {}, does not accept the kernels ({code:?}); update the driver, or \
                 build with its nvcc",
                driver_version()
            ),
            R::CUDA_ERROR_NOT_FOUND => {
                format!("kernels/{}.cu declares no kernel of this name", launch.family)
            }
            _ => return self.error(code),
        };
        Error::NoKernel { op: self.op, kernel: launch.entry.to_owned(), reason }
    }

    /// An error of a launch.
    pub(super) fn launch_error(&self, launch: &Launch<'_>, code: CUresult) -> Error {
        use CUresult as R;
        if is_sticky(code) {
            return self.lost(code);
        }
        let remedy = match code {
            R::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
                "a block needs more registers or shared memory than the device has; this is a mistake of the wrapper"
            }
            R::CUDA_ERROR_INVALID_VALUE => {
                "the grid or the block is past the device's limits; use fewer rows in a call"
            }
            R::CUDA_ERROR_OUT_OF_MEMORY => "the device has no memory left; use fewer rows in a call",
            _ => "the driver refused the launch",
        };
        Error::Launch {
            op: self.op,
            kernel: launch.entry.to_owned(),
            reason: format!(
                "{code:?}: {remedy} (grid {:?}, {} threads, {} bytes of shared memory)",
                launch.grid, launch.threads, launch.shared_bytes
            ),
        }
    }

    fn lost(&self, code: CUresult) -> Error {
        Error::ContextLost {
            op: self.op,
            kernel: if self.last.is_empty() { "none".into() } else { self.last.to_owned() },
            reason: format!("{code:?} while {}", self.doing),
        }
    }
}

/// Whether the context answers every later call with an error, too. By number: the names differ between versions.
fn is_sticky(code: CUresult) -> bool {
    // ECC and NVLink errors, a contained memory error, illegal addresses, time-outs, a destroyed context, asserts, the
    // family from stack errors to failed launches, leaked tensor memory, external devices, unknown.
    matches!(code as u32, 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCH: Launch<'static> = Launch {
        op: "neighbors",
        family: "neighbors",
        entry: "neighbors_rank_f32",
        grid: [7, 1, 1],
        threads: 128,
        shared_bytes: 1024,
        params: &[],
    };
    const CALL: Call<'static> = Call { op: "neighbors", doing: "waiting", last: "neighbors_rank_f32" };

    #[test]
    fn a_kernel_that_failed_is_named_and_the_context_is_said_to_be_lost() {
        for code in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ASSERT,
        ] {
            for error in [CALL.error(code), CALL.load_error(&LAUNCH, code), CALL.launch_error(&LAUNCH, code)]
            {
                let text = error.to_string();
                assert!(matches!(error, Error::ContextLost { .. }), "{text}");
                for part in ["neighbors_rank_f32", "CUDA_ERROR_", "restart", "CONSONANCE_SYNC=1"] {
                    assert!(text.contains(part), "{text}");
                }
            }
        }
    }

    #[test]
    fn loading_errors_say_what_to_build_or_to_update() {
        for (code, says) in [
            (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, "CONSONANCE_CUDA_ARCHS"),
            (CUresult::CUDA_ERROR_INVALID_PTX, "CONSONANCE_CUDA_ARCHS"),
            (CUresult::CUDA_ERROR_NOT_FOUND, "kernels/neighbors.cu"),
        ] {
            let error = CALL.load_error(&LAUNCH, code);
            let text = error.to_string();
            assert!(matches!(error, Error::NoKernel { .. }), "{text}");
            assert!(text.contains(says) && text.contains("neighbors_rank_f32"), "{text}");
        }
    }

    #[test]
    fn a_refused_launch_says_its_shape() {
        for code in [CUresult::CUDA_ERROR_INVALID_VALUE, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES] {
            let error = CALL.launch_error(&LAUNCH, code);
            let text = error.to_string();
            assert!(matches!(error, Error::Launch { .. }), "{text}");
            assert!(text.contains("[7, 1, 1]") && text.contains("128 threads"), "{text}");
        }
    }

    #[test]
    fn other_refusals_say_what_was_being_done() {
        let error = CALL.error(CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(matches!(error, Error::Driver { .. }), "{error}");
        assert!(error.to_string().contains("neighbors: waiting failed: CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
}
