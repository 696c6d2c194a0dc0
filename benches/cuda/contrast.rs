//! The contrastive loss on a GPU, by its own clock: milliseconds, TFLOP/s of useful work, the share of what the device does
//! when it only multiplies, and memory beyond the inputs.
//!
//! `cargo bench --features cuda --bench cuda -- contrast`. Positives by label, with 1,000 labels. Useful work is 2·B·N·D operations for the
//! loss, twice that with the queries' gradient, four times with the keys'; for the symmetric form once for the losses of both
//! directions and five times with both sides' gradients; f32 is multiplied as three products of its parts, which do not
//! count. Before it a table of floors: what each pass multiplies and copies by docs/contrast.md, and the milliseconds that
//! this takes at the least at the device's ceilings. With `candle-cuda` the same loss in Candle's own ops runs beside, with its matrices, and the
//! product alone, to which the share refers.

use super::device::{Ceilings, Metered, OP, median, percent, record, rows};
use consonance::cuda::contrast::{
    Pairs, Problem, Rule, Symmetric, SymmetricSide, key_gradients, losses, symmetric_gradient,
    symmetric_losses,
};
use consonance::cuda::{CudaExecutor, DType, Executor, Matrix, Result, Words, segments};
use consonance_cpu::contrast::Options;
use consonance_testkit::data;
use consonance_testkit::device::{device_or_skip, shapes_are_small};
use criterion::{Criterion, Throughput};

const LABELS: u32 = 1000;
const TAU: f32 = 0.07;

/// Queries, keys, dimensions.
const SHAPES: [[usize; 3]; 6] = [
    [8192, 65_536, 128],
    [8192, 65_536, 256],
    [8192, 65_536, 512],
    [8192, 65_536, 768],
    [8192, 1_000_000, 512],
    [65_536, 65_536, 256],
];

/// What is computed, and how often 2·B·N·D operations are of use for it.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Loss,
    Queries,
    Keys,
    BothWays,
    BothSides,
}

