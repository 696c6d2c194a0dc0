//! Images with identities and cameras, in a training, a query and a gallery split.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// What an image is in the evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// A known identity.
    #[default]
    Known,
    /// A gallery image of nobody who is searched for (identity `0000` in Market-1501): always a wrong answer.
    Distractor,
    /// A gallery image that counts neither for nor against (identity `-1` in Market-1501). Leave it out of
    /// the gallery; [`crate::market_layout`] does so unless it is told otherwise.
    Junk,
}

/// One image's labels. Its pixels are [`Split::image`] at the same position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    /// Who it shows: an index into [`Dataset::identities`].
    pub identity: u32,
    /// Who took it: an index into [`Dataset::cameras`]. For Emoji-ID, the family of drawing styles. An
    /// evaluation leaves out gallery items of the query's own identity *and* camera.
    pub camera: u32,
    /// The drawing style, an index into [`Dataset::styles`]. Same as the camera but for near twins in
    /// Emoji-ID, which are two styles of one camera.
    pub style: u32,
    /// Known identity, distractor or junk.
    pub role: Role,
}

/// Who an identity is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The name in the source: the digits of the file name, or the emoji's code points (`1f600`).
    pub name: String,
    /// A readable name (`grinning face`); the same as `name` where there is none.
    pub label: String,
}

/// Images of one size with their labels.
///
/// Pixels are 8-bit RGB, height × width × channel, one image after the other. A clone shares the pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    items: Vec<Item>,
    /// Where in `pixels` an item's image is, as an image index.
    positions: Vec<u32>,
    pixels: Arc<Vec<u8>>,
    image_bytes: usize,
}

impl Split {
    /// `pixels` holds `items.len()` images of `height · width · 3` bytes.
    pub(crate) fn new(items: Vec<Item>, pixels: Vec<u8>, height: usize, width: usize) -> Self {
        let image_bytes = height * width * 3;
        debug_assert_eq!(items.len() * image_bytes, pixels.len());
        let positions = (0..items.len() as u32).collect();
        Self { items, positions, pixels: Arc::new(pixels), image_bytes }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The labels, one per image.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The pixels of image `index`: RGB, 8 bit, height × width × 3.
    ///
    /// # Panics
    /// If `index` is not below [`Split::len`], as a slice's index does.
    pub fn image(&self, index: usize) -> &[u8] {
        let at = self.positions[index] as usize * self.image_bytes;
        &self.pixels[at..at + self.image_bytes]
    }

    /// Identity of every image, for masks and class labels: `u32 [n]`.
    pub fn identities(&self) -> Vec<u32> {
        self.items.iter().map(|item| item.identity).collect()
    }

    /// Camera of every image: `u32 [n]`.
    pub fn cameras(&self) -> Vec<u32> {
        self.items.iter().map(|item| item.camera).collect()
    }

    /// The images whose labels satisfy `keep`, in the same order. Pixels are shared, not copied.
    pub fn filter(&self, keep: impl Fn(&Item) -> bool) -> Self {
        let (items, positions) = self
            .items
            .iter()
            .zip(&self.positions)
            .filter(|(item, _)| keep(item))
            .map(|(i, p)| (*i, *p))
            .unzip();
        Self { items, positions, pixels: Arc::clone(&self.pixels), image_bytes: self.image_bytes }
    }
}

/// A re-identification data set: training identities, and disjoint test identities as queries and gallery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// What to call it in tables.
    pub name: String,
    /// Height of every image in pixels.
    pub height: usize,
    /// Width of every image in pixels.
    pub width: usize,
    /// The training images. Their identities are `0..train_identities`.
    pub train: Split,
    /// The queries.
    pub query: Split,
    /// What the queries search in. For Emoji-ID the same images as `query`.
    pub gallery: Split,
    /// All identities: first those of `train`, then those of the test splits, each part in the order of
    /// [`order_key`]. Training and test identities are different people even where their names agree.
    pub identities: Vec<Identity>,
    /// How many of `identities` are training identities.
    pub train_identities: usize,
    /// The cameras' names.
    pub cameras: Vec<String>,
    /// The drawing styles' names; the cameras' names where there are no styles.
    pub styles: Vec<String>,
    /// SHA-256 of sizes, labels and pixels, in hexadecimal: two runs with equal digests saw the same data.
    pub digest: String,
}

/// The fixed pseudo-random order of identities: SHA-256 of `"consonance identity order 1\n"` and the name.
///
/// Identities are numbered by it, so that the first n are a random subset, the same on every machine, and
/// every smaller subset lies inside the larger ones.
pub fn order_key(name: &str) -> [u8; 32] {
    Sha256::new().chain_update(b"consonance identity order 1\n").chain_update(name).finalize().into()
}

