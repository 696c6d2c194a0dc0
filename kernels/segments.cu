// segments: row numbers in the order of their labels, equal labels in the order of their numbers: what makes a
// search inside classes cost the classes alone.
//
// A stable radix sort, least digit first, 8 bits a pass, each pass in three launches:
//   segments_count    how often every digit occurs in each block's SORT_ITEMS numbers
//   segments_scan     where each block's numbers of each digit go: an exclusive sum, digit by digit
//   segments_scatter  moves the numbers there, in their order
// Grids: count and scatter: blocks of SORT_ITEMS numbers; scan: one block. Memory: 4 bytes a number, twice, and
// 1 KiB a block. The order depends on the labels alone.
#include "kernel.cuh"
#include "pairs.cuh"
#include "warp.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

__device__ __forceinline__ uint32_t digit_of(const SegmentsSort& p, uint32_t number) {
    return array<uint32_t>(p.labels)[number] >> p.shift & (SORT_DIGITS - 1);
}

// The lanes among `active` that have this lane's digit.
__device__ __forceinline__ uint32_t lanes_of_digit(uint32_t digit, uint32_t active) {
    uint32_t lanes = active;
#pragma unroll
    for (uint32_t bit = 1; bit < SORT_DIGITS; bit *= 2) {
        const bool mine = (digit & bit) != 0;
        const uint32_t votes = __ballot_sync(ALL_LANES, mine);
        lanes &= mine ? votes : ~votes;
    }
    return lanes;
}

}  // namespace

CONSONANCE_KERNEL(segments_count, SegmentsSort, TILE_THREADS, 4) {
    auto* const counts = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    for (uint32_t digit = threadIdx.x; digit < SORT_DIGITS; digit += TILE_THREADS) {
        counts[digit] = 0;
    }
    __syncthreads();
    const uint32_t first = blockIdx.x * SORT_ITEMS;
    const uint32_t end = p.count - first < SORT_ITEMS ? p.count : first + SORT_ITEMS;
    for (uint32_t item = first + threadIdx.x; item < end; item += TILE_THREADS) {
        atomicAdd(&counts[digit_of(p, numbered(p.from, item))], 1u);
    }
    __syncthreads();
    for (uint32_t digit = threadIdx.x; digit < SORT_DIGITS; digit += TILE_THREADS) {
        output<uint32_t>(p.counts)[digit * p.blocks + blockIdx.x] = counts[digit];
    }
}

CONSONANCE_KERNEL(segments_scan, SegmentsSort, TILE_THREADS, 1) {
    auto* const sums = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    uint32_t* const counts = output<uint32_t>(p.counts);
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t lane = lane_index();
    uint32_t before = 0;
    for (uint32_t first = 0; first < SORT_DIGITS * p.blocks; first += TILE_THREADS) {
        const uint32_t at = first + threadIdx.x;
        const uint32_t own = at < SORT_DIGITS * p.blocks ? counts[at] : 0;
        uint32_t sum = own;
#pragma unroll
        for (unsigned step = 1; step < 32; step *= 2) {
            const uint32_t below = __shfl_up_sync(ALL_LANES, sum, step);
            sum += lane >= step ? below : 0;
        }
        if (lane == 31) {
            sums[warp] = sum;
        }
        __syncthreads();
        uint32_t start = before + sum - own;
        for (uint32_t other = 0; other < WARPS; ++other) {
            start += other < warp ? sums[other] : 0;
            before += sums[other];
        }
        if (at < SORT_DIGITS * p.blocks) {
            counts[at] = start;
        }
        __syncthreads();
    }
}

CONSONANCE_KERNEL(segments_scatter, SegmentsSort, TILE_THREADS, 4) {
    // Where the next number of each digit goes.
    auto* const places = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    for (uint32_t digit = threadIdx.x; digit < SORT_DIGITS; digit += TILE_THREADS) {
        places[digit] = array<uint32_t>(p.counts)[digit * p.blocks + blockIdx.x];
    }
    __syncthreads();
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t first = blockIdx.x * SORT_ITEMS;
    const uint32_t end = p.count - first < SORT_ITEMS ? p.count : first + SORT_ITEMS;
    for (uint32_t round = first; round < end; round += TILE_THREADS) {
        const uint32_t item = round + threadIdx.x;
        const bool active = item < end;
        const uint32_t number = active ? numbered(p.from, item) : 0;
        const uint32_t digit = active ? digit_of(p, number) : 0;
        const uint32_t lanes = lanes_of_digit(digit, __ballot_sync(ALL_LANES, active));
        const uint32_t below = __popc(lanes & ((1u << lane_index()) - 1));
        uint32_t place = 0;
        // The warps one after another, so that numbers keep their order.
        for (uint32_t turn = 0; turn < WARPS; ++turn) {
            if (turn == warp && active) {
                place = places[digit] + below;
            }
            __syncthreads();
            if (turn == warp && active && below == 0) {
                places[digit] += __popc(lanes);
            }
            __syncthreads();
        }
        if (active) {
            output<uint32_t>(p.to)[place] = number;
        }
    }
}
