//! What augmented clips must fulfil.
//!
//! Pixels of few bits give results that are exact. Others err, with u = 2⁻²⁴ and a value known to δ before a step, by
//!
//! | step | δ after it |
//! |---|---|
//! | resampling: two interpolations whose share is known to 2u | 8u |
//! | brightness f | f δ + u |
//! | contrast f, with a mean known to δ_m = δ + (33 + ⌈chunks/32⌉)u | f δ + \|1 − f\| δ_m + (2f + 1)u |
//! | saturation f: its derivatives add up to max(1 + 2f, 3f), seven roundings | max(1 + 2f, 3f) δ + 8u |
//! | hue: derivatives of value, chroma and sextant add up to 7; the sextant errs by 40u | 7δ + 44u |
//! | grayscale: three products with rounded weights | δ + 4u |
//! | blur: 2(r + 4) roundings of a sum of 1 | δ + 2(r + 4)u |
//! | solarization; within δ of the threshold both sides are right | δ + u |
//!
//! and by one rounding to the storage type: 2⁻¹¹ (f16) or 2⁻⁸ (bf16) of the value, and what is subnormal in f16 by 2⁻²⁵.

use consonance::cuda::DType;
use consonance::cuda::abi::CLIP_CHUNK;
use consonance_cpu::clips::{ClipParameters, ColorJitter, ColorStep, CropBox, Frames, Options};
use consonance_reference::clips as reference;
use rand::Rng;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, ClipsCase};
use crate::data;
use crate::stored::Stored;

const U: f64 = 1.0 / 16_777_216.0;
const STEPS: [ColorStep; 4] =
    [ColorStep::Brightness, ColorStep::Contrast, ColorStep::Saturation, ColorStep::Hue];

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("clips: exact numbers", exact),
    ("clips: any numbers", bounded),
    ("clips: alone and in a batch", alone),
    ("clips: bad pixels", bad_pixels),
    ("clips: refused", refused),
];

/// B clips of T frames of H × W, which become H′ × W′, and the reach of a blur.
type Shape = ([usize; 4], [usize; 2], usize);

/// Uniform pixels, multiples of 1/`levels`; among them black, white, grays and pixels of two equal channels.
fn pixels(shape: [usize; 4], levels: u32, seed: u64) -> Vec<f32> {
    let [b, t, h, w] = shape;
    let mut rng = data::generator(seed);
    let mut out: Vec<f32> =
        (0..b * t * 3 * h * w).map(|_| rng.random_range(0..=levels) as f32 / levels as f32).collect();
    let plane = h * w;
    for frame in out.chunks_exact_mut(3 * plane) {
        for at in 0..plane {
            let [r, g, b] = [0, 1, 2].map(|c| c * plane + at);
            match rng.random_range(0..8) {
                0 => frame[g] = frame[r],
                1 => frame[b] = frame[g],
                2 => (frame[g], frame[b]) = (frame[r], frame[r]),
                _ => {}
            }
        }
    }
    out
}

fn case(dtype: DType, (shape, size, radius): Shape, levels: u32, seed: u64) -> ClipsCase {
    let [b, t, height, width] = shape;
    let frames = Frames { count: t, height, width };
    ClipsCase {
        clips: Stored::new(dtype, &pixels(shape, levels, seed), frames.elements()),
        frames,
        parameters: vec![ClipParameters::plain(height, width); b],
        options: Options { height: size[0], width: size[1], blur_radius: radius },
    }
}

/// Parameters in which everything may happen.
fn draw(frames: Frames, rng: &mut impl Rng) -> ClipParameters {
    let mut side = |all: usize| {
        let length = rng.random_range(1..=all);
        (rng.random_range(0..=all - length), length)
    };
    let ((top, height), (left, width)) = (side(frames.height), side(frames.width));
    let mut order = STEPS;
    for last in (1..4).rev() {
        order.swap(last, rng.random_range(0..=last));
    }
    let mut factor = || rng.random_range(0.2..1.8f32);
    let (brightness, contrast, saturation) = (factor(), factor(), factor());
    let hue = rng.random_range(-0.5..=0.5f32);
    ClipParameters {
        crop: CropBox { top, left, height, width },
        flip: rng.random_bool(0.5),
        jitter: rng.random_bool(0.8).then_some(ColorJitter { brightness, contrast, saturation, hue, order }),
        grayscale: rng.random_bool(0.2),
        blur: rng.random_bool(0.5).then(|| rng.random_range(0.1..2.0)),
        solarize: rng.random_bool(0.4).then(|| rng.random_range(0.0..=1.0)),
    }
}

fn step(jitter: &ColorJitter, step: ColorStep) -> reference::Step {
    let factor = f64::from(jitter.factor(step));
    match step {
        ColorStep::Brightness => reference::Step::Brightness(factor),
        ColorStep::Contrast => reference::Step::Contrast(factor),
        ColorStep::Saturation => reference::Step::Saturation(factor),
        ColorStep::Hue => reference::Step::Hue(factor),
    }
}

