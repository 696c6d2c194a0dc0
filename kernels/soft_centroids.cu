// soft_centroids: every centroid moves to the mean of all points, weighed by their responsibilities r_ik = e^(s_ik − lse_i).
//
//   rows   a tile of centroids stays, the points stream by; the distances are computed anew, r becomes a coefficient in the
//          type of the points, and Σ r x and Σ r come from one pass (sweep.cuh)
//   join   adds the splits in their order; c = Σ r x / Σ r, or the direction of Σ r x
//
// Responsibilities are rounded to the points' type (of f32 points two bfloat16 parts), and a mean is divided by the sum of the
// rounded ones: so it stays a mean of the points, with slightly other weights, however far from the origin they lie.
//
// Grids: rows: (tiles of 64 centroids, splits of the points, parts of the dimensions); join: a block a centroid.
// Operations: 2 N K D for the distances (twice that with split centroids) and for each part of the sums 2 N K · the
// dimensions of the part; of f32 three times that. Each part computes the distances anew.
// Memory: f32 [splits, K, D + 2]; splits depend on N alone.
// Shared memory: centroids_shared_bytes of src/cuda/soft_centroids.rs.
#include "distance.cuh"
#include "kernel.cuh"
#include "positions.cuh"
#include "softened.cuh"
#include "sweep.cuh"
#include "units.cuh"

namespace {

// A direction is kept where the sum is shorter than this share of the mass: what is left is rounding.
constexpr float LEAST_DIRECTION = 0x1p-20f;

template <class T, class Shape>
struct Responsibilities {
    struct Shared {
        Side centroids[MANY_ROWS];
        float rates[MANY_ROWS];
        Side points[TILE_KEYS];
        float log_sum_exp[TILE_KEYS];
        float weights[TILE_KEYS];
        float exchange[2][Shape::GROUPS][MANY_ROWS];
        // Of every thread, of its two rows: the sums of r, and of r as it is multiplied. The sums of the rows leave no
        // registers for them.
        float2 parts[2][Shape::THREADS];
        uint32_t first_point;
    };

    const SoftCentroids& p;
    Shared& shared;
    uint32_t first_centroid;
    uint32_t end_point;

    __device__ __forceinline__ float2& part(int half) const { return shared.parts[half][threadIdx.x]; }

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin() {
        if (threadIdx.x < MANY_ROWS) {
            const uint32_t centroid = first_centroid + threadIdx.x;
            shared.centroids[threadIdx.x] = side_of_centroid(p.soft, centroid);
            shared.rates[threadIdx.x] =
                centroid < p.soft.centroid_count ? array<float>(p.soft.rates)[centroid] : 0.0f;
        }
        part(0) = {0.0f, 0.0f};
        part(1) = part(0);
    }

    __device__ __forceinline__ void publish(uint32_t first) {
        if (threadIdx.x == 0) {
            shared.first_point = first;
        }
        if (threadIdx.x < TILE_KEYS) {
            const float unit = unit_for(__uint_as_float(*array<uint32_t>(p.largest_scale)));
            const uint32_t point = first + threadIdx.x;
            const bool counts = point < end_point;
            shared.points[threadIdx.x] = counts ? side_of_point(p.soft, point) : Side{0.0f, INFINITY};
            shared.log_sum_exp[threadIdx.x] = counts ? array<float>(p.soft.log_sum_exp)[point] : 0.0f;
            shared.weights[threadIdx.x] = counts ? array<float>(p.soft.point_scales)[point] * unit : 0.0f;
        }
    }

    // What a coefficient is when it is multiplied.
    static __device__ __forceinline__ float rounded(float value) {
        if constexpr (sizeof(T) == 4) {
            const float high = rounded_to_bf16(value);
            return high + rounded_to_bf16(value - high);
        } else {
            T stored;
            store_rounded(&stored, value);
            return to_f32(stored);
        }
    }

    __device__ __forceinline__ void take(const typename Shape::Products& products, const Coefficients<T>& coefficients,
                                         ValueSums&) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = Shape::row_of(half);
            float values[Shape::ELEMENTS];
            uint32_t hits = 0;
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; ++i) {
                bool cancels;
                values[i] = squared_by_product(products.get(i / 2, half * 2 + i % 2),
                                               shared.points[Shape::column_of(i)], shared.centroids[row], cancels);
                hits |= cancels ? 1u << i : 0u;
            }
            replace_cancelled<T>(p.soft, values, hits, [&](int i) {
                return uint2{shared.first_point + static_cast<uint32_t>(Shape::column_of(i)), first_centroid + row};
            });
            float sum = 0.0f;
            float sum_of_rounded = 0.0f;
#pragma unroll
            for (int i = 0; i < Shape::ELEMENTS; i += 2) {
                float tile[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const int column = Shape::column_of(i + k);
                    const float score = soft_score(values[i + k], shared.rates[row], p.soft.squared);
                    const float r = ptx::exp2_fast((score - shared.log_sum_exp[column]) * LOG2_E);
                    tile[k] = r * shared.weights[column];
                    sum += r;
                    sum_of_rounded += rounded(tile[k]);
                }
                coefficients.set(row, Shape::column_of(i), tile[0], tile[1]);
            }
            part(half).x += sum;
            part(half).y += sum_of_rounded;
        }
    }

    // Adds the parts of a row in their order and writes them.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int step = 1; step < 4; step *= 2) {
                part(half).x += __shfl_xor_sync(ALL_LANES, part(half).x, step);
                part(half).y += __shfl_xor_sync(ALL_LANES, part(half).y, step);
            }
            if (lane_index() % 4 == 0) {
                shared.exchange[0][Shape::group()][Shape::row_of(half)] = part(half).x;
                shared.exchange[1][Shape::group()][Shape::row_of(half)] = part(half).y;
            }
        }
        __syncthreads();
        const uint32_t centroid = first_centroid + threadIdx.x;
        if (threadIdx.x < MANY_ROWS && centroid < p.soft.centroid_count && blockIdx.z == 0) {
            float* const to = output<float>(p.masses) +
                              (static_cast<uint64_t>(blockIdx.y) * p.soft.centroid_count + centroid) * 2;
#pragma unroll
            for (int which = 0; which < 2; ++which) {
                float sum = 0.0f;
#pragma unroll
                for (int group = 0; group < Shape::GROUPS; ++group) {
                    sum += shared.exchange[which][group][threadIdx.x];
                }
                to[which] = sum;
            }
        }
    }
};

