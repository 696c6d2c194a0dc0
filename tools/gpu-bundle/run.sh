#!/usr/bin/env bash
# Runs consonance's tests and benches on the GPU of this machine and writes one report.
#
#   run.sh [PART...] [--out FOLDER]     parts: tests sanitizer benches peers; all of them when none is named
#
# Needs an NVIDIA driver; compute-sanitizer and python3 with torch are used where they are. Exit status 0 only when
# everything that ran passed and nothing was skipped for want of a device.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

out=report
parts=()
while [ $# -gt 0 ]; do
    case "$1" in
    --out) out=${2:?--out needs a folder}; shift ;;
    tests | sanitizer | benches | peers) parts+=("$1") ;;
    *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' run.sh; exit 2 ;;
    esac
    shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(tests sanitizer benches peers)

fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }
while read -r binary; do
    [ -x "$binary" ] || fail "$binary is missing; build and unpack the bundle again"
done < binaries.txt
command -v nvidia-smi > /dev/null || fail "no nvidia-smi: this machine has no NVIDIA driver, and nothing here runs without a GPU"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
[ -n "$gpu" ] && ! nvidia-smi -L | grep -qi 'no devices' || fail "the driver shows no GPU"

mkdir -p "$out/logs" || fail "cannot write to $out"
report=$out/report.md
failures=0
export CONSONANCE_REQUIRE_GPU=1

clocks() {
    nvidia-smi --query-gpu=clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw --format=csv,noheader |
        head -n 1 | awk -F', ' '{print "SM " $1 " of " $3 ", memory " $2 ", " $4 " °C, " $5}'
}

{
    echo "# consonance on $gpu"
    echo
    echo "| | |"
    echo "|---|---|"
    echo "| date | $(date -u +%FT%TZ) |"
    echo "| build | $(paste -sd, built.txt | sed 's/,/, /g') |"
    echo "| machine | $(uname -sr), $(nproc) cores |"
    echo "| GPU | $(nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader | paste -sd';') |"
    echo "| driver | $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) |"
    echo "| clocks before | $(clocks) |"
    echo "| parts | ${parts[*]} |"
} > "$report"

# Runs a command with a log: run LOG SECONDS COMMAND...
run() {
    local log=$out/logs/$1.txt limit=$2 status
    shift 2
    timeout --kill-after=10 "$limit" "$@" > "$log" 2>&1
    status=$?
    [ "$status" -ne 124 ] || echo "run.sh: ended after $limit s" >> "$log"
    return "$status"
}

run_tests() {
    local binary name status start verdict
    printf '\n## Tests\n\n| binary | passed | failed | s | |\n|---|---:|---:|---:|---|\n' >> "$report"
    for binary in tests/*; do
        name=$(basename "$binary")
        start=$SECONDS
        run "test-$name" 600 "$binary" --nocapture --test-threads=4
        status=$?
        verdict=ok
        if [ "$status" -ne 0 ]; then verdict="FAILED, status $status"; fi
        if grep -q 'skipped: no CUDA device' "$out/logs/test-$name.txt"; then verdict="FAILED, skipped for want of a device"; fi
        if ! grep -qE '^test result: .* [1-9][0-9]* passed' "$out/logs/test-$name.txt"; then
            verdict="FAILED, no test passed"
        fi
        [ "$verdict" = ok ] || failures=$((failures + 1))
        echo "| $name | $(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 | \2/p' "$out/logs/test-$name.txt" |
            tail -n 1 | grep . || echo '– | –') | $((SECONDS - start)) | $verdict |" >> "$report"
    done
}

run_sanitizer() {
    local sanitizer tool binary name status verdict
    printf '\n## compute-sanitizer, small shapes\n\n' >> "$report"
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
    if [ -z "$sanitizer" ]; then
        echo "Not run: there is no compute-sanitizer on this machine." >> "$report"
        return
    fi
    printf '| binary | tool | s | |\n|---|---|---:|---|\n' >> "$report"
    for binary in tests/*; do
        name=$(basename "$binary")
        for tool in memcheck racecheck initcheck synccheck; do
            local start=$SECONDS
            # The driver's own errors are what some tests ask for: only faults of kernels count.
            CONSONANCE_SMALL=1 run "$tool-$name" 600 "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 20 \
                $([ "$tool" != memcheck ] || echo --report-api-errors no) \
                "$binary" --nocapture --test-threads=1
            status=$?
            verdict=ok
            [ "$status" -eq 0 ] || verdict="FAILED, status $status: $(grep -m1 -E '=========.*(ERROR SUMMARY|RACECHECK SUMMARY|Error:|Invalid|hazard|Uninit)' \
                "$out/logs/$tool-$name.txt" | tr -d '|=' | sed 's/^ *//')"
            grep -q 'SUMMARY' "$out/logs/$tool-$name.txt" || verdict="FAILED, the tool gave no summary; status $status"
            [ "$verdict" = ok ] || failures=$((failures + 1))
            echo "| $name | $tool | $((SECONDS - start)) | $verdict |" >> "$report"
        done
    done
}

run_benches() {
    local name
    printf '\n## Benches\n\n' >> "$report"
    for name in $(cat families.txt); do
        printf '\n### %s\n\n| bench | low | median | high |\n|---|---:|---:|---:|\n' "$name" >> "$report"
        if ! CRITERION_HOME=$out/criterion run "bench-$name" 900 benches/cuda --bench --noplot "$name"; then
            failures=$((failures + 1))
            echo "| $name FAILED, see logs/bench-$name.txt | | | |" >> "$report"
        fi
        # Criterion prints the name on the line of the time, or alone before it when it is long.
        awk '/^[^ ].*\// && !/time:/ {name = $1}
             /time: +\[/ {
                 if ($1 != "time:") name = $1
                 sub(/.*\[/, ""); sub(/\].*/, ""); split($0, t, " ")
                 print "| " name " | " t[1] " " t[2] " | " t[3] " " t[4] " | " t[5] " " t[6] " |"
             }' "$out/logs/bench-$name.txt" >> "$report"
        # The tables that a bench prints itself.
        awk '/^\|/ {if (!inside) print ""; inside = 1; print; next} {inside = 0}' "$out/logs/bench-$name.txt" >> "$report"
    done
    echo >> "$report"
    echo "Clocks after: $(clocks)." >> "$report"
}

run_peers() {
    printf '\n## PyTorch and other libraries on the same device\n\n' >> "$report"
    if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null; then
        echo "Not run: python3 has no torch that sees the GPU." >> "$report"
        return
    fi
    if ! run peers 2400 python3 peers/device.py --table; then
        failures=$((failures + 1))
        echo "FAILED, see logs/peers.txt" >> "$report"
    fi
    grep '^[|A-Z]' "$out/logs/peers.txt" >> "$report"
}

for part in "${parts[@]}"; do
    echo "run.sh: $part"
    "run_$part"
done
{
    echo
    echo "Clocks at the end: $(clocks). Failures: $failures."
} >> "$report"
cat "$report"
[ "$failures" -eq 0 ]
