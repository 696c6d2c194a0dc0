// The mainloop: a tile of queries stays, tiles of keys stream by, and a reducer takes each tile of scores.
//
// The slabs of both come through a ring of STAGES asynchronous copies, so that the next slabs arrive while this
// one is multiplied. The loop does not know what becomes of the scores, and a reducer does not know how they were
// made: a path for other hardware (wgmma, TMA) is another mainloop under the same reducers.
//
// A reducer has
//   measure(queries, keys, part, first_tile)   called by all threads for every slab, to read what it needs of it
//   publish(first_key, first_tile)             called by all threads after a tile's last slab; a barrier follows
//   take(sums, first_key)                      called by all threads: the tile's sums, each in its owner's registers
#pragma once

#include "products.cuh"

// ROWS queries in a tile: each of the four warps has 16 queries × 64 keys of a tile of 64, or of a tile of 16 all
// queries × 16 keys.
template <int ROWS>
struct TileShape {
    static_assert(ROWS == MANY_ROWS || ROWS == FEW_ROWS, "a tile has 64 or 16 queries");
    static constexpr bool MANY = ROWS == MANY_ROWS;
    static constexpr int COLUMNS = MANY ? 8 : 2;
    static constexpr int STAGE_BYTES = (ROWS + static_cast<int>(TILE_KEYS)) * static_cast<int>(SLAB_BYTES);
    static constexpr int STREAM_BYTES = static_cast<int>(STAGES) * STAGE_BYTES;

    // The warp's first query and key in the tile.
    static __device__ __forceinline__ int query() { return MANY ? static_cast<int>(threadIdx.x) / 32 * 16 : 0; }
    static __device__ __forceinline__ int key() { return MANY ? 0 : static_cast<int>(threadIdx.x) / 32 * 16; }
};

// Streams the keys at positions [first_key, keys.end) past the queries from position `first_query` on. Keys may have twice as
// many slabs as queries, which then pass twice: keys as the sum of two rows of 16-bit elements.
template <int PRODUCTS, int ROWS, class T, class Reducer>
__device__ __forceinline__ void stream_keys(Reducer& reducer, unsigned char* stages, const Source<T>& queries,
                                            uint32_t first_query, const Source<T>& keys, uint32_t first_key) {
    using Shape = TileShape<ROWS>;
    const uint32_t query_parts = (queries.dim + SLAB<T> - 1) / SLAB<T>;
    const uint32_t parts = (keys.dim + SLAB<T> - 1) / SLAB<T>;
    const uint32_t tiles = (keys.end - first_key + TILE_KEYS - 1) / TILE_KEYS;
    const uint64_t steps = static_cast<uint64_t>(parts) * tiles;

    uint32_t next_tile = 0;
    uint32_t next_part = 0;
    uint32_t next_stage = 0;
    const auto start_copy = [&] {
        if (next_tile < tiles) {
            unsigned char* const stage = stages + next_stage * Shape::STAGE_BYTES;
            copy_slab<ROWS>(stage, queries, first_query, next_part < query_parts ? next_part : next_part - query_parts);
            copy_slab<TILE_KEYS>(stage + ROWS * SLAB_BYTES, keys, first_key + next_tile * TILE_KEYS, next_part);
            next_stage = next_stage + 1 == STAGES ? 0 : next_stage + 1;
            if (++next_part == parts) {
                next_part = 0;
                ++next_tile;
            }
        }
        ptx::copy_async_commit();
    };
#pragma unroll
    for (uint32_t i = 0; i < STAGES - 1; ++i) {
        start_copy();
    }

    Sums<PRODUCTS, Shape::COLUMNS> sums;
    sums.clear();
    uint32_t tile = 0;
    uint32_t part = 0;
    uint32_t stage = 0;
    for (uint64_t step = 0; step < steps; ++step) {
        ptx::copy_async_wait<STAGES - 2>();
        // The slabs have arrived for all threads, and all have left the stage that is filled next.
        __syncthreads();
        start_copy();
        const unsigned char* const query_slab = stages + stage * Shape::STAGE_BYTES;
        const unsigned char* const key_slab = query_slab + ROWS * SLAB_BYTES;
        multiply_slabs<PRODUCTS, T>(sums, query_slab, Shape::query(), key_slab, Shape::key());
        reducer.measure(query_slab, key_slab, part, tile == 0);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (++part == parts) {
            reducer.publish(first_key + tile * TILE_KEYS, tile == 0);
            __syncthreads();
            reducer.take(sums, first_key + tile * TILE_KEYS);
            sums.clear();
            part = 0;
            ++tile;
        }
    }
    ptx::copy_async_wait<0>();
}