/// What the definition makes of a clip before it is solarized.
fn before_solarization(case: &ClipsCase, clip: usize) -> Vec<f64> {
    let parameters = &case.parameters[clip];
    let CropBox { top, left, height, width } = parameters.crop;
    let augmentation = reference::Augmentation {
        crop: [top, left, height, width],
        flip: parameters.flip,
        steps: parameters.jitter.iter().flat_map(|jitter| jitter.order.map(|s| step(jitter, s))).collect(),
        grayscale: parameters.grayscale,
        blur: parameters.blur.map(f64::from),
        solarize: None,
    };
    let Frames { count, height, width } = case.frames;
    let values: Vec<f64> = case.clips.row(clip).iter().map(|v| f64::from(*v)).collect();
    let frames = reference::Frames { count, height, width };
    let size = (case.options.height, case.options.width);
    reference::augment(&values, frames, &augmentation, size, case.options.blur_radius)
}

/// δ before the solarization.
fn error(case: &ClipsCase, clip: usize) -> f64 {
    let parameters = &case.parameters[clip];
    let size = case.options.frames(case.frames.count);
    let chunks = (size.count * size.plane()).div_ceil(CLIP_CHUNK);
    let mut error = 8.0 * U;
    for (step, jitter) in parameters.jitter.iter().flat_map(|jitter| jitter.order.map(|s| (s, jitter))) {
        let f = f64::from(jitter.factor(step));
        error = match step {
            ColorStep::Brightness => f * error + U,
            ColorStep::Contrast => {
                let of_mean = error + (33 + chunks.div_ceil(32)) as f64 * U;
                f * error + (1.0 - f).abs() * of_mean + (2.0 * f + 1.0) * U
            }
            ColorStep::Saturation => (1.0 + 2.0 * f).max(3.0 * f) * error + 8.0 * U,
            ColorStep::Hue => 7.0 * error + 44.0 * U,
        };
    }
    if parameters.grayscale {
        error += 4.0 * U;
    }
    if parameters.blur.is_some() {
        error += 2.0 * (case.options.blur_radius + 4) as f64 * U;
    }
    error
}

/// Compares with the definition and gives the largest share of the bound that is used.
fn compare(backend: &dyn Backend, case: &ClipsCase) -> Result<f64, String> {
    let found = backend.clips(case)?;
    let len = case.options.frames(case.frames.count).elements();
    ensure!(found.len() == case.parameters.len() * len, "{} pixels", found.len());
    let (relative, absolute) = match case.clips.dtype() {
        DType::F32 => (0.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25)),
        DType::BF16 => (1.0 / 256.0, 0.0),
    };
    let mut worst = 0.0f64;
    for (clip, found) in found.chunks_exact(len).enumerate() {
        let (truth, error) = (before_solarization(case, clip), error(case, clip));
        let threshold = case.parameters[clip].solarize.map_or(f64::INFINITY, f64::from);
        for (at, (got, plain)) in found.iter().zip(&truth).enumerate() {
            let got = f64::from(*got);
            let share = |value: f64, error: f64| {
                let bound = error + relative * (value.abs() + error) + absolute;
                (got - value).abs() / bound
            };
            let mut ratio = f64::INFINITY;
            if *plain < threshold + error {
                ratio = ratio.min(share(*plain, error));
            }
            if *plain >= threshold - error {
                ratio = ratio.min(share(1.0 - *plain, error + U));
            }
            ensure!(
                ratio <= 1.0,
                "{:?}, clip {clip}, element {at}: {got}, expected {plain} before solarization: {ratio:.2} bounds; {:?}",
                case.clips.dtype(),
                case.parameters[clip]
            );
            worst = worst.max(ratio);
        }
    }
    Ok(worst)
}

/// Pixels of four bits, boxes whose places are quarters: nothing rounds, and every result is compared bit for bit.
fn exact(backend: &dyn Backend) -> Outcome {
    let crop = |top, left, height, width| CropBox { top, left, height, width };
    let jitter =
        |brightness, order| Some(ColorJitter { brightness, contrast: 1.0, saturation: 1.0, hue: 0.0, order });
    for dtype in DType::ALL {
        for (seed, crop, flip, size) in [
            (1, crop(0, 0, 12, 20), false, [12, 20]),
            (2, crop(3, 5, 8, 14), true, [8, 14]),
            (3, crop(2, 4, 10, 16), false, [5, 8]),
            (4, crop(1, 3, 6, 8), true, [12, 16]),
            (5, crop(11, 19, 1, 1), false, [7, 35]),
            (6, crop(0, 19, 12, 1), true, [24, 1]),
        ] {
            let mut case = case(dtype, ([2, 2, 12, 20], size, 0), 16, seed);
            case.parameters[0].crop = crop;
            let plain = case.parameters[0];
            case.parameters[1] = ClipParameters { flip, solarize: Some(0.25), ..plain };
            check_exact(backend, &case)?;
            // A blur that reaches nowhere; a brightness of ½ and a product of ¼ in whatever order.
            case.parameters[0] = ClipParameters { blur: Some(1.5), flip, ..plain };
            let [b, c, s, h] = STEPS;
            let order = if flip { [b, c, s, h] } else { [h, s, b, c] };
            case.parameters[1] = ClipParameters { jitter: jitter(0.5, order), ..plain };
            // Multiples of 16 levels, halved, are exact where saturation and hue are: in grays.
            gray(&mut case);
            check_exact(backend, &case)?;
        }
    }
    Ok(())
}

