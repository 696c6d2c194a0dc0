// contrast: the weighted multi-positive contrastive loss and its gradients, without a matrix of pairs.
//
//   s_ij = ⟨x_i, y_j⟩ / τ_i + ln u_j,  L_i = A_i lse_i − Σ_j a_ij ⟨x_i, y_j⟩ / τ_i,  ∂L_i/∂s_ij = A_i p_ij − a_ij
//
//   check         rows, temperatures, weights and lists that the sums cannot take                 (status)
//   rows          Z_i with a running maximum, |P(i)|, Σ w and Σ w ⟨x, y⟩ of every row and split   (softmax.cuh)
//   losses        joins the splits in their order: lse, A, loss
//   queries       coefficients once more, times the keys; a split each                            (gradient.cuh)
//   join_queries  adds the splits in their order
//   weigh         weights of the rows in the keys' gradient
//   keys          the same coefficients transposed, times the queries: a key has one owner
//
// The gradient is a second pass because the target must be subtracted before the difference is rounded, and lse is known
// only after the first. Positives are found pair by pair from labels, lists or sets in the tile (positives.cuh).
//
// Grids: rows: (tiles of 64 queries, splits); queries: (tiles of 64 queries, splits, parts of GRADIENT_DIMS
// dimensions); keys: (tiles of 64 keys, parts). Each part computes the scores anew.
// Operations, in units of 2 B N D (three times that for f32): rows 1; queries and keys each 1 + ⌈D / 128⌉.
// Memory: 20 bytes a row and split, and the gradient of the queries once a split; splits depend on N alone.
//
// Shared memory: gradient_shared_bytes of src/cuda/contrast.rs repeats the layout of the structs below.
#include "bound.cuh"
#include "gradient.cuh"
#include "kernel.cuh"

namespace {

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }

__device__ __forceinline__ void report(const Contrast& p, int word, uint32_t row) {
    atomicMin(output<uint32_t>(p.status) + word, row);
}

__device__ __forceinline__ bool is_good_list(const Contrast& p, uint32_t query) {
    const uint32_t first = array<uint32_t>(p.offsets)[query];
    const uint32_t last = array<uint32_t>(p.offsets)[query + 1];
    bool good = first <= last && last <= p.listed && (query != 0 || first == 0) &&
                (query + 1 != p.query_count || last == p.listed);
    if (!good) {
        return false;
    }
    for (uint32_t at = first + lane_index(); at < last; at += 32) {
        const uint32_t key = array<uint32_t>(p.indices)[at];
        good = good && key < p.key_count && (at == first || array<uint32_t>(p.indices)[at - 1] < key);
        if (p.weights != 0) {
            const float weight = array<float>(p.weights)[at];
            good = good && weight >= 0.0f && is_finite(weight);
        }
    }
    return good;
}

// One warp a row: queries first, then keys.
template <class T>
__device__ __forceinline__ void check(const Contrast& p) {
    const uint64_t item = static_cast<uint64_t>(blockIdx.x) * (TILE_THREADS / 32) + threadIdx.x / 32;
    if (item >= static_cast<uint64_t>(p.query_count) + p.key_count) {
        return;
    }
    const bool is_query = item < p.query_count;
    const uint32_t row = static_cast<uint32_t>(is_query ? item : item - p.query_count);
    const T* const data = array<T>(is_query ? p.queries : p.keys) + row * (is_query ? p.query_stride : p.key_stride);
    float squares = 0.0f;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        const float value = to_f32(data[d]);
        squares = fmaf(value, value, squares);
    }
    squares = sum_of_warp(squares);
    const bool good_list = !is_query || p.rule != RULE_LISTS || is_good_list(p, row);
    if (!good_list) {
        report(p, 4, row);
    }
    if (lane_index() != 0) {
        return;
    }
    if (!(squares <= LARGEST_SQUARED_NORM)) {
        report(p, is_query ? 0 : 1, row);
    }
    if (is_query) {
        const float temperature = temperature_of(p, row);
        if (!(temperature > 0.0f && is_finite(temperature) && is_finite(LOG2_E / temperature))) {
            report(p, 2, row);
        }
    } else if (p.denominator_weights != 0) {
        const float weight = array<float>(p.denominator_weights)[row];
        if (!(weight >= 0.0f && is_finite(weight))) {
            report(p, 3, row);
        }
    }
}

