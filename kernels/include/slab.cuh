// Slabs: SLAB_BYTES bytes of every row of a tile, in shared memory.
//
// A row of a slab has 8 chunks of 16 bytes; chunk c of row r lies at place c ^ (r % 8), so that 8 rows read at the
// same chunk, as matrix loads do, touch all banks once. What lies behind a row's end or the last row is zero.
#pragma once

#include "pairs.cuh"

constexpr int SLAB_CHUNKS = static_cast<int>(SLAB_BYTES) / 16;

// Elements of a row in a slab.
template <class T>
constexpr int SLAB = static_cast<int>(SLAB_BYTES / sizeof(T));

__device__ __forceinline__ unsigned char* slab_chunk(unsigned char* slab, int row, int chunk) {
    return slab + row * static_cast<int>(SLAB_BYTES) + (chunk ^ (row % 8)) * 16;
}

__device__ __forceinline__ const unsigned char* slab_chunk(const unsigned char* slab, int row, int chunk) {
    return slab + row * static_cast<int>(SLAB_BYTES) + (chunk ^ (row % 8)) * 16;
}

// A matrix whose rows are read in some order.
template <class T>
struct Source {
    const T* data;
    uint64_t stride;
    // u32 row numbers by position, or 0.
    uint64_t order;
    uint32_t end;
    uint32_t dim;
    bool chunked;
};

template <class T>
__device__ __forceinline__ Source<T> make_source(uint64_t data, uint64_t stride, uint64_t order, uint32_t end,
                                                 uint32_t dim) {
    return {array<T>(data), stride, order, end, dim, is_chunked(data, stride, sizeof(T))};
}

// Starts copying elements [SLAB * part, SLAB * (part + 1)) of the ROWS rows from position `first` on. All THREADS threads
// of the block together; the caller commits the group.
template <int ROWS, int THREADS = static_cast<int>(TILE_THREADS), class T>
__device__ __forceinline__ void copy_slab(unsigned char* slab, const Source<T>& source, uint32_t first, uint32_t part) {
    constexpr int EACH = CHUNK<T>;
    for (int item = static_cast<int>(threadIdx.x); item < ROWS * SLAB_CHUNKS; item += THREADS) {
        const int row = item / SLAB_CHUNKS;
        const int chunk = item % SLAB_CHUNKS;
        unsigned char* const to = slab_chunk(slab, row, chunk);
        const uint32_t position = first + static_cast<uint32_t>(row);
        const uint32_t start = part * SLAB<T> + static_cast<uint32_t>(chunk * EACH);
        int count = 0;
        const T* from = source.data;
        if (position < source.end && start < source.dim) {
            const uint32_t rest = source.dim - start;
            count = rest < EACH ? static_cast<int>(rest) : EACH;
            from += numbered(source.order, position) * source.stride + start;
        }
        if (source.chunked) {
            ptx::copy_async<16>(to, from, count * static_cast<int>(sizeof(T)));
        } else {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                reinterpret_cast<T*>(to)[i] = i < count ? from[i] : T{};
            }
        }
    }
}

// The elements of one chunk of a row, widened.
template <class T>
__device__ __forceinline__ void read_chunk(float (&values)[CHUNK<T>], const unsigned char* slab, int row, int chunk) {
    widen_chunk(values, ptx::load_16(slab_chunk(slab, row, chunk)), static_cast<const T*>(nullptr));
}
