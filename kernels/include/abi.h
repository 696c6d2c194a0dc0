// The parameter structs of all kernels, shared with the host: `src/cuda/abi.rs` repeats them field by field, and a
// test compares the sizes and offsets of both sides. Fields go from wide to narrow, so that there is no padding.
// Addresses are 64-bit integers here, so that the layout is the same wherever the kernels are compiled; 0 stands
// for an array that is not there.
#pragma once

#include <cstdint>

// Storage types of rows whose type is known at launch only.
constexpr uint32_t TYPE_F32 = 0;
constexpr uint32_t TYPE_F16 = 1;
constexpr uint32_t TYPE_BF16 = 2;

// How two rows are compared.
constexpr uint32_t INNER_PRODUCT = 0;
constexpr uint32_t COSINE = 1;
constexpr uint32_t SQUARED_L2 = 2;

// Queries of a tile in the kernels for many queries, and in those for few.
constexpr uint32_t MANY_ROWS = 64;
constexpr uint32_t FEW_ROWS = 16;
// Keys of a tile.
constexpr uint32_t TILE_KEYS = 64;
// Threads of every tile kernel.
constexpr uint32_t TILE_THREADS = 128;
// Bytes of a row in a slab of shared memory, and slabs on their way at once.
constexpr uint32_t SLAB_BYTES = 128;
constexpr uint32_t STAGES = 3;
// Keys whose gradient one block sums.
constexpr uint32_t OWNED_KEYS = 64;
// Candidates that wait for their list, for each row.
constexpr uint32_t RING = 32;
// The most candidates that a list holds, and the most neighbors that one pass finds.
constexpr uint32_t MAX_CAPACITY = 512;
constexpr uint32_t MAX_PASS = 128;
// The index of a place without a neighbor, and the row number in a status word when all rows are good.
constexpr uint32_t NONE = 0xffffffffu;

// What a search reads: matrices [rows, dim] with rows `stride` elements apart, and what restricts the pairs.
struct Pairs {
    uint64_t queries;
    uint64_t keys;
    // u32 query numbers of this launch, in the order of their labels when there are labels; else 0, 1, 2, …
    uint64_t rows;
    // u32: how many of `rows` count; else `row_limit`.
    uint64_t row_count;
    // u32 key numbers in the order of their labels.
    uint64_t key_order;
    // u32 by query and key number: only pairs of one label.
    uint64_t query_labels;
    uint64_t key_labels;
    // u32 by query and key number: no pairs of one id.
    uint64_t query_ids;
    uint64_t key_ids;
    // One bit a key number, in u32 words: only keys whose bit is set.
    uint64_t allow;
    uint64_t query_stride;
    uint64_t key_stride;
    // Rows that `rows` has room for, and keys in all.
    uint32_t row_limit;
    uint32_t keys_in_all;
    uint32_t dim;
    uint32_t metric;
};

// neighbors_rank_*, neighbors_exact_*: the best candidates of every row in every split of the keys.
struct NeighborsRank {
    Pairs pairs;
    // Of the passes before, to search behind their last neighbor: f32 and u32 [queries, k].
    uint64_t scores;
    uint64_t indices;
    // u64 entries [row_limit, splits * lists of a block, capacity], best first.
    uint64_t lists;
    // u32 [2]: the least number of a query and of a key that cannot be compared.
    uint64_t status;
    uint32_t k;
    // Neighbors found by the passes before.
    uint32_t found;
    uint32_t capacity;
    uint32_t splits;
};

// neighbors_finish_*: from candidates to neighbors, and whether they are proven.
struct NeighborsFinish {
    Pairs pairs;
    uint64_t scores;
    uint64_t indices;
    uint64_t lists;
    // u32 [row_limit]: 1 for a row whose neighbors are not proven.
    uint64_t unproven;
    uint32_t k;
    uint32_t found;
    // Neighbors of this pass.
    uint32_t wanted;
    uint32_t capacity;
    // Lists of a row.
    uint32_t lists_of_row;
    // 1 when the candidates come from neighbors_exact_*, whose scores need no proof.
    uint32_t exact;
};

// neighbors_unproven: the numbers of the rows that are not proven, in their order.
struct NeighborsUnproven {
    uint64_t unproven;
    // As in Pairs.
    uint64_t rows;
    uint64_t row_count;
    // u32 [row_limit] and u32: the rows that are left, and how many.
    uint64_t left;
    uint64_t left_count;
    uint32_t row_limit;
    uint32_t reserved;
};

