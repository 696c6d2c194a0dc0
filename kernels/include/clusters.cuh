// What k-means on chip and k-means on streamed rows share: rows and centroids in the hands of 16 lanes, the nearest
// centroids, lists of the clusters' rows, draws, empty clusters.
//
// What decides is the score −‖c‖²/2 + ⟨x, c⟩ (⟨x, c⟩ on the sphere) in f32: 16 chains of fused multiply-adds, lane l over the
// dimensions l, l + 16, …, added up by halves: the order of crates/cpu/src/simd.rs, so both backends choose alike.
// Norms, distances and sums are in f64, which holds what f32 and 16-bit rows add up to.
//
// Every thread of a block calls these functions together unless they say otherwise.
#pragma once

#include "pairs.cuh"
#include "warp.cuh"

constexpr uint32_t GROUP = 16;
constexpr uint32_t GROUPS = CLUSTER_THREADS / GROUP;
constexpr uint32_t CLUSTER_WARPS = CLUSTER_THREADS / 32;
// Rows of a group, and centroids, that are multiplied at a time.
constexpr uint32_t SIDE = 4;

__device__ __forceinline__ uint32_t group_lane() { return threadIdx.x % GROUP; }
__device__ __forceinline__ uint32_t group_number() { return threadIdx.x / GROUP; }

// The sum over the lanes of a group, in each of them.
__device__ __forceinline__ double sum_of_group(double value) {
#pragma unroll
    for (int step = GROUP / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}

// The sum over the block in a fixed order, in every thread; `of_warps` has a number a warp.
__device__ __forceinline__ double sum_of_threads(double value, double* of_warps) {
    value = sum_of_group(value);
    value += __shfl_xor_sync(ALL_LANES, value, 16);
    if (lane_index() == 0) {
        of_warps[threadIdx.x / 32] = value;
    }
    __syncthreads();
    double sum = 0.0;
    for (uint32_t warp = 0; warp < CLUSTER_WARPS; ++warp) {
        sum += of_warps[warp];
    }
    // All have read before the next sum is written.
    __syncthreads();
    return sum;
}

// Rows in shared memory as they are stored, and what makes of them the rows that are clustered: on the sphere each is
// multiplied by the inverse of its norm; far from the origin the first row of the class is subtracted. Of the two at most
// one is not trivial, so that a fused operation rounds as two do.
template <class T>
struct ClusterRows {
    T* data;
    float* inverses;
    const float* shift;
    uint32_t dim;
    uint32_t distance;

    __device__ __forceinline__ float value(uint32_t row, uint32_t d) const {
        return to_f32(data[row * distance + d]) * inverses[row] - shift[d];
    }
};

// Starts to copy the rows at `count` positions of the order of the classes; after a wait and a barrier they are there.
template <class T>
__device__ __forceinline__ void copy_rows(const Clusters& p, const ClusterRows<T>& to, uint32_t first, uint32_t count) {
    const bool chunked = is_chunked(p.points, p.stride, sizeof(T));
    const uint32_t whole = chunked ? p.dim / CHUNK<T> * CHUNK<T> : 0;
    for (uint32_t row = threadIdx.x / 32; row < count; row += CLUSTER_WARPS) {
        uint32_t number = lane_index() == 0 ? array<uint32_t>(p.members)[first + row] : 0;
        number = __shfl_sync(ALL_LANES, number, 0);
        const T* const from = array<T>(p.points) + number * p.stride;
        T* const row_to = to.data + row * to.distance;
        for (uint32_t d = lane_index() * CHUNK<T>; d < whole; d += 32 * CHUNK<T>) {
            ptx::copy_async<16>(row_to + d, from + d, 16);
        }
        for (uint32_t d = whole + lane_index(); d < p.dim; d += 32) {
            row_to[d] = from[d];
        }
    }
    ptx::copy_async_commit();
}

// ‖x‖² of a row as it is stored; all lanes of the warp together.
template <class T>
__device__ __forceinline__ double stored_norm(const ClusterRows<T>& rows, uint32_t row) {
    double sum = 0.0;
    for (uint32_t d = group_lane(); d < rows.dim; d += GROUP) {
        const double x = to_f32(rows.data[row * rows.distance + d]);
        sum = fma(x, x, sum);
    }
    return sum_of_group(sum);
}

// Norms and inverses of the rows in shared memory; reports those that cannot be clustered. Squared norms of rows as they are
// clustered before a shift, for moments: 1 on the sphere, where they are not needed.
template <class T, class Take>
__device__ __forceinline__ void measure_rows(const Clusters& p, const ClusterRows<T>& rows, uint32_t first,
                                             uint32_t count, const Take& take) {
    for (uint32_t start = 0; start < count; start += GROUPS) {
        const uint32_t row = start + group_number();
        const double norm = stored_norm(rows, row < count ? row : count - 1);
        if (row < count && group_lane() == 0) {
            // No f32 score overflows.
            const bool good = norm <= 0x1.fffffep+123 && !(p.unit != 0 && norm == 0.0);
            if (!good) {
                atomicMin(output<uint32_t>(p.status), array<uint32_t>(p.members)[first + row]);
            }
            const float inverse = p.unit != 0 ? static_cast<float>(1.0 / sqrt(norm)) : 1.0f;
            rows.inverses[row] = inverse;
            take(row, norm, inverse);
        }
    }
}

// ‖x − c‖² of a row; all lanes of the warp together.
template <class T, class Center>
__device__ __forceinline__ double squared_distance(const ClusterRows<T>& rows, uint32_t row, const Center& center) {
    double sum = 0.0;
    for (uint32_t d = group_lane(); d < rows.dim; d += GROUP) {
        const double difference = static_cast<double>(rows.value(row, d)) - static_cast<double>(center(d));
        sum = fma(difference, difference, sum);
    }
    return sum_of_group(sum);
}

// The two best centroids of a row under the total order (score descending, index ascending).
struct Nearest {
    float score = -INFINITY;
    float second_score = -INFINITY;
    uint32_t index = 0;
    uint32_t second = 0;

    // Takes in a centroid behind all that were taken in.
    __device__ __forceinline__ void take(float candidate, uint32_t at) {
        if (candidate > score) {
            second_score = score;
            second = index;
            score = candidate;
            index = at;
        } else if (candidate > second_score) {
            second_score = candidate;
            second = at;
        }
    }

    // Takes in the best ones of a lane `step` away.
    __device__ __forceinline__ void merge(int step) {
        const float other_score = __shfl_xor_sync(ALL_LANES, score, step);
        const float other_second_score = __shfl_xor_sync(ALL_LANES, second_score, step);
        const uint32_t other = __shfl_xor_sync(ALL_LANES, index, step);
        const uint32_t other_second = __shfl_xor_sync(ALL_LANES, second, step);
        const bool wins = other_score > score || (other_score == score && other < index);
        // The better one's second against the worse one.
        const float lower_score = wins ? score : other_score;
        const uint32_t lower = wins ? index : other;
        const float own_score = wins ? other_second_score : second_score;
        const uint32_t own = wins ? other_second : second;
        score = wins ? other_score : score;
        index = wins ? other : index;
        const bool is_lower = lower_score > own_score || (lower_score == own_score && lower < own);
        second_score = is_lower ? lower_score : own_score;
        second = is_lower ? lower : own;
    }
};

// Sums of 2 STEP numbers over the lanes of a group, each added up by halves, of which every lane keeps one.
template <int STEP, int COUNT>
__device__ __forceinline__ void fold_halves(float (&sums)[COUNT]) {
    const bool upper = (group_lane() & STEP) != 0;
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
        const float kept = upper ? sums[i + STEP] : sums[i];
        const float sent = upper ? sums[i] : sums[i + STEP];
        sums[i] = kept + __shfl_xor_sync(ALL_LANES, sent, STEP);
    }
    if constexpr (STEP > 1) {
        fold_halves<STEP / 2>(sums);
    }
}

