//! The committed Emoji-ID pack: its hash, its counts, its splits, and what the pictures must look like.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::LazyLock,
};

use consonance_datasets::{Dataset, Role, emoji_id, emoji_id_from, order_key};
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/emoji-id")
}

static SET: LazyLock<Dataset> = LazyLock::new(|| emoji_id_from(&folder().join("emoji-id.bin")).unwrap());

#[test]
fn the_file_has_the_published_hash_and_size() {
    let bytes = fs::read(folder().join("emoji-id.bin")).unwrap();
    let hash: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(fs::read_to_string(folder().join("SHA256SUMS")).unwrap(), format!("{hash}  emoji-id.bin\n"));
    assert!(fs::read_to_string(folder().join("README.md")).unwrap().contains(&hash));
    assert!(bytes.len() <= 12_000_000);
}

#[test]
fn the_shipped_set_is_found_and_has_the_published_counts() {
    let set = emoji_id().unwrap();
    assert_eq!(set, *SET);
    assert_eq!((set.name.as_str(), set.height, set.width), ("Emoji-ID", 32, 32));
    assert_eq!((set.identities.len(), set.train_identities), (1605, 803));
    assert_eq!(set.train.len() + set.query.len(), 10_215);
    assert_eq!(set.cameras, ["noto", "noto-v1", "twemoji", "fluent-emoji", "emojione", "fxemoji"]);
    let styles = [
        ("noto", "noto", 1598),
        ("noto-v1", "noto-v1", 1138),
        ("twemoji", "twemoji", 1593),
        ("fluent-emoji-flat", "fluent-emoji", 1574),
        ("fluent-emoji-high-contrast", "fluent-emoji", 1563),
        ("emojione", "emojione", 1096),
        ("emojione-monotone", "emojione", 1078),
        ("fxemoji", "fxemoji", 575),
    ];
    assert_eq!(set.styles.len(), styles.len());
    for (at, (style, family, count)) in styles.into_iter().enumerate() {
        let items: Vec<_> = set
            .train
            .items()
            .iter()
            .chain(set.query.items())
            .filter(|item| item.style as usize == at)
            .collect();
        assert_eq!((set.styles[at].as_str(), items.len()), (style, count));
        assert!(items.iter().all(|item| set.cameras[item.camera as usize] == family));
    }
}

#[test]
fn halves_are_disjoint_and_follow_the_fixed_order() {
    assert!(SET.train.items().iter().all(|item| (item.identity as usize) < SET.train_identities));
    assert!(SET.query.items().iter().all(|item| (item.identity as usize) >= SET.train_identities));
    assert!(SET.identities.windows(2).all(|pair| order_key(&pair[0].name) < order_key(&pair[1].name)));
    assert!(SET.query_is_gallery());
    assert_eq!(SET.query, SET.gallery);
    assert!(SET.query.items().iter().all(|item| item.role == Role::Known));
    let (old, count) = SET.train_subset(0.3).unwrap();
    assert_eq!(count, 241);
    assert_eq!(old.identities().iter().collect::<BTreeSet<_>>().len(), count);
}

#[test]
fn every_identity_has_enough_styles_and_no_picture_twice() {
    let mut styles: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
    let mut pictures = BTreeSet::new();
    for split in [&SET.train, &SET.query] {
        for (at, item) in split.items().iter().enumerate() {
            styles.entry(item.identity).or_default().push((item.style, item.camera));
            assert!(
                pictures.insert((item.style, split.image(at))),
                "the same picture for two emoji: {item:?}"
            );
            assert!(split.image(at).iter().any(|&value| value < 250), "blank: {item:?}");
        }
    }
    assert_eq!(styles.len(), SET.identities.len());
    for (identity, drawn) in styles {
        let families: BTreeSet<u32> = drawn.iter().map(|(_, camera)| *camera).collect();
        assert!(drawn.windows(2).all(|pair| pair[0].0 < pair[1].0), "styles of {identity}: {drawn:?}");
        assert!(drawn.len() >= 4 && families.len() >= 3, "{identity}: {drawn:?}");
    }
}

/// The picture of an emoji in a style.
fn picture(code: &str, style: &str) -> &'static [u8] {
    for split in [&SET.train, &SET.query] {
        for (at, item) in split.items().iter().enumerate() {
            if SET.identities[item.identity as usize].name == code && SET.styles[item.style as usize] == style
            {
                return split.image(at);
            }
        }
    }
    panic!("{code} in {style} is missing");
}

#[test]
fn pictures_show_what_they_should() {
    let mean = |pixels: &[u8], channel| {
        let sum: u32 = pixels.chunks_exact(3).map(|pixel| u32::from(pixel[channel])).sum();
        sum / (pixels.len() / 3) as u32
    };
    for style in ["noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "fxemoji"] {
        // A red apple is red and grapes are not: joined and colored rightly in every colored style.
        let apple = picture("1f34e", style);
        assert!(mean(apple, 0) > mean(apple, 1) + 30 && mean(apple, 0) > mean(apple, 2) + 30, "{style}");
        let grapes = picture("1f347", style);
        assert!(mean(grapes, 2) > mean(grapes, 1), "{style}");
    }
    let monotone = ["fluent-emoji-high-contrast", "emojione-monotone"];
    for split in [&SET.train, &SET.query] {
        for (at, item) in split.items().iter().enumerate() {
            if monotone.contains(&SET.styles[item.style as usize].as_str()) {
                assert!(split.image(at).chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]), "{item:?}");
            }
        }
    }
    // Corners of round things are white: nothing was put on black.
    for style in &SET.styles {
        assert_eq!(picture("1f34e", style)[..3], [255; 3], "{style}");
    }
}
