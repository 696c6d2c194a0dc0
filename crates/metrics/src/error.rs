//! The one error type of the crate.

use std::path::PathBuf;

/// What was wrong: the operation, the argument, what it got and what it expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number is outside its range, NaN or infinite.
    #[error("{op}: `{argument}` is {got}, expected {expected}")]
    Range {
        /// The operation.
        op: &'static str,
        /// The argument's name, with its index where it is part of a list.
        argument: String,
        /// The value that came in.
        got: String,
        /// The admissible range, in words.
        expected: &'static str,
    },
    /// Two lengths that must agree do not.
    #[error("{op}: `{argument}` has length {got}, expected {expected}")]
    Length {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: String,
        /// The length that came in.
        got: usize,
        /// The length that would have been right, in words or numbers.
        expected: String,
    },
    /// A list that needs at least one entry has none.
    #[error("{op}: `{argument}` is empty, expected at least one entry")]
    Empty {
        /// The operation.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
    },
    /// The metric has no value for these numbers: a denominator vanishes.
    #[error("{metric} is undefined: {reason}")]
    Undefined {
        /// The metric.
        metric: &'static str,
        /// Why it has no value.
        reason: String,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A table could not be put into CSV.
    #[error("cannot format the table as CSV: {0}")]
    Csv(String),
    /// A plot could not be drawn.
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Range`].
    pub(crate) fn range(
        op: &'static str,
        argument: impl Into<String>,
        got: impl ToString,
        expected: &'static str,
    ) -> Self {
        Self::Range { op, argument: argument.into(), got: got.to_string(), expected }
    }

    /// An [`Error::Undefined`].
    pub(crate) fn undefined(metric: &'static str, reason: impl Into<String>) -> Self {
        Self::Undefined { metric, reason: reason.into() }
    }
}

/// A retrieval metric: a fraction or a percent. The bound keeps every sum and difference of the crate finite.
pub(crate) fn check_metric(op: &'static str, argument: impl Into<String>, value: f64) -> Result<()> {
    if (0.0..=100.0).contains(&value) {
        return Ok(());
    }
    Err(Error::range(
        op,
        argument,
        value,
        "a finite metric value, a fraction (0 to 1) or a percent (0 to 100)",
    ))
}

/// The value, if it is finite; a denominator so small that the quotient overflows counts as vanishing.
pub(crate) fn finite(metric: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::undefined(metric, "the denominator is so small that the quotient overflows"))
}
