//! The feature `candle-cuda`: builds, links and starts everywhere, and works on Candle's stream where there is a device.

#![cfg(feature = "candle-cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::LazyLock;

use candle_core::{Device, Tensor};
use consonance::cuda::{CudaExecutor, Executor, available};
use consonance::{Error, NeighborsOptions, neighbors};
use consonance_testkit::data;
use consonance_testkit::device::device_or_skip;

/// One for all tests: each new device of Candle compiles its kernels again.
static DEVICE: LazyLock<Result<Device, String>> =
    LazyLock::new(|| Device::new_cuda(0).map_err(|error| error.to_string()));

#[test]
fn candle_and_the_executor_agree_on_whether_there_is_a_device() {
    match (&*DEVICE, available()) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(own)) => {
            assert!(!error.is_empty());
            assert!(matches!(own, consonance::cuda::Error::NoDevice { .. }), "{own}");
            assert!(CudaExecutor::new(0).is_err());
            device_or_skip::<()>(Err(own));
        }
        (candle, own) => panic!("candle says {candle:?}, the executor says {own:?}"),
    }
}

#[test]
fn an_executor_on_candles_stream_sees_its_tensors() {
    let Some(device) = device_or_skip(DEVICE.clone()) else { return };
    let stream = device.as_cuda_device().unwrap().cuda_stream();
    let executor = CudaExecutor::of_thread(&stream).unwrap();
    let tensor = Tensor::arange(0u32, 1000, &device).unwrap();
    let (storage, _layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cuda(storage) = &*storage else { panic!("not a CUDA tensor") };
    let slice = storage.as_cuda_slice::<u32>().unwrap();
    let (address, _guard) = {
        use candle_core::cuda_backend::cudarc::driver::DevicePtr;
        slice.device_ptr(&stream)
    };
    // SAFETY: the tensor holds 4,000 bytes there and outlives the view, which owns nothing.
    let memory = unsafe { consonance::cuda::Memory::new(address, 4000, Box::new(())) };
    let mut bytes = vec![0; 4000];
    executor.download("test", &memory, &mut bytes).unwrap();
    for (i, word) in bytes.chunks_exact(4).enumerate() {
        assert_eq!(word, (i as u32).to_le_bytes());
    }
}

#[test]
fn an_op_on_tensors_of_the_device_gives_the_cpus_result_or_says_that_it_cannot() {
    let Some(device) = device_or_skip(DEVICE.clone()) else { return };
    // Whole numbers: every sum is exact on either device.
    let on_cpu =
        |rows, seed| Tensor::from_vec(data::integers(rows, 16, seed), (rows, 16), &Device::Cpu).unwrap();
    let (queries, bank) = (on_cpu(5, 3), on_cpu(40, 4));
    let expected = neighbors(&queries, &bank, &NeighborsOptions::new(3)).unwrap();
    let moved = |x: &Tensor| x.to_device(&device).unwrap();
    match neighbors(&moved(&queries), &moved(&bank), &NeighborsOptions::new(3)) {
        Ok(found) => {
            assert_eq!(found.indices.to_vec2::<u32>().unwrap(), expected.indices.to_vec2::<u32>().unwrap())
        }
        Err(error) => assert!(matches!(error, Error::Device { .. }), "{error}"),
    }
}
