//! Contrastive video representation learning.

use candle_core::{DType, Device, Tensor, Var};
use consonance_methods::{
    ClipAugmentation, ClipAugmentationConfig, ClipSampler, ClipSamplerConfig, ClipView, Consistency, Cvrl,
    CvrlConfig, IntervalDistribution,
};
use consonance_testkit::data;

use crate::golden::{Golden, flat};
use crate::support::{matrix, number};

const CPU: Device = Device::Cpu;
const SIZE: (usize, usize) = (40, 56);

#[test]
fn losses_agree_with_pytorch() {
    for case in Golden::read("cvrl").cases("loss/") {
        let h = case.variables("h");
        let terms = Cvrl::new(case.config()).unwrap().terms(&h[0], &h[1]).unwrap();
        case.check_loss(&terms.total, &h);
        let names: Vec<&str> = terms.parts.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["first", "second"]);
        case.check("panels", &terms.parts.iter().map(|(_, value)| *value).collect::<Vec<f64>>());
    }
}

#[test]
fn both_panels_have_their_golden_values() {
    let at = |degrees: [f64; 2]| {
        let row = |angle: f64| [angle.to_radians().cos() as f32, angle.to_radians().sin() as f32];
        matrix(&degrees.map(row).concat(), 2, 2)
    };
    let method = Cvrl::new(CvrlConfig::default()).unwrap();
    let terms = method.terms(&at([0.0, 70.0]), &at([20.0, 110.0])).unwrap();
    // ln Z is near 9.4, where an f32 is known to 5e-7, and so are the scores; the sum of both has twice that.
    for ((_, got), expected) in terms.parts.iter().zip([0.134_732_504, 0.025_321_164]) {
        assert!((got - expected).abs() <= 2e-6, "{got}, expected {expected}");
    }
    assert!((number(&terms.total) - 0.160_053_668).abs() <= 4e-6);
    // All embeddings alike: 2N − 1 candidates of one score, twice.
    let same = matrix(&[0.6, 0.8].repeat(5), 5, 2);
    let total = number(&method.terms(&same, &same).unwrap().total);
    assert!((total - 2.0 * 9f64.ln()).abs() <= 4e-6, "{total}");
}

#[test]
fn the_loss_does_not_know_which_clip_is_the_first() {
    let (a, b) = (matrix(&data::unit(9, 5, 1), 9, 5), matrix(&data::unit(9, 5, 2), 9, 5));
    let method = Cvrl::new(CvrlConfig::default()).unwrap();
    let (one, other) = (method.terms(&a, &b).unwrap(), method.terms(&b, &a).unwrap());
    assert!((one.parts[0].1 - other.parts[1].1).abs() <= 2e-6);
    assert!((number(&one.total) - number(&other.total)).abs() <= 4e-6);
    let tracked = Var::from_tensor(&a).unwrap();
    assert!(method.terms(&tracked, &b).unwrap().total.backward().unwrap().get(&tracked).is_some());
}

const POWERS: [f64; 6] = [0.01, 0.5, 1.0, 1.5, 3.0, 20.0];

