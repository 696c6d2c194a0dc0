// Candidate lists: the best `capacity` entries of a row, sorted, best first.
//
// Three speeds. Nearly all scores fail a comparison with a register, the value of the row's last entry. A score
// that passes goes to the row's ring, RING entries in shared memory. A full ring is merged into the list, in
// global memory (it stays in the L2 cache), by all lanes of the warp that owns the row. With a bank of N keys in
// random order about k (1 + ln(N / k)) scores of a row pass at all.
#pragma once

#include "entry.cuh"
#include "warp.cuh"

// How many of `entries[0..count)`, sorted best first, are better than `entry`.
__device__ __forceinline__ uint32_t better_than(const uint64_t* entries, uint32_t count, uint64_t entry) {
    uint32_t first = 0;
    while (count > 0) {
        const uint32_t half = count / 2;
        if (entries[first + half] > entry) {
            first += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return first;
}

// Merges RING sorted entries into a sorted list of `capacity` entries, a multiple of RING; what falls off the end
// is lost. Entries are distinct but for zeros. All lanes together.
//
// Entries only move backwards, so chunks are moved from the last to the first: the places that a chunk's entries
// take have been read before.
__device__ __forceinline__ void merge_sorted(uint64_t* list, uint32_t capacity, const uint64_t* sorted) {
    const uint32_t lane = lane_index();
    const uint64_t entry = sorted[lane];
    const uint32_t place = lane + better_than(list, capacity, entry);
    __syncwarp();
    for (uint32_t chunk = capacity; chunk > 0; chunk -= RING) {
        const uint32_t from = chunk - RING + lane;
        const uint64_t moved = list[from];
        const uint32_t to = from + better_than(sorted, RING, moved);
        __syncwarp();
        if (to < capacity && moved != 0) {
            list[to] = moved;
        }
        __syncwarp();
    }
    if (entry != 0 && place < capacity) {
        list[place] = entry;
    }
    __syncwarp();
}

// Sorts the first `count` entries of a ring and fills it up with zeros. All lanes together.
__device__ __forceinline__ void sort_ring(uint64_t* ring, uint32_t count) {
    const uint32_t lane = lane_index();
    const uint64_t entry = lane < count ? ring[lane] : 0;
    uint32_t place = 0;
    for (uint32_t other = 0; other < RING; ++other) {
        const uint64_t its = __shfl_sync(ALL_LANES, entry, static_cast<int>(other));
        // Zeros keep their order among themselves.
        place += its > entry || (its == entry && other < lane) ? 1 : 0;
    }
    __syncwarp();
    ring[place] = entry;
    __syncwarp();
}

// Empties a list. All lanes together.
__device__ __forceinline__ void clear_list(uint64_t* list, uint32_t capacity) {
    for (uint32_t i = lane_index(); i < capacity; i += 32) {
        list[i] = 0;
    }
}

// What a lane knows of a row's list.
struct Candidates {
    // The list's last entry; a candidate must be better. 0 while the list is not full.
    uint64_t last;
    // Entries in the ring.
    uint32_t waiting;
};

// A row that takes no candidate.
constexpr uint64_t CLOSED = ~0ull;

// The least value that a candidate can have; not a number, below which nothing is, for a closed row.
__device__ __forceinline__ float floor_of(const Candidates& state) {
    return state.last != 0 ? entry_value(state.last) : -INFINITY;
}

// The value of the lowest bit set in `hits`, which is cleared, and its index. Written so that `values` stay in registers.
template <int COUNT>
__device__ __forceinline__ float next_hit(const float (&values)[COUNT], uint32_t& hits, int& index) {
    index = __ffs(static_cast<int>(hits)) - 1;
    hits &= hits - 1;
    float value = values[0];
#pragma unroll
    for (int other = 1; other < COUNT; ++other) {
        value = index == other ? values[other] : value;
    }
    return value;
}

// Offers one entry of each lane, or none (0), to the lane's row. Lanes of a row are GROUP neighbors and agree in
// `state` and `ring`; all lanes of the warp call together. Says whether some ring has no room for another call.
template <int GROUP>
__device__ __forceinline__ bool offer(Candidates& state, uint64_t* ring, uint64_t entry) {
    const uint32_t lane = lane_index();
    const uint32_t first = lane / GROUP * GROUP;
    const bool passes = entry > state.last;
    const uint32_t group = __ballot_sync(ALL_LANES, passes) >> first & ((1u << GROUP) - 1);
    if (passes) {
        ring[state.waiting + __popc(group & ((1u << (lane - first)) - 1))] = entry;
    }
    state.waiting += __popc(group);
    return __any_sync(ALL_LANES, state.waiting > RING - GROUP) != 0;
}

// Merges the rings of those rows of a warp that are `due` into their lists. Lanes [g * GROUP, (g + 1) * GROUP) have
// row g, whose ring is at rings + g * ring_step and whose list at lists + g * list_step. All lanes together.
template <int GROUP>
__device__ __forceinline__ void merge_rings(Candidates& state, bool due, uint64_t* rings, uint32_t ring_step,
                                            uint64_t* lists, uint64_t list_step, uint32_t capacity) {
    uint32_t lanes = __ballot_sync(ALL_LANES, due);
    __syncwarp();
    while (lanes != 0) {
        const uint32_t lane = static_cast<uint32_t>(__ffs(static_cast<int>(lanes))) - 1;
        const uint32_t row = lane / GROUP;
        lanes &= ~(((1u << GROUP) - 1) << row * GROUP);
        uint64_t* const ring = rings + row * ring_step;
        uint64_t* const list = lists + row * list_step;
        sort_ring(ring, __shfl_sync(ALL_LANES, state.waiting, static_cast<int>(lane)));
        merge_sorted(list, capacity, ring);
        if (lane_index() / GROUP == row) {
            state.waiting = 0;
            state.last = list[capacity - 1];
        }
        __syncwarp();
    }
}
