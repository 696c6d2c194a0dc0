#!/usr/bin/env bash
# Packs the tests and benches that use a CUDA device for a machine with a GPU and without Rust, nvcc or a network.
#
#   tools/gpu-bundle.sh              target/consonance-gpu.tar.gz, with the feature `cuda`: needs a driver there
#   tools/gpu-bundle.sh --candle     also those of `candle-cuda`: need CUDA 13's libraries there
#
# There: tar xf consonance-gpu.tar.gz && consonance-gpu/run.sh, which writes consonance-gpu/report/report.md.
#
# A test or bench belongs to it when its source asks for a device: CudaExecutor or device_or_skip.
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

# The targets in tests/ or benches/ that ask for a device; a folder beside belongs to the file of its name.
device_targets() {
    local root=$1 file stem
    for file in "$root"/*.rs; do
        stem=$(basename "$file" .rs)
        if grep -qrE 'CudaExecutor|device_or_skip' "$file" $([ ! -d "$root/$stem" ] || echo "$root/$stem"); then
            echo "$stem"
        fi
    done
}

# Builds the targets of a kind with a feature and copies their binaries: build KIND FEATURE FOLDER PROFILE TARGET...
build() {
    local kind=$1 feature=$2 to=$3 profile=$4 target arguments=()
    shift 4
    for target in "$@"; do arguments+=("--$kind" "$target"); done
    # Machine code for every device, and no build without kernels.
    CONSONANCE_REQUIRE_NVCC=1 CONSONANCE_CUDA_ARCHS=80,89,90a CONSONANCE_NVCC_FLAGS=-lineinfo \
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

mapfile -t tests < <(device_targets tests | grep -v '^candle_')
mapfile -t candle_tests < <(device_targets tests | grep '^candle_')
mapfile -t benches < <(device_targets benches)
[ "${#tests[@]}" -gt 0 ] || fail "no file in tests/ asks for a device"
build test cuda "$folder/tests" dev "${tests[@]}"
[ "${#benches[@]}" -eq 0 ] || build bench cuda "$folder/benches" bench "${benches[@]}"
[ "$candle" -eq 0 ] || build test candle-cuda "$folder/tests" dev "${candle_tests[@]}"

cp tools/gpu-bundle/run.sh "$folder/run.sh"
mkdir "$folder/peers"
cp benches/peers/device.py benches/peers/device.json benches/peers/device-requirements.txt "$folder/peers/"
{
    echo "commit $(git rev-parse HEAD 2> /dev/null || echo unknown)$(git diff --quiet HEAD 2> /dev/null || echo ' with changes')"
    echo "rustc $(rustc --version)"
} > "$folder/built.txt"
# What run.sh must find.
(cd "$folder" && find tests benches -type f | sort > binaries.txt)

tar --sort=name --owner=0 --group=0 -C "$target" -cf - "$name" | gzip -9 > "$folder.tar.gz"
bytes=$(stat -c %s "$folder.tar.gz")
[ "$bytes" -lt "$most_bytes" ] || fail "$folder.tar.gz has $bytes bytes, and at most $most_bytes are of use"
echo "gpu-bundle: $folder.tar.gz, $((bytes / 1000)) kB, $(wc -l < "$folder/binaries.txt") binaries"
