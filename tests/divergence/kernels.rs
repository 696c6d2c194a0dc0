//! The same op done by kernels on a simulated device, against the CPU backend.

use std::sync::{Arc, LazyLock};

use candle_core::{DType, Tensor};
use consonance::{Direction, divergence, with_kernels_on};
use consonance_simt::{Library, skipped_without_compiler};
use consonance_testkit::backend::{Simt, kernel_folder};

use super::{CPU, Case, DIRECTIONS, matrix, wide};

static LIBRARY: LazyLock<Arc<Library>> = LazyLock::new(|| {
    let folder = kernel_folder();
    // Masks are packed by a kernel of the searches.
    let sources = ["divergence.cu", "neighbors.cu"].map(|file| folder.join(file));
    let library = Library::compile(&sources, &[folder.join("include")], &[]);
    Arc::new(library.unwrap_or_else(|error| panic!("{error}")))
});

/// Runs `f` with kernels and says which were launched, or `None` without a compiler.
fn with_kernels<R>(f: impl FnOnce() -> R) -> Option<(R, Vec<String>)> {
    if skipped_without_compiler() {
        return None;
    }
    let executor = Arc::new(Simt::new(LIBRARY.clone(), 4, 7));
    let result = with_kernels_on(executor.clone(), f);
    Some((result, executor.launched().into_iter().collect()))
}

/// Two results within what both bounds allow, and far closer than any mistake.
fn assert_same(a: &Tensor, b: &Tensor, relative: f64) {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
    for (a, b) in wide(a).iter().zip(wide(b)) {
        assert!(*a == b || (a - b).abs() <= relative * b.abs().max(1.0), "{a} and {b}");
    }
}

#[test]
fn divergences_of_kernels_are_those_of_the_cpu() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for direction in DIRECTIONS {
            let stored = |x: Tensor| x.to_dtype(dtype).unwrap();
            let mut case = Case { direction, ..Case::new([7, 80, 20, 9], 1) }.excluding(2);
            // Views: columns read at their place, a transpose that is copied.
            let keys = stored(matrix(82, 33, 5)).narrow(0, 1, 80).unwrap().narrow(1, 4, 20).unwrap();
            case.student = (stored(case.student.0), keys);
            case.teacher = (stored(case.teacher.0), stored(matrix(9, 80, 6)).t().unwrap());
            let run = || case.everything();
            let (expected, queries, keys) = run();
            let Some(((got, of_queries, of_keys), launched)) = with_kernels(run) else { return };
            assert_eq!(got.anchors, expected.anchors);
            assert_same(&got.per_row, &expected.per_row, 1e-3);
            assert_same(&got.loss, &expected.loss, 1e-3);
            assert_same(&got.log_sum_exp, &expected.log_sum_exp, 1e-4);
            assert_same(got.teacher.log_sum_exp(), expected.teacher.log_sum_exp(), 1e-4);
            let relative = if dtype == DType::F32 { 1e-3 } else { 3e-2 };
            assert_same(&of_queries, &queries, relative);
            assert_same(&of_keys, &keys, relative);
            assert!(launched.iter().any(|name| name.starts_with("divergence_keys_")), "{launched:?}");
        }
    }
}

#[test]
fn without_a_tracked_input_kernels_sum_no_gradient() {
    let case = Case::new([7, 40, 12, 5], 3);
    let expected = case.run();
    let Some((got, launched)) = with_kernels(|| case.run()) else { return };
    assert!(!got.per_row.track_op());
    assert_same(&got.per_row, &expected.per_row, 1e-3);
    assert!(!launched.iter().any(|name| name.starts_with("divergence_queries")), "{launched:?}");
}

#[test]
fn statistics_serve_kernels_and_those_of_another_teacher_are_found_out() {
    let case = Case { direction: Direction::Reverse, ..Case::new([7, 40, 12, 5], 3) };
    let first = case.run();
    let options = case.options().statistics(&first.teacher);
    let Some(((again, ..), _)) = with_kernels(|| case.everything_with(&options)) else { return };
    assert_same(&again.per_row, &first.per_row, 1e-3);
    let other = (matrix(7, 5, 77) * 40.0).unwrap();
    let student = (&case.student.0, &case.student.1);
    let stale = with_kernels(|| divergence(student, (&other, &case.teacher.1), &options).map(drop));
    let text = stale.unwrap().0.unwrap_err().to_string();
    assert!(text.starts_with("divergence: `statistics`"), "{text}");
}

#[test]
fn errors_of_kernels_name_the_argument_and_leave_the_device_usable() {
    if skipped_without_compiler() {
        return;
    }
    let case = Case::new([7, 40, 12, 5], 3);
    let executor = Arc::new(Simt::new(LIBRARY.clone(), 4, 7));
    let bad = |student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor)| {
        let run = || divergence(student, teacher, &case.options()).map(drop);
        with_kernels_on(executor.clone(), run).unwrap_err().to_string()
    };
    let (student, teacher) = ((&case.student.0, &case.student.1), (&case.teacher.0, &case.teacher.1));
    let nan = Tensor::full(f32::NAN, (40, 5), &CPU).unwrap();
    for (text, name) in [
        (bad(student, (teacher.0, &nan)), "`teacher_keys`"),
        (bad(student, (&teacher.0.narrow(0, 0, 3).unwrap(), teacher.1)), "`teacher_queries`"),
        (bad((student.0, &student.1.to_dtype(DType::F16).unwrap()), teacher), "`keys`"),
    ] {
        assert!(text.contains("divergence") && text.contains(name), "{text}");
    }
    with_kernels_on(executor, || case.run());
}
