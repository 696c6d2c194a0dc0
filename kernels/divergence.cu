// divergence: how far a student's distribution over the keys is from its teacher's over the same keys, and the student's
// gradients, without a matrix of pairs.
//
//   b_ij = ⟨x_i, y_j⟩ / (τ T), a_ij = ⟨u_i, v_j⟩ / (τ' T), p_i = softmax(b_i), q_i = softmax(a_i)
//   forward  L_i = T² (Σ_j q_ij (a_ij − b_ij) − lse a_i + lse b_i),  ∂L_i/∂s_ij = T (p_ij − q_ij)
//   reverse  L_i = T² (M_i − lse b_i + lse a_i), M_i = Σ_j p_ij (b_ij − a_ij),  ∂L_i/∂s_ij = T p_ij (b_ij − a_ij − M_i)
//
//   check    rows that the sums cannot take                                                              (status)
//   rows     the statistics of both softmaxes and the mean difference: one sweep over the keys of both sides
//   join     joins the splits: divergences, logarithms, and what no coefficient of a row exceeds         (status)
//   queries  coefficients from the logarithms, times the student's keys: gradients of the queries, by split
//   sum      joins the splits of the gradients
//   weigh    weights of the rows in the keys' gradient
//   keys     the coefficients transposed, times the student's queries: a key has one owner
//
// The gradients are passes of their own, because the teacher is to be subtracted before a coefficient is rounded to 16
// bits: near the end of a training p − q is a small part of p, which is what rounding p and q apart would lose.
//
// Grids: rows: (tiles of 64 queries, splits); queries: (tiles of 64 queries, splits, parts); keys: (tiles of 64 keys,
// parts). A part has GRADIENT_DIMS times the groups of the entry's name; each computes the scores anew.
// Operations, in units of 2 B N (three times that for f32), of so many parts: rows D + D'; queries and keys each
// parts (D + D') + D rounded up to whole parts.
// Memory: 24 bytes a row and split, and the gradient of the queries once a split where there are several; splits depend
// on N alone.
#include "bound.cuh"
#include "divergence.cuh"
#include "kernel.cuh"

namespace {

__device__ __forceinline__ void report(const Divergence& p, int word, uint32_t row) {
    atomicMin(output<uint32_t>(p.status) + word, row);
}

// One warp a row: queries, keys, the teacher's queries, the teacher's keys.
template <class T>
__device__ __forceinline__ void check(const Divergence& p) {
    uint64_t item = static_cast<uint64_t>(blockIdx.x) * (TILE_THREADS / 32) + threadIdx.x / 32;
    const uint64_t of_side = static_cast<uint64_t>(p.query_count) + p.key_count;
    const bool is_teacher = item >= of_side;
    item -= is_teacher ? of_side : 0;
    if (item >= of_side) {
        return;
    }
    const bool is_query = item < p.query_count;
    const uint32_t row = static_cast<uint32_t>(is_query ? item : item - p.query_count);
    const uint64_t data = is_teacher ? (is_query ? p.teacher_queries : p.teacher_keys) : is_query ? p.queries : p.keys;
    const uint64_t stride = is_teacher ? (is_query ? p.teacher_query_stride : p.teacher_key_stride)
                            : is_query ? p.query_stride
                                       : p.key_stride;
    const uint32_t dim = is_teacher ? p.teacher_dim : p.dim;
    const T* const elements = array<T>(data) + row * stride;
    float squares = 0.0f;
    for (uint32_t d = lane_index(); d < dim; d += 32) {
        const float value = to_f32(elements[d]);
        squares = fmaf(value, value, squares);
    }
    squares = sum_of_warp(squares);
    if (lane_index() == 0 && !(squares <= LARGEST_SQUARED_NORM)) {
        report(p, (is_teacher ? 2 : 0) + (is_query ? 0 : 1), row);
    }
}

// Queries of both sides, student first, up to row `end`; and keys.
template <class T>
struct Sides {
    Source<T> at[2];

