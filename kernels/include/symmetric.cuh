// The reducers of the symmetric form: both directions of the loss from one tile of inner products.
//
// Here p.pairs is one direction: its queries are the rows of the first reducer's tiles, its keys those of the second one's.
// All have one temperature, and no denominator weights.
#pragma once

#include "gradient.cuh"

// Σ e^s of both sides: a query's over the keys that stream by, and a key's over the queries of the tile, which are added
// to what the block has of them before.
template <class T, class Shape>
struct BothSums {
    static_assert(Shape::GROUPS == 1 && Shape::ELEMENTS == 16, "a warp has all columns of its rows");
    struct Shared {
        TileFacts queries;
        TileFacts keys;
        float bias[TILE_KEYS];
        BoundedRows bounded_queries;
        BoundedRows bounded_keys;
        // What each warp's rows make of the columns.
        RowPartial columns[TILE_THREADS / 32][TILE_KEYS];
    };

    const ContrastSymmetric& p;
    Shared& shared;
    float scale;
    // Whether the block has nothing of the keys yet.
    bool is_first;
    RowPartial row[2];

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        scale = LOG2_E / temperature_of(p.pairs, 0);
        if (threadIdx.x < MANY_ROWS) {
            const uint32_t number = first_row + threadIdx.x;
            shared.queries.set(threadIdx.x, facts_of_query(p.pairs, number));
            shared.bounded_queries.set(is_bounded_query(p.pairs, number));
        }
        row[0] = {-INFINITY, 0.0f, 0.0f};
        row[1] = row[0];
    }

    __device__ __forceinline__ void publish(uint32_t first_key) {
        if (threadIdx.x < TILE_KEYS) {
            const uint32_t number = first_key + threadIdx.x;
            shared.keys.set(threadIdx.x, facts_of_key(p.pairs, number));
            shared.bias[threadIdx.x] = bias_of_key(p.pairs, number);
            shared.bounded_keys.set(number >= p.pairs.key_count ||
                                    is_bounded(array<float>(p.pairs.key_norms)[number],
                                               largest_of(p.pairs, LONGEST_QUERY), scale, 0.0f));
        }
    }

    // What is 2^(s − from), or 0 for a pair that is closed.
    __device__ __forceinline__ float power(float value, bool is_open, float from) const {
        return is_open ? ptx::exp2_fast(fmaf(value, scale, -from)) : 0.0f;
    }

    // The maximum of a row or of a column's 16 rows, in all lanes that share it.
    static __device__ __forceinline__ float largest_of_lanes(float mine, int first, int end) {
#pragma unroll
        for (int step = first; step < end; step *= 2) {
            mine = fmaxf(mine, __shfl_xor_sync(ALL_LANES, mine, step));
        }
        return mine;
    }

    // Of lanes that are STEP apart each keeps half of the COUNT · 2 columns that they share, with the sum of both or just
    // its own.
    template <bool SUMS, int STEP, int COUNT>
    static __device__ __forceinline__ void halve(float (&columns)[16]) {
        const bool is_upper = (static_cast<int>(lane_index()) & STEP) != 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const float kept = is_upper ? columns[i + COUNT] : columns[i];
            if constexpr (SUMS) {
                const float sent = is_upper ? columns[i] : columns[i + COUNT];
                columns[i] = kept + __shfl_xor_sync(ALL_LANES, sent, STEP);
            } else {
                columns[i] = kept;
            }
        }
    }

    // The 8 lanes that share 16 columns keep two each, from kept_element on.
    template <bool SUMS>
    static __device__ __forceinline__ void scatter(float (&columns)[16]) {
        halve<SUMS, 16, 8>(columns);
        halve<SUMS, 8, 4>(columns);
        halve<SUMS, 4, 2>(columns);
    }

    // The first element of the two that this lane keeps.
    static __device__ __forceinline__ int kept_element() {
        const int lane = static_cast<int>(lane_index());
        return (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2;
    }

    __device__ __forceinline__ void take(const typename Shape::Products& products, const Coefficients<T>&, ValueSums&) {
        const Contrast& pairs = p.pairs;
        Masks masks[2] = {{0xffff0000u}, {0xffff0000u}};
        if (pairs.positives_left_out != 0 || pairs.query_ids != 0 || pairs.left_out_queries != 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                masks[half] = masks_of<false, Shape, true>(pairs, shared.queries, shared.keys, half);
                if (pairs.positives_left_out != 0) {
                    masks[half].close(masks[half].positive());
                }
            }
        }
        const bool with_along = pairs.temperature_gradient != 0;
        const bool all_bounded = shared.bounded_queries.all() && shared.bounded_keys.all();
        float from[16];
        float sum[16];
        float along[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            from[i] = BOUNDED_LARGEST;
            sum[i] = 0.0f;
            along[i] = 0.0f;
        }
        if (!all_bounded) {
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                float largest = -INFINITY;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const bool is_open = masks[half].is_open(i) && shared.queries.number[Shape::row_of(half)] != NONE;
                    largest = is_open ? fmaxf(largest, products.get(i / 2, half * 2 + i % 2) * scale) : largest;
                }
                largest = largest_of_lanes(largest, 4, 32);
                from[i] = shared.bounded_keys.at(static_cast<uint32_t>(Shape::column_of(i))) ? from[i] : largest;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const bool is_there = shared.queries.number[Shape::row_of(half)] != NONE;
            const bool is_bounded = shared.bounded_queries.at(Shape::row_of(half));
            float largest = is_bounded ? BOUNDED_LARGEST : row[half].largest;
            if (!all_bounded) {
                float highest = -INFINITY;
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    const bool is_open = masks[half].is_open(i) && shared.bias[Shape::column_of(i)] > -INFINITY;
                    highest = is_open ? fmaxf(highest, products.get(i / 2, half * 2 + i % 2) * scale) : highest;
                }
                highest = largest_of_lanes(highest, 1, 4);
                largest = is_bounded ? largest : fmaxf(largest, highest);
            }
            // −∞ for both: nothing is there to be rescaled.
            const float factor = largest > row[half].largest ? ptx::exp2_fast(row[half].largest - largest) : 1.0f;
            row[half] = {largest, row[half].sum * factor, row[half].along * factor};
            float own = 0.0f;
            float own_along = 0.0f;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const float value = products.get(i / 2, half * 2 + i % 2);
                const bool is_open = masks[half].is_open(i);
                const bool is_valid = shared.bias[Shape::column_of(i)] > -INFINITY;
                float of_row;
                float of_column;
                if (all_bounded) {
                    const float both = power(value, is_open, BOUNDED_LARGEST);
                    of_row = is_valid ? both : 0.0f;
                    of_column = is_there ? both : 0.0f;
                } else {
                    of_row = power(value, is_open && is_valid, largest);
                    of_column = power(value, is_open && is_there, from[i]);
                }
                own += of_row;
                sum[i] += of_column;
                if (with_along) {
                    own_along = fmaf(of_row, value, own_along);
                    along[i] = fmaf(of_column, value, along[i]);
                }
            }
            row[half].sum += own;
            row[half].along += own_along;
        }
        scatter<false>(from);
        scatter<true>(sum);
        if (with_along) {
            scatter<true>(along);
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            shared.columns[threadIdx.x / 32][Shape::column_of(kept_element() + k)] = {from[k], sum[k], along[k]};
        }
        __syncthreads();
        if (threadIdx.x < TILE_KEYS && shared.keys.number[threadIdx.x] != NONE) {
            RowPartial column = shared.columns[0][threadIdx.x];
            for (uint32_t warp = 1; warp < TILE_THREADS / 32; ++warp) {
                join(column, shared.columns[warp][threadIdx.x]);
            }
            const uint64_t place =
                static_cast<uint64_t>(shared.keys.number[threadIdx.x]) * p.query_splits + blockIdx.x;
            RowPartial& all = output<RowPartial>(p.key_partials)[place];
            if (!is_first) {
                join(column, all);
            }
            all = column;
        }
    }

    // Adds the parts of a row in their order and writes them.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            RowPartial mine = row[half];
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                mine.sum += __shfl_xor_sync(ALL_LANES, mine.sum, step);
                mine.along += __shfl_xor_sync(ALL_LANES, mine.along, step);
            }
            const uint32_t query = shared.queries.number[Shape::row_of(half)];
            if (lane_index() % 4 == 0 && query != NONE) {
                const uint64_t place = static_cast<uint64_t>(query) * p.pairs.splits + blockIdx.y;
                output<RowPartial>(p.pairs.partials)[place] = mine;
            }
        }
        is_first = false;
    }
};

