// Kernels without a fault, whose results are known.
#include <simt/device.h>

struct Sum {
    uint64_t values;
    uint64_t sums;
    uint32_t count;
    uint32_t unused;
};

// One sum of 128 values per block, halved in shared memory.
CONSONANCE_KERNEL(block_sum, Sum, 128, 1) {
    const auto* values = reinterpret_cast<const uint32_t*>(p.values);
    auto* partial = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const uint32_t i = blockIdx.x * 128 + threadIdx.x;
    partial[threadIdx.x] = i < p.count ? values[i] : 0;
    __syncthreads();
    for (uint32_t half = 64; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) reinterpret_cast<uint32_t*>(p.sums)[blockIdx.x] = partial[0];
}

// The sum of all values: the last block to finish adds the blocks' sums, which lie behind a counter.
CONSONANCE_KERNEL(last_block_sum, Sum, 64, 1) {
    auto* counter = reinterpret_cast<uint32_t*>(p.sums);
    auto* shared = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const uint32_t i = blockIdx.x * 64 + threadIdx.x;
    uint32_t value = i < p.count ? reinterpret_cast<const uint32_t*>(p.values)[i] : 0;
    value = __reduce_add_sync(0xffffffffu, value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        counter[2 + blockIdx.x] = shared[0] + shared[1];
        __threadfence();
        shared[2] = atomicAdd(counter, 1u);
    }
    __syncthreads();
    if (shared[2] != gridDim.x - 1 || threadIdx.x != 0) return;
    uint32_t total = 0;
    for (uint32_t block = 0; block < gridDim.x; ++block) total += counter[2 + block];
    counter[1] = total;
}

struct Lanes {
    uint64_t out;
};

// What every shuffle, vote and reduction gives to each lane: one row of 32 words each.
CONSONANCE_KERNEL(warp_words, Lanes, 32, 1) {
    auto* out = reinterpret_cast<uint32_t*>(p.out) + threadIdx.x;
    const unsigned lane = threadIdx.x;
    const unsigned all = 0xffffffffu;
    int row = 0;
    const auto put = [&](uint32_t word) { out[32 * row++] = word; };
    put(__shfl_sync(all, 100 + lane, (lane * 7 + 3) % 32));
    put(__shfl_sync(all, 100 + lane, 2, 8));
    put(__shfl_up_sync(all, 100 + lane, 3));
    put(__shfl_down_sync(all, 100 + lane, 5, 16));
    put(__shfl_xor_sync(all, 100 + lane, 9));
    put(__ballot_sync(all, lane % 3 == 0));
    put(static_cast<uint32_t>(__any_sync(all, lane == 31)) | static_cast<uint32_t>(__all_sync(all, lane < 31)) << 1);
    put(__reduce_min_sync(all, lane ^ 21u));
    put(static_cast<uint32_t>(__reduce_max_sync(all, static_cast<int>(lane) - 40)));
    put(__reduce_add_sync(all, lane));
    put(__match_any_sync(all, lane / 5));
    const uint64_t wide = __shfl_xor_sync(all, static_cast<uint64_t>(lane) << 40 | 7, 1);
    put(static_cast<uint32_t>(wide >> 40) + static_cast<uint32_t>(wide));
    put(__float_as_uint(__shfl_down_sync(all, 0.5f * lane, 1)));
    // Half of a warp by itself.
    uint32_t half = 0;
    if (lane < 16) half = __reduce_add_sync(0x0000ffffu, lane);
    put(half);
}

struct Product {
    uint64_t a;
    uint64_t b;
    uint64_t sums;
    uint64_t loaded;
    uint32_t f16;
    uint32_t unused;
};

