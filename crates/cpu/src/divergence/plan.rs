//! Checks of a problem, and what is known of it before any product: O(B + N) numbers.

use std::ops::Range;

use super::{Exclusions, OP, Problem, Side};
use crate::contrast::index::{Index, within};
use crate::contrast::{SIDE, TILE, columns};
use crate::{Error, Result, Rows};

/// A checked problem with its derived data, shared by the forward and the backward pass.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What products of the student and of the teacher are multiplied by: 1/(τ T).
    pub(super) scale: [f32; 2],
    /// −∞ for keys that are not valid, else 0; absent when all are.
    bias: Option<Vec<f32>>,
    /// Whether a tile holds a valid key, and whether all its keys are valid.
    tiles: Vec<(bool, bool)>,
    /// How many of them hold a valid key.
    live: usize,
    ids: Option<Index>,
    /// Number of keys, and of valid ones.
    keys: usize,
    valid: usize,
}

fn check_side(
    names: [&'static str; 2],
    Side { queries, keys, .. }: &Side<'_>,
    expected: (usize, usize),
) -> Result<()> {
    for (argument, rows, expected) in [(names[0], queries, expected.0), (names[1], keys, expected.1)] {
        if rows.rows() == 0 {
            return Err(Error::Empty { op: OP, argument });
        }
        if rows.rows() != expected {
            let expected = format!("{expected} rows, as the student's: both compare the same pairs");
            return Err(Error::shape(OP, argument, &[rows.rows(), rows.cols()], expected));
        }
        if u32::try_from(rows.rows()).is_err() {
            return Err(Error::range(OP, argument, rows.rows(), "at most 2^32 - 1 rows"));
        }
    }
    if queries.cols() == 0 {
        return Err(Error::shape(OP, names[0], &[queries.rows(), 0], "at least one dimension"));
    }
    if queries.cols() != keys.cols() {
        let expected = format!("[N, {}], the dimension of `{}`", queries.cols(), names[0]);
        return Err(Error::shape(OP, names[1], &[keys.rows(), keys.cols()], expected));
    }
    queries.check_finite(OP, names[0])?;
    keys.check_finite(OP, names[1])
}

/// What the inner products of student and teacher are multiplied by, 1/(τ T), when the temperatures and the softening are
/// good.
///
/// # Errors
/// [`Error::Range`] for one that is not finite and above 0, or so small or large that f32 does not hold their products.
pub fn scales(temperatures: [f32; 2], softening: f32) -> Result<[f32; 2]> {
    let [student, teacher] = temperatures;
    for (argument, factor) in
        [("temperature", student), ("teacher_temperature", teacher), ("softening", softening)]
    {
        if !(factor.is_finite() && factor > 0.0 && factor.recip().is_finite()) {
            return Err(Error::range(OP, argument, factor, "finite and above 0, as its inverse"));
        }
    }
    let scale = temperatures.map(|temperature| (temperature * softening).recip());
    let products = [scale[0], scale[1], softening * softening, softening / student];
    if !products.iter().all(|product| product.is_normal()) {
        let expected = "of a size whose square, and products with the temperatures, f32 holds";
        return Err(Error::range(OP, "softening", softening, expected));
    }
    Ok(scale)
}

fn check_length(argument: &'static str, got: usize, expected: usize, of: &str) -> Result<()> {
    if got != expected {
        return Err(Error::shape(OP, argument, &[got], format!("[{expected}], one a {of}")));
    }
    Ok(())
}

impl Plan {
    /// Checks the problem and prepares it.
    ///
    /// # Errors
    /// [`Error::Empty`] without queries or keys, [`Error::Shape`] for lengths and dimensions that disagree,
    /// [`Error::Range`] for temperatures out of range, [`Error::NotFinite`] for rows.
    pub fn new(problem: &Problem<'_>) -> Result<Self> {
        let Problem { student, teacher, excluded, .. } = problem;
        let (b, n) = (student.queries.rows(), student.keys.rows());
        check_side(["queries", "keys"], student, (b, n))?;
        check_side(["teacher_queries", "teacher_keys"], teacher, (b, n))?;
        let scale = scales([student.temperature, teacher.temperature], problem.softening)?;
        if let Some(valid) = excluded.valid {
            check_length("valid", valid.len(), n, "key")?;
        }
        if let Some((queries, keys)) = excluded.same_id {
            check_length("query_ids", queries.len(), b, "query")?;
            check_length("key_ids", keys.len(), n, "key")?;
        }
        if let Some(known) = problem.teacher_log_sum_exp {
            check_length("statistics", known.len(), b, "query")?;
            if let Some(bad) = known.iter().find(|lse| lse.is_nan() || **lse == f32::INFINITY) {
                return Err(Error::range(OP, "statistics", bad, "log-sum-exps of an earlier pass"));
            }
        }
        let valid = |j: usize| excluded.valid.is_none_or(|valid| valid[j]);
        let tile = |t: usize| {
            let mut keys = range(t, n);
            (keys.clone().any(valid), keys.all(valid))
        };
        let tiles: Vec<(bool, bool)> = (0..n.div_ceil(TILE)).map(tile).collect();
        Ok(Self {
            scale,
            bias: excluded.valid.map(|valid| {
                valid.iter().map(|valid| if *valid { 0.0 } else { f32::NEG_INFINITY }).collect()
            }),
            live: tiles.iter().filter(|(live, _)| *live).count(),
            tiles,
            keys: n,
            valid: (0..n).filter(|j| valid(*j)).count(),
            ids: excluded.same_id.map(|(_, keys)| Index::new(keys, valid)),
        })
    }

    /// Number of tiles of keys.
    pub(super) fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Whether one tile alone holds keys that are compared: its sums are all sums.
    pub(super) fn has_one_tile(&self) -> bool {
        self.live == 1
    }

    /// Whether a tile holds a key that is compared.
    pub(super) fn is_live(&self, t: usize) -> bool {
        self.tiles[t].0
    }

    /// Whether a row compares any key: not to be told from scores, which may have left f32.
    pub(super) fn compares(&self, excluded: &Exclusions<'_>, row: usize) -> bool {
        let same = match (&self.ids, excluded.same_id) {
            (Some(index), Some((queries, _))) => index.keys(queries[row]),
            _ => &[],
        };
        let is_key = |j: usize| j < self.keys && excluded.valid.is_none_or(|valid| valid[j]);
        let own = excluded.diagonal && is_key(row) && same.binary_search(&(row as u32)).is_err();
        self.valid > same.len() + usize::from(own)
    }

    /// Takes the pairs that are not compared out of a row's scores of both sides, by −∞.
    pub(super) fn mask(
        &self,
        excluded: &Exclusions<'_>,
        row: usize,
        keys: &Range<usize>,
        sides: [&mut [f32]; 2],
    ) {
        let [student, teacher] = sides;
        let mut exclude = |at: usize| (student[at], teacher[at]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        if let (Some(index), Some((queries, _))) = (&self.ids, excluded.same_id) {
            let list = index.keys(queries[row]);
            list[within(list, keys)].iter().for_each(|j| exclude(*j as usize - keys.start));
        }
        if excluded.diagonal && keys.contains(&row) {
            exclude(row - keys.start);
        }
    }

    /// The bias of the columns of a tile: a short last tile is filled up with −∞.
    pub(super) fn bias<'s>(
        &'s self,
        t: usize,
        keys: &Range<usize>,
        buffer: &'s mut Vec<f32>,
    ) -> Option<&'s [f32]> {
        if keys.len() == columns(keys.len()) {
            let (_, all) = self.tiles[t];
            return self.bias.as_ref().filter(|_| !all).map(|bias| &bias[keys.clone()]);
        }
        buffer.clear();
        match &self.bias {
            Some(bias) => buffer.extend_from_slice(&bias[keys.clone()]),
            None => buffer.resize(keys.len(), 0.0),
        }
        buffer.resize(columns(keys.len()), f32::NEG_INFINITY);
        Some(buffer)
    }

    /// The rows of a tile's columns, their distance apart: in place when they can be read so. A short last tile is filled up
    /// with zeros, and so is what is not valid: it may hold any finite number.
    pub(super) fn tile<'s>(
        &self,
        rows: &Rows<'s>,
        valid: Option<&[bool]>,
        t: usize,
        buffer: &'s mut Vec<f32>,
    ) -> (&'s [f32], usize) {
        let (keys, cols, width) = (range(t, rows.rows()), rows.cols(), width(rows));
        let (_, all) = self.tiles[t];
        let columns = columns(keys.len());
        let in_place = all && keys.len() == columns && cols == width;
        if let Some(x) = rows.as_f32().filter(|_| in_place) {
            return (&x[keys.start * rows.stride()..], rows.stride());
        }
        buffer.clear();
        buffer.resize(columns * width, 0.0);
        for (row, out) in keys.zip(buffer.chunks_exact_mut(width)) {
            if valid.is_none_or(|valid| valid[row]) {
                rows.load_row(row, &mut out[..cols]);
            }
        }
        (buffer, width)
    }
}

/// The keys of tile `t`.
pub(super) fn range(t: usize, keys: usize) -> Range<usize> {
    t * TILE..((t + 1) * TILE).min(keys)
}

/// The dimension of these rows in tiles.
pub(super) fn width(rows: &Rows<'_>) -> usize {
    rows.cols().max(SIDE)
}
