//! Bad input: an error that names the argument, what it got and what it expected.

use candle_core::{DType, Device, Tensor};
use consonance::{
    Admission, AffinityMap, Closeness, ContrastOptions, Error, Pairs, Temperature, contrast,
    contrast_symmetric,
};

use crate::case::u32s;

fn ones(rows: usize, cols: usize) -> Tensor {
    Tensor::ones((rows, cols), DType::F32, &Device::Cpu).unwrap()
}

fn floats(x: &[f32]) -> Tensor {
    Tensor::new(x, &Device::Cpu).unwrap()
}

fn with(row: usize, value: f32) -> Tensor {
    let mut x = vec![1.0f32; 6 * 4];
    x[row * 4 + 2] = value;
    floats(&x).reshape((6, 4)).unwrap()
}

fn refuse(queries: &Tensor, keys: &Tensor, temperature: Temperature, pairs: Pairs, words: &[&str]) -> Error {
    let error = contrast(queries, keys, &temperature, &pairs, &ContrastOptions::default()).unwrap_err();
    let message = error.to_string();
    assert!(words.iter().all(|w| message.contains(w)), "{message:?} lacks one of {words:?}");
    error
}

fn refuse_pairs(pairs: Pairs, words: &[&str]) {
    refuse(&ones(2, 4), &ones(6, 4), Temperature::Fixed(0.1), pairs, words);
}

#[test]
fn shapes_dtypes_and_emptiness() {
    let t = || Temperature::Fixed(0.1);
    let all = Pairs::all;
    refuse(&ones(2, 4), &ones(6, 5), t(), all(), &["`keys`", "[6, 5]", "[N, 4]"]);
    refuse(&ones(0, 4), &ones(6, 4), t(), all(), &["`queries` is empty"]);
    refuse(&ones(2, 4), &ones(0, 4), t(), all(), &["`keys` is empty"]);
    refuse(&ones(2, 0), &ones(6, 0), t(), all(), &["`queries`", "at least one dimension"]);
    refuse(&floats(&[1.0]), &ones(6, 4), t(), all(), &["`queries` has 1 dimensions"]);
    let f64s = ones(2, 4).to_dtype(DType::F64).unwrap();
    refuse(&f64s, &ones(6, 4), t(), all(), &["`queries`", "F64", "f32, f16 or bf16"]);
    refuse(&ones(2, 4), &ones(6, 4).to_dtype(DType::U32).unwrap(), t(), all(), &["`keys`", "U32"]);
}

#[test]
fn temperatures() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-60] {
        let words = ["`temperature`", "finite and above 0"];
        refuse(&ones(2, 4), &ones(6, 4), Temperature::Fixed(bad), Pairs::all(), &words);
    }
    let learned = |t: Tensor, words: &[&str]| {
        refuse(&ones(2, 4), &ones(6, 4), Temperature::Learned(t), Pairs::all(), words);
    };
    learned(floats(&[0.1, -0.2]), &["`temperature` is -0.2"]);
    learned(floats(&[0.1, 0.2, 0.3]), &["`temperature`", "[3]", "[2]"]);
    learned(ones(1, 1), &["`temperature` has 2 dimensions"]);
    learned(Tensor::new(&[0.1f64], &Device::Cpu).unwrap(), &["`temperature`", "F64"]);
}

#[test]
fn embeddings_that_are_not_finite_name_their_row() {
    for bad in [f32::NAN, f32::INFINITY] {
        for dtype in [DType::F32, DType::BF16] {
            let x = with(4, bad).to_dtype(dtype).unwrap();
            let error = refuse(&ones(2, 4), &x, Temperature::Fixed(0.1), Pairs::all(), &["`keys` row 4"]);
            assert!(matches!(error, Error::Argument(consonance_cpu::Error::NotFinite { row: 4, .. })));
            refuse(&x, &ones(6, 4), Temperature::Fixed(0.1), Pairs::all(), &["`queries` row 4"]);
        }
    }
    let huge = with(3, 1e30); // its square overflows f32, but it is finite
    let out =
        contrast(&ones(2, 4), &huge, &Temperature::Fixed(1.0), &Pairs::all(), &ContrastOptions::default());
    assert!(out.unwrap().loss.to_scalar::<f32>().unwrap().is_finite());
}

