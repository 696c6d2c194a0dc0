//! Faults of the negatives that have weights of their own.

use consonance_testkit::suite::contrast_pace;

use super::{Family, assert_all_found, fault};

const PACE: Family = (
    &["contrast.cu", "contrast_pace.cu", "contrast_moments.cu", "segments.cu"],
    contrast_pace::CHECKS,
    &[
        fault(
            "paced pairs stay in the sums over tiles",
            "include/positives.cuh",
            "return {is_positive, is_positive || !(is_left_out || is_paced)};",
            "return {is_positive, is_positive || !is_left_out};",
        )
        .by("contrast, pace: times"),
        fault(
            "positives of the group are weighed",
            "include/positives.cuh",
            "&& !is_left_out && !pairing_of(p, query, key).is_positive;",
            "&& !is_left_out;",
        )
        .by("contrast, pace: times"),
        fault(
            "keys that are left out are weighed",
            "include/positives.cuh",
            "&& !is_left_out && !pairing_of(p, query, key).is_positive;",
            "&& !pairing_of(p, query, key).is_positive;",
        )
        .by("contrast, pace: options"),
        fault("a warp ends after 32 rows", "include/pace.cuh", "start += TILE_THREADS", "start = end")
            .by("contrast, pace: times"),
        fault(
            "the last group has no end",
            "include/pace.cuh",
            "order, group + 1, first",
            "order, group, first",
        )
        .by("contrast, pace: times"),
        fault(
            "an affinity at the pace is refused",
            "include/pace.cuh",
            "closeness <= most",
            "closeness < most",
        )
        .by("contrast, pace: affinities at the pace"),
        fault(
            "features keep their length",
            "include/pace.cuh",
            "products[0] / sqrt(products[1] * products[2])",
            "products[0]",
        )
        .by("contrast, pace: features"),
        fault(
            "sums of keys are not rescaled",
            "contrast_pace.cu",
            "fmaf(shared.sums[warp][d], factor, e * to_f32(y[first_dim + d]))",
            "fmaf(shared.sums[warp][d], 1.0f, e * to_f32(y[first_dim + d]))",
        )
        .by("contrast, pace: times"),
        fault(
            "every part takes the first dimensions",
            "contrast_pace.cu",
            "fmaf(coefficient, to_f32(x[first_dim + d])",
            "fmaf(coefficient, to_f32(x[d])",
        )
        .by("contrast, pace: times"),
        fault(
            "warps do not wait for each other's sums",
            "contrast_pace.cu",
            "shared.partials[warp] = mine;\n    }\n    __syncthreads();",
            "shared.partials[warp] = mine;\n    }",
        )
        .by("contrast, pace: times"),
        fault(
            "the keys' gradient forgets the tiles",
            "contrast_pace.cu",
            "gradient[d] = fmaf(sum, unit, gradient[d]);",
            "gradient[d] = sum * unit;",
        )
        .by("contrast, pace: times"),
        fault(
            "features of no direction pass",
            "contrast_pace.cu",
            "is_good = squares > 0.0 && squares < INFINITY;",
            "is_good = squares < INFINITY;",
        )
        .by("contrast, pace: bad numbers and refused arguments"),
    ],
);

#[test]
fn every_fault_of_contrast_pace_is_found() {
    assert_all_found(&PACE);
}
