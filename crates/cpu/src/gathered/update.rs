//! The momentum update of bank rows.

use half::{bf16, f16};

use super::PADDING;
use crate::{Elements, Error, Result, Rows};

const OP: &str = "update_rows";

/// Elements that can be written, of one storage type: the rows of a bank, one behind the other.
#[derive(Debug)]
pub enum RowsMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// IEEE half precision.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

impl RowsMut<'_> {
    /// The elements, to read.
    pub(crate) fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(x) => Elements::F32(x),
            Self::F16(x) => Elements::F16(x),
            Self::Bf16(x) => Elements::Bf16(x),
        }
    }

    /// Rounds to the storage type and back.
    fn round(&self, values: &mut [f32]) {
        match self {
            Self::F32(_) => {}
            Self::F16(_) => values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
            Self::Bf16(_) => values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        }
    }

    /// Writes values from an element on, rounded to the storage type.
    pub(crate) fn store(&mut self, start: usize, values: &[f32]) {
        let range = start..start + values.len();
        match self {
            Self::F32(x) => x[range].copy_from_slice(values),
            Self::F16(x) => x[range].iter_mut().zip(values).for_each(|(to, v)| *to = f16::from_f32(*v)),
            Self::Bf16(x) => x[range].iter_mut().zip(values).for_each(|(to, v)| *to = bf16::from_f32(*v)),
        }
    }
}

/// The error of a position whose sum with its bank row is zero.
pub fn without_direction(position: usize) -> Error {
    let got = format!("row {position}, whose sum with its bank row is zero");
    Error::range(OP, "rows", got, "a sum with a direction")
}

/// Moves bank rows towards new ones: for every position b, in order, bank row j = `indices[b]` becomes z/|z| with
/// z = m · bank row + (1 − m) · `rows[b]`, in `f32`, rounded once to the bank's type. Padding ([`PADDING`]) is skipped; an
/// index that repeats is updated as often. `bank` is `[bank_rows, D]`, dense; `rows` `[B, D]`; m is `momentum`.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Empty`] for shapes that disagree; [`Error::Range`] for a momentum outside `0..=1`, an
/// index beyond the bank, and a position whose z is zero; [`Error::NotFinite`], also for rows so large that a norm leaves
/// `f32`. On an error the bank is unchanged.
pub fn update_rows(
    mut bank: RowsMut<'_>,
    bank_rows: usize,
    indices: &[u32],
    rows: &Rows<'_>,
    momentum: f32,
) -> Result<()> {
    let dim = rows.cols();
    let old = Rows::new(OP, "bank", bank.elements(), bank_rows, dim)?;
    if bank_rows == 0 || dim == 0 {
        return Err(Error::Empty { op: OP, argument: "bank" });
    }
    if rows.rows() != indices.len() {
        let expected = format!("[{}, {dim}], one row an index", indices.len());
        return Err(Error::shape(OP, "rows", &[rows.rows(), dim], expected));
    }
    if !(0.0..=1.0).contains(&momentum) {
        return Err(Error::range(OP, "momentum", momentum, "0..=1"));
    }
    if let Some(at) = indices.iter().position(|i| *i != PADDING && *i as usize >= bank_rows) {
        let expected = format!("below {bank_rows}, the rows of the bank, or {PADDING} for padding");
        return Err(Error::range(OP, "indices", format!("{} at position {at}", indices[at]), expected));
    }
    rows.check_finite(OP, "rows")?;

    // Positions in the order of their indices, and of one index in their own order.
    let mut order: Vec<(u32, usize)> =
        indices.iter().copied().zip(0..).filter(|(i, _)| *i != PADDING).collect();
    order.sort_unstable();
    let groups: Vec<&[(u32, usize)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
    let mut new = vec![0.0f32; groups.len() * dim];
    let mut v = vec![0.0f32; dim];
    for (group, row) in groups.iter().zip(new.chunks_exact_mut(dim)) {
        old.load_row(group[0].0 as usize, row);
        for (index, position) in *group {
            rows.load_row(*position, &mut v);
            for (row, v) in row.iter_mut().zip(&v) {
                *row = momentum.mul_add(*row, (1.0 - momentum) * v);
            }
            let squares: f32 = row.iter().fold(0.0, |sum, z| z.mul_add(*z, sum));
            if squares == 0.0 {
                return Err(without_direction(*position));
            }
            if !squares.is_finite() {
                let row = *index as usize;
                return Err(Error::NotFinite { op: OP, argument: "bank", row });
            }
            let norm = squares.sqrt();
            row.iter_mut().for_each(|z| *z /= norm);
            bank.round(row);
        }
    }
    for (group, row) in groups.iter().zip(new.chunks_exact(dim)) {
        bank.store(group[0].0 as usize * dim, row);
    }
    Ok(())
}
