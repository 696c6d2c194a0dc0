// The parameter structs of all kernels, shared with the host: `src/cuda/abi.rs` repeats them field by field, and a
// test compares the sizes and offsets of both sides. Fields go from wide to narrow, so that there is no padding.
// Addresses are 64-bit integers here, so that the layout is the same wherever the kernels are compiled.
#pragma once

#include <cstdint>
