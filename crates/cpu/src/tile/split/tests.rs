use super::*;

fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// What the split leaves out, in units of ‖x‖‖y‖, and how often a sum of `steps` steps rounds.
fn bound(terms: Terms, steps: usize) -> f64 {
    let u = 2f64.powi(-24);
    let (left_out, products) = match terms {
        Terms::One | Terms::TwoByOne | Terms::ThreeByOne => (0.0, 3),
        Terms::Three => (2f64.powi(-15) * 1.0001, 3),
        Terms::Six => (1.01 * u, 6),
    };
    left_out + 1.02 * (17 + products * steps) as f64 * u
}

#[test]
fn scores_are_within_the_bound_and_have_the_same_bits_in_every_shape() {
    let Some(unit) = Unit::new() else { return };
    let (m, n) = (70, 96);
    for d in [1, 31, 32, 33, 128, 515] {
        let ones = [1.0; 128];
        let (x, y) = (values(m * d, 1), values(n * d, 2));
        for terms in [Terms::Three, Terms::Six] {
            let run = |first: usize, rows: usize, key: usize, keys: usize| {
                let (mut packed, mut buffers) = (Packed::default(), Buffers::default());
                let x = Source::new(&x[first * d..], d, (rows, d), &ones);
                unit.pack(terms, x, rows, &mut packed);
                let mut out = vec![f32::NAN; rows.next_multiple_of(SIDE) * 128];
                let y = Source::new(&y[key * d..], d, (n - key, d), &ones);
                unit.scores(terms, &packed, (y, keys), (&mut out, 128), &mut buffers);
                out
            };
            let whole = run(0, m, 0, n);
            let mut worst = 0.0f64;
            for i in 0..m {
                for j in 0..n {
                    let (x, y) = (&x[i * d..][..d], &y[j * d..][..d]);
                    let truth: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    let error = (f64::from(whole[i * 128 + j]) - truth).abs();
                    worst = worst.max(error / (bound(terms, d.div_ceil(SIDE)) * norm(x) * norm(y)));
                }
            }
            println!("scores, D {d}, {terms:?}: {worst:.4} of the bound");
            assert!(worst <= 1.0);
            for (first, rows, key, keys) in [(69, 1, 64, 32), (17, 33, 1, 32), (3, 64, 32, 64)] {
                let part = run(first, rows, key, keys);
                for i in 0..rows {
                    for j in 0..keys {
                        let (a, b) = (part[i * 128 + j], whole[(first + i) * 128 + key + j]);
                        assert_eq!(a.to_bits(), b.to_bits(), "D {d}, row {i}, key {j}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_are_within_the_bound_both_ways() {
    let Some(unit) = Unit::new() else { return };
    let (rows, n) = (64, 96);
    let ones = [1.0; 128];
    for d in [16, 32, 50, 130] {
        let (p, y) = (values(rows * n, 3), values(n * d, 4));
        let (width, mut buffers) = (d.next_multiple_of(SIDE), Buffers::default());
        let mut split = p.clone();
        split.chunks_exact_mut(n).for_each(|row| unit.split(row));
        let mut out = vec![0.5f32; rows * width];
        let y_rows = Source::new(&y, d, (n, d), &ones);
        unit.accumulate(Terms::Three, (&split, n, rows), (y_rows, n), (&mut out, width), &mut buffers);
        let mut transposed = vec![0.5f32; width * rows];
        // The same sums from the other side: p with a row a key.
        let turned: Vec<f32> = (0..n * rows).map(|at| p[at % rows * n + at / rows]).collect();
        let turned = Source::new(&turned, rows, (n, rows), &ones);
        unit.accumulate_transposed(n, y_rows, turned, (&mut transposed, rows), &mut buffers);
        let mut worst = 0.0f64;
        for i in 0..rows {
            for k in 0..d {
                let column: Vec<f32> = (0..n).map(|j| y[j * d + k]).collect();
                let p = &p[i * n..][..n];
                let truth =
                    0.5 + p.iter().zip(&column).map(|(p, y)| f64::from(*p) * f64::from(*y)).sum::<f64>();
                let bound = bound(Terms::Three, n / SIDE) * (norm(p) * norm(&column) + 0.5);
                for got in [out[i * width + k], transposed[k * rows + i]] {
                    worst = worst.max((f64::from(got) - truth).abs() / bound);
                }
            }
        }
        println!("sums, D {d}: {worst:.4} of the bound");
        assert!(worst <= 1.0);
    }
}

#[test]
fn numbers_that_are_bfloat16_are_multiplied_exactly() {
    let Some(unit) = Unit::new() else { return };
    // Integers below 256: every product and sum is exact.
    let (m, n, d) = (32, 64, 40);
    let whole = |n: usize, seed| values(n, seed).iter().map(|x| (x * 100.0).round()).collect::<Vec<f32>>();
    let (x, y) = (whole(m * d, 5), whole(n * d, 6));
    let factors = [0.5; 64];
    for terms in [Terms::One, Terms::TwoByOne, Terms::ThreeByOne, Terms::Three, Terms::Six] {
        let (mut packed, mut buffers) = (Packed::default(), Buffers::default());
        unit.pack(terms, Source::new(&x, d, (m, d), &factors), m, &mut packed);
        let mut out = vec![0.0; m * n];
        unit.scores(terms, &packed, (Source::new(&y, d, (n, d), &factors), n), (&mut out, n), &mut buffers);
        for i in 0..m {
            for j in 0..n {
                let truth: f32 = x[i * d..][..d].iter().zip(&y[j * d..][..d]).map(|(x, y)| x * y).sum();
                assert_eq!(out[i * n + j], truth / 4.0, "{terms:?}");
            }
        }
    }
}
