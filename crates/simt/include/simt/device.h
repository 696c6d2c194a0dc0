// What `kernels/include/ptx.cuh` includes when kernels are compiled for the CPU: CUDA's words, and the namespace
// `ptx` in plain C++. A word that is missing here does not exist for kernels, which is on purpose for `__shared__`
// variables (`ptx::shared_memory` is all of a block's shared memory) and for atomics on floats (their sums depend on
// the order).
#pragma once

#include <simt/builtins.h>
#include <simt/hooks.h>
#include <simt/kernel.h>
#include <simt/memory.h>
#include <simt/numbers.h>
#include <simt/ptx.h>
#include <simt/vectors.h>
#include <simt/warp.h>
