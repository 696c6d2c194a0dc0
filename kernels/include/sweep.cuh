// The mainloop of sums over keys: a tile of rows stays, tiles of columns stream by; their inner products become
// coefficients, and the coefficients times the columns are added to the sums of the rows.
//
//   sums[row][d] += Σ_column c(⟨row, column⟩) column[d]
//
// A block has GROUPS groups of four warps. For the inner products a warp has 16 rows × 64 / GROUPS columns; for the sums
// it has the same 16 rows × GRADIENT_DIMS dimensions, so that a block holds 64 rows × GROUPS · GRADIENT_DIMS sums in its
// registers and each inner product is computed once for all of them. Coefficients cross over in shared memory.
//
// Coefficients are rounded to 16 bits there: the type of the columns, and of f32 columns two bfloat16 parts of both. A
// product with half of a tile is summed apart and added in f32.
//
// A reducer has
//   publish(first_column)                 called by all threads after a tile's last slab; a barrier follows
//   take(products, coefficients, sums)    called by all threads: from the tile's products to coefficients; may rescale
//                                         the sums of its rows; a barrier follows
// A sweep of two sides has scores of both, an array of two, for products; the columns that are summed are those of the first.
#pragma once

#include "products.cuh"
#include "warp.cuh"

// Products that a score takes: f32 is multiplied as two bfloat16 parts.
template <class T>
constexpr int SCORE_PRODUCTS = sizeof(T) == 4 ? 3 : 1;

// A tile of coefficients, 64 × 64 of 16 bits, and of f32 columns the low parts behind.
constexpr int COEFFICIENT_BYTES = static_cast<int>(MANY_ROWS * SLAB_BYTES);

// The scores of one side of a sweep of two, which wait for those of the other: of f32 half as many registers as their sums.
template <int BLOCKS>
struct TileScores {
    float at[BLOCKS][4];

    template <class Products>
    __device__ __forceinline__ void take(const Products& products) {
#pragma unroll
        for (int i = 0; i < BLOCKS * 4; ++i) {
            at[i / 4][i % 4] = products.get(i / 4, i % 4);
        }
    }

    __device__ __forceinline__ float get(int n, int element) const { return at[n][element]; }
};

template <class T, int GROUPS_>
struct Sweep {
    static_assert(GROUPS_ == 1 || GROUPS_ == 2 || GROUPS_ == 4, "1, 2 or 4 groups of four warps");
    static constexpr int GROUPS = GROUPS_;
    static constexpr int THREADS = GROUPS * static_cast<int>(TILE_THREADS);
    static constexpr int ROWS = static_cast<int>(MANY_ROWS);
    static constexpr int WIDTH = static_cast<int>(TILE_KEYS);
    // Columns of a warp, and in blocks of 8.
    static constexpr int COLUMNS = WIDTH / GROUPS;
    static constexpr int BLOCKS = COLUMNS / 8;
    // Elements of a row that a thread has, of each of its two rows.
    static constexpr int ELEMENTS = BLOCKS * 2;
    // A stage holds a slab of both sides, or one of the columns for every group.
    static constexpr int SLAB_OF_TILE = WIDTH * static_cast<int>(SLAB_BYTES);
    static constexpr int STAGE_SLABS = GROUPS > 2 ? GROUPS : 2;
    static constexpr int STAGE_BYTES = STAGE_SLABS * SLAB_OF_TILE;
    // Two stages of the largest block are what fits into 99 KiB.
    static constexpr int RING_STAGES = GROUPS == 4 ? 2 : static_cast<int>(STAGES);
    static constexpr int COEFFICIENTS_AT = RING_STAGES * STAGE_BYTES;
    static constexpr int BYTES = COEFFICIENTS_AT + (sizeof(T) == 4 ? 2 : 1) * COEFFICIENT_BYTES;
    // Slabs of the dimensions that a group sums.
    static constexpr int VALUE_STEPS = static_cast<int>(GRADIENT_DIMS) / SLAB<T>;

    using Products = Sums<SCORE_PRODUCTS<T>, BLOCKS>;
    using Scores = TileScores<BLOCKS>;

    static __device__ __forceinline__ int group() { return static_cast<int>(threadIdx.x / TILE_THREADS); }
    // The warp's first row in the tile.
    static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x / 32 % 4) * 16; }
    // The row of this thread's first or second half, and the column of its element i of ELEMENTS.
    static __device__ __forceinline__ uint32_t row_of(int half) {
        return static_cast<uint32_t>(row() + half * 8) + lane_index() / 4;
    }
    static __device__ __forceinline__ int column_of(int i) {
        return group() * COLUMNS + static_cast<int>(lane_index() % 4) * 2 + i / 2 * 8 + i % 2;
    }
};

// The tile of coefficients in shared memory, laid out as a slab of 16-bit elements.
template <class T>
struct Coefficients {
    // Steps of 16 columns in a tile, and how many of them registers hold at once.
    static constexpr int STEPS = static_cast<int>(TILE_KEYS) / 16;
    static constexpr int HELD = STEPS / 2;

