// ranking: the place of every relevant item in its query's list, by counting, without sorting the list and without
// the query × gallery matrix.
//
//   check     which rows cannot be compared
//   relevant  the deciding scores (score.cuh) of a query's relevant items, best first
//   count     for every irrelevant item, between which relevant items it lies; integer counts, so atomics change
//             nothing. The rank of relevant item m is m plus the counts up to m.
// An item is irrelevant to a query when its label differs, it is no junk, and it has not the query's id.
//
// Grids: check: blocks of 4 rows, queries then items; relevant: one block a query; count: (tiles of 64 queries,
// splits of the gallery). Scores are computed on the f32 units, 2 B N D operations.
#include "bound.cuh"
#include "exact.cuh"
#include "kernel.cuh"
#include "list.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

// One warp a row: reports rows that are not finite, too large, or without a direction when one is needed.
template <class T>
__device__ __forceinline__ void check(const RankingCount& p) {
    uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32;
    const bool is_query = row < p.pairs.row_limit;
    if (!is_query) {
        row -= p.pairs.row_limit;
        if (row >= p.pairs.keys_in_all || array<uint32_t>(p.item_labels)[row] == NONE) {
            return;
        }
    }
    const T* const data = is_query ? array<T>(p.pairs.queries) + row * p.pairs.query_stride
                                   : array<T>(p.pairs.keys) + row * p.pairs.key_stride;
    float squared = 0.0f;
    for (uint32_t d = lane_index(); d < p.pairs.dim; d += 32) {
        const float x = to_f32(data[d]);
        squared = fmaf(x, x, squared);
    }
    squared = sum_of_warp(squared);
    const bool is_good = squared <= LARGEST_SQUARED_NORM && (p.pairs.metric != COSINE || squared > 0.0f);
    if (!is_good && lane_index() == 0) {
        atomicMin(output<uint32_t>(p.status) + (is_query ? 0 : 1), row);
    }
}

template <class T>
__device__ __forceinline__ void relevant(const RankingCount& p) {
    const uint32_t query = blockIdx.x;
    const uint64_t first = array<uint64_t>(p.offsets)[query];
    const uint64_t count = array<uint64_t>(p.offsets)[query + 1] - first;
    const T* const query_row = array<T>(p.pairs.queries) + query * p.pairs.query_stride;
    const bool chunked = is_chunked(p.pairs.queries, p.pairs.query_stride, sizeof(T)) &&
                         is_chunked(p.pairs.keys, p.pairs.key_stride, sizeof(T));
    uint64_t* const unsorted = output<uint64_t>(p.unsorted) + first;
    for (uint64_t i = threadIdx.x; i < count; i += TILE_THREADS) {
        const uint32_t item = array<uint32_t>(p.items)[first + i];
        const T* const row = array<T>(p.pairs.keys) + item * p.pairs.key_stride;
        unsorted[i] = make_entry(deciding_value(p.pairs.metric, query_row, row, p.pairs.dim, chunked), item);
        output<uint32_t>(p.between)[first + i] = 0;
        output<uint32_t>(p.ties)[first + i] = 0;
    }
    __syncthreads();
    for (uint64_t i = threadIdx.x; i < count; i += TILE_THREADS) {
        const uint64_t entry = unsorted[i];
        uint64_t better = 0;
        for (uint64_t other = 0; other < count; ++other) {
            better += unsorted[other] > entry ? 1 : 0;
        }
        output<uint64_t>(p.entries)[first + better] = entry;
    }
}

// Adds an irrelevant item of this value to the counts of a query whose relevant items have these entries.
__device__ __forceinline__ void count_item(const RankingCount& p, uint64_t first, uint32_t relevant, float value,
                                           uint32_t item) {
    const uint64_t* const entries = array<uint64_t>(p.entries) + first;
    uint32_t* const ties = output<uint32_t>(p.ties) + first;
    const uint32_t place = better_than(entries, relevant, make_entry(value, item));
    if (place < relevant) {
        atomicAdd(output<uint32_t>(p.between) + first + place, 1u);
    }
    // Relevant items of this very score that come first lose to it when ties count.
    const uint32_t worse = better_than(entries, relevant, make_entry(value, 0));
    if (worse < place) {
        atomicAdd(ties + worse, 1u);
        if (place < relevant) {
            atomicAdd(ties + place, NONE);
        }
    }
}

