//! Faults in class activation maps, blends and backgrounds.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const CAM: Family = (
    &["cam.cu"],
    suite::cam::CHECKS,
    &[
        fault("negative weights count", "cam.cu", "g : fmaxf(g, 0.0f), a, sum);", "g : g, a, sum);")
            .by("cam: maps"),
        fault(
            "the last warp's channels are lost",
            "cam.cu",
            "for (uint32_t other = 1; other < WARPS; ++other) {",
            "for (uint32_t other = 1; other + 1 < WARPS; ++other) {",
        )
        .by("cam: maps"),
        fault(
            "sums are read before all are there",
            "cam.cu",
            "    of_warps[threadIdx.x] = sum;\n    __syncthreads();",
            "    of_warps[threadIdx.x] = sum;",
        )
        .by("cam: maps"),
        fault("negative sums stay", "cam.cu", "fmaxf(sum, 0.0f) / static_cast", "sum / static_cast")
            .by("cam: maps"),
        fault(
            "images lie one behind the other",
            "cam.cu",
            "+ image * p.activation_stride;",
            "+ static_cast<uint64_t>(image) * p.channels * p.pixels;",
        )
        .by("cam: images alone and behind padding"),
        fault(
            "activations of weight 0 are not looked at",
            "cam.cu",
            "fabsf(sum) <= LARGEST_SUM)",
            "!(fabsf(sum) > LARGEST_SUM))",
        )
        .by("cam: maps of bad numbers"),
        fault(
            "gradients that are not finite pass",
            "cam.cu",
            "wrong(GRADIENTS, is_finite(g));",
            "wrong(GRADIENTS, g < INFINITY || g >= INFINITY);",
        )
        .by("cam: maps of bad numbers"),
        fault("pixels are points", "cam.cu", "* input - out + step;", "* input - input + step;").by("cam: maps"),
        fault("another cubic", "cam.cu", "constexpr float CUBIC = -0.75f;", "constexpr float CUBIC = -0.5f;")
            .by("cam: maps"),
        fault(
            "lines end with other pixels",
            "cam.cu",
            "min(max(at, 0), static_cast<int>(size) - 1));",
            "max(min(at < 0 ? -at - 1 : at, static_cast<int>(size) - 1), 0));",
        )
        .by("cam: maps"),
        fault(
            "the weights of a row are not all there",
            "cam.cu",
            "    // Columns are a thread's own, in shared memory, too: only the table of the rows is others'.\n    __syncthreads();",
            "",
        )
        .by("cam: maps"),
        fault(
            "rows stay where the first ones were",
            "cam.cu",
            "            held = taps.first;\n",
            "            held = taps.first + (y == 0 ? 1 : 0);\n",
        )
        .by("cam: maps"),
        fault(
            "the range is that of the first warp",
            "cam.cu",
            "for (uint32_t warp = 0; warp < WARPS; ++warp) {\n        least = fminf",
            "for (uint32_t warp = 0; warp < 1; ++warp) {\n        least = fminf",
        )
        .by("cam: maps"),
        fault(
            "columns beyond the first round are those of the last one",
            "cam.cu",
            "        if (p.width > CAM_THREADS) {",
            "        if (p.width > 2 * CAM_THREADS) {",
        )
        .by("cam: maps"),
        fault("a map of no range is divided by 0", "cam.cu", "most - least + SMALLEST_RANGE;", "most - least;")
            .by("cam: maps without a range"),
        fault(
            "masks are the wrong way round",
            "cam.cu",
            "return fmaf(y, m, x * (1.0f - m));",
            "return fmaf(x, m, y * (1.0f - m));",
        )
        .by("cam: blends"),
        fault(
            "a blend by its difference",
            "cam.cu",
            "return fmaf(y, m, x * (1.0f - m));",
            "return fmaf(y - x, m, x);",
        )
        .by("cam: blends"),
        fault(
            "colors are those of the first channel",
            "cam.cu",
            "const float color = to_f32(others[channel]);",
            "const float color = to_f32(others[0]);",
        )
        .by("cam: blends"),
        fault(
            "unaligned blends take the first block's pixels",
            "cam.cu",
            "const uint64_t pixel = begin + i * CAM_THREADS + threadIdx.x;",
            "const uint64_t pixel = i * CAM_THREADS + threadIdx.x;",
        )
        .by("cam: blends"),
        fault(
            "others lie one behind the other",
            "cam.cu",
            "+ image * p.other_stride;",
            "+ static_cast<uint64_t>(image) * (p.is_color != 0 ? p.channels : p.channels * p.pixels);",
        )
        .by("cam: blends"),
        fault("halves of a chunk are exchanged", "cam.cu", "values[i + j] = chunk[j];", "values[i + (j ^ 1)] = chunk[j];")
            .by("cam: blends"),
        fault(
            "masks above 1 pass",
            "cam.cu",
            "m >= 0.0f && m <= 1.0f);",
            "m >= 0.0f);",
        )
        .by("cam: bad blends"),
        fault(
            "others that are not finite pass",
            "cam.cu",
            "| wrong(OTHERS, is_finite(y));",
            "| wrong(OTHERS, is_finite(x));",
        )
        .by("cam: bad blends"),
        fault("what equals the threshold is outside", "cam.cu", "if (m >= threshold) {", "if (m > threshold) {")
            .by("cam: backgrounds"),
        fault(
            "strips of equal size go by the last",
            "cam.cu",
            "if (other.area() > best.area()) {",
            "if (other.area() >= best.area()) {",
        )
        .by("cam: backgrounds"),
        fault(
            "rectangles are always short",
            "cam.cu",
            "p.is_short != 0 ? 1 : 0;",
            "p.is_short != 0 ? 1 : 1;",
        )
        .by("cam: backgrounds"),
        fault(
            "tiles begin at the rectangle",
            "cam.cu",
            "strip.top + y % (strip.bottom - strip.top);",
            "strip.top + (y - hole.top) % (strip.bottom - strip.top);",
        )
        .by("cam: backgrounds"),
        fault("an image full of object has a background", "cam.cu", "strip.area() != 0 ? 1 : 0;", "hole.area() != 0 ? 1 : 0;")
            .by("cam: backgrounds"),
        fault(
            "what is covered is not looked at",
            "cam.cu",
            "is_finite(to_f32(from[first + pixel])));",
            "is_finite(to_f32(from[first + source])));",
        )
        .by("cam: bad backgrounds"),
    ],
);

#[test]
fn every_fault_of_cam_is_found() {
    assert_all_found(&CAM);
}
