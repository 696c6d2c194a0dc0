//! The packed image format: round trips, the exact bytes, and every way in which a file can be wrong.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::fs;

use consonance_datasets::{
    Error, emoji_id_from,
    pack::{Header, MAGIC, Pack, PackedIdentity, PackedImage, Style, VERSION},
};
use sha2::{Digest, Sha256};

fn pack(height: usize, width: usize, images: usize) -> Pack {
    let style = |name: &str, family| Style {
        name: name.into(),
        family,
        source: "a package@1.0.0".into(),
        author: "somebody".into(),
        license: "MIT".into(),
    };
    let identity = |code: &str, label: &str| PackedIdentity { code: code.into(), label: label.into() };
    // A linear congruential generator: bytes without pattern, the same everywhere.
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    Pack {
        header: Header {
            name: "tiny".into(),
            height,
            width,
            families: vec!["f".into(), "g".into()],
            styles: vec![style("f1", 0), style("f2", 0), style("g1", 1)],
            identities: vec![identity("1f600", "grinning face"), identity("26c4", "snowman, “without” snow")],
            images: (0..images as u32).map(|i| PackedImage { identity: i % 2, style: i % 3 }).collect(),
        },
        pixels: (0..height * width * 3 * images).map(|_| byte()).collect(),
    }
}

/// Puts length fields and the digest right again after a change.
fn sealed(header: &[u8], stream: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend((stream.len() as u64).to_le_bytes());
    let digest = Sha256::new().chain_update(&bytes).chain_update(header).chain_update(stream).finalize();
    bytes.extend(digest);
    bytes.extend(header);
    bytes.extend(stream);
    bytes
}

fn parts(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    (bytes[56..56 + length].to_vec(), bytes[56 + length..].to_vec())
}

#[test]
fn a_pack_survives_the_round_trip() {
    for (height, width, images) in [(1, 1, 1), (1, 7, 2), (5, 1, 3), (3, 4, 0), (32, 32, 7), (2, 33, 5)] {
        let pack = pack(height, width, images);
        let bytes = pack.to_bytes().unwrap();
        assert_eq!(bytes, pack.to_bytes().unwrap(), "two runs, {height} x {width} x {images}");
        assert_eq!(Pack::from_bytes(&bytes).unwrap(), pack, "{height} x {width} x {images}");
    }
}

#[test]
fn the_bytes_are_fixed() {
    let mut pack = pack(2, 2, 1);
    pack.pixels = vec![10, 20, 30, 10, 20, 30, 255, 255, 255, 0, 0, 0];
    let bytes = pack.to_bytes().unwrap();
    assert_eq!(bytes[..12], *b"\x89CNSPAK\n\x01\0\0\0");
    let (header, stream) = parts(&bytes);
    let expected = concat!(
        r#"{"name":"tiny","height":2,"width":2,"families":["f","g"],"styles":["#,
        r#"{"name":"f1","family":0,"source":"a package@1.0.0","author":"somebody","license":"MIT"},"#,
        r#"{"name":"f2","family":0,"source":"a package@1.0.0","author":"somebody","license":"MIT"},"#,
        r#"{"name":"g1","family":1,"source":"a package@1.0.0","author":"somebody","license":"MIT"}],"#,
        r#""identities":[{"code":"1f600","label":"grinning face"},"#,
        r#"{"code":"26c4","label":"snowman, “without” snow"}],"images":[[0,0]]}"#
    );
    assert_eq!(String::from_utf8(header.clone()).unwrap(), expected);
    assert_eq!(bytes, sealed(&header, &stream));
    // Planes G, R-G, B-G by hand, each less its Paeth prediction:
    //   20  20      246 246      10 10
    //  255   0        0   0       0  0
    let planes = miniz_oxide::inflate::decompress_to_vec_zlib(&stream).unwrap();
    assert_eq!(planes, [20, 0, 235, 1, 246, 0, 10, 0, 10, 0, 246, 0]);
}

