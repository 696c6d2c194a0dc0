// gathered: losses of queries against the rows of a bank that each of them lists.
//
// With columns c of query i's list, j = j(i, c) the bank row there and s_ic = ⟨x_i, y_j⟩ / τ_i:
//   contrast    lse_i = ln Σ_c e^{s_ic},  L_i = A_i lse_i − Σ_c a_ic s_ic,  ∂L_i/∂s_ic = A_i p_ic − a_ic
//   divergence  L_i = T² KL(softmax(t_i / T) ‖ softmax(s_i / T)) with scores t of a teacher in the same columns,
//               ∂L_i/∂s_ic = T (p_ic − q_ic)
// Padding is in no sum; an index that repeats counts as often as it is listed. The bank is a constant.
//
//   contrast, divergence   one pass over the listed rows: each row is copied to shared memory once, multiplied with the
//                          query, and added to two sums, Σ e^{s − largest} y with a running maximum and Σ w y (of a
//                          divergence Σ e^{t − largest} y); a split of the columns each
//   losses, divergences    join the splits in their order, subtract the two sums in f32
//
// Grids: contrast, divergence: (queries, splits); losses, divergences: queries. Traffic: indices and
// listed rows once, 24 + 8 D bytes a query and split. Operations: 4 K D a query (2 K D without a gradient), and 2 K D for
// each row that is a positive; divergences 2 K (3 D + D').
//
// Scores are in units of ln 2, so that e^s is one instruction. Shared memory: src/cuda/gathered/plan.rs repeats the layout.
#include "floats.cuh"
#include "gathered.cuh"
#include "kernel.cuh"

namespace {

constexpr uint32_t WARPS = TILE_THREADS / 32;

// Words of the status.
enum Word { QUERIES, BANK, TEACHER_QUERIES, TEACHER_BANK, TEMPERATURE, WEIGHTS, INDICES, RESULTS, COUNTED };

// What a split of the columns knows of a row: Σ e^s = sum · 2^largest; of a contrast `other_sum` = Σ w, `along` = Σ w s and
// the number of positives, of a divergence Σ e^t = other_sum · 2^other_largest, `along` · 2^other_largest = Σ e^t (t − s)
// and the number of columns.
struct Partial {
    float largest;
    float sum;
    float other_largest;
    float other_sum;
    float along;
    uint32_t count;
};
static_assert(sizeof(Partial) == GATHERED_PARTIAL_BYTES, "the host makes room for it");

__device__ __forceinline__ void report(const Gathered& p, Word word, uint32_t row) {
    atomicMin(output<uint32_t>(p.status) + word, row);
}

__device__ __forceinline__ float temperature_of(const Gathered& p, uint32_t query) {
    return array<float>(p.temperatures)[p.own_temperatures != 0 ? query : 0];
}

// What a sum up to the maximum `from` is multiplied by when the maximum becomes `to`.
__device__ __forceinline__ float rescaling(float from, float to) {
    return from > -INFINITY ? ptx::exp2_fast(from - to) : 0.0f;
}

// A running maximum, and what the sums of this lane are multiplied by when it grows.
struct Running {
    float largest = -INFINITY;
    float sum = 0.0f;
    // Of this tile: what older sums are multiplied by, and e^{score − largest}.
    float factor = 0.0f;
    float weight = 0.0f;

    // Takes one score of a tile in each lane, −∞ where there is none. All lanes together.
    __device__ __forceinline__ void take(float score) {
        float next = fmaxf(largest, score);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, step));
        }
        factor = rescaling(largest, next);
        weight = score > -INFINITY ? ptx::exp2_fast(score - next) : 0.0f;
        sum = fmaf(sum, factor, weight);
        largest = next;
    }
};

// The weight of a column as a positive, whatever it is worth.
__device__ __forceinline__ float weight_at(const Gathered& p, uint32_t query, uint32_t column) {
    if (p.weights == 0) {
        return column < p.positives ? 1.0f : 0.0f;
    }
    return array<float>(p.weights)[static_cast<uint64_t>(query) * p.columns + column];
}

