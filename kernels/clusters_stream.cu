// clusters_stream, clusters_rounds: k-means inside the classes that do not fit on chip (clusters.cu), and over everything as
// one class with as many as 65,536 centroids and more. The same definitions and the same sums: a class gets the same bits on
// both ways. This file has the kernels that stream rows, clusters_rounds.cu those of a block a class or a cluster.
//
// Blocks own chunks of rows, counted from the first row of each class, and stream them through shared memory tile by tile:
//   measure   norms, sums of the rows of every chunk                                       one read of the bank
//   settle    (a class a block) mean, extent, shift
//   draw, update   k-means++: the next row (a class a block), distances to it              one read a step
//   begin     centroids start (a group a cluster)
//   then, round by round, while any class is not done:
//   assign    nearest centroids; up to FUSED_CLUSTERS clusters: sums of every chunk        one read
//   judge     (a class a block) whether a row changed hands, whether a cluster is empty
//   far, relocate, sum   where one is: distances, the farthest rows, sums once more        two reads
//   average   (a cluster a block) chunks are added up in their order; with more clusters the block adds up the rows of its
//             cluster, which the host has sorted by cluster (segments.cu)                  one read
//   close     (a class a block) whether the centroids still move
//   and once more assign, with distances and margins, and
//   finish, inertia   statistics of the clusters and of the classes
//
// Operations: 2 N K D an assignment. Sums of chunks: 8 K D bytes a chunk of at least K D / 4 rows, 32 bytes a row at most.
// Shared memory: a tile of rows, and a few words for each (stream_shared_bytes in src/cuda/clusters/plan.rs).
#include "cluster_classes.cuh"
#include "kernel.cuh"

namespace {

// What a block has of the rows of a chunk.
template <class T>
struct Tile {
    ClusterRows<T> rows;
    ClusterTable table;
    uint32_t* cluster_of;
    uint32_t* firsts;
    uint32_t* listed;

    __device__ __forceinline__ explicit Tile(const Clusters& p) {
        unsigned char* const memory = ptx::shared_memory();
        table.numbers = reinterpret_cast<double*>(memory);
        table.words = reinterpret_cast<uint32_t*>(table.numbers + CLUSTER_THREADS + 1);
        firsts = table.words + 4;
        cluster_of = firsts + FUSED_CLUSTERS + 2;
        listed = cluster_of + p.tile_rows;
        rows.inverses = reinterpret_cast<float*>(listed + p.tile_rows);
        rows.dim = p.dim;
        rows.distance = p.distance;
        // A row more than a tile has: what k-means++ drew.
        const auto used = static_cast<uint32_t>(reinterpret_cast<unsigned char*>(rows.inverses + p.tile_rows + 1) - memory);
        rows.data = reinterpret_cast<T*>(memory + (used + 15) / 16 * 16);
    }
};

// Calls visit(first, count) for every tile of a chunk, its rows in shared memory with their inverses.
template <class T, class Visit>
__device__ __forceinline__ void each_tile(const Clusters& p, const Tile<T>& tile, uint32_t first, uint32_t end,
                                          bool measured, const Visit& visit) {
    for (; first < end; first += p.tile_rows) {
        const uint32_t count = end - first < p.tile_rows ? end - first : p.tile_rows;
        copy_rows(p, tile.rows, first, count);
        for (uint32_t row = threadIdx.x; measured && row < count; row += CLUSTER_THREADS) {
            tile.rows.inverses[row] = array<float>(p.inverses)[first + row];
        }
        ptx::copy_async_wait<0>();
        __syncthreads();
        visit(first, count);
        // All have left the tile before the next one is copied.
        __syncthreads();
    }
}

__device__ __forceinline__ uint32_t chunk_end(const Clusters& p, const Class& own, uint32_t first) {
    const uint32_t rows = array<uint32_t>(p.chunk_rows)[own.id];
    return own.end - first < rows ? own.end : first + rows;
}

// Adds the listed rows of a tile to the sums of their clusters, a cluster and dimension a thread.
template <class T>
__device__ __forceinline__ void add_tile(const Tile<T>& tile, double* partials, uint32_t clusters) {
    for (uint32_t task = threadIdx.x; task < clusters * tile.rows.dim; task += CLUSTER_THREADS) {
        const uint32_t cluster = task / tile.rows.dim;
        const uint32_t d = task % tile.rows.dim;
        const uint32_t last = tile.firsts[cluster + 1];
        uint32_t i = tile.firsts[cluster];
        if (i == last) {
            continue;
        }
        double sum = partials[task];
        for (; i < last; ++i) {
            sum += static_cast<double>(tile.rows.value(tile.listed[i], d));
        }
        partials[task] = sum;
    }
}

template <class T>
__device__ __forceinline__ void measure(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.chunk_classes)[blockIdx.x]);
    const uint32_t first_row = array<uint32_t>(p.chunk_firsts)[blockIdx.x];
    Tile<T> tile(p);
    double* const sums = chunk_partials(p, blockIdx.x);
    for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
        sums[d] = 0.0;
    }
    each_tile(p, tile, first_row, chunk_end(p, own, first_row), false, [&](uint32_t first, uint32_t count) {
        measure_rows(p, tile.rows, first, count, [&](uint32_t row, double norm, float inverse) {
            output<double>(p.far)[first + row] = norm;
            output<float>(p.inverses)[first + row] = inverse;
            output<uint32_t>(p.nearest)[first + row] = NONE;
        });
        __syncthreads();
        for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
            double sum = sums[d];
            for (uint32_t row = 0; row < count; ++row) {
                // No class is shifted yet.
                const float value = to_f32(tile.rows.data[row * tile.rows.distance + d]) * tile.rows.inverses[row];
                sum += static_cast<double>(value);
            }
            sums[d] = sum;
        }
    });
}

