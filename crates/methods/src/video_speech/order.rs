//! Order prediction: which permutation the parts of a clip were shuffled by.

use candle_core::{D, DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensors::{log_sum_exp, mix_bits, normal};

const METHOD: &str = "order prediction";

/// Settings of an [`OrderHead`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrderConfig {
    /// Parts n of a clip, 2 to 5: there are n! orders.
    pub parts: usize,
    /// Width of the hidden layer.
    pub hidden: usize,
}

impl Default for OrderConfig {
    fn default() -> Self {
        Self { parts: 3, hidden: 128 }
    }
}

/// A head that tells from the features of a clip's shuffled parts which of the n! orders they are in: linear, ReLU, linear,
/// and cross-entropy (Misra, Zitnick, Hebert, "Shuffle and Learn", ECCV 2016; Lee et al., "Unsupervised Representation
/// Learning by Sorting Sequences", ICCV 2017).
#[derive(Debug)]
pub struct OrderHead {
    config: OrderConfig,
    dimension: usize,
    /// All orders of 0..n, lexicographic.
    orders: Vec<Vec<u32>>,
    seed: u64,
    /// `[n D, H]`, `[H]`, `[H, n!]`, `[n!]`.
    variables: [Var; 4],
}

impl OrderHead {
    /// A head for features of `dimension`, with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Argument`] for settings out of range and a dimension of 0.
    pub fn new(config: OrderConfig, dimension: usize, seed: u64, device: &Device) -> Result<Self> {
        if !(2..=5).contains(&config.parts) {
            return Err(Error::argument(METHOD, "parts", config.parts, "2 to 5"));
        }
        for (name, value) in [("hidden", config.hidden), ("dimension", dimension)] {
            if value == 0 {
                return Err(Error::argument(METHOD, name, 0, "at least 1"));
            }
        }
        let orders = permutations(config.parts);
        let (input, hidden) = (config.parts * dimension, config.hidden);
        let weights = |rows: usize, cols: usize, key: u64| -> Result<Var> {
            let deviation = (2.0 / rows as f64).sqrt();
            let key = mix_bits(seed, key);
            let values = (0..rows * cols).map(|i| (deviation * normal(key, i as u64)) as f32).collect();
            Ok(Var::from_vec::<_, f32>(values, (rows, cols), device)?)
        };
        let zeros = |n: usize| Ok::<_, Error>(Var::zeros(n, DType::F32, device)?);
        let variables = [
            weights(input, hidden, 0)?,
            zeros(hidden)?,
            weights(hidden, orders.len(), 1)?,
            zeros(orders.len())?,
        ];
        Ok(Self { config, dimension, orders, seed, variables })
    }

    /// The variables, to be trained with the encoder.
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// All orders: part k of a clip shuffled by order o is part `orders()[o][k]` of the clip.
    pub fn orders(&self) -> &[Vec<u32>] {
        &self.orders
    }

    /// An order for every clip of a batch, `[rows]` u32, uniform; the same for the same step.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn draw(&self, rows: usize, step: u64) -> Result<Tensor> {
        let key = mix_bits(self.seed, step.wrapping_add(2));
        let count = self.orders.len() as u128;
        let order = |row: usize| ((u128::from(mix_bits(key, row as u64)) * count) >> 64) as u32;
        let orders: Vec<u32> = (0..rows).map(order).collect();
        Ok(Tensor::from_vec(orders, rows, self.variables[0].device())?)
    }

    /// The parts of every clip in its drawn order: `features` `[B, n, D]`, `orders` `[B]` u32.
    ///
    /// # Errors
    /// [`Error::Argument`] for clips of another number of parts, shapes that disagree, and orders that are not there.
    pub fn shuffle(&self, features: &Tensor, orders: &Tensor) -> Result<Tensor> {
        let rows = self.check(features, orders)?;
        let parts = self.config.parts as u32;
        let of_rows = orders.to_vec1::<u32>()?;
        let order = |(row, order): (usize, &u32)| {
            self.orders[*order as usize].iter().map(move |part| row as u32 * parts + part)
        };
        let index: Vec<u32> = of_rows.iter().enumerate().flat_map(order).collect();
        let index = Tensor::new(index, features.device())?;
        let flat = features.reshape((rows * self.config.parts, self.dimension))?;
        Ok(flat.index_select(&index, 0)?.reshape(features.shape())?)
    }

    /// The mean cross-entropy of the orders `[B]` u32 from the features `[B, n, D]` f32 of the shuffled parts; gradients
    /// arrive at the features and the variables.
    ///
    /// # Errors
    /// As [`shuffle`](Self::shuffle).
    pub fn loss(&self, shuffled: &Tensor, orders: &Tensor) -> Result<Tensor> {
        let rows = self.check(shuffled, orders)?;
        let input = shuffled.reshape((rows, self.config.parts * self.dimension))?;
        let [w1, b1, w2, b2] = self.variables.each_ref().map(Var::as_tensor);
        let hidden = input.matmul(w1)?.broadcast_add(b1)?.relu()?;
        let logits = hidden.matmul(w2)?.broadcast_add(b2)?;
        let own = logits.gather(&orders.unsqueeze(1)?, D::Minus1)?.squeeze(1)?;
        Ok((log_sum_exp(&logits)? - own)?.mean_all()?)
    }

    fn check(&self, features: &Tensor, orders: &Tensor) -> Result<usize> {
        let (parts, dimension) = (self.config.parts, self.dimension);
        let rows = match (features.dims(), features.dtype()) {
            (&[rows, p, d], DType::F32) if rows > 0 && p == parts && d == dimension => rows,
            (dims, dtype) => {
                let got = format!("{dims:?} of {dtype:?}");
                return Err(Error::argument(
                    METHOD,
                    "features",
                    got,
                    format!("[B, {parts}, {dimension}] of F32"),
                ));
            }
        };
        crate::tensors::check_labels(METHOD, "orders", orders, rows)?;
        let count = self.orders.len();
        match orders.to_vec1::<u32>()?.into_iter().find(|order| *order as usize >= count) {
            Some(order) => Err(Error::argument(METHOD, "orders", order, format!("orders in 0..{count}"))),
            None => Ok(rows),
        }
    }
}

/// All orders of 0..n, lexicographic.
fn permutations(n: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for _ in 0..n {
        all = all
            .iter()
            .flat_map(|begun: &Vec<u32>| {
                let left = (0..n as u32).filter(|part| !begun.contains(part));
                left.map(|part| begun.iter().copied().chain([part]).collect()).collect::<Vec<_>>()
            })
            .collect();
    }
    all
}
