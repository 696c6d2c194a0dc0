//! What class activation maps, blends and backgrounds must fulfil.
//!
//! Maps, with u = 2⁻²⁴. A sum of K products of at most c in all is off by (K + 10) u c/(hw); call the largest of an image E, and
//! the largest sum M. A weight of the cubic is off by at most 22 u, so a value mixed of numbers of 0 to M by 61 u M, one mixed of
//! these by 110 u M more, and errors grow by at most 1.4 along each axis: a stretched value is off by δ = 2E + 200 u (M + E). With R the
//! range of the map, its norm is off by (4δ + 4uR)/(R − 2δ) + 2u; where R ≤ 4δ it is only known to lie in [0, 1].
//!
//! A blend is off by 3 u (|x|(1 − m) + |y| m) and one rounding to its type: 2⁻¹¹ (f16) or 2⁻⁸ (bf16) of itself, and what is
//! subnormal in f16 by 2⁻²⁵. Backgrounds are copies, bit for bit.

use consonance::cuda::DType;
use consonance_cpu::cam::Options;
use consonance_reference::cam as reference;

use super::{Check, Outcome, ensure};
use crate::backend::{Backend, BackgroundsCase, BlendCase, CamCase};
use crate::data;
use crate::stored::Stored;

const U: f64 = 1.0 / 16_777_216.0;

/// All checks of this family.
pub const CHECKS: &[Check] = &[
    ("cam: maps", maps),
    ("cam: maps without a range", flat_maps),
    ("cam: images alone and behind padding", alone),
    ("cam: maps of bad numbers", bad_maps),
    ("cam: refused maps", refused_maps),
    ("cam: blends", blends),
    ("cam: bad blends", bad_blends),
    ("cam: backgrounds", backgrounds),
    ("cam: bad backgrounds", bad_backgrounds),
];

fn stored(dtype: DType, rows: usize, cols: usize, seed: u64) -> Stored {
    Stored::new(dtype, &data::normal(rows, cols, seed), cols)
}

/// A batch with a channel of weight 0.
fn case(dtype: DType, [b, k, h, w]: [usize; 4], to: [usize; 2], seed: u64) -> CamCase {
    let mut gradients = data::normal(b, k, seed + 1);
    gradients[k / 2] = 0.0;
    CamCase {
        activations: stored(dtype, b, k * h * w, seed),
        gradients: Stored::new(DType::F32, &gradients, k),
        options: Options { from: [h, w], to, keep_negative: false },
    }
}

fn maps(backend: &dyn Backend) -> Outcome {
    // One pixel; lines; more pixels than a warp has lanes; smaller than the activations; more columns than threads.
    for (seed, (from, to)) in (0..).zip([
        ([1, 1, 1, 1], [3, 2]),
        ([2, 3, 1, 2], [5, 3]),
        ([3, 17, 7, 7], [20, 9]),
        ([2, 5, 6, 9], [4, 5]),
        ([1, 9, 2, 3], [5, 259]),
        ([1, 40, 5, 8], [9, 8]),
    ]) {
        for dtype in DType::ALL {
            for keep_negative in [false, true] {
                let mut case = case(dtype, from, to, seed);
                case.options.keep_negative = keep_negative;
                check(backend, &case)?;
            }
        }
    }
    Ok(())
}

/// The map of one image, and what it may be off by.
fn truth(case: &CamCase, image: usize) -> (Vec<f64>, f64) {
    let Options { from: [h, w], to: [height, width], keep_negative } = case.options;
    let wide = |rows: &Stored| -> Vec<f64> { rows.row(image).iter().map(|v| f64::from(*v)).collect() };
    let (activations, gradients) = (wide(&case.activations), wide(&case.gradients));
    let weights = reference::weights(&gradients, h * w, keep_negative);
    let sums = reference::weighted_sum(&activations, &weights, h * w);
    let terms = |pixel: usize| -> f64 {
        weights.iter().enumerate().map(|(k, a)| (a * activations[k * h * w + pixel]).abs()).sum()
    };
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let e = (weights.len() + 10) as f64 * U * most(&(0..h * w).map(terms).collect::<Vec<_>>());
    let delta = 2.0 * e + 200.0 * U * (most(&sums) + e);
    let stretched = reference::resize(&sums, (h, w), (height, width));
    let range = most(&stretched) - stretched.iter().copied().fold(f64::INFINITY, f64::min);
    let bound = match range > 4.0 * delta {
        true => (4.0 * delta + 4.0 * U * range) / (range - 2.0 * delta) + 2.0 * U,
        false => 1.0,
    };
    (reference::cam(&activations, &gradients, (h, w), (height, width), keep_negative), bound)
}

