// How a kernel is declared under simulation: its name, parameters and block size go into the list of the library.
#pragma once

#include <simt/hooks.h>

namespace simt {

struct Registration : Kernel {
    Registration(const char* name, size_t params_bytes, uint32_t threads, uint32_t blocks,
                 void (*entry)(const void*))
        : Kernel{name, params_bytes, threads, blocks, entry, nullptr} {
        add_kernel(this);
    }
};

}  // namespace simt

#define CONSONANCE_KERNEL(name, Params, threads, blocks)                                                   \
    static void name(const Params& p);                                                                     \
    static ::simt::Registration name##_registration(#name, sizeof(Params), threads, blocks,                \
                                                    [](const void* p) { name(*static_cast<const Params*>(p)); }); \
    static void name([[maybe_unused]] const Params& p)
