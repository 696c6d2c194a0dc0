//! Words as counts of letter groups, and a small network over them.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::random::Draws;

/// Letter groups are hashed into so many counts.
pub(crate) const COUNTS: usize = 512;
const HIDDEN: usize = 128;

/// The groups of three letters of some words, counted and scaled to unit norm, `[n, COUNTS]`.
pub(crate) fn counts<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Tensor> {
    let mut out = Vec::new();
    let mut rows = 0;
    for word in words {
        let mut row = vec![0f32; COUNTS];
        let letters: Vec<char> = format!(" {} ", word.to_lowercase()).chars().collect();
        for group in letters.windows(3) {
            let key: Vec<u64> = group.iter().map(|letter| u64::from(u32::from(*letter))).collect();
            row[Draws::new(&key).below(COUNTS)] += 1.0;
        }
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1.0);
        out.extend(row.into_iter().map(|x| x / norm));
        rows += 1;
    }
    Tensor::from_vec(out, (rows, COUNTS), &Device::Cpu)
}

/// A matrix of normal numbers, of deviation 1/√rows.
pub(crate) fn matrix(rows: usize, cols: usize, key: [u64; 2]) -> Result<Var> {
    let mut draws = Draws::new(&[key[0], key[1], 0x6d61_7472]);
    let scale = (1.0 / rows as f32).sqrt();
    Var::from_vec((0..rows * cols).map(|_| scale * draws.normal()).collect(), (rows, cols), &Device::Cpu)
}

/// Linear, ReLU, linear.
pub(crate) struct Tower {
    variables: [Var; 3],
}

impl Tower {
    pub(crate) fn new(input: usize, dim: usize, seed: u64) -> Result<Self> {
        let bias = Var::zeros(HIDDEN, DType::F32, &Device::Cpu)?;
        Ok(Self { variables: [matrix(input, HIDDEN, [seed, 1])?, bias, matrix(HIDDEN, dim, [seed, 2])?] })
    }

    pub(crate) fn variables(&self) -> Vec<Var> {
        self.variables.to_vec()
    }

    /// `[n, input]` to `[n, dim]`, not normalized.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        forward(&self.variables, input)
    }
}

/// The tower over given variables.
pub(crate) fn forward(variables: &[Var], input: &Tensor) -> Result<Tensor> {
    input.matmul(&variables[0])?.broadcast_add(&variables[1])?.relu()?.matmul(&variables[2])
}
