//! Faults in divergences of two distributions over the same keys.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const HEADER: &str = "include/divergence.cuh";
const KERNELS: &str = "divergence.cu";

const DIVERGENCE: Family = (
    &["divergence.cu"],
    suite::divergence::CHECKS,
    &[
        fault(
            "the second side's slabs are those of the first",
            "include/sweep.cuh",
            "Shape::SLAB_OF_TILE, columns[side], column,",
            "Shape::SLAB_OF_TILE, columns[0], column,",
        )
        .by("divergence: sizes"),
        fault(
            "the steps of the sides are not told apart",
            "include/sweep.cuh",
            "step -= parts[side];",
            "step -= parts[0];",
        )
        .by("divergence: sizes"),
        fault(
            "keys that are not valid are compared",
            HEADER,
            "key < p.key_count && bit_at(p.valid, key);",
            "key < p.key_count;",
        )
        .by("divergence: excluded pairs"),
        fault(
            "pairs of one id are compared",
            HEADER,
            "(p.query_ids != 0 && row_id == columns.id[column])",
            "(p.query_ids != 0 && false)",
        )
        .by("divergence: excluded pairs"),
        fault(
            "the diagonal is compared",
            HEADER,
            "(p.ignore_diagonal != 0 && row == number)",
            "(p.ignore_diagonal != 0 && false)",
        )
        .by("divergence: excluded pairs"),
        fault(
            "keys past the end are compared",
            HEADER,
            "row != NONE && number != NONE && !is_excluded",
            "row != NONE && !is_excluded",
        )
        .by("divergence: sizes"),
        fault(
            "lanes of a row have maxima of their own",
            HEADER,
            "                largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));\n",
            "",
        )
        .by("divergence: sizes"),
        fault(
            "sums are not rescaled when a maximum grows",
            HEADER,
            "mine.sum[side] *= factor;",
            "mine.sum[side] *= 1.0f;",
        )
        .by("divergence: scores beyond e^60"),
        fault(
            "the mean difference is rescaled with the other side",
            HEADER,
            "(p.reverse != 0) == (side == STUDENT) ? factor : 1.0f;",
            "(p.reverse != 0) == (side == TEACHER) ? factor : 1.0f;",
        )
        .by("divergence: scores beyond e^60"),
        fault(
            "the differences are weighed by the other side",
            HEADER,
            "fmaf(p.reverse != 0 ? of_student : of_teacher, difference, along)",
            "fmaf(p.reverse == 0 ? of_student : of_teacher, difference, along)",
        )
        .by("divergence: sizes"),
        fault(
            "half of the lanes of a row are lost",
            HEADER,
            "for (int step = 1; step < 4; step *= 2)",
            "for (int step = 1; step < 2; step *= 2)",
        )
        .by("divergence: sizes"),
        fault("splits share their place", HEADER, "* p.splits + blockIdx.y] = mine;", "* p.splits] = mine;")
            .by("divergence: many keys"),
        fault(
            "splits are joined without their maximum",
            HEADER,
            "row.sum[side] * mine + other.sum[side] * theirs;",
            "row.sum[side] + other.sum[side];",
        )
        .by("divergence: many keys"),
        fault(
            "the mean difference is joined without its maximum",
            HEADER,
            "row.along = row.along * mine + other.along * theirs;",
            "row.along = row.along + other.along;",
        )
        .by("divergence: many keys"),
        fault(
            "the teacher is subtracted after rounding",
            HEADER,
            "(of_student - ptx::exp2_fast(",
            "(__uint_as_float(__float_as_uint(of_student) & 0xffff0000u) - ptx::exp2_fast(",
        )
        .by("divergence: equal sides"),
        fault(
            "a reverse coefficient forgets the mean",
            HEADER,
            "fmaf(b - a, LN_2, -shared.mean[query])",
            "fmaf(b - a, LN_2, 0.0f * shared.mean[query])",
        )
        .by("divergence: sizes"),
        fault(
            "coefficients of pairs that are not compared are kept",
            HEADER,
            "(open >> (i + k) & 1) != 0 ? coefficient(student, teacher, query) : 0.0f;",
            "coefficient(student, teacher, query);",
        )
        .by("divergence: excluded pairs"),
        fault(
            "a bad row of the teacher passes",
            KERNELS,
            "report(p, (is_teacher ? 2 : 0)",
            "report(p, (is_teacher ? 0 : 0)",
        )
        .by("divergence: numbers out of range"),
        fault(
            "rows of the teacher are not looked at",
            KERNELS,
            "item -= is_teacher ? of_side : 0;",
            "item -= 0;",
        )
        .by("divergence: numbers out of range"),
        fault(
            "the keys of a split begin with the first",
            KERNELS,
            "Sides<T>::keys(p, range.end).at,\n                          range.first, false, 0);",
            "Sides<T>::keys(p, range.end).at,\n                          0, false, 0);",
        )
        .by("divergence: many keys"),
        fault(
            "gradients of splits share their place",
            KERNELS,
            "static_cast<uint64_t>(blockIdx.y) * p.query_count * p.dim;",
            "0;",
        )
        .by("divergence: many keys"),
        fault(
            "the last split's gradient is lost",
            KERNELS,
            "sum += array<float>(p.partial_gradients)[split * count + at];",
            "sum += split + 1 < p.splits ? array<float>(p.partial_gradients)[split * count + at] : 0.0f;",
        )
        .by("divergence: many keys"),
        fault(
            "the logarithms change sides in both directions",
            KERNELS,
            "const float between = p.reverse != 0 ?",
            "const float between = p.reverse == 0 ?",
        )
        .by("divergence: sizes"),
        fault(
            "a divergence is not softened",
            KERNELS,
            "(mean + between) * LN_2 * __uint_as_float(p.squared)",
            "(mean + between) * LN_2",
        )
        .by("divergence: sizes"),
        fault(
            "rows without a key have a mean",
            KERNELS,
            "const float loss = counts ?",
            "const float loss = true ?",
        )
        .by("divergence: rows without a key"),
        fault(
            "statistics of another teacher pass",
            KERNELS,
            "row.sum[TEACHER] >= 0.5f && row.sum[TEACHER] <= 2.0f",
            "row.sum[TEACHER] >= 0.0f",
        )
        .by("divergence: known statistics"),
        fault("what leaves f32 passes", KERNELS, "if (!is_finite(loss)) {", "if (false) {")
            .by("divergence: numbers out of range"),
        fault(
            "a wide reverse coefficient leaves its unit",
            KERNELS,
            "p.reverse != 0 ? widest : 1.0f;",
            "p.reverse != 0 ? 1.0f : 1.0f;",
        )
        .by("divergence: scores beyond e^60"),
        fault(
            "the units of rows are not taken back",
            KERNELS,
            "__uint_as_float(p.outer) / unit_for(bound)",
            "__uint_as_float(p.outer) / 8192.0f",
        )
        .by("divergence: scores beyond e^60"),
        fault(
            "the keys' gradient ignores what arrives",
            KERNELS,
            "output<float>(p.row_weights)[query] = array<float>(p.upstream)[query] * outer * unit;",
            "output<float>(p.row_weights)[query] = outer * unit;",
        )
        .by("divergence: sizes"),
        fault(
            "the units of the keys are not taken back",
            KERNELS,
            "*output<float>(p.row_unit) = 1.0f / unit;",
            "*output<float>(p.row_unit) = 1.0f;",
        )
        .by("divergence: sizes"),
    ],
);

#[test]
fn every_fault_of_divergence_is_found() {
    assert_all_found(&DIVERGENCE);
}
