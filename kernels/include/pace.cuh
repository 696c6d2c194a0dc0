// The weight of a negative of the query's own group, by how close it is to the query's positives.
#pragma once

#include "affinity.cuh"
#include "positives.cuh"

// The affinity of a pair, in [0, 1] and in every lane: e^(-|t - t'| / scale), or (1 + cos) / 2. In f64: near the pace
// little is left of 1 - affinity / pace. All lanes together.
__device__ __forceinline__ double closeness_of(const ContrastPace& pace, uint32_t query, uint32_t key) {
    if (pace.closeness == CLOSENESS_TIMES) {
        const double mine = array<float>(pace.query_closeness)[query];
        const double theirs = array<float>(pace.key_closeness)[key];
        return exp(-fabs(mine - theirs) / static_cast<double>(__uint_as_float(pace.time_scale)));
    }
    const uint64_t x = query * pace.query_stride;
    const uint64_t y = key * pace.key_stride;
    double products[3] = {0.0, 0.0, 0.0};
    for (uint32_t d = lane_index(); d < pace.feature_dim; d += 32) {
        const double left = old_element(pace.query_closeness, pace.query_type, x + d);
        const double right = old_element(pace.key_closeness, pace.key_type, y + d);
        products[0] = fma(left, right, products[0]);
        products[1] = fma(left, left, products[1]);
        products[2] = fma(right, right, products[2]);
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        products[i] = sum_of_warp(products[i]);
    }
    const double cosine = products[0] / sqrt(products[1] * products[2]);
    return 0.5 * (1.0 + fmin(fmax(cosine, -1.0), 1.0));
}

// The binary logarithm of the weight; minus infinity where the pair is not admitted. The same number in every lane; all
// lanes together.
__device__ __forceinline__ float pace_bias(const ContrastPace& pace, uint32_t query, uint32_t key) {
    const double closeness = closeness_of(pace, query, key);
    const double most = __uint_as_float(pace.pace);
    if (pace.is_soft == 0) {
        return closeness <= most ? 0.0f : -INFINITY;
    }
    const double weight = 1.0 - closeness / most;
    return weight > 0.0 ? static_cast<float>(log2(weight)) : -INFINITY;
}

// Calls `visit(row)` for the rows of a group that `keeps(row)` names: each of the block's warps for every fourth 32 of
// them, in their order. All lanes together.
template <class Keeps, class Visit>
__device__ __forceinline__ void each_of_group(uint64_t groups, uint64_t order, uint32_t count, uint32_t group,
                                              Keeps&& keeps, Visit&& visit) {
    const uint32_t first = first_not_below(groups, order, group, 0, count);
    const uint64_t end = group == NONE ? count : first_not_below(groups, order, group + 1, first, count);
    for (uint64_t start = first + threadIdx.x / 32 * 32; start < end; start += TILE_THREADS) {
        const uint64_t position = start + lane_index();
        const uint32_t row = position < end ? array<uint32_t>(order)[position] : NONE;
        const bool is_kept = row < count && keeps(row);
        for (unsigned rest = __ballot_sync(ALL_LANES, is_kept); rest != 0; rest &= rest - 1) {
            visit(__shfl_sync(ALL_LANES, row, __ffs(static_cast<int>(rest)) - 1));
        }
    }
}
