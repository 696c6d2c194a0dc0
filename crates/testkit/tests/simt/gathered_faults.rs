//! Faults in losses over lists of bank rows, and in the update of such rows.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const GATHERED: Family = (
    &["gathered.cu", "gathered_update.cu"],
    suite::gathered::CHECKS,
    &[
        fault(
            "padding is a row of the bank",
            "include/gathered.cuh",
            "return row < p.bank_count ? row : NONE;",
            "return row < p.bank_count ? row : 0;",
        ),
        fault(
            "a row's end is not cut",
            "include/gathered.cuh",
            "index == NONE ? 0 : rest < EACH ? rest : EACH;",
            "index == NONE ? 0 : rest < EACH ? EACH : EACH;",
        ),
        fault(
            "rows that are not there are left as they were",
            "include/gathered.cuh",
            "        unsigned char* const to = stage +",
            "        if (index == NONE) {\n            continue;\n        }\n        unsigned char* const to = stage +",
        ),
        fault(
            "the last part of a row is lost",
            "include/gathered.cuh",
            "for (uint32_t part = 1; part < p.parts; ++part)",
            "for (uint32_t part = 1; part + 1 < p.parts; ++part)",
        ),
        fault(
            "half of the lanes of a group are lost",
            "include/gathered.cuh",
            "for (uint32_t step = group.lanes / 2; step > 0;",
            "for (uint32_t step = group.lanes / 4; step > 0;",
        ),
        fault(
            "sums are not rescaled when the maximum grows",
            "include/gathered.cuh",
            "sums[i] = fmaf(sums[i], factor, sum);",
            "sums[i] = fmaf(sums[i], factor > 0.0f ? 1.0f : 0.0f, sum);",
        ),
        fault(
            "the last row of a tile is not summed",
            "include/gathered.cuh",
            "for (uint32_t row = 0; row < rows; ++row)",
            "for (uint32_t row = 0; row + 1 < rows; ++row)",
        ),
        fault(
            "dimensions behind the first of a thread are lost",
            "include/gathered.cuh",
            "if (i * TILE_THREADS < side.dim) {",
            "if (i * TILE_THREADS < side.dim && i == 0) {",
        ),
        fault(
            "rows are multiplied before they arrive",
            "gathered.cu",
            "ptx::copy_async_wait<GATHERED_STAGES - 2>();",
            "ptx::copy_async_wait<GATHERED_STAGES - 1>();",
        ),
        fault(
            "products are read before they are written",
            "gathered.cu",
            "        __syncthreads();\n        start_copy();",
            "        start_copy();",
        ),
        fault(
            "products of two tiles share their place",
            "gathered.cu",
            "turn = tile % 2;",
            "turn = tile % 1;",
        ),
        fault(
            "a sum is not rescaled when the maximum grows",
            "gathered.cu",
            "sum = fmaf(sum, factor, weight);",
            "sum += weight;",
        ),
        fault(
            "splits leave out their last tile",
            "gathered.cu",
            "p.columns - first < each ? p.columns : first + each};",
            "p.columns - first < each ? p.columns : first + each - GATHERED_ROWS};",
        ),
        fault(
            "splits are joined without their maximum",
            "gathered.cu",
            "other.sum * rescaling(other.largest, largest)",
            "other.sum",
        ),
        fault(
            "gradients of splits are joined without their maximum",
            "gathered.cu",
            "sum = fmaf(of_split[d], rescaling(partial.largest, row.largest), sum);",
            "sum += of_split[d];",
        ),
        fault(
            "the teacher's sum is not rescaled with its maximum",
            "gathered.cu",
            "along *= of_teacher.factor;",
            "along *= 1.0f;",
        ),
        fault(
            "weights of positives are not counted in the target",
            "gathered.cu",
            "add_rows(other_sums, stage, own, p.tile_rows, positive, 1.0f);",
            "add_rows(other_sums, stage, own, p.tile_rows, positive > 0.0f ? 1.0f : 0.0f, 1.0f);",
        ),
        fault(
            "columns of weight 0 are positives",
            "gathered.cu",
            "} else if (positive > 0.0f) {",
            "} else if (index != NONE) {",
        ),
        fault(
            "rows that do not count have a loss",
            "gathered.cu",
            "write_row(p, query, counts ? loss : 0.0f,",
            "write_row(p, query, loss,",
        ),
        fault("the temperature divides once", "gathered.cu", "= -sum / temperature;", "= -sum;"),
        fault(
            "the gradient of a divergence is not softened",
            "gathered.cu",
            "gradient = difference * softening / temperature_of",
            "gradient = difference / temperature_of",
        ),
        fault(
            "indices beyond the bank pass",
            "gathered.cu",
            "if (index != NONE && index >= p.bank_count) {",
            "if (index == NONE && index < p.bank_count) {",
        ),
        fault(
            "a bad row of the teacher passes",
            "gathered.cu",
            "report(p, TEACHER_BANK, index);",
            "report(p, TEACHER_BANK, NONE);",
        ),
        fault(
            "positions of an index are applied by all of their blocks",
            "include/positions.cuh",
            "if (at < position || !visit(at)) {",
            "if ((at < position && at > position) || !visit(at)) {",
        ),
        fault(
            "an update writes in spite of an error",
            "gathered_update.cu",
            "clean = clean && array",
            "clean = clean || array",
        ),
        fault(
            "votes are written while they are read",
            "include/positions.cuh",
            "        // All have read the votes before the next ones are written.\n        __syncthreads();",
            "",
        ),
        fault(
            "a row is stored without its norm",
            "gathered_update.cu",
            "store_rounded(row + d, sum / norm);",
            "store_rounded(row + d, sum / fmaxf(norm, 1.0f));",
        ),
    ],
);

#[test]
fn every_fault_of_gathered_is_found() {
    assert_all_found(&GATHERED);
}
