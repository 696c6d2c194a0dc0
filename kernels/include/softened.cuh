// A softmax over centroids that grows: what is known of a row after some of them, and how two such states join.
//
// With a running maximum m of the scores s: Z = Σ e^(s − m) and A = Σ (s − m) e^(s − m), so that
//   lse = m + ln Z,   H = ln Z − A / Z,   max p = 1 / Z
// Both terms of H are at least 0: nothing cancels.
#pragma once

#include "entry.cuh"
#include "floats.cuh"
#include "warp.cuh"

struct SoftPartial {
    // m, Z and A.
    float largest;
    float sum;
    float along;
    // The centroid of the largest score, the least index of equal ones.
    uint32_t best;
    // The least squared distance.
    float nearest;
    // How many centroids are nearer than the own ones.
    uint32_t closer;
};
static_assert(sizeof(SoftPartial) == SOFT_PARTIAL_BYTES, "the host makes room for it");

// Below this, e^t is 0 in f32; t itself may be −∞.
constexpr float LEAST_EXPONENT = -200.0f;

__device__ __forceinline__ SoftPartial no_centroid() { return {-INFINITY, 0.0f, 0.0f, NONE, INFINITY, 0}; }

__device__ __forceinline__ SoftPartial one_centroid(float score, float squared, uint32_t index) {
    return score > -INFINITY ? SoftPartial{score, 1.0f, 0.0f, index, squared, 0} : no_centroid();
}

// Makes the sums relative to `largest`, which is not below the maximum so far and not −∞.
__device__ __forceinline__ void rescale(SoftPartial& row, float largest) {
    const float shift = fmaxf(row.largest - largest, LEAST_EXPONENT);
    const float factor = ptx::exp2_fast(shift * LOG2_E);
    row.along = factor * fmaf(shift, row.sum, row.along);
    row.sum *= factor;
    row.largest = largest;
}

// Joins the state of other centroids to that of a row; either may be the first.
__device__ __forceinline__ void join(SoftPartial& row, SoftPartial other) {
    if (other.largest > row.largest || (other.largest == row.largest && other.best < row.best)) {
        row.best = other.best;
    }
    const float largest = fmaxf(row.largest, other.largest);
    if (largest > -INFINITY) {
        rescale(row, largest);
        rescale(other, largest);
        row.sum += other.sum;
        row.along += other.along;
    }
    row.nearest = fminf(row.nearest, other.nearest);
    row.closer += other.closer;
}

// Joins the states of the lanes that differ in the bits below `lanes` of their number; the same in all of them. All lanes
// of the warp together.
__device__ __forceinline__ void join_lanes(SoftPartial& row, int lanes) {
#pragma unroll 1
    for (int step = 1; step < lanes; step *= 2) {
        join(row, {__shfl_xor_sync(ALL_LANES, row.largest, step), __shfl_xor_sync(ALL_LANES, row.sum, step),
                   __shfl_xor_sync(ALL_LANES, row.along, step), __shfl_xor_sync(ALL_LANES, row.best, step),
                   __shfl_xor_sync(ALL_LANES, row.nearest, step), __shfl_xor_sync(ALL_LANES, row.closer, step)});
    }
}

__device__ __forceinline__ float entropy_of(const SoftPartial& row) {
    return fmaxf(logf(row.sum) - row.along / row.sum, 0.0f);
}

// The score of a centroid at this squared distance. Only a centroid that is out of the softmax, at +∞, has −∞.
__device__ __forceinline__ float soft_score(float squared, float rate, uint32_t falls_with_square) {
    const float distance = falls_with_square != 0 ? squared : __fsqrt_rn(squared);
    return squared == INFINITY ? -INFINITY : fmaxf(-rate * distance, -LARGEST_FLOAT);
}
