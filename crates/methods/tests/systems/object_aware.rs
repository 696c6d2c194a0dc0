//! Object-aware contrastive learning.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor, Var};
use consonance_methods::{
    BackgroundMixup, BackgroundMixupConfig, BoxesConfig, CamWeights, ContraCam, ContraCamCompat,
    ContraCamConfig, CropWindow, MixupPlan, ObjectAwareCrop, ObjectAwareCropConfig, RelativeBox, boxes,
};
use consonance_testkit::data;

use crate::golden::{Golden, flat};
use crate::support::matrix;

const CPU: Device = Device::Cpu;

#[test]
fn scores_agree_with_pytorch() {
    for mut case in Golden::read("object_aware").cases("score/") {
        case.take("rounds");
        let x = case.variables("x");
        let method = ContraCam::new(case.config()).unwrap();
        let scores = method.score(&x[0], &case.input("keys")).unwrap();
        case.check("scores", &flat(&scores));
        case.check_loss(&scores.sum_all().unwrap(), &x);
    }
}

/// The activations of every round are given, so that the encoder need not be: it sees the blended images, which are compared.
#[test]
fn masks_agree_with_pytorch() {
    for case in Golden::read("object_aware").cases("masks/") {
        let config: ContraCamConfig = case.config();
        let (images, activations, w) = (case.input("images"), case.inputs("a"), case.inputs("w"));
        assert_eq!(activations.len(), config.rounds);
        let seen = RefCell::new(Vec::new());
        let encode = |images: &Tensor| {
            seen.borrow_mut().push(images.clone());
            Ok(activations[seen.borrow().len() - 1].clone())
        };
        let project = |x: &Tensor| x.matmul(&w[0])?.broadcast_add(&w[1])?.relu()?.matmul(&w[2]);
        let found = ContraCam::new(config).unwrap().masks(&images, encode, project).unwrap();
        let pixels = (activations[0].dims()[2] * activations[0].dims()[3]) as f64;
        let mut worst = 0.0f64;
        for (round, scored) in found.rounds.iter().enumerate() {
            worst = worst.max(case.check(&format!("scores.{round}"), &flat(&scored.scores)));
            let alpha = (&scored.gradients / pixels).unwrap();
            let alpha = if config.weights == CamWeights::Signed { alpha } else { alpha.relu().unwrap() };
            worst = worst.max(case.check(&format!("alpha.{round}"), &flat(&alpha)));
        }
        for (round, images) in seen.borrow()[1..].iter().enumerate() {
            worst = worst.max(case.check(&format!("blend.{round}"), &flat(images)));
        }
        worst = worst.max(case.check(&format!("mask.{}", config.rounds - 1), &flat(&found.masks)));
        println!(
            "{}: scores, weights, blends and masks off by at most {worst:.1e} of their norms",
            case.name
        );
    }
}

#[test]
fn mixup_agrees_with_numpy() {
    for case in Golden::read("object_aware").cases("mixup/") {
        let method = BackgroundMixup::new(case.config(), 1).unwrap();
        let found = method.backgrounds(&case.input("images"), &case.input("masks")).unwrap();
        case.check("backgrounds", &flat(&found.images));
        let words = |name: &str| case.input(name).to_vec1::<u32>().unwrap();
        let partners = words("partners");
        let mixed = words("mixed").iter().map(|on| *on == 1).collect();
        let plan = MixupPlan { mixed, kept: vec![0.0; partners.len()], partners };
        let views = method.apply(&case.input("views"), &case.input("of_views"), &found, &plan).unwrap();
        case.check("views", &flat(&views));
    }
}

