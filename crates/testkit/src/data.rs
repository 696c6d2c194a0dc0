//! Deterministic test data: the same seed gives the same numbers on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Row counts at which tiled code breaks: nothing, one, primes, a tile and one more or less.
pub const AWKWARD_ROWS: [usize; 10] = [0, 1, 2, 13, 63, 64, 65, 127, 257, 521];

/// The seeded generator of all test data.
pub fn generator(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// `rows * cols` standard normal values.
pub fn normal(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut rng = generator(seed);
    (0..rows * cols).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
}

/// `rows` unit vectors of dimension `cols`, uniform on the sphere.
pub fn unit(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut x = normal(rows, cols, seed);
    for row in x.chunks_exact_mut(cols.max(1)) {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
        row.iter_mut().for_each(|v| *v /= norm);
    }
    x
}

/// Integers in −3..=3 as floats: every product and sum is exact in any order, so results compare bit for bit,
/// and ties come by the hundreds.
pub fn integers(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut rng = generator(seed);
    (0..rows * cols).map(|_| rng.random_range(-3i32..=3) as f32).collect()
}

/// `rows` labels in `0..classes`.
pub fn labels(rows: usize, classes: u32, seed: u64) -> Vec<u32> {
    let mut rng = generator(seed);
    (0..rows).map(|_| rng.random_range(0..classes.max(1))).collect()
}

/// The same values in f64, for the reference.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}