// neighbors_gradient_queries_*, neighbors_gradient_keys_*: gradients of the scores, the neighbors held fixed.
struct NeighborsGradient {
    uint64_t queries;
    uint64_t keys;
    // f32 and u32 [queries, k]: gradients of the scores, and the neighbors.
    uint64_t upstream;
    uint64_t indices;
    // f32 [queries, dim] or [keys, dim].
    uint64_t gradient;
    uint64_t query_stride;
    uint64_t key_stride;
    uint32_t query_count;
    uint32_t key_count;
    uint32_t dim;
    uint32_t metric;
    uint32_t k;
    uint32_t reserved;
};

// neighbors_bits: from a byte a key to a bit a key.
struct NeighborsBits {
    // u8 [count].
    uint64_t mask;
    // u32 [ceil(count / 32)].
    uint64_t bits;
    uint32_t count;
    uint32_t reserved;
};

// segments_*: one pass of a stable radix sort of numbers by their labels, 8 bits a pass.
struct SegmentsSort {
    // u32 by number.
    uint64_t labels;
    // u32 [count]: numbers before the pass (or 0, 1, 2, … without), and after it.
    uint64_t from;
    uint64_t to;
    // u32 [SORT_DIGITS, blocks].
    uint64_t counts;
    uint32_t count;
    uint32_t shift;
    uint32_t blocks;
    uint32_t reserved;
};

// Numbers that a block sorts, and values of a digit.
constexpr uint32_t SORT_ITEMS = 2048;
constexpr uint32_t SORT_DIGITS = 256;

// ranking_*: ranks by counting. `pairs` has neither labels nor ids here.
struct RankingCount {
    Pairs pairs;
    // u32 by query and by gallery item; an item labeled NONE is in no list.
    uint64_t query_labels;
    uint64_t item_labels;
    uint64_t query_ids;
    uint64_t item_ids;
    // u64 [queries + 1]: where a query's relevant items start.
    uint64_t offsets;
    // u32 [offsets of the end]: the relevant items, in any order.
    uint64_t items;
    // u64, as many: their entries as they come, and best first.
    uint64_t unsorted;
    uint64_t entries;
    // u32, as many: irrelevant items between a relevant item and the one before it, and by how much more there are
    // when items of equal scores count as well (modulo 2³²).
    uint64_t between;
    uint64_t ties;
    // u32 [2]: the least number of a query and of an item that cannot be compared.
    uint64_t status;
    uint32_t splits;
    uint32_t reserved;
};

// Which keys are the positives of a query, beside what excludes them.
constexpr uint32_t RULE_LABELS = 0;
constexpr uint32_t RULE_DIAGONAL = 1;
constexpr uint32_t RULE_LISTS = 2;
constexpr uint32_t RULE_BITS = 3;
constexpr uint32_t RULE_ALL = 4;
// How the cosine c of two old embeddings weighs a pair: not at all, (1 + c) / 2, e^((c - 1) / theta).
constexpr uint32_t AFFINITY_NONE = 0;
constexpr uint32_t AFFINITY_HALF = 1;
constexpr uint32_t AFFINITY_EXP = 2;
// How close two rows of a group are: by the difference of times, or by the cosine of features.
constexpr uint32_t CLOSENESS_TIMES = 0;
constexpr uint32_t CLOSENESS_FEATURES = 1;
// Dimensions whose gradient one group of four warps sums.
constexpr uint32_t GRADIENT_DIMS = 128;
// Bytes of what one split of the keys knows of a row.
constexpr uint32_t ROW_PARTIAL_BYTES = 12;
// Dimensions of the sums over positives that one block has, and its shared memory.
constexpr uint32_t TARGET_DIMS = 1024;
constexpr uint32_t TARGET_SHARED_BYTES = 32864;
// Shared memory of a block that weighs the negatives of a group, of as many dimensions.
constexpr uint32_t PACE_SHARED_BYTES = 16432;
// Words of the status of a problem: the least bad query, key, temperature, denominator weight, list, old query and old
// key; then the complements of the bits of the largest squared norm of queries and of valid keys, and of the largest
// |log₂ u|; then the least bad time or feature row of the queries and of the keys.
constexpr uint32_t CONTRAST_STATUS = 12;
// Rows that one block checks.
constexpr uint32_t CHECKED_ROWS = 64;
// Old and new dimensions of a block's part of the moments.
constexpr uint32_t MOMENT_ROWS = 32;
constexpr uint32_t MOMENT_COLS = 64;
// Rows whose moments one block applies.
constexpr uint32_t MOMENT_APPLIED = 16;

