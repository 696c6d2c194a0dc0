// Who is whose positive, and who is in whose denominator, from a few numbers of every row.
#pragma once

#include "warp.cuh"
#include "pairs.cuh"

// What a query or a key brings to the pairs it is in.
struct Facts {
    uint32_t number;
    // What the rule compares: the label, or the number.
    uint32_t subject;
    uint32_t id;
    uint32_t left_out;
    uint32_t group;
    // Of a query: whether it is an anchor. Of a key: whether it may be a positive.
    uint32_t eligible;
};

__device__ __forceinline__ uint32_t number_at(uint64_t numbers, uint32_t place) {
    return numbers != 0 ? array<uint32_t>(numbers)[place] : 0;
}

__device__ __forceinline__ uint32_t subject_of(const Contrast& p, uint64_t labels, uint32_t number) {
    return p.rule == RULE_LABELS ? array<uint32_t>(labels)[number] : number;
}

__device__ __forceinline__ Facts facts_of_query(const Contrast& p, uint32_t query) {
    if (query >= p.query_count) {
        return {NONE, 0, 0, 0, 0, 0};
    }
    return {query, subject_of(p, p.query_labels, query), number_at(p.query_ids, query),
            number_at(p.left_out_queries, query), number_at(p.query_groups, query), bit_at(p.anchors, query) ? 1u : 0u};
}

__device__ __forceinline__ Facts facts_of_key(const Contrast& p, uint32_t key) {
    if (key >= p.key_count) {
        return {NONE, 0, 0, 0, 0, 0};
    }
    return {key, subject_of(p, p.key_labels, key), number_at(p.key_ids, key), number_at(p.left_out_keys, key),
            number_at(p.key_groups, key), bit_at(p.valid, key) && bit_at(p.credible, key) ? 1u : 0u};
}

// The binary logarithm of a key's denominator weight; −∞ for keys in no denominator.
__device__ __forceinline__ float bias_of_key(const Contrast& p, uint32_t key) {
    if (key >= p.key_count || !bit_at(p.valid, key)) {
        return -INFINITY;
    }
    return p.denominator_weights != 0 ? log2f(array<float>(p.denominator_weights)[key]) : 0.0f;
}

__device__ __forceinline__ float temperature_of(const Contrast& p, uint32_t query) {
    return array<float>(p.temperatures)[p.own_temperatures != 0 ? query : 0];
}

// The place of a key in the query's list, or NONE.
__device__ __forceinline__ uint32_t place_in_list(const Contrast& p, uint32_t query, uint32_t key) {
    const uint32_t* const indices = array<uint32_t>(p.indices);
    uint32_t first = array<uint32_t>(p.offsets)[query];
    uint32_t last = array<uint32_t>(p.offsets)[query + 1];
    // A list that contrast_check refuses is still not read past its end.
    last = last < p.listed ? last : p.listed;
    while (first < last) {
        const uint32_t middle = first + (last - first) / 2;
        const uint32_t found = indices[middle];
        if (found == key) {
            return middle;
        }
        if (found < key) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return NONE;
}

__device__ __forceinline__ bool sets_overlap(const Contrast& p, uint32_t query, uint32_t key) {
    const uint32_t* const x = array<uint32_t>(p.query_sets) + static_cast<uint64_t>(query) * p.words;
    const uint32_t* const y = array<uint32_t>(p.key_sets) + static_cast<uint64_t>(key) * p.words;
    uint32_t overlap = 0;
    for (uint32_t word = 0; word < p.words; ++word) {
        overlap += static_cast<uint32_t>(__popc(x[word] & y[word]));
    }
    return overlap >= p.least_overlap;
}

__device__ __forceinline__ bool follows_rule(const Contrast& p, const Facts& query, const Facts& key) {
    switch (p.rule) {
        case RULE_LABELS:
        case RULE_DIAGONAL: return query.subject == key.subject;
        case RULE_LISTS: return place_in_list(p, query.subject, key.subject) != NONE;
        case RULE_BITS: return sets_overlap(p, query.subject, key.subject);
        default: return true;
    }
}

__device__ __forceinline__ bool have_one_id(const Contrast& p, const Facts& query, const Facts& key) {
    return p.query_ids != 0 && query.id == key.id;
}

// Whether the pair is positive, and whether the key is in the query's denominator as far as the pair tells.
struct Pairing {
    bool is_positive;
    bool is_open;
};

__device__ __forceinline__ Pairing pairing_of(const Contrast& p, const Facts& query, const Facts& key) {
    if (have_one_id(p, query, key)) {
        return {false, false};
    }
    const bool is_positive = query.eligible != 0 && key.eligible != 0 && follows_rule(p, query, key);
    const bool is_left_out = p.left_out_queries != 0 && query.left_out == key.left_out;
    // Negatives of the query's group are in its denominator with weights of their own: contrast_pace.cu has them.
    const bool is_paced = p.query_groups != 0 && query.group == key.group;
    return {is_positive, is_positive || !(is_left_out || is_paced)};
}

// Whether the pair of one group is a negative of the query's denominator.
__device__ __forceinline__ bool is_paced_pair(const Contrast& p, const Facts& query, const Facts& key) {
    const bool is_left_out = p.left_out_queries != 0 && query.left_out == key.left_out;
    return !have_one_id(p, query, key) && !is_left_out && !pairing_of(p, query, key).is_positive;
}
