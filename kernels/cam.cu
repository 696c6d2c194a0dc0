// cam: class activation maps, images blended by a mask, and backgrounds without the object.
//
//   sum         S = max(0, Σ_k g_k A^k) / (hw) of every pixel of the activations, g with or without its negative numbers: a warp
//               has every eighth channel, a lane a pixel, and the warps' sums are added in their order
//   map         S stretched to H × W by bicubic interpolation (along the rows into shared memory, then down the columns), and
//               (x − min)/(max − min + 1e-20): computed twice, once for the range and once to be written
//   blend       x (1 − m) + y m
//   rectangle   the bounding rectangle of {m ≥ threshold}, and the largest strip beside it
//   tile        the image with its rectangle covered by the tiled strip
//
// The interpolation is a middle value and weighed differences to it, so that a constant map stays constant to the last bit
// and its range is 0.
//
// Grids: sum: images × 32 pixels; map, rectangle: a block an image; blend, tile: images × CAM_THREADS chunks of 16 bytes (tile:
// pixels). Traffic: every input once (tile: the mask not at all), every output once; S is written and read.
// Shared memory (shared_bytes in src/cuda/cam.rs): sum: CAM_THREADS numbers; map: h × CAM_THREADS numbers, H × 16 bytes, two
// numbers a warp; rectangle: four numbers a warp.
#include "dtype.cuh"
#include "floats.cuh"
#include "kernel.cuh"
#include "pairs.cuh"
#include "warp.cuh"

namespace {

constexpr uint32_t WARPS = CAM_THREADS / 32;
// Above this a sum could overflow on its way to a map.
constexpr float LARGEST_SUM = 0x1p120f;
constexpr float SMALLEST_RANGE = 1e-20f;
// Of the cubic: PyTorch's.
constexpr float CUBIC = -0.75f;

// Words of the status of maps, and of blends and backgrounds.
enum MapWord { GRADIENTS, ACTIVATIONS };
enum Word { IMAGES, OTHERS, MASKS };

// Reports what a thread has found wrong: a bit a word. Once at its end, so that nothing stands between its loads.
__device__ __forceinline__ void report(uint64_t status, uint32_t found, uint32_t image) {
    for (uint32_t left = found; left != 0; left &= left - 1) {
        atomicMin(output<uint32_t>(status) + __ffs(static_cast<int>(left)) - 1, image);
    }
}

__device__ __forceinline__ uint32_t wrong(uint32_t word, bool is_right) { return is_right ? 0 : 1u << word; }

template <class T>
__device__ __forceinline__ void sum(const CamSum& p) {
    const uint32_t image = blockIdx.x;
    const uint32_t pixel = blockIdx.y * 32 + lane_index();
    const uint32_t warp = threadIdx.x / 32;
    const T* const activations = array<T>(p.activations) + image * p.activation_stride;
    const float* const gradients = array<float>(p.gradients) + static_cast<uint64_t>(image) * p.channels;
    // Lanes beyond the last pixel do as it does.
    const T* const column = activations + min(pixel, p.pixels - 1);
    uint32_t found = 0;
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t k = warp; k < p.channels; k += WARPS) {
        const float g = gradients[k];
        found |= wrong(GRADIENTS, is_finite(g));
        // 0 · ∞ is NaN: what has no weight is looked at, too.
        const float a = to_f32(column[static_cast<uint64_t>(k) * p.pixels]);
        sum = fmaf(p.keep_negative != 0 ? g : fmaxf(g, 0.0f), a, sum);
    }
    report(p.status, found, image);
    auto* const of_warps = reinterpret_cast<float*>(ptx::shared_memory());
    of_warps[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || pixel >= p.pixels) {
        return;
    }
    for (uint32_t other = 1; other < WARPS; ++other) {
        sum += of_warps[other * 32 + lane_index()];
    }
    // A NaN is not below the limit.
    report(p.status, wrong(ACTIVATIONS, fabsf(sum) <= LARGEST_SUM), image);
    output<float>(p.sums)[static_cast<uint64_t>(image) * p.pixels + pixel] =
        fmaxf(sum, 0.0f) / static_cast<float>(p.pixels);
}

