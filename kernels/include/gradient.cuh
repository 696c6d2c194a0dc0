// The reducer of `contrast` for keys: tiles of inner products become coefficients of the keys' gradient.
//
// A coefficient is g (A p − a) / τ, or left out −g a q / τ for a positive and g (Σ a q) p / τ elsewhere, computed in f32
// with the target already subtracted; only then it is rounded to 16 bits, in units of a power of two so that neither
// range nor subnormal numbers matter.
#pragma once

#include "softmax.cuh"
#include "units.cuh"

// Calls `visit(half, i, weight)` in the thread that has the positive pair, with its weight. All lanes of the warp
// together; `rows` are keys and `columns` queries.
template <class Shape, class Visit>
__device__ __forceinline__ void each_weighted(const Contrast& p, const TileFacts& rows, const TileFacts& columns,
                                              const Masks (&masks)[2], Visit&& visit) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        uint32_t mine = masks[half].positive();
        for (unsigned lanes = __ballot_sync(ALL_LANES, mine != 0); lanes != 0;
             lanes = __ballot_sync(ALL_LANES, mine != 0)) {
            const int leader = __ffs(static_cast<int>(lanes)) - 1;
            const int i = __ffs(static_cast<int>(mine)) - 1;
            const uint32_t query = __shfl_sync(ALL_LANES, mine != 0 ? columns.number[Shape::column_of(i)] : 0, leader);
            const uint32_t key = __shfl_sync(ALL_LANES, rows.number[Shape::row_of(half)], leader);
            float weight = affinity_of(p, query, key);
            if (p.weights != 0) {
                weight *= array<float>(p.weights)[place_in_list(p, query, key)];
            }
            if (static_cast<int>(lane_index()) == leader) {
                visit(half, i, weight);
                mine &= mine - 1;
            }
        }
    }
}

// The masks of this thread's elements, and the weights of the positives among them; 0 of other pairs.
template <class Shape, bool SKIPS = false>
__device__ __forceinline__ void weigh_positives(const Contrast& p, const TileFacts& keys, const TileFacts& queries,
                                                Masks (&masks)[2], float (&weight)[2][Shape::ELEMENTS]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        masks[half] = masks_of<true, Shape, SKIPS>(p, keys, queries, half);
        if (p.positives_left_out != 0) {
            masks[half].close(masks[half].positive());
        }
#pragma unroll
        for (int i = 0; i < Shape::ELEMENTS; ++i) {
            weight[half][i] = p.by_moments == 0 && masks[half].is_positive(i) ? 1.0f : 0.0f;
        }
    }
    if (p.weights != 0 || (p.affinity != AFFINITY_NONE && p.by_moments == 0)) {
        each_weighted<Shape>(p, keys, queries, masks, [&](int half, int place, float its) {
#pragma unroll
            for (int i = 0; i < 2 * Shape::ELEMENTS; ++i) {
                float& mine = weight[i / Shape::ELEMENTS][i % Shape::ELEMENTS];
                mine = i == half * Shape::ELEMENTS + place ? its : mine;
            }
        });
    }
}

// Of a query: what multiplies e^s and a positive's weight in its coefficients.
struct QueryWeights {
    float scale;
    float log_sum_exp;
    float mass;
    float target;
};

__device__ __forceinline__ QueryWeights weights_of(const Contrast& p, uint32_t query) {
    const bool counts = query < p.query_count && array<float>(p.inverse_normalizer)[query] > 0.0f;
    if (!counts) {
        return {0.0f, INFINITY, 0.0f, 0.0f};
    }
    const float factor = array<float>(p.row_weights)[query];
    return {LOG2_E / temperature_of(p, query), array<float>(p.log_sum_exp)[query] * LOG2_E,
            array<float>(p.mass)[query] * factor, array<float>(p.inverse_normalizer)[query] * factor};
}

// Gradients of keys, summed over the queries that stream by.
template <class T, class Shape>
struct KeyGradient {
    struct Shared {
        TileFacts keys;
        float bias[MANY_ROWS];
        TileFacts queries;
        float scale[TILE_KEYS];
        float log_sum_exp[TILE_KEYS];
        float mass[TILE_KEYS];
        float target[TILE_KEYS];
    };

    const Contrast& p;
    Shared& shared;

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin(uint32_t first_row) {
        if (threadIdx.x < MANY_ROWS) {
            shared.keys.set(threadIdx.x, facts_of_key(p, first_row + threadIdx.x));
            shared.bias[threadIdx.x] = bias_of_key(p, first_row + threadIdx.x);
        }
    }

    __device__ __forceinline__ void publish(uint32_t first_query) {
        if (threadIdx.x < TILE_KEYS) {
            const uint32_t number = first_query + threadIdx.x;
            shared.queries.set(threadIdx.x, facts_of_query(p, number));
            const QueryWeights its = weights_of(p, number);
            shared.scale[threadIdx.x] = its.scale;
            shared.log_sum_exp[threadIdx.x] = its.log_sum_exp;
            shared.mass[threadIdx.x] = its.mass;
            shared.target[threadIdx.x] = its.target;
        }
    }

    // Of a pair with this inner product; `weight` is that of a positive, else 0.
    __device__ __forceinline__ float coefficient(float value, int half, int column, bool is_open, float weight) const {
        const float along = value * shared.scale[column];
        // −∞ − (−∞) only where the mass is 0: an empty denominator.
        const float score = along + shared.bias[Shape::row_of(half)] - shared.log_sum_exp[column];
        const float mass = shared.mass[column];
        const float of_softmax = is_open && mass != 0.0f ? ptx::exp2_fast(score) : 0.0f;
        float target = weight * shared.target[column];
        if (p.positives_left_out != 0) {
            target *= margin_of((shared.log_sum_exp[column] - along) * LN_2).sigmoid;
        }
        return fmaf(mass, of_softmax, -target);
    }

    __device__ __forceinline__ void take(const typename Shape::Products& products, const Coefficients<T>& coefficients,
                                         ValueSums&) {
        float weight[2][Shape::ELEMENTS];
        Masks masks[2];
        weigh_positives<Shape>(p, shared.keys, shared.queries, masks, weight);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; i += 2) {
                float tile[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const float value = products.get(i / 2, half * 2 + k);
                    tile[k] = coefficient(value, half, Shape::column_of(i + k), masks[half].is_open(i + k),
                                          weight[half][i + k]);
                }
                coefficients.set(Shape::row_of(half), Shape::column_of(i), tile[0], tile[1]);
            }
        }
    }
};
