// The reducer that ranks: keeps, for every query, the keys whose deciding score can be the largest.
//
// A candidate is ranked by an upper bound of its deciding score: the tensor-core score plus the bound of bound.cuh
// for this query and the largest keys of the tile. So every key that is not in the final list has a deciding score
// at or below the list's last bound, which is the proof that neighbors_finish checks.
#pragma once

#include "bound.cuh"
#include "list.cuh"
#include "score.cuh"
#include "stream.cuh"

template <int PRODUCTS, int ROWS, class T>
struct Ranker {
    using Shape = TileShape<ROWS>;
    // Lists of a row in a block: with few queries each warp has its own, for its share of the keys.
    static constexpr int LISTS = Shape::MANY ? 1 : 4;

    struct Shared {
        uint64_t rings[TILE_THREADS / 32 * 16][RING];
        // Of every key of the tile: its value is sum · scale + shift, with shift −∞ when it cannot be found.
        float key_scale[TILE_KEYS];
        float key_shift[TILE_KEYS];
        float key_norm[TILE_KEYS];
        float key_rest[TILE_KEYS];
        // Of every query: value = sum of the key · scale + shift.
        float query_scale[ROWS];
        float query_shift[ROWS];
        float query_norm[ROWS];
        float query_rest[ROWS];
    };

    const NeighborsRank& p;
    Shared& shared;
    uint32_t first_row;
    uint32_t end_row;
    uint32_t end_key;
    // The lists of the block's first row, and the distance between rows.
    uint64_t* lists;
    uint64_t list_step;
    // Sums of squares of half a row of the slab: of this thread's key and, in the first tile, of its query.
    float key_squares, key_rests, query_squares, query_rests;
    // The rows lane / 4 and lane / 4 + 8 of the warp.
    Candidates state[2];
    // What the passes before have found is at or above this value; see `search_behind`.
    float cut[2];
    uint32_t query[2];

    __device__ __forceinline__ static int measured_row() { return static_cast<int>(threadIdx.x) / 2; }

    // The warp's rows [16 half-rows], as the lanes share them: row h * 8 + lane / 4.
    __device__ __forceinline__ uint32_t local_row(int half) const {
        return static_cast<uint32_t>(Shape::query() + half * 8) + lane_index() / 4;
    }

    __device__ __forceinline__ uint64_t* ring_of(int half) {
        return shared.rings[threadIdx.x / 32 * 16 + static_cast<uint32_t>(half * 8)];
    }

    __device__ __forceinline__ uint64_t* list_of(int half) const {
        const uint32_t row = static_cast<uint32_t>(Shape::query() + half * 8);
        return lists + row * list_step + (Shape::MANY ? 0 : threadIdx.x / 32 * p.capacity);
    }