// Calls take(row, nearest) in one thread for every row, with the nearest of `clusters` centroids [clusters, dim], which
// may be in shared or global memory. A group multiplies SIDE rows with SIDE centroids at a time; every lane keeps the
// best centroid of one row among every SIDE-th, and the lanes compare at the end.
template <class T, class Take>
__device__ __forceinline__ void find_nearest(const ClusterRows<T>& rows, uint32_t count, const float* centers,
                                             const float* starts, uint32_t clusters, const Take& take) {
    for (uint32_t start = 0; start < count; start += GROUPS * SIDE) {
        const uint32_t first = start + group_number() * SIDE;
        // The last row and the last centroid stand for those that are missing.
        uint32_t own[SIDE];
#pragma unroll
        for (uint32_t i = 0; i < SIDE; ++i) {
            own[i] = first + i < count ? first + i : count - 1;
        }
        Nearest nearest;
        for (uint32_t center = 0; center < clusters; center += SIDE) {
            const float* others[SIDE];
#pragma unroll
            for (uint32_t j = 0; j < SIDE; ++j) {
                const uint32_t at = center + j < clusters ? center + j : clusters - 1;
                others[j] = centers + static_cast<uint64_t>(at) * rows.dim;
            }
            float sums[SIDE * SIDE] = {};
            for (uint32_t d = group_lane(); d < rows.dim; d += GROUP) {
                float x[SIDE];
#pragma unroll
                for (uint32_t i = 0; i < SIDE; ++i) {
                    x[i] = rows.value(own[i], d);
                }
#pragma unroll
                for (uint32_t j = 0; j < SIDE; ++j) {
                    const float c = others[j][d];
#pragma unroll
                    for (uint32_t i = 0; i < SIDE; ++i) {
                        sums[i * SIDE + j] = fmaf(x[i], c, sums[i * SIDE + j]);
                    }
                }
            }
            // Lane l has sum number l then.
            fold_halves<GROUP / 2>(sums);
            const uint32_t at = center + group_lane() % SIDE;
            if (at < clusters) {
                nearest.take(sums[0] + starts[at], at);
            }
        }
        nearest.merge(1);
        nearest.merge(2);
        const uint32_t row = first + group_lane() / SIDE;
        if (group_lane() % SIDE == 0 && row < count) {
            take(row, nearest);
        }
    }
}

