// The reducer of `contrast` for queries: tiles of inner products become sums of e^s, and coefficients e^s.
//
// Scores are in units of ln 2 here: s = ⟨x, y⟩ log₂e / τ + log₂ u, so that e^s is one instruction. All sums of a row are
// relative to its running maximum, and rescaled when it grows; or to a constant, where scores are bounded beforehand.
#pragma once

#include <type_traits>

#include "affinity.cuh"
#include "bounded.cuh"
#include "floats.cuh"
#include "positives.cuh"
#include "sweep.cuh"

// What coefficients e^s ≤ 1 are multiplied by before they are rounded to 16 bits: below 2⁻²⁴ of it f16 loses bits.
constexpr float COEFFICIENT_UNIT = 8192.0f;

// What a split of the keys knows of a row: Σ u e^s = sum · 2^largest, and Σ u e^s ⟨x, y⟩ = along · 2^largest over the
// keys whose gradient the sweep sums.
struct RowPartial {
    float largest;
    float sum;
    float along;
};
static_assert(sizeof(RowPartial) == ROW_PARTIAL_BYTES, "the host makes room for it");

// Joins the sums of other keys to those of a row.
__device__ __forceinline__ void join(RowPartial& row, const RowPartial& other) {
    const float largest = fmaxf(row.largest, other.largest);
    if (largest > -INFINITY) {
        const float mine = ptx::exp2_fast(row.largest - largest);
        const float theirs = ptx::exp2_fast(other.largest - largest);
        row.sum = row.sum * mine + other.sum * theirs;
        row.along = row.along * mine + other.along * theirs;
    }
    row.largest = largest;
}

// The rows or columns of a tile: what the pairs need to know of them. In shared memory, as the sums of a sweep leave no
// registers for them.
struct TileFacts {
    static_assert(MANY_ROWS == TILE_KEYS, "as many rows as columns");
    uint32_t number[TILE_KEYS];
    uint32_t subject[TILE_KEYS];
    uint32_t id[TILE_KEYS];
    uint32_t left_out[TILE_KEYS];
    uint32_t group[TILE_KEYS];
    uint32_t eligible[TILE_KEYS];

    __device__ __forceinline__ void set(uint32_t at, const Facts& facts) {
        number[at] = facts.number;
        subject[at] = facts.subject;
        id[at] = facts.id;
        left_out[at] = facts.left_out;
        group[at] = facts.group;
        eligible[at] = facts.eligible;
    }

    __device__ __forceinline__ Facts get(uint32_t at) const {
        return {number[at], subject[at], id[at], left_out[at], group[at], eligible[at]};
    }
};

// Two bits for each element of a row that this thread has: whether it is positive, and 16 bits higher whether it is open.
struct Masks {
    uint32_t bits;

    __device__ __forceinline__ bool is_positive(int i) const { return (bits >> i & 1) != 0; }
    __device__ __forceinline__ bool is_open(int i) const { return (bits >> (16 + i) & 1) != 0; }
    __device__ __forceinline__ uint32_t positive() const { return bits & 0xffff; }
    // Takes elements out of the denominator.
    __device__ __forceinline__ void close(uint32_t elements) { bits &= ~(elements << 16); }
};

// ROWS_ARE_KEYS: the tile's rows are keys and its columns queries. SKIPS: tiles off the diagonal are not looked at, for which
// not every kernel has registers.
template <bool ROWS_ARE_KEYS, class Shape, bool SKIPS = false>
__device__ __forceinline__ Masks masks_of(const Contrast& p, const TileFacts& rows, const TileFacts& columns, int half) {
    static_assert(Shape::ELEMENTS <= 16, "a mask has two bits for each");
    const Facts row = rows.get(Shape::row_of(half));
    // Off the diagonal all pairs are alike.
    if constexpr (SKIPS) {
        if (p.rule == RULE_DIAGONAL && p.query_ids == 0 && p.left_out_queries == 0 && p.query_groups == 0 &&
            rows.number[0] != columns.number[0]) {
            return {0xffff0000u};
        }
    }
    Masks masks{0};
#pragma unroll 1
    for (int i = 0; i < Shape::ELEMENTS; ++i) {
        const Facts column = columns.get(static_cast<uint32_t>(Shape::column_of(i)));
        const Pairing pairing = ROWS_ARE_KEYS ? pairing_of(p, column, row) : pairing_of(p, row, column);
        masks.bits |= (pairing.is_positive ? 1u << i : 0u) | (pairing.is_open ? 1u << (16 + i) : 0u);
    }
    return masks;
}

// Sums of every query over the keys that stream by. Positives add to the sum of e^s unless they are left out, but are
// given the coefficient 0: what they add to the gradient is computed apart (targets.cuh), because little is left of
// p − a where p is near a. With moments nothing is apart.
template <class T, class Shape>
struct RowSums {
    struct Shared {
        TileFacts queries;
        float scale[MANY_ROWS];
        TileFacts keys;
        float bias[TILE_KEYS];
        // Of every group of warps, by row: the maxima of a tile, and at the end its sums.
        float exchange[2][Shape::GROUPS][MANY_ROWS];
        BoundedRows bounded;
        // Of every thread, of its two rows. The sums of gradients leave no registers for them.
        RowPartial parts[2][Shape::THREADS];
    };
    // 16 bits of f16 have no range for coefficients that are relative to a constant.
    static constexpr bool MAY_BE_BOUNDED = !std::is_same_v<T, f16>;

    const Contrast& p;
    Shared& shared;