// contrast_*: the weighted multi-positive contrastive loss.
struct Contrast {
    // Matrices [rows, dim] with rows `stride` elements apart.
    uint64_t queries;
    uint64_t keys;
    uint64_t query_stride;
    uint64_t key_stride;
    // f32 [queries], or one for all.
    uint64_t temperatures;
    // RULE_LABELS: u32 by query and key number, and u32 key numbers in the order of their labels.
    uint64_t query_labels;
    uint64_t key_labels;
    uint64_t key_order;
    // RULE_LISTS: u32 [queries + 1], and u32 key numbers, ascending in a list, with f32 weights or without.
    uint64_t offsets;
    uint64_t indices;
    uint64_t weights;
    // RULE_BITS: u32 [queries, words] and [keys, words].
    uint64_t query_sets;
    uint64_t key_sets;
    // One bit a query or key, in u32 words: anchors, keys of any sum, keys that may be positives.
    uint64_t anchors;
    uint64_t valid;
    uint64_t credible;
    // f32 [keys].
    uint64_t denominator_weights;
    // u32 by query and key number: pairs of one id are in no sum.
    uint64_t query_ids;
    uint64_t key_ids;
    // u32 by query and key number: keys of the query's label that are no positives are in no denominator.
    uint64_t left_out_queries;
    uint64_t left_out_keys;
    // u32 by query and key number: negatives of the query's group are weighed one by one (contrast_pace_*), and leave the
    // sums over tiles.
    uint64_t query_groups;
    uint64_t key_groups;
    // Affinity: old embeddings [queries, old_dim] and [keys, old_dim] with rows `stride` elements apart, and f32
    // inverses of their norms.
    uint64_t old_queries;
    uint64_t old_keys;
    uint64_t old_query_stride;
    uint64_t old_key_stride;
    uint64_t old_query_inverses;
    uint64_t old_key_inverses;
    // by_moments: f32 [queries, dim + 1]: sums of w y and of w over all positives; f32: how many there are.
    uint64_t targets;
    uint64_t target_count;
    // f32 [queries]: the losses, the logarithms of the denominators, the sums of the targets, and what multiplies a
    // positive's weight to be its target, which is 0 for rows that do not count.
    uint64_t losses;
    uint64_t log_sum_exp;
    uint64_t mass;
    uint64_t inverse_normalizer;
    // f32 [queries, dim] and [queries]: of each row's own loss; the first may be absent, and then both are.
    uint64_t query_gradient;
    uint64_t temperature_gradient;
    // f32 [queries]: the gradient of every row's loss; f32 [keys, dim].
    uint64_t upstream;
    uint64_t key_gradient;
    // [queries, splits] of ROW_PARTIAL_BYTES; f32 [splits, queries, dim]. With groups, the last split is their own.
    uint64_t partials;
    uint64_t partial_gradients;
    // f32 [queries] and f32: weights of the rows in the gradient of the keys, in units of a power of two.
    uint64_t row_weights;
    uint64_t row_unit;
    // by_moments: f32 [queries]: weights of the queries in the moments that the keys' gradient takes.
    uint64_t moment_weights;
    // u32 [CONTRAST_STATUS].
    uint64_t status;
    // f32 [queries] and [keys]: norms, which bound scores beforehand; either may be absent.
    uint64_t query_norms;
    uint64_t key_norms;
    uint32_t query_count;
    uint32_t key_count;
    uint32_t dim;
    uint32_t rule;
    // 32-bit words of a set, and the least overlap of a positive pair.
    uint32_t words;
    uint32_t least_overlap;
    // Indices in all lists.
    uint32_t listed;
    // 1 when every query has its own temperature.
    uint32_t own_temperatures;
    // 1 when weights are divided by their sum, 0 by their number.
    uint32_t by_weight;
    uint32_t splits;
    // 1 when positives are in no denominator.
    uint32_t positives_left_out;
    // 1 when all keys that can be positives are those of every query, so that `targets` has their sums.
    uint32_t by_moments;
    uint32_t old_dim;
    uint32_t old_query_type;
    uint32_t old_key_type;
    uint32_t affinity;
    // AFFINITY_EXP: the bits of the f32 log2(e) / theta.
    uint32_t affinity_scale;
    // 1 when a list may end in places that hold NONE.
    uint32_t padded;
    // 1 when the sums along ⟨x, y⟩ have the positives of the denominator in them.
    uint32_t positives_within;
    uint32_t reserved;
};

// contrast_pace_*: the negatives of a query's own group, weighed one by one.
struct ContrastPace {
    Contrast contrast;
    // u32 [queries] and [keys]: row numbers in the order of their groups.
    uint64_t query_order;
    uint64_t key_order;
    // CLOSENESS_TIMES: f32 [queries] and [keys]; CLOSENESS_FEATURES: matrices [rows, feature_dim] with rows `stride`
    // elements apart.
    uint64_t query_closeness;
    uint64_t key_closeness;
    uint64_t query_stride;
    uint64_t key_stride;
    uint32_t closeness;
    uint32_t feature_dim;
    uint32_t query_type;
    uint32_t key_type;
    // Bits of f32: what times are divided by, and the pace.
    uint32_t time_scale;
    uint32_t pace;
    // 1 when the weight falls linearly up to the pace, 0 when it is 1 up to there.
    uint32_t is_soft;
    uint32_t reserved;
};

