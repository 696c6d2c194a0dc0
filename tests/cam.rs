//! Class activation maps, blends and backgrounds: the ops against the definitions, their layouts and errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "cam/kernels.rs"]
mod kernels;

use candle_core::{DType, Device, Tensor, Var};
use consonance::{BackgroundsOptions, Error, backgrounds, cam, masked_blend};
use consonance_reference::cam as reference;
use consonance_testkit::data::{self, widen};
use consonance_testkit::threads::on_1_2_8_threads;

const DEVICE: Device = Device::Cpu;
const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn tensor(dims: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(data::normal(dims.iter().product(), 1, seed), dims, &DEVICE).unwrap()
}

fn mask(dims: &[usize], seed: u64) -> Tensor {
    tensor(dims, seed).clamp(0f32, 1f32).unwrap()
}

fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn ops_are_the_definitions() {
    // Bounds are those of the suite; here the order of the dimensions is at stake.
    for dtype in TYPES {
        let activations = tensor(&[3, 5, 4, 6], 1).to_dtype(dtype).unwrap();
        let gradients = tensor(&[3, 5], 2);
        for keep in [false, true] {
            let map = cam(&activations, &gradients, (9, 7), keep).unwrap();
            assert_eq!((map.dims(), map.dtype()), (&[3, 9, 7][..], DType::F32));
            let (a, g) = (widen(&floats(&activations)), widen(&floats(&gradients)));
            for (image, got) in floats(&map).chunks_exact(63).enumerate() {
                let (a, g) = (&a[image * 120..][..120], &g[image * 5..][..5]);
                for (got, expected) in got.iter().zip(reference::cam(a, g, (4, 6), (9, 7), keep)) {
                    assert!((f64::from(*got) - expected).abs() < 1e-4, "{got}, expected {expected}");
                }
            }
        }
        let (images, m) = (tensor(&[2, 3, 4, 5], 3).to_dtype(dtype).unwrap(), mask(&[2, 4, 5], 4));
        for other in [tensor(&[3], 5), tensor(&[2, 3], 6), tensor(&[2, 3, 4, 5], 7)] {
            let blend = masked_blend(&images, &other, &m).unwrap();
            assert_eq!((blend.dims(), blend.dtype()), (images.dims(), dtype));
            let other = other.to_dtype(dtype).unwrap();
            let (x, y, m) = (widen(&floats(&images)), widen(&floats(&other)), widen(&floats(&m)));
            for (image, got) in floats(&blend).chunks_exact(60).enumerate() {
                let y = match other.rank() {
                    1 => &y[..],
                    2 => &y[image * 3..][..3],
                    _ => &y[image * 60..][..60],
                };
                let expected = reference::masked_blend(&x[image * 60..][..60], y, &m[image * 20..][..20]);
                for (got, expected) in got.iter().zip(expected) {
                    let most = if dtype == DType::F32 { 1e-6 } else { 1e-2 } * expected.abs().max(1.0);
                    assert!((f64::from(*got) - expected).abs() <= most, "{got}, expected {expected}");
                }
            }
        }
        let found = backgrounds(&images, &m, &BackgroundsOptions::default().threshold(0.9)).unwrap();
        assert_eq!((found.images.dims(), found.images.dtype()), (images.dims(), dtype));
        let (x, m) = (widen(&floats(&images)), widen(&floats(&m)));
        for image in 0..2 {
            let (x, m) = (&x[image * 60..][..60], &m[image * 20..][..20]);
            let expected = reference::background(x, m, (4, 5), f64::from(0.9f32), false);
            let is_found = found.found.to_vec1::<u8>().unwrap()[image];
            assert_eq!(is_found, u8::from(expected.is_some()));
            let expected: Vec<f32> = expected.unwrap_or(x.to_vec()).into_iter().map(|v| v as f32).collect();
            assert_eq!(floats(&found.images)[image * 60..][..60], expected);
        }
    }
}

#[test]
fn layouts_and_threads_do_not_matter() {
    let (activations, gradients) = (tensor(&[6, 9, 5, 4], 1), tensor(&[6, 9], 2));
    let (images, other, m) = (tensor(&[6, 3, 8, 7], 3), tensor(&[6, 3, 8, 7], 4), mask(&[6, 8, 7], 5));
    let all = || {
        let found = backgrounds(&images, &m, &BackgroundsOptions::default()).unwrap();
        [
            floats(&cam(&activations, &gradients, (8, 7), false).unwrap()),
            floats(&masked_blend(&images, &other, &m).unwrap()),
            floats(&found.images),
            floats(&found.rectangles),
        ]
    };
    let expected = all();
    on_1_2_8_threads(|| assert_eq!(all(), expected));
    // Some of the images, and other orders in memory.
    let rows = |x: &Tensor| x.narrow(0, 2, 3).unwrap();
    let part = cam(&rows(&activations), &rows(&gradients), (8, 7), false).unwrap();
    assert_eq!(floats(&part), expected[0][2 * 56..5 * 56]);
    let part = masked_blend(&rows(&images), &rows(&other), &rows(&m)).unwrap();
    assert_eq!(floats(&part), expected[1][2 * 168..5 * 168]);
    let turned = |x: &Tensor| x.transpose(2, 3).unwrap().contiguous().unwrap().transpose(2, 3).unwrap();
    assert_eq!(floats(&cam(&turned(&activations), &gradients, (8, 7), false).unwrap()), expected[0]);
    assert_eq!(floats(&masked_blend(&turned(&images), &turned(&other), &m).unwrap()), expected[1]);
    let found = backgrounds(&turned(&images), &m, &BackgroundsOptions::default()).unwrap();
    assert_eq!(floats(&found.images), expected[2]);
}

