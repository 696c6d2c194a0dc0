//! Class activation maps, blends by a mask, and backgrounds without the object.

mod kernels;

use candle_core::{DType, Device, Tensor};
use consonance_cpu::cam as cpu;

use super::clusters::refuse_tracked;
use super::place::Place;
use super::view::Matrix;
use crate::{Error, Result};

const MAPS: &str = "cam";
const BLEND: &str = "masked_blend";
const BACKGROUNDS: &str = "backgrounds";

/// The dimensions of a tensor of a known rank.
fn dims<const RANK: usize>(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: &'static str,
) -> Result<[usize; RANK]> {
    let rank = Error::Rank { op, argument, got: tensor.rank(), expected };
    tensor.dims().try_into().map_err(|_| rank)
}

/// One row an image: `[B, …]` to `[B, elements]`, a copy unless it is contiguous.
fn rows(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.reshape((tensor.dims()[0], tensor.dims()[1..].iter().product::<usize>()))?)
}

/// Numbers that are read in f32, a row an image.
fn floats(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => rows(&tensor.to_dtype(DType::F32)?),
        got => Err(Error::DType { op, argument, got, expected: "f32, f16 or bf16" }),
    }
}

/// Class activation maps: f32 `[B, H, W]` in [0, 1], of `activations` A `[B, K, h, w]` (`f32`, `f16` or `bf16`) and the gradients
/// g = ∂s/∂GAP_k `[B, K]` of some score s with respect to the channels' means, where (H, W) is `size`.
///
/// With α_k = g_k/(hw), negative ones 0 unless `keep_negative`, S = max(0, Σ_k α_k A^k) is stretched by bicubic interpolation
/// (a = −0.75, `align_corners=False` as in PyTorch: pixels are squares, and lines go on with their last value), and becomes
/// (x − min)/(max − min + 1e-20) in every image; a constant map becomes 0. Without negative weights this is the map of
/// ContraCAM (Mo et al., NeurIPS 2021), with them that of Grad-CAM (Selvaraju et al., ICCV 2017). A score that reads the
/// activations by their means alone has ∂s/∂A^k_xy = g_k/(hw) everywhere, so no gradient of a convolution is needed.
///
/// Sums in f32 in a fixed order; an image's bits do not depend on the others. Everything here is a constant.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// # fn main() -> consonance::Result<()> {
/// let activations = Tensor::new(&[[[[0f32, 2.]], [[5., 5.]]]], &Device::Cpu)?; // one image, two channels, 1 x 2 pixels
/// let gradients = Tensor::new(&[[1f32, -1.]], &Device::Cpu)?;
/// let map = consonance::cam(&activations, &gradients, (1, 2), false)?;
/// assert_eq!(map.to_vec3::<f32>()?, [[[0., 1.]]]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotDifferentiable`] when an argument is tracked; [`Error::Rank`], [`Error::DType`], [`Error::Device`];
/// [`Error::Argument`] for shapes that disagree, an image that is not finite (or whose sums exceed 2¹²⁰), and on a GPU for
/// sizes beyond the shared memory of a block (h ≤ 64 and H ≤ 1,024 always fit).
pub fn cam(
    activations: &Tensor,
    gradients: &Tensor,
    size: (usize, usize),
    keep_negative: bool,
) -> Result<Tensor> {
    let [images, _, h, w] = dims(MAPS, "activations", activations, "[B, K, h, w]")?;
    dims::<2>(MAPS, "gradients", gradients, "[B, K], a number for each channel")?;
    refuse_tracked(MAPS, "activations", activations)?;
    refuse_tracked(MAPS, "gradients", gradients)?;
    let (height, width) = size;
    let options = cpu::Options { from: [h, w], to: [height, width], keep_negative };
    let (of_images, gradients) = (rows(activations)?, floats(MAPS, "gradients", gradients)?);
    options.check((images, of_images.dims()[1]), (gradients.dims()[0], gradients.dims()[1]))?;
    if let Some(place) = Place::of(MAPS, "activations", activations)? {
        let maps = kernels::cam(&place, &of_images, &gradients, &options)?;
        return Ok(maps.reshape((images, height, width))?);
    }
    let (activations, gradients) =
        (Matrix::new(MAPS, "activations", &of_images)?, Matrix::new(MAPS, "gradients", &gradients)?);
    let (activations, gradients) = (activations.lock(), gradients.lock());
    let maps = cpu::cam(&activations.rows()?, &gradients.rows()?, &options)?;
    Ok(Tensor::from_vec(maps, (images, height, width), &Device::Cpu)?)
}

