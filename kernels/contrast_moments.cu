// contrast_moments: sums over all rows of one side, in the place of sums over the positives of every row of the other.
//
// With w_ij = ½ (1 + ⟨ô_i, ô_j⟩) on all keys that can be positives, a positive's weight is linear in ô_j:
//
//   Σ_j w_ij [y_j, 1] = ½ [ô_i, 1] · M,   M = Σ_j [ô_j, 1]ᵀ [y_j, 1]        (old_dim + 1) × (dim + 1)
//
// and without affinity M = Σ_j [y_j, 1]. The last row of M has the sums of the keys, its last element their number. The
// keys' gradient takes M = Σ_i c_i [ô_i, 1]ᵀ x_i of the queries.
//
//   sum    a part of M by each block, over a split of the rows
//   join   adds the splits in their order
//   apply  ½ [ô, 1] · M for every row of the other side, written or subtracted
//
// Operations: sum and apply 2 rows (old_dim + 1)(dim + 1) in f32, where a product with every pair would take
// 2 B N old_dim.
#include "affinity.cuh"
#include "kernel.cuh"

namespace {

constexpr uint32_t CHUNK_ROWS = 32;
// Each thread of a block has OWN_ROWS × OWN_COLS elements of its part of M.
constexpr uint32_t OWN_ROWS = 4;
constexpr uint32_t OWN_COLS = 4;
constexpr uint32_t THREADS_ALONG = MOMENT_COLS / OWN_COLS;
static_assert(MOMENT_ROWS / OWN_ROWS * THREADS_ALONG == TILE_THREADS, "every element has its thread");

struct SumShared {
    float left[CHUNK_ROWS][MOMENT_ROWS];
    float right[CHUNK_ROWS][MOMENT_COLS];
};
static_assert(sizeof(SumShared) == CHUNK_ROWS * (MOMENT_ROWS + MOMENT_COLS) * sizeof(float), "as the host says");

__device__ __forceinline__ bool is_counted(const ContrastMoments& p, uint32_t row) {
    return row < p.row_count && bit_at(p.valid, row) && bit_at(p.credible, row);
}

// Element `at` of [ô, 1].
__device__ __forceinline__ float left_element(const ContrastMoments& p, uint32_t row, uint32_t at) {
    if (at >= p.old_dim) {
        return at == p.old_dim ? 1.0f : 0.0f;
    }
    return old_element(p.old, p.old_type, row * p.old_stride + at) * array<float>(p.old_inverses)[row];
}

template <class T>
__device__ __forceinline__ float right_element(const ContrastMoments& p, uint32_t row, uint32_t at) {
    return at < p.dim ? to_f32(array<T>(p.rows)[row * p.stride + at]) : at == p.dim ? 1.0f : 0.0f;
}

template <class T>
__device__ __forceinline__ void sum(const ContrastMoments& p) {
    auto& shared = *reinterpret_cast<SumShared*>(ptx::shared_memory());
    const KeyRange range = split_range({0, p.row_count}, blockIdx.z, p.splits);
    const uint32_t first_left = blockIdx.x * MOMENT_ROWS;
    const uint32_t first_right = blockIdx.y * MOMENT_COLS;
    const uint32_t left = threadIdx.x / THREADS_ALONG * OWN_ROWS;
    const uint32_t right = threadIdx.x % THREADS_ALONG * OWN_COLS;
    float total[OWN_ROWS][OWN_COLS] = {};
    for (uint32_t first = range.first; first < range.end; first += CHUNK_ROWS) {
        for (uint32_t i = threadIdx.x; i < CHUNK_ROWS * MOMENT_ROWS; i += TILE_THREADS) {
            const uint32_t row = first + i / MOMENT_ROWS;
            const bool counts = row < range.end && is_counted(p, row);
            const float weight = counts && p.weights != 0 ? array<float>(p.weights)[row] : 1.0f;
            shared.left[i / MOMENT_ROWS][i % MOMENT_ROWS] =
                counts ? weight * left_element(p, row, first_left + i % MOMENT_ROWS) : 0.0f;
        }
        for (uint32_t i = threadIdx.x; i < CHUNK_ROWS * MOMENT_COLS; i += TILE_THREADS) {
            const uint32_t row = first + i / MOMENT_COLS;
            shared.right[i / MOMENT_COLS][i % MOMENT_COLS] =
                row < range.end ? right_element<T>(p, row, first_right + i % MOMENT_COLS) : 0.0f;
        }
        __syncthreads();
        float chunk[OWN_ROWS][OWN_COLS] = {};
        for (uint32_t row = 0; row < CHUNK_ROWS; ++row) {
#pragma unroll
            for (uint32_t i = 0; i < OWN_ROWS * OWN_COLS; ++i) {
                chunk[i / OWN_COLS][i % OWN_COLS] =
                    fmaf(shared.left[row][left + i / OWN_COLS], shared.right[row][right + i % OWN_COLS],
                         chunk[i / OWN_COLS][i % OWN_COLS]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < OWN_ROWS * OWN_COLS; ++i) {
            total[i / OWN_COLS][i % OWN_COLS] += chunk[i / OWN_COLS][i % OWN_COLS];
        }
        // All have read the chunk before it is overwritten.
        __syncthreads();
    }
    const uint64_t split = static_cast<uint64_t>(blockIdx.z) * (p.old_dim + 1);
#pragma unroll
    for (uint32_t i = 0; i < OWN_ROWS * OWN_COLS; ++i) {
        const uint32_t row = first_left + left + i / OWN_COLS;
        const uint32_t col = first_right + right + i % OWN_COLS;
        if (row <= p.old_dim && col <= p.dim) {
            output<float>(p.partials)[(split + row) * (p.dim + 1) + col] = total[i / OWN_COLS][i % OWN_COLS];
        }
    }
}

}  // namespace

CONSONANCE_KERNEL(contrast_moments_sum_f32, ContrastMoments, TILE_THREADS, 4) { sum<float>(p); }
CONSONANCE_KERNEL(contrast_moments_sum_f16, ContrastMoments, TILE_THREADS, 4) { sum<f16>(p); }
CONSONANCE_KERNEL(contrast_moments_sum_bf16, ContrastMoments, TILE_THREADS, 4) { sum<bf16>(p); }

// One thread an element.
CONSONANCE_KERNEL(contrast_moments_join, ContrastMoments, TILE_THREADS, 4) {
    const uint64_t elements = static_cast<uint64_t>(p.old_dim + 1) * (p.dim + 1);
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * TILE_THREADS + threadIdx.x;
    if (at >= elements) {
        return;
    }
    float sum = 0.0f;
    for (uint32_t split = 0; split < p.splits; ++split) {
        sum += array<float>(p.partials)[split * elements + at];
    }
    output<float>(p.moments)[at] = sum;
}

// One block MOMENT_APPLIED rows, whose [ô, 1] are in shared memory.
CONSONANCE_KERNEL(contrast_moments_apply, ContrastMoments, TILE_THREADS, 4) {
    auto* const left = reinterpret_cast<float*>(ptx::shared_memory());
    const uint32_t first = blockIdx.x * MOMENT_APPLIED;
    const uint32_t width = p.old_dim + 1;
    const float scale = p.old != 0 ? 0.5f : 1.0f;
    for (uint32_t i = threadIdx.x; i < MOMENT_APPLIED * width; i += TILE_THREADS) {
        const uint32_t row = first + i / width;
        left[i] = is_counted(p, row) ? scale * left_element(p, row, i % width) : 0.0f;
    }
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < p.applied_dim; d += TILE_THREADS) {
        float sums[MOMENT_APPLIED] = {};
        for (uint32_t l = 0; l < width; ++l) {
            const float moment = array<float>(p.moments)[static_cast<uint64_t>(l) * (p.dim + 1) + d];
#pragma unroll
            for (uint32_t i = 0; i < MOMENT_APPLIED; ++i) {
                sums[i] = fmaf(left[i * width + l], moment, sums[i]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < MOMENT_APPLIED; ++i) {
            if (first + i < p.row_count) {
                float* const to = output<float>(p.applied) + static_cast<uint64_t>(first + i) * p.applied_stride + d;
                *to = p.subtracts != 0 ? *to - sums[i] : sums[i];
            }
        }
    }
}
