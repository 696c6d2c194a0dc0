// clips: augmentation of video clips, with one set of parameters for all frames of a clip.
//
//   check     looks for pixels that are not in [0, 1]; status: the least clip that has one
//   sum       sums of the channels, of what stands before the contrast, CLIP_CHUNK pixels of a clip a block
//   pivot     their means: what the contrast turns around
//   plain     clips without blur: crop, bilinear resampling, flip, color jitter, grayscale, solarization; written once
//   blurred   the same with a separable Gaussian blur before the solarization, by tiles whose borders are computed anew
//
// Colors are computed from the clip as it is stored wherever they are needed, in f32; nothing is stored in between. A pixel's
// source is a quotient of integers, so that only its share rounds.
//
// Grids: check: chunk × clip; sum: chunk × 1 × clip; pivot: a block a clip, a warp a channel; plain: CLIP_PIXELS of a frame ×
// frame × clip; blurred: tile × frame × clip. Blocks of clips that are not theirs end at once.
// Traffic: plain reads what it resamples (from the caches where pixels share sources) and writes every pixel once; sum reads the
// same again; check reads every clip once. blurred computes (32 + 2 radius)² colors for 32² pixels.
// Shared memory: blurred: three such tiles in f32 and the weights (blurred_shared_bytes in src/cuda/clips.rs).
#include "floats.cuh"
#include "kernel.cuh"
#include "positions.cuh"

