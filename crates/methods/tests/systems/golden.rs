//! Golden files: inputs and results of an implementation in plain PyTorch, float64 (`benches/peers/golden.sh`).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::support::number;

/// What a result may be off by, as a share of its Euclidean norm. A loss ln Z − s is known to the rounding of ln Z, so no case is
/// made of rows alone whose loss is far below it.
pub(crate) const SHARE: f64 = 1e-6;

/// All cases of a system.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    settings: HashMap<String, String>,
}

impl Golden {
    pub(crate) fn read(system: &str) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("{system}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let settings = metadata.metadata().clone().unwrap();
        Self { bytes, settings }
    }

    /// The cases whose name starts so, in order.
    pub(crate) fn cases(&self, prefix: &str) -> Vec<Case<'_>> {
        let mut names: Vec<&str> =
            self.settings.keys().map(String::as_str).filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        assert!(!names.is_empty(), "no case {prefix}");
        let case = |name: &str| Case {
            name: name.to_owned(),
            settings: serde_json::from_str(&self.settings[name]).unwrap(),
            file: SafeTensors::deserialize(&self.bytes).unwrap(),
        };
        names.into_iter().map(case).collect()
    }
}

/// One case.
pub(crate) struct Case<'a> {
    pub(crate) name: String,
    pub(crate) settings: Value,
    file: SafeTensors<'a>,
}

impl Case<'_> {
    /// A setting that is no part of a configuration, taken out of the settings.
    pub(crate) fn take(&mut self, name: &str) -> Value {
        self.settings.as_object_mut().unwrap().remove(name).unwrap_or_else(|| panic!("no setting {name}"))
    }

    /// The configuration.
    pub(crate) fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_value(self.settings.clone()).unwrap()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file.tensor(&format!("{}/{name}", self.name)).is_ok()
    }

    pub(crate) fn input(&self, name: &str) -> Tensor {
        let view = self.file.tensor(&format!("{}/in.{name}", self.name)).unwrap();
        let words: Vec<[u8; 4]> = view.data().chunks_exact(4).map(|x| [x[0], x[1], x[2], x[3]]).collect();
        match view.dtype() {
            Dtype::F32 => {
                let values: Vec<f32> = words.into_iter().map(f32::from_le_bytes).collect();
                Tensor::from_vec(values, view.shape(), &Device::Cpu).unwrap()
            }
            Dtype::U32 => {
                let values: Vec<u32> = words.into_iter().map(u32::from_le_bytes).collect();
                Tensor::from_vec(values, view.shape(), &Device::Cpu).unwrap()
            }
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The inputs `name.0`, `name.1`, ...
    pub(crate) fn inputs(&self, name: &str) -> Vec<Tensor> {
        (0..)
            .take_while(|i| self.has(&format!("in.{name}.{i}")))
            .map(|i| self.input(&format!("{name}.{i}")))
            .collect()
    }

    /// The same as variables.
    pub(crate) fn variables(&self, name: &str) -> Vec<Var> {
        self.inputs(name).iter().map(|x| Var::from_tensor(x).unwrap()).collect()
    }

    pub(crate) fn result(&self, name: &str) -> Vec<f64> {
        let view = self.file.tensor(&format!("{}/out.{name}", self.name)).unwrap();
        assert_eq!(view.dtype(), Dtype::F64);
        view.data().chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect()
    }

    /// Compares with a result, in the Euclidean norm.
    pub(crate) fn check(&self, name: &str, got: &[f64]) -> f64 {
        let truth = self.result(name);
        assert_eq!(got.len(), truth.len(), "{}: {name}", self.name);
        let size = truth.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off = got.iter().zip(&truth).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(size.is_finite() && off.is_finite(), "{}: {name}", self.name);
        let share = off / if size > 0.0 { size } else { 1.0 };
        assert!(share <= SHARE, "{}: {name} is off by {share:.2e} of {size:.3e}", self.name);
        share
    }

    /// Compares a loss and its gradients; prints the worst share.
    pub(crate) fn check_loss(&self, loss: &Tensor, variables: &[Var]) {
        let mut worst = self.check("total", &[number(loss)]);
        let gradients = loss.backward().unwrap();
        for (i, variable) in variables.iter().enumerate() {
            let got: Vec<f64> = match gradients.get(variable) {
                Some(gradient) => flat(gradient),
                None => vec![0.0; variable.elem_count()],
            };
            worst = worst.max(self.check(&format!("gradient.{i}"), &got));
        }
        println!("{}: loss and gradients off by at most {worst:.1e} of their norms", self.name);
    }
}

pub(crate) fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// The tensors of variables.
pub(crate) fn tensors(variables: &[Var]) -> Vec<Tensor> {
    variables.iter().map(|x| x.as_tensor().clone()).collect()
}
