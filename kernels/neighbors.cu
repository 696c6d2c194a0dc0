// neighbors: the k best keys of every query, exact for the deciding scores of score.cuh, in three steps.
//
//   rank     tensor-core scores of all pairs, never in memory; the `capacity` best of every row and split by an
//            upper bound of the deciding score                                     (rank.cuh)
//   finish   joins the splits, computes the deciding scores of the candidates, writes the best k, and proves them:
//            a key outside the list is at or below the list's last bound, so a k-th score above that bound is right
//   exact    what is not proven: all deciding scores on the f32 units              (exact.cuh)
// f32 rows that are not proven by products of their bfloat16 parts go through `refine` first, the same with three
// products, whose bound is some 20 times smaller.
//
// Grids: rank, refine, exact: (tiles of 64 or 16 rows, splits of the keys); finish: one block a row; unproven: one
// block. A tile's loop over the keys reads (rows + 64) · 128 bytes a step from the L2 cache and multiplies
// 2 · rows · 64 · 128 / sizeof(T) operations.
// Memory: lists of `capacity` entries of 8 bytes for every row and split; nothing else grows with B · N.
// Limits: k ≤ MAX_PASS a pass (more by passes, each behind the last neighbor of the one before), any dimension,
// fewer than 2³² − 1 rows. Rows at multiples of 16 bytes are copied asynchronously, others element by element.
//
// Shared memory: rank_shared_bytes of src/cuda/neighbors.rs repeats the layout of the structs below.
#include "exact.cuh"
#include "kernel.cuh"
#include "rank.cuh"