// The columns of split `split`, in whole tiles.
__device__ __forceinline__ KeyRange columns_of(const Gathered& p, uint32_t split) {
    const uint32_t each = ((p.columns + p.splits - 1) / p.splits + GATHERED_ROWS - 1) / GATHERED_ROWS * GATHERED_ROWS;
    const uint32_t first = each * split < p.columns ? each * split : p.columns;
    return {first, p.columns - first < each ? p.columns : first + each};
}

template <bool DIVERGENCE, int EACH, class T>
__device__ __forceinline__ void rows(const Gathered& p) {
    const uint32_t query = blockIdx.x;
    const KeyRange range = columns_of(p, blockIdx.y);
    const uint32_t lane = lane_index();
    const Group group = group_of(p);
    const uint32_t row_chunks = chunks_of<T>(p.dim);
    const uint32_t stage_bytes = p.tile_rows * (row_chunks + (DIVERGENCE ? chunks_of<T>(p.teacher_dim) : 0)) * 16;
    unsigned char* const stages = ptx::shared_memory();
    auto* const memory = reinterpret_cast<float*>(stages + GATHERED_STAGES * stage_bytes);
    const Listed<T> own = make_listed<T>(p, p.bank, p.bank_stride, p.dim, 0, memory);
    const Listed<T> teacher = DIVERGENCE ? make_listed<T>(p, p.teacher_bank, p.teacher_bank_stride, p.teacher_dim,
                                                          p.tile_rows * row_chunks, memory + floats_of<T>(p.dim))
                                         : own;
    if (!read_vector(own, array<T>(p.queries) + query * p.query_stride)) {
        report(p, QUERIES, query);
    }
    if constexpr (DIVERGENCE) {
        if (!read_vector(teacher, array<T>(p.teacher_queries) + query * p.teacher_query_stride)) {
            report(p, TEACHER_QUERIES, query);
        }
    }
    const float temperature = temperature_of(p, query);
    const float softening = DIVERGENCE ? __uint_as_float(p.softening) : 1.0f;
    const float scale = LOG2_E / temperature / softening;
    if (threadIdx.x == 0 && !(temperature > 0.0f && is_finite(temperature) && is_finite(scale))) {
        report(p, TEMPERATURE, query);
    }
    // The vectors are there for all.
    __syncthreads();

    const uint32_t tasks = p.tile_rows * p.parts;
    // Rows of a tile are a power of two.
    const uint32_t row_mask = p.tile_rows - 1;
    const int part_shift = __ffs(static_cast<int>(p.tile_rows)) - 1;
    const uint32_t tiles = (range.end - range.first + p.tile_rows - 1) / p.tile_rows;
    // The bank row of this lane's column in the tile that is copied next, asked for one tile ahead.
    const auto next_row = [&](uint32_t first) {
        return lane < p.tile_rows ? listed_at(p, query, first + lane, range.end) : NONE;
    };
    uint32_t next_first = range.first;
    uint32_t next_stage = 0;
    uint32_t coming = next_row(next_first);
    const auto start_copy = [&] {
        if (next_first < range.end) {
            unsigned char* const stage = stages + next_stage * stage_bytes;
            for (uint32_t task = group.number; task < tasks; task += group.count) {
                const uint32_t row = task & row_mask;
                const uint32_t part = task >> part_shift;
                const uint32_t index = __shfl_sync(ALL_LANES, coming, static_cast<int>(row));
                copy_part(stage, own, group, row, part, index);
                if constexpr (DIVERGENCE) {
                    copy_part(stage, teacher, group, row, part, index);
                }
            }
            next_stage = next_stage + 1 == GATHERED_STAGES ? 0 : next_stage + 1;
            next_first += p.tile_rows;
            coming = next_row(next_first);
        }
        ptx::copy_async_commit();
    };
#pragma unroll
    for (uint32_t i = 0; i < GATHERED_STAGES - 1; ++i) {
        start_copy();
    }

    Running mine;
    Running of_teacher;
    float other_sum = 0.0f;
    float along = 0.0f;
    uint32_t count = 0;
    float sums[EACH];
    float other_sums[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        sums[i] = 0.0f;
        other_sums[i] = 0.0f;
    }
    uint32_t stage_number = 0;
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        const unsigned char* const stage = stages + stage_number * stage_bytes;
        const uint32_t turn = tile % 2;
        const uint32_t column = range.first + tile * p.tile_rows + lane;
        const uint32_t index = next_row(column - lane);
        const bool is_column = lane < p.tile_rows && column < range.end;
        const float weight = !DIVERGENCE && is_column ? weight_at(p, query, column) : 0.0f;
        // A lane multiplies the chunks that it has copied itself, so its own wait is enough.
        ptx::copy_async_wait<GATHERED_STAGES - 2>();
        for (uint32_t task = group.number; task < tasks; task += group.count) {
            const uint32_t row = task & row_mask;
            const uint32_t part = task >> part_shift;
            const float product = multiply_part(stage, own, group, row, part);
            if (group.lane == 0) {
                own.products[turn * GATHERED_ROWS + task] = product;
            }
            if constexpr (DIVERGENCE) {
                const float other = multiply_part(stage, teacher, group, row, part);
                if (group.lane == 0) {
                    teacher.products[turn * GATHERED_ROWS + task] = other;
                }
            }
        }
        // Rows and products of this tile are there for all, and all have left the stage that is filled next.
        __syncthreads();
        start_copy();

        // From here on every warp does the same with the products, and each thread sums dimensions of its own.
        float score = -INFINITY;
        float other = -INFINITY;
        const float positive = index != NONE ? weight : 0.0f;
        if (!(positive >= 0.0f && is_finite(positive))) {
            report(p, WEIGHTS, query);
        }
        if (index != NONE) {
            score = product_of(p, own, turn, lane) * scale;
            if (!is_finite(score)) {
                report(p, BANK, index);
            }
            if constexpr (DIVERGENCE) {
                other = product_of(p, teacher, turn, lane) * scale;
                if (!is_finite(other)) {
                    report(p, TEACHER_BANK, index);
                }
            }
        }
        mine.take(score);
        if constexpr (DIVERGENCE) {
            of_teacher.take(other);
            along *= of_teacher.factor;
            if (index != NONE) {
                along = fmaf(of_teacher.weight, other - score, along);
                count += 1;
            }
        } else if (positive > 0.0f) {
            other_sum += positive;
            along = fmaf(positive, score, along);
            count += 1;
        }
        if (p.partial_gradients != 0) {
            add_rows(sums, stage, own, p.tile_rows, mine.weight, mine.factor);
            if constexpr (DIVERGENCE) {
                add_rows(other_sums, stage, own, p.tile_rows, of_teacher.weight, of_teacher.factor);
            } else if (__any_sync(ALL_LANES, positive > 0.0f)) {
                add_rows(other_sums, stage, own, p.tile_rows, positive, 1.0f);
            }
        }
        stage_number = stage_number + 1 == GATHERED_STAGES ? 0 : stage_number + 1;
    }
    ptx::copy_async_wait<0>();

    // An index beyond the bank was left out as padding is, and is reported here.
    for (uint32_t column = range.first + threadIdx.x; column < range.end; column += TILE_THREADS) {
        const uint32_t index = array<uint32_t>(p.indices)[static_cast<uint64_t>(query) * p.columns + column];
        if (index != NONE && index >= p.bank_count) {
            report(p, INDICES, query);
        }
    }
    const uint64_t place = static_cast<uint64_t>(query) * p.splits + blockIdx.y;
    if (threadIdx.x < 32) {
        Partial partial{mine.largest, sum_of_warp(mine.sum), of_teacher.largest,
                        sum_of_warp(DIVERGENCE ? of_teacher.sum : other_sum), sum_of_warp(along),
                        __reduce_add_sync(ALL_LANES, count)};
        if (lane == 0) {
            output<Partial>(p.partials)[place] = partial;
        }
    }
    if (p.partial_gradients != 0) {
        float* const gradients = output<float>(p.partial_gradients) + place * 2 * p.dim;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const uint32_t d = threadIdx.x + i * TILE_THREADS;
            if (d < p.dim) {
                gradients[d] = sums[i];
                gradients[p.dim + d] = other_sums[i];
            }
        }
    }
}