#[test]
fn a_pack_that_does_not_fit_its_header_is_not_written() {
    let mut short = pack(2, 2, 2);
    short.pixels.pop();
    let mut stray = pack(2, 2, 2);
    stray.header.images[1].style = 3;
    let mut orphan = pack(2, 2, 2);
    orphan.header.styles[1].family = 2;
    for (pack, part) in
        [(short, "bytes of pixels"), (stray, "image 1"), (orphan, "style `f2`"), (pack(0, 2, 1), "0 x 2")]
    {
        let error = pack.to_bytes().unwrap_err();
        assert!(matches!(error, Error::Argument { .. }) && error.to_string().contains(part), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = pack(4, 4, 3).to_bytes().unwrap();
    for length in 0..bytes.len() {
        assert!(Pack::from_bytes(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(Pack::from_bytes(&longer).unwrap_err().contains("appended"));
}

#[test]
fn every_damaged_byte_is_an_error() {
    let bytes = pack(3, 3, 2).to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        assert!(Pack::from_bytes(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn a_sealed_lie_is_an_error() {
    let bytes = pack(3, 3, 2).to_bytes().unwrap();
    let (header, stream) = parts(&bytes);
    let text = String::from_utf8(header).unwrap();
    let cases = [
        (r#""height":3"#, r#""height":2"#, "more than the header says"),
        (r#""height":3"#, r#""height":4"#, "expected 2 images of 4 x 3 x 3"),
        (r#""height":3"#, r#""height":0"#, ""),
        (r#""height":3"#, r#""height":9223372036854775807"#, "absurd"),
        (r#""height":3"#, r#""height":-3"#, "its header"),
        (r#"[0,0]"#, r#"[7,0]"#, "image 0"),
        (r#""name":"tiny""#, r#""nom":"tiny""#, "unknown field `nom`"),
        (r#"{"name""#, r#"["name""#, "its header"),
    ];
    for (from, to, part) in cases {
        let lie = text.replacen(from, to, 1);
        assert_ne!(lie, text, "{from}");
        let message = Pack::from_bytes(&sealed(lie.as_bytes(), &stream)).unwrap_err();
        assert!(message.contains(part), "{to}: {message}");
    }
    let message = Pack::from_bytes(&sealed(text.as_bytes(), b"no zlib")).unwrap_err();
    assert!(message.contains("do not decompress"), "{message}");
}

#[test]
fn foreign_files_are_told_apart() {
    let message = |bytes: &[u8]| Pack::from_bytes(bytes).unwrap_err();
    assert!(message(b"").contains("signature"));
    assert!(message(b"PK\x03\x04 something else").contains("signature"));
    assert!(message(b"version https://git-lfs.github.com/spec/v1\noid").contains("Git LFS pointer"));
    let mut newer = pack(1, 1, 1).to_bytes().unwrap();
    newer[8] = 2;
    assert!(message(&newer).contains("version 2, expected version 1"));
}

#[test]
fn errors_of_files_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.bin");
    let error = emoji_id_from(&path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("set.bin"), "{error}");

    let bytes = pack(4, 4, 6).to_bytes().unwrap();
    fs::write(&path, &bytes[..100]).unwrap();
    let error = emoji_id_from(&path).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, Error::Pack { .. }), "{message}");
    assert!(message.contains("set.bin") && message.contains("has 100 bytes"), "{message}");

    let mut lone = pack(4, 4, 0);
    lone.header.identities.truncate(1);
    fs::write(&path, lone.to_bytes().unwrap()).unwrap();
    assert!(emoji_id_from(&path).unwrap_err().to_string().contains("at least two"));

    fs::write(&path, &bytes).unwrap();
    let set = emoji_id_from(&path).unwrap();
    assert_eq!((set.name.as_str(), set.train_identities, set.identities.len()), ("tiny", 1, 2));
    assert_eq!((set.train.len(), set.query.len(), set.gallery.len()), (3, 3, 3));
    assert!(set.query_is_gallery());
    assert_eq!(set.cameras, ["f", "g"]);
    assert_eq!(set.styles, ["f1", "f2", "g1"]);
}
