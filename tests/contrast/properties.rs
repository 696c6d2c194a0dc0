//! Bits, views, masks, identities: what must hold without any tolerance, or by a bound of its own.

use candle_core::{DType, Device, Tensor, Var};
use consonance::{
    Admission, AffinityMap, Contrast, ContrastOptions, Pairs, Temperature, contrast, contrast_symmetric,
};
use consonance_testkit::{data, threads::on_1_2_8_threads};

use crate::case::{Case, Near, Rule, Spec, Tau, narrow, u32s, wide};

fn bits(t: &Tensor) -> Vec<u32> {
    narrow(t).iter().map(|x| x.to_bits()).collect()
}

/// Loss, rows, lse and all three gradients, as bits.
fn everything(
    queries: &Tensor,
    keys: &Tensor,
    tau: &Tensor,
    pairs: &Pairs,
    options: &ContrastOptions,
) -> Vec<Vec<u32>> {
    let vars = [queries, keys, tau].map(|t| Var::from_tensor(t).unwrap());
    let learned = Temperature::Learned(vars[2].as_tensor().clone());
    let out = contrast(&vars[0], &vars[1], &learned, pairs, options).unwrap();
    let grads = out.per_row.sum_all().unwrap().backward().unwrap();
    let mut all = vec![bits(&out.loss), bits(&out.per_row), bits(&out.log_sum_exp)];
    all.extend(vars.iter().map(|v| bits(grads.get(v).unwrap())));
    all
}

fn hard() -> Vec<Spec> {
    let base = Spec { tau: Tau::PerRow(0.05), affinity: Some(AffinityMap::Half), ..Spec::new(150, 9000, 33) };
    vec![
        base,
        base.left_out(),
        Spec { rule: Rule::All, ..base },
        Spec { rule: Rule::Bits, same_id: true, leave_out: true, denominator_weights: true, ..base }
            .left_out(),
        Spec { unit: false, dtype: DType::BF16, affinity: None, ..base },
        Spec { pace: Some((Near::Features, 0.7, Admission::Soft)), ..base },
        Spec { d: 130, b: 70, ..base },
        Spec { d: 512, n: 8300, b: 70, dtype: DType::BF16, ..base }.left_out(),
    ]
}

#[test]
fn the_bits_do_not_depend_on_the_threads() {
    for spec in hard() {
        let case = Case::new(spec);
        let tau = Tensor::new(&case.temperatures[..], &Device::Cpu).unwrap();
        let [one, two, eight] =
            on_1_2_8_threads(|| everything(&case.queries, &case.keys, &tau, &case.pairs, &spec.options));
        assert!(one == two && two == eight, "{spec:?}");
    }
}

#[test]
fn a_row_has_the_bits_it_has_alone_and_permuted() {
    rows_alone_and_permuted(40, 9000);
    rows_alone_and_permuted(131, 8300);
    rows_alone_and_permuted(512, 1000);
}

