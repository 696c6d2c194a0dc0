//! What the examples of the published systems take from `upgrade`: the network, the optimizer, the training and the search.

#[path = "../upgrade/augment.rs"]
pub(crate) mod augment;
#[path = "../upgrade/checkpoint.rs"]
pub(crate) mod checkpoint;
#[path = "../upgrade/evaluate.rs"]
pub(crate) mod evaluate;
#[path = "../upgrade/layers.rs"]
pub(crate) mod layers;
#[path = "../upgrade/network.rs"]
pub(crate) mod network;
#[path = "../upgrade/optimizer.rs"]
pub(crate) mod optimizer;
#[path = "../upgrade/progress.rs"]
pub(crate) mod progress;
#[path = "../upgrade/random.rs"]
pub(crate) mod random;
#[path = "../upgrade/trainer.rs"]
pub(crate) mod trainer;

/// Any error, in words for the user.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A [`Failure`] with a message.
pub(crate) fn failure(message: impl Into<String>) -> Failure {
    message.into().into()
}
