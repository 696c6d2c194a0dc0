//! How a contrastive loss is cut into blocks, and what its kernels read.

use consonance_cpu::contrast::{AffinityMap, Normalizer, OtherPositives};

use super::{Losses, Problem, Rule, moments};
use crate::cuda::abi::{
    self, GRADIENT_DIMS, MANY_ROWS, ROW_PARTIAL_BYTES, SLAB_BYTES, STAGES, TILE_KEYS, TILE_THREADS,
};
use crate::cuda::scratch::Scratch;
use crate::cuda::{DType, Words};

/// Keys of one split at least, and splits at most: a row's result does not depend on the batch or the device.
const SPLIT_TILES: usize = 16;
const MOST_SPLITS: usize = 8;

/// Splits of the keys: a function of their number alone, so that a row has the same bits in any batch.
pub(in crate::cuda) fn splits(keys: usize) -> usize {
    keys.div_ceil(TILE_KEYS).div_ceil(SPLIT_TILES).clamp(1, MOST_SPLITS)
}

/// Partial results of a row: of every split, and of the negatives that have weights of their own.
pub(super) fn partials(problem: &Problem<'_>) -> usize {
    splits(problem.keys.rows()) + usize::from(problem.pairs.pace.is_some())
}

/// Splits of one side where sums of both are computed at once.
const MOST_BOTH_SPLITS: usize = 16;

/// The same for those sums: of one side's rows alone, too. None is empty, as each has a whole number of tiles.
pub(super) fn both_splits(rows: usize) -> usize {
    let tiles = rows.div_ceil(TILE_KEYS);
    tiles.div_ceil(tiles.div_ceil(MOST_BOTH_SPLITS).max(1)).max(1)
}

/// The blocks that sum a gradient: `Sweep` of sweep.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cuda) struct Shape {
    /// Groups of four warps, each with its own dimensions.
    pub(in crate::cuda) groups: usize,
    pub(in crate::cuda) threads: usize,
    /// Blocks for all dimensions.
    pub(in crate::cuda) parts: usize,
    dtype: DType,
}

/// `TileFacts` of softmax.cuh.
const FACTS_BYTES: usize = 6 * TILE_KEYS * size_of::<u32>();
const TILE_FLOATS: usize = TILE_KEYS * size_of::<f32>();
/// `BoundedRows` of bounded.cuh.
const BOUNDED_BYTES: usize = 2 * size_of::<u32>();

impl Shape {
    pub(in crate::cuda) fn new(dtype: DType, dim: usize) -> Self {
        // The fewest groups that have all dimensions, as far as registers reach.
        let most = if dtype == DType::F32 { 2 } else { 4 };
        let groups = dim.div_ceil(GRADIENT_DIMS).next_power_of_two().min(most);
        Self { groups, threads: groups * TILE_THREADS, parts: dim.div_ceil(groups * GRADIENT_DIMS), dtype }
    }

    /// The stages of the mainloop and the coefficients.
    pub(in crate::cuda) fn sweep_bytes(self) -> usize {
        let coefficients = MANY_ROWS * SLAB_BYTES * if self.dtype == DType::F32 { 2 } else { 1 };
        self.ring_bytes() + coefficients
    }

    /// The stages alone, of a sweep without values.
    pub(in crate::cuda) fn ring_bytes(self) -> usize {
        let stages = if self.groups == 4 { 2 } else { STAGES };
        stages * self.groups.max(2) * TILE_KEYS * SLAB_BYTES
    }

    /// With `RowSums::Shared` behind.
    pub(super) fn rows_shared_bytes(self) -> usize {
        let exchange = 2 * self.groups * TILE_FLOATS;
        let parts = 2 * self.groups * TILE_THREADS * ROW_PARTIAL_BYTES;
        self.sweep_bytes() + 2 * FACTS_BYTES + 2 * TILE_FLOATS + exchange + BOUNDED_BYTES + parts
    }

    /// With `KeyGradient::Shared` behind.
    pub(super) fn keys_shared_bytes(self) -> usize {
        self.sweep_bytes() + 2 * FACTS_BYTES + 5 * TILE_FLOATS
    }