template <uint32_t METRIC, class T>
__device__ __forceinline__ void count(const RankingCount& p, uint32_t first_query, uint32_t end_query,
                                      uint32_t first_item, uint32_t end_item) {
    uint64_t first[EXACT_ROWS];
    uint32_t relevant[EXACT_ROWS];
    float floor[EXACT_ROWS];
#pragma unroll
    for (int i = 0; i < EXACT_ROWS; ++i) {
        const uint32_t query = first_query + static_cast<uint32_t>(exact_row(i));
        first[i] = 0;
        relevant[i] = 0;
        // What is worse than the last relevant item counts nowhere; nothing is at or above infinity but itself.
        floor[i] = INFINITY;
        if (query < end_query) {
            first[i] = array<uint64_t>(p.offsets)[query];
            relevant[i] = static_cast<uint32_t>(array<uint64_t>(p.offsets)[query + 1] - first[i]);
            if (relevant[i] != 0) {
                floor[i] = entry_value(array<uint64_t>(p.entries)[first[i] + relevant[i] - 1]);
            }
        }
    }
    const auto queries = make_source<T>(p.pairs.queries, p.pairs.query_stride, 0, end_query, p.pairs.dim);
    const auto items = make_source<T>(p.pairs.keys, p.pairs.key_stride, 0, end_item, p.pairs.dim);
    score_keys<METRIC>(ptx::shared_memory(), queries, first_query, items, first_item,
                       [&](const auto& scores, uint32_t first_of_tile) {
#pragma unroll
        for (int i = 0; i < EXACT_ROWS; ++i) {
            const uint32_t query = first_query + static_cast<uint32_t>(exact_row(i));
#pragma unroll
            for (int c = 0; c < EXACT_COLUMNS; ++c) {
                const uint32_t item = first_of_tile + static_cast<uint32_t>(exact_column(c));
                const float value = scores[i][c].value();
                if (value >= floor[i] && relevant[i] != 0 && item < end_item) {
                    const uint32_t label = array<uint32_t>(p.item_labels)[item];
                    const bool counts = label != NONE && label != array<uint32_t>(p.query_labels)[query] &&
                                        (p.query_ids == 0 || array<uint32_t>(p.query_ids)[query] !=
                                                                 array<uint32_t>(p.item_ids)[item]);
                    if (counts) {
                        count_item(p, first[i], relevant[i], value, item);
                    }
                }
            }
        }
    });
}

template <class T>
__device__ __forceinline__ void count(const RankingCount& p) {
    const uint32_t first_query = blockIdx.x * MANY_ROWS;
    const uint32_t rest = p.pairs.row_limit - first_query;
    const uint32_t end_query = rest < MANY_ROWS ? p.pairs.row_limit : first_query + MANY_ROWS;
    const KeyRange items = split_range({0, p.pairs.keys_in_all}, blockIdx.y, p.splits);
    switch (p.pairs.metric) {
        case COSINE: return count<COSINE, T>(p, first_query, end_query, items.first, items.end);
        case SQUARED_L2: return count<SQUARED_L2, T>(p, first_query, end_query, items.first, items.end);
        default: return count<INNER_PRODUCT, T>(p, first_query, end_query, items.first, items.end);
    }
}

}  // namespace

CONSONANCE_KERNEL(ranking_check_f32, RankingCount, TILE_THREADS, 4) { check<float>(p); }
CONSONANCE_KERNEL(ranking_check_f16, RankingCount, TILE_THREADS, 4) { check<f16>(p); }
CONSONANCE_KERNEL(ranking_check_bf16, RankingCount, TILE_THREADS, 4) { check<bf16>(p); }
CONSONANCE_KERNEL(ranking_relevant_f32, RankingCount, TILE_THREADS, 4) { relevant<float>(p); }
CONSONANCE_KERNEL(ranking_relevant_f16, RankingCount, TILE_THREADS, 4) { relevant<f16>(p); }
CONSONANCE_KERNEL(ranking_relevant_bf16, RankingCount, TILE_THREADS, 4) { relevant<bf16>(p); }
CONSONANCE_KERNEL(ranking_count_f32, RankingCount, TILE_THREADS, 2) { count<float>(p); }
CONSONANCE_KERNEL(ranking_count_f16, RankingCount, TILE_THREADS, 2) { count<f16>(p); }
CONSONANCE_KERNEL(ranking_count_bf16, RankingCount, TILE_THREADS, 2) { count<bf16>(p); }