/// A map of a known place: the closed form needs no more of the encoder than its activations.
#[test]
fn duplicates_and_batches_do_not_leak() {
    let (b, k, h, w) = (4, 6, 3, 3);
    let activations = Tensor::from_vec(data::normal(b * k * h * w, 1, 3), (b, k, h, w), &CPU).unwrap();
    let images = Tensor::from_vec(data::normal(b * 3 * 36, 1, 4), (b, 3, 6, 6), &CPU).unwrap();
    let weight = matrix(&data::normal(k, 5, 5), k, 5);
    let project = |x: &Tensor| x.matmul(&weight);
    let method = ContraCam::new(ContraCamConfig::masks()).unwrap();
    let found = method.masks(&images, |_| Ok(activations.clone()), project).unwrap();
    // Of half-precision activations, the map of the same numbers.
    let half = activations.to_dtype(DType::BF16).unwrap();
    let wide = half.to_dtype(DType::F32).unwrap();
    let [a, c] = [half, wide].map(|a| method.masks(&images, |_| Ok(a.clone()), project).unwrap());
    assert_eq!(flat(&a.masks), flat(&c.masks));
    // Images of one batch in another order.
    let order = Tensor::new(&[2u32, 0, 3, 1], &CPU).unwrap();
    let turned = activations.index_select(&order, 0).unwrap();
    let again = method.masks(&images, |_| Ok(turned.clone()), project).unwrap();
    let expected = flat(&found.masks.index_select(&order, 0).unwrap());
    for (got, expected) in flat(&again.masks).iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4, "{got}, expected {expected}");
    }
    // The gradient of the weights of a projector is not asked for, and a tracked encoder gets none.
    let tracked = Var::from_tensor(&activations).unwrap();
    let found = method.masks(&images, |_| Ok(tracked.as_tensor().clone()), project).unwrap();
    assert!(!found.masks.track_op());
}

fn mask(size: (usize, usize), parts: &[[usize; 4]], values: &[f32]) -> Tensor {
    let mut pixels = vec![0f32; size.0 * size.1];
    for ([top, left, bottom, right], value) in parts.iter().zip(values) {
        for y in *top..*bottom {
            pixels[y * size.1 + left..y * size.1 + right].fill(*value);
        }
    }
    Tensor::from_vec(pixels, (1, size.0, size.1), &CPU).unwrap()
}