namespace {

template <int PRODUCTS, int ROWS, class T>
__device__ __forceinline__ void rank(const NeighborsRank& p) {
    using Reducer = Ranker<PRODUCTS, ROWS, T>;
    const uint32_t active = active_rows(p.pairs.row_count, p.pairs.row_limit);
    const uint32_t first_row = blockIdx.x * ROWS;
    if (first_row >= active) {
        return;
    }
    const uint32_t end_row = active - first_row < ROWS ? active : first_row + ROWS;
    const KeyRange range = split_range(key_range(p.pairs, first_row, end_row), blockIdx.y, p.splits);

    unsigned char* const stages = ptx::shared_memory();
    auto& shared = *reinterpret_cast<typename Reducer::Shared*>(stages + TileShape<ROWS>::STREAM_BYTES);
    const uint64_t list_step = static_cast<uint64_t>(p.splits) * Reducer::LISTS * p.capacity;
    uint64_t* const lists = output<uint64_t>(p.lists) + first_row * list_step +
                            static_cast<uint64_t>(blockIdx.y) * Reducer::LISTS * p.capacity;
    Reducer reducer{p, shared, first_row, end_row, range.end, lists, list_step, 0, 0, 0, 0, {}, {}, {}};
    reducer.begin();
    const auto queries = make_source<T>(p.pairs.queries, p.pairs.query_stride, p.pairs.rows, end_row, p.pairs.dim);
    const auto keys = make_source<T>(p.pairs.keys, p.pairs.key_stride, p.pairs.key_order, range.end, p.pairs.dim);
    stream_keys<PRODUCTS, ROWS>(reducer, stages, queries, first_row, keys, range.first);
    reducer.end();
}

// The rows of a warp in the exact kernel: row 4 g + i of the warp belongs to the lanes [8 g, 8 g + 8).
template <uint32_t METRIC, class T>
__device__ __forceinline__ void exact(const NeighborsRank& p, uint32_t first_row, uint32_t end_row, KeyRange range) {
    unsigned char* const stages = ptx::shared_memory();
    auto* const rings = reinterpret_cast<uint64_t*>(stages + 2 * EXACT_STAGE_BYTES) +
                        static_cast<uint32_t>(exact_row(0)) * RING;
    const uint64_t list_step = static_cast<uint64_t>(p.splits) * p.capacity;
    uint64_t* const lists = output<uint64_t>(p.lists) + first_row * list_step + blockIdx.y * p.capacity;
    const uint32_t warp_row = threadIdx.x / 32 * 16;
    for (uint32_t row = warp_row; row < warp_row + 16 && first_row + row < end_row; ++row) {
        clear_list(lists + row * list_step, p.capacity);
    }
    __syncwarp();

    Candidates state[EXACT_ROWS];
    uint64_t cut[EXACT_ROWS];
    uint32_t query[EXACT_ROWS];
#pragma unroll
    for (int i = 0; i < EXACT_ROWS; ++i) {
        const uint32_t row = first_row + static_cast<uint32_t>(exact_row(i));
        state[i] = {CLOSED, 0};
        cut[i] = CLOSED;
        query[i] = 0;
        if (row < end_row) {
            query[i] = numbered(p.pairs.rows, row);
            state[i].last = 0;
            if (p.found != 0) {
                const uint64_t last = static_cast<uint64_t>(query[i]) * p.k + p.found - 1;
                const uint32_t index = array<uint32_t>(p.indices)[last];
                const float value = value_of(array<float>(p.scores)[last], METRIC);
                cut[i] = index != NONE ? make_entry(value, index) : 0;
            }
        }
    }
    const auto merge = [&](int i, bool due) {
        merge_rings<8>(state[i], due, rings + (i - static_cast<int>(lane_index()) / 8 * EXACT_ROWS) * static_cast<int>(RING),
                       EXACT_ROWS * RING, lists + (warp_row + static_cast<uint32_t>(i)) * list_step,
                       EXACT_ROWS * list_step, p.capacity);
    };
    const auto queries = make_source<T>(p.pairs.queries, p.pairs.query_stride, p.pairs.rows, end_row, p.pairs.dim);
    const auto keys = make_source<T>(p.pairs.keys, p.pairs.key_stride, p.pairs.key_order, range.end, p.pairs.dim);
    score_keys<METRIC>(stages, queries, first_row, keys, range.first, [&](const auto& scores, uint32_t first_key) {
#pragma unroll
        for (int i = 0; i < EXACT_ROWS; ++i) {
            float values[EXACT_COLUMNS];
            uint32_t hits = 0;
            const float floor = floor_of(state[i]);
#pragma unroll
            for (int c = 0; c < EXACT_COLUMNS; ++c) {
                values[c] = scores[i][c].value();
                hits |= values[c] >= floor ? 1u << c : 0u;
            }
            while (__any_sync(ALL_LANES, hits != 0)) {
                uint64_t entry = 0;
                if (hits != 0) {
                    int c;
                    const float value = next_hit(values, hits, c);
                    const uint32_t position = first_key + static_cast<uint32_t>(exact_column(c));
                    if (position < range.end) {
                        const uint32_t number = numbered(p.pairs.key_order, position);
                        if (is_allowed(p.pairs, number) && is_pair(p.pairs, query[i], number)) {
                            entry = make_entry(value, number);
                            entry = entry < cut[i] ? entry : 0;
                        }
                    }
                }
                if (offer<8>(state[i], rings + static_cast<uint32_t>(i) * RING, entry)) {
                    merge(i, state[i].waiting > RING - 8);
                }
            }
        }
    });
#pragma unroll
    for (int i = 0; i < EXACT_ROWS; ++i) {
        merge(i, state[i].waiting != 0);
    }
}

template <class T>
__device__ __forceinline__ void exact(const NeighborsRank& p) {
    const uint32_t active = active_rows(p.pairs.row_count, p.pairs.row_limit);
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    if (first_row >= active) {
        return;
    }
    const uint32_t end_row = active - first_row < MANY_ROWS ? active : first_row + MANY_ROWS;
    const KeyRange range = split_range(key_range(p.pairs, first_row, end_row), blockIdx.y, p.splits);
    switch (p.pairs.metric) {
        case COSINE: return exact<COSINE, T>(p, first_row, end_row, range);
        case SQUARED_L2: return exact<SQUARED_L2, T>(p, first_row, end_row, range);
        default: return exact<INNER_PRODUCT, T>(p, first_row, end_row, range);
    }
}

// Merges a sorted list into another, until it has nothing better. All lanes of a warp together.
__device__ __forceinline__ void merge_list(uint64_t* list, const uint64_t* other, uint32_t capacity) {
    for (uint32_t chunk = 0; chunk < capacity; chunk += RING) {
        if (other[chunk] <= list[capacity - 1]) {
            break;
        }
        __syncwarp();
        merge_sorted(list, capacity, other + chunk);
    }
    __syncwarp();
}

template <class T>
__device__ __forceinline__ void finish(const NeighborsFinish& p) {
    constexpr uint32_t WARPS = TILE_THREADS / 32;
    if (blockIdx.x >= active_rows(p.pairs.row_count, p.pairs.row_limit)) {
        return;
    }
    const uint32_t query = numbered(p.pairs.rows, blockIdx.x);
    const uint32_t warp = threadIdx.x / 32;
    auto* const best = reinterpret_cast<uint64_t*>(ptx::shared_memory());
    uint64_t* const decided = best + WARPS * p.capacity;
    uint64_t* const mine = best + warp * p.capacity;
    const uint64_t* const lists =
        array<uint64_t>(p.lists) + static_cast<uint64_t>(blockIdx.x) * p.lists_of_row * p.capacity;
    clear_list(mine, p.capacity);
    __syncwarp();
    for (uint32_t list = warp; list < p.lists_of_row; list += WARPS) {
        merge_list(mine, lists + static_cast<uint64_t>(list) * p.capacity, p.capacity);
    }
    __syncthreads();
    if (warp == 0) {
        for (uint32_t other = 1; other < WARPS; ++other) {
            merge_list(best, best + other * p.capacity, p.capacity);
        }
    }
    __syncthreads();

    float* const scores = output<float>(p.scores) + static_cast<uint64_t>(query) * p.k;
    uint32_t* const indices = output<uint32_t>(p.indices) + static_cast<uint64_t>(query) * p.k;
    uint64_t cut = CLOSED;
    if (p.found != 0) {
        const uint32_t index = indices[p.found - 1];
        cut = index != NONE ? make_entry(value_of(scores[p.found - 1], p.pairs.metric), index) : 0;
    }
    const T* const query_row = array<T>(p.pairs.queries) + static_cast<uint64_t>(query) * p.pairs.query_stride;
    const bool chunked = is_chunked(p.pairs.queries, p.pairs.query_stride, sizeof(T)) &&
                         is_chunked(p.pairs.keys, p.pairs.key_stride, sizeof(T));
    for (uint32_t place = threadIdx.x; place < p.capacity; place += TILE_THREADS) {
        uint64_t entry = 0;
        if (best[place] != 0) {
            const uint32_t key = entry_index(best[place]);
            const T* const key_row = array<T>(p.pairs.keys) + static_cast<uint64_t>(key) * p.pairs.key_stride;
            entry = make_entry(deciding_value(p.pairs.metric, query_row, key_row, p.pairs.dim, chunked), key);
            entry = entry < cut ? entry : 0;
        }
        decided[place] = entry;
    }
    __syncthreads();

    // A full list hides keys whose deciding score is at most its last bound.
    const uint64_t last = best[p.capacity - 1];
    const bool hides = last != 0 && p.exact == 0;
    const float hidden = entry_value(last);
    uint32_t* const unproven = output<uint32_t>(p.unproven) + blockIdx.x;
    for (uint32_t place = threadIdx.x; place < p.capacity; place += TILE_THREADS) {
        const uint64_t entry = decided[place];
        uint32_t better = 0;
        for (uint32_t other = 0; other < p.capacity; ++other) {
            better += decided[other] > entry ? 1 : 0;
        }
        if (entry != 0 && better < p.wanted) {
            const float value = entry_value(entry);
            scores[p.found + better] = score_of(value, p.pairs.metric);
            indices[p.found + better] = entry_index(entry);
            if (better + 1 == p.wanted) {
                *unproven = hides && !(value > hidden) ? 1 : 0;
            }
        }
    }
    // Places without a neighbor.
    uint32_t valid = 0;
    for (uint32_t place = 0; place < p.capacity; ++place) {
        valid += decided[place] != 0 ? 1 : 0;
    }
    for (uint32_t place = valid + threadIdx.x; place < p.wanted; place += TILE_THREADS) {
        scores[p.found + place] = score_of(-INFINITY, p.pairs.metric);
        indices[p.found + place] = NONE;
    }
    if (valid < p.wanted && threadIdx.x == 0) {
        *unproven = hides ? 1 : 0;
    }
}

}  // namespace

