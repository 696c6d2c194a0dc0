// The reducers of `divergence`: tiles of inner products of two sides become the statistics of both softmaxes, and
// coefficients of the student's gradients.
//
// Scores are in units of ln 2 here: b = ⟨x, y⟩ log₂e / (τ T) of the student and a of the teacher, so that e^b is one
// instruction.
#pragma once

#include "floats.cuh"
#include "pairs.cuh"
#include "sweep.cuh"
#include "units.cuh"

// The sides, as indices of arrays.
constexpr int STUDENT = 0;
constexpr int TEACHER = 1;

// The rows or columns of a tile: their numbers, NONE for those that are not compared at all, and their ids.
struct TileNames {
    static_assert(MANY_ROWS == TILE_KEYS, "as many rows as columns");
    uint32_t number[TILE_KEYS];
    uint32_t id[TILE_KEYS];

    __device__ __forceinline__ void set_query(const Divergence& p, uint32_t at, uint32_t query) {
        const bool is_there = query < p.query_count;
        number[at] = is_there ? query : NONE;
        id[at] = is_there && p.query_ids != 0 ? array<uint32_t>(p.query_ids)[query] : 0;
    }

    __device__ __forceinline__ void set_key(const Divergence& p, uint32_t at, uint32_t key) {
        const bool is_there = key < p.key_count && bit_at(p.valid, key);
        number[at] = is_there ? key : NONE;
        id[at] = is_there && p.key_ids != 0 ? array<uint32_t>(p.key_ids)[key] : 0;
    }
};

// One bit for each element of a row that this thread has: whether the pair is compared.
template <class Shape>
__device__ __forceinline__ uint32_t compared(const Divergence& p, const TileNames& rows, const TileNames& columns,
                                             int half) {
    static_assert(Shape::ELEMENTS <= 32, "a bit for each");
    const uint32_t row = rows.number[Shape::row_of(half)];
    const uint32_t row_id = rows.id[Shape::row_of(half)];
    uint32_t bits = 0;
#pragma unroll 1
    for (int i = 0; i < Shape::ELEMENTS; ++i) {
        const int column = Shape::column_of(i);
        const uint32_t number = columns.number[column];
        const bool is_excluded = (p.query_ids != 0 && row_id == columns.id[column]) ||
                                 (p.ignore_diagonal != 0 && row == number);
        bits |= row != NONE && number != NONE && !is_excluded ? 1u << i : 0u;
    }
    return bits;
}

// What a split of the keys knows of a row: Σ e^b = sum · 2^largest of each side; Σ e^a (a − b), or reverse Σ e^b (b − a),
// relative to the maximum of the side that weighs; and the largest |a − b|, −1 without a key.
struct DivergencePartial {
    float largest[2];
    float sum[2];
    float along;
    float widest;
};
static_assert(sizeof(DivergencePartial) == DIVERGENCE_PARTIAL_BYTES, "the host makes room for it");

// What sums relative to a maximum are multiplied by when it grows; −∞ for both, and nothing is there to be rescaled.
__device__ __forceinline__ float growth(float from, float to) {
    return to > -INFINITY ? ptx::exp2_fast(from - to) : 1.0f;
}

// The statistics of every query over the keys that stream by. One group of warps: a row is in four lanes.
template <class T, class Shape>
struct DivergenceSums {
    static_assert(Shape::GROUPS == 1, "nothing crosses groups");
    struct Shared {
        TileNames queries;
        TileNames keys;
    };

