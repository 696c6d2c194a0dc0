//! Faults in the contrast of one direction, its targets, moments and bounds.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const CONTRAST: Family = (
    &["contrast.cu", "contrast_moments.cu", "segments.cu"],
    suite::contrast::CHECKS,
    &[
        fault(
            "pairs of one id count",
            "include/positives.cuh",
            "p.query_ids != 0 && query.id == key.id",
            "p.query_ids == 1 && query.id == key.id",
        )
        .by("contrast: rules and options"),
        fault(
            "keys that are not valid are positives",
            "include/positives.cuh",
            "bit_at(p.valid, key) && bit_at(p.credible, key)",
            "bit_at(p.credible, key)",
        )
        .by("contrast: rules and options"),
        fault(
            "positives leave the denominator with their label",
            "include/positives.cuh",
            "return {is_positive, is_positive || !(is_left_out || is_paced)};",
            "return {is_positive, !(is_left_out || is_paced)};",
        )
        .by("contrast: rules and options"),
        fault(
            "sets that overlap just enough are not positive",
            "include/positives.cuh",
            "overlap >= p.least_overlap",
            "overlap > p.least_overlap",
        )
        .by("contrast: rules and options"),
        fault(
            "a sum is not rescaled when the maximum grows",
            "include/softmax.cuh",
            "part(half) = {largest[half], part(half).sum * factor,",
            "part(half) = {largest[half], part(half).sum,",
        )
        .by("contrast: sizes"),
        fault(
            "sums of keys are not rescaled when the maximum grows",
            "include/softmax.cuh",
            "sums.scale(half, factor);",
            "sums.scale(half, 1.0f);",
        )
        .by("contrast: sizes"),
        fault(
            "the maxima of other warps are not seen",
            "include/softmax.cuh",
            "i < 2 * Shape::GROUPS; ++i",
            "i < 2; ++i",
        )
        .by("contrast: sizes"),
        fault(
            "maxima are read before they are written",
            "include/softmax.cuh",
            "            __syncthreads();\n#pragma unroll\n            for (int i = 0;",
            "#pragma unroll\n            for (int i = 0;",
        )
        .by("contrast: sizes"),
        fault(
            "splits are joined without their maximum",
            "include/softmax.cuh",
            "row.sum * mine + other.sum * theirs",
            "row.sum * mine + other.sum",
        )
        .by("contrast: many keys"),
        fault(
            "half of a row is lost",
            "include/softmax.cuh",
            "for (int step = 1; step < 4; step *= 2)",
            "for (int step = 1; step < 2; step *= 2)",
        )
        .by("contrast: sizes"),
        fault(
            "positives stay in a denominator that they left",
            "include/softmax.cuh",
            "if (p.positives_left_out != 0) {",
            "if (p.positives_left_out == 2) {",
        )
        .by("contrast: positives left out"),
        fault(
            "positives are summed twice",
            "include/softmax.cuh",
            "is_positive(i + k) ? 0.0f : e;",
            "is_positive(i + k) ? e : e;",
        )
        .by("contrast: sizes"),
        fault(
            "a margin has the wrong sign",
            "include/floats.cuh",
            "(m >= 0.0f ? 1.0f : e)",
            "(m < 0.0f ? 1.0f : e)",
        )
        .by("contrast: positives left out"),
        fault("coefficients are too large for 16 bits", "include/units.cuh", "(267 - ", "(271 - ")
            .by("contrast: rules and options"),
        fault(
            "weights of positives are halved in the gradient",
            "include/gradient.cuh",
            "+ place ? its : mine",
            "+ place ? 0.5f * its : mine",
        )
        .by("contrast: rules and options"),
        fault(
            "coefficients change their places",
            "include/sweep.cuh",
            "column / 8) + column % 8 * 2",
            "column / 8) + (column % 8 ^ 2) * 2",
        )
        .by("contrast: sizes"),
        fault(
            "the low part of a coefficient is lost",
            "include/sweep.cuh",
            "steps[step].low, b[i].high",
            "steps[step].low, b[i].low",
        )
        .by("contrast: sizes"),
        fault(
            "values are read before they arrive",
            "include/sweep.cuh",
            "copy_async_wait<Shape::RING_STAGES - 2>",
            "copy_async_wait<Shape::RING_STAGES - 1>",
        )
        .by("contrast: sizes"),
        fault(
            "values of other dimensions are multiplied",
            "include/sweep.cuh",
            "part + step);",
            "part - step);",
        )
        .by("contrast: sizes"),
        fault("the last dimensions are lost", "include/sweep.cuh", "if (d < dim)", "if (d + 8 < dim)")
            .by("contrast: sizes"),
        fault(
            "candidates of a long list are skipped",
            "include/targets.cuh",
            "start += TILE_THREADS",
            "start += 2 * TILE_THREADS",
        )
        .by("contrast: many keys"),
        fault(
            "the sums of one warp are lost",
            "include/targets.cuh",
            "for (int warp = 1; warp < TARGET_WARPS; ++warp) {\n            sum +=",
            "for (int warp = 2; warp < TARGET_WARPS; ++warp) {\n            sum +=",
        )
        .by("contrast: sizes"),
        fault(
            "positives are weighed by the denominator twice",
            "include/targets.cuh",
            "score + bias_of_key(p, key) - log_sum_exp",
            "score + 2.0f * bias_of_key(p, key) - log_sum_exp",
        )
        .by("contrast: rules and options"),
        fault(
            "an old query is not divided by its norm",
            "include/affinity.cuh",
            "array<float>(p.old_query_inverses)[query] * array",
            "1.0f * array",
        )
        .by("contrast: positives left out"),
        fault(
            "the temperature of old embeddings is 1",
            "include/affinity.cuh",
            "__uint_as_float(p.affinity_scale)",
            "1.44269504f",
        )
        .by("contrast: positives left out"),
        fault(
            "only keys of the first split add to the gradient",
            "contrast.cu",
            "static_cast<uint64_t>(split) * p.query_count * p.dim",
            "static_cast<uint64_t>(0) * p.query_count * p.dim",
        )
        .by("contrast: old embeddings"),
        fault(
            "rows that do not count have a loss",
            "contrast.cu",
            "[query] = counts ? loss * inverse : 0.0f",
            "[query] = loss",
        )
        .by("contrast: sizes"),
        fault(
            "the temperature divides once",
            "contrast.cu",
            "-(along / temperature) / temperature",
            "-along / temperature",
        )
        .by("contrast: sizes"),
        fault(
            "lists that do not ascend pass",
            "contrast.cu",
            "(at == first || array<uint32_t>(p.indices)[at - 1] < key)",
            "true",
        )
        .by("contrast: numbers out of range"),
        fault(
            "old embeddings of norm zero pass",
            "contrast.cu",
            "LARGEST_SQUARED_NORM && squares > 0.0f",
            "LARGEST_SQUARED_NORM && squares >= 0.0f",
        )
        .by("contrast: numbers out of range"),
        fault(
            "moments count keys that are no positives",
            "contrast_moments.cu",
            "bit_at(p.valid, row) && bit_at(p.credible, row)",
            "bit_at(p.valid, row)",
        )
        .by("contrast: rules and options"),
        fault(
            "moments of the first split alone",
            "contrast_moments.cu",
            "[split * elements + at]",
            "[0 * elements + at]",
        )
        .by("contrast: old embeddings"),
        fault(
            "a chunk of moments is overwritten while it is read",
            "contrast_moments.cu",
            "        // All have read the chunk before it is overwritten.\n        __syncthreads();",
            "",
        )
        .by("contrast: rules and options"),
        fault("moments are added to the gradient", "contrast_moments.cu", "*to - sums[i]", "*to + sums[i]")
            .by("contrast: rules and options"),
    ],
);

#[test]
fn every_fault_of_contrast_is_found() {
    assert_all_found(&CONTRAST);
}
