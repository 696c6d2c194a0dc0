//! The feature `candle-cuda`: builds, links and starts everywhere, and works on Candle's stream where there is a device.

#![cfg(feature = "candle-cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor, Var};
use consonance::cuda::{CudaExecutor, Executor, available};
use consonance::{
    AffinityMap, AugmentOptions, ClipParameters, ContrastOptions, NeighborsOptions, Normalizer, Pairs,
    Temperature, augment_clips, contrast, neighbors,
};
use consonance_testkit::data;
use consonance_testkit::device::device_or_skip;
use consonance_testkit::suite::between_backends;

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
fn an_op_on_tensors_of_the_device_gives_the_cpus_result() {
    let Some(device) = device_or_skip(DEVICE.clone()) else { return };
    // Whole numbers: every sum is exact on either device.
    let on_cpu =
        |rows, seed| Tensor::from_vec(data::integers(rows, 16, seed), (rows, 16), &Device::Cpu).unwrap();
    let (queries, bank) = (on_cpu(5, 3), on_cpu(40, 4));
    let expected = neighbors(&queries, &bank, &NeighborsOptions::new(3)).unwrap();
    let moved = |x: &Tensor| x.to_device(&device).unwrap();
    let found = neighbors(&moved(&queries), &moved(&bank), &NeighborsOptions::new(3)).unwrap();
    assert_eq!(found.indices.to_vec2::<u32>().unwrap(), expected.indices.to_vec2::<u32>().unwrap());
}

#[test]
fn clips_of_every_type_on_the_device_are_those_of_the_cpu() {
    let Some(device) = device_or_skip(DEVICE.clone()) else { return };
    let pixels: Vec<f32> =
        data::labels(2 * 3 * 3 * 12 * 20, 17, 1).into_iter().map(|v| v as f32 / 16.0).collect();
    let clips = Tensor::from_vec(pixels, (2, 3, 3, 12, 20), &Device::Cpu).unwrap();
    let plain = ClipParameters::plain(12, 20);
    // Halved and flipped: every result is exact.
    let parameters = [plain, ClipParameters { flip: true, ..plain }];
    let run = |clips: &Tensor| augment_clips(clips, &parameters, &AugmentOptions::new(6, 10)).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let clips = clips.to_dtype(dtype).unwrap();
        let (got, expected) = (run(&clips.to_device(&device).unwrap()), run(&clips));
        assert_eq!((got.dims(), got.dtype()), (expected.dims(), dtype));
        let values = |x: &Tensor| {
            let here = x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
            here.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&got), values(&expected), "{dtype:?}");
    }
}

#[test]
fn a_loss_and_its_gradients_on_the_device_are_those_of_the_cpu() {
    let Some(device) = device_or_skip(DEVICE.clone()) else { return };
    let (b, n, dim, tau) = (40, 300, 48, 0.2);
    let unit = |rows, seed, device: &Device| {
        Tensor::from_vec(data::unit(rows, dim, seed), (rows, dim), device).unwrap()
    };
    let labels = |rows, seed, device: &Device| Tensor::new(&data::labels(rows, 9, seed)[..], device).unwrap();
    let found = |device: &Device| {
        let queries = Var::from_tensor(&unit(b, 1, device)).unwrap();
        let keys = Var::from_tensor(&unit(n, 2, device)).unwrap();
        let options = ContrastOptions { normalizer: Normalizer::WeightSum, ..ContrastOptions::default() };
        let near = neighbors(&queries.detach(), &keys.detach(), &NeighborsOptions::new(5)).unwrap();
        let old = (unit(b, 3, device), unit(n, 4, device));
        let all = [
            Pairs::labels(&labels(b, 5, device), &labels(n, 6, device)).affinity(
                &old.0,
                &old.1,
                AffinityMap::Half,
            ),
            Pairs::neighbors(&near.indices, None),
            Pairs::all().affinity(&old.0, &old.1, AffinityMap::Half),
        ];
        all.map(|pairs| {
            let temperature = Temperature::Fixed(tau);
            let loss =
                contrast(queries.as_tensor(), keys.as_tensor(), &temperature, &pairs, &options).unwrap();
            let grads = loss.loss.backward().unwrap();
            let gradients = [&queries, &keys].map(|var| grads.get(var).unwrap().clone());
            (loss.per_row, gradients)
        })
    };
    let values = |tensor: &Tensor| {
        let here = tensor.to_device(&Device::Cpu).unwrap().flatten_all().unwrap();
        here.to_vec1::<f32>().unwrap()
    };
    let close = |got: &Tensor, expected: &Tensor, bound: f64| {
        for (got, expected) in values(got).into_iter().zip(values(expected)) {
            assert!(f64::from((got - expected).abs()) <= bound, "{got} and {expected}, bound {bound:e}");
        }
    };
    let bound = between_backends([n, dim, dim], tau, Some(AffinityMap::Half));
    for (got, expected) in found(&device).iter().zip(&found(&Device::Cpu)) {
        close(&got.0, &expected.0, bound.loss);
        close(&got.1[0], &expected.1[0], bound.gradient / b as f64);
        close(&got.1[1], &expected.1[1], bound.gradient);
    }
}