fn check(backend: &dyn Backend, case: &CamCase) -> Outcome {
    let got = backend.cam(case)?;
    let (from, to) = (case.options.from, case.options.to);
    let pixels = to[0] * to[1];
    ensure!(got.len() == case.activations.rows() * pixels, "{} numbers", got.len());
    let mut worst = 0.0f64;
    for (image, got) in got.chunks_exact(pixels).enumerate() {
        let (expected, bound) = truth(case, image);
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            ensure!((0.0..=1.0).contains(got), "{from:?} to {to:?}, image {image}, pixel {at}: {got}");
            let ratio = (f64::from(*got) - expected).abs() / bound;
            ensure!(
                ratio <= 1.0,
                "{from:?} to {to:?}, image {image}, pixel {at}: {got}, expected {expected}: {ratio:.2} bounds"
            );
            worst = worst.max(ratio);
        }
    }
    #[allow(clippy::print_stdout, reason = "the slack of a bound is to be seen")]
    {
        println!("{}: maps {from:?} to {to:?}: error / bound {worst:.3}", backend.name());
    }
    Ok(())
}

/// Where all weights are 0, all sums negative, or all pixels equal, a map is 0 everywhere.
fn flat_maps(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let good = case(dtype, [2, 3, 2, 4], [5, 7], 3);
        let flat: Vec<f32> = (0..2 * 3 * 8).map(|at| 0.3 + (at / 8) as f32).collect();
        let cases = [
            CamCase { gradients: Stored::new(DType::F32, &[0.0; 6], 3), ..good.clone() },
            CamCase { gradients: Stored::new(DType::F32, &[-1.0; 6], 3), ..good.clone() },
            CamCase {
                activations: Stored::new(dtype, &[-0.5; 48], 24),
                gradients: Stored::new(DType::F32, &[0.7; 6], 3),
                ..good.clone()
            },
            CamCase {
                activations: Stored::new(dtype, &flat, 24),
                gradients: Stored::new(DType::F32, &[0.7; 6], 3),
                ..good
            },
        ];
        for (which, case) in cases.iter().enumerate() {
            let got = backend.cam(case)?;
            ensure!(got.iter().all(|x| *x == 0.0), "{dtype:?}, case {which}: {got:?}");
        }
    }
    Ok(())
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// `rows` with some distance and NaN between them.
fn padded(rows: &Stored, more: usize) -> Stored {
    let values: Vec<f32> = (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect();
    Stored::padded(rows.dtype(), &values, rows.cols(), rows.cols() + more, more / 2)
}

fn alone(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let batch = case(dtype, [3, 5, 3, 4], [6, 5], 8);
        let all = backend.cam(&batch)?;
        let apart = CamCase { activations: padded(&batch.activations, 6), ..batch.clone() };
        ensure!(same(&all, &backend.cam(&apart)?), "{dtype:?}: other bits behind padding");
        let blended = blend_case(dtype, [3, 2, 8], Kind::Images, 5);
        let whole = backend.masked_blend(&blended)?;
        for image in 0..3 {
            let one = CamCase {
                activations: batch.activations.select(&[image]),
                gradients: batch.gradients.select(&[image]),
                options: batch.options,
            };
            ensure!(same(&all[image * 30..][..30], &backend.cam(&one)?), "{dtype:?}: map {image} alone");
            let one = BlendCase {
                images: blended.images.select(&[image]),
                other: blended.other.select(&[image]),
                mask: blended.mask.select(&[image]),
                ..blended.clone()
            };
            let expected = &whole[image * 16..][..16];
            ensure!(same(expected, &backend.masked_blend(&one)?), "{dtype:?}: blend {image} alone");
        }
    }
    Ok(())
}

