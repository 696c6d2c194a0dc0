// The reducers of `contrast`: tiles of inner products become sums of a row, or coefficients of a gradient.
//
// Scores are in units of ln 2 here: s = ⟨x, y⟩ log₂e / τ + log₂ u, so that e^s is one instruction.
#pragma once

#include "positives.cuh"
#include "stream.cuh"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float LN_2 = 0.693147180559945309f;

// Products that a score takes: f32 is multiplied as two bfloat16 parts.
template <class T>
constexpr int SCORE_PRODUCTS = sizeof(T) == 4 ? 3 : 1;

using Tile = TileShape<static_cast<int>(MANY_ROWS)>;
// Elements of a tile that a thread has, of each of its two rows.
constexpr int ROW_ELEMENTS = Tile::COLUMNS * 2;

// What a split of the keys knows of a row: Σ u e^s = sum · 2^largest, and of its positives their number, Σ w and
// Σ w ⟨x, y⟩.
struct RowPartial {
    float largest;
    float sum;
    float weight;
    float along;
    uint32_t count;
};
static_assert(sizeof(RowPartial) == ROW_PARTIAL_BYTES, "the host makes room for it");

// Joins the sums of other keys to those of a row.
__device__ __forceinline__ void join(RowPartial& row, const RowPartial& other) {
    const float largest = fmaxf(row.largest, other.largest);
    if (largest > -INFINITY) {
        row.sum = row.sum * ptx::exp2_fast(row.largest - largest) + other.sum * ptx::exp2_fast(other.largest - largest);
    }
    row.largest = largest;
    row.weight += other.weight;
    row.along += other.along;
    row.count += other.count;
}

// The power of two that brings numbers up to `largest` just below 2¹⁴, where 16-bit storage is at its best.
__device__ __forceinline__ float unit_for(float largest) {
    const uint32_t exponent = __float_as_uint(largest) >> 23 & 0xff;
    return __uint_as_float((267 - (exponent < 40 ? 40 : exponent > 227 ? 227 : exponent)) << 23);
}

// The columns of a tile: what the pairs need to know of them.
struct ColumnFacts {
    uint32_t number[TILE_KEYS];
    uint32_t label[TILE_KEYS];
    uint32_t id[TILE_KEYS];
    uint32_t left_out[TILE_KEYS];
    uint32_t eligible[TILE_KEYS];

    __device__ __forceinline__ void set(uint32_t column, const Facts& facts) {
        number[column] = facts.number;
        label[column] = facts.label;
        id[column] = facts.id;
        left_out[column] = facts.left_out;
        eligible[column] = facts.eligible;
    }

    __device__ __forceinline__ Facts get(int column) const {
        return {number[column], label[column], id[column], left_out[column], eligible[column]};
    }
};

// The tile's row of this thread's first or second half, and the column of its element i of ROW_ELEMENTS.
__device__ __forceinline__ uint32_t tile_row(int half) {
    return static_cast<uint32_t>(Tile::query() + half * 8) + lane_index() / 4;
}

__device__ __forceinline__ int tile_column(int i) {
    return static_cast<int>(lane_index() % 4) * 2 + i / 2 * 8 + i % 2;
}

// One bit for each element of a row that this thread has.
struct Masks {
    uint32_t positive;
    uint32_t open;
};

// ROWS_ARE_KEYS: the tile's rows are keys and its columns queries.
template <bool ROWS_ARE_KEYS>
__device__ __forceinline__ Masks masks_of(const Contrast& p, const Facts& row, const ColumnFacts& columns) {
    Masks masks{0, 0};
#pragma unroll 1
    for (int i = 0; i < ROW_ELEMENTS; ++i) {
        const Facts column = columns.get(tile_column(i));
        const Pairing pairing = ROWS_ARE_KEYS ? pairing_of(p, column, row) : pairing_of(p, row, column);
        masks.positive |= pairing.is_positive ? 1u << i : 0u;
        masks.open |= pairing.is_open ? 1u << i : 0u;
    }
    return masks;
}

