//! The divergence of two distributions over the same keys as an op: against the definition, in the graph, in every
//! layout, bit for bit over threads and batches, with bad input.

// A test or bench that cannot go on has to stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "divergence/errors.rs"]
mod errors;
#[path = "divergence/kernels.rs"]
mod kernels;

use candle_core::{DType, Device, Tensor, Var};
use consonance::{Direction, Divergence, DivergenceOptions, TeacherStatistics, divergence};
use consonance_reference::divergence as reference;
use consonance_testkit::{data, threads};
use proptest::prelude::*;

const CPU: Device = Device::Cpu;
const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Reverse];

fn matrix(rows: usize, cols: usize, seed: u64) -> Tensor {
    Tensor::from_vec(data::unit(rows, cols, seed), (rows, cols), &CPU).unwrap()
}

fn wide(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Student and teacher, with what they do not compare.
#[derive(Debug, Clone)]
struct Case {
    student: (Tensor, Tensor),
    teacher: (Tensor, Tensor),
    temperatures: [f64; 2],
    softening: f64,
    direction: Direction,
    valid: Option<Vec<u8>>,
    ids: Option<(Vec<u32>, Vec<u32>)>,
    diagonal: bool,
}

impl Case {
    fn new([b, n, dim, width]: [usize; 4], seed: u64) -> Self {
        Self {
            student: (matrix(b, dim, seed), matrix(n, dim, seed + 1)),
            teacher: (matrix(b, width, seed + 2), matrix(n, width, seed + 3)),
            temperatures: [0.1, 0.2],
            softening: 3.0,
            direction: Direction::Forward,
            valid: None,
            ids: None,
            diagonal: false,
        }
    }

    fn excluding(mut self, seed: u64) -> Self {
        let (b, n) = self.shape();
        self.valid = Some(data::labels(n, 4, seed).iter().map(|v| u8::from(*v != 0)).collect());
        self.ids = Some((data::labels(b, 6, seed + 1), data::labels(n, 9, seed + 2)));
        self.diagonal = true;
        self
    }

    fn shape(&self) -> (usize, usize) {
        (self.student.0.dims()[0], self.student.1.dims()[0])
    }

    fn options(&self) -> DivergenceOptions {
        let mut options = DivergenceOptions::new(self.temperatures[0])
            .teacher_temperature(self.temperatures[1])
            .softening(self.softening)
            .direction(self.direction);
        if let Some(valid) = &self.valid {
            options = options.valid(&Tensor::new(&valid[..], &CPU).unwrap());
        }
        if let Some((queries, keys)) = &self.ids {
            let ids = |ids: &[u32]| Tensor::new(ids, &CPU).unwrap();
            options = options.ignore_same_id(&ids(queries), &ids(keys).to_dtype(DType::I64).unwrap());
        }
        if self.diagonal { options.ignore_diagonal() } else { options }
    }

    fn run(&self) -> Divergence {
        let (student, teacher) = (&self.student, &self.teacher);
        divergence((&student.0, &student.1), (&teacher.0, &teacher.1), &self.options()).unwrap()
    }

    /// Everything that the op computes with gradients of both sides of the student.
    fn everything(&self) -> (Divergence, Tensor, Tensor) {
        self.everything_with(&self.options())
    }

    fn everything_with(&self, options: &DivergenceOptions) -> (Divergence, Tensor, Tensor) {
        let (x, y) = (Var::from_tensor(&self.student.0).unwrap(), Var::from_tensor(&self.student.1).unwrap());
        let teacher = (&self.teacher.0, &self.teacher.1);
        let found = divergence((x.as_tensor(), y.as_tensor()), teacher, options).unwrap();
        let grads = found.per_row.sum_all().unwrap().backward().unwrap();
        (found, grads.get(&x).unwrap().clone(), grads.get(&y).unwrap().clone())
    }

    /// The definition: divergences, and gradients of their sum.
    fn truth(&self) -> (reference::Divergences, Vec<f64>, Vec<f64>) {
        let (b, n) = self.shape();
        let [x, y, u, v] = [&self.student.0, &self.student.1, &self.teacher.0, &self.teacher.1].map(wide);
        let compared = |i: usize, j: usize| {
            self.valid.as_ref().is_none_or(|valid| valid[j] != 0)
                && self.ids.as_ref().is_none_or(|(queries, keys)| queries[i] != keys[j])
                && !(self.diagonal && i == j)
        };
        let problem = reference::Problem {
            student: reference::Side {
                queries: &x,
                keys: &y,
                dim: x.len() / b,
                temperature: self.temperatures[0],
            },
            teacher: reference::Side {
                queries: &u,
                keys: &v,
                dim: u.len() / b,
                temperature: self.temperatures[1],
            },
            softening: self.softening,
            direction: match self.direction {
                Direction::Forward => reference::Direction::Forward,
                Direction::Reverse => reference::Direction::Reverse,
            },
            compared: (0..b * n).map(|at| compared(at / n, at % n)).collect(),
        };
        let (of_queries, of_keys) = problem.gradients(&vec![1.0; b]);
        (problem.forward(), of_queries, of_keys)
    }
}

/// Coarser than any bound, far finer than any mistake; the bounds themselves are in the suite.
fn assert_close(what: &str, got: &Tensor, expected: &[f64], size: f64) {
    let got = wide(got);
    assert_eq!(got.len(), expected.len(), "{what}");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got == expected || (got - expected).abs() <= 1e-4 * size;
        assert!(same, "{what} {at}: {got}, expected {expected}");
    }
}

