// Bits, integers and floating point. Nothing is contracted: a * b + c rounds twice here, where nvcc may use one
// fused operation; kernels whose bits matter say fmaf, __fmul_rn or __fadd_rn.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include <simt/builtins.h>
#include <simt/hooks.h>

__forceinline__ float __uint_as_float(unsigned bits) { return ::simt::cast_bits<float>(bits); }
__forceinline__ float __int_as_float(int bits) { return ::simt::cast_bits<float>(bits); }
__forceinline__ unsigned __float_as_uint(float value) { return ::simt::cast_bits<unsigned>(value); }
__forceinline__ int __float_as_int(float value) { return ::simt::cast_bits<int>(value); }
__forceinline__ long long __double_as_longlong(double value) { return ::simt::cast_bits<long long>(value); }
__forceinline__ double __longlong_as_double(long long bits) { return ::simt::cast_bits<double>(bits); }

__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ int __ffsll(long long x) { return __builtin_ffsll(x); }
__forceinline__ int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
__forceinline__ int __clzll(long long x) {
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
__forceinline__ unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
__forceinline__ unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
__forceinline__ unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> 4 * i;
        const unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7)) & 0xffu;
        result |= (pick & 8 ? (byte & 0x80u ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}

// CUDA's overloads; with one signed and one unsigned argument both are taken as unsigned.
#define CONSONANCE_SIMT_EXTREMES(Type, A, B)                                                            \
    __forceinline__ constexpr Type min(A a, B b) {                                                      \
        return static_cast<Type>(b) < static_cast<Type>(a) ? static_cast<Type>(b) : static_cast<Type>(a); \
    }                                                                                                   \
    __forceinline__ constexpr Type max(A a, B b) {                                                      \
        return static_cast<Type>(a) < static_cast<Type>(b) ? static_cast<Type>(b) : static_cast<Type>(a); \
    }
CONSONANCE_SIMT_EXTREMES(int, int, int)
CONSONANCE_SIMT_EXTREMES(unsigned, unsigned, unsigned)
CONSONANCE_SIMT_EXTREMES(unsigned, int, unsigned)
CONSONANCE_SIMT_EXTREMES(unsigned, unsigned, int)
CONSONANCE_SIMT_EXTREMES(long, long, long)
CONSONANCE_SIMT_EXTREMES(unsigned long, unsigned long, unsigned long)
CONSONANCE_SIMT_EXTREMES(unsigned long, long, unsigned long)
CONSONANCE_SIMT_EXTREMES(unsigned long, unsigned long, long)
CONSONANCE_SIMT_EXTREMES(long long, long long, long long)
CONSONANCE_SIMT_EXTREMES(unsigned long long, unsigned long long, unsigned long long)
CONSONANCE_SIMT_EXTREMES(unsigned long long, long long, unsigned long long)
CONSONANCE_SIMT_EXTREMES(unsigned long long, unsigned long long, long long)
#undef CONSONANCE_SIMT_EXTREMES
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }

__forceinline__ float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
__forceinline__ double rsqrt(double x) { return 1.0 / sqrt(x); }
__forceinline__ float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }

__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
__forceinline__ float __fsqrt_rn(float x) { return sqrtf(x); }
__forceinline__ double __dadd_rn(double a, double b) { return a + b; }
__forceinline__ double __dsub_rn(double a, double b) { return a - b; }
__forceinline__ double __dmul_rn(double a, double b) { return a * b; }
__forceinline__ double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
__forceinline__ double __ddiv_rn(double a, double b) { return a / b; }
__forceinline__ double __drcp_rn(double x) { return 1.0 / x; }
__forceinline__ double __dsqrt_rn(double x) { return sqrt(x); }

__forceinline__ int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
__forceinline__ int __float2int_rz(float x) { return static_cast<int>(x); }
__forceinline__ int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
__forceinline__ int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
__forceinline__ float __int2float_rn(int x) { return static_cast<float>(x); }
__forceinline__ float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
__forceinline__ float __double2float_rn(double x) { return static_cast<float>(x); }