#[test]
fn what_is_wrong_is_named() {
    let (a, g) = (tensor(&[2, 3, 4, 4], 1), tensor(&[2, 3], 2));
    let (x, m) = (tensor(&[2, 3, 4, 4], 3), mask(&[2, 4, 4], 4));
    let var = |x: &Tensor| Var::from_tensor(x).unwrap().into_inner();
    let plain = BackgroundsOptions::default();
    let maps = |a: &Tensor, g: &Tensor, size| cam(a, g, size, false).map(drop);
    let blend = |x: &Tensor, y: &Tensor, m: &Tensor| masked_blend(x, y, m).map(drop);
    let tiles = |x: &Tensor, m: &Tensor, options: &BackgroundsOptions| backgrounds(x, m, options).map(drop);
    let flat = x.flatten_all().unwrap();
    let wide = x.to_dtype(DType::F64).unwrap();
    for (result, parts) in [
        (maps(&flat, &g, (4, 4)), &["cam", "`activations`", "1 dimensions", "[B, K, h, w]"][..]),
        (maps(&a, &flat, (4, 4)), &["`gradients`", "[B, K]"]),
        (maps(&a, &tensor(&[2, 4], 1), (4, 4)), &["`gradients`", "[2, 4]", "[2, 3]"]),
        (maps(&wide, &g, (4, 4)), &["`activations`", "F64"]),
        (maps(&a, &g.to_dtype(DType::U32).unwrap(), (4, 4)), &["`gradients`", "U32"]),
        (maps(&a, &g, (0, 4)), &["`size`", "0 x 4"]),
        (maps(&(&a * f64::NAN).unwrap(), &g, (4, 4)), &["`activations`", "row 0", "not finite"]),
        (maps(&var(&a), &g, (4, 4)), &["`activations`", "detach"]),
        (maps(&a, &var(&g), (4, 4)), &["`gradients`", "detach"]),
        (blend(&flat, &x, &m), &["masked_blend", "`images`", "[B, C, H, W]"]),
        (blend(&x, &m, &m), &["`other`", "3 dimensions"]),
        (blend(&x, &tensor(&[4], 1), &m), &["`other`", "[1, 4]", "[3]"]),
        (blend(&x, &tensor(&[2, 3, 2, 8], 1), &m), &["`other`", "[2, 3, 2, 8]"]),
        (blend(&x, &x, &mask(&[2, 2, 8], 1)), &["`mask`", "[2, 2, 8]"]),
        (blend(&x, &x, &mask(&[3, 4, 4], 1)), &["`mask`", "[3, 16]"]),
        (blend(&x, &x, &(&m + 0.5).unwrap()), &["`mask`", "outside 0..=1", "image 0"]),
        (blend(&x, &(&x / 0.0).unwrap(), &m), &["`other`", "row 0"]),
        (blend(&wide, &wide, &m), &["`images`", "F64"]),
        (blend(&x, &x, &var(&m)), &["`mask`", "detach"]),
        (blend(&var(&x), &x, &m), &["`images`", "detach"]),
        (tiles(&x, &mask(&[2, 4, 5], 1), &plain), &["backgrounds", "`mask`", "[2, 4, 5]"]),
        (tiles(&x, &m, &plain.threshold(0.0)), &["`threshold`", "0"]),
        (tiles(&x, &(&m * 2.0).unwrap(), &plain), &["`mask`", "outside 0..=1"]),
        (tiles(&(&x / 0.0).unwrap(), &m, &plain), &["`images`", "row 0"]),
        (tiles(&var(&x), &m, &plain), &["`images`", "detach"]),
    ] {
        let text = result.err().map(|error: Error| error.to_string()).unwrap_or_default();
        assert!(parts.iter().all(|part| text.contains(part)), "{text:?} lacks one of {parts:?}");
    }
    let none = Tensor::zeros((0, 3, 4, 4), DType::F32, &DEVICE).unwrap();
    let message = maps(&none, &Tensor::zeros((0, 3), DType::F32, &DEVICE).unwrap(), (4, 4)).unwrap_err();
    assert!(message.to_string().contains("`activations` is empty"), "{message}");
}