/// All channels become the first one.
fn gray(case: &mut ClipsCase) {
    let (frames, dtype) = (case.frames, case.clips.dtype());
    let values: Vec<f32> = (0..case.clips.rows())
        .flat_map(|row| case.clips.row(row).to_vec())
        .collect::<Vec<f32>>()
        .chunks_exact(frames.frame())
        .flat_map(|frame| frame[..frames.plane()].repeat(3))
        .collect();
    case.clips = Stored::new(dtype, &values, frames.elements());
}

fn check_exact(backend: &dyn Backend, case: &ClipsCase) -> Outcome {
    let found = backend.clips(case)?;
    let truth = (0..case.parameters.len()).flat_map(|clip| {
        let threshold = case.parameters[clip].solarize.map_or(f64::INFINITY, f64::from);
        before_solarization(case, clip).into_iter().map(move |x| if x >= threshold { 1.0 - x } else { x })
    });
    for (at, (got, expected)) in found.iter().zip(truth).enumerate() {
        ensure!(
            f64::from(*got) == expected,
            "element {at}: {got}, expected {expected}; {:?}",
            case.parameters
        );
    }
    Ok(())
}

fn bounded(backend: &dyn Backend) -> Outcome {
    let mut worst = 0.0f64;
    for (seed, shape) in (0..).zip([
        ([1, 1, 1, 1], [1, 1], 0),
        ([4, 2, 5, 7], [6, 5], 1),
        ([2, 1, 9, 6], [33, 35], 2),
        ([2, 3, 20, 40], [13, 70], 4),
        ([1, 1, 6, 5], [7, 9], 24),
    ]) {
        for (dtype, seed) in DType::ALL.into_iter().zip(10 * seed..) {
            let mut case = case(dtype, shape, 255, seed);
            let mut rng = data::generator(seed + 1000);
            case.parameters = (0..shape.0[0]).map(|_| draw(case.frames, &mut rng)).collect();
            if shape.2 > 1 {
                case.parameters[0].blur = Some(0.3 + 0.4 * shape.2 as f32);
            }
            worst = worst.max(compare(backend, &case)?);
        }
    }
    // Every step alone, first and last, with factors that clip and that do not.
    let frames = Frames { count: 2, height: 4, width: 5 };
    let mut case = case(DType::F32, ([12, 2, 4, 5], [5, 4], 2), 255, 77);
    let mut rng = data::generator(78);
    for (clip, parameters) in case.parameters.iter_mut().enumerate() {
        let large = clip >= 6;
        let mut order = STEPS;
        order.rotate_left(clip % 4);
        let of = |at: usize, small: f32, big: f32| match (clip % 6 == at, large) {
            (false, _) => 1.0,
            (true, false) => small,
            (true, true) => big,
        };
        let hue = of(3, 1.3, 0.55) - 1.0;
        let jitter = ColorJitter {
            brightness: of(0, 0.3, 1.7),
            contrast: of(1, 0.3, 1.7),
            saturation: of(2, 0.3, 1.7),
            hue,
            order,
        };
        *parameters = ClipParameters {
            jitter: Some(jitter),
            grayscale: clip % 6 == 4,
            blur: (clip % 6 == 5).then_some(0.8),
            solarize: large.then_some(0.4),
            ..draw(frames, &mut rng)
        };
    }
    worst = worst.max(compare(backend, &case)?);
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        println!("{}: augmented clips: error / bound {worst:.3}", backend.name());
    }
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A clip has the same bits alone, behind padding that holds NaN, and with other clips; frames by themselves are clips of one.
fn alone(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let mut batch = case(dtype, ([3, 2, 6, 8], [9, 34], 2), 255, 5);
        let mut rng = data::generator(6);
        batch.parameters = (0..3).map(|_| draw(batch.frames, &mut rng)).collect();
        batch.parameters[1].blur = Some(1.0);
        batch.parameters[2].blur = None;
        let found = backend.clips(&batch)?;
        let len = found.len() / 3;
        for clip in 0..3 {
            let one = ClipsCase {
                clips: batch.clips.select(&[clip]),
                parameters: vec![batch.parameters[clip]],
                ..batch.clone()
            };
            let same = bits(&backend.clips(&one)?) == bits(&found[clip * len..][..len]);
            ensure!(same, "{dtype:?}: clip {clip} has other bits alone");
        }
        let values: Vec<f32> = (0..3).flat_map(|row| batch.clips.row(row).to_vec()).collect();
        let elements = batch.frames.elements();
        let clips = Stored::padded(dtype, &values, elements, elements + 6, 4);
        let same = bits(&backend.clips(&ClipsCase { clips, ..batch.clone() })?) == bits(&found);
        ensure!(same, "{dtype:?}: other bits behind padding");
        // Six clips of one frame, parameters of each frame alone.
        let frames = Frames { count: 1, ..batch.frames };
        let parameters: Vec<ClipParameters> = (0..6).map(|_| draw(frames, &mut rng)).collect();
        let clips = Stored::new(dtype, &values, frames.elements());
        compare(backend, &ClipsCase { clips, frames, parameters, options: batch.options })?;
    }
    Ok(())
}

