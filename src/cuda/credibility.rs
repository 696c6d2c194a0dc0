//! Which labeled embeddings deserve belief, on a device: launches of `kernels/credibility.cu`.

use consonance_cpu::Error as Bad;
use consonance_cpu::clusters::Geometry;
use consonance_cpu::credibility::{Limits, Options, Partition, Spread};
use consonance_cpu::neighbors::MAX_K;

use super::abi::{self, MANY_ROWS, SOFT_PARTIAL_BYTES, TILE_THREADS};
use super::contrast::splits;
use super::executor::launch;
use super::neighbors::neighbors;
use super::scratch::Scratch;
use super::soft_assignment::{Sides, Status, THREADS, rows_shared_bytes};
use super::{Executor, Matrix, Memory, Result, Words};

const OP: &str = "credibility";
const FAMILY: &str = "credibility";
const WARPS: usize = TILE_THREADS / 32;

/// What is known of each of `N` rows, in the memory of the device; the meanings are those of
/// [`consonance_cpu::credibility::Credibility`].
#[derive(Debug)]
pub struct Found {
    /// `u8` `[N]`: 1 where the row is believed.
    pub credible: Memory,
    /// `f32` `[N]`.
    pub entropy: Memory,
    /// `f32` `[N]`.
    pub own_probability: Memory,
    /// `f32` `[N]`.
    pub suspicion: Memory,
    /// `f32` `[N]`.
    pub margin: Memory,
    /// `u32` `[N]`.
    pub closer: Memory,
    /// `u32` `[N]`.
    pub predicted: Memory,
    /// What entropy and suspicion were compared with.
    pub limits: Limits,
}

/// The credibility of every row of `points` `[N, D]` under its class label.
///
/// Labels and options are those of the host, which also chooses the scales, from two numbers a centroid: this waits for the
/// device once. Scratch: 24 bytes a row, as much for each split of the centroids, of which there are at most 8, 16 bytes a row,
/// 24 bytes an element of the centroids, and with the m nearest a copy of a chunk of the points.
///
/// # Errors
/// [`super::Error::Argument`] for labels, sub-clusters, scales, limits and m that do not fit, and m above 1,024 when there are
/// more centroids than m; [`super::Error::Row`] for a row that is not finite, too large, or of norm zero with directions; and
/// those of allocation and launch.
pub fn credibility(
    executor: &dyn Executor,
    points: &Matrix<'_>,
    labels: &[u32],
    options: &Options<'_>,
) -> Result<Found> {
    super::rows::check_sides(OP, ["points"; 2], points, points)?;
    super::rows::check_length(OP, "labels", labels.len(), points.rows(), "row")?;
    options.check()?;
    let partition = Partition::new(labels, &options.centers)?;
    let width = list_width(options.nearest, partition.groups())?;
    let (sides, status) = Sides::of_points(executor, OP, points, partition.groups(), None, options.geometry)?;
    let run = Run::new(executor, sides, &partition, options, width)?;
    let rates = run.scales(&status, &partition, options)?;
    run.judge(&rates, &partition, options)
}

/// Centroids of a list for the entropy; 0 when all of them count.
fn list_width(nearest: Option<usize>, groups: usize) -> Result<usize> {
    match nearest {
        Some(m) if m < groups && m > MAX_K => {
            Err(Bad::range(OP, "nearest", m, format!("1..={MAX_K} centroids on a device")).into())
        }
        Some(m) if m < groups => Ok(m),
        _ => Ok(0),
    }
}

/// Arrays on the device that outlive one launch.
struct Run<'a> {
    executor: &'a dyn Executor,
    sides: Sides<'a>,
    width: usize,
    most_own: usize,
    splits: usize,
    params: abi::Credibility,
    class_of_group: Memory,
    classes: Memory,
    /// Memory of the addresses in `params`.
    #[expect(dead_code, reason = "frees the arrays when they are dropped")]
    arrays: Vec<Memory>,
    spreads: Memory,
}