// Calls `visit(i, weight)` for the positives of a mask, when they have weights.
template <bool ROWS_ARE_KEYS, class Visit>
__device__ __forceinline__ void each_weighted(const Contrast& p, const Facts& row, const ColumnFacts& columns,
                                              uint32_t positive, Visit&& visit) {
    while (positive != 0) {
        const int i = __ffs(static_cast<int>(positive)) - 1;
        positive &= positive - 1;
        const uint32_t column = columns.number[tile_column(i)];
        const uint32_t place = ROWS_ARE_KEYS ? place_in_list(p, column, row.number) : place_in_list(p, row.number, column);
        visit(i, array<float>(p.weights)[place]);
    }
}

// Sums of every query over the keys that stream by.
template <class T>
struct RowSums {
    struct Shared {
        ColumnFacts keys;
        float bias[TILE_KEYS];
    };

    const Contrast& p;
    Shared& shared;
    Facts query[2];
    float scale[2];
    RowPartial row[2];

    __device__ __forceinline__ void begin(uint32_t first_row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t number = first_row + tile_row(half);
            query[half] = facts_of_query(p, number);
            scale[half] = number < p.query_count ? LOG2_E / temperature_of(p, number) : 0.0f;
            row[half] = {-INFINITY, 0.0f, 0.0f, 0.0f, 0};
        }
    }

    __device__ __forceinline__ void measure(const unsigned char*, const unsigned char*, uint32_t, bool) {}

    __device__ __forceinline__ void publish(uint32_t first_key, bool) {
        if (threadIdx.x < TILE_KEYS) {
            shared.keys.set(threadIdx.x, facts_of_key(p, first_key + threadIdx.x));
            shared.bias[threadIdx.x] = bias_of_key(p, first_key + threadIdx.x);
        }
    }

    __device__ __forceinline__ void take(const Sums<SCORE_PRODUCTS<T>, Tile::COLUMNS>& sums, uint32_t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Masks masks = masks_of<false>(p, query[half], shared.keys);
            RowPartial& mine = row[half];
            float values[ROW_ELEMENTS];
            float scores[ROW_ELEMENTS];
            float largest = mine.largest;
            float along = 0.0f;
#pragma unroll
            for (int i = 0; i < ROW_ELEMENTS; ++i) {
                values[i] = sums.get(i / 2, half * 2 + i % 2);
                const float score = fmaf(values[i], scale[half], shared.bias[tile_column(i)]);
                scores[i] = (masks.open >> i & 1) != 0 ? score : -INFINITY;
                largest = fmaxf(largest, scores[i]);
                along += (masks.positive >> i & 1) != 0 ? values[i] : 0.0f;
            }
            if (largest > -INFINITY) {
                float sum = 0.0f;
#pragma unroll
                for (int i = 0; i < ROW_ELEMENTS; ++i) {
                    sum += ptx::exp2_fast(scores[i] - largest);
                }
                mine.sum = mine.sum * ptx::exp2_fast(mine.largest - largest) + sum;
                mine.largest = largest;
            }
            const uint32_t count = static_cast<uint32_t>(__popc(masks.positive));
            mine.count += count;
            if (p.weights == 0) {
                mine.weight += static_cast<float>(count);
                mine.along += along;
            } else {
                each_weighted<false>(p, query[half], shared.keys, masks.positive, [&](int place, float weight) {
                    float value = values[0];
#pragma unroll
                    for (int i = 1; i < ROW_ELEMENTS; ++i) {
                        value = i == place ? values[i] : value;
                    }
                    mine.weight += weight;
                    mine.along = fmaf(weight, value, mine.along);
                });
            }
        }
    }

    // Joins the four lanes of a row and writes it.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            RowPartial& mine = row[half];
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                const RowPartial other{__shfl_xor_sync(ALL_LANES, mine.largest, step),
                                       __shfl_xor_sync(ALL_LANES, mine.sum, step),
                                       __shfl_xor_sync(ALL_LANES, mine.weight, step),
                                       __shfl_xor_sync(ALL_LANES, mine.along, step),
                                       __shfl_xor_sync(ALL_LANES, mine.count, step)};
                join(mine, other);
            }
            if (lane_index() % 4 == 0 && query[half].number != NONE) {
                const uint64_t place = static_cast<uint64_t>(query[half].number) * p.splits + blockIdx.y;
                output<RowPartial>(p.partials)[place] = mine;
            }
        }
    }
};
