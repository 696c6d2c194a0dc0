// Rows of a bank that a query lists, tile by tile through shared memory: copied once, multiplied with the query, and
// summed with weights while they are there.
//
// A tile has p.tile_rows columns of the list (a power of two, at most GATHERED_ROWS). Its rows lie in a stage one behind
// the other, in chunks of 16 bytes with zeros behind a row's end; rows that are not there are zeros. The `lanes` of a
// group share one part of one row, and each of them copies the chunks that it multiplies.
#pragma once

#include "pairs.cuh"
#include "warp.cuh"

constexpr uint32_t GATHERED_STAGES = STAGES;

// One matrix whose rows are listed, and the vector that they are multiplied with.
template <class T>
struct Listed {
    const T* rows;
    uint64_t stride;
    uint32_t dim;
    // Chunks of a row, and of a part of it.
    uint32_t chunks;
    uint32_t chunks_of_part;
    bool chunked;
    // Where these rows start in a stage, in chunks.
    uint32_t first_chunk;
    // In shared memory: the vector in f32, with zeros up to a whole chunk, and two tiles of products.
    float* vector;
    float* products;
};

template <class T>
__device__ __forceinline__ uint32_t chunks_of(uint32_t dim) {
    return (dim + CHUNK<T> - 1) / CHUNK<T>;
}

template <class T>
__device__ __forceinline__ Listed<T> make_listed(const Gathered& p, uint64_t rows, uint64_t stride, uint32_t dim,
                                                 uint32_t first_chunk, float* memory) {
    const uint32_t chunks = chunks_of<T>(dim);
    return {array<T>(rows), stride, dim, chunks, (chunks + p.parts - 1) / p.parts, is_chunked(rows, stride, sizeof(T)),
            first_chunk, memory + 2 * GATHERED_ROWS, memory};
}

// Floats of shared memory that a side needs beside its rows.
template <class T>
__device__ __forceinline__ uint32_t floats_of(uint32_t dim) {
    return 2 * GATHERED_ROWS + chunks_of<T>(dim) * CHUNK<T>;
}

// Reads the vector; whether all of this thread's elements are finite. All threads of the block; a barrier follows.
template <class T>
__device__ __forceinline__ bool read_vector(const Listed<T>& side, const T* from) {
    bool good = true;
    for (uint32_t d = threadIdx.x; d < side.chunks * CHUNK<T>; d += TILE_THREADS) {
        const float value = d < side.dim ? to_f32(from[d]) : 0.0f;
        good = good && fabsf(value) < INFINITY;
        side.vector[d] = value;
    }
    return good;
}

// The group of this thread, and its place there.
struct Group {
    uint32_t number;
    uint32_t count;
    uint32_t lane;
    uint32_t lanes;
};

__device__ __forceinline__ Group group_of(const Gathered& p) {
    return {threadIdx.x / p.lanes, TILE_THREADS / p.lanes, threadIdx.x % p.lanes, p.lanes};
}

// The bank row of a column before `end`, or NONE for padding and for what is no row of the bank.
__device__ __forceinline__ uint32_t listed_at(const Gathered& p, uint32_t query, uint32_t column, uint32_t end) {
    if (column >= end) {
        return NONE;
    }
    const uint32_t row = array<uint32_t>(p.indices)[static_cast<uint64_t>(query) * p.columns + column];
    return row < p.bank_count ? row : NONE;
}

// Starts copying a part of bank row `index` to row `row` of a stage.
template <class T>
__device__ __forceinline__ void copy_part(unsigned char* stage, const Listed<T>& side, const Group& group, uint32_t row,
                                          uint32_t part, uint32_t index) {
    constexpr uint32_t EACH = CHUNK<T>;
    const uint32_t first = part * side.chunks_of_part;
    const uint32_t end = first + side.chunks_of_part < side.chunks ? first + side.chunks_of_part : side.chunks;
    for (uint32_t chunk = first + group.lane; chunk < end; chunk += group.lanes) {
        unsigned char* const to = stage + (side.first_chunk + row * side.chunks + chunk) * 16;
        const uint32_t rest = side.dim - chunk * EACH;
        const uint32_t count = index == NONE ? 0 : rest < EACH ? rest : EACH;
        const T* from = side.rows;
        if (index != NONE) {
            from += index * side.stride + chunk * EACH;
        }
        if (side.chunked) {
            ptx::copy_async<16>(to, from, static_cast<int>(count * sizeof(T)));
        } else {
#pragma unroll
            for (uint32_t i = 0; i < EACH; ++i) {
                reinterpret_cast<T*>(to)[i] = i < count ? from[i] : T{};
            }
        }
    }
}

// The product of a part of a row with the vector, in the first lane of the group. All lanes of the warp together.
template <class T>
__device__ __forceinline__ float multiply_part(const unsigned char* stage, const Listed<T>& side, const Group& group,
                                               uint32_t row, uint32_t part) {
    const uint32_t first = part * side.chunks_of_part;
    const uint32_t end = first + side.chunks_of_part < side.chunks ? first + side.chunks_of_part : side.chunks;
    float sum = 0.0f;
    for (uint32_t chunk = first + group.lane; chunk < end; chunk += group.lanes) {
        float values[CHUNK<T>];
        widen_chunk(values, ptx::load_16(stage + (side.first_chunk + row * side.chunks + chunk) * 16),
                    static_cast<const T*>(nullptr));
#pragma unroll
        for (int i = 0; i < CHUNK<T>; i += 4) {
            float x[4];
            widen_chunk(x, ptx::load_16(side.vector + chunk * CHUNK<T> + i), static_cast<const float*>(nullptr));
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                sum = fmaf(values[i + j], x[j], sum);
            }
        }
    }
    for (uint32_t step = group.lanes / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, static_cast<int>(step));
    }
    return sum;
}

// The product of row `row` of the tile, from those of its parts.
template <class T>
__device__ __forceinline__ float product_of(const Gathered& p, const Listed<T>& side, uint32_t turn, uint32_t row) {
    const float* const products = side.products + turn * GATHERED_ROWS + row;
    float sum = products[0];
    for (uint32_t part = 1; part < p.parts; ++part) {
        sum += products[part * p.tile_rows];
    }
    return sum;
}

// sums = sums · factor + Σ weight · row over the rows of a tile, whose weights the lanes of each warp have. The thread's
// dimensions are threadIdx + 128 i. All lanes of the warp together.
template <int EACH, class T>
__device__ __forceinline__ void add_rows(float (&sums)[EACH], const unsigned char* stage, const Listed<T>& side,
                                         uint32_t rows, float weight, float factor) {
    const T* const values = reinterpret_cast<const T*>(stage + side.first_chunk * 16);
    const uint32_t step = side.chunks * CHUNK<T>;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        if (i * TILE_THREADS < side.dim) {
            // Threads behind the last dimension sum it once more, and do not write it.
            const uint32_t own = threadIdx.x + i * TILE_THREADS;
            const uint32_t d = own < side.dim ? own : side.dim - 1;
            float sum = 0.0f;
            for (uint32_t row = 0; row < rows; ++row) {
                sum = fmaf(__shfl_sync(ALL_LANES, weight, static_cast<int>(row)), to_f32(values[row * step + d]), sum);
            }
            sums[i] = fmaf(sums[i], factor, sum);
        }
    }
}