// A row's sums over all splits, joined in their order.
template <bool DIVERGENCE>
__device__ __forceinline__ Partial joined(const Gathered& p, uint32_t query) {
    const Partial* const partials = array<Partial>(p.partials) + static_cast<uint64_t>(query) * p.splits;
    Partial row = partials[0];
    for (uint32_t split = 1; split < p.splits; ++split) {
        const Partial other = partials[split];
        const float largest = fmaxf(row.largest, other.largest);
        row.sum = row.sum * rescaling(row.largest, largest) + other.sum * rescaling(other.largest, largest);
        row.largest = largest;
        const float other_largest = fmaxf(row.other_largest, other.other_largest);
        const float before = DIVERGENCE ? rescaling(row.other_largest, other_largest) : 1.0f;
        const float factor = DIVERGENCE ? rescaling(other.other_largest, other_largest) : 1.0f;
        row.other_sum = row.other_sum * before + other.other_sum * factor;
        row.along = row.along * before + other.along * factor;
        row.other_largest = other_largest;
        row.count += other.count;
    }
    return row;
}

// of_sums · Σ e^{s − largest} y − of_others · (the other sum) in dimension d, over all splits in their order.
template <bool DIVERGENCE>
__device__ __forceinline__ float difference_at(const Gathered& p, const Partial& row, uint32_t query, uint32_t d,
                                               float of_sums, float of_others) {
    const uint64_t first = static_cast<uint64_t>(query) * p.splits;
    const float* const gradients = array<float>(p.partial_gradients) + first * 2 * p.dim;
    float sum = 0.0f;
    float other = 0.0f;
    for (uint32_t split = 0; split < p.splits; ++split) {
        const Partial partial = array<Partial>(p.partials)[first + split];
        const float* const of_split = gradients + static_cast<uint64_t>(split) * 2 * p.dim;
        const float factor = DIVERGENCE ? rescaling(partial.other_largest, row.other_largest) : 1.0f;
        sum = fmaf(of_split[d], rescaling(partial.largest, row.largest), sum);
        other = fmaf(of_split[p.dim + d], factor, other);
    }
    return sum * of_sums - other * of_others;
}