template <class T, int GROUPS>
__device__ __forceinline__ void rows(const SoftCentroids& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = Responsibilities<T, Shape>;
    unsigned char* const stages = ptx::shared_memory();
    auto& shared = *reinterpret_cast<typename Reducer::Shared*>(stages + Shape::BYTES);
    const uint32_t first_centroid = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.z * static_cast<uint32_t>(GROUPS) * GRADIENT_DIMS;
    const KeyRange range = split_range({0, p.soft.point_count}, blockIdx.y, p.splits);
    Reducer reducer{p, shared, first_centroid, range.end};
    reducer.begin();
    const auto operands = make_source<T>(p.soft.operands, p.soft.operand_stride, 0, p.soft.centroid_count,
                                         p.soft.operand_dim);
    const auto points = make_source<T>(p.soft.points, p.soft.point_stride, 0, range.end, p.soft.dim);
    ValueSums sums;
    sums.clear();
    sweep<Shape, true>(reducer, sums, stages, operands, first_centroid, points, range.first, true, first_dim);
    reducer.end();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t centroid = first_centroid + Shape::row_of(half);
        if (centroid < p.soft.centroid_count) {
            float* const to = output<float>(p.sums) +
                              (static_cast<uint64_t>(blockIdx.y) * p.soft.centroid_count + centroid) * p.soft.dim;
            sums.write(to, half, first_dim + static_cast<uint32_t>(Shape::group()) * GRADIENT_DIMS, p.soft.dim, 1.0f);
        }
    }
}

}  // namespace

CONSONANCE_KERNEL(soft_centroids_rows_f32_1, SoftCentroids, 128, 1) { rows<float, 1>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_f32_2, SoftCentroids, 256, 1) { rows<float, 2>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_f16_1, SoftCentroids, 128, 1) { rows<f16, 1>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_f16_2, SoftCentroids, 256, 1) { rows<f16, 2>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_f16_4, SoftCentroids, 512, 1) { rows<f16, 4>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_bf16_1, SoftCentroids, 128, 1) { rows<bf16, 1>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_bf16_2, SoftCentroids, 256, 1) { rows<bf16, 2>(p); }
CONSONANCE_KERNEL(soft_centroids_rows_bf16_4, SoftCentroids, 512, 1) { rows<bf16, 4>(p); }

// A block a centroid; one without mass or direction stays where it is.
CONSONANCE_KERNEL(soft_centroids_join, SoftCentroids, TILE_THREADS, 4) {
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    const uint32_t centroid = blockIdx.x;
    float mass = 0.0f;
    float weight = 0.0f;
    for (uint32_t split = 0; split < p.splits; ++split) {
        const float* const its =
            array<float>(p.masses) + (static_cast<uint64_t>(split) * p.soft.centroid_count + centroid) * 2;
        mass += its[0];
        weight += its[1];
    }
    const float* const from = array<float>(p.soft.centroids) + static_cast<uint64_t>(centroid) * p.soft.dim;
    float* const moved = output<float>(p.moved) + static_cast<uint64_t>(centroid) * p.soft.dim;
    const float inverse = 1.0f / weight;
    float squares = 0.0f;
    for (uint32_t d = threadIdx.x; d < p.soft.dim; d += TILE_THREADS) {
        float sum = 0.0f;
        for (uint32_t split = 0; split < p.splits; ++split) {
            sum += array<float>(p.sums)[(static_cast<uint64_t>(split) * p.soft.centroid_count + centroid) * p.soft.dim + d];
        }
        const float mean = weight > 0.0f ? sum * inverse : 0.0f;
        squares = fmaf(mean, mean, squares);
        moved[d] = mean;
    }
    // Relative to the weights, of which a direction's have the inverse norms of the points in them.
    squares = sum_of_block(squares, of_warps);
    const float norm = __fsqrt_rn(squares);
    const float unit = unit_for(__uint_as_float(*array<uint32_t>(p.largest_scale)));
    const bool moves = weight > 0.0f && (p.unit == 0 || norm * weight > LEAST_DIRECTION * unit * mass);
    for (uint32_t d = threadIdx.x; d < p.soft.dim; d += TILE_THREADS) {
        moved[d] = !moves ? from[d] : p.unit != 0 ? moved[d] / norm : moved[d];
    }
    if (threadIdx.x == 0) {
        output<float>(p.mass)[centroid] = mass;
    }
}
