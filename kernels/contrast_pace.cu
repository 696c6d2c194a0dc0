// contrast_pace: negatives of the query's own group in the contrastive loss, weighed one by one.
//
//   a_ij = e^(-|t_i - t_j| / scale) or (1 + cos(f_i, f_j)) / 2
//   u_ij = [a_ij <= pace] or max(0, 1 - a_ij / pace),  s_ij = <x_i, y_j> / tau_i + ln u_j + ln u_ij
//
// for j of i's group that is no positive of i; the sums over tiles of contrast.cu leave these pairs out. Groups are small
// beside the bank, so pairs are taken one by one in f32, and only they pay for an affinity.
//
//   check    times that are not finite, features without a direction  (status)
//   rows     the sums over a query's pairs: one more split for contrast_targets to join
//   keys     the same pairs in a key's gradient, added to what contrast_keys found
//
// Grids: check: four rows a block; rows: (queries, parts of TARGET_DIMS dimensions); keys: (keys, the same).
// Operations: a pair reads both rows, and takes 2 D for its score and 2 D for its gradient, rows and keys each; features
// 6 Df more, in f64. A group of n rows has n^2 pairs. Memory: one split's.
#include "gradient.cuh"
#include "kernel.cuh"
#include "pace.cuh"

namespace {

constexpr int PACE_WARPS = static_cast<int>(TILE_THREADS) / 32;

// Sums of rows, of every warp; of the queries' also of numbers.
struct PaceShared {
    float sums[PACE_WARPS][TARGET_DIMS];
    RowPartial partials[PACE_WARPS];
};
static_assert(sizeof(PaceShared) == PACE_SHARED_BYTES, "the host says how much shared memory a block has");

__device__ __forceinline__ uint32_t dims_from(const Contrast& p, uint32_t first_dim) {
    const uint32_t rest = p.dim - first_dim;
    return rest < TARGET_DIMS ? rest : TARGET_DIMS;
}

__device__ __forceinline__ void clear(PaceShared& shared, uint32_t dims) {
    for (uint32_t d = threadIdx.x; d < dims; d += TILE_THREADS) {
#pragma unroll
        for (int warp = 0; warp < PACE_WARPS; ++warp) {
            shared.sums[warp][d] = 0.0f;
        }
    }
    __syncthreads();
}

// One block a query and part of its dimensions.
template <class T>
__device__ __forceinline__ void rows(const ContrastPace& pace) {
    const Contrast& p = pace.contrast;
    auto& shared = *reinterpret_cast<PaceShared*>(ptx::shared_memory());
    const uint32_t query = blockIdx.x;
    const uint32_t first_dim = blockIdx.y * TARGET_DIMS;
    const uint32_t dims = p.query_gradient != 0 ? dims_from(p, first_dim) : 0;
    const uint32_t warp = threadIdx.x / 32;
    const Facts facts = facts_of_query(p, query);
    const float scale = LOG2_E / temperature_of(p, query);
    const T* const x = array<T>(p.queries) + query * p.query_stride;
    clear(shared, dims);

    RowPartial mine{-INFINITY, 0.0f, 0.0f};
    const auto keeps = [&](uint32_t key) {
        return is_paced_pair(p, facts, facts_of_key(p, key)) && bias_of_key(p, key) > -INFINITY;
    };
    each_of_group(p.key_groups, pace.key_order, p.key_count, facts.group, keeps, [&](uint32_t key) {
        const float bias = bias_of_key(p, key) + pace_bias(pace, query, key);
        if (bias == -INFINITY) {
            return;
        }
        const T* const y = array<T>(p.keys) + key * p.key_stride;
        const float value = dot_of_warp(x, y, p.dim);
        const float score = fmaf(value, scale, bias);
        const float largest = fmaxf(mine.largest, score);
        const float factor = ptx::exp2_fast(mine.largest - largest);
        const float e = ptx::exp2_fast(score - largest);
        mine = {largest, fmaf(mine.sum, factor, e), fmaf(mine.along, factor, e * value)};
        for (uint32_t d = lane_index(); d < dims; d += 32) {
            shared.sums[warp][d] = fmaf(shared.sums[warp][d], factor, e * to_f32(y[first_dim + d]));
        }
    });
    if (lane_index() == 0) {
        shared.partials[warp] = mine;
    }
    __syncthreads();

    RowPartial all = shared.partials[0];
    for (int other = 1; other < PACE_WARPS; ++other) {
        join(all, shared.partials[other]);
    }
    const uint64_t split = p.splits - 1;
    if (first_dim == 0 && threadIdx.x == 0) {
        output<RowPartial>(p.partials)[static_cast<uint64_t>(query) * p.splits + split] = all;
    }
    float* const gradient = output<float>(p.partial_gradients) + (split * p.query_count + query) * p.dim + first_dim;
    for (uint32_t d = threadIdx.x; d < dims; d += TILE_THREADS) {
        float sum = 0.0f;
        for (int other = 0; other < PACE_WARPS; ++other) {
            const float from = shared.partials[other].largest;
            sum += from > -INFINITY ? ptx::exp2_fast(from - all.largest) * shared.sums[other][d] : 0.0f;
        }
        gradient[d] = sum;
    }
}

// One block a key and part of its dimensions.
template <class T>
__device__ __forceinline__ void keys(const ContrastPace& pace) {
    const Contrast& p = pace.contrast;
    auto& shared = *reinterpret_cast<PaceShared*>(ptx::shared_memory());
    const uint32_t key = blockIdx.x;
    const uint32_t first_dim = blockIdx.y * TARGET_DIMS;
    const uint32_t dims = dims_from(p, first_dim);
    const uint32_t warp = threadIdx.x / 32;
    const float own_bias = bias_of_key(p, key);
    if (own_bias == -INFINITY) {
        return;
    }
    const Facts facts = facts_of_key(p, key);
    const T* const y = array<T>(p.keys) + key * p.key_stride;
    clear(shared, dims);

    const auto keeps = [&](uint32_t query) {
        return is_paced_pair(p, facts_of_query(p, query), facts) && weights_of(p, query).mass != 0.0f;
    };
    each_of_group(p.query_groups, pace.query_order, p.query_count, facts.group, keeps, [&](uint32_t query) {
        const float bias = own_bias + pace_bias(pace, query, key);
        if (bias == -INFINITY) {
            return;
        }
        const QueryWeights its = weights_of(p, query);
        const T* const x = array<T>(p.queries) + query * p.query_stride;
        const float score = fmaf(dot_of_warp(x, y, p.dim), its.scale, bias);
        const float coefficient = its.mass * ptx::exp2_fast(score - its.log_sum_exp);
        for (uint32_t d = lane_index(); d < dims; d += 32) {
            shared.sums[warp][d] = fmaf(coefficient, to_f32(x[first_dim + d]), shared.sums[warp][d]);
        }
    });
    __syncthreads();

    const float unit = *array<float>(p.row_unit);
    float* const gradient = output<float>(p.key_gradient) + static_cast<uint64_t>(key) * p.dim + first_dim;
    for (uint32_t d = threadIdx.x; d < dims; d += TILE_THREADS) {
        float sum = shared.sums[0][d];
        for (int other = 1; other < PACE_WARPS; ++other) {
            sum += shared.sums[other][d];
        }
        gradient[d] = fmaf(sum, unit, gradient[d]);
    }
}

}  // namespace