// contrast_symmetric_*: both directions of the loss at once.
struct ContrastSymmetric {
    // One direction, without denominator weights, moments and temperatures of their own.
    Contrast pairs;
    // [keys, query_splits] of ROW_PARTIAL_BYTES: what splits of the queries know of the keys.
    uint64_t key_partials;
    // f32 [keys]: of the other direction's losses, what `pairs` has of this one's.
    uint64_t key_upstream;
    uint64_t key_log_sum_exp;
    uint64_t key_mass;
    uint64_t key_inverse_normalizer;
    // One bit a query: those that are in the other direction's sums.
    uint64_t query_valid;
    // u32: the complement of the bits of the largest coefficient.
    uint64_t largest;
    uint32_t query_splits;
    uint32_t reserved;
};

// contrast_moments_*: sums over all rows of one side, which stand for every sum over positives of the other.
struct ContrastMoments {
    // Matrix [rows, dim] with rows `stride` elements apart.
    uint64_t rows;
    uint64_t stride;
    // Old embeddings of the same rows, or of those that the moments are applied to; none without affinity.
    uint64_t old;
    uint64_t old_stride;
    uint64_t old_inverses;
    // One bit a row, in u32 words: rows that count must have both.
    uint64_t valid;
    uint64_t credible;
    // f32 [rows]: what a row's share is multiplied by; 1 when absent.
    uint64_t weights;
    // f32 [splits, old_dim + 1, dim + 1] and their sum over the splits.
    uint64_t partials;
    uint64_t moments;
    // f32 with rows `applied_stride` apart: what the moments are written to, or with `subtracts` subtracted from.
    uint64_t applied;
    uint32_t row_count;
    uint32_t dim;
    uint32_t old_dim;
    uint32_t old_type;
    uint32_t splits;
    uint32_t applied_stride;
    uint32_t applied_dim;
    uint32_t subtracts;
};

// Columns of a tile of listed rows at most; bytes of a tile as far as one row fits; dimensions that a thread sums in the
// narrow and in the wide kernels, each times TILE_THREADS.
constexpr uint32_t GATHERED_ROWS = 32;
constexpr uint32_t GATHERED_TILE_BYTES = 16384;
constexpr uint32_t NARROW_DIMS = 4;
constexpr uint32_t WIDE_DIMS = 32;
// Bytes of what one split of the columns knows of a row.
constexpr uint32_t GATHERED_PARTIAL_BYTES = 24;
// Words of the status: the least bad query, bank row, teacher query, row of the teacher's bank, temperature, weights,
// list of indices and row of results, and the number of rows that count.
constexpr uint32_t GATHERED_STATUS = 9;

// gathered_contrast_*, gathered_divergence_*, gathered_losses_*, gathered_divergences: every query against the bank rows
// that it lists.
struct Gathered {
    // Matrices [rows, dim] with rows `stride` elements apart; the teacher's are there for divergences.
    uint64_t queries;
    uint64_t bank;
    uint64_t teacher_queries;
    uint64_t teacher_bank;
    uint64_t query_stride;
    uint64_t bank_stride;
    uint64_t teacher_query_stride;
    uint64_t teacher_bank_stride;
    // u32 [queries, columns]: rows of the banks; NONE is padding.
    uint64_t indices;
    // f32 [queries, columns]: positive above 0; without, the first `positives` columns are positives of weight 1.
    uint64_t weights;
    // f32 [queries], or one for all.
    uint64_t temperatures;
    // [queries, splits] of GATHERED_PARTIAL_BYTES; f32 [queries, splits, 2, dim], or 0 when no gradient is asked for.
    uint64_t partials;
    uint64_t partial_gradients;
    // f32 [queries]; what weights are multiplied by to be targets is 0 for rows that do not count.
    uint64_t losses;
    uint64_t log_sum_exp;
    uint64_t inverse_normalizer;
    // f32 [queries, dim] and [queries]: of each row's own loss.
    uint64_t query_gradient;
    uint64_t temperature_gradient;
    // u32 [GATHERED_STATUS].
    uint64_t status;
    uint32_t query_count;
    uint32_t bank_count;
    uint32_t columns;
    uint32_t dim;
    uint32_t teacher_dim;
    uint32_t positives;
    // 1 when every query has its own temperature.
    uint32_t own_temperatures;
    // 1 when weights are divided by their sum, 0 by their number.
    uint32_t by_weight;
    uint32_t splits;
    // Columns of a tile, parts of a row that are multiplied apart, and lanes that share a part.
    uint32_t tile_rows;
    uint32_t parts;
    uint32_t lanes;
    // An f32, bit for bit: what divides scores of divergences once more.
    uint32_t softening;
    uint32_t reserved;
};