    __device__ __forceinline__ void begin() {
        key_squares = key_rests = query_squares = query_rests = 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = first_row + local_row(half);
            state[half] = {CLOSED, 0};
            query[half] = 0;
            cut[half] = INFINITY;
            if (row < end_row) {
                query[half] = numbered(p.pairs.rows, row);
                state[half].last = search_behind(half) ? 0 : CLOSED;
            }
            for (uint32_t r = 0; r < 8; ++r) {
                if (first_row + static_cast<uint32_t>(Shape::query() + half * 8) + r < end_row) {
                    clear_list(list_of(half) + r * list_step, p.capacity);
                }
            }
        }
        __syncwarp();
    }

    // After the first pass, keys that were certainly found before are left out. Says whether any can be left.
    __device__ __forceinline__ bool search_behind(int half) {
        if (p.found == 0) {
            return true;
        }
        const uint64_t last = static_cast<uint64_t>(query[half]) * p.k + p.found - 1;
        cut[half] = value_of(array<float>(p.scores)[last], p.pairs.metric);
        return array<uint32_t>(p.indices)[last] != NONE;
    }

    __device__ __forceinline__ void add_squares(const unsigned char* slab, float& squares, float& rests) const {
        const int first = static_cast<int>(threadIdx.x % 2) * (SLAB_CHUNKS / 2);
#pragma unroll
        for (int chunk = 0; chunk < SLAB_CHUNKS / 2; ++chunk) {
            float values[CHUNK<T>];
            read_chunk<T>(values, slab, measured_row(), first + chunk);
#pragma unroll
            for (int i = 0; i < CHUNK<T>; ++i) {
                squares = fmaf(values[i], values[i], squares);
                if constexpr (sizeof(T) == 4 && PRODUCTS == 1) {
                    const float rest = values[i] - rounded_to_bf16(values[i]);
                    rests = fmaf(rest, rest, rests);
                }
            }
        }
    }

    __device__ __forceinline__ void measure(const unsigned char* queries, const unsigned char* keys, uint32_t,
                                            bool first_tile) {
        add_squares(keys, key_squares, key_rests);
        if (first_tile && measured_row() < ROWS) {
            add_squares(queries, query_squares, query_rests);
        }
    }

    // Joins the two halves of a row's sums and starts anew.
    __device__ __forceinline__ Size take_size(float& squares, float& rests, float& squared_norm) const {
        squared_norm = squares + __shfl_xor_sync(ALL_LANES, squares, 1);
        const float squared_rest = rests + __shfl_xor_sync(ALL_LANES, rests, 1);
        squares = rests = 0.0f;
        return size_of(squared_norm, squared_rest, p.pairs.dim);
    }

    __device__ __forceinline__ bool is_good(float squared_norm) const {
        return squared_norm <= LARGEST_SQUARED_NORM && (p.pairs.metric != COSINE || squared_norm > 0.0f);
    }

    // Scale and shift that make values of sums, for one side.
    __device__ __forceinline__ float scale_of(float squared_norm, bool of_query) const {
        switch (p.pairs.metric) {
            case COSINE: return 1.0f / sqrtf(squared_norm);
            case SQUARED_L2: return of_query ? 2.0f : 1.0f;
            default: return 1.0f;
        }
    }

    __device__ __forceinline__ float shift_of(float squared_norm, bool of_query) const {
        return p.pairs.metric != SQUARED_L2 ? 0.0f : of_query ? -squared_norm : -0.5f * squared_norm;
    }

    __device__ __forceinline__ void publish(uint32_t first_key, bool first_tile) {
        float squared;
        const Size key = take_size(key_squares, key_rests, squared);
        const int row = measured_row();
        const bool writes = threadIdx.x % 2 == 0;
        if (writes) {
            const uint32_t position = first_key + static_cast<uint32_t>(row);
            bool open = position < end_key;
            if (open) {
                const uint32_t number = numbered(p.pairs.key_order, position);
                open = is_allowed(p.pairs, number);
                if (open && !is_good(squared)) {
                    open = false;
                    report_key(number);
                }
            }
            publish_size(shared.key_norm[row], shared.key_rest[row], open ? key : Size{0.0f, 0.0f});
            shared.key_scale[row] = open ? scale_of(squared, false) : 1.0f;
            shared.key_shift[row] = open ? shift_of(squared, false) : -INFINITY;
        }
        if (first_tile && row < ROWS) {
            const Size size = take_size(query_squares, query_rests, squared);
            if (writes) {
                const uint32_t position = first_row + static_cast<uint32_t>(row);
                bool open = position < end_row;
                if (open && !is_good(squared)) {
                    open = false;
                    atomicMin(output<uint32_t>(p.status), numbered(p.pairs.rows, position));
                }
                publish_size(shared.query_norm[row], shared.query_rest[row], size);
                shared.query_scale[row] = open ? scale_of(squared, true) : 1.0f;
                shared.query_shift[row] = open ? shift_of(squared, true) : -INFINITY;
            }
        }
    }

    // With the cosine, sizes are relative to the row's norm.
    __device__ __forceinline__ void publish_size(float& norm, float& rest, Size size) const {
        const bool relative = p.pairs.metric == COSINE;
        norm = relative ? 1.0f + 0x1p-20f : size.norm;
        rest = !relative ? size.rest : size.norm > 0.0f ? size.rest / size.norm * (1.0f + 0x1p-18f) : 0.0f;
    }

    // Keys of a label that no query of this tile has are not looked at, so they may hold anything.
    __device__ __forceinline__ void report_key(uint32_t number) const {
        bool wanted = p.pairs.query_labels == 0;
        for (uint32_t row = first_row; row < end_row && !wanted; ++row) {
            wanted = array<uint32_t>(p.pairs.query_labels)[numbered(p.pairs.rows, row)] ==
                     array<uint32_t>(p.pairs.key_labels)[number];
        }
        if (wanted) {
            atomicMin(output<uint32_t>(p.status) + 1, number);
        }
    }

    __device__ __forceinline__ Size largest_keys() const {
        const uint32_t lane = lane_index();
        Size size{fmaxf(shared.key_norm[lane], shared.key_norm[lane + 32]),
                  fmaxf(shared.key_rest[lane], shared.key_rest[lane + 32])};
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            size.norm = fmaxf(size.norm, __shfl_xor_sync(ALL_LANES, size.norm, step));
            size.rest = fmaxf(size.rest, __shfl_xor_sync(ALL_LANES, size.rest, step));
        }
        return size;
    }

    __device__ __forceinline__ void take(const Sums<PRODUCTS, Shape::COLUMNS>& sums, uint32_t first_key) {
        constexpr int SCORES = Shape::COLUMNS * 2;
        const Size keys = largest_keys();
        const int first_column = Shape::key() + static_cast<int>(lane_index() % 4) * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = local_row(half);
            const float bound = error_bound<PRODUCTS>({shared.query_norm[row], shared.query_rest[row]}, keys,
                                                      p.pairs.dim, p.pairs.metric);
            const float scale = shared.query_scale[row];
            const float shift = shared.query_shift[row] + bound;
            float values[SCORES];
            uint32_t hits = 0;
            float floor = floor_of(state[half]);
#pragma unroll
            for (int i = 0; i < SCORES; ++i) {
                const int column = first_column + i / 2 * 8 + i % 2;
                const float relative = fmaf(sums.get(i / 2, half * 2 + i % 2), shared.key_scale[column],
                                            shared.key_shift[column]);
                values[i] = fmaf(relative, scale, shift);
                // What cannot be found has −∞ or is not a number.
                hits |= values[i] >= floor && values[i] > -INFINITY ? 1u << i : 0u;
            }
            while (__any_sync(ALL_LANES, hits != 0)) {
                uint64_t entry = 0;
                if (hits != 0) {
                    int i;
                    const float value = next_hit(values, hits, i);
                    const uint32_t column = static_cast<uint32_t>(first_column + i / 2 * 8 + i % 2);
                    const uint32_t number = numbered(p.pairs.key_order, first_key + column);
                    if (is_pair(p.pairs, query[half], number) && value - 2.0f * bound <= cut[half]) {
                        entry = make_entry(value, number);
                    }
                }
                if (offer<4>(state[half], ring_of(half) + lane_index() / 4 * RING, entry)) {
                    merge(half, state[half].waiting > RING - 4);
                }
            }
        }
    }

    __device__ __forceinline__ void merge(int half, bool due) {
        merge_rings<4>(state[half], due, ring_of(half), RING, list_of(half), list_step, p.capacity);
    }

    __device__ __forceinline__ void end() {
        merge(0, state[0].waiting != 0);
        merge(1, state[1].waiting != 0);
    }
};
