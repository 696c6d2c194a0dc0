//! Soft assignment, soft centroids and credibility on a GPU, by its own clock: milliseconds, TFLOP/s of useful work, the share
//! of what the device does when it only multiplies, and memory beyond the inputs.
//!
//! `cargo bench --features cuda --bench cuda -- soft_assignment`. Useful work is 2·N·K·D operations, twice that for the soft update;
//! products of split rows and of parts of f32 do not count. With `candle-cuda` the same entropy and update in Candle's own ops
//! run beside, with their N × K matrices, and the product alone, to which the share refers.

use super::device::{Metered, OP, median, percent, record, rows};
use consonance::cuda::credibility::credibility;
use consonance::cuda::soft_assignment::{soft_assignment, soft_centroids};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Result};
use consonance_cpu::clusters::Geometry;
use consonance_cpu::credibility::Options as CredibilityOptions;
use consonance_cpu::soft_assignment::{Affinity, Options};
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

const RATE: f64 = 8.0;

/// Points, centroids, dimensions.
const SHAPES: [[usize; 3]; 4] =
    [[65_536, 8192, 512], [65_536, 8192, 128], [1_000_000, 8192, 512], [1_000_000, 1000, 512]];

/// A pass, and how often 2·N·K·D operations are of use for it.
#[derive(Clone, Copy)]
enum Pass {
    All,
    Nearest,
    Centroids,
    Credibility,
}

impl Pass {
    const ALL: [(Self, &'static str, f64); 4] = [
        (Self::All, "entropy over all", 1.0),
        (Self::Nearest, "the 16 nearest", 1.0),
        (Self::Centroids, "soft centroids", 2.0),
        (Self::Credibility, "credibility", 1.0),
    ];

    fn run(
        self,
        executor: &dyn Executor,
        points: &Matrix<'_>,
        centroids: &Matrix<'_>,
        labels: &[u32],
    ) -> Result<()> {
        let options = |nearest| Options {
            geometry: Geometry::Spherical,
            affinity: Affinity::Exponential { rate: RATE },
            nearest,
        };
        match self {
            Self::All => soft_assignment(executor, points, centroids, &options(None)).map(drop),
            Self::Nearest => soft_assignment(executor, points, centroids, &options(Some(16))).map(drop),
            Self::Centroids => soft_centroids(executor, points, centroids, &options(None)).map(drop),
            Self::Credibility => {
                credibility(executor, points, labels, &CredibilityOptions::default()).map(drop)
            }
        }
    }
}

pub(super) fn bench(criterion: &mut Criterion) {
    let Some(executor) = device_or_skip(CudaExecutor::new(0)) else { return };
    #[cfg(feature = "candle-cuda")]
    let multiplying = unfused();
    #[cfg(not(feature = "candle-cuda"))]
    let multiplying: Option<f64> = None;
    println!(
        "\n| soft assignment | ms | TFLOP/s | of multiplying | MiB beyond inputs |\n|---|---:|---:|---:|---:|"
    );
    for [n, k, dim] in SHAPES {
        let (n, k) = if shapes_are_small() { (n.min(500), k.min(130)) } else { (n, k) };
        for dtype in [DType::BF16, DType::F32] {
            let (left, right) = (rows(&executor, dtype, n, dim, 1), rows(&executor, dtype, k, dim, 2));
            let points = Matrix::new(OP, "points", &left, dtype, 0, [n, dim, dim]).unwrap();
            let centroids = Matrix::new(OP, "centroids", &right, dtype, 0, [k, dim, dim]).unwrap();
            // As many classes as centroids, so that the work is the same.
            let labels = data::labels(n, k as u32, 3);
            for (pass, of, useful) in Pass::ALL {
                let metered = Metered::new(&executor);
                pass.run(&metered, &points, &centroids, &labels).unwrap();
                let once = || {
                    let run = || pass.run(&executor, &points, &centroids, &labels);
                    f64::from(executor.milliseconds(OP, run).unwrap())
                };
                let (ms, work) = (median(once), useful * 2.0 * (n * k) as f64 * dim as f64);
                let tflops = work / ms / 1e9;
                let name = format!("{}/{n}x{k}x{dim}/{of}", dtype.suffix());
                let share = percent(multiplying.map(|most| tflops / most));
                println!("| {name} | {ms:.3} | {tflops:.1} | {share} | {:.1} |", metered.mebibytes());
                record(criterion, "soft_assignment", &name, Throughput::Elements(work as u64), once);
            }
        }
    }
}

/// The same in Candle's ops, with all their matrices: entropy and best centroid, and the update; and the product alone. Gives
/// the most TFLOP/s of the product.
#[cfg(feature = "candle-cuda")]
fn unfused() -> Option<f64> {
    use candle_core::{D, DType, Device, Tensor};
    let device = Device::new_cuda(0).unwrap();
    let timed = |run: &dyn Fn()| {
        median(|| {
            let start = std::time::Instant::now();
            run();
            device.synchronize().unwrap();
            start.elapsed().as_secs_f64() * 1e3
        })
    };
    let mut most = 0.0f64;
    println!(
        "\n| Candle's ops, bf16 | ms of the entropy | ms with the update | ms of the product | TFLOP/s |"
    );
    println!("|---|---:|---:|---:|---:|");
    // Beyond these sizes its matrices do not fit.
    for [n, k, dim] in SHAPES.into_iter().filter(|[n, k, _]| n * k <= 1 << 30 && !shapes_are_small()) {
        let unit_rows = |rows| {
            let normal = Tensor::randn(0f32, 1., (rows, dim), &device).unwrap();
            let norms = normal.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
            normal.broadcast_div(&norms).unwrap().to_dtype(DType::BF16).unwrap()
        };
        let (points, centroids) = (unit_rows(n), unit_rows(k));
        let product = || points.matmul(&centroids.t().unwrap()).unwrap();
        // d² = 2 − 2 ⟨x, c⟩ on unit rows.
        let scores = || {
            let squared = product().to_dtype(DType::F32).unwrap().affine(-2.0, 2.0).unwrap().relu().unwrap();
            (squared.sqrt().unwrap() * -RATE).unwrap()
        };
        let entropy = |scores: &Tensor| {
            let lse = scores.log_sum_exp(D::Minus1).unwrap().unsqueeze(1).unwrap();
            let log_p = scores.broadcast_sub(&lse).unwrap();
            let p = log_p.exp().unwrap();
            let h = (&p * log_p).unwrap().sum(1).unwrap().neg().unwrap();
            drop((h, scores.argmax(1).unwrap(), p.max(1).unwrap()));
            p
        };
        let assign = || drop(entropy(&scores()));
        let update = || {
            let p = entropy(&scores());
            let sums = p.t().unwrap().to_dtype(DType::BF16).unwrap().matmul(&points).unwrap();
            drop(
                sums.to_dtype(DType::F32)
                    .unwrap()
                    .broadcast_div(&p.sum(0).unwrap().unsqueeze(1).unwrap())
                    .unwrap(),
            );
        };
        let (one, both, alone) = (timed(&assign), timed(&update), timed(&|| drop(product())));
        let tflops = 2.0 * (n * k) as f64 * dim as f64 / alone / 1e9;
        println!("| {n}x{k}x{dim} | {one:.3} | {both:.3} | {alone:.3} | {tflops:.1} |");
        most = most.max(tflops);
    }
    (most > 0.0).then_some(most)
}
