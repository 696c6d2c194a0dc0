// Constants and tests of f32 numbers that families share.
#pragma once

#include "ptx.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) < INFINITY; }