// 16 × 16 times 16 × 8 (b by columns), and what the two matrix loads give.
CONSONANCE_KERNEL(product, Product, 32, 1) {
    unsigned char* shared = ptx::shared_memory();
    const unsigned lane = threadIdx.x;
    const auto* a = reinterpret_cast<const unsigned char*>(p.a);
    const auto* b = reinterpret_cast<const unsigned char*>(p.b);
    ptx::store_16(shared + 16 * lane, ptx::load_16(a + 16 * lane));
    ptx::store_8(shared + 512 + 8 * lane, ptx::load_8(b + 8 * lane));
    __syncwarp();
    // Rows of 32 bytes; the four matrices are (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
    const unsigned char* row = shared + lane % 16 * 32 + lane / 16 * 16;
    uint32_t fragment[4], transposed[4];
    ptx::load_matrices_4(fragment, row);
    ptx::load_matrices_4_transposed(transposed, row);
    const unsigned g = lane / 4, t = lane % 4;
    const auto* column = reinterpret_cast<const uint32_t*>(shared + 512 + g * 32);
    const uint32_t right[2] = {column[t], column[t + 4]};
    auto* sums = reinterpret_cast<float*>(p.sums);
    float sum[4];
    for (unsigned i = 0; i < 4; ++i) sum[i] = sums[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    if (p.f16 != 0) {
        ptx::multiply_add_f16(sum, fragment, right);
    } else {
        ptx::multiply_add_bf16(sum, fragment, right);
    }
    for (unsigned i = 0; i < 4; ++i) {
        sums[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum[i];
        reinterpret_cast<uint32_t*>(p.loaded)[i * 32 + lane] = fragment[i];
        reinterpret_cast<uint32_t*>(p.loaded)[(4 + i) * 32 + lane] = transposed[i];
    }
}

// Rows of 64 words through a ring of three stages, the last row shorter: every thread adds its column.
CONSONANCE_KERNEL(pipeline, Sum, 64, 1) {
    constexpr uint32_t STAGES = 3;
    auto* ring = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const auto* values = reinterpret_cast<const uint32_t*>(p.values);
    const uint32_t rows = (p.count + 63) / 64;
    const auto fetch = [&](uint32_t row) {
        if (row < rows && threadIdx.x < 16) {
            const uint32_t first = row * 64 + threadIdx.x * 4;
            const int left = static_cast<int>(p.count) - static_cast<int>(first);
            const int bytes = max(0, min(4, left)) * 4;
            ptx::copy_async<16>(ring + row % STAGES * 64 + threadIdx.x * 4, bytes > 0 ? values + first : values,
                                bytes);
        }
        ptx::copy_async_commit();
    };
    for (uint32_t row = 0; row < STAGES - 1; ++row) fetch(row);
    uint32_t sum = 0;
    for (uint32_t row = 0; row < rows; ++row) {
        ptx::copy_async_wait<STAGES - 2>();
        __syncthreads();
        fetch(row + STAGES - 1);
        // Neighbors' columns, so that a missing barrier would be a race.
        sum += ring[row % STAGES * 64 + (threadIdx.x + 17) % 64];
    }
    reinterpret_cast<uint32_t*>(p.sums)[(threadIdx.x + 17) % 64] = sum;
}

// A histogram of values below 16 in shared memory, and the smallest and largest value of all.
CONSONANCE_KERNEL(histogram, Sum, 96, 1) {
    auto* bins = reinterpret_cast<unsigned*>(ptx::shared_memory());
    if (threadIdx.x < 16) bins[threadIdx.x] = 0;
    __syncthreads();
    auto* sums = reinterpret_cast<unsigned*>(p.sums);
    const uint32_t i = blockIdx.x * 96 + threadIdx.x;
    if (i < p.count) {
        const unsigned value = reinterpret_cast<const unsigned*>(p.values)[i];
        atomicAdd(bins + value, 1u);
        atomicMin(sums + 16, value);
        atomicMax(sums + 17, value);
        atomicAdd(reinterpret_cast<unsigned long long*>(sums + 18), 1ull << 32 | value);
    }
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(sums + threadIdx.x, bins[threadIdx.x]);
}

struct Conversions {
    uint64_t floats;
    uint64_t out;
    uint32_t count;
    uint32_t unused;
};

CONSONANCE_KERNEL(conversions, Conversions, 32, 1) {
    const auto* floats = reinterpret_cast<const float*>(p.floats);
    auto* out = reinterpret_cast<uint32_t*>(p.out);
    for (uint32_t i = threadIdx.x; i < p.count; i += 32) {
        out[4 * i] = ptx::f32_to_f16_pair(floats[i], ptx::f16_to_f32(ptx::f32_to_f16(floats[i])));
        out[4 * i + 1] = ptx::f32_to_bf16_pair(floats[i], -floats[i]);
        out[4 * i + 2] = __float_as_uint(ptx::f16_to_f32(static_cast<uint16_t>(i)));
        out[4 * i + 3] = __float_as_uint(ptx::exp2_fast(floats[i]));
    }
}

struct Work {
    uint64_t sums;
    uint32_t rounds;
    uint32_t unused;
};

// Products and nothing else: how fast the simulation is.
CONSONANCE_KERNEL(many_products, Work, 256, 1) {
    float sum[4] = {};
    const uint32_t ones = 0x3f803f80u;
    const uint32_t a[4] = {ones, ones, ones, ones};
    const uint32_t b[2] = {ones, ones};
    for (uint32_t round = 0; round < p.rounds; ++round) ptx::multiply_add_bf16(sum, a, b);
    reinterpret_cast<float*>(p.sums)[blockIdx.x * 256 + threadIdx.x] = sum[0] + sum[1] + sum[2] + sum[3];
}

// Accesses to shared memory and little else.
CONSONANCE_KERNEL(many_accesses, Work, 256, 1) {
    auto* shared = reinterpret_cast<volatile uint32_t*>(ptx::shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    __syncthreads();
    uint32_t sum = 0;
    for (uint32_t round = 0; round < p.rounds; ++round) sum += shared[(threadIdx.x + round) % 256];
    reinterpret_cast<uint32_t*>(p.sums)[blockIdx.x * 256 + threadIdx.x] = sum;
}
