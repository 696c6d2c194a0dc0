//! Orthogonal Procrustes.

use candle_core::Tensor;
use consonance_methods::{Error, Procrustes};
use consonance_testkit::data;

use crate::support::*;

/// An orthogonal matrix as a product of reflections, in f64.
fn orthogonal(d: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut q: Vec<Vec<f64>> = (0..d).map(|i| (0..d).map(|j| f64::from(i == j)).collect()).collect();
    for v in rows(&data::widen(&data::unit(d, d, seed)), d) {
        let v = unit(&v);
        for row in &mut q {
            let p = 2.0 * dot(row, &v);
            row.iter_mut().zip(&v).for_each(|(x, v)| *x -= p * v);
        }
    }
    q
}

#[test]
fn a_rotation_is_recovered() {
    let (n, d) = (60, 8);
    let new = data::unit(n, d, 1);
    let q = orthogonal(d, 2);
    let old: Vec<f32> = rows(&data::widen(&new), d)
        .iter()
        .flat_map(|x| (0..d).map(|j| (0..d).map(|i| x[i] * q[i][j]).sum::<f64>() as f32).collect::<Vec<_>>())
        .collect();
    let (new, old) = (matrix(&new, n, d), matrix(&old, n, d));
    let fitted = Procrustes::fit(&new, &old).unwrap();
    let got = fitted.rotation().to_vec2::<f32>().unwrap();
    for i in 0..d {
        for j in 0..d {
            // The pairs are rounded to f32; the map sees their mean.
            assert!((f64::from(got[i][j]) - q[i][j]).abs() < 8.0 * U, "{i}, {j}");
        }
    }
    let mapped = fitted.to_old(&new).unwrap();
    let worst = (mapped - &old).unwrap().abs().unwrap().max_all().unwrap();
    assert!(number(&worst) < 4.0 * d as f64 * U);
    let back = (fitted.to_new(&old).unwrap() - &new).unwrap().abs().unwrap().max_all().unwrap();
    assert!(number(&back) < 4.0 * d as f64 * U);
    assert!(fitted.singular_values().windows(2).all(|w| w[0] >= w[1]));
}

#[test]
fn no_other_orthogonal_map_comes_closer() {
    let (n, d) = (40, 5);
    let (new, old) = (matrix(&data::unit(n, d, 3), n, d), matrix(&data::unit(n, d, 4), n, d));
    let fitted = Procrustes::fit(&new, &old).unwrap();
    let residual =
        |r: &Tensor| number(&(new.matmul(r).unwrap() - &old).unwrap().sqr().unwrap().sum_all().unwrap());
    let best = residual(fitted.rotation());
    for seed in 10..30 {
        let q: Vec<f32> = orthogonal(d, seed).concat().iter().map(|x| *x as f32).collect();
        let q = matrix(&q, d, d);
        assert!(residual(&q) > best);
        assert!(residual(&fitted.rotation().matmul(&q).unwrap()) > best);
    }
}

#[test]
fn the_map_is_semi_orthogonal_between_different_dimensions() {
    for (dn, d_old) in [(6, 4), (4, 6)] {
        let (new, old) = (data::unit(50, dn, 5), data::unit(50, d_old, 6));
        let fitted = Procrustes::fit(&matrix(&new, 50, dn), &matrix(&old, 50, d_old)).unwrap();
        let r = fitted.rotation();
        assert_eq!(r.dims(), [dn, d_old]);
        let gram = if dn < d_old { r.matmul(&r.t().unwrap()) } else { r.t().unwrap().matmul(r) }.unwrap();
        let d = dn.min(d_old);
        for (i, row) in gram.to_vec2::<f32>().unwrap().iter().enumerate() {
            for (j, x) in row.iter().enumerate() {
                assert!((f64::from(*x) - f64::from(i == j)).abs() < 2.0 * d as f64 * U);
            }
        }
        assert_eq!(fitted.to_old(&matrix(&new, 50, dn)).unwrap().dims(), [50, d_old]);
    }
}

#[test]
fn chunks_do_not_matter_and_bad_input_is_refused() {
    let (n, d) = (5000, 3);
    let (new, old) = (matrix(&data::unit(n, d, 3), n, d), matrix(&data::unit(n, d, 4), n, d));
    assert!(Procrustes::fit(&new, &old).is_ok());
    let message = |r: Result<Procrustes, Error>| r.unwrap_err().to_string();
    let short = old.narrow(0, 0, n - 1).unwrap();
    assert_eq!(
        message(Procrustes::fit(&new, &short)),
        "procrustes: `old` is 4999 rows, expected 5000 rows, as `new`"
    );
    let mut bad = data::unit(n, d, 3);
    bad[4500 * d + 1] = f32::INFINITY;
    assert!(message(Procrustes::fit(&matrix(&bad, n, d), &old)).contains("not finite in row 4500"));
    assert!(message(Procrustes::fit(&new.narrow(0, 0, 0).unwrap(), &old)).contains("at least one row"));
}
