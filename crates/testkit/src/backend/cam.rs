//! Class activation maps, blends and backgrounds, and how each backend makes them.

use consonance::cuda::cam as cuda;
use consonance::cuda::{DType, Executor, Memory, Result, Words};
use consonance_cpu::cam::{self as cpu, Options};

use super::bank::floats;
use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Maps of a batch.
#[derive(Debug, Clone)]
pub struct CamCase {
    /// `[B, K·h·w]`.
    pub activations: Stored,
    /// `[B, K]`, f32.
    pub gradients: Stored,
    /// Sizes, and which channels count.
    pub options: Options,
}

/// A blend.
#[derive(Debug, Clone)]
pub struct BlendCase {
    /// `[B, C·H·W]`.
    pub images: Stored,
    /// Colors `[B, C]` or `[1, C]`, or images `[B, C·H·W]`.
    pub other: Stored,
    /// Which of both.
    pub is_color: bool,
    /// `[B, H·W]`, f32.
    pub mask: Stored,
}

/// Backgrounds of a batch.
#[derive(Debug, Clone)]
pub struct BackgroundsCase {
    /// `[B, C·H·W]`.
    pub images: Stored,
    /// `[B, H·W]`, f32.
    pub mask: Stored,
    /// H and W.
    pub size: [usize; 2],
    /// Where the object is.
    pub threshold: f32,
    /// Rectangles without their last row and column.
    pub short: bool,
}

/// All numbers as the storage type rounds them.
fn rounded(dtype: DType, values: Vec<f32>) -> Vec<f32> {
    let cols = values.len().max(1);
    Stored::new(dtype, &values, cols).wide().into_iter().map(|v| v as f32).collect()
}

fn text(error: consonance_cpu::Error) -> String {
    error.to_string()
}

impl Cpu {
    pub(super) fn cam_of(case: &CamCase) -> std::result::Result<Vec<f32>, String> {
        Self::rows(&case.activations, &case.gradients, |activations, gradients| {
            cpu::cam(activations, gradients, &case.options)
        })
    }

    /// Rounded to the images' type, as the op does.
    pub(super) fn blend_of(case: &BlendCase) -> std::result::Result<Vec<f32>, String> {
        let blend = case.other.with_rows(|other| {
            let other = other.map_err(text)?;
            let other = if case.is_color { cpu::Other::Colors(other) } else { cpu::Other::Images(other) };
            Self::rows(&case.images, &case.mask, |images, mask| cpu::masked_blend(images, &other, mask))
        })?;
        Ok(rounded(case.images.dtype(), blend))
    }

    pub(super) fn backgrounds_of(case: &BackgroundsCase) -> std::result::Result<cpu::Backgrounds, String> {
        Self::rows(&case.images, &case.mask, |images, mask| {
            cpu::backgrounds(images, mask, case.size, case.threshold, case.short)
        })
    }
}

impl<E: Executor> OnDevice<E> {
    fn elements(&self, dtype: DType, memory: &Memory, len: usize) -> Result<Vec<f32>> {
        Ok(floats(dtype, &self.words::<u8>(memory, len * dtype.bytes())?))
    }

    /// f32 rows one behind the other.
    fn dense(&self, rows: &Stored) -> Result<(Memory, usize)> {
        let values: Vec<f32> = (0..rows.rows()).flat_map(|row| rows.row(row).to_vec()).collect();
        Ok((self.executor().upload(OP, bytemuck::cast_slice(&values))?, values.len()))
    }

    pub(super) fn cam_of(&self, case: &CamCase) -> Result<Vec<f32>> {
        let executor = self.executor();
        let activations = executor.upload(OP, &case.activations.bytes())?;
        let (gradients, len) = self.dense(&case.gradients)?;
        let matrix = self.matrix(&case.activations, &activations)?;
        let gradients = Words::new(OP, "gradients", &gradients, len)?;
        let maps = cuda::cam(executor, &matrix, gradients, &case.options)?.check(executor)?;
        let [height, width] = case.options.to;
        self.words(&maps, case.activations.rows() * height * width)
    }

    pub(super) fn blend_of(&self, case: &BlendCase) -> Result<Vec<f32>> {
        let executor = self.executor();
        let images = executor.upload(OP, &case.images.bytes())?;
        let other = executor.upload(OP, &case.other.bytes())?;
        let (mask, len) = self.dense(&case.mask)?;
        let (images, other) = (self.matrix(&case.images, &images)?, self.matrix(&case.other, &other)?);
        let other = if case.is_color { cuda::Other::Colors(other) } else { cuda::Other::Images(other) };
        let mask = Words::new(OP, "mask", &mask, len)?;
        let blend = cuda::masked_blend(executor, &images, &other, mask)?.check(executor)?;
        self.elements(case.images.dtype(), &blend, case.images.rows() * case.images.cols())
    }

    pub(super) fn backgrounds_of(&self, case: &BackgroundsCase) -> Result<cpu::Backgrounds> {
        let executor = self.executor();
        let images = executor.upload(OP, &case.images.bytes())?;
        let (mask, len) = self.dense(&case.mask)?;
        let (images, mask) = (self.matrix(&case.images, &images)?, Words::new(OP, "mask", &mask, len)?);
        let found = cuda::backgrounds(executor, &images, mask, case.size, case.threshold, case.short)?
            .check(executor)?;
        let count = case.images.rows();
        Ok(cpu::Backgrounds {
            images: self.elements(case.images.dtype(), &found.images, count * case.images.cols())?,
            rectangles: self.words(&found.rectangles, 4 * count)?,
            found: self.words(&found.found, count)?,
        })
    }
}
