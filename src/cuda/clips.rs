//! Augmentation of video clips on a device. Launches of `kernels/clips.cu`.

use consonance_cpu::Error as Bad;
use consonance_cpu::clips::{self as cpu, ClipParameters, ColorStep, Frames, Options};

use super::abi::{self, CLIP_CHUNK, CLIP_PIXELS, CLIP_TILE, CLIP_WORDS, TILE_THREADS};
use super::executor::launch;
use super::rows::check_sides;
use super::{Executor, Matrix, Memory, Result};

const OP: &str = "augment_clips";
const FAMILY: &str = "clips";
const THREADS: u32 = TILE_THREADS as u32;

const FLIP: u32 = 1;
const GRAYSCALE: u32 = 2;
const BLUR: u32 = 4;
const PIVOT: u32 = 8;

/// Augmented clips, under way.
#[derive(Debug)]
pub struct Augmented {
    /// `[B, T, 3, H, W]` in the dtype of the clips.
    pub pixels: Memory,
    status: Memory,
}

impl Augmented {
    /// Waits for the clips and says whether all pixels that came in were in [0, 1]; those of other clips are right anyway.
    ///
    /// # Errors
    /// [`Error::Argument`](super::Error::Argument) for the first clip with a pixel that is NaN or outside, and errors of the
    /// driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        let mut words = [0u32; 1];
        executor.download(OP, &self.status, bytemuck::cast_slice_mut(&mut words))?;
        match words[0] {
            u32::MAX => Ok(()),
            clip => Err(cpu::bad_pixels(clip as usize).into()),
        }
    }
}

/// Augments clips `[B, T·3·H·W]`, whose rows are clips `[T, 3, H, W]` of `frames` with values in [0, 1], to frames of the
/// options' size: every frame of clip i by `parameters[i]`. Computed in `f32` and rounded once; returns without waiting for the
/// device.
///
/// # Errors
/// [`Error::Argument`](super::Error::Argument) for shapes that disagree, parameters out of range and more than 2^31 - 1
/// elements in a clip; [`Error::OutOfMemory`](super::Error::OutOfMemory), [`Error::NoKernel`](super::Error::NoKernel) and
/// [`Error::Launch`](super::Error::Launch), also for more than 65,535 clips or frames.
pub fn augment(
    executor: &dyn Executor,
    clips: &Matrix<'_>,
    frames: Frames,
    parameters: &[ClipParameters],
    options: &Options,
) -> Result<Augmented> {
    check_sides(OP, ["clips"; 2], clips, clips)?;
    cpu::check((clips.rows(), clips.cols()), frames, parameters, options)?;
    let size = options.frames(frames.count);
    if size.elements() > i32::MAX as usize {
        let got = [size.count, 3, size.height, size.width];
        return Err(Bad::shape(OP, "size", &got, "clips of at most 2^31 - 1 elements").into());
    }
    let dtype = clips.dtype();
    let (chunks, radius) = (chunk_count(size), options.blur_radius);
    let pixels = executor.allocate(OP, clips.rows() * size.elements() * dtype.bytes())?;
    let status = executor.upload(OP, &[0xff; 4])?;
    let words: Vec<u32> = parameters.iter().flat_map(words).collect();
    let words = executor.upload(OP, bytemuck::cast_slice(&words))?;
    let is_blurred = parameters.iter().any(|parameters| parameters.blur.is_some());
    let is_plain = parameters.iter().any(|parameters| parameters.blur.is_none());
    let has_contrast = parameters.iter().any(|parameters| parameters.jitter.is_some());
    let weights = match is_blurred {
        true => {
            let of_clip = |parameters: &ClipParameters| match parameters.blur {
                Some(sigma) => cpu::blur_weights(sigma, radius),
                None => vec![0.0; radius + 1],
            };
            let weights: Vec<f32> = parameters.iter().flat_map(of_clip).collect();
            Some(executor.upload(OP, bytemuck::cast_slice(&weights))?)
        }
        false => None,
    };
    let sums = match has_contrast {
        true => Some(executor.scratch(OP, clips.rows() * 3 * (chunks + 1) * size_of::<f32>())?),
        false => None,
    };
    let pivots = sums.as_ref().map_or(0, Memory::address);
    let params = abi::Clips {
        clips: clips.address(),
        clip_stride: clips.stride() as u64,
        outputs: pixels.address(),
        parameters: words.address(),
        weights: weights.as_ref().map_or(0, Memory::address),
        partials: pivots + (clips.rows() * 3 * size_of::<f32>()) as u64,
        pivots,
        status: status.address(),
        clip_count: clips.rows() as u32,
        frames: frames.count as u32,
        height: frames.height as u32,
        width: frames.width as u32,
        out_height: size.height as u32,
        out_width: size.width as u32,
        radius: radius as u32,
        chunk_count: chunks as u32,
    };
    let run = |step: &str, grid: [usize; 3], shared: u32| {
        let entry = match step {
            "pivot" => "clips_pivot".to_owned(),
            step => format!("clips_{step}_{}", dtype.suffix()),
        };
        let grid = grid.map(|blocks| blocks as u64);
        // SAFETY: the clips hold `frames.elements()` elements a row, as was checked; boxes lie within the frames; outputs, words,
        // weights, sums and the status were allocated for these numbers of clips, chunks and pixels.
        unsafe { launch(executor, (OP, FAMILY, &entry), grid, (THREADS, shared), &params) }
    };
    let clip_count = clips.rows();
    run("check", [frames.elements().div_ceil(CLIP_CHUNK), clip_count, 1], 0)?;
    if has_contrast {
        run("sum", [chunks, 1, clip_count], THREADS / 32 * size_of::<f32>() as u32)?;
        run("pivot", [clip_count, 1, 1], 0)?;
    }
    if is_plain {
        run("plain", [size.plane().div_ceil(CLIP_PIXELS), size.count, clip_count], 0)?;
    }
    if is_blurred {
        let tiles = size.height.div_ceil(CLIP_TILE) * size.width.div_ceil(CLIP_TILE);
        run("blurred", [tiles, size.count, clip_count], blurred_shared_bytes(radius))?;
    }
    Ok(Augmented { pixels, status })
}

