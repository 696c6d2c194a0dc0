//! The error type of the methods.

/// What went wrong, in words that say how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of one of the operations.
    #[error(transparent)]
    Operation(#[from] consonance::Error),
    /// An error of Candle itself.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor or a setting that the method refuses.
    #[error("{method}: `{argument}` is {got}, expected {expected}")]
    Argument {
        /// The method.
        method: &'static str,
        /// The argument's or the setting's name.
        argument: &'static str,
        /// What came in.
        got: String,
        /// What would have been right.
        expected: String,
    },
    /// A saved state that does not belong to this method, or to this configuration of it.
    #[error("{method}: saved state `{entry}` {reason}")]
    State {
        /// The method.
        method: &'static str,
        /// The name of the tensor in the state.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn argument(
        method: &'static str,
        argument: &'static str,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Argument { method, argument, got: got.to_string(), expected: expected.into() }
    }
}

/// Checks that a setting is a finite number above zero.
pub(crate) fn positive(method: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::argument(method, argument, value, "a finite number above 0"))
}

/// Checks that a setting is a finite number, zero or above.
pub(crate) fn not_negative(method: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(method, argument, value, "a finite number, 0 or above"))
}

/// Checks that a setting lies in `0..=1`.
pub(crate) fn fraction(method: &'static str, argument: &'static str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::argument(method, argument, value, "a number in 0..=1"))
}