CONSONANCE_KERNEL(neighbors_rank_many_f32, NeighborsRank, TILE_THREADS, 2) { rank<1, MANY_ROWS, float>(p); }
CONSONANCE_KERNEL(neighbors_rank_many_f16, NeighborsRank, TILE_THREADS, 2) { rank<1, MANY_ROWS, f16>(p); }
CONSONANCE_KERNEL(neighbors_rank_many_bf16, NeighborsRank, TILE_THREADS, 2) { rank<1, MANY_ROWS, bf16>(p); }
CONSONANCE_KERNEL(neighbors_rank_few_f32, NeighborsRank, TILE_THREADS, 2) { rank<1, FEW_ROWS, float>(p); }
CONSONANCE_KERNEL(neighbors_rank_few_f16, NeighborsRank, TILE_THREADS, 2) { rank<1, FEW_ROWS, f16>(p); }
CONSONANCE_KERNEL(neighbors_rank_few_bf16, NeighborsRank, TILE_THREADS, 2) { rank<1, FEW_ROWS, bf16>(p); }
CONSONANCE_KERNEL(neighbors_refine_f32, NeighborsRank, TILE_THREADS, 2) { rank<3, MANY_ROWS, float>(p); }
CONSONANCE_KERNEL(neighbors_exact_f32, NeighborsRank, TILE_THREADS, 2) { exact<float>(p); }
CONSONANCE_KERNEL(neighbors_exact_f16, NeighborsRank, TILE_THREADS, 2) { exact<f16>(p); }
CONSONANCE_KERNEL(neighbors_exact_bf16, NeighborsRank, TILE_THREADS, 2) { exact<bf16>(p); }
CONSONANCE_KERNEL(neighbors_finish_f32, NeighborsFinish, TILE_THREADS, 4) { finish<float>(p); }
CONSONANCE_KERNEL(neighbors_finish_f16, NeighborsFinish, TILE_THREADS, 4) { finish<f16>(p); }
CONSONANCE_KERNEL(neighbors_finish_bf16, NeighborsFinish, TILE_THREADS, 4) { finish<bf16>(p); }