    const Divergence& p;
    Shared& shared;
    DivergencePartial row[2];
    // Whether the teacher's maximum is given.
    bool known[2];

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        if (threadIdx.x < MANY_ROWS) {
            shared.queries.set_query(p, threadIdx.x, first_row + threadIdx.x);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t query = first_row + Shape::row_of(half);
            float given = -INFINITY;
            if (p.known != 0 && query < p.query_count) {
                given = array<float>(p.known)[query] * LOG2_E;
            }
            known[half] = given > -INFINITY;
            row[half] = {{-INFINITY, given}, {0.0f, 0.0f}, 0.0f, -1.0f};
        }
    }

    __device__ __forceinline__ void publish(uint32_t first_key) {
        if (threadIdx.x < TILE_KEYS) {
            shared.keys.set_key(p, threadIdx.x, first_key + threadIdx.x);
        }
    }

    __device__ __forceinline__ void take(const typename Shape::Scores (&scores)[2],
                                         const Coefficients<T>&, ValueSums&) {
        const float scale[2] = {__uint_as_float(p.scale), __uint_as_float(p.teacher_scale)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t open = compared<Shape>(p, shared.queries, shared.keys, half);
            DivergencePartial& mine = row[half];
            mine.widest = fmaxf(mine.widest, open != 0 ? 0.0f : -1.0f);
            float from[2];
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                float largest = mine.largest[side];
#pragma unroll
                for (int i = 0; i < Shape::ELEMENTS; ++i) {
                    const float score = scores[side].get(i / 2, half * 2 + i % 2) * scale[side];
                    largest = fmaxf(largest, (open >> i & 1) != 0 ? score : -INFINITY);
                }
                // The same number in all lanes of the row.
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
                if (side == TEACHER && known[half]) {
                    largest = mine.largest[side];
                }
                const float factor = growth(mine.largest[side], largest);
                mine.largest[side] = largest;
                mine.sum[side] *= factor;
                mine.along *= (p.reverse != 0) == (side == STUDENT) ? factor : 1.0f;
                from[side] = largest > -INFINITY ? largest : 0.0f;
            }
            // A tile's sums are added as one, so that a long sum rounds once a tile.
            float sum[2] = {0.0f, 0.0f};
            float along = 0.0f;
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; ++i) {
                const bool is_open = (open >> i & 1) != 0;
                const float b = scores[STUDENT].get(i / 2, half * 2 + i % 2) * scale[STUDENT];
                const float a = scores[TEACHER].get(i / 2, half * 2 + i % 2) * scale[TEACHER];
                const float of_student = is_open ? ptx::exp2_fast(b - from[STUDENT]) : 0.0f;
                const float of_teacher = is_open ? ptx::exp2_fast(a - from[TEACHER]) : 0.0f;
                const float difference = p.reverse != 0 ? b - a : a - b;
                sum[STUDENT] += of_student;
                sum[TEACHER] += of_teacher;
                along = is_open ? fmaf(p.reverse != 0 ? of_student : of_teacher, difference, along) : along;
                mine.widest = is_open ? fmaxf(mine.widest, fabsf(difference)) : mine.widest;
            }
            mine.sum[STUDENT] += sum[STUDENT];
            mine.sum[TEACHER] += sum[TEACHER];
            mine.along += along;
        }
    }

    // Adds the parts of a row in their order and writes them.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            DivergencePartial& mine = row[half];
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                mine.sum[STUDENT] += __shfl_xor_sync(ALL_LANES, mine.sum[STUDENT], step);
                mine.sum[TEACHER] += __shfl_xor_sync(ALL_LANES, mine.sum[TEACHER], step);
                mine.along += __shfl_xor_sync(ALL_LANES, mine.along, step);
                mine.widest = fmaxf(mine.widest, __shfl_xor_sync(ALL_LANES, mine.widest, step));
            }
            const uint32_t query = shared.queries.number[Shape::row_of(half)];
            if (lane_index() % 4 == 0 && query != NONE) {
                output<DivergencePartial>(p.partials)[static_cast<uint64_t>(query) * p.splits + blockIdx.y] = mine;
            }
        }
    }
};

// Joins the sums of other keys to those of a row.
__device__ __forceinline__ void join(const Divergence& p, DivergencePartial& row, const DivergencePartial& other) {
    const int weighing = p.reverse != 0 ? STUDENT : TEACHER;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const float largest = fmaxf(row.largest[side], other.largest[side]);
        const float mine = growth(row.largest[side], largest);
        const float theirs = growth(other.largest[side], largest);
        row.largest[side] = largest;
        row.sum[side] = row.sum[side] * mine + other.sum[side] * theirs;
        if (side == weighing) {
            row.along = row.along * mine + other.along * theirs;
        }
    }
    row.widest = fmaxf(row.widest, other.widest);
}

