//! Maps, blends and backgrounds by kernels.

use candle_core::{DType, Tensor};

use super::{BACKGROUNDS, BLEND, Backgrounds, MAPS, cpu};
use crate::Result;
use crate::cuda::cam as kernels;
use crate::ops::place::Place;

/// `[B, H·W]`, of activations `[B, K·h·w]` and gradients f32 `[B, K]`.
pub(super) fn cam(
    place: &Place,
    activations: &Tensor,
    gradients: &Tensor,
    options: &cpu::Options,
) -> Result<Tensor> {
    let [height, width] = options.to;
    let rows = place.matrix(MAPS, "activations", activations)?;
    let gradients = place.numbers(MAPS, "gradients", gradients)?;
    let executor = place.executor();
    let maps = kernels::cam(executor, &rows.matrix(), gradients.words(), options)?.check(executor)?;
    place.tensor(MAPS, maps, DType::F32, (activations.dims()[0], height * width))
}

/// `[B, C·H·W]` of the images' type.
pub(super) fn masked_blend(
    place: &Place,
    images: &Tensor,
    (is_color, other): (bool, &Tensor),
    mask: &Tensor,
) -> Result<Tensor> {
    let (x, y) = (place.matrix(BLEND, "images", images)?, place.matrix(BLEND, "other", other)?);
    let mask = place.numbers(BLEND, "mask", mask)?;
    let executor = place.executor();
    let y = if is_color { kernels::Other::Colors(y.matrix()) } else { kernels::Other::Images(y.matrix()) };
    let blend = kernels::masked_blend(executor, &x.matrix(), &y, mask.words())?.check(executor)?;
    place.tensor(BLEND, blend, images.dtype(), (images.dims()[0], images.dims()[1]))
}

/// Images `[B, C·H·W]`.
pub(super) fn backgrounds(
    place: &Place,
    images: &Tensor,
    mask: &Tensor,
    size: [usize; 2],
    threshold: f32,
    short: bool,
) -> Result<Backgrounds> {
    let x = place.matrix(BACKGROUNDS, "images", images)?;
    let mask = place.numbers(BACKGROUNDS, "mask", mask)?;
    let executor = place.executor();
    let found = kernels::backgrounds(executor, &x.matrix(), mask.words(), size, threshold, short)?;
    let found = found.check(executor)?;
    let (count, elements) = (images.dims()[0], images.dims()[1]);
    Ok(Backgrounds {
        images: place.tensor(BACKGROUNDS, found.images, images.dtype(), (count, elements))?,
        rectangles: place.tensor(BACKGROUNDS, found.rectangles, DType::U32, (count, 4))?,
        found: place.list(BACKGROUNDS, found.found, DType::U8, count)?,
    })
}