fn check(case: &Case) {
    let (found, of_queries, of_keys) = case.everything();
    let (truth, queries, keys) = case.truth();
    // Gradients are sums of up to b or n terms of at most T/τ.
    let (b, n) = case.shape();
    let outer = case.softening.powi(2).max(case.softening / case.temperatures[0]);
    assert_eq!(found.anchors, truth.counted.iter().filter(|c| **c).count());
    assert_close("loss", &found.per_row, &truth.per_row, outer);
    assert_close("log-sum-exp", &found.log_sum_exp, &truth.log_sum_exp, 1.0);
    assert_close("of the teacher", found.teacher.log_sum_exp(), &truth.teacher_log_sum_exp, 1.0);
    assert_close("queries", &of_queries, &queries, outer);
    assert_close("keys", &of_keys, &keys, outer * (b as f64 / n as f64).max(1.0));
    let mean = truth.per_row.iter().sum::<f64>() / found.anchors.max(1) as f64;
    assert_close("mean", &found.loss, &[mean], outer);
}

#[test]
fn losses_and_gradients_are_those_of_the_definition() {
    for (seed, shape) in
        [[7, 40, 12, 5], [1, 1, 1, 3], [20, 600, 33, 130], [3, 9000, 7, 4], [140, 30, 16, 513]]
            .into_iter()
            .enumerate()
    {
        for direction in DIRECTIONS {
            let case = Case { direction, ..Case::new(shape, seed as u64) };
            check(&case);
            check(&case.excluding(seed as u64));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_problem_is_as_the_definition_has_it(
        shape in (1usize..24, 1usize..90, 1usize..20, 1usize..20),
        seed in 0u64..1000,
        temperatures in (0.05f64..2.0, 0.05f64..2.0),
        softening in 0.5f64..4.0,
        reverse in any::<bool>(),
        excluding in any::<bool>(),
    ) {
        let mut case = Case::new([shape.0, shape.1, shape.2, shape.3], seed);
        // As the op takes them.
        let narrow = |x: f64| f64::from(x as f32);
        case.temperatures = [narrow(temperatures.0), narrow(temperatures.1)];
        case.softening = narrow(softening);
        case.direction = DIRECTIONS[usize::from(reverse)];
        check(&if excluding { case.excluding(seed) } else { case });
    }
}

#[test]
fn the_teacher_gets_no_gradient_and_constants_cost_none() {
    let case = Case::new([7, 40, 12, 5], 1);
    let x = Var::from_tensor(&case.student.0).unwrap();
    let (u, v) = (Var::from_tensor(&case.teacher.0).unwrap(), Var::from_tensor(&case.teacher.1).unwrap());
    let student = (x.as_tensor(), &case.student.1);
    let found = divergence(student, (u.as_tensor(), v.as_tensor()), &case.options()).unwrap();
    assert!(!found.log_sum_exp.track_op() && !found.teacher.log_sum_exp().track_op());
    let grads = found.loss.backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&u).is_none() && grads.get(&v).is_none());
    assert!(!case.run().loss.track_op());
    // Keys alone.
    let y = Var::from_tensor(&case.student.1).unwrap();
    let student = (&case.student.0, y.as_tensor());
    let found = divergence(student, (&case.teacher.0, &case.teacher.1), &case.options()).unwrap();
    let grads = found.per_row.sum_all().unwrap().backward().unwrap();
    assert_eq!(bits(grads.get(&y).unwrap()), bits(&case.everything().2));
}

