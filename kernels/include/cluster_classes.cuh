// Classes whose rows are streamed: what the kernels of the chunks and those of the classes and clusters share.
#pragma once

#include "clusters.cuh"

constexpr uint32_t DONE = 1;
constexpr uint32_t HAS_EMPTY = 2;

// A class, its rows by position and its clusters by number.
struct Class {
    uint32_t id;
    uint32_t first;
    uint32_t end;
    uint32_t base;
    uint32_t clusters;

    __device__ __forceinline__ Class(const Clusters& p, uint32_t id)
        : id(id),
          first(array<uint32_t>(p.first_rows)[id]),
          end(array<uint32_t>(p.end_rows)[id]),
          base(array<uint32_t>(p.first_clusters)[id]),
          clusters(array<uint32_t>(p.end_clusters)[id] - base) {}

    __device__ __forceinline__ uint32_t state(const Clusters& p) const { return array<uint32_t>(p.states)[id]; }
    __device__ __forceinline__ bool is_fused() const { return clusters <= FUSED_CLUSTERS; }
};

__device__ __forceinline__ double* chunk_partials(const Clusters& p, uint32_t chunk) {
    return output<double>(p.partials) + static_cast<uint64_t>(array<uint32_t>(p.chunk_places)[chunk]) * p.dim;
}

__device__ __forceinline__ const float* shift_of(const Clusters& p, const Class& own) {
    return array<float>(p.shifts) + static_cast<uint64_t>(own.id) * p.dim;
}