// Gradients of the student: forward g (p − q), reverse g p (ln p − ln q − KL), in f32 with the teacher already
// subtracted; only then the coefficient is rounded to 16 bits. ROWS_ARE_KEYS: the tile's rows are keys and its columns
// queries.
template <class T, class Shape, bool ROWS_ARE_KEYS>
struct DivergenceGradient {
    struct Shared {
        TileNames rows;
        TileNames columns;
        // Of the queries: the logarithms of both sums, the mean difference, and what a coefficient is multiplied by.
        float log_sum_exp[2][TILE_KEYS];
        float mean[TILE_KEYS];
        float weight[TILE_KEYS];
    };

    const Divergence& p;
    Shared& shared;

    __device__ __forceinline__ void set_query(TileNames& names, uint32_t at, uint32_t query) {
        names.set_query(p, at, query);
        const float bound = query < p.query_count ? array<float>(p.bound)[query] : 0.0f;
        const bool counts = bound > 0.0f;
        shared.log_sum_exp[STUDENT][at] = counts ? array<float>(p.log_sum_exp)[query] * LOG2_E : 0.0f;
        shared.log_sum_exp[TEACHER][at] = counts ? array<float>(p.teacher_log_sum_exp)[query] * LOG2_E : 0.0f;
        shared.mean[at] = counts ? array<float>(p.mean)[query] : 0.0f;
        if constexpr (ROWS_ARE_KEYS) {
            shared.weight[at] = counts ? array<float>(p.row_weights)[query] : 0.0f;
        } else {
            shared.weight[at] = counts ? unit_for(bound) : 0.0f;
        }
    }

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        if (threadIdx.x < MANY_ROWS) {
            if constexpr (ROWS_ARE_KEYS) {
                shared.rows.set_key(p, threadIdx.x, first_row + threadIdx.x);
            } else {
                set_query(shared.rows, threadIdx.x, first_row + threadIdx.x);
            }
        }
    }

    __device__ __forceinline__ void publish(uint32_t first_column) {
        if (threadIdx.x < TILE_KEYS) {
            if constexpr (ROWS_ARE_KEYS) {
                set_query(shared.columns, threadIdx.x, first_column + threadIdx.x);
            } else {
                shared.columns.set_key(p, threadIdx.x, first_column + threadIdx.x);
            }
        }
    }

    // Of a pair with these inner products.
    __device__ __forceinline__ float coefficient(float student, float teacher, uint32_t query) const {
        const float b = student * __uint_as_float(p.scale);
        const float a = teacher * __uint_as_float(p.teacher_scale);
        const float of_student = ptx::exp2_fast(b - shared.log_sum_exp[STUDENT][query]);
        if (p.reverse != 0) {
            return shared.weight[query] * of_student * (fmaf(b - a, LN_2, -shared.mean[query]));
        }
        return shared.weight[query] * (of_student - ptx::exp2_fast(a - shared.log_sum_exp[TEACHER][query]));
    }

    __device__ __forceinline__ void take(const typename Shape::Scores (&scores)[2],
                                         const Coefficients<T>& coefficients, ValueSums&) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t open = compared<Shape>(p, shared.rows, shared.columns, half);
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; i += 2) {
                float tile[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const uint32_t query = ROWS_ARE_KEYS ? static_cast<uint32_t>(Shape::column_of(i + k))
                                                         : Shape::row_of(half);
                    const float student = scores[STUDENT].get(i / 2, half * 2 + k);
                    const float teacher = scores[TEACHER].get(i / 2, half * 2 + k);
                    tile[k] = (open >> (i + k) & 1) != 0 ? coefficient(student, teacher, query) : 0.0f;
                }
                coefficients.set(Shape::row_of(half), Shape::column_of(i), tile[0], tile[1]);
            }
        }
    }
};