// The rows of each cluster, in their order: rows[firsts[c]..firsts[c + 1]]. All in shared memory; ends with a barrier.
__device__ __forceinline__ void list_clusters(const uint32_t* cluster_of, uint32_t count, uint32_t clusters,
                                              uint32_t* firsts, uint32_t* rows) {
    const uint32_t warp = threadIdx.x / 32;
    const auto each_row = [&](uint32_t cluster, const auto& visit) {
        for (uint32_t first = 0; first < count; first += 32) {
            const uint32_t row = first + lane_index();
            const uint32_t votes = __ballot_sync(ALL_LANES, row < count && cluster_of[row] == cluster);
            visit(row, votes);
        }
    };
    for (uint32_t cluster = warp; cluster < clusters; cluster += CLUSTER_WARPS) {
        uint32_t size = 0;
        each_row(cluster, [&](uint32_t, uint32_t votes) { size += __popc(votes); });
        if (lane_index() == 0) {
            firsts[cluster + 1] = size;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        firsts[0] = 0;
        for (uint32_t cluster = 0; cluster < clusters; ++cluster) {
            firsts[cluster + 1] += firsts[cluster];
        }
    }
    __syncthreads();
    for (uint32_t cluster = warp; cluster < clusters; cluster += CLUSTER_WARPS) {
        uint32_t place = firsts[cluster];
        each_row(cluster, [&](uint32_t row, uint32_t votes) {
            if ((votes >> lane_index() & 1) != 0) {
                rows[place + __popc(votes & ((1u << lane_index()) - 1))] = row;
            }
            place += __popc(votes);
        });
    }
    __syncthreads();
}

// What a block knows when it draws or looks for the farthest row: THREADS + 1 numbers and 4 words.
struct ClusterTable {
    double* numbers;
    uint32_t* words;
};

// The row at which the running sum of the weights, in the order of the rows, passes `u` times their total; the last row
// of positive weight when rounding keeps it below; without one the first row of weight 0. Chosen rows have weight −1.
__device__ __forceinline__ uint32_t draw_row(const double* weights, uint32_t count, double u, const ClusterTable& table) {
    const uint32_t each = (count + CLUSTER_THREADS - 1) / CLUSTER_THREADS;
    const uint32_t first = threadIdx.x * each < count ? threadIdx.x * each : count;
    const uint32_t end = count - first < each ? count : first + each;
    if (threadIdx.x == 0) {
        table.words[0] = NONE;
        table.words[1] = 0;
        table.words[2] = NONE;
    }
    __syncthreads();
    double sum = 0.0;
    for (uint32_t row = first; row < end; ++row) {
        const double weight = weights[row];
        if (weight > 0.0) {
            sum += weight;
            atomicMax(table.words + 1, row + 1);
        } else if (weight == 0.0) {
            atomicMin(table.words + 2, row);
        }
    }
    table.numbers[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double running = 0.0;
        for (uint32_t thread = 0; thread < CLUSTER_THREADS; ++thread) {
            const double own = table.numbers[thread];
            table.numbers[thread] = running;
            running += own;
        }
        table.numbers[CLUSTER_THREADS] = running;
    }
    __syncthreads();
    const double target = __dmul_rn(u, table.numbers[CLUSTER_THREADS]);
    double running = table.numbers[threadIdx.x];
    for (uint32_t row = first; row < end; ++row) {
        const double weight = weights[row];
        if (weight > 0.0) {
            running += weight;
            if (running > target) {
                atomicMin(table.words, row);
                break;
            }
        }
    }
    __syncthreads();
    uint32_t row = table.words[0];
    if (row == NONE) {
        row = table.words[1] > 0 ? table.words[1] - 1 : table.words[2] != NONE ? table.words[2] : 0;
    }
    // All have read before the next draw.
    __syncthreads();
    return row;
}

// Gives every empty cluster, in their order, the row farthest from its own centroid (distance descending, row ascending)
// among clusters that keep another row; rows that coincide with their centroid stay. A row that was moved is alone in its
// cluster, so it is not looked at again. Clusters are counted from `base` in `cluster_of`.
__device__ __forceinline__ void fill_empty(const double* far, uint32_t* cluster_of, uint32_t base, uint32_t count,
                                           uint32_t* sizes, uint32_t clusters, const ClusterTable& table) {
    for (uint32_t cluster = 0; cluster < clusters; ++cluster) {
        if (sizes[cluster] > 0) {
            continue;
        }
        double farthest = 0.0;
        uint32_t at = NONE;
        for (uint32_t row = threadIdx.x; row < count; row += CLUSTER_THREADS) {
            if (far[row] > farthest && sizes[cluster_of[row] - base] > 1) {
                farthest = far[row];
                at = row;
            }
        }
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const double other = __shfl_xor_sync(ALL_LANES, farthest, step);
            const uint32_t its = __shfl_xor_sync(ALL_LANES, at, step);
            if (other > farthest || (other == farthest && its < at)) {
                farthest = other;
                at = its;
            }
        }
        if (lane_index() == 0) {
            table.numbers[threadIdx.x / 32] = farthest;
            table.numbers[CLUSTER_WARPS + threadIdx.x / 32] = at;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (uint32_t warp = 1; warp < CLUSTER_WARPS; ++warp) {
                const double other = table.numbers[warp];
                const auto its = static_cast<uint32_t>(table.numbers[CLUSTER_WARPS + warp]);
                if (other > farthest || (other == farthest && its < at)) {
                    farthest = other;
                    at = its;
                }
            }
            table.words[0] = at;
            if (at != NONE) {
                sizes[cluster_of[at] - base] -= 1;
                sizes[cluster] = 1;
                cluster_of[at] = base + cluster;
            }
        }
        __syncthreads();
        const bool none = table.words[0] == NONE;
        // All have read before the next cluster.
        __syncthreads();
        if (none) {
            return;
        }
    }
}

