// Squared distances of points to centroids: from inner products on the tensor cores where that is exact enough, from the
// differences where it would cancel.
//
//   d² = ‖x‖² + ‖c‖² − 2 ⟨x, c⟩     where that is at least CANCELS (‖x‖² + ‖c‖²)
//   d² = Σ (x − c)²                 elsewhere
// Which of the two depends on the pair alone, and so does its value.
#pragma once

#include "floats.cuh"
#include "pairs.cuh"
#include "products.cuh"
#include "warp.cuh"

constexpr float CANCELS = 0.25f;

// From the differences, f32. All lanes of a warp together, for one pair; the same bits in every lane.
template <class T>
__device__ __forceinline__ float squared_difference(const SoftAssignment& p, uint32_t point, uint32_t centroid) {
    const T* const x = array<T>(p.points) + point * p.point_stride;
    const float* const c = array<float>(p.centroids) + static_cast<uint64_t>(centroid) * p.dim;
    const float scale = array<float>(p.point_scales)[point];
    float sum = 0.0f;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        const float difference = fmaf(to_f32(x[d]), scale, -c[d]);
        sum = fmaf(difference, difference, sum);
    }
    return sum_of_warp(sum);
}

// Of a point or a centroid: what its products are multiplied by, and its squared norm; +∞ takes it out.
struct Side {
    float scale;
    float norm;
};

__device__ __forceinline__ Side side_of_point(const SoftAssignment& p, uint32_t point) {
    if (point >= p.point_count) {
        return {0.0f, INFINITY};
    }
    return {array<float>(p.point_scales)[point], array<float>(p.point_norms)[point]};
}

__device__ __forceinline__ Side side_of_centroid(const SoftAssignment& p, uint32_t centroid) {
    if (centroid >= p.centroid_count) {
        return {0.0f, INFINITY};
    }
    return {p.operand_scales != 0 ? array<float>(p.operand_scales)[centroid] : 1.0f,
            array<float>(p.centroid_norms)[centroid]};
}

// From the product of the two sides' operands; `cancels` when it has to come from the differences.
__device__ __forceinline__ float squared_by_product(float product, Side x, Side c, bool& cancels) {
    const float total = x.norm + c.norm;
    const float squared = fmaf(-2.0f, product * (x.scale * c.scale), total);
    cancels = squared < CANCELS * total && total < INFINITY;
    return total < INFINITY ? fmaxf(squared, 0.0f) : INFINITY;
}

// Replaces the squares of this thread's elements in `hits` by those from the differences; `pair_of(i)` is the point and the
// centroid of element i. All lanes of the warp together.
template <class T, int COUNT, class PairOf>
__device__ __forceinline__ void replace_cancelled(const SoftAssignment& p, float (&squared)[COUNT], uint32_t hits,
                                                  const PairOf& pair_of) {
    for (uint32_t lanes = __ballot_sync(ALL_LANES, hits != 0); lanes != 0;
         lanes = __ballot_sync(ALL_LANES, hits != 0)) {
        const int leader = __ffs(static_cast<int>(lanes)) - 1;
        const int mine = hits != 0 ? __ffs(static_cast<int>(hits)) - 1 : 0;
        const uint2 pair = pair_of(mine);
        const float exact = squared_difference<T>(p, __shfl_sync(ALL_LANES, pair.x, leader),
                                                  __shfl_sync(ALL_LANES, pair.y, leader));
        if (static_cast<int>(lane_index()) == leader) {
            hits &= hits - 1;
#pragma unroll
            for (int i = 0; i < COUNT; ++i) {
                squared[i] = i == mine ? exact : squared[i];
            }
        }
    }
}
