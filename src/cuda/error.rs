//! What can go wrong on a device.

/// An error of a kernel's wrapper, in words that say how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape, a range or a value that the kernels refuse.
    #[error(transparent)]
    Argument(#[from] consonance_cpu::Error),
    /// A row that cannot be compared, found by a kernel.
    #[error(
        "{op}: `{argument}` row {row} cannot be compared: it is not finite{}, or so large that a score could \
         overflow; drop the row or mend the model that produced it", if *cosine { ", or of norm zero" } else { "" }
    )]
    Row {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The first offending row.
        row: usize,
        /// Whether a norm of zero is among the reasons.
        cosine: bool,
    },
    /// This build or this device has no code for a kernel.
    #[error("{op}: no kernel `{kernel}` for this device: {reason}")]
    NoKernel {
        /// The operation.
        op: &'static str,
        /// The kernel's name.
        kernel: String,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no CUDA device to run on.
    #[error("no CUDA device: {reason}")]
    NoDevice {
        /// Why, and what to do.
        reason: String,
    },
    /// The device has no room for outputs or scratch.
    #[error(
        "{op}: out of device memory, {bytes} bytes were asked for; free some, or use fewer rows in a call"
    )]
    OutOfMemory {
        /// The operation.
        op: &'static str,
        /// What was asked for.
        bytes: usize,
    },
    /// A kernel could not be launched, or one launched before has failed.
    #[error("{op}: kernel `{kernel}`: {reason}")]
    Launch {
        /// The operation.
        op: &'static str,
        /// The kernel's name.
        kernel: String,
        /// The driver's reason and what to do.
        reason: String,
    },
    /// A kernel failed while it ran, and the driver refuses everything from then on.
    #[error(
        "{op}: a kernel failed and the CUDA context is lost ({reason}); the kernel launched last is `{kernel}`; \
         restart the process, with CONSONANCE_SYNC=1 to learn which kernel failed"
    )]
    ContextLost {
        /// The operation that noticed.
        op: &'static str,
        /// The kernel launched last.
        kernel: String,
        /// The driver's reason.
        reason: String,
    },
    /// Another refusal of the driver.
    #[error("{op}: {reason}")]
    Driver {
        /// The operation.
        op: &'static str,
        /// What was being done, the driver's reason and what to do.
        reason: String,
    },
}

/// The result of a kernel's wrapper.
pub type Result<T> = std::result::Result<T, Error>;