    unsigned char* bytes;

    // Two neighboring columns of a row, the first one even.
    __device__ __forceinline__ void set(uint32_t row, int column, float first, float second) const {
        unsigned char* const at = slab_chunk(bytes, static_cast<int>(row), column / 8) + column % 8 * 2;
        if constexpr (sizeof(T) == 4) {
            uint32_t high;
            uint32_t low;
            split_pair<3>(high, low, {__float_as_uint(first), __float_as_uint(second)});
            *reinterpret_cast<uint32_t*>(at) = high;
            *reinterpret_cast<uint32_t*>(at + COEFFICIENT_BYTES) = low;
        } else {
            *reinterpret_cast<uint32_t*>(at) = pair_of(first, second, static_cast<const T*>(nullptr));
        }
    }

    // Rows [row, row + 16) as left operands of the steps from `first` on.
    __device__ __forceinline__ void load(Operand<4> (&steps)[HELD], int row, int first) const {
        const int lane = static_cast<int>(lane_index());
#pragma unroll
        for (int step = 0; step < HELD; ++step) {
            const unsigned char* const at = slab_chunk(bytes, row + lane % 16, (first + step) * 2 + lane / 16);
            ptx::load_matrices_4(steps[step].high, at);
            if constexpr (sizeof(T) == 4) {
                ptx::load_matrices_4(steps[step].low, at + COEFFICIENT_BYTES);
            }
        }
    }

    static __device__ __forceinline__ uint32_t pair_of(float first, float second, const bf16*) {
        return ptx::f32_to_bf16_pair(first, second);
    }
    static __device__ __forceinline__ uint32_t pair_of(float first, float second, const f16*) {
        return ptx::f32_to_f16_pair(first, second);
    }
};

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

// What a thread holds of the sums: of block n of 8 dimensions of its group the elements of ptx::multiply_add_bf16.
struct ValueSums {
    static constexpr int BLOCKS = static_cast<int>(GRADIENT_DIMS) / 8;
    float at[BLOCKS][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < BLOCKS * 4; ++i) {
            at[i / 4][i % 4] = 0.0f;
        }
    }

    __device__ __forceinline__ void scale(int half, float factor) {
#pragma unroll
        for (int i = 0; i < BLOCKS * 2; ++i) {
            at[i / 2][half * 2 + i % 2] *= factor;
        }
    }

    // Adds the tile's product with a slab of the columns, of the dimensions from block `first` on.
    template <class T>
    __device__ __forceinline__ void add(const Coefficients<T>& coefficients, int row, const unsigned char* slab,
                                        int first) {
        const T* const type = nullptr;
#pragma unroll
        for (int held = 0; held < Coefficients<T>::STEPS; held += Coefficients<T>::HELD) {
            Operand<4> steps[Coefficients<T>::HELD];
            coefficients.load(steps, row, held);
#pragma unroll
            for (int block = 0; block < SLAB<T> / 8; block += 2) {
                float added[2][4] = {};
#pragma unroll
                for (int step = 0; step < Coefficients<T>::HELD; ++step) {
                    Operand<2> b[2];
                    load_values<T>(b, slab, held + step, block * 8);
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        multiply_add(added[i], steps[step].high, b[i].high, type);
                        if constexpr (sizeof(T) == 4) {
                            multiply_add(added[i], steps[step].low, b[i].high, type);
                            multiply_add(added[i], steps[step].high, b[i].low, type);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    at[first + block + i / 4][i % 4] += added[i / 4][i % 4];
                }
            }
        }
    }

    // Writes the sums of a row's half times `factor` to a row of `dim` floats, where `first_dim` is the group's.
    __device__ __forceinline__ void write(float* to, int half, uint32_t first_dim, uint32_t dim, float factor) const {
#pragma unroll
        for (int i = 0; i < BLOCKS * 2; ++i) {
            const uint32_t d = first_dim + static_cast<uint32_t>(i / 2 * 8 + i % 2) + lane_index() % 4 * 2;
            if (d < dim) {
                to[d] = at[i / 2][half * 2 + i % 2] * factor;
            }
        }
    }
};

