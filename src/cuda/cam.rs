//! Class activation maps, blends by a mask and backgrounds on a device: launches of `kernels/cam.cu`.

use consonance_cpu::Error as Bad;
use consonance_cpu::cam::{Options, bad_mask, check_backgrounds, check_blend};

use super::abi::{self, CAM_BLEND_STATUS, CAM_MAP_STATUS, CAM_THREADS};
use super::executor::launch;
use super::rows::{check_length, check_sides};
use super::{Executor, Matrix, Memory, Result, Words};

const FAMILY: &str = "cam";
const MAPS: &str = "cam";
const BLEND: &str = "masked_blend";
const BACKGROUNDS: &str = "backgrounds";
const THREADS: u32 = CAM_THREADS as u32;
const WARPS: usize = CAM_THREADS / 32;
/// Bytes of the weights of a row.
const TAPS: usize = 16;

/// Results under way: kernels that write their memory are launched, and what they find wrong lies in a status.
#[derive(Debug)]
pub struct Found<T> {
    value: T,
    status: Memory,
    op: &'static str,
}

impl<T> Found<T> {
    /// Waits for the kernels.
    ///
    /// # Errors
    /// [`super::Error::Argument`] naming the argument and its first image that is not finite, or whose mask is outside `0..=1`, and
    /// errors of the driver.
    pub fn check(self, executor: &dyn Executor) -> Result<T> {
        let mut words = [u32::MAX; CAM_BLEND_STATUS];
        let names: [&'static str; CAM_BLEND_STATUS] = match self.op {
            MAPS => ["gradients", "activations", ""],
            _ => ["images", "other", "mask"],
        };
        let count = self.status.bytes() / size_of::<u32>();
        executor.download(self.op, &self.status, bytemuck::cast_slice_mut(&mut words[..count]))?;
        match words.into_iter().zip(names).find(|(image, _)| *image != u32::MAX) {
            None => Ok(self.value),
            Some((image, "mask")) => Err(bad_mask(self.op, image as usize).into()),
            Some((image, argument)) => {
                Err(Bad::NotFinite { op: self.op, argument, row: image as usize }.into())
            }
        }
    }
}

fn found<T>(op: &'static str, value: T, status: Memory) -> Found<T> {
    Found { value, status, op }
}

fn status(executor: &dyn Executor, op: &'static str, words: usize) -> Result<Memory> {
    executor.upload(op, &[0xff; CAM_BLEND_STATUS * size_of::<u32>()][..words * size_of::<u32>()])
}

/// The maps f32 `[B, H, W]` of images from `activations` `[B, K·h·w]` and `gradients` f32 `[B, K]`, dense; returns without waiting
/// for the device.
///
/// Scratch: 4 bytes a pixel of the activations. Shared memory of a block: 1 KiB for each row of the activations and 16 bytes
/// for each row of a map, so that h = 64 and H = 1,024 fit everywhere.
///
/// # Errors
/// [`super::Error::Argument`] for shapes that disagree; [`super::Error::OutOfMemory`], [`super::Error::NoKernel`] and [`super::Error::Launch`].
pub fn cam(
    executor: &dyn Executor,
    activations: &Matrix<'_>,
    gradients: Words<'_>,
    options: &Options,
) -> Result<Found<Memory>> {
    let ([h, w], [height, width]) = (options.from, options.to);
    let images = activations.rows();
    let columns = gradients.len().checked_div(images).unwrap_or(0);
    let channels = options.check((images, activations.cols()), (images, columns))?;
    check_sides(MAPS, ["activations"; 2], activations, activations)?;
    check_length(MAPS, "gradients", gradients.len(), images * channels, "channel of each image")?;
    let shared = map_shared_bytes(h, height);
    if shared > executor.limits().shared_bytes as usize {
        let got = format!("{height} rows from {h}");
        let most =
            format!("1,024 bytes for each row of the activations and 16 for each row of the map in {}", {
                executor.limits().shared_bytes
            });
        return Err(Bad::range(MAPS, "size", got, most).into());
    }
    let status = status(executor, MAPS, CAM_MAP_STATUS)?;
    let sums = executor.scratch(MAPS, images * h * w * size_of::<f32>())?;
    let maps = executor.allocate(MAPS, images * height * width * size_of::<f32>())?;
    let params = abi::CamSum {
        activations: activations.address(),
        activation_stride: activations.stride() as u64,
        gradients: gradients.address(),
        sums: sums.address(),
        status: status.address(),
        channels: channels as u32,
        pixels: (h * w) as u32,
        keep_negative: u32::from(options.keep_negative),
        reserved: 0,
    };
    let entry = format!("cam_sum_{}", activations.dtype().suffix());
    let grid = [images as u64, (h * w).div_ceil(32) as u64, 1];
    let bytes = (CAM_THREADS * size_of::<f32>()) as u32;
    // SAFETY: the activations and their gradients have as many images and channels as was checked, and the sums a number for
    // every pixel.
    unsafe { launch(executor, (MAPS, FAMILY, &entry), grid, (THREADS, bytes), &params)? };
    let params = abi::CamMap {
        sums: sums.address(),
        maps: maps.address(),
        input_height: h as u32,
        input_width: w as u32,
        height: height as u32,
        width: width as u32,
    };
    // SAFETY: both arrays were allocated for these sizes.
    unsafe {
        let grid = [images as u64, 1, 1];
        launch(executor, (MAPS, FAMILY, "cam_map"), grid, (THREADS, shared as u32), &params)?;
    }
    Ok(found(MAPS, maps, status))
}

