// contrast: the weighted multi-positive contrastive loss and its gradients, without a matrix of pairs.
//
//   s_ij = ⟨x_i, y_j⟩ / τ_i + ln u_j,  L_i = A_i lse_i − Σ_j a_ij ⟨x_i, y_j⟩ / τ_i,  ∂L_i/∂s_ij = A_i p_ij − a_ij
//   left out:  L_i = Σ_j a_ij ln(1 + e^(lse_i − ⟨x_i, y_j⟩ / τ_i)) with lse_i over the others,  ∂L_i/∂s_ij = −a_ij q_ij on
//   positives and p_ij Σ_k a_ik q_ik elsewhere, q_ij = 1 / (1 + e^(⟨x_i, y_j⟩ / τ_i − lse_i))
//
//   check    rows, temperatures, weights and lists that the sums cannot take; norms and the largest   (status)
//   old      inverse norms of old embeddings
//   rows     lse and Σ p y over the keys that are no positives, rescaled online: one sweep over the keys (softmax.cuh)
//   pace     negatives of the query's group, which have weights of their own: another split (contrast_pace.cu)
//   targets  joins the splits; walks the positives, one by one in f32: losses, and the queries' gradient (targets.cuh)
//   weigh    weights of the rows in the keys' gradient
//   keys     coefficients from the rows' lse, transposed, times the queries: a key has one owner         (gradient.cuh)
//
// Where all keys are positives of every query, sums over them come from moments (contrast_moments.cu).
//
// Grids: rows: (tiles of 64 queries, splits, parts); targets: (queries, parts of TARGET_DIMS); keys: (tiles of 64 keys,
// parts). A part has GRADIENT_DIMS times the groups of the entry's name; each computes the scores anew.
// Operations, in units of 2 B N D (three times that for f32), of so many parts: rows 1, with the gradient 1 + parts; keys
// 1 + parts. One part has 512 dimensions, of f32 256.
// Memory: 12 bytes a row and split, and the gradient of the queries once a split; splits depend on N alone.
#include "bound.cuh"
#include "gradient.cuh"
#include "kernel.cuh"
#include "targets.cuh"

namespace {

__device__ __forceinline__ void report(const Contrast& p, int word, uint32_t row) {
    atomicMin(output<uint32_t>(p.status) + word, row);
}

__device__ __forceinline__ bool is_good_list(const Contrast& p, uint32_t query) {
    const uint32_t first = array<uint32_t>(p.offsets)[query];
    const uint32_t last = array<uint32_t>(p.offsets)[query + 1];
    bool good = first <= last && last <= p.listed && (query != 0 || first == 0) &&
                (query + 1 != p.query_count || last == p.listed);
    if (!good) {
        return false;
    }
    for (uint32_t at = first + lane_index(); at < last; at += 32) {
        const uint32_t key = array<uint32_t>(p.indices)[at];
        const bool ascends = key < p.key_count && (at == first || array<uint32_t>(p.indices)[at - 1] < key);
        good = good && (ascends || (p.padded != 0 && key == NONE));
        if (p.weights != 0) {
            const float weight = array<float>(p.weights)[at];
            good = good && weight >= 0.0f && is_finite(weight);
        }
    }
    return good;
}

// The largest squared norms and |log₂ u| that a warp has seen.
struct Largest {
    float query;
    float key;
    float bias;
};

// One warp a row: queries first, then keys.
template <class T>
__device__ __forceinline__ void check_row(const Contrast& p, uint64_t item, Largest& largest) {
    const bool is_query = item < p.query_count;
    const uint32_t row = static_cast<uint32_t>(is_query ? item : item - p.query_count);
    const T* const data = array<T>(is_query ? p.queries : p.keys) + row * (is_query ? p.query_stride : p.key_stride);
    float squares = 0.0f;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        const float value = to_f32(data[d]);
        squares = fmaf(value, value, squares);
    }
    squares = sum_of_warp(squares);
    const bool good_list = !is_query || p.rule != RULE_LISTS || is_good_list(p, row);
    if (!good_list) {
        report(p, 4, row);
    }
    if (lane_index() != 0) {
        return;
    }
    if (!(squares <= LARGEST_SQUARED_NORM)) {
        report(p, is_query ? 0 : 1, row);
    }
    const uint64_t norms = is_query ? p.query_norms : p.key_norms;
    if (norms != 0) {
        output<float>(norms)[row] = sqrtf(squares);
    }
    if (is_query) {
        largest.query = fmaxf(largest.query, squares);
    } else if (bit_at(p.valid, row)) {
        largest.key = fmaxf(largest.key, squares);
    }
    if (is_query) {
        const float temperature = temperature_of(p, row);
        if (!(temperature > 0.0f && is_finite(temperature) && is_finite(LOG2_E / temperature))) {
            report(p, 2, row);
        }
    } else if (p.denominator_weights != 0) {
        const float weight = array<float>(p.denominator_weights)[row];
        if (!(weight >= 0.0f && is_finite(weight))) {
            report(p, 3, row);
        }
        if (weight > 0.0f && bit_at(p.valid, row)) {
            largest.bias = fmaxf(largest.bias, fabsf(log2f(weight)));
        }
    }
}

