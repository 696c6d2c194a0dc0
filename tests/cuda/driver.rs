//! The CUDA executor: errors without a device, memory and launches with one.

use consonance::cuda::{CudaExecutor, Error, Executor, Launch, available, device_count};
use consonance::kernels;
use consonance_testkit::device::{device_or_skip, gpu_is_required};

fn executor() -> Option<CudaExecutor> {
    device_or_skip(CudaExecutor::new(0))
}

fn launch<'a>(family: &'static str, entry: &'a str) -> Launch<'a> {
    Launch { op: "test", family, entry, grid: [1; 3], threads: 32, shared_bytes: 0, params: &[0; 8] }
}

#[test]
fn without_a_device_every_way_in_answers_with_an_error() {
    let Err(error) = available() else { return };
    assert!(!gpu_is_required(), "CONSONANCE_REQUIRE_GPU=1, but {error}");
    let counted = device_count().map(|count| assert_eq!(count, 0));
    let errors = [Some(error), counted.err(), CudaExecutor::new(0).err(), CudaExecutor::new(7).err()];
    for error in errors.into_iter().flatten() {
        assert!(matches!(error, Error::NoDevice { .. }), "{error}");
        assert!(error.to_string().starts_with("no CUDA device: "), "{error}");
    }
    assert!(CudaExecutor::new(0).is_err());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let Some(count) = device_or_skip(available().and_then(|()| device_count())) else { return };
    let error = CudaExecutor::new(count).unwrap_err();
    assert!(error.to_string().contains("CUDA_VISIBLE_DEVICES"), "{error}");
}

#[test]
fn memory_comes_back_as_it_went() {
    let Some(executor) = executor() else { return };
    for bytes in [0usize, 1, 255, 4096, 3 << 20] {
        let content: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 256) as u8).collect();
        let memory = executor.upload("test", &content).unwrap();
        assert_eq!(memory.address() % 256, 0);
        assert_eq!(memory.bytes(), bytes.max(1));
        let mut back = vec![0; bytes];
        executor.download("test", &memory, &mut back).unwrap();
        assert_eq!(back, content);
        let mut longer = vec![0; bytes + 2];
        let error = executor.download("test", &memory, &mut longer).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{error}");
    }
}

#[test]
fn scratch_is_used_again_and_never_twice_at_a_time() {
    let Some(executor) = executor() else { return };
    let first = executor.scratch("test", 1000).unwrap();
    let second = executor.scratch("test", 1000).unwrap();
    assert_ne!(first.address(), second.address());
    let address = first.address();
    drop(first);
    let again = executor.scratch("test", 500_000).unwrap();
    assert_eq!(again.address(), address);
    assert_eq!(again.bytes(), 500_000);
}

#[test]
fn more_memory_than_there_is_is_an_error_that_says_how_much() {
    let Some(executor) = executor() else { return };
    let error = executor.allocate("test", 1 << 50).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { bytes, .. } if bytes == 1 << 50), "{error}");
    // And the executor goes on working.
    assert!(executor.upload("test", &[1, 2, 3]).is_ok());
}

#[test]
fn a_kernel_that_is_not_there_is_an_error_that_says_why() {
    let Some(executor) = executor() else { return };
    // SAFETY: there is no such kernel, so nothing runs.
    let error = unsafe { executor.launch(&launch("no_such_family", "no_such_kernel")) }.unwrap_err();
    assert!(matches!(error, Error::NoKernel { .. }), "{error}");
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
    for family in kernels::families() {
        // SAFETY: as above; the family's module is loaded.
        let error = unsafe { executor.launch(&launch(family, "no_such_kernel")) }.unwrap_err();
        assert!(error.to_string().contains(&format!("kernels/{family}.cu")), "{error}");
    }
}

#[test]
fn limits_are_those_of_a_device_that_the_kernels_can_run_on() {
    let Some(executor) = executor() else { return };
    let limits = executor.limits();
    assert!(limits.multiprocessors >= 1 && limits.multiprocessors < 4096, "{limits:?}");
    assert!(limits.shared_bytes >= 99 << 10, "{limits:?}");
    assert_eq!(limits.grid, i32::MAX as u32);
}

#[test]
fn threads_can_share_an_executor() {
    let Some(executor) = executor() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let executor = &executor;
            scope.spawn(move || {
                for round in 0..50 {
                    let content = [thread, round, 3, 4];
                    let memory = executor.upload("test", &content).unwrap();
                    let mut back = [0; 4];
                    executor.download("test", &memory, &mut back).unwrap();
                    assert_eq!(back, content);
                }
            });
        }
    });
    executor.synchronize("test").unwrap();
    assert!(executor.milliseconds("test", || Ok(())).unwrap() >= 0.0);
}

#[test]
fn the_per_thread_stream_is_refused_on_other_threads() {
    let Some(executor) = executor() else { return };
    let stream = executor.stream().context().per_thread_stream();
    let kept = CudaExecutor::of_thread(&stream).unwrap();
    assert!(std::sync::Arc::ptr_eq(&kept, &CudaExecutor::of_thread(&stream).unwrap()));
    let memory = kept.upload("test", &[5; 64]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let error = kept.synchronize("test").unwrap_err();
            assert!(error.to_string().contains("another thread"), "{error}");
            // Memory may be dropped anywhere.
            drop(memory);
        });
    });
    assert!(kept.synchronize("test").is_ok());
}
