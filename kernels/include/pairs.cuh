// Which rows meet: matrices read by row number, the order of rows, and what excludes a pair.
#pragma once

#include "abi.h"
#include "dtype.cuh"

template <class T>
__device__ __forceinline__ const T* array(uint64_t address) {
    return reinterpret_cast<const T*>(address);
}

template <class T>
__device__ __forceinline__ T* output(uint64_t address) {
    return reinterpret_cast<T*>(address);
}

// Rows of this launch that count.
__device__ __forceinline__ uint32_t active_rows(uint64_t row_count, uint32_t row_limit) {
    return row_count != 0 ? *array<uint32_t>(row_count) : row_limit;
}

__device__ __forceinline__ uint32_t numbered(uint64_t order, uint32_t position) {
    return order != 0 ? array<uint32_t>(order)[position] : position;
}

// Whether rows can be read in chunks of 16 bytes.
__device__ __forceinline__ bool is_chunked(uint64_t address, uint64_t stride, int size) {
    return address % 16 == 0 && stride * static_cast<uint64_t>(size) % 16 == 0;
}

// The first position in [first, last) of `order` whose label is not below `label`.
__device__ __forceinline__ uint32_t first_not_below(uint64_t labels, uint64_t order, uint32_t label, uint32_t first,
                                                    uint32_t last) {
    while (first < last) {
        const uint32_t middle = first + (last - first) / 2;
        if (array<uint32_t>(labels)[numbered(order, middle)] < label) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first;
}

// The positions of the keys that the queries at positions [first_row, end_row) of `rows` can find: all keys, or
// the keys from the least to the largest label of these queries, which are in the order of their labels.
struct KeyRange {
    uint32_t first;
    uint32_t end;
};

__device__ __forceinline__ KeyRange key_range(const Pairs& p, uint32_t first_row, uint32_t end_row) {
    if (p.query_labels == 0) {
        return {0, p.keys_in_all};
    }
    const uint32_t least = array<uint32_t>(p.query_labels)[numbered(p.rows, first_row)];
    const uint32_t most = array<uint32_t>(p.query_labels)[numbered(p.rows, end_row - 1)];
    const uint32_t first = first_not_below(p.key_labels, p.key_order, least, 0, p.keys_in_all);
    const uint32_t end = most == NONE
                             ? p.keys_in_all
                             : first_not_below(p.key_labels, p.key_order, most + 1, first, p.keys_in_all);
    return {first, end};
}

// The part of [range.first, range.end) that split `split` of `splits` streams, in whole tiles.
__device__ __forceinline__ KeyRange split_range(KeyRange range, uint32_t split, uint32_t splits) {
    const uint64_t tiles = (static_cast<uint64_t>(range.end - range.first) + TILE_KEYS - 1) / TILE_KEYS;
    const uint64_t each = (tiles + splits - 1) / splits * TILE_KEYS;
    const uint64_t first = range.first + each * split;
    const uint64_t end = first + each;
    return {static_cast<uint32_t>(first < range.end ? first : range.end),
            static_cast<uint32_t>(end < range.end ? end : range.end)};
}

// A bit of a mask with one bit a number; every bit is set where there is no mask.
__device__ __forceinline__ bool bit_at(uint64_t bits, uint32_t number) {
    return bits == 0 || (array<uint32_t>(bits)[number / 32] >> (number % 32) & 1) != 0;
}

__device__ __forceinline__ bool is_allowed(const Pairs& p, uint32_t key) { return bit_at(p.allow, key); }

// Whether a pair may be found, as far as labels and ids tell.
__device__ __forceinline__ bool is_pair(const Pairs& p, uint32_t query, uint32_t key) {
    if (p.query_labels != 0 && array<uint32_t>(p.query_labels)[query] != array<uint32_t>(p.key_labels)[key]) {
        return false;
    }
    return p.query_ids == 0 || array<uint32_t>(p.query_ids)[query] != array<uint32_t>(p.key_ids)[key];
}