// What the mean of a class's rows says about it.
struct ClusterMoments {
    // The mean squared distance of the rows from their mean.
    double variance;
    // Whether the class lies far from the origin compared with its extent: scores would cancel there.
    bool shifts;
};

// From the sums of the rows over the dimensions, and of their squared norms.
__device__ __forceinline__ ClusterMoments moments_of(const double* sums, double squares, uint32_t rows, uint32_t dim,
                                                     bool unit) {
    double far = 0.0;
    for (uint32_t d = 0; d < dim; ++d) {
        const double mean = sums[d] / rows;
        far = __dadd_rn(far, __dmul_rn(mean, mean));
    }
    const double square = unit ? 1.0 : squares / rows;
    const double variance = square - far > 0.0 ? square - far : 0.0;
    return {variance, !unit && far > 4.0 * variance};
}

// One centroid as the lanes of a group move it.
struct MovedCenter {
    // f64 [dim]: the sum of its rows.
    const double* sums;
    // f32 [dim]: the place as rows are compared with it, and as the user sees it.
    float* center;
    float* result;
    const float* shift;
    uint32_t dim;
    bool unit;

    // −‖c‖²/2 of the place that rows are compared with; all lanes of the warp together.
    __device__ __forceinline__ float start() const {
        double squares = 0.0;
        for (uint32_t d = group_lane(); d < dim; d += GROUP) {
            const double c = center[d];
            squares = fma(c, c, squares);
        }
        squares = sum_of_group(squares);
        return unit ? 0.0f : static_cast<float>(-0.5 * squares);
    }

    __device__ __forceinline__ void place(uint32_t d, double value) const {
        center[d] = static_cast<float>(value);
        result[d] = static_cast<float>(value + static_cast<double>(shift[d]));
    }

    // Moves to the mean of `size` rows, or to their direction on the sphere, and returns the squared movement; a cluster
    // without rows, or whose rows cancel, stays. All lanes of the warp together.
    __device__ __forceinline__ double move(uint32_t size) const {
        double length = size;
        if (unit) {
            double squares = 0.0;
            for (uint32_t d = group_lane(); d < dim; d += GROUP) {
                squares = fma(sums[d], sums[d], squares);
            }
            length = sqrt(sum_of_group(squares));
        }
        const bool moves = size > 0 && (!unit || length > size * 0x1p-30);
        double movement = 0.0;
        for (uint32_t d = group_lane(); moves && d < dim; d += GROUP) {
            const double before = center[d];
            place(d, sums[d] / length);
            const double difference = before - static_cast<double>(center[d]);
            movement = fma(difference, difference, movement);
        }
        return sum_of_group(movement);
    }
};
