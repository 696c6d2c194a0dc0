// clusters_rounds: what happens between two passes over the rows of classes that are streamed (clusters_stream.cu): a block a
// class, or a block a cluster. Shared memory: CLUSTER_THREADS + 1 numbers and 4 words.
#include "cluster_classes.cuh"
#include "kernel.cuh"
#include "philox.cuh"

namespace {

template <class T>
__device__ __forceinline__ void settle(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    auto* const numbers = reinterpret_cast<double*>(ptx::shared_memory());
    auto* const words = reinterpret_cast<uint32_t*>(numbers + CLUSTER_THREADS + 1);
    double* const sums = output<double>(p.sums) + static_cast<uint64_t>(own.base) * p.dim;
    double* const far = output<double>(p.far) + own.first;
    const uint32_t rows = array<uint32_t>(p.chunk_rows)[own.id];
    const uint32_t chunks = (own.end - own.first + rows - 1) / rows;
    const uint32_t first_chunk = array<uint32_t>(p.first_chunks)[own.id];
    for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
        double total = 0.0;
        for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
            total += chunk_partials(p, first_chunk + chunk)[d];
        }
        sums[d] = total;
    }
    double squares = 0.0;
    for (uint32_t row = threadIdx.x; row < own.end - own.first; row += CLUSTER_THREADS) {
        squares += far[row];
        // Nothing is near yet.
        far[row] = INFINITY;
    }
    squares = sum_of_threads(squares, numbers);
    if (threadIdx.x == 0) {
        const ClusterMoments moments = moments_of(sums, squares, own.end - own.first, p.dim, p.unit != 0);
        output<double>(p.variances)[own.id] = moments.variance;
        output<uint32_t>(p.states)[own.id] = 0;
        output<uint32_t>(p.changes)[own.id] = 0;
        output<uint32_t>(p.iterations)[own.id] = 0;
        words[0] = moments.shifts ? 1 : 0;
    }
    __syncthreads();
    const T* const row = array<T>(p.points) + array<uint32_t>(p.members)[own.first] * p.stride;
    for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
        output<float>(p.shifts)[static_cast<uint64_t>(own.id) * p.dim + d] = words[0] != 0 ? to_f32(row[d]) : 0.0f;
    }
    for (uint32_t cluster = threadIdx.x; cluster < own.clusters; cluster += CLUSTER_THREADS) {
        output<uint32_t>(p.sizes)[own.base + cluster] = 0;
    }
}

// The weight of a chosen row becomes −1.
__device__ __forceinline__ void draw(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    if (p.step >= own.clusters) {
        return;
    }
    auto* const numbers = reinterpret_cast<double*>(ptx::shared_memory());
    const ClusterTable table{numbers, reinterpret_cast<uint32_t*>(numbers + CLUSTER_THREADS + 1)};
    const uint32_t count = own.end - own.first;
    double* const far = output<double>(p.far) + own.first;
    const double u = uniform_draw(p.seed, array<uint32_t>(p.labels)[own.id], p.step);
    uint32_t drawn;
    if (p.step == 0) {
        drawn = static_cast<uint32_t>(__dmul_rn(u, count));
        drawn = drawn < count ? drawn : count - 1;
    } else {
        drawn = draw_row(far, count, u, table);
    }
    if (threadIdx.x == 0) {
        far[drawn] = -1.0;
        output<uint32_t>(p.chosen)[own.base + p.step] = drawn;
    }
}

__device__ __forceinline__ MovedCenter center_of(const Clusters& p, const Class& own, uint32_t cluster, bool active) {
    const uint64_t at = static_cast<uint64_t>(cluster) * p.dim;
    return {array<double>(p.sums) + at,
            output<float>(p.centers) + at,
            output<float>(p.centroids) + at,
            shift_of(p, own),
            active ? p.dim : 0,
            p.unit != 0};
}

