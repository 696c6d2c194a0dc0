// bank: what outlives a step. Rows pushed into the slots of a ring, and centers of classes.
//
//   push      rows, labels, ids and credibility into slots start, start + 1, … mod capacity, in one launch; embeddings are
//             rounded to the ring's type. The host leaves out rows that later ones of the same push would overwrite.
//   centers   center of class k ← m · center + (1 − m) · mean of the rows labeled k, to norm 1 or as it is; the sum in f32
//             in the order of the positions. The first position of a class owns its center. The same kernel runs twice: to
//             check, and to write unless a check has found something.
//
// Grids: push: a warp a row; centers: a block a position. Traffic: every row read once, every slot or center written once
// (centers: read once as well), the labels once a block.
// Shared memory: centers: one row in f32, and a word a warp twice (centers_shared_bytes in src/cuda/bank.rs).
#include "floats.cuh"
#include "kernel.cuh"
#include "positions.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

// Words of the status.
enum Word { LABELS, ROWS, CENTERS };

// Writes an embedding of some type, its elements shared by a warp.
template <class From, class T>
__device__ __forceinline__ void store_row(T* to, const From* from, uint32_t dim) {
    for (uint32_t d = lane_index(); d < dim; d += 32) {
        store_rounded(to + d, to_f32(from[d]));
    }
}

template <class T>
__device__ __forceinline__ void push(const BankPush& p) {
    const uint32_t row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= p.row_count) {
        return;
    }
    // Both are below the capacity, whose double may be beyond 32 bits.
    const uint32_t rest = p.capacity - p.start;
    const uint32_t slot = row < rest ? p.start + row : row - rest;
    T* const to = output<T>(p.keys) + static_cast<uint64_t>(slot) * p.dim;
    const uint64_t first = row * p.row_stride;
    switch (p.row_type) {
        case TYPE_F16: store_row(to, array<f16>(p.rows) + first, p.dim); break;
        case TYPE_BF16: store_row(to, array<bf16>(p.rows) + first, p.dim); break;
        default: store_row(to, array<float>(p.rows) + first, p.dim); break;
    }
    if (lane_index() == 0) {
        output<uint32_t>(p.labels)[slot] = array<uint32_t>(p.row_labels)[row];
        output<uint32_t>(p.ids)[slot] = p.row_ids != 0 ? array<uint32_t>(p.row_ids)[row] : NONE;
        const bool credible = p.row_credible == 0 || array<unsigned char>(p.row_credible)[row] != 0;
        output<unsigned char>(p.credible)[slot] = credible ? 1 : 0;
    }
}

// Of the two runs the first reports: the second reads the status.
__device__ __forceinline__ void report(const BankCenters& p, Word word, uint32_t row) {
    if (p.write == 0) {
        atomicMin(output<uint32_t>(p.status) + word, row);
    }
}

template <class T>
__device__ __forceinline__ void centers(const BankCenters& p) {
    const uint32_t* const labels = array<uint32_t>(p.labels);
    const uint32_t position = blockIdx.x;
    const uint32_t label = labels[position];
    if (label == NONE) {
        return;
    }
    if (label >= p.center_count) {
        if (threadIdx.x == 0) {
            report(p, LABELS, position);
        }
        return;
    }
    if (p.write != 0) {
        for (uint32_t word = 0; word < CENTERS_STATUS; ++word) {
            if (array<uint32_t>(p.status)[word] != NONE) {
                return;
            }
        }
    }
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    auto* const votes = reinterpret_cast<uint32_t*>(of_warps + POSITION_WARPS);
    // Σ of the rows, then the new center, a dimension a thread.
    auto* const sums = reinterpret_cast<float*>(votes + POSITION_WARPS);
    uint32_t count = 0;
    const bool is_owner = each_position(labels, p.row_count, label, position, votes, [&](uint32_t at) {
        const T* const row = array<T>(p.rows) + at * p.row_stride;
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            const float value = to_f32(row[d]);
            if (!is_finite(value)) {
                report(p, ROWS, at);
            }
            sums[d] = count == 0 ? value : sums[d] + value;
        }
        ++count;
        return true;
    });
    if (!is_owner) {
        return;
    }
    T* const center = output<T>(p.centers) + label * p.center_stride;
    const float old_share = __uint_as_float(p.old_share);
    const float new_share = __uint_as_float(p.new_share);
    float squares = 0.0f;
    for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
        const float mean = sums[d] / static_cast<float>(count);
        const float value = fmaf(old_share, to_f32(center[d]), new_share * mean);
        squares = fmaf(value, value, squares);
        sums[d] = value;
    }
    squares = sum_of_block(squares, of_warps);
    const bool good = is_finite(squares) && (p.normalize == 0 || squares > 0.0f);
    if (!good) {
        if (threadIdx.x == 0) {
            report(p, CENTERS, label);
        }
        return;
    }
    if (p.write != 0) {
        const float norm = p.normalize != 0 ? sqrtf(squares) : 1.0f;
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            store_rounded(center + d, sums[d] / norm);
        }
    }
}

}  // namespace

CONSONANCE_KERNEL(bank_push_f32, BankPush, TILE_THREADS, 4) { push<float>(p); }
CONSONANCE_KERNEL(bank_push_f16, BankPush, TILE_THREADS, 4) { push<f16>(p); }
CONSONANCE_KERNEL(bank_push_bf16, BankPush, TILE_THREADS, 4) { push<bf16>(p); }
CONSONANCE_KERNEL(bank_centers_f32, BankCenters, TILE_THREADS, 4) { centers<float>(p); }
CONSONANCE_KERNEL(bank_centers_f16, BankCenters, TILE_THREADS, 4) { centers<f16>(p); }
CONSONANCE_KERNEL(bank_centers_bf16, BankCenters, TILE_THREADS, 4) { centers<bf16>(p); }