namespace {

// Words of a clip's parameters: the box, flags, four steps of a byte each (0: none), their factors in the order of `Step` as
// f32, and the threshold of the solarization as f32, above 1 for none.
enum Word { TOP, LEFT, CROP_HEIGHT, CROP_WIDTH, FLAGS, STEPS, FACTORS, THRESHOLD = FACTORS + 4 };
enum Flag { FLIP = 1, GRAYSCALE = 2, BLUR = 4, PIVOT = 8 };
enum Step { BRIGHTNESS = 1, CONTRAST, SATURATION, HUE };

constexpr uint32_t WARPS = TILE_THREADS / 32;

__device__ __forceinline__ const uint32_t* words_of(const Clips& p, uint32_t clip) {
    return array<uint32_t>(p.parameters) + static_cast<uint64_t>(clip) * CLIP_WORDS;
}

// Two neighbors along one side, and the share of the second.
struct Source {
    uint32_t first;
    uint32_t second;
    float share;
};

// Where pixel `at` of `size` lies among `from` pixels over the same length.
__device__ __forceinline__ Source source(uint32_t at, uint32_t from, uint32_t size) {
    const uint32_t moved = (2 * at + 1) * from;
    const uint32_t place = moved > size ? moved - size : 0;
    const uint32_t whole = place / (2 * size);
    const uint32_t first = min(whole, from - 1);
    const float share = static_cast<float>(place - whole * (2 * size)) * (1.0f / static_cast<float>(2 * size));
    return {first, min(first + 1, from - 1), share};
}

__device__ __forceinline__ float between(float a, float b, float share) { return fmaf(share, b - a, a); }

struct Rgb {
    float r;
    float g;
    float b;
};

__device__ __forceinline__ Rgb saturated(Rgb x) { return {__saturatef(x.r), __saturatef(x.g), __saturatef(x.b)}; }

// A pixel of the resampled crop; `frame` is [3, height, width].
template <class T>
__device__ __forceinline__ Rgb resampled(const Clips& p, const uint32_t* words, const T* frame, Source down, uint32_t x) {
    const uint32_t column = (words[FLAGS] & FLIP) != 0 ? p.out_width - 1 - x : x;
    const Source right = source(column, words[CROP_WIDTH], p.out_width);
    const T* const above = frame + (words[TOP] + down.first) * p.width + words[LEFT];
    const T* const below = frame + (words[TOP] + down.second) * p.width + words[LEFT];
    const uint32_t plane = p.height * p.width;
    float values[3];
#pragma unroll
    for (uint32_t c = 0; c < 3; ++c) {
        const uint32_t first = c * plane + right.first;
        const uint32_t second = c * plane + right.second;
        const float top = between(to_f32(above[first]), to_f32(above[second]), right.share);
        const float bottom = between(to_f32(below[first]), to_f32(below[second]), right.share);
        values[c] = between(top, bottom, down.share);
    }
    return saturated({values[0], values[1], values[2]});
}

// V − c · trapezium of the sextant k, for any k.
__device__ __forceinline__ float of_hue(float value, float chroma, float k) {
    const float inside = k - 6.0f * floorf(k * (1.0f / 6.0f));
    return value - chroma * __saturatef(fminf(inside, 4.0f - inside));
}

// One step of the color jitter, clipped.
__device__ __forceinline__ Rgb jittered(Rgb x, uint32_t step, float factor, const float* pivots) {
    if (step == BRIGHTNESS) {
        return saturated({factor * x.r, factor * x.g, factor * x.b});
    }
    if (step == CONTRAST) {
        return saturated({fmaf(factor, x.r - pivots[0], pivots[0]), fmaf(factor, x.g - pivots[1], pivots[1]),
                          fmaf(factor, x.b - pivots[2], pivots[2])});
    }
    const float value = fmaxf(fmaxf(x.r, x.g), x.b);
    const float chroma = value - fminf(fminf(x.r, x.g), x.b);
    if (chroma == 0.0f) {
        return x;
    }
    if (step == SATURATION) {
        const float scale = factor * chroma <= value ? factor : value / chroma;
        return saturated({value - (value - x.r) * scale, value - (value - x.g) * scale, value - (value - x.b) * scale});
    }
    const float difference = value == x.r ? x.g - x.b : value == x.g ? x.b - x.r : x.r - x.g;
    const float start = value == x.r ? 0.0f : value == x.g ? 2.0f : 4.0f;
    const float hue = difference / chroma + start + 6.0f * factor;
    return saturated({of_hue(value, chroma, hue + 5.0f), of_hue(value, chroma, hue + 3.0f),
                      of_hue(value, chroma, hue + 1.0f)});
}

// The steps of the color jitter, up to the contrast or all of them.
__device__ __forceinline__ Rgb jittered(const Clips& p, const uint32_t* words, uint32_t clip, Rgb x, bool is_before) {
    const float* const pivots = array<float>(p.pivots) + static_cast<uint64_t>(clip) * 3;
#pragma unroll 1
    for (uint32_t steps = words[STEPS]; steps != 0; steps >>= 8) {
        const uint32_t step = steps & 0xff;
        if (is_before && step == CONTRAST) {
            break;
        }
        x = jittered(x, step, __uint_as_float(words[FACTORS + step - 1]), pivots);
    }
    return x;
}

// A pixel before the blur.
template <class T>
__device__ __forceinline__ Rgb colored(const Clips& p, const uint32_t* words, uint32_t clip, const T* frame, Source down,
                                       uint32_t x) {
    const Rgb color = jittered(p, words, clip, resampled(p, words, frame, down, x), false);
    if ((words[FLAGS] & GRAYSCALE) != 0) {
        const float luma = fmaf(0.114f, color.b, fmaf(0.587f, color.g, 0.2989f * color.r));
        return {luma, luma, luma};
    }
    return color;
}

template <class T>
__device__ __forceinline__ const T* frame_of(const Clips& p, uint32_t clip, uint32_t frame) {
    const uint64_t first = static_cast<uint64_t>(frame) * 3 * p.height * p.width;
    return array<T>(p.clips) + clip * p.clip_stride + first;
}

template <class T>
__device__ __forceinline__ void store(const Clips& p, const uint32_t* words, uint32_t clip, uint32_t frame, uint32_t c,
                                      uint32_t pixel, float value) {
    const uint64_t plane = (static_cast<uint64_t>(clip) * p.frames + frame) * 3 + c;
    const float solarized = value >= __uint_as_float(words[THRESHOLD]) ? 1.0f - value : value;
    store_rounded(output<T>(p.outputs) + plane * p.out_height * p.out_width + pixel, solarized);
}

template <class T>
__device__ __forceinline__ void check(const Clips& p) {
    const uint32_t clip = blockIdx.y;
    const uint32_t elements = p.frames * 3 * p.height * p.width;
    const T* const values = array<T>(p.clips) + clip * p.clip_stride;
    bool is_valid = true;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < CLIP_CHUNK; i += TILE_THREADS) {
        const uint32_t at = blockIdx.x * CLIP_CHUNK + i;
        if (at < elements) {
            const float value = to_f32(values[at]);
            is_valid = is_valid && value >= 0.0f && value <= 1.0f;
        }
    }
    if (!is_valid) {
        atomicMin(output<uint32_t>(p.status), clip);
    }
}

