//! The same ops by kernels on a simulated device.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor};
use consonance::{BackgroundsOptions, backgrounds, cam, masked_blend, with_kernels_on};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder};

use super::{TYPES, floats, mask, tensor};

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let folder = kernel_folder();
    let library = Library::compile(&[folder.join("cam.cu")], &[folder.join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

/// Runs `f` with kernels, which are all of this family, or `None` without a compiler.
fn with_kernels<R>(f: impl FnOnce() -> R) -> Option<R> {
    if skipped_without_compiler() {
        return None;
    }
    let executor = Arc::new(Simt::new(LIBRARY.clone(), 4, 7));
    let result = with_kernels_on(executor.clone(), f);
    let launched = executor.launched();
    assert!(!launched.is_empty() && launched.iter().all(|name| name.starts_with("cam_")), "{launched:?}");
    Some(result)
}

/// Whether numbers agree to the rounding of their type.
fn close(a: &Tensor, b: &Tensor) {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    let most = if a.dtype() == DType::F32 { 1e-5 } else { 1e-2 };
    for (a, b) in floats(a).into_iter().zip(floats(b)) {
        assert!((a - b).abs() <= most * a.abs().max(1.0), "{a}, expected {b}");
    }
}

#[test]
fn ops_by_kernels_are_those_of_the_cpu() {
    for dtype in TYPES {
        let stored = |dims: &[usize], seed| tensor(dims, seed).to_dtype(dtype).unwrap();
        // A part of a batch, whose images lie as far apart as they are large.
        let activations = stored(&[4, 5, 3, 4], 1).narrow(0, 1, 2).unwrap();
        let gradients = tensor(&[4, 5], 2).narrow(0, 1, 2).unwrap();
        let (images, m) = (stored(&[2, 3, 4, 6], 3), mask(&[2, 4, 6], 4));
        let run = || {
            let maps = cam(&activations, &gradients, (6, 5), false).unwrap();
            let blends = [&stored(&[3], 5), &stored(&[2, 3], 6), &stored(&[2, 3, 4, 6], 7)]
                .map(|other| masked_blend(&images, other, &m).unwrap());
            let found = backgrounds(&images, &m, &BackgroundsOptions::default().threshold(0.95)).unwrap();
            (maps, blends, found)
        };
        let expected = run();
        let Some(got) = with_kernels(run) else { return };
        close(&got.0, &expected.0);
        got.1.iter().zip(&expected.1).for_each(|(got, expected)| close(got, expected));
        assert_eq!(floats(&got.2.images), floats(&expected.2.images));
        assert_eq!(got.2.images.dtype(), dtype);
        for (a, b) in [(&got.2.rectangles, &expected.2.rectangles), (&got.2.found, &expected.2.found)] {
            assert_eq!((floats(a), a.dtype(), a.dims()), (floats(b), b.dtype(), b.dims()));
        }
    }
}

#[test]
fn errors_by_kernels_are_those_of_the_cpu() {
    let (a, g) = (tensor(&[2, 3, 4, 4], 1), tensor(&[2, 3], 2));
    let (x, m) = (tensor(&[2, 3, 4, 4], 3), mask(&[2, 4, 4], 4));
    let run = || {
        let nan = |x: &Tensor| (x * f64::NAN).unwrap();
        let double = (&m + 0.5).unwrap();
        [
            cam(&nan(&a), &g, (4, 4), false).unwrap_err(),
            cam(&a, &nan(&g), (4, 4), false).unwrap_err(),
            masked_blend(&nan(&x), &x, &m).unwrap_err(),
            masked_blend(&x, &nan(&x), &m).unwrap_err(),
            masked_blend(&x, &x, &double).unwrap_err(),
            backgrounds(&x, &double, &BackgroundsOptions::default()).unwrap_err(),
            backgrounds(&nan(&x), &m, &BackgroundsOptions::default()).unwrap_err(),
        ]
        .map(|error| error.to_string())
    };
    let expected = run();
    let Some(got) = with_kernels(run) else { return };
    assert_eq!(got, expected);
}
