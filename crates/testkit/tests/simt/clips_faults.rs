//! Faults in the augmentation of clips.

use consonance_testkit::suite;

use super::{Family, assert_all_found, fault};

const EXACT: &str = "clips: exact numbers";
const BOUNDED: &str = "clips: any numbers";
const BAD_PIXELS: &str = "clips: bad pixels";

const CLIPS: Family = (
    &["clips.cu"],
    suite::clips::CHECKS,
    &[
        fault("pixels are their corners", "clips.cu", "(2 * at + 1) * from;", "2 * at * from;").by(EXACT),
        fault(
            "the last pixel has a neighbor beyond the box",
            "clips.cu",
            "min(first + 1, from - 1)",
            "first + 1",
        )
        .by(EXACT),
        fault("nothing is flipped", "clips.cu", "!= 0 ? p.out_width - 1 - x : x;", "!= 0 ? x : x;").by(EXACT),
        fault(
            "boxes begin at the left",
            "clips.cu",
            "below = frame + (words[TOP] + down.second) * p.width + words[LEFT]",
            "below = frame + (words[TOP] + down.second) * p.width",
        )
        .by(EXACT),
        fault(
            "colors are not clipped",
            "clips.cu",
            "return saturated({factor * x.r, factor * x.g, factor * x.b});",
            "return {factor * x.r, factor * x.g, factor * x.b};",
        )
        .by(BOUNDED),
        fault(
            "the contrast of blue turns around green",
            "clips.cu",
            "fmaf(factor, x.b - pivots[2], pivots[2])",
            "fmaf(factor, x.b - pivots[1], pivots[1])",
        )
        .by(BOUNDED),
        fault(
            "a mean is of what comes behind the contrast",
            "clips.cu",
            "if (is_before && step == CONTRAST) {",
            "if (is_before && step == CONTRAST && steps == 0) {",
        )
        .by(BOUNDED),
        fault(
            "a mean is of the resampled frame",
            "clips.cu",
            "if (is_before && step == CONTRAST) {",
            "if (is_before) {",
        )
        .by(BOUNDED),
        fault(
            "the last chunk of a mean is left out",
            "clips.cu",
            "for (uint32_t chunk = lane_index(); chunk < p.chunk_count;",
            "for (uint32_t chunk = lane_index(); chunk + 1 < p.chunk_count;",
        )
        .by(BOUNDED),
        fault(
            "a mean is of one frame",
            "clips.cu",
            "static_cast<float>(p.frames * p.out_height * p.out_width);",
            "static_cast<float>(p.out_height * p.out_width);",
        )
        .by(BOUNDED),
        fault(
            "saturation leaves [0, 1]",
            "clips.cu",
            "factor * chroma <= value ? factor : value / chroma;",
            "factor;",
        )
        .by(BOUNDED),
        fault("hues do not go round", "clips.cu", "k - 6.0f * floorf(k * (1.0f / 6.0f));", "k;").by(BOUNDED),
        fault(
            "green is the hue of blue",
            "clips.cu",
            "value == x.g ? 2.0f : 4.0f;",
            "value == x.g ? 4.0f : 2.0f;",
        )
        .by(BOUNDED),
        fault(
            "a step takes the next one's factor",
            "clips.cu",
            "words[FACTORS + step - 1]",
            "words[FACTORS + step % 4]",
        )
        .by(BOUNDED),
        fault(
            "steps are taken backwards",
            "clips.cu",
            "const uint32_t step = steps & 0xff;",
            "const uint32_t step = 5 - (steps & 0xff);",
        )
        .by(BOUNDED),
        fault(
            "the luma of another standard",
            "clips.cu",
            "fmaf(0.114f, color.b, fmaf(0.587f, color.g, 0.2989f * color.r))",
            "fmaf(0.0722f, color.b, fmaf(0.7152f, color.g, 0.2126f * color.r))",
        )
        .by(BOUNDED),
        fault(
            "the threshold itself is not solarized",
            "clips.cu",
            "value >= __uint_as_float(words[THRESHOLD])",
            "value > __uint_as_float(words[THRESHOLD])",
        )
        .by(EXACT),
        fault(
            "frames are mirrored at their edges",
            "clips.cu",
            "if (y < p.out_height && x < p.out_width) {\n                color",
            "if (y < p.out_height || x < p.out_width) {\n                color",
        )
        .by(BOUNDED),
        fault(
            "a blur reaches less far",
            "clips.cu",
            "for (uint32_t k = 1; k <= radius; ++k) {",
            "for (uint32_t k = 1; k < radius; ++k) {",
        )
        .by(BOUNDED),
        fault("weights of another clip", "clips.cu", "[clip * (p.radius + 1) + k];", "[k];").by(BOUNDED),
        fault(
            "a row is written while it is read",
            "clips.cu",
            "__syncwarp();\n        *to = value;",
            "*to = value;",
        )
        .by(BOUNDED),
        fault(
            "blurred columns are read before they are written",
            "clips.cu",
            "    }\n    __syncthreads();\n    for (uint32_t row = threadIdx.x / 32; row < CLIP_TILE;",
            "    }\n    for (uint32_t row = threadIdx.x / 32; row < CLIP_TILE;",
        )
        .by(BOUNDED),
        fault(
            "tiles of a second row are those of the first",
            "clips.cu",
            "blockIdx.x / tiles * CLIP_TILE;",
            "0;",
        )
        .by(BOUNDED),
        fault(
            "clips lie one behind the other",
            "clips.cu",
            "array<T>(p.clips) + clip * p.clip_stride + first;",
            "array<T>(p.clips) + static_cast<uint64_t>(clip) * p.frames * 3 * p.height * p.width + first;",
        )
        .by("clips: alone and in a batch"),
        fault("pixels above 1 pass", "clips.cu", "&& value <= 1.0f;", "&& value <= 2.0f;").by(BAD_PIXELS),
        fault(
            "NaN passes",
            "clips.cu",
            "is_valid && value >= 0.0f && value <= 1.0f;",
            "is_valid && !(value < 0.0f || value > 1.0f);",
        )
        .by(BAD_PIXELS),
        fault(
            "the last bad clip is named",
            "clips.cu",
            "atomicMin(output<uint32_t>(p.status), clip);",
            "*output<uint32_t>(p.status) = 2;",
        )
        .by(BAD_PIXELS),
    ],
);

#[test]
fn every_fault_of_clips_is_found() {
    assert_all_found(&CLIPS);
}
