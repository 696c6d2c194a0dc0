//! The parameter structs of `kernels/include/abi.h`, field by field. `tests/abi.rs` compares both sides.

use bytemuck::NoUninit;

use consonance_cpu::neighbors::Metric;

use super::{DType, Params};

/// Bytes of a row in a slab of shared memory.
pub const SLAB_BYTES: usize = 128;

/// Queries of a tile in the kernels for many queries.
pub const MANY_ROWS: usize = 64;
/// Queries of a tile in the kernels for few.
pub const FEW_ROWS: usize = 16;
/// Keys of a tile.
pub const TILE_KEYS: usize = 64;
/// Threads of every tile kernel.
pub const TILE_THREADS: usize = 128;
/// Slabs on their way at once.
pub const STAGES: usize = 3;
/// Keys whose gradient one block sums.
pub const OWNED_KEYS: usize = 64;
/// Candidates that wait for their list, for each row.
pub const RING: usize = 32;
/// The most candidates that a list holds.
pub const MAX_CAPACITY: usize = 512;
/// The most neighbors that one pass finds.
pub const MAX_PASS: usize = 128;
/// Numbers that a block sorts.
pub const SORT_ITEMS: usize = 2048;
/// Values of a digit.
pub const SORT_DIGITS: usize = 256;

/// Storage types of rows whose type is known at launch only.
pub const TYPE_F32: usize = 0;
/// IEEE half precision.
pub const TYPE_F16: usize = 1;
/// bfloat16.
pub const TYPE_BF16: usize = 2;
/// How the cosine of two old embeddings weighs a pair: not at all.
pub const AFFINITY_NONE: usize = 0;
/// ½(1 + cos).
pub const AFFINITY_HALF: usize = 1;
/// e^{(cos − 1)/θ}.
pub const AFFINITY_EXP: usize = 2;
/// Closeness by the difference of times.
pub const CLOSENESS_TIMES: usize = 0;
/// Closeness by the cosine of features.
pub const CLOSENESS_FEATURES: usize = 1;
/// Dimensions whose gradient one group of four warps sums.
pub const GRADIENT_DIMS: usize = 128;
/// Bytes of what one split of the keys knows of a row.
pub const ROW_PARTIAL_BYTES: usize = 12;
/// Dimensions of the sums over positives that one block has.
pub const TARGET_DIMS: usize = 1024;
/// Its shared memory.
pub const TARGET_SHARED_BYTES: usize = 32864;
/// Shared memory of a block that weighs the negatives of a group.
pub const PACE_SHARED_BYTES: usize = 16432;
/// Words of the status of a contrastive problem.
pub const CONTRAST_STATUS: usize = 12;
/// Rows that one block checks.
pub const CHECKED_ROWS: usize = 64;
/// Old dimensions of a block's part of the moments.
pub const MOMENT_ROWS: usize = 32;
/// New dimensions of it.
pub const MOMENT_COLS: usize = 64;
/// Rows whose moments one block applies.
pub const MOMENT_APPLIED: usize = 16;
/// Rules of the contrastive loss: which keys are positives.
pub const RULE_LABELS: usize = 0;
/// Key i is the positive of query i.
pub const RULE_DIAGONAL: usize = 1;
/// Lists of positives.
pub const RULE_LISTS: usize = 2;
/// Sets that overlap.
pub const RULE_BITS: usize = 3;
/// Every key.
pub const RULE_ALL: usize = 4;

/// Columns of a tile of listed rows at most.
pub const GATHERED_ROWS: usize = 32;
/// Bytes of a tile of listed rows, as far as one row fits.
pub const GATHERED_TILE_BYTES: usize = 16_384;
/// Dimensions that a thread of a narrow kernel sums.
pub const NARROW_DIMS: usize = 4;
/// Dimensions that a thread of a wide kernel sums.
pub const WIDE_DIMS: usize = 32;
/// Bytes of what one split of the columns knows of a row.
pub const GATHERED_PARTIAL_BYTES: usize = 24;
/// Words of the status of a loss over lists.
pub const GATHERED_STATUS: usize = 9;
/// Bytes of what one split of the keys knows of a row of a divergence.
pub const DIVERGENCE_PARTIAL_BYTES: usize = 24;
/// Words of the status of a divergence.
pub const DIVERGENCE_STATUS: usize = 6;
/// Words of the status of an update.
pub const UPDATE_STATUS: usize = 4;
/// Words of the status of class centers.
pub const CENTERS_STATUS: usize = 3;
/// Bytes of what one split of the centroids knows of a row.
pub const SOFT_PARTIAL_BYTES: usize = 24;
/// Words of the status of a soft assignment.
pub const SOFT_STATUS: usize = 3;

