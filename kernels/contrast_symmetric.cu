// contrast_symmetric: both directions of the contrastive loss (CLIP) from one pass over the scores, and its gradients.
//
//   sums      Σ e^s of every query over the keys, and of every key over the queries: one product
//   largest   the largest coefficient of any row
//   gradient  coefficients of both directions, transposed, times the queries: a key has one owner; the queries' gradient is
//             that of the keys with both sides exchanged
//
// Losses, and gradients of the temperature, come from `contrast_targets` of both directions (contrast.cu).
//
// Grids: sums: (splits of the queries, splits of the keys): a block takes its tiles of 64 queries one after the other and
// streams its keys past each. Sums of queries stay in registers; those of keys lie in memory, where one block has its own
// place for each of its keys, and are added to tile by tile. gradient: (tiles of 64 keys, parts), as `contrast_keys`.
// Operations, in units of 2 B N D (three times that for f32): sums 1, gradient 1 + parts for each side: 5 for both with one
// part.
// Memory: 12 bytes a row of either side and split of the other, at most 16; 4 bytes a row.
#include "kernel.cuh"
#include "symmetric.cuh"

namespace {

template <class T>
__device__ __forceinline__ Source<T> query_source(const Contrast& p) {
    return make_source<T>(p.queries, p.query_stride, 0, p.query_count, p.dim);
}

template <class T>
__device__ __forceinline__ Source<T> key_source(const Contrast& p, uint32_t end) {
    return make_source<T>(p.keys, p.key_stride, 0, end, p.dim);
}

template <class T>
__device__ __forceinline__ void sums(const ContrastSymmetric& p) {
    using Shape = Sweep<T, 1>;
    using Reducer = BothSums<T, Shape>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES), 0.0f, true, {}};
    const KeyRange queries = split_range({0, p.pairs.query_count}, blockIdx.x, p.query_splits);
    const KeyRange keys = split_range({0, p.pairs.key_count}, blockIdx.y, p.pairs.splits);
    ValueSums none;
    for (uint32_t first_row = queries.first; first_row < queries.end; first_row += MANY_ROWS) {
        reducer.begin(first_row);
        sweep<Shape>(reducer, none, bytes, query_source<T>(p.pairs), first_row, key_source<T>(p.pairs, keys.end),
                     keys.first, false, 0);
        reducer.end();
        // All have read the facts of the tile's queries before the next ones are written.
        __syncthreads();
    }
}

template <class T, int GROUPS>
__device__ __forceinline__ void gradient(const ContrastSymmetric& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = BothGradient<T, Shape>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES)};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.y * GRADIENT_DIMS * GROUPS;
    ValueSums sums;
    sums.clear();
    reducer.begin(first_row);
    sweep<Shape>(reducer, sums, bytes, key_source<T>(p.pairs, p.pairs.key_count), first_row, query_source<T>(p.pairs), 0,
                 true, first_dim);
    const float factor = 1.0f / reducer.shared.common.unit;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t number = first_row + Shape::row_of(half);
        if (number < p.pairs.key_count) {
            sums.write(output<float>(p.pairs.key_gradient) + static_cast<uint64_t>(number) * p.pairs.dim, half,
                       first_dim + static_cast<uint32_t>(Shape::group()) * GRADIENT_DIMS, p.pairs.dim, factor);
        }
    }
}

}  // namespace

#define SYMMETRIC_KERNELS(name, T)                                                                                     \
    CONSONANCE_KERNEL(contrast_symmetric_sums_##name, ContrastSymmetric, TILE_THREADS, 2) { sums<T>(p); }              \
    CONSONANCE_KERNEL(contrast_symmetric_gradient_##name##_1, ContrastSymmetric, TILE_THREADS, 2) {                    \
        gradient<T, 1>(p);                                                                                             \
    }                                                                                                                  \
    CONSONANCE_KERNEL(contrast_symmetric_gradient_##name##_2, ContrastSymmetric, 2 * TILE_THREADS, 1) {                \
        gradient<T, 2>(p);                                                                                             \
    }
#define SYMMETRIC_WIDE_KERNELS(name, T)                                                                                \
    CONSONANCE_KERNEL(contrast_symmetric_gradient_##name##_4, ContrastSymmetric, 4 * TILE_THREADS, 1) {                \
        gradient<T, 4>(p);                                                                                             \
    }

SYMMETRIC_KERNELS(f32, float)
SYMMETRIC_KERNELS(f16, f16)
SYMMETRIC_KERNELS(bf16, bf16)
SYMMETRIC_WIDE_KERNELS(f16, f16)
SYMMETRIC_WIDE_KERNELS(bf16, bf16)

// CHECKED_ROWS rows a warp: queries first, then keys.
CONSONANCE_KERNEL(contrast_symmetric_largest, ContrastSymmetric, TILE_THREADS, 4) {
    const uint64_t rows = static_cast<uint64_t>(p.pairs.query_count) + p.pairs.key_count;
    const uint64_t warp = static_cast<uint64_t>(blockIdx.x) * (TILE_THREADS / 32) + threadIdx.x / 32;
    float largest = 0.0f;
    for (uint32_t at = lane_index(); at < CHECKED_ROWS; at += 32) {
        const uint64_t item = warp * CHECKED_ROWS + at;
        if (item < rows) {
            const bool is_query = item < p.pairs.query_count;
            const uint64_t row = is_query ? item : item - p.pairs.query_count;
            const float weight = array<float>(is_query ? p.pairs.upstream : p.key_upstream)[row];
            const float mass = array<float>(is_query ? p.pairs.mass : p.key_mass)[row];
            largest = fmaxf(largest, fabsf(weight / temperature_of(p.pairs, 0)) * mass);
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    if (lane_index() == 0) {
        // Numbers that are not negative are ordered as their bits are.
        atomicMin(output<uint32_t>(p.largest), ~__float_as_uint(largest));
    }
}
