//! Faults in soft assignments and soft updates of centroids.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const SOFT_ASSIGNMENT: Family = (
    &["soft_assignment.cu", "soft_centroids.cu", "neighbors.cu"],
    suite::soft_assignment::CHECKS,
    &[
        fault(
            "distances that cancel come from products",
            "include/distance.cuh",
            "cancels = squared < CANCELS * total && total < INFINITY;",
            "cancels = squared < 0.0f * total && total < INFINITY;",
        ),
        fault(
            "a distance from differences goes to the wrong element",
            "include/distance.cuh",
            "squared[i] = i == mine ? exact : squared[i];",
            "squared[i] = i == (mine ^ 1) ? exact : squared[i];",
        ),
        fault(
            "differences are taken of rows without their scale",
            "include/distance.cuh",
            "fmaf(to_f32(x[d]), scale, -c[d]);",
            "fmaf(to_f32(x[d]), 1.0f, -c[d]);",
        ),
        fault(
            "the squared norm of a centroid is left out",
            "include/distance.cuh",
            "const float total = x.norm + c.norm;",
            "const float total = x.norm + (c.norm < INFINITY ? 0.0f : c.norm);",
        ),
        fault(
            "sums are not moved to a larger maximum",
            "include/softened.cuh",
            "row.along = factor * fmaf(shift, row.sum, row.along);",
            "row.along = factor * row.along;",
        ),
        fault("a sum is not rescaled", "include/softened.cuh", "    row.sum *= factor;\n", ""),
        fault(
            "of equal scores in two lanes the larger index wins",
            "include/softened.cuh",
            "other.largest == row.largest && other.best < row.best",
            "other.largest == row.largest && other.best > row.best",
        ),
        fault(
            "of equal scores in a lane the last wins",
            "include/assign.cuh",
            "best = values[i] > largest ? i : best;",
            "best = values[i] >= largest ? i : best;",
        ),
        fault(
            "lanes of a row are not joined",
            "include/assign.cuh",
            "join_lanes(row[half], 4);",
            "join_lanes(row[half], 2);",
        ),
        fault(
            "the second half of the rows has the first one's points",
            "include/assign.cuh",
            "half * 8) + lane_index() / 4;",
            "half * 0) + lane_index() / 4;",
        ),
        fault(
            "rates are those of the first tile",
            "include/assign.cuh",
            "array<float>(p.rates)[centroid] : 0.0f;",
            "array<float>(p.rates)[threadIdx.x] : 0.0f;",
        ),
        fault(
            "the entropy forgets A / Z",
            "include/softened.cuh",
            "logf(row.sum) - row.along / row.sum",
            "logf(row.sum)",
        ),
        fault(
            "scores fall with the distance always",
            "include/softened.cuh",
            "falls_with_square != 0 ? squared",
            "falls_with_square == 7 ? squared",
        ),
        fault(
            "a score overflows",
            "include/softened.cuh",
            "fmaxf(-rate * distance, -LARGEST_FLOAT)",
            "-rate * distance",
        ),
        fault(
            "points pass the low parts of centroids but once",
            "include/stream.cuh",
            "next_part < query_parts ? next_part : next_part - query_parts",
            "next_part",
        ),
        fault(
            "low parts of split centroids are lost",
            "soft_assignment.cu",
            "store_rounded(high + p.padded + d, value - to_f32(high[d]));",
            "store_rounded(high + p.padded + d, 0.0f);",
        ),
        fault(
            "split centroids keep their power of two",
            "soft_assignment.cu",
            "output<float>(p.scales)[row] = 1.0f / unit;",
            "output<float>(p.scales)[row] = 1.0f;",
        ),
        fault(
            "directions are not scaled",
            "soft_assignment.cu",
            "static_cast<float>(1.0 / sqrt(squares)) : 1.0f;",
            "static_cast<float>(1.0 / squares) : 1.0f;",
        ),
        fault(
            "bad rows pass",
            "soft_assignment.cu",
            "if (!good && p.status != 0) {",
            "if (good && p.status == 0) {",
        ),
        fault(
            "the last split is not joined",
            "soft_assignment.cu",
            "for (uint32_t split = 0; split < p.splits; ++split) {",
            "for (uint32_t split = 0; split < (p.splits > 1 ? p.splits - 1 : 1); ++split) {",
        ),
        fault(
            "listed probabilities are not divided by their sum",
            "soft_assignment.cu",
            "ptx::exp2_fast(t * LOG2_E) / its.sum;",
            "ptx::exp2_fast(t * LOG2_E);",
        ),
        fault(
            "centroids of the list have the first one's rate",
            "soft_assignment.cu",
            "array<float>(p.rates)[index], p.squared) : -INFINITY;",
            "array<float>(p.rates)[0], p.squared) : -INFINITY;",
        ),
        fault(
            "responsibilities are not divided by their sum",
            "soft_centroids.cu",
            "ptx::exp2_fast((score - shared.log_sum_exp[column]) * LOG2_E);",
            "ptx::exp2_fast(score * LOG2_E);",
        ),
        fault(
            "a mean is divided by weights that were not rounded",
            "soft_centroids.cu",
            "sum_of_rounded += rounded(tile[k]);",
            "sum_of_rounded += tile[k];",
        ),
        fault(
            "directions are weighed by their norms",
            "soft_centroids.cu",
            "array<float>(p.soft.point_scales)[point] * unit : 0.0f;",
            "unit : 0.0f;",
        ),
        fault(
            "masses of groups are not added",
            "soft_centroids.cu",
            "sum += shared.exchange[which][group][threadIdx.x];",
            "sum += group == 0 ? shared.exchange[which][group][threadIdx.x] : 0.0f;",
        ),
        fault(
            "masses are read before they are written",
            "soft_centroids.cu",
            "        __syncthreads();\n        const uint32_t centroid = first_centroid",
            "        const uint32_t centroid = first_centroid",
        ),
        fault(
            "sums of splits are not added",
            "soft_centroids.cu",
            "sum += array<float>(p.sums)",
            "sum = array<float>(p.sums)",
        ),
        fault(
            "a centroid without mass moves to the origin",
            "soft_centroids.cu",
            "moved[d] = !moves ? from[d] :",
            "moved[d] = !moves ? 0.0f * from[d] :",
        ),
        fault(
            "rounding is a direction",
            "soft_centroids.cu",
            "(p.unit == 0 || norm * weight > LEAST_DIRECTION * unit * mass);",
            "(p.unit == 0 || norm * weight > -LEAST_DIRECTION * unit * mass);",
        ),
    ],
);

#[test]
fn planted_faults_of_soft_assignment_are_found() {
    assert_all_found(&[&SOFT_ASSIGNMENT]);
}