template <class T>
__device__ __forceinline__ void begin(const Clusters& p) {
    const uint32_t place = blockIdx.x * GROUPS + group_number();
    const bool active = place < p.count;
    const uint32_t cluster = array<uint32_t>(p.clusters)[active ? place : 0];
    const Class own(p, array<uint32_t>(p.cluster_classes)[active ? place : 0]);
    const MovedCenter center = center_of(p, own, cluster, active);
    const uint64_t at = static_cast<uint64_t>(cluster) * p.dim;
    const uint32_t position = p.start != START_GIVEN ? own.first + array<uint32_t>(p.chosen)[cluster] : own.first;
    const T* const row = array<T>(p.points) + array<uint32_t>(p.members)[position] * p.stride;
    const float inverse = array<float>(p.inverses)[position];
    for (uint32_t d = group_lane(); d < center.dim; d += GROUP) {
        if (p.start == START_GIVEN) {
            center.place(d, array<double>(p.given)[at + d] - static_cast<double>(center.shift[d]));
        } else {
            center.place(d, static_cast<double>(to_f32(row[d]) * inverse - center.shift[d]));
        }
    }
    const float start = center.start();
    if (active && group_lane() == 0) {
        output<float>(p.starts)[cluster] = start;
    }
}

// Whether a class is done, and whether one of its clusters is empty.
__device__ __forceinline__ void judge(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    auto* const words = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        output<uint32_t>(p.status)[1] = 0;
    }
    if ((own.state(p) & DONE) != 0) {
        return;
    }
    if (threadIdx.x == 0) {
        words[0] = 0;
    }
    __syncthreads();
    for (uint32_t cluster = threadIdx.x; cluster < own.clusters; cluster += CLUSTER_THREADS) {
        if (array<uint32_t>(p.sizes)[own.base + cluster] == 0) {
            atomicMax(words, HAS_EMPTY);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool done = array<uint32_t>(p.changes)[own.id] == 0;
        output<uint32_t>(p.states)[own.id] = done ? DONE : words[0];
        output<uint32_t>(p.iterations)[own.id] += done ? 0 : 1;
    }
}

__device__ __forceinline__ void relocate(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    if (own.state(p) != HAS_EMPTY) {
        return;
    }
    auto* const numbers = reinterpret_cast<double*>(ptx::shared_memory());
    const ClusterTable table{numbers, reinterpret_cast<uint32_t*>(numbers + CLUSTER_THREADS + 1)};
    fill_empty(array<double>(p.far) + own.first, output<uint32_t>(p.nearest) + own.first, own.base, own.end - own.first,
               output<uint32_t>(p.sizes) + own.base, own.clusters, table);
}

// Where the rows of each cluster start in the order of the clusters.
__device__ __forceinline__ void places(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    auto* const starts = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    const uint32_t each = (own.clusters + CLUSTER_THREADS - 1) / CLUSTER_THREADS;
    const uint32_t first = threadIdx.x * each < own.clusters ? threadIdx.x * each : own.clusters;
    const uint32_t end = own.clusters - first < each ? own.clusters : first + each;
    uint32_t sum = 0;
    for (uint32_t cluster = first; cluster < end; ++cluster) {
        sum += array<uint32_t>(p.sizes)[own.base + cluster];
    }
    starts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t running = own.first - p.order_first;
        for (uint32_t thread = 0; thread < CLUSTER_THREADS; ++thread) {
            const uint32_t size = starts[thread];
            starts[thread] = running;
            running += size;
        }
    }
    __syncthreads();
    uint32_t running = starts[threadIdx.x];
    for (uint32_t cluster = first; cluster < end; ++cluster) {
        output<uint32_t>(p.places)[own.base + cluster] = running;
        running += array<uint32_t>(p.sizes)[own.base + cluster];
    }
}

