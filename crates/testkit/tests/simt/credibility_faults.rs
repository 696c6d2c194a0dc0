//! Faults in the credibility of labeled rows.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

/// Found by checks over all centroids, which need no search.
const PLAIN: Family = (
    &["credibility.cu", "soft_assignment.cu"],
    suite::credibility::CHECKS,
    &[
        fault(
            "a group's last row is not in its sum",
            "credibility.cu",
            "for (uint32_t at = first; at < end; ++at) {",
            "for (uint32_t at = first; at + 1 < end || at == first; ++at) {",
        )
        .by("credibility: the published rule"),
        fault(
            "means are those of n − 1 rows",
            "credibility.cu",
            "const double divisor = divisor_of(p, sum_of_block(squares, of_warps), end - first);",
            "const double divisor = divisor_of(p, sum_of_block(squares, of_warps), end - first > 1 ? end - first - 1 : 1);",
        )
        .by("credibility: the published rule"),
        fault(
            "a row left out is counted",
            "credibility.cu",
            "left_out ? divisor_of(p, squares, count - 1) : 1.0;",
            "left_out ? divisor_of(p, squares, count) : 1.0;",
        )
        .by("credibility: integers against the definition"),
        fault(
            "the norm of a direction has the row in it",
            "credibility.cu",
            "array<double>(p.sums)[start + d] - element(x, d, scale);",
            "array<double>(p.sums)[start + d];",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "a direction is not divided by its norm",
            "credibility.cu",
            "norm > LEAST_DIRECTION ? norm :",
            "norm > LEAST_DIRECTION ? 1.0 :",
        )
        .by("credibility: classes of one row, and one class"),
        fault("variances are not divided", "credibility.cu", "= squares / count;", "= squares;")
        .by("credibility: classes of one row, and one class"),
        fault(
            "variances are about 0",
            "credibility.cu",
            "[array<uint32_t>(p.members)[at]] - mean;",
            "[array<uint32_t>(p.members)[at]] - 0.0 * mean;",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "own centroids are not left out",
            "include/assign.cuh",
            "first_key + column_of(i) - own.first < own.end - own.first ? INFINITY",
            "first_key + column_of(i) - own.first < 0 * (own.end - own.first) ? INFINITY",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "odds have the own class in both sums",
            "credibility.cu",
            "logf(others.sum / own.sum)",
            "logf((others.sum + own.sum) / own.sum)",
        )
        .by("credibility: real inputs within the bound"),
        fault(
            "odds forget how the maxima differ",
            "credibility.cu",
            "others.largest - own.largest + logf",
            "0.0f * (others.largest - own.largest) + logf",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "the probability is that of the others",
            "credibility.cu",
            "margin_of(-odds).sigmoid;",
            "margin_of(odds).sigmoid;",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "the limit of the suspicion is dropped",
            "credibility.cu",
            "suspicion <= __uint_as_float(p.suspicion_limit) &&",
            "suspicion <= INFINITY &&",
        )
        .by("credibility: the curve of planted label noise"),
        fault(
            "predicted is a class, not its label",
            "credibility.cu",
            "array<uint32_t>(p.labels)[predicted];",
            "predicted;",
        )
        .by("credibility: classes of one row, and one class"),
        fault(
            "another class is not refused",
            "credibility.cu",
            "(p.reject_other_class == 0 || predicted",
            "(p.reject_other_class != 7 || predicted",
        )
        .by("credibility: the curve of planted label noise"),
    ],
);

/// Found by checks that also list the nearest.
const LISTS: Family = (
    &["credibility.cu", "soft_assignment.cu", "neighbors.cu"],
    suite::credibility::CHECKS,
    &[
        fault(
            "a row is left out of all centroids of its class",
            "credibility.cu",
            "count > 1 && group == array<uint32_t>(p.groups)[row];",
            "count > 1 && group + 1 != 0;",
        )
        .by("credibility: sub-clusters"),
        fault(
            "a row alone in its sub-cluster vouches for itself",
            "credibility.cu",
            "count == 1 && own.end - own.first > 1 &&",
            "count == 0 && own.end - own.first > 1 &&",
        )
        .by("credibility: sub-clusters"),
        fault(
            "only the first own centroid counts",
            "credibility.cu",
            "for (uint32_t group = its.first; group < its.end; ++group) {\n        const float squared = own_squared<T>(p, row, its, group);\n        join",
            "for (uint32_t group = its.first; group < its.first + 1; ++group) {\n        const float squared = own_squared<T>(p, row, its, group);\n        join",
        )
        .by("credibility: sub-clusters"),
        fault(
            "centroids as near as the own one are nearer",
            "include/assign.cuh",
            "squared[i] < own_nearest ? 1 : 0;",
            "squared[i] <= own_nearest ? 1 : 0;",
        )
        .by("credibility: integers against the definition"),
        fault(
            "the nearest other is that of the last tile",
            "include/assign.cuh",
            "its.nearest = fminf(its.nearest, squared[i]);",
            "its.nearest = i == 0 ? squared[i] : fminf(its.nearest, squared[i]);",
        )
        .by("credibility: integers against the definition"),
        fault(
            "counts of lanes and splits are not added",
            "include/softened.cuh",
            "row.closer += other.closer;",
            "row.closer = other.closer;",
        )
        .by("credibility: integers against the definition"),
        fault(
            "the margin is of squares",
            "credibility.cu",
            "__fsqrt_rn(own.nearest) - __fsqrt_rn(others.nearest);",
            "own.nearest - others.nearest;",
        )
        .by("credibility: integers against the definition"),
        fault(
            "the limit of the entropy is dropped",
            "credibility.cu",
            "entropy <= __uint_as_float(p.entropy_limit) &&",
            "entropy <= INFINITY &&",
        )
        .by("credibility: real inputs within the bound"),
        fault(
            "own distances are read before they are written",
            "credibility.cu",
            "    __syncwarp();\n    const float* const distances",
            "    const float* const distances",
        )
        .by("credibility: sub-clusters"),
        fault(
            "the list has one centroid more than m",
            "credibility.cu",
            "if (index != NONE && before < p.width) {",
            "if (index != NONE && before <= p.width) {",
        )
        .by("credibility: sub-clusters"),
        fault(
            "own centroids do not push others out of the list",
            "credibility.cu",
            "before += is_nearer(mine[i], its.first + i, squared, index) ? 1 : 0;",
            "before += is_nearer(mine[i], its.first + i, squared, index) ? 0 : 0;",
        )
        .by("credibility: sub-clusters"),
    ],
);

#[test]
fn every_fault_of_credibility_is_found() {
    assert_all_found(&PLAIN);
    assert_all_found(&LISTS);
}
