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
        ),
        fault("junk counts", "ranking.cu", "label != NONE && label !=", "label !="),
        fault("items of the query's id count", "ranking.cu", "p.query_ids == 0 ||", "true ||"),
        fault(
            "ties do not count",
            "ranking.cu",
            "atomicAdd(ties + worse, 1u);",
            "atomicAdd(ties + worse, 0u);",
        ),
        fault("junk is checked", "ranking.cu", "|| array<uint32_t>(p.item_labels)[row] == NONE", "|| false"),
        fault(
            "a stage is filled while it is read",
            "include/exact.cuh",
            "            // All have read this stage before it is filled again.\n            __syncthreads();",
            "",
        ),
    ],
);

#[test]
fn every_fault_of_ranking_is_found() {
    assert_all_found(&RANKING);
}
