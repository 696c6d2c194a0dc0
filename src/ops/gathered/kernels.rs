//! Losses over lists by kernels.

use candle_core::{DType, Tensor};

use super::{Found, GatheredPositives};
use crate::Result;
use crate::cuda::gathered::{Lists, Loss, Losses, Positives, Teacher, losses};
use crate::ops::contrast::Normalizer;
use crate::ops::place::{Place, PlacedMatrix};

/// The contrastive loss, untracked.
pub(super) fn contrast(
    place: &Place,
    (queries, bank, indices): (&Tensor, &Tensor, &Tensor),
    temperature: &Tensor,
    positives: &GatheredPositives,
    normalizer: Normalizer,
    gradients: bool,
) -> Result<Found> {
    const OP: &str = "gathered_contrast";
    let (left, right) = (place.matrix(OP, "queries", queries)?, place.matrix(OP, "bank", bank)?);
    let indices = place.labels(OP, "indices", &indices.flatten_all()?, indices.elem_count())?;
    let temperature = temperature.detach().flatten_all()?;
    let temperatures = place.floats(OP, "temperature", &temperature, temperature.elem_count())?;
    let lists = Lists {
        queries: left.matrix(),
        bank: right.matrix(),
        indices: indices.words(),
        temperatures: temperatures.words(),
    };
    let weights = match positives {
        GatheredPositives::First(_) => None,
        GatheredPositives::Weights(weights) => {
            Some(place.floats(OP, "weights", &weights.flatten_all()?, weights.elem_count())?)
        }
    };
    let positives = match (positives, &weights) {
        (GatheredPositives::First(count), _) => Positives::First(*count),
        (_, Some(weights)) => Positives::Weights(weights.words()),
        _ => Positives::First(0),
    };
    let found = losses(place.executor(), &lists, &Loss::Contrast { positives, normalizer }, gradients)?;
    tensors(OP, place, &left, found, true)
}

/// The divergence, untracked.
pub(super) fn divergence(
    place: &Place,
    student: (&Tensor, &Tensor),
    teacher: (&Tensor, &Tensor),
    indices: &Tensor,
    (temperature, softening): (f32, f32),
    gradients: bool,
) -> Result<Found> {
    const OP: &str = "gathered_divergence";
    let (left, right) = (place.matrix(OP, "queries", student.0)?, place.matrix(OP, "bank", student.1)?);
    let of_teacher =
        (place.matrix(OP, "teacher_queries", teacher.0)?, place.matrix(OP, "teacher_bank", teacher.1)?);
    let indices = place.labels(OP, "indices", &indices.flatten_all()?, indices.elem_count())?;
    let temperature = Tensor::new(&[temperature], student.0.device())?;
    let temperatures = place.floats(OP, "temperature", &temperature, 1)?;
    let lists = Lists {
        queries: left.matrix(),
        bank: right.matrix(),
        indices: indices.words(),
        temperatures: temperatures.words(),
    };
    let teacher = Teacher { queries: of_teacher.0.matrix(), bank: of_teacher.1.matrix(), softening };
    let found = losses(place.executor(), &lists, &Loss::Divergence(teacher), gradients)?;
    tensors(OP, place, &left, found, false)
}

/// Waits for the pass, and makes tensors of what it found.
fn tensors(
    op: &'static str,
    place: &Place,
    queries: &PlacedMatrix,
    found: Losses,
    with_temperatures: bool,
) -> Result<Found> {
    let anchors = found.check(place.executor())?;
    let (b, dim) = (queries.matrix().rows(), queries.matrix().cols());
    let row = |memory| -> Result<Tensor> { Ok(place.tensor(op, memory, DType::F32, (b, 1))?.reshape(b)?) };
    let gradients = match found.gradients {
        None => None,
        Some((of_queries, of_temperatures)) => {
            let of_queries = place.tensor(op, of_queries, DType::F32, (b, dim))?;
            Some((of_queries, with_temperatures.then(|| row(of_temperatures)).transpose()?))
        }
    };
    Ok(Found { per_row: row(found.per_row)?, log_sum_exp: row(found.log_sum_exp)?, anchors, gradients })
}
