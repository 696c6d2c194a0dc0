// Scores that are bounded beforehand: |s| ≤ |x| max|y| / τ + max|ln u|, from norms that the check of the rows found.
//
// Where that is at most 60, e^s needs no running maximum and no rescaling: sums are relative to a constant. The choice
// is a row's own and depends on its norm and on the longest row of the other side. With the constant 2³³ terms are
// 2^−119.6 … 2^53.6, so that none vanishes, and 2³² of them times a product of 2⁴⁰ fit an f32; coefficients, 2¹³ times as
// large, keep two bfloat16 parts, and 2³² of them times a key of norm 1000 fit, too. f16 coefficients do not have that
// range.
#pragma once

#include "floats.cuh"
#include "positives.cuh"

// Words of the status behind the least bad rows.
constexpr int LONGEST_QUERY = 7;
constexpr int LONGEST_KEY = 8;
constexpr int WIDEST_BIAS = 9;

// The binary logarithm of what sums over bounded scores are relative to.
constexpr float BOUNDED_LARGEST = 33.0f;

// 60 log₂ e.
constexpr float BOUNDED_SCORE = 86.56170f;
constexpr float BOUNDED_NORM = 1000.0f;
constexpr float BOUNDED_PRODUCT = 0x1p40f;
// More than the norm of a row whose squares are all 0 in f32.
constexpr float VANISHED_NORM = 0x1p-56f;

__device__ __forceinline__ float largest_of(const Contrast& p, int word) {
    return __uint_as_float(~array<uint32_t>(p.status)[word]);
}

// Whether all scores of a row of this norm are bounded, where the other side's longest row has this squared norm. NaN is
// not.
__device__ __forceinline__ bool is_bounded(float norm, float longest_squared, float scale, float widest_bias) {
    const float longest = sqrtf(longest_squared);
    const float product = (norm + VANISHED_NORM) * (longest + VANISHED_NORM);
    return longest <= BOUNDED_NORM && product <= BOUNDED_PRODUCT && fmaf(product, scale, widest_bias) <= BOUNDED_SCORE;
}

// Of queries against keys; also for those that are not there.
__device__ __forceinline__ bool is_bounded_query(const Contrast& p, uint32_t query) {
    return query >= p.query_count ||
           (p.query_norms != 0 && is_bounded(array<float>(p.query_norms)[query], largest_of(p, LONGEST_KEY),
                                             LOG2_E / temperature_of(p, query), largest_of(p, WIDEST_BIAS)));
}

// Which rows of a tile are bounded: a bit each.
struct BoundedRows {
    uint32_t bits[2];

    // By the first two warps.
    __device__ __forceinline__ void set(bool bounded) {
        const unsigned lanes = __ballot_sync(ALL_LANES, bounded);
        if (lane_index() == 0) {
            bits[threadIdx.x / 32] = lanes;
        }
    }
    __device__ __forceinline__ bool all() const { return (bits[0] & bits[1]) == ~0u; }
    __device__ __forceinline__ bool at(uint32_t row) const { return (bits[row / 32] >> (row % 32) & 1) != 0; }
};