/// Threads of a block of the kernels of class activation maps.
pub const CAM_THREADS: usize = 256;
/// Words of the status of maps.
pub const CAM_MAP_STATUS: usize = 2;
/// Words of the status of blends and backgrounds.
pub const CAM_BLEND_STATUS: usize = 3;
/// Words of a clip's parameters.
pub const CLIP_WORDS: usize = 12;
/// Pixels that a block checks or sums.
pub const CLIP_CHUNK: usize = 2048;
/// Pixels that a block of whole frames augments.
pub const CLIP_PIXELS: usize = 512;
/// The side of a tile that is blurred.
pub const CLIP_TILE: usize = 32;

/// Threads of a block of the clustering kernels.
pub const CLUSTER_THREADS: usize = 256;
/// Clusters of a class whose sums a streamed assignment takes along.
pub const FUSED_CLUSTERS: usize = 64;
/// Centroids start by k-means++.
pub const START_PLUS_PLUS: usize = 0;
/// Centroids start at rows.
pub const START_ROWS: usize = 1;
/// Centroids start at given places.
pub const START_GIVEN: usize = 2;

/// A storage type's number.
pub(super) fn storage_type(dtype: DType) -> u32 {
    let number = match dtype {
        DType::F32 => TYPE_F32,
        DType::F16 => TYPE_F16,
        DType::BF16 => TYPE_BF16,
    };
    number as u32
}

/// A metric's number.
pub(super) fn metric(metric: Metric) -> u32 {
    match metric {
        Metric::InnerProduct => 0,
        Metric::Cosine => 1,
        Metric::SquaredL2 => 2,
    }
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[allow(missing_docs, reason = "abi.h documents the fields")]
            #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, NoUninit)]
            #[repr(C)]
            pub struct $name { $(pub $field: $type),* }

            // SAFETY: `repr(C)`; `NoUninit` proves that there is no padding; fields are as in abi.h, which the test
            // of sizes and offsets confirms.
            unsafe impl Params for $name {
                const NAME: &'static str = stringify!($name);
            }

            impl $name {
                /// Each field's name and offset in bytes.
                pub const FIELDS: &'static [(&'static str, usize)] =
                    &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
            }
        )*
        /// Name, size and fields of every struct.
        pub const STRUCTS: &[(&str, usize, &[(&str, usize)])] =
            &[$((stringify!($name), size_of::<$name>(), $name::FIELDS)),*];
    };
}

