//! The published systems against plain PyTorch in float64, and what they refuse.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod cvrl;
mod golden;
mod multimodal;
mod mutual;
mod object_aware;
#[allow(dead_code)] // the compatible methods' tests use the rest
#[path = "../suite/support.rs"]
mod support;
mod video_speech;
