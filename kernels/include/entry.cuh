// Entries: a score and an index in one integer, so that the larger entry is the better candidate under the total
// order (score descending, index ascending). 0 is no entry.
#pragma once

#include "abi.h"
#include "ptx.cuh"

// Maps floats to integers of the same order. −0 and +0 are one score.
__device__ __forceinline__ uint32_t ordered_bits(float value) {
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t make_entry(float value, uint32_t index) {
    return static_cast<uint64_t>(ordered_bits(value)) << 32 | (NONE - index);
}

__device__ __forceinline__ float entry_value(uint64_t entry) {
    const uint32_t bits = static_cast<uint32_t>(entry >> 32);
    return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ uint32_t entry_index(uint64_t entry) { return NONE - static_cast<uint32_t>(entry); }