fn rows_alone_and_permuted(d: usize, n: usize) {
    let b = 301usize;
    let (x, y) = (data::unit(b, d, 1), data::unit(n, d, 2));
    let (ql, kl) = (data::labels(b, 40, 3), data::labels(n, 40, 4));
    let old = data::normal(b, 20, 5);
    let old_keys = matrix(data::normal(n, 20, 6), n, 20);
    let keys = matrix(y, n, d);
    let run = |rows: &[usize], left_out: bool, all: bool, tau: f64| {
        let take = |x: &[f32], d: usize| -> Tensor {
            matrix(rows.iter().flat_map(|i| x[i * d..][..d].to_vec()).collect(), rows.len(), d)
        };
        let labels: Vec<u32> = rows.iter().map(|i| ql[*i]).collect();
        let pairs = if all { Pairs::all() } else { Pairs::labels(&u32s(&labels), &u32s(&kl)) };
        let pairs = pairs.affinity(&take(&old, 20), &old_keys, AffinityMap::Half);
        let queries = Var::from_tensor(&take(&x, d)).unwrap();
        let mut options = ContrastOptions::default();
        if left_out {
            options.other_positives = consonance::OtherPositives::LeftOut;
        }
        let out = contrast(&queries, &keys, &Temperature::Fixed(tau), &pairs, &options).unwrap();
        let grads = out.per_row.sum_all().unwrap().backward().unwrap();
        let gradient = bits(grads.get(&queries).unwrap());
        let (rows_bits, lse) = (bits(&out.per_row), bits(&out.log_sum_exp));
        (0..rows.len()).map(|r| (rows_bits[r], lse[r], gradient[r * d..][..d].to_vec())).collect::<Vec<_>>()
    };
    for (left_out, all, tau) in
        [(false, false, 0.05), (true, false, 0.05), (false, true, 0.1), (false, false, 0.01)]
    {
        let whole = run(&(0..b).collect::<Vec<_>>(), left_out, all, tau);
        let mut permuted: Vec<usize> = (0..b).rev().collect();
        permuted.rotate_left(77);
        let subsets = [vec![0], vec![300], vec![5, 4], (17..34).collect(), (40..140).collect(), permuted];
        for subset in subsets {
            for (row, i) in run(&subset, left_out, all, tau).iter().zip(&subset) {
                assert!(*row == whole[*i], "row {i} of {} rows, tau {tau}, all {all}", subset.len());
            }
        }
    }
}

fn matrix(x: Vec<f32>, rows: usize, cols: usize) -> Tensor {
    Tensor::from_vec(x, (rows, cols), &Device::Cpu).unwrap()
}

#[test]
fn a_partly_filled_bank_is_a_shorter_bank_bit_for_bit() {
    partly_filled_bank(24, 20_000, 1.0);
    partly_filled_bank(24, 1_100, 5e37);
    partly_filled_bank(130, 9_000, 1.0);
    partly_filled_bank(512, 1_500, 1e25);
}

/// `stale` is the size of what the free slots hold.
fn partly_filled_bank(d: usize, capacity: usize, stale: f32) {
    let (b, filled) = (33usize, 700usize);
    // Products with what is stale leave f32 where that is large.
    let queries = matrix(data::unit(b, d, 1).iter().map(|x| 8.0 * x).collect(), b, d);
    let mut keys = data::normal(capacity, d, 2);
    keys[filled * d..].iter_mut().for_each(|x| *x *= stale);
    let keys = matrix(keys, capacity, d);
    let (ql, kl) = (data::labels(b, 9, 3), data::labels(capacity, 9, 4));
    let old = matrix(data::normal(b, 12, 5), b, 12);
    let old_keys = matrix(data::normal(capacity, 12, 6), capacity, 12);
    let mask: Vec<u8> = (0..capacity).map(|j| u8::from(j < filled)).collect();
    let tau = Tensor::new(0.07f32, &Device::Cpu).unwrap();
    for left_out in [false, true] {
        for all in [false, true] {
            let mut options = ContrastOptions::default();
            if left_out {
                options.other_positives = consonance::OtherPositives::LeftOut;
            }
            let pairs = |n: usize| {
                let rule = if all { Pairs::all() } else { Pairs::labels(&u32s(&ql), &u32s(&kl[..n])) };
                rule.affinity(&old, &old_keys.narrow(0, 0, n).unwrap(), AffinityMap::Half)
            };
            let short =
                everything(&queries, &keys.narrow(0, 0, filled).unwrap(), &tau, &pairs(filled), &options);
            let masked = pairs(capacity).valid(&Tensor::new(&mask[..], &Device::Cpu).unwrap());
            let mut long = everything(&queries, &keys, &tau, &masked, &options);
            let rest = long[4].split_off(filled * d);
            assert!(rest.iter().all(|x| *x == 0), "a key that is not valid has a gradient");
            assert!(short == long, "left out {left_out}, all {all}");
        }
    }
}