fn expect<T>(result: Result<T, String>, parts: &[&str]) -> Outcome {
    let Err(text) = result else { return Err(format!("no error that names {parts:?}")) };
    ensure!(parts.iter().all(|part| text.contains(part)), "`{text}` does not name {parts:?}");
    Ok(())
}

fn set(rows: &Stored, row: usize, col: usize, value: f32) -> Stored {
    let mut values: Vec<f32> = (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect();
    values[row * rows.cols() + col] = value;
    Stored::new(rows.dtype(), &values, rows.cols())
}

fn bad_maps(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let good = case(dtype, [4, 12, 2, 17], [3, 3], 1);
        for value in [f32::NAN, f32::INFINITY] {
            // In the last channel, whose weight is 0.
            let activations = set(&good.activations, 2, 11 * 34 + 33, value);
            let gradients = set(&good.gradients, 2, 11, 0.0);
            let bad = CamCase { activations, gradients, ..good.clone() };
            expect(backend.cam(&bad), &["cam", "`activations`", "row 2"])?;
            let bad = CamCase { gradients: set(&good.gradients, 3, 9, -value), ..good.clone() };
            expect(backend.cam(&bad), &["cam", "`gradients`", "row 3"])?;
        }
        let gradients = set(&good.gradients, 1, 0, 3e38);
        let activations = set(&good.activations, 1, 0, 100.0);
        expect(backend.cam(&CamCase { activations, gradients, ..good }), &["`activations`", "row 1"])?;
    }
    Ok(())
}

fn refused_maps(backend: &dyn Backend) -> Outcome {
    let good = case(DType::F32, [2, 3, 2, 2], [4, 4], 1);
    let with = |from, to| CamCase { options: Options { from, to, keep_negative: false }, ..good.clone() };
    for (case, parts) in [
        (with([0, 2], [4, 4]), ["`activations`", "0 x 2"]),
        (with([2, 2], [0, 4]), ["`size`", "0 x 4"]),
        (with([5, 2], [4, 4]), ["`activations`", "[2, 12]"]),
        (with([2, 3], [4, 4]), ["`gradients`", "[2, 2]"]),
    ] {
        expect(backend.cam(&case), &parts)?;
    }
    Ok(())
}

/// What shows where the mask is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Color,
    Colors,
    Images,
}

/// A mask of numbers of which some are 0 and 1.
fn mask(rows: usize, pixels: usize, seed: u64) -> Stored {
    let values: Vec<f32> = data::normal(rows, pixels, seed).iter().map(|v| v.clamp(0.0, 1.0)).collect();
    Stored::new(DType::F32, &values, pixels)
}

fn blend_case(dtype: DType, [b, c, pixels]: [usize; 3], kind: Kind, seed: u64) -> BlendCase {
    let (rows, cols) = match kind {
        Kind::Color => (1, c),
        Kind::Colors => (b, c),
        Kind::Images => (b, c * pixels),
    };
    BlendCase {
        images: stored(dtype, b, c * pixels, seed),
        other: stored(dtype, rows, cols, seed + 1),
        is_color: kind != Kind::Images,
        mask: mask(b, pixels, seed + 2),
    }
}

/// Chunks of 16 bytes and planes that have none; more than one block of each.
fn blends(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let of_block = 256 * 16 / dtype.bytes();
        for (seed, (shape, kind)) in (0..).zip([
            ([2, 3, 16], Kind::Color),
            ([3, 2, 14], Kind::Colors),
            ([2, 3, 8], Kind::Images),
            ([2, 1, 10], Kind::Images),
            ([1, 2, of_block + 8], Kind::Images),
            ([1, 2, of_block + 6], Kind::Color),
        ]) {
            let case = blend_case(dtype, shape, kind, seed);
            check_blend(backend, &case)?;
            // Rows of views: the distance is whole chunks, and is not.
            for more in [8, 6] {
                let other = if case.is_color { case.other.clone() } else { padded(&case.other, more) };
                let apart = BlendCase { images: padded(&case.images, 2 * more), other, ..case.clone() };
                let same = same(&backend.masked_blend(&case)?, &backend.masked_blend(&apart)?);
                ensure!(same, "{dtype:?} {shape:?} {kind:?}: other bits behind padding");
            }
        }
    }
    Ok(())
}

