// Units in which coefficients are rounded to 16 bits: powers of two that bring the largest one near the top of the range.
#pragma once

#include "abi.h"
#include "warp.cuh"

// The power of two that brings numbers up to `largest` just below 2¹⁴, where 16-bit storage is at its best.
__device__ __forceinline__ float unit_for(float largest) {
    const uint32_t exponent = __float_as_uint(largest) >> 23 & 0xff;
    return __uint_as_float((267 - (exponent < 40 ? 40 : exponent > 227 ? 227 : exponent)) << 23);
}

// The largest of the numbers of a block of TILE_THREADS threads, which have a word each warp in `shared`. All threads
// together.
__device__ __forceinline__ float largest_of_block(float largest, float* shared) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    if (lane_index() == 0) {
        shared[threadIdx.x / 32] = largest;
    }
    __syncthreads();
    for (uint32_t warp = 0; warp < TILE_THREADS / 32; ++warp) {
        largest = fmaxf(largest, shared[warp]);
    }
    return largest;
}
