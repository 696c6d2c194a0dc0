//! The published systems forward and backward at their papers' sizes, beside the same losses written with Candle's own ops,
//! which keep every matrix of scores in the graph.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "cam/unfused.rs"]
mod unfused;

use std::hint::black_box;
use std::time::Duration;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::log_softmax;
use consonance::{cam, masked_blend};
use consonance_methods::{
    ContraCam, ContraCamConfig, Cvrl, CvrlConfig, Multimodal, MultimodalConfig, MutualBank, MutualBatch,
    MutualContrastConfig, MutualQueue, State, Streams, VideoSpeech, VideoSpeechBatch, VideoSpeechConfig,
};
use consonance_testkit::data;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};

const CPU: Device = Device::Cpu;
const SOFTENING: f64 = 3.0;

fn unit(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &CPU).unwrap()
}

fn tracked(count: usize, rows: usize, cols: usize) -> Vec<Tensor> {
    (0..count as u64).map(|i| Var::from_tensor(&unit(rows, cols, i)).unwrap().into_inner()).collect()
}

/// −ln of the share of the positives, which `mask` marks with 1/their number a row; `bias` is −∞ where a key is left out.
fn contrast(scores: &Tensor, mask: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let log_p = match bias {
        Some(bias) => log_softmax(&scores.broadcast_add(bias)?, D::Minus1)?,
        None => log_softmax(scores, D::Minus1)?,
    };
    // Where a key is left out the mask is 0, and 0 · −∞ is no number.
    let log_p = log_p.maximum(-1e30)?;
    (log_p.broadcast_mul(mask)?.sum(D::Minus1)?.mean_all()?).neg()
}

fn divergence(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let soften = |scores: &Tensor| log_softmax(&(scores / SOFTENING)?, D::Minus1);
    let (student, teacher) = (soften(student)?, soften(&teacher.detach())?);
    (teacher.exp()? * (&teacher - student)?)?.sum(1)?.mean_all()? * (SOFTENING * SOFTENING)
}

/// The four losses of two networks from the scores S^{ab}.
fn mutual_of_candle(
    weights: &MutualContrastConfig,
    score: impl Fn(usize, usize) -> Result<Tensor>,
    contrast: impl Fn(&Tensor, bool) -> Result<Tensor>,
) -> Result<Tensor> {
    let s = [[score(0, 0)?, score(0, 1)?], [score(1, 0)?, score(1, 1)?]];
    let vcl = (contrast(&s[0][0], true)? + contrast(&s[1][1], true)?)?;
    let icl = (contrast(&s[0][1], false)? + contrast(&s[1][0], false)?)?;
    let soft_vcl = (divergence(&s[0][0], &s[1][1])? + divergence(&s[1][1], &s[0][0])?)?;
    let soft_icl = (divergence(&s[0][1], &s[1][0])? + divergence(&s[1][0], &s[0][1])?)?;
    let hard = ((vcl * weights.vcl)? + (icl * weights.icl)?)?;
    hard + ((soft_vcl * weights.soft_vcl)? + (soft_icl * weights.soft_icl)?)?
}

/// Whether two of `labels` are equal, `[B, B]`.
fn same(labels: &Tensor) -> Result<Tensor> {
    labels.unsqueeze(1)?.broadcast_eq(&labels.unsqueeze(0)?)
}

/// The first `count` columns, evenly.
fn first(columns: usize, count: usize) -> Tensor {
    let mask = (0..columns).map(|c| if c < count { 1.0 / count as f32 } else { 0.0 }).collect::<Vec<_>>();
    Tensor::from_vec(mask, (1, columns), &CPU).unwrap()
}

fn both(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    mut ours: impl FnMut() -> Tensor,
    candle: impl Fn() -> Result<Tensor>,
) {
    let mut compared = false;
    group.bench_function(format!("consonance, {name}"), |bench| {
        // Here, so that a filter of names spares the systems that it leaves out.
        if !std::mem::replace(&mut compared, true) {
            let (a, b) = (ours().to_scalar::<f32>().unwrap(), candle().unwrap().to_scalar::<f32>().unwrap());
            assert!((a - b).abs() <= 1e-3 * b.abs(), "{name}: {a} and {b}");
        }
        bench.iter(|| black_box(ours().backward().unwrap()));
    });
    group.bench_function(format!("candle, {name}"), |bench| {
        bench.iter(|| black_box(candle().unwrap().backward().unwrap()));
    });
}

