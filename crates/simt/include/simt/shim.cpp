// Linked into every library of kernels and compiled without instrumentation: what instrumented code calls, passed on
// to the functions that Rust installs.
//
// `-fsanitize=thread` makes the compiler call a `__tsan_` function before every access that may reach memory known
// elsewhere. The thread sanitizer's own run-time is not linked: these are all of it.

#include <cstddef>
#include <cstdint>

#include <simt/hooks.h>

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))
#define SIMT_HERE reinterpret_cast<uintptr_t>(__builtin_return_address(0))
#define SIMT_ADDRESS(pointer) reinterpret_cast<uintptr_t>(pointer)

// Set by the linker: where this library lies.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace simt {

namespace {

// Before Rust has bound the library only its own initialisers run, which need no checks.
void ignore_access(uintptr_t, uintptr_t) {}
void ignore_range(uintptr_t, size_t, uint32_t, uintptr_t) {}

Hooks hooks = {
    {ignore_access, ignore_access, ignore_access, ignore_access, ignore_access},
    {ignore_access, ignore_access, ignore_access, ignore_access, ignore_access},
    ignore_range,
    nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
};

const Kernel* kernels = nullptr;

bool in_image(const volatile void* pointer) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    return address >= SIMT_ADDRESS(__ehdr_start) && address < SIMT_ADDRESS(_end);
}

}  // namespace

void add_kernel(Kernel* kernel) {
    kernel->next = kernels;
    kernels = kernel;
}

uint3 thread_index() { return hooks.coordinates()->thread; }
uint3 block_index() { return hooks.coordinates()->block; }
uint3 block_size() { return hooks.coordinates()->threads; }
uint3 grid_size() { return hooks.coordinates()->grid; }
unsigned char* shared_memory() { return hooks.shared_memory(); }

void barrier() { hooks.barrier(SIMT_HERE); }
void fence() { hooks.fence(); }

uint64_t warp(Warp op, uint32_t mask, uint64_t value, uint32_t selector, uint32_t width) {
    return hooks.warp(op, mask, value, selector, width, SIMT_HERE);
}

uint64_t atomic(const void* address, uint32_t bytes, Atomic op, uint64_t operand, uint64_t expected) {
    return hooks.atomic(SIMT_ADDRESS(address), bytes, op, operand, expected, SIMT_HERE);
}

Pair load_16(const void* from) {
    hooks.read[4](SIMT_ADDRESS(from), SIMT_HERE);
    Pair words;
    __builtin_memcpy(&words, from, 16);
    return words;
}

uint64_t load_8(const void* from) {
    hooks.read[3](SIMT_ADDRESS(from), SIMT_HERE);
    uint64_t word;
    __builtin_memcpy(&word, from, 8);
    return word;
}

void store_16(void* to, uint64_t first, uint64_t second) {
    hooks.write[4](SIMT_ADDRESS(to), SIMT_HERE);
    const Pair words = {first, second};
    __builtin_memcpy(to, &words, 16);
}

void store_8(void* to, uint64_t value) {
    hooks.write[3](SIMT_ADDRESS(to), SIMT_HERE);
    __builtin_memcpy(to, &value, 8);
}

Pair load_matrices(Matrix op, const void* row) { return hooks.load_matrices(op, SIMT_ADDRESS(row), SIMT_HERE); }

Pair multiply_add(Matrix op, uint64_t sums_low, uint64_t sums_high, uint64_t a_low, uint64_t a_high, uint64_t b) {
    return hooks.multiply_add(op, sums_low, sums_high, a_low, a_high, b, SIMT_HERE);
}

void copy_async(void* to, const void* from, uint32_t size, int32_t bytes) {
    hooks.copy_async(SIMT_ADDRESS(to), SIMT_ADDRESS(from), size, bytes, SIMT_HERE);
}
void copy_async_commit() { hooks.copy_async_commit(); }
void copy_async_wait(uint32_t pending) { hooks.copy_async_wait(pending, SIMT_HERE); }

}  // namespace simt

using simt::hooks;

// Once: another thread that loads the same library may run kernels of it already.
SIMT_EXPORT void simt_bind(const simt::Hooks* table) {
    if (simt::hooks.barrier == nullptr) simt::hooks = *table;
}

// The first kernel of the list, and the range of addresses of this library.
SIMT_EXPORT const simt::Kernel* simt_describe(uintptr_t* image) {
    image[0] = SIMT_ADDRESS(__ehdr_start);
    image[1] = SIMT_ADDRESS(_end);
    return simt::kernels;
}

// --- What the compiler calls. ---

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

#define SIMT_ACCESS(bytes, index)                                                                             \
    void __tsan_read##bytes(void* p) { hooks.read[index](SIMT_ADDRESS(p), SIMT_HERE); }                       \
    void __tsan_write##bytes(void* p) { hooks.write[index](SIMT_ADDRESS(p), SIMT_HERE); }                     \
    void __tsan_read_write##bytes(void* p) {                                                                  \
        hooks.read[index](SIMT_ADDRESS(p), SIMT_HERE);                                                        \
        hooks.write[index](SIMT_ADDRESS(p), SIMT_HERE);                                                       \
    }                                                                                                         \
    void __tsan_volatile_read##bytes(void* p) { hooks.read[index](SIMT_ADDRESS(p), SIMT_HERE); }              \
    void __tsan_volatile_write##bytes(void* p) { hooks.write[index](SIMT_ADDRESS(p), SIMT_HERE); }            \
    void __tsan_unaligned_read##bytes(void* p) { hooks.range(SIMT_ADDRESS(p), bytes, 0, SIMT_HERE); }         \
    void __tsan_unaligned_write##bytes(void* p) { hooks.range(SIMT_ADDRESS(p), bytes, 1, SIMT_HERE); }        \
    void __tsan_unaligned_read_write##bytes(void* p) {                                                        \
        hooks.range(SIMT_ADDRESS(p), bytes, 0, SIMT_HERE);                                                    \
        hooks.range(SIMT_ADDRESS(p), bytes, 1, SIMT_HERE);                                                    \
    }                                                                                                         \
    void __tsan_unaligned_volatile_read##bytes(void* p) { hooks.range(SIMT_ADDRESS(p), bytes, 0, SIMT_HERE); } \
    void __tsan_unaligned_volatile_write##bytes(void* p) { hooks.range(SIMT_ADDRESS(p), bytes, 1, SIMT_HERE); }