    static __device__ __forceinline__ Sides queries(const Divergence& p) {
        return {{make_source<T>(p.queries, p.query_stride, 0, p.query_count, p.dim),
                 make_source<T>(p.teacher_queries, p.teacher_query_stride, 0, p.query_count, p.teacher_dim)}};
    }
    static __device__ __forceinline__ Sides keys(const Divergence& p, uint32_t end) {
        return {{make_source<T>(p.keys, p.key_stride, 0, end, p.dim),
                 make_source<T>(p.teacher_keys, p.teacher_key_stride, 0, end, p.teacher_dim)}};
    }
};

template <class T>
__device__ __forceinline__ void rows(const Divergence& p) {
    using Shape = Sweep<T, 1>;
    using Reducer = DivergenceSums<T, Shape>;
    unsigned char* const bytes = ptx::shared_memory();
    // There are no coefficients.
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::COEFFICIENTS_AT), {}, {}};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const KeyRange range = split_range({0, p.key_count}, blockIdx.y, p.splits);
    ValueSums none;
    reducer.begin(first_row);
    sweep_sides<Shape, 2>(reducer, none, bytes, Sides<T>::queries(p).at, first_row, Sides<T>::keys(p, range.end).at,
                          range.first, false, 0);
    reducer.end();
}

// Writes the sums of this thread's rows below `count` to a matrix [count, dim].
template <class Shape, class Factor>
__device__ __forceinline__ void write_rows(const ValueSums& sums, float* to, uint32_t first_row, uint32_t count,
                                           uint32_t first_dim, uint32_t dim, Factor&& factor) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t number = first_row + Shape::row_of(half);
        if (number < count) {
            sums.write(to + static_cast<uint64_t>(number) * dim, half,
                       first_dim + static_cast<uint32_t>(Shape::group()) * GRADIENT_DIMS, dim, factor(number));
        }
    }
}

template <class T, int GROUPS>
__device__ __forceinline__ void queries(const Divergence& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = DivergenceGradient<T, Shape, false>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES)};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.z * GRADIENT_DIMS * GROUPS;
    const KeyRange range = split_range({0, p.key_count}, blockIdx.y, p.splits);
    ValueSums sums;
    sums.clear();
    reducer.begin(first_row);
    sweep_sides<Shape, 2>(reducer, sums, bytes, Sides<T>::queries(p).at, first_row, Sides<T>::keys(p, range.end).at,
                          range.first, true, first_dim);
    float* const to = output<float>(p.partial_gradients) + static_cast<uint64_t>(blockIdx.y) * p.query_count * p.dim;
    write_rows<Shape>(sums, to, first_row, p.query_count, first_dim, p.dim, [&](uint32_t query) {
        const float bound = array<float>(p.bound)[query];
        return bound > 0.0f ? __uint_as_float(p.outer) / unit_for(bound) : 0.0f;
    });
}

template <class T, int GROUPS>
__device__ __forceinline__ void keys(const Divergence& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = DivergenceGradient<T, Shape, true>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES)};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.y * GRADIENT_DIMS * GROUPS;
    ValueSums sums;
    sums.clear();
    reducer.begin(first_row);
    sweep_sides<Shape, 2>(reducer, sums, bytes, Sides<T>::keys(p, p.key_count).at, first_row, Sides<T>::queries(p).at,
                          0, true, first_dim);
    const float factor = *array<float>(p.row_unit);
    write_rows<Shape>(sums, output<float>(p.key_gradient), first_row, p.key_count, first_dim, p.dim,
                      [&](uint32_t) { return factor; });
}

}  // namespace