/// A saved state with full queues in the place of empty ones.
fn full(mut state: State, streams: u64, (slots, d): (usize, usize)) -> State {
    for stream in 0..streams {
        state.insert(format!("queue.{stream}"), unit(slots, d, 20 + stream));
    }
    state.insert("queue.len".into(), Tensor::new(&[slots as u32, 0], &CPU).unwrap());
    state
}

fn mutual_batch(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (b, d) = (128, 128);
    let config = MutualContrastConfig::default();
    let v = tracked(2, b, d);
    let labels = Tensor::new((0..b as u32).map(|i| i / 2).collect::<Vec<_>>(), &CPU).unwrap();
    // The diagonal is that of every batch; who is whose positive is not.
    let diagonal = Tensor::eye(b, DType::F32, &CPU).unwrap();
    let bias: Vec<f32> =
        (0..b * b).map(|at| if at / b == at % b { f32::NEG_INFINITY } else { 0.0 }).collect();
    let bias = Tensor::from_vec(bias, (b, b), &CPU).unwrap();
    let method = MutualBatch::new(config, 2).unwrap();
    both(
        group,
        "mutual, batch 128",
        || method.terms(&v, &labels).unwrap().total,
        || {
            let score = |a: usize, b: usize| v[a].matmul(&v[b].t()?)? / config.temperature;
            let others = (same(&labels)?.to_dtype(DType::F32)? - &diagonal)?;
            let positive = others.broadcast_div(&others.sum_keepdim(1)?)?;
            mutual_of_candle(&config, score, |s, _| contrast(s, &positive, Some(&bias)))
        },
    );
}

fn mutual_bank(group: &mut BenchmarkGroup<'_, WallTime>) {
    // A quarter of the paper's batch: the copies of a whole one would take gigabytes.
    let (b, d, held, columns) = (64, 128, 100_000, 8194);
    let config = MutualContrastConfig::memory_bank();
    let v = tracked(2, b, d);
    let method = MutualBank::new(config, 2, (held, d), 1, 0.5, 1, &CPU).unwrap();
    let lists = Tensor::from_vec(data::labels(b * columns, held as u32, 5), (b, columns), &CPU).unwrap();
    both(
        group,
        "mutual, bank 64 x 8194",
        || method.terms(&v, &lists).unwrap().total,
        || {
            let score = |a: usize, other: usize| {
                let rows = method.banks()[other].index_select(&lists.flatten_all()?, 0)?;
                let rows = rows.reshape((b, columns, d))?;
                let scores = rows.matmul(&v[a].unsqueeze(2)?)?.squeeze(2)?;
                // A network's own scores leave the anchor's own row out.
                let from = usize::from(a == other);
                scores.narrow(1, from, columns - from)? / config.temperature
            };
            mutual_of_candle(&config, score, |s, own| {
                let columns = s.dim(1)?;
                contrast(s, &first(columns, if own { 1 } else { 2 }), None)
            })
        },
    );
}

fn queued(queue: &Tensor, own: &Tensor, queries: &Tensor, temperature: f64) -> Result<Tensor> {
    let positive = (queries * own)?.sum_keepdim(1)?;
    Tensor::cat(&[&positive, &queries.matmul(&queue.t()?)?], 1)? / temperature
}

fn mutual_queue(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (b, n, d) = (256, 65_536, 128);
    let config = MutualContrastConfig::momentum_queue();
    let (q, k) = (tracked(2, b, d), [unit(b, d, 8), unit(b, d, 9)]);
    let mut method = MutualQueue::new(config, 2, (n, b, d), &CPU).unwrap();
    method.restore(&full(method.state().unwrap(), 2, (n + b, d))).unwrap();
    // The batch takes the first slots, whatever was in them.
    let queues = [20, 21].map(|seed| unit(n + b, d, seed).narrow(0, b, n).unwrap().contiguous().unwrap());
    let state = method.state().unwrap();
    both(
        group,
        "mutual, queue 256 x 65536",
        || {
            method.restore(&state).unwrap();
            method.terms(&q, &k).unwrap().total
        },
        || {
            let score = |a: usize, b: usize| queued(&queues[b], &k[b], &q[a], config.temperature);
            mutual_of_candle(&config, score, |s, _| contrast(s, &first(n + 1, 1), None))
        },
    );
}