template <class T>
__device__ __forceinline__ void sum(const Clips& p) {
    const uint32_t clip = blockIdx.z;
    const uint32_t* const words = words_of(p, clip);
    if ((words[FLAGS] & PIVOT) == 0) {
        return;
    }
    const uint32_t plane = p.out_height * p.out_width;
    Rgb sums = {0.0f, 0.0f, 0.0f};
    for (uint32_t i = threadIdx.x; i < CLIP_CHUNK; i += TILE_THREADS) {
        const uint32_t at = blockIdx.x * CLIP_CHUNK + i;
        if (at < p.frames * plane) {
            const uint32_t frame = at / plane;
            const uint32_t pixel = at - frame * plane;
            const uint32_t y = pixel / p.out_width;
            const Source down = source(y, words[CROP_HEIGHT], p.out_height);
            const Rgb before = resampled(p, words, frame_of<T>(p, clip, frame), down, pixel - y * p.out_width);
            const Rgb color = jittered(p, words, clip, before, true);
            sums = {sums.r + color.r, sums.g + color.g, sums.b + color.b};
        }
    }
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    const float of_block[3] = {sum_of_block(sums.r, of_warps), sum_of_block(sums.g, of_warps),
                               sum_of_block(sums.b, of_warps)};
    if (threadIdx.x == 0) {
#pragma unroll
        for (uint32_t c = 0; c < 3; ++c) {
            const uint64_t row = static_cast<uint64_t>(clip) * 3 + c;
            output<float>(p.partials)[row * p.chunk_count + blockIdx.x] = of_block[c];
        }
    }
}

template <class T>
__device__ __forceinline__ void plain(const Clips& p) {
    const uint32_t clip = blockIdx.z;
    const uint32_t* const words = words_of(p, clip);
    if ((words[FLAGS] & BLUR) != 0) {
        return;
    }
    const T* const frame = frame_of<T>(p, clip, blockIdx.y);
    for (uint32_t i = threadIdx.x; i < CLIP_PIXELS; i += TILE_THREADS) {
        const uint32_t pixel = blockIdx.x * CLIP_PIXELS + i;
        if (pixel < p.out_height * p.out_width) {
            const uint32_t y = pixel / p.out_width;
            const Source down = source(y, words[CROP_HEIGHT], p.out_height);
            const Rgb color = colored(p, words, clip, frame, down, pixel - y * p.out_width);
            store<T>(p, words, clip, blockIdx.y, 0, pixel, color.r);
            store<T>(p, words, clip, blockIdx.y, 1, pixel, color.g);
            store<T>(p, words, clip, blockIdx.y, 2, pixel, color.b);
        }
    }
}

// Σ_k w_k x of 2 radius + 1 numbers `step` apart around `middle`.
__device__ __forceinline__ float weighted(const float* middle, uint32_t step, const float* weights, uint32_t radius) {
    float value = weights[0] * *middle;
    for (uint32_t k = 1; k <= radius; ++k) {
        value = fmaf(weights[k], *(middle - k * step) + *(middle + k * step), value);
    }
    return value;
}