#[test]
fn boxes_are_the_expanded_rectangles_of_large_components() {
    let close = |got: &RelativeBox, [top, left, bottom, right]: [f64; 4]| {
        let edges = [got.top - top, got.left - left, got.bottom - bottom, got.right - right];
        assert!(
            edges.iter().all(|edge| edge.abs() < 1e-12),
            "{got:?}, expected {top} {left} {bottom} {right}"
        );
    };
    // 20 x 20: 1 % is four pixels. Two objects that touch at a corner alone, a spot of four, and one below half of the maximum.
    let parts = [[2, 2, 7, 7], [7, 7, 17, 12], [0, 16, 2, 18], [10, 0, 20, 5]];
    let masks = mask((20, 20), &parts, &[0.8, 0.4, 0.8, 0.39]);
    let found = boxes(&masks, &BoxesConfig::default()).unwrap().remove(0);
    assert_eq!(found.len(), 2);
    close(&found[0], [0.05, 0.05, 0.40, 0.40]);
    close(&found[1], [0.25, 0.30, 0.95, 0.65]);
    // Expanded boxes are cut, a smaller share admits the spot, and zeros have no box.
    let config = BoxesConfig { min_area: 0.009, expand: 1.0, ..BoxesConfig::default() };
    let found = boxes(&masks, &config).unwrap().remove(0);
    assert_eq!(found.len(), 3);
    close(&found[0], [0.0, 0.7, 0.2, 1.0]);
    assert_eq!(boxes(&mask((4, 4), &[], &[]), &config).unwrap(), [vec![]]);
    // A ring is one component, and so is what surrounds it.
    let ring = mask((10, 10), &[[1, 1, 9, 9], [2, 2, 8, 8]], &[1.0, 0.0]);
    let found = boxes(&ring, &BoxesConfig { expand: 0.0, ..BoxesConfig::default() }).unwrap().remove(0);
    assert_eq!(found.len(), 1);
    close(&found[0], [0.1, 0.1, 0.9, 0.9]);
    let half = RelativeBox { top: 0.0, left: 0.0, bottom: 1.0, right: 0.5 };
    let right = RelativeBox { left: 0.25, right: 0.75, ..half };
    assert!((half.iou(&right) - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!((half.iou(&half), half.iou(&RelativeBox { left: 0.5, right: 1.0, ..half })), (1.0, 0.0));
}

#[test]
fn crops_stay_in_their_box_and_have_their_distribution() {
    let crop = ObjectAwareCrop::new(ObjectAwareCropConfig { size: 6, ..Default::default() }).unwrap();
    let left = RelativeBox { top: 0.1, left: 0.0, bottom: 0.9, right: 0.4 };
    let right = RelativeBox { left: 0.6, right: 1.0, ..left };
    let (mut lefts, mut shares) = (0, 0.0);
    for draw in 0..2000 {
        let window = crop.draw(&[left, right], (100, 100), 7, draw).unwrap();
        assert_eq!(window, crop.draw(&[left, right], (100, 100), 7, draw).unwrap());
        assert!(window.top >= 10 && window.top + window.height <= 90, "{window:?}");
        let in_left = window.left + window.width <= 40;
        assert!(in_left || window.left >= 60 && window.left + window.width <= 100, "{window:?}");
        lefts += usize::from(in_left);
        let ratio = window.width as f64 / window.height as f64;
        // Rounded to whole pixels, of at least 13.
        assert!((0.65..1.5).contains(&ratio), "{window:?}");
        shares += (window.width * window.height) as f64 / 3200.0;
    }
    // 1000 expected, deviation 22; shares are even over 0.08 to 1, but large ones of wrong ratio are drawn again.
    assert!(lefts.abs_diff(1000) < 120, "{lefts}");
    assert!((0.2..0.54).contains(&(shares / 2000.0)), "{shares}");
    // No box: the whole image. A thin one: the largest window of an allowed ratio.
    let whole = crop.draw(&[], (50, 70), 1, 3).unwrap();
    assert!(whole.top + whole.height <= 50 && whole.left + whole.width <= 70);
    let thin = RelativeBox { top: 0.5, left: 0.0, bottom: 0.51, right: 1.0 };
    let window = crop.draw(&[thin], (100, 100), 1, 1).unwrap();
    assert_eq!(window, CropWindow { top: 50, left: 49, height: 1, width: 1 });

    let image = Tensor::arange(0f32, 3.0 * 64.0, &CPU).unwrap().reshape((3, 8, 8)).unwrap();
    let window = CropWindow { top: 1, left: 2, height: 3, width: 3 };
    let out = crop.crop(&image, window).unwrap();
    assert_eq!(out.dims(), [3, 6, 6]);
    // Twice the size: corners are those of the window, and between lies a plane.
    let rows = out.get(0).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!((rows[0][0], rows[5][5], rows[0][2]), (10.0, 28.0, 10.75));
}

#[test]
fn mixup_keeps_backgrounds_and_resumes() {
    let config = BackgroundMixupConfig { probability: 1.0, capacity: 3, ..Default::default() };
    let images = |seed| Tensor::from_vec(data::normal(2 * 3 * 16, 1, seed), (2, 3, 4, 4), &CPU).unwrap();
    let object = mask((4, 4), &[[1, 1, 3, 3]], &[1.0]);
    let nothing = object.zeros_like().unwrap();
    let both = Tensor::cat(&[&object, &object], 0).unwrap();
    let first = Tensor::cat(&[&object, &nothing], 0).unwrap();
    let mut method = BackgroundMixup::new(config, 5).unwrap();
    // The partner has no background and none is kept, or the image is its own partner.
    let x = images(1);
    let found = method.backgrounds(&x, &first).unwrap();
    assert_eq!(found.found.to_vec1::<u8>().unwrap(), [1, 0]);
    let plan = MixupPlan { mixed: vec![true; 2], partners: vec![1, 0], kept: vec![0.0, 0.99] };
    assert_eq!(flat(&method.apply(&x, &both, &found, &plan).unwrap()), flat(&x));
    for seed in 2..5 {
        let x = images(seed);
        let found = method.backgrounds(&x, &both).unwrap();
        method.mix(&x, &both, &found).unwrap();
    }
    // Of six the last three: the second of the batch before, and the last batch.
    assert_eq!(method.kept(), 3);
    let oldest = method.backgrounds(&images(3), &both).unwrap().images.get(1).unwrap();
    let newest = method.backgrounds(&images(4), &both).unwrap().images.get(1).unwrap();
    for (share, kept) in [(0.0, oldest), (0.99, newest)] {
        let plan = MixupPlan { kept: vec![share; 2], ..plan.clone() };
        let out = flat(&method.apply(&x, &both, &found, &plan).unwrap());
        // The object stays, around it lies the kept background; the image without one is as it was.
        let (own, other) = (flat(&x), flat(&kept));
        for at in 0..48 {
            let inside = [5, 6, 9, 10].contains(&(at % 16));
            assert_eq!(out[at], if inside { own[at] } else { other[at] });
        }
        assert_eq!(out[48..], own[48..]);
    }
    let mut resumed = BackgroundMixup::new(config, 5).unwrap();
    resumed.restore(&method.state().unwrap()).unwrap();
    let x = images(9);
    let found = method.backgrounds(&x, &both).unwrap();
    let [a, b] = [&mut method, &mut resumed].map(|method| flat(&method.mix(&x, &both, &found).unwrap()));
    assert_eq!(a, b);

    // Draws: 0.4 of the images, and permutations.
    let method = BackgroundMixup::new(BackgroundMixupConfig::default(), 3).unwrap();
    let plan = method.draw(5000);
    let mixed = plan.mixed.iter().filter(|on| **on).count();
    assert!(mixed.abs_diff(2000) < 6 * 35, "{mixed}");
    let mut partners = plan.partners.clone();
    partners.sort_unstable();
    assert!(partners.into_iter().eq(0..5000));
}

fn refused<T>(result: consonance_methods::Result<T>, parts: &[&str]) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn bad_input_is_refused() {
    let config = ContraCamConfig::default();
    assert_eq!((config.rounds, config.weights), (10, CamWeights::Positive));
    assert_eq!(config.compat, ContraCamCompat { batch_positives: false, counted_own_keys: false });
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<ContraCamConfig>(&json).unwrap(), config);
    for (text, is_known) in [(r#"{"rounds":3}"#, true), (r#"{"round":3}"#, false)] {
        assert_eq!(serde_json::from_str::<ContraCamConfig>(text).is_ok(), is_known);
    }
    assert!(serde_json::from_str::<ContraCamConfig>(r#"{"compat":{"own":true}}"#).is_err());
    assert!(serde_json::from_str::<BoxesConfig>(r#"{"area":1}"#).is_err());
    assert!(serde_json::from_str::<BackgroundMixupConfig>(r#"{"p":0.4}"#).is_err());
    assert!(serde_json::from_str::<ObjectAwareCropConfig>(r#"{"crop":1}"#).is_err());
    refused(ContraCam::new(ContraCamConfig { rounds: 0, ..config }), &["rounds", "at least 1"]);

    let method = ContraCam::new(ContraCamConfig { rounds: 2, ..config }).unwrap();
    let rows = |n: usize, d: usize| matrix(&data::unit(n, d, 3), n, d);
    refused(method.score(&rows(1, 4), &rows(1, 4)), &["projections", "single image"]);
    refused(method.score(&rows(3, 4), &rows(7, 4)), &["keys", "(7, 4)", "3"]);
    refused(method.score(&rows(3, 4), &rows(3, 5)), &["keys", "(3, 5)"]);
    refused(method.score(&(rows(3, 4) * f64::NAN).unwrap(), &rows(3, 4)), &["projections", "not finite"]);
    let same = |x: &Tensor| Ok(x.clone());
    refused(method.scored(&rows(3, 4), &[], |x: &Tensor| x.narrow(0, 0, 2)), &["project", "(2, 4)"]);
    refused(method.scored(&rows(3, 4), &[], |x: &Tensor| Ok(x.detach())), &["project", "gradients"]);
    let images = Tensor::from_vec(data::normal(2 * 3 * 16, 1, 1), (2, 3, 4, 4), &CPU).unwrap();
    let activations = Tensor::from_vec(data::normal(2 * 5 * 4, 1, 2), (2, 5, 2, 2), &CPU).unwrap();
    let encode = |_: &Tensor| Ok(activations.clone());
    refused(method.masks(&(&images / 0.0).unwrap(), encode, same), &["images", "not finite"]);
    refused(method.masks(&images.get(0).unwrap(), encode, same), &["images", "[b, C, H, W]"]);
    refused(method.masks(&images, |_: &Tensor| Ok(rows(2, 5)), same), &["encode", "[2, K, h, w]"]);
    let broken = (&activations * f64::NAN).unwrap();
    refused(method.masks(&images, |_: &Tensor| Ok(broken.clone()), same), &["pooled", "not finite"]);

    for (wrong, name) in [
        (BoxesConfig { threshold: 0.0, ..Default::default() }, "threshold"),
        (BoxesConfig { min_area: 1.5, ..Default::default() }, "min_area"),
        (BoxesConfig { expand: -0.1, ..Default::default() }, "expand"),
    ] {
        refused(boxes(&images.get(0).unwrap(), &wrong), &[name]);
    }
    let masks = mask((4, 4), &[[1, 1, 3, 3]], &[1.0]);
    for (wrong, part) in [((&masks * 2.0).unwrap(), "2"), ((&masks * f64::NAN).unwrap(), "NaN")] {
        refused(boxes(&wrong, &BoxesConfig::default()), &["masks", part, "0..=1"]);
    }
    refused(boxes(&rows(4, 4), &BoxesConfig::default()), &["masks", "[b, H, W]"]);

    for (wrong, name) in [
        (ObjectAwareCropConfig { size: 0, ..Default::default() }, "size"),
        (ObjectAwareCropConfig { scale: (0.0, 1.0), ..Default::default() }, "scale"),
        (ObjectAwareCropConfig { scale: (0.5, 1.1), ..Default::default() }, "scale"),
        (ObjectAwareCropConfig { ratio: (2.0, 1.0), ..Default::default() }, "ratio"),
    ] {
        refused(ObjectAwareCrop::new(wrong), &[name]);
    }
    let crop = ObjectAwareCrop::new(ObjectAwareCropConfig::default()).unwrap();
    let outside = RelativeBox { top: 0.5, left: 0.0, bottom: 1.5, right: 1.0 };
    refused(crop.draw(&[outside], (4, 4), 1, 0), &["box", "1.5"]);
    refused(crop.draw(&[RelativeBox { bottom: 0.5, ..outside }], (4, 4), 1, 0), &["box"]);
    refused(crop.draw(&[], (0, 4), 1, 0), &["size"]);
    let window = CropWindow { top: 2, left: 0, height: 3, width: 2 };
    refused(crop.crop(&images.get(0).unwrap(), window), &["window", "4 x 4"]);

    for (wrong, name) in [
        (BackgroundMixupConfig { probability: 1.1, ..Default::default() }, "probability"),
        (BackgroundMixupConfig { threshold: 0.0, ..Default::default() }, "threshold"),
    ] {
        refused(BackgroundMixup::new(wrong, 1), &[name]);
    }
    let mut mixup = BackgroundMixup::new(BackgroundMixupConfig::default(), 1).unwrap();
    let both = Tensor::cat(&[&masks, &masks], 0).unwrap();
    refused(mixup.backgrounds(&images, &(&both + 0.5).unwrap()), &["mask", "outside 0..=1"]);
    let found = mixup.backgrounds(&images, &both).unwrap();
    refused(mixup.mix(&images, &masks, &found), &["masks", "(1, 4, 4)"]);
    refused(mixup.mix(&images, &(&both - 0.5).unwrap(), &found), &["masks", "-0.5"]);
    refused(mixup.mix(&(&images / 0.0).unwrap(), &both, &found), &["views", "not finite"]);
    refused(mixup.mix(&images.narrow(0, 0, 1).unwrap(), &masks, &found), &["found", "[2, 3, 4, 4]"]);
    assert_eq!(mixup.kept(), 0, "a refused batch is not kept");
    let plan = MixupPlan { mixed: vec![true; 2], partners: vec![0, 2], kept: vec![0.0; 2] };
    refused(mixup.apply(&images, &both, &found, &plan), &["partners", "2", "0..2"]);
    let plan = MixupPlan { partners: vec![0, 1], kept: vec![0.0, 1.0], ..plan };
    refused(mixup.apply(&images, &both, &found, &plan), &["kept", "1"]);
    let plan = MixupPlan { partners: vec![0], ..plan };
    refused(mixup.apply(&images, &both, &found, &plan), &["plan", "2 of each"]);
    refused(mixup.restore(&Default::default()), &["step", "missing"]);
}