// Bytes of what one split of the keys knows of a row of a divergence.
constexpr uint32_t DIVERGENCE_PARTIAL_BYTES = 24;
// Words of the status of a divergence: the least bad row of the queries, keys, teacher's queries and teacher's keys, the
// least row whose known statistics are not the teacher's, and the least row whose divergence leaves f32.
constexpr uint32_t DIVERGENCE_STATUS = 6;

// divergence_*: a student's distribution over the keys against its teacher's.
struct Divergence {
    // Matrices [rows, dim] with rows `stride` elements apart.
    uint64_t queries;
    uint64_t keys;
    uint64_t teacher_queries;
    uint64_t teacher_keys;
    uint64_t query_stride;
    uint64_t key_stride;
    uint64_t teacher_query_stride;
    uint64_t teacher_key_stride;
    // One bit a key, in u32 words: only keys whose bit is set.
    uint64_t valid;
    // u32: no pairs of one id.
    uint64_t query_ids;
    uint64_t key_ids;
    // f32 [queries]: the teacher's log-sum-exp of an earlier pass, or 0; −∞ for rows where it is not known.
    uint64_t known;
    // [queries, splits] of DIVERGENCE_PARTIAL_BYTES.
    uint64_t partials;
    // f32 [queries].
    uint64_t losses;
    uint64_t log_sum_exp;
    uint64_t teacher_log_sum_exp;
    // f32 [queries]: the mean difference of the scores, and what no coefficient exceeds, 0 for rows that do not count.
    uint64_t mean;
    uint64_t bound;
    // f32 [splits, queries, dim] and [queries, dim].
    uint64_t partial_gradients;
    uint64_t query_gradient;
    // f32 [queries], [queries], one and [keys, dim].
    uint64_t upstream;
    uint64_t row_weights;
    uint64_t row_unit;
    uint64_t key_gradient;
    // u32 [DIVERGENCE_STATUS].
    uint64_t status;
    uint32_t query_count;
    uint32_t key_count;
    uint32_t dim;
    uint32_t teacher_dim;
    uint32_t splits;
    // 1 for KL(student ‖ teacher).
    uint32_t reverse;
    // 1 when query i does not meet key i.
    uint32_t ignore_diagonal;
    // f32, bit for bit: log₂e / (τ T) of both sides, T / τ of the student, and T².
    uint32_t scale;
    uint32_t teacher_scale;
    uint32_t outer;
    uint32_t squared;
    uint32_t reserved;
};

// Words of the status of an update: the least bad position of an index, of a row and of a sum without a direction, and
// the least bad row of the bank.
constexpr uint32_t UPDATE_STATUS = 4;

// gathered_update_*: rows of a bank move towards new ones, and back to norm 1.
struct GatheredUpdate {
    // [bank_count, dim] and [rows, dim].
    uint64_t bank;
    uint64_t rows;
    uint64_t bank_stride;
    uint64_t row_stride;
    // u32 [rows]: rows of the bank; NONE is skipped.
    uint64_t indices;
    // u32 [UPDATE_STATUS].
    uint64_t status;
    uint32_t bank_count;
    uint32_t row_count;
    uint32_t dim;
    // f32, bit for bit: the shares of the old row and of the new one.
    uint32_t old_share;
    uint32_t new_share;
    // 0 to check alone; 1 to write, unless a check has found something.
    uint32_t write;
};

// bank_push_*: rows with their labels, ids and credibility into the slots of a ring.
struct BankPush {
    // What is pushed: [row_count, dim] of `row_type`, u32, u32 or 0 for NONE, u8 or 0 for 1.
    uint64_t rows;
    uint64_t row_labels;
    uint64_t row_ids;
    uint64_t row_credible;
    uint64_t row_stride;
    // The ring, dense: [capacity, dim], u32, u32, u8.
    uint64_t keys;
    uint64_t labels;
    uint64_t ids;
    uint64_t credible;
    // The slot of the first row, rows and slots.
    uint32_t start;
    uint32_t row_count;
    uint32_t capacity;
    uint32_t dim;
    uint32_t row_type;
    uint32_t reserved;
};

// u32 words of a clip's parameters, pixels that a block checks or sums, pixels that a block of whole frames augments, and the
// side of a tile that is blurred.
constexpr uint32_t CLIP_WORDS = 12;
constexpr uint32_t CLIP_CHUNK = 2048;
constexpr uint32_t CLIP_PIXELS = 512;
constexpr uint32_t CLIP_TILE = 32;