    /// One group, with `BothSums::Shared` behind.
    pub(super) fn both_sums_shared_bytes(dtype: DType) -> usize {
        let columns = TILE_THREADS / 32 * TILE_KEYS * ROW_PARTIAL_BYTES;
        Self::new(dtype, 1).sweep_bytes() + 2 * FACTS_BYTES + TILE_FLOATS + 2 * BOUNDED_BYTES + columns
    }

    /// With `BothGradient::Shared` behind.
    pub(super) fn both_gradient_shared_bytes(self) -> usize {
        self.sweep_bytes() + 2 * FACTS_BYTES + 2 * 4 * TILE_FLOATS + 3 * size_of::<f32>()
    }
}

/// Offsets of the scratch memory of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffers {
    pub(super) partials: u64,
    pub(super) gradients: u64,
    pub(super) moment_partials: u64,
    pub(super) moments: u64,
    pub(super) targets: u64,
    pub(super) norms: u64,
    pub(super) bytes: usize,
}

impl Buffers {
    pub(super) fn new(problem: &Problem<'_>, gradients: bool, by_moments: bool) -> Self {
        let (b, n, d) = (problem.queries.rows(), problem.keys.rows(), problem.queries.cols());
        let parts = partials(problem);
        let mut layout = Scratch::new();
        let partials = layout.take(b * parts * ROW_PARTIAL_BYTES);
        let gradients = layout.take(if gradients { b * d * parts * size_of::<f32>() } else { 0 });
        let [moment_partials, moments] = moments::room(problem, n, by_moments).map(|it| layout.take(it));
        let targets = layout.take(if by_moments { b * (d + 1) * size_of::<f32>() } else { 0 });
        let norms = layout.take(b * size_of::<f32>());
        Self { partials, gradients, moment_partials, moments, targets, norms, bytes: layout.bytes() }
    }
}

/// What every kernel reads.
pub(super) fn params(problem: &Problem<'_>, losses: &Losses) -> abi::Contrast {
    let Problem { queries, keys, temperatures, pairs, options } = problem;
    let address = |words: Option<Words<'_>>| words.map_or(0, |words| words.address());
    let sides =
        |sides: Option<(Words<'_>, Words<'_>)>| sides.map_or((0, 0), |(q, k)| (q.address(), k.address()));
    let (same_id, left_out) = (sides(pairs.same_id), sides(pairs.left_out_labels));
    let groups = sides(pairs.pace.map(|pace| pace.groups));
    let gradients = losses.gradients.as_ref().map(|it| (it.queries.address(), it.temperatures.address()));
    let all = abi::Contrast {
        queries: queries.address(),
        keys: keys.address(),
        query_stride: queries.stride() as u64,
        key_stride: keys.stride() as u64,
        temperatures: temperatures.address(),
        anchors: address(pairs.anchors),
        valid: address(pairs.valid),
        credible: address(pairs.credible),
        denominator_weights: address(pairs.denominator_weights),
        query_ids: same_id.0,
        key_ids: same_id.1,
        left_out_queries: left_out.0,
        left_out_keys: left_out.1,
        query_groups: groups.0,
        key_groups: groups.1,
        losses: losses.per_row.address(),
        log_sum_exp: losses.log_sum_exp.address(),
        mass: losses.mass.address(),
        inverse_normalizer: losses.inverse_normalizer.address(),
        query_gradient: gradients.map_or(0, |it| it.0),
        temperature_gradient: gradients.map_or(0, |it| it.1),
        status: losses.status.address(),
        query_count: queries.rows() as u32,
        key_count: keys.rows() as u32,
        dim: queries.cols() as u32,
        own_temperatures: u32::from(temperatures.len() != 1),
        by_weight: u32::from(options.normalizer == Normalizer::WeightSum),
        splits: partials(problem) as u32,
        positives_left_out: u32::from(options.other_positives == OtherPositives::LeftOut),
        by_moments: u32::from(moments::replace_positives(problem)),
        ..abi::Contrast::default()
    };
    with_rule(with_affinity(all, problem, losses), &pairs.rule)
}