#[test]
fn views_give_the_bits_of_their_copies_and_pass_gradients_on() {
    let types = [DType::F32, DType::F16, DType::BF16];
    for (dtype, d) in types.into_iter().flat_map(|t| [(t, 21usize), (t, 133), (t, 512)]) {
        let (b, n) = (19usize, 530usize);
        let wide_matrix = |rows: usize, seed| {
            let x = data::unit(rows + 4, d + 6, seed);
            Var::from_tensor(&matrix(x, rows + 4, d + 6).to_dtype(dtype).unwrap()).unwrap()
        };
        let (x, y) = (wide_matrix(b, 1), wide_matrix(n, 2));
        let view = |v: &Var, rows: usize| v.narrow(0, 3, rows).unwrap().narrow(1, 2, d).unwrap();
        let transposed = |v: &Var, rows: usize| {
            let t = v.t().unwrap().contiguous().unwrap();
            t.narrow(0, 2, d).unwrap().narrow(1, 3, rows).unwrap().t().unwrap()
        };
        let (ql, kl) = (data::labels(b, 7, 3), data::labels(n, 7, 4));
        let pairs = Pairs::labels(&u32s(&ql), &u32s(&kl));
        let run = |q: &Tensor, k: &Tensor| -> Vec<Vec<u32>> {
            let out = contrast(q, k, &Temperature::Fixed(0.1), &pairs, &ContrastOptions::default()).unwrap();
            let grads = out.loss.backward().unwrap();
            vec![bits(&out.per_row), bits(grads.get(&x).unwrap()), bits(grads.get(&y).unwrap())]
        };
        let (q, k) = (view(&x, b), view(&y, n));
        let expected = run(&q.force_contiguous().unwrap(), &k.force_contiguous().unwrap());
        assert!(expected[1].iter().any(|g| *g != 0) && expected[2].iter().any(|g| *g != 0));
        assert_eq!(run(&q, &k), expected);
        assert_eq!(run(&transposed(&x, b), &transposed(&y, n)), expected);
    }
}

#[test]
fn gradients_reach_each_variable_and_no_constant() {
    let case = Case::new(Spec { tau: Tau::Scalar(0.1), ..Spec::new(20, 300, 16) });
    let tau = Tensor::new(0.1f32, &Device::Cpu).unwrap();
    for tracked in 0..8u8 {
        let vars = [&case.queries, &case.keys, &tau].map(|t| Var::from_tensor(t).unwrap());
        let input = |at: usize| match tracked >> at & 1 {
            1 => vars[at].as_tensor().clone(),
            _ => vars[at].detach(),
        };
        let learned = Temperature::Learned(input(2));
        let out = contrast(&input(0), &input(1), &learned, &case.pairs, &ContrastOptions::default()).unwrap();
        let grads = out.loss.backward().unwrap();
        for (at, var) in vars.iter().enumerate() {
            let arrived = grads.get(var).is_some_and(|g| narrow(g).iter().any(|g| *g != 0.0));
            assert_eq!(arrived, tracked >> at & 1 == 1, "input {at} of {tracked:03b}");
        }
    }
}

#[test]
fn rows_without_positive_add_zero_and_are_not_counted() {
    let (x, y) = (matrix(data::unit(4, 8, 1), 4, 8), matrix(data::unit(6, 8, 2), 6, 8));
    let queries = Var::from_tensor(&x).unwrap();
    for left_out in [false, true] {
        let spec = if left_out { Spec::new(4, 6, 8).left_out() } else { Spec::new(4, 6, 8) };
        let pairs = Pairs::labels(&u32s(&[0, 9, 1, 9]), &u32s(&[0, 0, 1, 1, 2, 2]));
        let out = contrast(&queries, &y, &Temperature::Fixed(0.1), &pairs, &spec.options).unwrap();
        let rows = narrow(&out.per_row);
        assert_eq!((out.anchors, rows[1], rows[3]), (2, 0.0, 0.0));
        assert!((f64::from(rows[0] + rows[2]) / 2.0 - wide(&out.loss)[0]).abs() < 1e-6);
        let grads = out.loss.backward().unwrap();
        let gradient = narrow(grads.get(&queries).unwrap());
        assert!(gradient[8..16].iter().chain(&gradient[24..]).all(|g| *g == 0.0));

        let none = Pairs::labels(&u32s(&[7; 4]), &u32s(&[0; 6]));
        let out = contrast(&queries, &y, &Temperature::Fixed(0.1), &none, &spec.options).unwrap();
        assert_eq!((out.anchors, wide(&out.loss)[0]), (0, 0.0));
        let grads = out.loss.backward().unwrap();
        assert!(narrow(grads.get(&queries).unwrap()).iter().all(|g| *g == 0.0));
    }
}

