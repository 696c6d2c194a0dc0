// clusters: k-means inside every class at once, for classes that fit into the shared memory of a block. One block a class:
// it reads the rows of the class once, and then draws the start, runs all of Lloyd's iterations (Lloyd 1982; spherical:
// Dhillon and Modha 2001) and writes the statistics. Classes that do not fit: clusters_stream.cu.
//
//   start     k-means++ (Arthur and Vassilvitskii 2007) by the counter-based generator; rows or places that are given
//   assign    the nearest centroid under the total order (score descending, index ascending), and the second nearest
//   relocate  empty clusters take the farthest rows
//   update    sums in f64 by one owner for every cluster and dimension, rows in their order, chunks of them (counted from
//             the first row of the class) added up apart; then the mean, or the direction
//   finish    squared distances to the nearest and the second, from the differences, in f64
//
// It stops when no row changes hands, when the centroids move less than the tolerance, or after the last iteration.
// Traffic: N D elements and 4 bytes a row; sums and places of the clusters, 20 D bytes a cluster and iteration (28 D on the sphere),
// stay in the second-level cache. Operations: 2 N K D an iteration, and N K D for the start.
// Shared memory: the rows, K D floats, 24 bytes a row, 20 a cluster and 4 a dimension (shared_bytes in
// src/cuda/clusters/plan.rs).
#include "clusters.cuh"
#include "kernel.cuh"
#include "philox.cuh"

namespace {

// Cuts shared memory into arrays that start at multiples of 16 bytes.
struct Cutter {
    unsigned char* next;

    template <class V>
    __device__ __forceinline__ V* take(uint32_t count) {
        auto* const array = reinterpret_cast<V*>(next);
        next += (count * sizeof(V) + 15) / 16 * 16;
        return array;
    }
};

template <class T>
__device__ __forceinline__ void segment(const Clusters& p) {
    const uint32_t id = array<uint32_t>(p.classes)[blockIdx.x];
    const uint32_t first = array<uint32_t>(p.first_rows)[id];
    const uint32_t count = array<uint32_t>(p.end_rows)[id] - first;
    const uint32_t base = array<uint32_t>(p.first_clusters)[id];
    const uint32_t clusters = array<uint32_t>(p.end_clusters)[id] - base;
    const uint32_t chunk = array<uint32_t>(p.chunk_rows)[id];
    const bool unit = p.unit != 0;
    const double tolerance = __longlong_as_double(static_cast<long long>(p.tolerance));

    Cutter cutter{ptx::shared_memory()};
    auto* const numbers = cutter.take<double>(CLUSTER_THREADS + 1);
    auto* const words = cutter.take<uint32_t>(4);
    auto* const shift = cutter.take<float>(p.dim);
    auto* const far = cutter.take<double>(count);
    auto* const inverses = cutter.take<float>(count);
    auto* const cluster_of = cutter.take<uint32_t>(count);
    auto* const second_of = cutter.take<uint32_t>(count);
    auto* const listed = cutter.take<uint32_t>(count);
    auto* const moves = cutter.take<double>(clusters);
    auto* const starts = cutter.take<float>(clusters);
    auto* const sizes = cutter.take<uint32_t>(clusters);
    auto* const firsts = cutter.take<uint32_t>(clusters + 1);
    auto* const centers = cutter.take<float>(clusters * p.dim);
    const ClusterRows<T> rows{cutter.take<T>(count * p.distance), inverses, shift, p.dim, p.distance};
    const ClusterTable table{numbers, words};
    double* const sums = output<double>(p.sums) + static_cast<uint64_t>(base) * p.dim;

    copy_rows(p, rows, first, count);
    for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
        shift[d] = 0.0f;
    }
    ptx::copy_async_wait<0>();
    __syncthreads();
    measure_rows(p, rows, first, count, [&](uint32_t row, double norm, float) { far[row] = norm; });
    __syncthreads();

    // The sum of the listed rows [from, end) in a dimension; chunks are added up apart.
    const auto sum_rows = [&](uint32_t from, uint32_t end, uint32_t d, const auto& row_at, uint32_t rows_of_chunk) {
        double total = 0.0;
        double sum = 0.0;
        uint32_t chunk_end = rows_of_chunk;
        for (uint32_t i = from; i < end; ++i) {
            const uint32_t row = row_at(i);
            while (row >= chunk_end) {
                total += sum;
                sum = 0.0;
                chunk_end += rows_of_chunk;
            }
            sum += static_cast<double>(rows.value(row, d));
        }
        return total + sum;
    };