/// x (1 − m) + y m: `images` x `[B, C, H, W]` (`f32`, `f16` or `bf16`) where the `mask` m `[B, H, W]` is 0, and the `other` y where it
/// is 1: a color `[C]`, a color for each image `[B, C]`, or images `[B, C, H, W]`, converted to the images' type.
///
/// In `f32`, rounded once; where m is 0 or 1 the result is x or y to the bit. Mask and images are constants: no gradient
/// arrives anywhere.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// # fn main() -> consonance::Result<()> {
/// let images = Tensor::zeros((1, 3, 1, 2), DType::F32, &Device::Cpu)?;
/// let color = Tensor::new(&[1f32, 2., 4.], &Device::Cpu)?;
/// let mask = Tensor::new(&[[[0f32, 0.5]]], &Device::Cpu)?;
/// let blend = consonance::masked_blend(&images, &color, &mask)?;
/// assert_eq!(blend.flatten_all()?.to_vec1::<f32>()?, [0., 0.5, 0., 1., 0., 2.]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::NotDifferentiable`] when an argument is tracked; [`Error::Rank`], [`Error::DType`], [`Error::Device`];
/// [`Error::Argument`] for shapes that disagree, images that are not finite and masks outside `0..=1`, naming the image.
pub fn masked_blend(images: &Tensor, other: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let [_, _, height, width] = dims(BLEND, "images", images, "[B, C, H, W]")?;
    for (argument, tensor) in [("images", images), ("other", other), ("mask", mask)] {
        refuse_tracked(BLEND, argument, tensor)?;
    }
    let is_color = match other.rank() {
        1 | 2 => true,
        4 => false,
        got => {
            let expected = "[C], [B, C] or [B, C, H, W]";
            return Err(Error::Rank { op: BLEND, argument: "other", got, expected });
        }
    };
    if !is_color && other.dims() != images.dims() {
        let expected = format!("{:?}, as the images", images.dims());
        return Err(consonance_cpu::Error::shape(BLEND, "other", other.dims(), expected).into());
    }
    let of_mask = mask_of(BLEND, mask, (height, width))?;
    let of_images = rows(images)?;
    let other = if other.rank() == 1 { other.unsqueeze(0)? } else { other.clone() };
    let other = rows(&other.to_dtype(images.dtype())?)?;
    let shape = |tensor: &Tensor| (tensor.dims()[0], tensor.dims()[1]);
    cpu::check_blend(shape(&of_images), (is_color, shape(&other)), shape(&of_mask))?;
    if let Some(place) = Place::of(BLEND, "images", images)? {
        let blend = kernels::masked_blend(&place, &of_images, (is_color, &other), &of_mask)?;
        return Ok(blend.reshape(images.shape())?);
    }
    let (x, y) = (Matrix::new(BLEND, "images", &of_images)?, Matrix::new(BLEND, "other", &other)?);
    let m = Matrix::new(BLEND, "mask", &of_mask)?;
    let (x, y, m) = (x.lock(), y.lock(), m.lock());
    let y = if is_color { cpu::Other::Colors(y.rows()?) } else { cpu::Other::Images(y.rows()?) };
    let blend = cpu::masked_blend(&x.rows()?, &y, &m.rows()?)?;
    Ok(Tensor::from_vec(blend, images.shape(), &Device::Cpu)?.to_dtype(images.dtype())?)
}

