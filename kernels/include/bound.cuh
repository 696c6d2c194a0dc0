// How far a tensor-core score can be from the deciding score of a pair (score.cuh).
//
// Let x, y be the stored rows and x̃, ỹ what is multiplied (x itself for 16-bit storage, its bfloat16 part for f32).
//   |⟨x, y⟩ − ⟨x̃, ỹ⟩| ≤ ‖x̃‖ ‖y − ỹ‖ + ‖x − x̃‖ ‖y‖                               (Cauchy–Schwarz)
// With three products the parts of x that are left out are at most 2⁻¹⁶ ‖x‖, and the product of the low parts at
// most 2⁻¹⁶ ‖x‖ ‖y‖: together 3 · 2⁻¹⁶ ‖x‖ ‖y‖, taken as 3.1.
// The tensor core adds groups of at least 8 exact products to the sum, each term cut to 24 bits of the largest
// (Fasi et al., PeerJ CS 2021): at most 9 + 1 errors of 2⁻²³ of the largest partial sum, that is
// 1.25 D 2⁻²³ ‖x‖ ‖y‖ in all; the chain of the deciding score adds D 2⁻²⁴ ‖x‖ ‖y‖. Both are below γ = (D + 16) 2⁻²²,
// whose constant part covers the few roundings of this file. The two norms that a cosine divides by add D 2⁻²⁴ each
// on both sides, and squared L2 is 2⟨x, y⟩ − ‖y‖² − ‖x‖² with sums of its own: γ (‖x‖ + ‖y‖)².
#pragma once

#include "abi.h"
#include "ptx.cuh"

// Upper bounds of a row's norm and of the norm of what multiplication leaves out.
struct Size {
    float norm;
    float rest;
};

// Squared norms above this can overflow a score.
constexpr float LARGEST_SQUARED_NORM = 8.0e37f;

// From sums of squares in f32. A square can lose 2⁻¹²⁶ to underflow, and the sum D 2⁻²⁴ of itself to rounding.
__device__ __forceinline__ Size size_of(float squared_norm, float squared_rest, uint32_t dim) {
    const float d = static_cast<float>(dim);
    const float slack = 1.0f + (d + 16.0f) * 0x1p-23f;
    const float lost = d * 0x1p-126f;
    return {sqrtf(squared_norm + lost) * slack, sqrtf(squared_rest + lost) * slack};
}

// The bound for a query of this size and keys of at most these norms, in units of the values of score.cuh.
template <int PRODUCTS>
__device__ __forceinline__ float error_bound(Size query, Size keys, uint32_t dim, uint32_t metric) {
    const float gamma = (static_cast<float>(dim) + 16.0f) * 0x1p-22f;
    const float product = query.norm * keys.norm;
    const float left_out = PRODUCTS == 3 ? 3.1f * 0x1p-16f * product
                                         : (query.norm + query.rest) * keys.rest + query.rest * keys.norm;
    float bound;
    if (metric == SQUARED_L2) {
        const float sum = query.norm + keys.norm;
        bound = 2.0f * left_out + gamma * sum * sum;
    } else if (metric == COSINE) {
        // Both sides scaled to norm 1 by the caller: `keys.rest` is the largest ratio of rest and norm.
        bound = left_out + 1.5f * gamma;
    } else {
        bound = left_out + gamma * product;
    }
    return bound * (1.0f + 0x1p-20f) + 0x1p-120f;
}
