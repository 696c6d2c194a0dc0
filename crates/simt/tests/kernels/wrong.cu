// One fault each, on the line that says `here`.
#include <simt/device.h>

struct Memory {
    uint64_t values;
    uint64_t freed;
    uint32_t count;
    uint32_t zero;
};

#define VALUES reinterpret_cast<uint32_t*>(p.values)
#define SHARED reinterpret_cast<uint32_t*>(ptx::shared_memory())

CONSONANCE_KERNEL(global_end, Memory, 32, 1) {
    VALUES[threadIdx.x + p.count - 31] = 1;  // here
}

CONSONANCE_KERNEL(global_start, Memory, 32, 1) {
    if (threadIdx.x == 3) VALUES[0] = (VALUES - 1)[0];  // here
}

CONSONANCE_KERNEL(freed, Memory, 32, 1) {
    VALUES[threadIdx.x] = *reinterpret_cast<const uint32_t*>(p.freed);  // here
}

CONSONANCE_KERNEL(null_pointer, Memory, 32, 1) {
    *reinterpret_cast<uint32_t*>(static_cast<uint64_t>(p.zero)) = 1;  // here
}

__device__ __forceinline__ void store(uint32_t* to, uint32_t value) {
    *to = value;  // here
}

CONSONANCE_KERNEL(shared_end, Memory, 32, 1) {
    store(SHARED + threadIdx.x + 1, 1);
}

CONSONANCE_KERNEL(misaligned, Memory, 32, 1) {
    *reinterpret_cast<uint32_t*>(p.values + 2) = threadIdx.x;  // here
}

CONSONANCE_KERNEL(misaligned_vector, Memory, 32, 1) {
    VALUES[threadIdx.x] = ptx::load_16(reinterpret_cast<const void*>(p.values + 8)).x;  // here
}

CONSONANCE_KERNEL(misaligned_row, Memory, 32, 1) {
    uint32_t registers[4];
    for (uint32_t i = threadIdx.x; i < 256; i += 32) SHARED[i] = i;
    __syncwarp();
    ptx::load_matrices_4(registers, ptx::shared_memory() + threadIdx.x * 16 + 8);  // here
    VALUES[threadIdx.x] = registers[0];
}

CONSONANCE_KERNEL(unwritten_shared, Memory, 32, 1) {
    VALUES[threadIdx.x] = SHARED[threadIdx.x];  // here
}

CONSONANCE_KERNEL(unwritten_global, Memory, 32, 1) {
    SHARED[threadIdx.x] = VALUES[threadIdx.x];  // here
}

CONSONANCE_KERNEL(race_without_barrier, Memory, 64, 1) {
    SHARED[threadIdx.x] = threadIdx.x;  // here
    __syncwarp();
    SHARED[threadIdx.x ^ 32] += 1;  // here
}

CONSONANCE_KERNEL(race_in_a_warp, Memory, 32, 1) {
    SHARED[threadIdx.x] = threadIdx.x;  // here
    const uint32_t other = __shfl_xor_sync(0xffffffffu, SHARED[threadIdx.x], 1);
    VALUES[threadIdx.x] = SHARED[other];  // here
}

CONSONANCE_KERNEL(race_write_after_read, Memory, 64, 1) {
    SHARED[threadIdx.x] = threadIdx.x;
    __syncthreads();
    VALUES[threadIdx.x] = SHARED[63 - threadIdx.x];  // here
    SHARED[threadIdx.x] = 0;  // here
}

CONSONANCE_KERNEL(race_of_halves, Memory, 64, 1) {
    auto* halves = reinterpret_cast<uint16_t*>(ptx::shared_memory());
    halves[threadIdx.x] = 1;  // here
    __syncwarp();
    if (threadIdx.x == 32) VALUES[0] = SHARED[15];  // here
}

CONSONANCE_KERNEL(race_of_blocks, Memory, 32, 1) {
    if (threadIdx.x == 0) VALUES[0] = blockIdx.x;  // here
}

CONSONANCE_KERNEL(race_of_blocks_read, Memory, 32, 1) {
    if (threadIdx.x != 0) return;
    VALUES[1 + blockIdx.x] = VALUES[1 + (blockIdx.x + 1) % gridDim.x];  // here
}

CONSONANCE_KERNEL(race_with_an_atomic, Memory, 64, 1) {
    if (threadIdx.x == 0) SHARED[0] = 0;
    __syncthreads();
    atomicAdd(SHARED, 1u);  // here
    if (threadIdx.x == 63) VALUES[0] = SHARED[0];  // here
}

