//! Faults in pushes into a ring, and in updates of class centers.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const BANK: Family = (
    &["bank.cu"],
    suite::bank::CHECKS,
    &[
        fault(
            "a ring does not go round",
            "bank.cu",
            "row < rest ? p.start + row : row - rest;",
            "row < rest ? p.start + row : p.capacity - 1;",
        ),
        fault(
            "rows are read without their distance",
            "bank.cu",
            "const uint64_t first = row * p.row_stride;",
            "const uint64_t first = static_cast<uint64_t>(row) * p.dim;",
        ),
        fault(
            "the last row is not pushed",
            "bank.cu",
            "if (row >= p.row_count) {",
            "if (row + 1 >= p.row_count) {",
        ),
        fault("every row is credible", "bank.cu", "[slot] = credible ? 1 : 0;", "[slot] = credible ? 1 : 1;"),
        fault("rows without ids get 0", "bank.cu", "(p.row_ids)[row] : NONE;", "(p.row_ids)[row] : 0;"),
        fault(
            "f16 is read as bf16",
            "bank.cu",
            "case TYPE_F16: store_row(to, array<f16>(p.rows)",
            "case TYPE_F16: store_row(to, array<bf16>(p.rows)",
        ),
        fault(
            "a sum is not divided by its number of rows",
            "bank.cu",
            "sums[d] / static_cast<float>(count);",
            "sums[d] / static_cast<float>(count > 1 ? count - 1 : 1);",
        ),
        fault(
            "centers are never of norm 1",
            "bank.cu",
            "p.normalize != 0 ? sqrtf(squares) : 1.0f;",
            "p.normalize != 0 ? 1.0f : 1.0f;",
        ),
        fault("rows that are not finite pass", "bank.cu", "report(p, ROWS, at);", "report(p, ROWS, NONE);"),
        fault(
            "an update writes in spite of an error",
            "bank.cu",
            "(p.status)[word] != NONE) {",
            "(p.status)[word] == NONE && word > CENTERS_STATUS) {",
        ),
        fault(
            "all positions of a class write its center",
            "include/positions.cuh",
            "if (at < position || !visit(at)) {",
            "if ((at < position && at > position) || !visit(at)) {",
        ),
    ],
);

#[test]
fn every_fault_of_bank_is_found() {
    assert_all_found(&BANK);
}