// Where an output pixel lies, and what the pixels beside the one at or before it weigh.
struct __align__(16) Taps {
    int first;
    float before;
    float after;
    float last;
};

// The position (at + ½) input/output − ½ is a quotient of integers, so its whole part is exact and its rest rounded once.
__device__ __forceinline__ Taps taps_of(uint32_t at, uint32_t input, uint32_t out) {
    const int64_t step = 2 * static_cast<int64_t>(out);
    // With a whole pixel more the quotient is not negative.
    const int64_t place = (2 * static_cast<int64_t>(at) + 1) * input - out + step;
    const int64_t first = place / step;
    const float t = static_cast<float>(place - first * step) / static_cast<float>(step);
    const auto near = [](float x) { return fmaf(fmaf(CUBIC + 2.0f, x, -(CUBIC + 3.0f)), x * x, 1.0f); };
    const auto far = [](float x) { return fmaf(fmaf(x - 5.0f, x, 8.0f), x, -4.0f) * CUBIC; };
    return {static_cast<int>(first) - 1, far(1.0f + t), near(1.0f - t), far(2.0f - t)};
}

__device__ __forceinline__ float mixed(const Taps& taps, const float (&x)[4]) {
    const float sum = fmaf(taps.last, x[3] - x[1], x[1]);
    return fmaf(taps.before, x[0] - x[1], fmaf(taps.after, x[2] - x[1], sum));
}

__device__ __forceinline__ uint32_t clamped(int at, uint32_t size) {
    return static_cast<uint32_t>(min(max(at, 0), static_cast<int>(size) - 1));
}

__device__ __forceinline__ float least_of_warp(float value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        value = fminf(value, __shfl_xor_sync(ALL_LANES, value, step));
    }
    return value;
}

// A map's columns from `first` on along the rows: one a thread, `[h, CAM_THREADS]`.
__device__ __forceinline__ void stretch_rows(const CamMap& p, const float* sums, uint32_t column, float* wide) {
    if (column >= p.width) {
        return;
    }
    const Taps taps = taps_of(column, p.input_width, p.width);
    for (uint32_t y = 0; y < p.input_height; ++y) {
        const float* const line = sums + static_cast<uint64_t>(y) * p.input_width;
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i] = line[clamped(taps.first - 1 + i, p.input_width)];
        }
        wide[y * CAM_THREADS + threadIdx.x] = mixed(taps, x);
    }
}

// Calls visit(row, value) for all rows of a column.
template <class Visit>
__device__ __forceinline__ void stretch_column(const CamMap& p, const float* wide, const Taps* rows, Visit&& visit) {
    // Many rows lie between the same four: these are read once.
    int held = rows[0].first - 1;
    float x[4];
    for (uint32_t y = 0; y < p.height; ++y) {
        const Taps taps = rows[y];
        if (taps.first != held) {
            held = taps.first;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x[i] = wide[clamped(held - 1 + i, p.input_height) * CAM_THREADS + threadIdx.x];
            }
        }
        visit(y, mixed(taps, x));
    }
}

