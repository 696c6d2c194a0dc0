// Tiles of deciding scores on the ordinary f32 units: 64 queries × 64 keys a block, 4 × 8 a thread. Slower than the
// tensor cores by their ratio, and needs no proof.
//
// A thread has the rows 4 (threadIdx / 8) + i, i < 4, and the columns threadIdx % 8 + 8 c, c < 8, of the tile: a
// warp has 16 whole rows, and the 8 lanes of a row are neighbors.
#pragma once

#include "score.cuh"
#include "slab.cuh"

constexpr int EXACT_ROWS = 4;
constexpr int EXACT_COLUMNS = 8;
constexpr uint32_t EXACT_STAGE_BYTES = (MANY_ROWS + TILE_KEYS) * SLAB_BYTES;

__device__ __forceinline__ int exact_row(int i) { return static_cast<int>(threadIdx.x) / 8 * EXACT_ROWS + i; }
__device__ __forceinline__ int exact_column(int c) { return static_cast<int>(threadIdx.x) % 8 + c * 8; }

// Calls take(values, first_key) with every tile of the keys at [first_key, keys.end).
template <uint32_t METRIC, class T, class Take>
__device__ __forceinline__ void score_keys(unsigned char* stages, const Source<T>& queries, uint32_t first_query,
                                           const Source<T>& keys, uint32_t first_key, const Take& take) {
    const uint32_t parts = (queries.dim + SLAB<T> - 1) / SLAB<T>;
    for (uint32_t first = first_key; first < keys.end; first += TILE_KEYS) {
        DecidingScore<METRIC> scores[EXACT_ROWS][EXACT_COLUMNS];
        const auto start_copy = [&](uint32_t part) {
            unsigned char* const stage = stages + part % 2 * EXACT_STAGE_BYTES;
            copy_slab<MANY_ROWS>(stage, queries, first_query, part);
            copy_slab<TILE_KEYS>(stage + MANY_ROWS * SLAB_BYTES, keys, first, part);
            ptx::copy_async_commit();
        };
        start_copy(0);
        for (uint32_t part = 0; part < parts; ++part) {
            if (part + 1 < parts) {
                start_copy(part + 1);
            } else {
                ptx::copy_async_commit();
            }
            ptx::copy_async_wait<1>();
            __syncthreads();
            const unsigned char* const query_slab = stages + part % 2 * EXACT_STAGE_BYTES;
            const unsigned char* const key_slab = query_slab + MANY_ROWS * SLAB_BYTES;
            const uint32_t rest = queries.dim - part * SLAB<T>;
            const int chunks = rest < SLAB<T> ? static_cast<int>((rest + CHUNK<T> - 1) / CHUNK<T>) : SLAB_CHUNKS;
            // What a slab holds behind the rows' end is zero, and adds nothing.
            for (int chunk = 0; chunk < chunks; ++chunk) {
                float x[EXACT_ROWS][CHUNK<T>];
#pragma unroll
                for (int i = 0; i < EXACT_ROWS; ++i) {
                    read_chunk<T>(x[i], query_slab, exact_row(i), chunk);
                }
#pragma unroll
                for (int c = 0; c < EXACT_COLUMNS; ++c) {
                    float y[CHUNK<T>];
                    read_chunk<T>(y, key_slab, exact_column(c), chunk);
#pragma unroll
                    for (int e = 0; e < CHUNK<T>; ++e) {
#pragma unroll
                        for (int i = 0; i < EXACT_ROWS; ++i) {
                            scores[i][c].add(x[i][e], y[e]);
                        }
                    }
                }
            }
            // All have read this stage before it is filled again.
            __syncthreads();
        }
        take(scores, first);
    }
}