    double variance = 0.0;
    if (!unit || tolerance > 0.0) {
        for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
            sums[d] = sum_rows(0, count, d, [](uint32_t row) { return row; }, chunk);
        }
        double squares = 0.0;
        for (uint32_t row = threadIdx.x; row < count; row += CLUSTER_THREADS) {
            squares += far[row];
        }
        squares = sum_of_threads(squares, numbers);
        if (threadIdx.x == 0) {
            const ClusterMoments moments = moments_of(sums, squares, count, p.dim, unit);
            numbers[0] = moments.variance;
            words[0] = moments.shifts ? 1 : 0;
        }
        __syncthreads();
        variance = numbers[0];
        if (words[0] != 0) {
            for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
                shift[d] = to_f32(rows.data[d]);
            }
        }
        __syncthreads();
    }

    // Where the centroids start.
    if (p.start == START_PLUS_PLUS) {
        for (uint32_t row = threadIdx.x; row < count; row += CLUSTER_THREADS) {
            far[row] = INFINITY;
        }
        __syncthreads();
        for (uint32_t step = 0; step < clusters; ++step) {
            const double u = uniform_draw(p.seed, array<uint32_t>(p.labels)[id], step);
            uint32_t drawn;
            if (step == 0) {
                drawn = static_cast<uint32_t>(__dmul_rn(u, count));
                drawn = drawn < count ? drawn : count - 1;
            } else {
                drawn = draw_row(far, count, u, table);
            }
            if (threadIdx.x == 0) {
                far[drawn] = -1.0;
                listed[step] = drawn;
            }
            __syncthreads();
            for (uint32_t start = 0; step + 1 < clusters && start < count; start += GROUPS) {
                const uint32_t row = start + group_number();
                const double distance = squared_distance(rows, row < count ? row : count - 1,
                                                         [&](uint32_t d) { return rows.value(drawn, d); });
                if (row < count && group_lane() == 0 && far[row] >= 0.0) {
                    far[row] = distance < far[row] ? distance : far[row];
                }
            }
            __syncthreads();
        }
    }
    const auto center_at = [&](uint32_t cluster) {
        const uint64_t at = static_cast<uint64_t>(base + cluster) * p.dim;
        return MovedCenter{sums + static_cast<uint64_t>(cluster) * p.dim,
                           centers + cluster * p.dim,
                           output<float>(p.centroids) + at,
                           shift,
                           // A group without a cluster touches nothing.
                           cluster < clusters ? p.dim : 0,
                           unit};
    };
    for (uint32_t begin = 0; begin < clusters; begin += GROUPS) {
        const uint32_t cluster = begin + group_number();
        const MovedCenter center = center_at(cluster);
        for (uint32_t d = group_lane(); d < center.dim; d += GROUP) {
            if (p.start == START_GIVEN) {
                const double place = array<double>(p.given)[static_cast<uint64_t>(base + cluster) * p.dim + d];
                center.place(d, place - static_cast<double>(shift[d]));
            } else {
                const uint32_t row = p.start == START_ROWS ? array<uint32_t>(p.chosen)[base + cluster] : listed[cluster];
                center.place(d, static_cast<double>(rows.value(row, d)));
            }
        }
        const float start = center.start();
        if (cluster < clusters && group_lane() == 0) {
            starts[cluster] = start;
        }
    }
    for (uint32_t row = threadIdx.x; row < count; row += CLUSTER_THREADS) {
        cluster_of[row] = NONE;
    }
    __syncthreads();

    // Gives every row its nearest centroid and says whether any row changed hands.
    const auto assign = [&] {
        if (threadIdx.x == 0) {
            words[0] = 0;
        }
        __syncthreads();
        find_nearest(rows, count, centers, starts, clusters, [&](uint32_t row, const Nearest& nearest) {
            if (cluster_of[row] != nearest.index) {
                cluster_of[row] = nearest.index;
                atomicMax(words, 1u);
            }
            second_of[row] = nearest.second;
        });
        __syncthreads();
        const bool changed = words[0] != 0;
        // All have read before the next assignment.
        __syncthreads();
        return changed;
    };
    const auto list = [&] {
        list_clusters(cluster_of, count, clusters, firsts, listed);
        for (uint32_t cluster = threadIdx.x; cluster < clusters; cluster += CLUSTER_THREADS) {
            sizes[cluster] = firsts[cluster + 1] - firsts[cluster];
        }
        __syncthreads();
    };
    // Squared distances from the nearest centroids, and with `margins` also from the second ones.
    const auto measure = [&](bool margins) {
        for (uint32_t start = 0; start < count; start += GROUPS) {
            const uint32_t own = start + group_number();
            const uint32_t row = own < count ? own : count - 1;
            const float* const center = centers + cluster_of[row] * p.dim;
            const double distance = squared_distance(rows, row, [&](uint32_t d) { return center[d]; });
            const float* const other = centers + second_of[row] * p.dim;
            const double second =
                margins ? squared_distance(rows, row, [&](uint32_t d) { return other[d]; }) : INFINITY;
            if (own < count && group_lane() == 0) {
                far[row] = distance;
                if (margins) {
                    const uint32_t number = array<uint32_t>(p.members)[first + row];
                    const double margin = second - distance > 0.0 ? second - distance : 0.0;
                    output<float>(p.margin)[number] = clusters > 1 ? static_cast<float>(margin) : INFINITY;
                    output<uint32_t>(p.assignment)[number] = base + cluster_of[row];
                }
            }
        }
        __syncthreads();
    };

    uint32_t iterations = 0;
    bool settled = false;
    while (iterations < p.max_iterations) {
        if (!assign()) {
            settled = true;
            break;
        }
        iterations += 1;
        list();
        bool empty = false;
        for (uint32_t cluster = 0; cluster < clusters; ++cluster) {
            empty = empty || sizes[cluster] == 0;
        }
        if (empty) {
            // The sizes were read by all.
            __syncthreads();
            measure(false);
            fill_empty(far, cluster_of, 0, count, sizes, clusters, table);
            list();
        }
        for (uint32_t task = threadIdx.x; task < clusters * p.dim; task += CLUSTER_THREADS) {
            const uint32_t cluster = task / p.dim;
            const uint32_t rows_of_chunk = clusters > FUSED_CLUSTERS ? NONE : chunk;
            sums[task] = sum_rows(firsts[cluster], firsts[cluster + 1], task % p.dim,
                                  [&](uint32_t i) { return listed[i]; }, rows_of_chunk);
        }
        __syncthreads();
        for (uint32_t begin = 0; begin < clusters; begin += GROUPS) {
            const uint32_t cluster = begin + group_number();
            const MovedCenter center = center_at(cluster);
            const double movement = center.move(cluster < clusters ? sizes[cluster] : 0);
            const float start = center.start();
            if (cluster < clusters && group_lane() == 0) {
                moves[cluster] = movement;
                starts[cluster] = start;
            }
        }
        __syncthreads();
        double movement = 0.0;
        for (uint32_t cluster = 0; cluster < clusters; ++cluster) {
            movement += moves[cluster];
        }
        // `moves` is not written before all come to the next barrier.
        if (movement <= __dmul_rn(tolerance, variance)) {
            break;
        }
    }
    __syncthreads();
    if (!settled) {
        assign();
    }
    list();
    measure(true);
    double inertia = 0.0;
    for (uint32_t cluster = 0; cluster < clusters; ++cluster) {
        double squares = 0.0;
        double roots = 0.0;
        for (uint32_t i = firsts[cluster] + threadIdx.x; i < firsts[cluster + 1]; i += CLUSTER_THREADS) {
            squares += far[listed[i]];
            roots += sqrt(far[listed[i]]);
        }
        squares = sum_of_threads(squares, numbers);
        roots = sum_of_threads(roots, numbers);
        inertia += squares;
        if (threadIdx.x == 0) {
            const uint32_t size = sizes[cluster];
            output<uint32_t>(p.sizes)[base + cluster] = size;
            output<float>(p.spread)[base + cluster] = static_cast<float>(squares / (size > 0 ? size : 1));
            output<float>(p.mean_distance)[base + cluster] = static_cast<float>(roots / (size > 0 ? size : 1));
        }
    }
    if (threadIdx.x == 0) {
        output<double>(p.inertia)[id] = inertia;
        output<uint32_t>(p.iterations)[id] = iterations;
    }
}

}  // namespace

CONSONANCE_KERNEL(clusters_segment_f32, Clusters, CLUSTER_THREADS, 2) { segment<float>(p); }
CONSONANCE_KERNEL(clusters_segment_f16, Clusters, CLUSTER_THREADS, 2) { segment<f16>(p); }
CONSONANCE_KERNEL(clusters_segment_bf16, Clusters, CLUSTER_THREADS, 2) { segment<bf16>(p); }