fn check_blend(backend: &dyn Backend, case: &BlendCase) -> Outcome {
    let got = backend.masked_blend(case)?;
    let (dtype, elements, pixels) = (case.images.dtype(), case.images.cols(), case.mask.cols());
    let (relative, absolute) = match dtype {
        DType::F32 => (0.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25)),
        DType::BF16 => (1.0 / 256.0, 0.0),
    };
    for (image, got) in got.chunks_exact(elements).enumerate() {
        let wide =
            |rows: &Stored, row: usize| -> Vec<f64> { rows.row(row).iter().map(|v| f64::from(*v)).collect() };
        let other = wide(&case.other, if case.other.rows() == 1 { 0 } else { image });
        let (x, m) = (wide(&case.images, image), wide(&case.mask, image));
        let expected = reference::masked_blend(&x, &other, &m);
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let (m, y) = (m[at % pixels], if case.is_color { other[at / pixels] } else { other[at] });
            let exact = 3.0 * U * (x[at].abs() * (1.0 - m) + y.abs() * m);
            let bound = exact + relative * (expected.abs() + exact) + absolute;
            let copied = m == 0.0 || m == 1.0;
            let difference = (f64::from(*got) - expected).abs();
            ensure!(
                difference <= if copied { 0.0 } else { bound },
                "{dtype:?}, image {image}, element {at}, mask {m}: {got}, expected {expected}"
            );
        }
    }
    Ok(())
}

fn bad_blends(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        for (pixels, kind) in [(16, Kind::Images), (14, Kind::Images), (16, Kind::Colors)] {
            let good = blend_case(dtype, [3, 2, pixels], kind, 7);
            for value in [f32::NAN, f32::NEG_INFINITY] {
                let bad = BlendCase { images: set(&good.images, 1, pixels + 9, value), ..good.clone() };
                expect(backend.masked_blend(&bad), &["masked_blend", "`images`", "row 1"])?;
                let last = good.other.cols() - 1;
                let bad = BlendCase { other: set(&good.other, 2, last, value), ..good.clone() };
                expect(backend.masked_blend(&bad), &["`other`", "row 2"])?;
            }
            for value in [f32::NAN, -1e-6, 1.000_001] {
                let bad = BlendCase { mask: set(&good.mask, 1, 11, value), ..good.clone() };
                expect(backend.masked_blend(&bad), &["`mask`", "outside 0..=1", "image 1"])?;
            }
        }
    }
    let good = blend_case(DType::F32, [2, 3, 8], Kind::Images, 1);
    for (case, name) in [
        (BlendCase { mask: mask(2, 9, 1), ..good.clone() }, "`mask`"),
        (BlendCase { other: stored(DType::F32, 2, 23, 1), ..good.clone() }, "`other`"),
        (BlendCase { other: stored(DType::F32, 2, 4, 1), is_color: true, ..good.clone() }, "`other`"),
    ] {
        expect(backend.masked_blend(&case), &[name])?;
    }
    Ok(())
}

/// Masks with one rectangle each, of all sides and sizes.
fn holes(size: [usize; 2], rectangles: &[[usize; 4]], value: f32) -> Stored {
    let pixel = |[top, left, bottom, right]: &[usize; 4], at: usize| {
        let (y, x) = (at / size[1], at % size[1]);
        if (*top..*bottom).contains(&y) && (*left..*right).contains(&x) { value } else { 0.1 }
    };
    let of =
        |rectangle: &[usize; 4]| (0..size[0] * size[1]).map(|at| pixel(rectangle, at)).collect::<Vec<_>>();
    Stored::new(DType::F32, &rectangles.iter().flat_map(of).collect::<Vec<_>>(), size[0] * size[1])
}

