//! One suite for every backend.
//!
//! A check is a function of a [`Backend`](crate::backend::Backend) that returns what it found wrong: the same checks
//! pass the CPU backend, the kernels on a simulated device and the kernels on a GPU, and fail for a kernel with a
//! planted fault. Inputs are integers, whose results are compared bit for bit, or real numbers, whose results are
//! held to a bound derived beforehand.

pub mod bank;
pub mod cam;
pub mod clips;
pub mod clusters;
pub mod contrast;
mod contrast_bound;
pub mod contrast_pace;
pub mod contrast_symmetric;
pub mod credibility;
mod credibility_bound;
pub mod divergence;
mod divergence_bound;
pub mod gathered;
mod gathered_bound;
mod gathered_update;
pub mod neighbors;
pub mod ranking;
pub mod soft_assignment;
mod soft_bound;
mod soft_centroids;

pub use contrast_bound::{Between, between_backends};

/// What a check found wrong.
pub type Outcome = Result<(), String>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        // Written so that a NaN fails the check.
        if $condition {
        } else {
            return Err(format!($($message)*));
        }
    };
}
pub(crate) use ensure;

/// A named check.
pub type Check = (&'static str, fn(&dyn crate::backend::Backend) -> Outcome);

/// All checks of all families.
pub fn all() -> impl Iterator<Item = Check> {
    let families = [
        neighbors::CHECKS,
        ranking::CHECKS,
        contrast::CHECKS,
        contrast_pace::CHECKS,
        gathered::CHECKS,
        bank::CHECKS,
        clips::CHECKS,
        cam::CHECKS,
        contrast_symmetric::CHECKS,
        clusters::CHECKS,
        soft_assignment::CHECKS,
        credibility::CHECKS,
        divergence::CHECKS,
    ];
    families.into_iter().flatten().copied()
}

/// Runs all checks and says what each found wrong.
pub fn failures(backend: &dyn crate::backend::Backend) -> Vec<String> {
    let failure = |(name, check): Check| {
        check(backend).err().map(|message| format!("{} on {}: {message}", name, backend.name()))
    };
    all().filter_map(failure).collect()
}
