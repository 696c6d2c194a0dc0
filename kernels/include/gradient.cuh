// The reducer that sums gradients: tiles of coefficients times the rows that stream by.
//
// A coefficient is A p − a, in f32 with the target a already subtracted; only then it is rounded to 16 bits, in units
// of a power of two so that neither range nor subnormal numbers matter. Of f32 rows both factors are split into
// two bfloat16 parts. A tile's product is summed apart and added to the gradient in f32.
#pragma once

#include "softmax.cuh"

// The second product's left operand, 16 rows × 64 columns of coefficients, in the layout of ptx::multiply_add_bf16:
// the sums of a product are in the places that the left operand of the next one takes.
template <class T>
struct Coefficients {
    static constexpr int STEPS = static_cast<int>(TILE_KEYS) / 16;
    Operand<4> steps[STEPS];

    // Elements i and i + 1 of a row's half.
    __device__ __forceinline__ void set(int half, int i, float first, float second) {
        Operand<4>& step = steps[i / 4];
        const int at = i / 2 % 2 * 2 + half;
        if constexpr (sizeof(T) == 4) {
            split_pair<3>(step.high[at], step.low[at], {__float_as_uint(first), __float_as_uint(second)});
        } else {
            step.high[at] = pair_of(first, second, static_cast<const T*>(nullptr));
        }
    }

    static __device__ __forceinline__ uint32_t pair_of(float first, float second, const bf16*) {
        return ptx::f32_to_bf16_pair(first, second);
    }
    static __device__ __forceinline__ uint32_t pair_of(float first, float second, const f16*) {
        return ptx::f32_to_f16_pair(first, second);
    }
};

// The slabs of GRADIENT_DIMS dimensions of the rows that stream by.
template <class T>
constexpr int VALUE_SLABS = static_cast<int>(GRADIENT_DIMS) / SLAB<T>;
constexpr int SLAB_OF_TILE = static_cast<int>(TILE_KEYS * SLAB_BYTES);

// Rows [16 step, 16 step + 16) of a slab as two right operands, of dimensions [dim, dim + 8) and the 8 behind.
template <class T>
__device__ __forceinline__ void load_values(Operand<2> (&b)[2], const unsigned char* slab, int step, int dim) {
    const int lane = static_cast<int>(lane_index());
    if constexpr (sizeof(T) == 2) {
        uint32_t registers[4];
        ptx::load_matrices_4_transposed(registers,
                                        slab_chunk(slab, step * 16 + lane % 16, dim / CHUNK<T> + lane / 16));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            b[i / 2].high[i % 2] = registers[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = step * 16 + i % 2 * 8 + lane % 4 * 2;
            const int at = dim + i / 2 * 8 + lane / 4;
            uint32_t pair[2];
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const unsigned char* const chunk = slab_chunk(slab, row + k, at / CHUNK<T>);
                pair[k] = *reinterpret_cast<const uint32_t*>(chunk + at % CHUNK<T> * 4);
            }
            split_pair<3>(b[i / 2].high[i % 2], b[i / 2].low[i % 2], {pair[0], pair[1]});
        }
    }
}

// What multiplies the exponential of a score and a positive's weight in the coefficients of a query.
struct Weights {
    float scale;
    float log_sum_exp;
    float mass;
    float target;
};

__device__ __forceinline__ Weights weights_of(const Contrast& p, uint32_t query, float factor) {
    // −∞ stands for an empty denominator, and such rows do not count.
    const bool counts = query < p.query_count && array<float>(p.inverse_normalizer)[query] > 0.0f;
    if (!counts) {
        return {0.0f, INFINITY, 0.0f, 0.0f};
    }
    return {LOG2_E / temperature_of(p, query), array<float>(p.log_sum_exp)[query] * LOG2_E,
            array<float>(p.mass)[query] * factor, array<float>(p.inverse_normalizer)[query] * factor};
}

// ROWS_ARE_KEYS: gradients of keys, summed over the queries; else of queries, summed over the keys.
template <bool ROWS_ARE_KEYS, class T>
struct Gradient {
    struct Shared {
        ColumnFacts columns;
        // Of queries, or of keys the first alone, with their bias.
        float scale[TILE_KEYS];
        float log_sum_exp[TILE_KEYS];
        float mass[TILE_KEYS];
        float target[TILE_KEYS];
    };

    const Contrast& p;
    Shared& shared;
    unsigned char* slabs;
    const Source<T>& values;
    // The tile that streams next, and the block's first dimension.
    uint32_t next;
    uint32_t first_dim;
    Facts row[2];
    // Of a query; of a key the scale is its bias.
    Weights own[2];
    // What the coefficients of a query were multiplied by.
    float unit[2];
    // Σ coefficient · ⟨x, y⟩ of a query.
    float along[2];
    float sums[GRADIENT_DIMS / 8][4];

