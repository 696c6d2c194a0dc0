// Storage types. Arithmetic is in f32; these types only convert.
#pragma once

#include "ptx.cuh"

struct f16 {
    uint16_t bits;
};

// The upper half of an f32.
struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_f32(float value) { return value; }
__device__ __forceinline__ float to_f32(f16 value) { return ptx::f16_to_f32(value.bits); }
__device__ __forceinline__ float to_f32(bf16 value) {
    return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// The value that bfloat16 rounds to, as f32.
__device__ __forceinline__ float rounded_to_bf16(float value) {
    return __uint_as_float(ptx::f32_to_bf16_pair(value, 0.0f) << 16);
}

// Elements of 16 bytes.
template <class T>
constexpr int CHUNK = 16 / static_cast<int>(sizeof(T));

// The elements of a 16-byte chunk, widened.
__device__ __forceinline__ void widen_chunk(float (&values)[CHUNK<float>], uint4 chunk, const float*) {
    values[0] = __uint_as_float(chunk.x);
    values[1] = __uint_as_float(chunk.y);
    values[2] = __uint_as_float(chunk.z);
    values[3] = __uint_as_float(chunk.w);
}

template <class T>
__device__ __forceinline__ void widen_chunk(float (&values)[CHUNK<T>], uint4 chunk, const T*) {
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[2 * i] = to_f32(T{static_cast<uint16_t>(words[i])});
        values[2 * i + 1] = to_f32(T{static_cast<uint16_t>(words[i] >> 16)});
    }
}

// An f32 as it is stored, rounded to the nearest with ties to even.
__device__ __forceinline__ void store_rounded(float* to, float value) { *to = value; }
__device__ __forceinline__ void store_rounded(f16* to, float value) { to->bits = ptx::f32_to_f16(value); }
__device__ __forceinline__ void store_rounded(bf16* to, float value) {
    to->bits = static_cast<uint16_t>(ptx::f32_to_bf16_pair(value, 0.0f));
}