// CHECKED_ROWS rows a block.
template <class T>
__device__ __forceinline__ void check(const Contrast& p) {
    const uint64_t rows = static_cast<uint64_t>(p.query_count) + p.key_count;
    Largest largest{};
    for (uint32_t at = threadIdx.x / 32; at < CHECKED_ROWS; at += TILE_THREADS / 32) {
        const uint64_t item = static_cast<uint64_t>(blockIdx.x) * CHECKED_ROWS + at;
        if (item < rows) {
            check_row<T>(p, item, largest);
        }
    }
    if (lane_index() == 0) {
        // Numbers that are not negative are ordered as their bits are. What is not finite was reported.
        report(p, LONGEST_QUERY, ~__float_as_uint(largest.query));
        report(p, LONGEST_KEY, ~__float_as_uint(largest.key));
        report(p, WIDEST_BIAS, ~__float_as_uint(largest.bias));
    }
}

// One warp an old row: queries first, then keys.
__device__ __forceinline__ void old(const Contrast& p) {
    const uint64_t item = static_cast<uint64_t>(blockIdx.x) * (TILE_THREADS / 32) + threadIdx.x / 32;
    if (item >= static_cast<uint64_t>(p.query_count) + p.key_count) {
        return;
    }
    const bool is_query = item < p.query_count;
    const uint32_t row = static_cast<uint32_t>(is_query ? item : item - p.query_count);
    const uint64_t first = row * (is_query ? p.old_query_stride : p.old_key_stride);
    const uint64_t data = is_query ? p.old_queries : p.old_keys;
    const uint32_t type = is_query ? p.old_query_type : p.old_key_type;
    float squares = 0.0f;
    for (uint32_t d = lane_index(); d < p.old_dim; d += 32) {
        const float value = old_element(data, type, first + d);
        squares = fmaf(value, value, squares);
    }
    squares = sum_of_warp(squares);
    if (lane_index() != 0) {
        return;
    }
    if (!(squares <= LARGEST_SQUARED_NORM && squares > 0.0f)) {
        report(p, is_query ? 5 : 6, row);
    }
    output<float>(is_query ? p.old_query_inverses : p.old_key_inverses)[row] = 1.0f / sqrtf(squares);
}

template <class T>
__device__ __forceinline__ Source<T> query_source(const Contrast& p) {
    return make_source<T>(p.queries, p.query_stride, 0, p.query_count, p.dim);
}

template <class T>
__device__ __forceinline__ Source<T> key_source(const Contrast& p, uint32_t end) {
    return make_source<T>(p.keys, p.key_stride, 0, end, p.dim);
}

template <class T, int GROUPS>
__device__ __forceinline__ void rows(const Contrast& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = RowSums<T, Shape>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES)};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.z * GRADIENT_DIMS * GROUPS;
    const KeyRange range = split_range({0, p.key_count}, blockIdx.y, gridDim.y);
    const bool values = p.query_gradient != 0;
    ValueSums sums;
    sums.clear();
    reducer.begin(first_row);
    sweep<Shape>(reducer, sums, bytes, query_source<T>(p), first_row, key_source<T>(p, range.end), range.first, values,
                 first_dim);
    if (blockIdx.z == 0) {
        reducer.end();
    }
    if (!values) {
        return;
    }
    const uint64_t split = static_cast<uint64_t>(blockIdx.y) * p.query_count;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t number = first_row + Shape::row_of(half);
        if (number < p.query_count) {
            sums.write(output<float>(p.partial_gradients) + (split + number) * p.dim, half,
                       first_dim + static_cast<uint32_t>(Shape::group()) * GRADIENT_DIMS, p.dim,
                       1.0f / COEFFICIENT_UNIT);
        }
    }
}