__device__ __forceinline__ void map(const CamMap& p) {
    const uint32_t image = blockIdx.x;
    auto* const rows = reinterpret_cast<Taps*>(ptx::shared_memory());
    auto* const wide = reinterpret_cast<float*>(rows + p.height);
    auto* const ranges = wide + p.input_height * CAM_THREADS;
    for (uint32_t y = threadIdx.x; y < p.height; y += CAM_THREADS) {
        rows[y] = taps_of(y, p.input_height, p.height);
    }
    const float* const sums =
        array<float>(p.sums) + static_cast<uint64_t>(image) * p.input_height * p.input_width;
    // Columns are a thread's own, in shared memory, too: only the table of the rows is others'.
    __syncthreads();
    float least = INFINITY;
    float most = -INFINITY;
    for (uint32_t first = 0; first < p.width; first += CAM_THREADS) {
        const uint32_t column = first + threadIdx.x;
        stretch_rows(p, sums, column, wide);
        if (column < p.width) {
            stretch_column(p, wide, rows, [&](uint32_t, float value) {
                least = fminf(least, value);
                most = fmaxf(most, value);
            });
        }
    }
    least = least_of_warp(least);
    most = -least_of_warp(-most);
    if (lane_index() == 0) {
        ranges[threadIdx.x / 32] = least;
        ranges[WARPS + threadIdx.x / 32] = most;
    }
    __syncthreads();
    for (uint32_t warp = 0; warp < WARPS; ++warp) {
        least = fminf(least, ranges[warp]);
        most = fmaxf(most, ranges[WARPS + warp]);
    }
    const float range = most - least + SMALLEST_RANGE;
    float* const out = output<float>(p.maps) + static_cast<uint64_t>(image) * p.height * p.width;
    for (uint32_t first = 0; first < p.width; first += CAM_THREADS) {
        const uint32_t column = first + threadIdx.x;
        // A single round of columns is still there.
        if (p.width > CAM_THREADS) {
            stretch_rows(p, sums, column, wide);
        }
        if (column < p.width) {
            stretch_column(p, wide, rows, [&](uint32_t y, float value) {
                out[static_cast<uint64_t>(y) * p.width + column] = (value - least) / range;
            });
        }
    }
}

// Elements of a chunk, in storage order.
template <class T, int COUNT>
__device__ __forceinline__ void load_all(float (&values)[COUNT], const T* from) {
    static_assert(COUNT % CHUNK<T> == 0, "whole chunks");
#pragma unroll
    for (int i = 0; i < COUNT; i += CHUNK<T>) {
        float chunk[CHUNK<T>];
        widen_chunk(chunk, ptx::load_16(from + i), from);
#pragma unroll
        for (int j = 0; j < CHUNK<T>; ++j) {
            values[i + j] = chunk[j];
        }
    }
}

__device__ __forceinline__ void store_chunk(float* to, const float (&values)[4]) {
    ptx::store_16(to, {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                       __float_as_uint(values[3])});
}
__device__ __forceinline__ void store_chunk(f16* to, const float (&values)[8]) {
    ptx::store_16(to, {ptx::f32_to_f16_pair(values[0], values[1]), ptx::f32_to_f16_pair(values[2], values[3]),
                       ptx::f32_to_f16_pair(values[4], values[5]), ptx::f32_to_f16_pair(values[6], values[7])});
}
__device__ __forceinline__ void store_chunk(bf16* to, const float (&values)[8]) {
    ptx::store_16(to, {ptx::f32_to_bf16_pair(values[0], values[1]), ptx::f32_to_bf16_pair(values[2], values[3]),
                       ptx::f32_to_bf16_pair(values[4], values[5]), ptx::f32_to_bf16_pair(values[6], values[7])});
}

// One pixel of one channel.
__device__ __forceinline__ float blended(float x, float y, float m, uint32_t& found) {
    found |= wrong(IMAGES, is_finite(x)) | wrong(OTHERS, is_finite(y));
    return fmaf(y, m, x * (1.0f - m));
}

__device__ __forceinline__ uint32_t wrong_mask(float m) { return wrong(MASKS, m >= 0.0f && m <= 1.0f); }

