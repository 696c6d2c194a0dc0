//! What the benches of a CUDA device share.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use consonance::cuda::{CudaExecutor, DType, Executor, Launch, Limits, Memory, Result};
use consonance_testkit::data;
use criterion::{Criterion, Throughput};
use half::{bf16, f16};
use rayon::prelude::*;

pub(crate) const OP: &str = "bench";

/// Standard normal rows in storage of a type.
pub(crate) fn rows(executor: &CudaExecutor, dtype: DType, rows: usize, dim: usize, seed: u64) -> Memory {
    let chunks: Vec<Vec<u8>> = (0..rows)
        .into_par_iter()
        .step_by(4096)
        .map(|first| {
            let values = data::normal(4096.min(rows - first), dim, seed + first as u64);
            match dtype {
                DType::F32 => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
                DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_ne_bytes()).collect(),
                DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_ne_bytes()).collect(),
            }
        })
        .collect();
    executor.upload(OP, &chunks.concat()).unwrap()
}

/// Adds up what is allocated.
pub(crate) struct Metered<'a>(&'a CudaExecutor, AtomicUsize);

impl<'a> Metered<'a> {
    pub(crate) fn new(executor: &'a CudaExecutor) -> Self {
        Self(executor, AtomicUsize::new(0))
    }

    /// MiB allocated so far.
    pub(crate) fn mebibytes(&self) -> f64 {
        self.1.load(Relaxed) as f64 / f64::from(1 << 20)
    }

    fn add(&self, memory: Result<Memory>) -> Result<Memory> {
        self.1.fetch_add(memory.as_ref().map_or(0, Memory::bytes), Relaxed);
        memory
    }
}

// SAFETY: as the executor within.
unsafe impl Executor for Metered<'_> {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn allocate(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        self.add(self.0.allocate(op, bytes))
    }

    fn scratch(&self, op: &'static str, bytes: usize) -> Result<Memory> {
        self.add(self.0.scratch(op, bytes))
    }

    fn upload(&self, op: &'static str, bytes: &[u8]) -> Result<Memory> {
        self.add(self.0.upload(op, bytes))
    }

    fn download(&self, op: &'static str, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        self.0.download(op, memory, bytes)
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.0.launch(launch) }
    }
}

/// What a device can do at most.
pub(crate) struct Ceilings {
    /// Operations of its tensor cores on dense 16-bit numbers with f32 sums: multiprocessors, clock, and operations of
    /// the architecture a clock, where they are known.
    pub(crate) tflops: Option<f64>,
    /// Bytes of its memory that it copies in a second, as measured, those read and those written.
    pub(crate) bytes: f64,
}

impl Ceilings {
    pub(crate) fn of(executor: &CudaExecutor) -> Self {
        use cudarc::driver::sys::CUdevice_attribute as A;
        let context = executor.stream().context();
        let attribute = |which| f64::from(context.attribute(which).unwrap());
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        // By the white papers of these architectures.
        let of_a_clock = match (major as u32, minor as u32) {
            (8, 0) => Some(2048.0),
            (8, 6 | 9) => Some(1024.0),
            (9, 0) => Some(4096.0),
            _ => None,
        };
        let multiprocessors = f64::from(executor.limits().multiprocessors);
        let clock = attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE) * 1e3;
        let copied = 1 << 28;
        let ms = f64::from(executor.copy_milliseconds(OP, copied).unwrap());
        let tflops = of_a_clock.map(|operations| multiprocessors * clock * operations / 1e12);
        Self { tflops, bytes: 2.0 * copied as f64 / ms * 1e3 }
    }
}

/// The middle of ten times of `once`, in milliseconds, after two that do not count.
pub(crate) fn median(once: impl Fn() -> f64) -> f64 {
    let mut times: Vec<f64> = (0..12).map(|_| once()).skip(2).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Hands the milliseconds of `once` to Criterion, under the family's name: a word, as the report takes it.
pub(crate) fn record(
    criterion: &mut Criterion,
    family: &str,
    name: &str,
    throughput: Throughput,
    once: impl Fn() -> f64,
) {
    let mut group = criterion.benchmark_group(format!("{family}-gpu"));
    group.sample_size(10).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300));
    group.throughput(throughput);
    group.bench_function(name.replace(", ", "-").replace(' ', "-"), |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| Duration::from_secs_f64(once() / 1e3)).sum());
    });
    group.finish();
}

/// A share in percent.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or("–".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}
