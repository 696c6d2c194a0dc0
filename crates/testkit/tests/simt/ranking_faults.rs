//! Faults in counting ranks.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const RANKING: Family = (
    &["ranking.cu"],
    suite::ranking::CHECKS,
    &[
        fault(
            "items as good as the last relevant one are lost",
            "ranking.cu",
            "value >= floor[i]",
            "value > floor[i]",
        ).by("ranking: integers against sorted lists"),
        fault("junk counts", "ranking.cu", "label != NONE && label !=", "label !=").by("ranking: integers against sorted lists"),
        fault("items of the query's id count", "ranking.cu", "p.query_ids == 0 ||", "true ||").by("ranking: integers against sorted lists"),
        fault(
            "ties do not count",
            "ranking.cu",
            "atomicAdd(ties + worse, 1u);",
            "atomicAdd(ties + worse, 0u);",
        ).by("ranking: integers against sorted lists"),
        fault("junk is checked", "ranking.cu", "|| array<uint32_t>(p.item_labels)[row] == NONE", "|| false").by("ranking: integers against sorted lists"),
        fault(
            "a stage is filled while it is read",
            "include/exact.cuh",
            "            // All have read this stage before it is filled again.\n            __syncthreads();",
            "",
        ).by("ranking: integers against sorted lists"),
    ],
);

#[test]
fn every_fault_of_ranking_is_found() {
    assert_all_found(&RANKING);
}