// The sum of the rows of a cluster in the order of their positions, a dimension a thread.
template <class T>
__device__ __forceinline__ void sum_sorted(const Clusters& p, const Class& own, uint32_t cluster, double* sums) {
    auto* const numbers = reinterpret_cast<uint32_t*>(ptx::shared_memory());
    auto* const inverses = reinterpret_cast<float*>(numbers + CLUSTER_THREADS);
    const float* const shift = shift_of(p, own);
    const uint32_t first = array<uint32_t>(p.places)[cluster];
    const uint32_t size = array<uint32_t>(p.sizes)[cluster];
    for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
        sums[d] = 0.0;
    }
    for (uint32_t start = 0; start < size; start += CLUSTER_THREADS) {
        const uint32_t count = size - start < CLUSTER_THREADS ? size - start : CLUSTER_THREADS;
        if (threadIdx.x < count) {
            const uint32_t position = p.order_first + array<uint32_t>(p.order)[first + start + threadIdx.x];
            numbers[threadIdx.x] = array<uint32_t>(p.members)[position];
            inverses[threadIdx.x] = array<float>(p.inverses)[position];
        }
        __syncthreads();
        for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
            double sum = sums[d];
            for (uint32_t i = 0; i < count; ++i) {
                const T* const row = array<T>(p.points) + numbers[i] * p.stride;
                sum += static_cast<double>(to_f32(row[d]) * inverses[i] - shift[d]);
            }
            sums[d] = sum;
        }
        // All have read the numbers before the next ones are written.
        __syncthreads();
    }
}

template <class T>
__device__ __forceinline__ void average(const Clusters& p) {
    const uint32_t cluster = array<uint32_t>(p.clusters)[blockIdx.x];
    const Class own(p, array<uint32_t>(p.cluster_classes)[blockIdx.x]);
    if ((own.state(p) & DONE) != 0) {
        return;
    }
    double* const sums = output<double>(p.sums) + static_cast<uint64_t>(cluster) * p.dim;
    if (own.is_fused()) {
        const uint32_t rows = array<uint32_t>(p.chunk_rows)[own.id];
        const uint32_t chunks = (own.end - own.first + rows - 1) / rows;
        const uint32_t first_chunk = array<uint32_t>(p.first_chunks)[own.id];
        for (uint32_t d = threadIdx.x; d < p.dim; d += CLUSTER_THREADS) {
            double total = 0.0;
            for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
                total += chunk_partials(p, first_chunk + chunk)[static_cast<uint64_t>(cluster - own.base) * p.dim + d];
            }
            sums[d] = total;
        }
    } else {
        sum_sorted<T>(p, own, cluster, sums);
    }
    __syncthreads();
    // The first group alone.
    const MovedCenter center = center_of(p, own, cluster, group_number() == 0);
    const double movement = center.move(array<uint32_t>(p.sizes)[cluster]);
    const float start = center.start();
    if (threadIdx.x == 0) {
        output<double>(p.moves)[cluster] = movement;
        output<float>(p.starts)[cluster] = start;
    }
}

// Whether the centroids of a class still move; what is counted anew in the next round becomes 0.
__device__ __forceinline__ void close(const Clusters& p) {
    const Class own(p, array<uint32_t>(p.classes)[blockIdx.x]);
    if (threadIdx.x == 0) {
        uint32_t state = own.state(p);
        if ((state & DONE) == 0) {
            double movement = 0.0;
            for (uint32_t cluster = own.base; cluster < own.base + own.clusters; ++cluster) {
                movement += array<double>(p.moves)[cluster];
            }
            const double tolerance = __longlong_as_double(static_cast<long long>(p.tolerance));
            state = movement <= __dmul_rn(tolerance, array<double>(p.variances)[own.id]) ? DONE : 0;
            output<uint32_t>(p.states)[own.id] = state;
            output<uint32_t>(p.changes)[own.id] = 0;
            if (state == 0) {
                atomicAdd(output<uint32_t>(p.status) + 1, 1u);
            }
        }
    }
    for (uint32_t cluster = threadIdx.x; cluster < own.clusters; cluster += CLUSTER_THREADS) {
        output<uint32_t>(p.sizes)[own.base + cluster] = 0;
    }
}