// The logarithm to base 2 of sum · 2^largest.
__device__ __forceinline__ float logarithm(float largest, float sum) {
    return sum > 0.0f ? largest + log2f(sum) : -INFINITY;
}

// Writes what one thread knows of a row.
__device__ __forceinline__ void write_row(const Gathered& p, uint32_t query, float loss, float log_sum_exp,
                                          float inverse_normalizer) {
    output<float>(p.losses)[query] = loss;
    output<float>(p.log_sum_exp)[query] = log_sum_exp;
    output<float>(p.inverse_normalizer)[query] = inverse_normalizer;
    if (!is_finite(loss)) {
        report(p, RESULTS, query);
    }
    if (inverse_normalizer > 0.0f) {
        atomicAdd(output<uint32_t>(p.status) + COUNTED, 1u);
    }
}

// One block a row.
template <class T>
__device__ __forceinline__ void losses(const Gathered& p) {
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    const uint32_t query = blockIdx.x;
    const Partial row = joined<false>(p, query);
    const float temperature = temperature_of(p, query);
    const float logarithm_of_sum = logarithm(row.largest, row.sum);
    const float normalizer = p.by_weight != 0 ? row.other_sum : static_cast<float>(row.count);
    const bool counts = normalizer > 0.0f;
    if (threadIdx.x == 0) {
        const float loss = (row.other_sum * logarithm_of_sum - row.along) * LN_2 / normalizer;
        write_row(p, query, counts ? loss : 0.0f, logarithm_of_sum * LN_2, counts ? 1.0f / normalizer : 0.0f);
    }
    if (p.partial_gradients == 0) {
        return;
    }
    const T* const x = array<T>(p.queries) + query * p.query_stride;
    float along = 0.0f;
    for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
        float gradient = 0.0f;
        if (counts) {
            gradient = difference_at<false>(p, row, query, d, row.other_sum / row.sum, 1.0f) / normalizer / temperature;
            if (!is_finite(gradient)) {
                report(p, RESULTS, query);
            }
        }
        output<float>(p.query_gradient)[static_cast<uint64_t>(query) * p.dim + d] = gradient;
        along = fmaf(gradient, to_f32(x[d]), along);
    }
    along = sum_of_warp(along);
    if (lane_index() == 0) {
        of_warps[threadIdx.x / 32] = along;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            sum += of_warps[warp];
        }
        // s is proportional to 1 / τ.
        output<float>(p.temperature_gradient)[query] = -sum / temperature;
    }
}

}  // namespace

