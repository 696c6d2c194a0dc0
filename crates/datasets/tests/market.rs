//! Folders of images: the three layouts, the labels, and what bad folders get.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use consonance_datasets::{
    Dataset, Error, MarketOptions, Role, Split, market_layout, market_layout_with, order_key,
};
use image::{Rgb, RgbImage};
use tempfile::TempDir;

/// Writes a picture of one color; the format is the extension's.
fn picture(path: &Path, color: [u8; 3], width: u32, height: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(width, height, Rgb(color)).save(path).unwrap();
}

/// A tiny Market-1501: three training identities, two queried, distractors and junk.
fn market(folders: [&str; 3]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let [train, query, test] = folders;
    for (at, name) in [
        "0002_c1s1_000451_03.png",
        "0002_c3s1_000551_00.png",
        "0007_c3s3_077419_03.png",
        "0010_c6s3_077467_00.png",
    ]
    .into_iter()
    .enumerate()
    {
        picture(&dir.path().join(train).join(name), [at as u8 * 10, 100, 200], 4, 8);
    }
    picture(&dir.path().join(query).join("0001_c1s1_001051_00.jpg"), [200, 30, 30], 16, 32);
    picture(&dir.path().join(query).join("0003_c4s6_015641_00.jpeg"), [30, 200, 30], 16, 32);
    for (name, color) in [
        ("-1_c1s1_000401_03.png", [1, 1, 1]),
        ("0000_c5s1_000151_01.PNG", [2, 2, 2]),
        ("0001_c2s1_001976_01.png", [200, 30, 30]),
        ("0003_c1s1_010001_01.png", [30, 200, 30]),
    ] {
        picture(&dir.path().join(test).join(name), color, 5, 5);
    }
    fs::write(dir.path().join(test).join("Thumbs.db"), b"not a picture").unwrap();
    fs::write(dir.path().join(test).join("._0001_c2s1_001976_01.png"), b"not a picture").unwrap();
    dir
}

const MARKET: [&str; 3] = ["bounding_box_train", "query", "bounding_box_test"];

fn names(set: &Dataset, split: &Split) -> Vec<(String, String, Role)> {
    let name = |i: u32| set.identities[i as usize].name.clone();
    let camera = |i: u32| set.cameras[i as usize].clone();
    split.items().iter().map(|item| (name(item.identity), camera(item.camera), item.role)).collect()
}

fn row(name: &str, camera: &str, role: Role) -> (String, String, Role) {
    (name.into(), camera.into(), role)
}

#[test]
fn labels_and_pixels_come_from_the_files() {
    let dir = market(MARKET);
    let set = market_layout(dir.path(), 8, 4).unwrap();
    assert_eq!((set.height, set.width, set.image_bytes()), (8, 4, 96));
    let known = Role::Known;
    let expected = [("0002", "1"), ("0002", "3"), ("0007", "3"), ("0010", "6")];
    assert_eq!(names(&set, &set.train), expected.map(|(name, camera)| row(name, camera, known)));
    assert_eq!(names(&set, &set.query), [row("0001", "1", known), row("0003", "4", known)]);
    let expected = [row("0000", "5", Role::Distractor), row("0001", "2", known), row("0003", "1", known)];
    assert_eq!(names(&set, &set.gallery), expected);

    // PNG of the right size: exact. JPEG, shrunk: one color stays near itself.
    assert_eq!(set.train.image(2)[..6], [20, 100, 200, 20, 100, 200]);
    assert_eq!(set.gallery.image(1), [200, 30, 30].repeat(32));
    for (pixel, color) in [(set.query.image(0), [200u8, 30, 30]), (set.query.image(1), [30, 200, 30])] {
        // JPEG rounds Y, Cb and Cr to integers (half a unit each) and the transform's DC to its quantizer.
        assert!(pixel.iter().zip(color.iter().cycle()).all(|(p, c)| p.abs_diff(*c) <= 8), "{pixel:?}");
    }
}

