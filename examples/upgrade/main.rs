//! x
#![allow(clippy::print_stdout, clippy::print_stderr)]
mod augment;
mod checkpoint;
mod layers;
mod network;
mod optimizer;
mod progress;
mod random;
mod trainer;
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(crate) fn failure(message: impl Into<String>) -> Failure {
    message.into().into()
}
fn main() {}