impl<'a> Run<'a> {
    fn new(
        executor: &'a dyn Executor,
        sides: Sides<'a>,
        partition: &Partition,
        options: &Options<'_>,
        width: usize,
    ) -> Result<Self> {
        let (n, groups, dim) = (sides.points().rows(), partition.groups(), sides.points().cols());
        let splits = splits(groups);
        let words = |words: &[u32]| executor.upload(OP, bytemuck::cast_slice(words));
        let narrow = |wide: &[usize]| wide.iter().map(|at| *at as u32).collect::<Vec<u32>>();
        let class_of_group: Vec<u32> = (0..groups).map(|group| partition.class_of(group) as u32).collect();
        let class_of_group = words(&class_of_group)?;
        let classes = words(&partition.class_of_row)?;
        let spreads = executor.allocate(OP, groups * 2 * size_of::<f64>())?;
        let mut arrays = vec![
            words(&partition.group_of_row)?,
            words(&partition.members)?,
            words(&narrow(&partition.starts))?,
            words(&narrow(&partition.classes))?,
            words(&partition.labels)?,
        ];
        let mut layout = Scratch::new();
        let [sums, distances, own, partials] = [
            groups * dim * size_of::<f64>(),
            n * size_of::<f64>(),
            n * SOFT_PARTIAL_BYTES,
            n * splits * SOFT_PARTIAL_BYTES,
        ]
        .map(|bytes| layout.take(bytes));
        let scratch = executor.scratch(OP, layout.bytes())?;
        let at = |offset: u64| scratch.address() + offset;
        let params = abi::Credibility {
            soft: abi::SoftAssignment {
                classes: classes.address(),
                class_starts: arrays[3].address(),
                own: at(own),
                partials: at(partials),
                splits: splits as u32,
                ..sides.params()
            },
            groups: arrays[0].address(),
            members: arrays[1].address(),
            starts: arrays[2].address(),
            class_of_group: class_of_group.address(),
            labels: arrays[4].address(),
            sums: at(sums),
            distances: at(distances),
            spreads: spreads.address(),
            group_count: groups as u32,
            width: width as u32,
            leave_one_out: u32::from(options.leave_one_out),
            unit: u32::from(options.geometry == Geometry::Spherical),
            reject_other_class: u32::from(options.reject_other_class),
            ..abi::Credibility::default()
        };
        arrays.push(scratch);
        let most_own = partition.classes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1);
        Ok(Self {
            executor,
            sides,
            width,
            most_own,
            splits,
            params,
            class_of_group,
            classes,
            arrays,
            spreads,
        })
    }

    /// Launches a step of `credibility.cu` on so many blocks.
    ///
    /// # Safety
    /// As [`launch`].
    unsafe fn launch(
        &self,
        step: &str,
        blocks: usize,
        shared: usize,
        params: &abi::Credibility,
    ) -> Result<()> {
        let grid = [blocks as u64, 1, 1];
        // SAFETY: passed on to the caller.
        unsafe { launch(self.executor, (OP, FAMILY, step), grid, (THREADS, shared as u32), params) }
    }

    /// A kernel's name for the type of the rows.
    fn typed(&self, step: &str) -> String {
        format!("credibility_{step}_{}", self.sides.points().dtype().suffix())
    }

    /// Centroids, distances to them, and the rates that their spreads give.
    fn scales(
        &self,
        status: &Status,
        partition: &Partition,
        options: &Options<'_>,
    ) -> Result<consonance_cpu::soft_assignment::Rates> {
        let (n, groups) = (self.sides.points().rows(), partition.groups());
        // SAFETY: the partition is of these rows, so every row and group number is in range; sums have a row for every
        // group, distances and spreads a number for every row and two for every group.
        unsafe {
            let shared = WARPS * size_of::<f64>();
            self.launch(&self.typed("centroids"), groups, shared, &self.params)?;
            self.sides.settle(self.executor)?;
            self.launch(&self.typed("own"), n.div_ceil(WARPS), 0, &self.params)?;
            self.launch("credibility_spread", groups.div_ceil(WARPS), 0, &self.params)?;
        }
        let mut spreads = vec![[0.0f64; 2]; groups];
        self.executor.download(OP, &self.spreads, bytemuck::cast_slice_mut(&mut spreads))?;
        status.check(self.executor)?;
        let spreads: Vec<Spread> = spreads
            .iter()
            .enumerate()
            .map(|(group, [mean, variance])| Spread {
                rows: partition.rows_of(group).len(),
                mean: *mean,
                variance: *variance,
            })
            .collect();
        Ok(options.rates(&spreads)?)
    }

    fn judge(
        &self,
        rates: &consonance_cpu::soft_assignment::Rates,
        partition: &Partition,
        options: &Options<'_>,
    ) -> Result<Found> {
        let n = self.sides.points().rows();
        let limits = options.limits(partition);
        let words = || self.executor.allocate(OP, n * size_of::<u32>());
        let found = Found {
            credible: self.executor.allocate(OP, n)?,
            entropy: words()?,
            own_probability: words()?,
            suspicion: words()?,
            margin: words()?,
            closer: words()?,
            predicted: words()?,
            limits,
        };
        let bits = |limit: Option<f64>| limit.map_or(f32::INFINITY, |limit| limit as f32).to_bits();
        // A class alone has nobody to be suspected for.
        let suspicion = limits.suspicion.filter(|_| partition.labels.len() > 1);
        let rates_of = self.executor.upload(OP, bytemuck::cast_slice(&rates.rates))?;
        let params = abi::Credibility {
            soft: abi::SoftAssignment {
                rates: rates_of.address(),
                squared: u32::from(rates.squared),
                entropy: found.entropy.address(),
                ..self.params.soft
            },
            credible: found.credible.address(),
            own_probability: found.own_probability.address(),
            suspicion: found.suspicion.address(),
            margin: found.margin.address(),
            closer: found.closer.address(),
            predicted: found.predicted.address(),
            entropy_limit: bits(limits.entropy),
            suspicion_limit: bits(suspicion),
            ..self.params
        };
        // SAFETY: as for the scales; there is a rate for every group, a partial result for every row and split, and outputs
        // have a place for every row.
        unsafe {
            self.launch(&self.typed("own"), n.div_ceil(WARPS), 0, &params)?;
            let grid = [n.div_ceil(MANY_ROWS) as u64, self.splits as u64, 1];
            let block = (THREADS, rows_shared_bytes());
            launch(self.executor, (OP, FAMILY, &self.typed("rows")), grid, block, &params.soft)?;
        }
        if self.width > 0 {
            self.nearest(&params)?;
        }
        // SAFETY: as above.
        unsafe { self.launch("credibility_join", n.div_ceil(TILE_THREADS), 0, &params)? };
        Ok(found)
    }

    /// The entropies over the nearest centroids, chunk by chunk.
    fn nearest(&self, params: &abi::Credibility) -> Result<()> {
        let (n, groups) = (self.sides.points().rows(), params.group_count as usize);
        let chunk = self.sides.chunk_rows(self.width + self.most_own);
        let own = self.executor.scratch(OP, chunk * self.most_own * size_of::<f32>())?;
        for first in (0..n).step_by(chunk) {
            let rows = chunk.min(n - first);
            let compared = self.sides.compared(self.executor, first..first + rows)?;
            // SAFETY: there is a class for every row and every group.
            let ids = unsafe {
                let classes = self.classes.address() + (first * size_of::<u32>()) as u64;
                (
                    Words::from_address(classes, rows),
                    Words::from_address(self.class_of_group.address(), groups),
                )
            };
            let near = neighbors(self.executor, &self.sides.search(&compared, self.width, Some(ids)))?;
            let params = abi::Credibility {
                near_distances: near.scores.address(),
                near_indices: near.indices.address(),
                own_distances: own.address(),
                most_own: self.most_own as u32,
                first_row: first as u32,
                chunk_rows: rows as u32,
                ..*params
            };
            // SAFETY: the lists have `width` numbers for each of `rows` rows, and `own` as many as any class has centroids.
            unsafe { self.launch(&self.typed("nearest"), rows.div_ceil(WARPS), 0, &params)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_made_where_some_centroids_do_not_count() {
        for (nearest, groups, expected) in
            [(None, 10, 0), (Some(3), 10, 3), (Some(10), 10, 0), (Some(5000), 10, 0)]
        {
            assert_eq!(list_width(nearest, groups).unwrap(), expected);
        }
        assert_eq!(list_width(Some(MAX_K), 5000).unwrap(), MAX_K);
        let error = list_width(Some(MAX_K + 1), 5000).unwrap_err().to_string();
        assert!(error.contains("credibility: `nearest` is 1025"), "{error}");
    }
}