#[test]
fn identities_are_numbered_training_first_in_the_fixed_order() {
    let dir = market(MARKET);
    let set = market_layout(dir.path(), 4, 4).unwrap();
    assert_eq!((set.train_identities, set.identities.len()), (3, 6));
    for part in [&set.identities[..3], &set.identities[3..]] {
        assert!(part.windows(2).all(|pair| order_key(&pair[0].name) < order_key(&pair[1].name)));
    }
    let train: BTreeSet<u32> = set.train.identities().into_iter().collect();
    assert_eq!(train, BTreeSet::from([0, 1, 2]));
    assert!(!set.query_is_gallery());
    assert_eq!(set, market_layout(dir.path(), 4, 4).unwrap());
    assert_ne!(set.digest, market_layout(dir.path(), 4, 5).unwrap().digest);
}

#[test]
fn junk_is_kept_on_demand_and_progress_is_told() {
    let dir = market(MARKET);
    let (calls, largest) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let progress = |done: usize, total: usize| {
        assert_eq!(total, 10);
        calls.fetch_add(1, Ordering::Relaxed);
        largest.fetch_max(done, Ordering::Relaxed);
    };
    let mut options = MarketOptions::new(4, 4);
    options.keep_junk = true;
    options.progress = &progress;
    let set = market_layout_with(dir.path(), &options).unwrap();
    assert_eq!((calls.into_inner(), largest.into_inner()), (10, 10));
    assert_eq!(names(&set, &set.gallery)[0], row("-1", "1", Role::Junk));
    assert_eq!(set.gallery.len(), 4);
    assert_eq!(set.gallery.filter(|item| item.role != Role::Junk).len(), 3);
}

#[test]
fn the_same_name_in_training_and_test_is_two_people_and_zero_may_be_one() {
    let dir = market(MARKET);
    picture(&dir.path().join("query/0002_c1s1_000001_00.png"), [9, 9, 9], 4, 4);
    picture(&dir.path().join("query/0000_c1s1_000001_00.png"), [9, 9, 9], 4, 4);
    picture(&dir.path().join("bounding_box_train/0000_c1s1_000001_00.png"), [9, 9, 9], 4, 4);
    let set = market_layout(dir.path(), 4, 4).unwrap();
    assert_eq!((set.train_identities, set.identities.len()), (4, 8));
    assert!(set.query.identities().iter().all(|&identity| identity >= 4));
    assert!(
        set.gallery.items().iter().all(|item| item.role == Role::Known),
        "0000 is queried, so it is known"
    );
    assert!(set.train.items().iter().all(|item| item.role == Role::Known));
}

#[test]
fn veri_776_works_as_it_is() {
    let dir = market(["image_train", "image_query", "image_test"]);
    picture(&dir.path().join("image_query/0005_c012_00016450_0.jpg"), [9, 9, 9], 4, 4);
    let set = market_layout(dir.path(), 4, 4).unwrap();
    assert_eq!(names(&set, &set.query)[2], row("0005", "12", Role::Known));
    // Cameras are numbers in order, not text: 12 comes last.
    assert_eq!(set.cameras, ["1", "2", "3", "4", "5", "6", "12"]);
}

#[test]
fn msmt17_works_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let lists = [
        (
            "list_train.txt",
            "train",
            vec!["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_001_14_0303noon_1_0.jpg 1"],
        ),
        ("list_val.txt", "train", vec!["0001/0001_002_15_0303noon_1_1.jpg 1"]),
        ("list_query.txt", "test", vec!["0000/0000_000_02_0303morning_0015_0.jpg 0"]),
        ("list_gallery.txt", "test", vec!["0000/0000_003_07_0303morning_0015_0.jpg 0", ""]),
    ];
    for (list, folder, lines) in &lists {
        fs::write(dir.path().join(list), lines.join("\n")).unwrap();
        for name in lines.iter().filter_map(|line| line.split_whitespace().next()) {
            picture(&dir.path().join(folder).join(name), [9, 9, 9], 4, 4);
        }
    }
    let set = market_layout(dir.path(), 4, 4).unwrap();
    assert_eq!((set.train.len(), set.query.len(), set.gallery.len()), (3, 1, 1));
    assert_eq!((set.train_identities, set.identities.len()), (2, 3));
    assert_eq!(set.cameras, ["1", "2", "7", "14", "15"]);
    assert_eq!(names(&set, &set.gallery), [row("0000", "7", Role::Known)]);

    fs::rename(dir.path().join("test"), dir.path().join("mask_test_v2")).unwrap();
    assert!(market_layout(dir.path(), 4, 4).is_ok());
    fs::remove_file(dir.path().join("list_val.txt")).unwrap();
    assert_eq!(market_layout(dir.path(), 4, 4).unwrap().train.len(), 2);
    fs::remove_file(dir.path().join("list_query.txt")).unwrap();
    expect(market_layout(dir.path(), 4, 4), |e| matches!(e, Error::Io { .. }), &["list_query.txt"]);
    fs::remove_dir_all(dir.path().join("train")).unwrap();
    expect(
        market_layout(dir.path(), 4, 4),
        |e| matches!(e, Error::MissingFolder { .. }),
        &["train", "MSMT17"],
    );
}

