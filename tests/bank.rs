//! The bank against its reference ring: pushes of every size, files, refusals.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "bank/kernels.rs"]
mod kernels;

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    AffinityMap, Bank, ContrastOptions, Entries, Error, Pairs, Temperature, contrast, update_centers,
};
use consonance_reference::bank as reference;
use consonance_reference::bank::{Ring, Slot};
use consonance_testkit::data;
use proptest::prelude::*;

const DEVICE: Device = Device::Cpu;

fn matrix(x: &[f32], rows: usize, cols: usize) -> Tensor {
    Tensor::from_slice(x, (rows, cols), &DEVICE).unwrap()
}

fn assert_same(bank: &Bank, ring: &Ring) {
    assert_eq!((bank.len(), bank.head(), bank.is_empty()), (ring.len(), ring.head(), ring.is_empty()));
    let keys = bank.keys().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let labels = bank.labels().to_vec1::<u32>().unwrap();
    let ids = bank.ids().to_vec1::<u32>().unwrap();
    let valid = bank.valid().to_vec1::<u8>().unwrap();
    let filled = bank.filled_mask().unwrap().to_vec1::<u8>().unwrap();
    for (i, slot) in ring.slots.iter().enumerate() {
        assert_eq!(filled[i] == 1, slot.is_some());
        match slot {
            None => assert!(valid[i] == 0 && keys[i].iter().all(|x| *x == 0.0)),
            Some(slot) => {
                assert_eq!(data::widen(&keys[i]), slot.embedding, "slot {i}");
                assert_eq!((labels[i], ids[i], valid[i] == 1), (slot.label, slot.id, slot.credible));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pushes_of_every_size_give_the_ring(
        capacity in 1usize..40,
        dim in 1usize..6,
        sizes in prop::collection::vec(1usize..90, 1..8),
        seed in 0u64..1000,
        half in prop::bool::ANY,
    ) {
        let dtype = if half { DType::BF16 } else { DType::F32 };
        let mut bank = Bank::new(capacity, dim, dtype, &DEVICE).unwrap();
        let mut ring = Ring::new(capacity);
        for (step, size) in sizes.into_iter().enumerate() {
            // Small integers are exact in bf16.
            let x = data::integers(size, dim, seed + step as u64);
            let labels = data::labels(size, 9, seed + step as u64);
            let ids: Vec<u32> = (0..size).map(|i| (1000 * step + i) as u32).collect();
            let credible: Vec<u8> = ids.iter().map(|i| u8::from(i % 3 != 0)).collect();
            bank.push_entries(&Entries {
                embeddings: &matrix(&x, size, dim),
                labels: &Tensor::new(labels.as_slice(), &DEVICE).unwrap(),
                ids: Some(&Tensor::new(ids.as_slice(), &DEVICE).unwrap()),
                credible: Some(&Tensor::new(credible.as_slice(), &DEVICE).unwrap()),
            }).unwrap();
            for i in 0..size {
                ring.push(Slot {
                    embedding: data::widen(&x[i * dim..(i + 1) * dim]),
                    label: labels[i],
                    id: ids[i],
                    credible: credible[i] == 1,
                });
            }
            assert_same(&bank, &ring);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bank.safetensors");
        bank.save(&path).unwrap();
        assert_same(&Bank::load(&path, &DEVICE).unwrap(), &ring);
        prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_batch_in_shards_gives_the_same_bank(rows in 1usize..50, cut in 0usize..50, capacity in 1usize..40) {
        let cut = cut.min(rows);
        let x = matrix(&data::normal(rows, 3, 1), rows, 3);
        let labels = Tensor::new(data::labels(rows, 5, 2), &DEVICE).unwrap();
        let mut whole = Bank::new(capacity, 3, DType::F32, &DEVICE).unwrap();
        whole.push(&x, &labels).unwrap();
        let mut shards = Bank::new(capacity, 3, DType::F32, &DEVICE).unwrap();
        for (start, len) in [(0, cut), (cut, rows - cut)] {
            if len > 0 {
                shards.push(&x.narrow(0, start, len).unwrap(), &labels.narrow(0, start, len).unwrap()).unwrap();
            }
        }
        prop_assert_eq!(whole.keys().to_vec2::<f32>().unwrap(), shards.keys().to_vec2::<f32>().unwrap());
        prop_assert_eq!((whole.head(), whole.len()), (shards.head(), shards.len()));
        prop_assert_eq!(whole.valid().to_vec1::<u8>().unwrap(), shards.valid().to_vec1::<u8>().unwrap());
    }
}

#[test]
fn views_of_any_layout_are_pushed() {
    let x = matrix(&data::integers(5, 8, 1), 5, 8);
    let labels = Tensor::new(&[9u32, 1, 2, 3, 4, 5, 6, 7], &DEVICE).unwrap();
    let mut bank = Bank::new(8, 5, DType::F16, &DEVICE).unwrap();
    bank.push(&x.t().unwrap().narrow(0, 1, 4).unwrap(), &labels.narrow(0, 1, 4).unwrap()).unwrap();
    let got = bank.filled().unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(got, x.t().unwrap().narrow(0, 1, 4).unwrap().to_vec2::<f32>().unwrap());
    assert_eq!(bank.labels().to_vec1::<u32>().unwrap()[..4], [1, 2, 3, 4]);
}

#[test]
fn keys_are_constants() {
    let x = Var::from_tensor(&matrix(&data::normal(3, 2, 1), 3, 2)).unwrap();
    let mut bank = Bank::new(4, 2, DType::F32, &DEVICE).unwrap();
    bank.push(&(x.as_tensor() * 2.0).unwrap(), &Tensor::new(&[0u32, 1, 2], &DEVICE).unwrap()).unwrap();
    assert!(!bank.keys().track_op());
    let whole = Bank::from_embeddings(x.as_tensor(), &Tensor::new(&[0u32, 1, 2], &DEVICE).unwrap()).unwrap();
    assert!(!whole.keys().track_op());
}

#[test]
fn views_follow_a_push_and_snapshots_do_not() {
    let labels = Tensor::new(&[0u32, 1], &DEVICE).unwrap();
    let mut bank = Bank::new(2, 1, DType::F32, &DEVICE).unwrap();
    bank.push(&matrix(&[1.0, 2.0], 2, 1), &labels).unwrap();
    let (view, copy) = (bank.keys().clone(), bank.snapshot().unwrap());
    bank.push(&matrix(&[3.0], 1, 1), &labels.narrow(0, 0, 1).unwrap()).unwrap();
    assert_eq!(view.to_vec2::<f32>().unwrap(), [[3.0], [2.0]]);
    assert_eq!(copy.keys().to_vec2::<f32>().unwrap(), [[1.0], [2.0]]);
}

#[test]
fn empty_slots_count_for_nothing_in_the_loss() {
    let (z, o) = (matrix(&data::unit(4, 3, 1), 4, 3), matrix(&data::unit(4, 3, 2), 4, 3));
    let labels = Tensor::new(&[0u32, 1, 0, 2], &DEVICE).unwrap();
    let mut bank = Bank::new(7, 3, DType::F32, &DEVICE).unwrap();
    bank.push(&o, &labels).unwrap();
    let loss = |keys: &Tensor, key_labels: &Tensor, valid: &Tensor| {
        let pairs = Pairs::labels(&labels, key_labels).affinity(&o, keys, AffinityMap::Half).valid(valid);
        let options = ContrastOptions::default();
        let found = contrast(&z, keys, &Temperature::Fixed(0.1), &pairs, &options).unwrap();
        found.per_row.to_vec1::<f32>().unwrap()
    };
    let whole = loss(bank.keys(), bank.labels(), bank.valid());
    let valid = bank.valid().narrow(0, 0, 4).unwrap();
    assert_eq!(whole, loss(&bank.filled().unwrap(), &labels, &valid));
}

#[test]
fn a_whole_bank_leaves_the_callers_memory_alone() {
    let x = matrix(&[1.0, 2.0, 3.0], 3, 1);
    let labels = Tensor::new(&[4u32, 5, 6], &DEVICE).unwrap();
    let mut bank = Bank::from_embeddings(&x, &labels).unwrap();
    assert_eq!((bank.len(), bank.capacity(), bank.head()), (3, 3, 0));
    assert_eq!(bank.ids().to_vec1::<u32>().unwrap(), [0, 1, 2]);
    bank.set_credible(&Tensor::new(&[1u8, 0, 7], &DEVICE).unwrap()).unwrap();
    assert_eq!(bank.valid().to_vec1::<u8>().unwrap(), [1, 0, 1]);
    bank.push(&matrix(&[9.0], 1, 1), &labels.narrow(0, 0, 1).unwrap()).unwrap();
    assert_eq!(bank.keys().to_vec2::<f32>().unwrap(), [[9.0], [2.0], [3.0]]);
    assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0], [2.0], [3.0]]);
    assert_eq!(labels.to_vec1::<u32>().unwrap(), [4, 5, 6]);
}

#[test]
fn a_bank_filled_in_the_order_of_its_slots_goes_on_as_before() {
    let x = matrix(&data::normal(7, 2, 1), 7, 2);
    let labels = Tensor::new(&[0u32, 1, 2, 3, 4, 5, 6], &DEVICE).unwrap();
    let mut bank = Bank::new(5, 2, DType::F32, &DEVICE).unwrap();
    bank.push(&x, &labels).unwrap();
    let mut again = Bank::new(5, 2, DType::F32, &DEVICE).unwrap();
    assert!(again.seek(1).is_err());
    again.push(&bank.filled().unwrap(), &bank.labels().narrow(0, 0, 5).unwrap()).unwrap();
    assert!(again.seek(5).is_err());
    again.seek(bank.head()).unwrap();
    for bank in [&mut bank, &mut again] {
        bank.push(&x.narrow(0, 0, 2).unwrap(), &labels.narrow(0, 0, 2).unwrap()).unwrap();
    }
    assert_eq!(bank.labels().to_vec1::<u32>().unwrap(), again.labels().to_vec1::<u32>().unwrap());
    assert_eq!(bank.keys().to_vec2::<f32>().unwrap(), again.keys().to_vec2::<f32>().unwrap());
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let labels = Tensor::new(&[0u32, 1], &DEVICE).unwrap();
    let x = matrix(&[1.0, 2.0, 3.0, 4.0], 2, 2);
    assert!(Bank::new(0, 2, DType::F32, &DEVICE).unwrap_err().to_string().contains("`capacity` is 0"));
    assert!(Bank::new(2, 2, DType::F64, &DEVICE).unwrap_err().to_string().contains("F64"));
    let mut bank = Bank::new(3, 2, DType::F16, &DEVICE).unwrap();
    assert!(matches!(bank.filled(), Err(Error::Argument(_))));
    let message = |r: consonance::Result<()>| r.unwrap_err().to_string();
    let wide = matrix(&[0.0; 6], 2, 3);
    assert!(message(bank.push(&wide, &labels)).contains("expected [rows, 2]"));
    assert!(message(bank.push(&x.narrow(0, 0, 0).unwrap(), &labels)).contains("empty"));
    assert!(message(bank.push(&x, &labels.narrow(0, 0, 1).unwrap())).contains("`labels`"));
    assert!(message(bank.push(&x, &labels.to_dtype(DType::F32).unwrap())).contains("expected u32"));
    let nan = matrix(&[1.0, 2.0, f32::NAN, 0.0], 2, 2);
    assert!(message(bank.push(&nan, &labels)).contains("row 1 is not finite"));
    // Finite in f32, infinite in the bank's f16.
    let large = matrix(&[1.0, 2.0, 1e6, 0.0], 2, 2);
    assert!(message(bank.push(&large, &labels)).contains("row 1 is not finite"));
    assert!(message(bank.set_credible(&labels)).contains("u8"));
    assert!(bank.is_empty() && bank.head() == 0);
}

#[test]
fn files_that_are_no_bank_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank.safetensors");
    let reason = |path: &std::path::Path| Bank::load(path, &DEVICE).unwrap_err().to_string();
    assert!(matches!(Bank::load(&path, &DEVICE), Err(Error::Io { .. })));
    let mut bank = Bank::new(3, 2, DType::F32, &DEVICE).unwrap();
    bank.push(&matrix(&[1.0, 2.0], 1, 2), &Tensor::new(&[0u32], &DEVICE).unwrap()).unwrap();
    bank.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 5, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert!(reason(&path).contains("not a whole safetensors file"), "cut at {cut}: {}", reason(&path));
    }
    let foreign = [("weight", Tensor::zeros(3, DType::F32, &DEVICE).unwrap())];
    safetensors::serialize_to_file(foreign, None, &path).unwrap();
    assert!(reason(&path).contains("is no bank"), "{}", reason(&path));
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find("\"length\":\"1\"").unwrap();
    let mut contradiction = bytes.clone();
    contradiction[at + 10] = b'9';
    std::fs::write(&path, &contradiction).unwrap();
    assert!(reason(&path).contains("contradicts itself"), "{}", reason(&path));
    let missing = folder.path().join("no such folder").join("bank.safetensors");
    assert!(matches!(bank.save(&missing), Err(Error::Io { .. })));
}

