// gathered: the momentum update of bank rows (memory banks: Wu, Xiong, Yu, Lin, CVPR 2018; Yang et al., AAAI 2022).
//
//   bank row ← norm(m · bank row + (1 − m) · row), in f32, rounded once where it is stored
//
// An index may occur at several positions: they are applied one after the other, in their order, by the block of the
// first of them, which is the one owner of the bank row. The same kernel runs twice: to check, and to write unless a check
// has found something, so that an error leaves the bank as it was.
//
// Grid: one block a position. Traffic: the indices once a block, two rows read and one written a position.
// Shared memory: one row, and a word a warp twice (update_shared_bytes in src/cuda/gathered/update.rs).
#include "floats.cuh"
#include "kernel.cuh"
#include "positions.cuh"

namespace {

// Words of the status.
enum Word { INDICES, ROWS, DIRECTIONS, BANK };

// Of the two runs the first reports: the second reads the status.
__device__ __forceinline__ void report(const GatheredUpdate& p, Word word, uint32_t row) {
    if (p.write == 0) {
        atomicMin(output<uint32_t>(p.status) + word, row);
    }
}

// One block a position. The first position of an index owns its row of the bank, and applies all positions of it.
template <class T>
__device__ __forceinline__ void update(const GatheredUpdate& p) {
    const uint32_t* const indices = array<uint32_t>(p.indices);
    const uint32_t position = blockIdx.x;
    const uint32_t index = indices[position];
    if (index == NONE) {
        return;
    }
    if (index >= p.bank_count) {
        if (threadIdx.x == 0) {
            report(p, INDICES, position);
        }
        return;
    }
    if (p.write != 0) {
        bool clean = true;
        for (uint32_t word = 0; word < UPDATE_STATUS; ++word) {
            clean = clean && array<uint32_t>(p.status)[word] == NONE;
        }
        if (!clean) {
            return;
        }
    }
    // The row as it is stored after each position, in the storage type; what warps know; which threads have a position.
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    auto* const votes = reinterpret_cast<uint32_t*>(of_warps + POSITION_WARPS);
    T* const row = reinterpret_cast<T*>(votes + POSITION_WARPS);
    T* const bank = output<T>(p.bank) + index * p.bank_stride;
    const float old_share = __uint_as_float(p.old_share);
    const float new_share = __uint_as_float(p.new_share);
    const bool applied = each_position(indices, p.row_count, index, position, votes, [&](uint32_t at) {
        if (at == position) {
            // Only the owner reads the row that it writes.
            for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
                row[d] = bank[d];
            }
        }
        const T* const from = array<T>(p.rows) + at * p.row_stride;
        float squares = 0.0f;
        float of_new = 0.0f;
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            const float value = to_f32(from[d]);
            const float sum = fmaf(old_share, to_f32(row[d]), new_share * value);
            squares = fmaf(sum, sum, squares);
            of_new = fmaf(value, value, of_new);
        }
        squares = sum_of_block(squares, of_warps);
        of_new = sum_of_block(of_new, of_warps);
        if (!(squares > 0.0f && is_finite(squares))) {
            if (threadIdx.x == 0) {
                if (!is_finite(of_new)) {
                    report(p, ROWS, at);
                } else if (squares == 0.0f) {
                    report(p, DIRECTIONS, at);
                } else {
                    report(p, BANK, index);
                }
            }
            return false;
        }
        const float norm = sqrtf(squares);
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            const float sum = fmaf(old_share, to_f32(row[d]), new_share * to_f32(from[d]));
            store_rounded(row + d, sum / norm);
        }
        return true;
    });
    if (applied && p.write != 0) {
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            bank[d] = row[d];
        }
    }
}

}  // namespace

CONSONANCE_KERNEL(gathered_update_f32, GatheredUpdate, TILE_THREADS, 4) { update<float>(p); }
CONSONANCE_KERNEL(gathered_update_f16, GatheredUpdate, TILE_THREADS, 4) { update<f16>(p); }
CONSONANCE_KERNEL(gathered_update_bf16, GatheredUpdate, TILE_THREADS, 4) { update<bf16>(p); }