// clips_*: one set of parameters for all frames of a clip.
struct Clips {
    // [clip_count, frames, 3, height, width], clips `clip_stride` elements apart; values in [0, 1].
    uint64_t clips;
    uint64_t clip_stride;
    // [clip_count, frames, 3, out_height, out_width], dense.
    uint64_t outputs;
    // u32 [clip_count, CLIP_WORDS]: see `Word` in clips.cu.
    uint64_t parameters;
    // f32 [clip_count, radius + 1]: weights of a blur from its middle on.
    uint64_t weights;
    // f32 [clip_count, 3, chunk_count]: sums of CLIP_CHUNK pixels each, before the contrast.
    uint64_t partials;
    // f32 [clip_count, 3]: means before the contrast.
    uint64_t pivots;
    // u32: the least clip with a pixel that is not in [0, 1].
    uint64_t status;
    uint32_t clip_count;
    uint32_t frames;
    uint32_t height;
    uint32_t width;
    uint32_t out_height;
    uint32_t out_width;
    uint32_t radius;
    uint32_t chunk_count;
};

// Words of the status of class centers: the least bad position of a label, of a row and the least bad class.
constexpr uint32_t CENTERS_STATUS = 3;

// bank_centers_*: centers move towards the means of the rows of their classes.
struct BankCenters {
    // [center_count, dim] and [row_count, dim].
    uint64_t centers;
    uint64_t rows;
    uint64_t center_stride;
    uint64_t row_stride;
    // u32 [row_count]; NONE is skipped.
    uint64_t labels;
    // u32 [CENTERS_STATUS].
    uint64_t status;
    uint32_t center_count;
    uint32_t row_count;
    uint32_t dim;
    // f32, bit for bit: the shares of the old center and of the mean.
    uint32_t old_share;
    uint32_t new_share;
    // 1 when centers have norm 1.
    uint32_t normalize;
    // 0 to check alone; 1 to write, unless a check has found something.
    uint32_t write;
    uint32_t reserved;
};

// Threads of a block of the kernels of class activation maps.
constexpr uint32_t CAM_THREADS = 256;
// Words of a status: the least bad image of the gradients and of the activations; of images, others and masks.
constexpr uint32_t CAM_MAP_STATUS = 2;
constexpr uint32_t CAM_BLEND_STATUS = 3;

// cam_sum_*: the weighted sum of the channels of activations.
struct CamSum {
    // [image_count, channels, pixels], images `activation_stride` elements apart.
    uint64_t activations;
    uint64_t activation_stride;
    // f32 [image_count, channels]: ∂s/∂GAP.
    uint64_t gradients;
    // f32 [image_count, pixels].
    uint64_t sums;
    // u32 [CAM_MAP_STATUS].
    uint64_t status;
    uint32_t channels;
    uint32_t pixels;
    // 1 where channels of negative weight count.
    uint32_t keep_negative;
    uint32_t reserved;
};

// cam_map: the sums stretched and normalized.
struct CamMap {
    // f32 [image_count, input_height, input_width].
    uint64_t sums;
    // f32 [image_count, height, width].
    uint64_t maps;
    uint32_t input_height;
    uint32_t input_width;
    uint32_t height;
    uint32_t width;
};

// cam_blend_*: images and others mixed by a mask.
struct CamBlend {
    // [image_count, channels, pixels], images `image_stride` elements apart.
    uint64_t images;
    uint64_t image_stride;
    // The same, or [channels] where `is_color` is 1; `other_stride` 0: one for all images.
    uint64_t others;
    uint64_t other_stride;
    // f32 [image_count, pixels].
    uint64_t mask;
    // [image_count, channels, pixels].
    uint64_t out;
    // u32 [CAM_BLEND_STATUS].
    uint64_t status;
    uint32_t channels;
    uint32_t pixels;
    uint32_t is_color;
    // 1 where every plane begins at a multiple of 16 bytes and has whole chunks of them.
    uint32_t aligned;
};

// cam_rectangle, cam_tile_*: images whose object is covered by their background.
struct CamBackground {
    // [image_count, channels, height, width], images `image_stride` elements apart.
    uint64_t images;
    uint64_t image_stride;
    // f32 [image_count, height, width].
    uint64_t mask;
    // [image_count, channels, height, width].
    uint64_t out;
    // u32 [image_count, 4] twice: top, left, bottom, right of the object and of the strip beside it.
    uint64_t rectangles;
    uint64_t strips;
    // u8 [image_count].
    uint64_t found;
    // u32 [CAM_BLEND_STATUS].
    uint64_t status;
    uint32_t channels;
    uint32_t height;
    uint32_t width;
    // f32, bit for bit.
    uint32_t threshold;
    // 1 where the last row and column of a rectangle are left out.
    uint32_t is_short;
    uint32_t reserved;
};

