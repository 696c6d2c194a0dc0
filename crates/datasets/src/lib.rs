//! Re-identification data sets: **Emoji-ID**, which ships with consonance, and folders laid out like Market-1501.
//!
//! A [`Dataset`] has training identities and disjoint test identities; every image has an identity and a camera.
//! A query looks for images of its identity that *another* camera took.
//!
//! ```
//! # fn main() -> Result<(), consonance_datasets::Error> {
//! let set = consonance_datasets::emoji_id()?;
//! let first = set.train.items()[0];
//! println!(
//!     "{} by {}: {} bytes of RGB",
//!     set.identities[first.identity as usize].label,
//!     set.cameras[first.camera as usize],
//!     set.train.image(0).len()
//! );
//! // The old model sees 30 % of the training identities, with labels 0 .. count.
//! let (old, count) = set.train_subset(0.3)?;
//! assert!(old.identities().iter().all(|&identity| (identity as usize) < count));
//! # Ok(())
//! # }
//! ```

mod captions;
mod dataset;
mod emoji;
mod error;
mod market;
pub mod pack;

pub use captions::{Caption, Captions, EMOJI_CAPTIONS_VARIABLE, emoji_captions, emoji_captions_from};
pub use dataset::{Dataset, Identity, Item, Role, Split, order_key};
pub use emoji::{EMOJI_ID_VARIABLE, emoji_id, emoji_id_from};
pub use error::{Error, Result};
pub use market::{MarketOptions, market_layout, market_layout_with};
