//! Bad input gets an error that names the argument.

use candle_core::{DType, Tensor};
use consonance::{DivergenceOptions, Error, TeacherStatistics, divergence};

use super::{CPU, Case, matrix};

#[test]
fn errors_name_the_argument() {
    let case = Case::new([7, 40, 12, 5], 1);
    let ((x, y), (u, v)) = (case.student.clone(), case.teacher.clone());
    let plain = DivergenceOptions::new(0.1);
    let ids = |len: usize| Tensor::zeros(len, DType::U32, &CPU).unwrap();
    let text = |student: (&Tensor, &Tensor), teacher: (&Tensor, &Tensor), options: &DivergenceOptions| {
        divergence(student, teacher, options).unwrap_err().to_string()
    };
    let with = |options: DivergenceOptions| text((&x, &y), (&u, &v), &options);
    let of_student = |x: &Tensor, y: &Tensor| text((x, y), (&u, &v), &plain);
    let of_teacher = |u: &Tensor, v: &Tensor| text((&x, &y), (u, v), &plain);
    let empty = Tensor::zeros((0, 12), DType::F32, &CPU).unwrap();
    for (text, name) in [
        (of_student(&x.flatten_all().unwrap(), &y), "`queries`"),
        (of_student(&x.to_dtype(DType::F64).unwrap(), &y), "`queries`"),
        (of_student(&empty, &y), "`queries`"),
        (of_student(&x, &empty), "`keys`"),
        (of_student(&x, &y.narrow(1, 0, 3).unwrap()), "`keys`"),
        (of_student(&(&x / 0.0).unwrap(), &y), "`queries`"),
        (of_student(&x, &(&y / 0.0).unwrap()), "`keys`"),
        (of_teacher(&u.narrow(0, 0, 3).unwrap(), &v), "`teacher_queries`"),
        (of_teacher(&u, &v.narrow(0, 0, 3).unwrap()), "`teacher_keys`"),
        (of_teacher(&u, &v.narrow(1, 0, 3).unwrap()), "`teacher_keys`"),
        (of_teacher(&(&u / 0.0).unwrap(), &v), "`teacher_queries`"),
        (of_student(&(&x * 1e30).unwrap(), &(&y * 1e30).unwrap()), "`queries`"),
        (with(DivergenceOptions::new(0.0)), "`temperature`"),
        (with(DivergenceOptions::new(f64::NAN)), "`temperature`"),
        (with(plain.clone().teacher_temperature(-1.0)), "`teacher_temperature`"),
        (with(plain.clone().softening(f64::INFINITY)), "`softening`"),
        (with(plain.clone().softening(1e30)), "`softening`"),
        (with(plain.clone().valid(&Tensor::ones(39, DType::U8, &CPU).unwrap())), "`valid`"),
        (with(plain.clone().valid(&ids(40))), "`valid`"),
        (with(plain.clone().ignore_same_id(&ids(6), &ids(40))), "`query_ids`"),
        (with(plain.clone().ignore_same_id(&ids(7), &ids(41))), "`key_ids`"),
    ] {
        assert!(text.starts_with("divergence") && text.contains(name), "{text}, not of {name}");
    }
}

#[test]
fn statistics_of_another_teacher_are_found_out() {
    let case = Case::new([7, 40, 12, 5], 1);
    let found = case.run();
    let with = |statistics: &TeacherStatistics, teacher: (&Tensor, &Tensor)| {
        let options = case.options().statistics(statistics);
        divergence((&case.student.0, &case.student.1), teacher, &options).map(drop)
    };
    let teacher = (&case.teacher.0, &case.teacher.1);
    with(&found.teacher, teacher).unwrap();
    let other = (matrix(7, 5, 77) * 40.0).unwrap();
    let short = TeacherStatistics::new(&found.teacher.log_sum_exp().narrow(0, 0, 6).unwrap()).unwrap();
    let not_a_number = TeacherStatistics::new(&Tensor::full(f32::NAN, 7, &CPU).unwrap()).unwrap();
    for error in
        [with(&found.teacher, (&other, &case.teacher.1)), with(&short, teacher), with(&not_a_number, teacher)]
    {
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with("divergence: `statistics`"), "{text}");
    }
    let square = Tensor::zeros((7, 1), DType::F32, &CPU).unwrap();
    assert!(matches!(TeacherStatistics::new(&square), Err(Error::Rank { got: 2, .. })));
    let double = Tensor::zeros(7, DType::F64, &CPU).unwrap();
    assert!(matches!(TeacherStatistics::new(&double), Err(Error::DType { .. })));
}
