#!/usr/bin/env bash
# Installs the CUDA 13.0 compiler for machines without a toolkit, and what Candle's CUDA backend links with, into the
# git-ignored .cuda/ (about 500 MB), from the wheels that NVIDIA publishes for pip. Nothing outside this folder and
# .cargo/config.toml changes; `rm -rf .cuda .cargo` takes all of it away.
#
#   tools/cuda-home.sh            installs what is missing; a machine with a toolkit needs nothing of it
#   tools/cuda-home.sh --force    installs although there is a toolkit
#   tools/cuda-home.sh --check    prints what is there; succeeds when the kernels can be compiled
#
# .cuda/ is laid out as a CUDA_HOME: nvcc, its headers, the real cudart and nvrtc, and in lib/stubs libraries that only
# answer with an error, for the driver and the mathematical libraries, which the machine that runs the programs has.
# .cargo/config.toml then tells every cargo command in this folder about it.
set -euo pipefail
cd "$(dirname "$0")/.."

home=.cuda
marker="# Written by tools/cuda-home.sh; remove this file and it is forgotten."
wheels=(
    nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
    nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvrtc==13.0.88
)

say() { printf 'cuda-home: %s\n' "$*"; }
fail() { printf 'cuda-home: %s\n' "$*" >&2; exit 1; }

# The nvcc of a real toolkit: what build.rs would find without .cuda/.
toolkit_nvcc() {
    local path
    for path in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        if [ -n "$path" ] && [ -x "$path" ] && [[ $(realpath "$path") != $(realpath -m "$home")/* ]]; then
            echo "$path"
            return
        fi
    done
}

version_of() { "$1" --version | sed -n 's/.*release \(.*\)$/\1/p'; }

check() {
    local toolkit found=1
    toolkit=$(toolkit_nvcc)
    [ -z "$toolkit" ] || { say "toolkit: $toolkit, $(version_of "$toolkit")"; found=0; }
    if [ -x "$home/bin/nvcc" ]; then
        say "$home: nvcc $(version_of "$home/bin/nvcc")"
        say "$home/lib/stubs: $(cd "$home/lib/stubs" 2>/dev/null && echo lib*.so || echo 'nothing')"
        found=0
    else
        say "$home: no nvcc"
    fi
    if [ -e .cargo/config.toml ] && [ "$(head -n 1 .cargo/config.toml)" = "$marker" ]; then
        say ".cargo/config.toml: written by this script"
    elif [ -e .cargo/config.toml ]; then
        say ".cargo/config.toml: not written by this script"
    else
        say ".cargo/config.toml: none"
    fi
    [ "$found" -eq 0 ] || say "no CUDA compiler: tools/cuda-home.sh installs one"
    return "$found"
}

install_wheels() {
    local stamp="${wheels[*]}"
    if [ "$(cat "$home/wheels.installed" 2>/dev/null)" = "$stamp" ]; then
        say "the compiler is there already: $(version_of "$home/bin/nvcc")"
        return
    fi
    python3 -m pip --version > /dev/null 2>&1 || fail "needs python3 with pip to fetch NVIDIA's wheels and there is none: \
install python3-pip, or the CUDA 13 toolkit, which makes this script unnecessary"
    say "fetching ${#wheels[@]} wheels of CUDA 13.0 (190 MB; an interrupted run goes on where it stopped)"
    local wheel
    for wheel in "${wheels[@]}"; do
        # One by one, so that what has been fetched stays when the next one fails.
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --dest "$home/wheels" "$wheel" || fail "pip could not fetch $wheel; run this again when the index can be reached"
    done
    say "unpacking"
    rm -rf "$home/packages" "$home/packages.partial"
    python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --root-user-action=ignore \
        --target "$home/packages.partial" "$home"/wheels/*.whl
    mv "$home/packages.partial" "$home/packages"

    local cuda=packages/nvidia/cu13 name
    mkdir -p "$home/lib/stubs"
    for name in bin include nvvm; do ln -sfn "$cuda/$name" "$home/$name"; done
    # These two are real: cudart runs code before main.
    for name in cudart nvrtc; do
        ln -sf "../$cuda/lib/lib$name.so.13" "$home/lib/lib$name.so.13"
        ln -sf "lib$name.so.13" "$home/lib/lib$name.so"
    done
    for name in "$home/$cuda"/lib/libnvrtc-builtins.so.*; do ln -sf "../$cuda/lib/${name##*/}" "$home/lib/"; done
    "$home/bin/nvcc" --version > /dev/null || fail "$home/bin/nvcc does not run on this machine"
    rm -rf "$home/wheels"
    echo "$stamp" > "$home/wheels.installed"
    say "installed nvcc $(version_of "$home/bin/nvcc")"
}

build_stubs() {
    command -v "${CC:-cc}" > /dev/null || fail "needs a C compiler for the stub libraries: install gcc or clang, or set CC"
    command -v cargo > /dev/null || fail "needs cargo, to find the names that the stub libraries must have"
    say "stub libraries in $home/lib/stubs"
    python3 tools/cuda_stubs.py --out "$home/lib/stubs" --compiler "${CC:-cc}"
}

write_config() {
    local config=.cargo/config.toml target
    if [ -e "$config" ] && [ "$(head -n 1 "$config")" != "$marker" ]; then
        say "$config is yours and stays as it is; the commands need CUDA_HOME=$PWD/$home CUDA_COMPUTE_CAP=90"
        say "CUDARC_CUDA_VERSION=13000, and tools/run-with-cuda.sh as the runner"
        return
    fi
    target=$(rustc -vV | sed -n 's/^host: //p')
    mkdir -p .cargo
    cat > "$config.partial" << EOF
$marker
[env]
CUDA_HOME = { value = ".cuda", relative = true }
# What Candle's kernels are compiled for, and ours where CONSONANCE_CUDA_ARCHS does not say otherwise. Another value
# compiles Candle's kernels again, for many minutes.
CUDA_COMPUTE_CAP = "90"
CUDARC_CUDA_VERSION = "13000"

[target.$target]
runner = "tools/run-with-cuda.sh"
EOF
    # An unchanged file keeps its time.
    if cmp -s "$config.partial" "$config"; then rm "$config.partial"; else mv "$config.partial" "$config"; fi
    say "$config tells cargo about it"
}

force=0
case "${1:-}" in
"") ;;
--force) force=1 ;;
--check) check && exit 0 || exit 1 ;;
*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
[ "$(uname -sm)" = "Linux x86_64" ] || fail "NVIDIA's wheels used here are for Linux on x86-64; install the CUDA 13 toolkit"
toolkit=$(toolkit_nvcc)
if [ -n "$toolkit" ] && [ "$force" -eq 0 ]; then
    say "$toolkit is there ($(version_of "$toolkit")); nothing to install (--force installs all the same)"
    exit 0
fi
install_wheels
build_stubs
write_config
say "done; next: cargo test --features cuda, or --features candle-cuda"
