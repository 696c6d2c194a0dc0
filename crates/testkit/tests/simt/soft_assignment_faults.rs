//! Faults in soft assignments and soft updates of centroids.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

/// Found by checks over all centroids, which need no search.
const PLAIN: Family = (
    &["soft_assignment.cu", "soft_centroids.cu"],
    suite::soft_assignment::CHECKS,
    &[
        fault(
            "distances that cancel come from products",
            "include/distance.cuh",
            "cancels = squared < CANCELS * total && total < INFINITY;",
            "cancels = squared < 0.0f * total && total < INFINITY;",
        )
        .by("soft_assignment: points on their centroids"),
        fault(
            "a distance from differences goes to the wrong element",
            "include/distance.cuh",
            "squared[i] = i == mine ? exact : squared[i];",
            "squared[i] = i == (mine ^ 1) ? exact : squared[i];",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "differences are taken of rows without their scale",
            "include/distance.cuh",
            "fmaf(to_f32(x[d]), scale, -c[d]);",
            "fmaf(to_f32(x[d]), 1.0f, -c[d]);",
        )
        .by("soft_assignment: the entropies of methods 1.6"),
        fault(
            "the squared norm of a centroid is left out",
            "include/distance.cuh",
            "const float total = x.norm + c.norm;",
            "const float total = x.norm + (c.norm < INFINITY ? 0.0f : c.norm);",
        )
        .by("soft_assignment: the entropies of methods 1.6"),
        fault(
            "sums are not moved to a larger maximum",
            "include/softened.cuh",
            "row.along = factor * fmaf(shift, row.sum, row.along);",
            "row.along = factor * row.along;",
        )
        .by("soft_assignment: the entropies of methods 1.6"),
        fault("a sum is not rescaled", "include/softened.cuh", "    row.sum *= factor;\n", "")
            .by("soft_assignment: the entropies of methods 1.6"),
        fault(
            "lanes of a row are not joined",
            "include/assign.cuh",
            "join_lanes(row[half], 4);",
            "join_lanes(row[half], 2);",
        )
        .by("soft_assignment: scores that underflow"),
        fault(
            "the second half of the rows has the first one's points",
            "include/assign.cuh",
            "half * 8) + lane_index() / 4;",
            "half * 0) + lane_index() / 4;",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "the entropy forgets A / Z",
            "include/softened.cuh",
            "logf(row.sum) - row.along / row.sum",
            "logf(row.sum)",
        )
        .by("soft_assignment: the entropies of methods 1.6"),
        fault(
            "scores fall with the distance always",
            "include/softened.cuh",
            "falls_with_square != 0 ? squared",
            "falls_with_square == 7 ? squared",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "a score overflows",
            "include/softened.cuh",
            "fmaxf(-rate * distance, -LARGEST_FLOAT)",
            "-rate * distance",
        )
        .by("soft_assignment: scores that underflow"),
        fault(
            "points pass the low parts of centroids but once",
            "include/stream.cuh",
            "next_part < query_parts ? next_part : next_part - query_parts",
            "next_part",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "low parts of split centroids are lost",
            "soft_assignment.cu",
            "store_rounded(high + p.padded + d, value - to_f32(high[d]));",
            "store_rounded(high + p.padded + d, 0.0f);",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "split centroids keep their power of two",
            "soft_assignment.cu",
            "output<float>(p.scales)[row] = 1.0f / unit;",
            "output<float>(p.scales)[row] = 1.0f;",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "directions are not scaled",
            "soft_assignment.cu",
            "static_cast<float>(1.0 / sqrt(squares)) : 1.0f;",
            "static_cast<float>(1.0 / squares) : 1.0f;",
        )
        .by("soft_assignment: the entropies of methods 1.6"),
        fault(
            "bad rows pass",
            "soft_assignment.cu",
            "if (!good && p.status != 0) {",
            "if (good && p.status == 0) {",
        )
        .by("soft_assignment: bad rows and refusals"),
        fault(
            "responsibilities are not divided by their sum",
            "soft_centroids.cu",
            "ptx::exp2_fast((score - shared.log_sum_exp[column]) * LOG2_E);",
            "ptx::exp2_fast(score * LOG2_E);",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "a mean is divided by weights that were not rounded",
            "soft_centroids.cu",
            "sum_of_rounded += rounded(tile[k]);",
            "sum_of_rounded += tile[k];",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "directions are weighed by their norms",
            "soft_centroids.cu",
            "array<float>(p.soft.point_scales)[point] * unit : 0.0f;",
            "unit : 0.0f;",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "masses of groups are not added",
            "soft_centroids.cu",
            "sum += shared.exchange[which][group][threadIdx.x];",
            "sum += group == 0 ? shared.exchange[which][group][threadIdx.x] : 0.0f;",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "masses are read before they are written",
            "soft_centroids.cu",
            "        __syncthreads();\n        const uint32_t centroid = first_centroid",
            "        const uint32_t centroid = first_centroid",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "sums of splits are not added",
            "soft_centroids.cu",
            "sum += array<float>(p.sums)",
            "sum = array<float>(p.sums)",
        )
        .by("soft_centroids: within the bound"),
        fault(
            "a centroid without mass moves to the origin",
            "soft_centroids.cu",
            "moved[d] = !moves ? from[d] :",
            "moved[d] = !moves ? 0.0f * from[d] :",
        )
        .by("soft_centroids: centroids that stay"),
        fault(
            "rounding is a direction",
            "soft_centroids.cu",
            "(p.unit == 0 || norm * weight > LEAST_DIRECTION * unit * mass);",
            "(p.unit == 0 || norm * weight > -LEAST_DIRECTION * unit * mass);",
        )
        .by("soft_centroids: centroids that stay"),
    ],
);

