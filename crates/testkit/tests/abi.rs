//! The parameter structs and constants of `kernels/include/abi.h` against their namesakes in Rust.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use consonance::cuda::abi;

/// The header without comments.
fn header() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/include/abi.h");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

/// Every struct: its size and its fields with their offsets, by the rules of C.
fn structs(header: &str) -> BTreeMap<String, (usize, Vec<(String, usize)>)> {
    let mut structs: BTreeMap<String, (usize, Vec<(String, usize)>)> = BTreeMap::new();
    for part in header.split("struct ").skip(1) {
        let (name, rest) = part.split_once('{').unwrap();
        let body = rest.split('}').next().unwrap();
        let (mut offset, mut fields) = (0usize, Vec::new());
        for field in body.split(';').map(str::trim).filter(|field| !field.is_empty()) {
            let (kind, field) = field.split_once(' ').unwrap();
            let (size, align) = match kind {
                "uint64_t" => (8, 8),
                "uint32_t" => (4, 4),
                inner => (structs[inner].0, 8),
            };
            assert_eq!(offset % align, 0, "padding before {field} of {name}");
            fields.push((field.to_owned(), offset));
            offset += size;
        }
        assert_eq!(offset % 8, 0, "padding at the end of {name}");
        structs.insert(name.trim().to_owned(), (offset, fields));
    }
    structs
}

#[test]
fn the_structs_agree_field_by_field() {
    let structs = structs(&header());
    assert!(structs.len() > 5);
    assert_eq!(structs.len(), abi::STRUCTS.len());
    for (name, size, fields) in abi::STRUCTS {
        let fields: Vec<(String, usize)> =
            fields.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        assert_eq!(structs[*name], (*size, fields), "{name}");
    }
}

#[test]
fn the_constants_agree() {
    let header = header();
    let value = |name: &str| -> usize {
        let start = format!("constexpr uint32_t {name} = ");
        let (_, rest) = header.split_once(&start).unwrap_or_else(|| panic!("abi.h has no {name}"));
        rest.split(';').next().unwrap().parse().unwrap()
    };
    for (name, ours) in [
        ("MANY_ROWS", abi::MANY_ROWS),
        ("FEW_ROWS", abi::FEW_ROWS),
        ("TILE_KEYS", abi::TILE_KEYS),
        ("TILE_THREADS", abi::TILE_THREADS),
        ("RING", abi::RING),
        ("MAX_CAPACITY", abi::MAX_CAPACITY),
        ("MAX_PASS", abi::MAX_PASS),
        ("OWNED_KEYS", abi::OWNED_KEYS),
        ("SORT_ITEMS", abi::SORT_ITEMS),
        ("SORT_DIGITS", abi::SORT_DIGITS),
        ("SLAB_BYTES", abi::SLAB_BYTES),
        ("STAGES", abi::STAGES),
        ("GRADIENT_DIMS", abi::GRADIENT_DIMS),
        ("ROW_PARTIAL_BYTES", abi::ROW_PARTIAL_BYTES),
        ("CONTRAST_STATUS", abi::CONTRAST_STATUS),
        ("CHECKED_ROWS", abi::CHECKED_ROWS),
        ("TYPE_F32", abi::TYPE_F32),
        ("TYPE_F16", abi::TYPE_F16),
        ("TYPE_BF16", abi::TYPE_BF16),
        ("AFFINITY_NONE", abi::AFFINITY_NONE),
        ("AFFINITY_HALF", abi::AFFINITY_HALF),
        ("AFFINITY_EXP", abi::AFFINITY_EXP),
        ("TARGET_DIMS", abi::TARGET_DIMS),
        ("TARGET_SHARED_BYTES", abi::TARGET_SHARED_BYTES),
        ("MOMENT_ROWS", abi::MOMENT_ROWS),
        ("MOMENT_COLS", abi::MOMENT_COLS),
        ("MOMENT_APPLIED", abi::MOMENT_APPLIED),
        ("RULE_LABELS", abi::RULE_LABELS),
        ("RULE_DIAGONAL", abi::RULE_DIAGONAL),
        ("RULE_LISTS", abi::RULE_LISTS),
        ("RULE_BITS", abi::RULE_BITS),
        ("RULE_ALL", abi::RULE_ALL),
        ("GATHERED_ROWS", abi::GATHERED_ROWS),
        ("GATHERED_TILE_BYTES", abi::GATHERED_TILE_BYTES),
        ("NARROW_DIMS", abi::NARROW_DIMS),
        ("WIDE_DIMS", abi::WIDE_DIMS),
        ("GATHERED_PARTIAL_BYTES", abi::GATHERED_PARTIAL_BYTES),
        ("GATHERED_STATUS", abi::GATHERED_STATUS),
        ("DIVERGENCE_PARTIAL_BYTES", abi::DIVERGENCE_PARTIAL_BYTES),
        ("DIVERGENCE_STATUS", abi::DIVERGENCE_STATUS),
        ("UPDATE_STATUS", abi::UPDATE_STATUS),
        ("CENTERS_STATUS", abi::CENTERS_STATUS),
        ("CLIP_WORDS", abi::CLIP_WORDS),
        ("CLIP_CHUNK", abi::CLIP_CHUNK),
        ("CLIP_PIXELS", abi::CLIP_PIXELS),
        ("CLIP_TILE", abi::CLIP_TILE),
        ("CAM_THREADS", abi::CAM_THREADS),
        ("CAM_MAP_STATUS", abi::CAM_MAP_STATUS),
        ("CAM_BLEND_STATUS", abi::CAM_BLEND_STATUS),
        ("CLUSTER_THREADS", abi::CLUSTER_THREADS),
        ("FUSED_CLUSTERS", abi::FUSED_CLUSTERS),
        ("START_PLUS_PLUS", abi::START_PLUS_PLUS),
        ("START_ROWS", abi::START_ROWS),
        ("START_GIVEN", abi::START_GIVEN),
        ("SOFT_PARTIAL_BYTES", abi::SOFT_PARTIAL_BYTES),
        ("SOFT_STATUS", abi::SOFT_STATUS),
    ] {
        assert_eq!(value(name), ours, "{name}");
    }
    assert!(header.contains("constexpr uint32_t NONE = 0xffffffffu;"));
}