template <class T>
__device__ __forceinline__ Source<T> query_source(const Contrast& p) {
    return make_source<T>(p.queries, p.query_stride, 0, p.query_count, p.dim);
}

template <class T>
__device__ __forceinline__ Source<T> key_source(const Contrast& p, uint32_t end) {
    return make_source<T>(p.keys, p.key_stride, 0, end, p.dim);
}

template <class T>
__device__ __forceinline__ void rows(const Contrast& p) {
    unsigned char* const stages = ptx::shared_memory();
    auto& shared = *reinterpret_cast<typename RowSums<T>::Shared*>(stages + Tile::STREAM_BYTES);
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const KeyRange range = split_range({0, p.key_count}, blockIdx.y, p.splits);
    RowSums<T> reducer{p, shared, {}, {}, {}};
    reducer.begin(first_row);
    stream_keys<SCORE_PRODUCTS<T>, static_cast<int>(MANY_ROWS)>(reducer, stages, query_source<T>(p), first_row,
                                                               key_source<T>(p, range.end), range.first);
    reducer.end();
}

// Streams `columns` past the rows of a tile and sums the gradient of the rows.
template <bool ROWS_ARE_KEYS, class T>
__device__ __forceinline__ void gradient(const Contrast& p, const Source<T>& own, const Source<T>& columns,
                                         uint32_t first_column, uint32_t part) {
    using Reducer = Gradient<ROWS_ARE_KEYS, T>;
    unsigned char* const stages = ptx::shared_memory();
    unsigned char* const slabs = stages + Tile::STREAM_BYTES;
    auto& shared = *reinterpret_cast<typename Reducer::Shared*>(slabs + VALUE_SLABS<T> * SLAB_OF_TILE);
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    Reducer reducer{p, shared, slabs, columns, first_column, part * GRADIENT_DIMS, {}, {}, {}, {}, {}};
    reducer.begin(first_row);
    stream_keys<SCORE_PRODUCTS<T>, static_cast<int>(MANY_ROWS)>(reducer, stages, own, first_row, columns, first_column);
    if constexpr (ROWS_ARE_KEYS) {
        const float factor = *array<float>(p.row_unit);
        for (int half = 0; half < 2; ++half) {
            reducer.write(output<float>(p.key_gradient), first_row, p.key_count, half, factor);
        }
    } else {
        const uint64_t split = static_cast<uint64_t>(blockIdx.y) * p.query_count;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float factor = 1.0f / reducer.unit[half];
            reducer.write(output<float>(p.partial_gradients) + split * p.dim, first_row, p.query_count, half, factor);
            float along = reducer.along[half] * factor;
            along += __shfl_xor_sync(ALL_LANES, along, 1);
            along += __shfl_xor_sync(ALL_LANES, along, 2);
            const uint32_t number = first_row + tile_row(half);
            if (part == 0 && lane_index() % 4 == 0 && number < p.query_count) {
                output<float>(p.partial_temperatures)[split + number] = along;
            }
        }
    }
}

template <class T>
__device__ __forceinline__ void queries(const Contrast& p) {
    const KeyRange range = split_range({0, p.key_count}, blockIdx.y, p.splits);
    gradient<false, T>(p, query_source<T>(p), key_source<T>(p, range.end), range.first, blockIdx.z);
}

template <class T>
__device__ __forceinline__ void keys(const Contrast& p) {
    gradient<true, T>(p, key_source<T>(p, p.key_count), query_source<T>(p), 0, blockIdx.y);
}

}  // namespace

