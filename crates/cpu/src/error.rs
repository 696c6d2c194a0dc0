//! The one error type of the backend.

/// What was wrong with an argument, in words that say how to mend it.
///
/// Every message names the operation, the argument, what it got and what it expected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes that must agree do not.
    #[error("{op}: `{argument}` has shape {got:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The shape that came in.
        got: Vec<usize>,
        /// What would have been right, in words or numbers.
        expected: String,
    },
    /// A number is outside its range.
    #[error("{op}: `{argument}` is {got}, expected {expected}")]
    Range {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The value that came in.
        got: String,
        /// The admissible range, in words.
        expected: String,
    },
    /// An argument that needs at least one row has none.
    #[error("{op}: `{argument}` is empty, expected at least one row")]
    Empty {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
    },
    /// A row holds NaN or an infinity.
    #[error("{op}: `{argument}` row {row} is not finite; drop the row or mend the model that produced it")]
    NotFinite {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The first offending row.
        row: usize,
    },
    /// A row of norm zero where a direction is needed.
    #[error("{op}: `{argument}` row {row} has norm zero, and a cosine needs a direction; drop the row")]
    ZeroNorm {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// The first offending row.
        row: usize,
    },
}

/// The result of every public function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A [`Error::Shape`].
    pub fn shape(
        op: &'static str,
        argument: &'static str,
        got: &[usize],
        expected: impl Into<String>,
    ) -> Self {
        Self::Shape { op, argument, got: got.to_vec(), expected: expected.into() }
    }

    /// A [`Error::Range`].
    pub fn range(
        op: &'static str,
        argument: &'static str,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Range { op, argument, got: got.to_string(), expected: expected.into() }
    }
}
