//! Augmented clips as a Candle op: layouts, types, threads, refusals; `crates/testkit` holds the numbers to their bounds.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "clips/kernels.rs"]
mod kernels;

use candle_core::{DType, Device, Tensor, Var};
use consonance::{AugmentOptions, ClipParameters, ColorJitter, ColorStep, CropBox, Error, augment_clips};
use consonance_testkit::{data, threads::on_1_2_8_threads};

const CPU: Device = Device::Cpu;
const SHAPE: (usize, usize, usize, usize, usize) = (3, 4, 3, 18, 22);

/// Clips in [0, 1].
fn clips(dtype: DType) -> Tensor {
    let (b, t, c, h, w) = SHAPE;
    let values =
        data::labels(b * t * c * h * w, 256, 5).iter().map(|v| *v as f32 / 255.0).collect::<Vec<_>>();
    Tensor::from_vec(values, SHAPE, &CPU).unwrap().to_dtype(dtype).unwrap()
}

/// A clip with all steps, a plain one, and one with some.
fn parameters() -> Vec<ClipParameters> {
    use ColorStep::{Brightness, Contrast, Hue, Saturation};
    let plain = ClipParameters::plain(SHAPE.3, SHAPE.4);
    let order = [Saturation, Contrast, Hue, Brightness];
    let jitter = ColorJitter { brightness: 1.2, contrast: 0.7, saturation: 1.5, hue: -0.1, order };
    let all = ClipParameters {
        crop: CropBox { top: 2, left: 5, height: 13, width: 15 },
        flip: true,
        jitter: Some(jitter),
        grayscale: false,
        blur: Some(1.1),
        solarize: Some(0.6),
    };
    vec![all, plain, ClipParameters { grayscale: true, jitter: Some(jitter), ..plain }]
}

fn options() -> AugmentOptions {
    AugmentOptions { blur_radius: 3, ..AugmentOptions::new(16, 12) }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_layout_gives_the_same_bits() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = clips(dtype);
        let expected = augment_clips(&x, &parameters(), &options()).unwrap();
        assert_eq!((expected.dims(), expected.dtype()), (&[3, 4, 3, 16, 12][..], dtype));
        // Channels last, as pictures are read from files.
        let last =
            x.permute((0, 1, 3, 4, 2)).unwrap().contiguous().unwrap().permute((0, 1, 4, 2, 3)).unwrap();
        // A part of a larger batch, and of longer clips.
        let batch = Tensor::cat(&[&x, &x], 0).unwrap();
        let longer = Tensor::cat(&[&x, &x], 1).unwrap();
        for view in [last, batch.narrow(0, 3, 3).unwrap(), longer.narrow(1, 4, 4).unwrap()] {
            let got = augment_clips(&view, &parameters(), &options()).unwrap();
            assert_eq!(values(&got), values(&expected), "{dtype:?}");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let x = clips(DType::F32);
    let [one, two, eight] =
        on_1_2_8_threads(|| values(&augment_clips(&x, &parameters(), &options()).unwrap()));
    assert_eq!(one, two);
    assert_eq!(one, eight);
}

#[test]
fn nothing_is_changed_by_plain_parameters() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = clips(dtype);
        let plain = vec![ClipParameters::plain(SHAPE.3, SHAPE.4); 3];
        let got = augment_clips(&x, &plain, &AugmentOptions::new(SHAPE.3, SHAPE.4)).unwrap();
        assert_eq!(values(&got), values(&x));
    }
}

#[test]
fn blurs_reach_as_far_as_published() {
    assert_eq!(AugmentOptions::new(224, 224).blur_radius, 11);
    assert_eq!(AugmentOptions::new(112, 224).blur_radius, 5);
    assert_eq!(AugmentOptions::new(1000, 10).blur_radius, 24);
}

#[test]
fn what_is_no_batch_of_clips_is_refused() {
    let x = clips(DType::F32);
    let run = |x: &Tensor| augment_clips(x, &parameters(), &options());
    let tracked = Var::from_tensor(&x).unwrap();
    assert!(matches!(
        run(&tracked),
        Err(Error::NotDifferentiable { op: "augment_clips", argument: "clips", .. })
    ));
    assert!(matches!(run(&x.get(0).unwrap()), Err(Error::Rank { got: 4, .. })));
    assert!(matches!(run(&x.to_dtype(DType::F64).unwrap()), Err(Error::DType { got: DType::F64, .. })));
    for (bad, part) in [
        (x.narrow(2, 0, 1).unwrap(), "[3, 4, 1, 18, 22]"),
        (x.narrow(0, 0, 0).unwrap(), "`clips` is empty"),
        (x.narrow(1, 0, 0).unwrap(), "`clips`"),
        (x.narrow(0, 0, 2).unwrap(), "`parameters` has shape [3], expected [2]"),
        (x.narrow(3, 0, 9).unwrap(), "frames of 9 x 22 pixels"),
        ((&x * 255.0).unwrap(), "scale bytes by 1/255"),
        ((&x * f64::NAN).unwrap(), "clip 0, of which a pixel is NaN"),
    ] {
        let text = run(&bad).unwrap_err().to_string();
        assert!(text.starts_with("augment_clips: ") && text.contains(part), "{text:?} lacks {part:?}");
    }
}