fn multimodal(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (b, n, d, words) = (512, 65_536, 128, 32);
    let config = MultimodalConfig::default();
    let (q, k) = (tracked(5, b, d), (5..10).map(|seed| unit(b, d, seed)).collect::<Vec<_>>());
    // Five tags of 1,024 an image.
    let sets = |rows: usize, seed: u64| {
        let mut sets = vec![0u32; rows * words];
        for (at, tag) in data::labels(rows * 5, 1024, seed).into_iter().enumerate() {
            sets[at / 5 * words + tag as usize / 32] |= 1 << (tag % 32);
        }
        Tensor::from_vec(sets, (rows, words), &CPU).unwrap()
    };
    let hot = |sets: &Tensor| {
        let bits: Vec<f32> = sets
            .flatten_all()
            .unwrap()
            .to_vec1::<u32>()
            .unwrap()
            .into_iter()
            .flat_map(|word| (0..32).map(move |bit| (word >> bit & 1) as f32))
            .collect();
        Tensor::from_vec(bits, (sets.dim(0).unwrap(), words * 32), &CPU).unwrap()
    };
    let (own_tags, held_tags) = (sets(b, 1), sets(n + b, 2));
    let mut method = Multimodal::new(config, (n, b, d), words, &CPU).unwrap();
    let mut state = full(method.state().unwrap(), 5, (n + b, d));
    state.insert("queue.tags".into(), held_tags.clone());
    let queues: Vec<Tensor> =
        (20..25).map(|seed| unit(n + b, d, seed).narrow(0, b, n).unwrap().contiguous().unwrap()).collect();
    let hot_own = hot(&own_tags);
    let hot_queue = Tensor::cat(&[&hot_own, &hot(&held_tags.narrow(0, b, n).unwrap())], 0).unwrap();
    fn streams(x: &[Tensor]) -> Streams<'_> {
        Streams { image: &x[0], tag: &x[1], caption: &x[2], image_to_caption: &x[3], caption_to_image: &x[4] }
    }
    let weights = [1.0, 1.0, 1.0, 1.0, config.caption_to_image.weight];
    both(
        group,
        "multimodal, 512 x 65536",
        || {
            method.restore(&state).unwrap();
            method.terms(&streams(&q), &streams(&k), &own_tags).unwrap().total
        },
        || {
            let mut total = Tensor::zeros((), DType::F32, &CPU)?;
            for stream in 0..5 {
                let tau = 0.07;
                let loss = if stream == 1 {
                    let keys = Tensor::cat(&[&k[1], &queues[1]], 0)?;
                    let positive = hot_own.matmul(&hot_queue.t()?)?.gt(0.0)?.to_dtype(DType::F32)?;
                    let mask = positive.broadcast_div(&positive.sum_keepdim(1)?)?;
                    contrast(&(q[1].matmul(&keys.t()?)? / tau)?, &mask, None)?
                } else {
                    let scores = queued(&queues[stream], &k[stream], &q[stream], tau)?;
                    contrast(&scores, &first(n + 1, 1), None)?
                };
                total = (total + (loss * weights[stream])?)?;
            }
            Ok(total)
        },
    );
}

fn video_speech(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (b, d) = (256, 512);
    let v = tracked(2, b, d);
    let scan: Vec<u32> = (0..b as u32).map(|i| i / 8).collect();
    let time: Vec<f32> = (0..b).map(|i| (i % 8) as f32 * 0.5).collect();
    let config = VideoSpeechConfig::default();
    let method = VideoSpeech::new(config).unwrap();
    let pace = config.pace(3.0);
    // The diagonal is that of every batch; the weights of a scan's clips are not.
    let own = Tensor::eye(b, DType::F32, &CPU).unwrap();
    let (scans, times) = (Tensor::new(scan, &CPU).unwrap(), Tensor::new(time, &CPU).unwrap());
    both(
        group,
        "video speech, 256 x 512",
        || {
            let (video, speech) = (&v[0], &v[1]);
            let batch = VideoSpeechBatch { video, speech, scans: &scans, times: &times, epoch: 3.0 };
            method.terms(&batch, None).unwrap().total
        },
        || {
            let scores = (v[0].matmul(&v[1].t()?)? / 0.1)?;
            let affinity = times.unsqueeze(1)?.broadcast_sub(&times.unsqueeze(0)?)?.abs()?.neg()?.exp()?;
            let weights = affinity.affine(-1.0 / pace, 1.0)?.maximum(0.0)?;
            let others = (same(&scans)?.to_dtype(DType::F32)? - &own)?.ne(0f32)?;
            let bias = others.where_cond(&weights.log()?, &weights.zeros_like()?)?;
            contrast(&scores, &own, Some(&bias))? + contrast(&scores.t()?.contiguous()?, &own, Some(&bias))?
        },
    );
}

