// The weight of a positive pair by the cosine of its old embeddings.
#pragma once

#include "pairs.cuh"
#include "warp.cuh"

// An element of a row whose type is known at launch only.
__device__ __forceinline__ float old_element(uint64_t data, uint32_t type, uint64_t at) {
    switch (type) {
        case TYPE_F16: return to_f32(array<f16>(data)[at]);
        case TYPE_BF16: return to_f32(array<bf16>(data)[at]);
        default: return array<float>(data)[at];
    }
}

// The inner product of two rows, in every lane. All lanes together.
template <class T>
__device__ __forceinline__ float dot_of_warp(const T* x, const T* y, uint32_t dim) {
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t d = lane_index(); d < dim; d += 32) {
        sum = fmaf(to_f32(x[d]), to_f32(y[d]), sum);
    }
    return sum_of_warp(sum);
}

// 1 without old embeddings; the same number in every lane. All lanes together, for one pair.
__device__ __forceinline__ float affinity_of(const Contrast& p, uint32_t query, uint32_t key) {
    if (p.affinity == AFFINITY_NONE) {
        return 1.0f;
    }
    const uint64_t x = query * p.old_query_stride;
    const uint64_t y = key * p.old_key_stride;
    float dot = 0.0f;
    for (uint32_t d = lane_index(); d < p.old_dim; d += 32) {
        dot = fmaf(old_element(p.old_queries, p.old_query_type, x + d), old_element(p.old_keys, p.old_key_type, y + d),
                   dot);
    }
    const float inverse = array<float>(p.old_query_inverses)[query] * array<float>(p.old_key_inverses)[key];
    const float cosine = fminf(fmaxf(sum_of_warp(dot) * inverse, -1.0f), 1.0f);
    return p.affinity == AFFINITY_HALF ? fmaf(0.5f, cosine, 0.5f)
                                       : ptx::exp2_fast((cosine - 1.0f) * __uint_as_float(p.affinity_scale));
}
