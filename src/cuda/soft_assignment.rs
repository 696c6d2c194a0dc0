//! Soft assignment to centroids on a device: plans and launches of `kernels/soft_assignment.cu`.

mod centroids;
mod sides;

use consonance_cpu::Error as Bad;
use consonance_cpu::neighbors::MAX_K;
use consonance_cpu::soft_assignment::Options;

use super::abi::{self, MANY_ROWS, SLAB_BYTES, SOFT_PARTIAL_BYTES, STAGES, TILE_KEYS, TILE_THREADS};
use super::contrast::splits;
use super::executor::launch;
use super::neighbors::neighbors;
use super::{Executor, Matrix, Memory, Result};
pub use centroids::{Moved, soft_centroids};
pub(super) use sides::{Sides, Status};

const OP: &str = "soft_assignment";
pub(super) const FAMILY: &str = "soft_assignment";
pub(super) const THREADS: u32 = TILE_THREADS as u32;
/// `f32` elements of a chunk of rows that are copied to be compared.
const CHUNK_ELEMENTS: usize = 1 << 24;

/// Soft assignment of `N` points, in the memory of the device.
#[derive(Debug)]
pub struct Found {
    /// ln Σ_k e^{s_k}, `f32` `[N]`.
    pub log_sum_exp: Memory,
    /// The entropy in nats, `f32` `[N]`.
    pub entropy: Memory,
    /// The most probable centroid, ties to the smaller index, `u32` `[N]`.
    pub best: Memory,
    /// Its probability, `f32` `[N]`.
    pub best_probability: Memory,
    /// m, the columns of the two lists; 0 when all centroids count.
    pub width: usize,
    /// With the m nearest: centroids by (distance, index) ascending, `u32` `[N, m]`, and their probabilities, `f32`.
    pub nearest: Option<(Memory, Memory)>,
    status: Status,
}

impl Found {
    /// Waits for the assignment and says whether all rows could be compared.
    ///
    /// # Errors
    /// [`super::Error::Row`] with the first offending row, and errors of the driver.
    pub fn check(&self, executor: &dyn Executor) -> Result<()> {
        self.status.check(executor)
    }
}

/// Shared memory of `*_rows_*`: the stages of the stream, and `Assigner::Shared` behind.
pub(super) fn rows_shared_bytes() -> u32 {
    let centroids = TILE_KEYS * 3 * size_of::<f32>();
    let points = MANY_ROWS * 5 * size_of::<f32>();
    (STAGES * (MANY_ROWS + TILE_KEYS) * SLAB_BYTES + centroids + points) as u32
}

/// Rows of a chunk whose copies take `elements` each: whole tiles, and no more memory than a bank's batch.
pub(super) fn chunk_rows(rows: usize, elements: usize) -> usize {
    (CHUNK_ELEMENTS / elements.max(1)).max(1).next_multiple_of(MANY_ROWS).min(rows).max(1)
}

/// p_ik ∝ e^{s_ik} over all centroids or over the m nearest, with its entropy; returns without waiting for the device.
///
/// `points` is `[N, D]`, `centroids` `[K, D]`, also of another dtype. The m nearest are those of [`neighbors`] among the rows as
/// they are compared. Scratch: 24 bytes a row and split of the centroids, of which there are at most 8, 8 bytes a row, two
/// copies of the centroids in `f32`, and with the m nearest a copy of a chunk of the points.
///
/// # Errors
/// [`super::Error::Argument`] for shapes that do not fit, rates, scales and m out of range;
/// [`super::Error::OutOfMemory`], [`super::Error::NoKernel`] and [`super::Error::Launch`].
pub fn soft_assignment(
    executor: &dyn Executor,
    points: &Matrix<'_>,
    centroids: &Matrix<'_>,
    options: &Options<'_>,
) -> Result<Found> {
    let width = check(points, centroids, options)?;
    let rates = options.rates(centroids.rows())?;
    let (sides, status) = Sides::new(executor, OP, points, centroids, options.geometry)?;
    let rates_of = executor.upload(OP, bytemuck::cast_slice(&rates.rates))?;
    assigned(executor, &sides, status, (&rates_of, rates.squared), width)
}