// The numbers of the rows that are not proven, in their order, so that rows of one label stay together.
CONSONANCE_KERNEL(neighbors_unproven, NeighborsUnproven, TILE_THREADS, 1) {
    constexpr uint32_t WARPS = TILE_THREADS / 32;
    auto* const counts = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const uint32_t active = active_rows(p.row_count, p.row_limit);
    const uint32_t warp = threadIdx.x / 32;
    uint32_t before = 0;
    for (uint32_t first = 0; first < active; first += TILE_THREADS) {
        const uint32_t row = first + threadIdx.x;
        const bool is_left = row < active && array<uint32_t>(p.unproven)[row] != 0;
        const uint32_t votes = __ballot_sync(ALL_LANES, is_left);
        if (lane_index() == 0) {
            counts[warp] = __popc(votes);
        }
        __syncthreads();
        uint32_t place = before + __popc(votes & ((1u << lane_index()) - 1));
        for (uint32_t other = 0; other < WARPS; ++other) {
            place += other < warp ? counts[other] : 0;
            before += counts[other];
        }
        if (is_left) {
            output<uint32_t>(p.left)[place] = numbered(p.rows, row);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        *output<uint32_t>(p.left_count) = before;
    }
}

// From a byte a key to a bit a key; one thread a byte.
CONSONANCE_KERNEL(neighbors_bits, NeighborsBits, TILE_THREADS, 1) {
    const uint32_t key = blockIdx.x * TILE_THREADS + threadIdx.x;
    const bool is_set = key < p.count && array<uint8_t>(p.mask)[key] != 0;
    const uint32_t bits = __ballot_sync(ALL_LANES, is_set);
    if (lane_index() == 0 && key < p.count) {
        output<uint32_t>(p.bits)[key / 32] = bits;
    }
}