#define CONTRAST_PACE_KERNELS(name, T)                                                             \
    CONSONANCE_KERNEL(contrast_pace_rows_##name, ContrastPace, TILE_THREADS, 4) { rows<T>(p); } \
    CONSONANCE_KERNEL(contrast_pace_keys_##name, ContrastPace, TILE_THREADS, 4) { keys<T>(p); }

CONTRAST_PACE_KERNELS(f32, float)
CONTRAST_PACE_KERNELS(f16, f16)
CONTRAST_PACE_KERNELS(bf16, bf16)

// One warp a row: queries first, then keys.
CONSONANCE_KERNEL(contrast_pace_check, ContrastPace, TILE_THREADS, 4) {
    const Contrast& c = p.contrast;
    const uint64_t item = static_cast<uint64_t>(blockIdx.x) * PACE_WARPS + threadIdx.x / 32;
    if (item >= static_cast<uint64_t>(c.query_count) + c.key_count) {
        return;
    }
    const bool is_query = item < c.query_count;
    const uint32_t row = static_cast<uint32_t>(is_query ? item : item - c.query_count);
    const uint64_t data = is_query ? p.query_closeness : p.key_closeness;
    bool is_good;
    if (p.closeness == CLOSENESS_TIMES) {
        is_good = is_finite(array<float>(data)[row]);
    } else {
        const uint64_t first = row * (is_query ? p.query_stride : p.key_stride);
        double squares = 0.0;
        for (uint32_t d = lane_index(); d < p.feature_dim; d += 32) {
            const double value = old_element(data, is_query ? p.query_type : p.key_type, first + d);
            squares = fma(value, value, squares);
        }
        squares = sum_of_warp(squares);
        is_good = squares > 0.0 && squares < INFINITY;
    }
    if (lane_index() == 0 && !is_good) {
        atomicMin(output<uint32_t>(c.status) + (is_query ? 10 : 11), row);
    }
}
