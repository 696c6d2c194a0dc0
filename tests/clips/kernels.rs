//! The same op done by kernels on a simulated device, against the CPU backend.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor};
use consonance::{augment_clips, with_kernels_on};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder};

use super::{clips, options, parameters, values};

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let folder = kernel_folder();
    let library = Library::compile(&[folder.join("clips.cu")], &[folder.join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

#[test]
fn kernels_augment_as_the_cpu_does() {
    if skipped_without_compiler() {
        return;
    }
    for (dtype, most) in [(DType::F32, 3e-5), (DType::F16, 2e-3), (DType::BF16, 1e-2)] {
        let x = clips(dtype);
        // Near the threshold both sides may be right: without the solarization.
        let mut parameters = parameters();
        parameters[0].solarize = None;
        let run = |x: &Tensor| augment_clips(x, &parameters, &options()).unwrap();
        let expected = run(&x);
        let executor = Arc::new(Simt::new(LIBRARY.clone(), 4, 7));
        let got = with_kernels_on(executor.clone(), || run(&x));
        assert_eq!((got.dims(), got.dtype()), (expected.dims(), dtype));
        for (got, expected) in values(&got).iter().zip(values(&expected)) {
            assert!((got - expected).abs() <= most, "{got}, expected {expected}");
        }
        let steps: Vec<String> = executor.launched().into_iter().collect();
        assert_eq!(steps.len(), 5, "{steps:?}");
        let bad = (&x * 2.0).unwrap();
        let text = with_kernels_on(executor, || augment_clips(&bad, &parameters, &options()).unwrap_err());
        assert!(text.to_string().contains("clip 0, of which a pixel is NaN or outside"), "{text}");
    }
}
