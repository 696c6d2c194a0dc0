//! Augmentation of clips, and how each backend does it.

use consonance::cuda::{DType, Executor, Result, clips as cuda};
use consonance_cpu::clips::{self as cpu, ClipParameters, Frames, Options, Pixels};
use half::{bf16, f16};

use super::{Cpu, OnDevice};
use crate::stored::Stored;

const OP: &str = "test";

/// Clips and what is done to them.
#[derive(Debug, Clone)]
pub struct ClipsCase {
    /// `[B, T·3·H·W]`.
    pub clips: Stored,
    /// Their shape.
    pub frames: Frames,
    /// `[B]`.
    pub parameters: Vec<ClipParameters>,
    /// The size that comes out.
    pub options: Options,
}

impl Cpu {
    pub(super) fn augmented(case: &ClipsCase) -> std::result::Result<Vec<f32>, String> {
        let found =
            case.clips.with_rows(|clips| cpu::augment(&clips?, case.frames, &case.parameters, &case.options));
        Ok(match found.map_err(|error| error.to_string())? {
            Pixels::F32(pixels) => pixels,
            Pixels::F16(pixels) => pixels.into_iter().map(f16::to_f32).collect(),
            Pixels::Bf16(pixels) => pixels.into_iter().map(bf16::to_f32).collect(),
        })
    }
}

impl<E: Executor> OnDevice<E> {
    pub(super) fn augmented(&self, case: &ClipsCase) -> Result<Vec<f32>> {
        let executor = self.executor();
        let clips = executor.upload(OP, &case.clips.bytes())?;
        let matrix = self.matrix(&case.clips, &clips)?;
        let found = cuda::augment(executor, &matrix, case.frames, &case.parameters, &case.options)?;
        found.check(executor)?;
        let len = case.clips.rows() * case.options.frames(case.frames.count).elements();
        Ok(match case.clips.dtype() {
            DType::F32 => self.words(&found.pixels, len)?,
            DType::F16 => self.words::<f16>(&found.pixels, len)?.into_iter().map(f16::to_f32).collect(),
            DType::BF16 => self.words::<bf16>(&found.pixels, len)?.into_iter().map(bf16::to_f32).collect(),
        })
    }
}
