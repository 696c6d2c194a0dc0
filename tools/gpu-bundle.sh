#!/usr/bin/env bash
# Packs the tests and benches that use a CUDA device for a machine with a GPU and without Rust, nvcc or a network.
#
#   tools/gpu-bundle.sh              target/consonance-gpu.tar.gz, with the feature `cuda`: needs a driver there
#   tools/gpu-bundle.sh --candle     also those of `candle-cuda`: need CUDA 13's libraries there
#
# There: tar xf consonance-gpu.tar.gz && consonance-gpu/run.sh, which writes consonance-gpu/report/report.md.
#
# One test program and one bench program: each carries all kernels, so a program a family would be ten times as large.
set -euo pipefail
cd "$(dirname "$0")/.."

most_bytes=60000000
name=consonance-gpu
candle=0
case "${1:-}" in
"") ;;
--candle) candle=1 ;;
*) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac

fail() { printf 'gpu-bundle: %s\n' "$*" >&2; exit 1; }
for tool in cargo python3 strip tar gzip; do
    command -v "$tool" > /dev/null || fail "needs $tool"
done
[ "$(uname -sm)" = "Linux x86_64" ] || fail "must be built on Linux on x86-64, as the machine that it is for"

target=${CARGO_TARGET_DIR:-target}
folder=$target/$name
rm -rf "$folder"
mkdir -p "$folder/tests" "$folder/benches"

# Builds the targets of a kind with a feature and copies their binaries: build KIND FEATURE FOLDER PROFILE TARGET...
build() {
    local kind=$1 feature=$2 to=$3 profile=$4 target arguments=()
    shift 4
    for target in "$@"; do arguments+=("--$kind" "$target"); done
    # Machine code for every device, and no build without kernels. Lines are what compute-sanitizer names.
    CONSONANCE_REQUIRE_NVCC=1 CONSONANCE_CUDA_ARCHS=80,89,90a \
        CONSONANCE_NVCC_FLAGS=$([ "$kind" != test ] || echo -lineinfo) \
        cargo test --locked --workspace --features "$feature" --profile "$profile" --no-run \
        --message-format=json "${arguments[@]}" > "$folder/messages.json"
    python3 - "$folder/messages.json" "$to" "$kind" "$@" << 'EOF'
import json, pathlib, shutil, subprocess, sys

messages, to, kind, *targets = sys.argv[1:]
found = {}
for line in pathlib.Path(messages).read_text(encoding="utf-8").splitlines():
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        if kind in message["target"]["kind"]:
            found[message["target"]["name"]] = message["executable"]
missing = sorted(set(targets) - set(found))
if missing:
    sys.exit(f"gpu-bundle: cargo built no binary for the {kind} {', '.join(missing)}")
for target in targets:
    binary = pathlib.Path(to) / target
    shutil.copy(found[target], binary)
    subprocess.run(["strip", binary], check=True)
    print(f"gpu-bundle: {binary.parent.name}/{target}, {binary.stat().st_size / 1e6:.1f} MB")
EOF
    rm "$folder/messages.json"
}

build test cuda "$folder/tests" dev cuda
build bench cuda "$folder/benches" bench cuda
[ "$candle" -eq 0 ] || build test candle-cuda "$folder/tests" dev candle_cuda

cp tools/gpu-bundle/run.sh "$folder/run.sh"
mkdir "$folder/peers"
cp benches/peers/device.py benches/peers/device.json benches/peers/device-requirements.txt "$folder/peers/"
{
    echo "commit $(git rev-parse HEAD 2> /dev/null || echo unknown)$(git diff --quiet HEAD 2> /dev/null || echo ' with changes')"
    echo "rustc $(rustc --version)"
} > "$folder/built.txt"
# What run.sh must find, and the families of the benches, each of which has a time of its own.
sed -n 's/^    ("\([a-z_]*\)", .*::bench),$/\1/p' benches/cuda/main.rs > "$folder/families.txt"
[ -s "$folder/families.txt" ] || fail "benches/cuda/main.rs names no family"
(cd "$folder" && find tests benches -type f | sort > binaries.txt)

tar --sort=name --owner=0 --group=0 -C "$target" -cf - "$name" | gzip -9 > "$folder.tar.gz"
bytes=$(stat -c %s "$folder.tar.gz")
[ "$bytes" -lt "$most_bytes" ] || fail "$folder.tar.gz has $bytes bytes, and at most $most_bytes are of use"
echo "gpu-bundle: $folder.tar.gz, $((bytes / 1000)) kB, $(wc -l < "$folder/binaries.txt") binaries"