#[test]
fn all_keys_positive_and_left_out_is_a_loss_of_zero() {
    let case = Case::new(Spec { rule: Rule::All, ..Spec::new(5, 40, 8) }.left_out());
    let out = case.loss();
    assert_eq!(narrow(&out.per_row), [0.0; 5]);
    assert_eq!(narrow(&out.log_sum_exp), [f32::NEG_INFINITY; 5]);
    assert_eq!(out.anchors, 5);
}

#[test]
fn moments_equal_explicit_weights() {
    // The same pairs as lists of every key with the affinity computed outside: no moments there.
    let (b, n, d) = (21usize, 700usize, 18usize);
    let (queries, keys) = (matrix(data::unit(b, d, 1), b, d), matrix(data::unit(n, d, 2), n, d));
    let (oq, ok) = (data::unit(b, 10, 3), data::unit(n, 10, 4));
    let offsets: Vec<u32> = (0..=b).map(|i| (i * n) as u32).collect();
    let indices: Vec<u32> = (0..b).flat_map(|_| 0..n as u32).collect();
    let lists = Pairs::lists(&u32s(&offsets), &u32s(&indices), None);
    let (oq, ok) = (matrix(oq, b, 10), matrix(ok, n, 10));
    let run = |pairs: Pairs| -> Contrast {
        let pairs = pairs.affinity(&oq, &ok, AffinityMap::Half);
        contrast(&queries, &keys, &Temperature::Fixed(0.1), &pairs, &ContrastOptions::default()).unwrap()
    };
    let (moments, explicit) = (run(Pairs::all()), run(lists));
    // Each is within the bound of docs/contrast.md of the truth, with A ≤ 1, σ = 10, K = 2, Do = 10 and |L| ≤ |lse| + σ.
    let (u, sigma) = (crate::case::U, 10.0);
    let long = (520.0 + 2.0 + 10.0 + n as f64 / 64.0) * u;
    let mut worst = 0.0f64;
    for ((m, e), lse) in
        wide(&moments.per_row).iter().zip(wide(&explicit.per_row)).zip(wide(&moments.log_sum_exp))
    {
        let lse_error = (d as f64 + 8.0) * u * sigma + (4.0 + 36.0 + 12.0) * u + u * lse;
        let weights = (10.0 + 6.0) * u * (lse + sigma);
        let bound = 2.0 * (lse_error + weights + long * sigma + 6.0 * u * (lse + sigma));
        worst = worst.max((m - e).abs() / bound);
    }
    println!("moments against explicit weights: {worst:.1e} of the bound");
    assert!(worst <= 1.0);
}

#[test]
fn duplicated_keys_share_the_gradient() {
    [12, 128].into_iter().for_each(duplicated_keys);
}

fn duplicated_keys(d: usize) {
    let (b, n) = (9usize, 64usize);
    let y = data::unit(n, d, 2);
    let twice = matrix([y.clone(), y].concat(), 2 * n, d);
    let keys = Var::from_tensor(&twice).unwrap();
    let kl = data::labels(n, 5, 4);
    let pairs = Pairs::labels(&u32s(&data::labels(b, 5, 3)), &u32s(&[kl.clone(), kl].concat()));
    let queries = matrix(data::unit(b, d, 1), b, d);
    let out =
        contrast(&queries, &keys, &Temperature::Fixed(0.1), &pairs, &ContrastOptions::default()).unwrap();
    let grads = out.loss.backward().unwrap();
    let gradient = bits(grads.get(&keys).unwrap());
    assert!(gradient[..n * d] == gradient[n * d..], "equal keys have equal gradients");
}

