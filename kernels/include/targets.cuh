// The walk over a query's positives: the sparse part of its loss and gradient, in f32.
//
// Positives are found where their rule says: in the keys of the query's label, in its list, on the diagonal; or among all
// keys. Every warp of the block takes each fourth 32 candidates and keeps sums of its own, which are added in the order of
// the warps: so they depend on the query and the keys alone.
#pragma once

#include "affinity.cuh"
#include "positives.cuh"
#include "softmax.cuh"

constexpr int TARGET_WARPS = static_cast<int>(TILE_THREADS) / 32;

// Sums over positives: of w; of w s / (1/τ); of p ⟨x, y⟩ or w q ⟨x, y⟩; and left out, of w q and of w ln(1 + Z e^{−s}).
struct TargetSums {
    uint32_t count;
    float weight;
    float along;
    float pulled;
    float mass;
    float loss;

    __device__ __forceinline__ void add(const TargetSums& other) {
        count += other.count;
        weight += other.weight;
        along += other.along;
        pulled += other.pulled;
        mass += other.mass;
        loss += other.loss;
    }
};

// Shared memory of a block: two sums of keys, Σ p y (left out: Σ w q y) and Σ w y, of every warp.
struct TargetShared {
    float sums[2][TARGET_WARPS][TARGET_DIMS];
    TargetSums scalars[TARGET_WARPS];
};
static_assert(sizeof(TargetShared) == TARGET_SHARED_BYTES, "the host says how much shared memory a block has");

// The candidates at positions [first, end) of the rule's own order.
__device__ __forceinline__ KeyRange candidates_of(const Contrast& p, uint32_t query) {
    switch (p.rule) {
        case RULE_LABELS: {
            const uint32_t label = array<uint32_t>(p.query_labels)[query];
            const uint32_t first = first_not_below(p.key_labels, p.key_order, label, 0, p.key_count);
            const uint32_t end =
                label == NONE ? p.key_count : first_not_below(p.key_labels, p.key_order, label + 1, first, p.key_count);
            return {first, end};
        }
        case RULE_LISTS: {
            // A list that contrast_check refuses is still not read past its end.
            const uint32_t first = array<uint32_t>(p.offsets)[query];
            const uint32_t end = array<uint32_t>(p.offsets)[query + 1];
            return {first, end < p.listed ? end : p.listed};
        }
        case RULE_DIAGONAL: return {query, query + 1};
        default: return {0, p.key_count};
    }
}

__device__ __forceinline__ uint32_t candidate_at(const Contrast& p, uint32_t position) {
    switch (p.rule) {
        case RULE_LABELS: return array<uint32_t>(p.key_order)[position];
        case RULE_LISTS: return array<uint32_t>(p.indices)[position];
        default: return position;
    }
}

// Walks the positives of a query whose ln Σ u e^s, in units of ln 2, is `log_sum_exp`. All threads of a block; the sums
// of keys are of the dimensions [first_dim, first_dim + dims), none without `gradient`.
template <class T>
struct TargetWalk {
    const Contrast& p;
    TargetShared& shared;
    uint32_t query;
    float log_sum_exp;
    uint32_t first_dim;
    uint32_t dims;

    __device__ __forceinline__ void clear() const {
        for (uint32_t d = threadIdx.x; d < dims; d += TILE_THREADS) {
#pragma unroll
            for (int i = 0; i < 2 * TARGET_WARPS; ++i) {
                shared.sums[i / TARGET_WARPS][i % TARGET_WARPS][d] = 0.0f;
            }
        }
        __syncthreads();
    }

    // The sums of this warp's candidates, in every lane.
    __device__ __forceinline__ TargetSums walk() const {
        TargetSums mine{};
        const Facts facts = facts_of_query(p, query);
        const KeyRange range = candidates_of(p, query);
        const uint64_t end = range.end;
        for (uint64_t start = range.first + threadIdx.x / 32 * 32; start < end; start += TILE_THREADS) {
            const uint64_t position = start + lane_index();
            const uint32_t key = position < end ? candidate_at(p, static_cast<uint32_t>(position)) : NONE;
            const bool is_positive = key < p.key_count && pairing_of(p, facts, facts_of_key(p, key)).is_positive;
            const float listed = is_positive && p.weights != 0 ? array<float>(p.weights)[position] : 1.0f;
            for (unsigned rest = __ballot_sync(ALL_LANES, is_positive); rest != 0; rest &= rest - 1) {
                const int lane = __ffs(static_cast<int>(rest)) - 1;
                add(mine, __shfl_sync(ALL_LANES, key, lane), __shfl_sync(ALL_LANES, listed, lane));
            }
        }
        return mine;
    }

    // One positive. All lanes together.
    __device__ __forceinline__ void add(TargetSums& mine, uint32_t key, float listed) const {
        const T* const y = array<T>(p.keys) + key * p.key_stride;
        const float value = dot_of_warp(array<T>(p.queries) + query * p.query_stride, y, p.dim);
        const float weight = listed * affinity_of(p, query, key);
        const float score = value * (LOG2_E / temperature_of(p, query));
        float pull;
        if (p.positives_left_out != 0) {
            const Margin margin = margin_of((log_sum_exp - score) * LN_2);
            pull = weight * margin.sigmoid;
            mine.mass += pull;
            mine.loss = fmaf(weight, margin.softplus, mine.loss);
        } else {
            pull = ptx::exp2_fast(score + bias_of_key(p, key) - log_sum_exp);
        }
        mine.count += 1;
        mine.weight += weight;
        mine.along = fmaf(weight, value, mine.along);
        mine.pulled = fmaf(pull, value, mine.pulled);
        const uint32_t warp = threadIdx.x / 32;
        for (uint32_t d = lane_index(); d < dims; d += 32) {
            const float element = to_f32(y[first_dim + d]);
            shared.sums[0][warp][d] = fmaf(pull, element, shared.sums[0][warp][d]);
            shared.sums[1][warp][d] = fmaf(weight, element, shared.sums[1][warp][d]);
        }
    }

    // The sums of all warps, in every thread.
    __device__ __forceinline__ TargetSums all() const {
        const TargetSums mine = walk();
        if (lane_index() == 0) {
            shared.scalars[threadIdx.x / 32] = mine;
        }
        __syncthreads();
        TargetSums sums = shared.scalars[0];
        for (int warp = 1; warp < TARGET_WARPS; ++warp) {
            sums.add(shared.scalars[warp]);
        }
        return sums;
    }

    __device__ __forceinline__ float sum(int which, uint32_t d) const {
        float sum = shared.sums[which][0][d];
        for (int warp = 1; warp < TARGET_WARPS; ++warp) {
            sum += shared.sums[which][warp][d];
        }
        return sum;
    }
};