fn cvrl(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (n, d) = (1024, 128);
    let h = tracked(2, n, d);
    let config = CvrlConfig::default();
    let method = Cvrl::new(config).unwrap();
    let own: Vec<f32> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
    let own = Tensor::from_vec(own, (n, n), &CPU).unwrap();
    let positive = own.pad_with_zeros(1, 0, n).unwrap();
    // As published: 10⁹ is subtracted from the scores of a clip with itself.
    let itself = (own * 1e9).unwrap();
    let panel = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let across = (a.matmul(&b.t()?)? / config.temperature)?;
        let within = ((a.matmul(&a.t()?)? / config.temperature)? - &itself)?;
        contrast(&Tensor::cat(&[across, within], 1)?, &positive, None)
    };
    both(
        group,
        "cvrl, 1024 x 128",
        || method.terms(&h[0], &h[1]).unwrap().total,
        || panel(&h[0], &h[1])? + panel(&h[1], &h[0])?,
    );
}

/// The score of ContraCAM with its gradient, in a late round, and a round's map with the next round's images.
fn object_aware(group: &mut BenchmarkGroup<'_, WallTime>) {
    let (b, rounds, d) = (256, 10, 128);
    let x = tracked(1, b, d).remove(0);
    let keys = unit(b * rounds, d, 7);
    let method = ContraCam::new(ContraCamConfig::default()).unwrap();
    // −∞ for the keys of the image itself.
    let own: Vec<f32> = (0..b * b * rounds)
        .map(|at| if at / (b * rounds) == at % b { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let own = Tensor::from_vec(own, (b, b * rounds), &CPU).unwrap();
    both(
        group,
        "contracam, score of 256 images in round 10",
        || method.score(&x, &keys).unwrap().sum_all().unwrap(),
        || {
            let scores = (x.matmul(&keys.t()?)? + &own)?;
            let shift = scores.detach().max_keepdim(1)?;
            let sums = (scores.broadcast_sub(&shift)?.exp()?.sum(1)?.log()? + shift.squeeze(1)?)?;
            ((&x * keys.narrow(0, 0, b)?)?.sum(1)? - sums)?.sum_all()
        },
    );

    let (b, k, side, size) = (64, 512, 7, 224);
    let activations = unfused::normal(&[b, k, side, side], 1).unwrap().relu().unwrap();
    let gradients = unfused::normal(&[b, k], 2).unwrap();
    let images = unfused::normal(&[b, 3, size, size], 3).unwrap();
    let color = images.mean((0, 2, 3)).unwrap();
    let axis = unfused::stretching(side, size).unwrap();
    let ours = || -> Result<Tensor> {
        let map = cam(&activations, &gradients, (size, size), false)?;
        Ok(masked_blend(&images, &color, &map)?)
    };
    let candle = || -> Result<Tensor> {
        let map = unfused::cam(&activations, &gradients, (&axis, &axis))?;
        unfused::masked_blend(&images, &color, &map)
    };
    let off = (ours().unwrap() - candle().unwrap()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(off.to_scalar::<f32>().unwrap() < 1e-3, "{off}");
    let name = "contracam, maps of 64 images and the next round's images";
    group.bench_function(format!("consonance, {name}"), |bench| bench.iter(|| black_box(ours().unwrap())));
    group.bench_function(format!("candle, {name}"), |bench| bench.iter(|| black_box(candle().unwrap())));
}

fn benches(c: &mut Criterion) {
    let mut group = c.benchmark_group("systems");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    mutual_batch(&mut group);
    mutual_bank(&mut group);
    mutual_queue(&mut group);
    multimodal(&mut group);
    video_speech(&mut group);
    cvrl(&mut group);
    object_aware(&mut group);
    group.finish();
}

criterion_group!(systems_benches, benches);
criterion_main!(systems_benches);
