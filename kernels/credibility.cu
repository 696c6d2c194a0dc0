// credibility: how well every labeled row fits its own class among the centroids of all classes.
//
//   centroids  sums of the rows of every group (class or sub-cluster) in f64, in the order of the rows; means or directions
//   own        distance of every row to the centroid that it belongs to, without the row where others remain; then, with
//              rates, the softmax over the centroids of its own class
//   spread     mean and variance of these distances, for every group
//   rows       the softmax over the centroids of all other classes, how many are nearer than the own ones, and the nearest
//              (assign.cuh): the own ones are left out, as the row is in their sums
//   join       both parts of the softmax: entropy, probability of the own class, margin, decision
//   nearest    the entropy over the m nearest, of the own centroids and a list of others by `neighbors`
//
// Inverse norms and norms are those of soft_assignment_measure_*; scales are chosen by the host from the spreads.
//
// Grids: centroids: a block a group; own, nearest: a warp a row; spread: a warp a group; rows: (tiles of 64 rows, splits of
// the centroids); join: a thread a row. A class's rows are added by one block, one after another.
// Operations: rows as soft_assignment_rows; the others a few for each element of a row and of its own centroids.
// Memory: SOFT_PARTIAL_BYTES a row, as much for each split, 16 bytes a row, 8 an element of the sums.
// Shared memory: centroids: a double a warp.
#include "assign.cuh"
#include "kernel.cuh"
#include "positions.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;
// Directions that cancel leave rounding of about 2⁻²⁴ each: no direction.
constexpr double LEAST_DIRECTION = 1e-6;

__device__ __forceinline__ uint64_t item_of_warp() {
    return static_cast<uint64_t>(blockIdx.x) * WARPS + threadIdx.x / 32;
}

// Element d of a row as it is compared.
template <class T>
__device__ __forceinline__ double element(const T* row, uint32_t d, float scale) {
    return static_cast<double>(__fmul_rn(to_f32(row[d]), scale));
}

// What divides the sum of `count` rows to be a mean or, with its norm, a direction; a sum without a direction becomes zero.
__device__ __forceinline__ double divisor_of(const Credibility& p, double squares, uint32_t count) {
    if (p.unit == 0) {
        return static_cast<double>(count);
    }
    const double norm = sqrt(squares);
    return norm > LEAST_DIRECTION ? norm : static_cast<double>(INFINITY);
}

template <class T>
__device__ __forceinline__ void centroids(const Credibility& p) {
    auto* const of_warps = reinterpret_cast<double*>(ptx::shared_memory());
    const uint32_t group = blockIdx.x;
    const uint32_t first = array<uint32_t>(p.starts)[group];
    const uint32_t end = array<uint32_t>(p.starts)[group + 1];
    double* const sums = output<double>(p.sums) + static_cast<uint64_t>(group) * p.soft.dim;
    double squares = 0.0;
    for (uint32_t d = threadIdx.x; d < p.soft.dim; d += TILE_THREADS) {
        double sum = 0.0;
        for (uint32_t at = first; at < end; ++at) {
            const uint32_t row = array<uint32_t>(p.members)[at];
            sum += element(array<T>(p.soft.points) + row * p.soft.point_stride, d, array<float>(p.soft.point_scales)[row]);
        }
        sums[d] = sum;
        squares += sum * sum;
    }
    const double divisor = divisor_of(p, sum_of_block(squares, of_warps), end - first);
    float* const centroid = output<float>(p.soft.centroids) + static_cast<uint64_t>(group) * p.soft.dim;
    for (uint32_t d = threadIdx.x; d < p.soft.dim; d += TILE_THREADS) {
        centroid[d] = static_cast<float>(sums[d] / divisor);
    }
}

// The squared distance of a row to the centroid of a group, which it may belong to and then may be left out of. All lanes of
// a warp together, for one pair; the same bits in every lane.
template <class T>
__device__ __forceinline__ double squared_to_group(const Credibility& p, uint32_t row, uint32_t group) {
    const T* const x = array<T>(p.soft.points) + row * p.soft.point_stride;
    const float scale = array<float>(p.soft.point_scales)[row];
    const uint64_t start = static_cast<uint64_t>(group) * p.soft.dim;
    const uint32_t count = array<uint32_t>(p.starts)[group + 1] - array<uint32_t>(p.starts)[group];
    const bool left_out = p.leave_one_out != 0 && count > 1 && group == array<uint32_t>(p.groups)[row];
    double squares = 0.0;
    if (left_out && p.unit != 0) {
        for (uint32_t d = lane_index(); d < p.soft.dim; d += 32) {
            const double left = array<double>(p.sums)[start + d] - element(x, d, scale);
            squares += left * left;
        }
        squares = sum_of_warp(squares);
    }
    const double divisor = left_out ? divisor_of(p, squares, count - 1) : 1.0;
    double squared = 0.0;
    for (uint32_t d = lane_index(); d < p.soft.dim; d += 32) {
        const double value = element(x, d, scale);
        const double centroid = left_out ? (array<double>(p.sums)[start + d] - value) / divisor
                                         : static_cast<double>(array<float>(p.soft.centroids)[start + d]);
        const double difference = value - centroid;
        squared += difference * difference;
    }
    return sum_of_warp(squared);
}