CONSONANCE_KERNEL(gathered_contrast_f32, Gathered, TILE_THREADS, 4) { rows<false, NARROW_DIMS, float>(p); }
CONSONANCE_KERNEL(gathered_contrast_f16, Gathered, TILE_THREADS, 4) { rows<false, NARROW_DIMS, f16>(p); }
CONSONANCE_KERNEL(gathered_contrast_bf16, Gathered, TILE_THREADS, 4) { rows<false, NARROW_DIMS, bf16>(p); }
CONSONANCE_KERNEL(gathered_contrast_wide_f32, Gathered, TILE_THREADS, 2) { rows<false, WIDE_DIMS, float>(p); }
CONSONANCE_KERNEL(gathered_contrast_wide_f16, Gathered, TILE_THREADS, 2) { rows<false, WIDE_DIMS, f16>(p); }
CONSONANCE_KERNEL(gathered_contrast_wide_bf16, Gathered, TILE_THREADS, 2) { rows<false, WIDE_DIMS, bf16>(p); }
CONSONANCE_KERNEL(gathered_divergence_f32, Gathered, TILE_THREADS, 4) { rows<true, NARROW_DIMS, float>(p); }
CONSONANCE_KERNEL(gathered_divergence_f16, Gathered, TILE_THREADS, 4) { rows<true, NARROW_DIMS, f16>(p); }
CONSONANCE_KERNEL(gathered_divergence_bf16, Gathered, TILE_THREADS, 4) { rows<true, NARROW_DIMS, bf16>(p); }
CONSONANCE_KERNEL(gathered_divergence_wide_f32, Gathered, TILE_THREADS, 2) { rows<true, WIDE_DIMS, float>(p); }
CONSONANCE_KERNEL(gathered_divergence_wide_f16, Gathered, TILE_THREADS, 2) { rows<true, WIDE_DIMS, f16>(p); }
CONSONANCE_KERNEL(gathered_divergence_wide_bf16, Gathered, TILE_THREADS, 2) { rows<true, WIDE_DIMS, bf16>(p); }
CONSONANCE_KERNEL(gathered_losses_f32, Gathered, TILE_THREADS, 4) { losses<float>(p); }
CONSONANCE_KERNEL(gathered_losses_f16, Gathered, TILE_THREADS, 4) { losses<f16>(p); }
CONSONANCE_KERNEL(gathered_losses_bf16, Gathered, TILE_THREADS, 4) { losses<bf16>(p); }

// One block a row.
CONSONANCE_KERNEL(gathered_divergences, Gathered, TILE_THREADS, 4) {
    const uint32_t query = blockIdx.x;
    const Partial row = joined<true>(p, query);
    const float softening = __uint_as_float(p.softening);
    const bool counts = row.count > 0;
    const float logarithm_of_sum = logarithm(row.largest, row.sum);
    if (threadIdx.x == 0) {
        const float of_teacher = logarithm(row.other_largest, row.other_sum);
        const float divergence = (row.along / row.other_sum - (of_teacher - logarithm_of_sum)) * LN_2;
        write_row(p, query, counts ? divergence * softening * softening : 0.0f, logarithm_of_sum * LN_2,
                  counts ? 1.0f : 0.0f);
    }
    if (p.partial_gradients == 0) {
        return;
    }
    for (uint32_t d = threadIdx.x; d < p.dim; d += TILE_THREADS) {
        float gradient = 0.0f;
        if (counts) {
            const float difference = difference_at<true>(p, row, query, d, 1.0f / row.sum, 1.0f / row.other_sum);
            gradient = difference * softening / temperature_of(p, query);
            if (!is_finite(gradient)) {
                report(p, RESULTS, query);
            }
        }
        output<float>(p.query_gradient)[static_cast<uint64_t>(query) * p.dim + d] = gradient;
    }
}
