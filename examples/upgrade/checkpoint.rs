//! Files of a run: named tensors as safetensors, written to a temporary name and renamed.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Failure, failure};

/// Writes tensors and text values; the file is whole or not there.
pub(crate) fn save(
    path: &Path,
    tensors: &[(String, Tensor)],
    notes: &HashMap<String, String>,
) -> Result<(), Failure> {
    let mut parts = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let flat = tensor.flatten_all()?;
        let (dtype, bytes) = match tensor.dtype() {
            DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::U32 => (Dtype::U32, flat.to_vec1::<u32>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::I64 => (Dtype::I64, flat.to_vec1::<i64>()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::U8 => (Dtype::U8, flat.to_vec1::<u8>()?),
            other => return Err(failure(format!("{}: tensor `{name}` has dtype {other:?}", path.display()))),
        };
        parts.push((name.as_str(), dtype, tensor.dims().to_vec(), bytes));
    }
    let mut views = Vec::with_capacity(parts.len());
    for (name, dtype, dims, bytes) in &parts {
        let bytes: &Vec<u8> = bytes;
        views.push((*name, TensorView::new(*dtype, dims.clone(), bytes)?));
    }
    let bytes = safetensors::serialize(views, Some(notes.clone()))?;
    Ok(consonance_metrics::write_atomically(path, bytes)?)
}

/// What [`save`] wrote.
pub(crate) struct Saved {
    tensors: HashMap<String, Tensor>,
    notes: HashMap<String, String>,
    path: String,
}

impl Saved {
    /// Reads a file.
    pub(crate) fn load(path: &Path) -> Result<Self, Failure> {
        let shown = path.display().to_string();
        let wrong =
            |what: &dyn std::fmt::Display| failure(format!("{shown}: not a file of this program: {what}"));
        let bytes = std::fs::read(path).map_err(|e| failure(format!("{shown}: {e}")))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(&e))?;
        let notes = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(&e))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::U32 => DType::U32,
                Dtype::I64 => DType::I64,
                Dtype::U8 => DType::U8,
                other => return Err(wrong(&format!("tensor `{name}` has dtype {other:?}"))),
            };
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
            tensors.insert(name, tensor);
        }
        Ok(Self { tensors, notes, path: shown })
    }

    /// One tensor by name.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, Failure> {
        self.tensors.get(name).cloned().ok_or_else(|| failure(format!("{}: no tensor `{name}`", self.path)))
    }

    /// The tensors whose names start with `prefix`, without it.
    pub(crate) fn under(&self, prefix: &str) -> HashMap<String, Tensor> {
        let strip = |(name, tensor): (&String, &Tensor)| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.tensors.iter().filter_map(strip).collect()
    }

    /// A number among the text values.
    pub(crate) fn number(&self, name: &str) -> Result<usize, Failure> {
        let found = self.notes.get(name).and_then(|text| text.parse().ok());
        found.ok_or_else(|| failure(format!("{}: no number `{name}`", self.path)))
    }
}