/// Both directions of a pair of networks, where each is the other's queries and keys (soft ICL): gradients of a tensor
/// that is on both sides add up.
#[test]
fn a_batch_that_is_its_own_bank_gets_the_gradients_of_both_roles() {
    let mut case = Case::new([30, 30, 12, 9], 4);
    (case.student.1, case.teacher.1) = (case.student.0.clone(), case.teacher.0.clone());
    case.diagonal = true;
    let x = Var::from_tensor(&case.student.0).unwrap();
    let teacher = (&case.teacher.0, &case.teacher.1);
    let found = divergence((x.as_tensor(), x.as_tensor()), teacher, &case.options()).unwrap();
    let gradient = found.per_row.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
    let (_, queries, keys) = case.truth();
    let sum: Vec<f64> = queries.iter().zip(&keys).map(|(q, k)| q + k).collect();
    assert_close("both", &gradient, &sum, 100.0);
}

#[test]
fn equal_sides_diverge_by_nothing_and_excluded_keys_are_as_none() {
    for direction in DIRECTIONS {
        let mut case = Case { direction, ..Case::new([20, 700, 24, 24], 2) };
        let (kept, spoilt) = (case.clone(), Tensor::full(1e30f32, (300, 24), &CPU).unwrap());
        case.teacher = case.student.clone();
        case.temperatures = [0.1; 2];
        let (found, of_queries, of_keys) = case.everything();
        for zeros in [&found.per_row, &of_queries, &of_keys] {
            assert!(wide(zeros).iter().all(|v| *v == 0.0), "{direction:?}");
        }
        // Slots that are not valid may hold any finite number, and change no bit.
        let mut more = kept.clone();
        more.student.1 = Tensor::cat(&[&kept.student.1, &spoilt], 0).unwrap();
        more.teacher.1 = Tensor::cat(&[&kept.teacher.1, &spoilt], 0).unwrap();
        more.valid = Some((0..1000).map(|j| u8::from(j < 700)).collect());
        let ((few, few_x, few_y), (many, many_x, many_y)) = (kept.everything(), more.everything());
        assert_eq!(bits(&few.per_row), bits(&many.per_row));
        assert_eq!(bits(&few_x), bits(&many_x));
        let many_y = bits(&many_y);
        assert_eq!(bits(&few_y)[..], many_y[..700 * 24]);
        assert!(many_y[700 * 24..].iter().all(|bits| *bits == 0));
        // One tile, alone and in a bank of several splits.
        let few = Case { direction, ..Case::new([20, 300, 24, 24], 3) };
        let spoilt = Tensor::full(1e30f32, (9_700, 24), &CPU).unwrap();
        let mut more = few.clone();
        more.student.1 = Tensor::cat(&[&few.student.1, &spoilt], 0).unwrap();
        more.teacher.1 = Tensor::cat(&[&few.teacher.1, &spoilt], 0).unwrap();
        more.valid = Some((0..10_000).map(|j| u8::from(j < 300)).collect());
        let ((few, few_x, few_y), (many, many_x, many_y)) = (few.everything(), more.everything());
        assert_eq!(bits(&few.per_row), bits(&many.per_row));
        assert_eq!(bits(&few_x), bits(&many_x));
        assert!(bits(&few_y)[..] == bits(&many_y)[..300 * 24]);
        // Ids and the diagonal exclude the same pairs.
        let mut by_id = kept.clone();
        by_id.ids = Some(((0..20).collect(), (0..700).collect()));
        let by_diagonal = Case { diagonal: true, ..kept };
        assert_eq!(bits(&by_id.run().per_row), bits(&by_diagonal.run().per_row));
        assert_eq!(bits(&by_id.everything().2), bits(&by_diagonal.everything().2));
    }
}

