// Scores. What a search returns is the deciding score of a pair, defined here: f32, summed by one chain of fused
// multiply-adds in the order of the dimensions. It depends on the two rows alone.
//
// Inside the kernels a score is a value of which the larger is the better: −‖x − y‖² for squared L2.
#pragma once

#include "abi.h"
#include "dtype.cuh"

// Sums over the dimensions seen so far.
template <uint32_t METRIC>
struct DecidingScore {
    float sum = 0.0f;
    float query_norm = 0.0f;
    float key_norm = 0.0f;

    __device__ __forceinline__ void add(float query, float key) {
        if constexpr (METRIC == SQUARED_L2) {
            const float difference = query - key;
            sum = fmaf(difference, difference, sum);
        } else {
            sum = fmaf(query, key, sum);
        }
        if constexpr (METRIC == COSINE) {
            query_norm = fmaf(query, query, query_norm);
            key_norm = fmaf(key, key, key_norm);
        }
    }

    __device__ __forceinline__ float value() const {
        if constexpr (METRIC == SQUARED_L2) {
            return -sum;
        } else if constexpr (METRIC == COSINE) {
            return __fdiv_rn(__fdiv_rn(sum, __fsqrt_rn(query_norm)), __fsqrt_rn(key_norm));
        } else {
            return sum;
        }
    }
};

// The score that the user sees, of a value. 0 − 0 is +0.
__device__ __forceinline__ float score_of(float value, uint32_t metric) {
    return metric == SQUARED_L2 ? 0.0f - value : value;
}

__device__ __forceinline__ float value_of(float score, uint32_t metric) {
    return metric == SQUARED_L2 ? -score : score;
}

// The value of one pair of rows.
template <uint32_t METRIC, class T>
__device__ __forceinline__ float deciding_value(const T* query, const T* key, uint32_t dim, bool chunked) {
    DecidingScore<METRIC> score;
    uint32_t d = 0;
    if (chunked) {
        for (; d + CHUNK<T> <= dim; d += CHUNK<T>) {
            float x[CHUNK<T>], y[CHUNK<T>];
            widen_chunk(x, ptx::load_16(query + d), query);
            widen_chunk(y, ptx::load_16(key + d), key);
#pragma unroll
            for (int i = 0; i < CHUNK<T>; ++i) {
                score.add(x[i], y[i]);
            }
        }
    }
    for (; d < dim; ++d) {
        score.add(to_f32(query[d]), to_f32(key[d]));
    }
    return score.value();
}

template <class T>
__device__ __forceinline__ float deciding_value(uint32_t metric, const T* query, const T* key, uint32_t dim,
                                                bool chunked) {
    switch (metric) {
        case COSINE: return deciding_value<COSINE>(query, key, dim, chunked);
        case SQUARED_L2: return deciding_value<SQUARED_L2>(query, key, dim, chunked);
        default: return deciding_value<INNER_PRODUCT>(query, key, dim, chunked);
    }
}