/// Found by checks that also list the nearest.
const LISTS: Family = (
    &["soft_assignment.cu", "neighbors.cu"],
    suite::soft_assignment::CHECKS,
    &[
        fault(
            "of equal scores in two lanes the larger index wins",
            "include/softened.cuh",
            "other.largest == row.largest && other.best < row.best",
            "other.largest == row.largest && other.best > row.best",
        )
        .by("soft_assignment: integers against the definition"),
        fault(
            "of equal scores in a lane the last wins",
            "include/assign.cuh",
            "best = values[i] > largest ? i : best;",
            "best = values[i] >= largest ? i : best;",
        )
        .by("soft_assignment: integers against the definition"),
        fault(
            "rates are those of the first tile",
            "include/assign.cuh",
            "array<float>(p.rates)[centroid] : 0.0f;",
            "array<float>(p.rates)[threadIdx.x] : 0.0f;",
        )
        .by("soft_assignment: integers against the definition"),
        fault(
            "the last split is not joined",
            "soft_assignment.cu",
            "for (uint32_t split = 0; split < p.splits; ++split) {",
            "for (uint32_t split = 0; split < (p.splits > 1 ? p.splits - 1 : 1); ++split) {",
        )
        .by("soft_assignment: integers against the definition"),
        fault(
            "listed probabilities are not divided by their sum",
            "soft_assignment.cu",
            "ptx::exp2_fast(t * LOG2_E) / its.sum;",
            "ptx::exp2_fast(t * LOG2_E);",
        )
        .by("soft_assignment: integers against the definition"),
        fault(
            "centroids of the list have the first one's rate",
            "soft_assignment.cu",
            "array<float>(p.rates)[index], p.squared) : -INFINITY;",
            "array<float>(p.rates)[0], p.squared) : -INFINITY;",
        )
        .by("soft_assignment: integers against the definition"),
    ],
);

#[test]
fn every_fault_of_soft_assignment_is_found() {
    assert_all_found(&PLAIN);
    assert_all_found(&LISTS);
}
