#!/usr/bin/env bash
# Measures consonance and its peers in one run, and writes docs/measurements/cpu-side-by-side.md.
#   benches/peers/run.sh            three rounds at all shapes, about half an hour on two cores
#   benches/peers/run.sh --quick    a try at the smallest shapes; writes to target/ only
# The Python packages go into benches/peers/.venv, or are taken from the virtual environment that PEERS_VENV names.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${PEERS_VENV:-benches/peers/.venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    # One by one: a package that cannot be had is a peer that is not measured, and no reason to measure none.
    grep -v '^#' benches/peers/requirements.txt | while read -r package; do
        "$venv/bin/pip" install --quiet "$package" || echo "not installed: $package" >&2
    done
fi
exec "$venv/bin/python" benches/peers/side_by_side.py "$@"
