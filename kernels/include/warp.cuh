// What the lanes of a warp do together.
#pragma once

#include "ptx.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ unsigned lane_index() { return threadIdx.x % 32; }

// The sum over all lanes, in a fixed order; the same bits in every lane. All lanes together.
template <class Number>
__device__ __forceinline__ Number sum_of_warp(Number value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}
