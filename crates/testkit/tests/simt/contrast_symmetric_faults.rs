//! Faults in the symmetric form of the contrastive loss, and in scores that are bounded beforehand.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const SYMMETRIC: Family = (
    &["contrast.cu", "contrast_symmetric.cu", "contrast_moments.cu", "segments.cu"],
    suite::contrast_symmetric::CHECKS,
    &[
        fault(
            "scores beyond e^60 count as bounded",
            "include/bounded.cuh",
            "fmaf(product, scale, widest_bias) <= BOUNDED_SCORE",
            "fmaf(product, scale, widest_bias) <= 8.0f * BOUNDED_SCORE",
        )
        .by("contrast, symmetric: scores beyond e^60"),
        fault(
            "weights of the denominator are not in the bound",
            "include/bounded.cuh",
            "fmaf(product, scale, widest_bias) <=",
            "fmaf(product, scale, 0.0f * widest_bias) <=",
        )
        .by("contrast: bounded scores"),
        fault(
            "a bound is by the other rows of the tile",
            "include/bounded.cuh",
            "return (bits[row / 32] >> (row % 32) & 1) != 0;",
            "return all() && row < 64;",
        )
        .by("contrast: bounded scores"),
        fault(
            "keys that are not valid are in the bound",
            "contrast.cu",
            "} else if (bit_at(p.valid, row)) {",
            "} else if (row < p.key_count) {",
        )
        .by("contrast: bounded scores"),
        fault(
            "the longest key is taken for shorter than it is",
            "contrast.cu",
            "report(p, LONGEST_KEY, ~__float_as_uint(largest.key));",
            "report(p, LONGEST_KEY, ~__float_as_uint(0.01f * largest.key));",
        )
        .by("contrast, symmetric: scores beyond e^60"),
        fault(
            "bounded rows have running maxima",
            "include/softmax.cuh",
            "bounded ? largest[half] : fmaxf(",
            "!bounded ? largest[half] : fmaxf(",
        )
        .by("contrast: bounded scores"),
        fault(
            "rows beyond the end are in the sums of keys",
            "include/symmetric.cuh",
            "of_column = is_there ? both : 0.0f;",
            "of_column = both;",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "the same beside longer rows",
            "include/symmetric.cuh",
            "of_column = power(value, is_open && is_there, from[i]);",
            "of_column = power(value, is_open, from[i]);",
        )
        .by("contrast, symmetric: scores beyond e^60"),
        fault(
            "keys that are not valid are in the sums of queries",
            "include/symmetric.cuh",
            "of_row = power(value, is_open && is_valid, largest);",
            "of_row = power(value, is_open, largest);",
        )
        .by("contrast, symmetric: rules and options"),
        fault(
            "a sum is not rescaled when the maximum grows",
            "include/symmetric.cuh",
            "row[half] = {largest, row[half].sum * factor,",
            "row[half] = {largest, row[half].sum,",
        )
        .by("contrast, symmetric: splits of both sides"),
        fault(
            "half of a column's rows have no part in its maximum",
            "include/symmetric.cuh",
            "largest = largest_of_lanes(largest, 4, 32);",
            "largest = largest_of_lanes(largest, 4, 16);",
        )
        .by("contrast, symmetric: scores beyond e^60"),
        fault(
            "lanes send what they keep",
            "include/symmetric.cuh",
            "const float sent = is_upper ? columns[i] : columns[i + COUNT];",
            "const float sent = kept;",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "columns change their places",
            "include/symmetric.cuh",
            "return (lane & 16) / 2 + (lane & 8) / 2 + (lane & 4) / 2;",
            "return (lane & 16) / 4 + (lane & 8) + (lane & 4) / 2;",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "sums of warps are joined before they are written",
            "include/symmetric.cuh",
            "        __syncthreads();\n        if (threadIdx.x < TILE_KEYS && shared.keys",
            "        if (threadIdx.x < TILE_KEYS && shared.keys",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "the sums of the last warp are lost",
            "include/symmetric.cuh",
            "warp < TILE_THREADS / 32; ++warp) {\n                join(column",
            "warp + 1 < TILE_THREADS / 32; ++warp) {\n                join(column",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "a tile of queries replaces the sums of those before",
            "include/symmetric.cuh",
            "if (!is_first) {",
            "if (is_first && !is_first) {",
        )
        .by("contrast, symmetric: splits of both sides"),
        fault(
            "queries are written over while they are read",
            "contrast_symmetric.cu",
            "        __syncthreads();\n",
            "",
        )
        .by("contrast, symmetric: splits of both sides"),
        fault(
            "all splits of the queries have one place",
            "include/symmetric.cuh",
            "p.query_splits + blockIdx.x;",
            "p.query_splits;",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "temperatures of positives are counted twice",
            "contrast.cu",
            "within ? -weighted * inverse : mass * pulled",
            "within ? mass * pulled - weighted * inverse : mass * pulled",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "only queries are in the coefficients",
            "include/symmetric.cuh",
            "(shared.of_queries.dense[query] + shared.of_keys.dense[key])",
            "(shared.of_queries.dense[query])",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "the same where scores are not bounded",
            "include/symmetric.cuh",
            "dense(shared.of_queries, query, value) + dense(shared.of_keys, key, value)",
            "dense(shared.of_queries, query, value)",
        )
        .by("contrast, symmetric: scores beyond e^60"),
        fault(
            "keys have no targets of their own",
            "include/symmetric.cuh",
            "target(shared.of_queries, query, value) + target(shared.of_keys, key, value)",
            "target(shared.of_queries, query, value)",
        )
        .by("contrast, symmetric: sizes"),
        fault(
            "rows that are not valid stay in the other side's gradient",
            "include/symmetric.cuh",
            "is_there && bit_at(p.query_valid, number)",
            "is_there",
        )
        .by("contrast, symmetric: rules and options"),
        fault(
            "the largest coefficient is that of the queries",
            "contrast_symmetric.cu",
            "if (item < rows) {",
            "if (item < rows && item < p.pairs.query_count) {",
        )
        .by("contrast, symmetric: positives left out"),
        fault(
            "off the diagonal all pairs are alike, whatever their ids",
            "include/softmax.cuh",
            "p.rule == RULE_DIAGONAL && p.query_ids == 0 &&",
            "p.rule == RULE_DIAGONAL &&",
        )
        .by("contrast, symmetric: rules and options"),
    ],
);

#[test]
fn every_fault_of_symmetric_contrast_is_found() {
    assert_all_found(&SYMMETRIC);
}
