//! Centers of classes that follow the rows of their class, in place.

use candle_core::Tensor;
use consonance_cpu::bank as cpu;

use crate::Result;
use crate::ops::place::Place;
use crate::ops::{in_place, view};

const OP: &str = "update_centers";

/// Moves centers of classes (prototypes) towards the rows of a batch, in place: the center of every class k that `labels`
/// name becomes m · center + (1 − m) · mean of the rows labeled k, divided by its norm when `normalize` is set; computed in
/// `f32` and rounded once to the centers' type. Classes without a row keep their bits.
///
/// - `centers` `[C, D]`: `f32`, `f16` or `bf16`, contiguous; all tensors that share its memory change with it;
/// - `labels` `[B]`, `u32` or `i64`: below C, or `u32::MAX` for rows of no class;
/// - `rows` `[B, D]`: converted to the centers' type, summed in the order of their positions; constants here;
/// - `momentum` m in `0..=1`.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// # fn main() -> consonance::Result<()> {
/// let cpu = Device::Cpu;
/// let centers = Tensor::new(&[[0f32, 0.], [1., 1.]], &cpu)?;
/// let rows = Tensor::new(&[[2f32, 0.], [0., 4.]], &cpu)?;
/// consonance::update_centers(&centers, &Tensor::new(&[0u32, 0], &cpu)?, &rows, 0.5, false)?;
/// assert_eq!(centers.to_vec2::<f32>()?, [[0.5, 1.], [1., 1.]]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::Error::NotDifferentiable`] when the centers are tracked; [`crate::Error::Rank`], [`crate::Error::DType`],
/// [`crate::Error::Device`]; [`crate::Error::Argument`] for shapes that disagree, centers that are not contiguous, labels
/// without a center, a momentum outside `0..=1`, rows that are not finite ([`crate::Error::Kernel`] on a GPU), and centers
/// that would not be finite or have no direction. On an error the centers are unchanged.
pub fn update_centers(
    centers: &Tensor,
    labels: &Tensor,
    rows: &Tensor,
    momentum: f64,
    normalize: bool,
) -> Result<()> {
    in_place::check_target(OP, "centers", centers)?;
    let rows = in_place::rows_for(OP, rows, centers.dtype())?;
    let (count, momentum) = (rows.dims()[0], momentum as f32);
    match Place::of(OP, "centers", centers)? {
        Some(place) => {
            let (placed, rows) = (place.matrix(OP, "centers", centers)?, place.matrix(OP, "rows", &rows)?);
            let labels = place.labels(OP, "labels", labels, count)?;
            let (executor, options) = (place.executor(), (momentum, normalize));
            // SAFETY: the memory is the centers' own, contiguous and read in place, or a copy for this call.
            let update = unsafe {
                let (centers, rows) = (&placed.matrix(), &rows.matrix());
                crate::cuda::bank::update_centers(executor, centers, labels.words(), rows, options)?
            };
            update.check(executor)?;
            place.write_back(OP, &placed.keep, centers)
        }
        None => {
            let labels = view::labels(OP, "labels", labels, count)?;
            in_place::change_rows(OP, ("centers", centers), &rows, |centers, classes, rows| {
                cpu::update_centers(centers, classes, &labels, rows, momentum, normalize)
            })
        }
    }
}
