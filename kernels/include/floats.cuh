// Constants and tests of f32 numbers that families share.
#pragma once

#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;
constexpr float LARGEST_FLOAT = 0x1.fffffep127f;

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }

// ln(1 + e^m) and 1 / (1 + e^{−m}).
struct Margin {
    float softplus;
    float sigmoid;
};

__device__ __forceinline__ Margin margin_of(float m) {
    const float e = ptx::exp2_fast(-fabsf(m) * LOG2_E);
    return {fmaxf(m, 0.0f) + log1pf(e), (m >= 0.0f ? 1.0f : e) / (1.0f + e)};
}