#[test]
fn the_gradients_obey_their_identities() {
    // Σ_j ⟨dK_j, y_j⟩ = Σ_i ⟨dQ_i, x_i⟩ = −Σ_i τ_i dτ_i: the loss depends on x, y and τ through ⟨x, y⟩/τ alone.
    for spec in [Spec::new(40, 900, 24), Spec::new(40, 900, 24).left_out()] {
        let spec = Spec { tau: Tau::PerRow(0.1), affinity: Some(AffinityMap::Half), ..spec };
        let case = Case::new(spec);
        let vars = [&case.queries, &case.keys].map(|t| Var::from_tensor(t).unwrap());
        let (temperature, tau) = case.temperature();
        let tau = tau.unwrap();
        let out = contrast(&vars[0], &vars[1], &temperature, &case.pairs, &spec.options).unwrap();
        let grads = out.loss.backward().unwrap();
        let along =
            |v: &Var| -> f64 { wide(grads.get(v).unwrap()).iter().zip(wide(v)).map(|(g, x)| g * x).sum() };
        let (q, k, t) = (along(&vars[0]), along(&vars[1]), -along(&tau));
        let size = wide(&out.log_sum_exp).iter().fold(0.0f64, |m, l| m.max(l.abs())) / 0.1;
        // Relative error of each softmax: at most (2(D + 8)σ + 516 + 36)·u with σ = 10, of terms below `size`.
        let bound = (2.0 * 32.0 * 10.0 + 552.0) * crate::case::U * size;
        println!("identities: {:.1e} of the bound", (q - k).abs().max((q - t).abs()) / bound);
        assert!((q - k).abs() <= bound && (q - t).abs() <= bound, "{q} {k} {t}");
    }
}

#[test]
fn the_symmetric_form_is_the_mean_of_both_directions() {
    let options = ContrastOptions::default();
    // With the products of both directions at once, and too many rows for that.
    for (n, d) in [(70usize, 16usize), (600, 16)] {
        let (x, y) = (matrix(data::unit(n, d, 1), n, d), matrix(data::unit(n, d, 2), n, d));
        let vars = [&x, &y].map(|t| Var::from_tensor(t).unwrap());
        let tau = Var::new(0.1f32, &Device::Cpu).unwrap();
        let learned = Temperature::Learned(tau.as_tensor().clone());
        let out = contrast_symmetric(&vars[0], &vars[1], &learned, &Pairs::diagonal(), &options).unwrap();
        assert_eq!((out.anchors, out.per_row.dims1().unwrap()), (2 * n, 2 * n));
        let grads = out.loss.backward().unwrap();
        let rows = contrast(&vars[0], &vars[1], &learned, &Pairs::diagonal(), &options).unwrap();
        let columns = contrast(&vars[1], &vars[0], &learned, &Pairs::diagonal(), &options).unwrap();
        let both = ((rows.loss + columns.loss).unwrap() * 0.5).unwrap();
        assert_eq!(bits(&out.loss), bits(&both));
        let expected = both.backward().unwrap();
        for var in [&vars[0], &vars[1], &tau] {
            let (got, expected) = (grads.get(var).unwrap(), expected.get(var).unwrap());
            if n > 512 {
                assert_eq!(bits(got), bits(expected));
                continue;
            }
            // Sums in another order; how near the truth both are is the suite's to say.
            let (got, expected) = (narrow(got), narrow(expected));
            let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let off = got.iter().zip(&expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= largest * 2f32.powi(-16), "{off} of {largest}");
        }
    }
    let (n, d) = (70usize, 16usize);
    let (x, y) = (matrix(data::unit(n, d, 1), n, d), matrix(data::unit(n, d, 2), n, d));
    // Lists transposed are labels transposed.
    let (lx, ly) = (data::labels(n, 9, 3), data::labels(n, 9, 4));
    let mut offsets = vec![0u32];
    let mut indices = vec![];
    for a in &lx {
        indices.extend((0..n as u32).filter(|j| ly[*j as usize] == *a));
        offsets.push(indices.len() as u32);
    }
    let by = |pairs: &Pairs| contrast_symmetric(&x, &y, &Temperature::Fixed(0.1), pairs, &options).unwrap();
    let a = by(&Pairs::labels(&u32s(&lx), &u32s(&ly)));
    let b = by(&Pairs::lists(&u32s(&offsets), &u32s(&indices), None));
    assert_eq!(bits(&a.per_row), bits(&b.per_row));
}
