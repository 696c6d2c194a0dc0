//! No published system takes memory of the size queries × keys: in its own binary, as it counts every allocation.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use candle_core::{Device, Tensor, Var};
use consonance_methods::{
    ContraCam, ContraCamConfig, Cvrl, CvrlConfig, InterModal, Multimodal, MultimodalConfig, MutualBank,
    MutualBatch, MutualContrastConfig, MutualQueue, State, Streams, Terms, VideoSpeech, VideoSpeechBatch,
    VideoSpeechConfig, VideoSpeechForm,
};
use consonance_testkit::allocation::{Counting, peak_extra};
use consonance_testkit::data;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CPU: Device = Device::Cpu;

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &CPU).unwrap()
}

fn tracked(count: usize, rows: usize, cols: usize) -> Vec<Tensor> {
    (0..count as u64).map(|i| Var::from_tensor(&matrix(rows, cols, i)).unwrap().into_inner()).collect()
}

/// A saved state with full queues in the place of empty ones.
fn full(mut state: State, streams: u64, (slots, d): (usize, usize)) -> State {
    for stream in 0..streams {
        state.insert(format!("queue.{stream}"), matrix(slots, d, 20 + stream));
    }
    state.insert("queue.len".into(), Tensor::new(&[slots as u32, 0], &CPU).unwrap());
    state
}

/// Runs forward and backward; the peak must stay below `vectors` numbers a query and key, and what each thread works in, and
/// that far below the matrix.
fn check(name: &str, (b, n, d): (usize, usize, usize), terms: impl FnOnce() -> Terms) {
    let (_, peak) = peak_extra(|| terms().total.backward().unwrap());
    // A thread of the tiled passes: 256 rows of scores, 512 keys, and their sums.
    let threads = rayon::current_num_threads();
    let bound = 64 * b * d * 4 + 64 * n + threads * (3 << 20);
    let full = b * n * 4;
    println!("{name}: {peak} bytes of {bound}, a matrix {full}");
    assert!(peak <= bound && 2 * bound < full, "{name}: {peak} bytes of {bound}, a matrix {full}");
}

/// One test: allocations of another thread would be counted, too.
#[test]
fn every_system_stays_far_below_its_matrices() {
    // The batch: keys are tracked, too.
    let (b, d) = (6144, 16);
    let config = MutualContrastConfig::default();
    let labels = Tensor::arange(0u32, b as u32, &CPU).unwrap().affine(0.5, 0.0).unwrap();
    let v = tracked(2, b, d);
    let method = MutualBatch::new(config, 2).unwrap();
    check("mutual, batch", (b, b, d), || method.terms(&v, &labels).unwrap());

    let (b, n, d) = (512, 32_768, 16);
    let (q, k) = (tracked(2, b, d), [matrix(b, d, 8), matrix(b, d, 9)]);
    let mut method = MutualQueue::new(MutualContrastConfig::momentum_queue(), 2, (n, b, d), &CPU).unwrap();
    method.restore(&full(method.state().unwrap(), 2, (n + b, d))).unwrap();
    check("mutual, queue", (b, n, d), || method.terms(&q, &k).unwrap());

    let words = 2;
    let tags = Tensor::from_vec(
        data::labels(b * words, 1 << 16, 3).iter().map(|x| x | 1 << (x % 32)).collect::<Vec<u32>>(),
        (b, words),
        &CPU,
    )
    .unwrap();
    let (q, k) = (tracked(5, b, d), tracked(5, b, d));
    fn streams(x: &[Tensor]) -> Streams<'_> {
        Streams { image: &x[0], tag: &x[1], caption: &x[2], image_to_caption: &x[3], caption_to_image: &x[4] }
    }
    for inter_modal in [InterModal::Softmax, InterModal::Hinge { margin: 0.2 }] {
        let config = MultimodalConfig { inter_modal, ..MultimodalConfig::default() };
        let mut method = Multimodal::new(config, (n, b, d), words, &CPU).unwrap();
        method.restore(&full(method.state().unwrap(), 5, (n + b, d))).unwrap();
        check(&format!("multimodal, {inter_modal:?}"), (b, n, d), || {
            method.terms(&streams(&q), &streams(&k), &tags).unwrap()
        });
    }

    let (b, d) = (6144, 16);
    let v = tracked(2, b, d);
    let scans = Tensor::arange(0u32, b as u32, &CPU).unwrap().affine(0.125, 0.0).unwrap();
    let times = Tensor::arange(0f32, b as f32, &CPU).unwrap();
    for form in [
        VideoSpeechForm::Softmax { temperature: 0.1, symmetric: true },
        VideoSpeechForm::Margin { margin: 1.0 },
    ] {
        let method = VideoSpeech::new(VideoSpeechConfig { form, ..Default::default() }).unwrap();
        let batch =
            VideoSpeechBatch { video: &v[0], speech: &v[1], scans: &scans, times: &times, epoch: 2.0 };
        let terms = || method.terms(&batch, None).unwrap();
        match form {
            VideoSpeechForm::Softmax { .. } => check("video speech, softmax", (b, b, d), terms),
            VideoSpeechForm::Margin { .. } => {
                // A tile of 64 rows in f64, some fifteen of them at once.
                let (_, peak) = peak_extra(|| terms().total.backward().unwrap());
                let bound = 16 * 64 * b * 8 + 64 * b * d * 8;
                println!("video speech, margin: {peak} bytes of {bound}, a matrix {}", b * b * 8);
                assert!(peak <= bound && 2 * bound < b * b * 8);
            }
        }
    }

    // Both panels are one contrast of 2N rows with themselves.
    let (method, h) = (Cvrl::new(CvrlConfig::default()).unwrap(), tracked(2, b / 2, d));
    check("cvrl", (b, b, d), || method.terms(&h[0], &h[1]).unwrap());
    // The score of ContraCAM: ten rounds of a large batch, no matrix of the batch against them.
    let (b, rounds, d) = (2048, 10, 16);
    let (x, keys) = (tracked(1, b, d), matrix(rounds * b, d, 6));
    let method = ContraCam::new(ContraCamConfig::default()).unwrap();
    let score = || method.score(&x[0], &keys).unwrap().sum_all().unwrap();
    check("contracam", (b, rounds * b, d), || Terms { total: score(), parts: Vec::new() });

    // Lists of bank rows: no copy of the rows.
    let (b, held, columns, d) = (64, 20_000, 8194, 64);
    let method = MutualBank::new(MutualContrastConfig::memory_bank(), 2, (held, d), 1, 0.5, 1, &CPU).unwrap();
    let v = tracked(2, b, d);
    let lists = Tensor::from_vec(data::labels(b * columns, held as u32, 4), (b, columns), &CPU).unwrap();
    let (_, peak) = peak_extra(|| method.terms(&v, &lists).unwrap().total.backward().unwrap());
    let (bound, copied) = (4 * b * columns * 4 + 64 * b * d * 4 + (4 << 20), b * columns * d * 4);
    println!("mutual, bank: {peak} bytes of {bound}, the listed rows {copied}");
    assert!(peak <= bound && 2 * bound < copied);
}
