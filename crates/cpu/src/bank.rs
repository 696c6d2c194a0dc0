//! Centers of classes that follow the rows of their class.

use crate::gathered::{PADDING, RowsMut};
use crate::{Error, Result, Rows};

const OP: &str = "update_centers";

/// The error of a class whose new center is not finite, or has no direction where one is needed.
pub fn bad_center(class: usize) -> Error {
    let got = format!("class {class}, whose new center is not finite or has norm zero");
    Error::range(OP, "centers", got, "centers with a direction; mend the rows of this class")
}

/// Moves the center of every class that `labels` name towards the mean of its rows: m · center + (1 − m) · mean, divided by
/// its norm when `normalize` is set, computed in `f32` and rounded once. Rows are summed in the order of their positions;
/// [`PADDING`] is no class. `centers` is `[classes, D]`, dense; `rows` `[B, D]`; m is `momentum`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Empty`] for shapes that disagree; [`Error::Range`] for a momentum outside `0..=1`, a label
/// without a center, and a class whose new center is not finite or has no direction; [`Error::NotFinite`] for rows. On an
/// error the centers are unchanged.
pub fn update_centers(
    mut centers: RowsMut<'_>,
    classes: usize,
    labels: &[u32],
    rows: &Rows<'_>,
    momentum: f32,
    normalize: bool,
) -> Result<()> {
    let dim = rows.cols();
    let old = Rows::new(OP, "centers", centers.elements(), classes, dim)?;
    if classes == 0 || dim == 0 {
        return Err(Error::Empty { op: OP, argument: "centers" });
    }
    if rows.rows() != labels.len() {
        let expected = format!("[{}, {dim}], one row a label", labels.len());
        return Err(Error::shape(OP, "rows", &[rows.rows(), dim], expected));
    }
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::range(OP, "momentum", momentum, "0..=1"));
    }
    if let Some(at) = labels.iter().position(|label| *label != PADDING && *label as usize >= classes) {
        let expected = format!("below {classes}, the number of centers, or {PADDING} for none");
        return Err(Error::range(OP, "labels", format!("{} at position {at}", labels[at]), expected));
    }
    rows.check_finite(OP, "rows")?;

    // Positions in the order of their labels, and of one label in their own order.
    let mut order: Vec<(u32, usize)> =
        labels.iter().copied().zip(0..).filter(|(l, _)| *l != PADDING).collect();
    order.sort_unstable();
    let groups: Vec<&[(u32, usize)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
    let mut new = vec![0.0f32; groups.len() * dim];
    let mut row = vec![0.0f32; dim];
    for (group, sum) in groups.iter().zip(new.chunks_exact_mut(dim)) {
        for (at, (_, position)) in group.iter().enumerate() {
            rows.load_row(*position, &mut row);
            match at {
                0 => sum.copy_from_slice(&row),
                _ => sum.iter_mut().zip(&row).for_each(|(sum, row)| *sum += row),
            }
        }
        let class = group[0].0 as usize;
        old.load_row(class, &mut row);
        for (sum, center) in sum.iter_mut().zip(&row) {
            let mean = *sum / group.len() as f32;
            *sum = momentum.mul_add(*center, (1.0 - momentum) * mean);
        }
        let squares: f32 = sum.iter().fold(0.0, |squares, z| z.mul_add(*z, squares));
        if !squares.is_finite() || normalize && squares == 0.0 {
            return Err(bad_center(class));
        }
        if normalize {
            let norm = squares.sqrt();
            sum.iter_mut().for_each(|z| *z /= norm);
        }
    }
    for (group, center) in groups.iter().zip(new.chunks_exact(dim)) {
        centers.store(group[0].0 as usize * dim, center);
    }
    Ok(())
}