CONSONANCE_KERNEL(contrast_check_f32, Contrast, TILE_THREADS, 4) { check<float>(p); }
CONSONANCE_KERNEL(contrast_check_f16, Contrast, TILE_THREADS, 4) { check<f16>(p); }
CONSONANCE_KERNEL(contrast_check_bf16, Contrast, TILE_THREADS, 4) { check<bf16>(p); }
CONSONANCE_KERNEL(contrast_rows_f32, Contrast, TILE_THREADS, 2) { rows<float>(p); }
CONSONANCE_KERNEL(contrast_rows_f16, Contrast, TILE_THREADS, 2) { rows<f16>(p); }
CONSONANCE_KERNEL(contrast_rows_bf16, Contrast, TILE_THREADS, 2) { rows<bf16>(p); }
CONSONANCE_KERNEL(contrast_queries_f32, Contrast, TILE_THREADS, 2) { queries<float>(p); }
CONSONANCE_KERNEL(contrast_queries_f16, Contrast, TILE_THREADS, 2) { queries<f16>(p); }
CONSONANCE_KERNEL(contrast_queries_bf16, Contrast, TILE_THREADS, 2) { queries<bf16>(p); }
CONSONANCE_KERNEL(contrast_keys_f32, Contrast, TILE_THREADS, 2) { keys<float>(p); }
CONSONANCE_KERNEL(contrast_keys_f16, Contrast, TILE_THREADS, 2) { keys<f16>(p); }
CONSONANCE_KERNEL(contrast_keys_bf16, Contrast, TILE_THREADS, 2) { keys<bf16>(p); }

// One thread a row.
CONSONANCE_KERNEL(contrast_losses, Contrast, TILE_THREADS, 4) {
    const uint32_t query = blockIdx.x * TILE_THREADS + threadIdx.x;
    if (query >= p.query_count) {
        return;
    }
    const RowPartial* const partials = array<RowPartial>(p.partials) + static_cast<uint64_t>(query) * p.splits;
    RowPartial row = partials[0];
    for (uint32_t split = 1; split < p.splits; ++split) {
        join(row, partials[split]);
    }
    const float log_sum_exp = row.sum > 0.0f ? (row.largest + log2f(row.sum)) * LN_2 : -INFINITY;
    const float normalizer = p.by_weight != 0 ? row.weight : static_cast<float>(row.count);
    const bool counts = normalizer > 0.0f && row.sum > 0.0f;
    const float loss = row.weight * log_sum_exp - row.along / temperature_of(p, query);
    output<float>(p.losses)[query] = counts ? loss / normalizer : 0.0f;
    output<float>(p.log_sum_exp)[query] = log_sum_exp;
    output<float>(p.mass)[query] = counts ? row.weight / normalizer : 0.0f;
    output<float>(p.inverse_normalizer)[query] = counts ? 1.0f / normalizer : 0.0f;
}

// One block a row.
CONSONANCE_KERNEL(contrast_join_queries, Contrast, TILE_THREADS, 4) {
    const uint32_t query = blockIdx.x;
    const float temperature = temperature_of(p, query);
    const uint64_t row = static_cast<uint64_t>(query) * p.dim;
    const uint64_t step = static_cast<uint64_t>(p.query_count) * p.dim;
    for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
        float sum = 0.0f;
        for (uint32_t split = 0; split < p.splits; ++split) {
            sum += array<float>(p.partial_gradients)[split * step + row + d];
        }
        output<float>(p.query_gradient)[row + d] = sum / temperature;
    }
    if (threadIdx.x == 0) {
        float along = 0.0f;
        for (uint32_t split = 0; split < p.splits; ++split) {
            along += array<float>(p.partial_temperatures)[static_cast<uint64_t>(split) * p.query_count + query];
        }
        // s is proportional to 1 / τ.
        output<float>(p.temperature_gradient)[query] = -(along / temperature) / temperature;
    }
}

// One block: g_i / τ_i in units that make the largest coefficient of any row just below 2¹⁴.
CONSONANCE_KERNEL(contrast_weigh, Contrast, TILE_THREADS, 1) {
    auto* const largest_of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    float largest = 0.0f;
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        const float weight = array<float>(p.upstream)[query] / temperature_of(p, query);
        largest = fmaxf(largest, fabsf(weight) * array<float>(p.mass)[query]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    if (lane_index() == 0) {
        largest_of_warps[threadIdx.x / 32] = largest;
    }
    __syncthreads();
    for (uint32_t warp = 0; warp < TILE_THREADS / 32; ++warp) {
        largest = fmaxf(largest, largest_of_warps[warp]);
    }
    const float unit = unit_for(largest);
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        output<float>(p.row_weights)[query] = array<float>(p.upstream)[query] / temperature_of(p, query) * unit;
    }
    if (threadIdx.x == 0) {
        *output<float>(p.row_unit) = 1.0f / unit;
    }
}