template <class T>
__device__ __forceinline__ void blend(const CamBlend& p) {
    const uint32_t image = blockIdx.x;
    const T* const images = array<T>(p.images) + image * p.image_stride;
    const T* const others = array<T>(p.others) + image * p.other_stride;
    const float* const mask = array<float>(p.mask) + static_cast<uint64_t>(image) * p.pixels;
    T* const out = output<T>(p.out) + static_cast<uint64_t>(image) * p.channels * p.pixels;
    const uint64_t begin = static_cast<uint64_t>(blockIdx.y) * CAM_THREADS * CHUNK<T>;
    uint32_t found = 0;
    if (p.aligned != 0) {
        const uint64_t pixel = begin + threadIdx.x * CHUNK<T>;
        if (pixel >= p.pixels) {
            return;
        }
        float m[CHUNK<T>];
        load_all(m, mask + pixel);
#pragma unroll
        for (int i = 0; i < CHUNK<T>; ++i) {
            found |= wrong_mask(m[i]);
        }
        for (uint32_t channel = 0; channel < p.channels; ++channel) {
            const uint64_t at = static_cast<uint64_t>(channel) * p.pixels + pixel;
            float x[CHUNK<T>];
            float y[CHUNK<T>];
            load_all(x, images + at);
            if (p.is_color != 0) {
                const float color = to_f32(others[channel]);
#pragma unroll
                for (int i = 0; i < CHUNK<T>; ++i) {
                    y[i] = color;
                }
            } else {
                load_all(y, others + at);
            }
#pragma unroll
            for (int i = 0; i < CHUNK<T>; ++i) {
                x[i] = blended(x[i], y[i], m[i], found);
            }
            store_chunk(out + at, x);
        }
        report(p.status, found, image);
        return;
    }
    for (uint32_t i = 0; i < CHUNK<T>; ++i) {
        const uint64_t pixel = begin + i * CAM_THREADS + threadIdx.x;
        if (pixel >= p.pixels) {
            break;
        }
        const float m = mask[pixel];
        found |= wrong_mask(m);
        for (uint32_t channel = 0; channel < p.channels; ++channel) {
            const uint64_t at = static_cast<uint64_t>(channel) * p.pixels + pixel;
            const float y = to_f32(others[p.is_color != 0 ? channel : at]);
            store_rounded(out + at, blended(to_f32(images[at]), y, m, found));
        }
    }
    report(p.status, found, image);
}

// Rows top..bottom, columns left..right.
struct Rectangle {
    uint32_t top;
    uint32_t left;
    uint32_t bottom;
    uint32_t right;

    __device__ __forceinline__ uint32_t area() const { return (bottom - top) * (right - left); }
};

__device__ __forceinline__ void take_larger(Rectangle& best, const Rectangle& other) {
    if (other.area() > best.area()) {
        best = other;
    }
}

__device__ __forceinline__ void rectangle(const CamBackground& p) {
    const uint32_t image = blockIdx.x;
    const float* const mask = array<float>(p.mask) + static_cast<uint64_t>(image) * p.height * p.width;
    const float threshold = __uint_as_float(p.threshold);
    // The least row and column, and the least of what is left behind the largest of each.
    uint32_t bounds[4] = {NONE, NONE, NONE, NONE};
    uint32_t found = 0;
    for (uint32_t pixel = threadIdx.x; pixel < p.height * p.width; pixel += CAM_THREADS) {
        const float m = mask[pixel];
        found |= wrong_mask(m);
        if (m >= threshold) {
            const uint32_t y = pixel / p.width;
            const uint32_t x = pixel % p.width;
            bounds[0] = min(bounds[0], y);
            bounds[1] = min(bounds[1], x);
            bounds[2] = min(bounds[2], p.height - 1 - y);
            bounds[3] = min(bounds[3], p.width - 1 - x);
        }
    }
    report(p.status, found, image);
    auto* const of_warps = reinterpret_cast<uint32_t*>(ptx::shared_memory());
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            bounds[i] = min(bounds[i], __shfl_xor_sync(ALL_LANES, bounds[i], step));
        }
        if (lane_index() == 0) {
            of_warps[i * WARPS + threadIdx.x / 32] = bounds[i];
        }
    }
    __syncthreads();
    if (threadIdx.x != 0) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        for (uint32_t warp = 0; warp < WARPS; ++warp) {
            bounds[i] = min(bounds[i], of_warps[i * WARPS + warp]);
        }
    }
    Rectangle hole = {0, 0, 0, 0};
    if (bounds[0] != NONE) {
        const uint32_t less = p.is_short != 0 ? 1 : 0;
        hole = {bounds[0], bounds[1], p.height - bounds[2] - less, p.width - bounds[3] - less};
    }
    if (hole.area() == 0) {
        hole = {0, 0, 0, 0};
    }
    Rectangle strip = {0, 0, 0, 0};
    if (hole.area() != 0) {
        take_larger(strip, {0, 0, hole.top, p.width});
        take_larger(strip, {0, 0, p.height, hole.left});
        take_larger(strip, {0, hole.right, p.height, p.width});
        take_larger(strip, {hole.bottom, 0, p.height, p.width});
    }
    output<Rectangle>(p.rectangles)[image] = hole;
    output<Rectangle>(p.strips)[image] = strip;
    output<unsigned char>(p.found)[image] = strip.area() != 0 ? 1 : 0;
}

