// neighbors: gradients of the scores with respect to both sides, the neighbors held fixed.
//
// With g the gradient of the score s of the pair (x, y), gradients of x (those of y exchange the roles):
//   inner product  g y        cosine  g (y / (‖x‖ ‖y‖) − s x / ‖x‖²)        squared L2  2 g (x − y)
// The gradient of a query is summed by one block over its k neighbors in their order; that of a key by the block
// that owns it, which reads the list of all neighbors and adds those of its keys in the order of the queries. So
// there are no atomics, and the bits do not depend on the schedule.
//
// Grids: queries: one block a query; keys: one block OWNED_KEYS keys, each reading queries · k indices.
// Traffic: queries: (k + 2) rows each; keys: the indices once a block, two rows a pair, the output twice a pair.
#include "kernel.cuh"
#include "pairs.cuh"
#include "warp.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

// What one pair adds to the gradient of `self`: of_other · other + of_self · self.
struct Coefficients {
    float of_self;
    float of_other;
};

// All lanes of a warp together; the same result in all.
template <class T>
__device__ __forceinline__ Coefficients coefficients(const T* self, const T* other, uint32_t dim, uint32_t metric,
                                                     float upstream) {
    if (metric == INNER_PRODUCT) {
        return {0.0f, upstream};
    }
    if (metric == SQUARED_L2) {
        return {2.0f * upstream, -2.0f * upstream};
    }
    float product = 0.0f;
    float self_squared = 0.0f;
    float other_squared = 0.0f;
    for (uint32_t d = lane_index(); d < dim; d += 32) {
        const float x = to_f32(self[d]);
        const float y = to_f32(other[d]);
        product = fmaf(x, y, product);
        self_squared = fmaf(x, x, self_squared);
        other_squared = fmaf(y, y, other_squared);
    }
    product = sum_of_warp(product);
    self_squared = sum_of_warp(self_squared);
    const float norms = sqrtf(self_squared) * sqrtf(sum_of_warp(other_squared));
    return {-upstream * (product / norms) / self_squared, upstream / norms};
}

template <class T>
__device__ __forceinline__ void gradient_of_query(const NeighborsGradient& p) {
    auto* const shared = reinterpret_cast<Coefficients*>(ptx::shared_memory());
    const uint32_t query = blockIdx.x;
    const T* const self = array<T>(p.queries) + query * p.query_stride;
    const uint32_t* const indices = array<uint32_t>(p.indices) + static_cast<uint64_t>(query) * p.k;
    const float* const upstream = array<float>(p.upstream) + static_cast<uint64_t>(query) * p.k;
    for (uint32_t place = threadIdx.x / 32; place < p.k; place += WARPS) {
        const uint32_t key = indices[place];
        if (key != NONE) {
            const Coefficients pair = coefficients(self, array<T>(p.keys) + key * p.key_stride, p.dim, p.metric,
                                                   upstream[place]);
            if (lane_index() == 0) {
                shared[place] = pair;
            }
        }
    }
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
        const float x = to_f32(self[d]);
        float sum = 0.0f;
        for (uint32_t place = 0; place < p.k; ++place) {
            const uint32_t key = indices[place];
            if (key != NONE) {
                const float y = to_f32(array<T>(p.keys)[key * p.key_stride + d]);
                sum = fmaf(shared[place].of_other, y, fmaf(shared[place].of_self, x, sum));
            }
        }
        output<float>(p.gradient)[static_cast<uint64_t>(query) * p.dim + d] = sum;
    }
}

template <class T>
__device__ __forceinline__ void gradient_of_keys(const NeighborsGradient& p) {
    // The pairs of this block's keys among TILE_THREADS neighbors, in their order.
    struct Shared {
        uint64_t pairs[TILE_THREADS];
        uint32_t counts[WARPS];
    };
    auto& shared = *reinterpret_cast<Shared*>(ptx::shared_memory());
    const uint32_t first_key = blockIdx.x * OWNED_KEYS;
    const uint32_t end_key = p.key_count - first_key < OWNED_KEYS ? p.key_count : first_key + OWNED_KEYS;
    const uint32_t warp = threadIdx.x / 32;
    float* const gradient = output<float>(p.gradient);
    // A thread has the dimensions threadIdx + 128 i of all rows from here on.
    for (uint32_t key = first_key; key < end_key; ++key) {
        for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
            gradient[static_cast<uint64_t>(key) * p.dim + d] = 0.0f;
        }
    }
    const uint64_t all = static_cast<uint64_t>(p.query_count) * p.k;
    for (uint64_t first = 0; first < all; first += TILE_THREADS) {
        const uint64_t pair = first + threadIdx.x;
        const uint32_t index = pair < all ? array<uint32_t>(p.indices)[pair] : NONE;
        const bool mine = index >= first_key && index < end_key;
        const uint32_t votes = __ballot_sync(ALL_LANES, mine);
        if (lane_index() == 0) {
            shared.counts[warp] = __popc(votes);
        }
        __syncthreads();
        uint32_t place = __popc(votes & ((1u << lane_index()) - 1));
        uint32_t count = 0;
        for (uint32_t other = 0; other < WARPS; ++other) {
            place += other < warp ? shared.counts[other] : 0;
            count += shared.counts[other];
        }
        if (mine) {
            shared.pairs[place] = pair;
        }
        __syncthreads();
        for (uint32_t i = 0; i < count; ++i) {
            const uint64_t found = shared.pairs[i];
            const uint32_t key = array<uint32_t>(p.indices)[found];
            const T* const self = array<T>(p.keys) + key * p.key_stride;
            const T* const other = array<T>(p.queries) + found / p.k * p.query_stride;
            const Coefficients its = coefficients(self, other, p.dim, p.metric, array<float>(p.upstream)[found]);
            float* const row = gradient + static_cast<uint64_t>(key) * p.dim;
            for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
                row[d] = fmaf(its.of_other, to_f32(other[d]), fmaf(its.of_self, to_f32(self[d]), row[d]));
            }
        }
        __syncthreads();
    }
}

}  // namespace

CONSONANCE_KERNEL(neighbors_gradient_queries_f32, NeighborsGradient, TILE_THREADS, 4) { gradient_of_query<float>(p); }
CONSONANCE_KERNEL(neighbors_gradient_queries_f16, NeighborsGradient, TILE_THREADS, 4) { gradient_of_query<f16>(p); }
CONSONANCE_KERNEL(neighbors_gradient_queries_bf16, NeighborsGradient, TILE_THREADS, 4) { gradient_of_query<bf16>(p); }
CONSONANCE_KERNEL(neighbors_gradient_keys_f32, NeighborsGradient, TILE_THREADS, 4) { gradient_of_keys<float>(p); }
CONSONANCE_KERNEL(neighbors_gradient_keys_f16, NeighborsGradient, TILE_THREADS, 4) { gradient_of_keys<f16>(p); }
CONSONANCE_KERNEL(neighbors_gradient_keys_bf16, NeighborsGradient, TILE_THREADS, 4) { gradient_of_keys<bf16>(p); }