#[test]
fn centers_follow_the_means_of_their_classes_in_place() {
    let (classes, rows, dim) = (6, 40, 9);
    for dtype in [DType::F32, DType::BF16] {
        for normalize in [true, false] {
            let stored = |x: Tensor| x.to_dtype(dtype).unwrap();
            let all = stored(matrix(&data::unit(classes + 3, dim, 1), classes + 3, dim));
            let centers = all.narrow(0, 2, classes).unwrap();
            let batch = matrix(&data::unit(rows, dim, 2), rows, dim);
            let labels = data::labels(rows, 4, 3);
            let wide = |x: &Tensor| -> Vec<f64> {
                x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            let mut expected = wide(&all);
            let inner = &mut expected[2 * dim..(2 + classes) * dim];
            let rounded = wide(&stored(batch.clone()));
            reference::update_centers(inner, dim, &labels, &rounded, f64::from(0.9f32), normalize);
            let labels = Tensor::new(labels, &DEVICE).unwrap().to_dtype(DType::I64).unwrap();
            update_centers(&centers, &labels, &batch, 0.9, normalize).unwrap();
            // Coarser than the bound of the suite, finer than any mistake.
            let most = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
            for (got, expected) in wide(&all).iter().zip(expected) {
                assert!((got - expected).abs() <= most, "{got}, expected {expected}");
            }
        }
    }
}

#[test]
fn centers_that_cannot_be_updated_are_left_alone() {
    let centers = matrix(&data::unit(3, 4, 1), 3, 4);
    let before = centers.to_vec2::<f32>().unwrap();
    let (rows, labels) = (matrix(&data::unit(2, 4, 2), 2, 4), Tensor::new(&[0u32, 2], &DEVICE).unwrap());
    let text = |result: consonance::Result<()>| result.unwrap_err().to_string();
    let opposite = centers.narrow(0, 2, 1).unwrap().neg().unwrap();
    let cancelling = Tensor::cat(&[&rows.narrow(0, 0, 1).unwrap(), &opposite], 0).unwrap();
    let beyond = Tensor::new(&[0u32, 3], &DEVICE).unwrap();
    for (text, name) in [
        (text(update_centers(&centers, &beyond, &rows, 0.5, true)), "`labels`"),
        (text(update_centers(&centers, &labels, &(&rows / 0.0).unwrap(), 0.5, true)), "`rows`"),
        (text(update_centers(&centers, &labels, &rows, -1.0, true)), "`momentum`"),
        (text(update_centers(&centers, &labels, &cancelling, 0.5, true)), "class 2"),
        (text(update_centers(&centers.t().unwrap(), &labels, &rows, 0.5, true)), "`centers`"),
        (text(update_centers(&centers, &labels.narrow(0, 0, 1).unwrap(), &rows, 0.5, true)), "`labels`"),
    ] {
        assert!(text.starts_with("update_centers") && text.contains(name), "{text}");
    }
    let tracked = Var::from_tensor(&centers).unwrap();
    let refused = update_centers(tracked.as_tensor(), &labels, &rows, 0.5, true);
    assert!(matches!(refused, Err(Error::NotDifferentiable { .. })));
    assert_eq!(centers.to_vec2::<f32>().unwrap(), before);
}

#[test]
fn slots_of_a_memory_bank_are_updated_and_the_callers_memory_is_left_alone() {
    let x = matrix(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 3, 2);
    let mut bank = Bank::from_embeddings(&x, &Tensor::new(&[0u32, 1, 2], &DEVICE).unwrap()).unwrap();
    bank.update(&Tensor::new(&[0u32], &DEVICE).unwrap(), &matrix(&[0.0, 1.0], 1, 2), 0.5).unwrap();
    let half = 0.5f32.sqrt();
    assert_eq!(bank.keys().to_vec2::<f32>().unwrap(), [[half, half], [0.0, 1.0], [0.6, 0.8]]);
    assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]);
    // Empty slots are none of its rows.
    let mut bank = Bank::new(3, 2, DType::F32, &DEVICE).unwrap();
    assert!(bank.update(&Tensor::new(&[0u32], &DEVICE).unwrap(), &matrix(&[0.0, 1.0], 1, 2), 0.5).is_err());
    bank.push(&matrix(&[1.0, 0.0], 1, 2), &Tensor::new(&[0u32], &DEVICE).unwrap()).unwrap();
    assert!(bank.update(&Tensor::new(&[1u32], &DEVICE).unwrap(), &matrix(&[0.0, 1.0], 1, 2), 0.5).is_err());
}
