// The instructions that C++ has no words for, one function each: tensor-core products, asynchronous copies,
// matrix loads, conversions of 16-bit types.
//
// Nothing outside this file contains assembly. `crates/simt` gives the same functions in plain C++, with the
// fragment layouts that the PTX manual documents, so that every kernel also runs on a CPU under test; there a
// function that all lanes of a warp must call together checks that they do.
//
// Needs sm_80: mma.m16n8k16, cp.async, ldmatrix.
#pragma once

#ifdef CONSONANCE_SIMT
#include <simt/device.h>
#else

#include <cstddef>
#include <cstdint>

namespace ptx {

// Shared memory of the block as given at launch, aligned to 128 bytes. A kernel has no other shared memory, so
// that one number at launch says all of it.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same value, of which the compiler knows nothing: what follows from it is computed anew where it is needed, and not
// kept in registers that the kernel has no more of.
__device__ __forceinline__ int anew(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// --- Vector accesses. The address must be a multiple of the size: these are checked under simt. ---

__device__ __forceinline__ uint4 load_16(const void* from) { return *static_cast<const uint4*>(from); }
__device__ __forceinline__ uint2 load_8(const void* from) { return *static_cast<const uint2*>(from); }
__device__ __forceinline__ void store_16(void* to, uint4 value) { *static_cast<uint4*>(to) = value; }
__device__ __forceinline__ void store_8(void* to, uint2 value) { *static_cast<uint2*>(to) = value; }

// --- Asynchronous copies from global to shared memory. ---

// Copies the first `bytes` of SIZE bytes (4, 8 or 16) and writes zeros behind them; with 0 bytes `from` is not
// read, but must still be a valid address. Both addresses are multiples of SIZE.
template <int SIZE>
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
    static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (SIZE == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(SIZE),
                     "r"(bytes)
                     : "memory");
    }
}

// Closes the group of this thread's copies since the last call; an empty group is allowed.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's latest groups are unfinished. The data is then visible to this
// thread; a barrier makes it visible to the others.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// --- Matrix loads and products of a warp. All 32 lanes call them together. ---

// Four 8 × 8 matrices of 16-bit elements. Lane l names the 16-byte row l % 8 of matrix l / 8, in shared memory;
// of every matrix m it gets elements 2(l % 4) and 2(l % 4) + 1 of row l / 4, the first in the low half of
// registers[m].
__device__ __forceinline__ void load_matrices_4(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same with every matrix transposed: elements of columns instead of rows.
__device__ __forceinline__ void load_matrices_4_transposed(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sums += a · b for a 16 × 16 tile a and a 16 × 8 tile b, sums 16 × 8 in f32.
// With g = lane / 4 and t = lane % 4, the low half of a register first:
//   a[0] = A[g][2t, 2t + 1], a[1] = A[g + 8][2t, 2t + 1], a[2] = A[g][2t + 8, 2t + 9], a[3] = A[g + 8][2t + 8, 2t + 9]
//   b[0] = B[2t, 2t + 1][g], b[1] = B[2t + 8, 2t + 9][g]
//   sums[0, 1] = S[g][2t, 2t + 1], sums[2, 3] = S[g + 8][2t, 2t + 1]
__device__ __forceinline__ void multiply_add_bf16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add_f16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- Conversions, to the nearest with ties to even. A pair has its first element in the low half. ---

__device__ __forceinline__ float f16_to_f32(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ uint16_t f32_to_f16(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ uint32_t f32_to_bf16_pair(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

__device__ __forceinline__ uint32_t f32_to_f16_pair(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// 2^x with at most 2 units in the last place of error, −∞ to 0; subnormal results become 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

}  // namespace ptx

#endif