/// A mask `[B, H, W]` of this size, a row an image.
fn mask_of(op: &'static str, mask: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let [_, height, width] = dims(op, "mask", mask, "[B, H, W]")?;
    if (height, width) != size {
        let expected = format!("[B, {}, {}], the size of the images", size.0, size.1);
        return Err(consonance_cpu::Error::shape(op, "mask", mask.dims(), expected).into());
    }
    floats(op, "mask", mask)
}

/// Images whose object is covered by their background.
#[derive(Debug, Clone)]
pub struct Backgrounds {
    /// `[B, C, H, W]`; the image as it was where no background was found.
    pub images: Tensor,
    /// u32 `[B, 4]`: the first row and column of the rectangle around the object, and the row and column behind it; 0 where
    /// the mask nowhere reaches the threshold.
    pub rectangles: Tensor,
    /// u8 `[B]`: 1 where there is a rectangle and something beside it.
    pub found: Tensor,
}

/// Where an object is, for [`backgrounds`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackgroundsOptions {
    threshold: f64,
    short: bool,
}

impl Default for BackgroundsOptions {
    fn default() -> Self {
        Self { threshold: 0.2, short: false }
    }
}

impl BackgroundsOptions {
    /// The object is where the mask is at least so much, above 0 and at most 1; 0.2 in Mo et al.
    #[must_use]
    pub fn threshold(mut self, threshold: f64) -> Self {
        self.threshold = threshold;
        self
    }

    /// Leaves the last row and column of every rectangle out, as the public code of Mo et al. does.
    #[must_use]
    pub fn short_rectangles(mut self) -> Self {
        self.short = true;
        self
    }
}

/// Background-only images (Mo et al., NeurIPS 2021): the bounding rectangle of {m ≥ threshold} is covered by its surroundings. Of
/// the strips above, left of, right of and below it the one of the largest area (the first of equal ones) is tiled over the
/// image from its upper left corner, and shows inside the rectangle.
///
/// `images` is `[B, C, H, W]`, `f32`, `f16` or `bf16`, `mask` m `[B, H, W]` in `0..=1`. All are constants.
///
/// # Errors
/// [`Error::NotDifferentiable`] when an argument is tracked; [`Error::Rank`], [`Error::DType`], [`Error::Device`];
/// [`Error::Argument`] for shapes that disagree, a threshold outside `(0, 1]`, images that are not finite and masks outside
/// `0..=1`, naming the image.
pub fn backgrounds(images: &Tensor, mask: &Tensor, options: &BackgroundsOptions) -> Result<Backgrounds> {
    let [count, _, height, width] = dims(BACKGROUNDS, "images", images, "[B, C, H, W]")?;
    refuse_tracked(BACKGROUNDS, "images", images)?;
    refuse_tracked(BACKGROUNDS, "mask", mask)?;
    let of_mask = mask_of(BACKGROUNDS, mask, (height, width))?;
    let of_images = rows(images)?;
    let (size, threshold, short) = ([height, width], options.threshold as f32, options.short);
    let shape = |tensor: &Tensor| (tensor.dims()[0], tensor.dims()[1]);
    cpu::check_backgrounds(shape(&of_images), shape(&of_mask), size, threshold)?;
    if let Some(place) = Place::of(BACKGROUNDS, "images", images)? {
        let found = kernels::backgrounds(&place, &of_images, &of_mask, size, threshold, short)?;
        return Ok(Backgrounds { images: found.images.reshape(images.shape())?, ..found });
    }
    let (x, m) =
        (Matrix::new(BACKGROUNDS, "images", &of_images)?, Matrix::new(BACKGROUNDS, "mask", &of_mask)?);
    let (x, m) = (x.lock(), m.lock());
    let found = cpu::backgrounds(&x.rows()?, &m.rows()?, size, threshold, short)?;
    Ok(Backgrounds {
        images: Tensor::from_vec(found.images, images.shape(), &Device::Cpu)?.to_dtype(images.dtype())?,
        rectangles: Tensor::from_vec(found.rectangles, (count, 4), &Device::Cpu)?,
        found: Tensor::from_vec(found.found, count, &Device::Cpu)?,
    })
}
