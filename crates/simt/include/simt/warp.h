// Shuffles, votes and reductions of a warp. Every lane of the mask must come to the same operation with the same
// mask; a shuffle may only read lanes of the mask. Of these only __syncwarp orders memory.
#pragma once

#include <type_traits>

#include <simt/builtins.h>
#include <simt/hooks.h>

namespace simt {

template <typename T>
__forceinline__ T shuffle(Warp op, unsigned mask, T value, unsigned selector, int width) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 32 or 64 bits");
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    uint64_t moved;
    CONSONANCE_SIMT_APART moved = warp(op, mask, cast_bits<Bits>(value), selector, static_cast<uint32_t>(width));
    return cast_bits<T>(static_cast<Bits>(moved));
}

__forceinline__ unsigned vote(Warp op, unsigned mask, uint64_t value) {
    CONSONANCE_SIMT_APART return static_cast<unsigned>(warp(op, mask, value, 0, 32));
}

}  // namespace simt

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) { ::simt::vote(::simt::SYNC, mask, 0); }

template <typename T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return ::simt::shuffle(::simt::SHUFFLE, mask, value, static_cast<unsigned>(lane), width);
}
template <typename T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return ::simt::shuffle(::simt::SHUFFLE_UP, mask, value, delta, width);
}
template <typename T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return ::simt::shuffle(::simt::SHUFFLE_DOWN, mask, value, delta, width);
}
template <typename T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    return ::simt::shuffle(::simt::SHUFFLE_XOR, mask, value, static_cast<unsigned>(lanes), width);
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
    return ::simt::vote(::simt::BALLOT, mask, predicate != 0);
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
    return static_cast<int>(::simt::vote(::simt::ANY, mask, predicate != 0));
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
    return static_cast<int>(::simt::vote(::simt::ALL, mask, predicate != 0));
}
template <typename T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    return ::simt::vote(::simt::MATCH, mask, ::simt::cast_bits<Bits>(value));
}

__forceinline__ unsigned __reduce_min_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::MIN_UNSIGNED, mask, value);
}
__forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::MAX_UNSIGNED, mask, value);
}
__forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::ADD, mask, value);
}
__forceinline__ int __reduce_min_sync(unsigned mask, int value) {
    return static_cast<int>(::simt::vote(::simt::MIN_SIGNED, mask, static_cast<unsigned>(value)));
}
__forceinline__ int __reduce_max_sync(unsigned mask, int value) {
    return static_cast<int>(::simt::vote(::simt::MAX_SIGNED, mask, static_cast<unsigned>(value)));
}
__forceinline__ int __reduce_add_sync(unsigned mask, int value) {
    return static_cast<int>(::simt::vote(::simt::ADD, mask, static_cast<unsigned>(value)));
}
__forceinline__ unsigned __reduce_and_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::AND, mask, value);
}
__forceinline__ unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::OR, mask, value);
}
__forceinline__ unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
    return ::simt::vote(::simt::XOR, mask, value);
}