fn expect(result: Result<Dataset, Error>, kind: impl Fn(&Error) -> bool, parts: &[&str]) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(kind(&error), "{error:?}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_missing_folder_is_named() {
    let missing = |e: &Error| matches!(e, Error::MissingFolder { .. });
    expect(
        market_layout(Path::new("/nonexistent/market"), 4, 4),
        missing,
        &["/nonexistent/market", "bounding_box_train"],
    );
    let empty = tempfile::tempdir().unwrap();
    expect(market_layout(empty.path(), 4, 4), missing, &["bounding_box_train", "no such folder"]);
    for folder in MARKET {
        let dir = market(MARKET);
        fs::remove_dir_all(dir.path().join(folder)).unwrap();
        expect(market_layout(dir.path(), 4, 4), missing, &[folder, "no such folder"]);
    }
}

#[test]
fn a_folder_without_usable_images_is_named() {
    let none = |e: &Error| matches!(e, Error::EmptyFolder { .. });
    for folder in MARKET {
        let dir = market(MARKET);
        fs::remove_dir_all(dir.path().join(folder)).unwrap();
        fs::create_dir(dir.path().join(folder)).unwrap();
        expect(
            market_layout(dir.path(), 4, 4),
            none,
            &[folder, "no usable image", "0002_c1s1_000451_03.jpg"],
        );
        // Junk alone is nothing to work with.
        picture(&dir.path().join(folder).join("-1_c1s1_000401_03.png"), [1, 1, 1], 4, 4);
        expect(market_layout(dir.path(), 4, 4), none, &[folder]);
    }
}

#[test]
fn a_bad_name_is_named() {
    for name in
        ["portrait.jpg", "abc_c1s1.png", "0001_x1.png", "0001_c.png", "-2_c1.png", "_c1.png", "+1_c1.png"]
    {
        let dir = market(MARKET);
        picture(&dir.path().join("query").join(name), [1, 1, 1], 4, 4);
        expect(market_layout(dir.path(), 4, 4), |e| matches!(e, Error::Name { .. }), &[name, "`ID_cCAM`"]);
    }
}

#[test]
fn an_unreadable_image_is_named() {
    let dir = market(MARKET);
    let path = dir.path().join("bounding_box_test/0003_c1s1_010001_01.png");
    let whole = fs::read(&path).unwrap();
    for bytes in [b"".as_slice(), b"not a picture", &whole[..whole.len() / 2]] {
        fs::write(&path, bytes).unwrap();
        let unreadable = |e: &Error| matches!(e, Error::Image { .. });
        expect(market_layout(dir.path(), 4, 4), unreadable, &["0003_c1s1_010001_01.png", "unreadable image"]);
    }
}

#[test]
fn a_size_outside_its_range_is_an_error() {
    let dir = market(MARKET);
    for (height, width, argument) in
        [(0, 4, "`height` is 0"), (4, 0, "`width` is 0"), (5000, 4, "`height` is 5000")]
    {
        expect(
            market_layout(dir.path(), height, width),
            |e| matches!(e, Error::Argument { .. }),
            &[argument, "1 to 4096"],
        );
    }
}