CONSONANCE_KERNEL(pending_copy, Memory, 32, 1) {
    ptx::copy_async<4>(SHARED + threadIdx.x, VALUES + threadIdx.x, 4);
    ptx::copy_async_commit();
    VALUES[threadIdx.x] = SHARED[threadIdx.x];  // here
}

CONSONANCE_KERNEL(uncommitted_copy, Memory, 32, 1) {
    ptx::copy_async<4>(SHARED + threadIdx.x, VALUES + threadIdx.x, 4);
    ptx::copy_async_wait<0>();
    VALUES[threadIdx.x] = SHARED[threadIdx.x];  // here
}

CONSONANCE_KERNEL(copy_without_barrier, Memory, 64, 1) {
    ptx::copy_async<4>(SHARED + threadIdx.x, VALUES + threadIdx.x, 4);  // here
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    VALUES[threadIdx.x + 64] = SHARED[threadIdx.x ^ 32];  // here
}

CONSONANCE_KERNEL(copy_too_many, Memory, 32, 1) {
    ptx::copy_async<8>(SHARED + 2 * threadIdx.x, VALUES, static_cast<int>(9 + p.zero));  // here
}

CONSONANCE_KERNEL(copy_outside, Memory, 32, 1) {
    ptx::copy_async<16>(SHARED, VALUES + p.count, 16);  // here
}

CONSONANCE_KERNEL(diverged_barrier, Memory, 64, 1) {
    if (threadIdx.x < 32) {
        __syncthreads();  // here
    } else {
        __syncthreads();  // here
    }
}

CONSONANCE_KERNEL(exited_before_barrier, Memory, 64, 1) {
    if (threadIdx.x == 5) return;
    __syncthreads();  // here
}

CONSONANCE_KERNEL(diverged_warp, Memory, 32, 1) {
    unsigned x = 0;
    if (threadIdx.x < 16) {
        x = __shfl_sync(0xffffffffu, threadIdx.x, 0);  // here
    } else {
        x = __ballot_sync(0xffffffffu, 1);  // here
    }
    VALUES[threadIdx.x] = x;
}

CONSONANCE_KERNEL(exited_lane, Memory, 32, 1) {
    if (threadIdx.x == 7) return;
    VALUES[threadIdx.x] = __shfl_xor_sync(0xffffffffu, threadIdx.x, 1);  // here
}

CONSONANCE_KERNEL(lane_outside_mask, Memory, 32, 1) {
    if (threadIdx.x < 16) VALUES[threadIdx.x] = __shfl_sync(0x0000ffffu, threadIdx.x, 20);  // here
}

CONSONANCE_KERNEL(warp_waits_for_barrier, Memory, 32, 1) {
    if (threadIdx.x < 16) __syncthreads();  // here
    __syncwarp();  // here
}

CONSONANCE_KERNEL(writes_params, Memory, 32, 1) {
    *const_cast<uint32_t*>(&p.count) = 0;  // here
}

// As a last block should not: without the fence, the barrier before it, or the barrier behind it.
__device__ __forceinline__ void last_block(const Memory& p, bool fence, bool before, bool behind) {
    if (threadIdx.x == 33) VALUES[2 + blockIdx.x] = 1;  // here
    if (before) __syncthreads();
    if (fence) __threadfence();
    if (threadIdx.x == 0) {
        SHARED[0] = atomicAdd(VALUES, 1u);
    }
    if (behind) {
        __syncthreads();
        if (SHARED[0] != gridDim.x - 1 || threadIdx.x != 0) return;
    } else if (threadIdx.x != 32) {
        return;
    }
    for (uint32_t block = 0; block < gridDim.x; ++block) VALUES[1] = VALUES[2 + block];  // here
}

CONSONANCE_KERNEL(last_block_without_fence, Memory, 64, 1) { last_block(p, false, true, true); }
CONSONANCE_KERNEL(last_block_without_barrier, Memory, 64, 1) { last_block(p, true, false, true); }
CONSONANCE_KERNEL(last_block_without_waiting, Memory, 64, 1) { last_block(p, true, true, false); }

CONSONANCE_KERNEL(endless, Memory, 32, 1) {
    while (atomicAdd(VALUES, 0u) != 1) {  // here
    }
}

CONSONANCE_KERNEL(nothing, Memory, 32, 1) {}
