// A counter-based random generator: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A draw is a pure function of (seed, label, step), the same as crates/cpu/src/clusters/philox.rs draws.
#pragma once

#include "ptx.cuh"

// Uniform in [0, 1) with 53 random bits, of draw 0 of a step.
__device__ __forceinline__ double uniform_draw(uint64_t seed, uint32_t label, uint32_t step) {
    uint32_t c[4] = {0, 0, step, label};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t a_high = __umulhi(0xD2511F53u, c[0]);
        const uint32_t b_high = __umulhi(0xCD9E8D57u, c[2]);
        const uint32_t a_low = 0xD2511F53u * c[0];
        const uint32_t b_low = 0xCD9E8D57u * c[2];
        c[0] = b_high ^ c[1] ^ key[0];
        c[1] = b_low;
        c[2] = a_high ^ c[3] ^ key[1];
        c[3] = a_low;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    // Integers below 2⁵³ and a power of two: exact.
    const uint64_t bits = static_cast<uint64_t>(c[0] >> 5) << 26 | c[1] >> 6;
    return static_cast<double>(bits) * 0x1p-53;
}
