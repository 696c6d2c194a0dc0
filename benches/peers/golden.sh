#!/usr/bin/env bash
# Computes the golden values of the published systems in plain PyTorch, float64, and writes them to crates/methods/tests/data.
#   benches/peers/golden.sh                 all systems
#   benches/peers/golden.sh mutual          one of them
# torch and numpy come as in run.sh, from the virtual environment that PEERS_VENV names or one of its own.
set -euo pipefail
cd "$(dirname "$0")"
venv=${PEERS_VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
    grep -E '^(torch|numpy)==' requirements.txt | xargs "$venv/bin/pip" install --quiet
fi
systems=("$@")
[ ${#systems[@]} -gt 0 ] || systems=(mutual multimodal video_speech cvrl object_aware)
for system in "${systems[@]}"; do
    "$venv/bin/python" "$system.py"
done