/// The assignment of measured sides; over all centroids when `width` is 0.
fn assigned(
    executor: &dyn Executor,
    sides: &Sides<'_>,
    status: Status,
    (rates, squared): (&Memory, bool),
    width: usize,
) -> Result<Found> {
    let n = sides.points().rows();
    let words = |count: usize| executor.allocate(OP, count * size_of::<u32>());
    let found = Found {
        log_sum_exp: words(n)?,
        entropy: words(n)?,
        best: words(n)?,
        best_probability: words(n)?,
        width,
        nearest: if width == 0 { None } else { Some((words(n * width)?, words(n * width)?)) },
        status,
    };
    if let Some((indices, probabilities)) = &found.nearest {
        let lists = Lists { found: &found, indices, probabilities };
        lists.fill(executor, sides, (rates, squared))?;
        return Ok(found);
    }
    let params = sides.params();
    let splits = splits(params.centroid_count as usize);
    let partials = executor.scratch(OP, n * splits * SOFT_PARTIAL_BYTES)?;
    let params = abi::SoftAssignment {
        rates: rates.address(),
        partials: partials.address(),
        log_sum_exp: found.log_sum_exp.address(),
        entropy: found.entropy.address(),
        best: found.best.address(),
        best_probability: found.best_probability.address(),
        splits: splits as u32,
        squared: u32::from(squared),
        ..params
    };
    let entry = format!("soft_assignment_rows_{}", sides.points().dtype().suffix());
    // SAFETY: shapes were checked; a row has a partial result for every split, and outputs a number for every row.
    unsafe {
        let grid = [n.div_ceil(MANY_ROWS) as u64, splits as u64, 1];
        launch(executor, (OP, FAMILY, &entry), grid, (THREADS, rows_shared_bytes()), &params)?;
        let grid = [n.div_ceil(TILE_THREADS) as u64, 1, 1];
        launch(executor, (OP, FAMILY, "soft_assignment_join"), grid, (THREADS, 0), &params)?;
    }
    Ok(found)
}

/// Checks a problem and gives the width of its lists.
pub(super) fn check(points: &Matrix<'_>, centroids: &Matrix<'_>, options: &Options<'_>) -> Result<usize> {
    options.check([points.rows(), points.cols()], [centroids.rows(), centroids.cols()])?;
    // Each side alone: their dtypes may differ.
    super::rows::check_sides(OP, ["points"; 2], points, points)?;
    super::rows::check_sides(OP, ["centroids"; 2], centroids, centroids)?;
    let width = options.nearest.map_or(0, |m| m.min(centroids.rows()));
    if width > MAX_K {
        return Err(Bad::range(OP, "nearest", width, format!("1..={MAX_K} centroids on a device")).into());
    }
    Ok(width)
}

/// The lists of the nearest centroids, and what is computed from them.
struct Lists<'a> {
    found: &'a Found,
    indices: &'a Memory,
    probabilities: &'a Memory,
}

impl Lists<'_> {
    fn fill(
        &self,
        executor: &dyn Executor,
        sides: &Sides<'_>,
        (rates, squared): (&Memory, bool),
    ) -> Result<()> {
        let (n, width) = (sides.points().rows(), self.found.width);
        let chunk = sides.chunk_rows(width);
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            let compared = sides.compared(executor, first..first + rows)?;
            let near = neighbors(executor, &sides.search(&compared, width, None))?;
            let word = |memory: &Memory, columns: usize| {
                memory.address() + (first * columns * size_of::<u32>()) as u64
            };
            let params = abi::SoftNearest {
                distances: near.scores.address(),
                indices: near.indices.address(),
                rates: rates.address(),
                listed: word(self.indices, width),
                probabilities: word(self.probabilities, width),
                log_sum_exp: word(&self.found.log_sum_exp, 1),
                entropy: word(&self.found.entropy, 1),
                best: word(&self.found.best, 1),
                best_probability: word(&self.found.best_probability, 1),
                count: rows as u32,
                width: width as u32,
                squared: u32::from(squared),
                reserved: 0,
            };
            let grid = [rows.div_ceil(TILE_THREADS / 32) as u64, 1, 1];
            // SAFETY: the lists have `width` numbers for each of `rows` rows, outputs a place for each of the rows from
            // `first` on, and rates one for every centroid.
            unsafe {
                launch(executor, (OP, FAMILY, "soft_assignment_nearest"), grid, (THREADS, 0), &params)?
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_tiles_of_bounded_memory() {
        for (rows, elements) in [(1, 1), (63, 512), (1 << 20, 128), (1 << 20, 5000), (100, 1 << 30)] {
            let chunk = chunk_rows(rows, elements);
            assert!(chunk >= 1 && chunk <= rows);
            assert!(chunk == rows || chunk.is_multiple_of(MANY_ROWS));
            assert!(chunk <= MANY_ROWS || chunk * elements <= CHUNK_ELEMENTS + MANY_ROWS * elements);
        }
        assert_eq!(chunk_rows(1 << 20, 128), 1 << 17);
    }

    #[test]
    fn shared_memory_fits_into_the_smallest_device() {
        // 99 KiB for one block on sm_86 and sm_89.
        assert!(rows_shared_bytes() <= 99 * 1024);
    }
}