#[test]
fn rows_without_a_key_do_not_count() {
    for direction in DIRECTIONS {
        let mut case = Case { direction, ..Case::new([3, 5, 4, 6], 3) };
        case.ids = Some((vec![7, 8, 7], vec![7; 5]));
        let (found, of_queries, _) = case.everything();
        assert_eq!(found.anchors, 1);
        let (rows, lse) = (wide(&found.per_row), wide(&found.log_sum_exp));
        assert!(rows[0] == 0.0 && rows[2] == 0.0 && rows[1] > 0.0, "{rows:?}");
        assert_eq!((lse[0], lse[2]), (f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert!(wide(&of_queries)[..4].iter().all(|g| *g == 0.0));
        case.valid = Some(vec![0; 5]);
        let found = case.run();
        assert_eq!((found.anchors, wide(&found.loss)), (0, vec![0.0]));
    }
}

#[test]
fn every_layout_and_type_is_read_and_gradients_have_the_type_of_the_student() {
    let (b, n) = (9, 70);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let rounded = |rows: usize, cols: usize, seed| matrix(rows, cols, seed).to_dtype(dtype).unwrap();
        let (wide_x, wide_y) = (rounded(b + 3, 20, 1), rounded(n + 5, 20, 2));
        let teacher = (rounded(b, 20, 5).narrow(1, 2, 11).unwrap(), rounded(11, n, 6).t().unwrap());
        for student in [
            (wide_x.narrow(0, 2, b).unwrap(), wide_y.narrow(0, 1, n).unwrap()),
            (
                wide_x.narrow(0, 0, b).unwrap().narrow(1, 3, 9).unwrap(),
                wide_y.narrow(0, 0, n).unwrap().narrow(1, 5, 9).unwrap(),
            ),
            (rounded(20, b, 3).t().unwrap(), rounded(20, n, 4).t().unwrap()),
        ] {
            let case =
                Case { student: student.clone(), teacher: teacher.clone(), ..Case::new([b, n, 1, 1], 1) };
            let (truth, queries, keys) = case.truth();
            let vars = [&student.0, &student.1].map(|x| Var::from_tensor(&x.contiguous().unwrap()).unwrap());
            // The graph goes on behind views.
            let views = [&vars[0], &vars[1]].map(|x| x.as_tensor().t().unwrap().contiguous().unwrap());
            let views = views.map(|x| x.t().unwrap());
            let found =
                divergence((&views[0], &views[1]), (&teacher.0, &teacher.1), &case.options()).unwrap();
            assert_eq!(bits(&found.per_row), bits(&case.run().per_row));
            assert_close("loss", &found.per_row, &truth.per_row, 30.0);
            let grads = found.per_row.sum_all().unwrap().backward().unwrap();
            // One rounding to the storage type, of gradients up to T/τ.
            let size = if dtype == DType::F32 { 30.0 } else { 1200.0 };
            for (var, expected) in vars.iter().zip([queries, keys]) {
                let gradient = grads.get(var).unwrap();
                assert_eq!(gradient.dtype(), dtype);
                assert_close("gradient", gradient, &expected, size);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for direction in DIRECTIONS {
        for shape in [[150, 9000, 33, 20], [5, 20_000, 40, 16], [300, 700, 8, 130]] {
            let case = Case { direction, ..Case::new(shape, 5) }.excluding(6);
            let [one, two, eight] = threads::on_1_2_8_threads(|| {
                let (found, queries, keys) = case.everything();
                [&found.loss, &found.per_row, &found.log_sum_exp, &queries, &keys].map(bits)
            });
            assert!(one == two && one == eight, "{shape:?} {direction:?}");
        }
    }
}

#[test]
fn a_row_has_the_bits_it_has_alone_and_permuted() {
    for (direction, dim) in DIRECTIONS.into_iter().zip([40, 131]) {
        let case = Case { direction, ..Case::new([200, 8300, dim, 21], 8) };
        let all = case.everything();
        for rows in [vec![199], vec![3, 64, 5], (0..200).rev().collect::<Vec<u32>>()] {
            let at = Tensor::new(&rows[..], &CPU).unwrap();
            let pick = |x: &Tensor| x.index_select(&at, 0).unwrap();
            let mut some = case.clone();
            (some.student.0, some.teacher.0) = (pick(&case.student.0), pick(&case.teacher.0));
            let (found, queries, _) = some.everything();
            assert_eq!(bits(&found.per_row), bits(&pick(&all.0.per_row)));
            assert_eq!(bits(&queries), bits(&pick(&all.1)));
        }
    }
}

/// Statistics of the whole data set serve its batches, and change nothing beyond rounding.
#[test]
fn known_statistics_of_the_teacher_give_the_same() {
    for direction in DIRECTIONS {
        let case = Case { direction, ..Case::new([40, 1500, 12, 9], 9) };
        let (first, queries, keys) = case.everything();
        let again = case.everything_with(&case.options().statistics(&first.teacher));
        let kept = TeacherStatistics::new(first.teacher.log_sum_exp()).unwrap();
        assert_close("loss", &again.0.per_row, &wide(&first.per_row), 1.0);
        assert_close("queries", &again.1, &wide(&queries), 1.0);
        assert_close("keys", &again.2, &wide(&keys), 1.0);
        assert_close(
            "teacher",
            again.0.teacher.log_sum_exp(),
            &wide(&first.teacher.log_sum_exp().clone()),
            0.1,
        );
        let at = Tensor::new(&[5u32, 0, 33], &CPU).unwrap();
        let mut some = case.clone();
        some.student.0 = case.student.0.index_select(&at, 0).unwrap();
        some.teacher.0 = case.teacher.0.index_select(&at, 0).unwrap();
        let (found, ..) = some.everything_with(&some.options().statistics(&kept.select(&at).unwrap()));
        assert_eq!(bits(&found.per_row), bits(&again.0.per_row.index_select(&at, 0).unwrap()));
    }
}

/// Scores far beyond e⁸⁸, which move the maxima in every tile.
#[test]
fn large_scores_are_held() {
    for direction in DIRECTIONS {
        let mut case = Case { direction, ..Case::new([5, 2000, 6, 6], 11) };
        let growth: Vec<f32> = (0..2000).map(|j| j as f32 / 20.0).collect();
        let growth = Tensor::from_vec(growth, (2000, 1), &CPU).unwrap();
        case.student.1 = case.student.1.broadcast_mul(&growth).unwrap();
        case.temperatures[0] = f64::from(0.5f32);
        let (truth, queries, _) = case.truth();
        let (found, of_queries, _) = case.everything();
        assert!(truth.log_sum_exp.iter().any(|lse| *lse > 20.0));
        assert_close("loss", &found.per_row, &truth.per_row, 500.0);
        assert_close("queries", &of_queries, &queries, 20_000.0);
    }
}