template <class T, int GROUPS>
__device__ __forceinline__ void keys(const Contrast& p) {
    using Shape = Sweep<T, GROUPS>;
    using Reducer = KeyGradient<T, Shape>;
    unsigned char* const bytes = ptx::shared_memory();
    Reducer reducer{p, *reinterpret_cast<typename Reducer::Shared*>(bytes + Shape::BYTES)};
    const uint32_t first_row = blockIdx.x * MANY_ROWS;
    const uint32_t first_dim = blockIdx.y * GRADIENT_DIMS * GROUPS;
    ValueSums sums;
    sums.clear();
    reducer.begin(first_row);
    sweep<Shape>(reducer, sums, bytes, key_source<T>(p, p.key_count), first_row, query_source<T>(p), 0, true, first_dim);
    const float factor = *array<float>(p.row_unit);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t number = first_row + Shape::row_of(half);
        if (number < p.key_count) {
            sums.write(output<float>(p.key_gradient) + static_cast<uint64_t>(number) * p.dim, half,
                       first_dim + static_cast<uint32_t>(Shape::group()) * GRADIENT_DIMS, p.dim, factor);
        }
    }
}

// The sums of a query over all positives, where moments gave them: the same in every thread.
template <class T>
__device__ __forceinline__ TargetSums moment_sums(const Contrast& p, uint32_t query) {
    const float* const target = array<float>(p.targets) + static_cast<uint64_t>(query) * (p.dim + 1);
    const T* const x = array<T>(p.queries) + query * p.query_stride;
    float along = 0.0f;
    for (uint32_t d = lane_index(); d < p.dim; d += 32) {
        along = fmaf(to_f32(x[d]), target[d], along);
    }
    TargetSums sums{};
    if (bit_at(p.anchors, query)) {
        sums.count = static_cast<uint32_t>(*array<float>(p.target_count));
        sums.weight = fmaxf(target[p.dim], 0.0f);
    }
    sums.along = sum_of_warp(along);
    return sums;
}

// One block a query and part of its dimensions.
template <class T>
__device__ __forceinline__ void targets(const Contrast& p) {
    auto& shared = *reinterpret_cast<TargetShared*>(ptx::shared_memory());
    const uint32_t query = blockIdx.x;
    const uint32_t first_dim = blockIdx.y * TARGET_DIMS;
    const bool gradient = p.query_gradient != 0;
    const uint32_t rest = p.dim - first_dim;
    const uint32_t dims = !gradient ? 0 : rest < TARGET_DIMS ? rest : TARGET_DIMS;

    const RowPartial* const partials = array<RowPartial>(p.partials) + static_cast<uint64_t>(query) * p.splits;
    RowPartial row = partials[0];
    for (uint32_t split = 1; split < p.splits; ++split) {
        join(row, partials[split]);
    }
    const float log_sum_exp = row.sum > 0.0f ? row.largest + log2f(row.sum) : -INFINITY;

    const TargetWalk<T> walk{p, shared, query, log_sum_exp, first_dim, dims};
    TargetSums sums;
    if (p.by_moments != 0) {
        sums = moment_sums<T>(p, query);
    } else {
        walk.clear();
        sums = walk.all();
    }
    const bool left_out = p.positives_left_out != 0;
    const float temperature = temperature_of(p, query);
    const float normalizer = p.by_weight != 0 ? sums.weight : static_cast<float>(sums.count);
    const bool counts = normalizer > 0.0f && (left_out || row.sum > 0.0f);
    const float inverse = counts ? 1.0f / normalizer : 0.0f;
    const float mass = counts ? (left_out ? sums.mass : sums.weight) * inverse : 0.0f;
    const float dense = mass != 0.0f && row.sum > 0.0f ? mass / row.sum : 0.0f;
    if (first_dim == 0 && threadIdx.x == 0) {
        const float loss = left_out ? sums.loss : sums.weight * (log_sum_exp * LN_2) - sums.along / temperature;
        output<float>(p.losses)[query] = counts ? loss * inverse : 0.0f;
        output<float>(p.log_sum_exp)[query] = log_sum_exp * LN_2;
        output<float>(p.mass)[query] = mass;
        output<float>(p.inverse_normalizer)[query] = inverse;
    }
    // What the positives' part of Σ (∂L/∂s) y is, of sums Σ p y or Σ w q y and Σ w y; and the same along x.
    const auto of_positives = [&](float pulled, float weighted, bool within) {
        return left_out ? -pulled * inverse : within ? -weighted * inverse : mass * pulled - weighted * inverse;
    };
    const bool by_moments = p.by_moments != 0;
    if (p.temperature_gradient != 0 && first_dim == 0 && threadIdx.x == 0) {
        const bool within = by_moments || p.positives_within != 0;
        const float along = dense * row.along + of_positives(sums.pulled, sums.along, within);
        // s is proportional to 1 / τ.
        output<float>(p.temperature_gradient)[query] = counts ? -(along / temperature) / temperature : 0.0f;
    }
    if (!gradient) {
        return;
    }
    const uint64_t place = static_cast<uint64_t>(query) * p.dim + first_dim;
    for (uint32_t d = threadIdx.x; d < dims; d += TILE_THREADS) {
        float sum = 0.0f;
        for (uint32_t split = 0; split < p.splits; ++split) {
            const float factor = dense * ptx::exp2_fast(partials[split].largest - row.largest);
            const uint64_t before = static_cast<uint64_t>(split) * p.query_count * p.dim;
            // A split without a key of the denominator has the maximum −∞, as the row may have.
            sum += dense > 0.0f ? factor * array<float>(p.partial_gradients)[before + place + d] : 0.0f;
        }
        if (by_moments) {
            const uint64_t target = static_cast<uint64_t>(query) * (p.dim + 1) + first_dim + d;
            sum += of_positives(0.0f, array<float>(p.targets)[target], true);
        } else {
            sum += of_positives(walk.sum(0, d), walk.sum(1, d), false);
        }
        output<float>(p.query_gradient)[place + d] = counts ? sum / temperature : 0.0f;
    }
}

}  // namespace