#[test]
fn distributions_integrate_and_invert() {
    let m = 37.0;
    let all = POWERS.map(|power| IntervalDistribution::Decreasing { power });
    for distribution in all.into_iter().chain([IntervalDistribution::Uniform]) {
        let (cdf, pdf) = (|t| distribution.cdf(t, m).unwrap(), |t| distribution.pdf(t, m).unwrap());
        assert_eq!(cdf(0.0), 0.0);
        assert!((cdf(m) - 1.0).abs() < 1e-13);
        // Simpson's rule between the ends, where the density of small powers is not smooth.
        let (low, high, steps) = (0.1 * m, 0.9 * m, 4000);
        let width = (high - low) / f64::from(steps);
        let weight = |i: i32| if i == 0 || i == steps { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
        let area: f64 =
            (0..=steps).map(|i| weight(i) * pdf(low + width * f64::from(i))).sum::<f64>() * width / 3.0;
        assert!((area - (cdf(high) - cdf(low))).abs() < 1e-9, "{distribution:?}: {area}");
        for i in 0..=1000 {
            let u = f64::from(i) / 1000.0;
            let t = distribution.inverse(u, m).unwrap();
            assert!((0.0..=m).contains(&t));
            // At t = m the density is 0, so that F has no more to say there than to its last bits.
            assert!((cdf(t) - u).abs() < 1e-13, "{distribution:?}: F({t}) is not {u}");
        }
    }
    // Power 1 in closed form and by bisection, as for its neighbors.
    let near = IntervalDistribution::Decreasing { power: 1.0 + 1e-12 };
    let one = IntervalDistribution::Decreasing { power: 1.0 };
    for i in 0..100 {
        let u = f64::from(i) / 100.0;
        let (a, b) = (one.inverse(u, m).unwrap(), near.inverse(u, m).unwrap());
        assert!((a - b).abs() < 1e-9, "{u}: {a} and {b}");
        let closed = m * (1.0 - (1.0 - u).sqrt());
        assert!((a - closed).abs() < 1e-12);
    }
    assert!((one.pdf(0.0, m).unwrap() - 2.0 / m).abs() < 1e-15 && one.pdf(m, m).unwrap() == 0.0);
}

/// Χ² of counts against their expected numbers, which must be large enough, and the number of cells.
fn chi_square(counts: &[u64], expected: &[f64]) -> (f64, usize) {
    assert!(expected.iter().all(|n| *n >= 10.0), "{expected:?}");
    let squares = counts.iter().zip(expected).map(|(got, n)| (*got as f64 - n).powi(2) / n).sum();
    (squares, counts.len())
}

/// The quantile of Χ² that a right sampler exceeds once in a million seeds, by Wilson and Hilferty's cube: 4.753 deviations.
fn once_in_a_million(cells: usize) -> f64 {
    let freedom = cells as f64 - 1.0;
    let share = 2.0 / (9.0 * freedom);
    freedom * (1.0 - share + 4.753 * share.sqrt()).powi(3)
}

#[test]
fn intervals_and_starts_follow_their_distribution() {
    let (video, draws) = (50, 60_000u64);
    let config = ClipSamplerConfig { frames: 6, stride: 4, ..ClipSamplerConfig::default() };
    let distributions = [0.5, 1.0, 3.0].map(|power| IntervalDistribution::Decreasing { power });
    for interval in distributions.into_iter().chain([IntervalDistribution::Uniform]) {
        let sampler = ClipSampler::new(ClipSamplerConfig { interval, ..config }).unwrap();
        let room = sampler.room(video).unwrap().unwrap();
        assert_eq!(room, 30);
        let (mut intervals, mut firsts, mut of_ten) = (vec![0u64; room], 0u64, vec![0u64; room - 10]);
        for number in 0..draws {
            let starts = sampler.starts(video, 5, number).unwrap();
            assert_eq!(starts, sampler.starts(video, 5, number).unwrap());
            assert!(starts.first < room && starts.second < room);
            let t = starts.first.abs_diff(starts.second);
            intervals[t] += 1;
            firsts += u64::from(starts.first < starts.second);
            if t == 10 {
                of_ten[starts.first.min(starts.second)] += 1;
            }
        }
        // P(t) = F(t + 1) − F(t); the last, rare ones are taken together.
        let cdf = |t: usize| interval.cdf(t as f64, room as f64).unwrap();
        let last = (0..room).rev().find(|t| draws as f64 * (1.0 - cdf(*t)) >= 10.0).unwrap();
        let expected: Vec<f64> = (0..=last)
            .map(|t| draws as f64 * if t == last { 1.0 - cdf(t) } else { cdf(t + 1) - cdf(t) })
            .collect();
        let mut counts = intervals[..last].to_vec();
        counts.push(intervals[last..].iter().sum());
        let (found, cells) = chi_square(&counts, &expected);
        println!("{interval:?}: chi-square {found:.1} of {cells} cells");
        assert!(found <= once_in_a_million(cells), "{interval:?}: {found} of {cells} cells");
        // The earlier start is uniform over the places that are left, and either may be the first clip.
        let n = intervals[10] as f64 / of_ten.len() as f64;
        let (found, cells) = chi_square(&of_ten, &vec![n; of_ten.len()]);
        assert!(found <= once_in_a_million(cells), "{interval:?}: starts, {found} of {cells} cells");
        let ordered = draws - intervals[0];
        let (found, cells) = chi_square(&[firsts, ordered - firsts], &[ordered as f64 / 2.0; 2]);
        assert!(found <= once_in_a_million(cells).max(23.9), "{interval:?}: {firsts} of {ordered} in order");
    }
    // The test finds another distribution: power 1.15 instead of 1.
    let near = IntervalDistribution::Decreasing { power: 1.15 };
    let sampler = ClipSampler::new(ClipSamplerConfig { interval: near, ..config }).unwrap();
    let mut counts = vec![0u64; 25];
    for number in 0..draws {
        let starts = sampler.starts(video, 5, number).unwrap();
        counts[starts.first.abs_diff(starts.second).min(24)] += 1;
    }
    let cdf = |t: usize| IntervalDistribution::Decreasing { power: 1.0 }.cdf(t as f64, 30.0).unwrap();
    let expected: Vec<f64> =
        (0..25).map(|t| draws as f64 * if t == 24 { 1.0 - cdf(t) } else { cdf(t + 1) - cdf(t) }).collect();
    let (found, cells) = chi_square(&counts, &expected);
    assert!(found > once_in_a_million(cells), "{found} of {cells} cells");
}

#[test]
fn short_videos_are_repeated_from_their_beginning() {
    let sampler = ClipSampler::new(ClipSamplerConfig { frames: 5, stride: 3, ..Default::default() }).unwrap();
    assert_eq!(sampler.indices(40, 7).unwrap(), [7, 10, 13, 16, 19]);
    assert_eq!(sampler.indices(10, 8).unwrap(), [8, 1, 4, 7, 0]);
    assert_eq!(sampler.indices(1, 0).unwrap(), [0; 5]);
    assert_eq!(sampler.room(13).unwrap(), Some(1));
    assert_eq!(sampler.room(12).unwrap(), None);
    // One place: both clips are the same. No place: both begin anywhere.
    let starts = sampler.starts(13, 1, 2).unwrap();
    assert_eq!((starts.first, starts.second), (0, 0));
    let mut pairs = vec![0u64; 144];
    for number in 0..14_400 {
        let starts = sampler.starts(12, 9, number).unwrap();
        pairs[12 * starts.first + starts.second] += 1;
    }
    let (found, cells) = chi_square(&pairs, &[100.0; 144]);
    assert!(found <= once_in_a_million(cells), "{found}");
    // A clip of one frame has room in every video.
    let one = ClipSampler::new(ClipSamplerConfig { frames: 1, stride: 3, ..Default::default() }).unwrap();
    assert_eq!(one.room(4).unwrap(), Some(4));
}

#[test]
fn augmentations_follow_the_published_distributions() {
    let augmentation = ClipAugmentation::new(ClipAugmentationConfig::default()).unwrap();
    let (h, w) = SIZE;
    let draws = 20_000u64;
    for (view, blur, solarize) in [(ClipView::First, 1.0, 0.0), (ClipView::Second, 0.1, 0.2)] {
        let mut counts = [0u64; 5];
        let (mut orders, mut tenths) = (std::collections::BTreeMap::new(), [0u64; 10]);
        for clip in 0..draws {
            let drawn = augmentation.draw(view, SIZE, 3, (clip, 0)).unwrap();
            assert_eq!(drawn, augmentation.draw(view, SIZE, 3, (clip, 0)).unwrap());
            let crop = drawn.crop;
            assert!(crop.top + crop.height <= h && crop.left + crop.width <= w);
            let share = (crop.height * crop.width) as f64 / (h * w) as f64;
            let aspect = crop.width as f64 / crop.height as f64;
            // Half a pixel of rounding on each side.
            assert!((0.3..=1.0).contains(&share) && aspect > 0.45 && aspect < 2.2, "{crop:?}");
            let happened = [
                drawn.flip,
                drawn.jitter.is_some(),
                drawn.grayscale,
                drawn.blur.is_some(),
                drawn.solarize.is_some(),
            ];
            counts.iter_mut().zip(happened).for_each(|(count, happened)| *count += u64::from(happened));
            if let Some(jitter) = drawn.jitter {
                for factor in [jitter.brightness, jitter.contrast, jitter.saturation] {
                    assert!((0.2..=1.8).contains(&factor) && jitter.hue.abs() <= 0.2);
                }
                *orders.entry(format!("{:?}", jitter.order)).or_insert(0u64) += 1;
                tenths[(((jitter.hue + 0.2) / 0.04) as usize).min(9)] += 1;
            }
            assert!(drawn.blur.is_none_or(|sigma| (0.1..=2.0).contains(&sigma)));
            assert!(drawn.solarize.is_none_or(|threshold| threshold == 0.5));
        }
        for (count, p) in counts.into_iter().zip([0.5, 0.8, 0.2, blur, solarize]) {
            // Five deviations.
            let (n, deviation) = (draws as f64, (draws as f64 * p * (1.0 - p)).sqrt());
            assert!((count as f64 - n * p).abs() <= 5.0 * deviation, "{view:?}: {counts:?}");
        }
        let jittered = counts[1] as f64;
        let orders: Vec<u64> = orders.into_values().collect();
        assert_eq!(orders.len(), 24);
        for counts in [&orders[..], &tenths[..]] {
            let (found, cells) = chi_square(counts, &vec![jittered / counts.len() as f64; counts.len()]);
            assert!(found <= once_in_a_million(cells), "{view:?}: {found} of {cells} cells");
        }
    }
}

#[test]
fn clips_keep_their_parameters_and_frames_do_not() {
    let config = ClipAugmentationConfig { height: 12, width: 10, ..ClipAugmentationConfig::default() };
    // One picture, standing still: what differs between frames is the augmentation's.
    let picture = Tensor::from_vec(data::unit(2 * 3, 20 * 24, 1), (2, 1, 3, 20, 24), &CPU).unwrap();
    let clips = picture.abs().unwrap().broadcast_as((2, 4, 3, 20, 24)).unwrap();
    let still = |consistency| {
        let config = ClipAugmentationConfig { consistency, ..config };
        let augmentation = ClipAugmentation::new(config).unwrap();
        let views = augmentation.views(&clips, &clips, 7, 100).unwrap();
        let again = augmentation.augment(ClipView::Second, &clips.narrow(0, 1, 1).unwrap(), 7, 101).unwrap();
        let second = views[1].narrow(0, 1, 1).unwrap();
        assert_eq!(flat(&again), flat(&second), "a clip does not depend on its batch");
        let difference = (&views[0] - &views[1]).unwrap().abs().unwrap();
        assert!(number(&difference.sum_all().unwrap()) > 1.0, "both views are alike");
        views.map(|view| {
            assert_eq!(view.dims(), [2, 4, 3, 12, 10]);
            let others = view.narrow(1, 1, 3).unwrap();
            let first = view.narrow(1, 0, 1).unwrap().broadcast_as(others.shape()).unwrap();
            number(&(others - first).unwrap().abs().unwrap().sum_all().unwrap())
        })
    };
    assert_eq!(still(Consistency::Clip), [0.0, 0.0]);
    assert!(still(Consistency::Frame).iter().all(|sum| *sum > 1.0));
}

fn refused<T>(result: consonance_methods::Result<T>, parts: &[&str]) {
    let message = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(parts.iter().all(|part| message.contains(part)), "{message:?} lacks one of {parts:?}");
}

#[test]
fn bad_input_is_refused() {
    let config = CvrlConfig::default();
    assert!(serde_json::from_str::<CvrlConfig>(r#"{"tau":0.1}"#).is_err());
    assert!(serde_json::from_str::<CvrlConfig>(r#"{"sampling":{"step":2}}"#).is_err());
    assert!(serde_json::from_str::<CvrlConfig>(r#"{"augmentation":{"blurs":[1,1]}}"#).is_err());
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<CvrlConfig>(&json).unwrap(), config);
    refused(Cvrl::new(CvrlConfig { temperature: 0.0, ..config }), &["temperature"]);
    let power = |power| {
        let interval = IntervalDistribution::Decreasing { power };
        CvrlConfig { sampling: ClipSamplerConfig { interval, ..config.sampling }, ..config }
    };
    refused(Cvrl::new(power(0.0)), &["power"]);
    refused(Cvrl::new(power(f64::NAN)), &["power"]);
    for (sampling, name) in [
        (ClipSamplerConfig { frames: 0, ..config.sampling }, "frames"),
        (ClipSamplerConfig { stride: 0, ..config.sampling }, "stride"),
    ] {
        refused(Cvrl::new(CvrlConfig { sampling, ..config }), &[name, "at least 1"]);
    }
    let good = config.augmentation;
    for (augmentation, name) in [
        (ClipAugmentationConfig { height: 0, ..good }, "height"),
        (ClipAugmentationConfig { area: [0.0, 1.0], ..good }, "area"),
        (ClipAugmentationConfig { area: [0.5, 1.1], ..good }, "area"),
        (ClipAugmentationConfig { aspect: [2.0, 0.5], ..good }, "aspect"),
        (ClipAugmentationConfig { flip: 1.5, ..good }, "flip"),
        (ClipAugmentationConfig { contrast: 1.5, ..good }, "contrast"),
        (ClipAugmentationConfig { brightness: -0.5, ..good }, "brightness"),
        (ClipAugmentationConfig { hue: 0.6, ..good }, "hue"),
        (ClipAugmentationConfig { blur: [1.0, f64::NAN], ..good }, "blur"),
        (ClipAugmentationConfig { blur_sigma: [0.0, 1.0], ..good }, "blur_sigma"),
        (ClipAugmentationConfig { solarize_threshold: 2.0, ..good }, "solarize_threshold"),
    ] {
        refused(Cvrl::new(CvrlConfig { augmentation, ..config }), &[name]);
    }

    let method = Cvrl::new(config).unwrap();
    let rows = |n: usize, d: usize| matrix(&data::unit(n, d, 3), n, d);
    refused(method.terms(&rows(3, 4), &rows(2, 4)), &["second", "(2, 4)", "(3, 4)"]);
    refused(method.terms(&rows(1, 4), &rows(1, 4)), &["first", "a single video"]);
    let nan = matrix(&[f32::NAN, 0.0, 1.0, 0.0], 2, 2);
    refused(method.terms(&rows(2, 2), &nan), &["second", "not finite"]);

    let sampler = method.sampler();
    refused(sampler.starts(0, 1, 1), &["video", "0 frames"]);
    refused(
        sampler.starts_at(50, 20, 1, 1),
        &["interval", "20", "below 20", "16 frames, 2 apart", "50 frames"],
    );
    refused(sampler.starts_at(30, 0, 1, 1), &["interval", "below 0"]);
    refused(sampler.indices(50, 50), &["start", "50"]);
    let linear = config.sampling.interval;
    refused(linear.cdf(30.5, 30.0), &["interval", "30.5", "within the video"]);
    refused(linear.pdf(-1.0, 30.0), &["interval"]);
    refused(linear.inverse(1.5, 30.0), &["`u`", "1.5"]);
    refused(linear.cdf(0.0, 0.0), &["room"]);

    let augmentation = method.augmentation();
    let clips = |frames| Tensor::zeros((1, frames, 3, 8, 8), DType::F32, &CPU).unwrap();
    refused(
        augmentation.views(&clips(3), &clips(4), 1, 1),
        &["second_clips", "[1, 4, 3, 8, 8]", "[1, 3, 3, 8, 8]"],
    );
    refused(augmentation.augment(ClipView::First, &rows(2, 2), 1, 1), &["clips", "[2, 2]"]);
    let nan = (clips(2) * f64::NAN).unwrap();
    refused(augmentation.augment(ClipView::First, &nan, 1, 1), &["augment_clips", "clip 0", "NaN"]);
    refused(augmentation.draw(ClipView::First, (0, 8), 1, (1, 1)), &["clips", "0 x 8"]);
}