// The centroids of a row's class.
__device__ __forceinline__ KeyRange own_groups(const Credibility& p, uint32_t row) {
    const uint32_t* const starts = array<uint32_t>(p.soft.class_starts) + array<uint32_t>(p.soft.classes)[row];
    return {starts[0], starts[1]};
}

// As the softmax takes it: a row alone in its sub-cluster is compared with the others of its class, or it would vouch for
// itself. All lanes together.
template <class T>
__device__ __forceinline__ float own_squared(const Credibility& p, uint32_t row, KeyRange own, uint32_t group) {
    const uint32_t count = array<uint32_t>(p.starts)[group + 1] - array<uint32_t>(p.starts)[group];
    const bool alone = p.leave_one_out != 0 && count == 1 && own.end - own.first > 1 &&
                       group == array<uint32_t>(p.groups)[row];
    return alone ? INFINITY : static_cast<float>(squared_to_group<T>(p, row, group));
}

template <class T>
__device__ __forceinline__ void own(const Credibility& p) {
    const uint64_t item = item_of_warp();
    if (item >= p.soft.point_count) {
        return;
    }
    const uint32_t row = static_cast<uint32_t>(item);
    if (p.soft.rates == 0) {
        const double squared = squared_to_group<T>(p, row, array<uint32_t>(p.groups)[row]);
        if (lane_index() == 0) {
            output<double>(p.distances)[row] = sqrt(squared);
        }
        return;
    }
    const KeyRange its = own_groups(p, row);
    SoftPartial whole = no_centroid();
    for (uint32_t group = its.first; group < its.end; ++group) {
        const float squared = own_squared<T>(p, row, its, group);
        join(whole, one_centroid(soft_score(squared, array<float>(p.soft.rates)[group], p.soft.squared), squared, group));
    }
    if (lane_index() == 0) {
        output<SoftPartial>(p.soft.own)[row] = whole;
    }
}

// The entropy over the `width` nearest of the own centroids and the listed others, by (distance, index).
template <class T>
__device__ __forceinline__ void nearest(const Credibility& p) {
    const uint64_t item = item_of_warp();
    if (item >= p.chunk_rows) {
        return;
    }
    const uint32_t row = p.first_row + static_cast<uint32_t>(item);
    const KeyRange its = own_groups(p, row);
    float* const mine = output<float>(p.own_distances) + item * p.most_own;
    for (uint32_t group = its.first; group < its.end; ++group) {
        const float squared = own_squared<T>(p, row, its, group);
        if (lane_index() == 0) {
            mine[group - its.first] = squared;
        }
    }
    __syncwarp();
    const float* const distances = array<float>(p.near_distances) + item * p.width;
    const uint32_t* const indices = array<uint32_t>(p.near_indices) + item * p.width;
    const uint32_t owned = its.end - its.first;
    const auto is_nearer = [](float squared, uint32_t index, float other, uint32_t other_index) {
        return squared < other || (squared == other && index < other_index);
    };
    SoftPartial whole = no_centroid();
    // First the others, then the own ones; each counts how many of both come before it.
    for (uint32_t at = lane_index(); at < p.width + owned; at += 32) {
        const bool is_other = at < p.width;
        const uint32_t index = is_other ? indices[at] : its.first + at - p.width;
        const float squared = is_other ? distances[at] : mine[at - p.width];
        uint32_t before = is_other ? at : 0;
        for (uint32_t i = 0; i < owned; ++i) {
            before += is_nearer(mine[i], its.first + i, squared, index) ? 1 : 0;
        }
        if (!is_other) {
            for (uint32_t i = 0; i < p.width && indices[i] != NONE && is_nearer(distances[i], indices[i], squared, index); ++i) {
                ++before;
            }
        }
        if (index != NONE && before < p.width) {
            join(whole, one_centroid(soft_score(squared, array<float>(p.soft.rates)[index], p.soft.squared), squared, index));
        }
    }
    join_lanes(whole, 32);
    if (lane_index() == 0) {
        output<float>(p.soft.entropy)[row] = entropy_of(whole);
    }
}

}  // namespace

