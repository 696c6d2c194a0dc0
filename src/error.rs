//! The one error type of the Candle ops.

use candle_core::DType;

/// What went wrong, in words that say how to mend it.
///
/// Every message names the operation, the argument, what it got and what it expected. Converts into
/// [`candle_core::Error`], so `?` works in functions that return Candle's result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shape, a range or a value that the backend refuses.
    #[error(transparent)]
    Argument(#[from] consonance_cpu::Error),
    /// A kernel that could not be run, or what it found.
    #[error(transparent)]
    Kernel(crate::cuda::Error),
    /// An error of Candle itself.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor of a type that the operation does not take.
    #[error("{op}: `{argument}` has dtype {got:?}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The type that came in.
        got: DType,
        /// The admissible types.
        expected: &'static str,
    },
    /// A tensor on a device for which the operation has no kernel, or on another device than its partners.
    #[error("{op}: `{argument}` is on {got}, expected {expected}")]
    Device {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The device that came in.
        got: String,
        /// Where it must be.
        expected: &'static str,
    },
    /// A tensor with too few or too many dimensions.
    #[error("{op}: `{argument}` has {got} dimensions, expected {expected}")]
    Rank {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The number of dimensions that came in.
        got: usize,
        /// The shape that would have been right.
        expected: &'static str,
    },
    /// A gradient is asked of an argument to which none can arrive.
    #[error("{op}: `{argument}` is tracked by autograd, but {reason}; call `.detach()` on it first")]
    NotDifferentiable {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// Why no gradient can arrive.
        reason: &'static str,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The result of every public function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<crate::cuda::Error> for Error {
    fn from(error: crate::cuda::Error) -> Self {
        match error {
            crate::cuda::Error::Argument(argument) => Self::Argument(argument),
            other => Self::Kernel(other),
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => Self::wrap(other),
        }
    }
}