template <class T>
__device__ __forceinline__ void update(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.chunk_classes)[blockIdx.x]);
    if (p.step + 1 >= own.clusters) {
        return;
    }
    const uint32_t first_row = array<uint32_t>(p.chunk_firsts)[blockIdx.x];
    Tile<T> tile(p);
    tile.rows.shift = shift_of(p, own);
    // The drawn row stays behind the tile.
    const uint32_t drawn = own.first + array<uint32_t>(p.chosen)[own.base + p.step];
    ClusterRows<T> behind = tile.rows;
    behind.data += p.tile_rows * p.distance;
    copy_rows(p, behind, drawn, 1);
    if (threadIdx.x == 0) {
        tile.rows.inverses[p.tile_rows] = array<float>(p.inverses)[drawn];
    }
    double* const far = output<double>(p.far);
    each_tile(p, tile, first_row, chunk_end(p, own, first_row), true, [&](uint32_t first, uint32_t count) {
        for (uint32_t start = 0; start < count; start += GROUPS) {
            const uint32_t row = start + group_number();
            const double distance = squared_distance(tile.rows, row < count ? row : count - 1,
                                                     [&](uint32_t d) { return tile.rows.value(p.tile_rows, d); });
            if (row < count && group_lane() == 0 && far[first + row] >= 0.0) {
                far[first + row] = distance < far[first + row] ? distance : far[first + row];
            }
        }
    });
}

// Squared distances of a tile's rows from the centroids at `center_at(row)`.
template <class T, class At, class Take>
__device__ __forceinline__ void distances(const Clusters& p, const Tile<T>& tile, uint32_t count, const At& center_at,
                                          const Take& take) {
    for (uint32_t start = 0; start < count; start += GROUPS) {
        const uint32_t own = start + group_number();
        const uint32_t row = own < count ? own : count - 1;
        const float* const center = array<float>(p.centers) + static_cast<uint64_t>(center_at(row)) * p.dim;
        const double distance = squared_distance(tile.rows, row, [&](uint32_t d) { return center[d]; });
        if (own < count && group_lane() == 0) {
            take(row, distance);
        }
    }
}

template <class T>
__device__ __forceinline__ void assign(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.chunk_classes)[blockIdx.x]);
    const bool last = p.step != 0;
    if (!last && (own.state(p) & DONE) != 0) {
        return;
    }
    const uint32_t first_row = array<uint32_t>(p.chunk_firsts)[blockIdx.x];
    Tile<T> tile(p);
    tile.rows.shift = shift_of(p, own);
    const uint64_t at = static_cast<uint64_t>(own.base) * p.dim;
    double* const partials = chunk_partials(p, blockIdx.x);
    const bool sums = !last && own.is_fused();
    for (uint32_t task = threadIdx.x; sums && task < own.clusters * p.dim; task += CLUSTER_THREADS) {
        partials[task] = 0.0;
    }
    uint32_t changed = 0;
    each_tile(p, tile, first_row, chunk_end(p, own, first_row), true, [&](uint32_t first, uint32_t count) {
        find_nearest(tile.rows, count, array<float>(p.centers) + at, array<float>(p.starts) + own.base, own.clusters,
                     [&](uint32_t row, const Nearest& nearest) {
                         uint32_t& before = output<uint32_t>(p.nearest)[first + row];
                         changed += before != own.base + nearest.index ? 1 : 0;
                         before = own.base + nearest.index;
                         tile.cluster_of[row] = nearest.index;
                         tile.listed[row] = nearest.second;
                         atomicAdd(output<uint32_t>(p.sizes) + own.base + nearest.index, 1u);
                     });
        __syncthreads();
        if (last) {
            distances(p, tile, count, [&](uint32_t row) { return own.base + tile.cluster_of[row]; },
                      [&](uint32_t row, double distance) { output<double>(p.far)[first + row] = distance; });
            __syncthreads();
            distances(p, tile, count, [&](uint32_t row) { return own.base + tile.listed[row]; },
                      [&](uint32_t row, double second) {
                          const uint32_t number = array<uint32_t>(p.members)[first + row];
                          const double margin = second - array<double>(p.far)[first + row];
                          output<float>(p.margin)[number] =
                              own.clusters > 1 ? static_cast<float>(margin > 0.0 ? margin : 0.0) : INFINITY;
                          output<uint32_t>(p.assignment)[number] = own.base + tile.cluster_of[row];
                      });
        } else if (sums) {
            list_clusters(tile.cluster_of, count, own.clusters, tile.firsts, tile.listed);
            add_tile(tile, partials, own.clusters);
        }
    });
    if (changed > 0) {
        atomicAdd(output<uint32_t>(p.changes) + own.id, changed);
    }
}

