//! Faults in k-means inside classes, on chip and streamed.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const CLUSTERS: Family = (
    &["clusters.cu", "clusters_stream.cu", "clusters_rounds.cu", "segments.cu"],
    suite::clusters::CHECKS,
    &[
        fault(
            "the larger of two equal centroids wins",
            "include/clusters.cuh",
            "if (candidate > score) {",
            "if (candidate >= score) {",
        )
        .by("clusters: starts"),
        fault(
            "lanes prefer the larger index",
            "include/clusters.cuh",
            "(other_score == score && other < index);",
            "(other_score == score && other > index);",
        )
        .by("clusters: starts"),
        fault(
            "the second best is the last one that was beaten",
            "include/clusters.cuh",
            "} else if (candidate > second_score) {",
            "} else if (candidate > second_score && second_score == -INFINITY) {",
        )
        .by("clusters: empty clusters"),
        fault(
            "the second best of the better lane is forgotten",
            "include/clusters.cuh",
            "const float own_score = wins ? other_second_score : second_score;",
            "const float own_score = wins ? fminf(other_second_score, second_score) : second_score;",
        )
        .by("clusters: integers"),
        fault(
            "lanes are added up in another order",
            "include/clusters.cuh",
            "fold_halves<GROUP / 2>(sums);",
            "for (int i = 0; i < 16; ++i) { for (int step = 1; step < 16; step *= 2) { sums[i] += \
             __shfl_xor_sync(ALL_LANES, sums[i], step); } }\n            sums[0] = sums[group_lane()];",
        )
        .by("clusters: empty clusters"),
        fault(
            "half of the squared norm is forgotten",
            "include/clusters.cuh",
            "unit ? 0.0f : static_cast<float>(-0.5 * squares);",
            "unit ? 0.0f : static_cast<float>(-1.0 * squares);",
        )
        .by("clusters: starts"),
        fault(
            "padding of the centroids can win",
            "include/clusters.cuh",
            "if (at < clusters) {\n                nearest.take(sums[0] + starts[at], at);",
            "if (at < clusters + 1) {\n                nearest.take(sums[0] + starts[at < clusters ? at : 0], at);",
        )
        .by("clusters: integers"),
        fault(
            "the last row of a group is not assigned",
            "include/clusters.cuh",
            "if (group_lane() % SIDE == 0 && row < count) {",
            "if (group_lane() % SIDE == 0 && row + 1 < count) {",
        )
        .by("clusters: starts"),
        fault(
            "rows are not normalized",
            "include/clusters.cuh",
            "p.unit != 0 ? static_cast<float>(1.0 / sqrt(norm)) : 1.0f;",
            "p.unit != 0 ? static_cast<float>(1.0 / sqrt(norm) * 0.5) : 1.0f;",
        )
        .by("clusters: integers"),
        fault(
            "rows of norm zero pass",
            "include/clusters.cuh",
            "&& !(p.unit != 0 && norm == 0.0);",
            "&& !(p.unit != 0 && norm < 0.0);",
        )
        .by("clusters: refused"),
        fault(
            "rows that are not finite pass",
            "include/clusters.cuh",
            "const bool good = norm <= 0x1.fffffep+123 &&",
            "const bool good = !(norm > 0x1.fffffep+200) &&",
        )
        .by("clusters: refused"),
        fault(
            "the end of a row is not copied",
            "include/clusters.cuh",
            "for (uint32_t d = whole + lane_index(); d < p.dim; d += 32) {",
            "for (uint32_t d = whole + lane_index(); d + 1 < p.dim; d += 32) {",
        )
        .by("clusters: integers"),
        fault(
            "a list overwrites its last row",
            "include/clusters.cuh",
            "place += __popc(votes);",
            "place += __popc(votes) > 31 ? 31 : __popc(votes);",
        )
        .by("clusters: integers"),
        fault(
            "a draw takes the row before",
            "include/clusters.cuh",
            "if (running > target) {",
            "if (running >= target * 0.75) {",
        )
        .by("clusters: starts"),
        fault(
            "chosen rows are drawn again",
            "clusters.cu",
            "far[drawn] = -1.0;\n                listed[step]",
            "far[drawn] = 0.0;\n                listed[step]",
        )
        .by("clusters: starts"),
        fault(
            "streamed rows are drawn without their seed's label",
            "clusters_rounds.cu",
            "uniform_draw(p.seed, array<uint32_t>(p.labels)[own.id], p.step);",
            "uniform_draw(p.seed, own.id, p.step);",
        )
        .by("clusters: starts"),
        fault(
            "philox loses a round",
            "include/philox.cuh",
            "for (int round = 0; round < 10; ++round)",
            "for (int round = 0; round < 9; ++round)",
        )
        .by("clusters: starts"),
        fault(
            "an empty cluster takes the last of the farthest rows",
            "include/clusters.cuh",
            "if (far[row] > farthest && sizes",
            "if (far[row] >= farthest && far[row] > 0.0 && sizes",
        )
        .by("clusters: empty clusters"),
        fault(
            "an empty cluster takes the only row of another",
            "include/clusters.cuh",
            "sizes[cluster_of[row] - base] > 1) {",
            "sizes[cluster_of[row] - base] > 0) {",
        )
        .by("clusters: empty clusters"),
        fault(
            "rows that coincide with their centroid are moved",
            "include/clusters.cuh",
            "double farthest = 0.0;",
            "double farthest = -1.0;",
        )
        .by("clusters: empty clusters"),
        fault(
            "a mean is not divided by its number of rows",
            "include/clusters.cuh",
            "double length = size;",
            "double length = size > 1 ? size - 1 : size;",
        )
        .by("clusters: the tolerance"),
        fault(
            "a cluster without rows moves",
            "include/clusters.cuh",
            "const bool moves = size > 0 &&",
            "const bool moves = size < 0xffffffff &&",
        )
        .by("clusters: empty clusters"),
        fault(
            "centroids come back without the shift",
            "include/clusters.cuh",
            "static_cast<float>(value + static_cast<double>(shift[d]));",
            "static_cast<float>(value);",
        )
        .by("clusters: classes far from the origin"),
        fault(
            "classes far from the origin are not shifted",
            "include/clusters.cuh",
            "return {variance, !unit && far > 4.0 * variance};",
            "return {variance, !unit && far > 4e30 * variance};",
        )
        .by("clusters: classes far from the origin"),
        fault(
            "one round too many",
            "clusters.cu",
            "            settled = true;\n            break;",
            "            settled = true;\n            iterations += 1;\n            break;",
        )
        .by("clusters: the tolerance"),
        fault(
            "the tolerance is not looked at on chip",
            "clusters.cu",
            "if (movement <= __dmul_rn(tolerance, variance)) {",
            "if (movement <= __dmul_rn(tolerance, 0.0 * variance)) {",
        )
        .by("clusters: the tolerance"),
        fault(
            "distances are read before they are written",
            "clusters.cu",
            "                }\n            }\n        }\n        __syncthreads();\n    };\n\n    uint32_t iterations",
            "                }\n            }\n        }\n    };\n\n    uint32_t iterations",
        )
        .by("clusters: starts"),
        fault(
            "a tile is copied before all have left it",
            "clusters_stream.cu",
            "        // All have left the tile before the next one is copied.\n        __syncthreads();",
            "",
        )
        .by("clusters: starts"),
        fault(
            "the last row of a chunk is left out",
            "clusters_stream.cu",
            "return own.end - first < rows ? own.end : first + rows;",
            "return own.end - first < rows ? own.end : first + rows - 1;",
        )
        .by("clusters: starts"),
        fault(
            "a streamed row is not counted when it changes hands",
            "clusters_stream.cu",
            "if (changed > 0) {",
            "if (changed > 300) {",
        )
        .by("clusters: the tolerance"),
        fault(
            "sums of moved rows are not taken again",
            "clusters_stream.cu",
            "if (own.state(p) != HAS_EMPTY || !own.is_fused()) {",
            "if (own.state(p) != HAS_EMPTY || own.is_fused()) {",
        )
        .by("clusters: empty clusters"),
        fault(
            "the last chunk is not added up",
            "clusters_rounds.cu",
            "for (uint32_t chunk = 0; chunk < chunks; ++chunk) {\n                total +=",
            "for (uint32_t chunk = 0; chunk + 1 < chunks; ++chunk) {\n                total +=",
        )
        .by("clusters: classes far from the origin"),
        fault(
            "sorted rows are read without their inverses",
            "clusters_rounds.cu",
            "(to_f32(row[d]) * inverses[i] - shift[d]);",
            "(to_f32(row[d]) - shift[d]);",
        )
        .by("clusters: inertia of real rows"),
        fault(
            "a round in which no row changes hands counts",
            "clusters_rounds.cu",
            "output<uint32_t>(p.iterations)[own.id] += done ? 0 : 1;",
            "output<uint32_t>(p.iterations)[own.id] += done ? 1 : 1;",
        )
        .by("clusters: empty clusters"),
        fault(
            "the tolerance is not looked at in streamed classes",
            "clusters_rounds.cu",
            "array<double>(p.variances)[own.id]) ? DONE : 0;",
            "0.0 * array<double>(p.variances)[own.id]) ? DONE : 0;",
        )
        .by("clusters: the tolerance"),
        fault(
            "places of clusters start at the class's own first row",
            "clusters_rounds.cu",
            "uint32_t running = own.first - p.order_first;",
            "uint32_t running = own.first;",
        )
        .by("clusters: more clusters than are fused"),
        fault(
            "inertia leaves out the last cluster",
            "clusters_rounds.cu",
            "        double sum = 0.0;\n        for (uint32_t cluster = own.base; cluster < own.base + own.clusters; ++cluster) {\n            sum +=",
            "        double sum = 0.0;\n        for (uint32_t cluster = own.base; cluster + 1 < own.base + own.clusters; ++cluster) {\n            sum +=",
        )
        .by("clusters: starts"),
    ],
);

#[test]
fn every_fault_of_clusters_is_found() {
    assert_all_found(&CLUSTERS);
}