#define CONTRAST_KERNELS(name, T)                                                                           \
    CONSONANCE_KERNEL(contrast_rows_##name##_1, Contrast, TILE_THREADS, 2) { rows<T, 1>(p); }               \
    CONSONANCE_KERNEL(contrast_rows_##name##_2, Contrast, 2 * TILE_THREADS, 1) { rows<T, 2>(p); }           \
    CONSONANCE_KERNEL(contrast_keys_##name##_1, Contrast, TILE_THREADS, 2) { keys<T, 1>(p); }               \
    CONSONANCE_KERNEL(contrast_keys_##name##_2, Contrast, 2 * TILE_THREADS, 1) { keys<T, 2>(p); }           \
    CONSONANCE_KERNEL(contrast_targets_##name, Contrast, TILE_THREADS, 4) { targets<T>(p); }                \
    CONSONANCE_KERNEL(contrast_check_##name, Contrast, TILE_THREADS, 4) { check<T>(p); }
// Two parts of every f32 number leave too few registers for four groups.
#define CONTRAST_WIDE_KERNELS(name, T)                                                                      \
    CONSONANCE_KERNEL(contrast_rows_##name##_4, Contrast, 4 * TILE_THREADS, 1) { rows<T, 4>(p); }           \
    CONSONANCE_KERNEL(contrast_keys_##name##_4, Contrast, 4 * TILE_THREADS, 1) { keys<T, 4>(p); }

CONTRAST_KERNELS(f32, float)
CONTRAST_KERNELS(f16, f16)
CONTRAST_KERNELS(bf16, bf16)
CONTRAST_WIDE_KERNELS(f16, f16)
CONTRAST_WIDE_KERNELS(bf16, bf16)

CONSONANCE_KERNEL(contrast_old, Contrast, TILE_THREADS, 4) { old(p); }

// One block: g_i / τ_i in units that make the largest coefficient of any row just below 2¹⁴.
CONSONANCE_KERNEL(contrast_weigh, Contrast, TILE_THREADS, 1) {
    float largest = 0.0f;
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        const float weight = array<float>(p.upstream)[query] / temperature_of(p, query);
        largest = fmaxf(largest, fabsf(weight) * array<float>(p.mass)[query]);
    }
    const float unit = unit_for(largest_of_block(largest, reinterpret_cast<float*>(ptx::shared_memory())));
    for (uint32_t query = threadIdx.x; query < p.query_count; query += TILE_THREADS) {
        const float weight = array<float>(p.upstream)[query] / temperature_of(p, query);
        output<float>(p.row_weights)[query] = weight * unit;
        if (p.by_moments != 0) {
            output<float>(p.moment_weights)[query] = weight * array<float>(p.inverse_normalizer)[query];
        }
    }
    if (threadIdx.x == 0) {
        *output<float>(p.row_unit) = 1.0f / unit;
    }
}