params! {
    /// What a search reads.
    Pairs {
        queries: u64,
        keys: u64,
        rows: u64,
        row_count: u64,
        key_order: u64,
        query_labels: u64,
        key_labels: u64,
        query_ids: u64,
        key_ids: u64,
        allow: u64,
        query_stride: u64,
        key_stride: u64,
        row_limit: u32,
        keys_in_all: u32,
        dim: u32,
        metric: u32,
    }
    /// `neighbors_rank_*`, `neighbors_refine_*`, `neighbors_exact_*`.
    NeighborsRank {
        pairs: Pairs,
        scores: u64,
        indices: u64,
        lists: u64,
        status: u64,
        k: u32,
        found: u32,
        capacity: u32,
        splits: u32,
    }
    /// `neighbors_finish_*`.
    NeighborsFinish {
        pairs: Pairs,
        scores: u64,
        indices: u64,
        lists: u64,
        unproven: u64,
        k: u32,
        found: u32,
        wanted: u32,
        capacity: u32,
        lists_of_row: u32,
        exact: u32,
    }
    /// `neighbors_unproven`.
    NeighborsUnproven {
        unproven: u64,
        rows: u64,
        row_count: u64,
        left: u64,
        left_count: u64,
        row_limit: u32,
        reserved: u32,
    }
    /// `neighbors_gradient_*`.
    NeighborsGradient {
        queries: u64,
        keys: u64,
        upstream: u64,
        indices: u64,
        gradient: u64,
        query_stride: u64,
        key_stride: u64,
        query_count: u32,
        key_count: u32,
        dim: u32,
        metric: u32,
        k: u32,
        reserved: u32,
    }
    /// `neighbors_bits`.
    NeighborsBits {
        mask: u64,
        bits: u64,
        count: u32,
        reserved: u32,
    }
    /// `segments_*`.
    SegmentsSort {
        labels: u64,
        from: u64,
        to: u64,
        counts: u64,
        count: u32,
        shift: u32,
        blocks: u32,
        reserved: u32,
    }
    /// `ranking_*`.
    RankingCount {
        pairs: Pairs,
        query_labels: u64,
        item_labels: u64,
        query_ids: u64,
        item_ids: u64,
        offsets: u64,
        items: u64,
        unsorted: u64,
        entries: u64,
        between: u64,
        ties: u64,
        status: u64,
        splits: u32,
        reserved: u32,
    }
    /// `contrast_*`.
    Contrast {
        queries: u64,
        keys: u64,
        query_stride: u64,
        key_stride: u64,
        temperatures: u64,
        query_labels: u64,
        key_labels: u64,
        key_order: u64,
        offsets: u64,
        indices: u64,
        weights: u64,
        query_sets: u64,
        key_sets: u64,
        anchors: u64,
        valid: u64,
        credible: u64,
        denominator_weights: u64,
        query_ids: u64,
        key_ids: u64,
        left_out_queries: u64,
        left_out_keys: u64,
        query_groups: u64,
        key_groups: u64,
        old_queries: u64,
        old_keys: u64,
        old_query_stride: u64,
        old_key_stride: u64,
        old_query_inverses: u64,
        old_key_inverses: u64,
        targets: u64,
        target_count: u64,
        losses: u64,
        log_sum_exp: u64,
        mass: u64,
        inverse_normalizer: u64,
        query_gradient: u64,
        temperature_gradient: u64,
        upstream: u64,
        key_gradient: u64,
        partials: u64,
        partial_gradients: u64,
        row_weights: u64,
        row_unit: u64,
        moment_weights: u64,
        status: u64,
        query_norms: u64,
        key_norms: u64,
        query_count: u32,
        key_count: u32,
        dim: u32,
        rule: u32,
        words: u32,
        least_overlap: u32,
        listed: u32,
        own_temperatures: u32,
        by_weight: u32,
        splits: u32,
        positives_left_out: u32,
        by_moments: u32,
        old_dim: u32,
        old_query_type: u32,
        old_key_type: u32,
        affinity: u32,
        affinity_scale: u32,
        padded: u32,
        positives_within: u32,
        reserved: u32,
    }
    /// `contrast_pace_*`.
    ContrastPace {
        contrast: Contrast,
        query_order: u64,
        key_order: u64,
        query_closeness: u64,
        key_closeness: u64,
        query_stride: u64,
        key_stride: u64,
        closeness: u32,
        feature_dim: u32,
        query_type: u32,
        key_type: u32,
        time_scale: u32,
        pace: u32,
        is_soft: u32,
        reserved: u32,
    }
    /// `contrast_symmetric_*`.
    ContrastSymmetric {
        pairs: Contrast,
        key_partials: u64,
        key_upstream: u64,
        key_log_sum_exp: u64,
        key_mass: u64,
        key_inverse_normalizer: u64,
        query_valid: u64,
        largest: u64,
        query_splits: u32,
        reserved: u32,
    }
    /// Sums over all rows of one side, in the place of sums over positives.
    ContrastMoments {
        rows: u64,
        stride: u64,
        old: u64,
        old_stride: u64,
        old_inverses: u64,
        valid: u64,
        credible: u64,
        weights: u64,
        partials: u64,
        moments: u64,
        applied: u64,
        row_count: u32,
        dim: u32,
        old_dim: u32,
        old_type: u32,
        splits: u32,
        applied_stride: u32,
        applied_dim: u32,
        subtracts: u32,
    }
    /// `gathered_contrast_*`, `gathered_divergence_*`, `gathered_losses_*`, `gathered_divergences`.
    Gathered {
        queries: u64,
        bank: u64,
        teacher_queries: u64,
        teacher_bank: u64,
        query_stride: u64,
        bank_stride: u64,
        teacher_query_stride: u64,
        teacher_bank_stride: u64,
        indices: u64,
        weights: u64,
        temperatures: u64,
        partials: u64,
        partial_gradients: u64,
        losses: u64,
        log_sum_exp: u64,
        inverse_normalizer: u64,
        query_gradient: u64,
        temperature_gradient: u64,
        status: u64,
        query_count: u32,
        bank_count: u32,
        columns: u32,
        dim: u32,
        teacher_dim: u32,
        positives: u32,
        own_temperatures: u32,
        by_weight: u32,
        splits: u32,
        tile_rows: u32,
        parts: u32,
        lanes: u32,
        softening: u32,
        reserved: u32,
    }
    /// `gathered_update_*`.
    Divergence {
        queries: u64,
        keys: u64,
        teacher_queries: u64,
        teacher_keys: u64,
        query_stride: u64,
        key_stride: u64,
        teacher_query_stride: u64,
        teacher_key_stride: u64,
        valid: u64,
        query_ids: u64,
        key_ids: u64,
        known: u64,
        partials: u64,
        losses: u64,
        log_sum_exp: u64,
        teacher_log_sum_exp: u64,
        mean: u64,
        bound: u64,
        partial_gradients: u64,
        query_gradient: u64,
        upstream: u64,
        row_weights: u64,
        row_unit: u64,
        key_gradient: u64,
        status: u64,
        query_count: u32,
        key_count: u32,
        dim: u32,
        teacher_dim: u32,
        splits: u32,
        reverse: u32,
        ignore_diagonal: u32,
        scale: u32,
        teacher_scale: u32,
        outer: u32,
        squared: u32,
        reserved: u32,
    }
    GatheredUpdate {
        bank: u64,
        rows: u64,
        bank_stride: u64,
        row_stride: u64,
        indices: u64,
        status: u64,
        bank_count: u32,
        row_count: u32,
        dim: u32,
        old_share: u32,
        new_share: u32,
        write: u32,
    }
    /// `bank_push_*`.
    BankPush {
        rows: u64,
        row_labels: u64,
        row_ids: u64,
        row_credible: u64,
        row_stride: u64,
        keys: u64,
        labels: u64,
        ids: u64,
        credible: u64,
        start: u32,
        row_count: u32,
        capacity: u32,
        dim: u32,
        row_type: u32,
        reserved: u32,
    }
    /// `clips_*`.
    Clips {
        clips: u64,
        clip_stride: u64,
        outputs: u64,
        parameters: u64,
        weights: u64,
        partials: u64,
        pivots: u64,
        status: u64,
        clip_count: u32,
        frames: u32,
        height: u32,
        width: u32,
        out_height: u32,
        out_width: u32,
        radius: u32,
        chunk_count: u32,
    }
    /// `bank_centers_*`.
    BankCenters {
        centers: u64,
        rows: u64,
        center_stride: u64,
        row_stride: u64,
        labels: u64,
        status: u64,
        center_count: u32,
        row_count: u32,
        dim: u32,
        old_share: u32,
        new_share: u32,
        normalize: u32,
        write: u32,
        reserved: u32,
    }
    /// `cam_sum_*`.
    CamSum {
        activations: u64,
        activation_stride: u64,
        gradients: u64,
        sums: u64,
        status: u64,
        channels: u32,
        pixels: u32,
        keep_negative: u32,
        reserved: u32,
    }
    /// `cam_map`.
    CamMap {
        sums: u64,
        maps: u64,
        input_height: u32,
        input_width: u32,
        height: u32,
        width: u32,
    }
    /// `cam_blend_*`.
    CamBlend {
        images: u64,
        image_stride: u64,
        others: u64,
        other_stride: u64,
        mask: u64,
        out: u64,
        status: u64,
        channels: u32,
        pixels: u32,
        is_color: u32,
        aligned: u32,
    }
    /// `cam_rectangle` and `cam_tile_*`.
    CamBackground {
        images: u64,
        image_stride: u64,
        mask: u64,
        out: u64,
        rectangles: u64,
        strips: u64,
        found: u64,
        status: u64,
        channels: u32,
        height: u32,
        width: u32,
        threshold: u32,
        is_short: u32,
        reserved: u32,
    }
    /// `clusters_*`.
    Clusters {
        points: u64,
        stride: u64,
        members: u64,
        first_rows: u64,
        end_rows: u64,
        first_clusters: u64,
        end_clusters: u64,
        labels: u64,
        chunk_rows: u64,
        classes: u64,
        chunk_classes: u64,
        chunk_firsts: u64,
        chunk_places: u64,
        clusters: u64,
        cluster_classes: u64,
        first_chunks: u64,
        given: u64,
        chosen: u64,
        sums: u64,
        partials: u64,
        centers: u64,
        starts: u64,
        moves: u64,
        places: u64,
        inverses: u64,
        far: u64,
        nearest: u64,
        order: u64,
        shifts: u64,
        variances: u64,
        states: u64,
        changes: u64,
        centroids: u64,
        sizes: u64,
        spread: u64,
        mean_distance: u64,
        assignment: u64,
        margin: u64,
        inertia: u64,
        iterations: u64,
        status: u64,
        seed: u64,
        tolerance: u64,
        row_count: u32,
        dim: u32,
        start: u32,
        max_iterations: u32,
        unit: u32,
        distance: u32,
        tile_rows: u32,
        step: u32,
        order_first: u32,
        count: u32,
    }

    /// `soft_assignment_measure_*`.
    SoftMeasure {
        rows: u64,
        stride: u64,
        scales: u64,
        norms: u64,
        wide: u64,
        status: u64,
        largest_scale: u64,
        count: u32,
        dim: u32,
        unit: u32,
        reserved: u32,
    }
    /// `soft_assignment_split_*`.
    SoftSplit {
        wide: u64,
        parts: u64,
        scales: u64,
        count: u32,
        dim: u32,
        padded: u32,
        reserved: u32,
    }
    /// `soft_assignment_rows_*`, `soft_assignment_join`, `credibility_rows_*`.
    SoftAssignment {
        points: u64,
        point_stride: u64,
        point_scales: u64,
        point_norms: u64,
        centroids: u64,
        centroid_norms: u64,
        rates: u64,
        operands: u64,
        operand_stride: u64,
        operand_scales: u64,
        classes: u64,
        class_starts: u64,
        own: u64,
        partials: u64,
        log_sum_exp: u64,
        entropy: u64,
        best: u64,
        best_probability: u64,
        point_count: u32,
        centroid_count: u32,
        dim: u32,
        operand_dim: u32,
        splits: u32,
        squared: u32,
    }
    /// `soft_assignment_nearest`.
    SoftNearest {
        distances: u64,
        indices: u64,
        rates: u64,
        listed: u64,
        probabilities: u64,
        log_sum_exp: u64,
        entropy: u64,
        best: u64,
        best_probability: u64,
        count: u32,
        width: u32,
        squared: u32,
        reserved: u32,
    }
    /// `soft_centroids_*`.
    SoftCentroids {
        soft: SoftAssignment,
        sums: u64,
        masses: u64,
        largest_scale: u64,
        moved: u64,
        mass: u64,
        splits: u32,
        unit: u32,
    }
    /// `credibility_*`.
    Credibility {
        soft: SoftAssignment,
        groups: u64,
        members: u64,
        starts: u64,
        class_of_group: u64,
        labels: u64,
        sums: u64,
        distances: u64,
        spreads: u64,
        near_distances: u64,
        near_indices: u64,
        own_distances: u64,
        credible: u64,
        own_probability: u64,
        suspicion: u64,
        margin: u64,
        closer: u64,
        predicted: u64,
        group_count: u32,
        width: u32,
        most_own: u32,
        first_row: u32,
        chunk_rows: u32,
        leave_one_out: u32,
        unit: u32,
        reject_other_class: u32,
        entropy_limit: u32,
        suspicion_limit: u32,
    }
}
