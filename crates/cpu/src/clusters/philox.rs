//! A counter-based random generator: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
//! as easy as 1, 2, 3", SC 2011.
//!
//! A draw is a pure function of (seed, class label, step, draw): no state runs from class to class, so a class
//! added to the batch leaves the numbers of the others alone, and a kernel on another device draws the same.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32 with ten rounds: four words from a counter of four words and a key of two.
#[must_use]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut c = counter;
    let mut k = key;
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        let (a_high, a_low) = ((a >> 32) as u32, a as u32);
        let (b_high, b_low) = ((b >> 32) as u32, b as u32);
        c = [b_high ^ c[1] ^ k[0], b_low, a_high ^ c[3] ^ k[1], a_low];
    }
    c
}

/// The draws of one class: the seed is the key, the class label and the step stand in the counter.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    key: [u32; 2],
    label: u32,
}

impl Draws {
    /// The generator of the class `label` under `seed`.
    #[must_use]
    pub fn new(seed: u64, label: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], label }
    }

    /// The four words of (`step`, `draw`): counter `[draw low, draw high, step, label]`.
    #[must_use]
    pub fn words(&self, step: u32, draw: u64) -> [u32; 4] {
        philox4x32_10([draw as u32, (draw >> 32) as u32, step, self.label], self.key)
    }

    /// A uniform number in [0, 1) with 53 random bits: 27 high bits of the first word, 26 of the second.
    #[must_use]
    pub fn uniform(&self, step: u32, draw: u64) -> f64 {
        let [a, b, ..] = self.words(step, draw);
        (f64::from(a >> 5) * 67_108_864.0 + f64::from(b >> 6)) / 9_007_199_254_740_992.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn known_answers_of_random123() {
        let zeros = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi =
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn uniforms_stay_below_one_and_fill_the_unit_interval() {
        let draws = Draws::new(7, 3);
        let values: Vec<f64> = (0..20_000).map(|i| draws.uniform(1, i)).collect();
        assert!(values.iter().all(|u| (0.0..1.0).contains(u)));
        // The mean of n uniforms has standard deviation 1/sqrt(12 n) = 0.00204; five of them.
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((mean - 0.5).abs() < 5.0 * 0.00204, "{mean}");
    }
}
