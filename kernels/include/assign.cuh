// The reducer of soft assignment: tiles of inner products become distances, scores, and the softmax of every row.
//
// Each thread has its own softmax of the columns it sees; the four lanes of a row join theirs at the end. With OWN, centroids
// of a row's own class are left out (credibility.cu adds them), and the others are compared with the nearest of them.
#pragma once

#include "distance.cuh"
#include "softened.cuh"
#include "stream.cuh"
#include "sweep.cuh"

template <class T, bool OWN>
struct Assigner {
    using Shape = TileShape<MANY_ROWS>;
    static constexpr int PRODUCTS = SCORE_PRODUCTS<T>;
    static constexpr int ELEMENTS = Shape::COLUMNS * 2;

    struct Shared {
        Side centroids[TILE_KEYS];
        float rates[TILE_KEYS];
        Side points[MANY_ROWS];
        // OWN: centroids of the row's class, and the squared distance to the nearest of them.
        KeyRange own[MANY_ROWS];
        float own_nearest[MANY_ROWS];
    };

    const SoftAssignment& p;
    Shared& shared;
    uint32_t first_row;
    SoftPartial row[2];

    __device__ __forceinline__ static uint32_t local_row(int half) {
        return static_cast<uint32_t>(Shape::query() + half * 8) + lane_index() / 4;
    }

    __device__ __forceinline__ static uint32_t column_of(int i) {
        return lane_index() % 4 * 2 + static_cast<uint32_t>(i / 2 * 8 + i % 2);
    }

    // A barrier follows before the first tile is taken.
    __device__ __forceinline__ void begin() {
        if (threadIdx.x < MANY_ROWS) {
            const uint32_t point = first_row + threadIdx.x;
            shared.points[threadIdx.x] = side_of_point(p, point);
            if constexpr (OWN) {
                const bool counts = point < p.point_count;
                const uint32_t* const starts = array<uint32_t>(p.class_starts);
                const uint32_t its = counts ? array<uint32_t>(p.classes)[point] : 0;
                shared.own[threadIdx.x] = {starts[its], starts[its + 1]};
                shared.own_nearest[threadIdx.x] = counts ? array<SoftPartial>(p.own)[point].nearest : 0.0f;
            }
        }
        row[0] = no_centroid();
        row[1] = no_centroid();
    }

    __device__ __forceinline__ void measure(const unsigned char*, const unsigned char*, uint32_t, bool) {}

    __device__ __forceinline__ void publish(uint32_t first_key, bool) {
        if (threadIdx.x < TILE_KEYS) {
            const uint32_t centroid = first_key + threadIdx.x;
            shared.centroids[threadIdx.x] = side_of_centroid(p, centroid);
            shared.rates[threadIdx.x] = centroid < p.centroid_count ? array<float>(p.rates)[centroid] : 0.0f;
        }
    }

    __device__ __forceinline__ void take(const Sums<PRODUCTS, Shape::COLUMNS>& sums, uint32_t first_key) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t local = local_row(half);
            const Side point = shared.points[local];
            float values[ELEMENTS];
            uint32_t hits = 0;
#pragma unroll
            for (int i = 0; i < ELEMENTS; ++i) {
                bool cancels;
                values[i] = squared_by_product(sums.get(i / 2, half * 2 + i % 2), point, shared.centroids[column_of(i)], cancels);
                hits |= cancels ? 1u << i : 0u;
            }
            replace_cancelled<T>(p, values, hits, [&](int i) { return uint2{first_row + local, first_key + column_of(i)}; });
            if constexpr (OWN) {
                compare(row[half], values, first_key, local);
            }
            add(row[half], values, first_key);
        }
    }

    // Takes the own class's centroids out, and counts which others are nearer.
    __device__ __forceinline__ void compare(SoftPartial& its, float (&squared)[ELEMENTS], uint32_t first_key, uint32_t local) const {
        const KeyRange own = shared.own[local];
        const float own_nearest = shared.own_nearest[local];
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            squared[i] = first_key + column_of(i) - own.first < own.end - own.first ? INFINITY : squared[i];
            its.nearest = fminf(its.nearest, squared[i]);
            its.closer += squared[i] < own_nearest ? 1 : 0;
        }
    }

    // From squared distances to scores, and into the softmax.
    __device__ __forceinline__ void add(SoftPartial& its, float (&values)[ELEMENTS], uint32_t first_key) const {
        float largest = -INFINITY;
        int best = 0;
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            values[i] = soft_score(values[i], shared.rates[column_of(i)], p.squared);
            // Columns ascend with i: of equal scores the first stays.
            best = values[i] > largest ? i : best;
            largest = fmaxf(largest, values[i]);
        }
        if (largest > its.largest) {
            rescale(its, largest);
            its.best = first_key + column_of(best);
        }
        const float from = its.largest > -INFINITY ? its.largest : 0.0f;
        float sum = 0.0f;
        float along = 0.0f;
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            const float t = fmaxf(values[i] - from, LEAST_EXPONENT);
            const float e = ptx::exp2_fast(t * LOG2_E);
            sum += e;
            along = fmaf(t, e, along);
        }
        its.sum += sum;
        its.along += along;
    }

    __device__ __forceinline__ void end() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            join_lanes(row[half], 4);
            const uint32_t point = first_row + local_row(half);
            if (lane_index() % 4 == 0 && point < p.point_count) {
                output<SoftPartial>(p.partials)[static_cast<uint64_t>(point) * p.splits + blockIdx.y] = row[half];
            }
        }
    }
};

// A block: a tile of points against the centroids of a split.
template <class T, bool OWN>
__device__ __forceinline__ void assign_rows(const SoftAssignment& p) {
    using Reducer = Assigner<T, OWN>;
    unsigned char* const stages = ptx::shared_memory();
    auto& shared = *reinterpret_cast<typename Reducer::Shared*>(stages + TileShape<MANY_ROWS>::STREAM_BYTES);
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const KeyRange range = split_range({0, p.centroid_count}, blockIdx.y, p.splits);
    Reducer reducer{p, shared, first_row, {}};
    reducer.begin();
    const auto points = make_source<T>(p.points, p.point_stride, 0, p.point_count, p.dim);
    const auto operands = make_source<T>(p.operands, p.operand_stride, 0, range.end, p.operand_dim);
    stream_keys<Reducer::PRODUCTS, MANY_ROWS>(reducer, stages, points, first_row, operands, range.first);
    reducer.end();
}
