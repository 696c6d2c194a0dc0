// Constants and tests of f32 numbers that families share.
#pragma once

#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;
constexpr float LARGEST_FLOAT = 0x1.fffffep127f;

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }

// The power of two that brings numbers up to `largest` just below 2¹⁴, where 16-bit storage is at its best.
__device__ __forceinline__ float unit_for(float largest) {
    const uint32_t exponent = __float_as_uint(largest) >> 23 & 0xff;
    return __uint_as_float((267 - (exponent < 40 ? 40 : exponent > 227 ? 227 : exponent)) << 23);
}

// ln(1 + e^m) and 1 / (1 + e^{−m}).
struct Margin {
    float softplus;
    float sigmoid;
};

__device__ __forceinline__ Margin margin_of(float m) {
    const float e = ptx::exp2_fast(-fabsf(m) * LOG2_E);
    return {fmaxf(m, 0.0f) + log1pf(e), (m >= 0.0f ? 1.0f : e) / (1.0f + e)};
}