/// Blocks that sum the pixels of a clip.
fn chunk_count(size: Frames) -> usize {
    (size.count * size.plane()).div_ceil(CLIP_CHUNK)
}

/// Shared memory of `clips_blurred_*`: a tile with its borders for every channel, and the weights.
fn blurred_shared_bytes(radius: usize) -> u32 {
    let side = CLIP_TILE + 2 * radius;
    ((3 * side * side + radius + 1) * size_of::<f32>()) as u32
}

/// The parameters of a clip as `clips.cu` reads them.
fn words(parameters: &ClipParameters) -> [u32; CLIP_WORDS] {
    let crop = parameters.crop;
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(parameters.flip, FLIP)
        | flag(parameters.grayscale, GRAYSCALE)
        | flag(parameters.blur.is_some(), BLUR)
        | flag(parameters.jitter.is_some(), PIVOT);
    let mut words = [0; CLIP_WORDS];
    let box_of = [crop.top, crop.left, crop.height, crop.width].map(|side| side as u32);
    words[..4].copy_from_slice(&box_of);
    words[4] = flags;
    if let Some(jitter) = &parameters.jitter {
        for (step, at) in jitter.order.iter().zip(0..) {
            let number = match step {
                ColorStep::Brightness => 1,
                ColorStep::Contrast => 2,
                ColorStep::Saturation => 3,
                ColorStep::Hue => 4,
            };
            words[5] |= number << (8 * at);
            words[5 + number as usize] = jitter.factor(*step).to_bits();
        }
    }
    words[10] = parameters.solarize.unwrap_or(2.0).to_bits();
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use consonance_cpu::clips::ColorJitter;

    #[test]
    fn plans_fit_the_kernels() {
        let size = Frames { count: 16, height: 224, width: 224 };
        assert_eq!(chunk_count(size), 392);
        assert_eq!(chunk_count(Frames { count: 1, height: 1, width: 1 }), 1);
        assert_eq!(blurred_shared_bytes(11), 4 * (3 * 54 * 54 + 12));
        // The least that any device of sm_80 and newer gives a block.
        assert!(blurred_shared_bytes(cpu::MAX_BLUR_RADIUS) <= 99 * 1024);
    }

    #[test]
    fn words_hold_the_parameters() {
        use ColorStep::{Brightness, Contrast, Hue, Saturation};
        let order = [Hue, Brightness, Saturation, Contrast];
        let jitter = ColorJitter { brightness: 0.5, contrast: 1.5, saturation: 0.25, hue: -0.125, order };
        let parameters = ClipParameters {
            flip: true,
            jitter: Some(jitter),
            blur: Some(1.0),
            solarize: Some(0.5),
            ..ClipParameters::plain(7, 9)
        };
        let bits = |x: f32| x.to_bits();
        let factors = [0.5, 1.5, 0.25, -0.125].map(bits);
        let expected = [0, 0, 7, 9, FLIP | BLUR | PIVOT, 0x0203_0104];
        let words = words(&parameters);
        assert_eq!(words[..6], expected);
        assert_eq!(words[6..10], factors);
        assert_eq!(words[10..], [bits(0.5), 0]);
        assert_eq!(super::words(&ClipParameters::plain(7, 9)), [0, 0, 7, 9, 0, 0, 0, 0, 0, 0, bits(2.0), 0]);
    }
}