    __device__ __forceinline__ void begin(uint32_t first_row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t number = first_row + tile_row(half);
            along[half] = 0.0f;
            unit[half] = 1.0f;
            if constexpr (ROWS_ARE_KEYS) {
                row[half] = facts_of_key(p, number);
                own[half] = {bias_of_key(p, number), 0.0f, 0.0f, 0.0f};
            } else {
                row[half] = facts_of_query(p, number);
                if (number < p.query_count) {
                    unit[half] = unit_for(array<float>(p.mass)[number]);
                }
                own[half] = weights_of(p, number, unit[half]);
            }
        }
#pragma unroll
        for (int i = 0; i < static_cast<int>(GRADIENT_DIMS) / 2; ++i) {
            sums[i / 4][i % 4] = 0.0f;
        }
    }

    // The rows' other slabs start to arrive with the first slab of the tile, when all have left those before.
    __device__ __forceinline__ void measure(const unsigned char*, const unsigned char*, uint32_t part, bool) {
        if (part == 0) {
#pragma unroll
            for (int i = 0; i < VALUE_SLABS<T>; ++i) {
                copy_slab<static_cast<int>(TILE_KEYS)>(slabs + i * SLAB_OF_TILE, values, next,
                                                       first_dim / SLAB<T> + static_cast<uint32_t>(i));
            }
            next += TILE_KEYS;
        }
    }

    __device__ __forceinline__ void publish(uint32_t first_column, bool) {
        if (threadIdx.x < TILE_KEYS) {
            const uint32_t number = first_column + threadIdx.x;
            if constexpr (ROWS_ARE_KEYS) {
                shared.columns.set(threadIdx.x, facts_of_query(p, number));
                const float factor = number < p.query_count ? array<float>(p.row_weights)[number] : 0.0f;
                const Weights its = weights_of(p, number, factor);
                shared.scale[threadIdx.x] = its.scale;
                shared.log_sum_exp[threadIdx.x] = its.log_sum_exp;
                shared.mass[threadIdx.x] = its.mass;
                shared.target[threadIdx.x] = its.target;
            } else {
                shared.columns.set(threadIdx.x, facts_of_key(p, number));
                shared.scale[threadIdx.x] = bias_of_key(p, number);
            }
        }
        ptx::copy_async_commit();
        ptx::copy_async_wait<0>();
    }

    __device__ __forceinline__ Weights pair_weights(int half, int column) const {
        if constexpr (ROWS_ARE_KEYS) {
            return {shared.scale[column], shared.log_sum_exp[column], shared.mass[column], shared.target[column]};
        } else {
            return own[half];
        }
    }

    __device__ __forceinline__ float pair_bias(int half, int column) const {
        return ROWS_ARE_KEYS ? own[half].scale : shared.scale[column];
    }

    __device__ __forceinline__ void take(const Sums<SCORE_PRODUCTS<T>, Tile::COLUMNS>& products, uint32_t) {
        Coefficients<T> coefficients;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Masks masks = masks_of<ROWS_ARE_KEYS>(p, row[half], shared.columns);
            float tile[ROW_ELEMENTS];
#pragma unroll
            for (int i = 0; i < ROW_ELEMENTS; ++i) {
                const int column = tile_column(i);
                const Weights weights = pair_weights(half, column);
                const float value = products.get(i / 2, half * 2 + i % 2);
                const float score = fmaf(value, weights.scale, pair_bias(half, column));
                const bool open = (masks.open >> i & 1) != 0;
                const float p_ij = open ? ptx::exp2_fast(score - weights.log_sum_exp) : 0.0f;
                const bool subtracts = p.weights == 0 && (masks.positive >> i & 1) != 0;
                tile[i] = fmaf(weights.mass, p_ij, subtracts ? -weights.target : 0.0f);
            }
            if (p.weights != 0) {
                each_weighted<ROWS_ARE_KEYS>(p, row[half], shared.columns, masks.positive, [&](int place, float weight) {
                    const float target = weight * pair_weights(half, tile_column(place)).target;
#pragma unroll
                    for (int i = 0; i < ROW_ELEMENTS; ++i) {
                        tile[i] -= i == place ? target : 0.0f;
                    }
                });
            }
            if constexpr (!ROWS_ARE_KEYS) {
#pragma unroll
                for (int i = 0; i < ROW_ELEMENTS; ++i) {
                    along[half] = fmaf(tile[i], products.get(i / 2, half * 2 + i % 2), along[half]);
                }
            }
#pragma unroll
            for (int i = 0; i < ROW_ELEMENTS; i += 2) {
                coefficients.set(half, i, tile[i], tile[i + 1]);
            }
        }
        // Lanes that walked through different numbers of weights multiply together.
        __syncwarp();
        const T* const type = nullptr;
#pragma unroll
        for (int block = 0; block < static_cast<int>(GRADIENT_DIMS) / 8; block += 2) {
            if (first_dim + static_cast<uint32_t>(block * 8) >= p.dim) {
                break;
            }
            const unsigned char* const slab = slabs + block * 8 / SLAB<T> * SLAB_OF_TILE;
            float added[2][4] = {};
#pragma unroll
            for (int step = 0; step < Coefficients<T>::STEPS; ++step) {
                Operand<2> b[2];
                load_values<T>(b, slab, step, block * 8 % SLAB<T>);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    multiply_add(added[i], coefficients.steps[step].high, b[i].high, type);
                    if constexpr (sizeof(T) == 4) {
                        multiply_add(added[i], coefficients.steps[step].low, b[i].high, type);
                        multiply_add(added[i], coefficients.steps[step].high, b[i].low, type);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sums[block + i / 4][i % 4] += added[i / 4][i % 4];
            }
        }
    }

    // Writes the sums times `factor`, of rows `dim` elements apart.
    __device__ __forceinline__ void write(float* gradient, uint32_t first_row, uint32_t rows, int half,
                                          float factor) const {
        const uint32_t number = first_row + tile_row(half);
        if (number >= rows) {
            return;
        }
        float* const to = gradient + static_cast<uint64_t>(number) * p.dim;
#pragma unroll
        for (int i = 0; i < static_cast<int>(GRADIENT_DIMS) / 4; ++i) {
            const uint32_t dim = first_dim + static_cast<uint32_t>(i / 2 * 8 + i % 2) + lane_index() % 4 * 2;
            if (dim < p.dim) {
                to[dim] = sums[i / 2][half * 2 + i % 2] * factor;
            }
        }
    }
};