/// The error names the argument.
fn expect(backend: &dyn Backend, case: &ClipsCase, parts: &[&str]) -> Outcome {
    match backend.clips(case) {
        Ok(_) => Err(format!("no error that names {parts:?}")),
        Err(text) => {
            ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
            Ok(())
        }
    }
}

fn bad_pixels(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let good = case(dtype, ([3, 2, 20, 30], [4, 4], 0), 255, 8);
        backend.clips(&good)?;
        let elements = good.frames.elements();
        for (value, at) in
            [(f32::NAN, 0), (f32::INFINITY, elements - 1), (-0.01, 2048), (1.01, elements / 2), (-1.0, 2047)]
        {
            let mut values: Vec<f32> = (0..3).flat_map(|row| good.clips.row(row).to_vec()).collect();
            values[elements + at] = value;
            values[2 * elements + at] = value;
            let bad = ClipsCase { clips: Stored::new(dtype, &values, elements), ..good.clone() };
            expect(backend, &bad, &["augment_clips", "`clips`", "clip 1"])?;
        }
    }
    Ok(())
}

fn refused(backend: &dyn Backend) -> Outcome {
    let good = case(DType::F32, ([2, 2, 6, 8], [4, 4], 1), 255, 9);
    let plain = good.parameters[0];
    let jitter = ColorJitter { brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.0, order: STEPS };
    let crop = |top, left, height, width| CropBox { top, left, height, width };
    let with = |parameters: ClipParameters| ClipsCase { parameters: vec![plain, parameters], ..good.clone() };
    let jittered = |jitter| with(ClipParameters { jitter: Some(jitter), ..plain });
    for (case, name) in [
        (with(ClipParameters { crop: crop(3, 0, 4, 8), ..plain }), "CropBox"),
        (with(ClipParameters { crop: crop(0, usize::MAX, 6, 2), ..plain }), "CropBox"),
        (with(ClipParameters { crop: crop(0, 0, 0, 8), ..plain }), "within frames of 6 x 8"),
        (jittered(ColorJitter { brightness: -0.1, ..jitter }), "brightness"),
        (jittered(ColorJitter { contrast: f32::NAN, ..jitter }), "contrast"),
        (jittered(ColorJitter { saturation: f32::INFINITY, ..jitter }), "saturation"),
        (jittered(ColorJitter { hue: 0.6, ..jitter }), "hue"),
        (jittered(ColorJitter { order: [STEPS[1]; 4], ..jitter }), "each step once"),
        (with(ClipParameters { blur: Some(0.0), ..plain }), "blur"),
        (with(ClipParameters { solarize: Some(1.5), ..plain }), "solarize"),
    ] {
        expect(backend, &case, &["augment_clips", "`parameters`", "clip 1", name])?;
    }
    let frames = |count, height, width| Frames { count, height, width };
    let options = |height, width, blur_radius| Options { height, width, blur_radius };
    for (case, parts) in [
        (ClipsCase { parameters: vec![plain], ..good.clone() }, &["`parameters`", "[1]", "[2]"][..]),
        (ClipsCase { frames: frames(3, 6, 8), ..good.clone() }, &["`clips`"]),
        (ClipsCase { frames: frames(2, 0, 8), ..good.clone() }, &["`clips`"]),
        (ClipsCase { options: options(0, 4, 1), ..good.clone() }, &["`size`"]),
        (ClipsCase { options: options(4, 20_000, 1), ..good.clone() }, &["`size`"]),
        (ClipsCase { options: options(4, 4, 25), ..good.clone() }, &["`blur_radius`", "24"]),
    ] {
        expect(backend, &case, parts)?;
    }
    Ok(())
}