/// Shared memory of `cam_map`: the weights of the rows, columns, and a range for every warp.
fn map_shared_bytes(input_height: usize, height: usize) -> usize {
    let of_rows = height.saturating_mul(TAPS);
    let of_columns = input_height.saturating_mul(CAM_THREADS * size_of::<f32>());
    of_rows.saturating_add(of_columns).saturating_add(2 * WARPS * size_of::<f32>())
}

/// What shows where the mask is 1.
#[derive(Debug, Clone, Copy)]
pub enum Other<'a> {
    /// `[B, C]`, or `[1, C]` for all images: one color.
    Colors(Matrix<'a>),
    /// `[B, C·H·W]`.
    Images(Matrix<'a>),
}

impl<'a> Other<'a> {
    fn parts(&self) -> (bool, Matrix<'a>) {
        match self {
            Self::Colors(rows) => (true, *rows),
            Self::Images(rows) => (false, *rows),
        }
    }
}

/// x (1 − m) + y m, `[B, C·H·W]` of the images' dtype, of `images` x `[B, C·H·W]`, the `other` side y of one dtype with them and
/// the mask m f32 `[B, H·W]`, dense; returns without waiting for the device.
///
/// # Errors
/// [`super::Error::Argument`] for shapes and dtypes that disagree; [`super::Error::OutOfMemory`], [`super::Error::NoKernel`] and [`super::Error::Launch`].
pub fn masked_blend(
    executor: &dyn Executor,
    images: &Matrix<'_>,
    other: &Other<'_>,
    mask: Words<'_>,
) -> Result<Found<Memory>> {
    let (is_color, others) = other.parts();
    let (count, elements, dtype) = (images.rows(), images.cols(), images.dtype());
    let pixels = mask.len().checked_div(count).unwrap_or(0);
    let sides = (is_color, (others.rows(), others.cols()));
    let channels = check_blend((count, elements), sides, (count, pixels))?;
    check_length(BLEND, "mask", mask.len(), count * pixels, "pixel")?;
    check_sides(BLEND, ["images"; 2], images, images)?;
    check_sides(BLEND, ["other"; 2], &others, &others)?;
    if others.dtype() != dtype {
        let expected = format!("{dtype:?}, the dtype of `images`; convert one of them");
        return Err(Bad::range(BLEND, "other", format!("{:?}", others.dtype()), expected).into());
    }
    let status = status(executor, BLEND, CAM_BLEND_STATUS)?;
    let out = executor.allocate(BLEND, count * elements * dtype.bytes())?;
    // Strides count where there is a second row.
    let stride = |rows: &Matrix<'_>| if rows.rows() == 1 { 0 } else { rows.stride() };
    let chunk = 16 / dtype.bytes();
    let whole = |rows: &Matrix<'_>| {
        rows.address().is_multiple_of(16)
            && stride(rows).is_multiple_of(chunk)
            && pixels.is_multiple_of(chunk)
    };
    let params = abi::CamBlend {
        images: images.address(),
        image_stride: stride(images) as u64,
        others: others.address(),
        other_stride: stride(&others) as u64,
        mask: mask.address(),
        out: out.address(),
        status: status.address(),
        channels: channels as u32,
        pixels: pixels as u32,
        is_color: u32::from(is_color),
        aligned: u32::from(
            whole(images) && (is_color || whole(&others)) && mask.address().is_multiple_of(16),
        ),
    };
    let entry = format!("cam_blend_{}", dtype.suffix());
    let grid = [count as u64, pixels.div_ceil(CAM_THREADS * chunk) as u64, 1];
    // SAFETY: all shapes were checked, and the output was allocated for as many elements as the images have.
    unsafe { launch(executor, (BLEND, FAMILY, &entry), grid, (THREADS, 0), &params)? };
    Ok(found(BLEND, out, status))
}