impl Pass {
    const ALL: [(Self, &'static str, f64); 5] = [
        (Self::Loss, "loss", 1.0),
        (Self::Queries, "queries", 2.0),
        (Self::Keys, "queries and keys", 4.0),
        (Self::BothWays, "both ways", 1.0),
        (Self::BothSides, "both ways and sides", 5.0),
    ];
}

/// Both directions, and ones for each.
type Given<'a> = (Symmetric<'a>, [Words<'a>; 2]);

fn run(executor: &dyn Executor, (problem, upstream): &Given<'_>, pass: Pass) -> Result<()> {
    let both_sides = pass == Pass::BothSides;
    if both_sides || pass == Pass::BothWays {
        let found = symmetric_losses(executor, problem, both_sides)?;
        for side in [SymmetricSide::X, SymmetricSide::Y].into_iter().filter(|_| both_sides) {
            drop(symmetric_gradient(executor, problem, &found, *upstream, side)?);
        }
        return Ok(());
    }
    let found = losses(executor, &problem.rows, pass != Pass::Loss)?;
    if pass == Pass::Keys {
        drop(key_gradients(executor, &problem.rows, &found, upstream[0])?);
    }
    Ok(())
}

/// What docs/contrast.md, "On a GPU", says of each pass: products of 2·B·N·D operations, f32's three for each, and elements
/// copied in units of ⌈B/64⌉ ⌈N/64⌉ D.
fn floors(executor: &CudaExecutor) {
    let ceilings = Ceilings::of(executor);
    let tflops = ceilings
        .tflops
        .map_or("unknown".to_owned(), |tflops| format!("{tflops:.0} TFLOP/s of 16-bit products"));
    println!("\nCeilings: {tflops}, {:.2} TB/s of memory, as copied.", ceilings.bytes / 1e12);
    println!(
        "\n| pass | products | ms at least | GiB copied to multiprocessors | GiB of both sides from memory | ms at least |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for [b, n, dim] in SHAPES {
        for dtype in [DType::BF16, DType::F32] {
            let (times, most) = if dtype == DType::F32 { (3, 2) } else { (1, 4) };
            let groups = dim.div_ceil(128).next_power_of_two().min(most);
            let parts = dim.div_ceil(128 * groups);
            let (forward, both) = ((1, 128), (1 + parts, 128 * parts + 64));
            for (pass, passes) in [
                ("loss", vec![forward]),
                ("queries", vec![both]),
                ("queries and keys", vec![both; 2]),
                ("both ways", vec![forward]),
                ("both ways and sides", vec![forward, both, both]),
            ] {
                let products = passes.iter().map(|it| it.0 * times).sum::<usize>();
                let work = (products * 2 * b * n) as f64 * dim as f64;
                let of_products =
                    ceilings.tflops.map_or("–".to_owned(), |tflops| format!("{:.3}", work / tflops / 1e9));
                let tiles = (b.div_ceil(64) * n.div_ceil(64) * dim * dtype.bytes()) as f64;
                let copied = passes.iter().map(|it| it.1).sum::<usize>() as f64 * tiles;
                let keys = (passes.len() * (b + n) * dim * dtype.bytes()) as f64;
                let gib = f64::from(1 << 30);
                println!(
                    "| {}/{b}x{n}x{dim}/{pass} | {products} | {of_products} | {:.2} | {:.3} | {:.3} |",
                    dtype.suffix(),
                    copied / gib,
                    keys / gib,
                    keys / ceilings.bytes * 1e3,
                );
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
    floors(&executor);
    println!("\n| contrast | ms | TFLOP/s | of multiplying | MiB beyond inputs |\n|---|---:|---:|---:|---:|");
    for [b, n, dim] in SHAPES {
        let (b, n) = if shapes_are_small() { (b.min(128), n.min(2048)) } else { (b, n) };
        for dtype in [DType::BF16, DType::F32] {
            // Normal rows over √D are nearly unit vectors; the temperature takes the rest.
            let (left, right) = (rows(&executor, dtype, b, dim, 1), rows(&executor, dtype, n, dim, 2));
            let upload = |words: &[u32]| executor.upload(OP, bytemuck::cast_slice(words)).unwrap();
            let (query_labels, key_labels) =
                (upload(&data::labels(b, LABELS, 3)), upload(&data::labels(n, LABELS, 4)));
            let temperature = upload(&[(TAU * dim as f32).to_bits()]);
            let ones = upload(&vec![1f32.to_bits(); b.max(n)]);
            let words = |memory, len| Words::new(OP, "words", memory, len).unwrap();
            let side = |memory, labels, rows| {
                let matrix = Matrix::new(OP, "rows", memory, dtype, 0, [rows, dim, dim]).unwrap();
                (matrix, words(labels, rows), segments::sort(&executor, words(labels, rows)).unwrap())
            };
            let (x, y) = (side(&left, &query_labels, b), side(&right, &key_labels, n));
            let sides = [&x, &y];
            let direction = |queries: usize| {
                let (queries, keys) = (sides[queries], sides[1 - queries]);
                Problem {
                    queries: queries.0,
                    keys: keys.0,
                    temperatures: words(&temperature, 1),
                    pairs: Pairs::new(Rule::Labels { queries: queries.1, keys: keys.1, key_order: &keys.2 }),
                    options: Options::default(),
                }
            };
            let problem = Symmetric { rows: direction(0), columns: direction(1) };
            let given = (problem, [words(&ones, b), words(&ones, n)]);
            for (pass, of, useful) in Pass::ALL {
                let metered = Metered::new(&executor);
                run(&metered, &given, pass).unwrap();
                let once = || {
                    let timed = executor.milliseconds(OP, || run(&executor, &given, pass));
                    f64::from(timed.unwrap())
                };
                let (ms, work) = (median(once), useful * 2.0 * (b * n) as f64 * dim as f64);
                let tflops = work / ms / 1e9;
                let name = format!("{}/{b}x{n}x{dim}/{of}", dtype.suffix());
                let share = percent(multiplying.map(|most| tflops / most));
                println!("| {name} | {ms:.3} | {tflops:.1} | {share} | {:.1} |", metered.mebibytes());
                record(criterion, "contrast", &name, Throughput::Elements(work as u64), once);
            }
        }
    }
}

/// The same loss in Candle's ops, forward and backward for the queries, with all its matrices; and the product alone. Gives
/// the most TFLOP/s of the product.
#[cfg(feature = "candle-cuda")]
fn unfused() -> Option<f64> {
    use candle_core::{D, DType, Device, Tensor, Var};
    let device = Device::new_cuda(0).unwrap();
    let labels = |rows, seed| Tensor::new(&data::labels(rows, LABELS, seed)[..], &device).unwrap();
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
        "\n| Candle's ops, bf16 | ms of the loss and the queries' gradient | ms of the product | TFLOP/s |"
    );
    println!("|---|---:|---:|---:|");
    // Beyond these sizes its matrices do not fit.
    for [b, n, dim] in SHAPES.into_iter().filter(|[b, n, _]| b * n <= 1 << 30 && !shapes_are_small()) {
        let rows = |rows| {
            let normal = Tensor::randn(0f32, 1., (rows, dim), &device).unwrap();
            normal.to_dtype(DType::BF16).unwrap()
        };
        let (queries, keys) = (Var::from_tensor(&rows(b)).unwrap(), rows(n));
        let (of_queries, of_keys) = (labels(b, 3).unsqueeze(1).unwrap(), labels(n, 4).unsqueeze(0).unwrap());
        let positive = of_queries.broadcast_eq(&of_keys).unwrap().to_dtype(DType::F32).unwrap();
        let weights =
            positive.broadcast_div(&positive.sum_keepdim(1).unwrap().maximum(1f32).unwrap()).unwrap();
        let product = || drop(queries.matmul(&keys.t().unwrap()).unwrap());
        let loss = || {
            let scores = queries.matmul(&keys.t().unwrap()).unwrap().to_dtype(DType::F32).unwrap();
            let scores = (scores / f64::from(TAU * dim as f32)).unwrap();
            let lse = scores.log_sum_exp(D::Minus1).unwrap();
            let along = (&weights * scores).unwrap().sum(1).unwrap();
            drop((lse - along).unwrap().mean_all().unwrap().backward().unwrap());
        };
        let (all, alone) = (timed(&loss), timed(&product));
        let tflops = 2.0 * (b * n) as f64 * dim as f64 / alone / 1e9;
        println!("| {b}x{n}x{dim} | {all:.3} | {alone:.3} | {tflops:.1} |");
        most = most.max(tflops);
    }
    (most > 0.0).then_some(most)
}