fn with_affinity(all: abi::Contrast, problem: &Problem<'_>, losses: &Losses) -> abi::Contrast {
    let (Some(affinity), Some(inverses)) = (&problem.pairs.affinity, &losses.old_inverses) else {
        return all;
    };
    let (map, scale) = match affinity.map {
        AffinityMap::Half => (abi::AFFINITY_HALF, 0.0),
        AffinityMap::Exp { temperature } => (abi::AFFINITY_EXP, std::f32::consts::LOG2_E / temperature),
    };
    abi::Contrast {
        old_queries: affinity.queries.address(),
        old_keys: affinity.keys.address(),
        old_query_stride: affinity.queries.stride() as u64,
        old_key_stride: affinity.keys.stride() as u64,
        old_query_inverses: inverses.0.address(),
        old_key_inverses: inverses.1.address(),
        old_dim: affinity.queries.cols() as u32,
        old_query_type: abi::storage_type(affinity.queries.dtype()),
        old_key_type: abi::storage_type(affinity.keys.dtype()),
        affinity: map as u32,
        affinity_scale: scale.to_bits(),
        ..all
    }
}

fn with_rule(all: abi::Contrast, rule: &Rule<'_>) -> abi::Contrast {
    match rule {
        Rule::Labels { queries, keys, key_order } => abi::Contrast {
            rule: abi::RULE_LABELS as u32,
            query_labels: queries.address(),
            key_labels: keys.address(),
            key_order: key_order.address(),
            ..all
        },
        Rule::Diagonal => abi::Contrast { rule: abi::RULE_DIAGONAL as u32, ..all },
        Rule::Lists { offsets, indices, weights, padded } => abi::Contrast {
            rule: abi::RULE_LISTS as u32,
            padded: u32::from(*padded),
            offsets: offsets.address(),
            indices: indices.address(),
            weights: weights.map_or(0, |weights| weights.address()),
            listed: indices.len() as u32,
            ..all
        },
        Rule::Bits { queries, keys, words, min_overlap } => abi::Contrast {
            rule: abi::RULE_BITS as u32,
            query_sets: queries.address(),
            key_sets: keys.address(),
            words: *words as u32,
            least_overlap: *min_overlap,
            ..all
        },
        Rule::All => abi::Contrast { rule: abi::RULE_ALL as u32, ..all },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_depend_on_the_keys_and_none_is_empty() {
        for (keys, expected) in [(1, 1), (1024, 1), (1025, 2), (4096, 4), (1 << 20, MOST_SPLITS)] {
            assert_eq!(splits(keys), expected);
            assert!(keys.div_ceil(TILE_KEYS) >= expected);
        }
    }

    #[test]
    fn splits_of_both_sides_are_cut_as_the_kernels_cut_them_and_none_is_empty() {
        for rows in (1..5000usize).chain([65_536, 1 << 20, 1_000_001]) {
            let (tiles, splits) = (rows.div_ceil(TILE_KEYS), both_splits(rows));
            // `split_range` of pairs.cuh.
            let each = tiles.div_ceil(splits);
            assert!(splits <= MOST_BOTH_SPLITS && (splits - 1) * each < tiles && splits * each >= tiles);
        }
    }

    #[test]
    fn groups_cover_all_dimensions_and_their_shared_memory_fits_into_the_smallest_device() {
        for dtype in DType::ALL {
            for dim in [1, 128, 129, 256, 257, 384, 512, 513, 1024, 5000] {
                let shape = Shape::new(dtype, dim);
                assert!(shape.groups * shape.parts * GRADIENT_DIMS >= dim);
                assert!(shape.groups * (shape.parts - 1) * GRADIENT_DIMS < dim);
                // 99 KiB for one block on sm_86 and sm_89.
                let most = shape.rows_shared_bytes().max(shape.keys_shared_bytes());
                let both = shape.both_gradient_shared_bytes().max(Shape::both_sums_shared_bytes(dtype));
                assert!(most.max(both) <= 99 * 1024, "{shape:?}");
            }
        }
        assert_eq!(Shape::new(DType::BF16, 512).parts, 1);
        assert_eq!(Shape::new(DType::F32, 256).parts, 1);
    }
}
