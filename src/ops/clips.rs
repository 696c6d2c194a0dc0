//! Augmentation of video clips.

use candle_core::{Device, Tensor};
use consonance_cpu::clips::{self as backend, ClipParameters, Frames, Options, Pixels};

use super::place::Place;
use super::view::Matrix;
use crate::{Error, Result, cuda};

const OP: &str = "augment_clips";

/// Augments video clips with one set of parameters for all frames of a clip, so that colors, box and blur do not flicker: crop
/// and bilinear resampling, flip, color jitter, grayscale, Gaussian blur, solarization, in this order, as in the training of
/// CVRL (Qian, Meng, Gong, Yang, Wang, Belongie, Cui, "Spatiotemporal Contrastive Video Representation Learning", CVPR 2021,
/// section 3.3, and its public code).
///
/// - `clips` `[B, T, 3, H, W]`: `f32`, `f16` or `bf16` in [0, 1], red, green, blue; any strides;
/// - `parameters`: one for each of the B clips, see [`ClipParameters`];
/// - `options`: the size H′ × W′ of the frames that come out, and how far a blur reaches.
///
/// Gives `[B, T, 3, H′, W′]` in the dtype of the clips, computed in `f32` and rounded once. A clip gives the same bits alone as
/// in a batch. For parameters of each frame alone, give frames as clips of one: `[B·T, 1, 3, H, W]`. There is no gradient:
/// images are data.
///
/// With I(y, x) bilinear between the centers of pixels of the box and constant beyond the outermost ones, the frame that comes
/// out is J(y, x) = I((y + ½) h/H′ − ½, (x + ½) w/W′ − ½) for a box of h × w, mirrored when it is flipped. Then each step of
/// the jitter, clipped to [0, 1]: f J; m + f (J − m) with the mean m of the channel over the whole clip; saturation f S, at
/// most 1, and hue + turns of hue, saturation, value. Then the luma 0.2989 R + 0.587 G + 0.114 B in all channels; Σ_k w_k J
/// along both sides with w_k ∝ e^{−k²/2σ²} over a frame that is black beyond its edges; and 1 − J where J is at least the
/// threshold.
///
/// # Errors
/// [`Error::NotDifferentiable`] when `clips` is tracked; [`Error::Rank`], [`Error::DType`], [`Error::Device`];
/// [`Error::Argument`] for other than three channels, empty clips or sides above 16,384 pixels, another number of parameters than
/// clips, boxes that leave the frame, factors, hues, deviations and thresholds out of range, a blur that reaches beyond 24
/// pixels, and a clip with a pixel that is NaN or outside [0, 1].
///
/// ```
/// use candle_core::{Device, Tensor};
/// use consonance::{AugmentOptions, ClipParameters, CropBox, augment_clips};
///
/// # fn main() -> consonance::Result<()> {
/// let clips = Tensor::rand(0f32, 1., (2, 4, 3, 32, 40), &Device::Cpu)?;
/// let crop = CropBox { top: 4, left: 8, height: 20, width: 24 };
/// let flipped = ClipParameters { crop, flip: true, ..ClipParameters::plain(32, 40) };
/// let parameters = [ClipParameters::plain(32, 40), flipped];
/// let views = augment_clips(&clips, &parameters, &AugmentOptions::new(16, 16))?;
/// assert_eq!(views.dims(), [2, 4, 3, 16, 16]);
/// # Ok(())
/// # }
/// ```
pub fn augment_clips(clips: &Tensor, parameters: &[ClipParameters], options: &Options) -> Result<Tensor> {
    if clips.track_op() {
        let reason = "pixels are data, to which no gradient goes";
        return Err(Error::NotDifferentiable { op: OP, argument: "clips", reason });
    }
    let &[count, frames, channels, height, width] = clips.dims() else {
        let expected = "[clips, frames, 3, height, width]";
        return Err(Error::Rank { op: OP, argument: "clips", got: clips.rank(), expected });
    };
    if channels != 3 {
        let expected = "[clips, frames, 3, height, width]";
        return Err(consonance_cpu::Error::shape(OP, "clips", clips.dims(), expected).into());
    }
    let place = Place::of(OP, "clips", clips)?;
    let frames = Frames { count: frames, height, width };
    let rows = clips.reshape((count, clips.elem_count() / count.max(1)))?;
    let size = options.frames(frames.count);
    let shape = (count, size.count, 3, size.height, size.width);
    if let Some(place) = place {
        let rows = place.matrix(OP, "clips", &rows)?;
        let found = cuda::clips::augment(place.executor(), &rows.matrix(), frames, parameters, options)?;
        found.check(place.executor())?;
        let pixels = place.tensor(OP, found.pixels, clips.dtype(), (count, size.elements()))?;
        return Ok(pixels.reshape(shape)?);
    }
    let matrix = Matrix::new(OP, "clips", &rows)?;
    let pixels = backend::augment(&matrix.lock().rows()?, frames, parameters, options)?;
    let device = &Device::Cpu;
    Ok(match pixels {
        Pixels::F32(pixels) => Tensor::from_vec(pixels, shape, device)?,
        Pixels::F16(pixels) => Tensor::from_vec(pixels, shape, device)?,
        Pixels::Bf16(pixels) => Tensor::from_vec(pixels, shape, device)?,
    })
}
