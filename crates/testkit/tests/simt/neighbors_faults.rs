//! Faults in the search of neighbors, its gradients and its restriction to labels.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const NEIGHBORS: Family = (
    &["neighbors.cu", "neighbors_gradient.cu", "segments.cu"],
    suite::neighbors::CHECKS,
    &[
        fault(
            "the mask is dropped",
            "include/pairs.cuh",
            "return bit_at(p.allow, key);",
            "return bit_at(p.allow, key) || true;",
        )
        .by("neighbors: restricted pairs"),
        fault("ids are dropped", "include/pairs.cuh", "return p.query_ids == 0 ||", "return true ||")
            .by("neighbors: restricted pairs"),
        fault(
            "the last label of a tile is left out",
            "include/pairs.cuh",
            "p.key_order, most + 1, first",
            "p.key_order, most, first",
        )
        .by("neighbors: restricted pairs"),
        fault(
            "splits leave out their last tile",
            "include/pairs.cuh",
            "const uint64_t end = first + each;",
            "const uint64_t end = first + each - TILE_KEYS;",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "one row too many is copied",
            "include/slab.cuh",
            "position < source.end",
            "position <= source.end",
        )
        .by("neighbors: integers, bit for bit"),
        fault("the rest of a row is not cut", "include/slab.cuh", "rest < EACH ?", "rest > EACH ?")
            .by("neighbors: integers, bit for bit"),
        fault(
            "values of a tile are read before they are written",
            "include/stream.cuh",
            "reducer.publish(first_key + tile * TILE_KEYS, tile == 0);\n            __syncthreads();",
            "reducer.publish(first_key + tile * TILE_KEYS, tile == 0);",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "slabs are read before all threads have copied theirs",
            "include/stream.cuh",
            "        __syncthreads();\n        start_copy();",
            "        start_copy();",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "a copy is not waited for",
            "include/stream.cuh",
            "ptx::copy_async_wait<STAGES - 2>()",
            "ptx::copy_async_wait<STAGES - 1>()",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "lanes move entries that others still read",
            "include/list.cuh",
            "better_than(sorted, RING, moved);\n        __syncwarp();",
            "better_than(sorted, RING, moved);",
        )
        .by("neighbors: integers, bit for bit"),
        fault("a ring runs over", "include/list.cuh", "state.waiting > RING - GROUP", "state.waiting > RING")
            .by("neighbors: integers, bit for bit"),
        fault("a merge loses its last entry", "include/list.cuh", "place < capacity", "place + 1 < capacity")
            .by("neighbors: near ties"),
        fault(
            "the larger of two equal indices wins",
            "include/entry.cuh",
            "<< 32 | (NONE - index)",
            "<< 32 | (NONE - (index ^ 1))",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "the second half of the rows has the first one's queries",
            "include/rank.cuh",
            "half * 8) + lane_index() / 4;",
            "half * 0) + lane_index() / 4;",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "the bound is forgotten",
            "include/bound.cuh",
            "return bound * (1.0f + 0x1p-20f) + 0x1p-120f",
            "return 0.0f * bound",
        )
        .by("neighbors: near ties"),
        fault(
            "every row counts as proven",
            "neighbors.cu",
            "hides && !(value > hidden) ? 1 : 0",
            "hides && !(value > hidden) && value == INFINITY ? 1 : 0",
        )
        .by("neighbors: near ties"),
        fault(
            "a pass finds the last neighbor again",
            "neighbors.cu",
            "p.pairs.dim, chunked), key);\n            entry = entry < cut ?",
            "p.pairs.dim, chunked), key);\n            entry = entry <= cut ?",
        )
        .by("neighbors: more than a pass"),
        fault(
            "empty places are left as they are",
            "neighbors.cu",
            "for (uint32_t place = valid + threadIdx.x; place < p.wanted",
            "for (uint32_t place = valid + threadIdx.x; place + 1 < p.wanted",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "the first matrix has its halves exchanged",
            "include/products.cuh",
            "row + lane % 16, step * 2 + lane / 16",
            "row + lane % 16, step * 2 + 1 - lane / 16",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "f32 rows are paired wrongly",
            "include/products.cuh",
            "row + lane / 4 + i % 2 * 8, step, i / 2 != 0",
            "row + lane / 4 + i / 2 * 8, step, i % 2 != 0",
        )
        .by("neighbors: integers, bit for bit"),
        fault(
            "numbers of a digit change their order",
            "segments.cu",
            "place = places[digit] + below;",
            "place = places[digit] + __popc(lanes) - 1 - below;",
        )
        .by("neighbors: rows stand alone"),
        fault(
            "counts of a block are not cleared",
            "segments.cu",
            "        counts[digit] = 0;",
            "        counts[digit] += 0;",
        )
        .by("neighbors: restricted pairs"),
        fault(
            "a place without a neighbor gets a gradient",
            "neighbors_gradient.cu",
            "            if (key != NONE) {\n                const float y",
            "            {\n                const float y",
        )
        .by("neighbors: gradients"),
        fault(
            "the last warp's pairs of a key are lost",
            "neighbors_gradient.cu",
            "            count += shared.counts[other];",
            "            count += other < 3 ? shared.counts[other] : 0;",
        )
        .by("neighbors: gradients"),
    ],
);

#[test]
fn every_fault_of_neighbors_is_found() {
    assert_all_found(&NEIGHBORS);
}