    // The sums of this thread's elements.
    __device__ __forceinline__ RowPartial& part(int half) const { return shared.parts[half][threadIdx.x]; }

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        if (threadIdx.x < MANY_ROWS) {
            const uint32_t number = first_row + threadIdx.x;
            shared.queries.set(threadIdx.x, facts_of_query(p, number));
            shared.scale[threadIdx.x] = number < p.query_count ? LOG2_E / temperature_of(p, number) : 0.0f;
            shared.bounded.set(MAY_BE_BOUNDED && is_bounded_query(p, number));
        }
        part(0) = {-INFINITY, 0.0f, 0.0f};
        part(1) = part(0);
    }

    __device__ __forceinline__ void publish(uint32_t first_key) {
        if (threadIdx.x < TILE_KEYS) {
            shared.keys.set(threadIdx.x, facts_of_key(p, first_key + threadIdx.x));
            shared.bias[threadIdx.x] = bias_of_key(p, first_key + threadIdx.x);
        }
    }

    __device__ __forceinline__ float score(const typename Shape::Products& products, Masks masks, int half, int i) const {
        const float value = products.get(i / 2, half * 2 + i % 2);
        return masks.is_open(i) ? fmaf(value, shared.scale[Shape::row_of(half)], shared.bias[Shape::column_of(i)]) : -INFINITY;
    }

    // The same number in all threads that have a part of the row.
    __device__ __forceinline__ void share_maxima(float (&largest)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 1));
            largest[half] = fmaxf(largest[half], __shfl_xor_sync(ALL_LANES, largest[half], 2));
        }
        if constexpr (Shape::GROUPS > 1) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (lane_index() % 4 == 0) {
                    shared.exchange[0][Shape::group()][Shape::row_of(half)] = largest[half];
                }
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < 2 * Shape::GROUPS; ++i) {
                largest[i % 2] = fmaxf(largest[i % 2], shared.exchange[0][i / 2][Shape::row_of(i % 2)]);
            }
        }
    }

    __device__ __forceinline__ void take(const typename Shape::Products& products, const Coefficients<T>& coefficients,
                                         ValueSums& sums) {
        Masks masks[2];
        float largest[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            masks[half] = masks_of<false, Shape>(p, shared.queries, shared.keys, half);
            if (p.positives_left_out != 0) {
                masks[half].close(masks[half].positive());
            }
            if (MAY_BE_BOUNDED && shared.bounded.at(Shape::row_of(half))) {
                part(half).largest = BOUNDED_LARGEST;
            }
            largest[half] = part(half).largest;
        }
        // A row's bits are the same whether others of the tile are bounded or not.
        if (!MAY_BE_BOUNDED || !shared.bounded.all()) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const bool bounded = MAY_BE_BOUNDED && shared.bounded.at(Shape::row_of(half));
#pragma unroll
                for (int i = 0; i < Shape::ELEMENTS; ++i) {
                    largest[half] =
                        bounded ? largest[half] : fmaxf(largest[half], score(products, masks[half], half, i));
                }
            }
            share_maxima(largest);
        }
        // Most tiles leave all maxima of a warp as they are.
        const bool grows = largest[0] > part(0).largest || largest[1] > part(1).largest;
        if (__any_sync(ALL_LANES, grows)) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // −∞ for both: nothing is there to be rescaled.
                const float factor = largest[half] > -INFINITY ? ptx::exp2_fast(part(half).largest - largest[half]) : 1.0f;
                part(half) = {largest[half], part(half).sum * factor, part(half).along * factor};
                sums.scale(half, factor);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float from = largest[half] > -INFINITY ? largest[half] : 0.0f;
            float sum = 0.0f;
            float along = 0.0f;
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; i += 2) {
                float tile[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const float e = ptx::exp2_fast(score(products, masks[half], half, i + k) - from);
                    sum += e;
                    tile[k] = p.by_moments == 0 && masks[half].is_positive(i + k) ? 0.0f : e;
                    along = fmaf(tile[k], products.get(i / 2, half * 2 + k), along);
                }
                coefficients.set(Shape::row_of(half), Shape::column_of(i), tile[0] * COEFFICIENT_UNIT,
                                 tile[1] * COEFFICIENT_UNIT);
            }
            part(half).sum += sum;
            part(half).along += along;
        }
    }

    // Adds the parts of a row in their order and writes them.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            RowPartial& mine = part(half);
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                mine.sum += __shfl_xor_sync(ALL_LANES, mine.sum, step);
                mine.along += __shfl_xor_sync(ALL_LANES, mine.along, step);
            }
        }
        if constexpr (Shape::GROUPS > 1) {
            // All have read the maxima of the last tile.
            __syncthreads();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (lane_index() % 4 == 0) {
                    shared.exchange[0][Shape::group()][Shape::row_of(half)] = part(half).sum;
                    shared.exchange[1][Shape::group()][Shape::row_of(half)] = part(half).along;
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t query = shared.queries.number[Shape::row_of(half)];
            if (Shape::group() != 0 || lane_index() % 4 != 0 || query == NONE) {
                continue;
            }
            RowPartial mine = part(half);
#pragma unroll
            for (int group = 1; group < Shape::GROUPS; ++group) {
                mine.sum += shared.exchange[0][group][Shape::row_of(half)];
                mine.along += shared.exchange[1][group][Shape::row_of(half)];
            }
            const uint64_t place = static_cast<uint64_t>(query) * p.splits + blockIdx.y;
            output<RowPartial>(p.partials)[place] = mine;
        }
    }
};