template <class T>
__device__ __forceinline__ void blurred(const Clips& p) {
    const uint32_t clip = blockIdx.z;
    const uint32_t* const words = words_of(p, clip);
    if ((words[FLAGS] & BLUR) == 0) {
        return;
    }
    // The tile with its borders: a plane of `side` × `side` a channel, then the weights.
    const uint32_t side = CLIP_TILE + 2 * p.radius;
    auto* const planes = reinterpret_cast<float*>(ptx::shared_memory());
    float* const weights = planes + 3 * side * side;
    for (uint32_t k = threadIdx.x; k <= p.radius; k += TILE_THREADS) {
        weights[k] = array<float>(p.weights)[clip * (p.radius + 1) + k];
    }
    const uint32_t tiles = (p.out_width + CLIP_TILE - 1) / CLIP_TILE;
    const uint32_t top = blockIdx.x / tiles * CLIP_TILE;
    const uint32_t left = blockIdx.x % tiles * CLIP_TILE;
    const T* const frame = frame_of<T>(p, clip, blockIdx.y);
    for (uint32_t row = threadIdx.x / 32; row < side; row += WARPS) {
        // Black beyond the edges; what lies before the first row or column is a large number here.
        const uint32_t y = top + row - p.radius;
        const Source down = source(y < p.out_height ? y : 0, words[CROP_HEIGHT], p.out_height);
        for (uint32_t column = lane_index(); column < side; column += 32) {
            const uint32_t x = left + column - p.radius;
            Rgb color = {0.0f, 0.0f, 0.0f};
            if (y < p.out_height && x < p.out_width) {
                color = colored(p, words, clip, frame, down, x);
            }
            float* const to = planes + row * side + column;
            to[0] = color.r;
            to[side * side] = color.g;
            to[2 * side * side] = color.b;
        }
    }
    __syncthreads();
    // Along rows, in place: a warp has a row, whose first 32 columns become the blurred ones.
    for (uint32_t row = threadIdx.x / 32; row < 3 * side; row += WARPS) {
        float* const to = planes + row * side + lane_index();
        const float value = weighted(to + p.radius, 1, weights, p.radius);
        __syncwarp();
        *to = value;
    }
    __syncthreads();
    for (uint32_t row = threadIdx.x / 32; row < CLIP_TILE; row += WARPS) {
        const uint32_t y = top + row;
        const uint32_t x = left + lane_index();
        if (y < p.out_height && x < p.out_width) {
#pragma unroll
            for (uint32_t c = 0; c < 3; ++c) {
                const float* const from = planes + (c * side + row + p.radius) * side + lane_index();
                const float value = __saturatef(weighted(from, side, weights, p.radius));
                store<T>(p, words, clip, blockIdx.y, c, y * p.out_width + x, value);
            }
        }
    }
}

}  // namespace

CONSONANCE_KERNEL(clips_check_f32, Clips, TILE_THREADS, 4) { check<float>(p); }
CONSONANCE_KERNEL(clips_check_f16, Clips, TILE_THREADS, 4) { check<f16>(p); }
CONSONANCE_KERNEL(clips_check_bf16, Clips, TILE_THREADS, 4) { check<bf16>(p); }
CONSONANCE_KERNEL(clips_sum_f32, Clips, TILE_THREADS, 4) { sum<float>(p); }
CONSONANCE_KERNEL(clips_sum_f16, Clips, TILE_THREADS, 4) { sum<f16>(p); }
CONSONANCE_KERNEL(clips_sum_bf16, Clips, TILE_THREADS, 4) { sum<bf16>(p); }

CONSONANCE_KERNEL(clips_pivot, Clips, TILE_THREADS, 4) {
    const uint32_t clip = blockIdx.x;
    const uint32_t c = threadIdx.x / 32;
    if (c >= 3 || (words_of(p, clip)[FLAGS] & PIVOT) == 0) {
        return;
    }
    const uint64_t row = static_cast<uint64_t>(clip) * 3 + c;
    const float* const partials = array<float>(p.partials) + row * p.chunk_count;
    float sum = 0.0f;
    for (uint32_t chunk = lane_index(); chunk < p.chunk_count; chunk += 32) {
        sum += partials[chunk];
    }
    sum = sum_of_warp(sum);
    if (lane_index() == 0) {
        output<float>(p.pivots)[row] = sum / static_cast<float>(p.frames * p.out_height * p.out_width);
    }
}

CONSONANCE_KERNEL(clips_plain_f32, Clips, TILE_THREADS, 4) { plain<float>(p); }
CONSONANCE_KERNEL(clips_plain_f16, Clips, TILE_THREADS, 4) { plain<f16>(p); }
CONSONANCE_KERNEL(clips_plain_bf16, Clips, TILE_THREADS, 4) { plain<bf16>(p); }
CONSONANCE_KERNEL(clips_blurred_f32, Clips, TILE_THREADS, 4) { blurred<float>(p); }
CONSONANCE_KERNEL(clips_blurred_f16, Clips, TILE_THREADS, 4) { blurred<f16>(p); }
CONSONANCE_KERNEL(clips_blurred_bf16, Clips, TILE_THREADS, 4) { blurred<bf16>(p); }