CONSONANCE_KERNEL(credibility_centroids_f32, Credibility, TILE_THREADS, 4) { centroids<float>(p); }
CONSONANCE_KERNEL(credibility_centroids_f16, Credibility, TILE_THREADS, 4) { centroids<f16>(p); }
CONSONANCE_KERNEL(credibility_centroids_bf16, Credibility, TILE_THREADS, 4) { centroids<bf16>(p); }
CONSONANCE_KERNEL(credibility_own_f32, Credibility, TILE_THREADS, 4) { own<float>(p); }
CONSONANCE_KERNEL(credibility_own_f16, Credibility, TILE_THREADS, 4) { own<f16>(p); }
CONSONANCE_KERNEL(credibility_own_bf16, Credibility, TILE_THREADS, 4) { own<bf16>(p); }
CONSONANCE_KERNEL(credibility_rows_f32, SoftAssignment, TILE_THREADS, 2) { assign_rows<float, true>(p); }
CONSONANCE_KERNEL(credibility_rows_f16, SoftAssignment, TILE_THREADS, 2) { assign_rows<f16, true>(p); }
CONSONANCE_KERNEL(credibility_rows_bf16, SoftAssignment, TILE_THREADS, 2) { assign_rows<bf16, true>(p); }
CONSONANCE_KERNEL(credibility_nearest_f32, Credibility, TILE_THREADS, 4) { nearest<float>(p); }
CONSONANCE_KERNEL(credibility_nearest_f16, Credibility, TILE_THREADS, 4) { nearest<f16>(p); }
CONSONANCE_KERNEL(credibility_nearest_bf16, Credibility, TILE_THREADS, 4) { nearest<bf16>(p); }

// A warp a group.
CONSONANCE_KERNEL(credibility_spread, Credibility, TILE_THREADS, 4) {
    const uint64_t group = item_of_warp();
    if (group >= p.group_count) {
        return;
    }
    const uint32_t first = array<uint32_t>(p.starts)[group];
    const uint32_t end = array<uint32_t>(p.starts)[group + 1];
    const double count = static_cast<double>(end - first);
    double sum = 0.0;
    for (uint32_t at = first + lane_index(); at < end; at += 32) {
        sum += array<double>(p.distances)[array<uint32_t>(p.members)[at]];
    }
    const double mean = sum_of_warp(sum) / count;
    double squares = 0.0;
    for (uint32_t at = first + lane_index(); at < end; at += 32) {
        const double difference = array<double>(p.distances)[array<uint32_t>(p.members)[at]] - mean;
        squares += difference * difference;
    }
    squares = sum_of_warp(squares);
    if (lane_index() == 0) {
        output<double>(p.spreads)[group * 2] = mean;
        output<double>(p.spreads)[group * 2 + 1] = squares / count;
    }
}

// A thread a row.
CONSONANCE_KERNEL(credibility_join, Credibility, TILE_THREADS, 4) {
    const uint64_t row = static_cast<uint64_t>(blockIdx.x) * TILE_THREADS + threadIdx.x;
    if (row >= p.soft.point_count) {
        return;
    }
    const SoftPartial own = array<SoftPartial>(p.soft.own)[row];
    SoftPartial others = no_centroid();
    for (uint32_t split = 0; split < p.soft.splits; ++split) {
        join(others, array<SoftPartial>(p.soft.partials)[row * p.soft.splits + split]);
    }
    SoftPartial all = own;
    join(all, others);
    // The logarithm of the odds against the own class; −∞ without another one.
    const float odds = others.sum > 0.0f ? others.largest - own.largest + logf(others.sum / own.sum) : -INFINITY;
    const float suspicion = margin_of(odds).softplus;
    const float entropy = p.width != 0 ? array<float>(p.soft.entropy)[row] : entropy_of(all);
    const uint32_t predicted = array<uint32_t>(p.class_of_group)[all.best == NONE ? 0 : all.best];
    const bool credible = entropy <= __uint_as_float(p.entropy_limit) && suspicion <= __uint_as_float(p.suspicion_limit) &&
                          (p.reject_other_class == 0 || predicted == array<uint32_t>(p.soft.classes)[row]);
    output<float>(p.soft.entropy)[row] = entropy;
    output<float>(p.own_probability)[row] = margin_of(-odds).sigmoid;
    output<float>(p.suspicion)[row] = suspicion;
    output<float>(p.margin)[row] = __fsqrt_rn(own.nearest) - __fsqrt_rn(others.nearest);
    output<uint32_t>(p.closer)[row] = others.closer;
    output<uint32_t>(p.predicted)[row] = array<uint32_t>(p.labels)[predicted];
    output<unsigned char>(p.credible)[row] = credible ? 1 : 0;
}
