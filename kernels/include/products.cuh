// Products of two slabs on the tensor cores: 16 queries × 8 COLUMNS keys a warp.
//
// 16-bit elements are multiplied as they are: products are exact, sums are f32. Of f32 elements the bfloat16
// parts are multiplied, x = high + low + rest with |rest| ≤ 2⁻¹⁶ |x|:
//   1 product:  high · high
//   3 products: high · high + high · low + low · high
#pragma once

#include "slab.cuh"

// A tile's operand of one k-step of 16: registers of the high parts, and of the low parts where there are three
// products.
template <int REGISTERS>
struct Operand {
    uint32_t high[REGISTERS];
    uint32_t low[REGISTERS];
};

template <int PRODUCTS>
__device__ __forceinline__ void split_pair(uint32_t& high, uint32_t& low, uint2 pair) {
    const float first = __uint_as_float(pair.x);
    const float second = __uint_as_float(pair.y);
    high = ptx::f32_to_bf16_pair(first, second);
    if constexpr (PRODUCTS == 3) {
        low = ptx::f32_to_bf16_pair(first - __uint_as_float(high << 16), second - __uint_as_float(high & 0xffff0000u));
    }
}

// The bytes of elements 2t and 2t + 1 of a row, in the k-step's first half or (`upper`) second half.
__device__ __forceinline__ uint2 read_f32_pair(const unsigned char* slab, int row, int step, bool upper) {
    const int element = step * 16 + (upper ? 8 : 0) + static_cast<int>(threadIdx.x % 4) * 2;
    return ptx::load_8(slab_chunk(slab, row, element / 4) + element % 4 * 4);
}

// Rows [row, row + 16) as the first operand.
template <int PRODUCTS, class T>
__device__ __forceinline__ void load_queries(Operand<4>& a, const unsigned char* slab, int row, int step) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (sizeof(T) == 2) {
        ptx::load_matrices_4(a.high, slab_chunk(slab, row + lane % 16, step * 2 + lane / 16));
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            split_pair<PRODUCTS>(a.high[i], a.low[i],
                                 read_f32_pair(slab, row + lane / 4 + i % 2 * 8, step, i / 2 != 0));
        }
    }
}

// Rows [row, row + 16) as two second operands of 8 columns each.
template <int PRODUCTS, class T>
__device__ __forceinline__ void load_keys(Operand<2> (&b)[2], const unsigned char* slab, int row, int step) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (sizeof(T) == 2) {
        uint32_t registers[4];
        ptx::load_matrices_4(registers, slab_chunk(slab, row + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            b[i / 2].high[i % 2] = registers[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            split_pair<PRODUCTS>(b[i / 2].high[i % 2], b[i / 2].low[i % 2],
                                 read_f32_pair(slab, row + i / 2 * 8 + lane / 4, step, i % 2 != 0));
        }
    }
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const T*) {
    ptx::multiply_add_bf16(sums, a, b);
}

__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             const f16*) {
    ptx::multiply_add_f16(sums, a, b);
}

// Sums of 16 queries × 8 COLUMNS keys: of the products of high parts, and apart from them, so that they are not
// lost against them, of the products with a low part.
template <int PRODUCTS, int COLUMNS>
struct Sums {
    static constexpr int LOW = PRODUCTS == 3 ? COLUMNS : 1;
    float high[COLUMNS][4];
    float low[LOW][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < COLUMNS * 4; ++i) {
            high[i / 4][i % 4] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < LOW * 4; ++i) {
            low[i / 4][i % 4] = 0.0f;
        }
    }

    // Element `element` of column block n; see ptx::multiply_add_bf16 for its row and column.
    __device__ __forceinline__ float get(int n, int element) const {
        return PRODUCTS == 3 ? high[n][element] + low[n % LOW][element] : high[n][element];
    }
};

// Adds the products of queries [query, query + 16) with keys [key, key + 8 COLUMNS) over a slab.
template <int PRODUCTS, class T, int COLUMNS>
__device__ __forceinline__ void multiply_slabs(Sums<PRODUCTS, COLUMNS>& sums, const unsigned char* queries, int query,
                                               const unsigned char* keys, int key) {
    static_assert(PRODUCTS == 1 || (PRODUCTS == 3 && sizeof(T) == 4), "16-bit elements need one product");
    static_assert(COLUMNS % 2 == 0, "keys come in pairs of 8");
    const T* const type = nullptr;
#pragma unroll
    for (int step = 0; step < SLAB<T> / 16; ++step) {
        Operand<4> a;
        load_queries<PRODUCTS, T>(a, queries, query, step);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            Operand<2> b[2];
            load_keys<PRODUCTS, T>(b, keys, key + n * 8, step);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                multiply_add(sums.high[n + i], a.high, b[i].high, type);
                if constexpr (PRODUCTS == 3) {
                    multiply_add(sums.low[n + i], a.low, b[i].high, type);
                    multiply_add(sums.low[n + i], a.high, b[i].low, type);
                }
            }
        }
    }
}
