// Who owns a row that a list names, and where else the list names it: updates of rows by one owner each, in the order of
// the positions.
#pragma once

#include "pairs.cuh"
#include "warp.cuh"

constexpr uint32_t POSITION_WARPS = TILE_THREADS / 32;

// The sum over all threads of the block, the same bits in every thread. All threads together; `of_warps` has a
// number a warp.
template <class Number>
__device__ __forceinline__ Number sum_of_block(Number value, Number* of_warps) {
    value = sum_of_warp(value);
    if (lane_index() == 0) {
        of_warps[threadIdx.x / 32] = value;
    }
    __syncthreads();
    Number sum = 0;
    for (uint32_t warp = 0; warp < POSITION_WARPS; ++warp) {
        sum += of_warps[warp];
    }
    // All have read before the next sum is written.
    __syncthreads();
    return sum;
}

// Calls visit(at) for the positions `at` of `index` among `count` indices, in their order, while it says true; not at all
// when one of them comes before `position`, which then is not the owner. Says whether all were visited. All threads
// together; `votes` has a word a warp.
template <class Visit>
__device__ __forceinline__ bool each_position(const uint32_t* indices, uint32_t count, uint32_t index, uint32_t position,
                                              uint32_t* votes, Visit&& visit) {
    for (uint32_t first = 0; first < count; first += TILE_THREADS) {
        const uint32_t other = first + threadIdx.x;
        const uint32_t mine = __ballot_sync(ALL_LANES, other < count && indices[other] == index);
        if (lane_index() == 0) {
            votes[threadIdx.x / 32] = mine;
        }
        __syncthreads();
        for (uint32_t warp = 0; warp < POSITION_WARPS; ++warp) {
            for (uint32_t left = votes[warp]; left != 0; left &= left - 1) {
                const uint32_t at = first + warp * 32 + static_cast<uint32_t>(__ffs(static_cast<int>(left))) - 1;
                if (at < position || !visit(at)) {
                    return false;
                }
            }
        }
        // All have read the votes before the next ones are written.
        __syncthreads();
    }
    return true;
}
