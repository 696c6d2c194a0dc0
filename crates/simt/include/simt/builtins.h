// Qualifiers and the coordinates of a thread.
#pragma once

#include <simt/hooks.h>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

constexpr int warpSize = 32;

__forceinline__ void __syncthreads() { CONSONANCE_SIMT_APART ::simt::barrier(); }
__forceinline__ void __threadfence() { ::simt::fence(); }
__forceinline__ void __threadfence_block() {}