// Threads of a block of the clustering kernels.
constexpr uint32_t CLUSTER_THREADS = 256;
// Clusters of a class whose sums a streamed assignment takes along.
constexpr uint32_t FUSED_CLUSTERS = 64;
// Where centroids start.
constexpr uint32_t START_PLUS_PLUS = 0;
constexpr uint32_t START_ROWS = 1;
constexpr uint32_t START_GIVEN = 2;

// clusters_*: k-means inside every class. Positions are places of rows in the order of the classes.
struct Clusters {
    // Matrix [row_count, dim] with rows `stride` elements apart.
    uint64_t points;
    uint64_t stride;
    // u32 [row_count]: the row at every position.
    uint64_t members;
    // u32 by class: its first position and the one behind its last, its first cluster and the one behind its last, its label,
    // and the rows of a chunk, whose sums are added up apart.
    uint64_t first_rows;
    uint64_t end_rows;
    uint64_t first_clusters;
    uint64_t end_clusters;
    uint64_t labels;
    uint64_t chunk_rows;
    // u32: the classes of this launch; its chunks: their classes, their first positions and their places in `partials`; its
    // clusters and their classes.
    uint64_t classes;
    uint64_t chunk_classes;
    uint64_t chunk_firsts;
    uint64_t chunk_places;
    uint64_t clusters;
    uint64_t cluster_classes;
    // u32 by class: its first chunk.
    uint64_t first_chunks;
    // f32 [clusters, dim]: START_GIVEN; u32 by cluster: rows of the class, read with START_ROWS and written else.
    uint64_t given;
    uint64_t chosen;
    // f64 [clusters, dim]: sums of the clusters; f64 [places, dim].
    uint64_t sums;
    uint64_t partials;
    // By cluster: f32 [clusters, dim], f32, f64 and u32: its first place in `order`.
    uint64_t centers;
    uint64_t starts;
    uint64_t moves;
    uint64_t places;
    // By position: f32 inverses of norms, f64 squared distances, u32 nearest cluster.
    uint64_t inverses;
    uint64_t far;
    uint64_t nearest;
    // u32: positions in the order of their clusters, counted from `order_first`.
    uint64_t order;
    // By class: f32 [classes, dim], f64 and u32.
    uint64_t shifts;
    uint64_t variances;
    uint64_t states;
    uint64_t changes;
    // Results: f32 [clusters, dim]; by cluster u32, f32 and f32; by row u32 and f32; by class f64 and u32.
    uint64_t centroids;
    uint64_t sizes;
    uint64_t spread;
    uint64_t mean_distance;
    uint64_t assignment;
    uint64_t margin;
    uint64_t inertia;
    uint64_t iterations;
    // u32 [2]: the least row that cannot be clustered, and how many classes are not done.
    uint64_t status;
    uint64_t seed;
    // An f64, bit for bit.
    uint64_t tolerance;
    uint32_t row_count;
    uint32_t dim;
    uint32_t start;
    uint32_t max_iterations;
    // 1 on the sphere.
    uint32_t unit;
    // Elements from row to row in shared memory, and rows of a tile.
    uint32_t distance;
    uint32_t tile_rows;
    // The step of k-means++; 1 in the last assignment.
    uint32_t step;
    uint32_t order_first;
    // What has so many classes, chunks or clusters in this launch.
    uint32_t count;
};

// Bytes of what one split of the centroids knows of a row.
constexpr uint32_t SOFT_PARTIAL_BYTES = 24;
// Words of the status of a soft assignment: the least bad point and centroid, and the bits of the largest scale of a point.
constexpr uint32_t SOFT_STATUS = 3;

// soft_assignment_measure_*: what a row is multiplied by to be compared, and its squared norm then.
struct SoftMeasure {
    // [count, dim] with rows `stride` elements apart.
    uint64_t rows;
    uint64_t stride;
    // f32 [count], each or 0; f32 [count, dim]: the rows as they are compared, or 0.
    uint64_t scales;
    uint64_t norms;
    uint64_t wide;
    // u32: the least bad row, and the bits of the largest scale; each or 0.
    uint64_t status;
    uint64_t largest_scale;
    uint32_t count;
    uint32_t dim;
    // 1 for directions.
    uint32_t unit;
    uint32_t reserved;
};

