// The border between kernels and the simulator: the table of functions that Rust installs, and the calls into it
// that the device vocabulary is made of. `src/hooks.rs` repeats every declaration.
//
// Calls take and give values in registers, never pointers to locals: a local whose address is known elsewhere would
// have all its accesses checked one by one.
#pragma once

#include <cstddef>
#include <cstdint>

#include <simt/vectors.h>

// Two calls in two branches stay two calls: which of them a thread comes to is what is checked.
#ifdef __clang__
#define CONSONANCE_SIMT_APART [[clang::nomerge]]
#else
#define CONSONANCE_SIMT_APART
#endif

namespace simt {

struct Coordinates {
    uint3 thread;
    uint3 block;
    uint3 threads;
    uint3 grid;
};

struct Pair {
    uint64_t first;
    uint64_t second;
};

enum Warp : uint32_t {
    SHUFFLE = 0,
    SHUFFLE_UP = 1,
    SHUFFLE_DOWN = 2,
    SHUFFLE_XOR = 3,
    BALLOT = 4,
    ANY = 5,
    ALL = 6,
    MIN_UNSIGNED = 7,
    MAX_UNSIGNED = 8,
    MIN_SIGNED = 9,
    MAX_SIGNED = 10,
    ADD = 11,
    AND = 12,
    OR = 13,
    XOR = 14,
    MATCH = 15,
    SYNC = 16,
};

enum Matrix : uint32_t { LOAD = 32, LOAD_TRANSPOSED = 33, MULTIPLY_BF16 = 34, MULTIPLY_F16 = 35 };

enum Atomic : uint32_t {
    ATOMIC_LOAD = 0,
    ATOMIC_EXCHANGE = 1,
    ATOMIC_ADD = 2,
    ATOMIC_AND = 3,
    ATOMIC_OR = 4,
    ATOMIC_XOR = 5,
    ATOMIC_MIN_UNSIGNED = 6,
    ATOMIC_MAX_UNSIGNED = 7,
    ATOMIC_MIN_SIGNED = 8,
    ATOMIC_MAX_SIGNED = 9,
    ATOMIC_COMPARE_EXCHANGE = 10,
};

struct Hooks {
    void (*read[5])(uintptr_t address, uintptr_t at);   // 1, 2, 4, 8 and 16 bytes
    void (*write[5])(uintptr_t address, uintptr_t at);  // the same
    void (*range)(uintptr_t address, size_t bytes, uint32_t write, uintptr_t at);
    uint64_t (*atomic)(uintptr_t address, uint32_t bytes, uint32_t op, uint64_t operand, uint64_t expected,
                       uintptr_t at);
    const Coordinates* (*coordinates)();
    unsigned char* (*shared_memory)();
    void (*barrier)(uintptr_t at);
    void (*fence)();
    uint64_t (*warp)(uint32_t op, uint32_t mask, uint64_t value, uint32_t selector, uint32_t width, uintptr_t at);
    Pair (*load_matrices)(uint32_t op, uintptr_t row, uintptr_t at);
    Pair (*multiply_add)(uint32_t op, uint64_t sums_low, uint64_t sums_high, uint64_t a_low, uint64_t a_high,
                         uint64_t b, uintptr_t at);
    void (*copy_async)(uintptr_t to, uintptr_t from, uint32_t size, int32_t bytes, uintptr_t at);
    void (*copy_async_commit)();
    void (*copy_async_wait)(uint32_t pending, uintptr_t at);
};

struct Kernel {
    const char* name;
    size_t params_bytes;
    uint32_t threads;
    uint32_t blocks;
    void (*entry)(const void* params);
    const Kernel* next;
};

// Defined in shim.cpp, which is compiled without instrumentation. Each takes the place of its call in the kernel
// from its return address. The coordinates are constant for one thread, so the compiler may keep them.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_size();
__attribute__((const)) uint3 grid_size();
__attribute__((const)) unsigned char* shared_memory();
void barrier();
void fence();
uint64_t warp(Warp op, uint32_t mask, uint64_t value, uint32_t selector, uint32_t width);
uint64_t atomic(const void* address, uint32_t bytes, Atomic op, uint64_t operand, uint64_t expected);
Pair load_16(const void* from);
uint64_t load_8(const void* from);
void store_16(void* to, uint64_t first, uint64_t second);
void store_8(void* to, uint64_t value);
Pair load_matrices(Matrix op, const void* row);
Pair multiply_add(Matrix op, uint64_t sums_low, uint64_t sums_high, uint64_t a_low, uint64_t a_high, uint64_t b);
void copy_async(void* to, const void* from, uint32_t size, int32_t bytes);
void copy_async_commit();
void copy_async_wait(uint32_t pending);
void add_kernel(Kernel* kernel);

template <typename To, typename From>
__attribute__((always_inline)) inline To cast_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To result;
    __builtin_memcpy(&result, &value, sizeof(To));
    return result;
}

}  // namespace simt