#[test]
fn labels_ids_and_masks() {
    let (two, six) = (u32s(&[0; 2]), u32s(&[0; 6]));
    refuse_pairs(Pairs::labels(&six, &six), &["`query_labels`", "[6]", "2 rows"]);
    refuse_pairs(Pairs::labels(&two, &two), &["`key_labels`", "[2]", "6 rows"]);
    refuse_pairs(Pairs::labels(&floats(&[0.0; 2]), &six), &["`query_labels`", "F32"]);
    refuse_pairs(Pairs::all().ignore_same_id(&two, &two), &["`key_ids`", "[2]"]);
    refuse_pairs(Pairs::all().leave_out_same_label(&six, &six), &["`query_labels`", "[6]"]);
    let times = |queries: &[f32], keys: &[f32], scale| Closeness::Times {
        queries: floats(queries),
        keys: floats(keys),
        scale,
    };
    let (groups, soft) = ((&two, &six), Admission::Soft);
    let paced = |closeness, pace| Pairs::all().pace(groups, closeness, pace, soft);
    let good = || times(&[0.0; 2], &[0.0; 6], 1.0);
    for bad in [0.0, -0.5, 1.5, f64::NAN] {
        refuse_pairs(paced(good(), bad), &["`pace`", "above 0 and at most 1"]);
    }
    refuse_pairs(Pairs::all().pace((&six, &six), good(), 0.5, soft), &["`query_groups`", "[6]"]);
    refuse_pairs(Pairs::all().pace((&two, &two), good(), 0.5, soft), &["`key_groups`", "[2]"]);
    refuse_pairs(paced(times(&[0.0; 3], &[0.0; 6], 1.0), 0.5), &["`query_times`", "[3]"]);
    refuse_pairs(paced(times(&[0.0; 2], &[f32::NAN; 6], 1.0), 0.5), &["`key_times`", "finite"]);
    refuse_pairs(paced(times(&[0.0; 2], &[0.0; 6], 0.0), 0.5), &["`time scale`", "above 0"]);
    let features = |queries: &Tensor, keys: &Tensor| Closeness::Features {
        queries: queries.clone(),
        keys: keys.clone(),
    };
    refuse_pairs(paced(features(&ones(2, 3), &ones(6, 4)), 0.5), &["`key_features`", "[6, 3]"]);
    refuse_pairs(paced(features(&ones(3, 3), &ones(6, 3)), 0.5), &["`query_features`", "[2, Df]"]);
    let zero = Tensor::zeros((6, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    refuse_pairs(paced(features(&ones(2, 3), &zero), 0.5), &["`key_features`", "row 0"]);
    refuse_pairs(Pairs::all().valid(&six), &["`valid`", "U32", "u8"]);
    let byte = Tensor::new(&[1u8, 1], &Device::Cpu).unwrap();
    refuse_pairs(Pairs::all().valid(&byte), &["`valid`", "[2]"]);
    refuse_pairs(Pairs::all().credible_positives(&byte), &["`credible_positives`", "[2]"]);
    refuse_pairs(Pairs::all().denominator_weights(&floats(&[1.0; 5])), &["`denominator_weights`", "[5]"]);
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let u = floats(&[1.0, bad, 1.0, 1.0, 1.0, 1.0]);
        refuse_pairs(Pairs::all().denominator_weights(&u), &["`denominator_weights`", "at least 0"]);
    }
    let diagonal = Pairs::diagonal();
    refuse(&ones(7, 4), &ones(6, 4), Temperature::Fixed(0.1), diagonal, &["`keys`", "[6]", "at least 7"]);
}

#[test]
fn lists_and_bit_sets() {
    let w = |w: &[f32]| Some(floats(w));
    let lists = |o: &[u32], i: &[u32], w: Option<Tensor>, words: &[&str]| {
        refuse_pairs(Pairs::lists(&u32s(o), &u32s(i), w.as_ref()), words);
    };
    lists(&[0, 1], &[0], None, &["`offsets`", "[2]", "3 rows"]);
    lists(&[0, 2, 1], &[0], None, &["`offsets`", "ascending"]);
    lists(&[1, 1, 1], &[0], None, &["`offsets`", "from 0"]);
    lists(&[0, 1, 3], &[0, 1], None, &["`offsets`", "number of indices, 2"]);
    lists(&[0, 1, 2], &[0, 6], None, &["`indices` is 6", "below 6"]);
    lists(&[0, 0, 2], &[3, 3], None, &["`indices`", "without repeats"]);
    lists(&[0, 1, 2], &[0, 1], w(&[1.0]), &["`weights`", "[1]"]);
    lists(&[0, 1, 2], &[0, 1], w(&[1.0, -1.0]), &["`weights` is -1", "at least 0"]);
    let neighbors =
        |i: Tensor, w: Option<Tensor>, words: &[&str]| refuse_pairs(Pairs::neighbors(&i, w.as_ref()), words);
    neighbors(u32s(&[0; 3]).reshape((3, 1)).unwrap(), None, &["`indices`", "[3, 1]", "[2, k]"]);
    neighbors(u32s(&[0; 2]), None, &["`indices` has 1 dimensions"]);
    neighbors(u32s(&[0; 2]).reshape((2, 1)).unwrap(), Some(ones(2, 2)), &["`weights`", "[2, 2]"]);
    let bits = |q: usize, k: usize, words: usize, overlap, expected: &[&str]| {
        let set = |rows: usize, words: usize| Tensor::zeros((rows, words), DType::U32, &Device::Cpu).unwrap();
        refuse_pairs(Pairs::bits(&set(q, 2), &set(k, words), overlap), expected);
    };
    bits(3, 6, 2, 1, &["`query_bits`", "[3, 2]"]);
    bits(2, 6, 1, 1, &["`key_bits`", "[6, 1]", "[6, 2]"]);
    bits(2, 6, 2, 0, &["`min_overlap` is 0", "at least 1"]);
}

#[test]
fn affinities() {
    let half = AffinityMap::Half;
    let affinity =
        |q: Tensor, k: Tensor, map, words: &[&str]| refuse_pairs(Pairs::all().affinity(&q, &k, map), words);
    affinity(ones(3, 3), ones(6, 3), half, &["`old_queries`", "[3, 3]", "[2, Do]"]);
    affinity(ones(2, 3), ones(5, 3), half, &["`old_keys`", "[5, 3]", "[6, 3]"]);
    affinity(ones(2, 3), ones(6, 4), half, &["`old_keys`", "[6, 4]", "[6, 3]"]);
    affinity(ones(2, 0), ones(6, 0), half, &["`old_queries`", "at least one dimension"]);
    let mut zero = vec![1.0f32; 18];
    zero[6..9].fill(0.0);
    let zero = floats(&zero).reshape((6, 3)).unwrap();
    affinity(ones(2, 3), zero, half, &["`old_keys` row 2", "norm zero"]);
    let x = with(5, f32::NAN);
    affinity(ones(2, 4), x, half, &["`old_keys` row 5", "not finite"]);
    for temperature in [0.0, -1.0, f32::NAN] {
        affinity(
            ones(2, 3),
            ones(6, 3),
            AffinityMap::Exp { temperature },
            &["`affinity temperature`", "above 0"],
        );
    }
}

#[test]
fn the_symmetric_form_refuses_what_has_one_side() {
    let refuse = |x: &Tensor, y: &Tensor, t: Temperature, pairs: Pairs, words: &[&str]| {
        let message =
            contrast_symmetric(x, y, &t, &pairs, &ContrastOptions::default()).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    };
    let (x, y) = (ones(2, 4), ones(6, 4));
    refuse(&x, &y, Temperature::Fixed(0.1), Pairs::diagonal(), &["`y`", "[6]", "[2, D]"]);
    refuse(&x, &y, Temperature::Learned(floats(&[0.1; 2])), Pairs::all(), &["`temperature`", "[2]"]);
    let u = Pairs::all().denominator_weights(&floats(&[1.0; 6]));
    refuse(&x, &y, Temperature::Fixed(0.1), u, &["`denominator_weights`"]);
}