__device__ __forceinline__ void finish(const Clusters& p) {
    const uint32_t cluster = array<uint32_t>(p.clusters)[blockIdx.x];
    auto* const numbers = reinterpret_cast<double*>(ptx::shared_memory());
    const uint32_t first = array<uint32_t>(p.places)[cluster];
    const uint32_t size = array<uint32_t>(p.sizes)[cluster];
    double squares = 0.0;
    double roots = 0.0;
    for (uint32_t i = threadIdx.x; i < size; i += CLUSTER_THREADS) {
        const double distance = array<double>(p.far)[p.order_first + array<uint32_t>(p.order)[first + i]];
        squares += distance;
        roots += sqrt(distance);
    }
    squares = sum_of_threads(squares, numbers);
    roots = sum_of_threads(roots, numbers);
    if (threadIdx.x == 0) {
        output<float>(p.spread)[cluster] = static_cast<float>(squares / (size > 0 ? size : 1));
        output<float>(p.mean_distance)[cluster] = static_cast<float>(roots / (size > 0 ? size : 1));
        output<double>(p.moves)[cluster] = squares;
    }
}

__device__ __forceinline__ void inertia(const Clusters& p) {
    const uint32_t place = blockIdx.x * CLUSTER_THREADS + threadIdx.x;
    if (place < p.count) {
        const Class own(p, array<uint32_t>(p.classes)[place]);
        double sum = 0.0;
        for (uint32_t cluster = own.base; cluster < own.base + own.clusters; ++cluster) {
            sum += array<double>(p.moves)[cluster];
        }
        output<double>(p.inertia)[own.id] = sum;
    }
}

}  // namespace

CONSONANCE_KERNEL(clusters_settle_f32, Clusters, CLUSTER_THREADS, 2) { settle<float>(p); }
CONSONANCE_KERNEL(clusters_settle_f16, Clusters, CLUSTER_THREADS, 2) { settle<f16>(p); }
CONSONANCE_KERNEL(clusters_settle_bf16, Clusters, CLUSTER_THREADS, 2) { settle<bf16>(p); }
CONSONANCE_KERNEL(clusters_begin_f32, Clusters, CLUSTER_THREADS, 2) { begin<float>(p); }
CONSONANCE_KERNEL(clusters_begin_f16, Clusters, CLUSTER_THREADS, 2) { begin<f16>(p); }
CONSONANCE_KERNEL(clusters_begin_bf16, Clusters, CLUSTER_THREADS, 2) { begin<bf16>(p); }
CONSONANCE_KERNEL(clusters_average_f32, Clusters, CLUSTER_THREADS, 2) { average<float>(p); }
CONSONANCE_KERNEL(clusters_average_f16, Clusters, CLUSTER_THREADS, 2) { average<f16>(p); }
CONSONANCE_KERNEL(clusters_average_bf16, Clusters, CLUSTER_THREADS, 2) { average<bf16>(p); }
CONSONANCE_KERNEL(clusters_draw, Clusters, CLUSTER_THREADS, 2) { draw(p); }
CONSONANCE_KERNEL(clusters_judge, Clusters, CLUSTER_THREADS, 2) { judge(p); }
CONSONANCE_KERNEL(clusters_relocate, Clusters, CLUSTER_THREADS, 2) { relocate(p); }
CONSONANCE_KERNEL(clusters_places, Clusters, CLUSTER_THREADS, 2) { places(p); }
CONSONANCE_KERNEL(clusters_close, Clusters, CLUSTER_THREADS, 2) { close(p); }
CONSONANCE_KERNEL(clusters_finish, Clusters, CLUSTER_THREADS, 2) { finish(p); }
CONSONANCE_KERNEL(clusters_inertia, Clusters, CLUSTER_THREADS, 2) { inertia(p); }