// Streams the columns at positions [first_column, columns.end) past the rows from `first_row` on, of one side or of two,
// whose columns are as many. With `values` the dimensions of the first side's columns from `first_dim` on, a multiple of
// GRADIENT_DIMS, are multiplied by the coefficients and summed. TWICE: rows may have twice as many slabs as columns, which
// then pass twice: rows as the sum of two rows of 16-bit elements.
template <class Shape, int SIDES, bool TWICE = false, class T, class Reducer>
__device__ __forceinline__ void sweep_sides(Reducer& reducer, ValueSums& sums, unsigned char* shared,
                                            const Source<T> (&rows)[SIDES], uint32_t first_row,
                                            const Source<T> (&columns)[SIDES], uint32_t first_column, bool values,
                                            uint32_t first_dim) {
    constexpr int THREADS = Shape::THREADS;
    constexpr uint32_t VALUE_STEPS = static_cast<uint32_t>(Shape::VALUE_STEPS);
    uint32_t parts[SIDES];
    uint32_t steps = values ? VALUE_STEPS : 0;
#pragma unroll
    for (int side = 0; side < SIDES; ++side) {
        parts[side] = (rows[side].dim + SLAB<T> - 1) / SLAB<T>;
        steps += parts[side];
    }
    const uint32_t tiles = (columns[0].end - first_column + TILE_KEYS - 1) / TILE_KEYS;
    const Coefficients<T> coefficients{shared + Shape::COEFFICIENTS_AT};

    uint32_t next_tile = 0;
    uint32_t next_step = 0;
    uint32_t next_stage = 0;
    const auto start_copy = [&] {
        if (next_tile < tiles) {
            unsigned char* const stage = shared + next_stage * Shape::STAGE_BYTES;
            const uint32_t column = first_column + next_tile * TILE_KEYS;
            const auto copy_side = [&](int side, uint32_t part) {
                const uint32_t passed = (columns[side].dim + SLAB<T> - 1) / SLAB<T>;
                copy_slab<Shape::ROWS, THREADS>(stage, rows[side], first_row, part);
                copy_slab<Shape::WIDTH, THREADS>(stage + Shape::SLAB_OF_TILE, columns[side], column,
                                                 TWICE && part >= passed ? part - passed : part);
            };
            // The step within the side whose turn it is, or within the values.
            uint32_t step = next_step;
            bool scores = false;
#pragma unroll
            for (int side = 0; side < SIDES; ++side) {
                if (!scores && step < parts[side]) {
                    scores = true;
                    copy_side(side, step);
                } else if (!scores) {
                    step -= parts[side];
                }
            }
            if (!scores) {
#pragma unroll
                for (int group = 0; group < Shape::GROUPS; ++group) {
                    const uint32_t part = first_dim / SLAB<T> + static_cast<uint32_t>(group) * VALUE_STEPS;
                    copy_slab<Shape::WIDTH, THREADS>(stage + group * Shape::SLAB_OF_TILE, columns[0], column,
                                                     part + step);
                }
            }
            next_stage = next_stage + 1 == Shape::RING_STAGES ? 0 : next_stage + 1;
            if (++next_step == steps) {
                next_step = 0;
                ++next_tile;
            }
        }
        ptx::copy_async_commit();
    };
    uint32_t stage = 0;
    // The stage whose slabs have arrived for all threads; all have left the stage that is filled next.
    const auto next_slabs = [&] {
        ptx::copy_async_wait<Shape::RING_STAGES - 2>();
        __syncthreads();
        start_copy();
        const unsigned char* const slabs = shared + stage * Shape::STAGE_BYTES;
        stage = stage + 1 == Shape::RING_STAGES ? 0 : stage + 1;
        return slabs;
    };
#pragma unroll
    for (int i = 0; i < Shape::RING_STAGES - 1; ++i) {
        start_copy();
    }

    for (uint32_t tile = 0; tile < tiles; ++tile) {
        typename Shape::Products products;
        [[maybe_unused]] typename Shape::Scores scores[SIDES];
#pragma unroll
        for (int side = 0; side < SIDES; ++side) {
            products.clear();
            for (uint32_t part = 0; part < parts[side]; ++part) {
                const unsigned char* const slabs = next_slabs();
                multiply_slabs<SCORE_PRODUCTS<T>, T>(products, slabs, Shape::row(), slabs + Shape::SLAB_OF_TILE,
                                                     Shape::group() * Shape::COLUMNS);
            }
            if constexpr (SIDES > 1) {
                scores[side].take(products);
            }
        }
        reducer.publish(first_column + tile * TILE_KEYS);
        __syncthreads();
        if constexpr (SIDES == 1) {
            reducer.take(products, coefficients, sums);
        } else {
            reducer.take(scores, coefficients, sums);
        }
        if (values) {
#pragma unroll
            for (int step = 0; step < Shape::VALUE_STEPS; ++step) {
                // The barrier within is the one between the coefficients' writers and readers.
                const unsigned char* const slabs = next_slabs();
                sums.add(coefficients, ptx::anew(Shape::row()), slabs + Shape::group() * Shape::SLAB_OF_TILE,
                         step * SLAB<T> / 8);
            }
        }
    }
    ptx::copy_async_wait<0>();
}

// The sweep of one side.
template <class Shape, bool TWICE = false, class T, class Reducer>
__device__ __forceinline__ void sweep(Reducer& reducer, ValueSums& sums, unsigned char* shared, const Source<T>& rows,
                                      uint32_t first_row, const Source<T>& columns, uint32_t first_column, bool values,
                                      uint32_t first_dim) {
    const Source<T> of_rows[1] = {rows};
    const Source<T> of_columns[1] = {columns};
    sweep_sides<Shape, 1, TWICE>(reducer, sums, shared, of_rows, first_row, of_columns, first_column, values,
                                 first_dim);
}