#define DIVERGENCE_KERNELS(name, T)                                                                            \
    CONSONANCE_KERNEL(divergence_check_##name, Divergence, TILE_THREADS, 4) { check<T>(p); }                   \
    CONSONANCE_KERNEL(divergence_rows_##name, Divergence, TILE_THREADS, 2) { rows<T>(p); }                     \
    CONSONANCE_KERNEL(divergence_queries_##name##_1, Divergence, TILE_THREADS, 2) { queries<T, 1>(p); }        \
    CONSONANCE_KERNEL(divergence_queries_##name##_2, Divergence, 2 * TILE_THREADS, 1) { queries<T, 2>(p); }    \
    CONSONANCE_KERNEL(divergence_keys_##name##_1, Divergence, TILE_THREADS, 2) { keys<T, 1>(p); }              \
    CONSONANCE_KERNEL(divergence_keys_##name##_2, Divergence, 2 * TILE_THREADS, 1) { keys<T, 2>(p); }
// Two parts of every f32 number leave too few registers for four groups.
#define DIVERGENCE_WIDE_KERNELS(name, T)                                                                       \
    CONSONANCE_KERNEL(divergence_queries_##name##_4, Divergence, 4 * TILE_THREADS, 1) { queries<T, 4>(p); }    \
    CONSONANCE_KERNEL(divergence_keys_##name##_4, Divergence, 4 * TILE_THREADS, 1) { keys<T, 4>(p); }

DIVERGENCE_KERNELS(f32, float)
DIVERGENCE_KERNELS(f16, f16)
DIVERGENCE_KERNELS(bf16, bf16)
DIVERGENCE_WIDE_KERNELS(f16, f16)
DIVERGENCE_WIDE_KERNELS(bf16, bf16)

// One thread a query.
CONSONANCE_KERNEL(divergence_join, Divergence, TILE_THREADS, 4) {
    const uint64_t item = static_cast<uint64_t>(blockIdx.x) * TILE_THREADS + threadIdx.x;
    if (item >= p.query_count) {
        return;
    }
    const uint32_t query = static_cast<uint32_t>(item);
    const DivergencePartial* const partials = array<DivergencePartial>(p.partials) + item * p.splits;
    DivergencePartial row = partials[0];
    for (uint32_t split = 1; split < p.splits; ++split) {
        join(p, row, partials[split]);
    }
    // Not to be told from the sums, which may have left f32.
    const bool counts = row.widest >= 0.0f;
    float logarithm[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        logarithm[side] = counts ? row.largest[side] + log2f(row.sum[side]) : -INFINITY;
    }
    const float mean = counts ? row.along / row.sum[p.reverse != 0 ? STUDENT : TEACHER] : 0.0f;
    const float between = p.reverse != 0 ? logarithm[TEACHER] - logarithm[STUDENT]
                                         : logarithm[STUDENT] - logarithm[TEACHER];
    const float loss = counts ? (mean + between) * LN_2 * __uint_as_float(p.squared) : 0.0f;
    if (p.known != 0 && array<float>(p.known)[query] > -INFINITY) {
        // A softmax sums to 1, whatever rounding does to the logarithm of its sum.
        if (!(counts && row.sum[TEACHER] >= 0.5f && row.sum[TEACHER] <= 2.0f)) {
            report(p, 4, query);
        }
    }
    if (!is_finite(loss)) {
        report(p, 5, query);
    }
    output<float>(p.losses)[query] = loss;
    output<float>(p.log_sum_exp)[query] = logarithm[STUDENT] * LN_2;
    output<float>(p.teacher_log_sum_exp)[query] = logarithm[TEACHER] * LN_2;
    output<float>(p.mean)[query] = mean * LN_2;
    // |p − q| ≤ 1; |b − a − M| ≤ 2 max |b − a|, and where that is 0 no coefficient is above it.
    const float widest = fmaxf(2.0f * row.widest * LN_2, 1.17549435e-38f);
    output<float>(p.bound)[query] = !counts ? 0.0f : p.reverse != 0 ? widest : 1.0f;
}

// One thread an element of the queries' gradient.
CONSONANCE_KERNEL(divergence_sum, Divergence, TILE_THREADS, 4) {
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * TILE_THREADS + threadIdx.x;
    const uint64_t count = static_cast<uint64_t>(p.query_count) * p.dim;
    if (at >= count) {
        return;
    }
    float sum = 0.0f;
    for (uint32_t split = 0; split < p.splits; ++split) {
        sum += array<float>(p.partial_gradients)[split * count + at];
    }
    output<float>(p.query_gradient)[at] = sum;
}

// One block: g_i T / τ in units that make the largest coefficient of any row just below 2¹⁴.
CONSONANCE_KERNEL(divergence_weigh, Divergence, TILE_THREADS, 1) {
    const float outer = __uint_as_float(p.outer);
    float largest = 0.0f;
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        largest = fmaxf(largest, fabsf(array<float>(p.upstream)[query] * outer) * array<float>(p.bound)[query]);
    }
    const float unit = unit_for(largest_of_block(largest, reinterpret_cast<float*>(ptx::shared_memory())));
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        output<float>(p.row_weights)[query] = array<float>(p.upstream)[query] * outer * unit;
    }
    if (threadIdx.x == 0) {
        *output<float>(p.row_unit) = 1.0f / unit;
    }
}
