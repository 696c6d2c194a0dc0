// Atomics, on integers of 32 and 64 bits only, and read-only loads.
#pragma once

#include <type_traits>

#include <simt/builtins.h>
#include <simt/hooks.h>

namespace simt {

template <typename T>
__forceinline__ T atomic_on(T* address, Atomic op, T operand, T expected = T()) {
    static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "atomics are for integers of 32 and 64 bits: a sum of floats would depend on the order");
    using Bits = std::make_unsigned_t<T>;
    return static_cast<T>(atomic(address, sizeof(T), op, static_cast<Bits>(operand), static_cast<Bits>(expected)));
}

template <typename T>
struct Same {
    using type = T;
};

}  // namespace simt

template <typename T>
__forceinline__ T atomicAdd(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_ADD, value);
}
template <typename T>
__forceinline__ T atomicSub(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_ADD, static_cast<T>(0 - value));
}
template <typename T>
__forceinline__ T atomicExch(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_EXCHANGE, value);
}
template <typename T>
__forceinline__ T atomicMin(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(
        address, std::is_signed_v<T> ? ::simt::ATOMIC_MIN_SIGNED : ::simt::ATOMIC_MIN_UNSIGNED, value);
}
template <typename T>
__forceinline__ T atomicMax(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(
        address, std::is_signed_v<T> ? ::simt::ATOMIC_MAX_SIGNED : ::simt::ATOMIC_MAX_UNSIGNED, value);
}
template <typename T>
__forceinline__ T atomicAnd(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_AND, value);
}
template <typename T>
__forceinline__ T atomicOr(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_OR, value);
}
template <typename T>
__forceinline__ T atomicXor(T* address, typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_XOR, value);
}
template <typename T>
__forceinline__ T atomicCAS(T* address, typename ::simt::Same<T>::type expected,
                            typename ::simt::Same<T>::type value) {
    return ::simt::atomic_on(address, ::simt::ATOMIC_COMPARE_EXCHANGE, static_cast<T>(value),
                             static_cast<T>(expected));
}

template <typename T>
__forceinline__ T __ldg(const T* from) {
    return *from;
}