impl Dataset {
    /// The training images of the first ⌈`fraction` · `train_identities`⌉ training identities, and how many
    /// identities those are. They are a random subset in a fixed order ([`order_key`]) with the contiguous
    /// labels `0..n`, the same labels as in the full training split.
    ///
    /// # Errors
    /// [`Error::Argument`] unless 0 < `fraction` ≤ 1.
    pub fn train_subset(&self, fraction: f64) -> Result<(Split, usize)> {
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(Error::Argument {
                function: "train_subset",
                argument: "fraction",
                got: fraction.to_string(),
                expected: "a number above 0 and at most 1".into(),
            });
        }
        // The product is rounded first, so that 0.3 of 10 is 3 although 0.3 is a little above 3/10.
        let exact = fraction * self.train_identities as f64;
        let count = ((exact - 1e-9).ceil().max(1.0) as usize).min(self.train_identities);
        Ok((self.train.filter(|item| (item.identity as usize) < count), count))
    }

    /// Whether `query` and `gallery` are the same images in the same order, so that one pass embeds both.
    pub fn query_is_gallery(&self) -> bool {
        Arc::ptr_eq(&self.query.pixels, &self.gallery.pixels)
            && self.query.positions == self.gallery.positions
    }

    /// Bytes of one image: height · width · 3.
    pub fn image_bytes(&self) -> usize {
        self.height * self.width * 3
    }

    /// Fills in [`Dataset::digest`].
    pub(crate) fn with_digest(mut self) -> Self {
        let mut hash = Sha256::new();
        for size in [self.height, self.width, self.train_identities, self.identities.len()] {
            hash.update((size as u64).to_le_bytes());
        }
        let again = self.query_is_gallery();
        for (split, known) in [(&self.train, false), (&self.query, false), (&self.gallery, again)] {
            hash.update((split.len() as u64).to_le_bytes());
            for item in &split.items {
                for number in [item.identity, item.camera, item.style, item.role as u32] {
                    hash.update(number.to_le_bytes());
                }
            }
            if !known {
                (0..split.len()).for_each(|i| hash.update(split.image(i)));
            }
        }
        self.digest = hex(&hash.finalize());
        self
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Dataset {
        let item = |identity, camera| Item { identity, camera, style: camera, role: Role::Known };
        let items: Vec<Item> = (0..20).map(|i| item(i / 2, i % 2)).collect();
        let pixels: Vec<u8> = (0..20u8).flat_map(|i| [i; 6]).collect();
        let train = Split::new(items, pixels, 1, 2);
        let test = Split::new(vec![item(10, 0), item(10, 1)], vec![7; 12], 1, 2);
        Dataset {
            name: "tiny".into(),
            height: 1,
            width: 2,
            train,
            query: test.clone(),
            gallery: test,
            identities: (0..11).map(|i| Identity { name: i.to_string(), label: i.to_string() }).collect(),
            train_identities: 10,
            cameras: vec!["a".into(), "b".into()],
            styles: vec!["a".into(), "b".into()],
            digest: String::new(),
        }
        .with_digest()
    }

    #[test]
    fn subsets_are_nested_and_keep_labels_and_pixels() {
        let set = tiny();
        let (old, count) = set.train_subset(0.3).unwrap();
        assert_eq!((old.len(), count), (6, 3));
        assert_eq!(old.identities(), [0, 0, 1, 1, 2, 2]);
        assert_eq!(old.image(5), [5; 6]);
        assert_eq!(old.cameras(), [0, 1, 0, 1, 0, 1]);
        assert_eq!(set.train_subset(1.0).unwrap().0, set.train);
        assert_eq!(set.train_subset(1e-6).unwrap().1, 1);
        let odd = set.train.filter(|item| item.camera == 1);
        assert_eq!((odd.len(), odd.image(3)), (10, [7; 6].as_slice()));
    }

    #[test]
    fn a_fraction_outside_its_range_is_an_error() {
        for fraction in [0.0, -0.5, 1.01, f64::NAN, f64::INFINITY] {
            let message = tiny().train_subset(fraction).unwrap_err().to_string();
            assert!(message.contains("`fraction`") && message.contains("at most 1"), "{message}");
        }
    }

    #[test]
    fn the_digest_sees_pixels_and_labels() {
        let set = tiny();
        assert!(set.query_is_gallery());
        assert_eq!(set.digest, tiny().digest);
        assert_eq!(set.digest.len(), 64);
        let mut other = set.clone();
        other.train.items[3].camera = 0;
        assert_ne!(set.digest, other.with_digest().digest);
        let mut other = set.clone();
        Arc::make_mut(&mut other.query.pixels)[0] ^= 1;
        assert!(!other.query_is_gallery());
        assert_ne!(set.digest, other.with_digest().digest);
    }

    #[test]
    fn the_order_of_identities_is_fixed() {
        // Recomputed with another SHA-256: printf 'consonance identity order 1\n1f600' | sha256sum
        assert_eq!(hex(&order_key("1f600"))[..16], *ORDER_OF_1F600);
    }

    const ORDER_OF_1F600: &str = "62a2a0d6a8e2eb39";
}