// Gradients of keys by both directions: g (A p − a) / τ of the queries' losses and of the keys' own.
template <class T, class Shape>
struct BothGradient {
    // What a row has in its own loss's coefficients.
    struct Weights {
        float log_sum_exp[TILE_KEYS];
        // A g / τ, or that over Σ e^s where scores are bounded.
        float dense[TILE_KEYS];
        float target[TILE_KEYS];
        uint32_t is_open[TILE_KEYS];

        __device__ __forceinline__ void set(uint32_t at, const QueryWeights& its, bool is_open_row, bool bounded) {
            log_sum_exp[at] = its.log_sum_exp;
            dense[at] = bounded && its.mass != 0.0f ? its.mass * ptx::exp2_fast(-its.log_sum_exp) : its.mass;
            target[at] = its.target;
            is_open[at] = is_open_row ? 1 : 0;
        }
    };
    struct Common {
        float scale;
        // Of the coefficients.
        float unit;
        // Whether all scores are, so that both directions share one e^s.
        uint32_t bounded;
    };
    // In shared memory, as the sums of a sweep leave no registers for them.
    struct Shared {
        TileFacts keys;
        TileFacts queries;
        Weights of_keys;
        Weights of_queries;
        Common common;
    };

    const ContrastSymmetric& p;
    Shared& shared;

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        if (threadIdx.x < MANY_ROWS) {
            const float scale = LOG2_E / temperature_of(p.pairs, 0);
            const float longest = sqrtf(largest_of(p.pairs, LONGEST_QUERY));
            const Common common{scale, unit_for(__uint_as_float(~*array<uint32_t>(p.largest))),
                                is_bounded(longest, largest_of(p.pairs, LONGEST_KEY), scale, 0.0f) ? 1u : 0u};
            if (threadIdx.x == 0) {
                shared.common = common;
            }
            const uint32_t number = first_row + threadIdx.x;
            shared.keys.set(threadIdx.x, facts_of_key(p.pairs, number));
            const bool is_there = number < p.pairs.key_count;
            shared.of_keys.set(threadIdx.x,
                               weights(common, number, is_there, p.key_upstream, p.key_log_sum_exp, p.key_mass,
                                       p.key_inverse_normalizer),
                               is_there && bit_at(p.pairs.valid, number), common.bounded != 0);
        }
    }

    __device__ __forceinline__ void publish(uint32_t first_query) {
        if (threadIdx.x < TILE_KEYS) {
            const uint32_t number = first_query + threadIdx.x;
            shared.queries.set(threadIdx.x, facts_of_query(p.pairs, number));
            const bool is_there = number < p.pairs.query_count;
            shared.of_queries.set(threadIdx.x,
                                  weights(shared.common, number, is_there, p.pairs.upstream, p.pairs.log_sum_exp, p.pairs.mass,
                                          p.pairs.inverse_normalizer),
                                  is_there && bit_at(p.query_valid, number), shared.common.bounded != 0);
        }
    }

    __device__ __forceinline__ QueryWeights weights(const Common& common, uint32_t row, bool is_there, uint64_t upstream,
                                                    uint64_t log_sum_exp, uint64_t mass,
                                                    uint64_t inverse_normalizer) const {
        if (!is_there || !(array<float>(inverse_normalizer)[row] > 0.0f)) {
            return {common.scale, INFINITY, 0.0f, 0.0f};
        }
        const float factor = array<float>(upstream)[row] / temperature_of(p.pairs, 0) * common.unit;
        return {common.scale, array<float>(log_sum_exp)[row] * LOG2_E, array<float>(mass)[row] * factor,
                array<float>(inverse_normalizer)[row] * factor};
    }

    // A p of one direction. −∞ − (−∞) only where the mass is 0: an empty denominator.
    __device__ __forceinline__ float dense(const Weights& its, uint32_t at, float value) const {
        const float mass = its.dense[at];
        return mass != 0.0f ? mass * ptx::exp2_fast(fmaf(value, shared.common.scale, -its.log_sum_exp[at])) : 0.0f;
    }

    __device__ __forceinline__ float target(const Weights& its, uint32_t at, float value) const {
        const float target = its.target[at];
        if (p.pairs.positives_left_out == 0 || target == 0.0f) {
            return target;
        }
        return target * margin_of((its.log_sum_exp[at] - value * shared.common.scale) * LN_2).sigmoid;
    }

    // Of a pair with this inner product; `weight` is that of a positive, else 0.
    __device__ __forceinline__ float coefficient(float value, uint32_t key, uint32_t query, bool is_open,
                                                 float weight) const {
        float softmax = 0.0f;
        if (is_open && shared.of_keys.is_open[key] != 0 && shared.of_queries.is_open[query] != 0) {
            softmax = shared.common.bounded != 0 ? ptx::exp2_fast(value * shared.common.scale) * (shared.of_queries.dense[query] + shared.of_keys.dense[key])
                              : dense(shared.of_queries, query, value) + dense(shared.of_keys, key, value);
        }
        if (weight == 0.0f) {
            return softmax;
        }
        return fmaf(-weight, target(shared.of_queries, query, value) + target(shared.of_keys, key, value), softmax);
    }

    __device__ __forceinline__ void take(const typename Shape::Products& products, const Coefficients<T>& coefficients,
                                         ValueSums&) {
        float weight[2][Shape::ELEMENTS];
        Masks masks[2];
        weigh_positives<Shape, true>(p.pairs, shared.keys, shared.queries, masks, weight);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; i += 2) {
                float tile[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    tile[k] = coefficient(products.get(i / 2, half * 2 + k), Shape::row_of(half),
                                          static_cast<uint32_t>(Shape::column_of(i + k)), masks[half].is_open(i + k),
                                          weight[half][i + k]);
                }
                coefficients.set(Shape::row_of(half), Shape::column_of(i), tile[0], tile[1]);
            }
        }
    }
};
