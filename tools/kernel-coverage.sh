#!/usr/bin/env bash
# Which lines of kernels/ does a command execute under simulation?
#
#   tools/kernel-coverage.sh [--minimum PERCENT] COMMAND...
#
# Runs the command, which compiles kernels with counters and adds up those of all its processes, then prints the lines
# executed of each file and of all together. Fails if the command does, or below the minimum, 90 % by default.
# Needs the gcov of the compiler: $GCOV, or gcov (g++) or llvm-cov gcov (clang++).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

minimum=90
if [ "${1-}" = "--minimum" ]; then
    minimum=$2
    shift 2
fi
if [ $# -eq 0 ]; then
    echo "usage: tools/kernel-coverage.sh [--minimum PERCENT] COMMAND..." >&2
    exit 2
fi

counters=$(mktemp -d)
trap 'rm -rf "$counters"' EXIT
CONSONANCE_SIMT_COVERAGE="$counters" "$@"

gcov=${GCOV-}
if [ -z "$gcov" ]; then
    case "$("${CXX:-c++}" --version 2> /dev/null)" in
        *clang*) gcov="llvm-cov gcov" ;;
        *) gcov="gcov" ;;
    esac
fi

# One file may be compiled several times, and a template may have several instances: a line counts once, and as executed
# if any of them executed it.
find "$counters" -name '*.gcda' -print0 | sort -z | xargs -0 -r -n 16 $gcov --stdout 2> /dev/null \
    | awk -v kernels="$root/kernels/" -v minimum="$minimum" '
        {
            colon = index($0, ":")
            count = substr($0, 1, colon - 1)
            rest = substr($0, colon + 1)
            colon = index(rest, ":")
            line = substr(rest, 1, colon - 1) + 0
            text = substr(rest, colon + 1)
            gsub(/[ *]/, "", count)
        }
        count == "-" && line == 0 && text ~ /^Source:/ {
            file = substr(text, 8)
            inside = index(file, kernels) == 1
            file = "kernels/" substr(file, length(kernels) + 1)
            next
        }
        !inside || line == 0 || count == "-" || count == "" { next }
        {
            key = file SUBSEP line
            if (!(key in seen)) { seen[key] = 1; lines[file]++ }
            if (count ~ /^[0-9]/ && count + 0 > 0 && !(key in done)) { done[key] = 1; executed[file]++ }
        }
        END {
            for (file in lines) {
                all += lines[file]
                run += executed[file]
                printf "%-44s %5d / %5d  %5.1f %%\n", file, executed[file], lines[file], 100 * executed[file] / lines[file] | "sort"
            }
            close("sort")
            if (all == 0) { print "no line of kernels/ was compiled with counters"; exit 1 }
            percent = 100 * run / all
            printf "%-44s %5d / %5d  %5.1f %%\n", "all", run, all, percent
            if (percent < minimum) { printf "fewer than %s %%\n", minimum; exit 1 }
        }'