template <class T>
__device__ __forceinline__ void tile(const CamBackground& p) {
    const uint32_t image = blockIdx.x;
    const uint64_t pixel = static_cast<uint64_t>(blockIdx.y) * CAM_THREADS + threadIdx.x;
    const uint32_t pixels = p.height * p.width;
    if (pixel >= pixels) {
        return;
    }
    const Rectangle hole = array<Rectangle>(p.rectangles)[image];
    const Rectangle strip = array<Rectangle>(p.strips)[image];
    const uint32_t y = static_cast<uint32_t>(pixel) / p.width;
    const uint32_t x = static_cast<uint32_t>(pixel) % p.width;
    uint64_t source = pixel;
    if (strip.area() != 0 && y >= hole.top && y < hole.bottom && x >= hole.left && x < hole.right) {
        const uint32_t v = strip.top + y % (strip.bottom - strip.top);
        source = static_cast<uint64_t>(v) * p.width + strip.left + x % (strip.right - strip.left);
    }
    const T* const from = array<T>(p.images) + image * p.image_stride;
    T* const out = output<T>(p.out) + static_cast<uint64_t>(image) * p.channels * pixels;
    uint32_t found = 0;
    for (uint32_t channel = 0; channel < p.channels; ++channel) {
        const uint64_t first = static_cast<uint64_t>(channel) * pixels;
        // What is covered is looked at, too.
        found |= wrong(IMAGES, is_finite(to_f32(from[first + pixel])));
        out[first + pixel] = from[first + source];
    }
    report(p.status, found, image);
}

}  // namespace

CONSONANCE_KERNEL(cam_sum_f32, CamSum, CAM_THREADS, 4) { sum<float>(p); }
CONSONANCE_KERNEL(cam_sum_f16, CamSum, CAM_THREADS, 4) { sum<f16>(p); }
CONSONANCE_KERNEL(cam_sum_bf16, CamSum, CAM_THREADS, 4) { sum<bf16>(p); }
CONSONANCE_KERNEL(cam_map, CamMap, CAM_THREADS, 4) { map(p); }
CONSONANCE_KERNEL(cam_blend_f32, CamBlend, CAM_THREADS, 4) { blend<float>(p); }
CONSONANCE_KERNEL(cam_blend_f16, CamBlend, CAM_THREADS, 4) { blend<f16>(p); }
CONSONANCE_KERNEL(cam_blend_bf16, CamBlend, CAM_THREADS, 4) { blend<bf16>(p); }
CONSONANCE_KERNEL(cam_rectangle, CamBackground, CAM_THREADS, 4) { rectangle(p); }
CONSONANCE_KERNEL(cam_tile_f32, CamBackground, CAM_THREADS, 4) { tile<float>(p); }
CONSONANCE_KERNEL(cam_tile_f16, CamBackground, CAM_THREADS, 4) { tile<f16>(p); }
CONSONANCE_KERNEL(cam_tile_bf16, CamBackground, CAM_THREADS, 4) { tile<bf16>(p); }
