//! SVG plots: hot-refresh curves, ROC curves, and self-test against cross-test.
//!
//! Every function returns the text of an SVG file, to be written by [`write_atomically`](crate::write_atomically). Text stays
//! text in it, in the viewer's own sans-serif font: no font is needed to build the crate or to draw.
//!
//! Series are told apart by color and by the shape of their marks, so that the plots can be read without seeing color and
//! in print. The first seven colors are those of Okabe and Ito ("Color Universal Design", 2008), without the yellow that is
//! too light for a line on white; wine, indigo and olive of Paul Tol's muted scheme follow.

mod chart;
mod compare;
mod curves;

pub use compare::{SelfCross, self_cross_bars, self_cross_scatter};
pub use curves::{refresh_curves, roc_curves};
