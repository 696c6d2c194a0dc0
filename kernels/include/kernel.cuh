// How a kernel is declared.
//
// A kernel takes one struct of `abi.h` by value and nothing else, so the host describes every launch alike: an
// entry name, a grid, and the bytes of the struct.
//
//   CONSONANCE_KERNEL(neighbors_rank_f32, NeighborsRank, 128, 2) { ... uses p ... }
//
// `threads` is the exact block size, `blocks` the blocks that must fit on a multiprocessor at once (it bounds the
// registers). Under simt the same line registers the kernel by its name.
#pragma once

#include "abi.h"
#include "ptx.cuh"

#ifndef CONSONANCE_SIMT
#define CONSONANCE_KERNEL(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)
#endif