// soft_assignment_split_*: f32 rows as the sum of two 16-bit ones.
struct SoftSplit {
    // f32 [count, dim].
    uint64_t wide;
    // [count, 2, padded] of the 16-bit type, and f32 [count]: what sums of products are multiplied by.
    uint64_t parts;
    uint64_t scales;
    uint32_t count;
    uint32_t dim;
    // A multiple of the elements of a slab.
    uint32_t padded;
    uint32_t reserved;
};

// soft_assignment_*, soft_centroids_*, credibility_*: the softmax of falling functions of distances to centroids.
struct SoftAssignment {
    // [point_count, dim] with rows `point_stride` elements apart; f32 [point_count]: scales and squared norms.
    uint64_t points;
    uint64_t point_stride;
    uint64_t point_scales;
    uint64_t point_norms;
    // f32 [centroid_count, dim]: centroids as they are compared; f32 [centroid_count]: squared norms and rates.
    uint64_t centroids;
    uint64_t centroid_norms;
    uint64_t rates;
    // What the products read of the centroids, in the points' type: rows of operand_dim, operand_stride apart; f32
    // [centroid_count]: what products are multiplied by; 1 when absent.
    uint64_t operands;
    uint64_t operand_stride;
    uint64_t operand_scales;
    // Credibility: u32 [point_count]: classes of the rows; u32: the first centroid of each class, and one more;
    // [point_count] of SOFT_PARTIAL_BYTES: centroids of the own class.
    uint64_t classes;
    uint64_t class_starts;
    uint64_t own;
    // [point_count, splits] of SOFT_PARTIAL_BYTES.
    uint64_t partials;
    // f32 [point_count]; `best` is u32.
    uint64_t log_sum_exp;
    uint64_t entropy;
    uint64_t best;
    uint64_t best_probability;
    uint32_t point_count;
    uint32_t centroid_count;
    uint32_t dim;
    uint32_t operand_dim;
    uint32_t splits;
    // 1 when scores fall with the squared distance.
    uint32_t squared;
};

// soft_assignment_nearest: the softmax over the listed centroids.
struct SoftNearest {
    // f32 and u32 [count, width]: squared distances and centroids by (distance, index); f32 [centroids]: rates.
    uint64_t distances;
    uint64_t indices;
    uint64_t rates;
    // u32 and f32 [count, width]: the lists as they are given back; f32 [count], `best` u32.
    uint64_t listed;
    uint64_t probabilities;
    uint64_t log_sum_exp;
    uint64_t entropy;
    uint64_t best;
    uint64_t best_probability;
    uint32_t count;
    uint32_t width;
    uint32_t squared;
    uint32_t reserved;
};

// soft_centroids_*: means of the points by their responsibilities.
struct SoftCentroids {
    SoftAssignment soft;
    // f32 [splits, centroid_count, dim]: sums of r x; f32 [splits, centroid_count, 2]: of r, and of r as it is multiplied.
    uint64_t sums;
    uint64_t masses;
    // The bits of the largest scale of a point.
    uint64_t largest_scale;
    // f32 [centroid_count, dim] and [centroid_count].
    uint64_t moved;
    uint64_t mass;
    uint32_t splits;
    // 1 for directions.
    uint32_t unit;
};

// credibility_*: how well labeled rows fit their classes.
struct Credibility {
    // Points are the rows, centroids the means of the groups.
    SoftAssignment soft;
    // u32 [rows]: the group of each row, and rows in the order of their groups; u32 [groups + 1]: where each starts.
    uint64_t groups;
    uint64_t members;
    uint64_t starts;
    // u32 [groups]: the class of each; u32 [classes]: labels.
    uint64_t class_of_group;
    uint64_t labels;
    // f64 [groups, dim]: sums of the rows as they are compared.
    uint64_t sums;
    // f64 [rows]: distances to the own centroid; f64 [groups, 2]: their mean and variance.
    uint64_t distances;
    uint64_t spreads;
    // Of a chunk of rows: f32 and u32 [chunk, width]: the nearest centroids of other classes; f32 [chunk, most_own]: squared
    // distances to the own ones.
    uint64_t near_distances;
    uint64_t near_indices;
    uint64_t own_distances;
    // u8 [rows]; f32 [rows]; u32 [rows].
    uint64_t credible;
    uint64_t own_probability;
    uint64_t suspicion;
    uint64_t margin;
    uint64_t closer;
    uint64_t predicted;
    uint32_t group_count;
    // 0 when the entropy is over all centroids.
    uint32_t width;
    uint32_t most_own;
    // The chunk.
    uint32_t first_row;
    uint32_t chunk_rows;
    uint32_t leave_one_out;
    uint32_t unit;
    uint32_t reject_other_class;
    // f32, bit for bit.
    uint32_t entropy_limit;
    uint32_t suspicion_limit;
};