template <class T>
__device__ __forceinline__ void far(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.chunk_classes)[blockIdx.x]);
    if (own.state(p) != HAS_EMPTY) {
        return;
    }
    const uint32_t first_row = array<uint32_t>(p.chunk_firsts)[blockIdx.x];
    Tile<T> tile(p);
    tile.rows.shift = shift_of(p, own);
    each_tile(p, tile, first_row, chunk_end(p, own, first_row), true, [&](uint32_t first, uint32_t count) {
        distances(p, tile, count, [&](uint32_t row) { return array<uint32_t>(p.nearest)[first + row]; },
                  [&](uint32_t row, double distance) { output<double>(p.far)[first + row] = distance; });
    });
}

// The sums of the chunks of classes in which rows were moved.
template <class T>
__device__ __forceinline__ void sum(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.chunk_classes)[blockIdx.x]);
    if (own.state(p) != HAS_EMPTY || !own.is_fused()) {
        return;
    }
    const uint32_t first_row = array<uint32_t>(p.chunk_firsts)[blockIdx.x];
    Tile<T> tile(p);
    tile.rows.shift = shift_of(p, own);
    double* const partials = chunk_partials(p, blockIdx.x);
    for (uint32_t task = threadIdx.x; task < own.clusters * p.dim; task += CLUSTER_THREADS) {
        partials[task] = 0.0;
    }
    each_tile(p, tile, first_row, chunk_end(p, own, first_row), true, [&](uint32_t first, uint32_t count) {
        for (uint32_t row = threadIdx.x; row < count; row += CLUSTER_THREADS) {
            tile.cluster_of[row] = array<uint32_t>(p.nearest)[first + row] - own.base;
        }
        __syncthreads();
        list_clusters(tile.cluster_of, count, own.clusters, tile.firsts, tile.listed);
        add_tile(tile, partials, own.clusters);
    });
}

}  // namespace

CONSONANCE_KERNEL(clusters_measure_f32, Clusters, CLUSTER_THREADS, 2) { measure<float>(p); }
CONSONANCE_KERNEL(clusters_measure_f16, Clusters, CLUSTER_THREADS, 2) { measure<f16>(p); }
CONSONANCE_KERNEL(clusters_measure_bf16, Clusters, CLUSTER_THREADS, 2) { measure<bf16>(p); }
CONSONANCE_KERNEL(clusters_update_f32, Clusters, CLUSTER_THREADS, 2) { update<float>(p); }
CONSONANCE_KERNEL(clusters_update_f16, Clusters, CLUSTER_THREADS, 2) { update<f16>(p); }
CONSONANCE_KERNEL(clusters_update_bf16, Clusters, CLUSTER_THREADS, 2) { update<bf16>(p); }
CONSONANCE_KERNEL(clusters_assign_f32, Clusters, CLUSTER_THREADS, 2) { assign<float>(p); }
CONSONANCE_KERNEL(clusters_assign_f16, Clusters, CLUSTER_THREADS, 2) { assign<f16>(p); }
CONSONANCE_KERNEL(clusters_assign_bf16, Clusters, CLUSTER_THREADS, 2) { assign<bf16>(p); }
CONSONANCE_KERNEL(clusters_far_f32, Clusters, CLUSTER_THREADS, 2) { far<float>(p); }
CONSONANCE_KERNEL(clusters_far_f16, Clusters, CLUSTER_THREADS, 2) { far<f16>(p); }
CONSONANCE_KERNEL(clusters_far_bf16, Clusters, CLUSTER_THREADS, 2) { far<bf16>(p); }
CONSONANCE_KERNEL(clusters_sum_f32, Clusters, CLUSTER_THREADS, 2) { sum<float>(p); }
CONSONANCE_KERNEL(clusters_sum_f16, Clusters, CLUSTER_THREADS, 2) { sum<f16>(p); }
CONSONANCE_KERNEL(clusters_sum_bf16, Clusters, CLUSTER_THREADS, 2) { sum<bf16>(p); }