/// Images without their object.
#[derive(Debug)]
pub struct Backgrounds {
    /// `[B, C·H·W]` of the images' dtype.
    pub images: Memory,
    /// u32 `[B, 4]`.
    pub rectangles: Memory,
    /// u8 `[B]`.
    pub found: Memory,
}

/// Covers the bounding rectangle of {m ≥ `threshold`} of `images` `[B, C·H·W]` by the tiled largest strip beside it, as
/// [`consonance_cpu::cam::backgrounds`]; `mask` m is f32 `[B, H·W]`, dense. Returns without waiting for the device.
///
/// # Errors
/// [`super::Error::Argument`] for shapes that disagree and a threshold outside `(0, 1]`; [`super::Error::OutOfMemory`], [`super::Error::NoKernel`] and
/// [`super::Error::Launch`].
pub fn backgrounds(
    executor: &dyn Executor,
    images: &Matrix<'_>,
    mask: Words<'_>,
    size: [usize; 2],
    threshold: f32,
    short: bool,
) -> Result<Found<Backgrounds>> {
    let (count, elements, dtype) = (images.rows(), images.cols(), images.dtype());
    let pixels = mask.len().checked_div(count).unwrap_or(0);
    let channels = check_backgrounds((count, elements), (count, pixels), size, threshold)?;
    check_length(BACKGROUNDS, "mask", mask.len(), count * pixels, "pixel")?;
    check_sides(BACKGROUNDS, ["images"; 2], images, images)?;
    let status = status(executor, BACKGROUNDS, CAM_BLEND_STATUS)?;
    let corners = 4 * size_of::<u32>();
    let strips = executor.scratch(BACKGROUNDS, count * corners)?;
    let out = Backgrounds {
        images: executor.allocate(BACKGROUNDS, count * elements * dtype.bytes())?,
        rectangles: executor.allocate(BACKGROUNDS, count * corners)?,
        found: executor.allocate(BACKGROUNDS, count)?,
    };
    let params = abi::CamBackground {
        images: images.address(),
        image_stride: images.stride() as u64,
        mask: mask.address(),
        out: out.images.address(),
        rectangles: out.rectangles.address(),
        strips: strips.address(),
        found: out.found.address(),
        status: status.address(),
        channels: channels as u32,
        height: size[0] as u32,
        width: size[1] as u32,
        threshold: threshold.to_bits(),
        is_short: u32::from(short),
        reserved: 0,
    };
    let tile = format!("cam_tile_{}", dtype.suffix());
    let chunks = pixels.div_ceil(CAM_THREADS) as u64;
    let shared = (4 * WARPS * size_of::<u32>()) as u32;
    for (entry, grid, shared) in
        [("cam_rectangle", [count as u64, 1, 1], shared), (tile.as_str(), [count as u64, chunks, 1], 0)]
    {
        // SAFETY: the shapes were checked, and every array was allocated for so many images.
        unsafe { launch(executor, (BACKGROUNDS, FAMILY, entry), grid, (THREADS, shared), &params)? };
    }
    Ok(found(BACKGROUNDS, out, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_sizes_fit_into_shared_memory() {
        // What every device of the kernels has.
        assert!(map_shared_bytes(64, 1024) <= 99 * 1024);
        assert_eq!(map_shared_bytes(7, 224), 7 * 1024 + 224 * 16 + 64);
        assert_eq!(map_shared_bytes(usize::MAX, 1), usize::MAX);
    }
}
