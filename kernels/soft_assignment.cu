// soft_assignment: p_ik ∝ e^(s_ik) over centroids, s_ik a falling function of the distance, with lse, entropy and the most
// probable centroid of every row in one pass, and no matrix.
//
//   measure   inverse norms of rows that are compared as directions, squared norms, bad rows; f32 copies on demand
//   split     f32 centroids for points of 16 bits: the sum of two 16-bit rows, scaled by a power of two
//   rows      distances on the tensor cores (distance.cuh), online softmax (assign.cuh)
//   join      the splits of a row, in their order
//   nearest   the softmax over the m nearest centroids, which come from `neighbors`
//
// Grids: measure, split, nearest: a warp a row; rows: (tiles of 64 points, splits of the centroids); join: a thread a row.
// Operations of rows: 2 N K D, of f32 three times that, of 16-bit points with split centroids twice that; pairs whose product
// cancels 3 D more each. Bytes copied: (64 + 64) D elements for each pair of tiles of 64.
// Memory: SOFT_PARTIAL_BYTES a row and split, 8 bytes a row, and two f32 copies of the centroids at most.
// Shared memory: rows_shared_bytes of src/cuda/soft_assignment.rs.
#include "assign.cuh"
#include "bound.cuh"
#include "kernel.cuh"
#include "units.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

__device__ __forceinline__ uint64_t row_of_warp() {
    return static_cast<uint64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
}

template <class T>
__device__ __forceinline__ void measure(const SoftMeasure& p) {
    const uint64_t row = row_of_warp();
    if (row >= p.count) {
        return;
    }
    const T* const x = array<T>(p.rows) + row * p.stride;
    double squares = 0.0;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        const double value = static_cast<double>(to_f32(x[d]));
        squares += value * value;
    }
    squares = sum_of_warp(squares);
    const float scale = p.unit != 0 ? static_cast<float>(1.0 / sqrt(squares)) : 1.0f;
    // Written so that what is not a number is bad.
    const bool good = squares <= static_cast<double>(LARGEST_SQUARED_NORM) && is_finite(scale);
    if (p.wide != 0) {
        float* const wide = output<float>(p.wide) + row * p.dim;
        for (uint32_t d = lane_index(); d < p.dim; d += 32) {
            wide[d] = to_f32(x[d]) * scale;
        }
    }
    if (lane_index() == 0) {
        if (!good && p.status != 0) {
            atomicMin(output<uint32_t>(p.status), static_cast<uint32_t>(row));
        }
        if (p.scales != 0) {
            output<float>(p.scales)[row] = scale;
            output<float>(p.norms)[row] = p.unit != 0 ? 1.0f : static_cast<float>(squares);
        }
        if (p.largest_scale != 0 && good) {
            // Of positive floats the bits have the order of the values.
            atomicMax(output<uint32_t>(p.largest_scale), __float_as_uint(scale));
        }
    }
}

template <class T>
__device__ __forceinline__ void split(const SoftSplit& p) {
    const uint64_t row = row_of_warp();
    if (row >= p.count) {
        return;
    }
    const float* const wide = array<float>(p.wide) + row * p.dim;
    float largest = 0.0f;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        largest = fmaxf(largest, fabsf(wide[d]));
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    const float unit = unit_for(largest);
    T* const high = output<T>(p.parts) + row * (2 * static_cast<uint64_t>(p.padded));
    for (uint32_t d = lane_index(); d < p.padded; d += 32) {
        const float value = d < p.dim ? wide[d] * unit : 0.0f;
        store_rounded(high + d, value);
        store_rounded(high + p.padded + d, value - to_f32(high[d]));
    }
    if (lane_index() == 0) {
        output<float>(p.scales)[row] = 1.0f / unit;
    }
}

__device__ __forceinline__ void write_row(uint64_t log_sum_exp, uint64_t entropy, uint64_t best, uint64_t probability,
                                          uint64_t row, const SoftPartial& its) {
    output<float>(log_sum_exp)[row] = its.largest + logf(its.sum);
    output<float>(entropy)[row] = entropy_of(its);
    output<uint32_t>(best)[row] = its.best;
    output<float>(probability)[row] = 1.0f / its.sum;
}

}  // namespace

CONSONANCE_KERNEL(soft_assignment_measure_f32, SoftMeasure, TILE_THREADS, 4) { measure<float>(p); }
CONSONANCE_KERNEL(soft_assignment_measure_f16, SoftMeasure, TILE_THREADS, 4) { measure<f16>(p); }
CONSONANCE_KERNEL(soft_assignment_measure_bf16, SoftMeasure, TILE_THREADS, 4) { measure<bf16>(p); }
CONSONANCE_KERNEL(soft_assignment_split_f16, SoftSplit, TILE_THREADS, 4) { split<f16>(p); }
CONSONANCE_KERNEL(soft_assignment_split_bf16, SoftSplit, TILE_THREADS, 4) { split<bf16>(p); }
CONSONANCE_KERNEL(soft_assignment_rows_f32, SoftAssignment, TILE_THREADS, 2) { assign_rows<float, false>(p); }
CONSONANCE_KERNEL(soft_assignment_rows_f16, SoftAssignment, TILE_THREADS, 2) { assign_rows<f16, false>(p); }
CONSONANCE_KERNEL(soft_assignment_rows_bf16, SoftAssignment, TILE_THREADS, 2) { assign_rows<bf16, false>(p); }

// A thread a row.
CONSONANCE_KERNEL(soft_assignment_join, SoftAssignment, TILE_THREADS, 4) {
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * TILE_THREADS + threadIdx.x;
    if (row >= p.point_count) {
        return;
    }
    SoftPartial its = no_centroid();
    for (uint32_t split = 0; split < p.splits; ++split) {
        join(its, array<SoftPartial>(p.partials)[row * p.splits + split]);
    }
    write_row(p.log_sum_exp, p.entropy, p.best, p.best_probability, row, its);
}

// A warp a row.
CONSONANCE_KERNEL(soft_assignment_nearest, SoftNearest, TILE_THREADS, 4) {
    const uint64_t row = row_of_warp();
    if (row >= p.count) {
        return;
    }
    const float* const distances = array<float>(p.distances) + row * p.width;
    const uint32_t* const indices = array<uint32_t>(p.indices) + row * p.width;
    // A row that cannot be compared has no neighbors.
    const auto score = [&](uint32_t at) {
        const uint32_t index = indices[at];
        return index != NONE ? soft_score(distances[at], array<float>(p.rates)[index], p.squared) : -INFINITY;
    };
    SoftPartial its = no_centroid();
    for (uint32_t at = lane_index(); at < p.width; at += 32) {
        join(its, one_centroid(score(at), distances[at], indices[at]));
    }
    join_lanes(its, 32);
    for (uint32_t at = lane_index(); at < p.width; at += 32) {
        const float t = fmaxf(score(at) - its.largest, LEAST_EXPONENT);
        output<uint32_t>(p.listed)[row * p.width + at] = indices[at];
        output<float>(p.probabilities)[row * p.width + at] = ptx::exp2_fast(t * LOG2_E) / its.sum;
    }
    if (lane_index() == 0) {
        write_row(p.log_sum_exp, p.entropy, p.best, p.best_probability, row, its);
    }
}
