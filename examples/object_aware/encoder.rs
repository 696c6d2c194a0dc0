//! The network and the projector behind it.

use candle_core::{Device, Result, Tensor, Var};

use crate::network::Network;
use crate::random::Draws;

/// A network whose last layer is the first of the projector, which is the published one: linear, batch normalization, ReLU, linear.
pub(crate) struct Encoder {
    pub(crate) network: Network,
    weights: Var,
    bias: Var,
}

impl Encoder {
    pub(crate) fn new(network: Network, seed: u64) -> Result<Self> {
        let dim = network.dim();
        let (mut draws, deviation) = (Draws::new(&[seed, 0x7072_6f6a]), (2.0 / dim as f32).sqrt());
        let weights: Vec<f32> = (0..dim * dim).map(|_| deviation * draws.normal()).collect();
        let bias = Var::zeros((1, dim), candle_core::DType::F32, &Device::Cpu)?;
        Ok(Self { network, weights: Var::from_vec(weights, (dim, dim), &Device::Cpu)?, bias })
    }

    /// Everything that is trained.
    pub(crate) fn variables(&self) -> Vec<Var> {
        vec![self.network.parameters().clone(), self.weights.clone(), self.bias.clone()]
    }

    /// Behind the network's last layer.
    pub(crate) fn project(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.relu()?.matmul(self.weights.as_tensor())?.broadcast_add(self.bias.as_tensor())
    }
}