SIMT_ACCESS(1, 0)
SIMT_ACCESS(2, 1)
SIMT_ACCESS(4, 2)
SIMT_ACCESS(8, 3)
SIMT_ACCESS(16, 4)

void __tsan_read_range(void* p, size_t bytes) { hooks.range(SIMT_ADDRESS(p), bytes, 0, SIMT_HERE); }
void __tsan_write_range(void* p, size_t bytes) { hooks.range(SIMT_ADDRESS(p), bytes, 1, SIMT_HERE); }
void __tsan_vptr_update(void** p, void*) { hooks.write[3](SIMT_ADDRESS(p), SIMT_HERE); }
void __tsan_vptr_read(void** p) { hooks.read[3](SIMT_ADDRESS(p), SIMT_HERE); }

// Copies and fills of memory that the compiler leaves to the library. Byte loops with a barrier, or they would be
// compiled into calls of themselves.
void* memmove(void* to, const void* from, size_t bytes) {
    hooks.range(SIMT_ADDRESS(from), bytes, 0, SIMT_HERE);
    hooks.range(SIMT_ADDRESS(to), bytes, 1, SIMT_HERE);
    auto* target = static_cast<unsigned char*>(to);
    const auto* source = static_cast<const unsigned char*>(from);
    const bool backwards = SIMT_ADDRESS(to) > SIMT_ADDRESS(from);
    for (size_t i = 0; i < bytes; ++i) {
        const size_t k = backwards ? bytes - 1 - i : i;
        target[k] = source[k];
        asm volatile("" ::: "memory");
    }
    return to;
}
void* memcpy(void* to, const void* from, size_t bytes) {
    hooks.range(SIMT_ADDRESS(from), bytes, 0, SIMT_HERE);
    hooks.range(SIMT_ADDRESS(to), bytes, 1, SIMT_HERE);
    for (size_t i = 0; i < bytes; ++i) {
        static_cast<unsigned char*>(to)[i] = static_cast<const unsigned char*>(from)[i];
        asm volatile("" ::: "memory");
    }
    return to;
}
void* memset(void* to, int value, size_t bytes) {
    hooks.range(SIMT_ADDRESS(to), bytes, 1, SIMT_HERE);
    for (size_t i = 0; i < bytes; ++i) {
        static_cast<unsigned char*>(to)[i] = static_cast<unsigned char>(value);
        asm volatile("" ::: "memory");
    }
    return to;
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) { return memcpy(to, from, bytes); }
void* __tsan_memmove(void* to, const void* from, size_t bytes) { return memmove(to, from, bytes); }
void* __tsan_memset(void* to, int value, size_t bytes) { return memset(to, value, bytes); }

// The compiler's atomics: counters of line coverage in the library itself, and builtins in kernels.
#define SIMT_ATOMIC(bits, Word)                                                                                \
    Word __tsan_atomic##bits##_load(const volatile void* p, int) {                                             \
        if (simt::in_image(p)) return __atomic_load_n(static_cast<const volatile Word*>(p), __ATOMIC_RELAXED); \
        return static_cast<Word>(hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_LOAD, 0, 0, SIMT_HERE)); \
    }                                                                                                          \
    void __tsan_atomic##bits##_store(volatile void* p, Word value, int) {                                      \
        if (simt::in_image(p)) {                                                                               \
            __atomic_store_n(static_cast<volatile Word*>(p), value, __ATOMIC_RELAXED);                         \
            return;                                                                                            \
        }                                                                                                      \
        hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_EXCHANGE, value, 0, SIMT_HERE);                   \
    }                                                                                                          \
    Word __tsan_atomic##bits##_exchange(volatile void* p, Word value, int) {                                   \
        return static_cast<Word>(                                                                              \
            hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_EXCHANGE, value, 0, SIMT_HERE));              \
    }                                                                                                          \
    Word __tsan_atomic##bits##_fetch_add(volatile void* p, Word value, int) {                                  \
        if (simt::in_image(p))                                                                                 \
            return __atomic_fetch_add(static_cast<volatile Word*>(p), value, __ATOMIC_RELAXED);                \
        return static_cast<Word>(                                                                              \
            hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_ADD, value, 0, SIMT_HERE));                   \
    }                                                                                                          \
    Word __tsan_atomic##bits##_fetch_or(volatile void* p, Word value, int) {                                   \
        return static_cast<Word>(                                                                              \
            hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_OR, value, 0, SIMT_HERE));                    \
    }                                                                                                          \
    Word __tsan_atomic##bits##_fetch_and(volatile void* p, Word value, int) {                                  \
        return static_cast<Word>(                                                                              \
            hooks.atomic(SIMT_ADDRESS(p), bits / 8, simt::ATOMIC_AND, value, 0, SIMT_HERE));                   \
    }
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)

}  // extern "C"