fn backgrounds(backend: &dyn Backend) -> Outcome {
    // In every corner, in the middle (all strips as large), everywhere, nowhere, one pixel, all but one row or column.
    let small = [
        [0, 0, 2, 2],
        [3, 3, 6, 6],
        [0, 3, 3, 6],
        [3, 0, 6, 3],
        [2, 2, 4, 4],
        [0, 0, 6, 6],
        [0, 0, 0, 0],
        [4, 1, 5, 2],
        [0, 1, 6, 6],
        [0, 0, 5, 6],
        [1, 0, 6, 6],
        [0, 0, 6, 5],
    ];
    for dtype in DType::ALL {
        for ([height, width], rectangles, value) in
            [([6, 6], &small[..], 0.2), ([10, 27], &[[2, 5, 9, 20], [0, 1, 10, 26], [1, 0, 9, 27]][..], 1.0)]
        {
            let mask = holes([height, width], rectangles, value);
            let images = stored(dtype, rectangles.len(), 2 * height * width, 5);
            for short in [false, true] {
                let case = BackgroundsCase {
                    images: padded(&images, 6),
                    mask: mask.clone(),
                    size: [height, width],
                    threshold: 0.2,
                    short,
                };
                check_backgrounds(backend, &case)?;
            }
        }
    }
    Ok(())
}

fn check_backgrounds(backend: &dyn Backend, case: &BackgroundsCase) -> Outcome {
    let got = backend.backgrounds(case)?;
    let ([height, width], elements) = (case.size, case.images.cols());
    for image in 0..case.images.rows() {
        let x: Vec<f64> = case.images.row(image).iter().map(|v| f64::from(*v)).collect();
        let m: Vec<f64> = case.mask.row(image).iter().map(|v| f64::from(*v)).collect();
        let threshold = f64::from(case.threshold);
        let r = reference::rectangle(&m, width, threshold, case.short);
        let expected = reference::background(&x, &m, (height, width), threshold, case.short);
        let rectangle = [r.top, r.left, r.bottom, r.right].map(|v| v as u32);
        let found = &got.rectangles[4 * image..][..4];
        ensure!(found == rectangle, "image {image}: rectangle {found:?}, expected {rectangle:?}");
        ensure!(
            got.found[image] == u8::from(expected.is_some()),
            "image {image}: found {}",
            got.found[image]
        );
        let expected: Vec<f32> = expected.unwrap_or(x).into_iter().map(|v| v as f32).collect();
        let got = &got.images[image * elements..][..elements];
        ensure!(same(got, &expected), "image {image}, {rectangle:?}: {got:?}, expected {expected:?}");
    }
    Ok(())
}

fn bad_backgrounds(backend: &dyn Backend) -> Outcome {
    for dtype in DType::ALL {
        let good = BackgroundsCase {
            images: stored(dtype, 3, 2 * 20, 1),
            mask: holes([4, 5], &[[1, 1, 3, 3], [0, 0, 2, 2], [2, 2, 4, 5]], 1.0),
            size: [4, 5],
            threshold: 0.2,
            short: false,
        };
        // Where the image is copied, and where it is covered.
        for (row, col) in [(1, 39), (2, 18)] {
            let bad = BackgroundsCase { images: set(&good.images, row, col, f32::NAN), ..good.clone() };
            expect(backend.backgrounds(&bad), &["backgrounds", "`images`", &format!("row {row}")])?;
        }
        for value in [f32::NAN, -0.5, 1.5] {
            let bad = BackgroundsCase { mask: set(&good.mask, 1, 7, value), ..good.clone() };
            expect(backend.backgrounds(&bad), &["`mask`", "outside 0..=1", "image 1"])?;
        }
        for threshold in [0.0, 1.5, f32::NAN] {
            expect(backend.backgrounds(&BackgroundsCase { threshold, ..good.clone() }), &["`threshold`"])?;
        }
        for size in [[5, 5], [0, 4], [usize::MAX, 3]] {
            expect(backend.backgrounds(&BackgroundsCase { size, ..good.clone() }), &["`mask`"])?;
        }
    }
    Ok(())
}
