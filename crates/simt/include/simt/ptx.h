// The namespace `ptx` of kernels/include/ptx.cuh, function by function, in plain C++. What each one does is
// written there; what is checked, in the README of this crate.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt/builtins.h>
#include <simt/hooks.h>

namespace ptx {

__forceinline__ unsigned char* shared_memory() { return ::simt::shared_memory(); }

__forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - ::simt::shared_memory());
}

__forceinline__ int anew(int value) { return value; }

__forceinline__ uint4 load_16(const void* from) { return ::simt::cast_bits<uint4>(::simt::load_16(from)); }
__forceinline__ uint2 load_8(const void* from) { return ::simt::cast_bits<uint2>(::simt::load_8(from)); }
__forceinline__ void store_16(void* to, uint4 value) {
    const auto words = ::simt::cast_bits<::simt::Pair>(value);
    ::simt::store_16(to, words.first, words.second);
}
__forceinline__ void store_8(void* to, uint2 value) { ::simt::store_8(to, ::simt::cast_bits<uint64_t>(value)); }

template <int SIZE>
__forceinline__ void copy_async(void* to, const void* from, int bytes) {
    static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16, "cp.async copies 4, 8 or 16 bytes");
    ::simt::copy_async(to, from, SIZE, bytes);
}
__forceinline__ void copy_async_commit() { ::simt::copy_async_commit(); }
template <int PENDING>
__forceinline__ void copy_async_wait() {
    ::simt::copy_async_wait(PENDING);
}

namespace internal {

__forceinline__ uint64_t join(uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; }
__forceinline__ uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
__forceinline__ uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

__forceinline__ void load(::simt::Matrix op, uint32_t (&registers)[4], const void* row) {
    const ::simt::Pair words = ::simt::load_matrices(op, row);
    registers[0] = low(words.first);
    registers[1] = high(words.first);
    registers[2] = low(words.second);
    registers[3] = high(words.second);
}

__forceinline__ void multiply(::simt::Matrix op, float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    using ::simt::cast_bits;
    const ::simt::Pair words = ::simt::multiply_add(
        op, join(cast_bits<uint32_t>(sums[0]), cast_bits<uint32_t>(sums[1])),
        join(cast_bits<uint32_t>(sums[2]), cast_bits<uint32_t>(sums[3])), join(a[0], a[1]), join(a[2], a[3]),
        join(b[0], b[1]));
    sums[0] = cast_bits<float>(low(words.first));
    sums[1] = cast_bits<float>(high(words.first));
    sums[2] = cast_bits<float>(low(words.second));
    sums[3] = cast_bits<float>(high(words.second));
}

__forceinline__ uint16_t f32_to_bf16(float value) {
    const uint32_t bits = ::simt::cast_bits<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace internal

__forceinline__ void load_matrices_4(uint32_t (&registers)[4], const void* row) {
    internal::load(::simt::LOAD, registers, row);
}
__forceinline__ void load_matrices_4_transposed(uint32_t (&registers)[4], const void* row) {
    internal::load(::simt::LOAD_TRANSPOSED, registers, row);
}
__forceinline__ void multiply_add_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    internal::multiply(::simt::MULTIPLY_BF16, sums, a, b);
}
__forceinline__ void multiply_add_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    internal::multiply(::simt::MULTIPLY_F16, sums, a, b);
}

__forceinline__ float f16_to_f32(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t rest = bits & 0x7fffu;
    if (rest > 0x7c00u) return ::simt::cast_bits<float>(0x7fffffffu);
    if (rest == 0x7c00u) return ::simt::cast_bits<float>(sign | 0x7f800000u);
    if (rest >= 0x0400u) return ::simt::cast_bits<float>(sign | ((rest << 13) + 0x38000000u));
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
}

__forceinline__ uint16_t f32_to_f16(float value) {
    const uint32_t bits = ::simt::cast_bits<uint32_t>(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return 0x7fff;
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        // Below the normal range the steps are 2^-24: adding 0.5 puts the rounding there.
        const float shifted = ::simt::cast_bits<float>(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (::simt::cast_bits<uint32_t>(shifted) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0x0fffu + (rest >> 13 & 1u)) >> 13));
}

__forceinline__ uint32_t f32_to_bf16_pair(float first, float second) {
    return internal::f32_to_bf16(first) | static_cast<uint32_t>(internal::f32_to_bf16(second)) << 16;
}

__forceinline__ uint32_t f32_to_f16_pair(float first, float second) {
    return f32_to_f16(first) | static_cast<uint32_t>(f32_to_f16(second)) << 16;
}

__forceinline__ float exp2_fast(float x) {
    const float value = exp2f(x);
    return value < 0x1p-126f ? 0.0f : value;
}

}  // namespace ptx
